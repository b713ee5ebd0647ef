r"""Temperature: how much chance there is in a draw.

$$p_i \propto e^{l_i / t}$$

*Temperature* 1 gives the model's own distribution. Below 1 probable tokens become
more probable, and in the limit of 0 only the greedy choice is left. Above 1 all
tokens approach equal chances. Temperature changes every value and removes no
token.

The *order* matters. Hugging Face, vLLM and Meta divide by the temperature
before they truncate. llama.cpp's default chain does it last, so a high
temperature spreads the mass over the remaining tokens without adding others.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from npllama.sampling.draw import log_softmax
from npllama.sampling.rows import Row, checked


def temperature(logits: ArrayLike, t: float) -> Row:
    """Divide the logits by t.

    Parameters
    ----------
    logits : (..., V) float
    t : float
        Above 0. For temperature 0 use `greedy`, as Hugging Face does; vLLM
        (t < 1e-5), Meta and llama.cpp (t <= 0) switch to it by themselves.

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If t is not a finite number above 0, or so far from 1 that numbers overflow.

    Examples
    --------
    Each probability is squared, then all are made to sum to 1: 0.16 of 0.285.

    >>> from npllama.sampling.draw import softmax
    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> print(softmax(temperature(five, 0.5)).round(3))
    [0.561 0.316 0.079 0.035 0.009]
    """
    if not 0 < t < math.inf:
        raise ValueError(
            f"temperature must be above 0 and finite, got {t} (0 is greedy)"
        )
    logits = checked(logits)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        divided = logits / logits.dtype.type(t)
    # The lowest logits may become -inf: their probability was 0 already.
    if (np.isfinite(divided.max(axis=-1)) != np.isfinite(logits.max(axis=-1))).any():
        raise ValueError(
            f"dividing by temperature {t} takes the logits out of {logits.dtype}"
        )
    return divided


def _entropy_share(row: Row) -> float:
    """Return the entropy of a row, as a share of its largest possible value."""
    logp = log_softmax(row)
    logp = logp[logp > -np.inf]
    entropy = -(np.exp(logp) * logp).sum()
    # Rounding can put a uniform row slightly above the largest possible entropy.
    return min(float(entropy) / math.log(logp.size), 1.0)


def _first_maximum(row: Row) -> Row:
    """Remove all tokens of a row except its greedy choice."""
    alone = np.full_like(row, -np.inf)
    alone[row.argmax()] = row.max()
    return alone


def dynamic_temperature(
    logits: ArrayLike, t: float, spread: float, exponent: float = 1.0
) -> Row:
    r"""Choose each row's temperature by how sure the model is.

    $$t' = t_{min} + (t_{max} - t_{min}) \, (H / \ln n)^{exponent}$$

    with H the entropy of the row, n the number of its remaining tokens, and
    t_min, t_max = max(0, t - spread), t + spread. Where the model is sure the
    temperature falls, where it is unsure it rises.

    Parameters
    ----------
    logits : (..., V) float
    t : float
        The middle of the range, above 0.
    spread : float
        Half the width of the range; llama.cpp's `dynatemp_range`. 0 gives
        plain temperature t.
    exponent : float
        Bends the curve from t_min to t_max; above 0.

    Returns
    -------
    (..., V) float
        A row whose temperature becomes 0 keeps only its first maximum; a row
        with fewer than two remaining tokens is returned unchanged.

    Raises
    ------
    ValueError
        If t or the exponent is not above 0, or the spread is below 0.

    References
    ----------
    llama.cpp, `llama_sampler_temp_ext_apply`; not in transformers or vLLM.

    Examples
    --------
    Five equal tokens are as unsure as five can be, so the temperature is 1 + 0.5.

    >>> print(dynamic_temperature([3.0, 3.0, 3.0, 3.0, 3.0], 1.0, 0.5))
    [2. 2. 2. 2. 2.]
    """
    if not (0 < t < math.inf and 0 <= spread < math.inf and exponent > 0):
        raise ValueError(
            "dynamic temperature needs t > 0, spread >= 0 and exponent > 0, "
            f"got {t}, {spread} and {exponent}"
        )
    logits = checked(logits)
    low, high = max(0.0, t - spread), t + spread
    out = logits.copy()
    for index in np.ndindex(logits.shape[:-1]):
        row = logits[index]
        if np.count_nonzero(row > -np.inf) > 1:
            t_row = low + (high - low) * _entropy_share(row) ** exponent
            # At temperature 0, or so near to it that logits would overflow,
            # only the greedy choice is left.
            peak = float(np.abs(row[row > -np.inf]).max())
            cold = peak >= t_row * float(np.finfo(row.dtype).max)
            out[index] = _first_maximum(row) if cold else temperature(row, t_row)
    return out
