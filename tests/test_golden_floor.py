"""The noise floor holds for right backends, and an error of three floors is caught."""

import json
from dataclasses import replace

import numpy as np
import pytest
from backend import SCALED, backend, random_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npllama.config import Rope
from npllama.golden.compare import aligned, compare, judge
from npllama.golden.distance import by_position, distance, units
from npllama.golden.emulation import attend, emulate, ways
from npllama.golden.floor import NO_FLOOR, floor, floors_of, steps_of
from npllama.golden.measures import floors_of_spots
from npllama.golden.plain import Arithmetic
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


ONE = "prefill/mlp.up_proj"


def floors_of_errors(errors, exact):
    """The floors of one tensor, of which several ways make these errors."""
    return floors_of({ONE: distance(ONE, [exact + e for e in errors], exact)})[ONE]


def test_errors_of_one_cause_do_not_count_as_many():
    rng = np.random.default_rng(0)
    exact = rng.choice([-1.0, 1.0], (1, 9, 400))
    size, one = 1e-3 * rng.standard_normal((11, 1, 1, 1)), rng.standard_normal(400)
    shared = floors_of_errors(size * one, exact)
    apart = floors_of_errors(1e-3 * rng.standard_normal((11, 1, 9, 400)), exact)
    worst = np.abs(size).max() * np.sqrt(np.square(one).mean())
    assert 3 * worst < shared["rms"] < 4.5 * worst
    assert apart["rms"] == pytest.approx(1e-3 * (1 + 3 / np.sqrt(3600)), rel=0.03)
    # A position has fewer numbers, and may have all its errors from one.
    assert min(shared["positions"]) > 3 * worst * 0.6
    assert max(apart["positions"]) < 1.5e-3


def test_a_number_that_carries_all_leaves_one_error():
    rng = np.random.default_rng(1)
    exact = rng.standard_normal((1, 4, 300))
    errors = 1e-6 * exact * rng.standard_normal((11, 1, 4, 300))
    plain = floors_of_errors(errors, exact)
    exact[0, 0, 5], errors[:, 0, 0, 5] = 1e5, 0.1 * rng.standard_normal(11)
    found = floors_of_errors(errors, exact)
    assert found["rms"] > 3.5 * np.abs(errors[:, 0, 0, 5]).max() / 1e5
    # After it nothing is hidden: the even error is as before.
    assert found["even"] == pytest.approx(plain["even"], rel=0.05)


def test_floor_of_a_head_is_the_worst_of_all_steps():
    exact = np.ones((1, 2, 3, 8))
    rng = np.random.default_rng(2)
    names = ("prefill/self_attn.q_proj", "decode.0/self_attn.q_proj")
    sizes = (1e-3, 1e-5)
    parts = {}
    for name, size in zip(names, sizes):
        errors = size * rng.standard_normal((11, *exact.shape))
        parts[name] = distance(name, [exact + e for e in errors], exact)
    first, second = (floors_of(parts)[name] for name in names)
    assert first["heads"] == second["heads"] and len(first["heads"]) == 3
    assert max(second["positions"]) < 1e-4 < min(first["positions"])
    # Over all steps together the second is as uncertain as the first.
    assert second["rms"] > 5e-4 and first["rms"] >= second["rms"]


def test_what_a_format_cannot_hold_has_no_floor():
    model = random_model(3)
    layer = model.layers[0]
    huge = model._replace(
        layers=(layer._replace(w_down=layer.w_down * 1e7), *model.layers[1:])
    )
    exact = golden(huge)
    floors = floor(exact, huge, "float16")
    name = "prefill/model.layers.0.mlp.down_proj"
    assert floors[name]["rms"] == NO_FLOOR
    json.dumps(floors, allow_nan=False)
    broken = {name: np.full_like(exact[name], np.nan)}
    row = next(
        r for r in compare(exact, broken, floors, "float16").rows if r.name == name
    )
    assert (row.verdict, row.note) == (
        "unknown",
        "float16 cannot hold the right numbers",
    )
    assert floor(exact, huge, "bfloat16")[name]["rms"] < 1


def test_causes_that_one_position_does_not_show_count_where_others_do():
    exact = np.ones((1, 8, 400))
    rng = np.random.default_rng(3)
    errors = 1e-3 * rng.standard_normal((11, 1, 8, 400))
    alone = floors_of_errors(errors, exact)["positions"]
    one = 1e-3 * rng.standard_normal((11, 1, 7, 1)) * rng.standard_normal(400)
    errors[:, :, 1:] = one
    found = floors_of_errors(errors, exact)["positions"]
    # The first one's own errors are as many as before; all others have one cause.
    assert alone[0] < 1.3e-3 and found[0] > 2.5e-3


def overflowing():
    """A tensor of four positions, of which two of five ways overflow at the third."""
    rng = np.random.default_rng(4)
    exact = rng.standard_normal((1, 4, 300))
    runs = [exact + 1e-3 * rng.standard_normal(exact.shape) for _ in range(5)]
    runs[0][0, 2, 7], runs[1][0, 2] = np.inf, np.nan
    return exact, runs, floors_of({ONE: distance(ONE, runs, exact)})


def test_position_that_overflows_in_right_backends_too_is_no_fault():
    exact, runs, floors = overflowing()
    assert floors[ONE]["overflows"] == [2]
    assert floors[ONE]["rms"] < 2e-3 and max(floors[ONE]["positions"]) < 2e-3
    rows = [compare({ONE: exact}, {ONE: y}, floors, "float16").rows[0] for y in runs]
    note = "float16 cannot hold the right numbers of some positions"
    assert rows[1].note == note + "; the others are within"
    assert [r.verdict for r in rows] == ["unknown", "unknown", *["within"] * 3]
    json.dumps(floors, allow_nan=False)


def test_other_positions_are_judged_and_so_is_what_is_finite_there():
    exact, runs, floors = overflowing()
    for position, size in ((0, 0.1), (2, 0.1), (1, np.nan), (1, np.inf)):
        y = runs[4 if position == 2 else 1].copy()
        y[0, position] += size
        row = compare({ONE: exact}, {ONE: y}, floors, "float16").rows[0]
        assert row.verdict == "outside", (position, size)


def test_what_stands_beside_an_infinity_is_lost_with_it():
    exact, runs, floors = overflowing()
    y = np.array(runs[0])
    y[0, 2, :7] = 0  # as a norm of an infinite stream makes it
    row = compare({ONE: exact}, {ONE: y}, floors, "float16").rows[0]
    assert row.verdict == "unknown"


def test_head_that_does_not_overflow_keeps_the_floor_of_all_ways():
    name, rng = "prefill/self_attn.attention", np.random.default_rng(5)
    exact = rng.standard_normal((1, 2, 2, 64))
    runs = [exact + 1e-3 * rng.standard_normal(exact.shape) for _ in range(5)]
    runs[0][0, 1, 0] = np.nan
    runs[0][0, 1, 1] += 0.1
    spots = distance(name, runs, exact).spots
    assert spots[1, 1] > 0.05 > spots[1, 0]
    lost = distance(name, [np.full_like(exact, np.inf)] * 5, exact)
    assert floors_of({name: lost})[name]["rms"] == NO_FLOOR
    assert set(floors_of({name: lost})[name]["heads"]) == {NO_FLOOR}


def test_errors_made_twice_as_large_count_half():
    x = np.float32([1.0, 1 + 2**-12, 1 + 3 * 2**-12, 7e4])
    assert_equal = np.testing.assert_array_equal
    near, far = (Arithmetic("float16", "library", times=n).round(x) for n in (1, 2))
    assert_equal(far[:3] - x[:3], 2 * (near[:3] - x[:3]))
    assert far[3] == np.inf and (near != x).any()
    exact = np.ones((1, 2, 50))
    errors = np.random.default_rng(6).standard_normal((5, 1, 2, 50))
    doubled = distance(ONE, [exact + 2 * e for e in errors], exact, (2,) * 5)
    plain = distance(ONE, [exact + e for e in errors], exact)
    np.testing.assert_allclose(doubled.even, plain.even, rtol=1e-9)
    # They tell how large an error may be, not how much of it is chance.
    runs = [exact + n * e for n in (1, 1.9) for e in errors]
    both = distance(ONE, runs, exact, (1,) * 5 + (2,) * 5)
    np.testing.assert_allclose(both.spots, plain.spots, rtol=1e-9)
    assert sorted(way.times for way in ways("float16")) == [1] * 6 + [2] * 6


def test_plain_kernels_overflow_in_what_they_hide():
    q = np.float32([[[[300.0]], [[1.0]]]])  # (1, 2, 1, 1): its first query
    k = np.float32([[[[1.0]], [[300.0]]]])  # meets a hidden key at 90,000
    plain, fused = (way for way in ways("float16") if (way.pieces, way.times) == (1, 1))
    with np.errstate(invalid="ignore"):
        (_, y), (_, z) = attend(plain, q, k, k), attend(fused, q, k, k)
    assert np.isnan(y[0, 0]).all() and np.isfinite(y[0, 1]).all()
    assert z[0, 0] == 1.0


def test_no_floor_rests_on_luck_but_exact_numbers_stay_exact():
    exact = np.ones((1, 1, 36))
    lucky, right = (distance("x", [exact + e], exact) for e in (1e-9, 0.0))
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


@settings(max_examples=settings().max_examples // 3)
@given(seed=st.integers(0, 2**32))
@example(seed=13)
def test_right_backend_is_within_the_floor(seed):
    _, exact, floors, candidate, dtype = drawn(seed)
    assert compare(exact, candidate, floors, dtype).first is None


@settings(max_examples=settings().max_examples // 3)
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


# ---- models with massive activations --------------------------------------------------


def massive_model(seed, times):
    """A random model one of whose coordinates becomes enormous, as trained ones have."""
    model = random_model(seed, E=64, L=3)
    layer = model.layers[0]
    w_down = layer.w_down.copy()
    w_down[5] *= times
    return model._replace(layers=(layer._replace(w_down=w_down), *model.layers[1:]))


def massive(seed):
    """A massive model, its trace and floor, and a right candidate."""
    rng = np.random.default_rng(seed)
    model = massive_model(seed, float(rng.uniform(50, 1000)))
    exact = golden(model, seed, prompt=int(rng.integers(1, 40)))
    dtype = str(rng.choice(("float32", "bfloat16")))
    candidate = backend(model, exact["tokens"], exact["tokens"].shape[1] - NEW, dtype)
    return rng, exact, floor(exact, model, dtype), candidate, dtype


@pytest.mark.slow
@given(seed=st.integers(0, 2**32))
def test_right_backend_is_within_where_one_number_carries_all(seed):
    _, exact, floors, candidate, dtype = massive(seed)
    assert compare(exact, candidate, floors, dtype).first is None


@pytest.mark.slow
@given(seed=st.integers(0, 2**32))
def test_error_of_three_floors_in_one_head_or_position_is_caught(seed):
    rng, exact, floors, candidate, dtype = massive(seed)
    names = [name for name in candidate if "/" in name and "positions" in floors[name]]
    name = names[rng.integers(len(names))]
    spots = by_position(name, exact[name])
    limits = floors_of_spots(floors[name], spots.shape)
    p, h = rng.integers(len(spots)), rng.integers(spots.shape[1])
    noise = rng.standard_normal(spots.shape[-1])
    noise *= 3 * limits[p, h] / np.sqrt(np.square(noise).mean())
    wrong = by_position(name, aligned(name, candidate[name], exact[name])).astype(float)
    wrong[p, h] = spots[p, h] + noise * units(spots)[p, h]
    candidate[name] = wrong.reshape(exact[name].shape)
    first = compare(exact, candidate, floors, dtype).first
    assert first is not None and first.name == name


def test_block_that_is_wrong_at_all_positions_but_the_first_is_caught():
    model = massive_model(3, 1000.0)
    exact = golden(model, prompt=20)
    # The first position carries the norm, as in trained models.
    name = "prefill/model.layers.1.output"
    exact[name][0, 1:, 5] = 1.0
    exact[name][0, 0, 5] = 2e4
    floors = floor(golden(model, prompt=20), model, "float32")[name]
    y = exact[name] * np.where(np.arange(PROMPT) > 0, 1.1, 1.0)[:, None]
    hidden = judge(name, y, exact[name], floors["rms"] * 1e3, "float32")
    assert relative(y, exact[name]) < 1e-3  # the first statistic hardly moves
    assert hidden.measures.error < 1e-3
    assert judge(name, y, exact[name], floors, "float32").verdict == "outside"
