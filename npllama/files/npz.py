"""Arrays in a file, used where they lie.

An ``.npz`` is a zip archive whose members are arrays in NumPy's own format,
possibly beside other files.  ``np.load`` and ``unzip`` both read it.

If the members are stored uncompressed, an array can be used in place: the file is
mapped into memory, each array is a view of the map, and the operating system reads
a page from disk when it is first touched.  Opening costs no time and no copy, and
two processes share one copy.  (``np.load`` itself cannot map inside a zip.)  Here
every array begins on a 64 byte boundary.

A file may come from anywhere.  Nothing in it is unpickled or unpacked, and nothing
is believed before it was compared with the size of the file.
"""

from __future__ import annotations

import mmap
import os
import struct
import tokenize
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

ALIGNMENT = 64


class Archive(NamedTuple):
    """What lies in an ``.npz``: arrays mapped in place, and the other files."""

    tensors: dict[str, np.ndarray]
    files: dict[str, bytes]


#  ---- reading --------------------------------------------------------------


def read_npz(path: str | os.PathLike) -> Archive:
    """Map every array of an ``.npz`` in place, and read its other members.

    Raises
    ------
    ValueError
        If it is not an uncompressed zip of plain arrays.
    """
    tensors, files = {}, {}
    with open(path, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise ValueError(f"{path}: not an .npz file ({error})") from None
        members = archive.infolist()
        _check_directory(path, members, len(data))
        for info in members:
            try:
                start = _start_of_member(data, info)
                if info.filename.endswith(".npy"):
                    array = _map_array(data, start, info.file_size)
                    tensors[info.filename[:-4]] = array
                else:
                    files[info.filename] = data[start : start + info.file_size]
            except ValueError as error:
                raise ValueError(f"{path}: {info.filename}: {error}") from None
    return Archive(tensors, files)


def _check_directory(path, members: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse a directory that lists a name twice, or the same bytes many times."""
    for name, count in Counter(info.filename for info in members).items():
        if count > 1:
            raise ValueError(f"{path}: {name!r} stands there {count} times")
        if not name.isprintable():
            raise ValueError(f"{path}: {name!r} is no name of a tensor or file")
    # Small files are copied out: overlapping members could fill the memory.
    if sum(info.file_size for info in members) > size:
        raise ValueError(f"{path}: its members are larger than the file: truncated?")


def _start_of_member(data: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Offset at which a member's bytes begin: behind its local header."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(
            "compressed or encrypted, so it cannot be mapped; save it with np.savez"
        )
    at = info.header_offset
    header = data[at : at + 30]
    if at < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError("its header is damaged")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = at + 30 + name_length + extra_length
    if start + info.file_size > len(data):
        raise ValueError("the file is truncated")
    return start


class _Window:
    """The few file methods that NumPy's header reader calls, on mapped bytes."""

    def __init__(self, data: mmap.mmap, start: int, end: int):
        self.data, self.at, self.end = data, start, end

    def read(self, count: int = -1, /) -> bytes:
        chunk = self.data[self.at : min(self.at + count, self.end)]
        self.at += len(chunk)
        return chunk


# All that NumPy's reader raises on a header that is not what it should be.
BAD_HEADER: tuple[type[Exception], ...]
BAD_HEADER = (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError)
BAD_HEADER += (RecursionError, MemoryError)


def _map_array(data: mmap.mmap, start: int, size: int) -> np.ndarray:
    """View one ``.npy`` member as an array, without copying it."""
    window = _Window(data, start, start + size)
    try:
        version = np.lib.format.read_magic(window)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(window)
    except BAD_HEADER as error:
        raise ValueError(f"its array header cannot be read ({error})") from None
    if dtype.kind not in "iuf":
        raise ValueError(f"its dtype {dtype} is not one of plain numbers")
    count = 1
    for length in shape:
        count *= length
    if min(shape, default=0) < 0 or count * dtype.itemsize != window.end - window.at:
        raise ValueError(f"shape {shape} of {dtype} does not fill the member exactly")
    return np.ndarray(shape, dtype, data, window.at, order="F" if fortran else "C")


#  ---- writing --------------------------------------------------------------


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """Open a new archive for `write_array` and `write_text`.

    The file grows beside its final name and is renamed when it is whole: whoever
    reads `path` finds the old file or the new one, never a half.
    """
    temporary = Path(f"{path}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            yield archive
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _member(name: str) -> zipfile.ZipInfo:
    """A zip entry with a fixed date: equal models give equal files."""
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def write_text(archive: zipfile.ZipFile, name: str, text: str | bytes) -> None:
    """Add a small file."""
    archive.writestr(_member(name), text)


def write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Add one array; its header is padded until its data is aligned in the file."""
    array = np.asarray(array, order="C")
    with archive.open(_member(f"{name}.npy"), "w", force_zip64=True) as member:
        assert archive.fp is not None
        fields = {
            "descr": array.dtype.str,
            "fortran_order": False,
            "shape": array.shape,
        }
        text = repr(fields).encode("latin1")
        # magic 6 bytes, version 2, length 2, then the text, closed by a newline
        pad = -(archive.fp.tell() + 10 + len(text) + 1) % ALIGNMENT
        text += b" " * pad + b"\n"
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
        member.write(array.reshape(-1).view(np.uint8).data)
