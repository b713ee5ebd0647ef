"""The engine: requests in, tokens out, a step at a time.

A step asks the scheduler for a plan, copies the pages that must be copied, runs one
packed pass through the model, and lets every text whose known tokens are all computed
decide its next tokens.  The result is what `generate` makes of its prompt, whatever
other texts run beside it.  Inside `ops.rowwise` even its logits are the same, bit for
bit.

Several samples of one prompt begin as one text.  Once its prompt is computed it is
forked: the samples share its pages until they part.

An engine has no clock and no thread.  `submit` and `abort` may be called from any
thread: they leave a note, which the next `step` reads.  Only one thread may step.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.config import BY_LENGTH
from npllama.generation.generate import naming_options
from npllama.sampling import NothingLeft
from npllama.serving.blocks import chain, new_blocks, publish, shrink
from npllama.serving.packed import forward_packed
from npllama.serving.pages import copy_page, new_pool, places
from npllama.serving.requests import Adapters, Request, check_adapter, received
from npllama.serving.scheduler import (
    Limits,
    Plan,
    State,
    Text,
    arrived,
    forked,
    left,
    replaced,
    schedule,
    stopped,
)
from npllama.serving.writing import Event, Writing, decide, guess, see
from npllama.weights import Model

DEFAULT_LIMITS = Limits()


class Passed(NamedTuple):
    """The pieces of one pass: see `cost.formulas.packed_pass`."""

    pieces: list[tuple[int, int]]  # (cached, new) of each text
    logits: int  # places whose logits were wanted
    recomputed: int  # positions that had been computed before


class Statistics(NamedTuple):
    """Sums since the engine began; then its current state."""

    steps: int  # passes
    positions: int  # that went through the model
    prompt_tokens: int
    generated_tokens: int
    prefix_queries: int  # tokens that were looked for in the pages of others
    prefix_hits: int  # tokens that were found there
    preemptions: int
    recomputed: int  # positions that were computed again because of them
    drafted: int
    accepted: int
    copied: int  # pages, because a text wrote into one that it shared
    finished: dict[str, int]  # texts, by the reason for their end
    running: int
    waiting: int
    pages: int
    pages_used: int


SUMS = Statistics._fields[: Statistics._fields.index("finished")]


class Engine:
    """Writes many texts at once.

    Parameters
    ----------
    model : Model
    pages : int
        Q, pages of the pool.
    page_size : int
        P, positions of a page.
    limits : Limits
    reuse : bool
        Whether a text may take pages that others have computed.
    adapters : Adapters, optional
        Those that requests may name, such as `compression.adapters.Adapters`.

    Raises
    ------
    TypeError, ValueError
        If this is no model, or one that cannot be run on a packed row.
    """

    def __init__(
        self,
        model: Model,
        pages: int,
        page_size: int = 16,
        limits: Limits = DEFAULT_LIMITS,
        reuse: bool = True,
        adapters: Adapters | None = None,
    ):
        check_model(model)
        self.adapters = adapters
        self.model, self.limits, self.reuse = model, limits, reuse
        self.pool = new_pool(model.config, pages, page_size, model.embed.dtype.name)
        self.state = State((), 0, new_blocks(pages, page_size))
        self.texts: dict[int, Writing] = {}  # by their own numbers
        self.passed: Passed | None = None  # of the last step
        self._notes: deque[Writing | int] = deque()
        self._events: list[Event] = []  # that are still to be told
        self._numbers = count()
        self._sums: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()

    # ---- from any thread

    def submit(self, request: Request) -> int:
        """Ask for texts; return the number that their events will have.

        Raises
        ------
        ValueError, TypeError
            If the request is malformed, or can never be served.
        """
        text = received(self.model, self.pool, request, self._numbers)
        check_adapter(request, self.adapters)
        width, most = 1 + len(text.others), self.limits.requests
        if width > most:
            raise ValueError(f"{width} texts of one prompt, where at most {most} run")
        self._notes.append(text)
        return text.request

    def abort(self, id: int) -> None:
        """Give up a request; nothing happens if it has ended already."""
        self._notes.append(id)

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._notes or self.state.texts)

    def statistics(self) -> Statistics:
        """Sums since the engine began, and its current state."""
        texts, running, blocks = self.state
        return Statistics(
            **{name: self._sums[name] for name in SUMS},
            finished=dict(self._finished),
            running=running,
            waiting=len(texts) - running,
            pages=len(blocks.held),
            pages_used=len(blocks.held) - len(blocks.free),
        )

    # ---- from one thread

    def step(self) -> list[Event]:
        """Run one pass, and return the events of all texts.

        Returns
        -------
        list of Event
            Empty if there was nothing to do, or only pieces of prompts were read.
        """
        self._pass()
        events, self._events = self._events, []
        return events

    def _pass(self) -> None:
        """The step itself; its events wait in `_events`, even if it fails."""
        self.passed = None
        self._events += self._read_notes()
        self._events += self._make_guesses()
        plan = schedule(self.state, self.limits)
        self.state = plan.state
        if not plan.segments:
            return
        try:
            self.passed = run(self.model, self.pool, plan, self.texts, self.adapters)
        except BaseException:
            # Nobody knows what was written: all must be computed again.
            self.state = stopped(self.state)
            raise
        self._count(plan)
        for segment in plan.segments:
            self._events += self._settle(self.texts[segment.id])

    def _read_notes(self) -> list[Event]:
        """Accept the requests that were submitted, and drop those that were aborted."""
        events: list[Event] = []
        while self._notes:
            note = self._notes.popleft()
            if isinstance(note, Writing):
                self._arrive(note)
            else:
                for text in [t for t in self.texts.values() if t.request == note]:
                    events += self._ended(text, "abort")
        return events

    def _arrive(self, text: Writing) -> None:
        P, prompt = self.state.blocks.page_size, text.tokens
        names = chain(prompt, P, text.salt) if self.reuse else ()
        # These need the logits of the prompt, and pages that are found have none.
        reuse = text.prompt_logprobs is None
        width = 1 + len(text.others)
        new = Text(text.id, len(prompt), names=names, width=width, reuse=reuse)
        self.state = arrived(self.state, new)
        self.texts[text.id] = text
        self._sums["prompt_tokens"] += len(prompt)

    def _make_guesses(self) -> list[Event]:
        """Make guesses for texts that have none, if they run or may run soon."""
        soon = self.state.texts[: self.state.running + self.limits.requests]
        texts = [self.texts[t.id] for t in soon if t.width == 1]
        events: list[Event] = []
        for text in texts:
            if text.draft is None:
                events += self._guarded(text, self._guess)
        return events

    def _guess(self, text: Writing) -> list[Event]:
        guess(text, self.pool)
        self._sums["drafted"] += len(text.guessed)
        self._update(text, guessed=len(text.guessed))
        return []

    # ---- after the pass

    def _settle(self, text: Writing) -> list[Event]:
        """Fork a text, or let it decide, if its round is complete."""
        if text.others and text.logits:
            return self._fork(text)
        if not text.ready:
            self._publish(text)
            return []
        return self._guarded(text, self._decide)

    def _fork(self, text: Writing) -> list[Event]:
        """Once the prompt is computed, make every sample a text of its own."""
        others, text.others = text.others, ()
        self.state = forked(self.state, text.id, [other.id for other in others])
        for other in others:
            self.texts[other.id] = other
            other.logits, other.seen = list(text.logits), text.seen
            other.cached = text.cached
            other.prompt_logprobs = text.prompt_logprobs
            other.prompt_logits = text.prompt_logits
        events: list[Event] = []
        for each in text, *others:
            if each.draft is None:
                events += self._guarded(each, self._guess)
            if each.id in self.texts:
                events += self._settle(each)
        return events

    def _decide(self, text: Writing) -> list[Event]:
        """Let a text decide, and keep only the pages of tokens that were decided."""
        guesses = text.guessed
        events = decide(text)
        self._sums["generated_tokens"] += len(events)
        kept = [event.token == x for event, x in zip(events, guesses)]
        self._sums["accepted"] += sum(kept)
        self._forget(text)
        self._publish(text)
        reason = events[-1].reason
        if reason is not None:
            self._leave(text, reason)
        return events

    def _forget(self, text: Writing) -> None:
        """Give back the pages of guesses that were not kept."""
        known = self._known(text)
        # The last token that was decided is not computed yet.
        computed = min(known.computed, len(text.tokens) - 1)
        table = shrink(self.state.blocks, known.table, computed)
        self._update(
            text, decided=len(text.tokens), guessed=0, computed=computed, table=table
        )

    def _publish(self, text: Writing) -> None:
        """Name the pages that are full of computed, decided tokens."""
        if not self.reuse:
            return
        known, P = self._known(text), self.state.blocks.page_size
        names = chain(text.tokens, P, text.salt, known.names)
        sure = min(known.computed, known.decided) // P
        publish(self.state.blocks, known.table, names[:sure])
        self._update(text, names=names)

    # ---- ends

    def _guarded(
        self, text: Writing, act: Callable[[Writing], list[Event]]
    ) -> list[Event]:
        """Let a text act; an error ends this text alone."""
        try:
            return act(text)
        except NothingLeft as error:
            known = naming_options(error, text.task.plan.config)
            return self._ended(text, "error", known)
        except Exception as error:
            return self._ended(text, "error", error)

    def _ended(
        self, text: Writing, reason: str, error: Exception | None = None
    ) -> list[Event]:
        """End a text, and all that would have been forked from it."""
        self._leave(text, reason)
        self._finished[reason] += len(text.others)
        return [
            Event(t.request, t.choice, reason=reason, error=error)
            for t in (text, *text.others)
        ]

    def _leave(self, text: Writing, reason: str) -> None:
        self.state = left(self.state, [text.id])
        self._finished[reason] += 1
        del self.texts[text.id]

    # ---- book-keeping

    def _known(self, text: Writing) -> Text:
        return next(known for known in self.state.texts if known.id == text.id)

    def _update(self, text: Writing, **changes) -> None:
        self.state = replaced(self.state, self._known(text)._replace(**changes))

    def _count(self, plan: Plan) -> None:
        """Add a step to the statistics."""
        texts = {text.id: text for text in plan.state.texts}
        self._sums["steps"] += 1
        self._sums["positions"] += sum(segment.new for segment in plan.segments)
        self._sums["recomputed"] += self.passed.recomputed
        self._sums["preemptions"] += len(plan.preempted)
        self._sums["copied"] += len(plan.copies)
        for id, found in plan.hits.items():
            if texts[id].reuse and self.reuse:
                self._sums["prefix_queries"] += texts[id].decided
                self._sums["prefix_hits"] += found
            text = self.texts[id]
            text.cached = found if text.cached is None else text.cached


def check_model(model: Model) -> None:
    """Raise an error unless texts of this model can be packed into one row."""
    if not isinstance(model, Model):
        raise TypeError(f"model: {type(model).__name__} found; see npllama.load")
    kind = model.config.rope.rope_type
    if kind in BY_LENGTH:
        raise ValueError(
            f"rope_type {kind} turns by a text's length, so a text cannot be run beside "
            "others: use generate"
        )


def run(
    model: Model,
    pool: KVCache,
    plan: Plan,
    texts: dict[int, Writing],
    adapters: Adapters | None = None,
) -> Passed:
    """Run one packed pass, and hand every text the logits that it needs.

    Writes
    ------
    Keys and values into the pool; logits into the texts.

    Parameters
    ----------
    model : Model
    pool : KVCache
    plan : Plan
    texts : the texts by their numbers
    adapters : Adapters, if texts may have some
    """
    P = plan.state.blocks.page_size
    for source, target in plan.copies:
        copy_page(pool, source, target, P)
    tables = {text.id: text.table for text in plan.state.texts}
    tokens, where, wanted, t = [], [], [], 0
    for id, start, n, _ in plan.segments:
        end = start + n
        tokens.append(np.array(texts[id].known[start:end]))  # (n,)
        where.append(places(tables[id], end, P))
        # Logits that came before a preemption need not come again.
        first = max(start, min(texts[id].seen, end))
        wanted.append(np.arange(t + first - start, t + n))
        t += n
    starts = np.array([segment.start for segment in plan.segments])
    cache, last = KVCache(pool.k, pool.v, starts.copy()), np.concatenate(wanted)
    if adapters is not None:
        owners = [texts[segment.id].adapter for segment in plan.segments]
        rows = np.repeat(owners, [len(some) for some in tokens])  # (T,)
        model = adapters.beside(model, rows, rows[last])
    logits = forward_packed(model, tokens, cache, where, last)[0]  # (M, V)
    ends = np.cumsum([len(some) for some in wanted])[:-1]
    for segment, rows in zip(plan.segments, np.split(logits, ends)):
        see(texts[segment.id], rows)
    pieces = [(segment.start, segment.new) for segment in plan.segments]
    recomputed = sum(segment.recomputed for segment in plan.segments)
    return Passed(pieces, len(logits), recomputed)
