"""A safetensors file: eight bytes, a JSON header, and the tensors end to end.

The eight bytes are the header's length.  The header gives every tensor's dtype,
shape and place; the places must cover the rest of the file exactly, without gap
or overlap, so that nothing can hide between them.  All of this is checked before
a tensor is read, and a tensor is then read from its place: no other code runs.

References
----------
The format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from npllama.convert.source import Tensor, refuse_pointer
from npllama.files.checkpoint import STORED

LONGEST_HEADER = 100_000_000
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ITEM_BYTES = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1)
ITEM_BYTES |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 2)
ITEM_BYTES |= dict.fromkeys(("I32", "U32", "F32"), 4)
ITEM_BYTES |= dict.fromkeys(("I64", "U64", "F64"), 8)
# What a tensor that is no weight, such as packed codes, is on disk.
INTEGERS = {
    f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)
}


def open_file(path: Path) -> dict[str, Tensor]:
    """Describe the tensors of one file.

    Raises
    ------
    ValueError
        If the header does not describe the file exactly.
    """
    refuse_pointer(path)
    size = os.path.getsize(path)
    header, start = _header(path, size)
    places = {}
    for name, entry in header.items():
        try:
            places[name] = _place(entry)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    _check_cover(path, places, size - start)
    return {
        name: _tensor(path, header[name], start + begin)
        for name, (begin, _) in places.items()
    }


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header without its free-form metadata, and where the data begins."""
    with open(path, "rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise ValueError(f"{path}: {size} bytes are too few for safetensors")
        (length,) = struct.unpack("<Q", first)
        if length > min(LONGEST_HEADER, size - 8):
            raise ValueError(
                f"{path}: a header of {length} bytes in a file of {size}: truncated, "
                "or not safetensors; fetch it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: its header is not a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{key!r:.80} occurs {count} times")
    return dict(pairs)


def _place(entry: Any) -> tuple[int, int]:
    """Check one entry by itself; return where its bytes begin and end."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("its entry should have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"dtype {dtype!r:.80} is not one of {', '.join(ITEM_BYTES)}")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise ValueError(
            f"shape {shape!s:.80} or data_offsets {offsets!s:.80} are not counts"
        )
    begin, end = offsets
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise ValueError(
            f"data_offsets {offsets} hold {end - begin} bytes; "
            f"shape {shape} of {dtype} takes {expected}"
        )
    return begin, end


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)


def _check_cover(path: Path, places: dict[str, tuple[int, int]], size: int) -> None:
    """Raise ValueError unless the tensors fill the data exactly, end to end."""
    at = 0
    for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else "follows a gap"
            raise ValueError(f"{path}: {name}: {what}: begins at {begin}, not at {at}")
        if end > size:
            raise ValueError(
                f"{path}: {name}: ends at byte {end} of {size}: the file is truncated; "
                "fetch it again"
            )
        at = end
    if at != size:
        raise ValueError(f"{path}: {size - at} bytes after the last tensor; expected 0")


def _tensor(path: Path, entry: dict[str, Any], start: int) -> Tensor:
    shape, dtype = tuple(entry["shape"]), NAMES.get(entry["dtype"], entry["dtype"])
    return Tensor(path, shape, dtype, partial(_read, path, shape, dtype, start))


def _read(path: Path, shape: tuple[int, ...], dtype: str, start: int) -> np.ndarray:
    on_disk = INTEGERS.get(dtype) or STORED.get(dtype)
    if on_disk is None:
        raise ValueError(f"{path}: a tensor of {dtype}, which is not read here")
    little_endian = np.dtype(on_disk).newbyteorder("<")
    count = math.prod(shape)
    flat = np.fromfile(path, little_endian, count, offset=start)
    if len(flat) != count:
        raise ValueError(f"{path}: changed while it was read")
    return flat.reshape(shape)
