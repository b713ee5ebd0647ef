"""The usual mistakes of LLaMA backends, each made on purpose.

A fault exchanges one part of the model (`slips`) or its weights.  What the model then
computes is compared with a candidate by `diagnose`.

Some mistakes cannot be seen everywhere.  If every position is off by one, queries and
keys turn together and their scores do not change: only the turned keys and queries
themselves, and a cache, give it away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from npllama.golden.slips import TEXTS, Fault, wrong_parts
from npllama.weights import Model

#  ---- wrong weights ----------------------------------------------------------------

# npllama's word for every matrix of a block, and its name in a trace.
MATRICES = {
    "wq": "q_proj",
    "wk": "k_proj",
    "wv": "v_proj",
    "wo": "o_proj",
    "w_gate": "gate_proj",
    "w_up": "up_proj",
    "w_down": "down_proj",
}
NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def transposed(w: np.ndarray, flat: tuple[int, int]) -> np.ndarray:
    """A matrix in memory order, read as if its two sizes were exchanged.

    Parameters
    ----------
    w : (*F, E) float
    flat : (int, int)
        Its two sizes on disk, output first.
    """
    return w.reshape(flat[::-1]).T.reshape(w.shape)


def quantised(w: np.ndarray, bits: int, group: int | None) -> np.ndarray:
    """A matrix (F, E) rounded to `bits` bits, with a scale per group of a row."""
    largest = 2 ** (bits - 1) - 1
    parts = w.reshape(len(w), -1, group or w.shape[-1])  # (F, E // group, group)
    scale = np.abs(parts).max(axis=-1, keepdims=True) / largest
    scale = np.where(scale > 0, scale, 1)  # (F, E // group, 1)
    return (np.rint(parts / scale) * scale).reshape(w.shape)


def packed(w: np.ndarray, bits: int, group: int | None, signed: bool) -> np.ndarray:
    """A matrix (F, E) rounded as GPTQ's files have it: scales in float16.

    Parameters
    ----------
    w : (F, E) float
    bits : int
    group : int or None
        Numbers of a row that share a scale; None: all.
    signed : bool
        Whether the zero point is the middle of the codes, for every group.  (As
        published, a group without a negative number then has half the scale.)
    """
    parts = np.float32(w).reshape(len(w), -1, group or w.shape[-1])
    low = np.minimum(parts.min(axis=-1, keepdims=True), 0)  # (F, E // group, 1)
    high = np.maximum(parts.max(axis=-1, keepdims=True), 0)
    if signed:
        high = np.maximum(-low, high)
        low = np.where(low < 0, -high, low)
    scale = (high - low) / np.float32(2**bits - 1)
    scale = np.where(scale > 0, scale, np.float32(1))
    zero = np.full_like(scale, 2 ** (bits - 1)) if signed else np.rint(-low / scale)
    codes = np.clip(np.rint(parts / scale) + zero, 0, 2**bits - 1)
    half = np.float16(scale).astype(np.float64)
    return ((codes - zero) * half).reshape(w.shape)


# How a report calls them, and their bits and numbers per scale (None: a row).
QUANTISED = {
    "int8, a scale per row": (8, None),
    "int8, a scale per 32 numbers": (8, 32),
    "int4, a scale per row": (4, None),
    "int4, a scale per 32 numbers": (4, 32),
    "int4, a scale per 128 numbers": (4, 128),
}


# The same of `packed`, in which readers of a report look for the same words.
PACKED = {
    f"{'' if signed else 'u'}int{bits} as GPTQ's files, a scale per "
    f"{f'{group} numbers' if group else 'row'}": (bits, group, signed)
    for bits in (8, 4, 3)
    for group in (None, 32, 64, 128)
    for signed in (True, False)
}


def flat(w: np.ndarray, word: str) -> np.ndarray:
    """A matrix with its heads merged, output axis first: (F, E)."""
    return w.reshape(len(w), -1) if word == "wo" else w.reshape(-1, w.shape[-1])


def changed(model: Model, at: Sequence[int], change: Callable) -> Model:
    """The model with the blocks `at` changed."""
    layers = tuple(change(w) if i in at else w for i, w in enumerate(model.layers))
    return model._replace(layers=layers)


def swap_gate_and_up(layer):
    """The two matrices of a feed-forward in each other's place."""
    return layer._replace(
        w_gate=layer.w_up, w_up=layer.w_gate, b_gate=layer.b_up, b_up=layer.b_gate
    )


def without_gain(layer, word: str):
    """A norm of a block with a gain of ones."""
    return layer._replace(**{word: np.ones_like(getattr(layer, word))})


def transpose(layer, word: str):
    """A matrix of a block read transposed."""
    w = getattr(layer, word)
    return layer._replace(**{word: transposed(w, flat(w, word).shape)})


def quantise(layer, bits: int, group: int | None):
    """All matrices of a block in few bits."""
    weights = {}
    for word in MATRICES:
        w = getattr(layer, word)
        weights[word] = quantised(flat(w, word), bits, group).reshape(w.shape)
    return layer._replace(**weights)


def fits(model: Model, group: int | None) -> bool:
    """Whether every row of every matrix can be cut in groups of this size."""
    layer = model.layers[0]
    rows = [flat(getattr(layer, word), word).shape[-1] for word in MATRICES]
    return group is None or not any(row % group for row in rows)


def wrong_blocks(model: Model, at: Sequence[int]) -> Iterator[Fault]:
    """Mistakes in the weights of the blocks `at`; none if `at` is empty."""
    if not len(at):
        return
    wrong = changed(model, at, swap_gate_and_up)
    yield Fault("gate and up", TEXTS["gate and up"], model=wrong)
    for word, name in NORMS.items():
        wrong = changed(model, at, partial(without_gain, word=word))
        yield Fault("no gain", TEXTS["no gain"].format(name), model=wrong)
    for word, name in MATRICES.items():
        text = TEXTS["transposed"].format(f"the weight of {name}")
        wrong = changed(model, at, partial(transpose, word=word))
        yield Fault("transposed", text, model=wrong)


def wrong_models(model: Model, at: Sequence[int]) -> Iterator[Fault]:
    """Every mistake in weights; of the blocks, only those in `at`."""
    yield from wrong_blocks(model, at)
    for name, (bits, group) in QUANTISED.items():
        if len(at) and fits(model, group):
            wrong = changed(model, at, partial(quantise, bits=bits, group=group))
            yield Fault("quantised", TEXTS["quantised"].format(name), model=wrong)
    ones = np.ones_like(model.norm)
    text = TEXTS["no gain"].format("model.norm")
    yield Fault("no gain", text, model=model._replace(norm=ones))
    if model.lm_head is not model.embed:
        tied = model._replace(lm_head=model.embed)
        yield Fault("head tied", TEXTS["head tied"], model=tied)
    read = transposed(model.lm_head, model.lm_head.shape)
    text = TEXTS["transposed"].format("the weight of lm_head")
    yield Fault("transposed", text, model=model._replace(lm_head=read))


def faults(model: Model, at: Sequence[int]) -> Iterator[Fault]:
    """Every mistake of this chapter.

    Parameters
    ----------
    model : Model
    at : sequence of int
        The blocks in which a wrong weight may stand.
    """
    yield from wrong_parts(model.config)
    yield from wrong_models(model, at)


def faults_of_one_block(model: Model, at: Sequence[int]) -> Iterator[Fault]:
    """Every wrong weight in each of the blocks `at` alone."""
    for i in at:
        for fault in wrong_blocks(model, [i]):
            yield fault._replace(text=f"{fault.text} (in block {i} alone)")
