"""A LLaMA in JAX, on one page: the book's forward pass in another framework.

The same letters and the same names of weights as in npllama, and the same steps; what
differs is what JAX wants.  Functions are pure, so the cache is not written into but
returned anew; `forward` is compiled once per number of new positions; and what is
wanted from inside, every intermediate tensor, is returned in a dictionary.

Weights may be float32 or bfloat16, and products and sums are theirs, but the mean
square of a norm, the softmax and the angles are float32 always.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from npllama.candidates.text import Named, Text, check_silu, named_weights
from npllama.config import Config
from npllama.weights import Model

DTYPES = ("float32", "bfloat16")


def rms_norm(x, gain, eps):
    """Unit root mean square, then the gain; (B, T, E)."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype) * gain


def frequencies(config: Config):
    """Angle per position of every pair, (D // 2,), stretched as the config says."""
    rope, D = config.rope, config.head_dim
    w = rope.rope_theta ** -(np.arange(0, D, 2) / D)
    if rope.rope_type == "linear":
        w = w / rope.factor
    if rope.rope_type == "llama3":
        turns = rope.original_max_position_embeddings * w / (2 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        w = kept * w + (1 - kept) * w / rope.factor
    return jnp.asarray(w, dtype=jnp.float32)


def tables(config: Config, positions, dtype):
    """Cosine and sine of every angle, (T, 1, D // 2)."""
    angles = positions[:, None, None].astype(jnp.float32) * frequencies(config)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x, cos, sin):
    """Turn the pairs (i, i + D/2) of every head, (B, T, H, D)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def share(x, G: int):
    """Give every query head its keys or values: (B, K, N, D) to (B, H, N, D)."""
    return jnp.repeat(x, G, axis=1)


def scaled(scores, D: int):
    """Scores of unit size, whatever the size of a head."""
    return scores * (1 / math.sqrt(D))


def visible(positions, N: int):
    """Which keys a query sees: those at or before it, (T, N)."""
    return jnp.arange(N) <= positions[:, None]


def attend(q, k, v, positions):
    """Scores (B, H, T, N) and outputs (B, T, H, D) of causal attention."""
    G, D = q.shape[2] // k.shape[1], q.shape[3]
    scores = scaled(jnp.einsum("bthd,bhnd->bhtn", q, share(k, G)), D)
    scores = jnp.where(visible(positions, k.shape[2]), scores, -jnp.inf)
    p = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    return scores, jnp.einsum("bhtn,bhnd->bthd", p, share(v, G))


class Place(NamedTuple):
    """A part of the model: its name, all weights, and the tensors seen so far."""

    name: str
    weights: dict
    seen: dict

    def see(self, name: str, x):
        """Keep a tensor under its name, and give it back."""
        self.seen[f"{self.name}.{name}"] = x
        return x

    def norm(self, name: str, x, eps):
        """A norm with the gain of that name."""
        return self.see(
            name, rms_norm(x, self.weights[f"{self.name}.{name}.weight"], eps)
        )

    def project(self, name: str, x):
        """A product with the matrix of that name, and its bias if there is one."""
        y = jnp.einsum("bte,fe->btf", x, self.weights[f"{self.name}.{name}.weight"])
        bias = self.weights.get(f"{self.name}.{name}.bias")
        return self.see(name, y if bias is None else y + bias)


def attention(at: Place, x, config: Config, turn, k_cache, v_cache, positions):
    """The attention half; also returns the caches, with the new positions written.

    x is (B, T, E), a cache (B, K, N, D).
    """
    B, T, _ = x.shape
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q, k, v = (at.project(n, x).reshape(B, T, -1, config.head_dim) for n in names)
    q, k = at.see("self_attn.q_rope", turn(q)), at.see("self_attn.k_rope", turn(k))
    start = (0, 0, positions[0], 0)
    k_cache = jax.lax.dynamic_update_slice(k_cache, k.swapaxes(1, 2), start)
    v_cache = jax.lax.dynamic_update_slice(v_cache, v.swapaxes(1, 2), start)
    scores, y = attend(q, k_cache, v_cache, positions)
    at.see("self_attn.scores", scores)
    y = at.see("self_attn.attention", y.reshape(B, T, -1))
    return at.project("self_attn.o_proj", y), k_cache, v_cache


def feed_forward(at: Place, x):
    """SwiGLU."""
    gate, up = at.project("mlp.gate_proj", x), at.project("mlp.up_proj", x)
    bend = jax.nn.sigmoid(gate.astype(jnp.float32)).astype(x.dtype)
    return at.project("mlp.down_proj", at.see("mlp.act_fn", gate * bend) * up)


@partial(jax.jit, static_argnames="config")
def forward(weights: dict, config: Config, tokens, k_cache, v_cache, start):
    """Run new tokens through the model.

    Parameters
    ----------
    weights : dict of arrays, under Hugging Face's names
    config : Config
    tokens : (B, T) int
    k_cache, v_cache : (L, B, K, N, D)
    start : int
        Positions that every row holds already.

    Returns
    -------
    seen : dict of arrays
        Every intermediate tensor; ``lm_head`` holds the logits, (B, T, V).
    k_cache, v_cache : as given, with the new positions written
    """
    eps, seen = config.rms_norm_eps, {}
    positions = start + jnp.arange(tokens.shape[1])
    embed = weights["model.embed_tokens.weight"]
    x = seen["model.embed_tokens"] = embed[tokens]
    cos, sin = tables(config, positions, x.dtype)
    turn = partial(rotate, cos=cos, sin=sin)
    for i in range(config.num_hidden_layers):
        at = Place(f"model.layers.{i}", weights, seen)
        normed = at.norm("input_layernorm", x, eps)
        y, k, v = attention(at, normed, config, turn, k_cache[i], v_cache[i], positions)
        k_cache, v_cache = k_cache.at[i].set(k), v_cache.at[i].set(v)
        x = at.see("post_attention", x + y)
        x = x + feed_forward(at, at.norm("post_attention_layernorm", x, eps))
        at.see("output", x)
    x = Place("model", weights, seen).norm("norm", x, eps)
    seen["lm_head"] = jnp.einsum("bte,ve->btv", x, weights.get("lm_head.weight", embed))
    return seen, k_cache, v_cache


def run_weights(weights, config: Config, text: Text) -> Named:
    """Run a dictionary of JAX arrays on the text, showing every tensor."""
    dtype = weights["model.embed_tokens.weight"].dtype
    L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    (B, N), shown = text.tokens.shape, jnp.float32
    k = v = jnp.zeros((L, B, K, N, D), dtype)
    for step, tokens in text.pieces():
        seen, k, v = forward(weights, config, tokens, k, v, step.first)
        for name, x in seen.items():
            if name.endswith("scores"):
                x = x[..., : step.end]  # the rest of the cache holds no keys yet
            yield f"{step.name}/{name}", np.asarray(x.astype(shown))
    yield "cache.k", np.asarray(k.astype(shown))
    yield "cache.v", np.asarray(v.astype(shown))


def run(model: Model, text: Text, dtype: str = "float32") -> Named:
    """Every tensor of this page's model with these weights, in `dtype`.

    Yields
    ------
    (name, array) pairs; arrays are float32, whatever numbers they hold

    Raises
    ------
    ValueError
        If `dtype`, the scaling of RoPE or the activation is none that this page has.
    """
    if dtype not in DTYPES:
        raise ValueError(f"the JAX page runs in {', '.join(DTYPES)}, not {dtype!r}")
    if model.config.rope.rope_type not in ("default", "linear", "llama3"):
        raise ValueError(f"the JAX page has no {model.config.rope.rope_type} scaling")
    check_silu(model.config, "the JAX page")
    weights = {n: jnp.asarray(w, dtype) for n, w in named_weights(model).items()}
    yield from run_weights(weights, model.config, text)
