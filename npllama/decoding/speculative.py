"""Speculative decoding: guess several tokens cheaply, check them all at once.

Decoding is slow because for every token all weights are read from memory, and each
is used for a single position.  Running the model over a few positions also reads the
weights once, and so costs hardly more.  So let something cheap, the *draft*, guess the
next tokens; run the model itself, the *target*, over all of them in one pass; and keep
guesses from the left as long as the rule of `rejection` allows.  The first guess that
is not kept is replaced, and the guesses after it are dropped, since they continue
another text.  If all are kept, the target's distribution after the last of them gives
one more token for free.

A draft can cost time, but it never changes the result.  Tokens are distributed as if
the target alone had drawn them; chosen greedily, they are exactly the text of greedy
search.  If every guess is kept with probability a, n guesses give 1 + a + ... + a^n
tokens per pass of the target.

This file holds the loop and the classic draft, a smaller model.  Other drafts are a
function each: `prompt_lookup`, `self_speculation`.

Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.common import Job, Step, Stop, longest, prefill_but_last
from npllama.decoding.follower import Follower
from npllama.decoding.rejection import verified
from npllama.model import forward
from npllama.ops import note
from npllama.sampling import draw, softmax
from npllama.weights import Model


class Draft(NamedTuple):
    """Guesses for the next tokens, and where they came from."""

    tokens: list[int]
    # (V,) float64 each, the distribution that it was drawn from; None without chance.
    probs: list[np.ndarray] | None = None


# From (text, most, cache) to at most `most` guesses.  The cache is the target's, and
# holds the text without its last token.  A draft may write after that, but must leave
# the length unchanged.
Propose = Callable[[Sequence[int], int, KVCache], Draft]


#  ---- a smaller model as draft -----------------------------------------------


def guesses(
    draft: Job,
    logits_after: Callable[[list[list[int]]], np.ndarray],
    text: Sequence[int],
    most: int,
) -> Draft:
    """Continue a text by plain decoding, and remember the distributions.

    Parameters
    ----------
    draft : Job
        After a guess that ends the text by `stop`, no other is made.  `process`
        affects how many guesses are kept, but not the result; if it keeps a state, it
        must not be the target's own function.  Without `rng`, each guess is the
        likeliest token, and counts as not drawn by chance.
    logits_after : function
        From a list of one text to (1, V) float, as `Follower.logits`.
    text : token ids
    most : int
        How many tokens to guess.
    """
    guessed, start = list(text), len(draft.prompt)
    probs = []
    for _ in range(most):
        logits = draft.process([guessed], logits_after([guessed]))[0]  # (V,)
        if not (logits > -np.inf).any():
            break  # nothing can follow the guesses, but something may follow the text
        if draft.rng is None:
            guessed.append(int(logits.argmax()))
        else:
            probs.append(softmax(logits))
            guessed.append(int(draw(probs[-1], draft.rng.random())))
        if draft.stop(guessed[start:]):
            break
    return Draft(guessed[len(text) :], probs if draft.rng is not None else None)


def assisted(draft: Job) -> Propose:
    """Guess with a smaller model of the same vocabulary.

    It has its own cache, which is rolled back to the guesses that were kept.

    Parameters
    ----------
    draft : Job
        The target's, but with the smaller model; see `guesses`.
    """
    follower = Follower(draft.model, len(draft.prompt) + draft.max_new_tokens)
    return partial(assist, draft, follower)


def assist(
    draft: Job, follower: Follower, text: Sequence[int], most: int, cache: KVCache
) -> Draft:
    """Guess with a follower; the target's cache is of no use to another model."""
    return guesses(draft, follower.logits, text, most)


#  ---- the loop ---------------------------------------------------------------


def speculate(job: Job, propose: Propose, num_assistant_tokens: int) -> Iterator[Step]:
    """Continue one prompt, checking guesses a round at a time.

    Parameters
    ----------
    job : Job
        The target's.  `process` is called once for every new token, on the text
        before it, as in plain decoding.  So a step with a state (mirostat, a
        watermark) never sees a guess that was not kept.
    propose : function
        The draft: `assisted`, `prompt_lookup`, `early_exit`, `short_context`.
    num_assistant_tokens : int
        Guesses per round, at most.

    Yields
    ------
    Step
        At least one token each, until the text ends.

    Raises
    ------
    ValueError
        If draft and target have different vocabularies.

    References
    ----------
    Leviathan et al. 2022, algorithm 1.
    """
    model, prompt = job.model, job.prompt
    cache, ends = prefill_but_last(job)
    new: list[int] = []
    reason = None
    last = min(len(prompt) + job.max_new_tokens, without_stretching(model, cache))
    while reason is None:
        text = [*prompt, *new]
        # One place is kept for the token that the target itself adds.
        most = min(num_assistant_tokens, last - len(text) - 1)
        draft = propose(text, most, cache) if most > 0 else Draft([])
        note("draft", np.array(draft.tokens, dtype=np.int64))
        block = np.array([[text[-1], *draft.tokens]])  # (1, 1 + guesses)
        logits = forward(model, block, cache)[0]  # (1 + guesses, V)
        tokens, reason, _ = check_guesses(job, draft, logits, new, ends)
        new = new + tokens
        # All but the last token has been run; guesses that failed are forgotten.
        cache.length[0] = len(prompt) + len(new) - 1
        kept = sum(x == y for x, y in zip(tokens, draft.tokens))
        yield Step(tokens, reason, drafted=len(draft.tokens), accepted=kept)


def check_guesses(
    job: Job, draft: Draft, logits: np.ndarray, new: list[int], ends: Stop
) -> tuple[list[int], str | None, list[np.ndarray]]:
    """Check the guesses from the left, up to the first that is not kept.

    Parameters
    ----------
    job : Job
        The target's.
    draft : Draft
    logits : (1 + guesses, V) float
        The target's, after the text and after each guess.
    new : token ids
        What was generated before.
    ends : function
        New tokens to the reason for ending, or None.

    Returns
    -------
    tokens : list of int
        The guesses that were kept, and one token of the target's.
    reason : str, or None if the text goes on
    processed : list of (V,) float
        The logits that each token was chosen from.
    """
    tokens: list[int] = []
    processed: list[np.ndarray] = []
    # After the last guess comes the free token, for which there is no guess.
    for i, x in enumerate([*draft.tokens, None]):
        q = None if draft.probs is None or x is None else draft.probs[i]
        processed.append(job.shaped(new + tokens, logits[i]))
        tokens.append(verified(processed[i], x, q, job.rng))
        reason = ends(new + tokens)
        if reason is not None or tokens[-1] != x:
            break
    return tokens, reason, processed


def without_stretching(model: Model, cache: KVCache) -> int:
    """Tokens up to which a block gives the same logits as its tokens one by one.

    Dynamic RoPE rotates a whole block by the speed of its last position once it
    reaches beyond the trained length, and longrope does so where a block crosses that
    length.  From there on, nothing can be guessed.
    """
    limit, rope = longest(model, cache), model.config.rope
    if rope.rope_type == "dynamic":
        limit = min(limit, model.config.max_position_embeddings)
    if rope.rope_type == "longrope":
        limit = min(limit, rope.original_max_position_embeddings)
    return limit
