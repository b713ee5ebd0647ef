"""Greedy search and sampling: one token at a time, never looking back.

After each step every row holds one distribution over the vocabulary.  Greedy takes
its peak; sampling takes a token at random, each as often as its probability says.
Everything that shapes the distribution (temperature, top-p ...) has happened in
`process` before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.common import (
    Process,
    Stop,
    extend,
    prefill,
    room,
    unprocessed,
)
from npllama.decoding.single import longest, within
from npllama.sampling import draw, greedy, softmax
from npllama.weights import Model


class Step(NamedTuple):
    """What one step of a batch decided."""

    tokens: list[int | None]  # B of them; None where a row had ended before
    reasons: list[str | None]  # why a row ends with this token, where it does
    raw: np.ndarray  # (B, V), the model's logits
    processed: np.ndarray  # (B, V), those that were decided on


def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    stop: Stop,
    max_new_tokens: int | Sequence[int],
    process: Process = unprocessed,
    rngs: Sequence[np.random.Generator] | None = None,
    cache: KVCache | None = None,
) -> Iterator[Step]:
    """Continue every prompt, yielding one token per row and step.

    Parameters
    ----------
    model : Model
    prompts : B sequences of token ids
    stop : function
        New tokens of a row to the reason for ending, or None.
    max_new_tokens : int
        Or one number per row.
    process : function
        Histories and logits to logits.
    rngs : B generators
        One per row, so that a row's text does not depend on its neighbours.  None
        decides greedily.
    cache : KVCache
        May hold a beginning of each prompt; see `prefill`.  Its room, if it is
        given, ends a row with "context".

    Yields
    ------
    Step
        Until every row has ended.
    """
    B = len(prompts)
    limits = [max_new_tokens] * B if isinstance(max_new_tokens, int) else max_new_tokens
    capacity = room(model, max(map(len, prompts), default=0), max(limits, default=0))
    cache, logits = prefill(model, prompts, capacity, cache)
    full = longest(model, cache)
    ends = [within(stop, limit, full - len(p)) for limit, p in zip(limits, prompts)]
    history = [list(prompt) for prompt in prompts]
    going = np.ones(B, dtype=bool)
    while going.any():
        processed = process(history, logits)
        # What is said of rows that have ended means nothing.
        some = None if rngs is None else [r for r, on in zip(rngs, going) if on]
        chosen = np.zeros(B, dtype=np.int64)  # (B,)
        chosen[going] = choose(processed[going], some)
        for b in np.flatnonzero(going):
            history[b].append(int(chosen[b]))
        reasons = [
            ends[b](history[b][len(prompts[b]) :]) if going[b] else None
            for b in range(B)
        ]
        tokens = [int(chosen[b]) if going[b] else None for b in range(B)]
        going &= np.array([reason is None for reason in reasons])
        yield Step(tokens, reasons, logits, processed)
        if going.any():
            logits = extend(model, chosen, cache, going)


def choose(
    logits: np.ndarray, rngs: Sequence[np.random.Generator] | None
) -> np.ndarray:
    """The token of each row: the likeliest, or one drawn by the row's generator.

    Parameters
    ----------
    logits : (B, V) float

    Returns
    -------
    (B,) int64
    """
    if rngs is None:
        return greedy(logits)
    u = np.array([rng.random() for rng in rngs])  # (B,)
    return np.asarray(draw(softmax(logits), u))
