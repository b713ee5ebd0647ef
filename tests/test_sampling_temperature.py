"""Temperature, fixed and dynamic."""

import math

import numpy as np
import pytest
import sampling_spec as spec
from hypothesis import given
from sampling_strategies import (
    EQUAL,
    FEW_EQUAL,
    HUGE,
    batches,
    distinct_rows,
    kept,
    rows,
    shares,
)

from npllama import sampling as s

TEMPERATURES = shares(0.05, 5)


@given(rows(), TEMPERATURES)
def test_temperature_divides(row, t):
    out = s.temperature(row, t)
    assert out.dtype == np.float32 and (kept(out) == kept(row)).all()
    np.testing.assert_allclose(out, spec.temperature(row.tolist(), t), rtol=3e-7)


@given(rows())
def test_temperature_one_changes_nothing(row):
    assert s.temperature(row, 1.0).tobytes() == row.tobytes()


@given(rows(), TEMPERATURES, TEMPERATURES)
def test_temperatures_multiply(row, first, second):
    exact = row.astype(np.float64)
    twice = s.temperature(s.temperature(exact, first), second)
    np.testing.assert_allclose(twice, s.temperature(exact, first * second), rtol=1e-14)


@given(distinct_rows(min_size=2), TEMPERATURES)
def test_temperature_keeps_the_order_and_raises_the_entropy(row, t):
    exact = row.astype(np.float64)
    warm = s.temperature(exact, t)
    assert (np.argsort(warm) == np.argsort(exact)).all()
    difference = spec.entropy(warm.tolist()) - spec.entropy(exact.tolist())
    assert difference * (t - 1) >= -1e-12


@given(distinct_rows(), TEMPERATURES)
def test_temperature_raises_probabilities_to_a_power(row, t):
    power = s.softmax(row.astype(np.float64)) ** (1 / t)
    warm = s.softmax(s.temperature(row.astype(np.float64), t))
    np.testing.assert_allclose(warm, power / power.sum(), rtol=1e-9)


@given(rows(kinds=[0, 1, 2]))
def test_great_heat_makes_all_tokens_equal(row):
    probs = s.softmax(s.temperature(row, 1e9))
    np.testing.assert_allclose(probs[kept(row)], 1 / kept(row).sum(), rtol=1e-6)


@given(rows(), shares(0.1, 3), shares(0, 3), shares(0.2, 3))
def test_dynamic_temperature_is_the_definition(row, t, spread, exponent):
    exact = row.astype(np.float64)
    expected = spec.dynamic_temperature(exact.tolist(), t, spread, exponent)
    out = s.dynamic_temperature(exact, t, spread, exponent)
    # Where next to nothing is left of the entropy, so is of its precision.
    if max(v for v in expected if v > -math.inf) < 1e6:
        np.testing.assert_allclose(out, expected, rtol=1e-8)


@given(rows(kinds=[EQUAL, FEW_EQUAL], min_size=3), shares(0.1, 3), shares(0, 3))
def test_a_row_of_equals_gets_the_highest_temperature(row, t, spread):
    exact = row.astype(np.float64)
    out = s.dynamic_temperature(exact, t, spread, 0.7)
    expected = exact if kept(row).sum() == 1 else s.temperature(exact, t + spread)
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_a_certain_row_gets_the_lowest_temperature():
    row = np.array([900.0, 0.0, -np.inf], np.float64)
    out = s.dynamic_temperature(row, 1.0, 0.25)
    np.testing.assert_allclose(out[:2], row[:2] / 0.75, rtol=1e-12)
    # At the temperature 0 only the greedy choice is left.
    cold = s.dynamic_temperature(row, 1.0, 1.0)
    assert cold.tolist() == [900.0, -np.inf, -np.inf]


@given(rows(), TEMPERATURES)
def test_without_a_spread_it_is_plain_temperature(row, t):
    if kept(row).sum() > 1:
        dynamic = s.dynamic_temperature(row, t, 0.0)
        np.testing.assert_allclose(dynamic, s.temperature(row, t), rtol=1e-6)


@given(batches())
def test_every_row_has_its_own_temperature(batch):
    whole = s.dynamic_temperature(batch, 1.5, 1.0)
    for out, row in zip(whole, batch):
        assert out.tobytes() == s.dynamic_temperature(row, 1.5, 1.0).tobytes()


@given(rows(kinds=[HUGE]))
def test_temperature_writes_into_nothing(row):
    row.flags.writeable = False
    out = s.temperature(row, 0.5), s.dynamic_temperature(row, 1.0, 0.5)
    assert not any(np.shares_memory(row, x) for x in out)


@pytest.mark.parametrize("t", [0, -1.0, math.nan, math.inf])
def test_temperature_must_be_above_zero(t):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        s.temperature(np.zeros(3, np.float32), t)


def test_a_temperature_that_overflows_is_refused():
    with pytest.raises(ValueError, match="dividing by temperature"):
        s.temperature(np.array([1.0, 2.0], np.float32), 1e-39)
    with pytest.raises(ValueError, match="dividing by temperature"):
        s.temperature(np.array([-1e38, -2e38], np.float32), 0.1)


def test_only_the_lowest_logits_may_leave_the_type():
    # What transformers puts in place of -inf, before it divides by the temperature.
    lowest = np.finfo(np.float32).min
    logits = s.remove_invalid_values(np.array([1.0, -np.inf, 2.0], np.float32))
    assert logits[1] == lowest
    assert s.temperature(logits, 0.5).tolist() == [2.0, -np.inf, 4.0]


@pytest.mark.parametrize("options", [(0, 1, 1), (1, -0.1, 1), (1, 1, 0), (1, 1, -1)])
def test_dynamic_temperature_options_are_checked(options):
    with pytest.raises(ValueError, match="dynamic temperature needs"):
        s.dynamic_temperature(np.zeros(3, np.float32), *options)
