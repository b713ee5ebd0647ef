"""The everyday chain: temperature, then top-k, then top-p, then a draw.

Samplers are functions from logits to logits, so a chain of them is a list, and
running it is a loop. The title page of this chapter says how the order of the list
changes the result.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from npllama.sampling.draw import Probs, greedy, softmax
from npllama.sampling.rows import Row, checked
from npllama.sampling.temperature import temperature as divided_by_temperature
from npllama.sampling.truncation import top_k as keep_top_k
from npllama.sampling.truncation import top_p as keep_top_p


def apply(logits: ArrayLike, processors: Iterable[Callable[[Row], Row]]) -> Row:
    """Send `logits` through `processors`, first to last.

    Parameters
    ----------
    logits : (..., V) float
    processors : iterable of functions from logits to logits

    Returns
    -------
    (..., V) float
    """
    logits = checked(logits)
    for process in processors:
        logits = process(logits)
    return logits


def distribution(
    logits: ArrayLike, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Probs:
    """Return the distribution that the everyday chain draws from.

    Parameters
    ----------
    logits : (..., V) float
    temperature : float
        0 gives all probability to the greedy choice.
    top_k : int
        0 keeps all.
    top_p : float
        1 keeps all.

    Returns
    -------
    (..., V) float64

    Raises
    ------
    ValueError
        If an option is out of its range.
    """
    logits = checked(logits)
    if temperature == 0:
        probs = np.zeros(logits.shape, np.float64)
        np.put_along_axis(probs, greedy(logits)[..., None], 1.0, axis=-1)
        return probs
    if temperature != 1:
        logits = divided_by_temperature(logits, temperature)
    if top_k != 0:
        logits = keep_top_k(logits, top_k)
    if top_p != 1:
        logits = keep_top_p(logits, top_p)
    return softmax(logits)
