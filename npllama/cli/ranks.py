"""``npllama ranks``: are keys, values or attention of low rank, and what would it save."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial

from npllama.cli.options import UsageError
from npllama.cli.perplexity import read_text
from npllama.cli.plots import check_picture, drawn
from npllama.compression.factored_keys import WAYS, Loss, factored_losses
from npllama.compression.ranks import Ranks, Row, draw_spectra, study
from npllama.cost.tables import markdown
from npllama.decoding.common import context_length
from npllama.files.checkpoint import load
from npllama.generation.task import encode_prompt

LEAST = 8  # tokens


def add_commands(commands) -> None:
    """Add ``ranks``."""
    command = commands.add_parser(
        "ranks",
        help="are keys, values or attention of low rank?",
        description="Singular values of keys, values, scores and attention of every "
        "head on a text, random matrices beside; and what keys of r numbers lose.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("file", metavar="FILE", help="a text in UTF-8; '-' reads stdin")
    option("--weights", default="stories", metavar="MODEL",
           help="an .npz, or the name of a shipped model (default: stories)")
    option("--length", type=int, default=512, metavar="N",
           help=f"tokens of the text that are read, from {LEAST} on (default: 512)")
    option("--rank", type=int, action="append", metavar="R",
           help="numbers per key, may be given several times (default: a quarter, a "
           "half, three quarters and all of a head)")
    option("--plot", metavar="FILE", help="draw the spectra: .png, .svg or .pdf")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def run_ranks(options: argparse.Namespace) -> None:
    """Read a text, and print both tables."""
    if options.length < LEAST:
        raise UsageError(f"--length is {options.length}; {LEAST} or more are needed")
    check_picture(options.plot)
    model = load(options.weights)
    D = model.config.head_dim
    several = options.rank or [D // 4, D // 2, 3 * D // 4, D]
    for r in several:
        if not 1 <= r <= D:
            raise UsageError(f"--rank {r}: from 1 to the size of a head, {D}")
    tokens = encode_prompt(model, read_text(options.file))
    tokens = tokens[: min(options.length, context_length(model.config))]
    least = max(LEAST, 2 * max(several))  # a rank needs as many tokens to fit to
    if len(tokens) < least:
        raise UsageError(f"the text has {len(tokens)} tokens; {least} are needed")
    rows = study(model, tokens)
    losses = factored_losses(model, tokens, [(way, r) for r in several for way in WAYS])
    if options.json:
        print(json.dumps(as_json(rows, losses)))
    else:
        tell(rows, losses, len(tokens))
    if options.plot is not None:
        title = f"{options.weights}, {len(tokens)} tokens"
        drawn(options.plot, partial(draw_spectra, options.plot, rows, title))


def tell(rows: Sequence[Row], losses: Sequence[Loss], T: int) -> None:
    """Both tables."""
    head = ["matrix", "of", "r90", "r99", "effective", "stable"]
    head += [f"{name}, random" for name in head[2:]]
    print(markdown([head, *(cells(row) for row in rows)]))
    print(f"\nmeans over all heads, {T} tokens; random: of matrices made alike\n")
    head = ["r", "from", "numbers per key", "error, fitted", "unseen", "KL, nats"]
    head += ["same token", "perplexity"]
    print(markdown([head, *map(loss_cells, losses)]))
    before = losses[0].quality.before
    print(
        f"\nfitted to the first half, judged by the second, whose perplexity with "
        f"all of the keys is {before:.3f}"
    )


def cells(row: Row) -> list[str]:
    """One line of the first table."""
    return [row.name, str(row.size), *_four(row.heads), *_four(row.random)]


def _four(ranks: Ranks) -> list[str]:
    return [f"{number:.1f}" for number in ranks]


def loss_cells(loss: Loss) -> list[str]:
    """One line of the second table."""
    return [
        str(loss.r),
        loss.way,
        f"{loss.numbers:.1f}",
        f"{loss.fitted:.3f}",
        f"{loss.unseen:.3f}",
        f"{loss.quality.divergence:.2g}",
        f"{loss.quality.agreement:.1%}",
        f"{loss.quality.perplexity:.3f}",
    ]


def as_json(rows: Sequence[Row], losses: Sequence[Loss]) -> dict:
    """Both tables, and the spectra, as one object."""
    matrices = [
        row._asdict() | {"heads": row.heads._asdict(), "random": row.random._asdict()}
        for row in rows
    ]
    keys = [loss._asdict() | {"quality": loss.quality._asdict()} for loss in losses]
    return {"matrices": matrices, "factored keys": keys}


RUN = {"ranks": run_ranks}
