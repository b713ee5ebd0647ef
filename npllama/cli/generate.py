"""``npllama generate``: a text shown as it grows, several at once, or as JSON."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from npllama.cli import adapters as adapters_cli
from npllama.cli import explain as explain_cli
from npllama.cli import kv_options, saving, streaming
from npllama.cli import offload as offload_cli
from npllama.cli import prompts as prompts_cli
from npllama.cli.logprobs import coloured, in_colours, logprob_table
from npllama.cli.options import (
    UsageError,
    as_text,
    generation_config,
    generator,
    streams,
)
from npllama.cli.show import cut_lines, show
from npllama.cli.timing import Stopwatch
from npllama.compression.kv_texts import rounded_pieces
from npllama.cost import FlopCounter
from npllama.generation.generate import (
    Generation,
    Piece,
    generate,
    most_texts,
    pieces,
)
from npllama.generation.options import GenerationConfig
from npllama.generation.task import DEFAULT_NEW_TOKENS, Helpers, encode_prompt
from npllama.serving.prompts import as_json
from npllama.weights import Model

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
    kv_options.add_kv_options(make)
    offload_cli.add_memory_option(make)
    adapters_cli.add_adapter_option(make)
    return make


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
    kv_options.rules_of(options)
    adapters_cli.check_adapter_option(options)
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
    config = config_of_text(options, model)
    tokens = encode_prompt(model, prompt, config.allowed_special)
    cache = saving.cache_of(options, model, tokens, config, help_)
    held = 0 if cache is None else int(cache.length[0])
    watch, shown = Stopwatch(len(tokens) - held), shown_prompt(model, prompt)
    asked = model, prompt, config, rng
    few = kv_options.cache_of(options, model, tokens, config, help_)
    check_table(options, config)
    if options.stream_window is not None:
        growing = streaming.endless_of(options, model, prompt, config, rng, help_)
        new, ends = show_as_it_comes(shown, watch.time(growing))
    elif few is not None:
        growing = watch.time(rounded_pieces(*asked, few))
        new, ends = show_as_it_comes(shown, growing)
    elif options.json or in_table(config) or not streams(config):
        begin = time.perf_counter()
        found = generate(model, [prompt], config, rng, help_, cache)
        assert isinstance(found, list)
        watch.whole(time.perf_counter() - begin, sum(len(f.tokens) for f in found))
        new, ends = found[0].tokens, [text.finish_reason for text in found]
        show_whole(options, model, prompt, found, watch)
    else:
        growing = watch.time(pieces(*asked, cache, help_))
        new, ends = show_as_it_comes(shown, growing)
    if not options.json:
        show("\n")
    saving.keep(options, model, cache, tokens + new)
    if not options.json:
        for line in cut_lines(ends, config, model):
            print(line, file=sys.stderr)
        tell_about(options, config, watch)
    kv_options.tell_cache(few)
    return watch


def config_of_text(options: argparse.Namespace, model: Model) -> GenerationConfig:
    """How one text is written."""
    config = generation_config(options, model)
    if options.special:
        config = replace(config, allowed_special="all")
    # A text that is not JSON shows its prompt in any case.
    return config if options.json else replace(config, echo=False)


def in_table(config: GenerationConfig) -> bool:
    """Whether log-probabilities are told, which is done once the text is there."""
    return config.logprobs is not None or config.prompt_logprobs


def check_table(options: argparse.Namespace, config: GenerationConfig) -> None:
    """Raise UsageError if log-probabilities are asked of a text that only streams."""
    grows = {
        "--stream-window": options.stream_window,
        "--cache-bits": options.cache_bits,
    }
    for flag, value in grows.items():
        if in_table(config) and value is not None:
            raise UsageError(f"{flag}: no log-probabilities are kept of such a text")


def show_whole(
    options: argparse.Namespace,
    model: Model,
    prompt: str | list[int],
    found: Sequence[Generation],
    watch: Stopwatch,
) -> None:
    """Show texts that are there, or print them as JSON."""
    if not options.json:
        return show_texts(model, shown_prompt(model, prompt), found)
    answer: dict[str, Any] = {"prompt": prompt, "seed": options.seed}
    answer["texts"] = [as_json(text, model) for text in found]
    print(json.dumps(answer | {"statistics": watch.statistics()}))


def show_texts(model: Model, prompt: str, found: Sequence[Generation]) -> None:
    """Show texts that are there; their log-probabilities are told on stderr."""
    for n, text in enumerate(found):
        show(("\n\n" if n else "") + prompt)
        if in_colours() and text.logprobs:
            sys.stdout.write(coloured(model, text))
        else:
            show(text.text)
        if text.logprobs or text.prompt_logprobs:
            show("\n")
            print(logprob_table(model, text), file=sys.stderr)


def tell_about(
    options: argparse.Namespace, config: GenerationConfig, watch: Stopwatch
) -> None:
    """Print the speed of a text that was shown, and the seed that repeats it."""
    print(watch.summary(), file=sys.stderr)
    if config.do_sample or config.stochastic_beams:
        print(f"[--seed {options.seed} repeats this text]", file=sys.stderr)


def show_as_it_comes(
    prompt: str, growing: Iterable[Piece]
) -> tuple[list[int], list[str | None]]:
    """Show a prompt and its text as it grows; an error begins a new line.

    Returns the new tokens, and why the text ends.
    """
    # The prompt is shown with the first token, after it has proved to be valid.
    pending, tokens, reason = prompt, [], None
    try:
        for piece in growing:
            show(pending + piece.text)
            pending = ""
            tokens.append(piece.token)
            reason = piece.reason
    except (ValueError, KeyboardInterrupt):
        show("" if pending else "\n")
        raise
    return tokens, [reason]


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
