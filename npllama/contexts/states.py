r"""What a query knows after it has met some of its keys.

The softmax of attention runs over all keys, so it seems that one product must meet
them all.  But what a query finds among a set I of keys fits into D + 1 numbers, its
*attention state*:

$$\mathrm{lse}(I) = \log \sum_{s \in I} e^{q \cdot k_s / \sqrt{D}}, \quad
  y(I) = \sum_{s \in I} e^{q \cdot k_s / \sqrt{D} - \mathrm{lse}(I)} v_s$$

y is attention itself, as if there were no other keys; lse, "log-sum-exp", says how
much they weigh.  The states of two sets without a common key give that of both:

$$m = \max(\mathrm{lse}_1, \mathrm{lse}_2), \quad w_i = e^{\mathrm{lse}_i - m}, \quad
  y = \frac{w_1 y_1 + w_2 y_2}{w_1 + w_2}, \quad
  \mathrm{lse} = m + \log(w_1 + w_2)$$

Two keys with scores 0 and log 3 and values 8 and 4 weigh 1/4 and 3/4:

    >>> one, other = (AttentionState(np.array([[[y]]]), np.array([[lse]]))
    ...               for y, lse in ((8.0, 0.0), (4.0, math.log(3))))
    >>> both = merge_states(one, other)
    >>> round(both.y.item(), 9), round(math.exp(both.lse.item()), 9)
    (5.0, 4.0)

So keys may be met in any pieces and in any order, on several processors, or once for
many texts.  `merge_states` is commutative to the bit and associative up to rounding.
Its neutral element is y = 0 and lse = -inf, the state of a query that has met no key;
it is neutral to the bit.  Two of them give a third: a shift by m = -inf would make it
-inf + inf, which is not a number, so the shift is 0 there.

FlashAttention keeps lse to base e, as here; FlashInfer keeps it to base 2.

References
----------
Rabe and Staats 2021, arXiv:2112.05682; Juravsky et al. 2024, arXiv:2402.05099,
section 3; Ye et al. 2025, arXiv:2501.01005 (FlashInfer), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npllama.attention import Part
from npllama.ops import einsum

Attend = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# A peak that no key has raised; finite, for -inf + inf is not a number.
LOWEST = -1e30


class AttentionState(NamedTuple):
    """What T queries of H heads found among some keys."""

    y: np.ndarray  # (T, H, D) the average of the values; zeros where no key was seen
    lse: np.ndarray  # (T, H) the logarithm of the weights' sum; -inf where none was


def no_keys(q: np.ndarray) -> AttentionState:
    """The state of queries (T, H, D) that have met no key: the neutral element."""
    return AttentionState(np.zeros_like(q), np.full(q.shape[:2], -np.inf, q.dtype))


def merge_states(one: AttentionState, other: AttentionState) -> AttentionState:
    """What queries found among two sets of keys that share none.

    Parameters
    ----------
    one, other : AttentionState

    Returns
    -------
    AttentionState
    """
    peak = np.maximum(one.lse, other.lse)  # (T, H)
    peak = np.maximum(peak, peak.dtype.type(LOWEST))  # (T, H)
    weight, weight_other = np.exp(one.lse - peak), np.exp(other.lse - peak)  # (T, H)
    total = weight + weight_other  # (T, H)
    y = one.y * weight[..., None] + other.y * weight_other[..., None]  # (T, H, D)
    return AttentionState(y / _or_one(total)[..., None], peak + _log(total))


def state_of(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, hidden: np.ndarray | None = None
) -> AttentionState:
    """What queries find among some keys.

    Parameters
    ----------
    q : (T, H, D) float
    k, v : (K, S, D) float
        S may be 0.  Values must be finite: a weight of zero hides no NaN.
    hidden : (T, S) bool
        Which keys a query must not see; by default none.  It may see no key at all.

    Returns
    -------
    AttentionState
    """
    T, H, D = q.shape
    part = part_of(by_key_head(q, len(k)), k, v, hidden)
    y = part.y / _or_one(part.total)  # (K, G, T, D)
    lse = part.peak + _log(part.total)  # (K, G, T, 1)
    return AttentionState(by_query(y), by_query(lse)[..., 0])


def by_key_head(q: np.ndarray, K: int) -> np.ndarray:
    """Queries (T, H, D) as (K, G, T, D), divided by the square root of D."""
    T, H, D = q.shape
    return q.reshape(T, K, H // K, D).transpose(1, 2, 0, 3) * (1 / math.sqrt(D))


def by_query(y: np.ndarray) -> np.ndarray:
    """What was found, of (K, G, T, X), as (T, H, X)."""
    K, G, T, X = y.shape
    return y.transpose(2, 0, 1, 3).reshape(T, K * G, X)


def scores_among(
    q: np.ndarray, k: np.ndarray, hidden: np.ndarray | None = None
) -> np.ndarray:
    """Scores of queries with some keys, the hidden ones -inf.

    Parameters
    ----------
    q : (K, G, T, D) float
        As `by_key_head` gives them.
    k : (K, S, D) float
    hidden : (T, S) bool

    Returns
    -------
    (K, G, T, S) float
    """
    scores = einsum("KGTD,KSD->KGTS", q, k, "scores")
    if hidden is not None:
        np.copyto(scores, -np.inf, where=hidden)
    return scores


def part_of(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, hidden: np.ndarray | None = None
) -> Part:
    """What queries find among some keys, before the division; one row's `Part`.

    Parameters
    ----------
    q : (K, G, T, D) float
        As `by_key_head` gives them.
    k, v : (K, S, D) float
    hidden : (T, S) bool

    Returns
    -------
    Part
        y of (K, G, T, D), total and peak of (K, G, T, 1).
    """
    scores = scores_among(q, k, hidden)
    peak = scores.max(axis=-1, keepdims=True, initial=LOWEST)  # (K, G, T, 1)
    p = np.exp(scores - peak)  # (K, G, T, S)
    total = p.sum(axis=-1, keepdims=True)  # (K, G, T, 1)
    return Part(einsum("KGTS,KSD->KGTD", p, v, "values"), total, peak)


def in_the_future(first: int, queries: slice, keys: slice) -> np.ndarray | None:
    """Which keys come after which queries; None if none does.

    Parameters
    ----------
    first : int
        Position of query 0; key 0 stands at position 0.
    queries, keys : slices with T and S numbers

    Returns
    -------
    (T, S) bool, or None
    """
    if keys.stop <= first + queries.start + 1:
        return None
    position = first + np.arange(queries.start, queries.stop)  # (T,)
    return np.arange(keys.start, keys.stop) > position[:, None]


def _or_one(total: np.ndarray) -> np.ndarray:
    """The divisor: 1 where no key was seen, whose average is 0."""
    return np.where(total > 0, total, total.dtype.type(1))


def _log(total: np.ndarray) -> np.ndarray:
    """The logarithm; -inf where no key was seen."""
    return np.log(total, out=np.full_like(total, -np.inf), where=total > 0)
