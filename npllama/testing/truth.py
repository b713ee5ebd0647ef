"""The right results for a row of logits, in float64 and plain steps.

A check must be independent of what it checks, so this section uses none of the samplers
of the package.  A sampler's running sum in float32 may differ from the true one by a
few units in the last place.  `slack` bounds that difference; it is zero for rows whose
sums are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Probs = NDArray[np.float64]
GONE = float("-inf")


def softmax(logits: NDArray) -> Probs:
    """Probabilities, (V,) float64; exactly 0 for what is removed."""
    exact = logits.astype(np.float64)
    mass = np.exp(exact - exact.max())  # (V,)
    return mass / mass.sum()


def log_softmax(logits: NDArray) -> Probs:
    """Natural log-probabilities, (V,) float64."""
    exact = logits.astype(np.float64)
    below = exact - exact.max()  # (V,)
    return below - np.log(np.exp(below).sum())


def entropy(logits: NDArray) -> float:
    """Mean surprise of a draw in nats."""
    logp = log_softmax(logits[logits > GONE])
    return -float((np.exp(logp) * logp).sum())


def ranked(logits: NDArray, ties: str) -> list[int]:
    """Ids of what is left, largest logit first, equals by `ties`."""
    sign = -1 if ties == "highest" else 1
    return sorted(alive(logits), key=lambda i: (-logits[i], sign * i))


def alive(logits: NDArray) -> set[int]:
    """Ids of what is not removed."""
    return set(np.flatnonzero(logits > GONE).tolist())


def slack(logits: NDArray) -> float:
    """How far sums of probabilities may be off in a sampler that adds in float32."""
    left = logits[logits > GONE].astype(np.float64)
    equals = int((left == left.max()).sum())
    nothing = left[left < left.max()] <= left.max() - 1000
    exact = bool(nothing.all()) and equals & (equals - 1) == 0
    return 0.0 if exact else 3e-6 + 2e-7 * left.size


def nearly(logits: NDArray) -> float:
    """How far logits may be apart and still have one probability in float32."""
    return 1e-6 * (1 + float(abs(logits[logits > GONE]).max()))


def is_first(logits: NDArray, ids: set[int], ties: str) -> bool:
    """Whether `ids` are the largest so many, equals chosen by `ties`."""
    order = ranked(logits, ties)
    if not ids or len(ids) == len(order):
        return ids == set(order)
    edge = float(logits[order[len(ids) - 1]])
    others = logits[(logits != edge) & (logits > GONE)].astype(np.float64)
    least = min(float(logits[i]) for i in ids)
    most = max(float(logits[i]) for i in order if i not in ids)
    # A sampler that sorts probabilities may take neighbouring floats for equals.
    if len(others) and abs(others - edge).min() < nearly(logits):
        return ids <= set(order) and least >= most - nearly(logits)
    if ties == "all":
        return least > most
    if ties == "any":
        return least >= most and ids <= set(order)
    return ids == set(order[: len(ids)])
