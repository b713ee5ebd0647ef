r"""FlashAttention, tile by tile, as its papers list it.

A GPU computes in a small fast memory on the chip, and its arrays lie in a large slow
one.  FlashAttention never writes a score into the slow memory.  It cuts queries and
keys into *tiles*, a few rows of each; a tile of queries meets a tile of keys on the
chip, and only what they find goes back:

    FlashAttention 1                     FlashAttention 2
    for every tile of keys               for every tile of queries
        load k, v                            load q
        for every tile of queries            for every tile of keys
            load q, o, l, m                      load k, v
            meet                                 meet
            store o, l, m                    store o, lse

The first rescales a query's result `o` each time that it meets more keys, by the sum
`l` and the maximum `m` of its scores so far, so all three travel.  The second holds
them on the chip, divides once, and reads the keys again for every tile of queries.

Here the loops run on arrays, and a `SlowMemory` counts the rows that each array moves.
The count is that of `cost.traffic`, which walks the same loops without numbers.  The
chip is only imagined: on a processor `attention.blocked` is faster, which is the
second order with tiles for its cache.

All heads go side by side, each with tiles of its own, and each query head loads the
keys that it shares with others.

References
----------
Dao et al. 2022, arXiv:2205.14135, algorithm 1; Dao 2023, arXiv:2307.08691, algorithm 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from npllama.contexts.states import (
    LOWEST,
    Attend,
    by_key_head,
    by_query,
    in_the_future,
    part_of,
    scores_among,
)
from npllama.cost.traffic import Traffic, sees_none, spans, tile_sizes
from npllama.ops import einsum


class SlowMemory:
    """Counts the rows that one head moves between the slow memory and the chip.

    Attributes
    ----------
    moved : Counter
        Rows by array: ``q k v o`` have D elements each, ``l m lse`` one.
    """

    def __init__(self) -> None:
        self.moved: Counter[str] = Counter()

    def load(self, name: str, array: np.ndarray, rows: slice) -> np.ndarray:
        """Bring some rows (the next to last axis) to the chip."""
        self.moved[name] += rows.stop - rows.start
        return array[..., rows, :]

    def store(self, name: str, array: np.ndarray, rows: slice, value) -> None:
        """Write some rows back."""
        self.moved[name] += rows.stop - rows.start
        array[..., rows, :] = value

    @property
    def traffic(self) -> Traffic:
        """All that was moved, as `cost.traffic` counts it."""
        vectors = sum(self.moved[name] for name in ("q", "k", "v", "o"))
        return Traffic(vectors, 0, sum(self.moved.values()) - vectors)


#  ---- the two listings --------------------------------------------------------


def first_listing(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    first: int,
    columns: int,
    rows: int,
    slow: SlowMemory,
) -> np.ndarray:
    """FlashAttention 1: tiles of keys outside, tiles of queries inside.

    Parameters
    ----------
    q : (K, G, T, D) float
        As `states.by_key_head` gives them.
    k, v : (K, S, D) float
        Exactly the keys that the last query may see.
    first : int
        Position of the first query; tiles that lie in the future are not visited.
    columns, rows : int
        Keys and queries of a tile.
    slow : SlowMemory

    Returns
    -------
    (K, G, T, D) float
    """
    T, S = q.shape[2], k.shape[1]
    o, l, m = (np.empty_like(q[..., :n]) for n in (None, 1, 1))  # noqa: E741
    for name, array, begin in (("o", o, 0), ("l", l, 0), ("m", m, LOWEST)):
        slow.store(name, array, slice(0, T), begin)
    for j in spans(S, columns):
        k_j, v_j = slow.load("k", k, j), slow.load("v", v, j)  # (K, c, D)
        for i in spans(T, rows):
            if sees_none(i, j, first):
                continue
            q_i, o_i = slow.load("q", q, i), slow.load("o", o, i)  # (K, G, r, D)
            l_i, m_i = slow.load("l", l, i), slow.load("m", m, i)  # (K, G, r, 1)
            new = part_of(q_i, k_j, v_j, in_the_future(first, i, j))
            peak = np.maximum(m_i, new.peak)  # (K, G, r, 1)
            old_weight, new_weight = np.exp(m_i - peak), np.exp(new.peak - peak)
            total = old_weight * l_i + new_weight * new.total  # (K, G, r, 1)
            both = l_i * old_weight * o_i + new_weight * new.y  # (K, G, r, D)
            slow.store("o", o, i, both / total)
            slow.store("l", l, i, total)
            slow.store("m", m, i, peak)
    return o


def second_listing(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    first: int,
    columns: int,
    rows: int,
    slow: SlowMemory,
) -> np.ndarray:
    """FlashAttention 2: tiles of queries outside, tiles of keys inside.

    What is kept for the gradients, the logarithm of the sum, is stored as listed,
    though nothing here reads it.

    Parameters
    ----------
    q, k, v, first, columns, rows, slow
        As for `first_listing`.

    Returns
    -------
    (K, G, T, D) float
    """
    T, S = q.shape[2], k.shape[1]
    o, lse = np.empty_like(q), np.empty_like(q[..., :1])  # (K, G, T, D), (.., 1)
    for i in spans(T, rows):
        q_i = slow.load("q", q, i)  # (K, G, r, D)
        y, total = np.zeros_like(q_i), np.zeros_like(q_i[..., :1])
        peak = np.full_like(total, LOWEST)  # (K, G, r, 1)
        for j in spans(S, columns):
            if sees_none(i, j, first):
                continue
            k_j, v_j = slow.load("k", k, j), slow.load("v", v, j)  # (K, c, D)
            scores = scores_among(q_i, k_j, in_the_future(first, i, j))
            higher = np.maximum(peak, scores.max(axis=-1, keepdims=True))
            p, shrink = np.exp(scores - higher), np.exp(peak - higher)
            total = shrink * total + p.sum(axis=-1, keepdims=True)  # (K, G, r, 1)
            y = shrink * y + einsum("KGTS,KSD->KGTD", p, v_j, "values")
            peak = higher
        slow.store("o", o, i, y / total)
        slow.store("lse", lse, i, peak + np.log(total))
    return o


#  ---- ways to attend ----------------------------------------------------------


def flash_1(on_chip: int, slow: SlowMemory | None = None) -> Attend:
    """A way to attend, for `forward`: FlashAttention 1.

    Parameters
    ----------
    on_chip : int
        Elements of the fast memory of one head, which four tiles share.
    slow : SlowMemory, optional
        Counts what moves, of all rows and layers.

    Returns
    -------
    function
        As `attention.naive`: (q, k, v, start) to (B, T, H, D).  ValueError if the
        fast memory does not hold four vectors.
    """
    return _by_tiles(first_listing, lambda D: tile_sizes(on_chip, D), slow)


def flash_2(columns: int, rows: int, slow: SlowMemory | None = None) -> Attend:
    """A way to attend, for `forward`: FlashAttention 2.

    Parameters
    ----------
    columns, rows : int
        Keys and queries of a tile.
    slow : SlowMemory, optional

    Returns
    -------
    function
        As `attention.naive`.

    Raises
    ------
    ValueError
        If a tile has no rows.
    """
    if columns < 1 or rows < 1:
        raise ValueError(f"tiles of {columns} keys and {rows} queries: 1 at least")
    return _by_tiles(second_listing, lambda D: (columns, rows), slow)


def _by_tiles(
    listing: Callable[..., np.ndarray],
    sizes: Callable[[int], tuple[int, int]],
    slow: SlowMemory | None,
) -> Attend:
    """Run a listing for every row of a batch."""
    counted = SlowMemory() if slow is None else slow

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray):
        K, N, D = k.shape[1:]
        y = np.empty_like(q)  # (B, T, H, D)
        for b, first in enumerate(start.tolist()):
            seen = slice(0, min(first + q.shape[1], N))
            heads = by_key_head(q[b], K)  # (K, G, T, D)
            arrays = heads, k[b, :, seen], v[b, :, seen]
            y[b] = by_query(listing(*arrays, first, *sizes(D), counted))
        return y

    return attend
