"""Chapter 9: the whole model on one screen.

Look up each token's vector; let L blocks add to it, each first by attention, then
by a feed-forward; compare the result with every word of the vocabulary.  The sum
that runs through the blocks, `x`, is the residual stream: a block reads a
normalised copy of it and writes by adding.

Prefill, chunked prefill and decode are this one function: give it the tokens that
are new and the cache of those that are not.
"""

from __future__ import annotations

import numpy as np

from npllama.attention import attention, vectorized
from npllama.cache import KVCache
from npllama.feedforward import feed_forward
from npllama.norm import rms_norm
from npllama.ops import begin, einsum, enter, note
from npllama.rope import rope_tables
from npllama.weights import Model


def forward(
    model: Model,
    tokens: np.ndarray,
    cache: KVCache,
    count: np.ndarray | None = None,
    *,
    last: bool = False,
    attend=vectorized,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """Run tokens through the model.

    Writes keys and values of the new positions into the cache, and adds `count`
    to its lengths.

    Parameters
    ----------
    model : Model
    tokens : (B, T) int64
        The next tokens of every row, left-aligned.
    cache : KVCache
    count : (B,) int64
        How many of a row's tokens are real, 0 ... T; what follows is padding,
        whose logits mean nothing.  All of them by default.
    last : bool
        Return only the logits behind each row's last real token.
    attend : `attention.vectorized` or `attention.naive`
    positions : (B, T) int64
        Where the tokens stand, if not one behind the other, as the guesses of
        `lookahead`; `attend` has to know then which of them see each other.

    Returns
    -------
    (B, T_or_1, V) float
        Logits: entry [b, t] scores the token that follows position t; with `last`,
        there is one t.

    Raises
    ------
    ValueError
        If a token is outside the vocabulary, the cache is of another shape or
        dtype, or a row would outgrow it.  Nothing has been written then.
    TypeError
        If the cache is none.
    """
    tokens, count = _check(model, tokens, cache, count)
    B, T = tokens.shape
    eps, start = model.config.rms_norm_eps, cache.length.copy()
    if positions is None:
        # Padding stands where its row ends: `dynamic` looks at the last position.
        step = np.minimum(np.arange(T), np.maximum(count, 1)[:, None] - 1)  # (B, T)
        positions = start[:, None] + step  # (B, T)
    tables = rope_tables(model.config, positions, model.embed.dtype.name)

    enter("model")
    x = model.embed[tokens]  # (B, T, E)
    begin(start, x)
    note("embed_tokens", x)
    for i, layer in enumerate(model.layers):
        enter(f"model.layers.{i}")
        normed = rms_norm(x, layer.attn_norm, eps)  # (B, T, E)
        note("input_layernorm", normed)
        x = x + attention(
            normed, layer, tables, cache.k[i], cache.v[i], start, count, attend
        )  # (B, T, E)
        note("post_attention", x)
        normed = rms_norm(x, layer.mlp_norm, eps)  # (B, T, E)
        note("post_attention_layernorm", normed)
        x = x + feed_forward(normed, layer)  # (B, T, E)
        note("output", x)
    cache.length[:] += count

    enter("model")
    if last:
        x = x[np.arange(B), count - 1][:, None]
    x = rms_norm(x, model.norm, eps)  # (B, T_or_1, E)
    note("norm", x)
    return einsum("BTE,VE->BTV", x, model.lm_head, "lm_head")


def _check(model, tokens, cache, count) -> tuple[np.ndarray, np.ndarray]:
    """The arguments as integer arrays, or a ValueError that says what is wrong."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.size == 0 or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"tokens: expected integers of shape (B, T), found {tokens.dtype} "
            f"of {tokens.shape}"
        )
    B, T = tokens.shape
    V = model.config.vocab_size
    if tokens.min() < 0 or tokens.max() >= V:
        worst = tokens.min() if tokens.min() < 0 else tokens.max()
        raise ValueError(f"tokens: {worst} is outside the vocabulary, 0 to {V - 1}")
    count = np.full(B, T, dtype=np.int64) if count is None else np.asarray(count)
    whole = count.shape == (B,) and count.dtype.kind in "iu"
    if not whole or count.min() < 0 or count.max() > T:
        raise ValueError(f"count: expected {B} numbers from 0 to {T}, found {count}")
    count = count.astype(np.int64)
    _check_cache(model, cache, count)
    return tokens, count


def _check_cache(model, cache, count) -> None:
    """Raise an error unless `count` new positions of every row fit in the cache."""
    if not isinstance(cache, KVCache):
        raise TypeError(f"cache: {type(cache).__name__} found; see new_cache")
    L, B, dtype = model.config.num_hidden_layers, len(count), model.embed.dtype
    K, D = model.config.num_key_value_heads, model.config.head_dim
    N = cache.k.shape[-2]
    for array in (cache.k, cache.v):
        if array.shape != (L, B, K, N, D) or array.dtype != dtype:
            raise ValueError(
                f"cache: {array.dtype} of {array.shape}, where this model and batch "
                f"need {dtype} of ({L}, {B}, {K}, capacity, {D})"
            )
    length = cache.length
    if length.shape != (B,) or length.dtype.kind != "i" or length.min() < 0:
        raise ValueError(f"cache: expected {B} lengths from 0, found {length}")
    need = int((length + count).max())
    if need > N:
        raise ValueError(f"cache: a row would hold {need} positions; capacity is {N}")
