"""The roofline: what binds, what fits, what guesses gain, and what a probe measures."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from needs import needs

from npllama.bench import report
from npllama.bench import roofline as bench_roofline
from npllama.config import PRESETS, preset
from npllama.cost import FlopCounter, decode, operators, probe
from npllama.cost.hardware import HARDWARE, Hardware
from npllama.cost.probe import hardware
from npllama.cost.roofline import (
    BYTES,
    compute_bound_batch,
    dtypes,
    elementwise,
    most_tokens,
    offload_seconds,
    phase,
    predict,
    speculative_speedup,
    timed,
    token_bytes,
    weight_bytes,
)

configs = st.sampled_from(sorted(PRESETS)).map(preset)
machines = st.sampled_from(sorted(HARDWARE)).map(hardware)
kinds_of = st.builds(dtypes, st.sampled_from(sorted(BYTES)), st.sampled_from([*BYTES]))
sizes = st.integers(1, 5000)
HALF = dtypes("fp16")


# ---- data sheets ------------------------------------------------------------


@pytest.mark.parametrize(
    "name, teraflops, gigabytes_per_second, gigabytes",
    [
        ("a100-80g", 312, 2039, 80),
        ("a100-40g", 312, 1555, 40),
        ("h100", 989.4, 3350, 80),
        ("h200", 989.4, 4800, 140.4),
        ("rtx-4090", 165.2, 1008, 24),
        ("rtx-4060", 30.2, 272, 8),
        ("v100", 125, 900, 32),
        ("t4", 65, 320, 16),
        ("l4", 121, 300, 24),
        ("l40s", 362.05, 864, 48),
        ("a6000", 154.8, 768, 48),
        ("mi300x", 1307.4, 5300, 192),
        ("rtx-3090", 71, 936, 24),
    ],
)
def test_machines_are_those_of_the_data_sheets(
    name, teraflops, gigabytes_per_second, gigabytes
):
    machine = hardware(name)
    assert machine.rate("fp16") == teraflops * 1e12
    assert machine.bandwidth == gigabytes_per_second * 1e9
    assert machine.memory == gigabytes * 2**30


def test_ridge_of_an_a100_with_80_gb_is_153_flops_per_byte():
    assert round(hardware("a100-80g").ridge("fp16")) == 153


def test_type_without_a_figure_has_the_rate_of_the_next_wider_one():
    machine = Hardware("some", {"fp32": 1.0, "fp16": 2.0}, 1.0)
    rates = [machine.rate(dtype) for dtype in ("fp32", "fp16", "int8", "int4")]
    assert rates == [1, 2, 2, 2]
    assert machine.rate("fp8") == 2
    assert hardware("h100").rate("fp8") == 1978.9e12
    assert hardware("a100-80g").rate("fp8") == 312e12  # it has none


def test_unknown_machine_is_told_the_known_ones():
    with pytest.raises(ValueError, match="abacus.*a100-80g.*rtx-4060.*this-machine"):
        hardware("abacus")


@pytest.mark.parametrize("wrong", [("fp3",), ("fp16", "fp3"), ("fp16", "fp16", "fp3")])
def test_unknown_type_is_told_the_known_ones(wrong):
    with pytest.raises(ValueError, match="'fp3'.*fp32, fp16, bf16, int8, int4"):
        dtypes(*wrong)


# ---- an operator, a phase ---------------------------------------------------


@given(configs, machines, kinds_of, sizes, sizes, st.integers(0, 5000))
def test_operator_takes_the_longer_time_and_the_ridge_tells_which(
    config, machine, kinds, batch, new, cached
):
    ridge = machine.ridge(kinds.arithmetic)
    for op in operators(config, batch, new, cached):
        on_it = timed(op, machine, kinds)
        assert on_it.seconds == max(on_it.math, on_it.memory)
        assert on_it.math == op.flops / machine.rate(kinds.arithmetic)
        if not math.isclose(on_it.intensity, ridge, rel_tol=1e-9):
            assert on_it.bound == ("compute" if on_it.intensity > ridge else "memory")


def test_bytes_of_an_operator_are_those_of_its_kinds():
    kinds = dtypes("int4", "int8", "fp32")
    for op in operators(preset("llama-2-7b"), 2, 3, 5):
        moved = op.weights / 2 + op.cache + 4 * op.activations
        assert timed(op, hardware("h100"), kinds).bytes == moved


@given(configs, machines, st.integers(1, 64), st.integers(1, 2000), st.integers(2, 40))
def test_a_text_takes_as_long_as_its_parts(config, machine, batch, prompt, new):
    found = predict(config, machine, batch, prompt, new, HALF)
    steps = [
        phase(config, decode(config, batch, n), batch, machine, HALF).seconds
        for n in range(prompt, prompt + new - 1)
    ]
    whole = found.prefill.seconds + sum(steps)
    assert found.seconds == pytest.approx(whole, rel=1e-2)
    assert min(steps) <= found.per_token * (1 + 1e-9)
    assert found.per_token <= max(steps) * (1 + 1e-9)
    assert found.prefill.rate * found.prefill.seconds == pytest.approx(batch * prompt)


def test_prompt_is_bound_by_computing_and_a_token_by_memory():
    for machine in HARDWARE.values():
        found = predict(preset("llama-2-7b"), machine, 1, 2048, 2, HALF)
        assert (found.prefill.bound, found.decode.bound) == ("compute", "memory")


# ---- batches ----------------------------------------------------------------


def longer_by_computing(config, machine, batch, cached):
    ops = phase(config, decode(config, batch, cached), batch, machine, HALF).operators
    return sum(op.math for op in ops) >= sum(op.memory for op in ops) * (1 - 1e-12)


@given(configs, machines, st.integers(0, 300))
def test_decode_turns_compute_bound_at_the_batch_that_is_told(config, machine, cached):
    batch = compute_bound_batch(config, machine, cached, HALF)
    if batch is None:
        assert not longer_by_computing(config, machine, 10**7, cached)
    else:
        assert longer_by_computing(config, machine, batch, cached)
        assert batch == 1 or not longer_by_computing(config, machine, batch - 1, cached)


def test_long_context_without_shared_keys_never_turns():
    a100, config = hardware("a100-80g"), preset("llama-2-7b")
    assert compute_bound_batch(config, a100, 4096, HALF) is None
    batch = compute_bound_batch(config, a100, 0, HALF)
    assert a100.ridge() < batch < 1.1 * a100.ridge()


# ---- what fits --------------------------------------------------------------


@given(configs, machines, kinds_of)
def test_as_many_positions_fit_as_are_told_and_no_more(config, machine, kinds):
    fit = most_tokens(config, machine, kinds)
    weights, each = weight_bytes(config, kinds), token_bytes(config, kinds)
    if fit:
        assert weights + fit * each <= machine.memory
    assert weights + (fit + 1) * each > machine.memory or fit == 0
    assert most_tokens(config, machine._replace(memory=None), kinds) is None


def test_what_fits_needs_no_storage():
    assert offload_seconds(7.7e9, 3.5e9, 4e9) == pytest.approx(1.05)
    assert offload_seconds(3.5e9, 3.5e9, 4e9) == offload_seconds(1e9, 3.5e9, 4e9) == 0


# ---- speculation ------------------------------------------------------------


@given(st.floats(0, 0.999), st.integers(0, 20), st.floats(0, 2))
def test_speedup_is_theorem_3_8(a, n, c):
    expected = (1 - a ** (n + 1)) / ((1 - a) * (n * c + 1))
    assert speculative_speedup(a, n, c) == pytest.approx(expected)


@pytest.mark.parametrize("a, n", [(0.0, 3), (0.3, 4), (0.9, 2), (1.0, 5)])
def test_speedup_of_a_free_draft_is_the_mean_of_kept_guesses_and_one_more(a, n):
    mean = 0.0
    for fates in itertools.product((True, False), repeat=n):
        kept = next((i for i, fate in enumerate(fates) if not fate), n)
        chance = math.prod(a if fate else 1 - a for fate in fates)
        mean += chance * (kept + 1)
    assert speculative_speedup(a, n, 0) == pytest.approx(mean)


@pytest.mark.parametrize(
    "wrong",
    [(-0.1, 1, 0), (1.1, 1, 0), (math.nan, 1, 0), (0.5, -1, 0), (0.5, 1, -1)]
    + [(0.5, 1, math.nan), (0.5, 1, math.inf)],
)
def test_speedup_of_impossible_drafts_is_refused(wrong):
    with pytest.raises(ValueError, match="acceptance"):
        speculative_speedup(*wrong)


# ---- between the products ---------------------------------------------------


@given(configs, st.integers(1, 9), st.integers(1, 99), st.integers(0, 99))
def test_functions_walk_through_each_position_alike_and_each_pair(
    config, batch, new, cached
):
    def walked(batch, new, cached):
        return elementwise(config, operators(config, batch, new, cached))

    H, L = config.num_attention_heads, config.num_hidden_layers
    found = walked(batch, new, cached)
    assert found == batch * walked(1, new, cached)
    assert walked(batch, new, cached + 1) - found == 5 * batch * H * new * L
    assert found > 5 * batch * new * config.intermediate_size * L


def test_a_key_head_is_turned_and_kept_and_its_values_are_kept():
    several = preset("stories110m")
    one = replace(several, num_key_value_heads=1)
    more, less = (elementwise(c, operators(c, 2, 5)) for c in (several, one))
    D, L = several.head_dim, several.num_hidden_layers
    assert more - less == (6 + 2) * (several.num_key_value_heads - 1) * D * L * 2 * 5


def test_time_between_products_counts_where_it_was_measured():
    config, a100 = preset("stories110m"), hardware("a100-80g")
    ops = operators(config, 1, 256)
    plain = phase(config, ops, 256, a100, HALF)
    slow = phase(config, ops, 256, a100._replace(elementwise=1e9), HALF)
    assert plain.between == 0
    assert slow.seconds - plain.seconds == pytest.approx(elementwise(config, ops) / 1e9)


def test_an_interpreter_takes_its_time_in_every_layer_of_every_pass():
    config, a100 = preset("stories110m"), hardware("a100-80g")
    a = predict(config, a100, 2, 256, 9, HALF)
    b = predict(config, a100._replace(overhead=1e-3), 2, 256, 9, HALF)
    assert b.prefill.seconds - a.prefill.seconds == pytest.approx(12e-3)
    assert b.per_token - a.per_token == pytest.approx(12e-3)
    assert b.seconds - a.seconds == pytest.approx(9 * 12e-3)
    # A millisecond a layer is more than all products of a step, and is neither bound.
    assert (a.decode.bound, b.decode.bound) == ("memory", "overhead")


# ---- the probe --------------------------------------------------------------


def test_rate_is_that_of_the_median_call_after_one_that_is_forgotten(monkeypatch):
    lasts = iter([9.0, 2.0, 8.0, 2.5, 0.1, 4.0])
    clock = SimpleNamespace(now=0.0)

    def work():
        clock.now += next(lasts)

    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock.now)
    assert probe.rate_of(work, 10) == pytest.approx(10 / 2.5)


def test_probe_reads_every_weight_and_multiplies_prompts(monkeypatch):
    monkeypatch.setattr(probe, "ROUNDS", 1)
    matrices = probe.weights(2**26)
    assert {w.shape for w in matrices} == {(2048, 768), (5632, 2048)}
    with FlopCounter() as count:
        probe.memory_rate(matrices)
    assert sum(p.total.kept for p in count.products()) == 2 * sum(
        w.size for w in matrices
    )
    with FlopCounter() as count:
        probe.product_rate(matrices)
    assert {p.shapes[0][0] for p in count.products()} == {probe.POSITIONS}


def test_probe_tells_a_machine_that_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(probe, "ROUNDS", 1)
    monkeypatch.setattr(probe, "BEYOND_CACHES", 2**26)
    monkeypatch.setattr(probe, "LAYERS", 2)
    machine = hardware("this-machine")
    assert machine.name == "this-machine" and set(machine.flops) == {"fp32"}
    rates = (*machine.flops.values(), machine.bandwidth, machine.elementwise)
    assert all(np.isfinite(rate) and rate > 0 for rate in rates)
    assert 0 <= machine.overhead < 0.1


def test_overhead_is_what_a_layer_takes_beyond_its_products(monkeypatch):
    times = iter([5.0, 1.0, 7.0, 2.0, 6.0, 2.0] + 100 * [4.0, 1.0])
    monkeypatch.setattr(probe, "LAYERS", 2)
    monkeypatch.setattr(probe, "seconds_of", lambda work: next(times))
    assert probe.layer_overhead() == pytest.approx(3.0 / probe.LAYERS)
    monkeypatch.setattr(probe, "seconds_of", lambda work: -next(times))
    assert probe.layer_overhead() == 0.0


def test_overhead_leaves_out_every_weight_of_the_layers(monkeypatch):
    ran = []
    monkeypatch.setattr(probe, "LAYERS", 2)
    monkeypatch.setattr(probe, "seconds_of", lambda work: ran.append(work) or 0.0)
    probe.layer_overhead()
    step, products = ran[:2]
    counts = []
    for work in (step, products):
        with FlopCounter() as count:
            work()
        left_out = ("embed_tokens", "scores", "values", "lm_head")
        found = [p.total.kept for p in count.products() if p.name not in left_out]
        counts.append(sum(found))
    assert counts[0] == counts[1] > 0


# ---- the benchmark ----------------------------------------------------------


def predicted_rates(rates):
    """Tokens per second at 110M, on a machine of such rates."""
    compute = {"fp32": rates["flops"]}
    bandwidth, *rest = (rates[x] for x in ("bandwidth", "elementwise", "overhead"))
    machine = Hardware("x", compute, bandwidth, elementwise=rest[0], overhead=rest[1])
    passes, kinds = (preset("stories110m"), machine, 1), (dtypes("fp32"), "blocks")
    prefill = predict(*passes, 256, 1, *kinds).prefill
    return {
        "prefill": prefill.rate,
        "decode": predict(*passes, 64, 64, *kinds).decode.rate,
    }


def test_benchmark_holds_the_prediction_to_what_was_measured():
    rates = {"flops": 2e11, "bandwidth": 2e10, "elementwise": 2e9, "overhead": 1e-4}
    half = {name: rate / 2 for name, rate in rates.items()}
    rounds = [100.0, 50.0, 25.0]  # tokens per second

    def part(tokens, per_call):
        seconds = [[per_call / rate] for rate in rounds]
        return {"tokens": tokens, "programs": {"npllama": {"rounds_seconds": seconds}}}

    size = {"prefill": part(256, 256), "decode": part(64, 1)}
    size["probes"] = [rates, half, rates]
    found = bench_roofline.compare({"stories110m": size}, 64)
    rows = found["sizes"]["stories110m"]
    whole, halved = (predicted_rates(probed) for probed in (rates, half))
    for measure in ("prefill", "decode"):
        # Each round is held to its own probe.
        ratios = [whole[measure] / 100, halved[measure] / 50, whole[measure] / 25]
        assert np.isclose(rows[measure]["predicted_is_times"], np.median(ratios))
        assert rows[measure]["measured"] == pytest.approx(50.0)
    facts = dict.fromkeys(("cpu", "threads", "processors", "python", "numpy", "blas"))
    printed = report.table({"machine": facts, "sizes": {}, "roofline": found})
    assert f"{rows['decode']['predicted_is_times']:.2f}" in printed
    assert "prediction / measurement" in printed


def test_phase_without_operators_of_one_kind_is_bound_by_the_other():
    ops = operators(preset("llama-2-7b"), 1, 1)
    fast = Hardware("fast", {"fp16": 1e30}, 1.0)
    slow = Hardware("slow", {"fp16": 1.0}, 1e30)
    bounds = [phase(preset("llama-2-7b"), ops, 1, m, HALF).bound for m in (fast, slow)]
    assert bounds == ["memory", "compute"]


# ---- attention as one program -----------------------------------------------


@pytest.mark.parametrize(
    ("name", "machine", "prompt", "times"),
    [
        # What an outside calculator found of a causal fused kernel.
        ("llama-2-7b", "a100-80g", 2048, 1.07),
        ("llama-2-7b", "a100-80g", 32_768, 1.56),
        ("llama-3-8b", "h100", 131_072, 3.57),
    ],
)
def test_fused_attention_is_the_bound_that_a_kernel_has(name, machine, prompt, times):
    config, kinds = preset(name), dtypes("fp16")
    square, fused = (
        predict(config, HARDWARE[machine], 1, prompt, 2, kinds, causal)
        for causal in ("square", "fused")
    )
    assert square.prefill.seconds / fused.prefill.seconds == pytest.approx(times, 0.01)


def test_fused_attention_multiplies_the_triangle_and_moves_no_score():
    config, B, T = preset("llama-3-8b"), 3, 50
    kinds, machine = dtypes("fp16"), HARDWARE["h100"]
    ways = {
        causal: {
            op.name: op
            for op in predict(config, machine, B, T, 2, kinds, causal).prefill.operators
        }
        for causal in ("square", "triangle", "fused")
    }
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    for name in ("scores", "values"):
        assert ways["fused"][name].flops == ways["triangle"][name].flops
        # Queries or results, and keys or values, once each.
        moved = config.num_hidden_layers * B * T * D * (H + K)
        assert ways["fused"][name].bytes == 2 * moved
    for name in ways["square"].keys() - {"scores", "values"}:
        assert ways["fused"][name] == ways["square"][name]


@pytest.mark.parametrize("causal", ["square", "triangle", "blocks"])
@pytest.mark.parametrize("prompt", [1, 7, 700])
def test_nothing_is_faster_than_fused(causal, prompt):
    for name in ("tinyllama-1.1b", "llama-2-7b"):
        slow, fast = (
            predict(preset(name), HARDWARE["a100-80g"], 2, prompt, 9, dtypes("fp16"), c)
            for c in (causal, "fused")
        )
        assert fast.prefill.seconds <= slow.prefill.seconds
        assert fast.decode.seconds <= slow.decode.seconds
        assert fast.seconds <= slow.seconds


# ---- the picture ------------------------------------------------------------


def pictured(name, machine, batch, prompt):
    """The picture of a roofline, drawn, and what it is of."""
    needs("matplotlib")
    from npllama.cost.plot import roofline_figure

    machine = HARDWARE[machine]
    found = predict(preset(name), machine, batch, prompt, 2, HALF, "fused")
    figure = roofline_figure(machine, HALF, found, "title")
    figure.draw_without_rendering()
    return figure, found


@pytest.mark.parametrize(
    "sizes",
    [
        ("llama-2-7b", "a100-80g", 1, 512),
        ("llama-3-8b", "rtx-4090", 8, 32_000),
        ("stories15m", "t4", 1, 512),
        ("llama-3.1-405b", "h200", 256, 4096),
    ],
)
def test_names_in_the_picture_cover_no_other_and_leave_it_nowhere(sizes):
    figure, found = pictured(*sizes)
    axes = figure.axes[0]
    names = [t for t in axes.texts if "_" in t.get_text() or "," in t.get_text()]
    boxes = [t.get_window_extent() for t in axes.texts]
    boxes.append(axes.get_legend().get_window_extent())
    inside = axes.get_window_extent()
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for box in boxes:
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        assert inside.y0 <= box.y0 and box.y1 <= inside.y1
    shown = " ".join(t.get_text() for t in names).replace(",", " ").split()
    products = [op.name for op in found.prefill.operators if op.flops]
    assert sorted(shown) == sorted(2 * products)


def test_picture_says_which_side_waits_for_what_and_who_takes_the_time():
    figure, found = pictured("llama-2-7b", "a100-80g", 1, 512)
    roof, *shares = figure.axes
    said = " ".join(t.get_text() for t in roof.texts)
    assert "memory is the limit" in said and "arithmetic is the limit" in said
    for axes, part in zip(shares, (found.prefill, found.decode)):
        names = [t.get_text() for t in axes.get_yticklabels()]
        bars = dict(zip(names, (bar.get_width() for bar in axes.patches)))
        for op in part.operators:
            assert bars[op.name] == pytest.approx(100 * op.seconds / part.seconds)
        assert sum(bars.values()) == pytest.approx(100)
