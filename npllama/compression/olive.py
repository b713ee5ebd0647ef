r"""OliVe: an outlier takes the place of its neighbour.

A few numbers of a trained model are many times larger than the rest.  A grid wide
enough for them is too coarse for all others; clipping them is ruinous.  But the
numbers beside them are ordinary ones, and of those one may be lost.  So numbers are
taken in pairs, two neighbours of a row, and of a pair

- two *normal* numbers are coded each by itself, on a grid of ints or flints (`ant`);
- an *outlier* is coded as an *abfloat*, and the other, its *victim*, becomes 0.  In
  the victim's place stands the *identifier*: the code 1000, which no normal number has
  (an int of 4 bits would be -8, which is left out; a flint would be a second zero).

Nothing else is stored, and every pair is still one byte, whose low nibble is the first:

    pair         5    -3        96   0.4       -0.4  -24
    codes        0101 1101      0111 1000      1000  1011
    byte         0xd5           0x87           0xb8

*abfloat* is a float that starts where the grid ends.  With sign, e bits of exponent and
m bits of mantissa, its magnitude is

$$(2^m + \text{mantissa}) \cdot 2^{\text{exponent} + \text{bias}}$$

Outliers need reach, not fineness: of 4 bits, e = 2 and m = 1.  The bias is the one for
which the first magnitude, 2^(m + bias), is the grid's end rounded up to a power of two.
That one is not used: its code is 0000 or, with the sign, 1000, the identifier.

    normal   ends at   bias   outliers
    int4     7         2      12 16 24 32 48  64  96
    flint4   16        3      24 32 48 64 96 128 192

An int of 8 bits ends at 127 and takes two bytes for a pair.  Then 1000 0000, -128, is
the identifier.  Among outliers the paper has e = 4, m = 3, with bias 4; the released
code has e = 2, m = 5, with bias 2.

A number is an outlier if it is nearer to the first of them than to the grid's end.
What that means depends on the scale, and so does the number of victims.  Scales are
tried around the one whose grid ends three standard deviations from the mean, 3 sigma,
and the one with the least squared error is taken, victims included.

*Two outliers in one pair.*  The paper keeps the larger.  The released code keeps the
first.  In a normal matrix hardly any pair is one, so it shows only if outliers come
in runs.

Squared error relative to the mean square, 4 bits, one scale for 65,536 numbers:

    numbers               int, ends kept   int      ANT      OliVe
    uniform               0.0051           0.0045   0.0045   0.0081
    normal                0.033            0.012    0.012    0.013
    Laplace               0.14             0.026    0.022    0.022
    Student t, 3          0.70             0.16     0.046    0.022
    Student t, 2          0.42             0.25     0.056    0.018
    SmolLM2, into wq      0.30             0.15     0.037    0.017
    SmolLM2, into w_down  0.74             0.24     0.049    0.022

(Block 5 of SmolLM2-135M-Instruct, README of 29 November 2026: ``tools/outliers.py``.)
Without outliers OliVe gives away a code and gains nothing; with them it gains much.

The released code multiplies its grids so that the border between normal numbers and
outliers is 32: ints by 4, flints by 2.  If rows have an odd number of inputs, its pairs
run on into the next row.  Here the last input of such a row is alone, and may be an
outlier without a victim.

References
----------
Guo et al. 2023, "OliVe: Accelerating Large Language Models via Hardware-friendly
Outlier-Victim Pair Quantization", arXiv:2304.07493, sections 3 and 4;
``olive_quantization`` in clevercool's repository ANT-Quantization, whose numbers the
tests compare one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from npllama.compression.ant import MOST_BITS, points
from npllama.compression.grid import group_size, nearest, over_groups, spread
from npllama.compression.packed import pack, stored_scale
from npllama.files.packed import Packed

KINDS = ("int", "flint")
KEEPS = ("larger", "first")
# Hundredths, as released, of the scale whose grid ends at 3 sigma.
RATIOS = tuple(range(75, 250, 2))

#  ---- what the bits mean ------------------------------------------------------


class Format(NamedTuple):
    """Normal numbers and outliers of so many bits, as multiples of the scale."""

    name: str  # such as "int4"
    bits: int
    normal: np.ndarray  # (2**bits,) float32; 0 for the identifier
    outlier: np.ndarray  # (2**bits,) float32; 0 for the two codes not in use

    @property
    def identifier(self) -> int:
        """The code in a victim's place: 1, then zeros."""
        return 2 ** (self.bits - 1)

    @property
    def top(self) -> float:
        """Where the grid of normal numbers ends."""
        return float(self.normal.max())

    @property
    def border(self) -> float:
        """The least magnitude of an outlier, before it is rounded."""
        return (self.top + float(self.outlier[self.outlier > 0].min())) / 2


def abfloat(bits: int, mantissa: int, top: float) -> np.ndarray:
    """The number of every code of an outlier.

    Parameters
    ----------
    bits : int
    mantissa : int
        Bits of it; the sign takes one, the exponent the rest.
    top : float
        Where the grid of normal numbers ends.

    Returns
    -------
    (2**bits,) float32
        0 for the codes that are not used: those of zeros after the sign.
    """
    half = 2 ** (bits - 1)
    # the first magnitude, 2^(mantissa + bias), is the power of two at or above the top
    bias = (int(top) - 1).bit_length() - mantissa
    above = [0] * half
    for code in range(1, half):
        exponent, fraction = code >> mantissa, code & (2**mantissa - 1)
        above[code] = (2**mantissa + fraction) << (exponent + bias)
    return np.array([*above, *(-x for x in above)], dtype=np.float32)


@lru_cache
def olive_format(kind: str, bits: int = 4, released: bool = False) -> Format:
    """The two kinds of codes.

    Parameters
    ----------
    kind : "int" or "flint"
        Of the normal numbers; flint has 4 bits.
    bits : 4 or 8
    released : bool
        Outliers of 8 bits with 2 bits of exponent, as in the released code, and not 4.

    Raises
    ------
    ValueError
        If there is no such format.
    """
    if (kind, bits) not in (("int", 4), ("flint", 4), ("int", 8)):
        raise ValueError(f"{kind}{bits}: OliVe has int4, flint4 and int8")
    normal = points(kind, bits).copy()
    normal[2 ** (bits - 1)] = 0  # the identifier stands for no number
    mantissa = 1 if bits == 4 else 5 if released else 3
    outlier = abfloat(bits, mantissa, float(normal.max()))
    for array in (normal, outlier):
        array.flags.writeable = False  # all callers share them
    return Format(f"{kind}{bits}", bits, normal, outlier)


def decode(codes: np.ndarray, format: Format) -> np.ndarray:
    """The numbers of codes: a code beside an identifier is an outlier's.

    Parameters
    ----------
    codes : (C, 2 * pairs) uint8
    format : Format

    Returns
    -------
    (C, 2 * pairs) float32
        As multiples of the scale.
    """
    beside = swap(codes == format.identifier)  # (C, 2 * pairs)
    return np.where(beside, format.outlier[codes], format.normal[codes])


def swap(x: np.ndarray) -> np.ndarray:
    """Exchange the two of every pair: (C, 2 * pairs) to (C, 2 * pairs)."""
    return x.reshape(len(x), -1, 2)[:, :, ::-1].reshape(x.shape)


def byte_table(format: Format) -> np.ndarray:
    """The two numbers of each of the 256 bytes, for a format of 4 bits.

    Returns
    -------
    (256, 2) float32
        Of the byte 0x88, which does not occur, two zeros.
    """
    byte = np.arange(256, dtype=np.uint8)
    return decode(np.stack([byte & 15, byte >> 4], axis=1), format)


#  ---- rounding ----------------------------------------------------------------


def victims(size: np.ndarray, border: float, keep: str = "larger") -> np.ndarray:
    """Which numbers are given up for the outlier beside them.

    Parameters
    ----------
    size : (C, 2 * pairs) float
        Magnitudes.
    border : float
        The least of an outlier.
    keep : "larger" or "first"
        Of two outliers; of two equal ones, the first.

    Returns
    -------
    (C, 2 * pairs) bool
    """
    outlier = size >= border
    beside, other = swap(outlier), swap(size)
    second = np.arange(size.shape[1]) % 2 == 1  # (2 * pairs,)
    if keep == "larger":
        gives_way = np.where(second, size <= other, size < other)
    else:
        gives_way = np.broadcast_to(second, size.shape)
    return beside & (~outlier | gives_way)


def encode(ratio: np.ndarray, format: Format, keep: str = "larger") -> np.ndarray:
    """Round numbers, given as multiples of their scale, to codes.

    Half-way between two points the upper one is taken, and the outlier at the border,
    as the released code does.

    Parameters
    ----------
    ratio : (C, S) float
    format : Format
    keep : "larger" or "first"
        Of two outliers in a pair.

    Returns
    -------
    (C, 2 * pairs) uint8
        With odd S, the last number's partner is a 0 that is not there.

    Raises
    ------
    ValueError
        If `keep` is neither.
    """
    if keep not in KEEPS:
        raise ValueError(f"keep {keep!r} is not one of {', '.join(KEEPS)}")
    ratio = np.pad(ratio, ((0, 0), (0, ratio.shape[1] % 2)))  # (C, 2 * pairs)
    size = np.abs(ratio)
    codes = nearest(-ratio, -format.normal)  # (C, 2 * pairs)
    far = size >= format.border
    used = np.flatnonzero(format.outlier).astype(np.uint8)
    codes[far] = used[nearest(-ratio[far], -format.outlier[used])]
    codes[victims(size, format.border, keep)] = format.identifier
    return codes


#  ---- scales ------------------------------------------------------------------


class Olive(NamedTuple):
    """A matrix as codes of normal numbers, outliers and victims."""

    format: Format
    group: int  # inputs that share a scale
    codes: np.ndarray  # (C, 2 * pairs) uint8
    scale: np.ndarray  # (C, groups) float; (1, 1) for a whole tensor
    inputs: int  # S


def three_sigma(w: np.ndarray, group: int) -> np.ndarray:
    """How far from 0 the mean and three standard deviations reach, (C, groups).

    The deviation is that of a sample, with n - 1.
    """
    n = over_groups(np.add, np.ones_like(w), group)  # (C, groups)
    mean = over_groups(np.add, w, group) / n
    off = w - spread(mean, w.shape[1], group)  # (C, S)
    sigma = np.sqrt(over_groups(np.add, off**2, group) / np.maximum(n - 1, 1))
    return np.maximum(np.abs(mean + 3 * sigma), np.abs(mean - 3 * sigma))


def search(
    w: np.ndarray,
    format: Format,
    group: int,
    keep: str = "larger",
    ratios: Sequence[int] = RATIOS,
) -> tuple[np.ndarray, float]:
    """The scale of every group with the least squared error, victims included.

    Parameters
    ----------
    w : (C, S) float
    format : Format
    group : int
        Inputs that share a scale; all numbers, if it is as large as all.
    keep : "larger" or "first"
    ratios : sequence of int
        Hundredths of the scale whose grid ends at 3 sigma.

    Returns
    -------
    scale : (C, groups) float
        Of equal errors the scale that comes first.
    error : float
        Squared, summed over all.
    """
    S = w.shape[1]
    rows = (1, w.size) if group >= w.size else w.shape
    base = three_sigma(w.reshape(rows), group)  # (C, groups)
    if not np.isfinite(base).all():
        raise ValueError("a number is not finite")
    base = np.where(base == 0, w.dtype.type(1), base)
    scale, least = base / format.top, np.full(base.shape, np.inf)
    for ratio in ratios:
        tried = base * (ratio * 0.01) / format.top  # (C, groups)
        wide = spread(tried, S, group)  # (C, S)
        value = decode(encode(w / wide, format, keep), format)[:, :S] * wide
        off = (value - w) ** 2  # (C, S)
        error = over_groups(np.add, off.reshape(rows), group)
        scale = np.where(error < least, tried, scale)
        least = np.minimum(error, least)
    return scale, float(least.sum())


def olive(
    w: np.ndarray,
    bits: int = 4,
    group: int | str = "channel",
    kinds: Sequence[str] = KINDS,
    keep: str = "larger",
    released: bool = False,
    ratios: Sequence[int] = RATIOS,
) -> Olive:
    """Round a matrix to outlier-victim pairs.

    Parameters
    ----------
    w : (C, S) float
    bits : 4 or 8
    group : int, "channel" or "tensor"
        What shares a scale.
    kinds : sequence of str
        Of normal numbers, what may be chosen, for all together; of 8 bits int alone.
    keep : "larger" or "first"
        Of two outliers in a pair; the paper's rule, or that of the released code.
    released : bool
        Outliers of 8 bits as in the released code.
    ratios : sequence of int
        As for `search`.

    Returns
    -------
    Olive

    Raises
    ------
    ValueError
        If an argument is out of range, or a number is not finite.
    """
    S = w.shape[1]
    size = w.size if group == "tensor" else group_size(S, group)
    best: tuple[float, Format, np.ndarray] | None = None
    for kind in kinds if bits <= MOST_BITS else ("int",):
        format = olive_format(kind, bits, released)
        scale, error = search(w, format, size, keep, ratios)
        if best is None or error < best[0]:
            best = error, format, scale
    if best is None:
        raise ValueError("no kind of numbers is left to choose from")
    _, format, scale = best
    codes = encode(w / spread(scale, S, size), format, keep)
    return Olive(format, size, codes, scale, S)


def values(found: Olive) -> np.ndarray:
    """The numbers that the codes stand for, (C, S), in the dtype of the scales."""
    value = decode(found.codes, found.format)[:, : found.inputs]  # (C, S)
    scale = spread(found.scale, found.inputs, found.group)  # (C, S)
    return value.astype(scale.dtype) * scale


def packed_olive(found: Olive) -> Packed:
    """Pack codes of 4 bits, a pair to a byte.

    Parameters
    ----------
    found : Olive

    Returns
    -------
    Packed
        Of the format ``"olive_int4"`` or ``"olive_flint4"``.

    Raises
    ------
    ValueError
        If the codes have 8 bits, so that a byte does not hold a pair.
    """
    if found.format.bits != 4:
        raise ValueError(f"{found.format.name}: a pair takes two bytes; 4 bits pack")
    table = byte_table(found.format).astype(found.scale.dtype)
    data, scale = pack(found.codes, 4), stored_scale(found.scale)
    name, shape = f"olive_{found.format.name}", (len(data), found.inputs)
    return Packed(name, found.group, data, scale, None, None, table, shape)
