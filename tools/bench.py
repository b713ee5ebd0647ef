"""How fast npllama is, beside the floor below it and its peers around it.

    python tools/bench.py                            three sizes, and peers if installed
    python tools/bench.py --sizes 110m --peers torch --json bench.json
    python tools/bench.py --sizes --attention        attention alone
    python tools/bench.py --sizes --decoding         what chance costs and guesses save
    python tools/bench.py --sizes --roofline         the roofline's prediction for it
    python tools/bench.py --sizes --cells            batches, long contexts, beams, start
    python tools/bench.py --sizes --serving          many requests at once

For each size a model of random weights is written to a temporary folder, and every
program reads it: npllama, transformers on torch, llama.cpp.  Measured are loading,
prefill (a prompt at once), decode (a token at a time after 64 others) and peak
memory.  The BLAS floor is what any program with this BLAS must take: the products
of the same pass with the same weight arrays, in the same order and process, and
nothing else (attention's own products, which have no weights, are not in it).

Programs live in processes of their own and take turns, round by round.  A peer
that lives in another Python is named by ``--python``, for example
``--python llama.cpp=.venv-llama/bin/python``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

# Measure this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cells
from benchmarks.cells import measure_attention
from benchmarks.processes import Failure, Worker, interpreter, missing
from benchmarks.random_model import write_model
from benchmarks.report import FLOOR, OURS, machine, summary, table, without_variant
from benchmarks.roofline import compare

from npllama.config import PRESETS, preset

SHORT = {"15m": "stories15m", "110m": "stories110m", "1.1b": "tinyllama-1.1b"}
PEERS = ("torch", "llama.cpp")
ALONE = ("torch", "jax", "llama.cpp")  # attention alone
PREFILL, CONTEXT = 256, 64
SAME = 5e-3  # Another function of the weights differs by more, as a part of the range.
ATTENTION, ATTENTION_MEMORY = (4096, 16384), 8192
CELLS_SIZE = SHORT["110m"]
# The smallest fits into some caches, and then is no matter of memory's bandwidth.
ROOFLINE_SIZES = SHORT["110m"], SHORT["1.1b"]
USAGE, FAILED, INTERRUPTED = 2, 1, 130


class Plan(NamedTuple):
    """How much to measure."""

    rounds: int
    prefills: int  # per round
    steps: int  # decoded tokens per round


THOROUGH, QUICK = Plan(5, 2, 64), Plan(1, 1, 16)


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

    A `probe` measures the machine before every round: machines have moods.
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

    The first round warms up, without it, and is forgotten.
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


#  ---- the command --------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (try --help)\n")


def size(word: str) -> str:
    """The preset that ``15m``, ``110m``, ``1.1b`` or its own name stands for."""
    name = SHORT.get(word.lower(), word)
    if name not in PRESETS:
        known = ", ".join([*SHORT, *PRESETS])
        raise argparse.ArgumentTypeError(f"no size {word!r}; there are {known}")
    return name


def other_python(word: str) -> tuple[str, str]:
    """NAME=PATH, which Python a program runs in."""
    name, _, path = word.partition("=")
    if name not in (*PEERS, "jax") or not path:
        raise argparse.ArgumentTypeError(
            f"{word!r}: expected torch=PATH, llama.cpp=PATH or jax=PATH"
        )
    return name, path


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads(word: str) -> int:
    """A number of threads that this machine has."""
    if not word.isdecimal() or not 1 <= int(word) <= processors():
        raise argparse.ArgumentTypeError(f"{word!r} is not 1 to {processors()}")
    return int(word)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = Parser(
        prog="bench.py",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    # fmt: off
    option("--sizes", nargs="*", type=size, default=list(SHORT.values()), metavar="SIZE",
           help="15m, 110m, 1.1b or names of presets; none: only what others need")
    option("--peers", nargs="*", choices=[*PEERS, "jax"], metavar="PEER",
           help="torch, llama.cpp, jax (attention only); by default those installed")
    option("--python", action="append", type=other_python, default=[],
           metavar="PEER=PATH", help="the Python that a peer is installed in")
    option("--threads", type=threads, default=processors(), metavar="N",
           help="threads of every program; by default all processors")
    option("--attention", action="store_true",
           help=f"also time attention alone, at {ATTENTION} positions")
    option("--cells", action="store_true",
           help="also time batches, long contexts, beams and start-up, at 110m")
    option("--serving", action="store_true",
           help="also time 16 requests at once, at 110m")
    option("--decoding", action="store_true",
           help="also time sampling and prompt lookup, and count the draft's guesses")
    option("--roofline", action="store_true",
           help="also hold the roofline's prediction to what 110m and 1.1b do here")
    option("--quick", action="store_true", help="one short round instead of five")
    option("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    # fmt: on
    return parser.parse_args(arguments)


def find_peers(asked: list[str] | None, pythons: dict[str, str]) -> dict[str, str]:
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


def measure_sizes(
    options: argparse.Namespace, plan: Plan, models: dict[str, str]
) -> dict[str, Any]:
    """Prefill and decode of every size; those of the roofline beside the probe."""
    also, found = ROOFLINE_SIZES if options.roofline else (), {}
    with scratch() as folder, ExitStack() as stack:
        probe = None
        if options.roofline:
            worker = Worker("roofline", "probe", sys.executable, options.threads)
            probe = stack.enter_context(worker)
        for name in dict.fromkeys([*options.sizes, *also]):
            found[name] = measure_size(
                name,
                plan,
                options.threads,
                models if name in options.sizes else {},
                Path(folder),
                probe if name in ROOFLINE_SIZES else None,
            )
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    plan = QUICK if options.quick else THOROUGH
    peers = find_peers(options.peers, dict(options.python))
    models = {name: python for name, python in peers.items() if name in PEERS}
    results: dict[str, Any] = {"machine": machine(options.threads)}
    results["plan"] = plan._asdict()
    results["sizes"] = measure_sizes(options, plan, models)
    if options.roofline:
        predicted = {name: results["sizes"][name] for name in ROOFLINE_SIZES}
        results["roofline"] = compare(predicted, CONTEXT)
    if options.attention:
        others = {name: python for name, python in peers.items() if name in ALONE}
        results["attention"] = [
            measure_attention(
                plan.rounds, options.threads, others, S, ATTENTION_MEMORY, progress
            )
            for S in ATTENTION
        ]
    if options.cells:
        with scratch() as folder:
            path = Path(folder) / f"{CELLS_SIZE}.npz"
            write_model(preset(CELLS_SIZE), path, 1 + ("llama.cpp" in models))
            results["cells"] = {"size": CELLS_SIZE} | cells.measure(
                path, max(1, plan.rounds // 2), options.threads, models, progress
            )
    if options.serving:
        with scratch() as folder:
            path = Path(folder) / f"{CELLS_SIZE}.npz"
            write_model(preset(CELLS_SIZE), path, 1 + ("llama.cpp" in models))
            results["serving"] = {"size": CELLS_SIZE} | cells.measure_serving(
                path, max(1, plan.rounds // 2), options.threads, models, progress
            )
    if options.decoding:
        with scratch() as folder:
            results["decoding"] = cells.measure_decoding(
                Path(folder), plan.rounds, options.threads, progress
            )
    progress("")
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit code."""
    options = parse(arguments)
    try:
        results = measure(options)
        print(table(results))
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    except (Failure, OSError) as error:
        progress("")
        print(f"bench.py: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        progress("")
        print("bench.py: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    # Being told to end leaves no worker and no temporary folder behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
