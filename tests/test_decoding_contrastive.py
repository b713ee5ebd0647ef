"""Contrastive search, DoLa and contrastive decoding."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, normal, random_model, seeds

from npllama.cache import new_cache
from npllama.config import Rope
from npllama.decoding.common import Job, never, prefill
from npllama.decoding.contrastive_decoding import contrast as against
from npllama.decoding.contrastive_decoding import contrastive_decoding
from npllama.decoding.contrastive_search import contrastive_search
from npllama.decoding.dola import (
    DIVERGENCES,
    candidate_layers,
    contrast,
    dola,
    jensen_shannon,
)
from npllama.decoding.layers import forward_with_layers
from npllama.decoding.sample import sample
from npllama.decoding.self_speculation import first_layers
from npllama.model import forward
from npllama.norm import rms_norm
from npllama.sampling import log_softmax, softmax

EOS = 2


def stop_at_eos(tokens):
    return "eos" if tokens[-1] == EOS else None


def plain(model, prompt, stop, most):
    return text_of(sample([Job(model, prompt, most, stop)]))


def text_of(steps):
    steps = list(steps)
    assert all(step.reason is None for step in steps[:-1])
    return [token for step in steps for token in step.tokens], steps[-1].reason


@st.composite
def situations(draw):
    config = draw(configs(rope_types=("default", "llama3")))
    model = random_model(config, draw(seeds), "float64")
    rng = np.random.default_rng(draw(seeds))
    size = draw(st.integers(1, 8))
    return model, rng.integers(0, config.vocab_size, size).tolist()


# ---- contrastive search ------------------------------------------------------


@given(situations(), st.integers(1, 12), st.integers(1, 6))
def test_without_a_penalty_contrastive_search_is_greedy(situation, most, k):
    model, prompt = situation
    found = contrastive_search(Job(model, prompt, most, stop_at_eos), 0.0, k)
    assert text_of(found) == plain(model, prompt, stop_at_eos, most)


@given(situations(), st.integers(1, 12), st.floats(0, 1))
def test_with_one_candidate_contrastive_search_is_greedy(situation, most, alpha):
    model, prompt = situation
    found = contrastive_search(Job(model, prompt, most, stop_at_eos), alpha, 1)
    assert text_of(found) == plain(model, prompt, stop_at_eos, most)


def hidden(model, text):
    """Unit vectors after the final norm, computed without a cache to go on from."""
    L = model.config.num_hidden_layers
    cache = new_cache(model.config, 1, len(text), "float64")
    _, states = forward_with_layers(model, np.array([text]), cache, {L})
    h = rms_norm(states[L][0], model.norm, model.config.rms_norm_eps)
    return h / np.linalg.norm(h, axis=1, keepdims=True)


@given(situations(), st.sampled_from([0.2, 0.6, 1.0]), st.integers(2, 5))
def test_every_token_has_the_best_score_among_the_likeliest(situation, alpha, k):
    model, prompt = situation
    # Vectors of a single number all point one way or the other: all scores tie.
    if model.config.hidden_size < 2:
        return
    tokens, _ = text_of(contrastive_search(Job(model, prompt, 5), alpha, k))
    text = list(prompt)
    for token in tokens:
        _, logits = prefill(model, [text], len(text))
        p = softmax(logits[0])
        scores = {}
        for v in np.argsort(-p, kind="stable")[:k].tolist():
            h = hidden(model, [*text, v])
            scores[v] = (1 - alpha) * p[v] - alpha * (h[:-1] @ h[-1]).max()
        assert token in scores and scores[token] >= max(scores.values()) - 1e-9
        text.append(token)


def test_a_token_without_probability_is_no_candidate():
    model = random_model(DISTINCT, 1, "float64")

    def only_two(history, logits):
        out = np.full_like(logits, -np.inf)
        out[:, [4, 9]] = logits[:, [4, 9]]
        return out

    for alpha in (0.6, 1.0):
        job = Job(model, [1, 5], 20, process=only_two)
        found = contrastive_search(job, alpha, 6)
        assert set(text_of(found)[0]) == {4, 9}


def test_a_long_prompt_read_in_pieces_gives_the_same_text(monkeypatch):
    model, prompt = random_model(DISTINCT, 2, "float64"), list(range(12))
    whole = text_of(contrastive_search(Job(model, prompt, 12), 0.6, 4))
    # The package gives this name to the function; the module is found by its own.
    module = sys.modules["npllama.decoding.contrastive_search"]
    monkeypatch.setattr(module, "PREFILL_CHUNK", 5)
    assert text_of(contrastive_search(Job(model, prompt, 12), 0.6, 4)) == whole


def test_contrastive_search_ends_with_the_context():
    model = random_model(replace(DISTINCT, max_position_embeddings=9), 2)
    tokens, reason = text_of(contrastive_search(Job(model, [1, 2, 3], 99), 0.6, 4))
    assert (len(tokens), reason) == (6, "context")


@pytest.mark.parametrize("alpha, k", [(1.1, 4), (-0.1, 4), (0.5, 0), (math.nan, 4)])
def test_contrastive_search_refuses_impossible_numbers(alpha, k):
    model = random_model(DISTINCT, 0)
    with pytest.raises(ValueError, match="penalty_alpha"):
        next(contrastive_search(Job(model, [1], 3), alpha, k))


def test_an_empty_prompt_is_refused():
    model = random_model(DISTINCT, 0)
    for rounds in (
        contrastive_search(Job(model, [], 3), 0.6, 4),
        dola(Job(model, [], 3), "low"),
    ):
        with pytest.raises(ValueError, match="empty"):
            next(rounds)


# ---- the layers ---------------------------------------------------------------


@given(situations())
def test_a_layer_ends_where_a_model_of_fewer_layers_ends(situation):
    model, prompt = situation
    L = model.config.num_hidden_layers
    cache = new_cache(model.config, 1, len(prompt), "float64")
    logits, states = forward_with_layers(model, np.array([prompt]), cache, range(L + 1))
    np.testing.assert_array_equal(states[0], model.embed[[prompt]])
    for layer in range(1, L + 1):
        small = first_layers(model, layer)
        cache = new_cache(small.config, 1, len(prompt), "float64")
        x = rms_norm(states[layer], model.norm, model.config.rms_norm_eps)
        expected = forward(small, np.array([prompt]), cache)
        np.testing.assert_allclose(x @ model.lm_head.T, expected, atol=1e-10)
    np.testing.assert_allclose(expected[:, -1], logits, atol=1e-10)


# ---- DoLa ---------------------------------------------------------------------


@given(seeds, st.integers(2, 12), st.integers(1, 4), st.sampled_from([*DIVERGENCES]))
def test_dola_keeps_the_plausible_tokens_and_among_them_the_likeliest(seed, V, C, name):
    final, premature = normal([seed, 0], V) * 2, normal([seed, 1], C, V) * 2
    scores = contrast(final, premature, DIVERGENCES[name])
    p = softmax(final)
    np.testing.assert_array_equal(scores > -np.inf, p >= 0.1 * p.max())
    assert scores[p.argmax()] > -np.inf
    kept = scores > -np.inf
    differences = log_softmax(final) - log_softmax(premature)
    assert any(np.allclose(d[kept], scores[kept], atol=1e-9) for d in differences)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


@given(seeds, st.integers(2, 12))
def test_both_divergences_are_what_their_formulas_say(seed, V):
    p, q = log_softmax(normal([seed, 0], V) * 3), log_softmax(normal([seed, 1], V) * 3)
    a, b = np.exp(p), np.exp(q)
    m = (a + b) / 2
    true, reverse = (kl(a, m) + kl(b, m)) / 2, (kl(m, a) + kl(m, b)) / 2
    assert math.isclose(jensen_shannon(p, q), true, abs_tol=1e-12)
    assert 0 <= jensen_shannon(p, q) + 1e-12 and jensen_shannon(p, q) < math.log(2)
    assert math.isclose(DIVERGENCES["transformers"](p, q), reverse / V, abs_tol=1e-12)


def test_the_two_divergences_may_choose_different_layers():
    final = np.array([2.0, 0.0, -1.0])
    # One layer excludes a token that matters little, one disagrees about the rest.
    premature = np.array([[2.0, 0.0, -60.0], [0.5, 1.5, -1.0]])
    by = {name: contrast(final, premature, f) for name, f in DIVERGENCES.items()}
    p, q = log_softmax(final), log_softmax(premature)
    np.testing.assert_allclose(by["transformers"][:2], (p - q[0])[:2])
    np.testing.assert_allclose(by["jensen-shannon"][:2], (p - q[1])[:2])


def config_with(L, tied=False):
    return replace(DISTINCT, num_hidden_layers=L, tie_word_embeddings=tied)


def test_candidate_layers_are_those_of_transformers():
    assert candidate_layers(config_with(8), "low") == [0, 2]
    assert candidate_layers(config_with(8, True), "low") == [2]
    assert candidate_layers(config_with(8), "high") == [4, 6]
    assert candidate_layers(config_with(4, True), "low") == [2]
    assert candidate_layers(config_with(2, True), "low") == [1]
    assert candidate_layers(config_with(1, True), "low") == [0]
    assert candidate_layers(config_with(48), "low") == list(range(0, 20, 2))
    assert candidate_layers(config_with(48), "high") == list(range(28, 48, 2))
    assert candidate_layers(config_with(4), [0, 3, 4, 9]) == [0, 3]


@pytest.mark.parametrize("layers", ["middle", [], [4, 5], [-1]])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="dola_layers"):
        candidate_layers(config_with(4), layers)


def test_an_unknown_divergence_is_refused():
    model = random_model(DISTINCT, 0)
    with pytest.raises(ValueError, match="divergence 'js': transformers, jensen"):
        next(dola(Job(model, [1], 3), "low", divergence="js"))


@given(situations(), st.integers(1, 8))
def test_dola_scores_each_token_with_the_head_on_a_lower_layer(situation, most):
    model, prompt = situation
    seen = []

    def spy(history, scores):
        seen.append(scores[0])
        return scores

    tokens, _ = text_of(dola(Job(model, prompt, most, process=spy), [0]))
    text = list(prompt)
    for token, scores in zip(tokens, seen):
        _, logits = prefill(model, [text], len(text))
        early = model.embed[text[-1]] @ model.lm_head.T
        p, q = log_softmax(logits[0]), log_softmax(early)
        kept = scores > -np.inf
        np.testing.assert_allclose(scores[kept], (p - q)[kept], atol=1e-8)
        assert token == scores.argmax()
        text.append(token)


def test_dola_draws_tokens_if_it_is_given_chance():
    model = random_model(config_with(4), 3, "float64")
    jobs = [Job(model, [1, 4], 6, rng=np.random.default_rng(i)) for i in range(8)]
    texts = {tuple(text_of(dola(job, "high"))[0]) for job in jobs}
    again = text_of(dola(jobs[0]._replace(rng=np.random.default_rng(0)), "high"))
    assert len(texts) > 1 and tuple(again[0]) in texts


# ---- contrastive decoding -----------------------------------------------------


@given(seeds, st.integers(2, 9), st.floats(0.01, 1), st.floats(0, 5))
def test_contrast_is_linear_among_plausible_tokens(seed, V, alpha, beta):
    expert, amateur = normal([seed, 0], 2, V), normal([seed, 1], 2, V)
    out = against(expert, amateur, alpha, beta)
    p = softmax(expert)
    kept = p >= alpha * p.max(axis=1, keepdims=True) * (1 - 1e-12)
    np.testing.assert_array_equal(out > -np.inf, kept)
    expected = (1 + beta) * expert - beta * amateur
    np.testing.assert_allclose(out[kept], expected[kept], atol=1e-12)


def test_an_infinite_beta_is_the_difference_of_the_first_paper():
    expert, amateur = normal(0, 1, 6), normal(1, 1, 6)
    out = against(expert, amateur, 1e-9, math.inf)
    np.testing.assert_allclose(out, expert - amateur)


def test_a_token_that_the_expert_excludes_stays_excluded():
    expert = np.array([[0.0, -np.inf, -0.5]])
    amateur = np.array([[-np.inf, -np.inf, 0.0]])[:, [2, 0, 1]]
    out = against(expert, amateur, 0.1, 0.5)
    assert out[0, 1] == -np.inf and not np.isnan(out).any()


@given(situations(), st.integers(1, 10))
def test_an_amateur_as_good_as_the_expert_or_without_a_vote_changes_nothing(
    situation, most
):
    model, prompt = situation
    expected = plain(model, prompt, stop_at_eos, most)[0]
    other = random_model(replace(model.config, rope=Rope()), 1, "float64")
    for amateur, beta in ((model, 0.5), (other, 0.0)):
        process = contrastive_decoding(amateur, 99, 0.1, beta)
        steps = sample([Job(model, prompt, most, stop_at_eos, process)])
        assert [step.tokens[0] for step in steps] == expected


def test_the_amateur_reads_every_row_of_a_batch():
    model, amateur = (random_model(DISTINCT, seed, "float64") for seed in (1, 2))
    prompts = [[1, 4, 3], [5, 6]]

    def text(*rows):
        process = contrastive_decoding(amateur, 20, 0.01, 9.0)
        steps = list(sample([Job(model, row, 8, never, process) for row in rows]))
        return [
            tuple(s.tokens[0] for s in steps if s.row == b) for b in range(len(rows))
        ]

    together = text(*prompts)
    assert together == [*text(prompts[0]), *text(prompts[1])]
    assert list(together[0]) != plain(model, prompts[0], never, 8)[0]


def test_contrastive_decoding_refuses_impossible_numbers():
    logits = np.zeros((1, 4))
    for alpha, beta in ((0, 1), (1.5, 1), (0.1, -1), (math.nan, 1), (0.1, math.nan)):
        with pytest.raises(ValueError, match="must lie in"):
            against(logits, logits, alpha, beta)
    with pytest.raises(ValueError, match="one vocabulary"):
        against(logits, np.zeros((1, 5)))
    with pytest.raises(ValueError, match="amateur_temperature is 0"):
        contrastive_decoding(random_model(DISTINCT, 0), 9, amateur_temperature=0)
