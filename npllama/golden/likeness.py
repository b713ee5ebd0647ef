"""How much of a difference is left under a suspicion, and how little explains it.

A *suspicion* names a fault and predicts the wrong tensor.  What is *left* is the
candidate's distance from this prediction.  The suspicion *explains* the candidate if
what is left is within one floor, or near the limit and at most a tenth of the distance
from the golden tensor.  It is *proved* if what is left is within the limit and at most
that tenth.  Distances are even errors, as `distance` defines them.
"""

from __future__ import annotations

import math

import numpy as np

from npllama.golden.distance import by_position, units
from npllama.golden.scene import Scene, kind_of
from npllama.golden.signs import ENOUGH, Finding
from npllama.golden.slips import FITTED
from npllama.golden.suspects import HIDDEN

# The share of the error that a fault may leave, and how many times the limit this may
# be: a wrong model may be more sensitive to rounding than the right one.
LIKELY, NEAR = 0.1, 4
# The share that a wrong mask may leave.
AT_THE_END = 0.25
# This share of the error may be left, however many times the limit it is.
LITTLE = 1e-3
# An error near the limit is not ten times what is left; it must shrink to this share at
# least, which no wrong fault reaches by chance.
BETTER = 0.65


def left_by(tensor: np.ndarray | None, y: np.ndarray, scene: Scene):
    """Even error of the candidate from the suspicion's tensor, and from the golden one.

    A suspicion that leaves numbers open (NaN) explains none of the error in them, and
    the candidate must hide the scores that it hides, and no others.

    Returns
    -------
    left, before : float
        Infinite where it cannot be the explanation.
    """
    exact = scene.exact
    if tensor is None or tensor.shape != y.shape:
        return math.inf, math.inf
    valid = np.isfinite(exact)
    if kind_of(scene.module) == "self_attn.scores":
        # A backend that hides what should be seen shows its mask: it says of every key
        # whether it is hidden.
        told = valid | (y < HIDDEN)[valid].any()
        if ((y < HIDDEN) != (tensor < HIDDEN))[told].any():
            return math.inf, math.inf
        broken = valid & np.isnan(y)
    else:
        broken = valid & ~np.isfinite(y)
    if (broken & np.isfinite(tensor)).any():
        return math.inf, math.inf
    shown = valid & np.isfinite(y) & np.isfinite(tensor)
    if shown.sum() < min(ENOUGH, exact.size / 2):
        return math.inf, math.inf
    hides = (valid & ~np.isfinite(y)).any()
    before = math.inf if hides else apart(y, exact, shown, scene)
    # Tiny numbers are close to every prediction of tiny numbers, which is no evidence:
    # what is left of a candidate smaller than the golden tensor counts as its share.
    zero = np.zeros_like(y)
    size, right = (apart(x, zero, shown, scene) for x in (y, exact))
    smaller = size / max(right, 1e-300)
    return apart(y, tensor, shown, scene) / min(max(smaller, 1e-300), 1.0), before


def apart(y: np.ndarray, tensor: np.ndarray, shown: np.ndarray, scene: Scene) -> float:
    """Even error of the numbers shown; of the worst place, if only that is off."""
    name, exact = scene.row.name, scene.exact
    unit = units(by_position(name, np.where(np.isfinite(exact), exact, 0.0)))
    shown = by_position(name, shown)  # (P, H, N)
    with np.errstate(invalid="ignore"):
        parts = np.where(shown, by_position(name, y - tensor), 0.0)  # (P, H, N)
    parts = np.divide(parts, unit, out=np.zeros_like(parts), where=unit > 0)
    if (spot := only_spot(scene)) is not None and shown[spot].any():
        parts, shown = parts[spot], shown[spot]
    return float(np.sqrt(np.square(parts).sum() / shown.sum()))


def only_spot(scene: Scene) -> tuple[int, int] | None:
    """The worst position and head, if the tensor as a whole is within."""
    evenness = scene.row.evenness
    if evenness is None or not evenness.even_floor or not evenness.spot_floors:
        return None
    whole = evenness.even_error > scene.factor * evenness.even_floor
    return None if whole or evenness.spot_floors <= scene.factor else evenness.spot


def limit_of(scene: Scene, before: float) -> float:
    """The largest even error that rounding alone may leave."""
    evenness = scene.row.evenness
    if evenness is None or not evenness.even_floor:
        return scene.factor * (scene.row.floor or 0.0)
    if only_spot(scene) is not None:
        return scene.factor * before / evenness.spot_floors
    return scene.factor * evenness.even_floor


def explained(
    key: str, text: str, left: float, before: float, limit: float, factor: float
) -> Finding | None:
    """The finding, if what is left is little enough; else None.

    Parameters
    ----------
    key, text : str
    left, before : float
        Even error of the candidate from the suspicion's tensor and the golden one.
    limit : float
    factor : float
        How many floors the limit is.  Of an error that is itself near the limit a right
        name leaves 0.5 to 0.9 floors, and a wrong one left up to 1.9.
    """
    floor = limit / factor
    much = left <= min(LIKELY * before, LIKELY, max(NEAR * limit, LITTLE * before))
    # With a wrong mask the last query may see a key that is not computed yet.  What it
    # finds there (zeros of a larger cache, or nothing) depends on the backend.
    much |= key == "mask" and left <= AT_THE_END * min(before, 1.0)
    if left >= before or not (much or left <= min(floor, BETTER * before)):
        return None
    if key in FITTED and not (much and left <= max(limit, LITTLE * before)):
        return None
    return Finding(key, text, left, left <= limit and much)
