"""``npllama explain``: one generation from inside, as a page for a browser."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from npllama.cli.options import DEFAULTS as USUAL
from npllama.cli.options import UsageError, generation_config, generator, helpers
from npllama.cli.show import cut_lines
from npllama.explain.collect import check_shown, explained
from npllama.explain.page import page
from npllama.explain.told import Asked, told
from npllama.files.checkpoint import load, locate
from npllama.files.whole import check_place, write_file

# A page of so many tokens is still easy to go through.
NEW_TOKENS = 60
DEFAULTS = USUAL | {"max_new_tokens": NEW_TOKENS}


def add_explain(commands) -> argparse.ArgumentParser:
    """The command ``explain``, without the options that it shares with others."""
    command = commands.add_parser(
        "explain",
        help="write a page that shows how a text came about",
        description="Write a page that holds a text and shows how it came about: for "
        "every token the candidates after each step, the draw, attention, what each "
        "layer would have said, and the cost.  Options are those of generate.",
        usage="%(prog)s [PROMPT] -o PAGE.html [options]",
    )
    option = command.add_argument
    # fmt: off
    option("prompt", nargs="?", metavar="PROMPT",
           help="the text; '-' or none reads stdin")
    option("-o", "--output", required=True, metavar="PAGE.html", help="where it goes")
    option("--tokens", metavar="IDS",
           help="token ids instead of PROMPT, such as 1,15043")
    option("--special", action="store_true",
           help="PROMPT may hold all special tokens")
    option("--server", metavar="URL",
           help="of npllama serve with this model: a click on another candidate goes "
           "on from there")
    # fmt: on
    return command


def run_explain(options: argparse.Namespace, prompt: str | list[int]) -> None:
    """Write the page."""
    out = Path(options.output)
    server = options.server and options.server.rstrip("/")
    if out.suffix not in (".html", ".htm"):
        raise UsageError(f"-o {out}: a page's name must end in .html")
    if server is not None and not server.startswith(("http://", "https://")):
        raise UsageError(f"--server {server}: an address begins with http://")
    if options.max_new_tokens is None and options.max_length is None:
        options.max_new_tokens = NEW_TOKENS
    config, rng = generation_config(options), generator(options)
    files = {"assistant": options.assistant, "amateur": options.amateur}
    files = {name: file for name, file in files.items() if file}
    try:
        check_shown(config)
        check_place(out, {"the model": locate(options.weights)})
    except ValueError as error:
        raise UsageError(str(error)) from None
    model = load(options.weights)
    config = generation_config(options, model)
    if options.special:
        config = replace(config, allowed_special="all")
    found = explained(model, prompt, config, rng, helpers(options))
    asked = Asked(prompt, options.seed, options.weights, files)
    write_file(out, page(told(found, asked), server))
    shown = f"{len(found.steps)} tokens, {out.stat().st_size / 1e6:.1f} MB"
    for line in cut_lines([found.found.finish_reason], config, model):
        print(line, file=sys.stderr)
    print(f"wrote {out} ({shown}); open it in a browser", file=sys.stderr)
