"""Packing: from a grid and its codes to bytes, scales and a byte table.

`files.packed` says how such a weight lies in memory and is multiplied.  Here it is
made.  A byte holds two codes of 3 or 4 bits (the first in the low nibble), four of
2 bits, or one of more.  Bits per weight, of 4-bit codes with a float16 scale for every
group and, if it has zero points, a byte for each of them:

    group    scales alone    with zero points
    128      4.125           4.1875
    64       4.25            4.375
    32       4.5             4.75

If all groups have the zero point 2^(b-1), as in symmetric grids, it is subtracted in
the table and not stored.  In a codebook the table holds its points.

With GPTQ's act-order, the inputs of a group do not stand side by side.  Then columns
are kept group by group, together with the order; a product brings the activations,
which are few, into that order, as exllama does.
"""

from __future__ import annotations

import numpy as np

from npllama.compression.grid import Grid
from npllama.files.packed import Packed


def per_byte(bits: int) -> int:
    """How many codes of so many bits a byte holds: 1, 2 or 4."""
    return 4 if bits <= 2 else 2 if bits <= 4 else 1


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Put codes into bytes, the first in the lowest bits; zeros fill the last byte.

    Parameters
    ----------
    codes : (C, S) uint8
    bits : int

    Returns
    -------
    (C, bytes) uint8
    """
    n = per_byte(bits)
    C, S = codes.shape
    full = np.zeros((C, -(-S // n) * n), dtype=np.uint8)  # (C, bytes * n)
    full[:, :S] = codes
    out = np.zeros((C, full.shape[1] // n), dtype=np.uint8)  # (C, bytes)
    for i in range(n):
        out |= full[:, i::n] << (8 // n * i)
    return out


def byte_table(points: np.ndarray, bits: int) -> np.ndarray:
    """The points of the codes in each of the 256 bytes.

    Parameters
    ----------
    points : (2**bits,) float
    bits : int

    Returns
    -------
    (256, 1, 2 or 4) float32
        Codes that do not occur stand for 0.
    """
    n = per_byte(bits)
    codes = np.arange(256)[:, None] >> (8 // n * np.arange(n))  # (256, n)
    codes &= 2 ** (8 // n) - 1
    full = np.zeros(2 ** (8 // n), dtype=np.float32)
    full[: len(points)] = points
    return full[codes]


def stored_scale(scale: np.ndarray) -> np.ndarray:
    """Scales in float16 if it holds them with all their digits' worth, or float32."""
    kind = np.finfo(np.float16)
    fits = (scale >= kind.smallest_normal).all() and (scale <= kind.max).all()
    return scale.astype(np.float16 if fits else np.float32)


def packed(
    codes: np.ndarray,
    grid: Grid,
    groups: np.ndarray | None = None,
    name: str | None = None,
    dtype: str = "float32",
) -> Packed:
    """Pack a matrix that was rounded.

    Parameters
    ----------
    codes : (C, S) uint8
    grid : Grid
    groups : (S,) int, optional
        The group of every input, if groups do not stand side by side.
    name : str, optional
        Of the codebook, such as ``"nf4"``.
    dtype : "float32" or "float64"
        Of the arithmetic.

    Returns
    -------
    Packed
        Its scales are rounded to float16 if they fit.

    Raises
    ------
    ValueError
        If a codebook has no name, or a group has too many inputs.
    """
    bits, order = grid.bits, None
    middle = 2 ** (bits - 1)
    if grid.points is not None:
        if name is None:
            raise ValueError("a codebook needs a name, by which files know its table")
        points, zero, format = grid.points, None, name
    elif (grid.zero == middle).all():
        points, zero, format = np.arange(2**bits) - middle, None, f"int{bits}"
    else:
        points, zero = np.arange(2**bits), grid.zero.astype(np.uint8)
        format = f"uint{bits}"
    if groups is not None and (np.diff(groups) < 0).any():
        order = np.argsort(groups, kind="stable").astype(np.int32)  # (S,)
        codes, groups = codes[:, order], groups[order]
    if groups is not None and (groups != np.arange(len(groups)) // grid.group).any():
        raise ValueError(f"a group has more or fewer inputs than {grid.group}")
    table = byte_table(points, bits).astype(dtype)
    scale, C = stored_scale(grid.scale), len(codes)
    data = pack(codes, bits)
    return Packed(
        format, grid.group, data, scale, zero, order, table, (C, codes.shape[1])
    )
