"""Properties of the samplers that stand beside their definitions."""

import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from sampling_strategies import batches, distinct_rows, kept, rows, seeds, shares

from npllama import sampling as s
from npllama.decoding.common import Job
from npllama.decoding.speculative import Draft, check_guesses


@given(rows(), st.integers(1, 80))
def test_top_k_twice_is_top_k(row, k):
    once = s.top_k(row, k)
    np.testing.assert_array_equal(s.top_k(once, k), once)


@given(rows(), shares())
def test_min_p_twice_is_min_p_and_minds_no_renormalisation(row, share):
    once = s.min_p(row, share)
    np.testing.assert_array_equal(s.min_p(once, share), once)
    # Dividing by what is left only shifts the logits.
    np.testing.assert_array_equal(
        kept(s.min_p(once - np.float32(1.5), share)), kept(once)
    )


@given(rows(), shares(0.0, 0.2))
def test_epsilon_twice_is_epsilon(row, share):
    # What stays only grows when it is renormalised.
    once = s.epsilon_cutoff(row, share)
    np.testing.assert_array_equal(s.epsilon_cutoff(once, share), once)


@given(distinct_rows(), shares(), shares(), st.floats(0.3, 3))
def test_greedy_does_not_mind_what_leaves_the_best_token_best(row, p, m, T):
    best = int(row.argmax())
    for shaped in (s.top_p(row, p), s.min_p(row, m), s.temperature(row, T)):
        assert int(shaped.argmax()) == best


@given(batches(), seeds, st.floats(-4, 4))
def test_guidance_of_one_is_the_answer_and_of_zero_the_other(logits, seed, scale):
    assume(np.isfinite(logits).all() and np.abs(logits).max() < 100)
    other = np.random.default_rng(seed).permuted(logits, axis=-1)
    with_prompt, without = s.log_softmax(logits), s.log_softmax(other)

    def guided(a, b, gamma):
        return s.classifier_free_guidance(a, b, gamma)

    same = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(guided(logits, other, 1.0), with_prompt, **same)
    np.testing.assert_allclose(guided(logits, other, 0.0), without, **same)
    np.testing.assert_allclose(guided(logits, logits, scale), with_prompt, **same)


@given(distinct_rows(min_size=3), st.integers(1, 5), st.floats(0.1, 2))
def test_the_frequency_penalty_is_linear_in_the_count(row, n, penalty):
    def lowered(count):
        return row - s.frequency_penalty(row, [1] * count, penalty)

    np.testing.assert_allclose(lowered(n)[1], n * lowered(1)[1], rtol=1e-3, atol=1e-4)
    once, often = s.presence_penalty(row, [1], penalty), [1] * n
    np.testing.assert_array_equal(s.presence_penalty(row, often, penalty), once)


def test_xtc_fires_as_often_as_it_should():
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    u, N = np.random.default_rng(0).random(4000), 4000
    out = s.xtc(np.tile(row, (N, 1)), u, probability=0.3, threshold=0.15)
    fired = int((~kept(out)).any(axis=1).sum())
    assert abs(fired - 0.3 * N) < 5 * math.sqrt(N * 0.3 * 0.7)


# ---- speculation ------------------------------------------------------------


@given(st.floats(0.05, 0.95), st.integers(1, 5), st.integers(0, 100))
def test_a_round_brings_the_tokens_that_the_formula_says(b, guesses, seed):
    # Two words: the draft always says the first, the target with probability b.
    job = Job(None, [0], guesses + 1, rng=np.random.default_rng(seed))
    logits = np.log(np.tile([b, 1 - b], (guesses + 1, 1)))
    sure = [np.array([1.0, 0.0])] * guesses

    draft, N = Draft([0] * guesses, sure), 400
    brought = [
        len(check_guesses(job, draft, logits, [], lambda new: None)[0])
        for _ in range(N)
    ]
    expected = (1 - b ** (guesses + 1)) / (1 - b)
    spread = np.std(brought) / math.sqrt(N) + 1e-2
    assert abs(np.mean(brought) - expected) < 6 * spread
