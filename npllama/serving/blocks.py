"""Which text holds which page.

A page may be in the tables of several texts: samples of one prompt, the beams of a
search, requests that begin alike.  So each page has a count of the tables that hold
it.  A page that no table holds is *free*.

Sharing rests on two ideas:

- *Copy-on-write*.  A text that is forked shares all its pages.  Only when one of the
  two writes into a page that they share does it get a copy of that page.  The last
  holder writes in place.

- *Names*.  A page that is full of keys never changes again.  It is named by a hash of
  its tokens and of the name of the page before it, so that a name stands for the
  whole text up to the page's end.  A new text looks up the names of its own full
  pages and takes what it finds: it need not compute them.  A *salt* in front of the
  first name keeps tenants apart, so that nobody can tell from a fast answer what
  others have asked.

A free page keeps its name and its keys until it is dealt out anew, the oldest first.
A text that ends gives its last page back first, so that it is also dealt out first: a
new text can take a page only if it agrees up to the page's end.

    P = 4, 10 pages        tables                            free, oldest first
    A: 15 tokens           A 0 1 2 3                         4 5 6 7 8 9
    A grows to 17          A 0 1 2 3 4                       5 6 7 8 9
    B: 14, 10 as A has     A 0 1 2 3 4   B 0 1 5 6           7 8 9
    A ends                 B 0 1 5 6                         7 8 9 4 3 2
    B ends                                                   7 8 9 4 3 2 6 5 1 0
    C: 29, 12 as A has     C 0 1 2 7 8 9 4 3                 6 5

References
----------
Kwon et al. 2023, arXiv:2309.06180, sections 4.3 and 4.4; the table is that of vLLM's
document on prefix caching.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import islice
from typing import NamedTuple

import numpy as np

Table = tuple[int, ...]
Chain = tuple[bytes, ...]  # the names of a text's full pages, in order
Copies = list[tuple[int, int]]  # (source, target) of pages to be copied


class Blocks(NamedTuple):
    """The state of all pages; functions that change it say so under Writes."""

    page_size: int  # P
    held: list[int]  # Q of them, tables that hold the page
    free: dict[int, None]  # the pages that no table holds, oldest first
    name_of: dict[int, bytes]
    page_of: dict[bytes, int]  # the same, looked up by name


def new_blocks(pages: int, page_size: int) -> Blocks:
    """Blocks whose pages are all free and have no names."""
    return Blocks(page_size, [0] * pages, dict.fromkeys(range(pages)), {}, {})


def copied(blocks: Blocks) -> Blocks:
    """A copy of the state that can change independently."""
    size, held, free, name_of, page_of = blocks
    return Blocks(size, list(held), dict(free), dict(name_of), dict(page_of))


def pages_for(positions: int, page_size: int) -> int:
    """The number of pages that some positions need."""
    return -(-positions // page_size)


#  ---- names ------------------------------------------------------------------


def chain(
    tokens: Sequence[int], page_size: int, salt: str = "", known: Chain = ()
) -> Chain:
    """The names of all full pages of a text.

    Parameters
    ----------
    tokens : token ids
        Final ones: a guess that may be taken back must not be named.
    page_size : int
        P, positions of a page.
    salt : str
        Texts share pages only if their salts are equal.
    known : Chain
        Names of the first pages, if they are known.

    Returns
    -------
    Chain
    """
    names = list(known)
    name = names[-1] if names else sha256(salt.encode()).digest()
    for first in range(len(names) * page_size, len(tokens) - page_size + 1, page_size):
        page = np.array(tokens[first : first + page_size], dtype="<i8")  # (P,)
        name = sha256(name + page.tobytes()).digest()
        names.append(name)
    return tuple(names)


def match(blocks: Blocks, names: Chain, most: int) -> Table:
    """Pages that hold the beginning of a text already.

    Parameters
    ----------
    blocks : Blocks
    names : Chain
        Of the text.
    most : int
        The largest number of positions to find; at most the text's length less one,
        since its last token has to run, or there would be no logits after it.

    Returns
    -------
    Table
        Whole pages, up to the first that is not there.
    """
    found: list[int] = []
    for name in names[: most // blocks.page_size]:
        page = blocks.page_of.get(name)
        if page is None:
            break
        found.append(page)
    return tuple(found)


def publish(blocks: Blocks, table: Table, names: Chain) -> None:
    """Name pages, once their keys are computed.

    If two texts have computed equal pages, the first keeps the name.

    Writes
    ------
    The names in `blocks`.

    Parameters
    ----------
    blocks : Blocks
    table : Table
    names : Chain
        Of the first pages of the table; those that have names already included.
    """
    for page, name in zip(table, names):
        if name not in blocks.page_of:
            blocks.page_of[name] = page
            blocks.name_of[page] = name


#  ---- taking and giving back -------------------------------------------------


def take(blocks: Blocks, hits: Table, positions: int, spare: int = 0) -> Table | None:
    """Take pages for a new text: those that `match` found, and free ones for the rest.

    Writes
    ------
    `blocks`, unless too few pages are free.

    Parameters
    ----------
    blocks : Blocks
    hits : Table
        See `match`.
    positions : int
        That the text shall have room for.
    spare : int
        Pages that must stay free.

    Returns
    -------
    Table, or None if too few pages are free
    """
    need = pages_for(positions, blocks.page_size) - len(hits)
    # A page that was found may itself be free; then the rest cannot have it.
    left = len(blocks.free) - sum(page in blocks.free for page in hits)
    if need + spare > left:
        return None
    fork(blocks, hits)
    return hits + _deal(blocks, need)


def _deal(blocks: Blocks, n: int) -> Table:
    """The n oldest free pages, which lose their names."""
    dealt = tuple(islice(blocks.free, n))
    for page in dealt:
        if page in blocks.name_of:
            del blocks.page_of[blocks.name_of.pop(page)]
    return fork(blocks, dealt)


def fork(blocks: Blocks, table: Table) -> Table:
    """Let a second text hold the same pages.

    Writes
    ------
    `blocks`.
    """
    for page in table:
        blocks.free.pop(page, None)
        blocks.held[page] += 1
    return table


def grow(
    blocks: Blocks, table: Table, start: int, positions: int
) -> tuple[Table, Copies] | None:
    """Make room for more positions of a text, in pages that it alone holds.

    Writes
    ------
    `blocks`, unless too few pages are free.

    Parameters
    ----------
    blocks : Blocks
    table : Table
    start : int
        The first position that will be written.
    positions : int
        That the text shall have room for.

    Returns
    -------
    table : Table
    copies : Copies
        Pages to be copied, in this order, before anything is written.

    None if too few pages are free.

    Examples
    --------
    A text of 3 positions in pages of 2 is forked.  The other text writes position 3, into
    page 1 that both hold: so page 1 is copied to page 2, and only page 0 is still shared.

    >>> blocks = new_blocks(4, 2)
    >>> table = take(blocks, (), 3)
    >>> grow(blocks, fork(blocks, table), 3, 4)
    ((0, 2), [(1, 2)])
    >>> table
    (0, 1)
    """
    pages_needed = pages_for(positions, blocks.page_size)
    written = range(start // blocks.page_size, min(pages_needed, len(table)))
    shared = [i for i in written if blocks.held[table[i]] > 1]
    new = max(0, pages_needed - len(table))
    if len(shared) + new > len(blocks.free):
        return None
    dealt, pages, copies = _deal(blocks, len(shared) + new), list(table), Copies()
    for i, page in zip(shared, dealt):
        copies.append((pages[i], page))
        blocks.held[pages[i]] -= 1
        pages[i] = page
    return (*pages, *dealt[len(shared) :]), copies


def drop(blocks: Blocks, table: Table) -> None:
    """Give pages back, last page first.

    Writes
    ------
    `blocks`: a page that nobody holds any more is free, and keeps its name.
    """
    for page in reversed(table):
        blocks.held[page] -= 1
        if not blocks.held[page]:
            blocks.free[page] = None


def shrink(blocks: Blocks, table: Table, positions: int) -> Table:
    """Keep the pages of the first `positions` positions, and give back the rest.

    Writes
    ------
    `blocks`.
    """
    pages = pages_for(positions, blocks.page_size)
    drop(blocks, table[pages:])
    return table[:pages]
