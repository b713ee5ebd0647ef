"""The noise floor holds for right backends, and an error of three floors is caught."""

from dataclasses import replace

import numpy as np
import pytest
from backend import SCALED, backend, random_model
from hypothesis import example, given
from hypothesis import strategies as st

from npllama.config import Rope
from npllama.golden.compare import compare
from npllama.golden.floor import (
    distance,
    emulate,
    floor,
    floors_of,
    steps_of,
    ways,
)
from npllama.golden.record import Wanted, run

PROMPT, NEW = 20, 2
SHAPES = {
    "MHA": {"H": 3, "K": 3, "D": 16, "E": 40},
    "GQA": {"H": 6, "K": 2, "D": 8, "E": 48},
    "MQA": {"H": 4, "K": 1, "D": 12, "E": 32},
}
HALVES = ("float32", "bfloat16", "float16")


def golden(model, seed=0, scores=False, prompt=PROMPT, new=NEW, rows=1):
    """A trace in memory."""
    found = {}
    V = model.config.vocab_size
    tokens = np.random.default_rng(seed).integers(0, V, (rows, prompt))
    wanted = Wanted(new_tokens=new, scores=scores)
    run(model, tokens, wanted, lambda name, x: found.update({name: np.array(x)}))
    return found


def relative(y, exact):
    return np.sqrt(np.square(y - exact).sum() / np.square(exact).sum())


ROPES = {
    "default": Rope(),
    "linear": Rope("linear", 1e4, 4.0),
    "llama3": SCALED,
    "yarn": Rope("yarn", 1e4, 4.0, 16),
    "dynamic": Rope("dynamic", 1e4, 4.0),
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_emulated_float32_is_the_forward_pass_up_to_rounding(shape, rope):
    model = random_model(1, rope=ROPES[rope], **SHAPES[shape])
    model = model._replace(config=replace(model.config, max_position_embeddings=16))
    exact = golden(model, scores=True)
    steps = steps_of(exact)
    bounds = [0, *(step.end for step in steps)]
    seen = 0
    for module, tensors in emulate(model, exact["tokens"], bounds, "float32"):
        y = tensors[0][:, :, :PROMPT, :PROMPT] if "scores" in module else None
        y = tensors[0][:, :PROMPT] if y is None else y
        wanted = exact[f"prefill/{module}"]
        shown = np.isfinite(wanted)
        assert relative(y.reshape(wanted.shape)[shown], wanted[shown]) < 3e-6, module
        seen += 1
    assert seen == 3 + 16 * len(model.layers)


def test_biases_are_part_of_the_emulation():
    plain = random_model(2)
    rng = np.random.default_rng(3)

    def biased(layer):
        ends = {"bq": layer.wq, "bk": layer.wk, "bv": layer.wv}
        ends |= {"b_gate": layer.w_gate, "b_up": layer.w_up}
        made = {n: rng.standard_normal(w.shape[:-1]) for n, w in ends.items()}
        rows = {"bo": layer.wo, "b_down": layer.w_down}
        made |= {n: rng.standard_normal(len(w)) for n, w in rows.items()}
        return layer._replace(**made)

    model = plain._replace(layers=tuple(biased(layer) for layer in plain.layers))
    exact = golden(model)
    for name, found in floor(exact, model, "float32").items():
        assert found["rms"] < 1e-5, name


def test_floor_grows_as_digits_go():
    model = random_model(4)
    exact = golden(model)
    kinds = ("float32", "float16", "bfloat16", "float8_e4m3fn")
    floors = [floor(exact, model, dtype) for dtype in kinds]
    assert all(set(found) == set(exact) - {"tokens"} for found in floors)
    for name in ("prefill/lm_head", "decode.1/model.layers.1.output", "cache.k"):
        sizes = [found[name]["rms"] for found in floors]
        assert sizes == sorted(sizes) and sizes[0] > 0
    # Exact in float32: nothing is computed.
    assert floors[0]["prefill/model.embed_tokens"]["rms"] == 0


def test_ways_to_compute_differ():
    model = random_model(5)
    tokens = np.arange(12)[None]
    for dtype in HALVES:
        runs = dict(emulate(model, tokens, [0, 12], dtype))["lm_head"]
        assert len(runs) == len(ways(dtype))
        assert len({run.tobytes() for run in runs}) == len(runs)


def test_floor_of_a_selection_is_that_of_the_whole():
    model = random_model(6)
    exact = golden(model)
    kept = {n: x for n, x in exact.items() if n == "tokens" or "o_proj" in n}
    whole = floor(exact, model, "bfloat16")
    assert floor(kept, model, "bfloat16") == {n: whole[n] for n in kept if "/" in n}


def test_elements_made_from_few_numbers_do_not_count_as_many():
    exact, y = np.ones((1, 1, 36)), np.full((1, 1, 36), 1.25)
    for stream, raised in ((4, 1 + 3 / 2), (100, 1 + 3 / 6)):
        found = floors_of({"prefill/mlp.up_proj": distance([y], exact, stream)})
        assert found["prefill/mlp.up_proj"]["rms"] == pytest.approx(0.25 * raised)


def test_no_floor_rests_on_luck_but_exact_numbers_stay_exact():
    exact = np.ones((1, 1, 36))
    lucky, right = (distance([exact + e], exact, 36) for e in (1e-9, 0.0))
    found = floors_of({"prefill/model.norm": lucky, "prefill/lm_head": right})
    assert found["prefill/model.norm"]["rms"] == pytest.approx(2 * 2**-24)
    assert found["prefill/lm_head"]["rms"] == 0


def test_trace_without_tokens_has_no_floor():
    with pytest.raises(ValueError, match="no tokens"):
        steps_of({"prefill/lm_head": np.zeros((1, 2, 3))})
    with pytest.raises(ValueError, match="fewer tokens"):
        names = ["prefill/lm_head", "decode.0/lm_head", "decode.1/lm_head"]
        steps_of(dict.fromkeys(names) | {"tokens": np.zeros((1, 2))})


def drawn(seed):
    """A random model, its trace, floor and a right candidate."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[rng.choice(list(SHAPES))]
    rope = ROPES[rng.choice(["default", "llama3", "linear"])]
    model = random_model(seed, tied=bool(rng.integers(2)), rope=rope, **shape)
    exact = golden(model, seed, prompt=int(rng.integers(2, 40)))
    dtype = str(rng.choice(HALVES))
    candidate = backend(model, exact["tokens"], exact["tokens"].shape[1] - NEW, dtype)
    return rng, exact, floor(exact, model, dtype), candidate, dtype


@given(seed=st.integers(0, 2**32))
@example(seed=13)
def test_right_backend_is_within_the_floor(seed):
    _, exact, floors, candidate, dtype = drawn(seed)
    assert compare(exact, candidate, floors, dtype).first is None


@given(seed=st.integers(0, 2**32))
def test_error_of_three_floors_is_caught_at_its_tensor(seed):
    rng, exact, floors, candidate, dtype = drawn(seed)
    names = [name for name in candidate if "/" in name and floors[name]["rms"] > 0]
    name = names[rng.integers(len(names))]
    noise = rng.standard_normal(exact[name].shape)
    size = np.sqrt(np.square(exact[name]).sum() / np.square(noise).sum())
    candidate[name] = exact[name] + 3 * floors[name]["rms"] * size * noise
    first = compare(exact, candidate, floors, dtype).first
    assert first is not None and first.name == name
