r"""How wrong a right backend is: the noise floor of every tensor.

How close to the exact numbers is close enough cannot be known in advance: rounding
errors grow through the layers, shrink in a norm, and depend on the weights.  So the
*floor* is measured.  The model runs in emulated arithmetic, in all the ways in which
right backends differ (`emulation`).  The distance of these runs from the exact one,
tensor by tensor, is the effect of rounding alone.  The tests of FlashAttention set the
precedent: a kernel may have at most twice the error of a plain implementation of the
same precision.

A tensor has three floors.  That of the *error* and that of the *even error* (`distance`)
are each the larger of two: the worst way in this step, and the worst way over all
steps together.  The third is that of one position and one head.  It is the lower
of two: the worst way at that position over all heads, and the worst way in that head
over all positions.

A backend is one more draw from the same errors, and may be less lucky than the worst of
the W ways.  If errors have n independent causes, the size of one draw varies by some
0.7 / sqrt(n) of itself.  So a floor is 1 + 3 / sqrt(n) times the worst way, and a
candidate may go to two floors.  The chance that a right one goes further, for
Gaussian errors, is

    n                     1       2       4      10
    11 ways (float32)  2e-08   3e-11   6e-15   9e-22
    6 ways (halves)    1e-05   1e-07   2e-10   9e-16

per independent group of errors, if the ways were independent (in halves they share most
of what they round, with the backend, too).  n is measured by how alike the errors of the
ways are, and is never above (sum y^2)^2 / sum y^4, since a few enormous numbers leave no
more than a few errors.  All ways may be lucky where a backend that rounds sum,
root and quotient differently is not.  So no floor is below `LEAST`, except the floor 0
of a tensor that every right backend computes exactly.

Rounding does not always leave errors of its own size.  Where two scores of a sharp
attention nearly tie, half precision decides which key wins, and the output is that of
one key or of the other.  Perhaps the backend takes the other key, but none of the six
ways does.  Since twice the floor is allowed, this can be measured directly: in halves
every way also runs with all rounding errors twice as large, and half of its distance is
a further measurement of the floor.  If errors only grow in proportion, that gives the
same number; a key that changes within two errors is within two floors.

float16 ends at 65,504.  A position where right arithmetic overflows (plain kernels round
scores, some before they are scaled and masked) is listed as such: the tensor's own floors
are those of the other positions, and a candidate's infinities and NaN there are no fault
of its own.  If it does have finite numbers there, their limit comes from the ways
that have them too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npllama.golden.distance import (
    Distance,
    allowed,
    distance,
    together,
)
from npllama.golden.emulation import emulate, ways
from npllama.weights import Model

# Two roundings of float32, in which all backends sum.
LEAST = 2 * 2.0**-24
# The floor of numbers that overflow in all right arithmetic.
NO_FLOOR = sys.float_info.max
# Digits of the floors of positions, of which a long text has many.
DIGITS = 4


def split_name(name: str) -> tuple[str, str]:
    """Step and module: ``"prefill/lm_head"`` gives ``("prefill", "lm_head")``."""
    step, _, module = name.rpartition("/")
    return step, module


class TraceStep(NamedTuple):
    """One call of the model: its name in a trace and the positions it added."""

    name: str
    first: int
    end: int


def steps_of(golden: Mapping[str, np.ndarray]) -> list[TraceStep]:
    """The steps of a trace, from its names and the number of its tokens.

    Raises
    ------
    ValueError
        If the trace has no tokens, or fewer than steps.
    """
    names = list(dict.fromkeys(split_name(n)[0] for n in golden if "/" in n))
    if "tokens" not in golden or not names:
        raise ValueError("the golden trace has no tokens: a floor needs them")
    decoded = sum(name != "prefill" for name in names)
    first = golden["tokens"].shape[-1] - decoded
    if first < ("prefill" in names):
        raise ValueError(f"the golden trace has {len(names)} steps and fewer tokens")
    bounds = [0] if "prefill" in names else []
    bounds += range(first, first + decoded + 1)
    return [TraceStep(*step) for step in zip(names, bounds, bounds[1:])]


def worst(d: Distance) -> float:
    """The error of the worst way, chance included; infinite if it overflows all over."""
    if not d.numbers:
        return math.inf
    if not d.square or not d.fourth:
        return 0.0
    numbers = d.square**2 / d.fourth
    return math.sqrt(allowed(d.gram, d.ways, numbers) / d.square)


def worst_even(d: Distance) -> float:
    """The same of the even error, in which no number carries the others."""
    if not d.numbers:
        return math.inf
    return math.sqrt(allowed(d.even, d.ways, d.numbers) / d.numbers)


def raised(x: float) -> float:
    """A floor, raised to the least that does not rest on luck."""
    return capped(max(x, LEAST))


def capped(x: float) -> float:
    """`NO_FLOOR` in place of what is not finite."""
    return x if x < NO_FLOOR else NO_FLOOR


def short(x: float) -> float:
    """The same with few digits."""
    return capped(float(f"{raised(x):.{DIGITS}g}"))


def floors_of(parts: Mapping[str, Distance]) -> dict[str, dict[str, Any]]:
    """The floors of every tensor, from the distances of all.

    Parameters
    ----------
    parts : mapping of ``step/module`` to Distance
    """
    modules: dict[str, list[Distance]] = {}
    for name, part in parts.items():
        modules.setdefault(split_name(name)[1], []).append(part)
    pooled = {module: together(all_) for module, all_ in modules.items()}
    return {n: floor_of(part, pooled[split_name(n)[1]]) for n, part in parts.items()}


def floor_of(part: Distance, steps: Distance) -> dict[str, Any]:
    """The floors of one tensor, given what all steps of its module did together."""
    if part.numbers and not part.gram.any() and not steps.gram.any():
        return {"rms": 0.0, "max": 0.0}
    floors: dict[str, Any] = {
        "rms": raised(max(worst(part), worst(steps))),
        "max": capped(part.largest),
        "even": raised(max(worst_even(part), worst_even(steps))),
        "positions": [short(x) for x in part.spots.max(axis=1)],
    }
    if part.spots.shape[1] > 1:
        known = np.where(np.isfinite(steps.spots), steps.spots, -math.inf)  # (P, H)
        floors["heads"] = [short(abs(x)) for x in known.max(axis=0)]
    if part.overflows.any():
        floors["overflows"] = np.flatnonzero(part.overflows).tolist()
    return floors


def part_of(
    module: str, y: np.ndarray, step: TraceStep, exact: np.ndarray
) -> np.ndarray:
    """What one step added to a tensor of all positions."""
    if module.endswith("scores"):
        return y[:, :, step.first : step.end, : step.end]
    y = y[:, step.first : step.end]
    # Logits may have been asked for at the last position only.
    return y[:, -1:] if exact.size < y.size else y


def floor(
    golden: Mapping[str, np.ndarray], model: Model, dtype: str
) -> dict[str, dict[str, Any]]:
    """Measure what rounding alone does to every tensor of a golden trace.

    Parameters
    ----------
    golden : mapping of name to array
        As `record` writes it, in float64; its ``tokens`` are what is run.
    model : Model
        The weights that it was recorded from.
    dtype : one of `precision.FORMATS`

    Returns
    -------
    mapping of name to {"rms": float, "max": float, "even": float, ...}
        The floors of the error and of the even error, and the largest difference;
        under "positions" and "heads" those of the even error at each of them, under
        "overflows" the positions that the dtype cannot hold, if there are any.  What is
        exact has an "rms" of 0 and no more.

    Raises
    ------
    ValueError
        If the trace has no tokens.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return floors_of(distances(golden, model, dtype))


def distances(
    golden: Mapping[str, np.ndarray], model: Model, dtype: str
) -> dict[str, Distance]:
    """How far all ways to compute are from every tensor of a golden trace."""
    steps = steps_of(golden)
    tokens = golden["tokens"].reshape(-1, golden["tokens"].shape[-1])
    bounds = [steps[0].first, *(step.end for step in steps)]
    times = tuple(way.times for way in ways(dtype))
    parts: dict[str, Distance] = {}
    caches: dict[str, list[Distance]] = {}
    for module, tensors in emulate(model, tokens, bounds, dtype):
        for step in steps:
            name = f"{step.name}/{module}"
            if (exact := golden.get(name)) is not None:
                own = [part_of(module, y, step, exact) for y in tensors]
                parts[name] = distance(module, own, exact, times)
        which = {"k_rope": "cache.k", "v_proj": "cache.v"}.get(module.split(".")[-1])
        if which in golden:
            layers = caches.setdefault(which, [])
            stored = golden[which][len(layers)][:, :, : tokens.shape[1]]  # (B, K, S, D)
            turned = [y.swapaxes(1, 2) for y in tensors]
            layers.append(distance(which, turned, stored[None], times))
    return parts | {name: together(layers) for name, layers in caches.items()}
