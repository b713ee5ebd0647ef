r"""ANT: the bits say which numbers, and every matrix chooses among four kinds.

A grid with even steps suits numbers that are spread evenly.  Weights are not: most are
small, a few are large.  With 3 bits for the magnitude, besides the sign, four kinds of
numbers have these points, as multiples of the smallest:

    int     0  1  2  3  4  5  6  7       (8, too, below zero)
    flint   0  1  2  3  4  6  8  16
    pot     0  1  2  4  8  16 32 64      powers of two
    float   0  1  2  4  8  16 32 64      3 bits of exponent leave none to add

The largest point decides the scale, so the wider a kind reaches, the finer its points
near 0 and the coarser those far out.  ANT lets every matrix choose: for each kind it
looks for the scale with the least squared error, and takes the kind whose error is
least.

*flint* is an int below and a float above, told apart by the first bit.  Of v bits,

- 0 and lower bits m: the number m itself;
- 1 and lower bits m, of which k lead with 0: the number 2 m 4^k; if m = 0, 4^(v-1).

So leading zeros do what an exponent does, and few numbers are far out:

    v = 3    000 001 010 011 | 111 110 101 100
             0   1   2   3   | 6   4   8   16

*float* has three bits of exponent e, or all if there are fewer, and a mantissa of m
bits f.  As multiples of the smallest, its points are f if e = 0 and (2^m + f) 2^(e-1)
else.  Without a mantissa that is *pot*, so of 4 bits with a sign the two are the same.

In a code the first bit is the sign, except that an int counts down from 2^bits, as
integers in a machine do.  Numbers that have no sign, such as those after a ReLU, take
all bits for the magnitude.

Squared error, relative to the mean square, of 4 bits and one scale for 65,536 numbers:

    numbers           int, ends kept    int     flint   pot     taken
    uniform           0.0051            0.0045  0.021   0.025   int
    normal            0.033             0.012   0.015   0.038   int
    Laplace           0.14              0.026   0.022   0.038   flint
    Student t, 3      0.70              0.16    0.073   0.046   pot

Where the released code does something else than the paper's definitions ask for, the
functions here can do both:

- it tries scales of 0.75 to 1.49 times the one that just holds the largest number.  So
  it never clips much, and an int of a long tail is worse than it need be.  `RATIOS`
  goes down to a fifth; `RELEASED_RATIOS` are those of the code.
- it multiplies all points so that the largest is 10, in float32; the numbers are those
  here up to that rounding.
- it sums the mean errors of the rows to compare kinds; that is the squared error.
- beyond 6 bits it takes int without asking.

References
----------
Guo et al. 2022, "ANT: Exploiting Adaptive Numerical Data Type for Low-bit Deep Neural
Network Quantization", arXiv:2208.14286; ``quant_modules.py`` in clevercool's repository
ANT-Quantization, whose numbers the tests compare one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from npllama.compression.grid import (
    Grid,
    group_size,
    nearest,
    over_groups,
    spread,
)
from npllama.compression.packed import packed
from npllama.files.packed import Packed

# Of equal errors the kind that comes first is taken.
KINDS = ("int", "flint", "pot", "float")
# Hundredths of the scale that just holds the largest number.
RATIOS = tuple(range(20, 150))
RELEASED_RATIOS = tuple(range(75, 150))
MOST_BITS = 6  # of a kind other than int

#  ---- what the bits mean ------------------------------------------------------


def flint(code: int, v: int) -> int:
    """The number of a magnitude of v bits: `code` below the middle, else a float."""
    first, lower = code >> (v - 1), code & (2 ** (v - 1) - 1)
    if not first:
        return lower
    zeros = v - 1 - lower.bit_length()  # that lead the v - 1 lower bits
    return 2 * lower << 2 * zeros if lower else 4 ** (v - 1)


def floating(code: int, v: int) -> int:
    """The number of a magnitude with 3 bits of exponent, or v if there are fewer."""
    mantissa = max(v - 3, 0)
    exponent, fraction = code >> mantissa, code & (2**mantissa - 1)
    return (2**mantissa + fraction) << (exponent - 1) if exponent else fraction


def magnitude(kind: str, code: int, v: int) -> int:
    """The number that v bits without a sign stand for."""
    if kind == "flint":
        return flint(code, v)
    if kind == "pot":
        return 1 << (code - 1) if code else 0
    return floating(code, v) if kind == "float" else code


@lru_cache
def points(kind: str, bits: int, signed: bool = True) -> np.ndarray:
    """The number of every code.

    Parameters
    ----------
    kind : "int", "flint", "pot" or "float"
    bits : int
        With the sign: 2 to 8 for an int, 3 to 6 for the others.
    signed : bool

    Returns
    -------
    (2**bits,) float32
        Whole numbers.  Except for int, code 2**(bits-1) is a second zero, -0.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    least, most = (2, 8) if kind == "int" else (3, MOST_BITS)
    if not least <= bits <= most:
        raise ValueError(f"{bits} bits: {kind} has from {least} to {most}")
    half = 2 ** (bits - 1)
    if not signed:
        found = [magnitude(kind, code, bits) for code in range(2 * half)]
    elif kind == "int":
        found = [*range(half), *range(-half, 0)]
    else:
        above = [magnitude(kind, code, bits - 1) for code in range(half)]
        found = [*above, *(-x for x in above)]
    array = np.array(found, dtype=np.float32)
    array.flags.writeable = False  # all callers share it
    return array


#  ---- codes and scales --------------------------------------------------------


def to_ant(w: np.ndarray, grid: Grid) -> np.ndarray:
    """The code of the nearest point; in the middle, the upper point's, as released.

    Parameters
    ----------
    w : (C, S) float
    grid : Grid
        Of `search` or `ant`.

    Returns
    -------
    (C, S) uint8
    """
    ratio = w / spread(grid.scale, w.shape[1], grid.group)  # (C, S)
    return nearest(-ratio, -grid.points)


def errors(x: np.ndarray, codebook: np.ndarray, scales: np.ndarray) -> np.ndarray:
    r"""Squared error of one group of numbers at every one of many scales.

    Sorted, the numbers that round to one point stand side by side.  So two running
    sums give the error, for n numbers x that round to the same q, as

    $$\sum (x - q)^2 = \sum x^2 - 2 q \sum x + n q^2$$

    and a scale costs as many look-ups as there are points, whatever the group's size.

    Parameters
    ----------
    x : (S,) float
    codebook : (2**bits,) float
    scales : (R,) float

    Returns
    -------
    (R,) float64
    """
    x = np.sort(x.astype(np.float64))  # (S,)
    sums = np.concatenate([[0.0], np.cumsum(x)])  # (S + 1,)
    rising = np.unique(codebook).astype(np.float64)  # (points,)
    edges = scales[:, None] * ((rising[1:] + rising[:-1]) / 2)  # (R, points - 1)
    at = np.searchsorted(x, edges)
    at = np.pad(at, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(x))))
    q = scales[:, None] * rising  # (R, points)
    terms = q**2 * np.diff(at) - 2 * q * np.diff(sums[at])  # (R, points)
    return np.maximum((x**2).sum() + terms.sum(axis=1), 0)


def search(
    w: np.ndarray, codebook: np.ndarray, group: int, ratios: Sequence[int] = RATIOS
) -> tuple[Grid, float]:
    """The scale of every group with the least squared error, for one kind of numbers.

    Parameters
    ----------
    w : (C, S) float
    codebook : (2**bits,) float
        From `points`.
    group : int
        Inputs that share a scale.
    ratios : sequence of int
        Hundredths of the scale that just holds the largest number.

    Returns
    -------
    grid : Grid
        Of equal errors the scale that comes first.
    error : float
        Squared, summed over all.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    C, S = w.shape
    most = over_groups(np.maximum, np.abs(w), group)  # (C, groups)
    widest = most / float(codebook.max())
    if not np.isfinite(widest).all():
        raise ValueError("a number is not finite")
    scale = np.where(widest == 0, w.dtype.type(1), widest)
    tried = np.array(ratios, dtype=np.int64) * 0.01  # (R,)
    total = 0.0
    for c in range(C):
        for i, first in enumerate(range(0, S, group)):
            some = errors(w[c, first : first + group], codebook, scale[c, i] * tried)
            best = int(some.argmin())
            scale[c, i] *= tried[best]
            total += some[best]
    bits = len(codebook).bit_length() - 1
    grid = Grid(bits, group, scale, np.zeros_like(scale), points=codebook)
    return grid, float(total)


def ant(
    w: np.ndarray,
    bits: int = 4,
    group: int | str = "channel",
    kinds: Sequence[str] = KINDS,
    signed: bool = True,
    ratios: Sequence[int] = RATIOS,
) -> tuple[str, Grid]:
    """Choose the kind of numbers and the scales with the least squared error.

    Parameters
    ----------
    w : (C, S) float
    bits : int
    group : int, "channel" or "tensor"
        What shares a scale.  The kind is shared by all.
    kinds : sequence of str
        What may be chosen; of more than `MOST_BITS`, int alone.
    signed : bool
        Whether a bit is spent on the sign.
    ratios : sequence of int
        As for `search`.

    Returns
    -------
    kind : str
    grid : Grid
        `to_ant` and `from_codes` take it.

    Raises
    ------
    ValueError
        If an argument is out of range, or a number is not finite.
    """
    if group == "tensor":
        w, group = w.reshape(1, -1), "channel"
    size = group_size(w.shape[1], group)
    best: tuple[float, str, Grid] | None = None
    for kind in kinds if bits <= MOST_BITS else ("int",):
        grid, error = search(w, points(kind, bits, signed), size, ratios)
        if best is None or error < best[0]:
            best = error, kind, grid
    if best is None:
        raise ValueError("no kind of numbers is left to choose from")
    return best[1:]


def packed_ant(w: np.ndarray, kind: str, grid: Grid) -> Packed:
    """Pack a matrix into codes; its table says what they stand for.

    Parameters
    ----------
    w : (C, S) float
    kind : str
    grid : Grid
        From `ant`, with a sign.

    Returns
    -------
    Packed
        Of a format such as ``"ant_flint4"``.
    """
    name = f"ant_{kind}{grid.bits}"
    return packed(to_ant(w, grid), grid, name=name, dtype=w.dtype.name)
