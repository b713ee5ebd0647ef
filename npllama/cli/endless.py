"""``npllama endless``: time and memory of a text that does not end."""

from __future__ import annotations

import argparse
import json
from functools import partial

from npllama.cli.golden import progress
from npllama.cli.options import UsageError
from npllama.cli.plots import check_picture, drawn
from npllama.cli.streaming import SINKS
from npllama.contexts.steady import ALL_KEPT, WAYS, Tick, draw_steady, slope, ticks
from npllama.contexts.steady import written as written_by
from npllama.contexts.streaming import Stream, check_stream
from npllama.cost.tables import markdown
from npllama.files.checkpoint import load
from npllama.weights import Model

FEW = 4000  # tokens of the text whose cache grows
ROWS = 10


def add_commands(commands) -> None:
    """Add ``endless``."""
    command = commands.add_parser(
        "endless",
        help="time and memory of a text that does not end",
        description="Time and memory of a text that does not end. It is written with "
        f"all kept (its first {FEW:,} tokens), with what is kept moved up, and in a "
        "ring.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("--weights", default="stories", metavar="MODEL",
           help="an .npz, or the name of a shipped model (default: stories)")
    option("--tokens", type=int, default=20000, metavar="N",
           help="of the text (default: 20000)")
    option("--stream-window", type=int, default=256, metavar="W",
           help="positions of the cache (default: 256)")
    option("--sinks", type=int, default=SINKS, metavar="C",
           help=f"first positions that stay (default: {SINKS})")
    option("--discard", type=int, metavar="D",
           help="positions forgotten at a time where they are moved up (default: a "
           "sixteenth of the window)")
    option("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def run_endless(options: argparse.Namespace) -> None:
    """Write the text by every way, print the table, draw the picture."""
    if options.tokens < 4 * ROWS:
        raise UsageError(f"--tokens is {options.tokens}; {4 * ROWS} or more are needed")
    check_picture(options.plot)
    model, W = load(options.weights), options.stream_window
    discard = max(1, W // 16) if options.discard is None else options.discard
    stream = Stream(W, options.sinks, discard)
    try:
        check_stream(model.config, stream)
    except ValueError as error:
        raise UsageError(f"--stream-window: {error}") from None
    found = {way: noted(model, stream, options.tokens, way) for way in WAYS}
    if options.json:
        told = stream._asdict() | {"tokens": options.tokens}
        ways = {way: [t._asdict() for t in some] for way, some in found.items()}
        print(json.dumps(told | {"ways": ways}))
    else:
        tell(found)
    if options.plot is not None:
        title = f"{options.weights}: a window of {W}"
        drawn(options.plot, partial(draw_steady, options.plot, found, title))


def noted(model: Model, stream: Stream, tokens: int, way: str) -> list[Tick]:
    """The ticks of one way, ten times as many as the table has rows."""
    every, found = max(1, tokens // (10 * ROWS)), []
    tokens = min(tokens, max(FEW, 4 * every)) if way == ALL_KEPT else tokens
    with progress(tokens // every, f"tick, {way}") as told:
        for tick in ticks(written_by(model, stream, tokens, way), every):
            found.append(tick)
            told(len(found), tokens // every)
    return found


def tell(found: dict[str, list[Tick]]) -> None:
    """A row for every tenth of the text, and how steep each way is."""
    head = ["tokens"]
    head += [f"{way}: {what}" for way in found for what in ("ms", "MB")]
    rows, longest = [head], max(found.values(), key=len)
    for i in range(len(longest) // ROWS - 1, len(longest), len(longest) // ROWS):
        cells = [f"{longest[i].tokens:,}"]
        for some in found.values():
            here = i < len(some)
            cells += [f"{1e3 * some[i].seconds:.2f}" if here else ""]
            cells += [f"{some[i].resident / 1e6:.0f}" if here else ""]
        rows.append(cells)
    print(markdown(rows))
    for way, some in found.items():
        grown = (some[-1].resident - some[len(some) // 10].resident) / 1e6
        print(
            f"{way}: a token takes {100 * slope(some):+.2f}% per 1,000 tokens, and "
            f"memory changed by {grown:+.1f} MB after the first tenth"
        )


RUN = {"endless": run_endless}
