r"""Factored keys: r numbers per key instead of D.

Scores are products of queries and keys.  If they lie in r directions, r numbers of a
key are enough: with two matrices (D, r) per key head,

$$q \cdot k \approx (q M) \cdot (k P)$$

and the cache holds k P.  P is applied after RoPE, to new keys as to old ones.  Two
choices of M and P:

- *from keys*: P and M both hold the first r right singular vectors of K.  That is the
  best approximation of the keys.
- *from scores*: with Q K' = U S V' cut after r, P = Q' U / S and M = Q+ U S, Q+ the
  pseudo-inverse.  By Eckart and Young no r directions give better scores on the
  queries that they were fitted to.  Query heads that share keys are stacked.

With r = D, both give the fitted scores exactly; unseen ones only if the fitted queries
and keys span all D directions.  What they cost, in numbers: r per position instead of
D, and 2 D r of M and P for every key head; so n positions need r (n + 2 D) instead of n
D.

Fitted to the first 256 tokens of the GPL and used for the next 256, SmolLM2 (D = 64)
had, as errors of the scores and as KL from the model with all of its keys:

     r    from      error, fitted    unseen    KL      same token
    16    keys      0.25             0.63      1.9     26%
    16    scores    0.16             0.53      1.7     27%
    32    keys      0.16             0.53      1.2     46%
    32    scores    0.08             0.41      0.97    49%
    48    keys      0.10             0.40      0.65    57%
    48    scores    0.04             0.26      0.26    73%

Scores are the better thing to fit, at every rank.  But a fit to 256 tokens does not
last: on unseen ones the error is two to seven times as large.  With half of the numbers
every second token becomes another, while 2 bits for all of them (see `kv_texts`) take
about a fifth of the room at a KL of 0.33.  Palu and others fit to many texts; this
chapter does not.

References
----------
Chang et al. 2024, arXiv:2407.21118 (Palu); "KQ-SVD", arXiv:2512.05916, for the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.attention import blocked
from npllama.cache import new_cache
from npllama.compression.quality import Quality, divergence
from npllama.compression.ranks import Read, read
from npllama.model import forward
from npllama.ops import multiply
from npllama.sampling import log_softmax
from npllama.weights import Model


class Factors(NamedTuple):
    """What queries and keys of one head are multiplied with."""

    m: np.ndarray  # (D, r) of queries
    p: np.ndarray  # (D, r) of keys


def from_keys(q: np.ndarray, k: np.ndarray, r: int) -> Factors:
    """The best r directions of the keys.

    Parameters
    ----------
    q : (M, D) float
        Not used: the same for any queries.
    k : (T, D) float
    r : int
    """
    _, _, right = np.linalg.svd(k.astype(np.float64), full_matrices=False)
    p = right[:r].T.astype(k.dtype)  # (D, r)
    return Factors(p, p)


def from_scores(q: np.ndarray, k: np.ndarray, r: int) -> Factors:
    """The best r directions of the scores of these queries and keys.

    Parameters
    ----------
    q : (M, D) float
        Of all query heads that share the keys.
    k : (T, D) float
    r : int
    """
    # With Q = A R, A of orthonormal columns, U of Q K' is A times U of R K'.
    triangle = np.asarray(np.linalg.qr(q.astype(np.float64), mode="r"))
    # (min(M, D), D)
    small = multiply(triangle, k.astype(np.float64).T)  # (min(M, D), T)
    left, values, _ = np.linalg.svd(small, full_matrices=False)
    values = values[:r]
    # A direction without a score gets none.
    some = values > 1e-12 * max(values[0], 1e-300)
    inverse = np.divide(1, values, out=np.zeros_like(values), where=some)
    p = multiply(triangle.T, left[:, :r]) * inverse  # (D, r)
    m = multiply(np.linalg.pinv(triangle), left[:, :r]) * values  # (D, r)
    return Factors(m.astype(k.dtype), p.astype(k.dtype))


WAYS = {"keys": from_keys, "scores": from_scores}


def score_error(q: np.ndarray, k: np.ndarray, factors: Factors) -> float:
    """The error of all scores, relative to them, in the Frobenius norm."""
    exact = multiply(q, k.T)
    found = multiply(multiply(q, factors.m), multiply(k, factors.p).T)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def numbers_per_key(D: int, r: int, positions: int) -> float:
    """What a key takes, its part of M and P included.

    >>> numbers_per_key(64, 16, 2048)
    17.0
    """
    return r * (positions + 2 * D) / positions


#  ---- in a model -----------------------------------------------------------------


def grouped(found: Read, i: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """The queries that share a key head, stacked, and its keys.

    Returns
    -------
    (G * T, D), (T, D) float
    """
    G = found.q.shape[1] // found.k.shape[1]
    q = found.q[i, head * G : (head + 1) * G]  # (G, T, D)
    return q.reshape(-1, q.shape[-1]), found.k[i, head]


class Factored:
    """An `attend` that sees r numbers of every key.

    The cache is a plain one: what is measured is the loss.  Layers are told apart by
    their order.

    Parameters
    ----------
    found : Read
        What the factors are fitted to.
    way : "keys" or "scores"
    r : int
    """

    def __init__(self, found: Read, way: str, r: int):
        L, K = found.k.shape[:2]
        fit = WAYS[way]
        every = [[fit(*grouped(found, i, h), r) for h in range(K)] for i in range(L)]
        self.m = np.array([[f.m for f in some] for some in every])  # (L, K, D, r)
        self.p = np.array([[f.p for f in some] for some in every])  # (L, K, D, r)
        self.calls = 0

    def __call__(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray
    ) -> np.ndarray:
        """Attention of (B, T, H, D) queries over the factored keys."""
        i = self.calls % len(self.m)
        self.calls += 1
        S = int(start.max()) + q.shape[1]
        seen = np.zeros_like(k)  # (B, K, N, D)
        for b in range(len(k)):
            for head, (m, p) in enumerate(zip(self.m[i], self.p[i])):
                # (q M) (k P)' = q (k P M')'
                kept = multiply(k[b, head, :S], p)  # (S, r): what a cache would hold
                seen[b, head, :S] = multiply(kept, m.T)
        return blocked(q, seen, v, start)


class Loss(NamedTuple):
    """What factored keys of one rank take and cost."""

    way: str
    r: int
    numbers: float  # per key
    fitted: float  # error of scores on the half that was fitted to
    unseen: float  # on the other half's queries and keys
    quality: Quality  # of the other half


def factored_losses(
    model: Model, tokens: Sequence[int], several: Sequence[tuple[str, int]]
) -> list[Loss]:
    """Fit to the first half of a text, judge by the second.

    Parameters
    ----------
    model : Model
    tokens : token ids
        8 or more.
    several : (way, r) of each

    Raises
    ------
    ValueError
        If the text is too short, or a rank is not one from 1 to D.
    """
    S, D = len(tokens), model.config.head_dim
    half = S // 2
    if S < 8:
        raise ValueError(f"the text has {S} tokens; 8 or more are needed")
    for _, r in several:
        if not 1 <= r <= D:
            raise ValueError(f"rank {r}: from 1 to the size of a head, {D}")
        if r > half:
            raise ValueError(f"rank {r}: the half to fit to has only {half} tokens")
    cache = new_cache(model.config, 1, S, model.embed.dtype.name)
    found = read(model, tokens, cache)
    first, second = (Read(*(x[:, :, at] for x in found)) for at in _halves(half))
    cache.length[0] = half
    part, after = np.array([tokens[half:-1]]), np.array(tokens[half + 1 :])
    exact = forward(model, part, cache)[0]  # (T, V)
    losses = []
    for way, r in several:
        attend = Factored(first, way, r)
        cache.length[0] = half
        logits = forward(model, part, cache, attend=attend)[0]  # (T, V)
        fitted, unseen = (_error(x, attend) for x in (first, second))
        quality = _quality(exact, logits, after)
        numbers = numbers_per_key(D, r, S)
        losses.append(Loss(way, r, numbers, fitted, unseen, quality))
    return losses


def _halves(half: int) -> tuple[slice, slice]:
    return slice(0, half), slice(half, None)


def _error(found: Read, attend: Factored) -> float:
    """The mean error of scores over all key heads."""
    L, K = found.k.shape[:2]
    return float(
        np.mean(
            [
                score_error(
                    *grouped(found, i, h), Factors(attend.m[i, h], attend.p[i, h])
                )
                for i in range(L)
                for h in range(K)
            ]
        )
    )


def _quality(exact: np.ndarray, logits: np.ndarray, after: np.ndarray) -> Quality:
    """Judge logits (T, V) by those of the whole model and the tokens that came."""
    rows = np.arange(len(after))
    before, nats = (-log_softmax(x)[rows, after].mean() for x in (exact, logits))
    same = (exact.argmax(axis=-1) == logits.argmax(axis=-1)).mean()
    apart = divergence(exact, logits).mean()
    return Quality(float(apart), float(same), math.exp(nats), math.exp(before))
