"""The residual stream after any layer.

Some strategies look not only at the logits but also at the layers that led to them.
`forward` shows its arrays to observers, so it needs no change for that.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from npllama.cache import KVCache
from npllama.model import forward
from npllama.ops import Observer, observing
from npllama.weights import Model


class Stream(Observer):
    """Observer that keeps the residual stream after some of the layers.

    Layer 0 is the embedding; layer i is the output of block i, counted from 1.
    """

    def __init__(self, layers: Collection[int]):
        self.layers, self.at = frozenset(layers), 0
        self.x: dict[int, np.ndarray] = {}

    def note(self, name: str, x: np.ndarray) -> None:
        """Keep `x` if it is the output of a layer of interest."""
        if name not in ("embed_tokens", "output"):
            return
        self.at = 0 if name == "embed_tokens" else self.at + 1
        if self.at in self.layers:
            self.x[self.at] = x


def forward_with_layers(
    model: Model, tokens: np.ndarray, cache: KVCache, layers: Collection[int]
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Run tokens through the model, and keep the output of some layers.

    Writes into the cache.

    Parameters
    ----------
    model : Model
    tokens : (B, T) int64
    cache : KVCache
    layers : numbers from 0 (the embedding) to L (before the final norm)

    Returns
    -------
    logits : (B, V) float
        After the last token of every row.
    states : dict of number to (B, T, E) float
    """
    stream = Stream(layers)
    with observing(stream):
        logits = forward(model, tokens, cache, last=True)[:, 0]
    return logits, stream.x
