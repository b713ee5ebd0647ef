"""The options of generation on the command line: one per field of the config.

``--num-beams 4`` sets `num_beams`; values that are not numbers or words are written in
JSON, such as ``--bad-words-ids '[[5], [6, 7]]'``.  By default the command line samples
at temperature 0.8.  Temperature 0, beams and the other searches choose without chance,
unless ``--do-sample`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from npllama.files.checkpoint import load, with_context
from npllama.generation.generate import most_texts
from npllama.generation.limits import FLAG
from npllama.generation.options import DEFAULTS as FIELD_DEFAULTS
from npllama.generation.options import (
    OPTIONS,
    GenerationConfig,
    Option,
)
from npllama.generation.task import Helpers, format_of
from npllama.generation.wishes import load_options, options_of
from npllama.weights import Model

# The command line's own defaults, made for reading stories.
DEFAULTS = {"max_new_tokens": 256, "temperature": 0.8}

# Where the command line's default is not a value.
IN_WORDS = {"do_sample": "on, unless temperature is 0 or a search is asked for"}
# What a value looks like where its type does not say.
LOOKS = {
    "allowed_special": "; may be given several times",
    "stop_strings": "; may be given several times",
    "json_schema": "; JSON, or @FILE",
    "watermarking_config": "; JSON of the fields of a GreenList or a SynthID",
    "temperature": "; 0 takes the likeliest token",
}
NOT_HERE = {"prefix_allowed_tokens_fn"}  # a Python function cannot be typed in


class UsageError(Exception):
    """The command was called in a way that has no meaning."""


def one_line(message: str) -> str:
    """A message as one line; a file's own names may hold codes that move a cursor."""
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def in_words(error: OSError) -> str:
    """The error and its file, in words."""
    if error.strerror is None or error.filename is None:
        return error.strerror or str(error)
    return f"{error.strerror}: {error.filename}"


MODEL, CACHE = "Model", "Cache, and texts past its length"


def titled(command: argparse.ArgumentParser, title: str):
    """The group of options with this title; a new one, if there is none."""
    known = (group for group in command._action_groups if group.title == title)
    return next(known, None) or command.add_argument_group(title)


def add_context_option(command: argparse.ArgumentParser) -> None:
    """How many positions the model may see."""
    titled(command, MODEL).add_argument(
        "--context",
        type=int,
        metavar="N",
        help="positions that the model may see (default: what its file says); what it "
        "says beyond its own is unproved",
    )


def in_context(model: Model, context: int | None) -> Model:
    """The model with the context that was asked for; a longer one is remarked on."""
    if context is None:
        return model
    before = model.config.max_position_embeddings
    try:
        config = with_context(model.config, context)
    except ValueError as error:
        raise UsageError(f"--context: {error}") from None
    if context > before:
        print(
            f"[made for {before} positions; what it says beyond them is unproved]",
            file=sys.stderr,
        )
    return model._replace(config=config)


def add_generation_options(
    command: argparse.ArgumentParser, defaults: Mapping[str, Any] = DEFAULTS
) -> None:
    """One option for every field of `GenerationConfig`, and those for helpers.

    The help tells `defaults` where the command has others than the fields.
    """
    command.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="makes chance repeatable (0 or more; default: another each time, printed)",
    )
    titled(command, MODEL).add_argument(
        "--assistant", metavar="FILE", help="weights of a draft model (speculation)"
    )
    titled(command, MODEL).add_argument(
        "--amateur",
        metavar="FILE",
        help="weights of the amateur (contrastive decoding)",
    )
    command.add_argument(
        "--generation-config",
        metavar="FILE",
        help="a generation_config.json to begin with; options have precedence",
    )
    groups: dict[str, Any] = {}
    kinds = {field.name: str(field.type) for field in fields(GenerationConfig)}
    for name, option in OPTIONS.items():
        if name in NOT_HERE:
            continue
        if option.chapter not in groups:
            groups[option.chapter] = command.add_argument_group(option.chapter)
        group, flag = groups[option.chapter], "--" + name.replace("_", "-")
        text = _help(name, option, defaults)
        if kinds[name] == "bool":
            action: Any = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=None, help=text)
        elif name in ("stop_strings", "allowed_special"):
            group.add_argument(flag, action="append", metavar="TEXT", help=text)
        else:
            read, shape = _reader(kinds[name])
            group.add_argument(flag, type=read, metavar=shape, help=text)


def _help(name: str, option: Option, defaults: Mapping[str, Any]) -> str:
    """What an option does, its range and its default."""
    default = (FIELD_DEFAULTS | dict(defaults))[name]
    usual = IN_WORDS.get(name, "on" if default is True else default or "off")
    legal = (
        "" if option.range is FLAG else f"{option.range.legal}{LOOKS.get(name, '')}; "
    )
    return f"{option.says} ({legal}default: {usual})".replace("%", "%%")


def _reader(kind: str) -> tuple[Callable[[str], Any], str]:
    """How to read a field of this type, and what to call it in the help."""
    if kind in ("int", "int | None"):
        return int, "N"
    if kind in ("float", "float | None"):
        return float, "X"
    if kind in ("str", "str | None"):
        return str, "TEXT"
    return _json_or_word, "JSON"


def _json_or_word(text: str) -> Any:
    """A JSON value, or a plain word such as "never"; ``@FILE`` reads it from there."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"{text[1:]}: {error}") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if text.isidentifier():
            return {"True": True, "False": False}.get(text, text)
    file = f"; for the file: @{text}" if os.path.isfile(text) else ""
    raise argparse.ArgumentTypeError(f"{text!r:.60} is not JSON{file}")


NOTHING: Mapping[str, Any] = {}


def generation_config(
    options: argparse.Namespace,
    model: Model | None = None,
    more: Mapping[str, Any] = NOTHING,
) -> GenerationConfig:
    """The options as a config; a value out of range is a usage error.

    Defaults come from the command line, from the model's makers, and from a file that
    the user names; later ones override earlier ones.  Options by
    name, in `more`, override them all.
    """
    given = dict(DEFAULTS)
    named = ((f.name, getattr(options, f.name, None)) for f in fields(GenerationConfig))
    own = {n: _in_text(n, v) for n, v in named if v is not None}
    own = _over(own, dict(more))
    if model is not None:
        given = _over(given, options_of(model, own))
    if options.generation_config:
        given = _over(given, load_options(options.generation_config, own))
    given = _over(given, own)
    try:
        config = _config(given)
        format_of(config)  # a malformed pattern is misuse, too
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    return config


def as_text(word: str) -> str:
    """A word of the command line; UnicodeError if it is not UTF-8."""
    # If the system's encoding is not UTF-8, Python has kept the bytes as surrogates.
    return word.encode("utf-8", "surrogateescape").decode("utf-8")


def _in_text(name: str, value: Any) -> Any:
    """The value of an option, with the words in it read."""
    if isinstance(value, list):
        return [_in_text(name, one) for one in value]
    try:
        return as_text(value) if isinstance(value, str) else value
    except UnicodeError:
        raise UsageError(f"--{name.replace('_', '-')} is not UTF-8") from None


def _over(given: dict[str, Any], stronger: dict[str, Any]) -> dict[str, Any]:
    """Two sets of options as one; a length given in one way undoes the other way."""
    if "max_length" in stronger:
        given = {k: v for k, v in given.items() if k != "max_new_tokens"}
    return given | stronger


def _config(given: dict[str, Any]) -> GenerationConfig:
    if isinstance(given.get("logit_bias"), dict):
        # JSON has no other keys than words.
        given["logit_bias"] = {
            int(key) if key.isdecimal() else key: bias
            for key, bias in given["logit_bias"].items()
        }
    if given["temperature"] < 0:
        raise UsageError(
            f"temperature is {given['temperature']}; it must be 0, which takes the "
            "likeliest token, or above"
        )
    if given["temperature"] == 0:
        given |= {"temperature": 1.0, "do_sample": False}
    if "do_sample" in given:
        return GenerationConfig(**given)
    beams = given.get("num_beams", 1) > 1
    quiet = beams or given.get("penalty_alpha") or given.get("dola_layers")
    return GenerationConfig(**given, do_sample=not quiet)


def helpers(options: argparse.Namespace) -> Helpers:
    """The models that some strategies need besides the main one."""
    assistant = load(options.assistant) if options.assistant else None
    amateur = load(options.amateur) if options.amateur else None
    return Helpers(assistant, amateur)


def generator(options: argparse.Namespace) -> np.random.Generator:
    """The source of chance; a seed that was not given is noted in the options."""
    if options.seed is None:
        options.seed = int(np.random.SeedSequence().generate_state(1)[0])
    if options.seed < 0:
        raise UsageError(f"seed is {options.seed}; it must be 0 or more")
    return np.random.default_rng(options.seed)


def streams(config: GenerationConfig) -> bool:
    """Whether one text is asked for, in a way that is known token by token."""
    return most_texts(config) == 1
