"""``npllama generate --save-cache | --load-cache``: a text is read once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from npllama.cache import KVCache, new_cache
from npllama.cli.options import CACHE, UsageError, streams, titled
from npllama.files.checkpoint import locate
from npllama.files.whole import check_place
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Helpers, plan_of, prepare
from npllama.serving.saved import load_cache, restore, save_cache
from npllama.weights import Model


def add_cache_options(command: argparse.ArgumentParser) -> None:
    """Where keys and values go, and where they come from."""
    option = titled(command, CACHE).add_argument
    # fmt: off
    option("--save-cache", metavar="FILE",
           help="keep the keys and values of prompt and text in an .npz")
    option("--load-cache", metavar="FILE",
           help="compute only what follows the beginning that the prompt shares with "
                "the text of --save-cache")
    # fmt: on


def check_cache_options(options: argparse.Namespace, config: GenerationConfig) -> None:
    """Raise UsageError, before the work, if no cache can be kept or used."""
    if options.save_cache is None and options.load_cache is None:
        return
    absent = {
        "beams and several texts": not streams(config),
        "lookahead decoding": config.lookahead_window,
        "contrastive search": config.penalty_alpha,
        "token healing": config.token_healing,
    }
    for what, asked in absent.items():
        if asked:
            raise UsageError(
                f"--save-cache and --load-cache are for one text; {what} have none"
            )
    if options.save_cache is not None:
        try:
            check_place(options.save_cache, {"the model": locate(options.weights)})
        except ValueError as error:
            raise UsageError(f"--save-cache {error}") from None


def cache_of(
    options: argparse.Namespace,
    model: Model,
    prompt: Sequence[int],
    config: GenerationConfig,
    helpers: Helpers,
) -> KVCache | None:
    """The cache in which a text grows, if it is to be kept or is there already."""
    if options.save_cache is None and options.load_cache is None:
        return None
    task = prepare(plan_of(model, config, helpers), prompt)
    if options.load_cache is None:
        return new_cache(model.config, 1, task.capacity, model.embed.dtype.name)
    cache = restore(load_cache(options.load_cache, model), prompt, model, task.capacity)
    print(f"[cache: {cache.length[0]} of {len(prompt)} prompt tokens]", file=sys.stderr)
    return cache


def keep(
    options: argparse.Namespace,
    model: Model,
    cache: KVCache | None,
    tokens: Sequence[int],
) -> None:
    """Write what was computed of a finished text, if that was asked for."""
    if options.save_cache is not None:
        count = save_cache(options.save_cache, cache, tokens, model)
        print(f"[cache: {count} tokens in {options.save_cache}]", file=sys.stderr)
