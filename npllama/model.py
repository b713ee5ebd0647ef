"""Chapter 9: the whole model on one screen.

Look up each token's vector; let L blocks add to it, each first by attention, then
by a feed-forward; compare the result with every word of the vocabulary.  The sum
that runs through the blocks, `x`, is the residual stream: a block reads a
normalised copy of it and writes by adding.

This one function does prefill, chunked prefill and decode: give it the new
tokens, and a cache that holds the earlier ones.  It also runs many texts at
once: one per row of a batch, or all of them packed into one row, one text
after the other.
"""

from __future__ import annotations

import numpy as np

from npllama.attention import attention, blocked
from npllama.cache import KVCache, append
from npllama.config import BY_LENGTH, Config
from npllama.feedforward import ACTIVATIONS, feed_forward
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
    last: bool | np.ndarray = False,
    attend=blocked,
    write=append,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """Run tokens through the model.

    Writes
    ------
    Keys and values of the new positions, into the cache; adds `count` to its lengths.

    Parameters
    ----------
    model : Model
    tokens : (B, T) int64
        The next tokens of every row, left-aligned; or a packed row (1, T): the next
        tokens of R texts, one text after the other.
    cache : KVCache
        With R lengths, and arrays of one row, for a packed row.
    count : (R,) int64
        How many of a row's tokens are real, 0 ... T; by default all.  The
        rest is padding, whose logits mean nothing.  In a batch every row is a
        text, so R = B; in a packed row, `count` says how many tokens each text
        has, T in all.
    last : bool or places
        Return only the logits that follow each text's last real token; or those at
        M given places, 0 ... T - 1, of every row.
    attend : `attention.blocked`, or another function of its form
    write : `cache.append`, or another function of its form
        Where keys and values go.  A packed row needs an `attend` and a `write` of its
        own, which know where each text's positions lie.
    positions : (B, T) int64
        Where the tokens stand, if they do not follow those in the cache one by
        one (the guesses of `lookahead` do not).  Then `attend` has to know
        which of them see each other.

    Returns
    -------
    (B, T_or_M, V) float
        Logits: entry [b, t] scores the token that follows position t; with `last`,
        there is one t in a row, or R in a packed row.

    Raises
    ------
    ValueError
        If a token is outside the vocabulary, the cache is of another shape or
        dtype, or a text would outgrow it.  Nothing has been written then.
    TypeError
        If `model` is not a Model or `cache` is not a KVCache.
    """
    tokens, count = _check(model, tokens, cache, count, write)
    eps, bend = model.config.rms_norm_eps, ACTIVATIONS[model.config.hidden_act]
    start, packed = cache.length.copy(), len(cache.length) != len(tokens)
    if positions is None:
        positions = _positions(tokens.shape, start, count, packed)  # (B, T)
    tables = rope_tables(model.config, positions, model.embed.dtype.name)

    enter("model")
    x = model.embed[tokens]  # (B, T, E)
    begin(start, count if packed else np.full_like(start, tokens.shape[1]), x)
    note("embed_tokens", x)
    for i, layer in enumerate(model.layers):
        enter(f"model.layers.{i}")
        normed = rms_norm(x, layer.attn_norm, eps)  # (B, T, E)
        note("input_layernorm", normed)
        x = x + attention(
            normed, layer, tables, cache.k[i], cache.v[i], start, count, attend, write
        )  # (B, T, E)
        note("post_attention", x)
        normed = rms_norm(x, layer.mlp_norm, eps)  # (B, T, E)
        note("post_attention_layernorm", normed)
        x = x + feed_forward(normed, layer, bend)  # (B, T, E)
        note("output", x)
    cache.length[:] += count

    enter("model")
    if last is not False:
        x = x[_wanted(last, count, packed)]  # (B, M, E)
    x = rms_norm(x, model.norm, eps)  # (B, T_or_M, E)
    note("norm", x)
    return einsum("BTE,VE->BTV", x, model.lm_head, "lm_head")


def _positions(shape, start, count, packed) -> np.ndarray:
    """Where the new tokens stand: after those that their text holds.

    Returns
    -------
    (B, T) int64
    """
    if packed:
        pieces = [np.arange(s, s + n) for s, n in zip(start, count)]
        return np.concatenate(pieces)[None]
    # Padding gets its row's last position, since dynamic RoPE looks at the last one.
    step = np.minimum(np.arange(shape[1]), np.maximum(count, 1)[:, None] - 1)  # (B, T)
    return start[:, None] + step


def _wanted(last, count, packed) -> tuple:
    """Index of the places whose logits are wanted, in an array of (B, T, E)."""
    if last is not True:
        return np.s_[:, last]
    if packed:
        return np.s_[:, np.cumsum(count) - 1]
    return np.arange(len(count))[:, None], count[:, None] - 1


def _check(model, tokens, cache, count, write) -> tuple[np.ndarray, np.ndarray]:
    """The arguments as integer arrays, or an error that says what is wrong."""
    if not isinstance(getattr(model, "config", None), Config):
        raise TypeError(f"model: {type(model).__name__} found; see npllama.load")
    if not isinstance(cache, KVCache):
        raise TypeError(f"cache: {type(cache).__name__} found; see new_cache")
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
    shared = B == 1 and cache.k.shape[1:2] == (1,)
    R = len(cache.length) if shared else B
    count = np.full(B, T, dtype=np.int64) if count is None else np.asarray(count)
    whole = count.shape == (R,) and count.dtype.kind in "iu"
    if not whole or count.min(initial=T) < 0 or count.max(initial=0) > T:
        raise ValueError(f"count: expected {R} numbers from 0 to {T}, found {count}")
    count = count.astype(np.int64)
    if R != B:
        _check_packed(model.config, count, T, write)
    _check_cache(model, cache, count, B)
    return tokens, count


def _check_packed(config, count, T, write) -> None:
    """Raise an error unless the texts fill the row, and RoPE ignores their length."""
    if write is append:
        raise ValueError("a packed row needs its own write and attend; see `packed`")
    if count.sum() != T:
        raise ValueError(f"count: {count} sums to {count.sum()}; the row holds {T}")
    if config.rope.rope_type in BY_LENGTH:
        kind = config.rope.rope_type
        raise ValueError(f"rope_type {kind} turns by a row's length: pack no row")


def _check_cache(model, cache, count, B) -> None:
    """Raise an error unless `count` new positions of every text fit in the cache."""
    L, dtype = model.config.num_hidden_layers, model.embed.dtype
    K, D = model.config.num_key_value_heads, model.config.head_dim
    N = cache.k.shape[-2]
    for array in (cache.k, cache.v):
        if array.shape != (L, B, K, N, D) or array.dtype != dtype:
            raise ValueError(
                f"cache: {array.dtype} of {array.shape}, where this model and batch "
                f"need {dtype} of ({L}, {B}, {K}, capacity, {D})"
            )
    length, R = cache.length, len(count)
    if length.shape != (R,) or length.dtype.kind != "i" or length.min() < 0:
        raise ValueError(f"cache: expected {R} lengths from 0, found {length}")
    need = int((length + count).max())
    if need > N:
        raise ValueError(f"cache: a text would hold {need} positions; capacity is {N}")
