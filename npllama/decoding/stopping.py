"""When to stop: the end token, a string, the clock, or the caller's own rule.

A rule is a function from the new tokens of a row to the reason for ending, or None.
Several rules are asked one after the other.

A stop string may begin in the middle of one token and end in another, so it is
searched for in the bytes of the new text, not among the tokens.  Each step needs to look
only at the last bytes, since an earlier match would have stopped the row already.  As
in vLLM, one that begins in the prompt does not count; in transformers it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

from npllama.decoding.common import Stop
from npllama.text.tokenizer import Tokenizer


def at_tokens(eos: Collection[int]) -> Stop:
    """Stop after any of the given tokens: "eos"."""
    return partial(ends_with, frozenset(eos))


def ends_with(ids: Collection[int], tokens: Sequence[int]) -> str | None:
    """The rule of `at_tokens`."""
    return "eos" if tokens and tokens[-1] in ids else None


def at_strings(tokenizer: Tokenizer, strings: Sequence[str]) -> Stop:
    """Stop once the text holds one of the strings: "stop"."""
    return partial(holds, tokenizer, [string.encode() for string in strings])


def holds(
    tokenizer: Tokenizer, needles: Sequence[bytes], tokens: Sequence[int]
) -> str | None:
    """The rule of `at_strings`."""
    if not tokens:
        return None
    last = tokenizer.token_bytes(tokens[-1])
    # A string that ends within the last token begins at most so far back.
    need = max(map(len, needles)) + len(last) - 1
    tail, at = last, len(tokens) - 1
    while len(tail) < need and at > 0:
        at -= 1
        tail = tokenizer.token_bytes(tokens[at]) + tail
    return "stop" if any(needle in tail for needle in needles) else None


def after_seconds(seconds: float, clock: Callable[[], float] = time.monotonic) -> Stop:
    """Stop `seconds` from now: "time"."""
    return partial(is_over, clock() + seconds, clock)


def is_over(
    end: float, clock: Callable[[], float], tokens: Sequence[int]
) -> str | None:
    """The rule of `after_seconds`."""
    return "time" if clock() >= end else None


def trim(text: str, strings: Sequence[str]) -> str:
    """The text up to the stop string that ends first in it."""
    ends = [(text.find(s) + len(s), text.find(s)) for s in strings if s in text]
    return text[: min(ends)[1]] if ends else text


class Trimmer:
    """Trims a text that comes in pieces; holds back the beginning of a stop string."""

    def __init__(self, strings: Sequence[str]):
        self.strings, self.held, self.ended = strings, "", False

    def push(self, piece: str, stops: bool = True) -> str:
        """The text that is certain now; nothing once a stop string has come.

        Bytes that are no text look like U+FFFD, but are not: if no stop string has
        come (`stops` is false), nothing is trimmed.
        """
        if self.ended:
            return ""
        text = self.held + piece
        trimmed = trim(text, self.strings) if stops else text
        if trimmed != text:
            self.held, self.ended = "", True
            return trimmed
        keep = max((self._overlap(text, s) for s in self.strings), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, when nothing follows."""
        rest, self.held = self.held, ""
        return rest

    @staticmethod
    def _overlap(text: str, string: str) -> int:
        """Length of the longest end of the text that begins `string`."""
        longest = min(len(string) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
