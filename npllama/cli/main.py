"""The command line: ``npllama generate | chat | info | convert | flops ...``.

Text goes to standard output, everything else to standard error, so that output can
be piped.  Every error is one line that says what would be right.  The exit code is 2
if the command was misused, 1 if it failed, 130 if it was interrupted (by Ctrl-C,
SIGTERM or SIGHUP).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from textwrap import wrap
from typing import NoReturn

import numpy as np

from npllama import __version__
from npllama.cli import bench as bench_cli
from npllama.cli import bits as bits_cli
from npllama.cli import book as book_cli
from npllama.cli import chat as chat_cli
from npllama.cli import convert as convert_cli
from npllama.cli import cost as cost_cli
from npllama.cli import endless as endless_cli
from npllama.cli import explain as explain_cli
from npllama.cli import forget as forget_cli
from npllama.cli import generate as generate_cli
from npllama.cli import golden as golden_cli
from npllama.cli import info as info_cli
from npllama.cli import kv_bits as kv_bits_cli
from npllama.cli import offload as offload_cli
from npllama.cli import patterns as patterns_cli
from npllama.cli import perplexity as perplexity_cli
from npllama.cli import quantize as quantize_cli
from npllama.cli import ranks as ranks_cli
from npllama.cli import serve as serve_cli
from npllama.cli import serve_sim as serve_sim_cli
from npllama.cli import tiles as tiles_cli
from npllama.cli.generate import Help
from npllama.cli.options import (
    DEFAULTS,
    MODEL,
    UsageError,
    add_context_option,
    add_generation_options,
    in_words,
    one_line,
    titled,
)
from npllama.files.ending import INTERRUPTED, Ended, ending_tidily

USAGE, FAILURE = 2, 1
LONGEST_LINE = 1000


# What the commands are for, in the order in which a newcomer meets them.
COMMANDS = {
    "write": ("generate", "chat", "explain", "serve"),
    "models": ("info", "convert", "quantize", "bits", "perplexity", "offload"),
    "costs": ("flops", "roofline", "tiles", "patterns", "serve-sim", "bench"),
    "long texts": ("forget", "endless", "kv-bits", "ranks"),
    "trust": ("golden",),
    "read": ("book",),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def parse_known_args(self, args=None, namespace=None):
        # A command's parser would pass unknown options on to the main parser, whose
        # error would not know the command's options.
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self.hint(rest)}")
        return found, rest

    def _check_value(self, action, value):
        # Its own message lists all commands, and does not guess.
        if isinstance(action, argparse._SubParsersAction):
            if value not in action.choices:
                near = get_close_matches(value, action.choices, 1, 0.6)
                guess = f"; do you mean {near[0]}?" if near else ""
                self.error(f"there is no command {value!r:.60}{guess}")
        super()._check_value(action, value)

    def hint(self, words: list[str]) -> str:
        """What unknown options, or words too many, may have been meant for."""
        known = re.findall(r"--[a-z][a-z0-9-]*", self.format_help())
        wrong = [word.partition("=")[0] for word in words if word.startswith("--")]
        near = [n for word in wrong for n in get_close_matches(word, known, 1, 0.7)]
        if near:
            return f"; do you mean {near[0]}?"
        # A shell cuts a text at its spaces.
        text = any(action.metavar == "PROMPT" for action in self._actions)
        several = text and not wrong
        return "; put a PROMPT of several words in quotes" if several else ""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (try {self.prog} --help)\n")

    def print_help(self, file=None) -> None:
        # argparse itself would ignore the error of a full disk.
        print(self.format_help(), end="", file=file or sys.stdout, flush=True)


# The modules whose commands write no text.
OTHERS = (
    bench_cli,
    bits_cli,
    convert_cli,
    cost_cli,
    endless_cli,
    forget_cli,
    golden_cli,
    info_cli,
    kv_bits_cli,
    offload_cli,
    patterns_cli,
    perplexity_cli,
    quantize_cli,
    ranks_cli,
    serve_cli,
    serve_sim_cli,
    tiles_cli,
    book_cli,
)


def parser() -> Parser:
    """The commands and their options."""
    top = Parser(
        prog="npllama",
        usage="%(prog)s COMMAND [options]",
        formatter_class=Help,
        allow_abbrev=False,
    )
    version = f"npllama {__version__}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(
        prog="npllama", dest="command", metavar="COMMAND", help=SUPPRESS
    )

    chosen = (
        (generate_cli.add_generate(commands), DEFAULTS),
        (chat_cli.add_chat(commands), DEFAULTS),
        (explain_cli.add_explain(commands), explain_cli.DEFAULTS),
    )
    for command, defaults in chosen:
        titled(command, MODEL).add_argument(
            "--weights",
            default="stories",
            metavar="FILE",
            help="an .npz, or the name of a shipped model (default: stories)",
        )
        add_context_option(command)
        add_generation_options(command, defaults)
    for others in OTHERS:
        others.add_commands(commands)
    top.epilog = overview(commands.choices)
    return top


def wrapped(start: str, text: str) -> list[str]:
    """Lines of at most 79 characters, indented like the first."""
    indent = " " * len(start)
    return wrap(text, 79, initial_indent=start, subsequent_indent=indent)


def overview(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """All commands, each with its sentence."""
    lines = ["A LLaMA in NumPy: `npllama COMMAND --help` tells all options of one."]
    for title, names in COMMANDS.items():
        lines += ["", f"{title}:"]
        for name in names:
            says = re.split(r"\.(?:\s|$)", str(parsers[name].description))[0]
            lines += wrapped(f"  {name:10}  ", says)
    return "\n".join(lines)


#  ---- main -------------------------------------------------------------------

# What a command returns is its exit code; None is 0.
RUN: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "generate": generate_cli.run_generate,
    "chat": chat_cli.run_chat,
    "explain": generate_cli.run_explain,
    **bench_cli.RUN,
    **bits_cli.RUN,
    **convert_cli.RUN,
    **cost_cli.RUN,
    **endless_cli.RUN,
    **forget_cli.RUN,
    **golden_cli.RUN,
    **info_cli.RUN,
    **kv_bits_cli.RUN,
    **offload_cli.RUN,
    **patterns_cli.RUN,
    **perplexity_cli.RUN,
    **quantize_cli.RUN,
    **ranks_cli.RUN,
    "serve": serve_cli.run_serve,
    **serve_sim_cli.RUN,
    **tiles_cli.RUN,
    **book_cli.RUN,
}


def open_streams() -> None:
    """Make sure that both streams exist; replace characters they cannot encode."""
    if sys.stdout is None or sys.stderr is None:  # closed by whoever called
        nowhere = open(os.devnull, "w")
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    open_streams()
    command = ""
    try:
        options = (every := parser()).parse_args(argv)
        if not (command := options.command or ""):
            every.print_help()
            return 0
        # Numbers that overflow are refused where they matter, in one line.
        quiet = np.errstate(over="ignore", divide="ignore", invalid="ignore")
        with ending_tidily(), quiet:
            code = RUN[command](options)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(command, str(error), USAGE)
    except (KeyboardInterrupt, Ended):
        return _fail(command, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        _write_nowhere()  # the reader has gone; there is nobody to tell
        return FAILURE
    except MemoryError:
        return _fail(command, "out of memory; ask for less", FAILURE)
    except OSError as error:
        return _fail(command, in_words(error), FAILURE)
    except (ValueError, TypeError, OverflowError, ImportError) as error:
        return _fail(command, str(error), FAILURE)
    return code or 0


def _fail(command: str, message: str, code: int) -> int:
    """Print an error as one line, if the stream is open; return the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        _write_nowhere()
    name, line = f"npllama {command}".rstrip(), one_line(message)
    if len(line) > LONGEST_LINE:  # a name in a file may have any length
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    with suppress(OSError):  # a terminal that was closed takes no more
        print(f"{name}: {line}", file=sys.stderr, flush=True)
    return code


def _write_nowhere() -> None:
    """Send what standard output still holds to nowhere: Python would try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
