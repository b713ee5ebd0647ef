"""A text while the engine writes it: its state, and how it decides its next tokens.

A pass hands a text the logits of the positions that it asked for: the last of its
tokens, and the guesses after it, if any.  These make a *round*: when all its logits are
there, the text decides its next tokens by the rule of `speculative.check_guesses`; without
guesses that is plain decoding, one token a round.  A round that does not fit into one
step continues in the next.

Each text has its own process, its own source of chance and its own rule for ending.
So it does not depend on who is written beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.common import Job, Stop
from npllama.decoding.logprobs import TokenLogprob, token_logprob
from npllama.decoding.speculative import Draft, Propose, check_guesses
from npllama.generation.task import Shower, Task


class Event(NamedTuple):
    """One token of a text, or its end."""

    id: int  # of the request
    choice: int  # which of its texts
    token: int | None = None  # None: the text was aborted, or an error ended it
    text: str = ""  # whole characters that are certain now, perhaps none
    reason: str | None = None  # why the text ends here, if it does
    logprob: TokenLogprob | None = None  # if the config asks for it
    cached: int = 0  # tokens of the prompt that were found in pages of others
    error: Exception | None = None  # of a text that ends with "error"
    # The first event of each text tells of its prompt: the tokens; and, if the config
    # asks for it, one entry per token, of which the first is None.
    prompt_tokens: list[int] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    logits: np.ndarray | None = None  # (V,), if the request asks for them
    prompt_logits: np.ndarray | None = None  # (S, V), with prompt_logprobs


@dataclass
class Writing:
    """The state of a text that the engine is writing."""

    id: int
    request: int
    choice: int
    task: Task
    job: Job
    ends: Stop
    shower: Shower
    salt: str
    keep_logits: bool
    propose: Propose | None  # makes guesses; None if nobody does
    guesses: int  # of a round, at most
    last: int  # the most tokens that the text may have
    tokens: list[int]  # prompt and text, as far as they are decided
    seen: int  # positions whose logits have come, or are of no interest
    draft: Draft | None  # guesses that are checked; None if they are still to be made
    logits: list[np.ndarray] = field(default_factory=list)  # (V,) each, of this round
    prompt_logprobs: list[TokenLogprob | None] | None = None
    prompt_logits: list[np.ndarray] = field(default_factory=list)  # (V,) each
    cached: int | None = None
    begun: bool = False  # whether there was an event
    others: tuple[Writing, ...] = ()  # which will be forked from this one
    adapter: str = ""

    @property
    def new(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.job.prompt) :]

    @property
    def known(self) -> list[int]:
        """All tokens that can be run: decided ones, then guesses."""
        return self.tokens + self.guessed

    @property
    def guessed(self) -> list[int]:
        """The guesses of this round."""
        return [] if self.draft is None else self.draft.tokens

    @property
    def ready(self) -> bool:
        """Whether all logits of the round have come."""
        return self.draft is not None and len(self.logits) > len(self.guessed)


def guess(text: Writing, pool: KVCache) -> None:
    """Let the draft guess the next tokens; writes into `text`."""
    # One place is kept for the token that the target itself adds.
    most = min(text.guesses, text.last - len(text.tokens) - 1)
    text.draft = text.propose(text.tokens, most, pool) if most > 0 else Draft([])


def see(text: Writing, rows: np.ndarray) -> None:
    """Take the logits of the next positions.

    Writes
    ------
    Into `text`.

    Parameters
    ----------
    text : Writing
    rows : (M, V) float
    """
    for row in rows:
        text.seen += 1
        if text.seen <= len(text.job.prompt) and text.prompt_logprobs is not None:
            _see_prompt(text, row)
        if text.seen >= len(text.tokens):
            text.logits.append(row)


def _see_prompt(text: Writing, row: np.ndarray) -> None:
    """Keep the log-probability of the prompt's next token."""
    given, top = text.task.given, text.task.plan.config.logprobs or 0
    if text.seen < len(given):
        text.prompt_logprobs.append(token_logprob(row, given[text.seen], top))
    if text.keep_logits:
        text.prompt_logits.append(row.copy())


def decide(text: Writing) -> list[Event]:
    """Decide at least one token.

    Writes
    ------
    Into `text`: its tokens; the next round begins.

    Returns
    -------
    list of Event
        One for each token; the last has the reason if the text ends.
    """
    rows = np.stack(text.logits)  # (1 + guesses, V)
    tokens, reason, chosen_from = check_guesses(
        text.job, text.draft, rows, text.new, text.ends
    )
    reasons = [None] * (len(tokens) - 1) + [reason]
    told = zip(tokens, reasons, rows, chosen_from)
    events = [_event(text, *each) for each in told]
    text.tokens += tokens
    text.seen, text.logits = len(text.tokens) - 1, []
    text.draft = None if text.propose else Draft([])
    return events


def _event(
    text: Writing,
    token: int,
    reason: str | None,
    logits: np.ndarray,
    processed: np.ndarray,
) -> Event:
    """The event of one token; writes into `text` that it has begun."""
    shown = text.shower.push(token, reason)
    event = Event(
        text.request,
        text.choice,
        token,
        shown,
        reason,
        _logprob(text, token, logits, processed),
        cached=text.cached or 0,
        logits=logits.copy() if text.keep_logits else None,
    )
    if text.begun:
        return event
    text.begun, rows = True, text.prompt_logits
    return event._replace(
        prompt_tokens=text.task.given,
        prompt_logprobs=text.prompt_logprobs,
        prompt_logits=np.stack(rows) if rows else None,
    )


def _logprob(
    text: Writing, token: int, logits: np.ndarray, processed: np.ndarray
) -> TokenLogprob | None:
    """The token's log-probability, if the config asks for it or compares texts."""
    config = text.task.plan.config
    compared = (config.best_of or 0) > config.num_return_sequences
    if config.logprobs is None and not compared:
        return None
    return token_logprob(logits, token, config.logprobs or 0, processed)
