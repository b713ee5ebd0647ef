"""Chapter 4: RMSNorm.

A deep stack of blocks only trains if the numbers that flow through it keep one
scale.  So before each half of a block, and before the last product, the model
divides every position's vector by its root mean square, and multiplies each
coordinate by a learned gain.  LayerNorm would subtract the mean first; LLaMA
leaves that out, at no loss.
"""

from __future__ import annotations

import numpy as np


def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    r"""Bring every position to unit root mean square, then apply a learned gain.

    $$y = g \odot x / \sqrt{\mathrm{mean}(x^2) + \epsilon}$$

    Parameters
    ----------
    x : (*B, E) float
        Activations; only the last axis is normalised.
    gain : (E,) float
    eps : float
        Added to the mean square, so in units of x squared.  LLaMA 1 has 1e-6,
        later ones 1e-5.

    Returns
    -------
    (*B, E) float

    References
    ----------
    Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.

    Examples
    --------
    The mean of the squares is (9 + 16) / 2, its root 3.54.

    >>> print(rms_norm(np.array([3.0, 4.0]), np.array([1.0, 10.0]), 0.0).round(3))
    [ 0.849 11.314]
    """
    E = x.shape[-1]
    mean_square = np.square(x).sum(axis=-1, keepdims=True) / E  # (*B, 1)
    # Normalise first and apply the gain last, as transformers does: in another
    # order the last bit would differ.
    return x / np.sqrt(mean_square + eps) * gain
