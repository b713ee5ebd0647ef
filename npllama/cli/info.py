"""The command ``npllama info``: the parts of a model, and what it needs to run.

The weights are not loaded: the description in the file and the shapes of its tensors
are enough.  ``--check`` reads the whole file, a block at a time, and compares every
member with its checksum.  Loading does not, since it maps the weights and reads only
what is used.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from npllama.cli.cost import read_config
from npllama.cli.options import UsageError
from npllama.config import PRESETS, Config
from npllama.cost import cache_bytes, parameters
from npllama.decoding import context_length
from npllama.files.checkpoint import checked, locate, lost_on_the_way, refuse_source
from npllama.files.npz import Reading, read_npz
from npllama.files.packed import Packed
from npllama.text.chat import detect_format
from npllama.text.tokenizer import Tokenizer

Facts = dict[str, dict[str, Any]]


def add_commands(commands) -> None:
    """Add ``info``."""
    command = commands.add_parser(
        "info",
        help="what a model is made of",
        description="What a model is made of, and what it takes to run.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("model", nargs="?", metavar="MODEL",
           help="an .npz, the name of a shipped model, a config.json, or one of "
           f"{', '.join(PRESETS)} (default: stories)")
    option("--weights", metavar="FILE", help="the same as MODEL: an .npz")
    option("--config", metavar="MODEL", help="the same as MODEL: no weights are needed")
    option("--check", action="store_true",
           help="read the whole file and compare it with its checksums")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def run_info(options: argparse.Namespace) -> None:
    """Print the parts of a model."""
    named = [n for n in (options.model, options.weights, options.config) if n]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)}: one model at a time")
    name = named[0] if named else "stories"
    alone = name == options.config or name in PRESETS or name.endswith(".json")
    if alone and options.check:
        raise UsageError(f"--check reads an .npz; {name} is a config")
    facts = of_config(read_config(name)) if alone else of_file(name, options.check)
    print(json.dumps(facts) if options.json else as_text(facts))


def of_config(config: Config) -> Facts:
    """Config, parameters per component, and bytes of weights and cache in float32."""
    # With tied embeddings lm_head has no weights of its own.
    parts = {name: n for name, n in parameters(config).items() if n}
    rope = {k: v for k, v in asdict(config.rope).items() if v is not None}
    numbers = {k: v for k, v in asdict(config).items() if k != "rope"}
    full = cache_bytes(config, context_length(config), 4)
    return {
        "config": numbers | rope,
        "parameters": parts | {"total": sum(parts.values())},
        "bytes, as computed with": {
            "dtype": "float32",
            "weights": sum(parts.values()) * 4,
            "cache per token": cache_bytes(config, 1, 4),
            "cache of a full context": full,
        },
    }


def of_file(name: str, check: bool) -> Facts:
    """The content of a file of weights, and the facts of its config.

    Raises
    ------
    ValueError, OSError
        If it is not a whole model, or a checksum is wrong.
    """
    path = locate(name)
    refuse_source(path)
    archive = read_npz(path, Reading(check))
    config, stored, tokenizer = checked(path, archive)
    file = {"path": str(path), "bytes": path.stat().st_size, "stored in": stored}
    if check:
        file["checksums"] = "all right"
    lost = {str(i): text for i, text in enumerate(lost_on_the_way(path), 1)}
    packed = of_packed(archive.tensors.values())
    facts = {"file": file} | ({"packed": packed} if packed else {})
    facts |= {"text": of_text(tokenizer)} | of_config(config)
    return facts | ({"converted": lost} if lost else {})


def of_packed(tensors: Iterable[Any]) -> dict[str, str]:
    """What is kept in few bits: of every format, its matrices, bytes and bits."""
    found: dict[str, list[tuple[int, int]]] = {}
    for tensor in tensors:
        if isinstance(tensor, Packed):
            format, kept = tensor.kept
            found.setdefault(format, []).append((kept, math.prod(tensor.shape)))
    sums = {name: (len(all_), *map(sum, zip(*all_))) for name, all_ in found.items()}
    return {
        name: f"{n} matrices, {kept:,} bytes, {8 * kept / size:.2f} bits per weight"
        for name, (n, kept, size) in sums.items()
    }


def of_text(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The tokenizer in the file of weights, and the form of its conversations."""
    if tokenizer is None:
        return {"tokenizer": None}
    return {
        "tokenizer": tokenizer.kind,
        "tokens": len(tokenizer.vocabulary),
        "chat format": detect_format(tokenizer),
        "chat template": bool(tokenizer.chat_template),
    }


def as_text(facts: Facts) -> str:
    """Facts under their headings, one on a line."""
    lines = []
    for heading, entries in facts.items():
        lines.append(heading)
        lines += [f"  {name:<28}{_shown(value)}" for name, value in entries.items()]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


RUN = {"info": run_info}
