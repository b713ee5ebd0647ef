"""``npllama serve-sim``: what pages and schedules save, simulated."""

from __future__ import annotations

import argparse
import json
from functools import partial

from npllama.cli.cost import read_config
from npllama.cli.options import UsageError
from npllama.cli.plots import drawn
from npllama.cost.hardware import HARDWARE
from npllama.cost.roofline import Dtypes, most_tokens
from npllama.cost.tables import Rows, markdown
from npllama.serving.plot import draw_serving
from npllama.serving.tables import TABLES, Scene, compared, waiting
from npllama.serving.trace import LENGTHS

MOST_RATE, MOST_REQUESTS = 10_000, 2000  # more take minutes


def add_commands(commands) -> None:
    """Add ``serve-sim``."""
    command = commands.add_parser(
        "serve-sim",
        help="what serving many at once saves",
        description="What pages, sharing and scheduling save, simulated beside the "
        "published figures: the tables of serving/README.md.",
    )
    option = command.add_argument
    # fmt: off
    option("--table", choices=TABLES, help="print this one (default: all)")
    option("--json", action="store_true", help="print rows as JSON")
    option("--plot", metavar="FILE",
           help="draw waste, sharing and latencies: .png, .svg or .pdf")
    option("--config", metavar="MODEL",
           help="latencies of this model: a preset, a config.json, or an .npz; in fp16")
    option("--hardware", choices=HARDWARE, default="a100-80g",
           help="with --config: the machine (default: a100-80g)")
    option("--lengths", choices=LENGTHS, default="sharegpt",
           help="with --config: how long prompts and texts are (default: sharegpt)")
    option("--rate", type=float, default=3.0, metavar="X",
           help="with --config: requests per second (default: 3)")
    option("--requests", type=int, default=80, metavar="N",
           help="with --config: how many come (default: 80)")
    # fmt: on


def run_serve_sim(options: argparse.Namespace) -> None:
    """Print the tables, and draw them if asked."""
    if options.config is not None:
        rows = own_scene(options)
        print(json.dumps(rows) if options.json else markdown(rows))
        return
    if options.plot is not None:
        drawn(options.plot, partial(draw_serving, options.plot))
    names = [options.table] if options.table else list(TABLES)
    if options.json:
        tables = {name: TABLES[name]() for name in names}
        print(json.dumps(tables[options.table] if options.table else tables))
        return
    for name in names:
        title = "" if options.table else f"{name}: {TABLES[name].__doc__}\n\n"
        print(title + markdown(TABLES[name]()) + ("" if options.table else "\n"))


def own_scene(options: argparse.Namespace) -> Rows:
    """The latencies of a model, a machine and traffic of the user's choice."""
    if options.table or options.plot:
        raise UsageError("--table and --plot show the published setting, no --config")
    if not 0 < options.rate <= MOST_RATE:
        raise UsageError(f"--rate is {options.rate}; above 0, to {MOST_RATE:,}")
    if not 1 <= options.requests <= MOST_REQUESTS:
        raise UsageError(f"--requests is {options.requests}; 1 to {MOST_REQUESTS:,}")
    config, machine = read_config(options.config), HARDWARE[options.hardware]
    places = most_tokens(config, machine, Dtypes()) or 0
    more = options.lengths, options.rate, options.requests, places
    scene = Scene(config, machine, *more)
    try:
        return waiting(scene, compared(scene))
    except ValueError as error:
        raise UsageError(f"{options.config} on {options.hardware}: {error}") from None


RUN = {"serve-sim": run_serve_sim}
