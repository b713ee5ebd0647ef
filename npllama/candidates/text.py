"""What a backend is given: the weights, and the tokens of the golden trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npllama.config import Config
from npllama.golden.floor import TraceStep, steps_of
from npllama.weights import LAYER_NAMES, Model, tensor_shapes

# What `run` of every backend yields.
Named = Iterator[tuple[str, np.ndarray]]


class Text(NamedTuple):
    """Tokens, to be run step by step: the prompt at once, then one by one.

    A backend never chooses a token: the tokens of the golden trace are given to it.
    Otherwise the two would soon read different texts.
    """

    tokens: np.ndarray  # (B, S) int64
    steps: tuple[TraceStep, ...]

    def pieces(self) -> Iterator[tuple[TraceStep, np.ndarray]]:
        """Every step and its tokens, (B, T)."""
        for step in self.steps:
            yield step, self.tokens[:, step.first : step.end]


def text_of(golden) -> Text:
    """Read tokens and steps from an opened trace.

    Raises
    ------
    ValueError
        If it holds no tokens or no steps.
    """
    steps = tuple(steps_of(golden))
    tokens = np.atleast_2d(np.asarray(golden["tokens"]))
    return Text(tokens.astype(np.int64), steps)


def check_silu(config: Config, backend: str) -> None:
    """Raise ValueError if the feed-forward bends in a way that a backend has not."""
    if config.hidden_act != "silu":
        raise ValueError(f"{backend} computes SiLU here, not {config.hidden_act}")


def named_weights(model: Model) -> dict[str, np.ndarray]:
    """The model's weights under the names and in the shapes that they have on disk."""
    found = {"model.embed_tokens": model.embed, "model.norm": model.norm}
    found = {f"{name}.weight": w for name, w in found.items()}
    found["lm_head.weight"] = model.lm_head
    for i, layer in enumerate(model.layers):
        for word, name in LAYER_NAMES.items():
            found[f"model.layers.{i}.{name}"] = getattr(layer, word)
    shapes = tensor_shapes(model.config)
    return {name: found[name].reshape(shape) for name, shape in shapes.items()}
