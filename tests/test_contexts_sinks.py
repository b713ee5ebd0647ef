"""A stream in one pass is the stream token by token, at any depth."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import DISTINCT, random_model, seeds, token_ids

from npllama.cache import new_cache
from npllama.config import Rope
from npllama.contexts.sinks import at_once, context_shift, forgotten, stream_pairs
from npllama.contexts.sparse import attending, window
from npllama.contexts.streaming import Stream, forget, streamed
from npllama.cost.counter import FlopCounter
from npllama.model import forward

PLAIN, YARN = Rope(), Rope("yarn", 1e4, 4.0, 16)


def model_of(seed, layers=3, rope=PLAIN, dtype="float64"):
    config = replace(DISTINCT, num_hidden_layers=layers, rope=rope)
    return random_model(config, seed, dtype)


def in_pieces(model, tokens, pieces, attend):
    """Logits of a text on a cache that holds all of it, read piece by piece."""
    cache, t, found = new_cache(model.config, 1, len(tokens), model.embed.dtype), 0, []
    while t < len(tokens):
        n = min(pieces[len(found) % len(pieces)], len(tokens) - t)
        part = np.array([tokens[t : t + n]])
        found.append(forward(model, part, cache, attend=attend)[0])
        t += n
    return np.concatenate(found)


@st.composite
def streams(draw):
    W = draw(st.integers(2, 9))
    sinks = draw(st.integers(0, W - 2))
    return Stream(W, sinks, draw(st.integers(1, W - sinks - 1)))


pieces = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@settings(max_examples=settings.default.max_examples // 3)
@given(seeds, streams(), pieces, st.integers(1, 6), st.sampled_from([PLAIN, YARN]))
@example(0, Stream(7, 3, 1), [24], 24, PLAIN)
@example(1, Stream(7, 0, 1), [24], 5, PLAIN)
@example(2, Stream(8, 1, 3), [5, 7], 4, PLAIN)
@example(3, Stream(8, 4, 2), [9, 1], 3, YARN)
def test_one_pass_is_the_stream_token_by_token(seed, stream, pieces, block, rope):
    """Masked full attention, sinks near: at any depth, with positions of the cache."""
    model = model_of(seed, rope=rope)
    tokens = token_ids(model.config, seed, 24).tolist()
    found = in_pieces(model, tokens, pieces, at_once(model.config, stream, block))
    cache = new_cache(model.config, 1, stream.window, "float64")
    for token, logits in zip(tokens, found):
        expected = streamed(model, [token], cache, stream.sinks, stream.discard)
        assert np.allclose(logits, expected)


@given(streams(), st.integers(1, 40))
@example(Stream(9, 2, 3), 30)
def test_what_is_forgotten_is_counted_as_a_stream_counts(stream, n):
    config = replace(DISTINCT, num_hidden_layers=1)
    cache, gone = new_cache(config, 1, stream.window, "float32"), 0
    for i in range(n):
        if cache.length[0] == stream.window:
            forget(cache, config, stream.discard, stream.sinks)
            gone += stream.discard
        cache.length[0] += 1
        assert forgotten(np.array([i]), stream) == gone


def test_a_query_sees_sinks_from_no_farther_than_the_window():
    """Row by row, the distances of the chapter's picture."""
    i, stream = np.arange(6), Stream(4, 1, 1)
    e = forgotten(i, stream)
    assert (i - e).tolist() == [0, 1, 2, 3, 3, 3]
    assert (1 + e).tolist() == [1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("W", [3, 6])
def test_without_sinks_it_is_a_sliding_window_to_the_bit(W):
    model = model_of(5, dtype="float32")
    tokens = token_ids(model.config, 5, 20).tolist()
    for parts in ([20], [1], [6, 3]):
        ours = in_pieces(model, tokens, parts, at_once(model.config, Stream(W, 0)))
        theirs = in_pieces(model, tokens, parts, attending(window(W)))
        assert ours.dtype == "f4" and ours.tobytes() == theirs.tobytes()


def test_a_window_as_long_as_the_text_hides_nothing():
    model = model_of(6, dtype="float32")
    tokens = token_ids(model.config, 6, 12).tolist()
    ours = in_pieces(model, tokens, [12], at_once(model.config, Stream(12, 4)))
    theirs = in_pieces(model, tokens, [12], attending(window(12)))
    assert ours.tobytes() == theirs.tobytes()


def test_positions_of_the_text_are_another_thing_than_those_of_the_cache():
    """With sinks; the sinks would be seen from farther and farther away."""
    model, stream = model_of(7), Stream(7, 3)
    tokens = token_ids(model.config, 7, 24).tolist()
    i, j = np.indices((24, 24))
    seen = (j <= i) & ((j < 3) | (j >= 3 + forgotten(i, stream)))

    def of_the_text(q, k, v, start):
        _, T, H, D = q.shape
        y = np.empty_like(q)
        for h in range(H):
            keys, values = (x[0, h * k.shape[1] // H, :T] for x in (k, v))
            scores = np.where(seen, q[0, :, h] @ keys.T / np.sqrt(D), -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            y[0, :, h] = p @ values / p.sum(-1, keepdims=True)
        return y

    ours = in_pieces(model, tokens, [24], at_once(model.config, stream))
    theirs = in_pieces(model, tokens, [24], of_the_text)
    assert np.allclose(ours[:7], theirs[:7])
    assert not np.allclose(ours[8:], theirs[8:], atol=1e-2)


@given(streams(), st.integers(1, 40))
@example(Stream(9, 2, 3), 31)
@example(Stream(6, 0, 1), 4)
def test_pairs_of_a_stream_are_in_closed_form(stream, n):
    i = np.arange(n)
    assert stream_pairs(stream, n) == (i + 1 - forgotten(i, stream)).sum()


def test_products_of_a_stream_are_its_pairs():
    model, stream, n = model_of(2, dtype="float32"), Stream(7, 2, 3), 20
    cache = new_cache(model.config, 1, stream.window)
    with FlopCounter() as count:
        for token in token_ids(model.config, 2, n).tolist():
            streamed(model, [token], cache, stream.sinks, stream.discard)
    by_name, c = count.by("name"), model.config
    heads = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim
    counted = sum(by_name[name].flops for name in ("scores", "values"))
    assert counted == heads * stream_pairs(stream, n)


def test_a_context_shift_forgets_half_of_what_follows_n_keep():
    assert context_shift(511, 4) == Stream(511, 4, 253)
    assert context_shift(9) == Stream(9, 0, 4)
    assert context_shift(3, 1) == Stream(3, 1, 1)


def test_a_stream_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="do not fit into a window of 8"):
        at_once(DISTINCT, Stream(8, 8))
