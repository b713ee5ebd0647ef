"""The command line: ``npllama generate | chat | info | convert | flops ...``.

Text goes to standard output, everything else to standard error, so that output can
be piped.  Whatever goes wrong is one line that says what would be right; the exit
code is 2 if the command was misused, 1 if it failed, 130 if it was interrupted (by
Ctrl-C, SIGTERM or SIGHUP).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

import numpy as np

from npllama.cache import new_cache
from npllama.cli import convert as convert_cli
from npllama.cli import cost as cost_cli
from npllama.cli import golden as golden_cli
from npllama.cli import info as info_cli
from npllama.cli.options import (
    UsageError,
    add_generation_options,
    as_text,
    generation_config,
    helpers,
    in_words,
)
from npllama.cli.timing import Stopwatch
from npllama.cost import FlopCounter
from npllama.decoding import context_length
from npllama.files.checkpoint import load
from npllama.files.ending import INTERRUPTED, Ended, ending_tidily
from npllama.generation.generate import NO_HELPERS, Generation, generate, pieces
from npllama.generation.options import GenerationConfig
from npllama.generation.strategies import searches
from npllama.generation.task import Helpers, encode_prompt
from npllama.text.chat import chat_tokens, choose_format, closing, stop_tokens
from npllama.text.forms import FORMATS
from npllama.text.turns import turn_tokens
from npllama.weights import Model

USAGE, FAILURE = 2, 1


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (try {self.prog} --help)\n")

    def print_help(self, file=None) -> None:
        # argparse forgives a disk that is full.
        print(self.format_help(), end="", file=file or sys.stdout, flush=True)


def parser() -> Parser:
    """The commands and their options."""
    top = Parser(prog="npllama", description="A LLaMA in NumPy.", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    make = commands.add_parser(
        "generate", help="continue a text", description="Continue a text."
    )
    make.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text; '-' or none reads stdin"
    )
    make.add_argument("--json", action="store_true", help="print one JSON object")
    make.add_argument(
        "--flops", action="store_true", help="count the products, tell on stderr"
    )
    talk = commands.add_parser(
        "chat", help="talk, turn by turn", description="Talk, turn by turn."
    )
    talk.add_argument("--system", help="instructions given before the first turn")
    talk.add_argument(
        "--format",
        choices=(*FORMATS, "auto"),
        default="auto",
        help="how turns are written (auto: what the tokenizer was made for)",
    )
    for command in (make, talk):
        command.add_argument(
            "--weights",
            default="stories",
            metavar="FILE",
            help="an .npz, or the name of a shipped model (default: stories)",
        )
    for command in (make, talk):
        add_generation_options(command)
    convert_cli.add_commands(commands)
    cost_cli.add_commands(commands)
    golden_cli.add_commands(commands)
    info_cli.add_commands(commands)
    return top


def generator(options: argparse.Namespace) -> np.random.Generator:
    """The source of chance."""
    if options.seed is not None and options.seed < 0:
        raise UsageError(f"seed is {options.seed}; it must be 0 or more")
    return np.random.default_rng(options.seed)


#  ---- generate ---------------------------------------------------------------


def run_generate(options: argparse.Namespace) -> None:
    """Continue one text, and tell what it cost if asked."""
    if not options.flops:
        continue_text(options)
        return
    with FlopCounter() as count:
        continue_text(options)
    print(count, file=sys.stderr)


def continue_text(options: argparse.Namespace) -> None:
    """Print a text as it comes, or when it is found."""
    config, rng = generation_config(options), generator(options)
    prompt = read_prompt(options.prompt)
    model, help_ = load(options.weights), helpers(options)
    config = generation_config(options, model)
    if not options.json:
        if config.logprobs is not None or config.prompt_logprobs:
            raise UsageError("log-probabilities are shown with --json")
        config = replace(config, echo=False)  # the prompt is shown in any case
    watch = Stopwatch(len(encode_prompt(model, prompt)))
    if options.json or not streams(config):
        begin = time.perf_counter()
        found = generate(model, [prompt], config, rng, help_)
        assert isinstance(found, list)
        watch.whole(time.perf_counter() - begin, sum(len(f.tokens) for f in found))
        if options.json:
            answer = {"prompt": prompt, "texts": [as_json(text) for text in found]}
            print(json.dumps(answer | {"statistics": watch.statistics()}))
            return
        show("\n\n".join(prompt + text.text for text in found))
    else:
        # The prompt is shown with the first token: then nothing was wrong with it.
        pending = prompt
        for piece in watch.time(pieces(model, prompt, config, rng, None, help_)):
            show(pending + piece.text)
            pending = ""
    show("\n")
    print(watch.summary(), file=sys.stderr)


def streams(config: GenerationConfig) -> bool:
    """Whether one text is asked for, in a way that is known token by token."""
    return not searches(config) and (config.best_of or config.num_return_sequences) < 2


def as_json(text: Generation) -> dict:
    """A generation as a dictionary, log-probabilities by name."""
    data = text._asdict()
    for name in ("logprobs", "prompt_logprobs"):
        if data[name] is not None:
            data[name] = [entry and entry._asdict() for entry in data[name]]
    return data


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


def show(text: str) -> None:
    """Write at once, whatever the terminal can display of it."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def harmless(text: str) -> str:
    """The text with control characters shown, so that a terminal does not obey them.

    A model may write an escape sequence that renames the window or clears it.
    """
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


#  ---- chat -------------------------------------------------------------------


def run_chat(options: argparse.Namespace) -> None:
    """Talk until the input ends.

    The cache is kept from turn to turn, so that a turn costs its own tokens only.
    Ctrl-C stops an answer, not the program.
    """
    config, rng = generation_config(options), generator(options)
    model = load(options.weights)
    if model.tokenizer is None:
        raise ValueError(f"{options.weights}: no tokenizer inside, so no chat")
    style, why = options.format, "as asked for"
    if style == "auto":
        style, why = choose_format(model.tokenizer)
    help_, config = helpers(options), generation_config(options, model)
    check_chat(config)
    if options.eos_token_id is None:
        # What ends a turn does so whatever else the checkpoint wishes.
        ends = stop_tokens(model.tokenizer, style).union(config.eos_token_id or ())
        config = replace(config, eos_token_id=tuple(ends))
    conversation = Conversation(model, style, options.system)
    upto_answer(conversation, "")  # if it can be said
    print(f"[{style} turns, {why}]", file=sys.stderr)
    print("[/reset begins anew, /quit or Ctrl-D ends]", file=sys.stderr)
    while (message := ask()) is not None:
        if message == "/reset":
            conversation = Conversation(model, style, options.system)
        elif message:
            answer(conversation, message, config, rng, help_)


def check_chat(config: GenerationConfig) -> None:
    """Raise UsageError if more is asked for than a conversation can give."""
    absent = {
        "beams or several texts": not streams(config),
        "log-probabilities": config.logprobs is not None or config.prompt_logprobs,
        "token_healing": config.token_healing,
        "echo": config.echo,
    }
    for what, asked in absent.items():
        if asked:
            raise UsageError(f"a chat shows one text as it comes, without {what}")


def ask() -> str | None:
    """One line from the user; None at the end of input or at ``/quit``."""
    if sys.stdin is None:
        return None
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            message = input(prompt).strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        return None if message in ("/quit", "/exit") else message


class Conversation:
    """The tokens of all turns so far, and the cache that holds most of them."""

    def __init__(self, model: Model, style: str, system: str | None):
        self.model, self.style, self.system = model, style, system
        self.tokens: list[int] = []
        self.dialog: list[dict[str, str]] = []
        if system is not None:
            self.dialog.append({"role": "system", "content": system})
        size = context_length(model.config)
        self.cache = new_cache(model.config, 1, size, model.embed.dtype.name)
        self.stop = tuple(stop_tokens(model.tokenizer, style))


def answer(
    talk: Conversation,
    message: str,
    config: GenerationConfig,
    rng: np.random.Generator,
    help_: Helpers = NO_HELPERS,
) -> None:
    """Take one turn: the user's message in, the model's answer out."""
    before, dialog, text = list(talk.tokens), list(talk.dialog), ""
    try:
        talk.tokens = upto_answer(talk, message)
    except ValueError as error:
        print(f"npllama: {error}", file=sys.stderr)
        return
    forget_after(talk, common_length(before, talk.tokens[:-1]))
    if config.eos_token_id is None:
        config = replace(config, eos_token_id=talk.stop)
    try:
        for piece in pieces(talk.model, talk.tokens, config, rng, talk.cache, help_):
            talk.tokens.append(piece.token)
            text += piece.text
            show(piece.text)
    except KeyboardInterrupt:
        # The cache may hold guesses that were not checked yet.
        talk.cache.length[:] = np.minimum(talk.cache.length, len(talk.tokens) - 1)
        print(" [stopped]", end="", file=sys.stderr)
    except ValueError as error:
        forget_after(talk, common_length(before, talk.tokens))
        talk.tokens, talk.dialog = before, dialog
        print(f"npllama: {error}; /reset begins anew", file=sys.stderr)
        return
    talk.dialog += said(message) + [{"role": "assistant", "content": text}]
    show("\n")


def said(message: str) -> list[dict[str, str]]:
    """What the user says, as a part of a dialog."""
    return [{"role": "user", "content": message}]


def upto_answer(talk: Conversation, message: str) -> list[int]:
    """The tokens of a conversation from its beginning to where an answer begins.

    A template writes the whole conversation anew; in every other form, what the
    model said stays as it said it.
    """
    tokenizer = talk.model.tokenizer
    if talk.style == "template":
        return chat_tokens(tokenizer, talk.dialog + said(message), talk.style)
    first = not talk.tokens
    broken_off = not first and talk.tokens[-1] not in talk.stop
    end = closing(tokenizer, talk.style) if broken_off else []
    turn = turn_tokens(tokenizer, message, talk.style, first, talk.system)
    return [*talk.tokens, *end, *turn]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    pairs = enumerate(zip(first, second))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def forget_after(talk: Conversation, length: int) -> None:
    """Keep at most so many positions of the cache.

    Writes
    ------
    talk.cache.length
    """
    talk.cache.length[:] = np.minimum(talk.cache.length, length)


#  ---- main -------------------------------------------------------------------

# What a command returns is its exit code; None is 0.
RUN: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "generate": run_generate,
    "chat": run_chat,
    **convert_cli.RUN,
    **cost_cli.RUN,
    **golden_cli.RUN,
    **info_cli.RUN,
}


def open_streams() -> None:
    """Make sure that both streams exist, and replace what a terminal cannot show."""
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
    except (ValueError, TypeError, OverflowError) as error:
        return _fail(command, str(error), FAILURE)
    return code or 0


def _fail(command: str, message: str, code: int) -> int:
    """Say in one line what went wrong, if anybody listens; return the code."""
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
