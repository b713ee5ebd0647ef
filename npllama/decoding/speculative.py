"""Speculative decoding: guess several tokens cheaply, check them all at once.

Decoding is slow because every token waits until all weights have been read from
memory, and each is then used for a single position.  Running the model over a few
positions reads them once, too, and so costs hardly more.  Hence: let something
cheap, the *draft*, guess the next tokens; run the model proper, the *target*, over
all of them in one pass; keep the guesses from the left as long as the rule of
`rejection` allows.  At the first that is not kept, the rule has a replacement; the
guesses behind it continue a text that was not written, and are dropped.  If all
are kept, the target's distribution behind the last gives one more token for free.

A draft can cost time, but never change the result: tokens are distributed as if
the target alone had drawn them, and decided greedily they are the very text of
greedy search.  If every guess is kept with probability a, n guesses bring
1 + a + ... + a^n tokens per pass of the target.

This file holds the loop and the classic draft, a smaller model.  Others are a
function each: `prompt_lookup`, `self_speculation`.

Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.common import Process, Stop, unprocessed
from npllama.decoding.follower import Follower
from npllama.decoding.rejection import verified
from npllama.decoding.single import Round, begin, longest
from npllama.model import forward
from npllama.sampling import draw, softmax
from npllama.weights import Model


class Draft(NamedTuple):
    """Guesses for the next tokens, and where they came from."""

    tokens: list[int]
    # What each was really drawn from, (V,) float64; None if there was no choice.
    probs: list[np.ndarray] | None = None


# From (text, most, cache) to at most so many guesses.  The cache is the target's
# and holds the text without its last token: a draft may write behind that, but
# must leave the length as it was.
Propose = Callable[[Sequence[int], int, KVCache], Draft]


#  ---- a smaller model as draft -----------------------------------------------


def assisted(
    assistant: Model,
    capacity: int,
    process: Process = unprocessed,
    rng: np.random.Generator | None = None,
) -> Propose:
    """Guess with a smaller model of the same vocabulary.

    It has a cache of its own, which is rolled back to what was kept of its guesses.

    Parameters
    ----------
    assistant : Model
    capacity : int
        Tokens that the text can have.
    process : function
        Histories and logits to logits; it changes how many guesses are kept, not
        what comes out.  If its steps keep a state, not the target's own function.
    rng : np.random.Generator
        None guesses greedily: then each guess counts as made without a choice.

    """
    follower = Follower(assistant, capacity)

    def logits_behind(text: list[int]) -> np.ndarray:
        return follower.logits([text])

    def propose(text: Sequence[int], most: int, cache: KVCache) -> Draft:
        return guesses(logits_behind, text, most, process, rng)

    return propose


def guesses(
    logits_behind: Callable[[list[int]], np.ndarray],
    text: Sequence[int],
    most: int,
    process: Process,
    rng: np.random.Generator | None,
) -> Draft:
    """Continue a text by plain decoding, and remember the distributions.

    Parameters
    ----------
    logits_behind : function
        From a text to (1, V) float.
    text : token ids
    most : int
        How many tokens to guess.
    process, rng
        As in `assisted`.
    """
    guessed = list(text)
    probs = []
    for _ in range(most):
        logits = process([guessed], logits_behind(guessed))[0]  # (V,)
        if not (logits > -np.inf).any():
            break  # nothing can follow what was guessed, but perhaps what is written
        if rng is None:
            guessed.append(int(logits.argmax()))
        else:
            probs.append(softmax(logits))
            guessed.append(int(draw(probs[-1], rng.random())))
    return Draft(guessed[len(text) :], probs if rng is not None else None)


#  ---- the loop ---------------------------------------------------------------


def speculate(
    model: Model,
    prompt: Sequence[int],
    propose: Propose,
    stop: Stop,
    max_new_tokens: int,
    num_assistant_tokens: int,
    process: Process = unprocessed,
    rng: np.random.Generator | None = None,
    *,
    cache: KVCache | None = None,
    assistant_ensemble_weight: float = 1.0,
) -> Iterator[Round]:
    """Continue one prompt, checking guesses a round at a time.

    Parameters
    ----------
    model : Model
        The target.
    prompt : token ids
    propose : function
        The draft: `assisted`, `prompt_lookup`, `early_exit`, `short_context`.
    stop : function
        New tokens to the reason for ending, or None.
    max_new_tokens : int
    num_assistant_tokens : int
        Guesses per round, at most.
    process : function
        Histories and logits to logits.  Called once for every new token, on the
        text before it, as by plain decoding: a step that keeps a state (mirostat, a
        watermark) never sees a guess that was not kept.
    rng : np.random.Generator
        None decides greedily.
    cache : KVCache
        One row that may hold a beginning of the prompt; see `prefill`.
    assistant_ensemble_weight : float
        Below 1, the draft is given a vote of ``1 - weight`` where tokens are drawn:
        more guesses are kept, and the text is no longer the target's.  1 is exact.

    Yields
    ------
    Round
        At least one token each, until the text ends.

    Raises
    ------
    ValueError
        If the weight is not in (0, 1], or draft and target have different
        vocabularies.

    References
    ----------
    Leviathan et al. 2022, algorithm 1; the ensemble is that of transformers 5.
    """
    weight = assistant_ensemble_weight
    if not 0 < weight <= 1:
        raise ValueError(f"assistant_ensemble_weight is {weight}; it lies in (0, 1]")
    cache, ends = begin(model, prompt, stop, max_new_tokens, cache)

    def decide(new: list[int], logits: np.ndarray, x, q) -> int:
        processed = process([[*prompt, *new]], logits[None])[0]  # (V,)
        return verified(processed, x, q, rng, weight)

    new: list[int] = []
    reason = None
    last = min(len(prompt) + max_new_tokens, without_stretching(model, cache))
    while reason is None:
        text = [*prompt, *new]
        # One place is kept for the token that the target itself adds.
        most = min(num_assistant_tokens, last - len(text) - 1)
        draft = propose(text, most, cache) if most > 0 else Draft([])
        block = np.array([[text[-1], *draft.tokens]])  # (1, 1 + guesses)
        logits = forward(model, block, cache)[0]  # (1 + guesses, V)
        tokens, reason = check(draft, logits, new, decide, ends)
        new = new + tokens
        # All but the last token has been run; guesses that failed are forgotten.
        cache.length[0] = len(prompt) + len(new) - 1
        kept = sum(x == y for x, y in zip(tokens, draft.tokens))
        yield Round(tokens, len(draft.tokens), kept, reason)


def check(
    draft: Draft, logits: np.ndarray, new: list[int], decide: Callable, ends: Stop
) -> tuple[list[int], str | None]:
    """Go through the guesses from the left, up to the first that is not kept.

    Parameters
    ----------
    draft : Draft
    logits : (1 + guesses, V) float
        The target's, behind the text and behind each guess.
    new : token ids
        What was generated before.
    decide : function
        From (new tokens, (V,) logits, guess, its distribution) to the next token.
    ends : function
        New tokens to the reason for ending, or None.
    """
    tokens: list[int] = []
    # Behind the last guess there is none to check: the token for free.
    for i, x in enumerate([*draft.tokens, None]):
        q = None if draft.probs is None or x is None else draft.probs[i]
        tokens.append(decide(new + tokens, logits[i], x, q))
        reason = ends(new + tokens)
        if reason is not None or tokens[-1] != x:
            break
    return tokens, reason


def without_stretching(model: Model, cache: KVCache) -> int:
    """Tokens up to which a block gives the logits that its tokens give one by one.

    Dynamic RoPE turns a whole block at the speed of its last position once it
    reaches beyond the trained length: from there on, nothing can be guessed.
    """
    limit = longest(model, cache)
    if model.config.rope.rope_type == "dynamic":
        limit = min(limit, model.config.max_position_embeddings)
    return limit
