"""Several continuations of one text, checked in one pass.

One block of tokens can hold several continuations of a text, as the branches of a
tree.  Give each token its position, for RoPE, and let it see only the text and its
own branch.  Then every token has the keys, values and logits that it would have if
its branch had been run alone: *tree attention*.

When a branch has been chosen, its keys and values are moved together in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from npllama.attention import softmax
from npllama.cache import KVCache
from npllama.decoding.common import Job, Stop
from npllama.decoding.sample import choose
from npllama.model import forward
from npllama.ops import einsum
from npllama.weights import Model


def run_tree(
    model: Model,
    tokens: Sequence[int],
    step: np.ndarray,
    visible: np.ndarray,
    cache: KVCache,
) -> np.ndarray:
    """Run a block of tokens that are branches of a tree.

    Writes into the cache, in the order of the block.

    Parameters
    ----------
    model : Model
    tokens : T token ids
    step : (T,) int64
        The position of each, counted from the end of the cache.
    visible : (T, T) bool
        Row t is what token t sees of the block, itself included.
    cache : KVCache
        Of one row.

    Returns
    -------
    (T, V) float
    """
    block, positions = np.array([tokens]), cache.length[:, None] + step  # (1, T)
    attend = partial(masked, visible)
    return forward(model, block, cache, attend=attend, positions=positions)[0]


def masked(
    visible: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Attention to the whole text, and to the visible tokens of the block.

    Parameters
    ----------
    visible : (T, T) bool
    q : (1, T, H, D) float
    k, v : (1, K, N, D) float
    start : (1,) int64
        Positions of the text.

    Returns
    -------
    (1, T, H, D) float
    """
    B, T, H, D = q.shape
    K, first = k.shape[1], int(start[0])
    S = first + T
    grouped = (q / D**0.5).reshape(B, T, K, H // K, D)
    scores = einsum("BTKGD,BKSD->BKGTS", grouped, k[:, :, :S], "scores")
    np.copyto(scores[..., first:], -np.inf, where=~visible)
    y = einsum("BKGTS,BKSD->BTKGD", softmax(scores), v[:, :, :S], "values")
    return y.reshape(B, T, H, D)


def follow(
    job: Job,
    branches: Sequence[tuple[int, ...]],
    offset: int,
    logits: np.ndarray,
    new: list[int],
    ends: Stop,
) -> tuple[list[int], list[int], str | None]:
    """Let the target choose tokens while some branch continues with them.

    Parameters
    ----------
    job : Job
        The target's.
    branches : sequence of tuples of token ids
        All of one length, one after the other in the block.
    offset : int
        Index in the block at which the first of them begins.
    logits : (T, V) float
    new : token ids
        What was generated before.
    ends : function
        New tokens to the reason for ending, or None.

    Returns
    -------
    tokens : list of int
    slots : list of int
        Indices in the block of the tokens that had been guessed.
    reason : str, or None if the text goes on
    """
    tokens: list[int] = []
    slots: list[int] = []
    alive = list(range(len(branches)))
    while True:
        processed = job.shaped(new + tokens, logits[slots[-1] if slots else 0])  # (V,)
        tokens.append(int(choose(processed[None], [job.rng])[0]))
        reason, i = ends(new + tokens), len(tokens) - 1
        alive = [
            c for c in alive if i < len(branches[c]) and branches[c][i] == tokens[i]
        ]
        if alive:
            slots.append(offset + alive[0] * len(branches[alive[0]]) + i)
        if reason is not None or not alive:
            return tokens, slots, reason


def keep(cache: KVCache, S: int, slots: Sequence[int]) -> None:
    """Move a branch to the end of the text, and drop the rest of the block.

    Writes into the cache.

    Parameters
    ----------
    cache : KVCache
    S : int
        Positions of the text, that of the block's first token included.
    slots : list of int
        Indices in the block of the tokens of the branch, rising.
    """
    source = [S - 1 + slot for slot in slots]
    for array in (cache.k, cache.v):
        array[:, :, :, S : S + len(slots)] = array[:, :, :, source]
    cache.length[0] = S + len(slots)
