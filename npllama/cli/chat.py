"""``npllama chat``: talk, turn by turn."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from npllama.cache import new_cache
from npllama.cli import streaming
from npllama.cli.adapters import add_adapter_option, check_adapter_option
from npllama.cli.offload import (
    add_memory_option,
    check_memory_options,
    helpers_for,
    running_of,
    tell_storage,
    weights_for,
)
from npllama.cli.options import (
    UsageError,
    generation_config,
    generator,
    one_line,
    streams,
)
from npllama.cli.show import cut_lines, show
from npllama.contexts.offload import Running
from npllama.contexts.streaming import Stream, endless_pieces
from npllama.decoding import context_length
from npllama.generation.generate import NO_HELPERS, Piece, pieces
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Helpers
from npllama.text.chat import chat_tokens, choose_format, closing, stop_tokens
from npllama.text.forms import FORMATS
from npllama.text.turns import turn_tokens
from npllama.weights import Model


def add_chat(commands) -> argparse.ArgumentParser:
    """The command ``chat``, without the options that it shares with others."""
    talk = commands.add_parser(
        "chat",
        help="talk, turn by turn",
        description="Talk, turn by turn.",
        usage="%(prog)s [options]",
    )
    talk.add_argument("--system", help="instructions given before the first turn")
    talk.add_argument(
        "--format",
        choices=(*FORMATS, "auto"),
        default="auto",
        help="how turns are written (auto: what the tokenizer was made for)",
    )
    streaming.add_stream_options(talk)
    add_memory_option(talk)
    add_adapter_option(talk)
    return talk


def run_chat(options: argparse.Namespace) -> None:
    """Talk until the input ends.

    The cache is kept from turn to turn, so that a turn costs its own tokens only.
    Ctrl-C stops an answer, not the program.
    """
    generation_config(options)  # if it is one
    streaming.check_stream_options(options)
    streaming.check_talks_policy(options)
    check_adapter_option(options)
    check_memory_options(options)

    def running(model: Model) -> Running:
        return running_of(options.stream_window or context_length(model.config), 0)

    with (
        weights_for(options, running) as (model, held),
        helpers_for(options, held) as (help_, _),
    ):
        talk_to(model, help_, options)
        tell_storage(options, held, None)


def talk_to(model: Model, help_: Helpers, options: argparse.Namespace) -> None:
    """Talk to a model that is there."""
    config, rng = generation_config(options, model), generator(options)
    if model.tokenizer is None:
        raise ValueError(f"{options.weights}: no tokenizer inside, so no chat")
    style, why = options.format, "as asked for"
    if style == "auto":
        style, why = choose_format(model.tokenizer)
    check_chat(config)
    if options.eos_token_id is None:
        # The tokens that end a turn count besides those of the checkpoint.
        ends = stop_tokens(model.tokenizer, style).union(config.eos_token_id or ())
        config = replace(config, eos_token_id=tuple(ends))
    stream = None
    if options.stream_window is not None:
        stream = streaming.stream_of(options, model)
        if any(helper is not None for helper in help_):
            raise UsageError("--stream-window: a talk without helping models")
    conversation = Conversation(model, style, options.system, stream)
    upto_answer(conversation, "")  # if it can be said
    print(one_line(f"[{style} turns, {why}]"), file=sys.stderr)
    print(f"[--seed {options.seed} repeats this talk]", file=sys.stderr)
    print(COMMANDS, file=sys.stderr)
    while (message := ask()) is not None:
        if message == "/reset":
            conversation = Conversation(model, style, options.system, stream)
        elif message == "/help" or re.fullmatch(r"/[a-z]+", message):
            print(COMMANDS, file=sys.stderr)
        elif message:
            answer(conversation, message, config, rng, help_)


# A word with a slash is a command and not for the model.
COMMANDS = "[/reset begins anew, /quit or Ctrl-D ends, /help says this]"


def check_chat(config: GenerationConfig) -> None:
    """Raise UsageError for options that a conversation cannot have."""
    absent = {
        "beams or several texts": not streams(config),
        "log-probabilities": config.logprobs is not None or config.prompt_logprobs,
        "token_healing": config.token_healing,
        "echo": config.echo,
        "allowed_special": bool(config.allowed_special),
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
    """The tokens of all turns so far, and the cache that holds most of them.

    In a stream the cache holds the first and the last of them, and `read` says how many
    have gone through it.
    """

    def __init__(
        self,
        model: Model,
        style: str,
        system: str | None,
        stream: Stream | None = None,
    ):
        self.model, self.style, self.system = model, style, system
        self.stream, self.read = stream, 0
        self.tokens: list[int] = []
        self.dialog: list[dict[str, str]] = []
        if system is not None:
            self.dialog.append({"role": "system", "content": system})
        size = stream.window if stream else context_length(model.config)
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
    reason = None
    try:
        talk.tokens = upto_answer(talk, message)
        if not talk.tokens:  # a template may write nothing
            raise ValueError("the turn is empty: none of it has a token")
    except ValueError as error:
        print(f"npllama: {one_line(str(error))}", file=sys.stderr)
        return
    forget_after(talk, common_length(before, talk.tokens[:-1]))
    if config.eos_token_id is None:
        config = replace(config, eos_token_id=talk.stop)
    try:
        for piece in spoken(talk, config, rng, help_):
            talk.tokens.append(piece.token)
            text, reason = text + piece.text, piece.reason
            show(piece.text)
    except KeyboardInterrupt:
        # The cache may hold guesses that were not checked yet.
        forget_after(talk, 0 if talk.stream else len(talk.tokens) - 1)
        print(" [stopped]", end="", file=sys.stderr)
    except ValueError as error:
        hint = "" if talk.stream else "; --stream-window W talks on past any length"
        forget_after(talk, common_length(before, talk.tokens))
        talk.tokens, talk.dialog = before, dialog
        told = one_line(str(error))
        print(f"npllama: {told}; /reset begins anew{hint}", file=sys.stderr)
        return
    else:
        talk.read = len(talk.tokens) - 1
    talk.dialog += said(message) + [{"role": "assistant", "content": text}]
    show("\n")
    for line in cut_lines([reason], config, talk.model):
        print(line, file=sys.stderr)


def spoken(
    talk: Conversation,
    config: GenerationConfig,
    rng: np.random.Generator,
    help_: Helpers,
) -> Iterator[Piece]:
    """The answer to a conversation, token by token."""
    if talk.stream is None:
        return pieces(talk.model, talk.tokens, config, rng, talk.cache, help_)
    return endless_pieces(
        talk.model, talk.tokens, config, rng, talk.stream, talk.cache, talk.read
    )


def said(message: str) -> list[dict[str, str]]:
    """What the user says, as a part of a dialog."""
    return [{"role": "user", "content": message}]


def upto_answer(talk: Conversation, message: str) -> list[int]:
    """The tokens of a conversation from its beginning to where an answer begins.

    A template renders the whole conversation again; in every other form, the model's
    own tokens stay.
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
    """Keep at most the first `length` tokens in the cache.

    A stream cannot go back, so it forgets all, and reads the text again.

    Writes
    ------
    talk.cache.length, talk.read
    """
    if talk.stream is not None:
        if length <= talk.read:  # all but the last token have been read
            talk.read = talk.cache.length[:] = 0
        return
    talk.cache.length[:] = np.minimum(talk.cache.length, length)
