"""What was looked at stays, what was not goes, and a cache that suffices loses nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import DISTINCT, random_model, seeds, token_ids

from npllama.cache import new_cache
from npllama.config import Rope
from npllama.contexts import eviction
from npllama.contexts.eviction import (
    heaviest,
    make_room,
    new_kept,
    pooled,
    read_on,
    read_prompt,
    snap,
    surprise_of_h2o,
)
from npllama.contexts.keeping import SnapKV, h2o_streamed
from npllama.contexts.perplexity import Window, surprise
from npllama.contexts.ring import new_ring, ring_streamed, surprise_in_ring
from npllama.contexts.streaming import Stream, streamed, surprise_of_stream
from npllama.model import forward


def model_of(seed, layers=2, dtype="float64"):
    return random_model(replace(DISTINCT, num_hidden_layers=layers), seed, dtype)


class Masked:
    """H2O on a full cache, as its simulation has it: sets of keys, one by one."""

    def __init__(self, config, room, recent):
        self.layers, self.room, self.recent = config.num_hidden_layers, room, recent
        self.seen = [[[] for _ in range(config.num_key_value_heads)]
                     for _ in range(self.layers)]  # fmt: skip
        self.sums, self.layer = {}, 0

    def __call__(self, q, k, v, start):
        layer, i = self.layer % self.layers, int(start[0])
        self.layer += 1
        G = q.shape[2] // k.shape[1]
        y = np.empty_like(q)
        for head, seen in enumerate(self.seen[layer]):
            if len(seen) == self.room:
                older = seen[: len(seen) - self.recent]
                seen.remove(min(older, key=lambda j: self.sums[layer, head, j]))
            seen.append(i)
            self.sums[layer, head, i] = 0.0
            for h in range(head * G, head * G + G):
                scores = k[0, head, seen] @ q[0, 0, h] / np.sqrt(q.shape[3])
                p = np.exp(scores - scores.max())
                p /= p.sum()
                y[0, 0, h] = p @ v[0, head, seen]
                for j, weight in zip(seen, p):
                    self.sums[layer, head, j] += weight
        return y


@settings(max_examples=settings.default.max_examples // 3)
@given(seeds, st.integers(3, 9), st.integers(0, 8))
@example(0, 6, 3)
@example(1, 5, 1)
@example(2, 4, 0)
def test_h2o_is_greedy_eviction_by_accumulated_attention(seed, room, recent):
    model, recent = model_of(seed), min(recent, room - 1)
    tokens = token_ids(model.config, seed, 20)
    cache = new_cache(model.config, 1, 20, "float64")
    simulated = Masked(model.config, room, recent)
    kept = new_kept(model.config, room, "float64")
    for n, token in enumerate(tokens, 1):
        expected = forward(model, np.array([[token]]), cache, attend=simulated)[0]
        make_room(kept, 1, recent)
        assert np.allclose(read_on(model, np.array([token]), kept), expected)
        assert kept.cache.length[0] == min(n, room) and kept.read[0] == n


@pytest.mark.parametrize("piece", [1, 3, 12])
def test_with_room_for_all_it_is_plain_decoding_to_the_bit(piece):
    model = model_of(3, dtype="float32")
    tokens = token_ids(model.config, 3, 12)
    kept, cache = new_kept(model.config, 12), new_cache(model.config, 1, 12)
    for t in range(0, 12, piece):
        part = tokens[t : t + piece]
        make_room(kept, len(part), 2)
        plain = forward(model, part[None], cache)[0]
        assert read_on(model, part, kept).tobytes() == plain.tobytes()


def test_weights_are_all_the_attention_that_there_was():
    """Every query of each of G heads hands out 1."""
    model = model_of(4)
    kept = new_kept(model.config, 12, "float64")
    for part in np.split(token_ids(model.config, 4, 12), [5, 6]):
        read_on(model, part, kept)
    G = model.config.num_attention_heads // model.config.num_key_value_heads
    assert np.allclose(kept.weight.sum(axis=-1), 12 * G)
    assert (kept.weight > 0).all()


def test_keys_are_chosen_by_each_layer_and_head_for_itself():
    model = model_of(5)
    kept = new_kept(model.config, 12, "float64")
    read_on(model, token_ids(model.config, 5, 12), kept)
    chosen = heaviest(kept.weight, 3, 2)
    assert len({tuple(row) for head in chosen for row in head.tolist()}) > 1
    assert np.array_equal(chosen[..., -2:], np.broadcast_to([10, 11], (2, 3, 2)))


@given(seeds, st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
@example(0, 4, 2, 1)
def test_the_heaviest_stay_in_order(seed, more, heavy, recent):
    S = heavy + recent + more
    weight = np.random.default_rng(seed).integers(0, 4, S).astype(float)
    found = heaviest(weight, heavy, recent).tolist()
    older = sorted(range(S - recent), key=lambda s: (weight[s], s))
    expected = sorted(older[len(older) - heavy :]) + list(range(S - recent, S))
    assert found == expected


@given(seeds, st.integers(1, 12), st.sampled_from([1, 3, 5]))
@example(0, 3, 5)
def test_pooling_takes_the_places_around(seed, S, kernel):
    weight, half = np.random.default_rng(seed).random((2, S)), kernel // 2
    for row in range(2):
        for s in range(S):
            around = weight[row, max(0, s - half) : s + half + 1]
            mean, most = pooled(weight, kernel), pooled(weight, kernel, "max")
            assert np.isclose(mean[row, s], around.sum() / kernel)
            assert most[row, s] == around.max()


def test_a_cut_prompt_is_read_on_as_if_the_rest_had_never_been_seen():
    """One layer: its keys know their own token and place alone."""
    model, window = model_of(6, layers=1), 4
    tokens = token_ids(model.config, 6, 16).tolist()
    kept, _ = read_prompt(model, tokens[:12], window, 16)
    weight = kept.weight.copy()
    assert np.allclose(weight[..., :12].sum(axis=-1), window * 2)  # G = 2
    snap(kept, 7, window, 3)
    assert kept.cache.length[0] == 7
    found = read_on(model, np.array(tokens[12:]), kept, watch=False)

    chosen = heaviest(pooled(weight[0, :, :8], 3), 3, 0)  # (K, 3)

    def masked(q, k, v, start):
        y = np.empty_like(q)
        for t in range(q.shape[1]):
            for h in range(q.shape[2]):
                head = h * k.shape[1] // q.shape[2]
                seen = [*chosen[head], *range(8, int(start[0]) + t + 1)]
                scores = k[0, head, seen] @ q[0, t, h] / np.sqrt(q.shape[3])
                p = np.exp(scores - scores.max())
                y[0, t, h] = p @ v[0, head, seen] / p.sum()
        return y

    cache = new_cache(model.config, 1, 16, "float64")
    forward(model, np.array([tokens[:12]]), cache)
    expected = forward(model, np.array([tokens[12:]]), cache, attend=masked)[0]
    assert np.allclose(found, expected)


def test_the_watched_part_of_a_prompt_is_read_in_pieces(monkeypatch):
    model = model_of(6)
    tokens = token_ids(model.config, 6, 16).tolist()
    whole, logits = read_prompt(model, tokens, 11, 16)
    longest, plain = [], eviction.weights_of
    monkeypatch.setattr(eviction, "PREFILL_CHUNK", 4)
    monkeypatch.setattr(
        eviction, "weights_of", lambda q, *a: longest.append(len(q)) or plain(q, *a)
    )
    pieces, same = read_prompt(model, tokens, 11, 16)
    assert max(longest) == 4 and sum(longest) == 11 * model.config.num_hidden_layers
    assert np.allclose(pieces.weight, whole.weight) and np.allclose(same, logits)


NO_TOKEN, NO_PIECE = "the text has 0 tokens; 1 or more", "pieces of 0 tokens: 1 or more"


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (lambda m: streamed(m, [], new_cache(m.config, 1, 4), 1), NO_TOKEN),
        (lambda m: surprise_of_stream(m, [], 4, 1), NO_TOKEN),
        (lambda m: ring_streamed(m, [], new_ring(m.config, Stream(4, 1))), NO_TOKEN),
        (lambda m: surprise_in_ring(m, [], Stream(4, 1)), NO_TOKEN),
        (lambda m: surprise_in_ring(m, [1, 2], Stream(4, 1), 0), NO_PIECE),
        (lambda m: h2o_streamed(m, [], new_kept(m.config, 4)), NO_TOKEN),
        (lambda m: SnapKV(m, 4, 2)([]), NO_TOKEN),
        (lambda m: read_prompt(m, [], 2, 4), NO_TOKEN),
        (lambda m: surprise_of_h2o(m, [], 4, 2), NO_TOKEN),
        (lambda m: surprise_of_h2o(m, [1, 2], 4, 2, 0), NO_PIECE),
    ],
)
def test_a_text_or_a_piece_without_a_token_is_refused(read, line):
    with pytest.raises(ValueError, match=line):
        read(model_of(0))


def test_a_prompt_that_fits_is_not_cut():
    model = model_of(7, dtype="float32")
    tokens = token_ids(model.config, 7, 15)
    kept, _ = read_prompt(model, tokens[:10].tolist(), 4, 15)
    snap(kept, 10, 4)
    cache = new_cache(model.config, 1, 15)
    for part in np.split(tokens[:10], [6]):
        forward(model, part[None], cache)
    for token in tokens[10:]:
        ours = read_on(model, np.array([token]), kept, watch=False)
        plain = forward(model, np.array([[token]]), cache)[0]
        assert ours.tobytes() == plain.tobytes()


def test_the_surprise_is_the_texts_where_all_fits_and_another_where_it_does_not():
    model = model_of(8)
    tokens = token_ids(model.config, 8, 14).tolist()
    plain = surprise(model, tokens, Window(0, 1, 14))
    assert np.allclose(surprise_of_h2o(model, tokens, 14, 3, 4), plain)
    few = surprise_of_h2o(model, tokens, 6, 3)
    assert np.allclose(few[:6], plain[:6]) and not np.allclose(few, plain)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: new_kept(replace(DISTINCT, rope=Rope("dynamic", 1e4, 4.0)), 4),
         "rope_type dynamic turns by a text's length"),
        (lambda: pooled(np.ones(3), 4), "mean or max of an odd number"),
        (lambda: pooled(np.ones(3), 3, "sum"), "mean or max of an odd number"),
        (lambda: snap(new_kept(DISTINCT, 4), 4, 4), "a window of 4 in a capacity of 4"),
        (lambda: surprise_of_h2o(model_of(0), [1] * 9, 4, 3, 2),
         "2 new and 3 recent keys in room for 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(make, line):
    with pytest.raises(ValueError, match=line):
        make()
