"""The usual mistakes of LLaMA backends, made on purpose.

Each is the model of this book with one thing wrong: other weights, another config, an
attention that looks elsewhere, positions that are not where they should be.  Run on the
golden trace's tokens, it shows what a backend with that mistake computes; `diagnose`
compares a candidate with all of them.

Some mistakes cannot be seen everywhere.  If every position is off by one, queries and
keys turn together and their scores do not change: only the turned keys and queries
themselves, and a cache, give it away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from npllama.attention import blocked, softmax
from npllama.cache import new_cache
from npllama.config import Rope
from npllama.golden.floor import Step, split_name
from npllama.golden.record import Recorder
from npllama.model import forward
from npllama.ops import einsum, observing
from npllama.rope import halves_order
from npllama.weights import Model

# Every fault by its key, and what a report says of it.
TEXTS = {
    "interleaved": "RoPE turns neighbours (2i, 2i + 1) where these weights are laid "
    "out for halves (i, i + D/2): rotate halves, or permute the rows of q_proj and "
    "k_proj",
    "no rotation": "RoPE is not applied",
    "position": "positions are off by {:+d}",
    "position in decode": "positions are off by {:+d} after the prefill: is the number "
    "of cached tokens counted right?",
    "rope scaling": "the scaling of RoPE in the config ({}) is ignored",
    "rope theta": "RoPE turns with rope_theta {:g}; the config says {:g}",
    "scale": "scores are not divided by the square root of the head size",
    "scale twice": "scores are divided by the head size, not by its square root",
    "tile": "query head h uses key/value head h % K (tiled); it should be h // G "
    "(each head repeated G times)",
    "mask": "the mask is off by one: a query {}",
    "no mask": "nothing hides later positions: the causal mask is missing",
    "eps": "rms_norm_eps is about {:.3g}; the config says {:g}",
    "no gain": "the weight of {} is left out",
    "gain plus one": "the weight of {} is used as 1 + weight, as in Gemma",
    "other gain": "RMSNorm multiplies by another weight: that of another norm, or one "
    "that was not loaded",
    "transposed": "{} is read transposed: files hold the output axis first",
    "swapped": "this is the golden {}: two tensors are swapped, or a step is left out",
    "gate and up": "gate_proj and up_proj are swapped",
    "head tied": "the output head is the embedding; the model has a head of its own",
    "head untied": "the output head is not the embedding, to which the config ties it: "
    "a head of its own, or one that was never loaded",
    "truncated": "numbers are cut off to {}, not rounded to the nearest: all errors "
    "point towards zero",
    "narrow": "every number is the nearest that {} has: it was computed in that, or its "
    "weights were converted to it; for its floor give --dtype {}",
    "inputs": "the operation is right for the inputs that it was given: the error "
    "came with them, from before",
    "scaled": "this is the golden tensor times {:.4g}",
}
MASKS = {1: "sees one later position", -1: "does not see its own position"}
# Epsilons that LLaMA files and other models have.
EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, 0.0)


class Fault(NamedTuple):
    """A mistake, and the model that makes it."""

    key: str
    text: str
    model: Model
    attend: Callable = blocked
    shift: int = 0  # of positions in every step
    shift_later: int = 0  # of positions in all steps but the first


def dense_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    start: np.ndarray,
    scale: float | None = None,
    tile: bool = False,
    mask_shift: int | None = 0,
) -> np.ndarray:
    """Causal attention with the whole matrix of scores, right or wrong as asked.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : (B, K, N, D) float
    start : (B,) int64
    scale : float
        Of scores; 1 / sqrt(D) is right.
    tile : bool
        Give query head h the key/value head h % K; h // G is right.
    mask_shift : int
        How many positions more a query sees; 0 is right, None hides nothing.

    Returns
    -------
    (B, T, H, D) float
    """
    q, _, _ = operands = grouped(q, k, v, tile)
    scores = scores_of(operands[0], operands[1], scale)  # (B, H, T, N)
    T, N = scores.shape[-2:]
    if mask_shift is not None:
        last = start[:, None] + np.arange(T) + mask_shift  # (B, T)
        hidden = np.arange(N) > last[:, None, :, None]  # (B, 1, T, N)
        scores = np.where(hidden, -np.inf, scores)
    with np.errstate(invalid="ignore"):  # a row that sees nothing is NaN
        p = softmax(scores)  # (B, H, T, N)
    return einsum("BHTN,BHND->BTHD", p, operands[2], "values")


def grouped(q, k, v, tile: bool):
    """Give every query head its keys and values.

    Returns
    -------
    q (B, T, H, D), k, v : (B, H, N, D) float
    """
    H, K = q.shape[2], k.shape[1]
    head = np.arange(H) % K if tile else np.arange(H) // (H // K)  # (H,)
    return q, k[:, head], v[:, head]


def scores_of(q: np.ndarray, k: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Products of queries and keys, scaled.

    Parameters
    ----------
    q : (B, T, H, D) float
    k : (B, H, N, D) float

    Returns
    -------
    (B, H, T, N) float
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return einsum("BTHD,BHND->BHTN", q, k, "scores") * scale


def wrong_attentions(D: int, G: int) -> Iterator[tuple[str, str, dict]]:
    """Every wrong attention: its key, its text, and options of `dense_attention`."""
    yield "scale", TEXTS["scale"], {"scale": 1.0}
    yield "scale twice", TEXTS["scale twice"], {"scale": 1 / D}
    if G > 1:
        yield "tile", TEXTS["tile"], {"tile": True}
    for shift, what in MASKS.items():
        yield "mask", TEXTS["mask"].format(what), {"mask_shift": shift}
    yield "no mask", TEXTS["no mask"], {"mask_shift": None}


def wrong_ropes(rope: Rope) -> Iterator[tuple[str, str, Rope]]:
    """Other ways to turn: the scaling ignored, the usual other thetas."""
    if rope.rope_type != "default":
        text = TEXTS["rope scaling"].format(rope.rope_type)
        yield "rope scaling", text, Rope(rope_theta=rope.rope_theta)
    for theta in (1e4, 5e5, 1e6):
        if theta != rope.rope_theta:
            text = TEXTS["rope theta"].format(theta, rope.rope_theta)
            yield "rope theta", text, replace(rope, rope_theta=theta)


def transposed(w: np.ndarray, flat: tuple[int, int]) -> np.ndarray:
    """The numbers of a matrix as they lie, read with rows for columns.

    Parameters
    ----------
    w : (*F, E) float
    flat : (int, int)
        Its two sizes on disk, output first.
    """
    return w.reshape(flat[::-1]).T.reshape(w.shape)


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


def wrong_layers(model: Model, at: Sequence[int]) -> Iterator[tuple[str, str, dict]]:
    """Mistakes in the weights of the blocks `at`: key, text, and what to replace."""

    def changed(change: Callable) -> dict:
        layers = tuple(change(w) if i in at else w for i, w in enumerate(model.layers))
        return {"layers": layers}

    order = halves_order(model.config.head_dim)
    turned = partial(_reorder, order=order)
    yield "interleaved", TEXTS["interleaved"], changed(turned)
    swap = partial(_swap_gate_and_up)
    yield "gate and up", TEXTS["gate and up"], changed(swap)
    for word, name in NORMS.items():
        text = TEXTS["no gain"].format(name)
        yield "no gain", text, changed(partial(_without_gain, word=word))
    for word, name in MATRICES.items():
        text = TEXTS["transposed"].format(f"the weight of {name}")
        yield "transposed", text, changed(partial(_transpose, word=word))


def _reorder(layer, order):
    bq, bk = (None if b is None else b[:, order] for b in (layer.bq, layer.bk))
    return layer._replace(wq=layer.wq[:, order], wk=layer.wk[:, order], bq=bq, bk=bk)


def _swap_gate_and_up(layer):
    return layer._replace(
        w_gate=layer.w_up, w_up=layer.w_gate, b_gate=layer.b_up, b_up=layer.b_gate
    )


def _without_gain(layer, word):
    return layer._replace(**{word: np.ones_like(getattr(layer, word))})


def _transpose(layer, word):
    w = getattr(layer, word)
    outputs = len(w) if word == "wo" else w.size // w.shape[-1]
    return layer._replace(**{word: transposed(w, (outputs, w.size // outputs))})


def faults(model: Model, at: Sequence[int]) -> Iterator[Fault]:
    """Every mistake of this chapter, made in a model.

    Parameters
    ----------
    model : Model
    at : sequence of int
        The blocks in which a wrong weight may stand.
    """
    config = model.config
    for key, text, changes in wrong_layers(model, at):
        yield Fault(key, text, model._replace(**changes))
    G = config.num_attention_heads // config.num_key_value_heads
    for key, text, options in wrong_attentions(config.head_dim, G):
        yield Fault(key, text, model, partial(dense_attention, **options))
    for key, text, rope in wrong_ropes(config.rope):
        yield Fault(key, text, model._replace(config=replace(config, rope=rope)))
    for eps in EPSILONS:
        if eps != config.rms_norm_eps:
            text = TEXTS["eps"].format(eps, config.rms_norm_eps)
            wrong = replace(config, rms_norm_eps=eps)
            yield Fault("eps", text, model._replace(config=wrong))
    for shift in (1, -1):
        text = TEXTS["position"].format(shift)
        yield Fault("position", text, model, shift=shift)
        text = TEXTS["position in decode"].format(shift)
        yield Fault("position in decode", text, model, shift_later=shift)
    ones = np.ones_like(model.norm)
    text = TEXTS["no gain"].format("model.norm")
    yield Fault("no gain", text, model._replace(norm=ones))
    if model.lm_head is not model.embed:
        tied = model._replace(lm_head=model.embed)
        yield Fault("head tied", TEXTS["head tied"], tied)
    read = transposed(model.lm_head, model.lm_head.shape)
    text = TEXTS["transposed"].format("the weight of lm_head")
    yield Fault("transposed", text, model._replace(lm_head=read))


def faults_of_one_block(model: Model, at: Sequence[int]) -> Iterator[Fault]:
    """Every wrong weight in each of the blocks `at` alone."""
    for i in at:
        for key, text, changes in wrong_layers(model, [i]):
            yield Fault(key, f"{text} (in block {i} alone)", model._replace(**changes))


def run_fault(
    fault: Fault, tokens: np.ndarray, steps: Sequence[Step], module: str
) -> np.ndarray | None:
    """One tensor of the last step, as the faulty model computes it.

    Parameters
    ----------
    fault : Fault
    tokens : (B, S) int64
    steps : sequence of Step
        All steps up to the one that is asked for.
    module : str
        Such as ``"model.layers.0.self_attn.o_proj"``.

    Returns
    -------
    array, or None if a fault makes the tensor impossible
    """
    model = fault.model
    kept: list[np.ndarray] = []

    def keep(name: str, x: np.ndarray) -> None:
        if split_name(name)[1] == module:
            kept[:] = [x.copy()]

    recorder = Recorder(model, keep)
    cache = new_cache(
        model.config, len(tokens), steps[-1].end + 1, model.embed.dtype.name
    )
    with observing(recorder), np.errstate(all="ignore"):
        for step in steps:
            later = fault.shift_later if step is not steps[0] else 0
            positions = np.arange(step.first, step.end) + fault.shift + later  # (T,)
            forward(
                model,
                tokens[:, step.first : step.end],
                cache,
                attend=fault.attend,
                positions=np.broadcast_to(positions, (len(tokens), len(positions))),
            )
    return kept[0] if kept else None
