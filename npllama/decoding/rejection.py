r"""Keep a guess or replace it, so that the result is distributed as if never guessed.

Somebody drew a token x from a distribution q, and we would rather have drawn one
from p.  Instead of throwing x away, keep it with probability

$$\min(1,\; p(x) / q(x))$$

and if it is not kept, draw from what p has more of than q:

$$r = \max(0, p - q) \,/\, \textstyle\sum \max(0, p - q)$$

The token is then distributed exactly as p, whatever q was.  For a token is drawn and
kept with probability q min(1, p / q) = min(p, q); and all rejections together have
probability 1 - sum min(p, q) = sum max(0, p - q), which is the denominator of r.
Together, token by token,

$$\min(p, q) + \Big(\textstyle\sum \max(0, p - q)\Big) \, r
  = \min(p, q) + \max(0, p - q) = p$$

How often the guess is kept depends on q: in sum min(p, q) of all cases, always if
the two are equal.  A guess made without a choice has the q that is 1 there.

Everything rests on q being what x was really drawn from.  Programs have passed the
distribution before temperature or top-k, or a softmax for a token that was chosen
greedily; the text still looks fine, and is distributed as nobody asked for.

Leviathan et al. 2022, arXiv:2211.17192, appendix A.1; Chen et al. 2023,
arXiv:2302.01318, theorem 1.
"""

from __future__ import annotations

import numpy as np

from npllama.sampling import draw, greedy, softmax


def accept(p: np.ndarray, q: np.ndarray, x: int, u: float) -> bool:
    """Whether a guess is kept.

    Parameters
    ----------
    p, q : (V,) float64
        The distribution that is wanted, and the one that x was drawn from.
    x : int
    u : float
        Drawn evenly from [0, 1).

    Returns
    -------
    bool
        True for a share min(1, p(x) / q(x)) of all u.

    Raises
    ------
    ValueError
        If the two are of different sizes, or x cannot have been drawn from q.
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
    """What p has more of than q, as a distribution: where to draw from instead.

    Parameters
    ----------
    p, q : (V,) float64

    Returns
    -------
    (V,) float64
    """
    more = np.maximum(p - q, 0)  # (V,)
    total = more.sum()
    # Equal distributions leave nothing, but then only rounding can have rejected.
    return more / total if total > 0 else p


def one_hot(x: int, size: int) -> np.ndarray:
    """The (V,) float64 distribution of a guess made without a choice."""
    q = np.zeros(size, dtype=np.float64)  # (V,)
    q[x] = 1
    return q


def verified(
    logits: np.ndarray,
    x: int | None,
    q: np.ndarray | None,
    rng: np.random.Generator | None,
) -> int:
    """The token of one place: the guess if it is kept, else another.

    Parameters
    ----------
    logits : (V,) float
        Of p.
    x : int
        The guess; None if there is none.
    q : (V,) float64
        What it was drawn from; None if there was no choice.
    rng : np.random.Generator
        None decides greedily: the guess does not matter then.

    Returns
    -------
    int
    """
    if rng is None:
        return int(greedy(logits))
    p = softmax(logits)  # (V,)
    if x is None:
        return int(draw(p, rng.random()))
    q = one_hot(x, len(p)) if q is None else q
    if accept(p, q, x, rng.random()):
        return x
    return int(draw(residual(p, q), rng.random()))
