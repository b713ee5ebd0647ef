r"""One row at a time: what every sampler of this part has in common.

A *row* is the model's opinion about the next token: V logits, one for each
word of the vocabulary. Minus infinity is the one special value: that token is
*removed*, its probability is exactly 0, and no later step may revive it.

Every sampler is a pure function from logits to logits, defined for one row
and applied to each row of a batch alone, so that no row can see another. Most
of them only ask which of the tokens that are left may stay; `keep_only` puts
the question, and guarantees for all of them what a reader should not have to
check thirty times: nothing is written into, survivors keep their value to the
last bit, the type stays, what was removed stays removed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Row = NDArray[np.floating]
Tokens = ArrayLike | Sequence[ArrayLike]


def checked(logits: ArrayLike) -> Row:
    """Return `logits` as an array after refusing what no sampler can rank.

    Parameters
    ----------
    logits : (..., V) float16, float32 or float64

    Returns
    -------
    (..., V) float16, float32 or float64
        The same memory where it was an array already.

    Raises
    ------
    TypeError
        If the numbers are not floating: minus infinity could not be written.
    ValueError
        If the last axis is empty or a value is NaN or plus infinity.
    """
    logits = np.asarray(logits)
    if not np.issubdtype(logits.dtype, np.floating):
        raise TypeError(f"logits must be floating point numbers, got {logits.dtype}")
    if logits.ndim == 0 or logits.size == 0:
        raise ValueError(f"logits must have shape (..., V), V > 0, got {logits.shape}")
    # One pass finds both: the maximum of anything with a NaN is NaN.
    if not logits.max() < np.inf:
        bad = np.argwhere(~(logits < np.inf))[0]
        where = ", ".join(str(i) for i in bad)
        raise ValueError(
            f"logits[{where}] is {logits[tuple(bad)]}: logits must be finite or -inf "
            "(remove_invalid_values replaces NaN and +inf)"
        )
    return logits


def keep_only(logits: ArrayLike, kept: Callable[[Row], NDArray]) -> Row:
    """Remove from every row all tokens but those that `kept` selects.

    Parameters
    ----------
    logits : (..., V) float32
    kept : function of the n finite values of a row
        Returns which of them stay: (n,) bool, or their positions among the n.

    Returns
    -------
    (..., V) float32
        The value of each kept token, minus infinity for every other. A row
        that had no finite value is returned as it was.
    """
    logits = checked(logits)
    out = np.full_like(logits, -np.inf)
    for index in np.ndindex(logits.shape[:-1]):
        row = logits[index]
        alive = np.flatnonzero(row > -np.inf)
        if alive.size:
            stay = alive[kept(row[alive])]
            out[index][stay] = row[stay]
    return out
