"""A hundred faults, and what they are called: the right name, or none."""

import math

import faulty
import faulty_blind
import numpy as np
import pytest
from backend import random_model
from profiles import THOROUGH
from test_golden_floor import golden

from npllama.golden.compare import compare
from npllama.golden.diagnose import diagnose, explain
from npllama.golden.floor import floor
from npllama.golden.likeness import explained, left_by, limit_of
from npllama.golden.scene import Scene, candidate_of

PROMPT = 20
# A plain run takes every twelfth fault, the profile `ci` all.
CHOSEN = sorted(faulty.FAULTS) if THOROUGH else sorted(faulty.FAULTS)[::12]


@pytest.fixture(scope="module")
def traced():
    """A model, its trace with the scores, and its floors."""
    model = random_model(7, H=6, K=3, D=8, E=48, L=3)
    exact = golden(model, 7, scores=True)
    dtypes = ("float32", "bfloat16")
    return model, exact, {dtype: floor(exact, model, dtype) for dtype in dtypes}


def scene_of(traced, change, dtype, ends=()):
    """The first tensor outside of a faulty run, or None if all are within."""
    model, exact, floors = traced
    tokens = exact["tokens"]
    with np.errstate(all="ignore"):
        candidate = faulty.run(model, tokens, PROMPT, dtype, change)
    shown = {n: x for n, x in candidate.items() if not ends or n.endswith(ends)}
    result = compare(exact, shown, floors[dtype], dtype)
    if result.first is None:
        return None
    config, rows = model.config, result.rows
    return Scene(exact, shown, result.first, dtype, 2.0, config, model, rows)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", CHOSEN)
def test_fault_gets_its_own_name_or_none(traced, fault, dtype):
    change, keys = faulty.FAULTS[fault]
    if fault.endswith("in float32") and dtype != "float32":
        return  # right in its own format
    for view, ends in faulty.VIEWS.items():
        scene = scene_of(traced, change, dtype, ends)
        finding = scene and diagnose(scene)
        assert faulty.is_true(fault, keys, scene, finding), (view, finding)


@pytest.fixture(scope="module")
def unseen():
    """The same of a model and of faults that the names were not tuned on."""
    model = random_model(23, H=8, K=2, D=12, E=64, L=3)
    exact = golden(model, 23, scores=True)
    dtypes = ("float32", "bfloat16") if THOROUGH else ("float32",)
    return model, exact, {dtype: floor(exact, model, dtype) for dtype in dtypes}


@pytest.mark.parametrize(
    "fault",
    sorted(faulty_blind.FAULTS) if THOROUGH else ["logits: absolute", "reversed mask"],
)
def test_fault_that_nobody_foresaw_gets_no_wrong_name(unseen, fault):
    change, keys = faulty_blind.FAULTS[fault]
    for dtype in unseen[2]:
        for view, ends in faulty.VIEWS.items():
            scene = scene_of(unseen, change, dtype, ends)
            finding = scene and diagnose(scene)
            assert faulty.is_true(fault, keys, scene, finding), (dtype, view, finding)


# What the diagnosis has to name, and where it shows.
NAMED = {
    "bend: gelu": "activation",
    "bend: tanh gelu": "activation",
    "bend: relu": "activation",
    "logits: log-probabilities": "log-probabilities",
    "logits: ids up one": "shifted ids",
    "logits: one position late": "shifted positions",
    "norm: eps outside": "eps outside",
    "norm: l2 norm": "l2 norm",
    "exponent D - 2": "rope exponent",
    "1 / sqrt(E)": "scale of width",
    "window 4": "window",
    "first key hidden": "hidden",
    "decode from 0": "position restarts",
    "positions unwritten": "not written",
    "int8 rows": "quantised",
    "int4 rows": "quantised",
    "other wv": "unlike",
    "nan weight": "not finite",
}


@pytest.mark.parametrize("fault", NAMED)
def test_fault_is_named_where_all_is_shown(traced, fault):
    change, _ = faulty.FAULTS[fault]
    finding = diagnose(scene_of(traced, change, "float32"))
    assert finding is not None and finding.fault == NAMED[fault]


@pytest.mark.parametrize(
    "fault",
    [
        "logits: all of the last position",
        "logits: all of the first position",
        "gate of other positions",
        "o of the last position",
        "queries of the first position",
    ],
)
@pytest.mark.parametrize("steps", [("prefill",), ("prefill", "decode")])
def test_weights_are_not_others_where_a_position_has_right_numbers(
    traced, fault, steps
):
    change, keys = faulty_blind.FAULTS[fault]
    scene = scene_of(traced, change, "float32")
    candidate = {n: x for n, x in scene.candidate.items() if n.startswith(steps)}
    rows = tuple(row for row in scene.rows if row.name in candidate)
    finding = diagnose(scene._replace(candidate=candidate, rows=rows))
    assert finding is None or finding.fault in keys


@pytest.mark.parametrize("fault", ["half of o", "half of down"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_share_of_a_sum_is_called_one(traced, fault, dtype):
    change, _ = faulty_blind.FAULTS[fault]
    finding = diagnose(scene_of(traced, change, dtype))
    assert finding.fault == "share" and "share 1 of 2 of" in finding.text


@pytest.mark.parametrize("fault", ["block left out", "logits: zero"])
def test_zeros_are_not_called_a_multiple(traced, fault):
    change, _ = faulty_blind.FAULTS[fault]
    finding = diagnose(scene_of(traced, change, "float32"))
    assert finding.fault == "not written" and finding.text.startswith("all numbers")


def test_name_that_the_prefill_refutes_is_not_given_but_told():
    model = random_model(7)
    exact = golden(model, 7)
    floors = floor(exact, model, "float32")
    change, _ = faulty.FAULTS["decode at 0"]
    candidate = faulty.run(model, exact["tokens"], PROMPT, "float32", change)
    result = compare(exact, candidate, floors, "float32")
    assert result.first.name == "decode.0/model.layers.0.self_attn.q_rope"
    scene = Scene(
        exact, candidate, result.first, "float32", 2.0, model.config, None, result.rows
    )
    said = explain(scene)
    assert said.finding.fault == "position restarts"
    assert "RoPE is not applied" in said.refuted


def test_an_operation_is_not_right_for_inputs_that_are_right(traced):
    for fault in ("window 7", "fifth key hidden", "nan weight"):
        change, _ = faulty.FAULTS[fault]
        finding = diagnose(scene_of(traced, change, "bfloat16"))
        assert finding is not None and finding.fault != "inputs"


@pytest.mark.parametrize("by", [0.985, 0.98, 0.975, 0.97])
def test_what_predicts_no_more_than_the_right_operation_explains_nothing(traced, by):
    """As a mask does that hides nothing of this text, where scores are a little short."""

    def short(parts):
        parts.scale = lambda config: by / math.sqrt(config.head_dim)

    scene = scene_of(traced, short, "bfloat16")
    assert scene.row.name == "prefill/model.layers.0.self_attn.scores"
    finding = diagnose(scene)
    assert finding is None or finding.fault == "scaled"


def test_near_its_limit_an_error_has_a_name_only_if_no_more_than_a_floor_is_left(
    traced,
):
    """With the margin of 2, half of so small an error fits by chance."""
    model, exact, floors = traced
    candidate = {n: np.array(x) for n, x in exact.items() if n.endswith("/lm_head")}
    logits = candidate["prefill/lm_head"]
    error = np.random.default_rng(3).standard_normal(logits.shape[-1])
    for size in np.linspace(0.01, 1, 100):
        logits[:, 11] = exact["prefill/lm_head"][:, 11] + size * error * logits.std()
        first = compare(exact, candidate, floors["bfloat16"], "bfloat16").first
        if first and first.evenness.spot_floors > 2.3:
            break
    assert first.evenness.spot == (11, 0) and first.evenness.spot_floors < 3
    scene = Scene(exact, candidate, first, "bfloat16", 2.0, model.config, model)
    left, before = left_by(exact["prefill/lm_head"], candidate_of(scene), scene)
    assert left == before
    limit = limit_of(scene, before)
    assert math.isclose(limit * first.evenness.spot_floors, 2 * before)
    # 1.2 floors are left, then 0.8
    assert explained("rope theta", "", 0.6 * limit, before, limit, 2.0) is None
    assert not explained("rope theta", "", 0.4 * limit, before, limit, 2.0).proved
