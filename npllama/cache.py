"""Chapter 6: the cache, arrays in the caller's hands.

Attention at one position looks at the keys and values of all positions before it.
These never change once computed, so they are kept.  Then one more token costs
the work of one position, not that of all positions again.  That is the
difference between *prefill*, which runs a whole prompt through the model at
once, and *decode*, which then adds a token at a time.

The cache is two arrays and, for every row of the batch, how much of it is filled.
Rows are left-aligned: row b holds its first ``length[b]`` positions in place,
and nothing reads what lies after them.  To roll a row back, lower its length;
to copy or reorder rows, index the arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npllama.config import Config


class KVCache(NamedTuple):
    """Keys and values of every layer, for the positions seen so far."""

    k: np.ndarray  # (L, B, K, N, D)
    v: np.ndarray  # (L, B, K, N, D)
    length: np.ndarray  # (B,) int64, positions filled in each row

    def __repr__(self) -> str:
        L, B, K, N, D = self.k.shape
        return (
            f"KVCache(length={self.length.tolist()} of N={N}; "
            f"k, v: L={L} B={B} K={K} D={D} {self.k.dtype})"
        )


def new_cache(
    config: Config, batch: int, capacity: int, dtype: str = "float32"
) -> KVCache:
    """Make an empty cache.

    Parameters
    ----------
    config : Config
    batch : int
        Rows, B.
    capacity : int
        Positions that each row can hold, N.
    dtype : "float32" or "float64"
        That of the model's weights.

    Returns
    -------
    KVCache
        2 * L * B * K * N * D elements; the system hands out the memory as it is
        first written.

    Raises
    ------
    TypeError
        If `config` is not a Config.
    ValueError
        If `batch` or `capacity` is below 1.
    """
    if not isinstance(config, Config):
        raise TypeError(f"config: {type(config).__name__} found; give model.config")
    L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    if batch < 1 or capacity < 1:
        raise ValueError(f"a cache of {batch} rows and {capacity} positions is empty")
    shape = (L, batch, K, capacity, D)
    k = np.zeros(shape, dtype=dtype)  # (L, B, K, N, D)
    v = np.zeros(shape, dtype=dtype)  # (L, B, K, N, D)
    return KVCache(k, v, np.zeros(batch, dtype=np.int64))


def append(
    store: np.ndarray, new: np.ndarray, start: np.ndarray, count: np.ndarray
) -> None:
    """Write new keys (or values) of one layer after those that each row has.

    Writes
    ------
    ``store[b, :, start[b] : start[b] + count[b]]``, nothing else.

    Parameters
    ----------
    store : (B, K, N, D) float
        One layer of the cache.
    new : (B, T, K, D) float
    start : (B,) int64
        Positions that each row holds already.
    count : (B,) int64
        How many of the T new positions are real; the rest is padding.
    """
    for b, (first, n) in enumerate(zip(start.tolist(), count.tolist())):
        store[b, :, first : first + n] = new[b, :n].swapaxes(0, 1)
