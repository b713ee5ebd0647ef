"""The draw: greedy, and chance by the inverse of the cumulative distribution."""

import numpy as np
import pytest
import sampling_spec as spec
from hypothesis import example, given
from hypothesis import strategies as st
from sampling_strategies import batches, count, distinct_rows, rows, seeds, shares

from npllama import sampling as s
from npllama.sampling.draw import plain_draw

ALMOST_ONE = 1 - 2.0**-53


@given(rows(), st.floats(0, ALMOST_ONE))
@example(np.array([0.0, -np.inf, 0.0, -np.inf]), ALMOST_ONE)
@example(np.array([-np.inf, 0.0, 0.0]), 0.0)
@example(np.array([0.0, 0.0]), 0.5)
def test_draw_is_its_plain_form(row, u):
    probs = s.softmax(row)
    assert s.draw(probs, u) == plain_draw(probs, u)


@given(rows())
def test_softmax_is_the_definition(row):
    np.testing.assert_allclose(s.softmax(row), spec.softmax(row.tolist()), rtol=1e-12)


@given(rows())
def test_log_softmax_is_the_logarithm_of_softmax(row):
    logp, probs = s.log_softmax(row), s.softmax(row)
    assert ((logp > -np.inf) == (row > -np.inf)).all()
    np.testing.assert_allclose(np.exp(logp), probs, rtol=1e-12)


@given(rows(), st.sampled_from([-1000.0, 3.5, 20000.0]))
def test_a_constant_added_to_the_logits_changes_no_probability(row, constant):
    exact = row.astype(np.float64)
    np.testing.assert_allclose(
        s.softmax(exact + constant), s.softmax(exact), atol=1e-10
    )


@given(batches())
def test_the_rows_of_a_batch_do_not_see_each_other(batch):
    for chosen, row in zip(s.greedy(batch), batch):
        assert chosen == s.greedy(row)
    for probs, logp, row in zip(s.softmax(batch), s.log_softmax(batch), batch):
        assert (probs == s.softmax(row)).all() and (logp == s.log_softmax(row)).all()


@given(rows())
def test_greedy_takes_the_lowest_of_the_most_probable_ids(row):
    assert s.greedy(row) == row.tolist().index(max(row.tolist()))


@given(distinct_rows(), st.floats(0.1, 8), st.floats(-50, 50))
def test_greedy_does_not_mind_scale_or_shift(row, scale, shift):
    assert s.greedy(row) == s.greedy(np.float64(scale) * row + shift)


@given(distinct_rows(min_size=2))
def test_greedy_is_the_limit_of_temperature_zero(row):
    probs = s.softmax(s.temperature(row, 1e-3))
    assert probs.argmax() == s.greedy(row) and probs.max() > 1 - 1e-12


@given(rows(), shares(0, ALMOST_ONE))
def test_the_draw_walks_along_the_probabilities(row, u):
    probs = s.softmax(row)
    assert s.draw(probs, u) == spec.draw(probs.tolist(), u)


@given(seeds, st.integers(1, 30), st.sampled_from([0.0, ALMOST_ONE]))
@example(0, 1, 0.0)
def test_no_token_of_probability_zero_is_drawn_at_either_end(seed, size, u):
    rng = np.random.default_rng(seed)
    probs = rng.random(size) * (rng.random(size) < 0.4)
    probs[rng.integers(size)] += 0.1
    probs[0] *= rng.random() < 0.5
    probs[-1] *= rng.random() < 0.5
    probs[size // 2] += 0.01
    token = s.draw(probs, u)
    possible = np.flatnonzero(probs)
    assert token == (possible[0] if u == 0 else possible[-1])


def test_weights_too_small_to_add_up_still_yield_a_possible_token():
    assert s.draw([0.0, 5e-324, 0.0], 0.9) == 1


@given(seeds, st.integers(1, 12))
def test_every_token_owns_exactly_its_probability_of_u(seed, size):
    # Probabilities in 64ths have exact sums: all 64 pieces of u are tried, at
    # their beginning, where a piece belongs to the next token already.
    cuts = np.random.default_rng(seed).integers(0, size, 64)
    parts = np.bincount(cuts, minlength=size)
    drawn = [int(s.draw(parts / 64, i / 64)) for i in range(64)]
    last = [int(s.draw(parts / 64, np.nextafter((i + 1) / 64, 0))) for i in range(64)]
    assert np.bincount(drawn, minlength=size).tolist() == parts.tolist()
    assert last == drawn


@given(seeds, st.integers(1, 20), shares(0, ALMOST_ONE))
def test_weights_need_not_add_up_to_one(seed, size, u):
    probs = np.random.default_rng(seed).random(size) + 1e-3
    assert s.draw(probs, u) == s.draw(probs * 8, u)


@given(batches(), seeds)
def test_a_batch_is_drawn_row_by_row(batch, seed):
    probs = s.softmax(batch)
    u = np.random.default_rng(seed).random(len(batch))
    assert s.draw(probs, u).tolist() == [s.draw(p, x) for p, x in zip(probs, u)]
    assert (s.sample(batch, np.random.default_rng(seed)) == s.draw(probs, u)).all()


@given(rows(), seeds)
def test_the_same_seed_gives_the_same_token(row, seed):
    one = s.sample(row, np.random.default_rng(seed))
    assert one == s.sample(row, np.random.default_rng(seed))
    assert row[one] > -np.inf


def test_drawn_tokens_have_the_frequencies_of_their_probabilities():
    probs = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(3)
    tokens = s.draw(np.tile(probs, (20000, 1)), rng.random(20000))
    expected = 20000 * probs[probs > 0]
    found = np.bincount(tokens, minlength=5)[probs > 0]
    chi2 = ((found - expected) ** 2 / expected).sum()
    assert chi2 < 30.7  # three degrees of freedom: one chance in a million
    assert found.sum() == 20000


@given(rows())
def test_nothing_is_written_into(row):
    before = row.copy()
    row.flags.writeable = False
    probs = s.softmax(row)
    probs.flags.writeable = False
    s.log_softmax(row), s.greedy(row), s.draw(probs, 0.5)
    assert row.tobytes() == before.tobytes()


@pytest.mark.parametrize("function", [s.softmax, s.log_softmax, s.greedy])
def test_a_row_without_tokens_is_refused(function):
    with pytest.raises(ValueError, match="every token of a row is removed"):
        function(np.full((2, 3), -np.inf, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("function", [s.softmax, s.greedy, lambda x: s.top_k(x, 2)])
def test_nan_and_infinity_are_named_with_their_place(function, bad):
    logits = np.zeros((2, 3), np.float32)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match=rf"logits\[1, 2\] is {bad}"):
        function(logits)


def test_logits_must_be_floating_point_rows():
    with pytest.raises(TypeError, match="floating"):
        s.greedy([1, 2, 3])
    with pytest.raises(ValueError, match="shape"):
        s.greedy(np.zeros((3, 0), np.float32))


@pytest.mark.parametrize("u", [-1e-9, 1.0, np.nan])
def test_u_outside_its_interval_is_refused(u):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        s.draw([0.5, 0.5], u)


@pytest.mark.parametrize("probs", [[0.5, -0.5], [np.nan, 1.0], [0.0, 0.0]])
def test_what_is_no_distribution_is_refused(probs):
    with pytest.raises(ValueError, match="probs must be >= 0"):
        s.draw(probs, 0.5)


def test_there_is_one_u_for_each_row():
    with pytest.raises(ValueError, match="shape"):
        s.draw(np.full((2, 2), 0.5), 0.5)


def test_a_huge_row_keeps_its_distribution():
    probs = s.softmax(np.array([1e4, 1e4, -1e4, -np.inf], np.float32))
    assert probs.tolist() == [0.5, 0.5, 0.0, 0.0] and count([1e4, -np.inf]) == 1
