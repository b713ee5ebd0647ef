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

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

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
    small = draft._replace(model=first_layers(draft.model, layers))
    return partial(guess_on, small, blocked)


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

    return partial(guess_on, draft, partial(windowed, window))


def windowed(
    window: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Attention of one query to the last positions only; else as `blocked`."""
    first = max(0, int(start[0]) + 1 - window)
    return blocked(q, k[:, :, first:], v[:, :, first:], start - first)


def guess_on(
    draft: Job, attend: Callable, text: Sequence[int], most: int, cache: KVCache
) -> Draft:
    """Guess on the target's own cache; its length does not change.

    Writes
    ------
    Into the cache, after the text: keys and values of the draft's layers.
    """
    L = len(draft.model.layers)
    beside = KVCache(cache.k[:L], cache.v[:L], cache.length.copy())
    after = partial(logits_after, draft.model, beside, attend)
    return guesses(draft, after, text, most)


def logits_after(
    model: Model, cache: KVCache, attend: Callable, texts: Sequence[Sequence[int]]
) -> np.ndarray:
    """Logits after the last token of one text, (1, V); the others lie in the cache."""
    token = np.array([texts[0][-1:]])  # (1, 1)
    return forward(model, token, cache, attend=attend)[:, -1]
