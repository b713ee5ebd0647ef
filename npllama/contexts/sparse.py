r"""Sparse patterns: a position looks at some of those before it.

Attention over S positions takes S^2 / 2 pairs of a query and a key.  A *pattern* says
which of them are computed.  With l close to the square root of S, two patterns of about
S sqrt(S) pairs are enough: through two layers, every later position can learn what one
position says.  For l = 4, and c = 1 in the fixed patterns, row i shows
what position i sees:

    window      strided     own block   summaries
    x           x           x           .
    x x         . x         x x         . .
    x x x       . . x       x x x       . . .
    x x x x     . . . x     x x x x     . . . x
    . x x x x   x . . . x   . . . . x   . . . x .
    . . x x x x . x . . . x . . . . x x . . . x . .

- *Sliding window*: the last W positions, the own one included.  Mistral and
  transformers count so; the Sparse Transformer's paper has a row {i - l ... i}, which
  is a window of l + 1, and its released code one of l.
- *Strided*: every l-th position, counted back from the own one.  It suits what has
  rows of l, such as pictures.
- *Own block*: the positions since the last multiple of l; and *summaries*: the last c
  positions of each block, which must pass on what the block says.  So the layer with
  own blocks must come first: a word goes to its block's summary, and from there to
  all later positions.  The other way round, it reaches only its own block (see
  `reach`).

What is skipped is not computed: `attending` takes a block of queries and only the
keys that one of them sees, and hides what the others must not see.  A stride is
computed class by class: the positions with one remainder modulo l form a text of their
own, in which each sees all before it.

References
----------
Child et al. 2019, arXiv:1904.10509, section 4; OpenAI's sparse_attention; Jiang et al.
2023, arXiv:2310.06825, for the window in a language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from npllama.attention import QUERY_BLOCK
from npllama.contexts.states import Attend, state_of
from npllama.serving.packed import as_run


class Pattern(NamedTuple):
    """Which keys a query may see; every query sees one at least, or gets zeros."""

    # (i, j) -> bool, for arrays of positions that broadcast; j <= i is asked for, too
    sees: Callable[[np.ndarray, np.ndarray], np.ndarray]
    # (first, n) -> rising positions: all keys that n queries from `first` on may see
    keys: Callable[[int, int], np.ndarray]
    step: int = 1  # queries of a block are so far apart


def window(W: int) -> Pattern:
    """The last W positions, the own one included."""
    _at_least_one("window", W)
    return Pattern(
        lambda i, j: i - j < W,
        lambda first, n: np.arange(max(0, first + 1 - W), first + n),
    )


def strided(stride: int) -> Pattern:
    """Every `stride`-th position, counted back from the own one."""
    _at_least_one("stride", stride)
    return Pattern(
        lambda i, j: (i - j) % stride == 0,
        lambda first, n: np.arange(first % stride, first + n, stride),
        stride,
    )


def own_block(size: int) -> Pattern:
    """The positions since the last multiple of `size`."""
    _at_least_one("size", size)
    return Pattern(
        lambda i, j: i // size == j // size,
        lambda first, n: np.arange(first // size * size, first + n),
    )


def summaries(size: int, cells: int, turn: int = 0) -> Pattern:
    """The last `cells` positions of each block of `size`, as far as they are there.

    Several heads may look at different ones: with `turn` 1 it is the `cells` positions
    before the last ones, with 2 those before these.
    """
    high = size - turn * cells
    if not (1 <= cells <= high and turn >= 0):
        raise ValueError(
            f"{cells} cells of blocks of {size}: from 1 to all of them; or turn {turn} "
            "is outside of a block"
        )
    low = high - cells
    return Pattern(
        lambda i, j: (j % size >= low) & (j % size < high),
        lambda first, n: _cells(first + n, size, low, high),
    )


def union(*patterns: Pattern) -> Pattern:
    """What any of the patterns lets a query see: one head that has them all."""

    def sees(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return reduce(np.logical_or, [pattern.sees(i, j) for pattern in patterns])

    def keys(first: int, n: int) -> np.ndarray:
        every = [_all_keys(pattern, first, n) for pattern in patterns]
        return np.unique(np.concatenate(every))

    return Pattern(sees, keys)


def _cells(S: int, size: int, low: int, high: int) -> np.ndarray:
    j = np.arange(S)
    return j[(j % size >= low) & (j % size < high)]


def _all_keys(pattern: Pattern, first: int, n: int) -> np.ndarray:
    """The keys of n queries that stand side by side."""
    starts = range(first, first + min(n, pattern.step))
    return np.concatenate([pattern.keys(s, first + n - s) for s in starts])


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; 1 or more is needed")


#  ---- attention by a pattern --------------------------------------------------


def attending(pattern: Pattern, block: int = QUERY_BLOCK) -> Attend:
    """A way to attend, for `forward`: every layer and head by this pattern.

    Parameters
    ----------
    pattern : Pattern
    block : int
        Queries that are taken at a time.

    Returns
    -------
    function
        As `attention.naive`: (q, k, v, start) to (B, T, H, D).
    """

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray):
        y = np.empty_like(q)  # (B, T, H, D)
        for b, first in enumerate(start.tolist()):
            for here in _turns(first, q.shape[1], pattern.step, block):
                y[b, here] = _some_queries(q[b, here], k[b], v[b], first, here, pattern)
        return y

    return attend


def _turns(first: int, T: int, step: int, block: int) -> list[slice]:
    """The queries of every turn: up to `block` of them, `step` apart."""
    return [
        slice(t, min(t + block * step, T), step)
        for r in range(min(step, T))
        for t in range(r, T, block * step)
    ]


def _some_queries(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    first: int,
    here: slice,
    pattern: Pattern,
) -> np.ndarray:
    """Attention of the queries of one turn.

    Parameters
    ----------
    q : (T, H, D) float
    k, v : (K, N, D) float
    first : int
        Position of the row's first query.
    here : slice
        Which of the row's queries these are.
    pattern : Pattern

    Returns
    -------
    (T, H, D) float
    """
    i = first + np.arange(here.start, here.stop, here.step)  # (T,)
    j = pattern.keys(int(i[0]), int(i[-1]) + 1 - int(i[0]))  # (S,)
    hidden = (j > i[:, None]) | ~pattern.sees(i[:, None], j)  # (T, S)
    some = as_run(j)
    # A query that sees nothing (before the first summary) gets zeros.
    return state_of(q, k[:, some], v[:, some], hidden).y


class Interleaved:
    """Layer r attends by pattern r mod p: the way to attend of a whole model.

    Parameters
    ----------
    patterns : p patterns
    layers : int
        Layers of the model: after this many calls the next pass begins.
    block : int
    """

    def __init__(
        self, patterns: Sequence[Pattern], layers: int, block: int = QUERY_BLOCK
    ):
        self.ways = [attending(pattern, block) for pattern in patterns]
        self.layers, self.layer = layers, 0

    def __call__(self, q, k, v, start) -> np.ndarray:
        way = self.ways[self.layer % len(self.ways)]
        self.layer = (self.layer + 1) % self.layers
        return way(q, k, v, start)


def by_head(patterns: Sequence[Pattern], block: int = QUERY_BLOCK) -> Attend:
    """A way to attend, for `forward`: query head h by pattern h mod p.

    The Sparse Transformer's heads so look at different cells of a block's summary.

    Parameters
    ----------
    patterns : p patterns
    block : int

    Returns
    -------
    function
        As `attention.naive`.
    """
    ways = [attending(pattern, block) for pattern in patterns]

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray):
        y, G = np.empty_like(q), q.shape[2] // k.shape[1]  # (B, T, H, D)
        for h in range(q.shape[2]):
            own, key = np.s_[:, :, h : h + 1], np.s_[:, h // G : h // G + 1]
            y[own] = ways[h % len(ways)](q[own], k[key], v[key], start)
        return y

    return attend


#  ---- what a pattern costs, and reaches ---------------------------------------


def mask(pattern: Pattern, n: int) -> np.ndarray:
    """All pairs of a text: row i tells what position i sees.

    Returns
    -------
    (n, n) bool
    """
    i, j = np.arange(n)[:, None], np.arange(n)
    return (j <= i) & pattern.sees(i, j)


def visited(pattern: Pattern, cached: int, new: int, block: int = QUERY_BLOCK) -> int:
    """Pairs whose scores `attending` computes, in one head, hidden ones included."""
    pairs = 0
    for here in _turns(cached, new, pattern.step, block):
        i = cached + np.arange(here.start, here.stop, here.step)
        pairs += len(i) * len(pattern.keys(int(i[0]), int(i[-1]) + 1 - int(i[0])))
    return pairs


def window_pairs(W: int, cached: int, new: int) -> int:
    """Pairs of a sliding window: what the first new positions lack, and W each."""
    few = min(new, max(0, W - cached - 1))  # positions that see less than W
    return few * cached + few * (few + 1) // 2 + (new - few) * W


def strided_pairs(stride: int, n: int) -> int:
    """Pairs of a text of n positions, n a multiple of the stride."""
    q = n // stride
    return stride * q * (q + 1) // 2


def own_block_pairs(size: int, n: int) -> int:
    """Pairs of a text of n positions, n a multiple of the size."""
    return n // size * (size * (size + 1) // 2)


def summary_pairs(size: int, cells: int, n: int) -> int:
    """Pairs of a text of n positions, n a multiple of the size."""
    q = n // size
    return cells * size * (q * (q - 1) // 2) + q * (cells * (cells + 1) // 2)


def merged_strided_pairs(W: int, stride: int, n: int) -> int:
    """Pairs of one head that has a window and a stride, n a multiple of the stride.

    Both see the own position and, within the window, every `stride`-th before it.
    """
    both = sum(max(0, n - d) for d in range(0, W, stride))
    return window_pairs(W, 0, n) + strided_pairs(stride, n) - both


def merged_fixed_pairs(size: int, cells: int, n: int) -> int:
    """Pairs of one head that has own blocks and summaries, n a multiple of the size.

    Both see the own block's summary, as far as it is there.
    """
    both = n // size * (cells * (cells + 1) // 2)
    return own_block_pairs(size, n) + summary_pairs(size, cells, n) - both


def reach(layers: Sequence[Pattern], n: int) -> float:
    """Which share of all pairs j <= i is connected by layers in this order.

    What flows past a layer beside it, in the residual stream, is left out.
    """
    connected = np.eye(n, dtype=bool)
    for pattern in layers:
        rows = [connected[seen].any(axis=0) for seen in mask(pattern, n)]
        connected = np.stack(rows)  # (n, n)
    return int(connected.sum()) / (n * (n + 1) // 2)
