"""``--plot``: write a picture, and say so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from npllama.cli.options import UsageError


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
        raise UsageError(
            "--plot needs matplotlib: pip install 'npllama[plot]'"
        ) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(f"wrote {path}", file=sys.stderr)
