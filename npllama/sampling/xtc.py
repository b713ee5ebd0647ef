"""XTC: sometimes cut off the top.

Truncation removes bad tokens.  Where several good ones are left, the likeliest is also
the dullest.  XTC, "exclude top choices", removes the good tokens but one now and then.
"""

import numpy as np
from numpy.typing import ArrayLike

from npllama.sampling.draw import Probs, softmax
from npllama.sampling.rows import Row, checked, keep_only
from npllama.sampling.truncation import Mask, at_least_one, largest


def _throws(u: ArrayLike, logits: Row) -> Probs:
    """Return u as numbers in [0, 1), one per row of the logits."""
    u = np.asarray(u, np.float64)
    if u.shape != logits.shape[:-1] or not ((u >= 0) & (u < 1)).all():
        raise ValueError(f"xtc needs one u in [0, 1) per row, got {u}")
    return u


def xtc(
    logits: ArrayLike,
    u: ArrayLike,
    *,
    probability: float = 0.5,
    threshold: float = 0.1,
    min_tokens_to_keep: int = 1,
) -> Row:
    """Exclude top choices: sometimes remove all good tokens except the least good.

    If two or more tokens reach the threshold, all of them except the least
    probable are removed, so the text takes a less expected turn that is still
    sensible.

    Parameters
    ----------
    logits : (..., V) float
    u : (...) float64
        Uniform numbers in [0, 1), one per row; the sampler acts on a row if
        u < probability.
    probability : float
        In [0, 1]: how often it acts.
    threshold : float
        In [0, 1]; above 0.5 two tokens cannot reach it, and nothing happens.
    min_tokens_to_keep : int
        If fewer would remain, nothing is removed.

    Returns
    -------
    (..., V) float
        Of equally least probable tokens the one with the highest id stays.

    Raises
    ------
    ValueError
        If an option is out of range or u has another shape than the rows.

    References
    ----------
    p-e-w 2024, text-generation-webui pull request 6335; llama.cpp,
    `llama_sampler_xtc_apply`. Not in transformers or vLLM.

    Examples
    --------
    0.4, 0.3 and 0.15 reach 0.12: all but the least of them go.

    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(xtc(five, 0.3, threshold=0.12)).round(3))
    [0.    0.    0.5   0.333 0.167]
    """
    at_least_one(min_tokens_to_keep)
    if not (0 <= probability <= 1 and 0 <= threshold <= 1):
        raise ValueError(
            "xtc needs probability and threshold in [0, 1], "
            f"got {probability} and {threshold}"
        )
    logits = checked(logits)
    u = _throws(u, logits)

    def kept(values: Row) -> Mask:
        good = np.count_nonzero(softmax(values) >= threshold)
        if good < 2 or values.size - good + 1 < min_tokens_to_keep:
            return np.ones(values.size, np.bool_)
        return ~largest(values, good - 1, "lowest")

    acts = (u < probability)[..., None]
    return np.where(acts, keep_only(logits, kept), logits)
