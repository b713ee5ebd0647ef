r"""A cache in fewer bits: all positions are rounded but the last ones.

Keys and values come one position at a time, and a group must be there before it can be
rounded.  (A group of one token per channel would have one number, its lowest: a cache
that rounds every token by itself rounds nothing.)  So the last positions stay floats,
the *residual*, R of them or fewer:

    positions    0 ...                                    n
    keys         rounded, R at a time  | n mod R floats   |
    values       rounded, one at a time  | last R floats  |

Keys, per channel, wait until R have come, and are then rounded together.  A value waits
until R later ones have come.  Both are rounded only after they were attended to, so a
prompt that is read at once sees itself as it is.

To attend, a layer is unpacked into plain arrays, which all layers share; then attention
is the usual one.  Its numbers are, bit for bit, those of a plain cache that holds the
rounded numbers.  It costs time: all of a layer is unpacked for every token.  What is
gained is memory.

References
----------
Liu et al. 2024, "KIVI", arXiv:2402.02750, algorithm 1, and ``models/llama_kivi.py`` of
jy-yuan/KIVI.  ``QuantizedCache`` of transformers is not KIVI: it rounds a whole prompt,
then rounds all numbers again whenever its residual is full, and keys along the same
axis as values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from npllama.attention import blocked
from npllama.cache import KVCache
from npllama.compression.kv_rounding import (
    Rule,
    Rules,
    check_rules,
    due,
    restored,
    round_off,
)
from npllama.compression.packed import byte_table, pack, per_byte
from npllama.config import Config
from npllama.model import forward
from npllama.weights import Model

#  ---- the arrays ----------------------------------------------------------------


@dataclass(frozen=True)
class Rounded:
    """Keys (or values) in a few bits; takes the place of an array in a `KVCache`.

    ``rounded[i]`` is layer i: the same without the axis L.  Rows may be rolled back by
    lowering the cache's length.  What was rounded by then stays so; but a group of
    tokens that was cut is rounded once more, with those that fill it up.
    """

    rule: Rule
    residual: int  # R
    codes: np.ndarray  # (L, B, K, N, bytes) uint8
    scale: np.ndarray  # (L, B, K, N / group, D), or (L, B, K, N, D / group) per token
    lowest: np.ndarray | None  # as scale; None if symmetric
    floats: np.ndarray  # (L, B, K, R, D) float, of the residual; N if R is more
    done: np.ndarray  # (L, B) int64, positions that are rounded
    plain: np.ndarray  # (B, K, N, D) float, of the layer at work; shared by all layers
    table: np.ndarray  # (256, 1, 2 or 4) float, of the codes in a byte

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the plain array."""
        return (*self.done.shape[:-1], *self.plain.shape)

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers when they are unpacked."""
        return self.plain.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all layers, without `plain`, which is needed once."""
        parts = self.codes, self.scale, self.lowest, self.floats, self.done
        return sum(part.nbytes for part in parts if part is not None)

    def __getitem__(self, i: int) -> Rounded:
        lowest = None if self.lowest is None else self.lowest[i]
        own = self.codes[i], self.scale[i], lowest, self.floats[i], self.done[i]
        return Rounded(self.rule, self.residual, *own, self.plain, self.table)

    def __repr__(self) -> str:
        return f"Rounded({self.rule.bits} bits per {self.rule.per}, {self.shape})"


def new_rounded(
    config: Config, rows: int, capacity: int, rules: Rules, dtype: str = "float32"
) -> KVCache:
    """Make an empty cache in fewer bits.

    Use it with ``forward(..., write=write, attend=attend)`` of this chapter.

    Parameters
    ----------
    config : Config
    rows, capacity : int
        B and N.
    rules : Rules
    dtype : "float32" or "float64"
        That of the model's weights.

    Returns
    -------
    KVCache
        Its k and v are `Rounded`.

    Raises
    ------
    ValueError
        As `check_rules`; or if there are no rows or positions.
    """
    check_rules(rules)
    if rows < 1 or capacity < 1:
        raise ValueError(f"a cache of {rows} rows and {capacity} positions is empty")

    def empty(rule: Rule) -> Rounded:
        L, K = config.num_hidden_layers, config.num_key_value_heads
        D, N, R = config.head_dim, capacity, min(capacity, rules.residual)
        if rule.per == "token":
            rule = rule._replace(group=min(rule.group, D))
        shape = (
            (N // rule.group, D) if rule.per == "channel" else (N, -(-D // rule.group))
        )
        bytes_ = -(-D // per_byte(rule.bits))
        scale = np.zeros((L, rows, K, *shape), dtype=rules.ends)
        return Rounded(
            rule,
            rules.residual,
            codes=np.zeros((L, rows, K, N, bytes_), dtype=np.uint8),
            scale=scale,
            lowest=None if rule.symmetric else np.zeros_like(scale),
            floats=np.zeros((L, rows, K, R, D), dtype=dtype),
            done=np.zeros((L, rows), dtype=np.int64),
            plain=np.zeros((rows, K, N, D), dtype=dtype),
            table=byte_table(np.arange(2**rule.bits), rule.bits).astype(dtype),
        )

    k, v = (cast(Any, empty(rule)) for rule in (rules.keys, rules.values))
    return KVCache(k, v, np.zeros(rows, dtype=np.int64))


def unpack(store: Rounded, b: int, n: int) -> np.ndarray:
    """The first n positions of a row, all of them rounded.

    Parameters
    ----------
    store : Rounded
        Of one layer.

    Returns
    -------
    (K, n, D) float
    """
    rule, D = store.rule, store.plain.shape[-1]
    points = np.take(store.table, store.codes[b, :, :n], axis=0)  # (K, n, bytes, 4)
    K, n, bytes_, each = points.shape
    codes = points.reshape(K, n, bytes_ * each)[..., :D]  # (K, n, D)
    groups = np.s_[b, :, : -(-n // rule.group) if rule.per == "channel" else n]
    lowest = None if store.lowest is None else store.lowest[groups]
    return restored(codes, store.scale[groups], lowest, rule)


#  ---- the two hooks --------------------------------------------------------------


def write(store: Any, new: np.ndarray, start: np.ndarray, count: np.ndarray) -> None:
    """Unpack a layer, add new keys (or values), and round what is due.

    Writes
    ------
    All of ``store.plain``, where `attend` will look: rounded numbers, the residual,
    and the new ones as they are.  Then the codes of what is due now, and the residual.

    Parameters
    ----------
    store : Rounded
        Of one layer.
    new : (B, T, K, D) float
    start : (B,) int64
    count : (B,) int64
    """
    T = new.shape[1]
    for b, (first, n) in enumerate(zip(start.tolist(), count.tolist())):
        # After a roll back, what is rounded may be more than what is left.
        done = min(int(store.done[b]), first)
        plain = store.plain[b]  # (K, N, D)
        plain[:, :done] = unpack(store, b, done)
        plain[:, done:first] = store.floats[b, :, : first - done]
        plain[:, first : first + n] = new[b, :n].swapaxes(0, 1)
        plain[:, first + n : first + T] = 0  # padding, as in a new cache
        settle(store, b, done, first + n)


def settle(store: Rounded, b: int, done: int, n: int) -> None:
    """Round the positions of a row that are due, and keep the others.

    Parameters
    ----------
    store : Rounded
        Of one layer; its `plain` holds n positions of row b.
    b : int
    done : int
        Positions that are rounded already.
    n : int

    Writes
    ------
    Everything of row b but `plain`.
    """
    rule, plain = store.rule, store.plain[b]
    whole = rule.group if rule.per == "channel" else 1  # positions rounded together
    first = done - done % whole
    last = max(first, due(n, rule, store.residual))
    if first < last:
        ends = store.scale.dtype.name
        codes, scale, lowest = round_off(plain[:, first:last], rule, ends)
        K, T, D = codes.shape
        packed = pack(codes.reshape(-1, D), rule.bits)  # (K * T, bytes)
        store.codes[b, :, first:last] = packed.reshape(K, T, -1)
        own = slice(first // whole, last // whole)
        store.scale[b, :, own] = scale
        if store.lowest is not None:
            store.lowest[b, :, own] = lowest
    store.floats[b, :, : n - last] = plain[:, last:n]
    store.done[b] = last


def attend(q: np.ndarray, k: Any, v: Any, start: np.ndarray) -> np.ndarray:
    """Causal attention over what `write` has unpacked.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : Rounded
        Of one layer.
    start : (B,) int64

    Returns
    -------
    (B, T, H, D) float
    """
    return blocked(q, k.plain, v.plain, start)


def forward_rounded(
    model: Model,
    tokens: np.ndarray,
    cache: KVCache,
    count: np.ndarray | None = None,
    *,
    last: bool | np.ndarray = False,
) -> np.ndarray:
    """`forward` with a cache in fewer bits; see there."""
    return forward(model, tokens, cache, count, last=last, write=write, attend=attend)
