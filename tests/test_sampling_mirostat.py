"""Mirostat: truncation steered by feedback, its state in the caller's hands."""

import math

import numpy as np
import pytest
import sampling_spec as spec
from hypothesis import given
from hypothesis import strategies as st
from sampling_strategies import batches, count, distinct_rows, kept, rows, seeds, shares

from npllama import sampling as s

MU = shares(0.1, 12)


@given(rows(), MU)
def test_version_2_keeps_what_surprises_by_no_more_than_mu(row, mu):
    exact = row.astype(np.float64)
    out = s.mirostat_2(exact, mu)
    assert out.tolist() == spec.mirostat_2(exact.tolist(), mu)
    surprise = -s.log_softmax(exact) / math.log(2)
    expected = surprise <= mu
    assert (kept(out) == expected).all() or count(out) == 1


@given(distinct_rows(min_size=2), MU, st.sampled_from(["llama.cpp", "original"]))
def test_version_1_is_the_definition(row, mu, convention):
    exact = row.astype(np.float64)
    out = s.mirostat_1(exact, mu, m=30, convention=convention)
    assert out.tolist() == spec.mirostat_1(exact.tolist(), mu, 30, convention)


def test_version_1_counts_the_removed_tokens_in_the_vocabulary():
    row = np.log(1 / np.arange(1, 60.0) ** 1.3)
    padded = np.append(row, np.full(940, -np.inf))
    expected = spec.mirostat_1(padded.tolist(), 4.0, 100)
    assert s.mirostat_1(padded, 4.0).tolist() == expected
    assert count(expected) != count(s.mirostat_1(row, 4.0))


@pytest.mark.parametrize("size", [2, 5, 40])
@pytest.mark.parametrize("exponent", [1.0, 0.0])
def test_version_1_survives_the_poles_of_its_formula(size, exponent):
    # At exponent 1 the formula reads 0/0, at 0 it has 1/0 for a power.
    row = -exponent * np.log(np.arange(1, size + 1.0))
    counts = [count(s.mirostat_1(row, mu)) for mu in np.linspace(0, 20, 50)]
    assert counts[0] == 1 and counts[-1] == size and counts == sorted(counts)
    near = -(exponent + 1e-7) * np.log(np.arange(1, size + 1.0))
    close = [count(s.mirostat_1(near, mu)) for mu in np.linspace(0.03, 20, 50)]
    same = [count(s.mirostat_1(row, mu)) for mu in np.linspace(0.03, 20, 50)]
    assert exponent == 0 or close == same


@given(rows(), MU, st.sampled_from([s.mirostat_1, s.mirostat_2]))
def test_mirostat_keeps_values_and_the_best_token(row, mu, mirostat):
    row.flags.writeable = False
    out = mirostat(row, mu)
    assert out.dtype == row.dtype and count(out) >= 1 and out.max() == row.max()
    assert out[kept(out)].tobytes() == row[kept(out)].tobytes()


@given(batches(), MU, st.sampled_from([s.mirostat_1, s.mirostat_2]))
def test_mirostat_treats_each_row_alone(batch, mu, mirostat):
    whole = mirostat(batch, mu)
    for out, row in zip(whole, batch):
        assert out.tobytes() == mirostat(row, mu).tobytes()


@given(rows(), MU, MU, st.sampled_from([s.mirostat_1, s.mirostat_2]))
def test_more_tolerance_keeps_no_fewer_tokens(row, one, two, mirostat):
    few, many = (mirostat(row, mu) for mu in sorted((one, two)))
    assert count(few) <= count(many)


@given(distinct_rows(), MU, shares(0.5, 8), shares(0.01, 1), seeds)
def test_the_state_moves_against_the_error(row, mu, tau, eta, seed):
    exact = row.astype(np.float64)
    token = int(np.random.default_rng(seed).integers(row.size))
    new = s.mirostat_update(exact, token, mu, tau=tau, eta=eta)
    expected = spec.mirostat_update(exact.tolist(), token, mu, tau, eta)
    assert math.isclose(new, expected, rel_tol=1e-9, abs_tol=1e-9)


@given(rows(), MU, seeds, st.sampled_from([1, 2]))
def test_a_step_can_be_replayed_from_its_parts(row, mu, seed, version):
    u = float(np.random.default_rng(seed).random())
    token, new = s.mirostat_step(row, mu, u, version=version, tau=3.0, eta=0.2)
    left = s.mirostat_2(row, mu) if version == 2 else s.mirostat_1(row, mu)
    assert token == s.draw(s.softmax(left), u)
    assert new == s.mirostat_update(left, token, mu, tau=3.0, eta=0.2)


@pytest.mark.parametrize(("version", "tau"), [(1, 3.0), (2, 3.0), (2, 5.0)])
def test_in_the_long_run_the_mean_surprise_is_tau(version, tau):
    row = -1.1 * np.log(np.arange(1, 2001.0))  # entropy 8.3 bits
    rng, mu, surprises = np.random.default_rng(5), s.mirostat_start(tau), []
    for _ in range(400):
        before = mu
        _, mu = s.mirostat_step(row, mu, rng.random(), version=version, tau=tau)
        surprises.append((before - mu) / 0.1 + tau)
    assert abs(np.mean(surprises[100:]) - tau) < 0.15


def test_a_text_starts_at_twice_tau():
    assert s.mirostat_start(2.5) == 5.0


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: s.mirostat_start(0), "tau must be above 0"),
        (lambda: s.mirostat_update([0.0], 0, 1.0, tau=-1), "tau must be above 0"),
        (lambda: s.mirostat_update([0.0], 0, 1.0, eta=0), "eta must be above 0"),
        (lambda: s.mirostat_update([0.0, -np.inf], 1, 1.0), "token 1 is removed"),
        (lambda: s.mirostat_1([0.0], 1.0, m=1), "m of 2 or more"),
        (lambda: s.mirostat_1([0.0], 1.0, convention="HF"), "convention must be"),
        (lambda: s.mirostat_step([0.0], 1.0, 0.5, version=3), "must be 1 or 2"),
    ],
)
def test_an_option_out_of_range_is_named(call, names):
    with pytest.raises(ValueError, match=names):
        call()
