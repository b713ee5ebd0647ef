r"""Mirostat: truncation that steers towards a chosen surprise.

With a fixed top-k or top-p, long texts drift into repetition, where every token
is expected, or into confusion, where no token is. Mirostat keeps the mean surprise
per token, $-\log_2 p$ in bits, at a target tau by feedback. Its state is one number
per text: mu, the surprise that it tolerates now. It starts at 2 tau, and after each
token it moves against the error:

$$\mu \leftarrow \mu - \eta \, (-\log_2 p_{token} - \tau)$$

Version 2 removes the tokens that surprise by more than mu. Version 1, the
paper's, estimates the exponent of the Zipf law that the probabilities follow
and computes from it the k at which a top-k would have that surprise.

The caller holds the state: it is passed in, and the next one is returned. Mirostat
replaces all other truncation; temperature comes before it.

References: Basu et al. 2021, arXiv:2007.14966; llama.cpp,
``llama_sampler_mirostat_apply`` and ``llama_sampler_mirostat_v2_apply``. Not in
transformers or vLLM.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from npllama.sampling.draw import draw, log_softmax, softmax
from npllama.sampling.rows import Row, checked, keep_only, one_of
from npllama.sampling.truncation import Mask, largest


class MirostatStep(NamedTuple):
    """A token, and the state for the next one."""

    token: int
    mu: float


def mirostat_start(tau: float) -> float:
    """Return the state before the first token: mu = 2 tau."""
    if not 0 < tau < math.inf:
        raise ValueError(f"mirostat tau must be above 0 and finite, got {tau}")
    return 2.0 * tau


def zipf_exponent(values: Row, m: int) -> float:
    """Estimate s, for p proportional to 1 / rank^s, from the m largest logits.

    Parameters
    ----------
    values : (n,) float
        Finite logits, two or more.
    m : int
        2 or more.

    Returns
    -------
    float
        The least squares fit to the differences of ln p between neighbouring ranks.
    """
    m = min(m, values.size)
    top = np.sort(np.partition(values.astype(np.float64), -m)[-m:])[::-1]
    rank = np.arange(1, m)
    t = np.log((rank + 1) / rank)
    b = top[:-1] - top[1:]  # ln(p_i / p_{i+1}): the normaliser cancels
    return float((t * b).sum() / (t * t).sum())


def _zipf_k(s: float, mu: float, size: int) -> float:
    """Return the k for which top-k has surprise mu, if the Zipf exponent is s."""
    # In logarithms, because 2^mu and size^-(s - 1) overflow.
    excess = (s - 1) * math.log(size)
    # excess / (1 - e^-excess) tends to 1 where s tends to 1.
    ratio = excess / -math.expm1(-excess) if excess else 1.0
    log_base = math.log(ratio / math.log(size)) + mu * math.log(2)
    if s == 0:
        return math.inf if log_base > 0 else 0.0
    return math.exp(min(log_base / s, math.log(size) + 1))


def _by_zipf(values: Row, mu: float, m: int, size: int, convention: str) -> Mask:
    """Select as many tokens as the fitted law says would surprise by mu bits."""
    if values.size == 1:
        return np.ones(1, np.bool_)
    k = min(_zipf_k(zipf_exponent(values, m), mu, size), float(size))
    count = int(k) if convention == "llama.cpp" else round(k) + 1
    return largest(values, min(max(count, 1), values.size), "lowest")


def mirostat_1(
    logits: ArrayLike,
    mu: float,
    *,
    m: int = 100,
    convention: Literal["llama.cpp", "original"] = "llama.cpp",
) -> Row:
    """Keep the k tokens whose surprise would be mu if they followed Zipf's law.

    Parameters
    ----------
    logits : (..., V) float
    mu : float
        The state: the surprise tolerated, in bits.
    m : int
        Number of tokens to which the law is fitted; llama.cpp 100, the authors 3000.
    convention : {"llama.cpp", "original"}
        llama.cpp rounds k down, the authors round it and add one.

    Returns
    -------
    (..., V) float
        At least the most probable token; of equals the lowest ids.

    Raises
    ------
    ValueError
        If m is below 2.
    """
    if m < 2:
        raise ValueError(f"mirostat needs m of 2 or more, got {m}")
    one_of("convention", convention, ("llama.cpp", "original"))
    logits = checked(logits)
    size = logits.shape[-1]

    return keep_only(logits, _by_zipf, mu, m, size, convention)


def mirostat_2(logits: ArrayLike, mu: float) -> Row:
    """Remove the tokens that would surprise by more than mu bits.

    Parameters
    ----------
    logits : (..., V) float
    mu : float
        The state: the surprise tolerated, in bits.

    Returns
    -------
    (..., V) float
        At least the most probable token; of equals the lowest id.

    Examples
    --------
    Surprises in bits: 1.3, 1.7, 2.7, 3.3, 4.3; kept are those below mu.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(mirostat_2(five, 2.0)).round(3))
    [0.571 0.429 0.    0.    0.   ]
    """

    def kept(values: Row) -> Mask:
        surprise = -log_softmax(values) / math.log(2)
        return (surprise <= mu) | largest(values, 1, "lowest")

    return keep_only(logits, kept)


def mirostat_update(
    logits: ArrayLike, token: int, mu: float, *, tau: float = 5.0, eta: float = 0.1
) -> float:
    """Return the state after `token` was drawn from `logits`.

    Parameters
    ----------
    logits : (V,) float
        The row that gives the token's surprise: after truncation (llama.cpp,
        text-generation-webui), or before it (the authors).
    token : int
        One of the remaining tokens of the row.
    mu : float
    tau : float
        The target surprise, in bits; above 0.
    eta : float
        The step of the feedback; above 0. The authors use 1.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If tau or eta is not above 0, or the row has removed the token.
    """
    mirostat_start(tau)
    if not 0 < eta < math.inf:
        raise ValueError(f"mirostat eta must be above 0 and finite, got {eta}")
    logp = log_softmax(logits)[token]
    if logp == -np.inf:
        raise ValueError(f"token {token} is removed from the row: it cannot be drawn")
    return mu - eta * (-float(logp) / math.log(2) - tau)


def mirostat_step(
    logits: ArrayLike,
    mu: float,
    u: float,
    *,
    version: Literal[1, 2] = 2,
    tau: float = 5.0,
    eta: float = 0.1,
    m: int = 100,
) -> MirostatStep:
    """Truncate, draw and update: one step of mirostat, as llama.cpp does it.

    Parameters
    ----------
    logits : (V,) float
    mu : float
        The state; `mirostat_start(tau)` before the first token.
    u : float
        In [0, 1): the chance of this draw.
    version : {1, 2}
    tau, eta : float
        Target surprise in bits and step of the feedback.
    m : int
        Number of tokens to which version 1 fits the Zipf law.

    Returns
    -------
    MirostatStep
        The token and the next mu.

    Raises
    ------
    ValueError
        If an option is out of range.
    """
    if version not in (1, 2):
        raise ValueError(f"mirostat version must be 1 or 2, got {version}")
    left = mirostat_1(logits, mu, m=m) if version == 1 else mirostat_2(logits, mu)
    token = int(draw(softmax(left), u))
    return MirostatStep(token, mirostat_update(left, token, mu, tau=tau, eta=eta))
