"""``npllama tiles``: one text by every exact way to attend, and what each moves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npllama.attention import blocked, dense
from npllama.cache import KVCache, new_cache
from npllama.cli.options import UsageError
from npllama.config import Config
from npllama.contexts.prefixes import cascade
from npllama.contexts.splits import split_keys
from npllama.contexts.states import Attend
from npllama.contexts.tiles import SlowMemory, flash_1, flash_2
from npllama.cost.counter import FlopCounter
from npllama.cost.tables import markdown
from npllama.cost.traffic import standard_forward, total
from npllama.decoding.common import context_length
from npllama.files.checkpoint import load
from npllama.generation.task import encode_prompt
from npllama.model import forward
from npllama.weights import Model

MOST_ROWS = 1024
HEAD = (
    "step",
    "attention",
    "products",
    "MFLOPs",
    "keys read",
    "MB moved",
    "differs by",
)


class Outcome(NamedTuple):
    """What one way to attend did in one step."""

    step: str
    way: str
    products: int  # of attention
    flops: int
    keys: int  # elements of keys and values read by all products
    moved: int | None  # bytes to and from a slow memory, in half precision
    difference: float  # the largest, of all logits from those of `blocked`


def add_commands(commands) -> None:
    """Add ``tiles``."""
    command = commands.add_parser(
        "tiles",
        help="one text by every exact way to attend, and what each moves",
        description="Run a text by every exact way to attend: the logits agree, and "
        "what is multiplied, read and moved is counted.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("file", metavar="FILE", help="a text in UTF-8; '-' reads stdin")
    option("--weights", default="stories", metavar="MODEL",
           help="an .npz, or the name of a shipped model (default: stories)")
    option("--on-chip", type=float, default=192, metavar="KIB",
           help="of the imagined fast memory of a head, in half precision "
                "(default: 192, an A100's)")
    option("--tile", type=int, default=128, metavar="N",
           help="keys and queries of a tile of FlashAttention 2, and keys of a split "
                "(default: 128)")
    option("--rows", type=int, default=8, metavar="R",
           help="texts that go on from this one, a token each (default: 8)")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def run_tiles(options: argparse.Namespace) -> None:
    """Run the prompt, then a token of several texts that share it, by every way."""
    if not 1 <= options.rows <= MOST_ROWS:
        raise UsageError(f"--rows is {options.rows}; it must be 1 to {MOST_ROWS}")
    if options.tile < 1:
        raise UsageError(f"--tile is {options.tile}; it must be 1 or more")
    model = load(options.weights)
    D = model.config.head_dim
    least = 4 * D * 2 / 1024  # four vectors
    if not options.on_chip >= least:
        raise UsageError(
            f"--on-chip is {options.on_chip:g}; {least:g} or more is needed"
        )
    on_chip = int(min(options.on_chip, 1e9) * 1024) // 2  # elements
    tokens = encode_prompt(model, read_text(options.file))
    room = context_length(model.config) - 1
    if not 1 <= len(tokens) <= room:
        raise UsageError(f"the text has {len(tokens)} tokens; it must be 1 to {room}")
    outcomes = prompt_outcomes(model, tokens, on_chip, options.tile)
    outcomes += step_outcomes(model, tokens, options.rows, options.tile)
    if options.json:
        told = {"tokens": len(tokens), "rows": options.rows}
        print(json.dumps(told | {"ways": [found._asdict() for found in outcomes]}))
        return
    print(
        f"{len(tokens)} tokens, then one of each of {options.rows} texts after them\n"
    )
    print(markdown([HEAD, *map(as_row, outcomes)]))


def read_text(name: str) -> str:
    """A whole file, or standard input."""
    try:
        if name == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return Path(name).read_text(encoding="utf-8")
    except UnicodeError as error:
        raise UsageError(f"{name} is not UTF-8 ({error})") from None


def as_row(found: Outcome) -> tuple[str, ...]:
    """An outcome as a line of the table."""
    moved = "" if found.moved is None else f"{found.moved / 1e6:.2f}"
    return (
        found.step,
        found.way,
        f"{found.products:,}",
        f"{found.flops / 1e6:,.1f}",
        f"{found.keys:,}",
        moved,
        f"{found.difference:.0e}",
    )


def prompt_outcomes(
    model: Model, tokens: list[int], on_chip: int, tile: int
) -> list[Outcome]:
    """The prompt at once, by every way."""
    config, T = model.config, len(tokens)
    heads = config.num_attention_heads * config.num_hidden_layers
    block = np.array([tokens])  # (1, T)

    def run(attend: Attend) -> np.ndarray:
        cache = new_cache(config, 1, T, model.embed.dtype.name)
        return forward(model, block, cache, attend=attend)

    first, second = SlowMemory(), SlowMemory()
    scores = heads * total(standard_forward(T)).bytes(config.head_dim)
    ways: dict[str, tuple[Attend, Callable[[], int | None]]] = {
        "blocked": (blocked, lambda: None),
        "standard": (dense, lambda: scores),
        "FlashAttention 1": (flash_1(on_chip, first), lambda: moved_by(config, first)),
        "FlashAttention 2": (
            flash_2(tile, tile, second),
            lambda: moved_by(config, second),
        ),
        f"splits of {tile}": (split_keys(tile), lambda: None),
    }
    expected = run(blocked)
    return [
        outcome("prompt", name, partial(run, attend), expected, moved)
        for name, (attend, moved) in ways.items()
    ]


def step_outcomes(
    model: Model, tokens: list[int], rows: int, tile: int
) -> list[Outcome]:
    """A token of each of several texts that share the prompt, by every way."""
    S, config = len(tokens), model.config
    one = new_cache(config, 1, S, model.embed.dtype.name)
    logits = forward(model, np.array([tokens]), one, last=True)[0, 0]  # (V,)
    # The likeliest next tokens, one for each text.
    next_ones = np.resize(np.argsort(-logits)[:rows], (rows, 1))  # (R, 1)
    room = ((0, 0), (0, 0), (0, 0), (0, 1), (0, 0))
    k, v = (np.pad(x.repeat(rows, axis=1), room) for x in one[:2])  # (L, R, K, N, D)

    def run(attend: Attend) -> np.ndarray:
        cache = KVCache(k, v, np.full(rows, S))
        return forward(model, next_ones, cache, attend=attend)

    ways: dict[str, Attend] = {
        "blocked": blocked,
        f"splits of {tile}": split_keys(tile),
        "cascade": cascade(S),
    }
    expected, none = run(blocked), lambda: None
    return [
        outcome("step", name, partial(run, attend), expected, none)
        for name, attend in ways.items()
    ]


def outcome(
    step: str,
    way: str,
    run: Callable[[], np.ndarray],
    expected: np.ndarray,
    moved: Callable[[], int | None],
) -> Outcome:
    """Run one way to attend, and count it."""
    with FlopCounter() as count:
        found = run()
    names = count.by("name")
    both = names["scores"] + names["values"]
    difference = float(np.abs(found - expected).max())
    return Outcome(step, way, both.calls, both.flops, both.kept, moved(), difference)


def moved_by(config: Config, slow: SlowMemory) -> int:
    """Bytes that all heads moved, in half precision."""
    return config.num_attention_heads * slow.traffic.bytes(config.head_dim)


RUN = {"tiles": run_tiles}
