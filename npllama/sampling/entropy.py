r"""Truncation by the shape of the whole distribution.

How many tokens are sensible depends on how sure the model is. The usual
measure is the entropy, the mean surprise of a draw,

$$H = -\sum_i p_i \ln p_i$$

in nats: 0 where one token is certain, ln V where all are equal. The samplers
of this chapter set their limit by the entropy (`typical_p`, `eta_cutoff`,
`top_h`), by the spread of the logits (`top_n_sigma`), or by the place where the
sorted probabilities flatten out (`tail_free`).
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npllama.sampling.draw import Probs, log_softmax, softmax
from npllama.sampling.rows import Row, keep_only, one_of
from npllama.sampling.truncation import Mask, at_least_one, kth_largest, largest

# The last bits of exponentials, logarithms and their sums differ between builds of
# NumPy. Numbers this near, relative to their size, count as equal, so ties of exact
# arithmetic are decided alike everywhere.
EQUAL = 2.0**-49


def _entropy(logp: Probs) -> float:
    """Return the entropy in nats of n log-probabilities, none of them -inf."""
    return -float((np.exp(logp) * logp).sum())


def _levels(values: Probs) -> NDArray[np.intp]:
    """Number n values in ascending order; those equal up to rounding get one number."""
    order = np.argsort(values)
    rises = np.diff(values[order]) > EQUAL * (1 + values[order][1:])
    levels = np.zeros(values.size, np.intp)
    levels[order[1:]] = np.cumsum(rises)
    return levels


def plain_typical_p(row: Row, mass: float) -> Row:
    """Typical in its plainest form: nearest to the mean surprise first, up to a mass."""
    surprise, probs = -log_softmax(row), softmax(row)
    mean = sum(p * s for p, s in zip(probs, surprise) if p > 0)
    oddity = np.abs(surprise - mean)
    order = np.argsort(oddity, kind="stable")
    last = order[np.count_nonzero(np.cumsum(probs[order]) < mass)]
    return np.where(oddity <= oddity[last], row, row.dtype.type(-np.inf))


def _typical(values: Row, mass: float, convention: str, least: int) -> Mask:
    """Select the tokens nearest to the expected surprise."""
    cuts_ties = convention == "llama.cpp"
    logp = log_softmax(values)
    oddity = _levels(np.abs(-logp - _entropy(logp)))
    order = np.argsort(oddity, kind="stable")
    held = np.cumsum(softmax(values)[order])
    enough = mass * (1 + EQUAL) if cuts_ties else mass * (1 - EQUAL)
    count = int(np.searchsorted(held, enough)) + 1
    count = min(count, values.size) if mass < 1 else values.size
    saved = largest(-oddity, max(least, cuts_ties * count), "lowest")
    return saved if cuts_ties else saved | (oddity <= oddity[order[count - 1]])


def typical_p(
    logits: ArrayLike,
    mass: float,
    *,
    convention: Literal["transformers", "llama.cpp"] = "transformers",
    min_tokens_to_keep: int = 1,
) -> Row:
    r"""Keep the tokens whose surprise is nearest to the expected surprise.

    Tokens are sorted by $|-\ln p_i - H|$ and kept until they hold the mass.
    The most probable token may be removed: it can be too predictable to be typical.

    Parameters
    ----------
    logits : (..., V) float
    mass : float
        In (0, 1]; 1 keeps all.
    convention : {"transformers", "llama.cpp"}
        "transformers" stops once the sum is >= mass, and keeps every token as
        near as the last one. "llama.cpp" stops once it is > mass, and of tokens
        that are equally near keeps the lowest ids first.
    min_tokens_to_keep : int
        Keep at least this many of the nearest.

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If mass lies outside (0, 1] or min_tokens_to_keep is below 1.

    References
    ----------
    Meister et al. 2023, arXiv:2202.00666, eq. 10.

    Examples
    --------
    The surprise expected is 1.39 nats; 0.3 with 1.20 is nearest, 0.4 with 0.92 and
    0.15 with 1.90 follow.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(typical_p(five, 0.6)).round(3))
    [0.571 0.429 0.    0.    0.   ]
    """
    at_least_one(min_tokens_to_keep)
    if not 0 < mass <= 1:
        raise ValueError(f"typical_p must lie in (0, 1], got {mass}")
    one_of("convention", convention, ("transformers", "llama.cpp"))

    return keep_only(logits, _typical, mass, convention, min_tokens_to_keep)


def eta_cutoff(
    logits: ArrayLike, epsilon: float, *, min_tokens_to_keep: int = 1
) -> Row:
    r"""Keep the tokens above a threshold, which is lower if the model is unsure.

    $$p_i \ge \eta = \min(\epsilon, \sqrt{\epsilon} \, e^{-H})$$

    Parameters
    ----------
    logits : (..., V) float
    epsilon : float
        In (0, 1); useful values are 3e-4 to 4e-3.
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
    Hewitt, Manning and Liang 2022, arXiv:2210.15191, section 3.2.

    Examples
    --------
    e^-H = 0.249 and sqrt(0.3) = 0.548: the threshold is 0.137, below 0.3.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(eta_cutoff(five, 0.3)).round(3))
    [0.471 0.353 0.176 0.    0.   ]
    """
    at_least_one(min_tokens_to_keep)
    if not 0 < epsilon < 1:
        raise ValueError(f"eta_cutoff must lie in (0, 1), got {epsilon}")

    def kept(values: Row) -> Mask:
        logp = log_softmax(values)
        eta = min(epsilon, math.sqrt(epsilon) * math.exp(-_entropy(logp)))
        saved = values >= kth_largest(values, min_tokens_to_keep)
        return (np.exp(logp) >= eta * (1 - EQUAL)) | saved

    return keep_only(logits, kept)


def _top_log_probs(values: Row, max_tokens: int) -> Probs:
    """Log-probabilities of the most probable tokens, normalised, descending."""
    size = min(max_tokens, values.size)
    return log_softmax(np.sort(np.partition(values, -size)[-size:])[::-1])


def _among_themselves(held: Probs, probs: Probs) -> Probs:
    """For every n, the entropy of the first n tokens after normalising these alone."""
    mass = np.cumsum(probs)
    return held / mass + np.log(mass)


def _within_entropy(values: Row, alpha: float, most: int, entropy: str) -> Mask:
    """Select the likeliest tokens that hold a given share of the entropy."""
    logp = _top_log_probs(values, most)
    probs = np.exp(logp)
    held = np.cumsum(-probs * logp)
    allowed = alpha * held[-1] * (1 + EQUAL * held.size)
    if entropy == "renormalised":
        held = _among_themselves(held, probs)
    # A probability that underflows to 0 adds no entropy, so it must not stay.
    count = int(np.count_nonzero((held <= allowed) & (probs > 0)))
    return largest(values, max(count, 1), "lowest")


def top_h(
    logits: ArrayLike,
    alpha: float,
    *,
    entropy: Literal["original", "renormalised"] = "original",
    max_tokens: int = 100,
) -> Row:
    r"""Keep the most probable tokens that hold the share alpha of the entropy.

    Parameters
    ----------
    logits : (..., V) float
    alpha : float
        In (0, 1].
    entropy : {"original", "renormalised"}
        What is compared with alpha times the entropy. "original": the sum of
        -p ln p over the kept tokens, with unchanged p (transformers).
        "renormalised": the entropy of the kept tokens after normalising, as the
        paper defines it. Either may keep more than the other.
    max_tokens : int
        The sampler considers only this many of the most probable tokens, normalised,
        and removes the others. transformers: 100.

    Returns
    -------
    (..., V) float
        The most probable token always stays; of equals the lowest ids first.
        At alpha = 1 transformers may remove the last token because of rounding.

    Raises
    ------
    ValueError
        If alpha lies outside (0, 1] or max_tokens is below 1.

    References
    ----------
    Baghaei Potraghloo et al. 2025, arXiv:2509.02510, algorithm 1.

    Examples
    --------
    The entropy of the kept may be 0.4 times 1.39; 0.4 alone adds 0.37, 0.3 more 0.36.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(top_h(five, 0.4)).round(3))
    [1. 0. 0. 0. 0.]
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"top_h must lie in (0, 1], got {alpha}")
    if max_tokens < 1:
        raise ValueError(f"top_h needs max_tokens of 1 or more, got {max_tokens}")
    one_of("entropy", entropy, ("original", "renormalised"))

    return keep_only(logits, _within_entropy, alpha, max_tokens, entropy)


def top_n_sigma(logits: ArrayLike, n: float) -> Row:
    r"""Keep the tokens within n standard deviations of the largest logit.

    $$l_i \ge \max_j l_j - n \, \sigma(l)$$

    Most logits are noise around a mean, and sensible tokens stand out above it.
    Temperature scales the logits and their deviation alike, so it does not change
    which tokens stay.

    Parameters
    ----------
    logits : (..., V) float
    n : float
        Above 0 and finite.

    Returns
    -------
    (..., V) float
        The deviation is that of the remaining tokens (llama.cpp included
        removed ones until its pull request 13344). It divides by their number,
        not by one less.

    Raises
    ------
    ValueError
        If n is not a finite number above 0; llama.cpp takes n <= 0 for "off".

    References
    ----------
    Tang et al. 2024, arXiv:2411.07641, algorithm 1; llama.cpp,
    `llama_sampler_top_n_sigma_apply`. Not in transformers or vLLM.

    Examples
    --------
    Within one standard deviation (1.41) of the largest logit.

    >>> print(top_n_sigma([4.0, 3.0, 2.0, 1.0, 0.0], 1.0))
    [  4.   3. -inf -inf -inf]
    """
    if not 0 < n < math.inf:
        raise ValueError(f"top_n_sigma must be above 0 and finite, got {n}")

    def kept(values: Row) -> Mask:
        exact = values.astype(np.float64)
        return exact >= exact.max() - n * exact.std() * (1 + EQUAL)

    return keep_only(logits, kept)


def _tail_start(probs: Probs, z: float, at_least: int) -> int:
    """Count the sorted probabilities before the point where they flatten out."""
    bend = np.abs(np.diff(probs, 2))
    total = bend.sum()
    share = bend / total if total > 1e-6 else np.full(bend.size, 1 / bend.size)
    beyond = np.flatnonzero(np.cumsum(share) > z)
    beyond = beyond[beyond >= at_least]
    return int(beyond[0]) if beyond.size else probs.size


def _before_tail(values: Row, z: float, convention: str, least: int) -> Mask:
    """Select the tokens before the point where the probabilities flatten out."""
    if values.size <= 2 or z == 1:
        return np.ones(values.size, np.bool_)
    falling = np.sort(softmax(values))[::-1]
    more = 1 if convention == "webui" else 0
    count = _tail_start(falling, z, least) + more
    return largest(values, min(count, values.size), "lowest")


def tail_free(
    logits: ArrayLike,
    z: float,
    *,
    convention: Literal["llama.cpp", "webui"] = "llama.cpp",
    min_tokens_to_keep: int = 1,
) -> Row:
    """Cut off the tail where the sorted probabilities stop bending.

    The absolute second differences of the sorted probabilities, divided by their
    sum, are added from the top until the sum exceeds z.

    Parameters
    ----------
    logits : (..., V) float
    z : float
        In (0, 1]; 1 keeps all.
    convention : {"llama.cpp", "webui"}
        A second difference spans three tokens. llama.cpp cuts at the first of
        them, text-generation-webui at the second and so keeps one token more.
    min_tokens_to_keep : int
        Keep at least this many.

    Returns
    -------
    (..., V) float
        Rows of one or two tokens do not change; of equals the lowest ids are kept
        first.

    Raises
    ------
    ValueError
        If z lies outside (0, 1] or min_tokens_to_keep is below 1.

    References
    ----------
    Phénix and Egan 2019, "Tail free sampling"; llama.cpp until its pull
    request 10071, which removed it. Not in transformers or vLLM.

    Examples
    --------
    The probabilities fall by 0.1, 0.15, 0.05 and 0.05, and these falls change by 0.05, 0.1
    and 0: shares 1/3, 2/3, 0.  The sum passes 0.9 at the second, so one token stays.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(tail_free(five, 0.9)).round(3))
    [1. 0. 0. 0. 0.]
    """
    at_least_one(min_tokens_to_keep)
    if not 0 < z <= 1:
        raise ValueError(f"tail_free must lie in (0, 1], got {z}")
    one_of("convention", convention, ("llama.cpp", "webui"))

    return keep_only(logits, _before_tail, z, convention, min_tokens_to_keep)
