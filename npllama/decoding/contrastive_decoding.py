r"""Contrastive decoding: what an expert knows and an amateur does not.

A small model makes the mistakes of a large one, but more of them: it repeats itself,
stays vague, leaves the subject.  So use the difference of the two,

$$(1 + \beta)\, e(x) - \beta\, a(x)$$

with e and a the logits of the large and of the small model, the *expert* and the
*amateur*.  A token that both find unlikely could have any difference, so only tokens
that the expert finds likely are considered, p_e(x) >= alpha max p_e.

This shapes the distribution before a token is chosen.  So it is not a search but a
`process`, for use with `sample` and the other strategies.

O'Brien and Lewis 2023, arXiv:2309.09117, eq. 2; Li et al. 2022, arXiv:2210.15097,
whose plain difference e - a is the case of an infinite beta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from npllama.decoding.common import Process
from npllama.decoding.follower import Follower
from npllama.sampling import log_softmax
from npllama.weights import Model


def contrast(
    expert: np.ndarray, amateur: np.ndarray, alpha: float = 0.1, beta: float = 0.5
) -> np.ndarray:
    """Move the expert's logits away from the amateur's.

    Parameters
    ----------
    expert, amateur : (B, V) float
    alpha : float
        In (0, 1]: how likely the expert must find a token, relative to its best.
    beta : float
        At least 0; 0 ignores the amateur, infinity gives the difference.

    Returns
    -------
    (B, V) float
        Minus infinity for tokens that are not plausible.

    Raises
    ------
    ValueError
        If alpha or beta is out of range, or the vocabularies differ.
    """
    if not 0 < alpha <= 1 or not beta >= 0:
        raise ValueError(
            f"contrastive decoding: alpha {alpha} must lie in (0, 1], beta {beta} must "
            "be at least 0"
        )
    if expert.shape != amateur.shape:
        raise ValueError(
            f"contrastive decoding: logits of {expert.shape} and {amateur.shape}; "
            "both models must have one vocabulary"
        )
    least = expert.max(axis=-1, keepdims=True) + math.log(alpha)  # (B, 1)
    plausible = (expert >= least) & (expert > -np.inf)  # (B, V)
    difference = np.subtract(
        expert, amateur, where=plausible, out=np.zeros_like(expert)
    )
    moved = difference if math.isinf(beta) else expert + beta * difference
    return np.where(plausible, moved, expert.dtype.type(-np.inf))


def contrastive_decoding(
    amateur: Model,
    capacity: int,
    alpha: float = 0.1,
    beta: float = 0.5,
    amateur_temperature: float = 1.0,
) -> Process:
    """Make the `process` that keeps away from an amateur.

    Parameters
    ----------
    amateur : Model
        With the same vocabulary; it reads the same text, with its own cache.
    capacity : int
        Tokens that the text can have.
    alpha, beta : float
        See `contrast`.
    amateur_temperature : float
        Li et al. divide the amateur's logits by 0.5 to 1, which makes it surer.

    Returns
    -------
    function
        From histories and the expert's logits to logits.

    Raises
    ------
    ValueError
        If the temperature is not above 0.
    """
    if not amateur_temperature > 0:
        raise ValueError(f"amateur_temperature is {amateur_temperature}, not above 0")
    follower = Follower(amateur, capacity)

    def process(history: Sequence[Sequence[int]], logits: np.ndarray) -> np.ndarray:
        other = follower.logits(history) / amateur_temperature
        # For beams, rows must be comparable: so log-probabilities, as in the papers.
        other = log_softmax(other).astype(logits.dtype)
        return contrast(logits, other, alpha, beta)

    return process
