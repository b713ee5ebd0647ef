"""The buddy allocator: memory in blocks of powers of two.

Before pages, a server kept the keys and values of a text in one piece, and got the
piece from an allocator like this one.  A request for n places gets a block of the
next power of two.  If there is none, a larger block is halved until there is; the two
halves are *buddies*.  When a block is given back while its buddy is free, they become
one again.  A block's buddy is found without a search: their addresses differ in one
bit, that of their size.

It is fast, and it wastes twice.  The rounding may cost nearly half of a block; and
free places that lie apart are of no use to a large request, however many they are.

References
----------
Knuth 1997, The Art of Computer Programming, volume 1, section 2.5, algorithms R and S.
"""

from __future__ import annotations

from typing import NamedTuple


class Buddy(NamedTuple):
    """Places 0 ... total - 1, as blocks that are free or taken."""

    free: dict[int, dict[int, None]]  # size -> addresses, the last freed last
    taken: dict[int, int]  # address -> size


def new_buddy(total: int) -> Buddy:
    """Free all places; a total that is not a power of two makes several blocks."""
    if total < 1:
        raise ValueError(f"total: {total}; there must be 1 place or more")
    sizes = [1 << b for b in reversed(range(total.bit_length()))]
    buddy = Buddy({size: {} for size in sizes}, {})
    address = 0
    for size in sizes:
        if total & size:
            buddy.free[size][address] = None
            address += size
    return buddy


def block_for(n: int) -> int:
    """Size of the block that n places take: the next power of two."""
    return 1 << (n - 1).bit_length()


def take(buddy: Buddy, n: int) -> int | None:
    """Take a block for n places, the last one that was freed.

    Writes
    ------
    The lists, if there is such a block.

    Returns
    -------
    int or None
        Its address; None if no block is large enough.
    """
    if n < 1:
        raise ValueError(f"n: {n}; a block has 1 place or more")
    size = found = block_for(n)
    while found in buddy.free and not buddy.free[found]:
        found *= 2
    if found not in buddy.free:
        return None
    address, _ = buddy.free[found].popitem()
    while found > size:
        found //= 2
        buddy.free[found][address + found] = None
    buddy.taken[address] = size
    return address


def give_back(buddy: Buddy, address: int) -> None:
    """Free a block, and join it with its buddy while the buddy is free.

    Writes
    ------
    The lists.
    """
    size = buddy.taken.pop(address)
    while address ^ size in buddy.free[size]:
        del buddy.free[size][address ^ size]
        address, size = min(address, address ^ size), 2 * size
    buddy.free[size][address] = None
