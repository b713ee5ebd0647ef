"""Which text gets how many positions in a step.

A server that fills a batch, writes all its texts to the end and then takes the next
batch keeps short texts waiting for long ones, and new ones for all.  *Continuous
batching* decides anew at every step who takes part: a text that ends leaves at once,
and another takes its place.

Reading a prompt and writing are not separate phases here.  A text has *known* tokens
(its prompt, what was decided, guesses to be checked) and *computed* positions, and in a
step the second number catches up with the first.  A prompt is known at once, so its
positions are computed in large pieces (*chunked prefill*); later there is one to
compute at a time.

A step has a budget of positions, dealt out in this order:

1. Every text that waits only for its next token gets one position.  So a long prompt
   delays nobody's next token by more than a step.
2. In order of arrival, every running text gets what else it lacks.
3. As long as budget, pages and places last, texts that wait are admitted: first come,
   first served, and none overtakes.  A text is admitted only if the free pages hold all
   its known tokens and a few pages are left over (the *watermark*), since the running
   texts will need some soon.

If pages run out, the text that arrived last is *preempted*: it loses all its pages
and waits again, in front of all others that wait.  Its tokens are kept: nothing is
written anew, only the keys are computed again, as those of a longer prompt.  In such a
step nobody is admitted.  The oldest text can always go on, since all others make room
for it.  So some position is computed in every step, and every text ends.

Texts stand in one line, in order of arrival.  The first few run, the others wait;
admitting or preempting a text moves the border between them by one.

References
----------
Yu et al. 2022, "Orca", OSDI, algorithm 1; Agrawal et al. 2024, "Sarathi-Serve",
arXiv:2403.02310, algorithm 3; Kwon et al. 2023, arXiv:2309.06180, section 4.5; vLLM's
scheduler, which gives a running text all it lacks before it looks at the next.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from npllama.serving.blocks import (
    Blocks,
    Chain,
    Copies,
    Table,
    copied,
    drop,
    fork,
    grow,
    match,
    take,
)


@dataclass(frozen=True)
class Limits:
    """The limits of a step; ValueError if they make no sense."""

    tokens: int = 512  # positions that a step computes
    requests: int = 16  # texts that run at a time
    chunk: int | None = None  # positions that one text gets in a step; None: no limit
    watermark: float = 0.01  # share of the pages that stays free when one is admitted

    def __post_init__(self) -> None:
        for name in "tokens", "requests", "chunk":
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= 1) and (name, value) != ("chunk", None):
                raise ValueError(f"{name} is {value!r}; a whole number, 1 or more")
        if self.requests > self.tokens:
            raise ValueError(
                f"{self.requests} requests with {self.tokens} tokens a step: each "
                "needs one, so tokens must be as many as requests, or more"
            )
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark is {self.watermark!r}; from 0 to below 1")


class Text(NamedTuple):
    """A text as the scheduler knows it: numbers, not tokens."""

    id: int
    decided: int  # tokens of its prompt and of what was written after it
    guessed: int = 0  # tokens after these that are to be checked
    computed: int = 0  # positions whose keys and values are there
    table: Table = ()
    names: Chain = ()  # of its full pages
    width: int = 1  # texts that it will become, once its prompt is computed
    reuse: bool = True  # whether it may take pages that others have computed
    again: int = 0  # positions that had been computed when it was preempted

    @property
    def known(self) -> int:
        """The number of tokens that can be run: decided ones and guesses."""
        return self.decided + self.guessed

    @property
    def missing(self) -> int:
        """The number of positions that are known but not computed."""
        return self.known - self.computed

    @property
    def decodes(self) -> bool:
        """Whether only the last token, and guesses after it, are left to compute."""
        return self.computed >= self.decided - 1


class State(NamedTuple):
    """All texts, and all pages."""

    texts: tuple[Text, ...]  # in order of arrival
    running: int  # how many of them run; the others wait, and hold no pages
    blocks: Blocks


class Segment(NamedTuple):
    """The positions that one text gets in a step."""

    id: int
    start: int  # positions that it holds before
    new: int  # positions that it gets
    recomputed: int  # those of them that had been computed before


class Plan(NamedTuple):
    """Everything that a step is to do."""

    segments: list[Segment]  # in order of arrival
    admitted: list[int]
    preempted: list[int]
    hits: dict[int, int]  # positions that were found, for everyone admitted
    copies: Copies  # pages to be copied first, in this order
    state: State  # after the step


def schedule(state: State, limits: Limits) -> Plan:
    """Plan a step.

    Parameters
    ----------
    state : State
        It stays as it is.
    limits : Limits

    Returns
    -------
    Plan
        Without segments if there is nothing to do.
    """
    after = State(state.texts, state.running, copied(state.blocks))
    plan = Plan([], [], [], {}, [], after)
    portions = shares(state.texts[: state.running], limits)
    plan = _run(plan, portions)
    return plan if plan.preempted else _admit(plan, limits)


def shares(texts: Sequence[Text], limits: Limits) -> list[int]:
    """Positions that each running text gets: one for the next token, then the rest.

    >>> texts = [Text(0, decided=100), Text(1, 8, computed=7), Text(2, 9, 3, computed=8)]
    >>> shares(texts, Limits(tokens=50, requests=3))
    [48, 1, 1]
    """
    most = limits.chunk or limits.tokens
    portions = [int(text.decodes and text.missing > 0) for text in texts]
    left = limits.tokens - sum(portions)
    for i, text in enumerate(texts):
        more = min(min(text.missing, most) - portions[i], left)
        portions[i] += more
        left -= more
    return portions


def _run(plan: Plan, portions: Sequence[int]) -> Plan:
    """Give the running texts their positions, and preempt where pages run out."""
    texts, running, blocks = (
        list(plan.state.texts),
        plan.state.running,
        plan.state.blocks,
    )
    for i, count in enumerate(portions):
        while i < running and count:
            text = texts[i]
            grown = grow(blocks, text.table, text.computed, text.computed + count)
            if grown is not None:
                texts[i], segment = _advanced(text._replace(table=grown[0]), count)
                plan.segments.append(segment)
                plan.copies.extend(grown[1])
                break
            running -= 1
            plan.preempted.append(texts[running].id)
            texts[running] = _preempted(texts[running], blocks)
    return plan._replace(state=State(tuple(texts), running, blocks))


def _advanced(text: Text, count: int) -> tuple[Text, Segment]:
    """The text with `count` more positions computed, and its segment."""
    start, end = text.computed, text.computed + count
    recomputed = max(0, min(end, text.again) - start)
    again = text.again if end < text.again else 0
    segment = Segment(text.id, start, count, recomputed)
    return text._replace(computed=end, again=again), segment


def _preempted(text: Text, blocks: Blocks) -> Text:
    """The text without its pages; writes into `blocks`."""
    drop(blocks, text.table)
    return text._replace(table=(), computed=0, again=max(text.again, text.computed))


def _admit(plan: Plan, limits: Limits) -> Plan:
    """Admit the texts that have waited longest, while there is room for them."""
    texts, running, blocks = (
        list(plan.state.texts),
        plan.state.running,
        plan.state.blocks,
    )
    left = limits.tokens - sum(segment.new for segment in plan.segments)
    places = limits.requests - sum(text.width for text in texts[:running])
    while running < len(texts) and left > 0 and texts[running].width <= places:
        text = texts[running]
        # Alone, a text may take all pages: else it would wait for ever.
        spare = math.ceil(limits.watermark * len(blocks.held)) if running else 0
        hits = match(blocks, text.names, text.decided - 1) if text.reuse else ()
        table = take(blocks, hits, text.known, spare)
        if table is None:
            break
        found = len(hits) * blocks.page_size
        text = text._replace(table=table, computed=found)
        count = min(text.missing, limits.chunk or limits.tokens, left)
        texts[running], segment = _advanced(text, count)
        plan.segments.append(segment)
        plan.admitted.append(text.id)
        plan.hits[text.id] = found
        running, left, places = running + 1, left - count, places - text.width
    return plan._replace(state=State(tuple(texts), running, blocks))


#  ---- between two steps ------------------------------------------------------


def arrived(state: State, text: Text) -> State:
    """Add a text to those that wait."""
    return state._replace(texts=(*state.texts, text))


def replaced(state: State, *texts: Text) -> State:
    """Replace texts that have changed: they have more tokens, for example."""
    new = {text.id: text for text in texts}
    return state._replace(texts=tuple(new.get(text.id, text) for text in state.texts))


def left(state: State, ids: Collection[int]) -> State:
    """Remove texts that have ended.

    Writes
    ------
    ``state.blocks``: their pages are free, unless others hold them, too.
    """
    runs = [text.id not in ids for text in state.texts]
    for text, stays in zip(state.texts, runs):
        if not stays:
            drop(state.blocks, text.table)
    texts = tuple(text for text, stays in zip(state.texts, runs) if stays)
    return State(texts, sum(runs[: state.running]), state.blocks)


def stopped(state: State) -> State:
    """Take all pages back; all texts wait again.

    Writes
    ------
    ``state.blocks``.
    """
    running = [_preempted(text, state.blocks) for text in state.texts[: state.running]]
    return State((*running, *state.texts[state.running :]), 0, state.blocks)


def forked(state: State, id: int, others: Sequence[int]) -> State:
    """Fork a running text into several that share its pages.

    Writes
    ------
    ``state.blocks``.

    Parameters
    ----------
    state : State
    id : int
        Of a text whose `width` is one more than there are others.
    others : ids of the new texts
        They stand directly after it.
    """
    texts: list[Text] = []
    for text in state.texts:
        texts.append(text)
        if text.id == id:
            texts[-1] = text._replace(width=1)
            texts += [texts[-1]._replace(id=other) for other in others]
            for _ in others:
                fork(state.blocks, text.table)
    return State(tuple(texts), state.running + len(others), state.blocks)
