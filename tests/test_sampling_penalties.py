"""Penalties on tokens and on whole passages."""

import math

import numpy as np
import pytest
import sampling_spec as spec
from hypothesis import example, given
from hypothesis import strategies as st
from sampling_strategies import (
    distinct_rows,
    histories,
    kept,
    rows,
    rows_with_histories,
    seeds,
    shares,
)

from npllama import sampling as s
from npllama.sampling.repeats import (
    plain_no_repeat_ngram,
    plain_repeat_lengths,
    repeat_lengths,
)

# Every penalty as a function of logits, tokens and a strength above 1.
PENALTIES = {
    "repetition": lambda r, t, x: s.repetition_penalty(r, t, x),
    "encoder": lambda r, t, x: s.encoder_repetition_penalty(r, t, x),
    "presence": lambda r, t, x: s.presence_penalty(r, t, x),
    "frequency": lambda r, t, x: s.frequency_penalty(r, t, x),
    "dry": lambda r, t, x: s.dry(r, t, x, allowed_length=1),
    "ngram": lambda r, t, x: s.no_repeat_ngram(r, t, 2),
    "encoder ngram": lambda r, t, x: s.encoder_no_repeat_ngram(r, t, [0, 0], 2),
}
each = pytest.mark.parametrize("name", PENALTIES)
strengths = shares(1.05, 3)
breakers = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=3)


@given(case=rows_with_histories(), n=st.integers(1, 4))
@example(case=(np.zeros(5), np.array([1, 2, 3, 1, 2])), n=3)
def test_no_repeat_is_its_plain_form(case, n):
    row, tokens = case
    expected = plain_no_repeat_ngram(row, np.asarray(tokens, np.int64), n)
    np.testing.assert_array_equal(s.no_repeat_ngram(row, tokens, n), expected)


@given(histories(5), st.integers(0, 12))
@example([0, 0, 0, 0], 9)  # repeats that overlap themselves
@example([1, 2, 3, 1, 2], 1)
def test_lengths_of_repeats_are_their_plain_form(history, limit):
    text = np.asarray(history, np.int64)
    expected = plain_repeat_lengths(text, limit)
    np.testing.assert_array_equal(repeat_lengths(text, limit), expected)


@each
@given(case=rows_with_histories(), x=strengths)
def test_penalties_touch_no_other_token_and_write_into_nothing(name, case, x):
    row, tokens = case
    row.flags.writeable = tokens.flags.writeable = False
    out = PENALTIES[name](row, tokens, x)
    untouched = np.ones(row.size, bool)
    untouched[np.append(tokens, 0)] = False
    assert (
        out.dtype == row.dtype and out[untouched].tobytes() == row[untouched].tobytes()
    )
    assert not (kept(out) & ~kept(row)).any() and not np.shares_memory(out, row)


@each
@given(case=rows_with_histories(), x=strengths)
def test_penalties_lower_and_the_encoder_penalty_raises(name, case, x):
    row, tokens = case
    out = PENALTIES[name](row, tokens, x)
    assert (out >= row).all() if name == "encoder" else (out <= row).all()


@each
@given(data=st.data(), x=strengths)
def test_each_row_has_its_own_history_of_its_own_length(name, data, x):
    row = data.draw(rows())
    texts = [data.draw(histories(row.size)) for _ in range(3)]
    batch = np.stack([row, row + 1, row * 2])
    whole = PENALTIES[name](batch, texts, x)
    for out, one, text in zip(whole, batch, texts):
        assert out.tobytes() == PENALTIES[name](one, text, x).tobytes()


@given(rows_with_histories(), shares(0.3, 3))
def test_token_penalties_are_the_definition(case, x):
    row, tokens = case
    exact, text = row.astype(np.float64), tokens.tolist()
    for mine, loops in (
        (s.repetition_penalty, spec.repetition_penalty),
        (s.presence_penalty, spec.presence_penalty),
        (s.frequency_penalty, spec.frequency_penalty),
    ):
        expected = loops(exact.tolist(), text, x)
        np.testing.assert_allclose(mine(exact, tokens, x), expected, rtol=1e-14)


@given(rows_with_histories(), seeds)
def test_order_and_number_do_not_matter_to_the_repetition_penalty(case, seed):
    row, tokens = case
    rng = np.random.default_rng(seed)
    more = rng.permutation(np.concatenate([tokens, tokens, tokens[:2]]))
    once = s.repetition_penalty(row, tokens, 1.3)
    assert s.repetition_penalty(row, more, 1.3).tobytes() == once.tobytes()
    assert s.repetition_penalty(row, tokens, 1.0).tobytes() == row.tobytes()


@given(rows_with_histories(), shares(0.3, 3))
def test_a_penalty_and_its_inverse_cancel(case, penalty):
    row, tokens = case
    exact = row.astype(np.float64)
    there = s.repetition_penalty(exact, tokens, penalty)
    back = s.encoder_repetition_penalty(there, tokens, penalty)
    np.testing.assert_allclose(back, exact, rtol=1e-14)


def test_the_repetition_penalty_minds_a_constant():
    row = np.array([2.0, 0.5])
    penalised = s.softmax(s.repetition_penalty(row, [0], 3.0))
    moved = s.softmax(s.repetition_penalty(row - 3, [0], 3.0))
    assert penalised[0] > 0.5 > moved[0]


@given(rows_with_histories(kinds=[0, 1, 2]), shares(-2, 2))
def test_presence_and_frequency_do_not_mind_a_constant(case, x):
    row, tokens = case
    exact = row.astype(np.float64)
    for penalty in (s.presence_penalty, s.frequency_penalty):
        moved = s.softmax(penalty(exact + 64, tokens, x))
        np.testing.assert_allclose(
            moved, s.softmax(penalty(exact, tokens, x)), atol=1e-9
        )


@given(rows_with_histories(), st.integers(0, 30))
def test_a_window_sees_only_the_last_tokens(case, last):
    row, tokens = case
    recent = tokens[max(tokens.size - last, 0) :]
    for penalty in (
        s.repetition_penalty,
        s.presence_penalty,
        s.frequency_penalty,
        s.dry,
    ):
        out = penalty(row, tokens, 1.5, last_n=last)
        assert out.tobytes() == penalty(row, recent, 1.5).tobytes()


# --- passages -----------------------------------------------------------------


@given(rows_with_histories(), st.integers(1, 5), seeds)
def test_ngrams_are_forbidden_by_the_definition(case, n, seed):
    row, tokens = case
    text = tokens.tolist()
    out = s.no_repeat_ngram(row, tokens, n)
    banned = sorted(spec.banned_by_ngram(text, text, n))
    assert np.flatnonzero(kept(row) & ~kept(out)).tolist() == [
        i for i in banned if row[i] > -np.inf
    ]
    prompt = np.random.default_rng(seed).integers(0, min(row.size, 4), 9)
    out = s.encoder_no_repeat_ngram(row, tokens, prompt, n)
    banned = sorted(spec.banned_by_ngram(text, prompt.tolist(), n))
    assert np.flatnonzero(kept(row) & ~kept(out)).tolist() == [
        i for i in banned if row[i] > -np.inf
    ]


@given(seeds, st.integers(2, 3))
def test_a_text_written_under_the_rule_repeats_no_ngram(seed, n):
    rng, text = np.random.default_rng(seed), []
    for _ in range(4**n):
        row = s.no_repeat_ngram(rng.standard_normal(4), text, n)
        if not kept(row).any():
            break
        text.append(int(s.greedy(row)))
    ngrams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    assert len(set(ngrams)) == len(ngrams) > 1


@given(
    rows_with_histories(),
    shares(0.1, 2),
    shares(1.05, 3),
    st.integers(1, 4),
    breakers,
)
@example((np.zeros(4, np.float32), np.array([1, 2, 3, 1, 2])), 1.0, 2.0, 1, [])
def test_dry_is_the_definition(case, multiplier, base, allowed, breakers):
    row, tokens = case
    breakers = [[i % row.size for i in b] for b in breakers]
    exact = row.astype(np.float64)
    expected = spec.dry(exact.tolist(), tokens, multiplier, base, allowed, breakers)
    out = s.dry(
        exact,
        tokens,
        multiplier,
        base=base,
        allowed_length=allowed,
        sequence_breakers=breakers,
    )
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_dry_grows_with_the_length_of_the_repeat():
    passage = [4, 1, 3, 2, 5]
    penalties = []
    for n in range(1, 6):
        out = s.dry(np.zeros(8), [*passage, 6, 7, *passage[5 - n :]], 1.0, base=2.0)
        penalties.append(-out[6])
    assert penalties == [0.0, 1.0, 2.0, 4.0, 8.0]


def test_dry_counts_no_further_back_than_a_breaker():
    text = [1, 2, 9, 3, 4, 5, 1, 2, 9, 3, 4]
    row = np.zeros(10)
    assert s.dry(row, text, 1.0, base=2.0)[5] == -(2.0**3)
    assert s.dry(row, text, 1.0, base=2.0, sequence_breakers=[[9]])[5] == -1.0
    assert s.dry(row, text, 1.0, base=2.0, sequence_breakers=[[9, 3]])[5] == 0.0
    longer = s.dry(row, text, 1.0, base=2.0, sequence_breakers=[[9], [9, 3, 4]])
    assert longer[5] == 0.0
    # A token that is a breaker itself may always come.
    assert s.dry(row, text, 1.0, sequence_breakers=[[5]])[5] == 0.0


@pytest.mark.parametrize("base, most", [(2.0, 128), (4.0, 64), (1.75, 158)])
def test_dry_counts_up_to_the_power_that_llama_cpp_reaches_in_float32(base, most):
    # 88.722839f / logf(2.0f) is 128.0f; in float64 it is a little less.
    for n in (most, most + 40):
        history = [5, *[7] * (n + 2)]
        out = s.dry(np.zeros(9, np.float64), history, 0.5, base=base, allowed_length=2)
        expected = min(n + 1 - 2, most)
        assert math.isclose(-out[7], 0.5 * base**expected, rel_tol=1e-12)


def test_dry_stays_finite_over_a_long_repeat():
    out = s.dry(np.zeros(3, np.float32), [1] * 400, 0.5, base=4.0)
    # llama.cpp counts to 64; half of 4 to that power is still a float32.
    assert out[1] == -np.float32(0.5 * 4.0**64)


@given(rows_with_histories())
def test_dry_without_a_multiplier_or_a_repeat_changes_nothing(case):
    row, tokens = case
    assert s.dry(row, tokens, 0.0).tobytes() == row.tobytes()
    assert s.dry(row, np.unique(tokens), 2.0).tobytes() == row.tobytes()


# --- the end of the text ------------------------------------------------------


@given(rows(), shares(0.5, 1.5), st.integers(0, 12), st.integers(0, 6), seeds)
def test_the_length_penalty_is_the_definition(row, factor, new, start, seed):
    eos = np.random.default_rng(seed).integers(0, row.size, 2)
    exact = row.astype(np.float64)
    out = s.exponential_decay_length_penalty(exact, new, start, factor, eos)
    expected = spec.exponential_decay(exact.tolist(), new, start, factor, eos.tolist())
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    if new <= start:
        assert out.tobytes() == exact.tobytes()


@given(distinct_rows(), shares(1.01, 1.5))
def test_the_end_becomes_likelier_with_every_token(row, factor):
    ends = [
        s.exponential_decay_length_penalty(row, n, 3, factor, 0)[0] for n in range(12)
    ]
    assert ends == sorted(ends) and ends[3] == row[0]


def test_the_length_penalty_never_overflows_nor_revives_the_end():
    row = np.array([[2.0, -np.inf, 0.0], [0.0, 1.0, 2.0]], np.float32)
    out = s.exponential_decay_length_penalty(row, 10000, 5, 1.5, [0, 1])
    assert out[0].tolist() == [np.finfo(np.float32).max, -np.inf, 0.0]
    assert out[1, 0] == 0.0 and out[1, 2] == 2.0
    mixed = s.exponential_decay_length_penalty(row, [3, 7], 5, 2.0, 1)
    assert mixed[0].tobytes() == row[0].tobytes() and mixed[1, 1] == 4.0


# --- errors -------------------------------------------------------------------

ROW = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: s.repetition_penalty(ROW, [1], 0), "repetition_penalty must be"),
        (lambda: s.repetition_penalty(ROW, [1], math.inf), "repetition_penalty must"),
        (lambda: s.encoder_repetition_penalty(ROW, [1], -1), "encoder_repetition_pen"),
        (lambda: s.presence_penalty(ROW, [1], math.nan), "presence_penalty must be"),
        (lambda: s.frequency_penalty(ROW, [1], math.inf), "frequency_penalty must be"),
        (lambda: s.repetition_penalty(ROW, [1], 1.1, last_n=-1), "last_n must be"),
        (lambda: s.no_repeat_ngram(ROW, [1], 0), "no_repeat_ngram_size must be"),
        (lambda: s.encoder_no_repeat_ngram(ROW, [1], [1], 0), "encoder_no_repeat"),
        (lambda: s.encoder_no_repeat_ngram(ROW, [1], [4], 1), "prompt holds 4"),
        (lambda: s.dry(ROW, [1], -1), "dry needs"),
        (lambda: s.dry(ROW, [1], 1, base=0.9), "dry needs"),
        (lambda: s.dry(ROW, [1], 1, allowed_length=0), "allowed_length >= 1"),
        (lambda: s.dry(ROW, [1], 1, sequence_breakers=[[]]), "no empty breaker"),
        (lambda: s.dry(ROW, [1], 1, sequence_breakers=[[7]]), "sequence_breakers"),
        (
            lambda: s.exponential_decay_length_penalty(ROW, 1, -1, 1.1, 0),
            "exponential_decay",
        ),
        (
            lambda: s.exponential_decay_length_penalty(ROW, 1, 1, 0.0, 0),
            "exponential_decay",
        ),
        (
            lambda: s.exponential_decay_length_penalty(ROW, 1, 1, 1.1, 4),
            "eos_token_id holds 4",
        ),
        (lambda: s.presence_penalty(ROW, [4], 1), "tokens holds 4"),
        (lambda: s.presence_penalty(ROW, [-1], 1), "tokens holds -1"),
        (lambda: s.presence_penalty(ROW, [[1]], 1), "one list of ids"),
        (lambda: s.presence_penalty(ROW[None], [[1], [2]], 1), "1 rows of logits"),
        (lambda: s.presence_penalty(ROW[None, None], [1], 1), r"\(V,\) or \(B, V\)"),
    ],
)
def test_an_option_out_of_range_is_named(call, names):
    with pytest.raises(ValueError, match=names):
        call()


def test_tokens_are_whole_numbers():
    with pytest.raises(TypeError, match="tokens must be integers"):
        s.presence_penalty(ROW, [1.0], 1)
    assert s.presence_penalty(ROW, [], 1).tobytes() == ROW.tobytes()
