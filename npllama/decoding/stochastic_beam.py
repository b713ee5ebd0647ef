r"""Stochastic beam search: draw several texts at once, no two of them equal.

Adding independent Gumbel noise to the log-probabilities of all possible texts and
taking the k largest draws k texts *without replacement*.  There are far too many
texts to list, but the noise can be made from the top down: the largest noisy value
below a node of the tree of texts is itself Gumbel distributed, so each node's
children are drawn under the condition that their largest equals the value that the
node was given.  A beam search by these noisy values then finds the k largest
leaves exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.decoding.beam import reorder
from npllama.decoding.common import (
    Process,
    Stop,
    extend,
    prefill,
    room,
    top,
    unprocessed,
)
from npllama.sampling import log_softmax
from npllama.weights import Model


class Draw(NamedTuple):
    """A text of the sample, or the beginning of one."""

    tokens: list[int]
    log_prob: float  # of the text under the processed distributions
    noisy: float  # log_prob with its Gumbel noise: what texts are ranked by
    reason: str | None = None  # why it ended; None while it grows
    parent: int = 0


def stochastic_beam_search(
    model: Model,
    prompt: Sequence[int],
    stop: Stop,
    max_new_tokens: int,
    num_beams: int,
    rng: np.random.Generator,
    process: Process = unprocessed,
) -> list[Draw]:
    """Draw `num_beams` different continuations, each as likely as the model says.

    Parameters
    ----------
    model, prompt, stop, max_new_tokens, process
        As in `beam_search`, but `process` is given logits, and what it returns is
        normalised.
    num_beams : int
        How many texts to draw; fewer are returned if there are not as many.
    rng : np.random.Generator

    Returns
    -------
    list of Draw
        Largest noisy value first: the first is an ordinary sample, the second one
        of what is left without the first, and so on.

    References
    ----------
    Kool, van Hoof and Welling 2019, arXiv:1903.06059, algorithm 1.
    """
    capacity = room(model, len(prompt), max_new_tokens)
    longest = capacity - len(prompt)
    cache, logits = prefill(model, [prompt], capacity)
    growing, ended = [Draw([], 0.0, 0.0)], list[Draw]()
    while growing:
        history = [[*prompt, *draw.tokens] for draw in growing]
        log_probs = log_softmax(process(history, logits)).astype(np.float64)  # (B, V)
        children = [
            child
            for parent, draw in enumerate(growing)
            for child in grow(draw, parent, log_probs[parent], num_beams, rng)
        ]
        # Texts that have ended go on competing, with the noise they have.
        kept = sorted(ended + children, key=lambda draw: -draw.noisy)[:num_beams]
        kept = [_judge(draw, stop, longest) for draw in kept]
        ended = [draw for draw in kept if draw.reason]
        growing = [draw for draw in kept if not draw.reason]
        if growing:
            cache = reorder(cache, [draw.parent for draw in growing])
            last = np.array([draw.tokens[-1] for draw in growing])
            logits = extend(model, last, cache)
    return sorted(ended, key=lambda draw: -draw.noisy)


def grow(
    draw: Draw, parent: int, log_probs: np.ndarray, keep: int, rng: np.random.Generator
) -> list[Draw]:
    """The children of a node with the largest noisy values.

    Parameters
    ----------
    log_probs : (V,) float64
        Of every next token.
    """
    possible = np.flatnonzero(log_probs > -np.inf)
    total = draw.log_prob + log_probs[possible]
    noisy = noise_with_maximum(total, draw.noisy, rng)
    return [
        Draw([*draw.tokens, int(possible[i])], total[i], noisy[i], None, parent)
        for i in top(noisy, keep)
    ]


def noise_with_maximum(
    log_probs: np.ndarray, maximum: float, rng: np.random.Generator
) -> np.ndarray:
    """Gumbel noise on log-probabilities, given that its largest is `maximum`.

    Parameters
    ----------
    log_probs : (V,) float64, finite

    Returns
    -------
    (V,) float64

    References
    ----------
    Kool et al. 2019, appendix B.3: a form that loses no digits.
    """
    free = log_probs + rng.gumbel(size=len(log_probs))  # (V,)
    with np.errstate(divide="ignore"):
        v = maximum - free + np.log1p(-np.exp(free - free.max()))
    return maximum - np.maximum(v, 0) - np.log1p(np.exp(-np.abs(v)))


def _judge(draw: Draw, stop: Stop, longest: int) -> Draw:
    """Mark a text that ends here; its parent is of no use any more."""
    if draw.reason:
        return draw
    reason = stop(draw.tokens) or ("length" if len(draw.tokens) >= longest else None)
    return draw._replace(reason=reason)
