"""What is measured beside prefill and decode of one text.

Attention alone; batches, long contexts, beams, start-up: all at one size, for every program that is there: what a user would pick instead is
measured beside it, in turn, round by round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.processes import Worker
from benchmarks.report import OURS, summary


class Cell(NamedTuple):
    """Passes that bring `new` positions to each of `rows` that hold `cached`."""

    rows: int
    cached: int
    new: int

    @property
    def name(self) -> str:
        """Such as ``decode of 16 after 64``."""
        if self.new > 1:
            return f"prefill {self.new} after {self.cached}"
        return f"decode of {self.rows} after {self.cached}"


CELLS = [
    *(Cell(rows, 64, 1) for rows in (1, 4, 16, 64)),
    *(Cell(rows, 1024, 1) for rows in (1, 4, 16)),
    *(Cell(rows, 4096, 1) for rows in (1, 4)),
    Cell(1, 4096, 256),
    Cell(1, 16384, 1),
]
BEAMS, BEAM_TOKENS = 4, 32
OUR_NAMES = {"forward": OURS, "rowwise": "npllama rowwise"}
Progress = Callable[[str], None]


def measure_cells(
    path: Path,
    cells: list[Cell],
    rounds: int,
    threads: int,
    programs: dict[str, str],
    progress: Progress,
) -> dict[str, Any]:
    """Tokens per second of every program in every cell."""
    found = {}
    for cell in cells:
        times: dict[str, list[list[float]]] = {}
        for i in range(rounds):
            progress(f"{cell.name}: round {i + 1} of {rounds}")
            for name, seconds in _in_turn(path, cell, threads, programs):
                times.setdefault(name, []).append(seconds)
        tokens = cell.rows * cell.new
        found[cell.name] = summary(times, lambda s, n=tokens: n / s)
    return found


def _in_turn(
    path: Path, cell: Cell, threads: int, programs: dict[str, str]
) -> Iterator[tuple[str, list[float]]]:
    """(name, seconds of each pass) of every program and variant, one by one.

    Each in a process that ends before the next begins: long caches fill the memory.
    """
    repeats = 3 if cell.new > 1 else 12
    for program, python in programs.items():
        with Worker("batches", program, python, threads, str(path)) as worker:
            hello = worker.ask("hello")
            for variant, seconds in worker.ask(
                "time", **cell._asdict(), repeats=repeats
            ).items():
                theirs = f"{hello['name']} ({variant})"
                yield OUR_NAMES[variant] if program == OURS else theirs, seconds


def measure_beams(
    path: Path, rounds: int, threads: int, programs: dict[str, str], progress: Progress
) -> dict[str, Any]:
    """Tokens per second of a beam search; llama.cpp has none."""
    times: dict[str, list[list[float]]] = {}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker("decoding", name, python, threads, str(path))
            )
            for name, python in programs.items()
            if name != "llama.cpp"
        }
        for i in range(rounds):
            progress(f"beams: round {i + 1} of {rounds}")
            for name, worker in workers.items():
                seconds = worker.ask(
                    "time_beams", beams=BEAMS, tokens=BEAM_TOKENS, repeats=1
                )
                times.setdefault(name, []).append(seconds)
    return summary(times, lambda s: BEAM_TOKENS / s)


def measure_start(
    path: Path, rounds: int, threads: int, programs: dict[str, str], progress: Progress
) -> dict[str, Any]:
    """Milliseconds from the start of a process to its first token.

    The first round is forgotten: it brings the files into memory.
    """
    times: dict[str, list[list[float]]] = {}
    for i in range(rounds + 1):
        progress(f"start: round {i} of {rounds}")
        for name, python in programs.items():
            start = time.perf_counter()
            with Worker("programs", name, python, threads, str(path)) as worker:
                worker.ask("first_token", context=list(range(3, 11)))
                seconds = time.perf_counter() - start
            if i:
                times.setdefault(name, []).append([seconds])
    return summary(times, lambda s: 1e3 * s)


def measure(
    path: Path,
    rounds: int,
    threads: int,
    peers: dict[str, str],
    progress: Progress,
    cells: list[Cell] = CELLS,
) -> dict[str, Any]:
    """All cells of one model."""
    programs = {"npllama": sys.executable, **peers}
    given = rounds, threads, programs, progress
    return {
        "passes": measure_cells(path, cells, *given),
        f"{BEAMS} beams": measure_beams(path, *given),
        "start": measure_start(path, *given),
    }


#  ---- attention alone ----------------------------------------------------------


def measure_attention(
    rounds: int,
    threads: int,
    peers: dict[str, str],
    S: int,
    S_memory: int,
    progress: Progress,
) -> dict[str, Any]:
    """Seconds of one call for every program, and the memory of npllama's."""
    programs = {"npllama": sys.executable} | peers
    times: dict[str, list[list[float]]] = {}
    for i in range(rounds):
        for program, python in programs.items():
            progress(f"attention: round {i + 1} of {rounds}, {program}")
            with Worker("attention", program, python, threads) as worker:
                answer = worker.ask("time", S=S, repeats=2)
            name = OURS if program == "npllama" else answer["name"]
            times.setdefault(name, []).append(answer["seconds"])
    with Worker("attention", "npllama", sys.executable, threads) as worker:
        memory = worker.ask("memory", S=S_memory)
    return {
        "positions": S,
        "programs": summary(times, lambda seconds: 1e3 * seconds),
        "memory": {"positions": S_memory} | memory,
    }
