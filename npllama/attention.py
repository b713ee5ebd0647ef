r"""Chapter 7: attention.

Every position compares its query q with the keys k of all positions up to
itself.  The dot product of a query and a key is their *score*.  It grows like the
square root of D, so that is divided out: no softmax shall be sharp only because
heads are large.  The softmax of these scores gives weights p, and the position
receives the average of the values v with them:

$$y_t = \sum_{s \le t} p_{ts} v_s, \quad
  p_{ts} = \mathrm{softmax}_s (q_t \cdot k_s / \sqrt{D})$$

This happens in H heads side by side, each with D coordinates of its own.  In
multi-head attention (MHA) every query head has its own keys and values; in
grouped-query attention (GQA) a group of G = H / K query heads *shares* one
key/value head, so the cache is G times smaller; with K = 1 it is multi-query (MQA).
Query head h belongs to key/value head h // G: neighbours share (k1 k1 k2 k2).

The chapter computes this in three ways.  `naive` is the formula in loops.
`dense` is the same as a few array operations, with the whole T x S matrix of
scores at once.  `blocked` is the one that the model uses: it works in blocks
of queries, keys and heads, so that the matrix of a long context is never held
in memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from npllama.cache import append
from npllama.ops import einsum, is_rowwise, note
from npllama.rope import rotate
from npllama.weights import Layer

#  ---- the formula ------------------------------------------------------------


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
    """Causal attention as the formula reads: one row, head and position at a time.

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

    Examples
    --------
    Two query heads share one key head (H = 2, K = 1, D = 1).  Position 1 of head 0 scores
    0 and ln 3, shares of 1/4 and 3/4.  Head 1 asks for nothing: it gets the average.

    >>> k = np.array([0.0, math.log(3)]).reshape(1, 1, 2, 1)
    >>> v = np.array([4.0, 8.0]).reshape(1, 1, 2, 1)
    >>> q = np.array([[1.0, 0.0], [1.0, 0.0]]).reshape(1, 2, 2, 1)
    >>> print(naive(q, k, v, np.array([0]))[0, :, :, 0].round(6))
    [[4. 4.]
     [7. 6.]]
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


def dense(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Causal attention, all scores at once, the impossible ones masked.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : (B, K, N, D) float
        Not repeated for the G query heads that share a key head: G is a letter that
        k lacks.
    start : (B,) int64

    Returns
    -------
    (B, T, H, D) float
    """
    B, T, H, D = q.shape
    K, N = k.shape[1:3]
    position = start[:, None] + np.arange(T)  # (B, T)
    hidden = np.arange(N) > position[:, :, None]  # (B, T, N)
    q = q.reshape(B, T, K, H // K, D)
    scores = einsum("BTKGD,BKSD->BKGTS", q, k, "scores")
    scores = np.where(hidden[:, None, None], -np.inf, scores)  # (B, K, G, T, N)
    p = softmax(scores / math.sqrt(D))  # (B, K, G, T, N)
    y = einsum("BKGTS,BKSD->BTKGD", p, v, "values")
    return y.reshape(B, T, H, D)


#  ---- in blocks --------------------------------------------------------------

# About a million scores keep BLAS busy and still fit in the processor's cache.  With
# many rows or a large group there are more, since a block has at least LEAST_KEYS
# keys: with fewer, products would be too short.
QUERY_BLOCK = 128
LEAST_KEYS = 4096
SCORES = 2**20


def default_blocks(rows: int, queries: int, G: int, keys: int) -> tuple[int, int]:
    """How many keys, and how many key heads, `blocked` takes at once.

    It takes as many keys as make a million scores with the G query heads of
    one key head, but at least 4096.  If there are fewer keys, it takes more
    key heads instead.

    Parameters
    ----------
    rows, queries, keys : int
        Rows of the batch, queries of a block, and all keys that the last query sees.
    G : int
        Query heads that share a key head.

    Returns
    -------
    key_block, head_block : int
    """
    each = rows * queries * G
    key_block = max(LEAST_KEYS, SCORES // each)
    return key_block, max(1, SCORES // (each * min(keys, key_block)))


class Part(NamedTuple):
    """What queries found among some of their keys.

    The softmax of part of the scores cannot be finished, since its denominator is the
    sum over all.  So numerator and denominator are kept apart, both relative to
    `peak`.
    """

    y: np.ndarray  # (B, K, G, T, D) values, weighted by exp(score - peak), summed
    total: np.ndarray  # (B, K, G, T, 1) the sum of these weights
    peak: np.ndarray  # (B, K, G, T, 1) the largest score, or 0 where none is large


def merged(one: Part, other: Part) -> Part:
    """What the queries found among both sets of keys.

    Parameters
    ----------
    one, other : Part

    Returns
    -------
    Part
    """
    peak = np.maximum(one.peak, other.peak)  # (B, K, G, T, 1)
    shrink, shrink_other = np.exp(one.peak - peak), np.exp(other.peak - peak)
    y = one.y * shrink + other.y * shrink_other  # (B, K, G, T, D)
    total = one.total * shrink + other.total * shrink_other  # (B, K, G, T, 1)
    return Part(y, total, peak)


# exp of this is far from overflow, even when 2**32 of them are added.
LARGE = 60.0


def none_is_large(q: np.ndarray, k: np.ndarray) -> bool:
    """Whether the norms of queries and keys guarantee scores below `LARGE`.

    A dot product is never more than the product of the norms.  If no score is
    large, no peak has to be found and subtracted, which would take as long as
    the exponential itself.

    Parameters
    ----------
    q : (B, T, H, D) float
    k : (B, K, S, D) float
    """
    longest = [math.sqrt(np.square(x).sum(axis=-1).max()) for x in (q, k)]
    return math.prod(longest) / math.sqrt(q.shape[-1]) < LARGE


def blocked(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    start: np.ndarray,
    query_block: int = QUERY_BLOCK,
    key_block: int | None = None,
    head_block: int | None = None,
) -> np.ndarray:
    """Causal attention by blocks, equal to `naive` up to rounding.

    A block of queries is multiplied only with the keys at or before its last
    position, for a block of keys and a few heads at a time.  Only one block of
    scores exists at once, so memory does not grow with the context.  This is
    FlashAttention's arrangement, for a processor's cache instead of a GPU's.
    Inside `ops.rowwise` every query is a block of its own, and blocks of keys
    have a fixed size.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : (B, K, N, D) float
        Never copied.
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
    if is_rowwise():
        query_block, key_block, head_block = 1, LEAST_KEYS, 1
    y = np.empty(q.shape, dtype=q.dtype)  # (B, T, H, D)
    for rows in _rows_that_start_together(start):
        first = int(start[rows.start])
        if T > 1 and not np.isfinite(v[rows, :, first + 1 : first + T]).all():
            # A weight of zero does not hide a NaN in a query's future, since
            # 0 * nan is nan; the loops of `naive` never read the future.
            y[rows] = naive(q[rows], k[rows], v[rows], start[rows])
            continue
        for head in range(0, K, head_block):
            keys, values = (x[rows, head : head + head_block] for x in (k, v))
            heads = slice(head * G, (head + head_block) * G)  # that share them
            # To look at all keys first pays only if many queries meet them.
            many = T * G > 2 * D and not is_rowwise()
            low = many and none_is_large(q[rows, :, heads], keys[:, :, : first + T])
            for t in range(0, T, query_block):
                here = np.s_[rows, t : t + query_block, heads]
                seen = np.s_[:, :, : first + min(t + query_block, T)]
                y[here] = _block_of_queries(
                    q[here], keys[seen], values[seen], first + t, key_block, low
                )
    return y


def _rows_that_start_together(start: np.ndarray) -> list[slice]:
    """The whole batch if all rows hold equally many positions, else row by row."""
    if (start == start[0]).all() and not is_rowwise():
        return [slice(0, len(start))]
    return [slice(b, b + 1) for b in range(len(start))]


def _block_of_queries(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int, key_block: int, low: bool
) -> np.ndarray:
    """Attention of a few consecutive queries, a block of keys at a time.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : (B, K, S, D) float
        Exactly the keys that the last query may see.
    first : int
        Position of the first query.
    low : bool
        Whether no score is large.

    Returns
    -------
    (B, T, H, D) float
    """
    B, T, H, D = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)  # (B, K, G, T, D)
    q = q * (1 / math.sqrt(D))
    found = None
    for s in range(0, S, key_block):
        some = np.s_[:, :, s : s + key_block]
        part = _among_some_keys(q, k[some], v[some], first - s, low)
        found = part if found is None else merged(found, part)
    y = found.y / found.total  # (B, K, G, T, D)
    return y.transpose(0, 3, 1, 2, 4).reshape(B, T, H, D)


def _among_some_keys(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int, low: bool
) -> Part:
    """What queries find among some keys.

    Parameters
    ----------
    q : (B, K, G, T, D) float
        Divided by the square root of D.
    k, v : (B, K, S, D) float
    first : int
        Position of the first query, counted from the first of these keys.
    low : bool
        Whether no score is large.

    Returns
    -------
    Part
    """
    scores = einsum("BKGTD,BKSD->BKGTS", q, k, "scores")
    if k.shape[2] > first + 1:
        _hide_the_future(scores, first)
    if low:
        peak = np.zeros((*scores.shape[:-1], 1), dtype=q.dtype)  # (B, K, G, T, 1)
    else:
        # A query may see none of these keys; its peak must still be finite, since
        # -inf + inf is nan.
        least = np.finfo(q.dtype).min
        peak = scores.max(axis=-1, keepdims=True, initial=least)  # (B, K, G, T, 1)
        scores -= peak
    p = np.exp(scores, out=scores)  # (B, K, G, T, S)
    total = p.sum(axis=-1, keepdims=True)  # (B, K, G, T, 1)
    return Part(einsum("BKGTS,BKSD->BKGTD", p, v, "values"), total, peak)


def _hide_the_future(scores: np.ndarray, first: int) -> None:
    """Set every score of a key that comes after its query to -inf.

    Writes
    ------
    ``scores[..., t, s]`` for all s > first + t.

    Parameters
    ----------
    scores : (B, K, G, T, S) float
        Of queries at positions first ... and keys at positions 0 ...
    """
    for t in range(scores.shape[-2]):
        scores[..., t, max(first + t + 1, 0) :] = -np.inf


#  ---- the half of a block ----------------------------------------------------


def attention(
    x: np.ndarray,
    layer: Layer,
    tables: tuple[np.ndarray, np.ndarray],
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    start: np.ndarray,
    count: np.ndarray,
    attend=blocked,
    write=append,
) -> np.ndarray:
    """The attention half of a block: project, rotate, cache, attend, project.

    Writes
    ------
    The new keys and values, into the cache.

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
    attend : `blocked`, `dense`, `naive`, or another function of their form
    write : `cache.append`, or another function of its form
        Where in the cache the new keys and values go.

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
    write(k_cache, k, start, count)
    write(v_cache, v, start, count)
    y = attend(q, k_cache, v_cache, start)  # (B, T, H, D)
    note("attention", y)
    out = einsum("BTHD,EHD->BTE", y, layer.wo, "o_proj")
    return out if layer.bo is None else out + layer.bo
