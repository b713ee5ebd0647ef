r"""How a tensor differs from the golden one, in numbers.

The verdict rests on three of them: the error, the even error and the even error of the
worst position and head, each in floors.  The others are what a reader wants to see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npllama.golden.distance import by_position, even_errors, relative_error, units
from npllama.golden.precision import activations_in, ulp


class Measures(NamedTuple):
    """How a tensor differs from the golden one; see `measure`."""

    error: float
    nmse: float
    rms: float
    max_abs: float
    max_relative: float
    cosine: float
    ulp_max: float
    ulp_median: float
    lean: float


class LogitMeasures(NamedTuple):
    """How distributions over the next token differ; see `measure_logits`."""

    kl: float
    top_1: float
    top_5: float
    logprob_gap: float


class Evenness(NamedTuple):
    """The even error, which no enormous number can hide; see `measure_evenly`."""

    even_error: float
    even_lean: float
    even_floor: float | None
    spot_floors: float | None  # that of the worst position and head, in floors
    spot: tuple[int, int]  # where that is


def measure(y: np.ndarray, exact: np.ndarray, dtype: str) -> Measures:
    """Compare two tensors of one shape.

    Parameters
    ----------
    y, exact : (*B,) float64
    dtype : one of `precision.FORMATS`
        In which the candidate computed: its ULPs are the unit of two measures.

    Returns
    -------
    Measures
        `error`, the relative root mean square, is what the verdict rests on; `nmse`
        is its square.  `max_relative` leaves out exact zeros.
    """
    error, difference = relative_error(y, exact), np.abs(y - exact)
    steps = difference / ulp(exact, activations_in(dtype))
    size, both = np.square(exact).sum(), (y * exact).sum()
    norms = np.sqrt(size * np.square(y).sum())
    nonzero = exact != 0
    relative = difference[nonzero] / np.abs(exact[nonzero])
    return Measures(
        error=error,
        nmse=error**2,
        rms=float(np.sqrt(np.square(difference).mean())),
        max_abs=float(difference.max()),
        max_relative=float(relative.max(initial=0.0)),
        cosine=float(both / norms) if norms else float(error == 0),
        ulp_max=float(steps.max()),
        ulp_median=float(np.median(steps)),
        lean=float(1 - both / size) if size else 0.0,
    )


def measure_evenly(
    name: str, y: np.ndarray, exact: np.ndarray, floors: Mapping[str, Any]
) -> Evenness:
    """Compare two tensors so that every number counts alike.

    Parameters
    ----------
    name : str
        As in a trace: it says which axes are positions and heads.
    y, exact : (*B,) float64
        Of one shape; where the exact number is not finite none is compared.
    floors : mapping
        From `floor.floor`; those that it lacks are not known.
    """
    hidden = ~np.isfinite(exact)
    exact = by_position(name, np.where(hidden, 0.0, exact))  # (P, H, N)
    y = by_position(name, y)  # (P, H, N)
    apart = np.where(by_position(name, hidden), 0.0, y - exact)  # (P, H, N)
    unit = units(exact)  # (P, H, N)
    easy = np.ones(len(exact), dtype=bool)  # (P,)
    easy[list(floors.get("overflows", ()))] = False
    parts, of_one = _in(unit, apart)[easy], _in(unit, exact)[easy]  # (P, H, N)
    count = max(int((~by_position(name, hidden)[easy]).sum()), 1)
    limits = floors_of_spots(floors, exact.shape)  # (P, H)
    ratios = even_errors(apart, unit) / limits  # (P, H)
    spot = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    return Evenness(
        even_error=float(np.sqrt(np.square(parts).sum() / count)),
        even_lean=-float((parts * of_one).sum() / count),
        even_floor=floors.get("even"),
        spot_floors=float(ratios[spot]) if np.isfinite(limits[spot]) else None,
        spot=(int(spot[0]), int(spot[1])),
    )


def _in(unit: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Numbers in units; 0 where all is 0."""
    return np.divide(x, unit, out=np.zeros_like(x), where=unit > 0)


def floors_of_spots(floors: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """The floor of every position and head: the lower one of its two.

    Parameters
    ----------
    shape : (int, int, int)
        P positions, H heads, and as many numbers.

    Returns
    -------
    (P, H) float64
        Infinite where none is known.

    Raises
    ------
    ValueError
        If the floors are not those of this many positions and heads.
    """
    known = np.full(shape[:2], np.inf, dtype=np.float64)  # (P, H)
    for axis, kind in enumerate(("positions", "heads")):
        if (given := floors.get(kind)) is None:
            continue
        if len(given) != shape[axis]:
            raise ValueError(
                f"there are floors of {len(given)} {kind}, of {shape[axis]} in it"
            )
        own = np.asarray(given, dtype=np.float64)
        known = np.minimum(known, own[:, None] if axis == 0 else own)
    return known


def measure_logits(y: np.ndarray, exact: np.ndarray) -> LogitMeasures:
    """Compare distributions over the next token.

    Parameters
    ----------
    y, exact : (*B, V) float64

    Returns
    -------
    LogitMeasures
        `kl` is the largest divergence of y's distribution from the exact one, in nats;
        `top_1` and `top_5` the share of positions that agree in the likeliest token,
        and of the five likeliest that both have; `logprob_gap` the largest difference
        of log-probability among the golden five.
    """
    log_p, log_q = log_softmax(exact), log_softmax(y)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    best, found = (np.argsort(-z, axis=-1, kind="stable")[..., :5] for z in (exact, y))
    shared = (best[..., :, None] == found[..., None, :]).any(axis=-1)
    gap = np.take_along_axis(np.abs(log_p - log_q), best, axis=-1)
    return LogitMeasures(
        kl=float(max(kl.max(), 0.0)),
        top_1=float((best[..., 0] == found[..., 0]).mean()),
        top_5=float(shared.mean()),
        logprob_gap=float(gap.max()),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
