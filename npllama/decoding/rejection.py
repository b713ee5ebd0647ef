r"""Keep a guess or replace it, so that the result is distributed as if never guessed.

A token x was drawn from a distribution q, but it should have been drawn from p.
Instead of throwing x away, keep it with probability

$$\min(1,\; p(x) / q(x))$$

After a *rejection*, draw from the part of p that exceeds q:

$$r = \max(0, p - q) \,/\, \textstyle\sum \max(0, p - q)$$

The token is then distributed exactly as p, whatever q was.  The probability that a
token is drawn and kept is q min(1, p / q) = min(p, q).  The probability of a
rejection is 1 - sum min(p, q) = sum max(0, p - q), which is the denominator of r.
Together, for each token,

$$\min(p, q) + \Big(\textstyle\sum \max(0, p - q)\Big) \, r
  = \min(p, q) + \max(0, p - q) = p$$

The guess is kept with probability sum min(p, q), so always if the two are equal.  A
guess that was not drawn by chance has a q of 1 at its token and 0 elsewhere.

q must be the distribution that x was really drawn from.  A common mistake is to pass
the distribution before temperature or top-k, or a softmax for a token that was chosen
greedily.  The text still looks fine, but it has the wrong distribution.

Leviathan et al. 2022, arXiv:2211.17192, appendix A.1; Chen et al. 2023,
arXiv:2302.01318, theorem 1.
"""

from __future__ import annotations

import numpy as np

from npllama.ops import note
from npllama.sampling import draw, greedy, softmax


def accept(p: np.ndarray, q: np.ndarray, x: int, u: float) -> bool:
    """Whether a guess is kept.

    Parameters
    ----------
    p, q : (V,) float64
        The target distribution, and the one that x was drawn from.
    x : int
    u : float
        A uniform number from [0, 1).

    Returns
    -------
    bool
        True for u below min(1, p(x) / q(x)).

    Raises
    ------
    ValueError
        If the two are of different sizes, or x cannot have been drawn from q.

    Examples
    --------
    The guess 0 has 0.2 of p and 0.5 of q: it stays for u below 0.4.

    >>> p, q = np.array([0.2, 0.5, 0.3]), np.array([0.5, 0.25, 0.25])
    >>> accept(p, q, 0, 0.39), accept(p, q, 0, 0.4), accept(p, q, 1, 0.99)
    (True, False, True)
    """
    if p.shape != q.shape:
        raise ValueError(
            f"a guess from {len(q)} tokens for a model of {len(p)}: both models must "
            "have one vocabulary"
        )
    if not q[x] > 0:
        raise ValueError(f"token {x} was guessed from q, which gives it {q[x]}")
    # Strictly less: u may be 0, and must not let a token of probability 0 pass.
    return bool(u * q[x] < p[x])


def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The part of p that exceeds q, as a distribution: draw from it after a rejection.

    Parameters
    ----------
    p, q : (V,) float64

    Returns
    -------
    (V,) float64

    Examples
    --------
    What p has more than q, 0.25 and 0.05, of their sum 0.3.  So token 1 comes from a guess
    with 0.25, and after a rejection (0.3) with 0.3 times 0.833: 0.5, as p says.

    >>> p, q = np.array([0.2, 0.5, 0.3]), np.array([0.5, 0.25, 0.25])
    >>> print(residual(p, q).round(3))
    [0.    0.833 0.167]
    """
    more = np.maximum(p - q, 0)  # (V,)
    total = more.sum()
    # If p equals q nothing is left; then only rounding can have caused the rejection.
    return more / total if total > 0 else p


def one_hot(x: int, size: int) -> np.ndarray:
    """The (V,) float64 distribution of a guess that was not drawn by chance."""
    q = np.zeros(size, dtype=np.float64)  # (V,)
    q[x] = 1
    return q


def verified(
    logits: np.ndarray,
    x: int | None,
    q: np.ndarray | None,
    rng: np.random.Generator | None,
) -> int:
    """The token for one position: the guess if it is kept, otherwise its replacement.

    Parameters
    ----------
    logits : (V,) float
        The target's; their softmax is p.
    x : int or None
        The guess, if there is one.
    q : (V,) float64 or None
        The distribution that x was drawn from; None if it was not drawn by chance.
    rng : np.random.Generator or None
        None decides greedily; the guess then does not matter.

    Returns
    -------
    int
    """
    token = _decided(logits, x, q, rng)
    note("chosen", np.array([token]))
    return token


def _decided(logits, x, q, rng) -> int:
    """As `verified`, which shows it to observers, too."""
    if rng is None:
        return int(greedy(logits))
    p = softmax(logits)  # (V,)
    if x is None:
        return int(draw(p, _uniform(rng)))
    q = one_hot(x, len(p)) if q is None else q
    note("q", q)
    if accept(p, q, x, _uniform(rng)):
        return x
    return int(draw(residual(p, q), _uniform(rng)))


def _uniform(rng: np.random.Generator) -> float:
    """A number in [0, 1), shown to observers."""
    u = rng.random()
    note("u", np.array([u]))
    return u
