"""``npllama bits``: one model under many settings, in a table and a picture."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from npllama.cli.options import UsageError
from npllama.cli.plots import check_picture, drawn
from npllama.cli.quantize import LONGEST, refuse_packed, texts_of
from npllama.compression.table import (
    HEAD,
    SETTINGS,
    Row,
    cells,
    draw,
    plan_of,
    rows,
)
from npllama.files.checkpoint import locate
from npllama.golden.streamed import StreamedModel

WIDTHS = (18, 6, 9, 10, 11, 10, 9, 9)


def add_commands(commands) -> None:
    """Add ``bits``."""
    command = commands.add_parser(
        "bits",
        help="what fewer bits cost and save, by method and group",
        description="Round a model by many settings, and tell of each the divergence "
        "from the model in floats, perplexity, agreement, bytes and speed.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("model", metavar="MODEL", help="an .npz, or the name of a shipped model")
    option("--calibrate", metavar="FILE", required=True,
           help="as of npllama quantize: its last rows are what all are judged by")
    option("--settings", default=" ".join(SETTINGS), metavar="WORDS",
           help="method, bits, g and group, and -act, -asym, -nf4, -mse, -static or "
           f"-float, with spaces between (default: {' '.join(SETTINGS)})")
    option("--nsamples", type=int, default=128, metavar="N",
           help="rows of text to fit to, at most (default: 128)")
    option("--model-seqlen", type=int, metavar="N",
           help=f"tokens of a row (default: the context, {LONGEST} at most)")
    option("--plot", metavar="FILE", type=Path, help="draw it: .png, .svg or .pdf")
    option("--json", action="store_true", help="print a JSON object for each setting")
    # fmt: on


def run_bits(options: argparse.Namespace) -> None:
    """Print a row for the model in floats, and one for each setting."""
    settings = options.settings.split()
    if options.nsamples < 1:
        raise UsageError(f"--nsamples {options.nsamples}: 1 or more")
    try:
        for setting in settings:
            plan_of(setting)
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_picture(options.plot)
    path = locate(options.model)
    model = StreamedModel(path, "float32")
    refuse_packed(model, path)
    texts, held_out = texts_of(options, model)
    if not held_out:
        raise UsageError(f"{options.calibrate}: too short; two rows of text are needed")
    found = []
    if not options.json:
        line(HEAD)
    for row in rows(path, settings, texts, held_out):
        found.append(row)
        tell(row, options.json)
    if options.plot is not None:
        drawn(options.plot, partial(draw, options.plot, found, options.model))


def tell(row: Row, as_json: bool) -> None:
    """Print a row."""
    if as_json:
        print(json.dumps(row._asdict() | row.quality._asdict()), flush=True)
    else:
        line(cells(row))


def line(words: tuple[str, ...]) -> None:
    first, *rest = (f"{word:>{n}}" for word, n in zip(words, WIDTHS))
    print(words[0].ljust(len(first)), *rest, flush=True)


RUN = {"bits": run_bits}
