r"""What a number becomes in fewer bits.

A float of p significant bits and smallest exponent e_min can hold, near x, the
multiples of one step, the *unit in the last place*

$$\mathrm{ulp}(x) = 2^{\max(\lfloor \log_2 |x| \rfloor,\ e_{min}) - (p - 1)}$$

and arithmetic rounds every result to the nearest of them, a tie to the one whose last
bit is 0.  That is an error of half a step at most, in any direction.  Cutting
the digits off instead is cheaper, but its errors are twice as large, and all point
towards zero: they add up where the errors of rounding cancel.

NumPy has float32 and float16.  bfloat16 is the upper half of a float32, so rounding to
it is integer arithmetic on the bits; float8 (e4m3, as GPUs hold weights in) is made by
the formula above.  All of them are held in float32 arrays here, which have room for
each of their numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Format(NamedTuple):
    """A binary floating-point format."""

    digits: int  # p, significant bits, the leading one included
    smallest: int  # e_min, exponent of the smallest normal number
    largest: float


FORMATS = {
    "float32": Format(24, -126, float(np.finfo(np.float32).max)),
    "bfloat16": Format(8, -126, 255 * 2.0**120),
    "float16": Format(11, -14, 65504.0),
    "float8_e4m3fn": Format(4, -6, 448.0),
}
UPPER_HALF = np.uint32(0xFFFF0000)


def check_dtype(dtype: str) -> str:
    """The same name, or a ValueError that lists the known ones."""
    if dtype not in FORMATS:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(FORMATS)}")
    return dtype


def ulp(x: np.ndarray, dtype: str) -> np.ndarray:
    """Distance between neighbouring numbers of a format, around x.

    Parameters
    ----------
    x : (*B,) float
    dtype : one of `FORMATS`

    Returns
    -------
    (*B,) float64
    """
    form = FORMATS[check_dtype(dtype)]
    # frexp writes x as m * 2**e with m from 1/2 to 1: one exponent too many.
    exponent = np.frexp(np.asarray(x, dtype=np.float64))[1] - 1  # (*B,) int32
    return np.ldexp(1.0, np.maximum(exponent, form.smallest) - (form.digits - 1))


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers that a format has, ties to even.

    Parameters
    ----------
    x : (*B,) float
        Taken to float32 first.
    dtype : one of `FORMATS`

    Returns
    -------
    (*B,) float32
        Infinite beyond the largest number; NaN for float8, which has no infinity.

    Raises
    ------
    ValueError
        If the format is not known.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(x).astype(np.float32, copy=False)
        if check_dtype(dtype) == "float32":
            return x
        if dtype == "float16":
            return x.astype(np.float16).astype(np.float32)
        if dtype == "bfloat16":
            return _to_upper_half(x)
        step = ulp(x, dtype)  # (*B,)
        near = (np.rint(x / step) * step).astype(np.float32)  # (*B,)
    return np.where(np.abs(near) > FORMATS[dtype].largest, np.float32(np.nan), near)


def _to_upper_half(x: np.ndarray) -> np.ndarray:
    """bfloat16: add just less than half a step, or half if the last bit is 1; cut."""
    bits = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape)
    last = (bits >> np.uint32(16)) & np.uint32(1)
    near = ((bits + np.uint32(0x7FFF) + last) & UPPER_HALF).view(np.float32)
    return np.where(np.isnan(x), x, near)


def truncated(x: np.ndarray, dtype: str) -> np.ndarray:
    """What is left when the digits beyond a format are cut off: a common fault.

    Parameters
    ----------
    x : (*B,) float
    dtype : one of `FORMATS`

    Returns
    -------
    (*B,) float32
    """
    step = ulp(x, dtype)  # (*B,)
    with np.errstate(invalid="ignore"):
        return (np.trunc(np.asarray(x) / step) * step).astype(np.float32)


def weights_in(w: np.ndarray, dtype: str) -> np.ndarray:
    """Weights as a backend of this precision holds them.

    In float8 a row (all that feeds one output) has a scale of its own, which takes its
    largest weight to the largest number of the format; gains stay in bfloat16.

    Parameters
    ----------
    w : (*B, E) float
    dtype : one of `FORMATS`

    Returns
    -------
    (*B, E) float32
    """
    if dtype != "float8_e4m3fn":
        return rounded(w, dtype)
    if w.ndim == 1:
        return rounded(w, "bfloat16")
    largest = np.abs(w).max(axis=-1, keepdims=True) / FORMATS[dtype].largest
    scale = np.where(largest > 0, largest, 1).astype(np.float32)  # (*B, 1)
    # Rounding in the division may exceed the largest number slightly; clip that.
    inside = np.clip(w / scale, -FORMATS[dtype].largest, FORMATS[dtype].largest)
    return rounded(inside, dtype) * scale


def activations_in(dtype: str) -> str:
    """The format that results are rounded to, where weights are in `dtype`."""
    return "bfloat16" if dtype == "float8_e4m3fn" else dtype
