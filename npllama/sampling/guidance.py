r"""Classifier-free guidance: follow the prompt more than the model would.

The same model runs twice, once with the prompt and once without it (or with a
*negative* prompt, which describes what is not wanted), and the difference between
the two results is stretched:

$$\log p = \log p_u + \gamma \, (\log p_c - \log p_u)$$

Gamma 1 gives the result with the prompt, gamma 0 the result without it. Above 1
the result moves further in the direction in which the prompt changed it.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from npllama.sampling.draw import log_softmax
from npllama.sampling.rows import Row, checked


def classifier_free_guidance(
    logits: ArrayLike, unconditional: ArrayLike, guidance_scale: float
) -> Row:
    """Extrapolate from unconditional to conditional log-probabilities and beyond.

    Parameters
    ----------
    logits : (..., V) float
        With the prompt.
    unconditional : (..., V) float
        Without it; if there is no negative prompt, transformers uses the prompt's
        last token as context.
    guidance_scale : float
        gamma, finite.

    Returns
    -------
    (..., V) float
        Not normalised, as in transformers. A token that is removed in either row
        is removed (NaN in transformers).

    Raises
    ------
    ValueError
        If the shapes differ, the scale is not finite, or a row is empty.

    References
    ----------
    Ho and Salimans 2022, arXiv:2207.12598; for text Sanchez et al. 2023,
    arXiv:2306.17806, eq. 7.

    Examples
    --------
    What the prompt made likelier (0.1 to 0.4) gains again as much.

    >>> from npllama.sampling.draw import softmax
    >>> five = np.log([0.4, 0.3, 0.15, 0.1, 0.05])
    >>> without = np.log([0.1, 0.3, 0.15, 0.4, 0.05])
    >>> print(softmax(classifier_free_guidance(five, without, 2.0)).round(3))
    [0.753 0.141 0.071 0.012 0.024]
    """
    logits, unconditional = checked(logits), checked(unconditional)
    if logits.shape != unconditional.shape:
        raise ValueError(
            f"logits have shape {logits.shape}, unconditional {unconditional.shape}"
        )
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be finite, got {guidance_scale}")
    if guidance_scale == 1:
        return log_softmax(logits).astype(logits.dtype)
    with_prompt, without = log_softmax(logits), log_softmax(unconditional)
    guided = np.full(logits.shape, -np.inf, logits.dtype)
    both = (with_prompt > -np.inf) & (without > -np.inf)
    change = with_prompt[both] - without[both]
    guided[both] = without[both] + guidance_scale * change
    return guided
