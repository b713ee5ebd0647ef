"""Biases, constraints, and guidance."""

import math

import numpy as np
import pytest
import sampling_spec as spec
from hypothesis import given
from hypothesis import strategies as st
from sampling_strategies import (
    FEW,
    batches,
    distinct_rows,
    kept,
    rows,
    rows_with_histories,
    seeds,
    shares,
)

from npllama import sampling as s

ROW = np.zeros(4, np.float32)


def _biases(seed, size):
    """Return a few sequences of few ids with biases, some of them -inf."""
    rng = np.random.default_rng(seed)
    out = {}
    for _ in range(rng.integers(0, 6)):
        sequence = tuple(rng.integers(0, min(size, 4), rng.integers(1, 4)).tolist())
        out[sequence] = float(rng.choice([-np.inf, *rng.uniform(-3, 3, 3)]))
    return out


# --- biases -------------------------------------------------------------------


@given(rows_with_histories(), seeds)
def test_sequence_bias_is_the_definition(case, seed):
    row, tokens = case
    bias, exact = _biases(seed, row.size), row.astype(np.float64)
    out = s.sequence_bias(exact, tokens, bias)
    expected = spec.sequence_bias(exact.tolist(), tokens, bias)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    narrow = s.sequence_bias(row, tokens, bias)
    assert narrow.dtype == np.float32
    last = {sequence[-1] for sequence in bias}
    others = [i for i in range(row.size) if i not in last]
    assert narrow[others].tobytes() == row[others].tobytes()


@given(rows(kinds=[0, 2]), seeds, seeds)
def test_biases_add_up_in_any_order(row, one, two):
    exact = row.astype(np.float64)
    first, second = (
        {k[0]: v for k, v in _biases(seed, row.size).items()} for seed in (one, two)
    )
    there = s.logit_bias(s.logit_bias(exact, first), second)
    back = s.logit_bias(s.logit_bias(exact, second), first)
    np.testing.assert_allclose(there, back, rtol=1e-12, atol=1e-12)
    alone = s.sequence_bias(exact, [], {(k,): v for k, v in first.items()})
    np.testing.assert_allclose(s.logit_bias(exact, first), alone, rtol=1e-12)


def test_a_sequence_longer_than_the_text_cannot_be_completed():
    bias = {(1, 2, 3): 5.0, (3,): 1.0}
    assert s.sequence_bias(ROW, [2], bias)[3] == 1.0
    assert s.sequence_bias(ROW, [1, 2], bias)[3] == 6.0


@given(seeds)
def test_a_text_written_under_bad_words_holds_none(seed):
    rng, text = np.random.default_rng(seed), []
    words = [[0], [1, 2], [2, 2, 3], [3, 1]]
    for _ in range(60):
        row = s.bad_words(rng.standard_normal(5).astype(np.float32), text, words)
        text.append(int(s.greedy(row)))
    joined = "".join(map(str, text))
    assert not any("".join(map(str, word)) in joined for word in words)
    assert {"1", "2", "3", "4"} <= set(joined)


def test_a_bad_word_that_is_only_an_end_token_is_passed_over():
    out = s.bad_words(ROW, [1], [[3], [1, 2], [1, 3]], eos_token_id=[3])
    assert out.tolist() == [0.0, 0.0, -np.inf, -np.inf]
    assert s.bad_words(ROW, [0], [[3], [1, 2]], eos_token_id=3).tolist() == [0.0] * 4


# --- removing, forcing, and when ----------------------------------------------


@given(batches(), seeds)
def test_suppress_and_allow_are_complements(batch, seed):
    size = batch.shape[1]
    ids = np.flatnonzero(np.random.default_rng(seed).random(size) < 0.5)
    if not 0 < ids.size < size:
        ids = np.array([0])
    batch.flags.writeable = False
    others = np.setdiff1d(np.arange(size), ids)
    out = s.suppress(batch, ids)
    assert not kept(out[:, ids]).any()
    assert out[:, others].tobytes() == batch[:, others].tobytes()
    only = s.allowed_tokens(batch, ids)
    assert not kept(only[:, others]).any()
    assert only[:, ids].tobytes() == batch[:, ids].tobytes()


@given(rows(), st.integers(0, 6), st.integers(0, 6), st.integers(0, 3))
def test_the_end_is_forbidden_just_while_the_text_is_short(row, length, least, prompt):
    prompt = min(prompt, length)
    eos = row.size - 1
    gone = s.suppress(row, eos)
    out = s.min_length(row, length, least, eos)
    assert out.tobytes() == (gone if length < least else row).tobytes()
    out = s.min_new_tokens(row, length, prompt, least, eos)
    assert out.tobytes() == (gone if length - prompt < least else row).tobytes()
    out = s.begin_suppress(row, length, eos, least)
    assert out.tobytes() == (gone if length == least else row).tobytes()


@given(rows(), st.integers(1, 6), st.integers(2, 6))
def test_a_forced_token_has_all_the_probability(row, length, most):
    out = s.forced_eos(row, length, most, row.size - 1)
    if length == most - 1:
        assert s.softmax(out)[-1] == 1.0
    else:
        assert out.tobytes() == row.tobytes()
    out = s.forced_bos(row, length, 0)
    if length == 1:
        assert s.softmax(out)[0] == 1.0 and out[0] == 0.0
    else:
        assert out.tobytes() == row.tobytes()


def test_of_several_forced_ends_each_has_an_equal_chance():
    row = np.array([-np.inf, 3.0, 1.0, -5.0], np.float32)
    assert s.softmax(s.forced_eos(row, 6, 7, [0, 3])).tolist() == [0.5, 0.0, 0.0, 0.5]


def test_rows_of_a_batch_may_have_their_own_lengths():
    batch = np.zeros((3, 4), np.float32)
    out = s.min_length(batch, [4, 5, 6], 6, 3)
    assert kept(out)[:, 3].tolist() == [False, False, True]
    out = s.min_new_tokens(batch, [4, 5, 6], [1, 1, 5], 2, 3)
    assert kept(out)[:, 3].tolist() == [True, True, False]
    out = s.forced_eos(batch, [4, 5, 6], 6, 3)
    assert kept(out).sum(axis=1).tolist() == [4, 1, 4]
    with pytest.raises(ValueError, match="lengths have shape"):
        s.min_length(batch, [4, 5], 6, 3)


# --- the door for grammars ----------------------------------------------------


def test_a_function_of_the_text_decides_what_may_follow():
    seen = []

    def after(batch, tokens):
        seen.append((batch, tokens.tolist()))
        return [int(tokens[-1]), 3]

    logits = np.arange(16, dtype=np.float32).reshape(4, 4)
    texts = [[0], [1, 2], [2], [3, 1]]
    out = s.prefix_allowed_tokens(logits, texts, after, num_beams=2)
    assert seen == [(0, [0]), (0, [1, 2]), (1, [2]), (1, [3, 1])]
    for row, before, text in zip(out, logits, texts):
        assert row.tobytes() == s.allowed_tokens(before, [text[-1], 3]).tobytes()


def test_what_is_allowed_comes_back_where_every_beam_had_lost_it():
    logits = np.zeros((4, 3), np.float32)
    logits[[0, 1, 2], 0] = -np.inf
    out = s.prefix_allowed_tokens(
        logits, [[1]] * 4, lambda batch, tokens: [0], num_beams=2
    )
    # Both beams of batch 0 had lost token 0; of batch 1 only the first had.
    assert kept(out).tolist() == [[True, False, False]] * 2 + [
        [False, False, False],
        [True, False, False],
    ]
    assert out[0, 0] == 0.0
    one = s.prefix_allowed_tokens(logits[0], [1], lambda batch, tokens: [0])
    assert one.tolist() == [0.0, -np.inf, -np.inf]


@given(seeds)
def test_a_text_under_a_language_stays_inside_it(seed):
    # (01 | 2)*: after 0 must come 1.
    def follows(batch, tokens):
        return [1] if tokens.size and tokens[-1] == 0 else [0, 2]

    rng, text = np.random.default_rng(seed), []
    for _ in range(30):
        row = s.prefix_allowed_tokens(rng.standard_normal(3), text, follows)
        text.append(int(s.sample(row, rng)))
    spelled = "".join(map(str, text)).replace("01", "2").rstrip("0")
    assert set(spelled) == {"2"}


# --- invalid values, normalising ----------------------------------------------


def test_invalid_values_become_the_nearest_numbers():
    row = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)
    most = np.finfo(np.float32).max
    assert s.remove_invalid_values(row).tolist() == [0.0, most, -most, 1.5]
    assert np.isnan(row[0])
    half = s.remove_invalid_values(row.astype(np.float16))
    assert half.dtype == np.float16 and half[1] == np.finfo(np.float16).max
    with pytest.raises(TypeError, match="floating"):
        s.remove_invalid_values([1, 2])


@given(batches())
def test_renormalised_logits_are_log_probabilities(batch):
    out = s.renormalize(batch)
    assert out.dtype == batch.dtype and (kept(out) == kept(batch)).all()
    np.testing.assert_allclose(s.softmax(out), s.softmax(batch), atol=1e-6)
    np.testing.assert_allclose(np.exp(out.astype(float)).sum(axis=-1), 1, rtol=1e-5)


# --- guidance -----------------------------------------------------------------


@given(distinct_rows(), seeds, shares(-1, 3))
def test_guidance_is_the_definition(row, seed, scale):
    other = np.random.default_rng(seed).standard_normal(row.size)
    exact = row.astype(np.float64)
    out = s.classifier_free_guidance(exact, other, scale)
    expected = spec.guidance(exact.tolist(), other.tolist(), scale)
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)


@given(rows(kinds=[0, 1, FEW]), seeds)
def test_guidance_is_affine_between_the_two_answers(row, seed):
    other = np.random.default_rng(seed).standard_normal(row.size)
    exact = row.astype(np.float64)
    guided = [s.classifier_free_guidance(exact, other, g) for g in (0, 0.5, 1, 2)]
    np.testing.assert_array_equal(guided[2], s.log_softmax(exact))
    left = kept(row)
    assert all((answer[~left] == -np.inf).all() for answer in guided)
    np.testing.assert_allclose(guided[0][left], s.log_softmax(other)[left], atol=1e-9)
    middle = (guided[0][left] + guided[2][left]) / 2
    np.testing.assert_allclose(guided[1][left], middle, atol=1e-9)
    beyond = 2 * guided[2][left] - guided[0][left]
    np.testing.assert_allclose(guided[3][left], beyond, atol=1e-9)
    same = s.classifier_free_guidance(exact, exact, 7.5)
    np.testing.assert_allclose(same[left], s.log_softmax(exact)[left], atol=1e-9)


def test_guidance_revives_no_token_that_either_side_removed():
    row = np.array([1.0, -np.inf, 0.0, 2.0], np.float32)
    other = np.array([0.0, 1.0, -np.inf, 1.0], np.float32)
    out = s.classifier_free_guidance(row, other, 1.5)
    assert kept(out).tolist() == [True, False, False, True]
    assert out.dtype == np.float32


# --- errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: s.suppress(ROW, [4]), "suppress_tokens holds 4"),
        (lambda: s.allowed_tokens(ROW, []), "allowed_token_ids is empty"),
        (lambda: s.allowed_tokens(ROW, [-1]), "allowed_token_ids holds -1"),
        (lambda: s.logit_bias(ROW, {4: 1.0}), "logit_bias holds 4"),
        (lambda: s.logit_bias(ROW, {1: math.inf}), "finite or -inf"),
        (lambda: s.logit_bias(ROW, {1: math.nan}), "finite or -inf"),
        (lambda: s.sequence_bias(ROW, [1], {(): 1.0}), "at least one id"),
        (lambda: s.sequence_bias(ROW, [1], {(1,): math.inf}), "finite or -inf"),
        (lambda: s.sequence_bias(ROW, [1], {(1, 9): 1.0}), "sequence_bias holds 9"),
        (lambda: s.bad_words(ROW, [1], [[]]), "at least one id"),
        (lambda: s.min_length(ROW, 1, -1, 0), "min_length must be 0"),
        (lambda: s.min_new_tokens(ROW, 1, 1, -1, 0), "min_new_tokens must be 0"),
        (lambda: s.forced_bos(ROW, 1, 4), "forced_bos_token_id holds 4"),
        (lambda: s.forced_eos(ROW, 1, 2, 4), "forced_eos_token_id holds 4"),
        (
            lambda: s.prefix_allowed_tokens(ROW, [1], lambda b, t: []),
            "allowed_token_ids is empty",
        ),
        (
            lambda: s.prefix_allowed_tokens(ROW, [1], lambda b, t: [1], num_beams=2),
            "groups of num_beams=2",
        ),
        (lambda: s.classifier_free_guidance(ROW, ROW[:3], 1.5), "logits have shape"),
        (lambda: s.classifier_free_guidance(ROW, ROW, math.nan), "guidance_scale"),
    ],
)
def test_an_option_out_of_range_is_named(call, names):
    with pytest.raises(ValueError, match=names):
        call()
