"""What FlashAttention saves: traffic, not arithmetic.

A GPU computes out of a small fast memory and keeps its arrays in a large slow one.
Standard attention runs as several programs, each of which reads its operands from the
slow memory and writes its result back, so the scores, N x N for every head, travel
several times.  FlashAttention takes one block of keys and values at a time, combines it
with all queries, and never writes a score.  Its backward pass computes the scores a
second time instead of reading them: more FLOPs, but still much faster.

Every load and store of a tile is counted here by walking the loops of the paper's
algorithms; nothing is computed.  Sizes are those of one head, in elements.

References
----------
Dao et al. 2022, arXiv:2205.14135, algorithms 0 to 4 and figure 2.
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


def tiled_forward(N: int, columns: int, rows: int) -> Iterator[Traffic]:
    """Algorithm 1: blocks of keys outside, blocks of queries inside.

    Parameters
    ----------
    columns, rows : int
        Keys and queries per block.
    """
    for j in range(0, N, columns):
        n = min(columns, N - j)
        yield Traffic(2 * n, 0, 0)  # read K and V of the block
        for i in range(0, N, rows):
            m = min(rows, N - i)
            yield Traffic(2 * m, 0, 2 * m)  # read Q and O, maximum and sum
            yield Traffic(m, 0, 2 * m)  # write O, maximum and sum


def tiled_backward(N: int, columns: int, rows: int) -> Iterator[Traffic]:
    """Algorithm 4: the same loops; scores are computed again from Q and K."""
    for j in range(0, N, columns):
        n = min(columns, N - j)
        yield Traffic(2 * n, 0, 0)  # read K and V of the block
        for i in range(0, N, rows):
            m = min(rows, N - i)
            yield Traffic(4 * m, 0, 2 * m)  # read Q, O, dO and dQ, maximum and sum
            yield Traffic(m, 0, 0)  # write dQ
        yield Traffic(2 * n, 0, 0)  # write dK and dV


# Products of N x N by D: scores and values forward; dV, dP, dQ, dK backward; and the
# scores once more where they were not kept.
PRODUCTS = {"forward": 2, "backward": 4, "recomputed": 1}


def product_flops(N: int, D: int, products: int) -> int:
    """FLOPs of this many products of one head: 2 N N D each."""
    return 2 * N * N * D * products
