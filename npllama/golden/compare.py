r"""Where a backend leaves what rounding alone can explain.

A golden trace and a candidate's are walked side by side, in the order in which the
model computes.  A tensor is *within* while its distance from the exact one stays
below `factor` noise floors (`floor` says how they are measured):

$$\sqrt{\textstyle\sum (y - y^*)^2 / \sum {y^*}^2} \le 2 \cdot \mathrm{floor}$$

The first tensor outside is where to look: all before it, what it was made from among
them, is as good as rounding allows.  Behind it errors only travel on.

In half precision the errors must not lean to one side either.  Cutting digits off
instead of rounding doubles the distance, which is just where the limit lies; but it
also makes every number smaller, which rounding does not.  `lean` measures that, as the
part of the tensor that is missing, $-\sum (y - y^*) y^* / \sum {y^*}^2$; over many
positions it must stay below one floor.

Both limits have room: in 1,687 right runs of 270 random models (transformers with eager
and fused attention, JAX, and NumPy that adds in other orders; float32, bfloat16 and
float16; MHA, GQA and MQA with every scaling of RoPE) no tensor came further than 1.73
floors, nor leant by more than 0.55.

What else is measured (largest difference, cosine, ULPs, divergence of the next-token
distributions) is for the reader to look at, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npllama.golden.floor import split_name
from npllama.golden.precision import FORMATS, activations_in, rounded, ulp

Tensors = Mapping[str, np.ndarray]
FACTOR = 2.0
# How far a tensor of many positions may lean, in floors.
LEAN = 1.0
LEANS_DOWN = "its numbers are too small on the whole: they lean towards zero"
LEANS_UP = "its numbers are too large on the whole: they lean away from zero"
# Fewer positions than this lean by chance.
LEAN_ROWS = 8


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


class Row(NamedTuple):
    """The verdict on one tensor."""

    name: str
    verdict: str  # "within", "outside", "missing" or "unknown" (no floor)
    note: str = ""
    floor: float | None = None
    measures: Measures | None = None
    logits: LogitMeasures | None = None


#  ---- distances --------------------------------------------------------------


def relative_error(y: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the difference, over that of the exact tensor."""
    scale = np.square(exact).sum()
    difference = np.square(y - exact).sum()
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(np.sqrt(difference / scale))


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


#  ---- bringing two traces together -------------------------------------------


def aligned(name: str, y: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The candidate's tensor in the golden shape.

    Heads may be folded into one axis or stand before the positions, a batch of one may
    have no axis, a cache may have another capacity, and logits may be those of the
    last position alone if the golden ones are.

    With as many heads as positions the shape does not tell which axis is which: then
    the reading that is closer to the exact tensor is taken.

    Raises
    ------
    ValueError
        If the shapes cannot mean the same (the message has both), or it has no floats.
    """
    shape = exact.shape
    if y.dtype.kind != "f":
        raise ValueError(f"its numbers are {y.dtype}, not floats")
    if name.startswith("cache.") and y.ndim == exact.ndim == 5:
        same = [i for i in (0, 1, 2, 4) if y.shape[i] == shape[i]]
        if len(same) == 4 and y.shape[3] > shape[3]:
            return y[:, :, :, : shape[3]]
    readings = []
    if _folded(y.shape) == _folded(shape) or _one_axis_less(y.shape, shape):
        readings.append(y.reshape(shape))
    if y.ndim == exact.ndim == 4 and y.swapaxes(1, 2).shape == shape:
        readings.append(y.swapaxes(1, 2))
    if y.ndim == 3 and exact.ndim == 4 and y.swapaxes(0, 1).shape == shape[1:]:
        readings.append(y.swapaxes(0, 1).reshape(shape))
    if not readings:
        raise ValueError(f"its shape is {y.shape}; the golden one is {shape}")
    return readings[0] if len(readings) == 1 else _closest(readings, exact)


def _closest(readings: list[np.ndarray], exact: np.ndarray) -> np.ndarray:
    """The reading with the least error; the first, if numbers are not finite."""
    shown = np.isfinite(exact)
    exact = exact[shown].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return min(readings, key=lambda y: relative_error(y[shown], exact))


def _folded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of one, the last two of four merged."""
    if len(shape) == 4:
        shape = (*shape[:2], shape[2] * shape[3])
    return tuple(n for n in shape if n > 1)


def _one_axis_less(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a batch of one was dropped from four axes."""
    return wanted[:1] == (1,) and shape == wanted[1:]


def seen_dtype(candidate: Tensors) -> str:
    """In which format a candidate computed, by the numbers it holds.

    A float32 array whose numbers all fit in bfloat16 was made in bfloat16.
    """
    names = [name for name in candidate if "/" in name]
    floats = [a for a in (candidate[n] for n in names) if a.dtype.kind == "f"]
    for dtype in ("bfloat16", "float16"):
        fits = [bool((rounded(a, dtype) == a).all()) for a in floats]
        if fits and 2 * sum(fits) > len(fits):
            return dtype
    return "float32"


#  ---- verdicts ---------------------------------------------------------------


def judge(
    name: str,
    y: np.ndarray,
    exact: np.ndarray,
    floor: float | None,
    dtype: str,
    factor: float = FACTOR,
) -> Row:
    """Say whether one tensor is within its floor.

    Parameters
    ----------
    name : str
        As in the golden trace.
    y, exact : arrays
        The candidate's tensor and the golden one.
    floor : float
        Relative error that rounding alone makes; None where it is not known.
    dtype : one of `precision.FORMATS`
    factor : float
        How many floors are allowed.
    """
    try:
        y = aligned(name, y, exact).astype(np.float64)
    except ValueError as error:
        return Row(name, "outside", str(error), floor)
    exact = exact.astype(np.float64)
    # Masked scores: -inf here, any large negative number elsewhere.
    shown = np.isfinite(exact)
    if not np.isfinite(y[shown]).all():
        return Row(name, "outside", _not_finite(y, shown), floor)
    measures = measure(y[shown], exact[shown], dtype)
    module = split_name(name)[1]
    logits = measure_logits(y, exact) if module == "lm_head" else None
    if floor is None:
        return Row(name, "unknown", "no floor is known", None, measures, logits)
    verdict, note = "within", ""
    if not measures.error <= factor * floor:
        verdict, note = "outside", _how_far(measures.error, floor)
    elif leans(measures, floor, dtype, exact.size // exact.shape[-1]):
        verdict, note = "outside", LEANS_DOWN if measures.lean > 0 else LEANS_UP
    return Row(name, verdict, note, floor, measures, logits)


def leans(measures: Measures, floor: float, dtype: str, rows: int) -> bool:
    """Whether the numbers are smaller or larger than rounding to nearest makes them."""
    half = FORMATS[activations_in(dtype)].digits < 24
    return half and rows >= LEAN_ROWS and abs(measures.lean) > LEAN * floor


def _not_finite(y: np.ndarray, shown: np.ndarray) -> str:
    wrong = ~np.isfinite(y) & shown
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {y.size} numbers are not finite, the first at {first}"
    )


def _how_far(error: float, floor: float) -> str:
    if floor == 0:
        return "should be exact"
    return f"{error / floor:.3g} times the floor"


class Comparison(NamedTuple):
    """All verdicts, in the order of execution."""

    rows: tuple[Row, ...]
    dtype: str
    factor: float
    extra: tuple[str, ...] = ()  # names that only the candidate has

    @property
    def first(self) -> Row | None:
        """The first tensor that leaves the floor."""
        return next((row for row in self.rows if row.verdict == "outside"), None)


def check_tokens(golden: Tensors, candidate: Tensors) -> None:
    """Raise ValueError if both say which tokens they ran, and the tokens differ."""
    if "tokens" not in golden or "tokens" not in candidate:
        return
    ours, theirs = (np.ravel(t["tokens"]) for t in (golden, candidate))
    n = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:n] != theirs[:n])
    if len(differ):
        i = int(differ[0])
        raise ValueError(
            f"the candidate ran other tokens: number {i} is {int(theirs[i])}, "
            f"{int(ours[i])} in the golden trace"
        )
    if len(ours) != len(theirs):
        raise ValueError(
            f"the candidate ran {len(theirs)} tokens, the golden trace {len(ours)}"
        )


def compare(
    golden: Tensors,
    candidate: Tensors,
    floors: Mapping[str, Mapping[str, Any]],
    dtype: str,
    factor: float = FACTOR,
) -> Comparison:
    """Walk two traces side by side.

    Parameters
    ----------
    golden, candidate : mapping of name to array
        The golden one in the order of execution; names as `record` gives them.
    floors : mapping of name to {"rms": float}
        From `floor.floor`.
    dtype : one of `precision.FORMATS`
    factor : float

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If nothing can be compared: no name in common, or other tokens.
    """
    check_tokens(golden, candidate)
    names = [name for name in golden if name not in ("tokens", "u")]
    common = [name for name in names if name in candidate]
    if not common:
        raise ValueError(
            f"no tensor in common: the golden trace has {_some(names)}, "
            f"the candidate {_some(list(candidate))}"
        )
    rows = []
    for name in names:
        if name not in candidate:
            rows.append(Row(name, "missing"))
            continue
        floor = floors.get(name, {}).get("rms")
        rows.append(judge(name, candidate[name], golden[name], floor, dtype, factor))
    known = {*golden, "tokens", "u"}
    extra = tuple(name for name in candidate if name not in known)
    return Comparison(tuple(rows), dtype, factor, extra)


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (" ..." if len(names) > 3 else "") if names else "none"
    )
