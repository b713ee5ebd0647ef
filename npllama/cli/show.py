"""Printing a model's text."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from npllama.decoding.common import context_length
from npllama.generation.options import GenerationConfig
from npllama.generation.task import DEFAULT_NEW_TOKENS
from npllama.weights import Model

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


def cut_lines(
    reasons: Sequence[str | None], config: GenerationConfig, model: Model
) -> list[str]:
    """Which of some texts did not end by themselves, and at which limit; a line each."""
    length = f"--max-new-tokens {config.max_new_tokens or DEFAULT_NEW_TOKENS}"
    if config.max_length is not None:
        length = f"--max-length {config.max_length}"
    limits = {
        "length": length,
        "time": f"--max-time {config.max_time}",
        "context": f"the end of the context, {context_length(model.config)} positions",
    }
    lines = []
    for reason, limit in limits.items():
        cut = [n for n, found in enumerate(reasons, 1) if found == reason]
        # One text needs no number.
        word = "texts" if len(cut) > 1 else "text"
        which = f"{word} {', '.join(map(str, cut))} " if len(reasons) > 1 else ""
        lines += [f"[{which}cut at {limit}]"] if cut else []
    return lines
