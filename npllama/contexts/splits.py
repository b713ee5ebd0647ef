"""Flash-Decoding: the keys of one query are split, and what is found is merged.

In decode there is one query per head.  A GPU that gives each head of each text to one
processor leaves most processors without work, and a long text then waits for a few.
So the keys are cut into splits; every processor meets one split, and the attention
states are merged at the end.

How many splits?  FlashAttention asks how many blocks of work fill the processors (see
`splits_by_occupancy`), so the number depends on the batch, and with it the last bits
of every result.  A fixed *size* of split does not see the batch: a text then has the
same floats in any company.

References
----------
Dao, Haziza, Massa and Sizov 2023, "Flash-Decoding for long-context inference";
`num_splits_heuristic` of the package flash-attn.
"""

from __future__ import annotations

import math

import numpy as np

from npllama.contexts.states import (
    Attend,
    AttentionState,
    in_the_future,
    merge_states,
    no_keys,
    state_of,
)
from npllama.cost.traffic import spans


def split_state(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int, size: int
) -> AttentionState:
    """What queries find among all keys that they may see, a split at a time.

    Parameters
    ----------
    q : (T, H, D) float
    k, v : (K, S, D) float
        Exactly the keys that the last query may see.
    first : int
        Position of the first query.
    size : int
        Keys of a split; the last may be smaller.

    Returns
    -------
    AttentionState
    """
    found, queries = no_keys(q), slice(0, len(q))
    for keys in spans(k.shape[1], size):
        hidden = in_the_future(first, queries, keys)
        part = state_of(q, k[:, keys], v[:, keys], hidden)
        found = merge_states(found, part)
    return found


def split_keys(size: int) -> Attend:
    """A way to attend, for `forward`: splits of a fixed size.

    Parameters
    ----------
    size : int
        Keys of a split.

    Returns
    -------
    function
        As `attention.naive`: (q, k, v, start) to (B, T, H, D).

    Raises
    ------
    ValueError
        If a split has no keys.
    """
    if size < 1:
        raise ValueError(f"splits of {size} keys: 1 at least")

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray):
        y = np.empty_like(q)  # (B, T, H, D)
        for b, first in enumerate(start.tolist()):
            seen = slice(0, min(first + q.shape[1], k.shape[2]))
            y[b] = split_state(q[b], k[b, :, seen], v[b, :, seen], first, size).y
        return y

    return attend


def splits_by_occupancy(
    blocks: int, processors: int, key_blocks: int, most: int = 128
) -> int:
    """In how many splits FlashAttention cuts the keys.

    One, if four fifths of the processors have work without it, or there are up to
    four blocks of keys.  Else the least number with 85 percent of the best occupancy.
    A number that cuts the keys into pieces as long as one fewer would is left out.

    Parameters
    ----------
    blocks : int
        Blocks of work without splits: rows x heads x blocks of queries.
    processors : int
        Those of the GPU; 108 for an A100.
    key_blocks : int
        Blocks of keys that can be divided.
    most : int
        The largest number of splits.

    Returns
    -------
    int
    """
    if blocks >= 0.8 * processors or key_blocks <= 4:
        return 1

    def pieces(n: int) -> int:
        return -(-key_blocks // n)

    def occupancy(n: int) -> float:
        waves = blocks * n / processors
        return waves / math.ceil(waves)

    some = range(1, min(most, processors, key_blocks) + 1)
    able = [n for n in some if n == 1 or pieces(n) != pieces(n - 1)]
    best = max(map(occupancy, able))
    return next(n for n in able if occupancy(n) >= 0.85 * best)
