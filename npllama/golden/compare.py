r"""Where a backend leaves what rounding alone can explain.

A golden trace and a candidate's are walked side by side, in the order in which the
model computes.  A tensor is *within* while its error, its even error (`distance` says
what they are) and the even error of each of its positions and heads all stay below
`factor` of their noise floors (`floor` says how these are measured).

The first tensor outside is where to look.  Everything earlier, including its own
inputs, is within rounding error; later tensors may be wrong only because of it.

In half precision the errors must not lean to one side either.  Cutting off digits
instead of rounding doubles the distance, which is exactly the limit; but it also makes
every number smaller, which rounding does not.  `lean` measures the part of the tensor
that is missing.  It must stay below one floor wherever `LEAN_ROWS` positions or more
make up the sum of squares; in the even error all positions count alike.

Measured: in 2,000 runs of transformers on random models (a fifth unchanged, the others
with one row times 50 to 1,000, gains of 0.03 to 30, or sharp attention; 1 to 200
positions; float32, bfloat16, float16) no tensor was outside.  The largest error was
1.49 floors at one position and 1.31 in the even error, both in float32, and 1.12 in
half precision.  Of 1,200 errors of three floors planted in one tensor, position or
head, all were caught there.

The other measures (largest difference, cosine, ULPs, divergence of the next-token
distributions) are information for the reader, and do not affect the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npllama.golden.distance import by_position, numbers_at, relative_error
from npllama.golden.floor import NO_FLOOR, split_name
from npllama.golden.measures import (
    Evenness,
    LogitMeasures,
    Measures,
    measure,
    measure_evenly,
    measure_logits,
)
from npllama.golden.precision import FORMATS, activations_in, rounded

Tensors = Mapping[str, np.ndarray]
FACTOR = 2.0
# How far a tensor of many positions may lean, in floors.
LEAN = 1.0
LEANS_DOWN = "its numbers are too small on the whole: they lean towards zero"
LEANS_UP = "its numbers are too large on the whole: they lean away from zero"
# Fewer positions than this lean by chance.
LEAN_ROWS = 8


class Row(NamedTuple):
    """The verdict on one tensor."""

    name: str
    verdict: str  # "within", "outside", "missing" or "unknown" (no floor)
    note: str = ""
    floor: float | None = None
    measures: Measures | None = None
    logits: LogitMeasures | None = None
    evenness: Evenness | None = None


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
    """The format in which a candidate computed, judged by its numbers.

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
    floors: Mapping[str, Any] | float | None,
    dtype: str,
    factor: float = FACTOR,
) -> Row:
    """Say whether one tensor is within its floors.

    Parameters
    ----------
    name : str
        As in the golden trace.
    y, exact : arrays
        The candidate's tensor and the golden one.
    floors : mapping or float
        What rounding alone does (`floor.floor`), or the floor of the error alone; None
        where it is not known.
    dtype : one of `precision.FORMATS`
    factor : float
        How many floors are allowed.
    """
    floors = {"rms": floors} if not isinstance(floors, Mapping) else floors
    floor = floors.get("rms")
    try:
        y = aligned(name, y, exact).astype(np.float64)
    except ValueError as error:
        return Row(name, "outside", str(error), floor)
    if floor == NO_FLOOR and "overflows" not in floors:
        return Row(name, "unknown", f"{dtype} cannot hold the right numbers")
    exact = exact.astype(np.float64)
    # Masked scores: -inf here, any large negative number elsewhere.
    shown = np.isfinite(exact)
    hard, lost = overflown(name, y, shown, floors)
    if not np.isfinite(y[shown & ~hard]).all():
        return Row(name, "outside", _not_finite(y, shown & ~hard), floor)
    row = measured(name, y, np.where(lost, np.nan, exact), hard, floors, dtype)
    if floor is None:
        return row._replace(verdict="unknown", note="no floor is known")
    easy = np.where(hard, np.nan, exact)
    if note := wrong(row, factor) or leaning(row, dtype, easy):
        return row._replace(verdict="outside", note=note)
    if lost.any():
        row = row._replace(verdict="unknown", note=too_large(lost, shown, dtype))
    return row


def overflown(
    name: str, y: np.ndarray, shown: np.ndarray, floors: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Which numbers may overflow in right arithmetic, and which of them have.

    Where one number overflows those beside it may be finite and wrong: infinity in the
    stream makes a norm zero.  So a position and head with such a number is lost whole.

    Returns
    -------
    hard, lost : bool arrays of the shape of `y`
    """
    finite = np.isfinite(by_position(name, np.where(shown, y, 0.0))).all(axis=-1)
    positions = np.zeros((len(finite), 1), dtype=bool)  # (P, 1)
    positions[list(floors.get("overflows", ()))] = True
    hard = numbers_at(name, y.shape, positions)
    return hard, shown & numbers_at(name, y.shape, positions & ~finite)


def measured(name, y, exact, hard, floors, dtype) -> Row:
    """The row of a tensor, taken as within; measures only where exact is finite."""
    easy = np.isfinite(exact) & ~hard
    evenness = measure_evenly(name, y, exact, floors)
    row = Row(name, "within", "", floors.get("rms"), evenness=evenness)
    if easy.any():
        row = row._replace(measures=measure(y[easy], exact[easy], dtype))
    whole = easy.all(axis=-1)
    if split_name(name)[1] == "lm_head" and whole.any():
        row = row._replace(logits=measure_logits(y[whole], exact[whole]))
    return row


def wrong(row: Row, factor: float) -> str:
    """What lies above its limit; nothing, if all is within."""
    floor, evenness = row.floor, row.evenness
    error = row.measures.error if row.measures else 0.0
    if not error <= factor * floor:
        return (
            "should be exact" if floor == 0 else f"{error / floor:.3g} times the floor"
        )
    if evenness.even_floor and not evenness.even_error <= factor * evenness.even_floor:
        return (
            f"{evenness.even_error / evenness.even_floor:.3g} times the floor of the "
            "even error, in which no number hides another"
        )
    if evenness.spot_floors is not None and not evenness.spot_floors <= factor:
        return f"{evenness.spot_floors:.3g} times the floor of {place_of(row)}"
    return ""


def place_of(row: Row) -> str:
    """Where the worst position is, in words."""
    position, head = row.evenness.spot
    return f"position {position}, head {head} of the tensor"


def leaning(row: Row, dtype: str, exact: np.ndarray) -> str:
    """In words, whether numbers are smaller or larger than rounding makes them.

    The plain lean counts where enough positions carry it; the even one everywhere.
    """
    rows = np.isfinite(exact).any(axis=-1).sum()
    if FORMATS[activations_in(dtype)].digits == 24 or rows < LEAN_ROWS:
        return ""
    lean, floor = row.measures.lean, row.floor
    carried = effective_rows(exact) >= LEAN_ROWS
    if row.evenness.even_floor and not (carried and abs(lean) > LEAN * floor):
        lean, floor, carried = row.evenness.even_lean, row.evenness.even_floor, True
    if not carried or abs(lean) <= LEAN * floor:
        return ""
    return LEANS_DOWN if lean > 0 else LEANS_UP


def effective_rows(exact: np.ndarray) -> float:
    """How many positions (or heads of one) carry the sum of squares."""
    squares = np.square(np.where(np.isfinite(exact), exact, 0.0)).sum(axis=-1)
    fourth = np.square(squares).sum()
    return float(squares.sum() ** 2 / fourth) if fourth else 0.0


def too_large(lost: np.ndarray, shown: np.ndarray, dtype: str) -> str:
    """Why there is no verdict on the numbers that right arithmetic cannot hold."""
    some = "" if lost[shown].all() else " of some positions; the others are within"
    return f"{dtype} cannot hold the right numbers{some}"


def _not_finite(y: np.ndarray, shown: np.ndarray) -> str:
    wrong = ~np.isfinite(y) & shown
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {y.size} numbers are not finite, the first at {first}"
    )


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
    floors : mapping of name to {"rms": float, ...}
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
        floor = floors.get(name, {})
        rows.append(judge(name, candidate[name], golden[name], floor, dtype, factor))
    known = {*golden, "tokens", "u"}
    extra = tuple(name for name in candidate if name not in known)
    return Comparison(tuple(rows), dtype, factor, extra)


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (" ..." if len(names) > 3 else "") if names else "none"
    )
