"""The command line: ``npllama generate | chat | info | convert | flops ...``.

Text goes to standard output, everything else to standard error, so that output can
be piped.  Every error is one line that says what would be right.  The exit code is 2
if the command was misused, 1 if it failed, 130 if it was interrupted (by Ctrl-C,
SIGTERM or SIGHUP).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NoReturn

import numpy as np

from npllama.cli import book as book_cli
from npllama.cli import chat as chat_cli
from npllama.cli import convert as convert_cli
from npllama.cli import cost as cost_cli
from npllama.cli import explain as explain_cli
from npllama.cli import golden as golden_cli
from npllama.cli import info as info_cli
from npllama.cli import offload as offload_cli
from npllama.cli import perplexity as perplexity_cli
from npllama.cli import prompts as prompts_cli
from npllama.cli import quantize as quantize_cli
from npllama.cli import saving, streaming
from npllama.cli import serve as serve_cli
from npllama.cli import serve_sim as serve_sim_cli
from npllama.cli import tiles as tiles_cli
from npllama.cli.options import (
    UsageError,
    add_context_option,
    add_generation_options,
    as_text,
    generation_config,
    generator,
    in_words,
    streams,
)
from npllama.cli.show import show
from npllama.cli.timing import Stopwatch
from npllama.cost import FlopCounter
from npllama.files.ending import INTERRUPTED, Ended, ending_tidily
from npllama.generation.generate import Piece, generate, most_texts, pieces
from npllama.generation.options import GenerationConfig
from npllama.generation.task import DEFAULT_NEW_TOKENS, Helpers, encode_prompt
from npllama.serving.prompts import as_json
from npllama.weights import Model

USAGE, FAILURE = 2, 1


EXAMPLES = """\
examples:
  npllama generate "Once upon a time"
  npllama generate "Once upon a time" --temperature 0 --max-new-tokens 40
  npllama generate "Once" --num-beams 4 --num-return-sequences 2 --json
"""


class Help(argparse.HelpFormatter):
    """Keeps the lines of the examples; everything else is wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def parse_known_args(self, args=None, namespace=None):
        # A command's parser would pass unknown options on to the main parser, whose
        # error would not know the command's options.
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self.nearest(rest)}")
        return found, rest

    def nearest(self, words: list[str]) -> str:
        """What an unknown option may have been meant for."""
        known = re.findall(r"--[a-z][a-z0-9-]*", self.format_help())
        wrong = [word.partition("=")[0] for word in words if word.startswith("--")]
        near = [n for word in wrong for n in get_close_matches(word, known, 1, 0.7)]
        return f"; do you mean {near[0]}?" if near else ""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (try {self.prog} --help)\n")

    def print_help(self, file=None) -> None:
        # argparse itself would ignore the error of a full disk.
        print(self.format_help(), end="", file=file or sys.stdout, flush=True)


def add_generate(commands) -> argparse.ArgumentParser:
    """The command ``generate``, without the options that it shares with others."""
    make = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continue a text.",
        usage="%(prog)s [PROMPT] [options]",
        epilog=EXAMPLES,
        formatter_class=Help,
    )
    make.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text; '-' or none reads stdin"
    )
    make.add_argument(
        "--tokens", metavar="IDS", help="token ids instead of PROMPT, such as 1,15043"
    )
    make.add_argument(
        "--special", action="store_true", help="PROMPT may hold all special tokens"
    )
    make.add_argument("--json", action="store_true", help="print one JSON object")
    make.add_argument(
        "--flops", action="store_true", help="count the products, tell on stderr"
    )
    saving.add_cache_options(make)
    prompts_cli.add_prompts_options(make)
    streaming.add_stream_options(make)
    offload_cli.add_memory_option(make)
    return make


def parser() -> Parser:
    """The commands and their options."""
    top = Parser(prog="npllama", description="A LLaMA in NumPy.", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    chosen = [add_generate(commands), chat_cli.add_chat(commands)]
    chosen.append(explain_cli.add_explain(commands))
    for command in chosen:
        command.add_argument(
            "--weights",
            default="stories",
            metavar="FILE",
            help="an .npz, or the name of a shipped model (default: stories)",
        )
        add_context_option(command)
        add_generation_options(command)
    convert_cli.add_commands(commands)
    cost_cli.add_commands(commands)
    golden_cli.add_commands(commands)
    info_cli.add_commands(commands)
    offload_cli.add_commands(commands)
    perplexity_cli.add_commands(commands)
    quantize_cli.add_commands(commands)
    serve_cli.add_commands(commands)
    serve_sim_cli.add_commands(commands)
    tiles_cli.add_commands(commands)
    book_cli.add_commands(commands)
    return top


#  ---- generate ---------------------------------------------------------------


def run_generate(options: argparse.Namespace) -> int:
    """Continue one text, and tell what it cost if asked; or many from a file."""
    prompts_cli.check_prompts_options(options)
    if options.prompts is not None:
        return prompts_cli.run_prompts(options)
    if not options.flops:
        continue_text(options)
        return 0
    with FlopCounter() as count:
        continue_text(options)
    print(count, file=sys.stderr)
    return 0


def continue_text(options: argparse.Namespace) -> None:
    """Print a text as it comes, or when it is found."""
    config, rng = generation_config(options), generator(options)
    prompt = read_ids(options) if options.tokens else read_prompt(options.prompt)
    saving.check_cache_options(options, config)
    streaming.check_stream_options(options)
    offload_cli.check_memory_options(options)

    def running(model: Model):
        """The sizes that the text may come to."""
        c = generation_config(options, model)
        n = len(encode_prompt(model, prompt, "all" if options.special else ()))
        new = c.max_length or c.max_new_tokens or DEFAULT_NEW_TOKENS
        if options.stream_window is not None:
            n, new = options.stream_window, 0
        return offload_cli.running_of(n, new, most_texts(c))

    with (
        offload_cli.weights_for(options, running) as (model, held),
        offload_cli.helpers_for(options, held) as (help_, ahead),
    ):
        watch = write_text(options, model, prompt, rng, help_)
        offload_cli.tell_storage(options, held, watch)
        offload_cli.tell_drafts(held, ahead, config.num_assistant_tokens)


def write_text(
    options: argparse.Namespace,
    model: Model,
    prompt: str | list[int],
    rng: np.random.Generator,
    help_: Helpers,
) -> Stopwatch:
    """Continue a text with a model that is there."""
    config = generation_config(options, model)
    if options.special:
        config = replace(config, allowed_special="all")
    if not options.json:
        if config.logprobs is not None or config.prompt_logprobs:
            raise UsageError("log-probabilities are shown with --json")
        config = replace(config, echo=False)  # the prompt is shown in any case
    tokens = encode_prompt(model, prompt, config.allowed_special)
    cache = saving.cache_of(options, model, tokens, config, help_)
    held = 0 if cache is None else int(cache.length[0])
    watch, shown = Stopwatch(len(tokens) - held), shown_prompt(model, prompt)
    if options.stream_window is not None:
        growing = streaming.endless_of(options, model, prompt, config, rng, help_)
        new = show_as_it_comes(shown, watch.time(growing))
    elif options.json or not streams(config):
        begin = time.perf_counter()
        found = generate(model, [prompt], config, rng, help_, cache)
        assert isinstance(found, list)
        watch.whole(time.perf_counter() - begin, sum(len(f.tokens) for f in found))
        new = found[0].tokens
        if options.json:
            answer: dict[str, Any] = {"prompt": prompt, "seed": options.seed}
            answer["texts"] = [as_json(text) for text in found]
            print(json.dumps(answer | {"statistics": watch.statistics()}))
        else:
            show("\n\n".join(shown + text.text for text in found))
    else:
        growing = pieces(model, prompt, config, rng, cache, help_)
        new = show_as_it_comes(shown, watch.time(growing))
    saving.keep(options, model, cache, tokens + new)
    if not options.json:
        tell_about(options, config, watch)
    return watch


def tell_about(
    options: argparse.Namespace, config: GenerationConfig, watch: Stopwatch
) -> None:
    """End a text that was shown; print its speed, and the seed that repeats it."""
    show("\n")
    print(watch.summary(), file=sys.stderr)
    if config.do_sample or config.stochastic_beams:
        print(f"[--seed {options.seed} repeats this text]", file=sys.stderr)


def show_as_it_comes(prompt: str, growing: Iterable[Piece]) -> list[int]:
    """Show a prompt and its text as it grows; an error begins a new line.

    Returns the new tokens.
    """
    # The prompt is shown with the first token, after it has proved to be valid.
    pending, tokens = prompt, []
    try:
        for piece in growing:
            show(pending + piece.text)
            pending = ""
            tokens.append(piece.token)
    except (ValueError, KeyboardInterrupt):
        show("" if pending else "\n")
        raise
    return tokens


def read_ids(options: argparse.Namespace) -> list[int]:
    """The prompt given as token ids."""
    if options.prompt is not None or options.special:
        raise UsageError("--tokens is the whole prompt: no PROMPT, no --special")
    try:
        return [int(word) for word in re.split(r"[,\s]+", options.tokens.strip(" [],"))]
    except ValueError:
        raise UsageError(
            f"--tokens {options.tokens!r:.60}: token ids are whole numbers with commas"
        ) from None


def run_explain(options: argparse.Namespace) -> None:
    """Show how a text comes about."""
    prompt = read_ids(options) if options.tokens else read_prompt(options.prompt)
    explain_cli.run_explain(options, prompt)


def shown_prompt(model: Model, prompt: str | list[int]) -> str:
    """The prompt as text; empty for a model without a tokenizer."""
    if isinstance(prompt, str):
        return prompt
    return model.tokenizer.decode(prompt, skip_special=False) if model.tokenizer else ""


def read_prompt(argument: str | None) -> str:
    """The prompt given as an argument, or from standard input."""
    try:
        if argument is not None and argument != "-":
            return as_text(argument)
        if sys.stdin is None or (argument is None and sys.stdin.isatty()):
            raise UsageError("no PROMPT: give it as an argument, or pipe it in")
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\r\n")
    except UnicodeError as error:
        source = "standard input" if argument in (None, "-") else "PROMPT"
        raise UsageError(f"{source} is not UTF-8 ({error})") from None


#  ---- main -------------------------------------------------------------------

# What a command returns is its exit code; None is 0.
RUN: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "generate": run_generate,
    "chat": chat_cli.run_chat,
    "explain": run_explain,
    **convert_cli.RUN,
    **cost_cli.RUN,
    **golden_cli.RUN,
    **info_cli.RUN,
    **offload_cli.RUN,
    **perplexity_cli.RUN,
    **quantize_cli.RUN,
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
        options = parser().parse_args(argv)
        command = options.command
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
    name = f"npllama {command}".rstrip()
    with suppress(OSError):  # a terminal that was closed takes no more
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _write_nowhere() -> None:
    """Send what standard output still holds to nowhere: Python would try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
