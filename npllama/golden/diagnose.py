"""The diagnosis: the usual faults, tried one after the other.

Each suspicion about the first tensor outside predicts that tensor (`suspects`), and
`likeness` decides whether the prediction explains the candidate.  If a fault lies
between two tensors that the candidate does not have, the model is needed: then every
model of `faults` is run as a whole.  In this way even a backend that shows only logits
can be diagnosed.

A wrong name is worse than no name.  So a name is given only if

* no other tensor of the file refutes it: the same tensor in other steps, and, where the
  whole model was run, every tensor that the candidate shows;
* no other fault explains the numbers as well;
* for a fault with a number fitted to the candidate, nothing but rounding is left;
* of an error near its limit, no more than one floor is left.

The verdict lists the faults that the first two conditions ruled out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from npllama.golden.compare import aligned
from npllama.golden.faults import faults, faults_of_one_block
from npllama.golden.floor import split_name, steps_of
from npllama.golden.likeness import BETTER, explained, left_by, limit_of
from npllama.golden.scene import Scene, candidate_of, kind_of, made_from
from npllama.golden.signs import (
    Finding,
    cut_off,
    not_finite,
    not_written,
    other_order,
    sums_cut_off,
    unlike,
)
from npllama.golden.slips import FITTED, Fault
from npllama.golden.suspects import Suspicion, suspicions
from npllama.golden.wrong import compute

# A whole model is run per suspicion, if that takes at most this many products of a
# weight and a position.
WORK = 5e9
# A fault that leaves this many times the error of another does not compete with it.
CLEARLY = 2.0
# An operation is called right for wrong inputs only if these are this many floors off.
OFF = 0.75
# Faults that fit almost anything: they count only if no other explains the tensor.
VAGUE = (*FITTED, "hidden")


# These describe the tensor itself, so no other tensor can refute them.
DESCRIPTIONS = ("scaled", "swapped", "inputs")
# Faults of one part of the model: equally close ones are named together.
FAMILIES = {
    "eps outside": "eps",
    "position in decode": "position",
    "position restarts": "position",
    "window": "mask",
    "no mask": "mask",
    "hidden": "mask",
    "scale twice": "scale",
    "scale of width": "scale",
}
# At most this many faults are listed.
MOST = 3


class Diagnosis(NamedTuple):
    """The fault, if exactly one is left, and the faults that were ruled out."""

    finding: Finding | None
    refuted: tuple[str, ...] = ()  # explained this tensor, but not others
    tied: tuple[str, ...] = ()  # explain it equally well


#  ---- from the operation that went wrong ----------------------------------------------


def recomputed(scene: Scene) -> Iterator[tuple[Finding, bool]]:
    """Every suspicion that explains the tensor, and whether other steps refute it.

    A fault must explain it better than the right operation on the same inputs does: a
    window wider than the text, for one, predicts the same numbers.
    """
    y, every = candidate_of(scene), list(suspicions(scene))
    right = left_by_right_operation(scene, y, every)
    for suspicion in every:
        if suspicion.fault == "inputs" and not inputs_are_off(scene):
            continue
        with np.errstate(all="ignore"):
            left, before = left_by(suspicion.tensor(scene), y, scene)
        if suspicion.fault != "inputs" and left > BETTER * right:
            continue
        limit = limit_of(scene, before)
        words = suspicion.fault, suspicion.text
        finding = explained(*words, left, before, limit, scene.factor)
        if finding:
            describes = suspicion.fault in DESCRIPTIONS
            yield finding, not describes and refuted_elsewhere(scene, suspicion, limit)


def left_by_right_operation(
    scene: Scene, y: np.ndarray, every: list[Suspicion]
) -> float:
    """Error that is left if only the inputs are wrong; infinite if that is not known."""
    right = [suspicion for suspicion in every if suspicion.fault == "inputs"]
    with np.errstate(all="ignore"):
        left = [left_by(one.tensor(scene), y, scene)[0] for one in right]
    return min(left, default=math.inf)


def inputs_are_off(scene: Scene) -> bool:
    """Whether something that the tensor is made from is missing or near its limit."""
    names = made_from(scene.row.name, scene.config.num_hidden_layers)
    if any(name not in scene.candidate for name in names):
        return False
    closeness = [scene.closeness.get(name, 1.0) for name in names]
    return not closeness or max(closeness) >= OFF


def refuted_elsewhere(scene: Scene, suspicion: Suspicion, limit: float) -> bool:
    """Whether the same tensor in another step is not what the suspicion makes of it."""
    for step in steps_of(scene.golden):
        there = scene.at(step.name)
        if step.name == scene.step or there.row.name not in scene.candidate:
            continue
        if there.row.name not in scene.golden:
            continue
        there = there._replace(row=there.row._replace(evenness=None))
        if refutes(there, suspicion, limit):
            return True
    return False


def refutes(there: Scene, suspicion: Suspicion, limit: float) -> bool:
    """Whether a tensor speaks against a suspicion that should change it."""
    names = made_from(there.row.name, there.config.num_hidden_layers)
    later = order_of(there.golden, there.row.name) > order_of(there.golden, there.first)
    if later and any(name not in there.candidate for name in names):
        return False  # its inputs went wrong, and are not known
    try:
        y = candidate_of(there)
    except ValueError:
        return False
    with np.errstate(all="ignore"):
        wrong = suspicion.tensor(there)
        left, before = left_by(wrong, y, there)
        said, _ = left_by(wrong, there.exact, there)
    # Where the suspicion changes nothing, an error does not speak against it.
    return not (left <= limit or left <= BETTER * before or said <= limit)


def order_of(golden, name: str) -> int:
    """Place of a tensor in the order of execution."""
    return list(golden).index(name)


#  ---- from the whole model --------------------------------------------------------------


def work(scene: Scene) -> int:
    """Products of weight and position in one run of the model."""
    model = scene.model
    weights = sum(w.size for layer in model.layers for w in layer if w is not None)
    return (weights + model.lm_head.size) * scene.golden["tokens"].size


def too_large(scene: Scene) -> bool:
    """Whether the model cannot be run once per fault, in reasonable time."""
    return work(scene) > WORK


def from_the_whole(scene: Scene) -> Iterator[tuple[Finding, bool]]:
    """What the model itself shows, run once per fault.

    First with a wrong weight in every block that may have it, as in a backend that
    reads all blocks in the same way; then, where time allows, in each of them alone.
    """
    names = [step.name for step in steps_of(scene.golden)]
    if scene.model is None or scene.step not in names or too_large(scene):
        return
    blocks = unproved_blocks(scene)
    found = list(shown_by(scene, faults(scene.model, blocks)))
    yield from found
    if not found and 1 < len(blocks) <= WORK / work(scene):
        yield from shown_by(scene, faults_of_one_block(scene.model, blocks))


def shown_by(scene: Scene, wrong: Iterator[Fault]) -> Iterator[tuple[Finding, bool]]:
    """Every faulty model that explains the tensor, and whether others refute it."""
    y = candidate_of(scene)
    for fault in wrong:
        tensors = run_fault(scene, fault)
        with np.errstate(all="ignore"):
            left, before = left_by(tensors.get(scene.row.name), y, scene)
            limit = limit_of(scene, before)
            words = fault.key, fault.text
            finding = explained(*words, left, before, limit, scene.factor)
            if finding:
                yield finding, refuted_by_any(scene, tensors)


def run_fault(scene: Scene, fault: Fault) -> dict[str, np.ndarray]:
    """Those tensors of a faulty model that the candidate shows, too."""
    steps = steps_of(scene.golden)
    tokens = np.asarray(scene.golden["tokens"])
    tokens = tokens.reshape(-1, tokens.shape[-1])
    bounds = [0, *(step.end for step in steps)]
    found = {}
    with np.errstate(all="ignore"):
        for module, y in compute(
            fault.parts, fault.model or scene.model, tokens, bounds
        ):
            for step in steps:
                name = f"{step.name}/{module}"
                if name in scene.candidate and name in scene.golden:
                    part = y[:, step.first : step.end]
                    last = scene.golden[name].shape[1]
                    found[name] = part[:, -last:] if module == "lm_head" else part
    return found


def refuted_by_any(scene: Scene, tensors: dict[str, np.ndarray]) -> bool:
    """Whether a tensor of the candidate is nearer to the golden one than to the fault's."""
    for name, tensor in tensors.items():
        there = scene._replace(row=scene.row._replace(name=name, evenness=None))
        try:
            y = aligned(name, scene.candidate[name], there.exact).astype(np.float64)
        except ValueError:
            continue
        left, before = left_by(tensor, y, there)
        floors = 4 * scene.factor * scene.floors.get(name, scene.row.floor or 0.0)
        if not (left <= floors or left <= BETTER * before):
            return True
    return False


def unproved_blocks(scene: Scene) -> range:
    """Blocks whose weights may be wrong, up to that of the tensor.

    A tensor that is right in the candidate clears all blocks before its own, and its
    own block if it is that block's output.
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


#  ---- the verdict --------------------------------------------------------------------


def ranked(found: list[tuple[Finding, bool]]) -> Diagnosis:
    """One fault of all that explain the tensor, or none.

    Refuted ones are out, and vague ones count only if no other does.  Of the rest the
    closest is named, unless another is as close.  Two faults of one family (in the same
    part of the model) are then named together; others are not named at all.
    """
    refuted = tuple(dict.fromkeys(f.text for f, out in found if out))
    left = [f for f, out in found if not out]
    clear = [f for f in left if f.fault not in VAGUE]
    left = sorted(clear or left, key=lambda f: f.left)
    if not left:
        return Diagnosis(None, refuted)
    best = left[0]
    close = [f for f in left if f.left <= CLEARLY * best.left]
    texts = tuple(dict.fromkeys(f.text for f in close))
    families = {FAMILIES.get(f.fault, f.fault) for f in close}
    if len(families) > 1:
        return Diagnosis(None, refuted, texts)
    key = best.fault if all(f.fault == best.fault for f in close) else families.pop()
    said = "; or ".join(texts[:MOST])
    return Diagnosis(best._replace(fault=key, text=said), refuted)


def plain(detector: Callable) -> Callable:
    """A detector of signs, whose findings nothing else can refute."""

    def detect(scene: Scene) -> Iterator[tuple[Finding, bool]]:
        yield from ((finding, False) for finding in detector(scene))

    return detect


# Asked in this order; the first that finds anything decides.
DETECTORS: tuple[Callable, ...] = (
    plain(cut_off),
    plain(not_written),
    plain(sums_cut_off),
    recomputed,
    plain(not_finite),
    plain(other_order),
)


def explain(scene: Scene) -> Diagnosis:
    """Say which fault explains the first tensor outside, and which do not.

    Parameters
    ----------
    scene : Scene
    """
    try:
        candidate_of(scene)
    except ValueError:  # another shape: nothing can be computed with it
        return Diagnosis(None)
    found: list[tuple[Finding, bool]] = []
    for detector in DETECTORS:
        found += detector(scene)
        if any(not out for _, out in found):
            break
    sources = made_from(scene.row.name, scene.config.num_hidden_layers)
    missing = any(name not in scene.candidate for name in sources)
    if missing or not found:
        whole = list(from_the_whole(scene))
        found = [pair for pair in found if pair[0].proved or not whole] + whole
    return ranked(found or [(finding, False) for finding in unlike(scene)])


def diagnose(scene: Scene) -> Finding | None:
    """The fault that explains the first tensor outside, if one does and no other.

    Parameters
    ----------
    scene : Scene
    """
    return explain(scene).finding
