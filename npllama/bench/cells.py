"""What is measured beside prefill and decode of one text.

Batches, long contexts, beams, start-up, many requests at once, all at one size; what
chance costs and guesses save; attention alone.  What a user would pick instead is
measured beside it, in turn, round by round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from npllama.bench.processes import Worker
from npllama.bench.random_model import write_model
from npllama.bench.report import OURS, summary
from npllama.bench.serving import traffic
from npllama.config import preset


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
REQUESTS = 16
# Sampling is measured where a step is short, lookup where it is long.
CHANCE_SIZE, LOOKUP_SIZE, TEXT, DRAFTED = "stories15m", "tinyllama-1.1b", 96, 4
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


def measure_serving(
    path: Path, rounds: int, threads: int, peers: dict[str, str], progress: Progress
) -> dict[str, Any]:
    """Tokens per second of all answers to requests that come at once.

    Each program in a process that ends before the next begins, round by round.
    """
    found = {}
    for alike in (False, True):
        times: dict[str, list[list[float]]] = {}
        for i in range(rounds):
            progress(f"serving: round {i + 1} of {rounds}")
            for name, seconds in _served(path, alike, threads, peers):
                times.setdefault(name, []).append(seconds)
        tokens = sum(ask.new for ask in traffic(REQUESTS, alike))
        name = f"{REQUESTS} requests{' alike' * alike}"
        found[name] = summary(times, lambda s, n=tokens: n / s)
    return found


def _served(
    path: Path, alike: bool, threads: int, peers: dict[str, str]
) -> Iterator[tuple[str, list[float]]]:
    """(name, seconds) of every program and variant, one by one."""
    for program, python in {"npllama": sys.executable, **peers}.items():
        with Worker("serving", program, python, threads, str(path)) as worker:
            hello = worker.ask("hello")
            asked = {"requests": REQUESTS, "alike": alike, "repeats": 1}
            for variant, seconds in worker.ask("time", **asked).items():
                ours = OURS if variant == "together" else f"npllama {variant}"
                theirs = f"{hello['name']} ({variant})"
                yield ours if program == OURS else theirs, seconds


#  ---- decoding -----------------------------------------------------------------


def measure_decoding(
    folder: Path, rounds: int, threads: int, progress: Progress
) -> dict[str, Any]:
    """Chance beside greedy, lookup beside one by one, guesses of the shipped draft."""
    # Timed calls are whole texts, so that one repeat more stands for a warm-up.
    repeats = rounds + 1
    results: dict[str, Any] = {}
    for key, size, request in (
        ("sampling", CHANCE_SIZE, "time_sampling"),
        ("lookup", LOOKUP_SIZE, "time_lookup"),
    ):
        progress(f"decoding: {key} at {size}")
        path = folder / f"{size}.npz"
        write_model(preset(size), path, 1)
        with Worker(
            "decoding", "npllama", sys.executable, threads, str(path)
        ) as worker:
            found = worker.ask(request, tokens=TEXT, repeats=repeats)
        path.unlink()
        times = {name: seconds[1:] for name, seconds in found.pop("seconds").items()}
        results[key] = {"size": size, "tokens": TEXT, "seconds": times} | found
    progress("decoding: the shipped pair")
    with Worker("decoding", "pair", sys.executable, threads) as worker:
        kept = worker.ask("kept", texts=10 * rounds, guesses=DRAFTED)
    results["pair"] = {"guesses": DRAFTED, "kept": kept}
    return results


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
