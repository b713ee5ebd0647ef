"""What went wrong: the usual faults, tried one after the other.

Each suspicion about the first tensor outside says what the tensor would be (`suspects`).
It is *likely* if the distance from there to the candidate is within the floor again, or
falls to a quarter or less, and *proved* if both; of several, the closest counts.  One
that was fitted to the candidate comes close to anything a little: only the quarter
counts for it.

Faults that lie between two tensors that the candidate does not have can be told only
with the model at hand: then the whole of every model of `faults` is run up to the
tensor.  A backend that shows nothing but logits can be diagnosed in this way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npllama.golden.compare import LEANS_DOWN, relative_error
from npllama.golden.faults import (
    TEXTS,
    Fault,
    faults,
    faults_of_one_block,
    run_fault,
)
from npllama.golden.floor import split_name, steps_of
from npllama.golden.precision import FORMATS, activations_in, rounded, truncated
from npllama.golden.suspects import (
    Scene,
    Suspicion,
    candidate_of,
    kind_of,
    made_from,
    suspicions,
)

# A whole model is run per suspicion: up to so many products of weight and position.
WORK = 5e9
LIKELY = 0.25
# Near the limit a suspicion must at least make it better, and not by chance.
BETTER = 0.6
FITTED = ("other gain", "scaled")
# The share of numbers that must agree to the last digit.
SAME_DIGITS = 0.9
# So many numbers have to agree with a suspicion.
ENOUGH = 16


class Finding(NamedTuple):
    """A suspicion that the candidate's numbers confirm."""

    fault: str
    text: str
    left: float  # relative error that remains under it
    proved: bool


#  ---- numbers that were cut off ----------------------------------------------


def cut_off(scene: Scene) -> Finding | None:
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
            return Finding("truncated", TEXTS["truncated"].format(dtype), 0.0, True)
        if scene.dtype == "float32" and (y == near)[differ].mean() > SAME_DIGITS:
            text = TEXTS["narrow"].format(dtype, dtype)
            return Finding("narrow", text, 0.0, True)
        # Cut more than once the digits are others, but still all numbers are smaller.
        error = relative_error(y, exact)
        small = scene.dtype == "float32" and error < 2.0 ** (2 - FORMATS[dtype].digits)
        if small and (np.abs(y) < np.abs(exact))[differ].mean() > SAME_DIGITS:
            return Finding("truncated", TEXTS["truncated"].format(dtype), error, False)
    return None


def sums_cut_off(scene: Scene) -> Finding | None:
    """Truncation, seen where the candidate added two of its tensors.

    Other faults can make numbers smaller too; but the residual stream is a plain sum,
    and shows how its result was shortened.  Asked only where an error is small.
    """
    measures, floor = scene.row.measures, scene.row.floor
    if not (measures and floor and measures.error < 10 * floor):
        return None
    for name in scene.candidate:
        if (
            not name.endswith((".post_attention", ".output"))
            or name not in scene.golden
        ):
            continue
        sources = made_from(name, scene.config.num_hidden_layers)
        if any(source not in scene.candidate for source in sources):
            continue
        a, b, y = (scene.given(part) for part in (*sources, name))
        dtype = activations_in(scene.dtype)
        cut, near = truncated(a + b, dtype), rounded(a + b, dtype)
        differ = cut != near
        if differ.sum() >= ENOUGH and (y == cut)[differ].mean() > SAME_DIGITS:
            text = TEXTS["truncated"].format(dtype)
            return Finding("truncated", text, measures.error, True)
    return None


def leaning(scene: Scene) -> Finding | None:
    """Truncation, seen in what many errors add up to."""
    row = scene.row
    if row.note != LEANS_DOWN or row.measures is None:
        return None
    text = TEXTS["truncated"].format(activations_in(scene.dtype))
    return Finding("truncated", text, row.measures.error, False)


#  ---- the verdict ------------------------------------------------------------


def left_by(suspicion: Suspicion, y: np.ndarray, exact: np.ndarray):
    """Relative error that remains, and that before, where all three are finite.

    A suspicion that leaves numbers open (NaN) explains none of the error in them.
    """
    tensor = suspicion.tensor
    if tensor.shape != y.shape:
        return math.inf, math.inf
    shown = np.isfinite(y) & np.isfinite(exact) & np.isfinite(tensor)
    if shown.sum() < min(ENOUGH, exact.size / 2):
        return math.inf, math.inf
    before = relative_error(y[shown], exact[shown])
    return relative_error(y[shown], tensor[shown]), before


def work(scene: Scene) -> int:
    """Products of weight and position in one run of the model."""
    model = scene.model
    weights = sum(w.size for layer in model.layers for w in layer if w is not None)
    return (weights + model.lm_head.size) * scene.golden["tokens"].size


def too_large(scene: Scene) -> bool:
    """Whether the model cannot be run once per fault, in reasonable time."""
    return work(scene) > WORK


def from_the_whole(scene: Scene) -> Finding | None:
    """What the model itself shows, run up to the tensor once per fault.

    First with a wrong weight in every block that may have it, as a backend would that
    reads all blocks alike; then, where time allows, in each of them alone.
    """
    names = [step.name for step in steps_of(scene.golden)]
    if scene.model is None or scene.step not in names or too_large(scene):
        return None
    blocks = unproved_blocks(scene)
    found = closest(scene, shown_by(scene, faults(scene.model, blocks)))
    if found is None and 1 < len(blocks) <= WORK / work(scene):
        alone = faults_of_one_block(scene.model, blocks)
        found = closest(scene, shown_by(scene, alone))
    return found


def shown_by(scene: Scene, models: Iterator[Fault]) -> Iterator[Suspicion]:
    """The tensor that each faulty model computes."""
    steps = steps_of(scene.golden)
    last = [step.name for step in steps].index(scene.step)
    tokens = np.asarray(scene.golden["tokens"])
    for fault in models:
        tensor = run_fault(fault, tokens, steps[: last + 1], scene.module)
        if tensor is not None:
            yield Suspicion(fault.key, fault.text, tensor)


def unproved_blocks(scene: Scene) -> range:
    """Blocks whose weights may be wrong, up to that of the tensor.

    What the candidate shows to be right clears all blocks before it, and its own if it
    is the output of that.
    """
    L = scene.config.num_hidden_layers
    last, first = block_of(scene.module, L - 1), 0
    for name in scene.golden:
        if name == scene.row.name:
            break
        if name in scene.candidate:
            module = split_name(name)[1]
            whole = kind_of(module) == "output"
            first = max(first, block_of(module, 0) + whole)
    return range(first, last + 1)


def block_of(module: str, otherwise: int) -> int:
    """Number of the block that a module is in."""
    words = module.split(".")
    return int(words[2]) if words[:2] == ["model", "layers"] else otherwise


def closest(scene: Scene, found: Iterator[Suspicion]) -> Finding | None:
    """The suspicion that leaves least, if it explains anything.

    One that has a number fitted for every coordinate fits whatever there is: it counts
    only if no other does.
    """
    y, exact = candidate_of(scene), scene.exact
    limit = scene.factor * (scene.row.floor or 0.0)
    best: dict[bool, Finding] = {}
    for suspicion in found:
        left, before = left_by(suspicion, y, exact)
        fitted = suspicion.fault in FITTED
        # Anything is nearer than the exact tensor to one that is far too large.
        explained = left <= LIKELY * min(before, 1.0)
        near = left <= min(limit, BETTER * before) and not fitted
        if left >= before or not (explained or near):
            continue
        # Two that leave as little are told apart by their order.
        if fitted not in best or left < 0.9 * best[fitted].left:
            proved = explained and left <= limit
            best[fitted] = Finding(suspicion.fault, suspicion.text, left, proved)
    return best.get(False, best.get(True))


def diagnose(scene: Scene) -> Finding | None:
    """Say which of the usual faults explains the first tensor outside.

    Parameters
    ----------
    scene : Scene

    Returns
    -------
    Finding, or None if none of them does
    """
    try:
        finding = cut_off(scene) or sums_cut_off(scene)
        finding = finding or closest(scene, suspicions(scene)) or leaning(scene)
    except ValueError:  # another shape: nothing can be computed with it
        return None
    sources = made_from(scene.row.name, scene.config.num_hidden_layers)
    missing = any(name not in scene.candidate for name in sources)
    guessed = finding is None or not finding.proved or finding.fault in FITTED
    if finding is None or (missing and guessed):
        whole = from_the_whole(scene)
        if whole and (finding is None or whole.proved or whole.left < finding.left):
            finding = whole
    if finding is None and kind_of(scene.module) == "lm_head":
        return untied(scene)
    return finding


def untied(scene: Scene) -> Finding | None:
    """Logits without any likeness to the golden ones, the norm before them right."""
    measures = scene.row.measures
    norm = f"{scene.step}/model.norm"
    alike = measures is None or abs(measures.cosine) > 0.5
    if alike or norm not in scene.candidate or not scene.config.tie_word_embeddings:
        return None
    return Finding("head untied", TEXTS["head untied"], measures.error, False)
