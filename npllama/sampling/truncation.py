r"""Truncation: cut off the tail before drawing.

A model spreads a little probability over tens of thousands of tokens that make no
sense, and in a text of a thousand tokens some of them are sure to be drawn.
Truncation removes improbable tokens and leaves the others unchanged. It cuts

- after a number of tokens (`top_k`),
- after a share of the probability (`top_p`),
- at a probability: fixed (`epsilon_cutoff`), or relative to the most probable
  token (`min_p`, `top_a`).

The next sections hold the samplers that cut off the top instead, and those that look
at the shape of the whole distribution.

Every sampler sees only the tokens that earlier ones left; their probabilities
are normalised again. So `top_p` after `top_k` differs from `top_p` before it.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npllama.sampling.draw import Probs, below_peak, softmax
from npllama.sampling.rows import Row, checked, keep_only, one_of, only

Mask = NDArray[np.bool_]


def at_least_one(min_tokens_to_keep: int) -> None:
    """Raise ValueError unless a sampler must keep at least one token."""
    least = min_tokens_to_keep
    if least < 1:
        raise ValueError(f"min_tokens_to_keep must be 1 or more, got {least}")


def kth_largest(values: NDArray, k: int) -> float:
    """Return the k-th largest value, or the least where there are fewer than k."""
    # Selection, not sorting: 17 microseconds instead of 1,700 for 32,000 values.
    k = min(k, values.size)
    return np.partition(values, -k)[-k]


def largest(values: NDArray, count: int, ties: str) -> Mask:
    """Mark the `count` largest values, exactly that many.

    Parameters
    ----------
    values : (n,) float
    count : int
    ties : {"lowest", "highest"}
        Which positions come first among equal values.

    Returns
    -------
    (n,) bool
    """
    edge = kth_largest(values, count)
    mask = values > edge
    equal = np.flatnonzero(values == edge)
    missing = max(count - np.count_nonzero(mask), 0)
    first = equal if ties == "lowest" else equal[::-1]
    mask[first[:missing]] = True
    return mask


def plain_top_k(row: Row, k: int) -> Row:
    """Top-k in its plainest form: keep all values as large as the k-th largest."""
    kth = np.sort(row)[::-1][min(k, row.size) - 1]
    return np.where(row >= kth, row, row.dtype.type(-np.inf))


def plain_top_p(row: Row, p: float) -> Row:
    """Top-p in its plainest form: likeliest first, until the sum reaches p."""
    order = np.argsort(row, kind="stable")[::-1]  # (V,)
    reached = np.cumsum(softmax(row)[order])  # (V,)
    kept = order[: 1 + np.count_nonzero(reached < p)]
    return np.where(only(row.size, kept), row, row.dtype.type(-np.inf))


def plain_min_p(row: Row, p: float) -> Row:
    """Min-p in its plainest form: keep what has p times the largest probability."""
    probs = softmax(row)
    return np.where(probs >= p * probs.max(), row, row.dtype.type(-np.inf))


def top_k(
    logits: ArrayLike,
    k: int,
    *,
    ties: Literal["all", "lowest"] = "all",
    min_tokens_to_keep: int = 1,
) -> Row:
    """Keep the k most probable tokens.

    Parameters
    ----------
    logits : (..., V) float
    k : int
        1 or more; at k >= V nothing is removed.
    ties : {"all", "lowest"}
        Which of the tokens equal to the k-th stay. "all": all of them, so more
        than k may remain (Hugging Face, vLLM). "lowest": exactly k, the lowest
        ids first (llama.cpp keeps exactly k, too, but its partial sort decides
        which).
    min_tokens_to_keep : int
        The least k.

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If k or min_tokens_to_keep is below 1.

    References
    ----------
    Fan, Lewis and Dauphin 2018, arXiv:1805.04833, section 5.4.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(top_k(five, 2)).round(3))  # 0.4 and 0.3 of 0.7
    [0.571 0.429 0.    0.    0.   ]
    """
    at_least_one(min_tokens_to_keep)
    if k < 1:
        raise ValueError(f"top_k must be 1 or more, got {k} (leave it out to keep all)")
    one_of("ties", ties, ("all", "lowest"))
    k = max(k, min_tokens_to_keep)
    if ties == "all":
        return keep_only(logits, lambda values: values >= kth_largest(values, k))
    return keep_only(logits, lambda values: largest(values, k, ties))


def _count_to(values: Row, enough: Callable[[Probs], int]) -> int:
    """Count how many of the largest values are `enough`.

    Parameters
    ----------
    values : (n,) float
        Logits, none of them removed.
    enough : function of the running sums of the sorted probabilities
        Returns how many to take; a number above that of the sums asks for more sums.
    """
    # Sorting 32,000 values to keep 50 is waste: select and sort some hundreds,
    # and four times as many if these are not enough.
    below = below_peak(values)
    total = np.exp(below).sum()
    size = 256
    while True:
        size = min(size, values.size)
        top = np.sort(np.partition(below, -size)[-size:])[::-1]
        count = enough(np.cumsum(np.exp(top)) / total)
        if count <= size or size == values.size:
            return min(count, size)
        size *= 4


def _nucleus_size(mass: Probs, p: float, crossing: str) -> int:
    """Count the tokens whose running sum stays below p, and the one that crosses."""
    side: Literal["left", "right"] = "left" if crossing == "exclusive" else "right"
    return int(np.searchsorted(mass, p, side=side)) + 1


def top_p(
    logits: ArrayLike,
    p: float,
    *,
    ties: Literal["highest", "lowest"] = "highest",
    crossing: Literal["exclusive", "inclusive"] = "exclusive",
    min_tokens_to_keep: int = 1,
) -> Row:
    """Keep the *nucleus*: the fewest most probable tokens that hold the mass p.

    Parameters
    ----------
    logits : (..., V) float
    p : float
        In [0, 1]. 0 keeps one token, 1 keeps all.
    ties : {"highest", "lowest"}
        Which of equally probable ids are kept first: the highest (the last of an
        ascending sort: Hugging Face, vLLM; but torch sorts stably only up to 16
        values, so in fact any) or the lowest (llama.cpp, Meta, vLLM from 8 rows).
    crossing : {"exclusive", "inclusive"}
        A token stays while the mass *before* it is < p ("exclusive": Hugging
        Face, vLLM, llama.cpp) or <= p ("inclusive": Meta, llama2.c), which is
        one token more where a sum meets p exactly.
    min_tokens_to_keep : int
        Keep at least this many.

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If p lies outside [0, 1] or min_tokens_to_keep is below 1.

    References
    ----------
    Holtzman et al. 2020, arXiv:1904.09751, section 3.1.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(top_p(five, 0.6)).round(3))  # 0.4 does not reach 0.6
    [0.571 0.429 0.    0.    0.   ]
    """
    at_least_one(min_tokens_to_keep)
    if not 0 <= p <= 1:
        raise ValueError(f"top_p must lie in [0, 1], got {p}")
    one_of("ties", ties, ("highest", "lowest"))
    one_of("crossing", crossing, ("exclusive", "inclusive"))
    # In float32 the sum may reach 1 before the last token: p = 1 keeps all by name.
    if p == 1:
        return checked(logits).copy()
    enough = partial(_nucleus_size, p=p, crossing=crossing)

    def kept(values: Row) -> Mask:
        count = max(_count_to(values, enough), min_tokens_to_keep)
        return largest(values, count, ties)

    return keep_only(logits, kept)


def epsilon_cutoff(
    logits: ArrayLike, epsilon: float, *, min_tokens_to_keep: int = 1
) -> Row:
    r"""Keep the tokens of probability epsilon or more.

    Parameters
    ----------
    logits : (..., V) float
    epsilon : float
        In (0, 1); useful values are 3e-4 to 2e-3.
    min_tokens_to_keep : int
        At least this many of the most probable tokens stay, and all tokens
        equal to the last of them.

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If epsilon lies outside (0, 1) or min_tokens_to_keep is below 1.

    References
    ----------
    Hewitt, Manning and Liang 2022, arXiv:2210.15191, section 3.
    """
    at_least_one(min_tokens_to_keep)
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon_cutoff must lie in (0, 1), got {epsilon}")

    def kept(values: Row) -> Mask:
        saved = values >= kth_largest(values, min_tokens_to_keep)
        return (softmax(values) >= epsilon) | saved

    return keep_only(logits, kept)


def min_p(logits: ArrayLike, p: float, *, min_tokens_to_keep: int = 1) -> Row:
    r"""Keep the tokens at least p times as probable as the most probable one.

    $$p_i \ge p \cdot \max_j p_j$$

    Parameters
    ----------
    logits : (..., V) float
    p : float
        In [0, 1]. 0 keeps all, 1 the most probable token and its equals.
    min_tokens_to_keep : int
        Keep at least this many; of equals those with the lowest ids
        (Hugging Face leaves that choice to torch.topk).

    Returns
    -------
    (..., V) float
        The order matters: if temperature comes first (Hugging Face, vLLM), a high
        temperature keeps more tokens; if it comes last (llama.cpp), it does not.

    Raises
    ------
    ValueError
        If p lies outside [0, 1] or min_tokens_to_keep is below 1.

    References
    ----------
    Nguyen et al. 2024, arXiv:2407.01082, section 3.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(min_p(five, 0.3)).round(3))  # 0.3 times 0.4 is the least
    [0.471 0.353 0.176 0.    0.   ]
    """
    at_least_one(min_tokens_to_keep)
    if not 0 <= p <= 1:
        raise ValueError(f"min_p must lie in [0, 1], got {p}")

    def kept(values: Row) -> Mask:
        # p_i / p_max needs no normalising: it is e to the difference of the logits.
        close = np.exp(below_peak(values)) >= p
        return close | largest(values, min_tokens_to_keep, "lowest")

    return keep_only(logits, kept)


def top_a(logits: ArrayLike, a: float) -> Row:
    r"""Keep the tokens of probability at least a times the *square* of the largest.

    $$p_i \ge a \cdot (\max_j p_j)^2$$

    Where the model is unsure, the square makes this threshold lower than that of
    `min_p`, so more tokens stay.

    Parameters
    ----------
    logits : (..., V) float
    a : float
        In [0, 1]; 0 keeps all.

    Returns
    -------
    (..., V) float
        The most probable token always stays.

    Raises
    ------
    ValueError
        If a lies outside [0, 1].

    References
    ----------
    BlinkDL, RWKV-LM; the `top_a` of text-generation-webui. Not in
    transformers, vLLM or llama.cpp.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(top_a(five, 0.7)).round(3))  # 0.7 times 0.16 is the least
    [0.471 0.353 0.176 0.    0.   ]
    """
    if not 0 <= a <= 1:
        raise ValueError(f"top_a must lie in [0, 1], got {a}")

    def kept(values: Row) -> Mask:
        probs = softmax(values)
        return probs >= a * probs.max() ** 2

    return keep_only(logits, kept)
