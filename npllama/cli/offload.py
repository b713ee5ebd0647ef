"""``--memory``: a model larger than memory; and ``npllama offload``, what it takes."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from npllama.cli.adapters import with_adapter
from npllama.cli.options import MODEL, UsageError, helpers, in_context, titled
from npllama.cli.timing import Stopwatch, peak_memory_mb
from npllama.contexts.ahead import Ahead, guessing_ahead
from npllama.contexts.offload import (
    Costs,
    Fit,
    Running,
    at_once,
    best_guesses,
    draft_table,
    fit,
    in_turn,
    lru_table,
    resident_bytes,
    working_bytes,
)
from npllama.contexts.reading import Contents, contents
from npllama.contexts.storage import Streamed, model_on_storage, read_per_pass
from npllama.cost import cache_bytes, parameters
from npllama.cost.roofline import offload_seconds
from npllama.cost.tables import markdown
from npllama.decoding.common import PREFILL_CHUNK
from npllama.files.checkpoint import load
from npllama.generation.task import Helpers
from npllama.weights import Model

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def bytes_of(text: str) -> int:
    """Read a number of bytes, such as 3GB, 512MiB or 0.5 GB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.I)
    if not match or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r:.40}: bytes, such as 3GB or 512MiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


bytes_of.__name__ = "number of bytes"


#  ---- a model within a memory --------------------------------------------------


def add_memory_option(command: argparse.ArgumentParser) -> None:
    """How much memory the whole process may take."""
    titled(command, MODEL).add_argument(
        "--memory",
        type=bytes_of,
        metavar="BYTES",
        help="stay within this memory, such as 3GB: layers that do not fit are read "
        "from the file for every token",
    )


class Held(NamedTuple):
    """A model on storage, and how it came to fit."""

    found: Contents
    fit: Fit
    layers: Streamed
    opened: int  # bytes that were read before the first pass
    cache: int  # bytes


def check_memory_options(options: argparse.Namespace) -> None:
    """Raise UsageError if an option does not go with --memory."""
    if options.memory is None:
        return
    for name in ("save_cache", "load_cache", "assistant_early_exit", "prompts"):
        if getattr(options, name, None) is not None:
            raise UsageError(f"--memory: not with --{name.replace('_', '-')}")


def helper_bytes(name: str | None, run: Running) -> int:
    """Bytes of a helping model that is loaded, with its cache."""
    if name is None:
        return 0
    config = contents(name).model.config
    return 4 * sum(parameters(config).values()) + working_bytes(config, run)


@contextmanager
def weights_for(
    options: argparse.Namespace, running: Callable[[Model], Running]
) -> Iterator[tuple[Model, Held | None]]:
    """The model that was asked for: loaded, or on storage and within ``--memory``.

    Parameters
    ----------
    options : argparse.Namespace
    running : function
        From the model, still without weights, to what will run on it.

    Raises
    ------
    ValueError
        If it cannot fit.
    """
    if options.memory is None:
        model = in_context(load(options.weights), options.context)
        yield with_adapter(model, options), None
        return
    found = contents(options.weights)
    found = found._replace(model=in_context(found.model, options.context))
    run, config = running(found.model), found.model.config
    taken = resident_bytes() + working_bytes(config, run)
    for helper in ("assistant", "amateur"):
        taken += helper_bytes(getattr(options, helper, None), run)
    try:
        chosen = fit(found, options.memory - taken)
    except ValueError as error:
        raise ValueError(f"--memory {options.memory / 1e9:g} GB: {error}") from None
    with Streamed(options.weights, chosen.pinned, chosen.buffers) as layers:
        model = model_on_storage(layers)._replace(config=config)
        cache = cache_bytes(config, run.positions, 4)
        yield model, Held(found, chosen, layers, layers.bytes_read, int(cache))


@contextmanager
def helpers_for(
    options: argparse.Namespace, held: Held | None
) -> Iterator[tuple[Helpers, list[Ahead]]]:
    """The helping models; an assistant guesses ahead while a target is read."""
    if held is None or options.assistant is None:
        yield helpers(options), []
        return
    with guessing_ahead() as drafts:
        yield helpers(options)._replace(guess=drafts), drafts.made


def running_of(prompt: int, new: int, rows: int = 1, wanted: int = 1) -> Running:
    """What runs for a text: its whole cache, and the pieces of its prompt."""
    longest = min(max(prompt, 64), PREFILL_CHUNK)
    return Running(prompt + new, longest, wanted, rows)


def tell_storage(
    options: argparse.Namespace, held: Held | None, watch: Stopwatch | None
) -> None:
    """Say on standard error what was read, and beside the bound how long it took."""
    if held is None or not held.layers.times:
        return
    found, chosen, layers, opened, cache = held
    L, n = len(layers), len([i for i in chosen.pinned if i < len(layers)])
    head = " and the head" if L in chosen.pinned else ""
    each, times = read_per_pass(found, chosen.pinned, 1), layers.times
    parts = [f"{n} of {L} layers{head} pinned, {chosen.buffers} buffers"]
    parts += [f"{each / 1e9:.3f} GB read per token in {len(times)} passes"]
    if rate := bandwidth(held):
        size = model_bytes(found)
        bound = offload_seconds(size + cache, options.memory, rate)
        parts.append(f"{rate / 1e9:.2f} GB/s")
        parts.append(
            f"({size / 1e9:.3f} + {cache / 1e9:.3f} - {options.memory / 1e9:.3f}) GB "
            f"take at least {bound:.3f} s, a pass took {statistics.median(times):.3f} s"
        )
    if watch is not None and watch.decode and watch.new_tokens > watch.first:
        took = watch.decode / (watch.new_tokens - watch.first)
        parts.append(f"{took:.3f} s per token")
    if (peak := peak_memory_mb()) is not None:
        parts.append(
            f"peak memory {peak * 2**20 / 1e6:,.0f} of {options.memory / 1e6:,.0f} MB"
        )
    print(f"[storage: {'; '.join(parts)}]", file=sys.stderr)


def model_bytes(found: Contents) -> int:
    """Bytes of all weights in the file."""
    size = sum(map(found.bytes_of, range(len(found.parts))))
    tied = found.model.config.tie_word_embeddings
    return size + (0 if tied else found.embed.size * found.itemsize)


def bandwidth(held: Held) -> float | None:
    """Bytes per second of the file, from whatever the system keeps of it."""
    source = held.layers.source
    return source.bytes_read / source.seconds if source.seconds else None


def tell_drafts(held: Held | None, made: list[Ahead], guesses: int) -> None:
    """Say what became of the guesses, and what was to be expected of them."""
    if held is None or not made or not made[0].guesses:
        return
    ahead = made[0]
    r, a = ahead.rounds, ahead.rounds.acceptance
    costs = Costs(statistics.median(held.layers.times), ahead.seconds / ahead.guesses)
    text = (
        f"{r.rounds} rounds of up to {guesses} guesses, {r.kept} of {r.drafted} kept, "
        f"{r.ready} rounds ready at once; {costs.draft:.3f} s per guess"
    )
    if r.kept + r.failed:
        best = best_guesses(at_once, costs, a)
        text += (
            f"; with {a:.2f} of those looked at kept, predicted "
            f"{at_once(costs, a, guesses):.3f} s per token, in turn "
            f"{in_turn(costs, a, guesses):.3f}; best {best} guesses, "
            f"{at_once(costs, a, best):.3f} s"
        )
    print(f"[draft: {text}]", file=sys.stderr)


#  ---- npllama offload ----------------------------------------------------------

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)


def add_commands(commands) -> None:
    """Add ``offload``."""
    command = commands.add_parser(
        "offload",
        help="what a model larger than memory takes",
        description="Seconds per token of a model on storage: layers pinned or not, "
        "and with a draft in memory.  Nothing is run.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("--target", type=bytes_of, default=bytes_of("7.7GB"), metavar="BYTES",
           help="of the model and its cache (default: 7.7GB)")
    option("--layers", type=int, default=32, metavar="L",
           help="of the model (default: 32)")
    option("--draft", type=bytes_of, default=bytes_of("3.0GB"), metavar="BYTES",
           help="of the draft, in memory (default: 3.0GB)")
    option("--memory", type=bytes_of, default=bytes_of("3.5GB"), metavar="BYTES",
           help="(default: 3.5GB)")
    option("--storage", type=bytes_of, default=bytes_of("4GB"), metavar="BYTES",
           help="per second (default: 4GB)")
    option("--bandwidth", type=bytes_of, default=bytes_of("50GB"), metavar="BYTES",
           help="of the memory, per second; a guess reads the draft once "
           "(default: 50GB)")
    option("--acceptance", type=float, nargs="+", default=ACCEPTANCES, metavar="P",
           help="probabilities that a guess is kept (default: 0.5 ... 0.9)")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def run_offload(options: argparse.Namespace) -> None:
    """Print both tables."""
    for name in ("target", "memory", "storage", "bandwidth"):
        if not getattr(options, name):
            raise UsageError(f"--{name} must be above 0")
    if not 1 <= options.layers <= 10**4:
        raise UsageError(f"--layers is {options.layers}; it must be 1 to 10,000")
    if not all(0 <= a <= 1 for a in options.acceptance):
        raise UsageError("--acceptance: probabilities lie in [0, 1]")
    if options.draft > options.memory:
        raise UsageError("--draft does not fit into --memory")
    target, memory, storage = options.target, options.memory, options.storage
    alone = offload_seconds(target, memory, storage)
    seconds = options.draft / options.bandwidth
    order = lru_table(options.layers, target / options.layers, storage)
    drafts = draft_table(
        target, memory, storage, options.draft, seconds, options.acceptance
    )
    scan = offload_seconds(target, memory - options.draft, storage)
    if options.json:
        told: dict[str, Any] = {"seconds_per_token": alone, "scan_seconds": scan}
        told |= {"guess_seconds": seconds, "order": order, "draft": drafts}
        print(json.dumps(told))
        return
    print(
        f"{target / 1e9:g} GB in {memory / 1e9:g} GB, the rest at "
        f"{storage / 1e9:g} GB/s: {alone:.2f} s per token at least.\n"
    )
    print(markdown(order), end="\n\n")
    print(
        f"With a draft of {options.draft / 1e9:g} GB in memory a scan takes "
        f"{scan:.2f} s, a guess {seconds:.3f} s:\n"
    )
    print(markdown(drafts))


RUN = {"offload": run_offload}
