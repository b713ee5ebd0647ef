"""A GGUF file: what llama.cpp keeps a model in.

A header holds named values (sizes, the whole tokenizer) and, for every tensor, its
name, shape, type and place; the data follows, aligned.  Most types are *blocks*:
32 or 256 numbers of one row share a scale of 16 bits, and each number is a few
bits.  Dequantising gives float32; the digits lost by rounding do not come back.

The header is read here, because every length in it must be compared with the size of
the file before it is used.  The package ``gguf`` decodes the blocks; llama.cpp's
authors keep it up to date.

References
----------
The format: ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.convert.source import Tensor, refuse_pointer

# Kinds of values, by their numbers in the file.
NUMBERS = dict(enumerate(("u1", "i1", "u2", "i2", "u4", "i4", "f4", "?")))
NUMBERS |= {10: "u8", 11: "i8", 12: "f8"}
TEXT, ARRAY = 8, 9
# Types of tensors that are numbers as NumPy knows them, and all others are blocks.
PLAIN = {0: "float32", 1: "float16", 28: "float64", 30: "bfloat16"}
ON_DISK = {"float32": "<f4", "float16": "<f2", "float64": "<f8", "bfloat16": "<u2"}
MOST_AXES = 4
# Bytes of a tensor that are dequantised at once, to limit temporary memory.
AT_ONCE = 1 << 22

Fields = dict[str, Any]


class Header(NamedTuple):
    """What a GGUF file says before its data begins."""

    fields: Fields
    tensors: dict[str, Tensor]  # under llama.cpp's names
    types: dict[str, str]  # of every tensor: "F32", "Q4_K" ...


class Cursor:
    """A place in a mapped file that moves on as values are taken."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> bytes:
        """The next bytes, which must be there."""
        if count > len(self.data) - self.at:
            raise ValueError("its header goes beyond the file: truncated, or damaged")
        self.at += count
        return self.data[self.at - count : self.at]


def read_header(path: Path) -> Header:
    """Read everything except the tensors' data.

    Raises
    ------
    ValueError
        If it is not a GGUF file, or its header contradicts its size.
    """
    refuse_pointer(path)
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError(f"{path}: empty") from None
    with data:
        try:
            return _header(Cursor(path, data))
        except UnicodeDecodeError:
            raise ValueError(f"{path}: a name or text in it is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _header(cursor: Cursor) -> Header:
    if cursor.take(4) != b"GGUF":
        raise ValueError("not a GGUF file; it should begin with GGUF")
    version = _number(cursor, "u4")
    if version not in (2, 3):
        big_endian = version & 0xFFFF == 0
        raise ValueError(
            "its numbers are big-endian; convert it to little-endian first"
            if big_endian
            else f"GGUF version {version}; 2 and 3 can be read"
        )
    tensors, fields = _number(cursor, "u8"), _number(cursor, "u8")
    values: Fields = {}
    for _ in range(fields):
        name = _text(cursor)
        if name in values:
            raise ValueError(f"{name!r:.80} occurs twice")
        values[name] = _value(cursor, _number(cursor, "u4"))
    places: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensors):
        name = _text(cursor)
        if name in places:
            raise ValueError(f"tensor {name!r:.80} occurs twice")
        places[name] = _place(cursor, name)
    return _described(cursor, values, places)


def _number(cursor: Cursor, kind: str) -> Any:
    return _numbers(cursor, kind, 1)[0].item()


def _numbers(cursor: Cursor, kind: str, count: int) -> np.ndarray:
    dtype = np.dtype(kind).newbyteorder("<")
    return np.frombuffer(cursor.take(count * dtype.itemsize), dtype)


def _text(cursor: Cursor) -> str:
    return cursor.take(_number(cursor, "u8")).decode()


def _value(cursor: Cursor, kind: int) -> Any:
    """One value: a number, a truth, a text, an array of numbers, a list of texts."""
    if kind in NUMBERS:
        return _number(cursor, NUMBERS[kind])
    if kind == TEXT:
        return _text(cursor)
    if kind == ARRAY:
        inner, count = _number(cursor, "u4"), _number(cursor, "u8")
        if inner in NUMBERS:
            return _numbers(cursor, NUMBERS[inner], count)
        if inner == TEXT:
            return [_text(cursor) for _ in range(count)]
        raise ValueError(f"an array of values of kind {inner}, which LLaMAs have not")
    raise ValueError(f"a value of kind {kind}, which GGUF does not know")


def _place(cursor: Cursor, name: str) -> tuple[tuple[int, ...], int, int]:
    """Shape, type and offset of one tensor."""
    axes = _number(cursor, "u4")
    if axes > MOST_AXES:
        raise ValueError(f"{name}: {axes} axes; GGUF has at most {MOST_AXES}")
    # GGUF lists the fastest axis first, NumPy last.
    shape = tuple(_numbers(cursor, "u8", axes)[::-1].tolist())
    return shape, _number(cursor, "u4"), _number(cursor, "u8")


def _described(cursor: Cursor, fields: Fields, places: dict) -> Header:
    """The tensors, after a check that their data lies within the file."""
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r:.80}, not a power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors, types = {}, {}
    for name, (shape, kind, offset) in places.items():
        types[name], block, size = _layout(name, kind)
        width = shape[-1] if shape else 1
        if width % block or width < block > 1:
            raise ValueError(f"{name}: rows of {width} are not whole blocks of {block}")
        end = start + offset + math.prod(shape) // block * size
        if end > len(cursor.data):
            raise ValueError(
                f"{name}: ends at byte {end} of {len(cursor.data)}: the file is "
                "truncated; fetch it again"
            )
        dtype = PLAIN.get(kind, "float32" if _can_read(kind) else types[name])
        read = partial(_read, cursor.path, shape, kind, start + offset)
        tensors[name] = Tensor(cursor.path, shape, dtype, read)
    return Header(fields, tensors, types)


def _layout(name: str, kind: int) -> tuple[str, int, int]:
    """Name of a type, numbers per block, and bytes per block."""
    import gguf

    try:
        known = gguf.GGMLQuantizationType(kind)
    except ValueError:
        raise ValueError(
            f"{name}: type {kind}, which the installed gguf does not know; a newer "
            "one may"
        ) from None
    return known.name, *gguf.GGML_QUANT_SIZES[known]


@lru_cache
def _can_read(kind: int) -> bool:
    """Whether the installed gguf dequantises a type: it knows more than it can read."""
    import gguf

    known = gguf.GGMLQuantizationType(kind)
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[known][1]), np.uint8)
    try:
        gguf.dequantize(block, known)
    except NotImplementedError:
        return False
    return True


def _read(path: Path, shape: tuple[int, ...], kind: int, start: int) -> np.ndarray:
    """One tensor; blocks are dequantised, a few rows at a time."""
    if kind in PLAIN:
        dtype, count = ON_DISK[PLAIN[kind]], math.prod(shape)
        flat = np.fromfile(path, dtype, count, offset=start)
        if len(flat) != count:
            raise ValueError(f"{path}: changed while it was read")
        return flat.reshape(shape)
    import gguf

    quantised = gguf.GGMLQuantizationType(kind)
    block, size = gguf.GGML_QUANT_SIZES[quantised]
    rows, width = math.prod(shape[:-1]), shape[-1]
    step = max(1, AT_ONCE // (4 * width))
    result = np.empty((rows, width), np.float32)
    with open(path, "rb") as file, np.errstate(all="ignore"):
        file.seek(start)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            data = np.fromfile(file, np.uint8, count * width // block * size)
            data = data.reshape(count, -1)
            result[first : first + count] = gguf.dequantize(data, quantised)
    return result.reshape(shape)
