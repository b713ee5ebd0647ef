"""Arrays in a file, used in place.

An ``.npz`` is a zip archive whose members are arrays in NumPy's own format,
possibly beside other files.  ``np.load`` and ``unzip`` both read it.

If the members are stored uncompressed, an array can be used in place: the file is
mapped into memory, each array is a view of the map, and the operating system reads
a page from disk when it is first touched.  Opening costs no time and no copy, and
two processes share one copy.  (``np.load`` itself cannot map inside a zip.)  Here
every array begins on a 64 byte boundary.

A file may come from anywhere.  Nothing in it is unpickled, and every size in it is
first compared with the size of the file.  A zip holds a checksum of every member; it
is tested only if the caller asks, since that means reading the whole file.  Compressed
members cannot be mapped: they are unpacked into memory if the caller gives a limit in
bytes, and refused otherwise.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np

from npllama.files.whole import new_file

ALIGNMENT = 64
# How much of a file is read at once to compute a checksum.
BLOCK = 2**20


class Archive(NamedTuple):
    """Content of an ``.npz``: arrays, mapped if possible, and the other files."""

    tensors: dict[str, np.ndarray]
    files: dict[str, bytes]


class Reading(NamedTuple):
    """How to read an archive: whether to test checksums and to unpack members.

    Parameters
    ----------
    check : bool
        Compare every member with its checksum: the whole file is read, in blocks.
    unpack : int
        How many bytes all compressed members may take in memory.
    """

    check: bool = False
    unpack: int = 0


MAPPED = Reading()


#  ---- reading --------------------------------------------------------------


def read_npz(path: str | os.PathLike, reading: Reading = MAPPED) -> Archive:
    """Map every array of an ``.npz`` in place, and read its other members.

    Raises
    ------
    ValueError
        If it is not a zip of plain arrays, if it has compressed members beyond
        what `reading` allows, or if a checksum that was asked for is wrong.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        return read_open(file, path, reading)


def read_open(
    file: BinaryIO, path: str | os.PathLike, reading: Reading = MAPPED
) -> Archive:
    """As `read_npz`, from a file that is open; messages call it `path`."""
    try:
        archive = zipfile.ZipFile(file)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: not an .npz file ({error})") from None
    _check_directory(path, archive.infolist(), len(data), reading.unpack)
    found = Archive({}, {})
    for info in archive.infolist():
        try:
            if info.compress_type == zipfile.ZIP_DEFLATED and reading.unpack:
                _keep(found, info, _unpacked(archive, info), 0)
                continue
            start = _start_of_member(data, info)
            if reading.check:
                _check_sum(file, start, info)
            _keep(found, info, data, start)
        except ValueError as error:
            raise ValueError(f"{path}: {info.filename}: {error}") from None
    return found


def _keep(found: Archive, info: zipfile.ZipInfo, data: mmap.mmap | bytes, start: int):
    """Add a member, whose bytes begin at `start`, to what was found."""
    if info.filename.endswith(".npy"):
        array = _map_array(data, start, info.file_size)
        found.tensors[info.filename[:-4]] = array
    else:
        found.files[info.filename] = data[start : start + info.file_size]


def _check_directory(
    path, members: list[zipfile.ZipInfo], size: int, unpack: int
) -> None:
    """Refuse a directory with a name twice, with bytes used twice, or a damaged one."""
    for name, count in Counter(info.filename for info in members).items():
        if count > 1:
            raise ValueError(f"{path}: {name!r:.80} occurs {count} times")
        if not name.isprintable():
            raise ValueError(f"{path}: {name!r:.80} is not a name of a tensor or file")
    # A wrong length makes an entry swallow those after it, and they would be gone.
    if any(b"PK\x01\x02" in info.comment + info.extra for info in members):
        raise ValueError(f"{path}: its directory is damaged")
    stored = [info for info in members if info.compress_type == zipfile.ZIP_STORED]
    # Small files are copied out: overlapping members could fill the memory.
    if sum(info.file_size for info in stored) > size:
        raise ValueError(f"{path}: its members are larger than the file: truncated?")
    packed = sum(info.file_size for info in members) - sum(i.file_size for i in stored)
    if unpack and packed > unpack:
        raise ValueError(
            f"{path}: compressed, {packed} bytes when unpacked ({unpack} at most); "
            "save it with np.savez"
        )


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A compressed member, compared with its size and checksum."""
    try:
        with archive.open(info) as member:  # never gives more than file_size
            content = member.read()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise ValueError(f"cannot be unpacked ({error})") from None
    if len(content) != info.file_size:
        raise ValueError("cannot be unpacked: it is truncated")
    return content


def _start_of_member(data: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Offset at which a member's bytes begin: after its local header."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(
            "compressed or encrypted, so it cannot be mapped; save it with np.savez"
        )
    at = info.header_offset
    header = data[at : at + 30]
    if at < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError("its header is damaged")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
    name = data[at + 30 : at + 30 + name_length]
    if name != info.orig_filename.encode(encoding, "surrogateescape"):
        raise ValueError("its header has another name")
    start = at + 30 + name_length + extra_length
    if start + info.file_size > len(data):
        raise ValueError("the file is truncated")
    return start


def _check_sum(file: BinaryIO, start: int, info: zipfile.ZipInfo) -> None:
    """Raise ValueError unless a member's bytes give the checksum of the directory."""
    file.seek(start)
    left, found = info.file_size, 0
    while left and (block := file.read(min(left, BLOCK))):
        left, found = left - len(block), zlib.crc32(block, found)
    if found != info.CRC:
        raise ValueError("its checksum is wrong: the file is damaged")


class _Window:
    """The few file methods that NumPy's header reader calls, on mapped bytes."""

    def __init__(self, data: mmap.mmap | bytes, start: int, end: int):
        self.data, self.at, self.end = data, start, end

    def read(self, count: int = -1, /) -> bytes:
        chunk = self.data[self.at : min(self.at + count, self.end)]
        self.at += len(chunk)
        return chunk


# All that NumPy's reader raises on a header that is not what it should be.
BAD_HEADER: tuple[type[Exception], ...]
BAD_HEADER = (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError)
BAD_HEADER += (RecursionError, MemoryError)


def _map_array(data: mmap.mmap | bytes, start: int, size: int) -> np.ndarray:
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
    # True is an int to Python, and to NumPy's reader too.
    if any(type(length) is not int for length in shape):
        raise ValueError(f"shape {shape} is not one of whole numbers")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != window.end - window.at:
        raise ValueError(f"shape {shape} of {dtype} does not fill the member exactly")
    return np.ndarray(shape, dtype, data, window.at, order="F" if fortran else "C")


def offset_of(array: np.ndarray) -> int:
    """Where in its file an array of `read_npz` begins, in bytes.

    Raises
    ------
    ValueError
        If it is not mapped.
    """
    if not isinstance(array.base, mmap.mmap):
        raise ValueError("the array is not a view of a mapped file")
    whole = np.frombuffer(array.base, dtype=np.uint8)
    return array.ctypes.data - whole.ctypes.data


#  ---- writing --------------------------------------------------------------


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """Open a new archive for `write_array` and `write_text`.

    The file appears when it is whole (see `whole`).
    """
    with new_file(path) as file, adding_to(file) as archive:
        yield archive


class Growing(zipfile.ZipFile):
    """A zip that can be closed even if a signal ended its making half-way."""

    _filePassed, _fileRefCnt, _writing = 1, 1, False


@contextmanager
def adding_to(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Open the archive in a file, which may be empty, to add members."""
    archive = Growing(file, "a", zipfile.ZIP_STORED)
    try:
        yield archive
        archive.close()
    except BaseException:
        # Half of a member cannot be closed: that complaint would hide the first one.
        archive.fp = None
        raise


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
