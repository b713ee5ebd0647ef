"""``npllama book``: the package as a book to be read in a browser."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from npllama.cli.options import UsageError
from npllama.files.whole import check_place, write_file


def add_commands(commands) -> None:
    """Add ``book``."""
    command = commands.add_parser(
        "book",
        help="make the book: chapters, pictures, index, as HTML",
        description="Make the book from the source: prose beside code, pictures "
        "computed from the model that ships, exercises where the tests are at hand.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("-o", "--output", required=True, metavar="PLACE",
           help="a folder, or one file that ends in .html; with --picture, an .svg")
    option("--picture", metavar="NAME", help="draw one picture alone")
    # fmt: on


def run_book(options: argparse.Namespace) -> None:
    """Write the book, or one of its pictures."""
    out = Path(options.output)
    try:
        from npllama.book import build, exercises, pictures, svg
    except ModuleNotFoundError as error:
        needed = 'pip install "npllama[book]"'
        raise UsageError(f"the book needs {error.name}: {needed}") from None
    try:
        if options.picture:
            if out.suffix != ".svg":
                raise UsageError(f"{out}: a picture's name must end in .svg")
            check_place(out)
            write_file(out, svg.alone(pictures.drawn(options.picture).svg))
            print(f"wrote {out}", file=sys.stderr)
            return
        written = build.write_book(out, pictures.all_drawn())
    except ValueError as error:
        raise UsageError(str(error)) from None
    place = out if out.suffix == ".html" else out / "index.html"
    print(f"wrote {written} files; open {place}", file=sys.stderr)
    if not exercises.mutants():
        print(
            "[no exercises, and no sizes beside the shapes: they come from the tests, "
            "which are not beside the package, or need pytest and hypothesis]",
            file=sys.stderr,
        )


RUN = {"book": run_book}
