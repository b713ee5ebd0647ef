"""A stream forgets what it shall, keeps what it shall, and goes on for ever."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, random_model, seeds, token_ids

import npllama
from npllama.cache import KVCache, new_cache
from npllama.cli.main import main
from npllama.config import Rope
from npllama.contexts.streaming import (
    Stream,
    check_stream,
    endless,
    endless_pieces,
    forget,
    streamed,
    surprise_of_stream,
)
from npllama.decoding.common import Job
from npllama.decoding.sample import sample
from npllama.model import forward

YARN = Rope("yarn", 1e4, 4.0, 16)


PLAIN = Rope()


def model_of(seed, layers=2, rope=PLAIN, dtype="float64"):
    config = replace(DISTINCT, num_hidden_layers=layers, rope=rope)
    return random_model(config, seed, dtype)


def filled(model, tokens, room):
    cache = new_cache(model.config, 1, room, model.embed.dtype.name)
    logits = forward(model, np.array([tokens]), cache, last=True)[0, 0]
    return cache, logits


def copy_of(cache):
    return KVCache(*(array.copy() for array in cache))


@given(seeds, st.integers(1, 9), st.integers(0, 4), st.integers(0, 20))
def test_a_stream_that_fits_is_plain_decoding_to_the_bit(seed, n, sinks, more):
    model = model_of(seed, dtype="float32")
    job = Job(model, token_ids(model.config, seed, n).tolist(), 8)
    plain = list(sample([job]))
    found = list(endless(job, Stream(n + 8 + more, sinks)))
    assert [step.tokens for step in found] == [step.tokens for step in plain]
    assert [step.reason for step in found] == [step.reason for step in plain]
    for ours, theirs in zip(found, plain):
        assert ours.logits.tobytes() == theirs.logits.tobytes()


@given(seeds, st.integers(6, 12), st.integers(0, 3), st.sampled_from([PLAIN, YARN]))
@example(0, 8, 2, YARN)
def test_what_is_kept_is_what_it_would_have_been_at_its_new_place(seed, n, sinks, rope):
    """With one layer a key depends on its own token and place alone."""
    model, drop = model_of(seed, 1, rope), 3
    tokens = token_ids(model.config, seed, n).tolist()
    cache, _ = filled(model, tokens, n)
    before = copy_of(cache)
    forget(cache, model.config, drop, sinks)
    kept = tokens[:sinks] + tokens[sinks + drop :]
    assert cache.length[0] == len(kept)
    fresh, _ = filled(model, kept, n)
    for ours, theirs in zip(cache[:2], fresh[:2]):
        assert np.allclose(ours[..., : len(kept), :], theirs[..., : len(kept), :])
    # The sinks and all values are only moved, to the bit.
    assert np.array_equal(cache.k[..., :sinks, :], before.k[..., :sinks, :])
    rest = before.v[..., sinks + drop : n, :]
    assert np.array_equal(cache.v[..., sinks : len(kept), :], rest)


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_to_forget_twice_is_to_forget_the_sum(seed, first, second, sinks):
    model = model_of(seed)
    once, _ = filled(model, token_ids(model.config, seed, 12).tolist(), 12)
    twice = copy_of(once)
    forget(once, model.config, first + second, sinks)
    forget(twice, model.config, first, sinks)
    forget(twice, model.config, second, sinks)
    n = int(once.length[0])
    assert n == twice.length[0] == 12 - first - second
    for a, b in zip(once[:2], twice[:2]):
        assert np.allclose(a[..., :n, :], b[..., :n, :])


def windowed(W):
    """Full attention of a whole text, of which each position sees the last W."""

    def attend(q, k, v, start):
        _, T, H, D = q.shape
        y = np.empty_like(q)
        for h in range(H):
            keys, values = k[0, h * k.shape[1] // H, :T], v[0, h * k.shape[1] // H, :T]
            scores = q[0, :, h] @ keys.T / math.sqrt(D)
            i, j = np.indices(scores.shape)
            scores[(j > i) | (i - j >= W)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            y[0, :, h] = weights @ values / weights.sum(-1, keepdims=True)
        return y

    return attend


@given(seeds, st.integers(2, 7))
def test_without_sinks_a_stream_is_a_window_on_full_attention(seed, W):
    """At any depth: rotated keys know distances only."""
    model, n = model_of(seed, 3), 15
    tokens = token_ids(model.config, seed, n).tolist()
    cache = new_cache(model.config, 1, n, "float64")
    expected = forward(model, np.array([tokens]), cache, attend=windowed(W))[0]
    stream = new_cache(model.config, 1, W, "float64")
    for token, logits in zip(tokens, expected):
        assert np.allclose(streamed(model, [token], stream, 0), logits)


@given(seeds, st.integers(5, 9), st.integers(0, 3), st.integers(1, 3))
@example(0, 6, 2, 2)
@example(1, 7, 0, 3)
@example(2, 5, 3, 1)
def test_with_one_layer_a_stream_reads_sinks_and_window_alone(seed, W, sinks, discard):
    model, discard = model_of(seed, 1), min(discard, W - sinks - 1)
    tokens = token_ids(model.config, seed, 20).tolist()
    cache, held = new_cache(model.config, 1, W, "float64"), []
    for token in tokens:
        if len(held) == W:
            del held[sinks : sinks + discard]
        held.append(token)
        logits = streamed(model, [token], cache, sinks, discard)
        assert cache.length[0] == len(held)
        assert np.allclose(logits, filled(model, held, W)[1])


def test_deeper_layers_remember_what_was_forgotten():
    model, W = model_of(0, 3), 6
    tokens = token_ids(model.config, 0, 14).tolist()
    cache = new_cache(model.config, 1, W, "float64")
    for token in tokens:
        logits = streamed(model, [token], cache, 1)
    assert not np.allclose(logits, filled(model, [tokens[0], *tokens[-5:]], W)[1])


@given(seeds, st.integers(1, 40), st.integers(0, 3))
@example(0, 40, 2)
def test_a_prompt_of_any_length_goes_through_a_small_window(seed, n, sinks):
    model, W = model_of(seed, 1), 6
    tokens = token_ids(model.config, seed, n).tolist()
    cache = new_cache(model.config, 1, W, "float64")
    seen = []

    def watched(model, part, cache, **options):
        seen.append((int(cache.length[0]), part.shape[1]))
        return forward(model, part, cache, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npllama.contexts.streaming.forward", watched)
        logits = streamed(model, tokens, cache, sinks)
    # What is read first sees the sinks and half of the rest.
    full = next((i for i, (held, new) in enumerate(seen) if held + new == W), len(seen))
    assert all(held >= sinks + (W - sinks) // 2 for held, _ in seen[full + 1 :])
    assert sum(new for _, new in seen) == n
    held = (
        tokens
        if n <= W
        else tokens[:sinks] + tokens[n - int(cache.length[0]) + sinks :]
    )
    assert 1 <= cache.length[0] == len(held) <= W
    assert np.allclose(logits, filled(model, held, W)[1])


def test_twenty_turns_by_one_are_not_worse_than_one_by_twenty():
    model = model_of(1, dtype="float32")
    exact = model_of(1)
    tokens = token_ids(model.config, 1, 60).tolist()
    wide, _ = filled(exact, tokens, 60)
    some, _ = filled(model, tokens, 60)
    forget(wide, exact.config, 20, 2)
    for _ in range(20):
        forget(some, model.config, 1, 2)
    assert np.abs(some.k[..., :40, :] - wide.k[..., :40, :]).max() < 2e-4


@pytest.mark.slow
def test_memory_stays_where_it_is_over_two_thousand_tokens():
    model = npllama.load("stories-draft")
    job = Job(model, [1], 2000)
    tracemalloc.start()
    peaks = []
    for number, _ in enumerate(endless(job, Stream(64)), 1):
        if number % 500 == 0:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
    tracemalloc.stop()
    assert number == 2000
    # The text itself is kept, as numbers.
    assert max(peaks[1:]) < peaks[0] + 64 * 2000


def test_pieces_of_a_stream_that_fits_are_those_of_generate():
    model = npllama.load("stories-draft")
    config = npllama.GenerationConfig(max_new_tokens=30, do_sample=True, top_k=9)
    rngs = np.random.default_rng(5), np.random.default_rng(5)
    plain = npllama.pieces(model, "Once", config, rngs[0])
    assert list(endless_pieces(model, "Once", config, rngs[1], Stream(100))) == list(
        plain
    )


def test_the_surprise_of_a_stream_that_fits_is_that_of_the_text():
    model = model_of(2)
    tokens = token_ids(model.config, 2, 9).tolist()
    entries = npllama.decoding.logprobs.text_logprobs(model, tokens)
    nats = surprise_of_stream(model, tokens, 9, 2)
    assert np.allclose(nats, [-entry.logprob for entry in entries])


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        ((1, 0, 1), "a window of 1: from 2"),
        ((10**6, 0, 1), "to the model's context"),
        ((8, 7, 1), "do not fit into a window of 8"),
        ((8, -1, 1), "do not fit"),
        ((8, 2, 0), "do not fit"),
        ((8, 2, 6), "at least one other position must stay"),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(numbers, line):
    with pytest.raises(ValueError, match=line):
        check_stream(DISTINCT, Stream(*numbers))


def test_keys_that_turn_by_length_cannot_be_moved():
    config = replace(DISTINCT, rope=Rope("dynamic", 1e4, 4.0))
    with pytest.raises(ValueError, match="rope_type dynamic turns by a text's length"):
        check_stream(config, Stream(8, 2, 1))


#  ---- the commands -------------------------------------------------------------

FEW = ["generate", "Once", "--weights", "stories-draft", "--seed", "1"]


def test_generate_goes_on_after_the_window(capsys):
    words = ["--stream-window", "16", "--sinks", "2", "--eos-token-id", "[]"]
    assert main([*FEW, *words, "--max-new-tokens", "60"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Once") and "decode 60 tokens" in captured.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sinks", "2"], "--sinks is for --stream-window"),
        (["--stream-window", "1"], "a window of 1: from 2"),
        (["--stream-window", "16", "--json"], "no --json"),
        (["--stream-window", "16", "--sinks", "16"], "do not fit"),
    ],
)
def test_wrong_use_of_a_stream_is_one_line(words, line, capsys):
    assert main([*FEW, *words]) == 2
    message = capsys.readouterr().err
    assert line in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["--num-beams", "2"], ["--penalty-alpha", "0.5"], ["--token-healing"]]
)
def test_other_ways_of_writing_are_no_stream(words, capsys):
    assert main([*FEW, "--stream-window", "16", *words]) == 1
    assert "a stream is of one text, token by token" in capsys.readouterr().err


def test_perplexity_of_a_stream_is_printed(tmp_path, capsys):
    file = tmp_path / "story.txt"
    file.write_text("Once upon a time there was a girl called Lily. " * 4)
    words = ["perplexity", str(file), "--stream-window", "16", "--sinks", "1"]
    assert main(words) == 0
    assert "a stream of 16 positions, 1 of them sinks" in capsys.readouterr().out
    assert main([*words, "--length", "9"]) == 2
    assert main([*words[:2], "--sinks", "9"]) == 2
    assert main([*words[:3], "999"]) == 2
    assert "none after 999" in capsys.readouterr().err
