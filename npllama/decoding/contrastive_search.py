r"""Contrastive search: likely tokens that do not repeat the text.

The likeliest text repeats itself, and the hidden states show it: after a token that
repeats something, the last hidden state points in the direction of an earlier one.
So run each of the `top_k` likeliest tokens, and take the one with the best

$$(1 - \alpha)\, p(v \mid \text{text})
  - \alpha \max_{s} \cos(h_v, h_s)$$

with h_v the hidden state after candidate v and h_s those after all tokens so far,
including the prompt.  Nothing is drawn; a token costs one pass over `top_k` rows.

Su et al. 2022, arXiv:2202.06417, eq. 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from npllama.cache import KVCache, new_cache
from npllama.decoding.common import PREFILL_CHUNK, Job, Step, ending, top
from npllama.decoding.layers import forward_with_layers
from npllama.norm import rms_norm
from npllama.ops import einsum
from npllama.sampling import softmax
from npllama.weights import Model


def contrastive_search(job: Job, penalty_alpha: float, top_k: int) -> Iterator[Step]:
    """Continue one prompt with tokens that are likely and bring something new.

    Parameters
    ----------
    job : Job
        Its cache, if it has one, is not used: every candidate needs a row.
    penalty_alpha : float
        Between 0 (the likeliest token: greedy search) and 1 (of the candidates, the
        one least like anything before).  The paper recommends 0.6.
    top_k : int
        How many candidates to compare.

    Yields
    ------
    Step
        Of one token each, until the text ends.

    Raises
    ------
    ValueError
        If `penalty_alpha` is outside [0, 1], `top_k` below 1, or the prompt empty.

    References
    ----------
    As in transformers 4, h is the state after the final norm, from which logits
    are computed.  Unlike there, a token that `process` excludes is no candidate,
    even if fewer than `top_k` are left.
    """
    if not 0 <= penalty_alpha <= 1 or top_k < 1:
        raise ValueError(
            f"contrastive search: penalty_alpha {penalty_alpha} must lie in [0, 1], "
            f"top_k {top_k} must be at least 1"
        )
    model, prompt = job.model, job.prompt
    if not len(prompt):
        raise ValueError("the prompt is empty: give at least one token")
    B = min(top_k, model.config.vocab_size)
    cache = new_cache(model.config, B, job.capacity, model.embed.dtype.name)
    ends = ending(job, cache)
    logits, seen = read(model, prompt, cache)
    new: list[int] = []
    reason = None
    while reason is None:
        p = softmax(job.process([[*prompt, *new]], logits))[0]  # (V,)
        candidates = top(p, B)  # (B,)
        # Every row of the cache holds the text; each tries a token of its own.
        after, h = run(model, candidates[:, None], cache)
        best = most_contrastive(p[candidates], h[:, 0], seen, penalty_alpha)
        settle(cache, best)
        logits, seen = after[best : best + 1], np.concatenate([seen, h[best]])
        new.append(int(candidates[best]))
        reason = ends(new)
        yield Step(new[-1:], reason)


def most_contrastive(
    p: np.ndarray, h: np.ndarray, seen: np.ndarray, penalty_alpha: float
) -> int:
    """Which candidate has the best score; of equals, the likelier.

    Parameters
    ----------
    p : (B,) float64
        Probabilities of the candidates, largest first.
    h : (B, E) float
        Directions of the hidden states after them.
    seen : (S, E) float
        Directions of the hidden states of the text so far.
    penalty_alpha : float
    """
    likeness = einsum("BE,SE->BS", h, seen, "likeness").max(axis=-1)  # (B,)
    score = (1 - penalty_alpha) * p - penalty_alpha * likeness  # (B,)
    return int(np.where(p > 0, score, -np.inf).argmax())


def run(
    model: Model, tokens: np.ndarray, cache: KVCache
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the direction of the hidden state at every position.

    Writes into the cache.

    Parameters
    ----------
    tokens : (B, T) int64

    Returns
    -------
    logits : (B, V) float
    h : (B, T, E) float
        After the final norm, and scaled to length 1: products are cosines.
    """
    L = model.config.num_hidden_layers
    logits, states = forward_with_layers(model, tokens, cache, {L})
    h = rms_norm(states[L], model.norm, model.config.rms_norm_eps)  # (B, T, E)
    return logits, h / np.sqrt((h * h).sum(axis=-1, keepdims=True))


def read(
    model: Model, prompt: Sequence[int], cache: KVCache
) -> tuple[np.ndarray, np.ndarray]:
    """Run the prompt once, into all rows of the cache.

    Writes into the cache.

    Returns
    -------
    logits : (1, V) float
    seen : (S, E) float
    """
    first = KVCache(cache.k[:, :1], cache.v[:, :1], cache.length[:1])
    seen = []
    for t in range(0, len(prompt), PREFILL_CHUNK):
        logits, h = run(model, np.array([prompt[t : t + PREFILL_CHUNK]]), first)
        seen.append(h[0])
    S = len(prompt)
    for array in (cache.k, cache.v):
        array[:, 1:, :, :S] = array[:, :1, :, :S]
    cache.length[:] = S
    return logits, np.concatenate(seen)


def settle(cache: KVCache, best: int) -> None:
    """Copy the last position of row `best` to all rows; the others are dropped."""
    last = int(cache.length[best]) - 1
    for array in (cache.k, cache.v):
        array[:, :, :, last] = array[:, best : best + 1, :, last]
