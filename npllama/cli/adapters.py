"""``--adapter``: a LoRA beside the weights, without merging the two."""

from __future__ import annotations

import argparse
from pathlib import Path

from npllama.cli.options import MODEL, UsageError, titled
from npllama.compression.adapters import Use, adapted, read_adapter
from npllama.weights import Model


def add_adapter_option(command: argparse.ArgumentParser) -> None:
    """Which adapter."""
    titled(command, MODEL).add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="folder of a LoRA adapter (PEFT), used beside the weights without merging "
        "it into them",
    )


def check_adapter_option(options: argparse.Namespace) -> None:
    """Raise UsageError if an option does not go with --adapter."""
    if options.adapter is None:
        return
    for name in ("memory", "save_cache", "load_cache"):
        if getattr(options, name, None) is not None:
            raise UsageError(
                f"--adapter: not with --{name.replace('_', '-')}; merge it first: "
                "npllama convert BASE OUT.npz --adapter DIR"
            )


def with_adapter(model: Model, options: argparse.Namespace) -> Model:
    """The model with the adapter that was asked for, if any, beside its weights."""
    folder = getattr(options, "adapter", None)
    if folder is None:
        return model
    adapter = read_adapter(folder, model.config, model.embed.dtype.name)
    return adapted(model, [Use(adapter)])
