r"""From a distribution to a token: the greedy choice, and chance.

The logits l of one row mean the distribution

$$p_i = e^{l_i} / \sum_j e^{l_j}$$

There are two ways to choose a token. *Greedy* decoding takes the most probable.
*Sampling* takes token i with probability p_i, by inverting the cumulative
distribution: lay the probabilities end to end on the interval [0, 1), draw a
uniform u, and take the token on whose piece u falls. Only u is random. So `draw`
is a pure function, and any other implementation must find the same token from the
same u.

Other libraries draw from the same distribution in other ways, so the same seed
gives them another token: torch's multinomial and vLLM take argmax(p_i / E_i) with
exponential noise E, which is the Gumbel-max trick.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npllama.sampling.rows import checked

# Decisions are made in float64 whatever the type of the logits: a float32 sum
# over 32,000 tokens is off by up to 1e-4, which moves the edge of a nucleus.
Probs = NDArray[np.float64]


class NothingLeft(ValueError):
    """Every token of a row is removed, so there is none to choose."""

    row = 0  # which row of several


def below_peak(values: NDArray) -> Probs:
    """Subtract from the n finite logits of a row their maximum, in float64."""
    if not values.size:
        raise NothingLeft("every token of a row is removed: all its logits are -inf")
    # Subtracting the maximum changes no probability and keeps exp from overflow.
    return values.astype(np.float64) - values.max()


def softmax(logits: ArrayLike) -> Probs:
    """Turn logits into probabilities; removed tokens get exactly 0.

    Parameters
    ----------
    logits : (..., V) float

    Returns
    -------
    (..., V) float64
        Each row adds up to 1.

    Raises
    ------
    ValueError
        If a row holds NaN, plus infinity, or no finite value at all.

    Examples
    --------
    e, e and e squared are 2.72, 2.72 and 7.39 of 12.83.

    >>> print(softmax([1.0, 1.0, 2.0]).round(3))
    [0.212 0.212 0.576]
    """
    logits = checked(logits)
    probs = np.zeros(logits.shape, np.float64)
    for index in np.ndindex(logits.shape[:-1]):
        # Only the remaining tokens: after top-k they are few of very many.
        left = logits[index] > -np.inf
        mass = np.exp(below_peak(logits[index][left]))
        probs[index][left] = mass / mass.sum()
    return probs


def log_softmax(logits: ArrayLike) -> Probs:
    """Turn logits into natural log-probabilities; removed tokens get -inf.

    Parameters
    ----------
    logits : (..., V) float

    Returns
    -------
    (..., V) float64

    Raises
    ------
    ValueError
        If a row holds NaN, plus infinity, or no finite value at all.
    """
    logits = checked(logits)
    logp = np.full(logits.shape, -np.inf, np.float64)
    for index in np.ndindex(logits.shape[:-1]):
        left = logits[index] > -np.inf
        below = below_peak(logits[index][left])
        logp[index][left] = below - np.log(np.exp(below).sum())
    return logp


def greedy(logits: ArrayLike) -> NDArray[np.intp]:
    """Choose the most probable token; of equals, the one with the lowest id.

    Parameters
    ----------
    logits : (..., V) float

    Returns
    -------
    (...) int64

    Raises
    ------
    ValueError
        If a row holds NaN, plus infinity, or no finite value at all.

    Examples
    --------
    Of equals the first.

    >>> int(greedy([1.0, 3.0, 0.0, 3.0, 2.0]))
    1
    """
    logits = checked(logits)
    if not (logits.max(axis=-1) > -np.inf).all():
        raise NothingLeft("every token of a row is removed: all its logits are -inf")
    return logits.argmax(axis=-1)


def plain_draw(probs: Probs, u: float) -> int:
    """The draw in its plainest form: add up until the sum has passed u."""
    reached, total = 0.0, np.cumsum(probs)[-1]
    for token, p in enumerate(probs.tolist()):
        reached += p
        if reached > u * total:
            return token
    return int(np.flatnonzero(probs)[-1])  # rounding at the end of the line


def _draw_row(probs: Probs, u: float) -> int:
    # Only tokens with a probability above 0 lie on the interval, so neither u = 0
    # nor rounding at its end can select a removed token.
    possible = np.flatnonzero(probs > 0)
    if not probs.min() >= 0 or not possible.size:
        raise ValueError(
            "probs must be >= 0 and not all 0 (softmax turns logits to probs)"
        )
    ends = np.cumsum(probs[possible])
    hit = np.searchsorted(ends, u * ends[-1], side="right")
    return possible[min(hit, possible.size - 1)]


def draw(probs: ArrayLike, u: ArrayLike) -> NDArray[np.intp]:
    r"""Invert the cumulative distribution: the token whose piece u falls into.

    $$\mathrm{token} = \min \{ i : p_0 + \dots + p_i > u \}$$

    Parameters
    ----------
    probs : (..., V) float64
        Non-negative; rows need not add up to 1, since they are normalised.
    u : (...) float64
        One number in [0, 1) per row.

    Returns
    -------
    (...) int64
        Token i for a share p_i of all u; never one of probability 0.

    Raises
    ------
    ValueError
        If u lies outside [0, 1) or has another shape than the rows, if a
        probability is negative or NaN, or if a row is all 0.

    Examples
    --------
    The line from 0 to 1 is cut at 0.4, 0.7, 0.85 and 0.95: 0.75 lies in the third part.

    >>> five = [0.4, 0.3, 0.15, 0.1, 0.05]
    >>> [int(draw(five, u)) for u in (0.0, 0.39, 0.4, 0.75, 0.99)]
    [0, 0, 1, 2, 4]
    """
    probs, u = np.asarray(probs, np.float64), np.asarray(u, np.float64)
    if u.shape != probs.shape[:-1]:
        raise ValueError(f"u has shape {u.shape}, but the rows are {probs.shape[:-1]}")
    if not ((u >= 0) & (u < 1)).all():
        raise ValueError(f"u must lie in [0, 1), got {u}")
    tokens = np.empty(u.shape, np.intp)
    for index in np.ndindex(u.shape):
        tokens[index] = _draw_row(probs[index], u[index])
    return tokens[()]


def sample(logits: ArrayLike, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw a token from each row, with chance taken from `rng`.

    Parameters
    ----------
    logits : (..., V) float
    rng : numpy.random.Generator
        Advanced by one float64 per row.

    Returns
    -------
    (...) int64
    """
    probs = softmax(logits)
    return draw(probs, rng.random(probs.shape[:-1]))
