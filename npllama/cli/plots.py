"""``--plot``: write a picture, and say so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec

from npllama.cli.options import UsageError
from npllama.cost.plot import ending_of

MISSING = "--plot needs matplotlib: pip install 'npllama[plot]'"


def check_picture(path: str | os.PathLike | None) -> None:
    """Raise UsageError if no picture can be drawn there, before the work for it."""
    if path is None:
        return
    try:
        ending_of(path)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if find_spec("matplotlib") is None:
        raise UsageError(MISSING)


def drawn(path: str | os.PathLike, write: Callable[[], None]) -> None:
    """Let `write` make the picture at `path`.

    Raises
    ------
    UsageError
        If matplotlib is missing, or a picture cannot be written under this name.
    """
    try:
        write()
    except ModuleNotFoundError:
        raise UsageError(MISSING) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(f"wrote {path}", file=sys.stderr)
