"""Printing a model's text."""

from __future__ import annotations

import re
import sys

# Line ends and tabs are left: they do not change what is already on the screen.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show(text: str) -> None:
    """Write immediately, with control characters made visible."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def harmless(text: str) -> str:
    """The text with control characters shown, so that a terminal does not obey them.

    A model may write an escape sequence that renames the window or clears it.
    """
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
