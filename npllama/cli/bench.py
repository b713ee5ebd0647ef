"""The command ``npllama bench``: how fast npllama is, and its peers beside it."""

from __future__ import annotations

import argparse
import json
import os

from npllama.bench.measure import (
    ATTENTION,
    PARTS,
    PEERS,
    QUICK,
    SHORT,
    THOROUGH,
    Asked,
    measure,
    progress,
)
from npllama.bench.processes import Failure
from npllama.bench.report import table
from npllama.config import PRESETS
from npllama.files.whole import check_place, write_file

PART_HELP = {
    "attention": f"also time attention alone, at {ATTENTION} positions",
    "cells": "also time batches, long contexts, beams and start-up, at 110m",
    "serving": "also time 16 requests at once, at 110m",
    "decoding": "also time sampling and prompt lookup, and count the draft's guesses",
    "roofline": "also hold the roofline's prediction to what 110m and 1.1b do here",
}


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


def add_commands(commands) -> None:
    """Add ``bench``."""
    command = commands.add_parser(
        "bench",
        help="how fast npllama is here",
        description="How fast npllama is here, beside what its BLAS allows and its "
        "peers torch and llama.cpp, where they are installed. Takes minutes, "
        "and 4.4 GB for the largest size; --quick --sizes 15m takes seconds.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("--sizes", nargs="*", type=size, default=list(SHORT.values()), metavar="SIZE",
           help="15m, 110m, 1.1b or names of presets; none: only what others need "
                "(default: the three)")
    option("--peers", nargs="*", choices=[*PEERS, "jax"], metavar="PEER",
           help="torch, llama.cpp, jax (attention only); by default those installed")
    option("--python", action="append", type=other_python, default=[],
           metavar="PEER=PATH", help="the Python that a peer is installed in")
    option("--threads", type=threads, default=processors(), metavar="N",
           help="threads of every program; by default all processors")
    for part in PARTS:
        option(f"--{part}", action="store_true", help=PART_HELP[part])
    option("--quick", action="store_true", help="one short round instead of five")
    option("--json", metavar="FILE", help="write all figures to FILE")
    # fmt: on


def run_bench(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    if options.json:
        check_place(options.json)
    asked = Asked(
        options.sizes,
        options.peers,
        dict(options.python),
        options.threads,
        QUICK if options.quick else THOROUGH,
        frozenset(part for part in PARTS if getattr(options, part)),
    )
    try:
        results = measure(asked)
    except Failure as error:
        raise ValueError(str(error)) from None
    finally:
        progress("")
    print(table(results))
    if options.json:
        write_file(options.json, json.dumps(results, indent=1) + "\n")


RUN = {"bench": run_bench}
