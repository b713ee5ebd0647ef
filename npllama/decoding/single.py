"""How the strategies begin that grow one text, each in a way of its own.

Between two steps of such a strategy everything but the text's last token has been
run through the model.  A step runs that token, possibly with guesses behind it,
and decides what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from npllama.cache import KVCache
from npllama.decoding.common import Stop, context_length, prefill, room
from npllama.weights import Model


class Round(NamedTuple):
    """What one step brought, several tokens if it guessed some."""

    tokens: list[int]
    drafted: int  # tokens that were guessed
    accepted: int  # and how many of these were kept
    reason: str | None  # why the text ends with the last of them, if it does


def begin(
    model: Model,
    prompt: Sequence[int],
    stop: Stop,
    max_new_tokens: int,
    cache: KVCache | None = None,
) -> tuple[KVCache, Stop]:
    """Run a prompt, all but its last token, and complete the stopping rule.

    Writes into the cache, if one is given.

    Parameters
    ----------
    model : Model
    prompt : token ids
    stop : function
        New tokens to the reason for ending, or None.
    max_new_tokens : int
    cache : KVCache
        One row that may hold a beginning of the prompt; see `prefill`.

    Returns
    -------
    cache : KVCache
        Holds one position less than the prompt has tokens.
    stop : function
        The same rule; also "length" once there are `max_new_tokens`, and "context"
        once the cache or the model's context is full.
    """
    capacity = room(model, len(prompt), max_new_tokens)
    cache, _ = prefill(model, [prompt], capacity, cache)
    # The last token is run a second time by the first step, then with company.
    cache.length[0] = len(prompt) - 1
    full = longest(model, cache) - len(prompt)
    return cache, within(stop, max_new_tokens, full)


def longest(model: Model, cache: KVCache) -> int:
    """Tokens that a text can have: the cache's room, or the model's context."""
    return min(cache.k.shape[3], context_length(model.config))


def within(stop: Stop, max_new_tokens: int, full: int) -> Stop:
    """The caller's rule, then the number asked for, then the room there is."""

    def ends(tokens: Sequence[int]) -> str | None:
        if (reason := stop(tokens)) is not None:
            return reason
        if len(tokens) >= max_new_tokens:
            return "length"
        return "context" if len(tokens) >= full else None

    return ends
