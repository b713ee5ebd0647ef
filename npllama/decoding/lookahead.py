"""Lookahead decoding: the model guesses ahead of itself, in every place at once.

Put any tokens after the text and run the model: for each it predicts the next token.
Replace the tokens by these predictions, run the model again, and so on: the guesses
converge from the left.  This is Jacobi's method for solving all tokens as one system
of equations.  Alone it seldom saves a pass.  But on the way it produces sequences
that the model itself finds likely.  They are collected, and when the text reaches the
first token of one of them, the rest is a guess that can be checked.

Both happen in one pass over a block of three parts:

- the text's last token;
- the *window*, W guesses in each of N - 1 generations.  A guess sees the text, the
  oldest generation up to its own column, and its own ancestors, as if they followed
  one another.  The model's predictions after the youngest generation become a
  new generation: each column grows by a token, and its last N tokens are an
  n-gram for the pool; then the oldest generation is dropped;
- *candidates*: the n-grams of the pool that begin with the last token.  Each sees
  only the text and itself, and has the positions that follow the text.

So a pass runs many positions and uses few of them.  That pays where a pass spends its
time on reading the weights and not on arithmetic, which is seldom so on a CPU.

Candidates are checked without a draft's distribution.  The target draws its token; as
long as some candidate continues with that token, the next one can be drawn, too.  For
a guess that was not drawn by chance this is the rule of `rejection`.  So guesses can
save passes, but never change the text.

Fu et al. 2024, arXiv:2402.02057.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from npllama.cache import KVCache, new_cache
from npllama.decoding.common import Job, Step, prefill_but_last
from npllama.decoding.speculative import without_stretching
from npllama.decoding.tree import follow, keep, run_tree
from npllama.weights import Model

Gram = tuple[int, ...]


def lookahead(
    job: Job,
    lookahead_window: int,
    lookahead_ngram_size: int,
    candidates: int | None = None,
) -> Iterator[Step]:
    """Continue one prompt, with guesses from the model's own Jacobi iteration.

    Parameters
    ----------
    job : Job
        Its cache, if it has one, is not used: the blocks need more room.
    lookahead_window : int
        W, how far ahead to guess.
    lookahead_ngram_size : int
        N, tokens of an n-gram: up to N - 1 guesses can be kept in a round.
    candidates : int
        N-grams to check per round; as many as the window is wide by default.

    Yields
    ------
    Step
        At least one token each, until the text ends.

    Raises
    ------
    ValueError
        If there is no window, or an n-gram has fewer than two tokens.

    References
    ----------
    Fu et al. 2024, algorithm 2.
    """
    W, N = lookahead_window, lookahead_ngram_size
    most = W if candidates is None else candidates
    check_sizes(W, N, most)
    model, prompt = job.model, job.prompt
    capacity = job.capacity + (W + most) * (N - 1)
    cache = new_cache(model.config, 1, capacity, model.embed.dtype.name)
    cache, ends = prefill_but_last(job._replace(cache=cache))
    limit = without_stretching(model, cache)
    window = np.resize(np.array(prompt), (N - 1, W))  # (N - 1, W)
    pool = pool_of(prompt, N, most)
    new: list[int] = []
    reason = None
    while reason is None:
        last, S = (new or prompt)[-1], len(prompt) + len(new)
        guessing = S + W + N - 2 <= limit
        grams = pool.get(last, []) if guessing else []
        shown = window if guessing else window[:0]
        logits = run_block(model, last, shown, grams, cache)  # (T, V)
        tokens, slots, reason = follow(job, grams, 1 + shown.size, logits, new, ends)
        keep(cache, S, slots)
        new = new + tokens
        if guessing:
            window = next_generation(window, logits, pool, most)
        drafted = len(grams) * (N - 1)
        yield Step(tokens, reason, drafted=drafted, accepted=len(slots))


def check_sizes(W: int, N: int, most: int) -> None:
    """Raise ValueError if there is nothing to guess or to check."""
    if W < 1 or N < 2 or most < 1:
        raise ValueError(
            f"lookahead: window {W} and candidates {most} must be at least 1, "
            f"n-grams of {N} tokens at least 2"
        )


#  ---- the window -------------------------------------------------------------


def next_generation(
    window: np.ndarray, logits: np.ndarray, pool: dict[int, list[Gram]], most: int
) -> np.ndarray:
    """Let every column grow by a token, note its n-gram, and drop the oldest.

    Writes into the pool.

    Parameters
    ----------
    window : (N - 1, W) int64
    logits : (T, V) float
        Of the block, in which the window begins with token 1.
    """
    W = window.shape[1]
    end = 1 + window.size
    youngest = logits[end - W : end].argmax(axis=-1)  # (W,)
    grown = np.concatenate([window, youngest[None]])  # (N, W)
    for gram in grown.T.tolist():
        remember(pool, gram, most)
    return grown[1:]


#  ---- the pool ---------------------------------------------------------------


def pool_of(prompt: Sequence[int], N: int, most: int) -> dict[int, list[Gram]]:
    """Begin with the n-grams of the prompt: what came once may come again."""
    pool: dict[int, list[Gram]] = {}
    for i in range(len(prompt) - N + 1):
        remember(pool, prompt[i : i + N], most)
    return pool


def remember(pool: dict[int, list[Gram]], gram: Sequence[int], most: int) -> None:
    """Add an n-gram to the pool, under its first token; the latest `most` stay."""
    first, rest = gram[0], tuple(gram[1:])
    others = [other for other in pool.get(first, []) if other != rest]
    pool[first] = [*others, rest][-most:]


#  ---- the block --------------------------------------------------------------


def run_block(
    model: Model, last: int, window: np.ndarray, grams: list[Gram], cache: KVCache
) -> np.ndarray:
    """Run the last token, the window and the candidates in one pass.

    Writes into the cache, in this order.

    Returns
    -------
    (T, V) float
    """
    M, W = window.shape
    step, visible = layout(M, W, [len(gram) for gram in grams])
    return run_tree(model, [last, *window.flat, *chain(*grams)], step, visible, cache)


def layout(M: int, W: int, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The position of each token of the block, and the others that it sees.

    Parameters
    ----------
    M, W : int
        Generations and columns of the window.
    sizes : list of int
        Tokens of each candidate.

    Returns
    -------
    step : (T,) int64
        Positions after the last token's.
    visible : (T, T) bool
        Row t is what token t sees; all see the last token, and the text.
    """
    T = 1 + M * W + sum(sizes)
    step = np.zeros(T, dtype=np.int64)  # (T,)
    visible = np.eye(T, dtype=bool)  # (T, T)
    visible[:, 0] = True
    for m in range(M):
        for w in range(W):
            t = 1 + m * W + w
            step[t] = 1 + m + w
            visible[t, 1 : 1 + w + 1] = True
            visible[t, 1 + w : t : W] = True
    t = 1 + M * W
    for size in sizes:
        step[t : t + size] = 1 + np.arange(size)
        visible[t : t + size, t : t + size] = np.tri(size, dtype=bool)
        t += size
    return step, visible
