"""The command ``npllama golden compare GOLDEN CANDIDATE``.

Its exit code is the verdict: 0 if rounding explains every difference, 1 if something
leaves the noise floor, 2 if the files cannot be compared.  In that case the functions
here raise ValueError, and the command line turns it into the code.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from npllama.files.checkpoint import load, locate
from npllama.files.whole import check_place, write_file
from npllama.golden.compare import FACTOR
from npllama.golden.page import facts_of, page
from npllama.golden.precision import FORMATS
from npllama.golden.record import sha256
from npllama.golden.report import examine, to_json, to_text
from npllama.golden.trace import Trace, check_names, read_golden, read_trace
from npllama.weights import Model

WITHIN, OUTSIDE = 0, 1


def factor(text: str) -> float:
    """A finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def add_compare(commands) -> None:
    """Add the command and its options to the subparsers of ``npllama golden``."""
    about = "say where a backend's numbers first go wrong"
    command = commands.add_parser("compare", help=about, description=about)
    command.add_argument("golden", metavar="GOLDEN.npz", help="from golden record")
    command.add_argument("candidate", metavar="CANDIDATE.npz", help="of the backend")
    command.add_argument(
        "--weights",
        metavar="MODEL.npz",
        help="the model: more faults can be told apart, and missing floors measured",
    )
    command.add_argument(
        "--factor",
        type=factor,
        default=FACTOR,
        metavar="N",
        help=f"how many noise floors are allowed (default: {FACTOR:g})",
    )
    command.add_argument(
        "--dtype",
        choices=tuple(FORMATS),
        help="what the candidate computed in (default: what it says or looks like)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument("--html", metavar="FILE", help="write a page with a plot")


def weights_of(path: str | None, golden: Trace) -> Model | None:
    """The model in float64, if its file is that of the recording.

    Raises
    ------
    ValueError
        If it is another one.
    """
    if path is None:
        return None
    recorded = golden.meta.get("weights_sha256")
    if recorded is not None and sha256(locate(path)) != recorded:
        raise ValueError(f"{path}: not the weights that the golden trace was made with")
    return load(path, "float64")


def sources_of(options: argparse.Namespace) -> dict[str, str | Path]:
    """All files that are read, by what they are."""
    files = {"the golden trace": options.golden, "the candidate": options.candidate}
    return files | ({"the model": locate(options.weights)} if options.weights else {})


def run_compare(options: argparse.Namespace) -> int:
    """Compare, print the report, and return the exit code.

    Raises
    ------
    ValueError
        If the files cannot be compared, read or written.
    """
    try:
        if options.html:
            check_place(Path(options.html), sources_of(options))
        golden, candidate = read_golden(options.golden), read_trace(options.candidate)
        try:
            check_names(golden, candidate)
        except ValueError as error:
            raise ValueError(f"{options.candidate}: {error}") from None
        model = weights_of(options.weights, golden)
        report = examine(golden, candidate, model, options.dtype, options.factor)
        if options.html:
            names = (Path(path).name for path in (options.candidate, options.golden))
            tokenizer = model.tokenizer if model else None
            facts = facts_of(golden, candidate, tokenizer)
            write_file(options.html, page(report, " against ".join(names), facts))
            print(f"wrote {options.html}", file=sys.stderr)
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from None
    if options.json:
        print(json.dumps(to_json(report), allow_nan=False))
    else:
        print(to_text(report), end="")
    return WITHIN if report.within else OUTSIDE
