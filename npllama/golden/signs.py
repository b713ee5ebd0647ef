"""What the numbers of a wrong tensor show by themselves.

Some faults show without computing anything again: digits that were cut off, numbers
that are not finite, places that were never written, the right numbers in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npllama.golden.distance import by_position, relative_error, units
from npllama.golden.floor import split_name
from npllama.golden.precision import FORMATS, activations_in, rounded, truncated
from npllama.golden.scene import Scene, candidate_of, kind_of, made_from
from npllama.golden.slips import TEXTS
from npllama.golden.suspects import HIDDEN
from npllama.ops import einsum

# The share of numbers that must agree to the last digit.
SAME_DIGITS = 0.9
# At least this many numbers have to agree with a finding.
ENOUGH = 16
# Plain products of an input and a weight: a wrong weight makes them unlike.
PLAIN_PRODUCTS = {"lm_head", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"}
PLAIN_PRODUCTS |= {f"self_attn.{name}_proj" for name in "qkv"}
# The least cosine between a position and the golden one, if only rounding is between.
SURELY = 0.99
# Cut digits leave an error of a few floors; a larger one has another cause.
SMALL = 10


class Finding(NamedTuple):
    """A fault that the candidate's numbers confirm."""

    fault: str
    text: str
    left: float  # error that remains under it
    proved: bool


def not_finite(scene: Scene) -> Iterator[Finding]:
    """NaN and infinity: how many, where the first is, and whether they begin here."""
    y, exact = candidate_of(scene), scene.exact
    wrong = ~np.isfinite(y) & np.isfinite(exact)
    if kind_of(scene.module) == "self_attn.scores":
        wrong &= ~(y < HIDDEN)
    if not wrong.any():
        return
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    what = "NaN" if np.isnan(y[first]) else "infinite"
    names = made_from(scene.row.name, scene.config.num_hidden_layers)
    shown = [name for name in names if name in scene.candidate]
    begin = "they begin here, all that it is made from is finite"
    if len(shown) < len(names) or not names:
        begin = "they begin here or in what the candidate does not show"
    text = f"{int(wrong.sum())} of {y.size} numbers are not finite, the first ({what}) "
    text += f"at {first}: {begin}{_channel(wrong)}"
    yield Finding("not finite", TEXTS["not finite"].format(text), 0.0, False)


def _channel(wrong: np.ndarray) -> str:
    """Whether the same coordinates are wrong at every position, as a weight makes them."""
    rows = wrong.reshape(-1, wrong.shape[-1])
    everywhere = rows.all(axis=0)
    if len(rows) > 1 and everywhere.any() and (rows.any(axis=0) == everywhere).all():
        return "; the same coordinates at every position, as a weight does that is not finite"
    return ""


def not_written(scene: Scene) -> Iterator[Finding]:
    """Zeros at some positions, heads or coordinates, all others right; or everywhere."""
    y, exact = candidate_of(scene), scene.exact
    if not np.isfinite(y[np.isfinite(exact)]).all():
        return
    if not y.any():
        yield Finding("not written", TEXTS["all zero"], 0.0, True)
        return
    y, exact = (by_position(scene.row.name, x) for x in (y, exact))
    zero = (y == 0) & (exact != 0)
    share = zero.mean()
    if not 0 < share < 1 or zero.sum() < ENOUGH:
        return
    rest = np.where(zero, 0.0, y - exact) / units(exact)
    if np.sqrt(np.square(rest).mean()) <= scene.factor * (scene.row.floor or 0.0):
        places = zero.all(axis=(1, 2))
        what = f"{int(zero.sum())} of {zero.size} numbers"
        if places.any() and zero.sum() == zero[places].size:
            few = ", ".join(str(i) for i in np.flatnonzero(places)[:4])
            what = f"positions {few}{' ...' if places.sum() > 4 else ''}"
        yield Finding("not written", TEXTS["not written"].format(what), 0.0, True)


def cut_off(scene: Scene) -> Iterator[Finding]:
    """Truncation, or a narrower format than was said, seen in the very digits."""
    y, exact = candidate_of(scene), scene.exact
    # Scores are minus infinity where they are masked.
    shown = np.isfinite(y) & np.isfinite(exact)
    y, exact = y[shown], exact[shown]
    for dtype in ("bfloat16", "float16"):
        if not (rounded(y, dtype) == y).all():
            continue
        cut, near = truncated(exact, dtype), rounded(exact, dtype)
        differ = cut != near
        if differ.sum() < ENOUGH:
            continue
        if (y == cut)[differ].mean() > SAME_DIGITS:
            yield Finding("truncated", TEXTS["truncated"].format(dtype), 0.0, True)
        elif scene.dtype == "float32" and (y == near)[differ].mean() > SAME_DIGITS:
            text = TEXTS["narrow"].format(dtype, dtype)
            yield Finding("narrow", text, 0.0, True)
        elif scene.dtype == "float32":
            yield from cut_twice(y, exact, dtype, differ)


def cut_twice(y, exact, dtype: str, differ: np.ndarray) -> Iterator[Finding]:
    """Digits cut more than once differ, but all numbers are still too small."""
    error = relative_error(y, exact)
    smaller = (np.abs(y) < np.abs(exact))[differ].mean() > SAME_DIGITS
    if smaller and error < 2.0 ** (2 - FORMATS[dtype].digits):
        yield Finding("truncated", TEXTS["truncated"].format(dtype), error, False)


def is_small(scene: Scene) -> bool:
    """Whether the error is small enough for digits that were cut off."""
    measures, floor = scene.row.measures, scene.row.floor
    return bool(measures and floor and measures.error < SMALL * floor)


def sums_cut_off(scene: Scene) -> Iterator[Finding]:
    """Truncation, seen where the candidate added two of its tensors.

    Other faults can make numbers smaller too; but the residual stream is a plain sum,
    and shows how its result was shortened.  Asked only where an error is small.
    """
    sums = [n for n in scene.candidate if n.endswith((".post_attention", ".output"))]
    dtype = activations_in(scene.dtype)
    for name in sums if is_small(scene) else []:
        sources = made_from(name, scene.config.num_hidden_layers)
        if name not in scene.golden or any(n not in scene.candidate for n in sources):
            continue
        a, b, y = (scene.given(part) for part in (*sources, name))
        cut, near = truncated(a + b, dtype), rounded(a + b, dtype)
        differ = cut != near
        if differ.sum() >= ENOUGH and (y == cut)[differ].mean() > SAME_DIGITS:
            text = TEXTS["truncated"].format(dtype)
            yield Finding("truncated", text, scene.row.measures.error, True)
            return


def other_order(scene: Scene) -> Iterator[Finding]:
    """The right numbers of every position, in another order."""
    y, exact = candidate_of(scene), scene.exact
    floor = scene.row.floor
    y, exact = (x.reshape(*x.shape[:2], -1) for x in (y, exact))
    if not floor or exact.shape[-1] < ENOUGH or not np.isfinite(y).all():
        return
    left = relative_error(np.sort(y, axis=-1), np.sort(exact, axis=-1))
    if left <= scene.factor * floor < 0.1 * relative_error(y, exact):
        yield Finding("other order", TEXTS["other order"], left, True)


def unlike(scene: Scene) -> Iterator[Finding]:
    """No likeness to the golden tensor, though what it is made from is right."""
    kind = kind_of(scene.module)
    names = made_from(scene.row.name, scene.config.num_hidden_layers)
    shown = bool(names) and all(name in scene.candidate for name in names)
    y, exact = candidate_of(scene), scene.exact
    if not shown or not np.isfinite(y).all() or not np.isfinite(exact).all():
        return
    # The right numbers with other signs (absolute values, squares) are not unlike.
    if max(alike(y, exact), alike(np.abs(y), np.abs(exact))) > 0.3:
        return
    if right_somewhere(scene):
        return
    tied = kind == "lm_head" and scene.config.tie_word_embeddings
    if tied:
        yield Finding("head untied", TEXTS["head untied"], 1.0, False)
    elif scene.model is not None and kind in PLAIN_PRODUCTS:
        yield Finding("unlike", TEXTS["unlike"], 1.0, False)


def right_somewhere(scene: Scene) -> bool:
    """Whether another step, or any position, is right: then the weights are.

    A position may have the numbers of another one.
    """
    for row in scene.rows:
        if split_name(row.name)[1] == scene.module and row.verdict == "within":
            return True
    y, exact = (
        directions(x.reshape(x.shape[0] * x.shape[1], -1))
        for x in (candidate_of(scene), scene.exact)
    )
    return bool((einsum("TN,SN->TS", y, exact, "likeness") > SURELY).any())


def directions(x: np.ndarray) -> np.ndarray:
    """Rows of length 1 whose mean is 0; rows of equal numbers are 0."""
    x = x - x.mean(axis=-1, keepdims=True)  # (T, N)
    lengths = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))  # (T, 1)
    return np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)


def alike(y: np.ndarray, exact: np.ndarray) -> float:
    """Cosine of two tensors, the mean of every position taken off."""
    y, exact = (x - x.mean(axis=-1, keepdims=True) for x in (y, exact))
    norms = np.sqrt(np.square(y).sum() * np.square(exact).sum())
    return float(abs((y * exact).sum()) / norms) if norms else 1.0
