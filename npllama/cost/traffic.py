"""What FlashAttention saves: traffic, not arithmetic.

A GPU computes out of a small fast memory and keeps its arrays in a large slow one.
Standard attention runs as several programs, each of which reads its operands from the
slow memory and writes its result back, so the scores, N x N for every head, travel
several times.  FlashAttention takes one block of keys and values at a time, combines it
with all queries, and never writes a score.  Its backward pass computes the scores a
second time instead of reading them: more FLOPs, but still much faster.

Every load and store of a tile is counted here by walking the loops of the papers'
algorithms; nothing is computed (`contexts.tiles` computes by the same loops, and moves
the same).  What an algorithm begins in the slow memory, and reads again later, counts
as written.  Sizes are those of one head, in elements.

With a fast memory of M elements, 4 D <= M <= N D, the tiles move between 6 and 18 times
N^2 D^2 / M elements of vectors forward.  That is theorem 2 of the first paper with its
constants: what grows with the square of the text is divided by what the chip holds.

References
----------
Dao et al. 2022, arXiv:2205.14135, algorithms 0 to 4, theorem 2 and figure 2; Dao 2023,
arXiv:2307.08691, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Traffic(NamedTuple):
    """Elements of the slow memory read and written, by rows that they come in."""

    vectors: int  # of D elements: queries, keys, values, results, gradients
    scores: int  # single elements of the N x N
    scalars: int  # the running maximum and sum of a query

    def bytes(self, D: int) -> int:
        """All elements in float16, except the running sums in float32."""
        return 2 * (self.vectors * D + self.scores) + 4 * self.scalars


def total(loads: Iterator[Traffic]) -> Traffic:
    """The sum of loads and stores."""
    return Traffic(*map(sum, zip(*loads)))


def standard_forward(N: int) -> Iterator[Traffic]:
    """Algorithm 0: three programs, the scores in between."""
    yield Traffic(2 * N, N * N, 0)  # read Q and K, write S
    yield Traffic(0, 2 * N * N, 0)  # read S, write P
    yield Traffic(2 * N, N * N, 0)  # read P and V, write O


def standard_backward(N: int) -> Iterator[Traffic]:
    """Algorithm 3: five programs."""
    yield Traffic(2 * N, N * N, 0)  # read P and dO, write dV
    yield Traffic(2 * N, N * N, 0)  # read dO and V, write dP
    yield Traffic(0, 3 * N * N, 0)  # read P and dP, write dS
    yield Traffic(2 * N, N * N, 0)  # read dS and K, write dQ
    yield Traffic(2 * N, N * N, 0)  # read dS and Q, write dK


def tile_sizes(on_chip: int, D: int) -> tuple[int, int]:
    """Keys and queries per tile for a fast memory of `on_chip` elements (not bytes).

    Four tiles share it: of keys, values, queries and results.  Algorithm 1, line 1,
    which holds the square tile of scores to the size of the others, too.

    Raises
    ------
    ValueError
        If it does not hold four vectors.
    """
    if on_chip < 4 * D:
        raise ValueError(
            f"a fast memory of {on_chip} elements; four vectors of {D} need {4 * D}"
        )
    columns = -(-on_chip // (4 * D))
    return columns, min(columns, D)


def spans(n: int, size: int) -> Iterator[slice]:
    """Tiles of `size` of n rows; the last may be smaller."""
    return (slice(t, min(t + size, n)) for t in range(0, n, size))


def sees_none(queries: slice, keys: slice, cached: int | None) -> bool:
    """Whether all keys of a tile come after all queries of another.

    Parameters
    ----------
    queries, keys : slices
    cached : int or None
        Positions before the first query.  None: no key is hidden from any query.
    """
    return cached is not None and cached + queries.stop <= keys.start


def tiled_forward(
    new: int, columns: int, rows: int, cached: int | None = None
) -> Iterator[Traffic]:
    """FlashAttention: blocks of keys outside, blocks of queries inside.

    The result, and the maximum and sum of every query, lie in the slow memory; each
    block of keys reads, rescales and writes them again.

    Parameters
    ----------
    new : int
        Queries.
    columns, rows : int
        Keys and queries per block.
    cached : int or None
        Keys before the first query; tiles whose keys are all hidden are left out.
        None: N queries meet N keys and none is hidden, as in the paper.

    References
    ----------
    Dao et al. 2022, algorithm 1.
    """
    yield Traffic(new, 0, 2 * new)  # line 2: begin O, sum and maximum
    for keys in spans(new + (cached or 0), columns):
        n = keys.stop - keys.start
        yield Traffic(2 * n, 0, 0)  # line 6: read K and V of the block
        for queries in spans(new, rows):
            if sees_none(queries, keys, cached):
                continue
            m = queries.stop - queries.start
            yield Traffic(2 * m, 0, 2 * m)  # line 8: read Q and O, sum and maximum
            yield Traffic(m, 0, 2 * m)  # lines 12, 13: write O, sum and maximum


def tiled_backward(N: int, columns: int, rows: int) -> Iterator[Traffic]:
    """FlashAttention's gradients; scores are computed again from Q and K.

    The paper begins dQ, dK and dV in the slow memory.  That of dQ is counted, because
    the loop reads it; those of dK and dV are not, because they are overwritten unread.

    References
    ----------
    Dao et al. 2022, algorithm 4.
    """
    yield Traffic(N, 0, 0)  # begin dQ
    for j in range(0, N, columns):
        n = min(columns, N - j)
        yield Traffic(2 * n, 0, 0)  # read K and V of the block
        for i in range(0, N, rows):
            m = min(rows, N - i)
            yield Traffic(4 * m, 0, 2 * m)  # read Q, O, dO and dQ, maximum and sum
            yield Traffic(m, 0, 0)  # write dQ
        yield Traffic(2 * n, 0, 0)  # write dK and dV


def swapped_forward(
    new: int, columns: int, rows: int, cached: int | None = None
) -> Iterator[Traffic]:
    """FlashAttention 2: blocks of queries outside, blocks of keys inside.

    A result stays on the chip until it is finished, and one number per query is kept
    for the gradients: the logarithm of the sum.  The keys are read again for every
    block of queries; which order moves less depends on the sizes of the tiles.  With
    tiles of 128 this one moves more from the slow memory than the other with 192 KiB:
    what it gains is that blocks of queries need nothing of each other, so that all
    processors of a GPU have work, and that it divides once.

    Parameters
    ----------
    new, columns, rows, cached
        As for `tiled_forward`.

    References
    ----------
    Dao 2023, arXiv:2307.08691, algorithm 1.
    """
    for queries in spans(new, rows):
        m = queries.stop - queries.start
        yield Traffic(m, 0, 0)  # line 4: read Q of the block
        for keys in spans(new + (cached or 0), columns):
            if not sees_none(queries, keys, cached):
                yield Traffic(2 * (keys.stop - keys.start), 0, 0)  # line 7: K and V
        yield Traffic(m, 0, m)  # lines 14, 15: write O and the logarithm


#  ---- in closed form ----------------------------------------------------------


def tiled_forward_sum(
    new: int, columns: int, rows: int, cached: int | None = None
) -> Traffic:
    """The sum of `tiled_forward`: every block of keys meets what it does not follow.

    Of the queries, those go without block j that end before its first key: whole
    blocks of rows, (j columns - cached) // rows of them.
    """
    before, S = cached or 0, new + (cached or 0)
    firsts = range(0, S, columns)
    met = new * len(firsts)
    if cached is not None:
        met -= rows * sum(max(0, first - before) // rows for first in firsts)
    return Traffic(2 * S + 3 * met + new, 0, 4 * met + 2 * new)


def tiled_backward_sum(N: int, columns: int) -> Traffic:
    """The sum of `tiled_backward`."""
    met = N * -(-N // columns)
    return Traffic(4 * N + 5 * met + N, 0, 2 * met)


def swapped_forward_sum(
    new: int, columns: int, rows: int, cached: int | None = None
) -> Traffic:
    """The sum of `swapped_forward`: every block of queries reads what it may see.

    That is whole blocks of keys, to the one that holds its last query's own position.
    """
    before, S = cached or 0, new + (cached or 0)
    lasts = [before + min(t + rows, new) for t in range(0, new, rows)]
    keys = len(lasts) * S
    if cached is not None:
        keys = sum(min(S, -(-last // columns) * columns) for last in lasts)
    return Traffic(2 * new + 2 * keys, 0, new)


# Products of N x N by D: scores and values forward; dV, dP, dQ, dK backward; and the
# scores once more where they were not kept.
PRODUCTS = {"forward": 2, "backward": 4, "recomputed": 1}


def product_flops(N: int, D: int, products: int) -> int:
    """FLOPs of this many products of one head: 2 N N D each."""
    return 2 * N * N * D * products
