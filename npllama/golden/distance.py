r"""How far two tensors are apart, and how much of that is chance.

The *error* is the root mean square of the difference over that of the exact tensor,

$$\mathrm{error} = \sqrt{\textstyle\sum (y - y^*)^2 / \sum {y^*}^2}$$

Trained models have a few enormous numbers (massive activations, arXiv:2402.17762):
one coordinate of the first position may be 20,000 where all others are near 1.  Then
the error is the rounding of that one number, and hides all others.  So there is a
second measure, the *even error*, in which no number can hide another: each difference
is divided by the size of its own number or by the typical size of its position,
whichever is larger,

$$\mathrm{even}^2 = \mathrm{mean}_i\ (y_i - y_i^*)^2 / ({y_i^*}^2 + m^2)$$

where m is the median of |y*| over the position (over the head, where there are heads).
It is taken over the tensor and over every position and head alone.

Both are sums over many numbers, but not over as many independent ones.  The errors of
a position often have few causes: one score that tips a softmax, one enormous number
that a norm divides by.  Were the errors Gaussian with a covariance of eigenvalues
\lambda, their sum of squares would vary like that of

$$n = (\textstyle\sum \lambda)^2 / \sum \lambda^2$$

independent ones (Satterthwaite 1946).  The errors of several right computations give
n: for two of them, c and d, the mean of (c . d)^2 is the sum of \lambda^2, and the
mean of |c|^2 is the sum of \lambda.  If errors are independent and proportional to
their numbers, n is (\sum y^2)^2 / \sum y^4, which is near 1 if one number dominates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npllama.ops import einsum

# Differences are held in float64 for this many numbers at a time.
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


def numbers_at(name: str, shape: tuple[int, ...], places: np.ndarray) -> np.ndarray:
    """Which numbers of a tensor lie at these positions and heads.

    Parameters
    ----------
    shape : tuple
        Of the tensor.
    places : (P, H) bool
        Or (P, 1), for whole positions.

    Returns
    -------
    bool array of `shape`
    """
    mask = np.zeros(math.prod(shape), dtype=bool)
    if places.any():
        numbers = by_position(name, np.arange(mask.size).reshape(shape))  # (P, H, N)
        mask[numbers[np.broadcast_to(places, numbers.shape[:2])]] = True
    return mask.reshape(shape)


def units(y: np.ndarray) -> np.ndarray:
    """What the difference of every number is divided by: its own size or the typical.

    Parameters
    ----------
    y : (P, H, N) float64
        The exact numbers; masked scores are 0.

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

    Part of the worst error is chance, and another computation may be less lucky.  So
    the worst error is raised by 3 / sqrt(n) of the part that the errors do not share
    (n is the number of their independent causes) or by 3 / sqrt(`numbers`) of itself,
    whichever is more: if there are few numbers, all of the error may be chance.

    Parameters
    ----------
    gram : (..., W, W) float64
        Products of the errors of every two of W computations.
    ways : (M,) int64
        The computations whose differences tell how much is chance.
    numbers : float
        How many numbers there are, in effect.

    Returns
    -------
    (...,) float64
    """
    worst = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1).max(axis=-1))  # (...,)
    own = centred(gram[..., ways[:, None], ways])  # (..., M, M)
    spread = np.diagonal(own, axis1=-2, axis2=-1).max(axis=-1)  # (...,)
    spread = np.sqrt(np.maximum(spread, 0))  # (...,), for equal ones may round below
    chance = 3 * spread / np.sqrt(shared(causes(own)))  # (...,)
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
    # Centred errors sum to zero, so they are correlated: this much is no likeness.
    alike = others / (W * (W - 1)) - np.square(size / (W - 1))  # (...,)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.square(size) / np.maximum(alike, 0)  # (...,)
    return np.maximum(np.where(np.isnan(n), np.inf, n), 1.0)


def shared(n: np.ndarray) -> np.ndarray:
    """How many causes errors have, if few computations tell it at each position.

    With a dozen of them n is itself a matter of luck: a cause that was small in all
    leaves no trace.  Positions of a tensor have causes of the same kind, so the mean
    of 1 / n over all positions is more certain; the smaller n of the two counts.
    """
    mean = np.mean(1 / n)
    return np.minimum(n, 1 / mean) if mean > 0 else n


class Distance(NamedTuple):
    """How far W right computations are from the exact tensor, in sums.

    `gram` and `even` hold products of the errors of every two of them: plain ones, and
    those of even errors.  On their diagonals are sums of squares.  All sums are taken
    over the positions where no computation overflows.
    """

    gram: np.ndarray  # (W, W)
    even: np.ndarray  # (W, W)
    square: float  # sum of the exact numbers' squares
    fourth: float  # and of their fourth powers
    numbers: int  # how many there are
    largest: float  # difference
    spots: np.ndarray  # (P, H): the floor of every position and head
    overflows: np.ndarray  # (P,) bool: where some of them are not finite
    times: tuple[int, ...]  # how much larger the errors of each were made: (W,)

    @property
    def ways(self) -> np.ndarray:
        """The computations that tell how much is chance: (M,) int64."""
        return distinct(self.gram, self.times)


def distance(
    name: str, tensors: list[np.ndarray], exact: np.ndarray, times: tuple[int, ...] = ()
) -> Distance:
    """How far several right computations are from the exact tensor.

    Parameters
    ----------
    name : str
        Of the tensor, as in a trace.
    tensors : list of arrays
        One per way to compute, with as many numbers as `exact`.
    exact : float array
    times : tuple of int
        How much larger the errors of each were made; once, by default.
    """
    exact = np.asarray(exact, dtype=np.float64)
    hidden = by_position(name, ~np.isfinite(exact))  # (P, H, N)
    y = np.where(hidden, 0.0, by_position(name, exact))  # (P, H, N)
    unit, W, times = units(y), len(tensors), times or (1,) * len(tensors)
    gram, largest = np.zeros((W, W), dtype=np.float64), 0.0
    own = np.zeros((*y.shape[:2], W, W), dtype=np.float64)
    held = np.ones((*y.shape[:2], W), dtype=bool)  # (P, H, W)
    for part in pieces(len(y), W * y[:1].size):
        runs = (by_position(name, run.reshape(exact.shape)) for run in tensors)
        apart = np.stack([(run[part] - y[part]) / n for run, n in zip(runs, times)])
        apart[:, hidden[part]] = 0  # (W, P, H, N)
        fine = np.asarray(np.isfinite(apart).all(axis=3))  # (W, P, H)
        held[part], apart[~fine] = fine.transpose(1, 2, 0), 0
        flat = apart[:, held[part].all(axis=(1, 2))].reshape(W, -1)
        # Among the letters there is none for ways: B and L are W here, and T is P.
        gram += einsum("BN,LN->BL", flat, flat, "errors")
        largest = max(largest, float(np.abs(flat).max(initial=0.0)))
        apart = np.divide(apart, unit[part], out=apart, where=unit[part] > 0)
        own[part] = einsum("BTHN,LTHN->THBL", apart, apart, "errors")
    whole = held.all(axis=(1, 2))  # (P,)
    square, N = np.square(y[whole]), y.shape[-1]
    return Distance(
        gram=gram,
        even=own[whole].sum(axis=(0, 1)),
        square=float(square.sum()),
        fourth=float(np.square(square).sum()),
        numbers=int((~hidden[whole]).sum()),
        largest=largest,
        spots=np.sqrt(allowed_where(own, held, distinct(gram, times), N) / N),
        overflows=np.logical_not(whole),
        times=times,
    )


def allowed_where(
    own: np.ndarray, held: np.ndarray, ways: np.ndarray, numbers: int
) -> np.ndarray:
    """What is `allowed` at every position, by the computations that are finite there.

    Parameters
    ----------
    own : (P, H, W, W) float64
    held : (P, H, W) bool
    ways : (M,) int64

    Returns
    -------
    (P, H) float64
        Infinite where all computations overflow.
    """
    found = np.full(own.shape[:2], np.inf, dtype=np.float64)  # (P, H)
    for pattern in np.unique(held.reshape(-1, held.shape[-1]), axis=0):
        # If no place is finite in all of them, it is unknown which of them differ.
        few = ways if held.all(axis=(1, 2)).any() else np.arange(len(pattern))
        few = few[pattern[few]]
        at = (held == pattern).all(axis=-1)  # (P, H)
        if len(few):
            found[at] = allowed(own[at], few, numbers)
    return found


def distinct(gram: np.ndarray, times: tuple[int, ...]) -> np.ndarray:
    """Which computations to keep so that none counts twice: (M,) int64.

    Two that round alike up to here make the very same errors, and would be taken for
    two that have one cause.  So would one whose errors are those of another, enlarged.
    """
    own = gram.diagonal()  # (W,)
    apart = own[:, None] + own - 2 * gram  # (W, W)
    same = np.triu(apart <= 1e-9 * (own[:, None] + own), k=1)  # (W, W)
    return np.flatnonzero(~same.any(axis=0) & (np.asarray(times) == 1))


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
        overflows=np.concatenate([part.overflows for part in parts]),
        times=parts[0].times,
    )
