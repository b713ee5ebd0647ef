"""Keys and values in few bits are those of others, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, normal, random_model, seeds, token_ids
from tolerances import assert_close, assert_same

from npllama.attention import attention
from npllama.cache import new_cache
from npllama.compression.kv_cache import (
    Rounded,
    attend,
    forward_rounded,
    new_rounded,
    unpack,
    write,
)
from npllama.compression.kv_rounding import (
    Rule,
    Rules,
    check_rules,
    due,
    kivi,
    q8_0,
    restored,
    round_off,
)
from npllama.config import preset
from npllama.cost.rounded import (
    Format,
    rounded_cache_bytes,
    stored_bits,
    unpacked_bytes,
)
from npllama.model import forward
from npllama.weights import Layer

GOLDEN = np.load(Path(__file__).parent / "goldens" / "kv_cache.npz")
TEXTS = {"short": 5, "even": 64, "long": 107}  # prompts, in tokens
EXACT = "float32"  # ends that lose nothing


def values_of(x, rule, ends=EXACT):
    codes, scale, lowest = round_off(x, rule, ends)
    return restored(codes.astype(x.dtype), scale, lowest, rule)


# ---- what others have ---------------------------------------------------------


@pytest.mark.parametrize("what", "kv")
@pytest.mark.parametrize("bits", (2, 4, 8))
@pytest.mark.parametrize("group", (16, 32))
def test_codes_scales_and_values_are_those_of_kivi(what, bits, group):
    rule = Rule(bits, {"k": "channel", "v": "token"}[what], group)
    codes, scale, lowest = round_off(GOLDEN["x"], rule, EXACT)
    parts = "codes", "scale", "lowest", "values"
    theirs = {part: GOLDEN[f"{what}.{bits}.{group}.{part}"] for part in parts}
    assert_same(scale, theirs["scale"])
    assert_same(lowest, theirs["lowest"])
    # Of equal numbers, KIVI divides by zero; their codes are multiplied with it.
    some = np.repeat(scale, group, axis=1 if what == "k" else 2) > 0
    assert some.all() == ((what, group) != ("k", 16))
    assert_same(codes[some], theirs["codes"][some])
    assert_same(values_of(GOLDEN["x"], rule), theirs["values"])


def test_eight_symmetric_bits_are_those_of_llama_cpp():
    assert_same(values_of(GOLDEN["x"], q8_0().keys, "float16"), GOLDEN["q8_0.values"])


@pytest.mark.parametrize("bits", (2, 4))
@pytest.mark.parametrize("name", TEXTS)
def test_attention_over_a_prompt_and_token_by_token_is_that_of_kivi(name, bits):
    """What is rounded, and when, is decided by the published code of the model."""
    config = replace(DISTINCT, num_key_value_heads=2, head_dim=16, num_hidden_layers=1)
    x = GOLDEN[f"{name}.text"][None]  # (1, T, E)
    wq, wk, wv = (GOLDEN[f"w{n}"].reshape(2, 16, 32) for n in "qkv")
    wo = GOLDEN["wo"].reshape(32, 2, 16)
    layer = Layer(*[None] * len(Layer._fields))._replace(wq=wq, wk=wk, wv=wv, wo=wo)
    cache = new_rounded(config, 1, x.shape[1], kivi(bits, 16, 32)._replace(ends=EXACT))
    kv, found, start = (cache.k[0], cache.v[0]), [], 0
    for n in [TEXTS[name], *[1] * (x.shape[1] - TEXTS[name])]:
        still = np.ones((1, n, 8), np.float32), np.zeros((1, n, 8), np.float32)
        at, count = np.array([start]), np.array([n])
        part = x[:, start : start + n]
        found.append(attention(part, layer, still, *kv, at, count, attend, write)[0])
        start += n
    expected = GOLDEN[f"{name}.{bits}.y"]
    assert_close(np.concatenate(found), expected, terms=2 * 32 + len(expected))


# ---- rounding -------------------------------------------------------------------

rules = st.builds(
    Rule,
    st.integers(2, 8),
    st.sampled_from(["channel", "token"]),
    st.integers(1, 9),
    st.booleans(),
)


def by_loops(x, rule):
    """Every group by itself, in float64."""
    y = np.empty(x.shape)
    K, T, D = x.shape
    for k in range(K):
        for t in range(T):
            for d in range(D):
                if rule.per == "channel":
                    t0 = t // rule.group * rule.group
                    group = x[k, t0 : t0 + rule.group, d]
                else:
                    d0 = d // rule.group * rule.group
                    group = x[k, t, d0 : d0 + rule.group]
                if rule.symmetric:
                    scale = np.abs(group).max() / (2 ** (rule.bits - 1) - 1)
                    y[k, t, d] = scale * np.round(x[k, t, d] / (scale or 1))
                else:
                    low = group.min()
                    scale = (group.max() - low) / (2**rule.bits - 1)
                    y[k, t, d] = low + scale * np.round(
                        (x[k, t, d] - low) / (scale or 1)
                    )
    return y


@given(seeds, rules, st.integers(1, 3), st.integers(1, 10), st.integers(1, 9))
@example(0, Rule(2, "channel", 4), 2, 10, 3)
@example(0, Rule(3, "token", 4), 2, 3, 6)
@example(1, Rule(8, "token", 4, True), 2, 3, 6)
def test_every_group_is_rounded_by_itself(seed, rule, K, T, D):
    x = normal(seed, K, T, D)
    found = values_of(x, rule, "float32")
    # The ends are float32.
    assert np.abs(found - by_loops(x, rule)).max() < 300 * np.finfo(np.float32).eps


def test_four_keys_by_hand():
    x = np.array([[[1, 0], [4, 0], [2.2, 0], [1.9, 3]]], np.float32)  # (K, T, D)
    codes, scale, lowest = round_off(x, Rule(2, "channel", 4), EXACT)
    assert scale.tolist() == [[[1, 1]]] and lowest.tolist() == [[[1, 0]]]
    assert codes[0].T.tolist() == [[0, 3, 1, 1], [0, 0, 0, 3]]
    codes, scale, lowest = round_off(x, Rule(1, "token", 2), EXACT)
    assert codes[0].tolist() == [[1, 0], [1, 0], [1, 0], [0, 1]]
    assert lowest[0, :, 0].tolist() == [0, 0, 0, np.float32(1.9)]


def test_a_group_of_one_token_per_channel_rounds_nothing():
    x = normal(0, 2, 5, 4, dtype="float32")
    with np.errstate(all="raise"):  # nothing is divided by the step, which is 0
        assert_same(values_of(x, Rule(2, "channel", 1)), x)


def test_the_middle_between_two_steps_goes_to_the_even_one():
    x = np.array([[[0, 0.5, 1.5, 2.5, 3]]], np.float32)
    codes, *_ = round_off(x, Rule(2, "token", 5), EXACT)
    assert codes.tolist() == [[[0, 0, 2, 2, 3]]]


def test_symmetric_codes_by_hand():
    x = np.array([[[-7, 1, 3.4, 2], [0, 0, 0, 14]]], np.float32)
    codes, scale, lowest = round_off(x, Rule(4, "token", 4, symmetric=True), EXACT)
    assert scale[0, :, 0].tolist() == [1, 2] and lowest is None
    assert codes[0].tolist() == [[1, 9, 11, 10], [8, 8, 8, 15]]


def test_a_large_channel_costs_others_their_digits_only_per_token():
    x = normal(3, 1, 64, 32, dtype="float32")
    x[:, :, 7] += 40
    others = np.arange(32) != 7

    def error(per):
        return np.square(values_of(x, Rule(2, per, 32)) - x)[:, :, others].mean()

    assert error("token") > 0.4 and error("channel") < 0.2


def test_numbers_that_float16_does_not_hold_are_refused():
    config = replace(DISTINCT, num_hidden_layers=1)
    model = random_model(config, 0)
    bias = np.full_like(model.layers[0].bv, 7e4)
    model = model._replace(layers=(model.layers[0]._replace(bv=bias),))
    tokens = np.array([[1, 2, 3]])
    small = kivi(2, 2, 2)
    with pytest.raises(ValueError, match="too large for float16"):
        forward_rounded(model, tokens, new_rounded(config, 1, 4, small))
    ends = small._replace(ends="float32")
    forward_rounded(model, tokens, new_rounded(config, 1, 4, ends))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (kivi(0), "keys of 0 bits"),
        (kivi(9), "1 to 8 bits"),
        (kivi(2, 0), "groups of 1 or more"),
        (kivi(2, 32, 48), "multiple of that, from 32 on; found 48"),
        (kivi(2, 32, 0), "found 0"),
        (q8_0()._replace(residual=-1), "residual -1"),
        (kivi()._replace(ends="float64"), "float16 or float32"),
        (kivi()._replace(values=Rule(2, "head")), "values per 'head'"),
        (kivi()._replace(values=Rule(1, "token", 32, True)), "2 at least if symmetric"),
    ],
)
def test_rules_that_cannot_be_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        check_rules(given)
    with pytest.raises(ValueError, match=words):
        new_rounded(DISTINCT, 1, 8, given)


def test_an_empty_cache_is_refused():
    for rows, capacity in (0, 8), (1, 0):
        with pytest.raises(ValueError, match="is empty"):
            new_rounded(DISTINCT, rows, capacity, kivi())


# ---- the cache --------------------------------------------------------------------


@st.composite
def cache_rules(draw):
    group, bits = draw(st.integers(1, 3)), draw(st.sampled_from([2, 3, 4, 8]))
    keys = Rule(bits, draw(st.sampled_from(["channel", "token"])), group)
    values = Rule(bits, draw(st.sampled_from(["token", "channel"])), group)
    return Rules(keys, values, group * draw(st.integers(1, 3)))


class Whole:
    """A plain cache, in which everything that is due is rounded after every pass."""

    def __init__(self, model, rows, capacity, rules):
        self.model, self.rules = model, rules
        self.cache = new_cache(model.config, rows, capacity, model.embed.dtype.name)
        self.done = {}

    def forward(self, tokens, count=None):
        logits = forward(self.model, tokens, self.cache, count)
        for store, rule in (
            (self.cache.k, self.rules.keys),
            (self.cache.v, self.rules.values),
        ):
            for i, layer in enumerate(store):
                for b, n in enumerate(self.cache.length.tolist()):
                    done = self.done.get((id(store), i, b), 0)
                    last = due(n, rule, self.rules.residual)
                    if last > done:
                        new = values_of(layer[b, :, done:last], rule, self.rules.ends)
                        layer[b, :, done:last] = new
                        self.done[id(store), i, b] = last
        return logits


PARTS = [[5, 1, 1, 1, 1, 1, 1], [1] * 7, [3, 4, 2]]


@given(configs(), seeds, cache_rules(), st.sampled_from(PARTS))
@example(DISTINCT, 0, kivi(2, 2, 4), PARTS[0])
@example(DISTINCT, 1, kivi(4, 3, 3), PARTS[2])
def test_logits_are_those_of_a_plain_cache_that_holds_rounded_numbers(
    config, seed, rules, parts
):
    """Bit for bit, for rows that are unequally long."""
    model = random_model(config, seed)
    capacity = sum(parts) + 2
    whole = Whole(model, 2, capacity, rules)
    cache = new_rounded(config, 2, capacity, rules)
    for i, n in enumerate(parts):
        tokens = token_ids(config, seed + i, 2, n)
        count = np.array([n, max(n - 1, i % 2)])
        expected = whole.forward(tokens, count)
        found = forward_rounded(model, tokens, cache, count)
        for b, real in enumerate(count.tolist()):
            assert_same(found[b, :real], expected[b, :real])
    assert cache.length.tolist() == whole.cache.length.tolist()


@given(configs(), seeds, st.integers(1, 8), st.integers(1, 4))
def test_a_residual_longer_than_the_text_gives_plain_decoding(config, seed, n, more):
    model, rules = random_model(config, seed), kivi(2, 1, n + 3 + more)
    plain, few = new_cache(config, 2, n + 3), new_rounded(config, 2, n + 3, rules)
    for i, T in enumerate((n, 1, 2)):
        tokens = token_ids(config, seed + i, 2, T)
        expected = forward(model, tokens, plain)
        assert_same(forward_rounded(model, tokens, few), expected)


def written(x, rules, parts):
    """A layer's keys and values after some positions at a time."""
    config = replace(
        DISTINCT,
        num_key_value_heads=x.shape[1],
        num_attention_heads=x.shape[1],
        head_dim=x.shape[3],
        num_hidden_layers=1,
    )
    cache = new_rounded(config, len(x), x.shape[2], rules)
    start = 0
    for n in parts:
        new = x[:, :, start : start + n].swapaxes(1, 2)  # (B, T, K, D)
        for store in cache.k[0], cache.v[0]:
            at, count = (np.full(len(x), number) for number in (start, n))
            write(store, new, at, count)
        start += n
    return cache


@given(seeds, cache_rules(), st.integers(2, 12))
@example(0, kivi(2, 2, 4), 12)
def test_one_by_one_is_rounded_as_all_at_once(seed, rules, n):
    x = normal(seed, 2, 3, n, 4, dtype="float32")
    one, all_ = written(x, rules, [1] * n), written(x, rules, [n])
    for ours, theirs in (one.k, all_.k), (one.v, all_.v):
        for name in "codes", "scale", "lowest", "done":
            assert_same(getattr(ours, name), getattr(theirs, name))
        left = n - int(ours.done[0, 0])
        assert_same(ours.floats[..., :left, :], theirs.floats[..., :left, :])


def test_what_is_rounded_follows_the_published_rule():
    rule_k, rule_v = Rule(2, "channel", 2), Rule(2, "token", 2)
    lengths = range(13)
    assert [due(n, rule_k, 4) for n in lengths] == [*[0] * 4, *[4] * 4, *[8] * 4, 12]
    assert [due(n, rule_v, 4) for n in lengths] == [*[0] * 4, *range(9)]


def test_rows_know_nothing_of_each_other():
    x = normal(5, 3, 2, 9, 4, dtype="float32")
    y = x.copy()
    y[0] *= 100
    one, other = (written(a, kivi(2, 2, 4), [9]) for a in (x, y))
    for ours, theirs in (one.k, other.k), (one.v, other.v):
        assert_same(ours.codes[:, 1:], theirs.codes[:, 1:])
        assert_same(ours.scale[:, 1:], theirs.scale[:, 1:])


def test_heads_have_scales_of_their_own():
    x = np.stack([3 * np.eye(8, 4), 96 * np.eye(8, 4)])[None].astype(np.float32)
    cache = written(x, kivi(2, 4, 4), [8])
    for store in cache.k, cache.v:
        n = int(store.done[0, 0])
        assert_same(unpack(store[0], 0, n), x[0, :, :n])


@pytest.mark.parametrize("back", range(9))
def test_rows_can_be_rolled_back(back):
    """What is left is as it was, and can go on; within the residual nothing is lost."""
    config, rules = DISTINCT, kivi(4, 2, 4)
    model, tokens = random_model(config, 3), token_ids(DISTINCT, 3, 1, 20)
    cache = new_rounded(config, 1, 20, rules)
    for t in range(9):
        forward_rounded(model, tokens[:, t : t + 1], cache)
    assert cache.k.done.tolist() == [[8], [8]]
    left = cache.length[0] = 9 - back
    whole = min(left // 2 * 2, 8)  # a group that is cut may change
    before = state_of(cache, whole, min(left, 5))
    forward_rounded(model, tokens[:, left : left + 1], cache)
    for ours, theirs in zip(state_of(cache, whole, min(left, 5)), before):
        assert_same(ours, theirs)
    for t in range(10 - back, 20):
        forward_rounded(model, tokens[:, t : t + 1], cache)
    for ours, theirs in zip(state_of(cache, whole, min(left, 5)), before):
        assert_same(ours, theirs)
    assert cache.k.done.tolist() == [[20], [20]] and cache.length.tolist() == [20]
    assert cache.v.done.tolist() == [[16], [16]]


@pytest.mark.parametrize("left", (9, 6))
def test_what_is_rounded_is_not_rounded_again(left):
    x = normal(1, 1, 3, 12, 4, dtype="float32")
    cache = written(x, kivi(4, 2, 4), [9])
    for store, n in (cache.k, 6), (cache.v, 5):
        # Rounded again, these would be groups of equal numbers, with a scale of 0.
        store.codes[:] = 0
        scales = store.scale.copy()
        for t in range(left, 12):
            new = x[:, :, t : t + 1].swapaxes(1, 2)
            write(store[0], new, np.array([t]), np.array([1]))
        groups = n // 2 if store is cache.k else n
        assert scales[:, :, :, :groups].all()
        assert_same(store.scale[:, :, :, :groups], scales[:, :, :, :groups])


def state_of(cache, *lengths):
    """The first keys and values of row 0, of every layer."""
    found = []
    for store, n in zip((cache.k, cache.v), lengths):
        for i in range(2):
            layer = store[i]
            done = int(layer.done[0])
            x = np.concatenate([unpack(layer, 0, done), layer.floats[0]], axis=1)
            found.append(x[:, :n])
    return found


def test_float64_stays_float64():
    model = random_model(DISTINCT, 0, "float64")
    cache = new_rounded(DISTINCT, 1, 9, kivi(4, 2, 4), "float64")
    tokens = token_ids(DISTINCT, 0, 1, 9)
    assert forward_rounded(model, tokens, cache).dtype == np.float64
    assert cache.k.plain.dtype == cache.k.floats.dtype == np.float64


def test_a_cache_of_another_dtype_or_without_the_hooks_is_refused():
    model, tokens = random_model(DISTINCT, 0), np.array([[1]])
    with pytest.raises(ValueError, match="float64"):
        forward_rounded(model, tokens, new_rounded(DISTINCT, 1, 9, kivi(), "float64"))
    with pytest.raises(TypeError):
        forward(model, tokens, new_rounded(DISTINCT, 1, 9, kivi()))


# ---- memory -------------------------------------------------------------------------


def format_of(rule, ends):
    return Format(
        rule.bits, rule.group, 1 if rule.symmetric else 2, 8 * np.dtype(ends).itemsize
    )


@given(configs(), st.integers(1, 3), st.integers(1, 40), st.integers(1, 8), st.data())
def test_bytes_are_the_closed_form(config, rows, capacity, bits, data):
    group, ends = (
        data.draw(st.integers(1, 9)),
        data.draw(st.sampled_from(["float16", EXACT])),
    )
    rules = kivi(bits, group, group * data.draw(st.integers(1, 9)))._replace(ends=ends)
    cache = new_rounded(config, rows, capacity, rules)
    keys, values = (format_of(rule, ends) for rule in rules[:2])
    args = config, rows, capacity, keys, values, rules.residual
    assert cache.k.nbytes + cache.v.nbytes == rounded_cache_bytes(*args)
    plain = cache.k.plain.nbytes + cache.v.plain.nbytes
    assert plain == unpacked_bytes(config, rows, capacity)


def test_memory_falls_to_what_the_bits_say():
    config = replace(preset("llama-2-7b"), num_hidden_layers=4)
    few, plain = (
        new_rounded(config, 1, 4096, kivi(2, 32, 128)),
        new_cache(config, 1, 4096),
    )
    bits = 8 * (few.k.nbytes + few.v.nbytes) / (plain.k.size + plain.v.size)
    assert stored_bits(Format(2, 32)) == 3 < bits < 3 + 32 * 128 / 4096 + 0.001
    assert stored_bits(Format(8, 32, ends=1)) == 8.5
    assert stored_bits(Format(3, 8)) == 8 and stored_bits(Format(4, 128, 1)) == 4.125


def test_it_says_what_it_is():
    cache = new_rounded(DISTINCT, 2, 8, kivi(2, 2, 4))
    assert repr(cache.k) == "Rounded(2 bits per channel, (2, 2, 3, 8, 4))"
    assert "N=8" in repr(cache) and "L=2 B=2 K=3 D=4 float32" in repr(cache)
    assert isinstance(cache.k[1], Rounded) and cache.k[1].shape == (2, 3, 8, 4)
