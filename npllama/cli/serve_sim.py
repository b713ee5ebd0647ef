"""``npllama serve-sim``: what pages and schedules save, simulated."""

from __future__ import annotations

import argparse
import json
import sys

from npllama.cli.options import UsageError
from npllama.cost.tables import markdown
from npllama.serving.plot import draw_serving
from npllama.serving.tables import TABLES


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
    # fmt: on


def run_serve_sim(options: argparse.Namespace) -> None:
    """Print the tables, and draw them if asked."""
    if options.plot is not None:
        draw(options.plot)
    names = [options.table] if options.table else list(TABLES)
    if options.json:
        rows = {name: TABLES[name]() for name in names}
        print(json.dumps(rows[options.table] if options.table else rows))
        return
    for name in names:
        title = "" if options.table else f"{name}: {TABLES[name].__doc__}\n\n"
        print(title + markdown(TABLES[name]()) + ("" if options.table else "\n"))


def draw(path: str) -> None:
    """Write the picture."""
    try:
        draw_serving(path)
        print(f"wrote {path}", file=sys.stderr)
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib: pip install 'npllama[plot]'"
        ) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


RUN = {"serve-sim": run_serve_sim}
