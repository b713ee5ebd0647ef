"""Self-speculation: the model drafts for itself, with less care.

This needs no second model and no second cache.  There are two ways, and both work on
the target's own cache:

- *Early exit*: run only the first j layers, then the norm and the head.  Keys and
  values of these layers do not depend on the layers above, so the draft uses those in
  the cache, and it writes the same values as the target would.
- *Short context*: run all layers, but look back only at the last w positions.  In a
  long text most of the time is spent on reading the cache.  The values that the draft
  writes after the text are approximate; the target overwrites them when it checks.

Early exit pays with models trained for it: LayerSkip, Elhoushi et al. 2024,
arXiv:2404.16710.  Sun et al. 2024, TriForce, arXiv:2404.11912, describe a draft that
uses part of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from npllama.attention import blocked
from npllama.cache import KVCache
from npllama.decoding.common import Job
from npllama.decoding.speculative import Draft, Propose, guesses
from npllama.model import forward
from npllama.weights import Model


def first_layers(model: Model, layers: int) -> Model:
    """The model that leaves after some of its layers; no weight is copied.

    Raises
    ------
    ValueError
        If the model has fewer layers, or none would be left.
    """
    L = model.config.num_hidden_layers
    if not 1 <= layers <= L:
        raise ValueError(f"early exit after layer {layers}: the model has {L}")
    config = replace(model.config, num_hidden_layers=layers)
    return model._replace(config=config, layers=model.layers[:layers])


def early_exit(draft: Job, layers: int) -> Propose:
    """Guess with the first layers of the target.

    Parameters
    ----------
    draft : Job
        With the target's own model; see `guesses`.
    layers : int
        How many of its layers to run.

    Returns
    -------
    function
        For `speculate`.
    """
    small = first_layers(draft.model, layers)

    def propose(text: Sequence[int], most: int, cache: KVCache) -> Draft:
        shared = KVCache(cache.k[:layers], cache.v[:layers], cache.length.copy())

        def logits_after(text: list[int]) -> np.ndarray:
            return forward(small, np.array([text[-1:]]), shared)[:, -1]

        return guesses(draft, logits_after, text, most)

    return propose


def short_context(draft: Job, window: int) -> Propose:
    """Guess with the target itself, which sees only the last positions.

    Parameters
    ----------
    draft : Job
        With the target's own model; see `guesses`.
    window : int
        Positions that a guess may look at, the one before it included.

    Returns
    -------
    function
        For `speculate`.

    Raises
    ------
    ValueError
        If the window is empty.
    """
    if window < 1:
        raise ValueError(f"a window of {window} positions shows nothing; 1 is least")

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray):
        first = max(0, int(start[0]) + 1 - window)
        return blocked(q, k[:, :, first:], v[:, :, first:], start - first)

    def propose(text: Sequence[int], most: int, cache: KVCache) -> Draft:
        beside = cache._replace(length=cache.length.copy())

        def logits_after(text: list[int]) -> np.ndarray:
            token = np.array([text[-1:]])  # (1, 1)
            return forward(draft.model, token, beside, attend=attend)[:, -1]

        return guesses(draft, logits_after, text, most)

    return propose
