"""Each of the usual faults is found at its tensor, and named."""

import numpy as np
import pytest
from backend import backend, random_model
from test_golden_floor import golden

import npllama.golden.diagnose
from npllama.config import config_to_hf
from npllama.golden.compare import compare, judge
from npllama.golden.diagnose import diagnose, unproved_blocks
from npllama.golden.faults import faults
from npllama.golden.floor import floor
from npllama.golden.likeness import left_by
from npllama.golden.report import examine
from npllama.golden.scene import Scene, made_from
from npllama.golden.trace import Trace
from npllama.golden.wrong import Parts, compute

LAYER, NEXT = "prefill/model.layers.0.", "prefill/model.layers.1."
# What is wrong, the first tensor that shows it, and the diagnosis.
FAULTS = {
    "interleaved": (LAYER + "self_attn.q_rope", "interleaved"),
    "rope scaling": (LAYER + "self_attn.q_rope", "rope scaling"),
    "position": (LAYER + "self_attn.q_rope", "position"),
    "scale": (LAYER + "self_attn.attention", "scale"),
    "tile": (LAYER + "self_attn.attention", "tile"),
    "mask": (LAYER + "self_attn.attention", "mask"),
    "eps": (LAYER + "input_layernorm", "eps"),
    "no gain": (NEXT + "post_attention_layernorm", "no gain"),
    "truncated": ("prefill/model.embed_tokens", "truncated"),
    "head tied": ("prefill/lm_head", "head tied"),
    "head untied": ("prefill/lm_head", "head untied"),
    "transposed o_proj": (NEXT + "self_attn.o_proj", "transposed"),
    "transposed gate_proj": (NEXT + "mlp.gate_proj", "transposed"),
    "gate and up": (LAYER + "mlp.gate_proj", "gate and up"),
}
# What lies in the weights cannot be told without them.
WITH_WEIGHTS = {"transposed o_proj", "transposed gate_proj"}
DTYPES = ("float32", "bfloat16")


def made(fault, dtype, seed=7):
    """A model, its trace and floor, and a candidate with one fault."""
    model = random_model(seed, tied=fault == "head untied")
    exact = golden(model)
    candidate = backend(model, exact["tokens"], 20, dtype, fault)
    return model, exact, floor(exact, model, dtype), candidate


def found_in(model, exact, floors, candidate, dtype, weights=True):
    """The first tensor outside, and the diagnosis."""
    result = compare(exact, candidate, floors, dtype)
    if (first := result.first) is None:
        return None, None
    known = model if weights else None
    scene = Scene(exact, candidate, first, dtype, 2.0, model.config, known, result.rows)
    return first.name, diagnose(scene)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_at_its_tensor_and_named(fault, dtype):
    name, key = FAULTS[fault]
    case = made(fault, dtype)
    for weights in (True, False):
        at, finding = found_in(*case, dtype, weights)
        assert at == name
        if weights or fault not in WITH_WEIGHTS:
            assert finding.fault == key, finding.text
        else:
            assert finding is None


# After the turned queries and keys a shift of all of them is invisible, and bfloat16
# hides an epsilon; a head that nobody has cannot be computed.
UNSEEN = {"position", "eps", "truncated", "head untied"}
ONE_BLOCK = ("no gain", "transposed o_proj", "transposed gate_proj")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", sorted(set(FAULTS) - UNSEEN))
def test_logits_alone_and_the_model_tell_the_fault(fault, dtype):
    *case, candidate = made(fault, dtype)
    logits = {name: x for name, x in candidate.items() if name.endswith("lm_head")}
    at, finding = found_in(*case, logits, dtype)
    assert at == "prefill/lm_head"
    assert fault.startswith(finding.fault)
    assert ("(in block 1 alone)" in finding.text) == (fault in ONE_BLOCK)


def test_shift_of_all_positions_cannot_be_seen_in_logits():
    *case, candidate = made("position", "float32")
    logits = {name: x for name, x in candidate.items() if name.endswith("lm_head")}
    assert found_in(*case, logits, "float32") == (None, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fault_between_two_tensors_is_found_with_the_model(dtype):
    *case, candidate = made("interleaved", dtype)
    inner = ("rope", "attention")
    outer = {name: x for name, x in candidate.items() if not name.endswith(inner)}
    at, finding = found_in(*case, outer, dtype)
    assert at == LAYER + "self_attn.o_proj"
    assert finding.fault == "interleaved"


def test_block_that_a_candidate_skips_is_searched_too():
    *case, candidate = made("gate and up", "float32")
    late = {name: x for name, x in candidate.items() if name == NEXT + "output"}
    at, finding = found_in(*case, late, "float32")
    assert at == NEXT + "output"
    assert finding.fault == "gate and up"


@pytest.mark.parametrize("fault", ONE_BLOCK)
def test_fault_of_one_block_is_found_between_the_outputs_of_two(fault):
    *case, candidate = made(fault, "float32")
    shown = {LAYER + "output", NEXT + "output"}
    outputs = {name: x for name, x in candidate.items() if name in shown}
    at, finding = found_in(*case, outputs, "float32")
    assert at == NEXT + "output"
    assert fault.startswith(finding.fault)


def test_output_of_a_block_clears_it_and_its_inner_tensors_do_not():
    model, exact, floors, candidate = made("no gain", "float32")
    name = NEXT + "output"
    row = compare(exact, {name: candidate[name]}, floors, "float32").first
    for shown, blocks in ((LAYER + "output", [1]), (LAYER + "mlp.up_proj", [0, 1])):
        views = {name: candidate[name], shown: candidate[shown]}
        scene = Scene(exact, views, row, "float32", 2.0, model.config, model)
        assert list(unproved_blocks(scene)) == blocks


def test_model_that_is_too_large_is_not_run_per_fault(monkeypatch):
    model, exact, floors, candidate = made("interleaved", "float32")
    logits = {name: x for name, x in candidate.items() if name.endswith("lm_head")}
    monkeypatch.setattr(npllama.golden.diagnose, "WORK", 1e5)
    meta = {"config": config_to_hf(model.config), "floor": {"float32": floors}}
    report = examine(Trace(exact, meta), Trace(logits, {}), model)
    assert report.finding is None
    assert "too large" in " ".join(report.remarks)


def test_truncation_of_activations_alone_is_seen_in_bfloat16():
    *case, candidate = made("truncated", "bfloat16")
    name = "prefill/model.embed_tokens"
    later = {other: x for other, x in candidate.items() if other != name}
    at, finding = found_in(*case, later, "bfloat16")
    assert at == LAYER + "input_layernorm"
    assert finding.fault == "truncated"


def test_bfloat16_taken_for_float32_is_named():
    model, exact, _, candidate = made(None, "bfloat16")
    floors = floor(exact, model, "float32")
    at, finding = found_in(model, exact, floors, candidate, "float32")
    assert at == "prefill/model.embed_tokens"
    assert finding.fault == "narrow" and "bfloat16" in finding.text


@pytest.mark.parametrize("times", [0.25, 8.0])
def test_tensor_times_a_number_is_told_so(times):
    *case, candidate = made(None, "float32")
    candidate[NEXT + "mlp.up_proj"] = candidate[NEXT + "mlp.up_proj"] * times
    at, finding = found_in(*case, candidate, "float32")
    assert at == NEXT + "mlp.up_proj"
    assert finding.fault == "scaled" and f"times {times:g}" in finding.text


def test_nothing_is_the_golden_tensor_times_one():
    *case, candidate = made(None, "float32")
    name = NEXT + "mlp.up_proj"
    for off in (4e-4, -4e-5, 1e-4, 2e-5, -2e-5, 3e-4):
        wrong = candidate | {name: candidate[name] * (1 + off)}
        at, finding = found_in(*case, wrong, "float32")
        assert at == name
        assert finding is None or finding.fault != "scaled"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("at", [[], [1], [0, 1]])
def test_no_suspicion_is_the_right_model(tied, at):
    model, steps = random_model(3, tied=tied), [0, 10, 11, 12]
    tokens = np.arange(12)[None] * 7 % 160
    right = dict(compute(Parts(), model, tokens, steps))
    for fault in faults(model, at):
        if fault.key == "window":
            continue  # as wide as this text, or wider, it hides nothing
        wrong = dict(compute(fault.parts, fault.model or model, tokens, steps))
        same = [np.allclose(wrong[n], x, 0, 1e-6) for n, x in right.items()]
        assert not all(same), fault.text


def test_embedding_that_is_too_large_is_not_taken_for_another_tensor():
    *case, candidate = made(None, "float32")
    name = "prefill/model.embed_tokens"
    candidate[name] = candidate[name] * 30
    at, finding = found_in(*case, candidate, "float32")
    assert at == name
    assert finding.fault == "scaled"


@pytest.mark.parametrize("fault", ["eps", "truncated"])
def test_number_is_not_fitted_to_what_is_just_outside(fault):
    *case, candidate = made(fault, "bfloat16", seed=21)
    attention = {name: x for name, x in candidate.items() if name.endswith("attention")}
    assert found_in(*case, attention, "bfloat16", weights=False)[1] is None
    if fault == "eps":
        assert found_in(*case, attention, "bfloat16")[1].fault == "eps"


def test_what_is_just_outside_is_explained_but_not_proved():
    *case, candidate = made("eps", "bfloat16", seed=21)
    attention = {name: x for name, x in candidate.items() if name.endswith("attention")}
    _, finding = found_in(*case, attention, "bfloat16")
    assert finding.fault == "eps" and not finding.proved


def test_error_where_a_suspicion_is_open_is_not_explained_by_it():
    exact = np.random.default_rng(3).standard_normal((1, 2, 40))
    y, tensor = exact.copy(), exact.copy()
    y[0, 0, 7] += 3
    tensor[0, 0] = np.nan
    name, config = LAYER + "mlp.up_proj", random_model(1).config
    row = judge(name, y, exact, 1e-3, "float32")
    scene = Scene({name: exact}, {name: y}, row, "float32", 2.0, config)
    left, before = left_by(tensor, y, scene)
    assert left == before == 0


def test_two_tensors_in_each_others_place_are_told_so():
    *case, candidate = made(None, "float32")
    k, v = (f"{NEXT}self_attn.{name}_proj" for name in "kv")
    candidate[k], candidate[v] = candidate[v], candidate[k]
    at, finding = found_in(*case, candidate, "float32")
    assert at == k
    assert finding.fault == "swapped" and "v_proj" in finding.text


def test_right_operation_on_wrong_inputs_is_not_blamed():
    model, exact, floors, candidate = made(None, "bfloat16")
    name = LAYER + "post_attention"
    rng = np.random.default_rng(0)
    scale = 0.9 * floors[name]["rms"] * exact[name].std()
    x = exact[name] + scale * rng.standard_normal(exact[name].shape)
    gain = model.layers[0].mlp_norm
    y = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * gain
    candidate |= {name: x, LAYER + "post_attention_layernorm": y}
    floors = floors | {LAYER + "post_attention_layernorm": {"rms": 1e-3}}
    at, finding = found_in(model, exact, floors, candidate, "bfloat16")
    assert at == LAYER + "post_attention_layernorm"
    assert finding.fault == "inputs"


def test_what_no_fault_explains_is_not_explained():
    *case, candidate = made(None, "float32")
    name = NEXT + "mlp.down_proj"
    noise = np.random.default_rng(1).standard_normal(candidate[name].shape)
    candidate[name] = candidate[name] + noise
    assert found_in(*case, candidate, "float32") == (name, None)


def test_other_shapes_get_a_verdict_without_a_diagnosis():
    model, exact, floors, candidate = made(None, "float32")
    name = NEXT + "mlp.down_proj"
    broken = candidate | {name: candidate[name][..., :-1]}
    assert found_in(model, exact, floors, broken, "float32") == (name, None)


@pytest.mark.parametrize("number, said", [(np.nan, "(NaN)"), (np.inf, "(infinite)")])
def test_what_is_not_finite_is_told_as_that_and_where_it_begins(number, said):
    model, exact, floors, candidate = made(None, "float32")
    name = NEXT + "mlp.down_proj"
    wrong = candidate[name].copy()
    wrong[0, 4:, 7] = number
    for weights in (True, False):
        at, finding = found_in(
            model, exact, floors, candidate | {name: wrong}, "float32", weights
        )
        assert at == name and finding.fault == "not finite" and not finding.proved
        assert said in finding.text and "(0, 4, 7): they begin here" in finding.text
    wrong[0, :, 7] = number
    broken = candidate | {name: wrong}
    assert (
        "as a weight does" in found_in(model, exact, floors, broken, "float32")[1].text
    )


def test_tensor_is_made_from_what_the_forward_pass_says():
    exact = golden(random_model(8))
    for name in exact:
        if "/" not in name or name.endswith("embed_tokens"):
            continue
        sources = made_from(name, 2)
        order = list(exact)
        assert sources and all(order.index(s) < order.index(name) for s in sources)
    assert made_from("prefill/model.norm", 2) == ["prefill/model.layers.1.output"]
    assert made_from("cache.k", 2) == made_from("prefill/model.embed_tokens", 2) == []


def test_verdict_needs_no_more_than_the_tensor():
    exact = np.random.default_rng(2).standard_normal((1, 3, 4))
    row = judge("prefill/model.norm", exact, exact, None, "float32")
    assert row.verdict == "unknown" and row.measures.error == 0
