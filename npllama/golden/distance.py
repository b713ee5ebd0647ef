r"""How far two tensors are apart, and how much of that is chance.

The *error* is the root mean square of the difference over that of the exact tensor,

$$\mathrm{error} = \sqrt{\textstyle\sum (y - y^*)^2 / \sum {y^*}^2}$$

Trained models have a few enormous numbers (massive activations, arXiv:2402.17762):
one coordinate of the first position may be 20,000 where all others are near 1.  Then
the error is the rounding of that one number, and whatever else is wrong hides behind
it.  So there is a second measure, the *even error*, in which no number can hide
another: each difference is divided by the size of its own number or by the typical
size of its position, whichever is larger,

$$\mathrm{even}^2 = \mathrm{mean}_i\ (y_i - y_i^*)^2 / ({y_i^*}^2 + m^2)$$

where m is the median of |y*| over the position (over the head, where there are heads).
It is taken over the tensor and over every position and head alone.

Both are sums over many numbers, but not over as many independent ones.  The errors of
a position often have few causes: one score that tips a softmax, one enormous number
that a norm divides by.  Were the errors Gaussian with a covariance of eigenvalues
\lambda, their sum of squares would vary like that of

$$n = (\textstyle\sum \lambda)^2 / \sum \lambda^2$$

independent ones (Satterthwaite 1946).  The errors of several right computations tell
n, since for two of them, c and d, the mean of (c . d)^2 is the sum of \lambda^2, and
that of |c|^2 is the sum of \lambda.  Where errors are independent and as large as
their numbers, n is (\sum y^2)^2 / \sum y^4, which is near 1 if one number carries all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npllama.ops import einsum

# Differences are held in float64 for so many numbers at a time.
AT_ONCE = 2**22


def relative_error(y: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the difference, over that of the exact tensor."""
    scale = np.square(exact).sum()
    difference = np.square(y - exact).sum()
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(np.sqrt(difference / scale))


#  ---- position by position -----------------------------------------------------


def by_position(name: str, x: np.ndarray) -> np.ndarray:
    """A tensor of a trace as (P, H, N): its positions, its heads, their numbers.

    P counts the positions of all rows (and, of a cache, of all layers); H is 1 for a
    tensor without heads.  The numbers of a score are those of its keys.
    """
    if name.endswith("scores"):
        x = x.swapaxes(1, 2)  # (B, T, H, S)
    elif name.startswith("cache."):
        x = x.swapaxes(2, 3)  # (L, B, S, K, D)
    heads = x.shape[-2] if x.ndim >= 4 else 1
    return x.reshape(-1, heads, x.shape[-1])


def units(y: np.ndarray) -> np.ndarray:
    """What the difference of every number is divided by: its own size or the typical.

    Parameters
    ----------
    y : (P, H, N) float64
        The exact numbers; what is hidden (a score behind the mask) is 0.

    Returns
    -------
    (P, H, N) float64
        Above 0, unless all of y is 0.
    """
    square = np.square(y)
    typical = np.square(np.median(np.abs(y), axis=-1, keepdims=True))  # (P, H, 1)
    mean = square.mean(axis=-1, keepdims=True)  # (P, H, 1)
    # Where most numbers are 0 there is no typical one; where all are, no size at all.
    typical = np.where(typical > 0, typical, mean)  # (P, H, 1)
    typical = np.where(typical > 0, typical, square.mean())  # (P, H, 1)
    return np.sqrt(square + typical)


def even_errors(apart: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The even error of every position and head.

    Parameters
    ----------
    apart, unit : (P, H, N) float64
        Differences, and what they are divided by.

    Returns
    -------
    (P, H) float64
    """
    parts = np.divide(apart, unit, out=np.zeros_like(apart), where=unit > 0)
    return np.sqrt(np.square(parts).mean(axis=-1))


#  ---- how much chance there is ---------------------------------------------------


def allowed(gram: np.ndarray, ways: np.ndarray, numbers: float) -> np.ndarray:
    """The sum of squares that the worst of several right computations is allowed.

    Some of the worst error is chance, and another computation may have less luck.
    What the errors do not share is: so much of it as their few causes leave.  And if
    there are few numbers, all that was measured may be luck.

    Parameters
    ----------
    gram : (..., W, W) float64
        Products of the errors of every two of W computations.
    ways : (M,) int64
        Those computations that differ.
    numbers : float
        How many numbers there are, in effect.

    Returns
    -------
    (...,) float64
    """
    gram = gram[..., ways[:, None], ways]  # (..., M, M)
    worst = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1).max(axis=-1))  # (...,)
    own = centred(gram)  # (..., W, W)
    spread = np.diagonal(own, axis1=-2, axis2=-1).max(axis=-1)  # (...,)
    spread = np.sqrt(np.maximum(spread, 0))  # (...,), for equal ones may round below
    chance = 3 * spread / np.sqrt(causes(own))  # (...,)
    return np.square(worst + np.maximum(chance, 3 * worst / math.sqrt(max(numbers, 1))))


def centred(gram: np.ndarray) -> np.ndarray:
    """The same products after the mean of all errors is taken off each: (..., W, W)."""
    rows, columns = gram.mean(axis=-1, keepdims=True), gram.mean(axis=-2, keepdims=True)
    return gram - rows - columns + gram.mean(axis=(-2, -1), keepdims=True)


def causes(own: np.ndarray) -> np.ndarray:
    """How many independent numbers the errors of several right computations have.

    Parameters
    ----------
    own : (..., W, W) float64
        Products of what every two of W computations do not share with all.

    Returns
    -------
    (...,) float64
        n of the chapter's introduction, at least 1; infinite where they do not differ.
    """
    W = own.shape[-1]
    if W <= 2:  # what they do not share is one number's difference: it tells nothing
        return np.full(own.shape[:-2], np.inf, dtype=np.float64)
    squares = np.diagonal(own, axis1=-2, axis2=-1)  # (..., W)
    size = squares.mean(axis=-1)  # (...,)
    others = np.square(own).sum(axis=(-2, -1)) - np.square(squares).sum(axis=-1)
    # Errors that sum to zero lean against each other: that much is no likeness.
    alike = others / (W * (W - 1)) - np.square(size / (W - 1))  # (...,)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.square(size) / np.maximum(alike, 0)  # (...,)
    return np.maximum(np.where(np.isnan(n), np.inf, n), 1.0)


class Distance(NamedTuple):
    """How far W right computations are from the exact tensor, in sums.

    `gram` and `even` hold products of the errors of every two of them: plain ones, and
    those of even errors.  On their diagonals are sums of squares.
    """

    gram: np.ndarray  # (W, W)
    even: np.ndarray  # (W, W)
    square: float  # sum of the exact numbers' squares
    fourth: float  # and of their fourth powers
    numbers: int  # how many there are
    largest: float  # difference
    spots: np.ndarray  # (P, H): the floor of every position and head


def distance(name: str, tensors: list[np.ndarray], exact: np.ndarray) -> Distance:
    """How far several right computations are from the exact tensor.

    Parameters
    ----------
    name : str
        Of the tensor, as in a trace.
    tensors : list of arrays
        One per way to compute, with as many numbers as `exact`.
    exact : float array
    """
    exact = np.asarray(exact, dtype=np.float64)
    y = by_position(name, np.where(np.isfinite(exact), exact, 0.0))  # (P, H, N)
    unit, W = units(y), len(tensors)  # (P, H, N)
    gram = np.zeros((W, W), dtype=np.float64)
    own, largest = np.zeros((*y.shape[:2], W, W), dtype=np.float64), 0.0
    for part in pieces(len(y), W * y[:1].size):
        runs = (by_position(name, run.reshape(exact.shape)) for run in tensors)
        apart = np.stack([run[part] - y[part] for run in runs])  # (W, P, H, N)
        apart[:, by_position(name, ~np.isfinite(exact))[part]] = 0
        flat = apart.reshape(W, -1)
        # Among the letters there is none for ways: B and L are W here, and T is P.
        gram += einsum("BN,LN->BL", flat, flat, "errors")
        apart = np.divide(apart, unit[part], out=apart, where=unit[part] > 0)
        own[part] = einsum("BTHN,LTHN->THBL", apart, apart, "errors")
        largest = max(largest, float(np.abs(flat).max(initial=0.0)))
    square, N = np.square(y), y.shape[-1]
    sums = float(square.sum()), float(np.square(square).sum())
    spots = np.sqrt(allowed(own, distinct(gram), N) / N)  # (P, H)
    count = int(np.isfinite(exact).sum())
    return Distance(gram, own.sum(axis=(0, 1)), *sums, count, largest, spots)


def distinct(gram: np.ndarray) -> np.ndarray:
    """Which computations to keep so that none stands there twice: (W,) integers.

    Two that round alike up to here make the very same errors, and would be taken for
    two that have one cause.
    """
    own = gram.diagonal()  # (W,)
    apart = own[:, None] + own - 2 * gram  # (W, W)
    same = np.triu(apart <= 1e-9 * (own[:, None] + own), k=1)  # (W, W)
    return np.flatnonzero(~same.any(axis=0))


def pieces(count: int, size: int) -> Iterator[slice]:
    """Slices of `count` entries of `size` numbers, not too much at a time."""
    step = max(1, AT_ONCE // max(size, 1))
    for first in range(0, count, step):
        yield slice(first, first + step)


def together(parts: list[Distance]) -> Distance:
    """The distance of several tensors taken as one; heads keep their order."""
    return Distance(
        gram=np.sum([part.gram for part in parts], axis=0),
        even=np.sum([part.even for part in parts], axis=0),
        square=sum(part.square for part in parts),
        fourth=sum(part.fourth for part in parts),
        numbers=sum(part.numbers for part in parts),
        largest=max(part.largest for part in parts),
        spots=np.concatenate([part.spots for part in parts]),
    )
