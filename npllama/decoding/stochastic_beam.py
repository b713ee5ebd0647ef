r"""Stochastic beam search: draw several texts at once, no two of them equal.

Adding independent Gumbel noise to the log-probabilities of all possible texts and
taking the k largest draws k texts *without replacement*.  There are far too many
texts to list them, but the noise can be drawn from the top of the tree of texts
down.  The largest noisy value below a node is itself Gumbel distributed; so draw the
values of a node's children under the condition that the largest of them equals the
value of the node.  A beam search by these noisy values then finds the k largest
leaves exactly.
"""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

import numpy as np

from npllama.decoding.beam import reorder
from npllama.decoding.common import Hypothesis, Job, extend, prefill, top
from npllama.sampling import log_softmax


class Draw(NamedTuple):
    """A text of the sample, or the beginning of one."""

    tokens: list[int]
    log_prob: float  # of the text under the processed distributions
    noisy: float  # log_prob with its Gumbel noise: what texts are ranked by
    reason: str | None = None  # why it ended; None while it grows
    parent: int = 0


NOISY = attrgetter("noisy")


def stochastic_beam_search(job: Job, num_beams: int) -> list[Hypothesis]:
    """Draw `num_beams` different continuations, each as likely as the model says.

    Parameters
    ----------
    job : Job
        With `rng`.  `process` takes logits, and its result is normalised.
    num_beams : int
        How many texts to draw; fewer are returned if there are fewer.

    Returns
    -------
    list of Hypothesis
        The score of each is its log-probability under the processed distributions.
        They come in the order of the draw: the first is an ordinary sample, the
        second is a sample of all texts except the first, and so on.

    References
    ----------
    Kool, van Hoof and Welling 2019, arXiv:1903.06059, algorithm 1.
    """
    cache, logits = prefill(job.model, [job.prompt], job.capacity)
    growing, ended = [Draw([], 0.0, 0.0)], list[Draw]()
    while growing:
        history = [[*job.prompt, *draw.tokens] for draw in growing]
        processed = job.process(history, logits)
        log_probs = log_softmax(processed).astype(np.float64)  # (B, V)
        children = [
            child
            for parent, draw in enumerate(growing)
            for child in grow(draw, parent, log_probs[parent], num_beams, job.rng)
        ]
        # Texts that have ended keep their noise, and still compete.
        kept = sorted(ended + children, key=NOISY, reverse=True)[:num_beams]
        kept = [d if d.reason else d._replace(reason=job.ends(d.tokens)) for d in kept]
        ended = [draw for draw in kept if draw.reason]
        growing = [draw for draw in kept if not draw.reason]
        if growing:
            cache = reorder(cache, [draw.parent for draw in growing])
            last = np.array([draw.tokens[-1] for draw in growing])
            logits = extend(job.model, last, cache)
    ended.sort(key=NOISY, reverse=True)
    return [Hypothesis(draw.tokens, draw.log_prob, draw.reason) for draw in ended]


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
