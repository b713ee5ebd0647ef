"""``npllama forget``: every way to forget, on one text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable

from npllama.cli.golden import progress
from npllama.cli.options import UsageError
from npllama.cli.perplexity import read_text
from npllama.contexts.forgetting import Outcome, cuts_compared, streams_compared
from npllama.contexts.streaming import Stream, check_stream
from npllama.cost.tables import markdown
from npllama.decoding import context_length
from npllama.files.checkpoint import load
from npllama.generation.task import encode_prompt
from npllama.weights import Model

WATCHED = 32  # queries that SnapKV looks at, as in its code
CUTS = 6


def add_commands(commands) -> None:
    """Add ``forget``."""
    command = commands.add_parser(
        "forget",
        help="every way to forget, on one text",
        description="Perplexity of a text by every way to forget. It is read with all "
        "in view and with a window of keys, and the tokens after the window count.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("file", metavar="FILE", help="a text in UTF-8; '-' reads stdin")
    option("--weights", default="stories", metavar="MODEL",
           help="an .npz, or the name of a shipped model (default: stories)")
    option("--first", type=int, metavar="N",
           help="read only the text's first N tokens (default: all)")
    option("--window", type=int, default=128, metavar="W",
           help="keys that a token sees, its own included (default: 128)")
    option("--sinks", default="0,1,2,4", metavar="C,...",
           help="numbers of sinks to try (default: 0,1,2,4)")
    option("--prompt", type=int, metavar="N",
           help="tokens of the prompt that is cut once (default: two thirds)")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def run_forget(options: argparse.Namespace) -> None:
    """Read the text by every way, print both tables."""
    sinks, text = read_sinks(options.sinks), read_text(options.file)
    model = load(options.weights)
    tokens = encode_prompt(model, text)[: options.first]
    check_sizes(options, model, sinks, len(tokens))
    n, W = len(tokens), options.window
    prompt = 2 * n // 3 if options.prompt is None else options.prompt
    cuts = W < prompt <= n - 2
    if not cuts and options.prompt is not None:
        raise UsageError(f"--prompt is {prompt}: more than {W}, at most {n - 2}")
    rows = 2 + len(sinks) + len({0, max(sinks)}) + CUTS * cuts
    with progress(rows, "way") as tell:
        streams = told(streams_compared(model, tokens, W, sinks), tell, rows, 0)
        watched = min(WATCHED, W // 2)
        each = cuts_compared(model, tokens, prompt, W, max(sinks), watched)
        once = told(each, tell, rows, len(streams)) if cuts else []
    if options.json:
        tables = {"stream": streams, "prompt cut once": once}
        sizes = {"tokens": n, "window": W, "prompt": prompt if cuts else None}
        print(json.dumps(sizes | {k: list(map(as_json, v)) for k, v in tables.items()}))
        return
    print(f"read as a stream; the last {n - W} of {n} tokens count\n")
    print(table("what is kept", streams))
    if once:
        print(f"\na prompt of {prompt} tokens is cut to {W} keys, once; ", end="")
        print(f"the last {n - prompt - 1} of {n} tokens count\n")
        print(table("what is dropped", once))


def read_sinks(words: str) -> list[int]:
    """Numbers with commas."""
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise UsageError(f"--sinks {words!r:.60}: numbers with commas") from None


def check_sizes(
    options: argparse.Namespace, model: Model, sinks: list[int], n: int
) -> None:
    """Raise UsageError unless text, window and sinks fit each other and the model."""
    try:
        for c in sinks:
            check_stream(model.config, Stream(options.window, c))
    except ValueError as error:
        raise UsageError(f"--window: {error}") from None
    if not options.window < n <= context_length(model.config):
        raise UsageError(
            f"the text has {n} tokens: more than the window of {options.window}, and at "
            f"most the model's context of {context_length(model.config)}; see --first"
        )


def told(outcomes: Iterable[Outcome], tell, rows: int, before: int) -> list[Outcome]:
    """All outcomes, each told as it comes."""
    found = []
    for outcome in outcomes:
        found.append(outcome)
        tell(before + len(found), rows)
    return found


def table(what: str, outcomes: list[Outcome]) -> str:
    """A row for each way."""
    rows = [[what, "perplexity", "+/-"]]
    for way, found in outcomes:
        rows.append([way, f"{found.perplexity:.2f}", f"{found.error:.2f}"])
    return markdown(rows)


def as_json(outcome: Outcome) -> dict:
    """A way, its number and its surprises."""
    found = outcome.found
    numbers = {"perplexity": found.perplexity, "nats": found.nats.tolist()}
    return {"way": outcome.way} | numbers


RUN = {"forget": run_forget}
