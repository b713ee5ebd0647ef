"""What a number becomes in fewer bits, against the bits of ml_dtypes."""

import numpy as np
import pytest
from needs import needs

from npllama.golden.precision import (
    FORMATS,
    rounded,
    truncated,
    ulp,
    weights_in,
)

ml_dtypes = needs("ml_dtypes", "test")
TYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
}


def every_number(dtype):
    """All patterns of a format's bits, as float32: NaN and infinities among them."""
    kind = np.dtype(TYPES[dtype])
    bits = np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    return bits.view(kind).astype(np.float32)


def around(dtype):
    """Every number, every tie between two, and what lies just beside a tie."""
    numbers = every_number(dtype)
    finite = np.unique(numbers[np.isfinite(numbers)]).astype(np.float64)
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(ties, np.float32(s)) for s in (-np.inf, np.inf)]
    beyond = np.float32([1e-45, 463.9, 464, 464.1, 65519, 65520, 3.4e38])
    return np.concatenate([numbers, ties, *beside, beyond, -beyond])


@pytest.mark.parametrize("dtype", TYPES)
def test_rounding_is_that_of_ml_dtypes_on_every_pattern_and_every_tie(dtype):
    x = around(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(TYPES[dtype]).astype(np.float32)
    found = rounded(x, dtype)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[x == 0]), np.signbit(x[x == 0]))


@pytest.mark.parametrize("dtype", TYPES)
def test_what_a_format_holds_is_neither_rounded_nor_truncated(dtype):
    x = every_number(dtype)
    x = x[np.isfinite(x)]
    np.testing.assert_array_equal(rounded(x, dtype), x)
    np.testing.assert_array_equal(truncated(x, dtype), x)


def test_truncation_to_bfloat16_drops_the_lower_half_of_the_bits():
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    dropped = (x.view(np.uint32) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(truncated(x, "bfloat16"), dropped)


@pytest.mark.parametrize("dtype", TYPES)
def test_ulp_is_the_way_to_the_next_number(dtype):
    x = np.unique(every_number(dtype))
    x = x[np.isfinite(x) & (x > 0)].astype(np.float64)
    np.testing.assert_array_equal(ulp(x[:-1], dtype), np.diff(x))


def test_ulp_of_float32_is_numpys_spacing():
    x = np.float32([1e-45, 1e-38, 1.0, 1.5, 3e38, 0.1])
    np.testing.assert_array_equal(ulp(x, "float32"), np.spacing(x))


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_errs_by_half_a_step_and_truncation_towards_zero(dtype):
    x = np.random.default_rng(1).standard_normal(4000)
    step = ulp(x, dtype)
    near, cut = rounded(x, dtype) - x, truncated(x, dtype) - x
    assert (np.abs(near) <= step / 2).all()
    assert (np.abs(cut) <= step).all() and (cut * x <= 0).all()


def test_float8_weights_use_the_whole_range_of_every_row():
    w = (
        np.random.default_rng(2).standard_normal((5, 64))
        * 10.0 ** -np.arange(5)[:, None]
    )
    held = weights_in(w, "float8_e4m3fn")
    # Half of 2**-3 at most, where the number is normal in its row.
    large = np.abs(w) > np.abs(w).max(axis=1, keepdims=True) / 1000
    assert (np.abs(held / w - 1)[large] <= 2**-4 + 1e-6).all()
    assert not np.array_equal(held, w)
    np.testing.assert_array_equal(weights_in(np.zeros((2, 3)), "float8_e4m3fn"), 0)


def test_unknown_format_is_refused_by_name():
    with pytest.raises(ValueError, match="float12.*bfloat16"):
        rounded(np.zeros(2), "float12")
