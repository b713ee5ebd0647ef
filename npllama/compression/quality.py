r"""What rounding did to a model: divergence, agreement, surprise.

A rounded model should give the same distributions as the original.  At one position,
the *Kullback-Leibler divergence* measures how far the rounded distribution q is from
the original p,

$$\mathrm{KL}(p \,\|\, q) = \sum_i p_i \log (p_i / q_i)$$

in nats: what it costs, on average, to expect q where p is true.  It is 0 only where
they are equal.  Its mean over positions orders methods and bits even where differences
are small.  Perplexity does not: it asks for the one token that came, and an error in the
right direction improves it.

*Agreement* is the part of positions at which both have the same likeliest token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npllama.sampling import log_softmax


class Quality(NamedTuple):
    """A model beside the one that it was made from, over some positions of texts."""

    divergence: float  # mean of KL(p || q) in nats
    agreement: float  # part of positions with the same likeliest token
    perplexity: float  # of the rounded model
    before: float  # perplexity of the original


def divergence(exact: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """KL(p || q) at every position, in nats.

    Parameters
    ----------
    exact, rounded : (*B, V) float
        Logits of p and of q.

    Returns
    -------
    (*B,) float64

    >>> p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    >>> divergence(p, q).round(6)  # log(2) / 2 + log(2 / 3) / 2
    array([0.143841])
    """
    logp, logq = log_softmax(exact), log_softmax(rounded)  # (*B, V)
    p = np.exp(logp)
    # What never comes costs nothing, though log 0 - log 0 is no number.
    cost = np.subtract(logp, logq, out=np.zeros_like(logp), where=p > 0)  # (*B, V)
    return (p * cost).sum(axis=-1)


def surprises(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The surprise at each token but the first of a text, in nats.

    Parameters
    ----------
    logits : (1, T, V) float
    tokens : (1, T) int64

    Returns
    -------
    (T - 1,) float64
    """
    logp = log_softmax(logits[0, :-1])  # (T - 1, V)
    return -logp[np.arange(len(logp)), tokens[0, 1:]]


class Judge:
    """Gathers the quality of a rounded model, text by text."""

    def __init__(self) -> None:
        self.apart: list[np.ndarray] = []
        self.agree: list[np.ndarray] = []
        self.nats: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, exact: np.ndarray, rounded: np.ndarray, tokens: np.ndarray) -> None:
        """Take in the logits of both models, (1, T, V), for a text of (1, T)."""
        self.apart.append(divergence(exact, rounded)[0])
        self.agree.append(exact[0].argmax(axis=-1) == rounded[0].argmax(axis=-1))
        self.nats.append((surprises(exact, tokens), surprises(rounded, tokens)))

    def verdict(self) -> Quality:
        """The means over all positions that were taken in.

        Raises
        ------
        ValueError
            If there were none.
        """
        if not self.nats:
            raise ValueError("no text was judged")
        before, after = map(np.concatenate, zip(*self.nats))
        return Quality(
            float(np.concatenate(self.apart).mean()),
            float(np.concatenate(self.agree).mean()),
            float(np.exp(after.mean())),
            float(np.exp(before.mean())),
        )
