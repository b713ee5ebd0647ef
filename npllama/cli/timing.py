"""Speed, as the command line reports it: tokens per second, and memory."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator

from npllama.generation.generate import Piece

# Seconds.  No model answers so fast: the token was guessed with the one before.
AT_ONCE = 5e-5


class Stopwatch:
    """Times a stream of tokens: until the first (prefill), and from then on."""

    def __init__(self, prompt_tokens: int):
        self.prompt_tokens, self.new_tokens = prompt_tokens, 0
        self.first = 1  # new tokens that came with the prompt
        self.prefill = self.decode = 0.0

    def time(self, stream: Iterable[Piece]) -> Iterator[Piece]:
        """Pass the stream on, counting only the time spent in making it."""
        stream = iter(stream)
        while True:
            begin = time.perf_counter()
            piece = next(stream, None)
            spent = time.perf_counter() - begin
            if piece is None:
                return
            if self.new_tokens == 0:
                self.prefill = spent
            elif self.decode == 0 and spent < AT_ONCE:
                self.first += 1
            else:
                self.decode += spent
            self.new_tokens += 1
            yield piece

    def whole(self, seconds: float, new_tokens: int) -> None:
        """Count a search, in which prompt and new tokens cannot be told apart."""
        self.decode, self.new_tokens = seconds, new_tokens

    def statistics(self) -> dict[str, float | None]:
        """Counts, seconds, tokens per second, and peak memory in MB."""
        # The first new token comes with the prompt, unless all was one search.
        decoded = self.new_tokens - (self.first if self.prefill else 0)
        return {
            "prompt_tokens": self.prompt_tokens,
            "prompt_seconds": self.prefill,
            "prompt_tokens_per_second": _rate(self.prompt_tokens, self.prefill),
            "new_tokens": self.new_tokens,
            "decode_seconds": self.decode,
            "decode_tokens_per_second": _rate(decoded, self.decode),
            "peak_memory_mb": peak_memory_mb(),
        }

    def summary(self) -> str:
        """The statistics as a line for people."""
        s = self.statistics()
        if self.new_tokens and not self.prefill:  # one search, with its prompt
            parts = [f"prompt {s['prompt_tokens']} tokens"]
            together = f"{_per_second(s, 'decode')}, the prompt's time included"
            parts += [f"decode {s['new_tokens']} tokens, {together}"]
        else:
            parts = [f"prompt {s['prompt_tokens']} tokens, {_per_second(s, 'prompt')}"]
            parts += [f"decode {s['new_tokens']} tokens, {_per_second(s, 'decode')}"]
        if s["peak_memory_mb"] is not None:
            parts.append(f"peak memory {s['peak_memory_mb']:.0f} MB")
        return "[" + "; ".join(parts) + "]"


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count > 0 and seconds > 0 else None


def _per_second(statistics: dict[str, float | None], part: str) -> str:
    rate = statistics[f"{part}_tokens_per_second"]
    return "too few to time" if rate is None else f"{rate:.0f} tokens/s"


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far; None where it is not told."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):  # in kB
                return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    # On Linux this starts at the size of the process that started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
