"""``--stream-window`` of ``generate`` and ``chat``: a text past any length."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from npllama.cli.options import CACHE, UsageError, titled
from npllama.contexts.keeping import H2O, SNAPKV, kept_pieces
from npllama.contexts.sinks import context_shift
from npllama.contexts.streaming import Stream, check_stream, endless_pieces
from npllama.generation.generate import Piece
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Helpers
from npllama.weights import Model

SINKS = 4
SHIFT = "context-shift"
POLICIES = ("sinks", SHIFT, H2O, SNAPKV)
# What each has no use for.
USELESS = {SHIFT: ("discard",), H2O: ("sinks", "discard"), SNAPKV: ("sinks", "discard")}


def add_stream_options(command: argparse.ArgumentParser) -> None:
    """How much of a text is kept."""
    option = titled(command, CACHE).add_argument
    # fmt: off
    option("--stream-window", type=int, metavar="W",
           help="go on past any length: keep W positions in the cache, and forget others")
    option("--sinks", type=int, metavar="C",
           help=f"with --stream-window: first positions that stay (default: {SINKS})")
    option("--discard", type=int, metavar="D",
           help="with --stream-window: positions forgotten at a time (default: a "
           "sixteenth of the window)")
    option("--cache-policy", choices=POLICIES,
           help="with --stream-window: sinks and the last positions stay (default); half "
           "of what follows the sinks goes at once, as llama.cpp's context shift; or, up "
           "to the model's context, the keys that were looked at stay: h2o, or snapkv, "
           "which cuts the prompt alone")
    # fmt: on


def endless_of(
    options: argparse.Namespace,
    model: Model,
    prompt: str | list[int],
    config: GenerationConfig,
    rng: np.random.Generator,
    helpers: Helpers,
) -> Iterator[Piece]:
    """The pieces of a text that is written in a stream.

    Raises
    ------
    UsageError
        If that cannot be done as it was asked for.
    """
    if any(helper is not None for helper in helpers):
        raise UsageError("--stream-window: a text without helping models")
    if options.json or options.save_cache or options.load_cache:
        raise UsageError("--stream-window: no --json, --save-cache, --load-cache")
    if options.cache_policy in (H2O, SNAPKV):
        room = options.stream_window
        if room < 4:
            raise UsageError(f"--stream-window is {room}: from 4 keys on")
        return kept_pieces(model, prompt, config, rng, options.cache_policy, room)
    stream = stream_of(options, model)
    return endless_pieces(model, prompt, config, rng, stream)


def stream_of(options: argparse.Namespace, model: Model) -> Stream:
    """How much of a text is kept.

    Raises
    ------
    UsageError
        If the model cannot keep that.
    """
    W = options.stream_window
    sinks = SINKS if options.sinks is None else options.sinks
    discard = max(1, W // 16) if options.discard is None else options.discard
    shifts = options.cache_policy == SHIFT
    stream = context_shift(W, sinks) if shifts else Stream(W, sinks, discard)
    try:
        check_stream(model.config, stream)
    except ValueError as error:
        raise UsageError(f"--stream-window: {error}") from None
    return stream


def check_stream_options(options: argparse.Namespace) -> None:
    """Raise UsageError if an option has nothing to say."""
    for name in ("sinks", "discard", "cache_policy"):
        if options.stream_window is None and getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for --stream-window")
    for name in USELESS.get(options.cache_policy, ()):
        if getattr(options, name) is not None:
            policy = options.cache_policy
            raise UsageError(f"--{name} is not for --cache-policy {policy}")


def check_talks_policy(options: argparse.Namespace) -> None:
    """Raise UsageError if a talk cannot go on as it was asked."""
    if options.cache_policy in (H2O, SNAPKV):
        raise UsageError(f"--cache-policy {options.cache_policy}: one text, no talk")
