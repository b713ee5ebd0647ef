r"""What attention reads and writes: standard against tiled.

Standard attention computes S = Q K^T, then P = softmax(S), then O = P V, each a
kernel of its own, and each N x N matrix goes to memory and comes back.
FlashAttention loads tiles of Q, K and V that fit into the memory on the chip, and
never writes S or P; in the backward pass it computes them again.  It does more
arithmetic and takes less time, for memory is what attention waits for.

Here the transfers are counted by walking through the algorithms' loops, load by
load.  What is counted is algorithms 0 and 3 of the paper for the standard way, 1 and
4 for the tiled one, without mask and dropout.

References
----------
Dao et al. 2022, arXiv:2205.14135, algorithms 0, 1, 3, 4 and figure 2 (left).
"""

from __future__ import annotations

from typing import NamedTuple

from npllama.cost.textbook import product_flops

HALF, SINGLE = 2, 4  # bytes: of Q, K, V, S, P, O; of the statistics of softmax


class Setting(NamedTuple):
    """Sizes of one attention; those of the paper's figure are the default."""

    batch: int = 64
    heads: int = 16
    positions: int = 1024
    head: int = 64
    on_chip: int = 192 * 1024  # bytes of fast memory that a tile may take: an A100's

    @property
    def key_block(self) -> int:
        """Keys in a tile: four tiles share the fast memory (algorithm 1, line 1)."""
        fits = -(-self.on_chip // HALF // (4 * self.head))
        return min(max(fits, 1), self.positions)

    @property
    def query_block(self) -> int:
        """Queries in a tile."""
        return min(self.key_block, self.head)


class Traffic(NamedTuple):
    """What one pass of attention moves and computes, all rows and heads."""

    bytes: int
    flops: int


def standard(at: Setting, backward: bool) -> Traffic:
    """Every kernel reads its operands and writes its result.

    Forward: S = Q K^T, P = softmax(S), O = P V.  Backward, with dO given: dV = P^T
    dO, dP = dO V^T, dS from P and dP, dQ = dS K, dK = dS^T Q.
    """
    forward = ("Q K S", "S P", "P V O")
    gradients = ("P dO dV", "dO V dP", "P dP dS", "dS K dQ", "dS Q dK")
    square, thin = at.positions**2, at.positions * at.head
    large = {"S", "P", "dS", "dP"}
    words = " ".join(gradients if backward else forward).split()
    elements = sum(square if word in large else thin for word in words)
    return _of_all_heads(at, HALF * elements, products=4 if backward else 2)


def tiled(at: Setting, backward: bool) -> Traffic:
    """For each tile of keys and values, all tiles of queries pass by.

    Forward: a tile of Q, O and the running maximum and sum come in, and O and both
    go out again.  Backward: Q, O, dO, dQ, maximum and sum come in, dQ goes out; dK
    and dV are written when all queries have passed.
    """
    moved = 0
    for keys in _tiles(at.positions, at.key_block):
        moved += HALF * 2 * keys * at.head  # K, V
        for queries in _tiles(at.positions, at.query_block):
            tiles, statistics = (5, 2) if backward else (3, 4)
            moved += HALF * tiles * queries * at.head + SINGLE * statistics * queries
        if backward:
            moved += HALF * 2 * keys * at.head  # dK, dV
    return _of_all_heads(at, moved, products=5 if backward else 2)


def _tiles(n: int, size: int) -> list[int]:
    """Sizes of the tiles of n positions."""
    return [min(size, n - begin) for begin in range(0, n, size)]


def _of_all_heads(at: Setting, moved: int, products: int) -> Traffic:
    each = product_flops(at.positions, at.head, at.positions)
    together = at.batch * at.heads
    return Traffic(together * moved, together * products * each)
