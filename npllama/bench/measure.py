"""Every measurement that ``npllama bench`` offers, one after the other.

For each size a model of random weights is written to a temporary folder, and every
program reads it: npllama, transformers on torch, llama.cpp.  Measured are loading,
prefill (a prompt at once), decode (a token at a time after 64 others) and peak
memory.  The BLAS floor is what any program with this BLAS must take: the products
of the same pass with the same weight arrays, in the same order and process, and
nothing else (attention's own products, which have no weights, are not in it).

Programs live in processes of their own and take turns, round by round.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.bench import cells
from npllama.bench.cells import measure_attention
from npllama.bench.processes import Failure, Worker, interpreter, missing
from npllama.bench.random_model import write_model
from npllama.bench.report import FLOOR, OURS, machine, summary, without_variant
from npllama.bench.roofline import compare
from npllama.config import preset

SHORT = {"15m": "stories15m", "110m": "stories110m", "1.1b": "tinyllama-1.1b"}
PEERS = ("torch", "llama.cpp")
ALONE = ("torch", "jax", "llama.cpp")  # attention alone
PREFILL, CONTEXT = 256, 64
# Logits that differ by more, as a part of their range, are those of another function.
SAME = 5e-3
ATTENTION, ATTENTION_MEMORY = (4096, 16384), 8192
CELLS_SIZE = SHORT["110m"]
PARTS = ("attention", "cells", "serving", "decoding", "roofline")
# Without 15m: some processors' caches hold it, and then memory is not its bound.
ROOFLINE_SIZES = SHORT["110m"], SHORT["1.1b"]


class Plan(NamedTuple):
    """How much to measure."""

    rounds: int
    prefills: int  # per round
    steps: int  # decoded tokens per round


THOROUGH, QUICK = Plan(5, 2, 64), Plan(1, 1, 16)


class Asked(NamedTuple):
    """What to measure, and how."""

    sizes: Sequence[str]  # names of presets
    peers: Sequence[str] | None  # None: those that are installed
    pythons: dict[str, str]  # the Python of a peer that lives in another one
    threads: int  # of every program
    plan: Plan
    parts: frozenset[str] = frozenset()  # of PARTS


def progress(text: str) -> None:
    """Keep one line on stderr up to date, where somebody may watch it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


#  ---- one size -----------------------------------------------------------------


def measure_size(
    name: str,
    plan: Plan,
    threads: int,
    peers: dict[str, str],
    folder: Path,
    probe: Worker | None = None,
) -> dict[str, Any]:
    """Load, prefill, decode and memory of every program at one size.

    A `probe` measures the machine before every round, since its speed changes.
    """
    probes: list[dict[str, float]] = []
    path = folder / f"{name}.npz"
    progress(f"{name}: writing random weights")
    parameters = write_model(preset(name), path, 1 + ("llama.cpp" in peers))
    with ExitStack() as stack:
        workers = []
        for program, python in {"npllama": sys.executable, **peers}.items():
            progress(f"{name}: starting {program}")
            worker = Worker("programs", program, python, threads, str(path))
            workers.append(stack.enter_context(worker))
        load = workers[0].ask("load")
        labels = [_labels(worker.ask("hello")) for worker in workers]
        agreement = compare_logits(workers, labels, preset(name).vocab_size, folder)
        before = (lambda: probes.append(probe.ask("measure"))) if probe else None
        times = run_rounds(name, workers, labels, plan, before)
        memory = {_program(v): w.ask("memory") for w, v in zip(workers, labels)}
    path.unlink()
    path.with_suffix(".gguf").unlink(missing_ok=True)
    return {
        "parameters": parameters,
        "load": load,
        "prefill": _rates(times["prefill"], PREFILL, PREFILL),
        "decode": _rates(times["decode"], plan.steps, 1),
        "memory": memory,
        "logits_differ_by": agreement,
        "probes": probes,
    }


def _rates(rounds: dict[str, list], tokens: int, per_call: int) -> dict[str, Any]:
    """Tokens per second of every program."""
    programs = summary(rounds, lambda seconds: per_call / seconds)
    return {"tokens": tokens, "programs": programs}


def _program(labels: dict[str, str]) -> str:
    """What all variants of a program are called together."""
    return without_variant(next(iter(labels.values())))


def _labels(hello: dict[str, Any]) -> dict[str, str]:
    """What each variant of a program is called in the table."""
    if hello["name"] == OURS:
        return {"forward": OURS, "floor": FLOOR}
    return {v: f"{hello['name']} ({v})" for v in hello["variants"]}


def compare_logits(
    workers: list[Worker], labels: list[dict[str, str]], V: int, folder: Path
) -> dict[str, float]:
    """Largest difference to npllama's logits, as a part of their range.

    Raises
    ------
    Failure
        If a program computes something else: its times would mean nothing.
    """
    tokens = np.random.default_rng(1).integers(0, V, 40).tolist()
    logits = {}
    for worker, names in zip(workers, labels):
        worker.ask("logits", tokens=tokens, path=str(folder / "logits"))
        for variant, label in names.items():
            if label != FLOOR:
                logits[label] = np.load(folder / f"logits.{variant}.npy")
    expected = logits.pop(OURS)
    unit = float(np.ptp(expected))
    differences = {
        label: float(np.abs(found - expected).max()) / unit
        for label, found in logits.items()
    }
    for label, difference in differences.items():
        # llama.cpp's flash attention rounds to half precision: one part in 800.
        if not difference < SAME:
            raise Failure(f"{label} computes other logits ({difference:.1e} of range)")
    return differences


def run_rounds(
    name: str,
    workers: list[Worker],
    labels: list[dict[str, str]],
    plan: Plan,
    before: Callable[[], None] | None = None,
) -> dict[str, dict[str, list]]:
    """Let the programs take turns, and `before` run ahead of each round.

    The first round warms up: `before` does not run, and its times are forgotten.
    """
    times: dict[str, dict[str, list]] = {"prefill": {}, "decode": {}}
    rng = np.random.default_rng(2)
    prompt = rng.integers(0, preset(name).vocab_size, PREFILL).tolist()
    for i in range(plan.rounds + 1):
        prefills, steps = (plan.prefills, plan.steps) if i else (1, 2)
        if before and i:
            progress(f"{name}: round {i} of {plan.rounds}, probe")
            before()
        for worker, names in zip(workers, labels):
            progress(f"{name}: round {i} of {plan.rounds}, {worker.name}")
            answers = {
                "prefill": worker.ask("time_prefill", tokens=prompt, repeats=prefills),
                "decode": worker.ask(
                    "time_decode", context=prompt[:CONTEXT], steps=steps
                ),
            }
            for measure, answer in answers.items():
                for variant, seconds in answer.items() if i else ():
                    times[measure].setdefault(names[variant], []).append(seconds)
    return times


#  ---- all that was asked for --------------------------------------------------


def find_peers(asked: Iterable[str] | None, pythons: dict[str, str]) -> dict[str, str]:
    """The peers to run, each with its Python.

    Raises
    ------
    Failure
        If a peer that was asked for by name cannot run.
    """
    found = {}
    for name in (*PEERS, "jax") if asked is None else asked:
        python = interpreter(name, pythons)
        problem = missing(name, python)
        if problem is None:
            found[name] = python
        elif asked is not None or name in pythons:
            raise Failure(f"{name}: {problem}")
    return found


def scratch() -> tempfile.TemporaryDirectory:
    """A folder for weights, gone afterwards."""
    return tempfile.TemporaryDirectory(prefix="npllama-bench-")


@contextmanager
def cells_model(copies: int) -> Iterator[Path]:
    """The model of the cells in a file, with room for copies, gone afterwards."""
    with scratch() as folder:
        path = Path(folder) / f"{CELLS_SIZE}.npz"
        write_model(preset(CELLS_SIZE), path, copies)
        yield path


def measure_sizes(asked: Asked, models: dict[str, str]) -> dict[str, Any]:
    """Prefill and decode of every size; those of the roofline beside the probe."""
    roofline = "roofline" in asked.parts
    also, found = ROOFLINE_SIZES if roofline else (), {}
    with scratch() as folder, ExitStack() as stack:
        probe = None
        if roofline:
            worker = Worker("roofline", "probe", sys.executable, asked.threads)
            probe = stack.enter_context(worker)
        for name in dict.fromkeys([*asked.sizes, *also]):
            found[name] = measure_size(
                name,
                asked.plan,
                asked.threads,
                models if name in asked.sizes else {},
                Path(folder),
                probe if name in ROOFLINE_SIZES else None,
            )
    return found


def measure(asked: Asked) -> dict[str, Any]:
    """Everything that was asked for."""
    plan, threads, parts = asked.plan, asked.threads, asked.parts
    peers = find_peers(asked.peers, asked.pythons)
    models = {name: python for name, python in peers.items() if name in PEERS}
    results: dict[str, Any] = {"machine": machine(threads)}
    results["plan"] = plan._asdict()
    results["sizes"] = measure_sizes(asked, models)
    if "roofline" in parts:
        predicted = {name: results["sizes"][name] for name in ROOFLINE_SIZES}
        results["roofline"] = compare(predicted, CONTEXT)
    if "attention" in parts:
        others = {name: python for name, python in peers.items() if name in ALONE}
        results["attention"] = [
            measure_attention(
                plan.rounds, threads, others, S, ATTENTION_MEMORY, progress
            )
            for S in ATTENTION
        ]
    if "cells" in parts:
        with cells_model(1 + ("llama.cpp" in models)) as path:
            results["cells"] = {"size": CELLS_SIZE} | cells.measure(
                path, max(1, plan.rounds // 2), threads, models, progress
            )
    if "serving" in parts:
        with cells_model(1 + ("llama.cpp" in models)) as path:
            results["serving"] = {"size": CELLS_SIZE} | cells.measure_serving(
                path, max(1, plan.rounds // 2), threads, models, progress
            )
    if "decoding" in parts:
        with scratch() as folder:
            results["decoding"] = cells.measure_decoding(
                Path(folder), plan.rounds, threads, progress
            )
    progress("")
    return results
