"""The closed forms: equal to what is counted, to the textbooks, and to each other."""

import tracemalloc
from functools import partial
from math import prod

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import DISTINCT, chunkings, configs, random_model, seeds, token_ids

from npllama import PRESETS, GenerationConfig, forward, generate, new_cache, preset
from npllama.attention import blocked, naive
from npllama.config import Config
from npllama.cost import FlopCounter, formulas, textbook
from npllama.cost.formulas import (
    cache_bytes,
    decode,
    generation,
    one_pass,
    operators,
    parameters,
    prefill,
    tabulate,
    total,
)
from npllama.cost.meetings import CAUSAL, Blocks
from npllama.cost.memory import activation_moments, activation_peak
from npllama.decoding.common import PREFILL_CHUNK
from npllama.weights import tensor_shapes

sizes = st.integers(1, 8)
batches = st.integers(1, 3)
big = st.sampled_from(sorted(PRESETS))
ways = st.sampled_from(CAUSAL)


# ---- what is counted is what is predicted -----------------------------------


@st.composite
def paths(draw):
    """A way to attend, and the options of the formula that describes it."""
    kind = draw(st.sampled_from(["naive", "blocked", "small blocks"]))
    if kind == "naive":
        return naive, {"causal": "triangle"}
    if kind == "blocked":
        return blocked, {"causal": "blocks"}
    blocks = Blocks(draw(sizes), draw(sizes), draw(sizes))
    attend = partial(
        blocked,
        query_block=blocks.query,
        key_block=blocks.key,
        head_block=blocks.head,
    )
    return attend, {"causal": "blocks", "blocks": blocks}


def phase_of(new, start):
    steps = [new == 1 and n > 0 for n in start]
    return "decode" if all(steps) else "mixed" if any(steps) else "prefill"


def predicted(config, start, lengths, **options):
    """{(phase, name): operator} of passes over so many new positions."""
    work, causal = {}, options["causal"]
    for new in lengths:
        phase, one = (
            phase_of(new, start),
            one_pass(config, len(start), new, start, **options),
        )
        work[phase] = work[phase] + one if phase in work else one
        start = [n + new for n in start]
    return {
        (phase, op.name): op
        for phase, sums in work.items()
        for op in tabulate(config, sums, causal)
    }


def numbers(cost):
    """What a counter and a formula must agree on."""
    if isinstance(cost, formulas.Operator):
        return cost.calls, cost.flops, cost.mops, cost.weights + cost.cache
    return cost.calls, cost.flops, cost.mops, cost.kept


def run(config, start, lengths, attend=blocked, last=False, dtype="float32"):
    """Count passes over so many new positions, after those that rows hold."""
    model = random_model(config, 0, dtype)
    cache = new_cache(config, len(start), max(start) + sum(lengths), dtype)
    cache.length[:] = start
    with FlopCounter() as count:
        for new in lengths:
            tokens = token_ids(config, new, len(start), new)
            forward(model, tokens, cache, last=last, attend=attend)
    return count


def agree(counted, operators):
    assert {key: numbers(cost) for key, cost in counted.items()} == {
        key: numbers(op) for key, op in operators.items()
    }


@given(configs(), batches, st.integers(0, 9), sizes.flatmap(chunkings), paths(),
       st.booleans())  # fmt: skip
def test_counted_equals_predicted_in_prefill_chunks_and_decode(
    config, batch, cached, lengths, path, last
):
    attend, options = path
    count = run(config, [cached] * batch, lengths, attend, last)
    expected = predicted(config, [cached] * batch, lengths, last=last, **options)
    agree(count.by("phase", "name"), expected)
    equations = {(p.phase, p.name): p.equation for p in count.products()}
    assert equations == {key: op.equation for key, op in expected.items()}


@given(configs(), st.lists(st.integers(0, 9), min_size=2, max_size=3), sizes, paths())
@example(DISTINCT, [3, 0], 1, (blocked, {"causal": "blocks"}))
def test_counted_equals_predicted_where_rows_hold_different_lengths(
    config, start, new, path
):
    attend, options = path
    count = run(config, start, [new, 1], attend)
    agree(count.by("phase", "name"), predicted(config, start, [new, 1], **options))


@pytest.mark.parametrize(
    "new, cached", [(300, 0), (129, 700), (1, 1100), (128, 1), (9, 8200)]
)
def test_counted_equals_predicted_beyond_the_default_blocks(new, cached):
    config = Config(5, 8, 3, 1, 8, 2, 2)
    count = run(config, [cached] * 2, [new])
    agree(
        count.by("phase", "name"),
        predicted(config, [cached] * 2, [new], causal="blocks"),
    )


@given(configs(["default"]), st.integers(1, 9), st.integers(1, 9), seeds)
@example(DISTINCT, 1, 1, 0)
def test_a_generated_text_costs_what_is_predicted(config, prompt, new_tokens, seed):
    model = random_model(config, seed)
    options = GenerationConfig(max_new_tokens=new_tokens, eos_token_id=())
    with FlopCounter() as count:
        generate(model, [token_ids(config, seed, prompt).tolist()], options)
    text = generation(
        config, 1, prompt, new_tokens, chunk=PREFILL_CHUNK, causal="blocks"
    )
    counted = count.by("phase", "name")
    for phase in ("prefill", "decode"):
        for op in getattr(text, phase):
            if op.calls:
                assert numbers(counted.pop((phase, op.name))) == numbers(op)
    assert counted == {}


@given(configs(), batches, st.integers(0, 9), sizes, paths())
def test_counter_knows_the_full_square_of_what_was_executed(
    config, batch, cached, new, path
):
    attend, options = path
    count = run(config, [cached] * batch, [new], attend)
    for causal, label in ((options, "executed"), ({"causal": "square"}, "square")):
        ops = operators(config, batch, new, cached, **causal)
        flops = sum(op.flops for op in ops if op.name in ("scores", "values"))
        assert count.attention()[phase_of(new, [cached])][label] == flops


# ---- the forms among themselves ---------------------------------------------


@given(big, batches, st.integers(0, 10**6), st.integers(1, 50), ways)
@example("llama-7b", 1, 100_000, 1, "blocks")  # where room is left for ten heads
def test_many_steps_of_decode_cost_the_sum_of_single_ones(
    name, batch, cached, steps, causal
):
    config = preset(name)
    work = [one_pass(config, batch, 1, cached + i, causal=causal) for i in range(steps)]
    single = tabulate(config, sum(work[1:], work[0]), causal)
    assert decode(config, batch, cached, steps, causal=causal) == single


@given(big, batches, st.integers(0, 3000), st.integers(1, 3000), sizes)
def test_the_triangle_is_the_least_and_the_square_the_most(
    name, batch, cached, new, block
):
    config = preset(name)
    least, most = (
        one_pass(config, batch, new, cached, causal=causal).met
        for causal in ("triangle", "square")
    )
    some = one_pass(
        config, batch, new, cached, causal="blocks", blocks=Blocks(block, 512)
    ).met
    assert least.pairs <= some.pairs <= most.pairs
    H = batch * config.num_attention_heads
    assert most.pairs - least.pairs == H * new * (new - 1) // 2


@given(big, batches, st.integers(0, 300), st.integers(1, 300))
def test_blocks_are_the_square_at_one_end_and_the_triangle_at_the_other(
    name, batch, cached, new
):
    def met(causal, *sizes):
        blocks = Blocks(*sizes)
        return one_pass(
            preset(name), batch, new, cached, causal=causal, blocks=blocks
        ).met

    heads = preset(name).num_key_value_heads
    whole = met("blocks", new, cached + new, heads)
    assert whole == met("square")
    assert met("blocks", 1).pairs == met("triangle").pairs


@given(big, batches, st.integers(0, 999), st.integers(1, 999), st.integers(1, 999))
def test_chunks_of_a_prompt_change_weights_read_but_not_the_projections_work(
    name, batch, cached, prompt, chunk
):
    config = preset(name)
    chunked = prefill(config, batch, prompt, cached, chunk=chunk, last=False)
    whole = prefill(config, batch, prompt, cached, last=False)
    chunks = -(-prompt // chunk)
    for a, b in zip(chunked, whole):
        assert a.flops == b.flops or a.name in ("scores", "values")
        assert a.calls == chunks * b.calls
        if a.flops and a.name not in ("scores", "values"):
            assert a.weights == chunks * b.weights
            assert a.activations == b.activations


def test_the_largest_model_at_its_full_context_costs_whole_numbers():
    config = preset("llama-3.1-405b")
    for causal in CAUSAL:
        text = generation(config, 8, 120_000, 11_072, causal=causal, chunk=512)
        for op in (*text.prefill, *text.decode, total(text.prefill)):
            assert all(type(n) is int for n in op[2:])
    ops = operators(config, 1, 131_072)
    E, F, L, HD, KD, V, T = 16384, 53248, 126, 16384, 1024, 128256, 131_072
    linear = 2 * T * (L * (2 * E * HD + 2 * E * KD + 3 * E * F) + E * V)
    assert total(ops).flops == linear + L * 2 * 2 * T * T * HD


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"batch": 0}, "batch: 0; it must be 1 or more"),
        ({"new": 0}, "new positions: 0; it must be 1"),
        ({"causal": "half"}, "'half' is not one of square, triangle, blocks"),
        ({"cached": -1}, "cached: -1; it must be 0 or more"),
        ({"cached": [1, 2]}, r"cached: \[1, 2\], where the batch has 1 rows"),
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        operators(DISTINCT, **{"batch": 1, "new": 1, **wrong})


@pytest.mark.parametrize(
    "form, sizes, words",
    [
        (prefill, (1, 0), "new positions: 0"),
        (prefill, (0, 1), "batch: 0"),
        (prefill, (1, 1, -1), "cached: -1"),
        (decode, (1, 5, 0), "new positions: 0"),
        (decode, (1, -1), "cached: -1"),
        (generation, (1, 5, 0), "new_tokens: 0; it must be 1"),
        (textbook.without_cache, (1, 5, 0), "new positions: 0"),
        (activation_peak, (1, 0), "new positions: 0"),
    ],
)
def test_texts_that_cannot_be_are_refused(form, sizes, words):
    with pytest.raises(ValueError, match=words):
        form(DISTINCT, *sizes)


def test_numbers_of_rows_and_steps_may_be_of_any_size():
    config = preset("llama-2-7b")
    one, many = (total(operators(config, n, 1, 10**9)) for n in (1, 10**12))
    assert many.flops == 10**12 * one.flops and many.cache == 10**12 * one.cache
    assert decode(config, 1, 0, 10**12)[-1].calls == 10**12
    assert operators(config, 2, 3, np.array([4, 4])) == operators(config, 2, 3, 4)
    assert all(op.intensity == 0 for op in generation(config, 1, 9, 1).decode)


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chunk: 0; it must be 1"):
        prefill(DISTINCT, 1, 5, chunk=0)


# ---- parameters and cache ---------------------------------------------------

COMPONENT = {"input_layernorm": "norms", "post_attention_layernorm": "norms"}


@given(configs())
def test_parameters_are_those_of_the_tensors(config):
    counts = dict.fromkeys(parameters(config), 0)
    for name, shape in tensor_shapes(config).items():
        part = name.split(".")[-2]
        part = "norms" if part.endswith("norm") else part
        counts[part] += prod(shape)
    assert counts == parameters(config)


@pytest.mark.parametrize(
    "name, published",
    {
        "tinyllama-1.1b": 1_100_048_384,
        "llama-2-7b": 6_738_415_616,
        "llama-2-13b": 13_015_864_320,
        "llama-3-8b": 8_030_261_248,
        "llama-3.1-70b": 70_553_706_496,
        "llama-3.1-405b": 405_853_388_800,
        "llama-3.2-1b": 1_235_814_400,
        "llama-3.2-3b": 3_212_749_824,
    }.items(),
)
def test_parameters_are_those_that_hugging_face_shows(name, published):
    assert sum(parameters(preset(name)).values()) == published


@given(configs(), batches, sizes)
def test_cache_elements_are_those_of_the_cache(config, batch, capacity):
    cache = new_cache(config, batch, capacity)
    bytes_ = cache_bytes(config, batch * capacity, element_bytes=4)
    assert bytes_ == cache.k.nbytes + cache.v.nbytes


@given(configs())
def test_grouped_heads_make_the_cache_smaller_by_their_number(config):
    H, K = config.num_attention_heads, config.num_key_value_heads
    multi_head = Config(**{**vars(config), "num_key_value_heads": H})
    multi_query = Config(**{**vars(config), "num_key_value_heads": 1})
    assert cache_bytes(multi_head) == H // K * cache_bytes(config)
    assert cache_bytes(multi_head) == H * cache_bytes(multi_query)


def test_cache_of_well_known_models():
    assert cache_bytes(preset("llama-2-7b")) == 512 * 2**10
    assert cache_bytes(preset("llama-2-7b"), 1024) == 512 * 2**20
    seventy = preset("llama-2-70b")
    as_multi_head = preset("llama-2-70b", num_key_value_heads=64)
    assert cache_bytes(as_multi_head) == 8 * cache_bytes(seventy)


# ---- the textbook -----------------------------------------------------------

plain = st.builds(
    lambda heads, size, F, L: Config(7, heads * size, F, L, heads, heads, size),
    st.integers(1, 8), st.sampled_from([2, 4, 64]), st.integers(1, 99), st.integers(1, 4),
)  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj", "scores", "values", "o_proj")


@given(plain, batches, st.integers(1, 500))
def test_textbook_forms_are_those_of_a_plain_model(config, b, s):
    h, ff, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    flops = {op.name: op.flops for op in operators(config, b, s)}
    attention = sum(flops[name] for name in ATTENTION)
    mlp = sum(n for name, n in flops.items() if name[:4] in ("gate", "up_p", "down"))
    assert attention == L * textbook.attention_flops(b, s, h)
    assert attention == L * (8 * b * s * h**2 + 4 * b * s**2 * h)
    assert mlp == L * textbook.swiglu_flops(b, s, h, ff) == L * 6 * b * s * h * ff
    assert textbook.mlp_flops(b, s, h) == 16 * b * s * h**2
    assert textbook.layer_flops(b, s, h) == 24 * b * s * h**2 + 4 * b * s**2 * h


@given(configs())
def test_a_token_costs_two_flops_per_parameter_that_is_multiplied(config):
    flops = {op.name: op.flops for op in operators(config, 1, 1)}
    attention = flops["scores"] + flops["values"]
    assert textbook.token_flops(config) == sum(flops.values()) - attention


def test_two_flops_per_parameter_is_a_fair_rule_for_real_models():
    for name in ("llama-2-7b", "llama-2-70b", "llama-3.1-405b"):
        all_of_them = sum(parameters(preset(name)).values())
        assert 0.97 < textbook.token_flops(preset(name)) / (2 * all_of_them) <= 1


@given(batches, st.integers(1, 60), st.integers(1, 99))
def test_what_the_cache_saves_is_the_sum_over_the_steps(b, n, h):
    texts = [textbook.layer_flops(b, t, h) for t in range(1, n + 1)]
    assert textbook.uncached_flops(b, n, h) == sum(texts)
    steps = [24 * b * h**2 + 4 * b * t * h for t in range(1, n + 1)]
    assert textbook.cached_flops(b, n, h) == sum(steps)


@given(big, batches, st.integers(1, 99), st.integers(1, 60))
def test_without_a_cache_every_token_runs_the_whole_text(name, batch, prompt, new):
    config = preset(name)
    work = [one_pass(config, batch, prompt + i, last=True) for i in range(new)]
    expected = tabulate(config, sum(work[1:], work[0]), "square")
    assert textbook.without_cache(config, batch, prompt, new) == expected
    text = generation(config, batch, prompt, new)
    cached = total(text.prefill).flops + total(text.decode).flops
    assert (total(expected).flops > cached) == (new > 1)


# ---- what is held at once ---------------------------------------------------


def measured_peak(config, batch, new, cached, last):
    """Elements that NumPy holds at most during one pass."""
    model = random_model(config, 0)
    cache = new_cache(config, batch, cached + new)
    cache.k[:] = cache.v[:] = 1
    tokens = token_ids(config, 0, batch, new)
    for _ in (True, False):
        cache.length[:] = cached
        tracemalloc.start()
        try:
            forward(model, tokens, cache, last=last)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return peak / 4


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "sizes", [(2, 200, 0), (1, 300, 500), (2, 700, 100), (1, 200, 9000)]
)
@pytest.mark.parametrize(
    "moment, config",
    {
        "feed-forward": Config(64, 64, 1024, 1, 4, 4, 16),
        "attention": Config(64, 256, 64, 1, 8, 8, 32),
        "attention of groups": Config(64, 256, 64, 1, 8, 2, 32),
        "rotation": Config(16, 16, 16, 1, 4, 4, 256),
        "logits": Config(4096, 64, 128, 1, 4, 2, 16),
    }.items(),
)
def test_the_fullest_moment_is_as_full_as_predicted(moment, config, sizes, last):
    peak = measured_peak(config, *sizes, last)
    moments = activation_moments(config, *sizes, last=last)
    short = sizes[2] < 9000 and (moment != "rotation" or sizes[1] == 700)
    if short and not last:
        assert max(moments, key=moments.get) == moment.split()[0]
    small = 6000  # Python's own objects, in elements of four bytes
    most = activation_peak(config, *sizes, last=last)
    assert most <= peak < 1.04 * most + small


@given(big, batches, st.integers(2, 3000), st.integers(0, 3000))
def test_blocks_hold_less_than_the_square_once_the_text_is_long(
    name, batch, new, cached
):
    assume(new >= 1024)
    square = activation_peak(preset(name), batch, new, cached, causal="square")
    assert activation_peak(preset(name), batch, new, cached) <= square


def test_scores_of_the_square_grow_with_the_square_of_the_text():
    config = preset("llama-2-7b")

    def held(new, causal):
        return activation_moments(config, 1, new, causal=causal)["attention"]

    assert held(32768, "square") > 30 * held(32768, "blocks") / 4
    assert held(65536, "blocks") < 2.1 * held(32768, "blocks")
    assert held(65536, "square") > 3.8 * held(32768, "square")
    assert np.isclose(held(65536, "triangle"), 2 * held(32768, "triangle"))
