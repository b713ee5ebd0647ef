"""Chapter 9: the whole model."""

from dataclasses import replace

import numpy as np
import pytest
import spec
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    DISTINCT,
    chunkings,
    configs,
    dtypes,
    random_model,
    ropes,
    seeds,
    token_ids,
)
from tolerances import assert_close, assert_same, depth

from npllama.attention import blocked, naive
from npllama.cache import KVCache, new_cache
from npllama.config import Rope
from npllama.model import forward
from npllama.ops import Observer, observing

paths = st.sampled_from([naive, blocked])
lengths = st.integers(1, 6)


def close(actual, expected, config, S):
    """Logits equal up to the rounding of all that they passed through."""
    assert_close(actual, expected, depth(config, S), scale=1 + np.abs(expected).max())


def logits_of(model, tokens):
    """The logits of texts run at once, in a cache of their own."""
    B, T = tokens.shape
    return forward(model, tokens, new_cache(model.config, B, T, model.embed.dtype.name))


# ---- spec -------------------------------------------------------------------


@given(configs(trained=st.sampled_from([4, 64])), lengths, seeds, dtypes, paths)
@example(replace(DISTINCT, hidden_act="relu"), 2, 0, "float32", blocked)
@example(replace(DISTINCT, hidden_act="gelu"), 2, 0, "float32", blocked)
@example(replace(DISTINCT, hidden_act="gelu_pytorch_tanh"), 2, 0, "float64", blocked)
def test_forward_equals_the_spec(config, T, seed, dtype, attend):
    model = random_model(config, seed, dtype)
    tokens = token_ids(config, seed, 2, T)
    y = forward(model, tokens, new_cache(config, 2, T, dtype), attend=attend)
    expected = np.array([spec.forward(model, row.tolist()) for row in tokens])
    assert y.dtype == dtype
    close(y, expected, config, T)


# ---- the cache --------------------------------------------------------------


@given(configs(), st.integers(1, 3), lengths.flatmap(chunkings), seeds, dtypes, paths)
@example(DISTINCT, 2, [1, 1, 1, 1, 1], 0, "float32", blocked)
@example(DISTINCT, 2, [2, 3], 0, "float32", naive)
def test_any_chunking_gives_the_same_logits(config, B, chunks, seed, dtype, attend):
    # `configs` keeps `dynamic` within the trained length: beyond it, cached keys
    # were turned at another speed than those of a run at once.
    model, T = random_model(config, seed, dtype), sum(chunks)
    tokens = token_ids(config, seed, B, T)
    cache = new_cache(config, B, T + 2, dtype)
    ends = np.cumsum(chunks)
    parts = [
        forward(model, tokens[:, end - n : end], cache, attend=attend)
        for n, end in zip(chunks, ends)
    ]
    assert cache.length.tolist() == [T] * B
    close(np.concatenate(parts, axis=1), logits_of(model, tokens), config, T)


@given(configs(), st.integers(1, 5), st.integers(1, 5), seeds)
def test_logits_of_a_prefix_are_the_prefix_of_the_logits(config, T, more, seed):
    model = random_model(config, seed, "float64")
    tokens = token_ids(config, seed, 2, T + more)
    whole = logits_of(model, tokens)
    close(logits_of(model, tokens[:, :T]), whole[:, :T], config, T + more)


@st.composite
def ragged(draw, B=3):
    """What each row holds already, how many tokens it gets, and the padded width."""
    start = draw(st.lists(st.integers(0, 6), min_size=B, max_size=B))
    T = draw(st.integers(1, 5))
    count = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    return np.array(start), np.array(count), T


def filled_cache(config, start, count, seed, dtype="float64", room=3):
    """A cache whose rows hold something of their own, and junk after it."""
    N = int((start + count).max()) + room
    cache = new_cache(config, len(start), N, dtype)
    rng = np.random.default_rng([seed, 9])
    cache.k[:] = rng.standard_normal(cache.k.shape)
    cache.v[:] = rng.standard_normal(cache.v.shape)
    cache.length[:] = start
    return cache


def copied(cache, rows=slice(None)):
    return KVCache(*(a[:, rows].copy() for a in cache[:2]), cache.length[rows].copy())


dynamic_beyond = st.sampled_from([4, 128])


@given(configs(trained=dynamic_beyond), ragged(), seeds, paths)
@example(
    replace(DISTINCT, rope=Rope("dynamic", factor=4.0), max_position_embeddings=4),
    (np.array([0, 0, 0]), np.array([2, 5, 1]), 5),
    0,
    blocked,
)
def test_row_of_a_ragged_batch_equals_the_row_alone(config, rows, seed, attend):
    start, count, T = rows
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 3, T)
    cache = filled_cache(config, start, count, seed)
    single = [copied(cache, slice(b, b + 1)) for b in range(3)]
    y = forward(model, tokens, cache, count, attend=attend)
    for b, n in enumerate(count):
        if n:
            alone = forward(model, tokens[b : b + 1, :n], single[b], attend=attend)
            close(y[b : b + 1, :n], alone, config, 12)
            last = start[b] + n
            assert_close(
                cache.k[:, b, :, :last],
                single[b].k[:, 0, :, :last],
                depth(config, 12),
                10,
            )


@given(configs(), ragged(), seeds)
def test_only_the_new_positions_of_the_cache_are_written(config, rows, seed):
    start, count, T = rows
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 3, T)
    cache = filled_cache(config, start, count, seed)
    before = copied(cache)
    forward(model, tokens, cache, count)
    assert_same(cache.length, before.length + count)
    for b in range(3):
        old = np.ones(cache.k.shape[3], dtype=bool)
        old[start[b] : start[b] + count[b]] = False
        for now, then in zip(cache[:2], before[:2]):
            assert_same(now[:, b, :, old], then[:, b, :, old])
            assert not (now[:, b, :, ~old] == then[:, b, :, ~old]).all() or not count[b]


@given(configs(trained=dynamic_beyond), ragged(), seeds, paths)
def test_what_lies_after_a_row_in_the_cache_is_never_looked_at(
    config, rows, seed, attend
):
    start, count, T = rows
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 3, T)
    cache = filled_cache(config, start, count, seed)
    poisoned = copied(cache)
    for b in range(3):
        poisoned.k[:, b, :, start[b] :] = np.nan
        poisoned.v[:, b, :, start[b] :] = np.nan
    y = forward(model, tokens, cache, count, attend=attend)
    z = forward(model, tokens, poisoned, count, attend=attend)
    for b, n in enumerate(count):
        if n:
            close(z[b, :n], y[b, :n], config, 12)


# ---- rows -------------------------------------------------------------------


@given(configs(), ragged(), seeds, st.sampled_from([np.nan, 1e30, -np.inf]), paths)
def test_row_does_not_depend_on_its_neighbours(config, rows, seed, value, attend):
    start, count, T = rows
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 3, T)
    # The last word of the vocabulary is spoilt, and only neighbours say it.
    tokens[0] %= config.vocab_size - 1
    cache = filled_cache(config, start, count, seed)
    disturbed = copied(cache)
    y = forward(model, tokens, cache, count, attend=attend)
    model.embed[-1] = value
    tokens[1:] = config.vocab_size - 1
    disturbed.k[:, 1:], disturbed.v[:, 1:] = value, value
    with np.errstate(all="ignore"):
        z = forward(
            model._replace(lm_head=random_model(config, seed, "float64").lm_head),
            tokens, disturbed, count, attend=attend,
        )  # fmt: skip
    n = count[0]
    if n:
        close(z[0, :n], y[0, :n], config, 12)
    assert_close(
        disturbed.k[:, 0], cache.k[:, 0], depth(config, 12), 1 + np.abs(cache.k).max()
    )


@given(configs(), st.integers(2, 6), seeds, st.sampled_from([np.nan, 1e30]), paths)
def test_changing_the_future_changes_nothing(config, T, seed, value, attend):
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 2, T)
    tokens %= config.vocab_size - 1
    y = logits_of(model, tokens)
    head = model.lm_head.copy()
    model.embed[-1], future = value, tokens.copy()
    future[:, T // 2 :] = config.vocab_size - 1
    with np.errstate(all="ignore"):
        cache = new_cache(config, 2, T, "float64")
        z = forward(model._replace(lm_head=head), future, cache, attend=attend)
    close(z[:, : T // 2], y[:, : T // 2], config, T)


@given(configs(), st.permutations(range(3)), ragged(), seeds)
def test_permuting_the_batch_permutes_the_logits(config, order, rows, seed):
    start, count, T = rows
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 3, T)
    cache = filled_cache(config, start, count, seed)
    permuted = copied(cache, order)
    y = forward(model, tokens, cache, count)
    z = forward(model, tokens[order], permuted, count[order])
    for b, n in enumerate(count[order]):
        if n:
            close(z[b, :n], y[order][b, :n], config, 12)


@given(configs(trained=dynamic_beyond), ragged(), seeds, paths)
def test_last_is_the_logits_after_each_rows_last_token(config, rows, seed, attend):
    start, count, T = rows
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 3, T)
    cache = filled_cache(config, start, count, seed)
    again = copied(cache)
    y = forward(model, tokens, cache, count, attend=attend)
    z = forward(model, tokens, again, count, last=True, attend=attend)
    assert z.shape == (3, 1, config.vocab_size)
    for b, n in enumerate(count):
        if n:
            close(z[b, 0], y[b, n - 1], config, 12)


@given(configs(), ragged(), seeds)
def test_naive_and_blocked_models_agree(config, rows, seed):
    start, count, T = rows
    model, tokens = random_model(config, seed), token_ids(config, seed, 3, T)
    cache = filled_cache(config, start, count, seed, "float32")
    again = copied(cache)
    y = forward(model, tokens, cache, count, attend=naive)
    z = forward(model, tokens, again, count)
    for b, n in enumerate(count):
        if n:
            close(z[b, :n], y[b, :n], config, 12)


# ---- biases, ties, positions ------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["bq", "bk", "bv", "bo", "b_gate", "b_up", "b_down", "attn_norm", "mlp_norm"],
)
def test_every_bias_and_gain_of_every_layer_matters(name):
    model, tokens = random_model(DISTINCT, 0), token_ids(DISTINCT, 0, 2, 5)
    before = logits_of(model, tokens)
    for i in range(DISTINCT.num_hidden_layers):
        array = getattr(model.layers[i], name)
        array += 0.5
        after = logits_of(model, tokens)
        array -= 0.5
        assert np.abs(after - before).max() > 1e-3


def test_tied_model_scores_with_its_embedding():
    model = random_model(replace(DISTINCT, tie_word_embeddings=True), 0)
    assert model.lm_head is model.embed


@given(ropes(), seeds)
def test_same_tokens_in_another_order_give_other_logits(rope, seed):
    config = replace(DISTINCT, rope=rope)
    model = random_model(config, seed, "float64")
    y = logits_of(model, np.array([[3, 5, 7], [5, 3, 7]]))[:, -1]
    assert np.abs(y[0] - y[1]).max() > 1e-9


@given(configs(), st.integers(1, 6), st.integers(0, 50), seeds)
def test_text_may_stand_anywhere(config, T, shift, seed):
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 2, T)
    at = np.tile(np.arange(T) + shift, (2, 1))
    moved = forward(model, tokens, new_cache(config, 2, T, "float64"), positions=at)
    close(moved, logits_of(model, tokens), config, T + 50)


@given(configs(["default"]), st.integers(1, 6), seeds)
def test_linear_scaling_undoes_standing_further_apart(config, T, seed):
    model, tokens = random_model(config, seed, "float64"), token_ids(config, seed, 2, T)
    rope = replace(config.rope, rope_type="linear", factor=2.0)
    slow = model._replace(config=replace(config, rope=rope))
    cache = new_cache(config, 2, T, "float64")
    apart = forward(slow, tokens, cache, positions=np.tile(2 * np.arange(T), (2, 1)))
    close(apart, logits_of(model, tokens), config, T)


# ---- observers, dtype -------------------------------------------------------


class Shapes(Observer):
    """Keeps what it is shown: place, name, shape and dtype."""

    def __init__(self):
        self.place, self.seen = "", []

    def enter(self, place):
        self.place = place

    def product(self, kind, a, b, y):
        for array in (a, b, y):
            self.note(kind.name, array)

    def note(self, name, x):
        self.seen.append((self.place, name, x.shape, x.dtype.name))


@given(configs(), ragged(), seeds, dtypes, paths)
def test_every_observed_array_has_the_models_dtype(config, rows, seed, dtype, attend):
    start, count, T = rows
    model, tokens = random_model(config, seed, dtype), token_ids(config, seed, 3, T)
    cache, watcher = filled_cache(config, start, count, seed, dtype), Shapes()
    with observing(watcher):
        y = forward(model, tokens, cache, count, attend=attend)
    assert {found for *_, found in watcher.seen} == {dtype} == {y.dtype.name}


def test_observer_is_told_every_place_and_every_activation():
    model, watcher = random_model(DISTINCT, 0), Shapes()
    with observing(watcher):
        logits_of(model, token_ids(DISTINCT, 0, 2, 5))
    B, T, E, H, K, D, F, V = 2, 5, 7, 6, 3, 4, 11, 13
    layer = {
        "input_layernorm": (B, T, E),
        "q_proj": (B, T, H, D),
        "k_proj": (B, T, K, D),
        "v_proj": (B, T, K, D),
        "q_rope": (B, T, H, D),
        "k_rope": (B, T, K, D),
        "attention": (B, T, H, D),
        "o_proj": (B, T, E),
        "post_attention": (B, T, E),
        "post_attention_layernorm": (B, T, E),
        "gate_proj": (B, T, F),
        "up_proj": (B, T, F),
        "act_fn": (B, T, F),
        "down_proj": (B, T, E),
        "output": (B, T, E),
    }
    whole = {"embed_tokens": (B, T, E), "norm": (B, T, E), "lm_head": (B, T, V)}
    found = {(place, name): shape for place, name, shape, _ in watcher.seen}
    expected = {("model", name): shape for name, shape in whole.items()}
    for i in range(2):
        expected |= {(f"model.layers.{i}", name): s for name, s in layer.items()}
    assert {key: found[key] for key in expected} == expected


# ---- what is refused --------------------------------------------------------

V, N = DISTINCT.vocab_size, 6
WRONG = {
    "a token beyond the vocabulary": (dict(tokens=[[1, V], [2, 3]]), f"{V} is outside"),
    "a negative token": (dict(tokens=[[1, -1], [2, 3]]), "-1 is outside"),
    "tokens without a batch": (dict(tokens=[1, 2]), "integers of shape"),
    "no tokens": (dict(tokens=[[], []]), "integers of shape"),
    "tokens that are not whole": (dict(tokens=[[1.0, 2.0], [3.0, 4.0]]), "float64"),
    "tokens that are truth values": (dict(tokens=[[True, True]] * 2), "bool"),
    "too few counts": (dict(count=[1]), "2 numbers from 0 to 2"),
    "a count beyond the tokens": (dict(count=[1, 3]), "2 numbers from 0 to 2"),
    "a negative count": (dict(count=[-1, 1]), "2 numbers from 0 to 2"),
    "a count that is not whole": (dict(count=[0.5, 1.0]), "2 numbers from 0 to 2"),
    "another batch": (dict(tokens=[[1, 2]]), "capacity"),
    "more than the cache holds": (dict(length=[5, 0]), f"hold 7 .* capacity is {N}"),
    "a length that no cache has": (dict(length=[-1, 0]), "length"),
    "a cache of another dtype": (dict(dtype="float64"), "need float32"),
    "values of another shape": (dict(v=(2, 2, 3, N, 2)), "capacity"),
    "too few lengths": (dict(length=[0]), "length"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_forward_refuses_and_leaves_the_cache_alone(wrong):
    changes, message = WRONG[wrong]
    dtype = changes.get("dtype", "float32")
    cache = new_cache(DISTINCT, 2, N, dtype)
    v = np.zeros(changes.get("v", cache.v.shape), dtype=dtype)
    length = np.array(changes.get("length", [2, 1]))
    cache, before = KVCache(cache.k, v, length), length.copy()
    tokens = changes.get("tokens", [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=message):
        forward(random_model(DISTINCT, 0), tokens, cache, changes.get("count"))
    assert_same(cache.length, before)
    assert not cache.k.any() and not cache.v.any()


def test_row_may_fill_its_cache_to_the_last_place_but_not_beyond():
    model, cache = random_model(DISTINCT, 0), new_cache(DISTINCT, 2, 5)
    tokens = token_ids(DISTINCT, 0, 2, 5)
    forward(model, tokens, cache)
    with pytest.raises(ValueError, match="capacity is 5"):
        forward(model, tokens[:, :1], cache)
    assert cache.length.tolist() == [5, 5]


def test_padding_may_reach_beyond_the_cache():
    model, cache = random_model(DISTINCT, 0), new_cache(DISTINCT, 2, 5)
    tokens = token_ids(DISTINCT, 0, 2, 4)
    forward(model, tokens, cache)
    y = forward(model, tokens, cache, np.array([1, 0]))
    whole = logits_of(model, np.concatenate([tokens, tokens[:, :1]], axis=1))
    close(y[0, :1], whole[0, -1:], DISTINCT, 5)
