"""A ring finds, to the bit, what a cache of the whole text would show it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import DISTINCT, random_model, seeds, token_ids
from test_contexts_sinks import YARN, in_pieces, model_of, streams

from npllama.config import Rope
from npllama.contexts.ring import (
    forward_ring,
    new_ring,
    ring_streamed,
    slots,
    surprise_in_ring,
)
from npllama.contexts.sinks import at_once
from npllama.contexts.sparse import attending, window
from npllama.contexts.streaming import Stream, surprise_of_stream
from npllama.cost.counter import FlopCounter


def by_ring(model, tokens, parts, stream, longest):
    ring = new_ring(model.config, stream, longest, model.embed.dtype)
    t, found = 0, []
    while t < len(tokens):
        part = np.array(tokens[t : t + parts[len(found) % len(parts)]])
        found.append(forward_ring(model, part, ring))
        t += len(part)
        assert ring.length[0] == t
    return np.concatenate(found)


@settings(max_examples=settings.default.max_examples // 3)
@given(seeds, streams(), st.lists(st.integers(1, 9), min_size=1, max_size=4))
@example(0, Stream(5, 0, 1), [1])
@example(1, Stream(6, 2, 1), [4, 3])
@example(2, Stream(8, 1, 4), [9])
@example(3, Stream(7, 3, 2), [1, 5])
def test_a_ring_has_the_bits_of_a_cache_of_the_whole_text(seed, stream, parts):
    model = model_of(seed, dtype="float32")
    tokens = token_ids(model.config, seed, 30).tolist()
    ours = by_ring(model, tokens, parts, stream, max(parts))
    theirs = in_pieces(model, tokens, parts, at_once(model.config, stream))
    assert ours.dtype == "f4" and ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("parts", [[1], [5, 2]])
def test_without_sinks_it_has_the_bits_of_windowed_attention(parts):
    model = model_of(9, dtype="float32")
    tokens = token_ids(model.config, 9, 30).tolist()
    ours = by_ring(model, tokens, parts, Stream(6, 0), 5)
    theirs = in_pieces(model, tokens, parts, attending(window(6)))
    assert ours.tobytes() == theirs.tobytes()


def test_a_ring_with_room_to_spare_finds_the_same():
    model, stream = model_of(3), Stream(6, 2, 2)
    tokens = token_ids(model.config, 3, 30).tolist()
    narrow = by_ring(model, tokens, [1], stream, 1)
    assert narrow.shape == (30, model.config.vocab_size)
    assert np.array_equal(narrow, by_ring(model, tokens, [1], stream, 8))


@given(st.integers(0, 5), st.integers(1, 9), st.integers(1, 40))
@example(2, 4, 30)
def test_positions_take_turns_and_sinks_keep_their_slots(sinks, around, n):
    places = slots(np.arange(n), sinks, sinks + around)
    lying = {}
    for p, place in enumerate(places.tolist()):
        lying[place] = p
    assert all(lying[p] == p for p in range(min(sinks, n)))
    last = set(range(max(sinks, n - around), n))
    assert {p for p in lying.values() if p >= sinks} == last


@pytest.mark.parametrize("rope", [Rope(), YARN])
def test_the_surprise_is_that_of_the_stream(rope):
    model = model_of(8, rope=rope)
    tokens = token_ids(model.config, 8, 30).tolist()
    expected = surprise_of_stream(model, tokens, 8, 2, 3)
    for piece in (1, 7, 512):
        found = surprise_in_ring(model, tokens, Stream(8, 2, 3), piece)
        assert np.allclose(found, expected)


def test_a_prompt_is_read_in_pieces_and_memory_is_the_windows():
    model = model_of(4, dtype="float32")
    tokens = token_ids(model.config, 4, 50).tolist()
    ring = new_ring(model.config, Stream(6, 1), 3)
    logits = ring_streamed(model, tokens, ring)
    assert ring.k.shape[3] == 8 and ring.length[0] == 50
    expected = by_ring(model, tokens, [3], Stream(6, 1), 3)[-1]
    assert np.array_equal(logits, expected)


def test_a_step_costs_the_same_wherever_the_text_is():
    model = random_model(replace(DISTINCT, num_hidden_layers=2), 1)
    ring, costs = new_ring(model.config, Stream(6, 2), 1), []
    for token in token_ids(model.config, 1, 40):
        with FlopCounter() as count:
            forward_ring(model, np.array([token]), ring)
        costs.append((count.total.flops, count.total.calls))
    assert len(set(costs[6:])) == 1


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: new_ring(DISTINCT, Stream(8, 8)), "do not fit"),
        (lambda: new_ring(DISTINCT, Stream(8, 2), 0), "1 or more are needed"),
        (
            lambda: forward_ring(
                random_model(DISTINCT, 0),
                np.array([1, 2, 3]),
                new_ring(DISTINCT, Stream(8, 2), 2),
            ),
            "a piece of 3 tokens; this ring takes 1 to 2",
        ),
    ],
)
def test_what_a_ring_cannot_do_is_refused(make, line):
    with pytest.raises(ValueError, match=line):
        make()
