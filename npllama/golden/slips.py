"""Slips: mistakes in one part of the model, made on purpose.

Each slip is a function that replaces one of `wrong.Parts`: a wrong norm, angle, mask,
scale or activation.  The config is enough to list them.  The table of all faults, with
their names and what a report says of each, is here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from npllama.attention import softmax
from npllama.config import Config, Rope
from npllama.feedforward import ACTIVATIONS, gelu, relu, silu, tanh_gelu
from npllama.golden.wrong import RIGHT, Parts, causal, turn
from npllama.norm import rms_norm
from npllama.rope import rope_tables, rotate, rotate_neighbours
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
    "position restarts": "positions begin at 0 again after the prefill: the number of "
    "cached tokens is not added",
    "rope scaling": "the scaling of RoPE in the config ({}) is ignored",
    "rope theta": "RoPE turns with rope_theta {:g}; the config says {:g}",
    "rope exponent": "pair i of RoPE turns by theta to the power of {}; 2i / D is right",
    "scale": "scores are not divided by the square root of the head size",
    "scale twice": "scores are divided by the head size, not by its square root",
    "scale of width": "scores are divided by the square root of the model's width, not "
    "of the head size",
    "tile": "query head h uses key/value head h % K (tiled); it should be h // G "
    "(each head repeated G times)",
    "mask": "the mask is off by one: a query {}",
    "no mask": "nothing hides later positions: the causal mask is missing",
    "window": "a query sees the last {} positions only: a sliding window",
    "hidden": "keys are hidden that a query should see: {}",
    "activation": "{} bends the gate; {} is right",
    "eps": "rms_norm_eps is about {:.3g}; the config says {:g}",
    "eps outside": "eps is added outside the root of the mean square; it belongs inside",
    "l2 norm": "the norm divides by the root of the sum of squares, not of their mean",
    "layer norm": "the norm takes the mean off first (LayerNorm); RMSNorm does not",
    "no gain": "the weight of {} is left out",
    "gain plus one": "the weight of {} is used as 1 + weight, as in Gemma",
    "other gain": "RMSNorm multiplies by other numbers than its weight: by those of "
    "another norm, by its own twice, or by some that were never loaded",
    "transposed": "{} is read transposed: files hold the output axis first",
    "swapped": "this is the golden {}: two tensors are swapped, one is used twice, or a "
    "step is left out",
    "gate and up": "gate_proj and up_proj are swapped",
    "quantised": "the weights are rounded to {}",
    "share": "this is share {} of {} of the sum over the inputs: the others are not "
    "added, as where devices that share a product do not exchange their sums",
    "head tied": "the output head is the embedding; the model has a head of its own",
    "head untied": "the output head is not the embedding, to which the config ties it: "
    "a head of its own, or one that was never loaded",
    "log-probabilities": "these are log-probabilities, not logits: compare what comes "
    "before the log-softmax",
    "probabilities": "these are probabilities, not logits",
    "shifted ids": "the logits are off by {:+d} along the vocabulary",
    "shifted positions": "the logits are off by {:+d} along the positions",
    "truncated": "numbers are cut off to {}, not rounded to the nearest: all errors "
    "point towards zero",
    "narrow": "every number is the nearest that {} has: it was computed in that, or its "
    "weights were converted to it; for its floor give --dtype {}",
    "not finite": "{}",
    "not written": "{} are zero: they were never written",
    "all zero": "all numbers are zero: this tensor was never written, or its weights "
    "were never loaded",
    "inputs": "the operation is right for the inputs that it was given: the error "
    "came with them, from before",
    "scaled": "this is the golden tensor times {:.4g}",
    "other order": "these are the right numbers in another order: heads, rows or ids are "
    "permuted",
    "unlike": "this has no likeness to the golden tensor, though what it is made from "
    "is right: the weights are others (of another checkpoint, or never loaded)",
}
# Faults with a number fitted to the candidate, which always helps a little.
FITTED = ("other gain", "scaled")
MASKS = {1: "sees one later position", -1: "does not see its own position"}
# Epsilons that LLaMA files and other models have.
EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)
THETAS = (1e4, 1e5, 5e5, 1e6)


class Fault(NamedTuple):
    """A mistake: the part that was exchanged, or a model with wrong weights."""

    key: str
    text: str
    part: str = ""  # a field of `Parts`
    wrong: Callable | None = None
    model: Model | None = None

    @property
    def parts(self) -> Parts:
        """The parts of a model with this mistake."""
        return RIGHT._replace(**{self.part: self.wrong}) if self.part else RIGHT


#  ---- wrong parts ----------------------------------------------------------------


def neighbours(x: np.ndarray, config: Config, at: np.ndarray) -> np.ndarray:
    """Pairs (2i, 2i + 1) turned."""
    return rotate_neighbours(x, *rope_tables(config, at, "float64"))


def unturned(x: np.ndarray, config: Config, at: np.ndarray) -> np.ndarray:
    """Not turned at all."""
    return x


def turned_as(x: np.ndarray, config: Config, at: np.ndarray, rope: Rope) -> np.ndarray:
    """Turned with another base or scaling."""
    return turn(x, replace(config, rope=rope), at)


def turned_at_powers(x, config: Config, at: np.ndarray, powers: np.ndarray):
    """Turned by theta to these powers, one for every pair."""
    angles = at[:, :, None] * config.rope.rope_theta**-powers  # (1, T, D // 2)
    return rotate(x, np.cos(angles), np.sin(angles))


def wrong_turns(config: Config) -> Iterator[Fault]:
    """Layout, base, scaling and exponent of RoPE."""
    rope, D = config.rope, config.head_dim
    yield Fault("interleaved", TEXTS["interleaved"], "turn", neighbours)
    yield Fault("no rotation", TEXTS["no rotation"], "turn", unturned)
    if rope.rope_type != "default":
        text = TEXTS["rope scaling"].format(rope.rope_type)
        plain = Rope(rope_theta=rope.rope_theta)
        yield Fault("rope scaling", text, "turn", partial(turned_as, rope=plain))
    for theta in THETAS:
        if theta != rope.rope_theta:
            text = TEXTS["rope theta"].format(theta, rope.rope_theta)
            other = replace(rope, rope_theta=theta)
            yield Fault("rope theta", text, "turn", partial(turned_as, rope=other))
    pair = np.arange(D // 2)
    for said, powers in (
        ("2i / (D - 2)", 2 * pair / max(D - 2, 1)),
        ("i / D", pair / D),
        ("4i / D", 4 * pair / D),
    ):
        text = TEXTS["rope exponent"].format(said)
        yield Fault(
            "rope exponent", text, "turn", partial(turned_at_powers, powers=powers)
        )


def moved(positions: np.ndarray, prompt: int, by: int, later: int) -> np.ndarray:
    """Positions off by a number, and by another after the prompt: (S,)."""
    return positions + by + later * (positions >= prompt)


def from_zero(positions: np.ndarray, prompt: int) -> np.ndarray:
    """Positions that begin again after the prompt: (S,)."""
    return np.where(positions < prompt, positions, positions - prompt)


def zero_later(positions: np.ndarray, prompt: int) -> np.ndarray:
    """Position 0 for every token after the prompt: (S,)."""
    return np.where(positions < prompt, positions, 0)


def wrong_positions() -> Iterator[Fault]:
    """Positions that are off, everywhere or in decode."""
    for by in (1, -1, 2, -2):
        text = TEXTS["position"].format(by)
        yield Fault("position", text, "moved", partial(moved, by=by, later=0))
        text = TEXTS["position in decode"].format(by)
        wrong = partial(moved, by=0, later=by)
        yield Fault("position in decode", text, "moved", wrong)
    for begun in (from_zero, zero_later):
        text = TEXTS["position restarts"]
        yield Fault("position restarts", text, "moved", begun)


def scaled_by(config: Config, factor: float) -> float:
    """One scale whatever the config."""
    return factor


def tiled(H: int, K: int) -> np.ndarray:
    """Key/value heads repeated as a whole: (H,)."""
    return np.arange(H) % K


def shifted_mask(query: np.ndarray, key: np.ndarray, by: int) -> np.ndarray:
    """As many later keys seen, or hidden: (T, S)."""
    return key <= query + by


def all_seen(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """No mask: (T, S)."""
    return key <= query + len(key)


def windowed(query: np.ndarray, key: np.ndarray, size: int) -> np.ndarray:
    """The last few keys: (T, S)."""
    return causal(query, key) & (key > query - size)


def first_hidden(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The first key is seen by the first query only: (T, S)."""
    return causal(query, key) & ((key > 0) | (query == 0))


def wrong_attentions(config: Config) -> Iterator[Fault]:
    """Scale, grouping and mask."""
    D, E = config.head_dim, config.hidden_size
    for key, factor in (
        ("scale", 1.0),
        ("scale twice", 1 / D),
        ("scale of width", 1 / math.sqrt(E)),
    ):
        if D > 1 and not (key == "scale of width" and E == D):
            yield Fault(key, TEXTS[key], "scale", partial(scaled_by, factor=factor))
    if 1 < config.num_key_value_heads < config.num_attention_heads:
        yield Fault("tile", TEXTS["tile"], "head", tiled)
    for by, what in MASKS.items():
        text = TEXTS["mask"].format(what)
        yield Fault("mask", text, "visible", partial(shifted_mask, by=by))
    yield Fault("no mask", TEXTS["no mask"], "visible", all_seen)
    for size in (2**power for power in range(13)):
        text = TEXTS["window"].format(size)
        yield Fault("window", text, "visible", partial(windowed, size=size))
    text = TEXTS["hidden"].format("the first")
    yield Fault("hidden", text, "visible", first_hidden)


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """GELU as CLIP approximates it."""
    return x / (1 + np.exp(-1.702 * x))


def squared_relu(x: np.ndarray) -> np.ndarray:
    """The square of what is above zero."""
    return np.square(relu(x))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """SiLU without its factor."""
    return 1 / (1 + np.exp(-x))


def unbent(x: np.ndarray) -> np.ndarray:
    """No activation at all."""
    return x


BENDS: dict[str, Callable] = {
    "SiLU": silu,
    "GELU": gelu,
    "GELU with tanh": tanh_gelu,
    "GELU with a sigmoid": quick_gelu,
    "ReLU": relu,
    "the square of ReLU": squared_relu,
    "a sigmoid": sigmoid,
    "tanh": np.tanh,
    "nothing": unbent,
}


def other_activation(gate: np.ndarray, config: Config, bend: Callable) -> np.ndarray:
    """The gate after another activation than the config's."""
    return bend(gate)


def norm_with(x: np.ndarray, gain: np.ndarray, eps: float, other: float) -> np.ndarray:
    """RMSNorm with another epsilon."""
    return rms_norm(x, gain, other)


def norm_outside(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """Epsilon added to the root."""
    root = np.sqrt(np.square(x).mean(axis=-1, keepdims=True))
    return x / (root + eps) * gain


def norm_of_sum(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """Unit length, not unit root mean square."""
    return x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + eps) * gain


def norm_without_mean(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """LayerNorm without its bias."""
    return rms_norm(x - x.mean(axis=-1, keepdims=True), gain, eps)


def norm_without_gain(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """The gain left out."""
    return rms_norm(x, np.ones_like(gain), eps)


def norm_of_gemma(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """One added to the gain."""
    return rms_norm(x, 1 + gain, eps)


def wrong_norms(config: Config, name: str = "every norm") -> Iterator[Fault]:
    """Epsilon, gain and what is divided by; `name` is that of the norm in the texts."""
    for eps in EPSILONS:
        if eps != config.rms_norm_eps:
            text = TEXTS["eps"].format(eps, config.rms_norm_eps)
            yield Fault("eps", text, "norm", partial(norm_with, other=eps))
    for key, wrong in (
        ("eps outside", norm_outside),
        ("l2 norm", norm_of_sum),
        ("layer norm", norm_without_mean),
        ("no gain", norm_without_gain),
        ("gain plus one", norm_of_gemma),
    ):
        yield Fault(key, TEXTS[key].format(name), "norm", wrong)


def log_probabilities(z: np.ndarray) -> np.ndarray:
    """Logits after a log-softmax."""
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def rolled(z: np.ndarray, by: int, axis: int) -> np.ndarray:
    """Logits in the place of their neighbours; what has none is not known (NaN)."""
    z = np.roll(z, by, axis)
    if axis == 1:
        z = z.copy()
        z[:, :by] = np.nan if by > 0 else z[:, :by]
        z[:, by:] = np.nan if by < 0 else z[:, by:]
    return z


def wrong_logits() -> Iterator[Fault]:
    """Changes to logits, which should be left as they are."""
    text = TEXTS["log-probabilities"]
    yield Fault("log-probabilities", text, "logits", log_probabilities)
    yield Fault("probabilities", TEXTS["probabilities"], "logits", softmax)
    for key, axis in (("shifted ids", 2), ("shifted positions", 1)):
        for by in (1, -1):
            text = TEXTS[key].format(by)
            yield Fault(key, text, "logits", partial(rolled, by=by, axis=axis))


def wrong_parts(config: Config) -> Iterator[Fault]:
    """Every mistake in one part of the model."""
    yield from wrong_turns(config)
    yield from wrong_positions()
    yield from wrong_attentions(config)
    right = ACTIVATIONS[config.hidden_act]
    named = {bend: name for name, bend in BENDS.items()}
    for bend, name in named.items():
        if bend is not right:
            text = TEXTS["activation"].format(name, named[right])
            yield Fault("activation", text, "act", partial(other_activation, bend=bend))
    yield from wrong_norms(config)
    yield from wrong_logits()
