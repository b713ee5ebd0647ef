r"""Chapter 7: attention.

Every position asks (its query q) what the positions up to itself offer (their keys
k), and takes home the average of their values v, weighted by the softmax of how
well question and offer match:

$$y_t = \sum_{s \le t} p_{ts} v_s, \quad
  p_{ts} = \mathrm{softmax}_s (q_t \cdot k_s / \sqrt{D})$$

This happens in H heads side by side, each with D coordinates of its own.  In
multi-head attention (MHA) every query head has its own keys and values; in
grouped-query attention (GQA) a group of G = H / K query heads shares one key/value
head, which makes the cache G times smaller; with K = 1 it is called multi-query
(MQA).  Query head h belongs to key/value head h // G: neighbours share (repeat the
keys as k1 k1 k2 k2, not k1 k2 k1 k2).

The chapter says it twice.  `naive` is the formula in loops.  `vectorized` is the
same for use: in blocks of queries, keys and heads, so that the T x S matrix of
scores of a long context is never held in memory.
"""

from __future__ import annotations

import math

import numpy as np

from npllama.cache import append
from npllama.ops import einsum, note
from npllama.rope import rotate
from npllama.weights import Layer


def softmax(scores: np.ndarray) -> np.ndarray:
    """Exponentials that sum to one along the last axis.

    The largest score is subtracted first, which changes nothing in the ratio and
    keeps `exp` from overflowing.

    Parameters
    ----------
    scores : (*B, S) float

    Returns
    -------
    (*B, S) float
    """
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))  # (*B, S)
    return e / e.sum(axis=-1, keepdims=True)


def naive(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Causal attention as the formula reads: one row, one head, one position a turn.

    Parameters
    ----------
    q : (B, T, H, D) float
        Queries of the T new positions.
    k, v : (B, K, N, D) float
        The cache of one layer, the new positions included.
    start : (B,) int64
        Position of each row's first query: query t looks at keys 0 ... start + t.

    Returns
    -------
    (B, T, H, D) float
    """
    B, T, H, D = q.shape
    G = H // k.shape[1]
    N = k.shape[2]
    y = np.empty_like(q)  # (B, T, H, D)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                S = min(int(start[b]) + t + 1, N)
                keys, values = k[b, h // G, :S], v[b, h // G, :S]
                scores = einsum("D,SD->S", q[b, t, h], keys, "scores")
                p = softmax(scores / math.sqrt(D))  # (S,)
                y[b, t, h] = einsum("S,SD->D", p, values, "values")
    return y


# About a million scores keep BLAS busy and still lie in the cache.  Many rows or a
# large group make more: with fewer keys at a time, products would be too short.
QUERY_BLOCK = 128
LEAST_KEYS = 4096
SCORES = 2**20


def default_blocks(rows: int, queries: int, G: int, keys: int) -> tuple[int, int]:
    """How many keys, and how many key heads, `vectorized` takes at once.

    As many keys as make a million scores with the G query heads of one key head,
    4096 at least; where there are fewer keys, as many more heads.

    Parameters
    ----------
    rows, queries, keys : int
        Rows of the batch, queries of a block, and all keys that the last one sees.
    G : int
        Query heads that share a key head.

    Returns
    -------
    key_block, head_block : int
    """
    each = rows * queries * G
    key_block = max(LEAST_KEYS, SCORES // each)
    return key_block, max(1, SCORES // (each * min(keys, key_block)))


def vectorized(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    start: np.ndarray,
    query_block: int = QUERY_BLOCK,
    key_block: int | None = None,
    head_block: int | None = None,
) -> np.ndarray:
    """Causal attention by blocks, equal to `naive` up to rounding.

    A block of queries meets only the keys at or before its last position, a block
    of keys and a few heads at a time.  Of the scores no more than two blocks exist at
    once (one stays while the next is computed), so memory does not grow with the
    context; this is FlashAttention's arrangement, for a processor's cache instead of
    a GPU's.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : (B, K, N, D) float
        Never copied: that G query heads share a key head is a letter that k lacks.
    start : (B,) int64
    query_block : int
        Queries per block.
    key_block, head_block : int or None
        Keys and key heads per block.  None: as `default_blocks`.

    Returns
    -------
    (B, T, H, D) float

    References
    ----------
    Dao et al. 2022, arXiv:2205.14135, algorithm 1; Milakov and Gimelshein 2018,
    arXiv:1805.02867, for the running softmax.
    """
    B, T, H, D = q.shape
    K, G = k.shape[1], H // k.shape[1]
    sizes = default_blocks(B, min(T, query_block), G, int(start.max()) + T)
    key_block, head_block = key_block or sizes[0], head_block or sizes[1]
    y = np.empty(q.shape, dtype=q.dtype)  # (B, T, H, D)
    for rows in _rows_that_start_together(start):
        first = int(start[rows.start])
        for head in range(0, K, head_block):
            some = np.s_[rows, head : head + head_block]
            keys, values = k[some], v[some]
            heads = slice(head * G, (head + head_block) * G)  # that share them
            for t in range(0, T, query_block):
                here = np.s_[rows, t : t + query_block, heads]
                seen = first + min(t + query_block, T)
                y[here] = _block_of_queries(
                    q[here],
                    keys[:, :, :seen],
                    values[:, :, :seen],
                    first + t,
                    key_block,
                )
    return y


def _rows_that_start_together(start: np.ndarray) -> list[slice]:
    """The whole batch if every row is as long, else the rows one by one."""
    if (start == start[0]).all():
        return [slice(0, len(start))]
    return [slice(b, b + 1) for b in range(len(start))]


def _block_of_queries(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int, key_block: int
) -> np.ndarray:
    """Attention of a few consecutive queries, a block of keys at a time.

    The softmax runs along: `peak` is the largest score so far, `total` the sum of
    the exponentials and `y` that of the weighted values, both relative to `peak`.
    When a block raises the peak, what was summed before is scaled down to it.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : (B, K, S, D) float
        Exactly the keys that the last query may see.
    first : int
        Position of the first query.

    Returns
    -------
    (B, T, H, D) float
    """
    B, T, H, D = q.shape
    K, S = k.shape[1:3]
    hidden = v[:, :, first + 1 :]  # from some of these queries
    if hidden.size and not np.isfinite(hidden).all():
        # A weight of zero does not hide them, since 0 * nan is nan; loops never
        # look.  So whoever hunts for the first number that went wrong is not sent
        # to a position before it.
        return naive(q, k, v, np.full(B, first, dtype=np.int64))
    q = q.reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)  # (B, K, G, T, D)
    q = q * (1 / math.sqrt(D))
    peak = total = y = np.zeros((), dtype=q.dtype)  # ()
    for s in range(0, S, key_block):
        keys, values = k[:, :, s : s + key_block], v[:, :, s : s + key_block]
        scores = einsum("BKGTD,BKSD->BKGTS", q, keys, "scores")
        if s + keys.shape[2] > first + 1:
            _hide_the_future(scores, s, first)
        peak_here = scores.max(axis=-1, keepdims=True)  # (B, K, G, T, 1)
        if s == 0:
            peak = peak_here
        elif (peak_here > peak).any():
            higher = np.maximum(peak, peak_here)  # (B, K, G, T, 1)
            shrink = np.exp(peak - higher)  # (B, K, G, T, 1)
            peak, total, y = higher, total * shrink, y * shrink
        scores -= peak
        p = np.exp(scores, out=scores)
        total = total + p.sum(axis=-1, keepdims=True)  # (B, K, G, T, 1)
        y = y + einsum("BKGTS,BKSD->BKGTD", p, values, "values")
    y /= total
    return y.transpose(0, 3, 1, 2, 4).reshape(B, T, H, D)


def _hide_the_future(scores: np.ndarray, s: int, first: int) -> None:
    """Set to -inf, in place, every score of a key behind its query.

    Parameters
    ----------
    scores : (B, K, G, T, S) float
        Of queries at positions first ... and keys at positions s ...
    """
    T, S = scores.shape[-2:]
    # Keys up to the first query are seen by all; only the corner needs a mask.
    seen = max(first + 1 - s, 0)
    query, key = np.arange(first, first + T), np.arange(s + seen, s + S)
    corner = scores[..., seen:]
    np.copyto(corner, -np.inf, where=key > query[:, None])


def attention(
    x: np.ndarray,
    layer: Layer,
    tables: tuple[np.ndarray, np.ndarray],
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    start: np.ndarray,
    count: np.ndarray,
    attend=vectorized,
) -> np.ndarray:
    """The attention half of a block: project, turn, remember, attend, project.

    Writes the new keys and values into the cache.

    Parameters
    ----------
    x : (B, T, E) float
        The normalised residual stream.
    layer : Layer
    tables : cos, sin of (B, T, D // 2) float
    k_cache, v_cache : (B, K, N, D) float
        One layer of the cache.
    start, count : (B,) int64
        Positions that each row holds, and how many of its T tokens are real.
    attend : `vectorized` or `naive`

    Returns
    -------
    (B, T, E) float
    """
    q = einsum("BTE,HDE->BTHD", x, layer.wq, "q_proj")
    k = einsum("BTE,KDE->BTKD", x, layer.wk, "k_proj")
    v = einsum("BTE,KDE->BTKD", x, layer.wv, "v_proj")
    if layer.bq is not None:
        q, k, v = q + layer.bq, k + layer.bk, v + layer.bv
    q, k = rotate(q, *tables), rotate(k, *tables)
    note("q_rope", q)
    note("k_rope", k)
    append(k_cache, k, start, count)
    append(v_cache, v, start, count)
    y = attend(q, k_cache, v_cache, start)  # (B, T, H, D)
    note("attention", y)
    out = einsum("BTHD,EHD->BTE", y, layer.wo, "o_proj")
    return out if layer.bo is None else out + layer.bo
