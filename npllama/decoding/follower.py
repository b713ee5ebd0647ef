"""A second opinion that keeps up with a growing text.

Guidance compares the model with itself under another prompt, contrastive decoding
with a smaller model; both need the logits of a second text that grows by the same
tokens.  The `Follower` holds a cache for that text.  If a history begins with tokens
that are in the cache already, only the others are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npllama.cache import KVCache, new_cache
from npllama.decoding.common import prefill
from npllama.weights import Model


class Follower:
    """Computes logits after any histories; tokens seen in the last call cost nothing.

    Parameters
    ----------
    model : Model
    capacity : int
        Tokens that the longest history will have.
    """

    def __init__(self, model: Model, capacity: int):
        self.model, self.capacity = model, capacity
        self.rows: list[tuple[list[int], KVCache]] = []

    def logits(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits after every history.

        Parameters
        ----------
        histories : B sequences of token ids, none of them empty

        Returns
        -------
        (B, V) float
        """
        alone = len(histories) == 1
        rows = [self._row(list(history), alone) for history in histories]
        self.rows = [(tokens, cache) for tokens, cache, _ in rows]
        return np.concatenate([logits for _, _, logits in rows])

    def _row(
        self, history: list[int], alone: bool
    ) -> tuple[list[int], KVCache, np.ndarray]:
        """Continue from the cached row that shares the longest beginning."""
        best, source = 0, None
        for tokens, cache in self.rows:
            shared = common_prefix(tokens, history)
            if shared > best:
                best, source = shared, cache
        cache = self._copy(source, alone)
        # At least one token must be run, because logits come from running it.
        cache.length[0] = min(best, len(history) - 1)
        cache, logits = prefill(self.model, [history], self.capacity, cache)
        return history, cache, logits

    def _copy(self, cache: KVCache | None, alone: bool) -> KVCache:
        if cache is None:
            config, dtype = self.model.config, self.model.embed.dtype.name
            return new_cache(config, 1, self.capacity, dtype)
        # With a single row the cache can be used in place; nothing else refers to it.
        if alone and len(self.rows) == 1:
            return cache
        return KVCache(*(array.copy() for array in cache))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))
