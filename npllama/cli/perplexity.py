"""``npllama perplexity``: how much a text surprises a model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from npllama.cli.golden import executor, progress
from npllama.cli.kv_options import add_kv_options, rules_of
from npllama.cli.offload import (
    add_memory_option,
    running_of,
    tell_storage,
    weights_for,
)
from npllama.cli.options import UsageError, add_context_option
from npllama.compression.kv_rounding import Rules
from npllama.compression.kv_texts import surprise_rounded
from npllama.contexts.offload import Running
from npllama.contexts.perplexity import (
    Surprise,
    Window,
    gathered,
    halves,
    strided,
    surprise,
)
from npllama.contexts.ring import surprise_in_ring
from npllama.contexts.streaming import Stream
from npllama.decoding import context_length
from npllama.decoding.common import PREFILL_CHUNK
from npllama.files.checkpoint import load, locate
from npllama.generation.task import encode_prompt
from npllama.weights import Model

LLAMA_CPP_LENGTH = 512  # the default of its tool


def add_commands(commands) -> None:
    """Add ``perplexity``."""
    command = commands.add_parser(
        "perplexity",
        help="how much a text surprises a model",
        description="How much a text surprises a model, by windows of its context.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("file", metavar="FILE", help="a text in UTF-8; '-' reads stdin")
    option("--weights", default="stories", metavar="MODEL",
           help="an .npz, or the name of a shipped model (default: stories)")
    option("--convention", choices=("strided", "llama.cpp"), default="strided",
           help="overlapping windows, each of which counts what is new in it; or "
           "windows side by side whose second halves count (default: strided)")
    option("--length", type=int, metavar="N",
           help="tokens of a window (default: the model's context; llama.cpp: "
           f"{LLAMA_CPP_LENGTH})")
    option("--stride", type=int, metavar="N",
           help="tokens from one strided window to the next (default: half a window)")
    option("--stream-window", type=int, metavar="W",
           help="read the text as a stream in a cache of W positions, and count the "
           "tokens after the first W")
    option("--sinks", type=int, metavar="C",
           help="first positions that a stream keeps (default: 4)")
    add_kv_options(command)
    add_context_option(command)
    add_memory_option(command)
    option("--json", action="store_true",
           help="print one JSON object, with the surprise at every token in nats")
    option("--workers", type=int, default=1, metavar="N",
           help="processes to use (default: 1)")
    option("--dask", metavar="ADDRESS", help="the scheduler of a Dask cluster")
    # fmt: on


def run_perplexity(options: argparse.Namespace) -> None:
    """Read a text, run its windows, print the number."""
    if not 1 <= options.workers <= 1024:
        raise UsageError("--workers must be from 1 to 1024")
    if options.stride is not None and options.convention != "strided":
        raise UsageError(f"--stride: {options.convention}'s windows stand side by side")
    if options.sinks is not None and options.stream_window is None:
        raise UsageError("--sinks is for --stream-window")
    if options.memory and (options.workers > 1 or options.dask):
        raise UsageError("--memory is that of one process: no --workers, no --dask")
    if rules_of(options) is not None:
        if options.workers > 1 or options.dask or options.stream_window is not None:
            raise UsageError("--cache-bits: no --workers, --dask, --stream-window")
    text = read_text(options.file)

    def running(model: Model) -> Running:
        n = options.stream_window or options.length or context_length(model.config)
        return running_of(n, 0, wanted=min(n, PREFILL_CHUNK))

    with weights_for(options, running) as (model, held):
        print_perplexity(options, model, encode_prompt(model, text))
        tell_storage(options, held, None)


def print_perplexity(
    options: argparse.Namespace, model: Model, tokens: Sequence[int]
) -> None:
    """Run the windows of a text, or read it as a stream, and print the number."""
    if options.stream_window is not None:
        run_stream(options, model, tokens)
        return
    windows, bos = windows_of(options, model, len(tokens))
    found = run_windows(options, model, tokens, windows, bos)
    if not options.json:
        print(
            f"perplexity {found.perplexity:.4f} +/- {found.error:.4f} "
            f"over {len(found.nats)} of {len(tokens)} tokens "
            f"({options.convention}; windows of {windows[0].end}, {len(windows)} in all)"
        )
        return
    shown = [window._asdict() for window in windows]
    how = {"convention": options.convention, "windows": shown}
    print(json.dumps(as_json(found, tokens, how)))


def run_stream(
    options: argparse.Namespace, model: Model, tokens: Sequence[int]
) -> None:
    """Read the text as a stream, a piece at a time, and print the number."""
    W, sinks = options.stream_window, 4 if options.sinks is None else options.sinks
    others = "convention length stride dask".split()
    defaults = {"convention": "strided"}
    if any(getattr(options, name) != defaults.get(name) for name in others):
        raise UsageError("--stream-window is a way of its own: no windows, no --dask")
    if len(tokens) <= W:
        raise UsageError(f"the text has {len(tokens)} tokens, none after {W}")
    nats = surprise_in_ring(model, tokens, Stream(W, sinks))[W - 1 :]
    found = Surprise(np.arange(W, len(tokens)), nats)
    if options.json:
        stream = {"window": W, "sinks": sinks}
        print(json.dumps(as_json(found, tokens, {"stream": stream})))
        return
    print(
        f"perplexity {found.perplexity:.4f} +/- {found.error:.4f} "
        f"over the last {len(nats)} of {len(tokens)} tokens "
        f"(a stream of {W} positions, {sinks} of them sinks)"
    )


def as_json(found: Surprise, tokens: Sequence[int], how: dict[str, Any]) -> dict:
    """The number, how it was found, and the surprise at every token that counts."""
    entries = zip(found.places.tolist(), found.nats.tolist())
    return {
        "perplexity": found.perplexity,
        "error": None if len(found.nats) < 2 else found.error,
        "tokens": len(tokens),
        **how,
        "counted": [{"place": p, "token": tokens[p], "nats": x} for p, x in entries],
    }


def read_text(name: str) -> str:
    """A whole file, or standard input."""
    try:
        if name == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return Path(name).read_text(encoding="utf-8")
    except UnicodeError as error:
        raise UsageError(f"{name} is not UTF-8 ({error})") from None


def windows_of(
    options: argparse.Namespace, model: Model, n: int
) -> tuple[list[Window], int | None]:
    """The windows that were asked for, and the token that each shall begin with."""
    context = context_length(model.config)
    try:
        if options.convention == "llama.cpp":
            windows = halves(
                n, LLAMA_CPP_LENGTH if options.length is None else options.length
            )
        else:
            length = context if options.length is None else options.length
            stride = max(1, length // 2) if options.stride is None else options.stride
            windows = strided(n, length, stride)
    except ValueError as error:
        raise UsageError(str(error)) from None
    longest = max(window.end - window.begin for window in windows)
    if longest > context:
        print(
            f"[windows of {longest} tokens go beyond the model's context of {context}]",
            file=sys.stderr,
        )
    tokenizer = model.tokenizer
    begins = options.convention == "llama.cpp" and tokenizer.front[:1] == (
        tokenizer.bos_id,
    )
    return windows, tokenizer.bos_id if begins else None


def run_windows(
    options: argparse.Namespace,
    model: Model,
    tokens: Sequence[int],
    windows: Sequence[Window],
    bos: int | None,
) -> Surprise:
    """Run all windows: here, in processes, or on a cluster that sees the weights."""
    with progress(len(windows), "window") as tell:
        if options.workers == 1 and options.dask is None:
            each = []
            rules = rules_of(options)
            for window in windows:
                each.append(of_cache(model, tokens, window, bos, rules))
                tell(len(each), len(windows))
            return gathered(windows, each)
        path = locate(options.weights).absolute()
        stamp = path.stat().st_size, path.stat().st_mtime_ns
        jobs = [
            (str(path), stamp, list(tokens[w.begin : w.end]), w, bos) for w in windows
        ]
        with executor(options) as pool:
            each = []
            for nats in pool.map(of_window, jobs):
                each.append(nats)
                tell(len(each), len(windows))
        return gathered(windows, each)


def of_cache(
    model: Model,
    tokens: Sequence[int],
    window: Window,
    bos: int | None,
    rules: Rules | None,
) -> np.ndarray:
    """Run one window; over a cache in fewer bits token by token, as text is written."""
    if rules is None:
        return surprise(model, tokens, window, bos)
    text = list(tokens[window.begin : window.end])
    text[0] = text[0] if bos is None else bos
    return surprise_rounded(model, text, rules)[window.first - window.begin - 1 :]


Job = tuple[str, tuple[int, int], list[int], Window, "int | None"]


def of_window(job: Job) -> np.ndarray:
    """Run one window in another process."""
    path, stamp, tokens, (begin, first, end), bos = job
    window = Window(0, first - begin, end - begin)
    return surprise(_model(path, stamp), tokens, window, bos)


@lru_cache(maxsize=1)
def _model(path: str, stamp: tuple[int, int]) -> Model:
    """The weights of a file, which may have changed since the last time."""
    return load(path)


RUN = {"perplexity": run_perplexity}
