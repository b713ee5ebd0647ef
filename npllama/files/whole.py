"""Files that are complete or absent.

A program that reads a file while it is being written sees half of it, and a program
that is stopped while writing leaves half of it.  So nothing here writes under the
final name.  A new file grows beside it, under another name, and is renamed when it is
complete and on the disk:

    model.npz                         what a reader opens: whole, always
    model.npz.5f0c2a9be3d81746.part   what one writer is writing

The system renames a file in one step, so a reader finds the old file or the new one.

A part belongs to one writer.  Its name is random, and it is always created, never
opened.  So two writers of one file do not collide, and a link planted under that name
is not followed.  The last writer to finish gives the file its content.

If an error, Ctrl-C or a signal that Python can handle stops the writer, the part is
removed.  Only a killed process leaves one.  A writer locks its part, and the system
drops the locks of a dead process; so the next writer of the same file can distinguish
an abandoned part from a growing one, and removes it.

The folder of a file must exist.  This is checked before any work is done, since a
missing folder is most likely a typing error.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

# Device, inode, size, and time of the last change in nanoseconds.
Stamp = tuple[int, int, int, int]
# How much of a file's name its part repeats: a name may have 255 bytes at most.
KEPT = 50


def check_place(
    path: str | os.PathLike, sources: Mapping[str, str | os.PathLike] | None = None
) -> None:
    """Check, before the work, that a file can be written and nothing is lost.

    Parameters
    ----------
    path : path or str
        Where a file is to be written.  An existing file may be replaced.
    sources : mapping of names to paths
        The files that are read, which must not be overwritten.

    Raises
    ------
    ValueError
        If the folder is missing, or if `path` is a folder, a device, a link or one
        of the sources.
    OSError
        If the folder cannot be written to, or the name cannot be a file's.
    """
    path, folder = Path(path), Path(path).parent
    if not folder.exists():
        raise ValueError(f"{path}: there is no folder {folder}; make it first")
    with suppress(FileNotFoundError):
        kind = path.lstat().st_mode  # of the link, if it is one
        for what, source in (sources or {}).items():
            if path.exists() and path.samefile(source):
                raise ValueError(f"{path}: is {what}; choose another place")
        if stat.S_ISLNK(kind):
            raise ValueError(f"{path}: is a link; name the file that it leads to")
        if not stat.S_ISREG(kind):
            raise ValueError(f"{path}: is a folder or a device; name a file to write")
    if not os.access(folder, os.W_OK | os.X_OK):
        denied = errno.EACCES
        raise PermissionError(denied, os.strerror(denied), str(path))


def check_folder(path: Path) -> None:
    """Check, before the work, that a new folder can be made; errors of `check_place`.

    Raises
    ------
    ValueError
        Also if there is anything at `path`.
    """
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path}: is there already; name a folder to make")
    check_place(path)


@contextmanager
def new_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a new file for writing and reading; it appears when the block is done.

    If the block raises, nothing appears, and an older file stays.

    Raises
    ------
    ValueError, OSError
        As `check_place`; also if the disk is full.  Errors name `path`, not the part.
    """
    check_place(path)
    path = Path(path)
    _remove_left_parts(path)
    part = _new_part(path)
    try:
        with open(part, "xb+") as file:
            _lock(file)
            if not part.exists():
                # Taken for one that was left, in the moment before it was locked.
                with new_file(path) as again:
                    yield again
                return
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # Windows renames closed files only
                file.close()
            os.replace(part, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Make a new folder; it appears, with what was written in it, after the block.

    Yields
    ------
    path
        Of the folder as it grows, under another name.

    Raises
    ------
    ValueError, OSError
        As `check_folder`, or if the disk is full.
    """
    path = Path(path)
    check_folder(path)
    _remove_left_parts(path)
    part, handle = _locked_folder(path)
    try:
        yield part
        os.rename(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file at once; text is written as UTF-8.

    Raises
    ------
    ValueError, OSError
        As `new_file`.
    """
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def stamp_of(path: str | os.PathLike) -> Stamp | None:
    """Identifies a file among others under the same path; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def parts_of(path: Path) -> list[Path]:
    """The parts of all writers of a file or folder, those that were left included."""
    shape = re.compile(rf"{re.escape(path.name[:KEPT])}\.[0-9a-f]{{16}}\.part")
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if shape.fullmatch(entry.name)]
    return [path.with_name(name) for name in sorted(names)]


def _new_part(path: Path) -> Path:
    """A name that no other writer has."""
    return path.with_name(f"{path.name[:KEPT]}.{secrets.token_hex(8)}.part")


def _locked_folder(path: Path) -> tuple[Path, int | None]:
    """A new part that is a folder, and the handle that holds its lock, if any."""
    while True:
        part = _new_part(path)
        part.mkdir()
        if fcntl is None:  # Windows, which opens no folder
            return part, None
        with suppress(FileNotFoundError):
            handle = os.open(part, os.O_RDONLY)
            _lock(handle)
            if part.exists():
                return part, handle
            os.close(handle)
        # Taken for one that was left, in the moment before it was locked.


def _lock(file: BinaryIO | int) -> None:
    """Hold a lock until the file is closed, where the file system has locks."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)


def _remove_left_parts(path: Path) -> None:
    """Remove the parts whose writers are dead: their locks can be taken."""
    if fcntl is None:
        return
    for part in parts_of(path):
        # Neither a link is followed here, nor a pipe waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with suppress(OSError):
            handle = os.open(part, flags)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder = stat.S_ISDIR(os.fstat(handle).st_mode)
                (shutil.rmtree if folder else os.unlink)(part)
            finally:
                os.close(handle)
