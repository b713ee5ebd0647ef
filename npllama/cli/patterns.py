"""``npllama patterns``: what sparse patterns cost, and how far they reach."""

from __future__ import annotations

import argparse
import json
from typing import NamedTuple

from npllama.cli.options import UsageError
from npllama.contexts.sparse import (
    Pattern,
    mask,
    merged_fixed_pairs,
    merged_strided_pairs,
    own_block,
    own_block_pairs,
    reach,
    strided,
    strided_pairs,
    summaries,
    summary_pairs,
    union,
    visited,
    window,
    window_pairs,
)
from npllama.cost.tables import markdown

MOST = 4096


class Row(NamedTuple):
    """One pattern of a head."""

    pattern: str
    pairs: int  # counted, one by one
    formula: int  # the same in closed form
    visited: int  # computed by blocks of queries


def add_commands(commands) -> None:
    """Add ``patterns``."""
    command = commands.add_parser(
        "patterns",
        help="what sparse patterns cost, and how far they reach",
        description="What sparse patterns cost, and how far they reach. Pairs of a "
        "query and a key, and which share of all pairs two layers connect, by order.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("--positions", type=int, default=1024, metavar="N",
           help="of the text, a multiple of the block (default: 1024)")
    option("--block", type=int, default=32, metavar="L",
           help="positions of a block, and of a stride (default: 32)")
    option("--cells", type=int, default=8, metavar="C",
           help="last positions of a block that sum it up (default: 8)")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def run_patterns(options: argparse.Namespace) -> None:
    """Print both tables."""
    n, size, cells = options.positions, options.block, options.cells
    if not (size >= 1 and size <= n <= MOST and n % size == 0):
        raise UsageError(
            f"--positions is {n}: a multiple of the block of {size}, at most {MOST}"
        )
    if not 1 <= cells <= size:
        raise UsageError(f"--cells is {cells}; it must be 1 to {size}")
    rows, ways = costs(n, size, cells), reaches(n, size, cells)
    if options.json:
        print(json.dumps({"pairs": [r._asdict() for r in rows], "reach": ways}))
        return
    full = n * (n + 1) // 2
    head = ["pattern of a head", "pairs", "of all", "closed form", "visited"]
    cells_of = [
        [r.pattern, f"{r.pairs:,}", f"{r.pairs / full:.1%}", f"{r.formula:,}",
         f"{r.visited:,}"] for r in rows
    ]  # fmt: skip
    print(f"{n} positions, blocks of {size}, {cells} cells each\n")
    print(markdown([head, *cells_of]))
    print("\nwhat two layers connect, beside the residual stream\n")
    print(
        markdown(
            [["first, then second", "of all"], *([k, f"{x:.1%}"] for k, x in ways)]
        )
    )


def costs(n: int, size: int, cells: int) -> list[Row]:
    """Every pattern of the Sparse Transformer, and their unions."""
    found: list[tuple[str, Pattern, int]] = [
        ("window, as the paper", window(size + 1), window_pairs(size + 1, 0, n)),
        ("window, as its code", window(size), window_pairs(size, 0, n)),
        ("strided", strided(size), strided_pairs(size, n)),
        (
            "window and strided",
            union(window(size + 1), strided(size)),
            merged_strided_pairs(size + 1, size, n),
        ),
        ("own block", own_block(size), own_block_pairs(size, n)),
        ("summaries", summaries(size, cells), summary_pairs(size, cells, n)),
        (
            "own block and summaries",
            union(own_block(size), summaries(size, cells)),
            merged_fixed_pairs(size, cells, n),
        ),
    ]
    return [
        Row(name, int(mask(pattern, n).sum()), formula, visited(pattern, 0, n))
        for name, pattern, formula in found
    ]


def reaches(n: int, size: int, cells: int) -> list[tuple[str, float]]:
    """What two layers connect, in either order."""
    near = ("window", window(size + 1)), ("strided", strided(size))
    fixed = ("own block", own_block(size)), ("summaries", summaries(size, cells))
    pairs = [near, near[::-1], fixed, fixed[::-1]]
    return [
        (f"{one}, then {other}", reach([first, second], n))
        for (one, first), (other, second) in pairs
    ]


RUN = {"patterns": run_patterns}
