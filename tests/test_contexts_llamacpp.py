"""A context shift, and perplexity, as llama.cpp has them: its answers, recorded."""

from pathlib import Path

import numpy as np
import pytest
from goldens.model_cases import CASES, model_of, tokens_of

from npllama.cache import new_cache
from npllama.contexts.perplexity import halves, perplexity
from npllama.contexts.ring import forward_ring, new_ring
from npllama.contexts.sinks import context_shift
from npllama.contexts.streaming import Stream, forget, streamed
from npllama.rope import yarn_attention_factor

GOLDEN = np.load(Path(__file__).parent / "goldens" / "streams_llamacpp.npz")
NAMES = sorted({key.partition(".")[0] for key in GOLDEN})
# As the tool that recorded it.
WINDOW, TOOL_CONTEXT, BOS = 19, 14, 1
SHIFTS = {"half": (3, 8), "one": (3, 1), "none_kept": (0, 9)}
# Of the logits' range, as in test_golden_llamacpp; keys are turned once more by shifts.
TOLERANCE = 2e-5


def text_of(name):
    case = next(case for case in CASES if case.name == name)
    return model_of(case), tokens_of(case)[0].tolist()


@pytest.mark.parametrize("how", SHIFTS)
@pytest.mark.parametrize("name", sorted({*NAMES} - {"yarn"}))
def test_a_stream_has_the_logits_of_llamacpps_context_shift(name, how):
    (model, tokens), (keep, discard) = text_of(name), SHIFTS[how]
    expected = GOLDEN[f"{name}.{how}"]
    assert len(expected) == len(tokens) > 2 * WINDOW
    cache = new_cache(model.config, 1, WINDOW)
    ring = new_ring(model.config, Stream(WINDOW, keep, discard))
    for token, theirs in zip(tokens, expected):
        ours = streamed(model, [token], cache, keep, discard)
        assert np.abs(ours - theirs).max() < TOLERANCE * np.ptp(expected)
        ours = forward_ring(model, np.array([token]), ring)[0]
        assert np.abs(ours - theirs).max() < TOLERANCE * np.ptp(expected)


@pytest.mark.parametrize("how", SHIFTS)
def test_llamacpp_multiplies_all_keys_by_yarns_factor_with_every_shift(
    how, monkeypatch
):
    """Its fault: tables hold the factor, and keys have it already; here it does not add
    up.  What is kept unturned is multiplied, too."""
    (model, tokens), (keep, discard) = text_of("yarn"), SHIFTS[how]
    expected = GOLDEN[f"yarn.{how}"]
    factor = yarn_attention_factor(model.config.rope)
    assert factor > 1.1

    def as_llamacpp(cache, config, drop, sinks):
        forget(cache, config, drop, sinks)
        cache.k[:] *= factor

    def logits():
        cache = new_cache(model.config, 1, WINDOW)
        found = [streamed(model, [token], cache, keep, discard) for token in tokens]
        return np.abs(found - expected).max(axis=1) / np.ptp(expected)

    without = logits()
    assert without[:WINDOW].max() < TOLERANCE < 0.01 < without[WINDOW]
    monkeypatch.setattr("npllama.contexts.streaming.forget", as_llamacpp)
    assert logits().max() < TOLERANCE


def test_half_of_the_rest_is_what_the_server_discards():
    assert context_shift(WINDOW, 3) == (WINDOW, *SHIFTS["half"])
    assert context_shift(WINDOW) == (WINDOW, *SHIFTS["none_kept"])


@pytest.mark.parametrize("name", NAMES)
def test_perplexity_by_halves_is_that_of_llamacpps_tool(name):
    model, tokens = text_of(name)
    found = perplexity(model, tokens, halves(len(tokens), TOOL_CONTEXT), BOS)
    expected = GOLDEN[f"{name}.perplexity"]
    assert len(found.nats) == len(expected) == len(tokens) // 14 * 6
    assert np.allclose(found.nats, expected, rtol=0, atol=2e-5)
    assert found.perplexity == pytest.approx(np.exp(expected.mean()), rel=1e-5)


def test_llamacpp_knew_grouped_heads_and_scaled_positions():
    assert {"gqa", "mha", "linear", "yarn"} == set(NAMES)
