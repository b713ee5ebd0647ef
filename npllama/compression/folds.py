r"""Folds: scales moved between activations and weights; AWQ and SmoothQuant.

A matrix cannot tell whether its inputs were made smaller and its weights larger by the
same factors.  For one factor s > 0 for each input channel,

$$W x = (W \cdot s)(x / s)$$

The division need not be computed: what makes x divides by s.  A norm ends with a gain
for each channel; an up projection and a value projection have a row for each.  So the
factors are *folded* into weights that are there, and nothing is added to the model:

    place    s divides            s multiplies
    attn     attn_norm            wq, wk, wv
    values   wv, bv               wo
    mlp      mlp_norm             w_gate, w_up
    hidden   w_up, b_up           w_down

The gate is not divided, since it goes through a function that is not linear.  Query
heads that share values share their factors.  In exact arithmetic a folded model is the
same model.  With powers of two for s it is the same to the last bit, since only
exponents change.  What changes is what rounding does to it.

*SmoothQuant* wants to round activations, too, to 8 bits.  A few of their channels are
many times larger than the others, always the same ones, and one scale for a token is
then too coarse for the rest.  Weights have no such channels.  So a part of the trouble
is moved to them, with

$$s_j = \frac{\max |x_j|^\alpha}{\max |w_j|^{1 - \alpha}}$$

where alpha = 1/2 shares it evenly.  It is folded into the two norms.  On 256 tokens of
the README of 29 November 2026, SmolLM2-135M-Instruct is this far, in mean divergence,
from itself with weights and inputs of 8 bits (``tools/outliers.py``):

    a scale       as it is   smoothed
    per token     0.030      0.014
    per call      0.60       0.51

The inputs of wo and w_down, which no norm makes, are as hard to round as before.

*AWQ* rounds weights only.  Some channels matter more, because their inputs are large.
A weight that is multiplied by s before rounding, and its input divided, errs s times
less, as long as it does not widen the grid of its group.  So large inputs get large
factors:

$$s_j = \frac{(\mathrm{mean} |x_j|)^\rho}{(\mathrm{mean} |w_j|)^{1 - \rho} + 10^{-4}}$$

divided by the root of the largest times the smallest of them, where each |w| is first
divided by the largest of its group.  Of rho = 0, 0.05, ... 0.95 the one is taken whose
rounded weights give the least squared error of the outputs.  The paper's first form,
and llm-awq, have no weights in it: s = (mean |x|)^rho.

The error is that of the outputs of these matrices, as the paper defines it.  The
released codes judge wq, wk and wv together by the output of attention, and w_gate and
w_up by that of the feed-forward, of which they are part.  They fold at ``values`` only
if every query head has values of its own, and so does `awq` here, though `fold` need
not.

References
----------
Xiao et al. 2022, "SmoothQuant", arXiv:2211.10438, equation 4, and ``smooth.py`` of
mit-han-lab/smoothquant; Lin et al. 2023, "AWQ", arXiv:2306.00978, equations 4 and 5,
and ``quantizer.py`` of AutoAWQ.  The tests compare scales with both codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from npllama.compression.calibrate import MATRICES, Inputs
from npllama.compression.gptq import Recipe, objective, rtn, values_of
from npllama.compression.grid import (
    find_grid,
    from_codes,
    over_groups,
    spread,
    to_codes,
)
from npllama.ops import multiply
from npllama.weights import Layer, Model

LEAST = 1e-5  # of what is divided by, and of a factor


#  ---- one fold ----------------------------------------------------------------


class Place(NamedTuple):
    """What makes the inputs of some matrices, channel by channel; and these."""

    before: tuple[str, ...]
    after: tuple[str, ...]


PLACES = {
    "attn": Place(("attn_norm",), ("wq", "wk", "wv")),
    "values": Place(("wv", "bv"), ("wo",)),
    "mlp": Place(("mlp_norm",), ("w_gate", "w_up")),
    "hidden": Place(("w_up", "b_up"), ("w_down",)),
}


def fold(layer: Layer, place: str, s: np.ndarray) -> Layer:
    """Divide what makes some inputs, and multiply the weights that they meet.

    Parameters
    ----------
    layer : Layer
    place : str
        One of `PLACES`.
    s : (E,), (K, D), (E,) or (F,) float
        Factors above 0, one for each channel; in the order of `PLACES`.

    Returns
    -------
    Layer
        The same function, up to rounding; its dtype.

    Raises
    ------
    ValueError
        If `s` has another shape, or a factor is not a number above 0.
    """
    before, after = PLACES[place]
    made: np.ndarray = getattr(layer, before[0])  # (*channels) or (*channels, E)
    channels = made.shape[:-1] if made.ndim > 1 else made.shape
    if s.shape != channels:
        raise ValueError(f"factors of {s.shape}; {before[0]} has channels {channels}")
    s = s.astype(made.dtype)
    if not (np.isfinite(s).all() and (s > 0).all()):
        raise ValueError("a factor is not a finite number above 0")
    new: dict[str, Any] = {}
    for word in before:
        w = getattr(layer, word)
        if w is not None:
            new[word] = w / (s[..., None] if w.ndim > s.ndim else s)
    for word in after:
        w = getattr(layer, word)
        own = s
        if place == "values":  # (K, D): query heads h of one group share row h // G
            own = np.repeat(s, w.shape[1] // len(s), axis=0)  # (H, D)
        new[word] = w * own
    return layer._replace(**new)


def channels_of(layer: Layer, place: str, s: np.ndarray) -> np.ndarray:
    """Factors (S,) of the inputs of a place, in the shape that `fold` wants."""
    return s.reshape(layer.wv.shape[:2]) if place == "values" else s


def matrix(layer: Layer, word: str) -> np.ndarray:
    """A weight of a block as a matrix (C, S), its heads merged."""
    w = getattr(layer, word)
    return w.reshape(len(w), -1) if word == "wo" else w.reshape(-1, w.shape[-1])


def matrices(layer: Layer, place: str) -> list[np.ndarray]:
    """The weights after a place as matrices, (C, S) each."""
    return [matrix(layer, word) for word in PLACES[place].after]


#  ---- SmoothQuant ---------------------------------------------------------------


def smooth_factors(
    most: np.ndarray, weights: Sequence[np.ndarray], alpha: float = 0.5
) -> np.ndarray:
    """The factors of SmoothQuant.

    Parameters
    ----------
    most : (S,) float
        The largest magnitude that each channel has in a text for calibration.
    weights : sequence of (C, S) float
        All matrices of these inputs.
    alpha : float
        How much of an activation's range is moved: 0 ... 1.

    Returns
    -------
    (S,) float
    """
    heavy = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)  # (S,)
    s = most**alpha / np.maximum(heavy, LEAST) ** (1 - alpha)
    return np.maximum(s, LEAST)


def smoothed(layer: Layer, inputs: Mapping[str, Inputs], alpha: float = 0.5) -> Layer:
    """A block whose norms give activations that are easier to round.

    Parameters
    ----------
    layer : Layer
    inputs : mapping of word to Inputs
        What goes into the matrices of the block.
    alpha : float

    Returns
    -------
    Layer

    Raises
    ------
    ValueError
        If alpha is outside 0 ... 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha}: from 0 to 1")
    for place in ("attn", "mlp"):
        most = inputs[PLACES[place].after[0]].most
        s = smooth_factors(most, matrices(layer, place), alpha)
        layer = fold(layer, place, s)
    return layer


class RoundedInputs(NamedTuple):
    """A `Weight` that rounds its inputs to 8 bits: for every token, or for all at once.

    The integers are not multiplied as such: their values are, which is the same up to
    the rounding of a float.
    """

    weight: np.ndarray  # (C, S) float, rounded itself
    shape: tuple[int, ...]
    per_token: bool = True

    @property
    def dtype(self) -> np.dtype:
        """Of the arithmetic."""
        return self.weight.dtype

    @property
    def kept(self) -> tuple[str, int]:
        """As integers of 8 bits, and a float for each row."""
        return "int8", self.weight.size + self.dtype.itemsize * len(self.weight)

    def times(self, a: np.ndarray) -> np.ndarray:
        """Round rows and multiply them: (M, S) to (M, C)."""
        rounded = in_eight_bits(a, "channel" if self.per_token else "tensor")
        return multiply(rounded, self.weight.T)


def in_eight_bits(w: np.ndarray, group: str) -> np.ndarray:
    """Numbers (C, S) rounded to -127 ... 127 times a scale for each row, or for all."""
    grid = find_grid(w, 8, "restricted", group)
    return from_codes(to_codes(w, grid), grid)


def w8a8(model: Model, per_token: bool = True) -> Model:
    """A model whose blocks multiply integers of 8 bits: weights by row, and inputs.

    Parameters
    ----------
    model : Model
    per_token : bool
        A scale for the inputs of every token, or one for all tokens of a call.

    Returns
    -------
    Model
        The embedding and the head are as they were.
    """

    def of(layer: Layer) -> Layer:
        new: dict[str, Any] = {}
        for word in MATRICES:
            w, shape = matrix(layer, word), getattr(layer, word).shape
            new[word] = RoundedInputs(in_eight_bits(w, "channel"), shape, per_token)
        return layer._replace(**new)

    return model._replace(layers=tuple(map(of, model.layers)))


#  ---- AWQ -----------------------------------------------------------------------

STEPS = 20  # of rho


def mean_weight(weights: Sequence[np.ndarray], group: int) -> np.ndarray:
    """The mean magnitude of each channel's weights, relative to their group's largest.

    Parameters
    ----------
    weights : sequence of (C, S) float
    group : int

    Returns
    -------
    (S,) float
    """
    size = np.abs(np.concatenate(weights))  # (C, S)
    most = over_groups(np.maximum, size, group)  # (C, groups)
    return (size / (spread(most, size.shape[1], group) + 1e-6)).mean(axis=0)


def awq_factors(mean: np.ndarray, heavy: np.ndarray | None, rho: float) -> np.ndarray:
    """The factors of AWQ for one rho.

    Parameters
    ----------
    mean : (S,) float
        Mean magnitude of each channel's inputs.
    heavy : (S,) float, optional
        `mean_weight`; left out in the paper's first form.
    rho : float

    Returns
    -------
    (S,) float
        1 where a channel's is not a finite number.
    """
    s = mean**rho
    if heavy is not None:
        s = s / (heavy ** (1 - rho) + 1e-4)
    s = np.maximum(s, 1e-4)
    s = s / np.sqrt(s.max() * s.min())
    return np.where(np.isfinite(s), s, 1)


def search(
    weights: Sequence[np.ndarray], inputs: Inputs, recipe: Recipe, duo: bool = True
) -> np.ndarray:
    """The factors whose rounded weights give the least squared error of the outputs.

    Parameters
    ----------
    weights : sequence of (C, S) float
        All matrices of these inputs.
    inputs : Inputs
    recipe : Recipe
        How weights will be rounded.
    duo : bool
        Whether weights count, too, as in AutoAWQ.

    Returns
    -------
    (S,) float
        Of equal errors those of the smaller rho.
    """
    S = weights[0].shape[1]
    group = recipe.group if isinstance(recipe.group, int) else S
    heavy = mean_weight(weights, min(group, S)) if duo else None
    best, least = np.ones(S, dtype=weights[0].dtype), np.inf
    for step in range(STEPS):
        s = awq_factors(inputs.mean, heavy, step / STEPS).astype(best.dtype)
        error = 0.0
        for w in weights:
            error += objective(w, values_of(rtn(w * s, recipe)) / s, inputs.gram)
        if error < least:
            best, least = s, error
    return best


def awq(
    layer: Layer, inputs: Mapping[str, Inputs], recipe: Recipe, duo: bool = True
) -> Layer:
    """A block with factors that make its weights easier to round.

    All factors are found before any is folded, as in the released codes.

    Parameters
    ----------
    layer : Layer
    inputs : mapping of word to Inputs
        What goes into the matrices of the block.
    recipe : Recipe
        How weights will be rounded.
    duo : bool

    Returns
    -------
    Layer
    """
    own_values = layer.wq.shape == layer.wk.shape  # no query heads share them
    found = {}
    for place, (_, after) in PLACES.items():
        if place != "values" or own_values:
            s = search(matrices(layer, place), inputs[after[0]], recipe, duo)
            found[place] = channels_of(layer, place, s)
    for place, s in found.items():
        layer = fold(layer, place, s)
    return layer
