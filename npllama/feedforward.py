"""Chapter 8: the feed-forward half of a block.

Attention moves information between positions; this half works on each position
alone, and holds two thirds of the weights.  It widens the vector from E to F
numbers, applies a function that is not linear, and narrows it again.  In
SwiGLU that function is a product: there are two widenings, and one (`up`) is
multiplied, coordinate by coordinate, by the SiLU of the other (`gate`), which
decides what passes.

Some models that are LLaMAs in everything else bend the gate by another function:
ReLU, which makes most of the F numbers exactly zero, or GELU.  The config names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from npllama.ops import einsum, note
from npllama.weights import Layer


def silu(x: np.ndarray) -> np.ndarray:
    r"""Multiply every number by its own sigmoid: $x / (1 + e^{-x})$.

    Parameters
    ----------
    x : (*B,) float

    Returns
    -------
    (*B,) float

    References
    ----------
    Elfwing et al. 2017, arXiv:1702.03118 (also known as swish).

    Examples
    --------
    Far above 0 it is x, far below 0; between, x times a share: 1 / (1 + e^-1) = 0.731.

    >>> print(silu(np.array([-20.0, -1.0, 0.0, 1.0, 20.0])).round(3))
    [-0.    -0.269  0.     0.731 20.   ]
    """
    # exp(-x) may overflow to infinity, and x / infinity = 0 is the right limit.
    with np.errstate(over="ignore"):
        denominator = np.exp(-x)  # (*B,)
    denominator += 1
    return np.divide(x, denominator, out=denominator)


def relu(x: np.ndarray) -> np.ndarray:
    """What is above zero."""
    return np.maximum(x, 0)


_erfc = np.frompyfunc(math.erfc, 1, 1)  # one number at a time: exact, and slow


def gelu(x: np.ndarray) -> np.ndarray:
    r"""Multiply every number by the chance that a normal variable is below it.

    $$x \, \Phi(x) = x \, \mathrm{erfc}(-x / \sqrt{2}) / 2$$

    Parameters
    ----------
    x : (*B,) float

    Returns
    -------
    (*B,) float

    References
    ----------
    Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    return x * np.asarray(_erfc(x / -math.sqrt(2)), dtype=x.dtype) / 2


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """GELU as GPT-2 approximates it, wrong by 0.0005 at most."""
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


# By the names in `config`.
ACTIVATIONS = {"silu": silu, "relu": relu, "gelu": gelu, "gelu_pytorch_tanh": tanh_gelu}


def feed_forward(x: np.ndarray, layer: Layer, bend: Callable = silu) -> np.ndarray:
    r"""SwiGLU: $W_{down} (\mathrm{silu}(W_{gate} x) \odot W_{up} x)$.

    Parameters
    ----------
    x : (B, T, E) float
        The normalised residual stream.
    layer : Layer
    bend : one of `ACTIVATIONS`
        What the gate goes through, if not SiLU.

    Returns
    -------
    (B, T, E) float

    References
    ----------
    Shazeer 2020, arXiv:2002.05202, eq. 6; Touvron et al. 2023, arXiv:2302.13971,
    section 2.2.
    """
    gate = einsum("BTE,FE->BTF", x, layer.w_gate, "gate_proj")
    up = einsum("BTE,FE->BTF", x, layer.w_up, "up_proj")
    if layer.b_gate is not None:
        gate, up = gate + layer.b_gate, up + layer.b_up
    hidden = bend(gate)  # (B, T, F)
    note("act_fn", hidden)
    hidden *= up
    y = einsum("BTF,EF->BTE", hidden, layer.w_down, "down_proj")
    return y if layer.b_down is None else y + layer.b_down
