"""The model once more, every result rounded: what right backends compute.

No backend in low precision meets the exact numbers, and no two of them meet each
other.  They differ in the order of sums and in what they round, so the model is run
here in several such *ways*, with the same weights, side by side.  How far they stray
from the exact numbers is the noise floor (`floor`).

All steps are run in one pass, since a causal model computes the same for a position
whether it comes with others or alone; what differs is the order of sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npllama.config import BY_LENGTH, Config
from npllama.feedforward import ACTIVATIONS
from npllama.golden.plain import ORDERS, Arithmetic, rms_norm, softmax
from npllama.golden.precision import FORMATS, activations_in, weights_in
from npllama.ops import einsum
from npllama.rope import scaled_frequencies
from npllama.weights import Layer, Model

# How many orders of summing are drawn in float32, beside those of `ORDERS`.
SHUFFLES = 8


#  ---- the ways to compute ----------------------------------------------------


class Way(NamedTuple):
    """One way to compute: what is rounded between kernels, inside of one, and how
    many partial sums a product is made of."""

    at: Arithmetic
    inside: Arithmetic
    pieces: int = 1

    @property
    def times(self) -> int:
        """How much larger its rounding errors are than those of right arithmetic."""
        return self.at.times


def ways(dtype: str) -> list[Way]:
    """The ways in which right backends differ.

    In float32 it is the order of sums.  In half precision that hardly matters, since
    sums run in float32 and one rounding follows; backends differ in what they round.
    Plain kernels round every result; fused ones keep float32 inside: a norm with its
    gain, attention from scores to output, a rotation.  And a product that is split
    (over processors, or over two devices by tensor parallelism) is a sum of two or
    three rounded parts.  Each way also runs with every rounding error twice as large,
    to measure decisions that rounding can tip (`floor`).
    """
    dtype = activations_in(dtype)
    if dtype == "float32":
        each = [Arithmetic(dtype, order) for order in ORDERS]
        each += [Arithmetic(dtype, "shuffled", seed) for seed in range(SHUFFLES)]
        return [Way(at, at) for at in each]
    found = []
    for times in (1, 2):
        at = Arithmetic(dtype, "library", times=times)
        insides = (at, Arithmetic("float32", "library"))
        found += [Way(at, inside, n) for inside in insides for n in (1, 2, 3)]
    return found


def product(at: Arithmetic, pieces: int, multiply, a, b, axis_a=-1, axis_b=-1):
    """`multiply`, the summed axis split in pieces whose sums are rounded."""
    parts = zip(np.array_split(a, pieces, axis_a), np.array_split(b, pieces, axis_b))
    left, right = next(parts)
    y = at.product(multiply, left, right, axis_a, axis_b)
    for left, right in parts:
        if right.size:
            y = at.round(y + at.product(multiply, left, right, axis_a, axis_b))
    return y


#  ---- the model once more, every result rounded ------------------------------


def project(way: Way, x: np.ndarray, w: np.ndarray, bias=None) -> np.ndarray:
    """A product with a weight matrix, and its bias; rounded after each.

    Parameters
    ----------
    x : (B, T, E) float32
    w : (*F, E) float32
        All axes but the last are axes of the output.

    Returns
    -------
    (B, T, *F) float32
    """
    flat = w.reshape(-1, w.shape[-1])

    def multiply(x, w):
        return einsum("BTE,FE->BTF", x, w, "project")

    y = product(way.at, way.pieces, multiply, x, flat)
    y = y.reshape(*x.shape[:2], *w.shape[:-1])
    return y if bias is None else way.at.round(y + bias)


def angle_tables(at: Arithmetic, config, bounds: list[int]):
    """Cosines and sines, rounded to the dtype as transformers does.

    Parameters
    ----------
    bounds : list of int
        Where the steps begin, and the end of the last.

    Returns
    -------
    cos, sin : (S, 1, D // 2) float32
    """
    trained, parts, factor = config.max_position_embeddings, [], 1.0
    for first, end in zip(bounds, bounds[1:]):
        seen = end if config.rope.rope_type in BY_LENGTH else 0
        w, factor = scaled_frequencies(
            config.rope, config.head_dim, "float32", seen, trained
        )
        # Others find a power by exp and log, and lose a bit or two.
        w = np.exp(np.log(w)) if at.order == "one by one" else w  # (D // 2,)
        parts.append(np.arange(first, end, dtype=np.float32)[:, None, None] * w)
    angles = np.concatenate(parts)  # (S, 1, D // 2)
    return at.round(np.cos(angles) * factor), at.round(np.sin(angles) * factor)


def turn(at: Arithmetic, x: np.ndarray, cos: np.ndarray, sin: np.ndarray):
    """Turn the pairs (i, i + D/2), rounding every product and sum.

    Returns
    -------
    (B, T, H, D) float32
    """
    a, b = np.split(x, 2, axis=-1)
    left = at.round(at.round(a * cos) - at.round(b * sin))
    return np.concatenate(
        [left, at.round(at.round(b * cos) + at.round(a * sin))], axis=-1
    )


def attend(way: Way, q: np.ndarray, k: np.ndarray, v: np.ndarray):
    """Scores and outputs of causal attention from the first position on.

    Parameters
    ----------
    q : (B, T, H, D) float32
    k, v : (B, T, K, D) float32

    Returns
    -------
    scores : (B, H, T, T) float32
    y : (B, T, H, D) float32
    """
    B, T, H, D = q.shape
    at, pieces = way.inside, way.pieces
    grouped = q.reshape(B, T, k.shape[2], -1, D)  # (B, T, K, G, D)

    def match(q, k):
        return einsum("BTKGD,BSKD->BKGTS", q, k, "scores")

    def mix(p, v):
        return einsum("BKGTS,BSKD->BTKGD", p, v, "values")

    scores = product(at, pieces, match, grouped, k)  # (B, K, G, T, T)
    scores = at.round(scores * np.float32(1 / math.sqrt(D)))  # (B, K, G, T, T)
    # Plain kernels add the lowest number of the format to masked scores.  That does not
    # hide a score of nearly that size, and a score that overflows makes the row NaN.
    lowest = np.float32(-FORMATS[at.dtype].largest)
    mask = np.triu(np.full((T, T), lowest, dtype=np.float32), k=1)  # (T, T)
    p = softmax(at, at.round(scores + mask))  # (B, K, G, T, T)
    y = product(at, pieces, mix, p, v, -1, 1).reshape(q.shape)  # (B, T, H, D)
    return scores.reshape(B, H, T, T), y


def bent(way: Way, gate: np.ndarray, act: str) -> np.ndarray:
    """The gate after its activation, which is one kernel."""
    if act == "silu":
        return way.inside.round(way.at.divide(gate, 1 + way.at.exp(-gate)))
    return way.inside.round(ACTIVATIONS[act](gate))


def block(way: Way, x: np.ndarray, layer: Layer, tables, config: Config):
    """One block: its tensors under the names of transformers' modules, in order.

    Yields
    ------
    (name, array) pairs
    """
    at, inside, eps = way.at, way.inside, np.float32(config.rms_norm_eps)
    normed = at.round(rms_norm(inside, x, layer.attn_norm, eps))
    yield "input_layernorm", normed
    yield "self_attn.q_proj", (q := project(way, normed, layer.wq, layer.bq))
    yield "self_attn.k_proj", (k := project(way, normed, layer.wk, layer.bk))
    yield "self_attn.v_proj", (v := project(way, normed, layer.wv, layer.bv))
    yield "self_attn.q_rope", (q := at.round(turn(inside, q, *tables)))
    yield "self_attn.k_rope", (k := at.round(turn(inside, k, *tables)))
    scores, y = attend(way, q, k, v)
    yield "self_attn.scores", scores
    yield "self_attn.attention", (y := at.round(y))
    mixed = project(way, y.reshape(*x.shape[:2], -1), layer.wo, layer.bo)
    yield "self_attn.o_proj", mixed
    yield "post_attention", (x := at.round(x + mixed))
    normed = at.round(rms_norm(inside, x, layer.mlp_norm, eps))
    yield "post_attention_layernorm", normed
    yield "mlp.gate_proj", (gate := project(way, normed, layer.w_gate, layer.b_gate))
    yield "mlp.up_proj", (up := project(way, normed, layer.w_up, layer.b_up))
    passed = bent(way, gate, config.hidden_act)  # (B, T, F)
    yield "mlp.act_fn", at.round(passed)
    narrow = project(way, at.round(passed * up), layer.w_down, layer.b_down)
    yield "mlp.down_proj", narrow
    yield "output", at.round(x + narrow)


def held(layer: Layer, dtype: str) -> Layer:
    """The weights of a block, as a backend of this precision holds them.

    The heads of `wo`, an input, are merged: a row is all that feeds one output.
    """
    weights = {}
    for word in Layer._fields:
        w = getattr(layer, word)
        w = w.reshape(len(w), -1) if word == "wo" else w
        weights[word] = None if w is None else weights_in(w, dtype)
    return Layer(**weights)


def emulate(
    model: Model, tokens: np.ndarray, bounds: list[int], dtype: str
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Run the model in low precision, in all `ways` side by side.

    No more than one layer's tensors are held at a time.

    Parameters
    ----------
    model : Model
    tokens : (B, S) int64
    bounds : list of int
        Where steps begin, 0 first and S last: dynamic RoPE looks at that.
    dtype : one of `precision.FORMATS`

    Yields
    ------
    name : str
        Such as ``"model.layers.0.mlp.up_proj"``.
    tensors : list of (B, S, ...) float32
        One per way.
    """
    eps, storage = np.float32(model.config.rms_norm_eps), activations_in(dtype)
    each = ways(dtype)
    tables = [angle_tables(way.inside, model.config, bounds) for way in each]
    xs = [weights_in(model.embed[tokens], storage)] * len(each)
    yield "model.embed_tokens", xs
    for i, layer in enumerate(model.layers):
        weights = held(layer, dtype)
        runs = [
            block(way, x, weights, t, model.config)
            for way, x, t in zip(each, xs, tables)
        ]
        for named in zip(*runs):
            xs = [tensor for _, tensor in named]
            yield f"model.layers.{i}.{named[0][0]}", xs
    gain = weights_in(model.norm, storage)  # (E,)
    xs = [way.at.round(rms_norm(way.inside, x, gain, eps)) for way, x in zip(each, xs)]
    yield "model.norm", xs
    lm_head = weights_in(model.lm_head, storage)  # (V, E)
    yield "lm_head", [project(way, x, lm_head) for way, x in zip(each, xs)]
