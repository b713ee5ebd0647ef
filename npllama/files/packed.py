r"""A matrix in a few bits, multiplied without unpacking all of it.

A row of a matrix is kept as bytes, each of which holds one, two or four *codes*, the
first in the lowest bits.  A code stands for a number, its *point*; a group of inputs
shares a scale s and, in some formats, a zero point z, and the weight is s (point - z).

*The byte table.*  Whatever the points are, a byte decodes to the same numbers wherever
it stands.  So a table of 256 rows, one for each byte, holds the points of its codes,
and unpacking is one gather, the same for every format:

    byte 0x2f of 4-bit codes -> row 47 of the table -> points of 15 and of 2

Rows are unpacked block by block, as many as the processor's cache holds, and each block
is multiplied before the next one is unpacked.  So little more memory is needed than the
packed bytes take.  It costs time: for every weight a gather, a subtraction, a product,
a write and a read in the cache.  On one core the gather took 0.4 nanoseconds a weight,
the scales 0.25 and the product with a single row 0.08.  Of blocks of 2^15 to 2^21
weights, those of 2^17 (half a MiB) were the fastest or within a tenth of it, for 1 row
to 256; those of 2^19, which suit weights that are not packed, took 1.4 times as long
for a single row.

So what is gained is memory, not speed.  Random weights in groups of 64, beside float32
on one core (``tools/packed_speed.py``):

                         decode  prompt, tokens     peak
    110M                 x 0.40      x 0.77, 256     218 MB, of float32 514 MB
    1.1B                 x 0.48      x 0.60, 64      875 MB, of float32 4,227 MB
    llama-2-7b's shape                       16    4,057 MB, 524 of them the head

Under `rowwise` the blocks are those of `ops.row_by_row`, so that the numbers are, bit
for bit, those of the unpacked matrix.

A packed tensor NAME lies in a file as plain arrays: ``NAME.codes``, ``NAME.scale``,
``NAME.zero`` (if the format has zero points) and ``NAME.order`` (if inputs are kept in
another order than their own), with a ``table.FORMAT`` for every format;
``npllama.json`` says under ``packed`` which format and group each tensor has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from npllama.ops import BLOCK, is_rowwise, multiply

PARTS = ("codes", "scale", "zero", "order")
TABLE = "table."  # of a format; followed by its name
UNPACKED = 2**17  # weights that are unpacked at once


class Packed(NamedTuple):
    """A `Weight` of a few bits.

    The dtype of the table is that of the arithmetic.
    """

    format: str  # such as "int4"
    group: int  # inputs that share a scale; the last group may have fewer
    codes: np.ndarray  # (C, bytes) uint8
    scale: np.ndarray  # (C, groups) float16 or float32; (1, 1) for a whole tensor
    zero: np.ndarray | None  # (C, groups) uint8; None: points are signed
    order: np.ndarray | None  # (S,) int32, the input that each column belongs to
    table: np.ndarray  # (256, 1, 2 or 4) float
    shape: tuple[int, ...]  # C, then S, perhaps with heads on axes of their own

    @property
    def dtype(self) -> np.dtype:
        """Of the arithmetic."""
        return self.table.dtype

    @property
    def kept(self) -> tuple[str, int]:
        """The format, and its bytes; the table, which others share, is not counted."""
        parts = (self.codes, self.scale, self.zero, self.order)
        return self.format, sum(part.nbytes for part in parts if part is not None)

    @property
    def inputs(self) -> int:
        """S, the length of a row."""
        return math.prod(self.shape) // max(len(self.codes), 1)

    def __repr__(self) -> str:
        return f"Packed({self.format}, groups of {self.group}, {self.shape})"

    def reshape(self, *shape: Any) -> Packed:
        """The same weight with its heads on axes of their own, or merged."""
        new = tuple(shape[0]) if isinstance(shape[0], tuple) else shape
        if math.prod(new) != math.prod(self.shape):
            raise ValueError(f"{self.shape} cannot be {new}")
        return self._replace(shape=new)

    def rows(self, first: int, last: int) -> np.ndarray:
        """Unpack some rows, their inputs in the order in which they are kept.

        Returns
        -------
        (rows, S) float
        """
        S = self.inputs
        points = np.take(self.table, self.codes[first:last], axis=0)  # (rows, bytes, n)
        # A copy only if a byte is left over: BLAS sums in another order with gaps.
        w = np.ascontiguousarray(points.reshape(len(points), -1)[:, :S])  # (rows, S)
        own = slice(None) if len(self.scale) == 1 else slice(first, last)
        for part, apply in ((self.zero, np.subtract), (self.scale, np.multiply)):
            if part is not None:
                numbers = part[own].astype(self.dtype)  # (rows, groups)
                for some, number in _by_group(w, numbers, self.group):
                    apply(some, number, out=some)
        return w

    def astype(self, dtype: str) -> Packed:
        """The same weight, for arithmetic in another dtype."""
        return self._replace(table=self.table.astype(dtype, copy=False))

    def times(self, a: np.ndarray) -> np.ndarray:
        """Multiply rows: (M, S) to (M, C)."""
        M, C = len(a), len(self.codes)
        # Columns are brought to the order of the codes: a row of a is shorter than C
        # rows of weights.
        a = a if self.order is None else np.ascontiguousarray(a[:, self.order])
        y = np.empty((M, C), dtype=self.dtype)  # (M, C)
        step = max(1, (BLOCK if is_rowwise() else UNPACKED) // max(self.inputs, 1))
        for c in range(0, C, step):
            y[:, c : c + step] = multiply(a, self.rows(c, min(c + step, C)).T)
        return y

    def dense(self) -> np.ndarray:
        """The whole weight as an array of its shape."""
        w = self.rows(0, len(self.codes))  # (C, S)
        if self.order is not None:
            w = w[:, np.argsort(self.order)]
        return np.ascontiguousarray(w).reshape(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.dense().astype(dtype or self.dtype)


def _by_group(
    w: np.ndarray, numbers: np.ndarray, group: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Views of all whole groups at once, and of the short one; with their numbers."""
    whole = w.shape[1] // group  # groups
    if whole:
        # Cutting one axis in two gives a view, so what is written there is in w.
        yield (
            w[:, : whole * group].reshape(len(w), whole, group),
            numbers[:, :whole, None],
        )
    if whole * group < w.shape[1]:
        yield w[:, whole * group :], numbers[:, whole:]


#  ---- in a file -----------------------------------------------------------------


def parts_of(name: str, weight: Packed) -> dict[str, np.ndarray]:
    """The plain arrays that a packed tensor is kept as, by their names in a file."""
    found = {part: getattr(weight, part) for part in PARTS}
    return {f"{name}.{part}": a for part, a in found.items() if a is not None}


def collect(tensors: dict[str, Any], packed: Any, shapes: Mapping[str, tuple]) -> None:
    """Make the packed tensors of a file from their parts.

    Parameters
    ----------
    tensors : dict of name to array
        All arrays of the file.
    packed : dict
        Of a tensor's name to its ``format`` and ``group``.
    shapes : mapping of name to (C, S)
        Of the tensors that may be packed.

    Writes
    ------
    `tensors`: a `Packed` under its own name takes the place of its parts and tables.

    Raises
    ------
    ValueError
        If a part is missing, or does not fit the shape.
    """
    if not isinstance(packed, dict):
        raise ValueError(f"packed: expected a JSON object, found {packed!r:.40}")
    formats = set()
    for name, entry in packed.items():
        if name not in shapes:
            raise ValueError(f"{name} is packed, and no matrix that is multiplied")
        if name in tensors:
            raise ValueError(f"{name} is packed, and there as it is, too")
        weight = _packed(name, tensors, entry, shapes[name])
        for part in parts_of(name, weight):
            del tensors[part]
        tensors[name] = weight
        formats.add(weight.format)
    for format in formats:
        del tensors[TABLE + format]


def _packed(
    name: str, tensors: Mapping[str, np.ndarray], entry: Any, shape: tuple[int, ...]
) -> Packed:
    """One tensor of a file, its parts checked."""
    format, group = _entry(name, entry)
    table = tensors.get(TABLE + format)
    if table is None or table.dtype != np.float32 or table.shape not in TABLES:
        raise ValueError(f"{name}: {TABLE}{format} should be (256, 1, 2 or 4) float32")
    C, S = shape
    scales = (1, 1) if group >= C * S else (C, -(-S // group))
    expected = {
        "codes": ((C, -(-S // table.shape[1])), ("uint8",)),
        "scale": (scales, ("float16", "float32")),
        "zero": (scales, ("uint8",)),
        "order": ((S,), ("int32",)),
    }
    parts: dict[str, Any] = {part: tensors.get(f"{name}.{part}") for part in PARTS}
    for part, (wanted, kinds) in expected.items():
        found = parts[part]
        if found is None and part in ("zero", "order"):
            continue
        if found is None or found.shape != wanted or found.dtype.name not in kinds:
            seen = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise ValueError(f"{name}.{part} is {seen}; expected {kinds[0]} {wanted}")
    order = parts["order"]
    if order is not None and not np.array_equal(np.sort(order), np.arange(S)):
        raise ValueError(f"{name}.order does not name every input once")
    return Packed(format, group, **parts, table=table, shape=shape)


TABLES = tuple((256, n) for n in (1, 2, 4))


def _entry(name: str, entry: Any) -> tuple[str, int]:
    """The format and the group of a packed tensor, as ``npllama.json`` has them."""
    format, group = (
        (entry.get("format"), entry.get("group"))
        if isinstance(entry, dict)
        else (None, None)
    )
    if not isinstance(format, str) or type(group) is not int or group < 1:
        raise ValueError(
            f"{name}: a format and a group from 1 are needed: {entry!r:.60}"
        )
    return format, group
