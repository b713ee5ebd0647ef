"""A file of results that outlives the run that writes it.

A line is written as soon as its result is known, in whatever order that is, and says
which prompt it belongs to.  So a run that is killed loses only what it was
working on: the next run reads what is there, and does the rest.  Two things can be
wrong with what a killed run leaves:

- Its last line may be torn.  It has no end of line then, and is cut off.
- It may belong to something else: another model, other prompts, another seed.  So
  every line has a *key*, a hash of everything that determines its result.  A line
  whose key is not that of its prompt is refused; nothing is overwritten.

Only one run at a time can write: it locks the file, where the system has locks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from npllama.files.whole import check_place

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# How every line begins; a torn one may end within it.
BEGINNING = b'{"index": '


@contextmanager
def results(
    path: str | os.PathLike, keys: Sequence[str]
) -> Iterator[tuple[set[int], BinaryIO]]:
    """Open a file of results: read what is done, and add to it.

    Writes
    ------
    The file: a torn last line is cut off.

    Parameters
    ----------
    path : path or str
    keys : sequence of str
        Of all prompts, by their index.

    Yields
    ------
    done : set of int
        The indices whose results are there.
    file : binary file
        For `add`.

    Raises
    ------
    ValueError
        If the file holds anything else than results of these prompts, or another run
        is writing it.
    OSError
        If it cannot be read or written.
    """
    check_place(path)
    with open(path, "ab+") as file:
        lock(file, path)
        file.seek(0)
        text = file.read()
        whole = text.rfind(b"\n") + 1
        torn = text[whole:]
        if not (torn[: len(BEGINNING)] == BEGINNING[: len(torn)]):
            raise ValueError(f"{path}: does not end in a result; choose another place")
        lines = text[:whole].split(b"\n")[:-1]
        done = {
            index_of(path, number, line, keys) for number, line in enumerate(lines, 1)
        }
        file.truncate(whole)
        yield done, file


def lock(file: BinaryIO, path: str | os.PathLike) -> None:
    """Raise ValueError if another run holds the file."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path}: another run is writing it") from None
    except OSError:
        pass  # a file system without locks


def index_of(path, number: int, line: bytes, keys: Sequence[str]) -> int:
    """Which prompt a line of the file belongs to."""
    index, key = None, None
    with suppress(ValueError, RecursionError, TypeError, KeyError):
        entry = json.loads(line)
        index, key = entry["index"], entry["key"]
    if type(index) is not int:
        raise ValueError(f"{path}: line {number} is no result; choose another place")
    if not (0 <= index < len(keys) and keys[index] == key):
        raise ValueError(
            f"{path}: line {number} is a result of another run (other prompts, "
            "options, seed or weights); remove it or choose another place"
        )
    return index


def add(file: BinaryIO, index: int, key: str, result: dict[str, Any]) -> None:
    """Write one result, at once.

    Writes
    ------
    A line to the file.
    """
    line = json.dumps({"index": index, "key": key, **result}, ensure_ascii=False)
    # A Python string may hold half of a surrogate pair; no encoding accepts it.
    file.write(line.encode("utf-8", "backslashreplace") + b"\n")
    file.flush()
