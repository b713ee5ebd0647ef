"""The model with parts that can be exchanged: what a backend with a mistake computes.

Most mistakes are in one part: a norm, an angle, a mask, a scale, an activation.
`Parts` lists the parts of the whole model; a fault exchanges one of them, or a
weight.  Run on the tokens of a golden trace, the model then shows what the mistake
does to every tensor.  All steps run in one pass, as in `emulation`; the positions say
which step a token belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from npllama.attention import softmax
from npllama.config import Config
from npllama.feedforward import ACTIVATIONS
from npllama.norm import rms_norm
from npllama.ops import einsum
from npllama.rope import rope_tables, rotate
from npllama.weights import Layer, Model


def turn(x: np.ndarray, config: Config, at: np.ndarray) -> np.ndarray:
    """Queries or keys (B, T, H, D), turned as the config says; positions (1, T)."""
    return rotate(x, *rope_tables(config, at, "float64"))


def bent(gate: np.ndarray, config: Config) -> np.ndarray:
    """The gate after the activation that the config names."""
    return ACTIVATIONS[config.hidden_act](gate)


def shared(H: int, K: int) -> np.ndarray:
    """Which key/value head every query head uses, (H,)."""
    return np.arange(H) // (H // K)


def root_of_head(config: Config) -> float:
    """What scores are multiplied by."""
    return 1 / math.sqrt(config.head_dim)


def causal(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Which keys a query sees: (T, 1) and (S,) int64 to (T, S) bool."""
    return key <= query


def as_they_are(x: np.ndarray) -> np.ndarray:
    """The same numbers."""
    return x


def where_they_are(positions: np.ndarray, prompt: int) -> np.ndarray:
    """Positions as they are, (S,)."""
    return positions


class Parts(NamedTuple):
    """What the model is made of, part by part."""

    norm: Callable = rms_norm  # x, gain, eps
    turn: Callable = turn
    moved: Callable = where_they_are  # positions (S,), and how many the prompt has
    head: Callable = shared
    scale: Callable = root_of_head
    visible: Callable = causal
    act: Callable = bent  # gate, config
    logits: Callable = as_they_are


RIGHT = Parts()


def scores_of(parts: Parts, config: Config, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Scaled products of queries and keys, nothing hidden.

    Parameters
    ----------
    q : (B, T, H, D) float
    k : (B, K, S, D) float

    Returns
    -------
    (B, H, T, S) float
    """
    k = k[:, parts.head(q.shape[2], k.shape[1])]  # (B, H, S, D)
    return einsum("BTHD,BHSD->BHTS", q, k, "scores") * parts.scale(config)


def attend(
    parts: Parts,
    config: Config,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    queries: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """What the heads return.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : (B, K, S, D) float
    queries : two of (T, 1) int64
        Their positions, and how many keys have been computed when each runs.

    Returns
    -------
    (B, T, H, D) float
    """
    scores = scores_of(parts, config, q, k)  # (B, H, T, S)
    key, (query, there) = np.arange(k.shape[2]), queries
    seen = parts.visible(query, key) & (key < there)  # (T, S)
    with np.errstate(invalid="ignore"):  # a row that sees nothing is NaN
        p = softmax(np.where(seen, scores, -np.inf))  # (B, H, T, S)
    v = v[:, parts.head(q.shape[2], v.shape[1])]  # (B, H, S, D)
    return einsum("BHTS,BHSD->BTHD", p, v, "values")


def by_step(turn: Callable, x: np.ndarray, config: Config, at: list) -> np.ndarray:
    """Turn every step by itself: how far dynamic RoPE turns depends on its length."""
    ends = np.cumsum([positions.shape[1] for positions in at])[:-1]
    parts = zip(np.split(x, ends, axis=1), at)
    return np.concatenate([turn(y, config, positions) for y, positions in parts], 1)


def project(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """A product with a weight whose last axis is summed: (B, T, E) to (B, T, *F)."""
    y = einsum("BTE,FE->BTF", x, w.reshape(-1, w.shape[-1]), "project")
    y = y.reshape(*x.shape[:2], *w.shape[:-1])
    return y if bias is None else y + bias


def block(
    parts: Parts, config: Config, x: np.ndarray, layer: Layer, at: list[np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of one block, in the order in which they are computed.

    Parameters
    ----------
    x : (B, S, E) float
    at : list of (1, T) int64
        Where the tokens of every step are taken to stand.
    """
    eps = config.rms_norm_eps
    yield "input_layernorm", (h := parts.norm(x, layer.attn_norm, eps))
    yield "self_attn.q_proj", (q := project(h, layer.wq, layer.bq))
    yield "self_attn.k_proj", (k := project(h, layer.wk, layer.bk))
    yield "self_attn.v_proj", (v := project(h, layer.wv, layer.bv))
    yield "self_attn.q_rope", (q := by_step(parts.turn, q, config, at))
    yield "self_attn.k_rope", (k := by_step(parts.turn, k, config, at))
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # (B, K, S, D)
    yield "self_attn.attention", (y := attend(parts, config, q, k, v, asked(at)))
    wo = layer.wo.reshape(len(layer.wo), -1)  # (E, HD)
    yield "self_attn.o_proj", (y := project(y.reshape(*x.shape[:2], -1), wo, layer.bo))
    yield "post_attention", (x := x + y)
    yield "post_attention_layernorm", (h := parts.norm(x, layer.mlp_norm, eps))
    yield "mlp.gate_proj", (gate := project(h, layer.w_gate, layer.b_gate))
    yield "mlp.up_proj", (up := project(h, layer.w_up, layer.b_up))
    yield "mlp.act_fn", (open_by := parts.act(gate, config))
    yield "mlp.down_proj", (y := project(open_by * up, layer.w_down, layer.b_down))
    yield "output", x + y


def asked(at: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all queries, and the end of the step that each belongs to."""
    lengths = [positions.shape[1] for positions in at]
    ends = np.repeat(np.cumsum(lengths), lengths)  # (S,)
    return np.arange(len(ends))[:, None], ends[:, None]


def compute(
    parts: Parts, model: Model, tokens: np.ndarray, bounds: list[int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the model, all positions at once.

    Parameters
    ----------
    parts : Parts
    model : Model
    tokens : (B, S) int64
    bounds : list of int
        Where the steps begin, 0 first and S last.

    Yields
    ------
    (module, array) pairs; axes as in a trace, all S positions in each
    """
    config, prompt = model.config, bounds[1]
    moved = parts.moved(np.arange(tokens.shape[1]), prompt)[None]  # (1, S)
    at = [moved[:, first:end] for first, end in zip(bounds, bounds[1:])]
    yield "model.embed_tokens", (x := model.embed[tokens])
    for i, layer in enumerate(model.layers):
        for name, y in block(parts, config, x, layer, at):
            yield f"model.layers.{i}.{name}", y
        x = y
    yield "model.norm", (x := parts.norm(x, model.norm, config.rms_norm_eps))
    yield "lm_head", parts.logits(project(x, model.lm_head, None))
