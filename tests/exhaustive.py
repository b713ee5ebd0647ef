"""Exhaustive search: score every possible text, and so know the truth.

Of use only where texts are few (a vocabulary of a handful of words, a few steps),
but there it is the yardstick that every other strategy can be held against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npllama.decoding.beam import Beam, BeamRules, ranked, reorder, successors
from npllama.decoding.common import (
    Hypothesis,
    Job,
    Process,
    Stop,
    extend,
    prefill,
    unprocessed,
)
from npllama.sampling import log_softmax
from npllama.weights import Model

MOST_TEXTS = 100_000


def exhaustive_search(
    model: Model,
    prompt: Sequence[int],
    stop: Stop,
    max_new_tokens: int,
    process: Process = unprocessed,
    *,
    length_penalty: float = 0.0,
) -> list[Hypothesis]:
    """Every continuation of one prompt, with its log-probability, best first.

    Parameters
    ----------
    model, prompt, stop, max_new_tokens, process, length_penalty
        As in a `Job` and its `BeamRules`.

    Returns
    -------
    list of Hypothesis
        Those of probability 0 left out.

    Raises
    ------
    ValueError
        If there would be too many to hold.
    """
    V = model.config.vocab_size
    if V**max_new_tokens > MOST_TEXTS:
        raise ValueError(
            f"{V} tokens, {max_new_tokens} steps: more than {MOST_TEXTS} texts; "
            "exhaustive search is for tiny vocabularies"
        )
    capacity = Job(model, prompt, max_new_tokens).capacity
    longest = capacity - len(prompt)
    cache, logits = prefill(model, [prompt], capacity)
    rules = BeamRules(1, length_penalty)
    growing, finished = [Beam([], 0.0, 0)], []
    while growing:
        history = [[*prompt, *beam.tokens] for beam in growing]
        log_probs = process(history, log_softmax(logits))
        texts = successors(growing, log_probs, V * len(growing))
        texts = [text for text in texts if text.score > -np.inf]
        growing = []
        for text in texts:
            reason = stop(text.tokens)
            reason = reason or ("length" if len(text.tokens) >= longest else None)
            if reason:
                finished.append(rules.finished(text, reason))
            else:
                growing.append(text)
        if growing:
            cache = reorder(cache, [text.parent for text in growing])
            logits = extend(model, np.array([t.tokens[-1] for t in growing]), cache)
    return ranked(finished)
