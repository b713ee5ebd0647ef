"""A draft that guesses on while the target is read.

In `speculative.speculate`, draft and target take turns: guesses are made, then checked.
If the target lies on storage, most of its pass is spent waiting for bytes, and the
processor is idle.  So here the draft goes on in a thread of its own while its guesses
are checked.  It supposes that all of them will be kept, and guesses the token that the
target will add, and then those of the next round:

    target   check a b c            check e f g            check e' ...
    draft    a b c | d e f g        |  h i j k             | ...
                     d was right: e f g are there at once    h was wrong

If it was right, the next guesses are there when the target has been read, and each has
hidden the time of the other.  If not, what it guessed on is dropped, and it guesses
again, now in turn.

The result does not change.  Each guess is drawn with random numbers of its own, which
depend on the seed and on where the text stands, not on which thread was faster: so a
seed repeats a text here, too.  A position may be guessed twice by the same numbers.
That is no harm, as the first of the two was dropped for what stands before it.

References
----------
Leviathan et al. 2022, arXiv:2211.17192, for the guesses and their check; Liu et al.
2024, arXiv:2408.11850 (PEARL), which drafts while the target verifies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.cost import carried
from npllama.decoding.common import Job
from npllama.decoding.follower import Follower
from npllama.decoding.speculative import Draft, guesses


class Rounds(NamedTuple):
    """What became of the guesses."""

    rounds: int = 0  # with guesses that were checked
    drafted: int = 0
    kept: int = 0
    ready: int = 0  # rounds whose guesses were there at once
    failed: int = 0  # rounds with a guess that was not kept

    @property
    def acceptance(self) -> float:
        """How often a guess was kept that was looked at; NaN if none was."""
        # After the first one that is not kept, no other is looked at.
        looked_at = self.kept + self.failed
        return self.kept / looked_at if looked_at else float("nan")


class Ahead:
    """Guesses of a smaller model, for `speculate`, made while others are checked.

    Parameters
    ----------
    draft : Job
        As for `speculative.assisted`.

    Attributes
    ----------
    rounds : Rounds
    seconds : float
        Spent by the draft, and the number of `guesses` that it made in them.
    """

    def __init__(self, draft: Job):
        self.draft, self.rounds = draft, Rounds()
        self.seconds, self.guesses = 0.0, 0
        self.capacity = len(draft.prompt) + draft.max_new_tokens
        self.follower = Follower(draft.model, self.capacity)
        self.seed = None if draft.rng is None else int(draft.rng.integers(2**63))
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self.enough = threading.Event()
        self.last: tuple[list[int], Draft] | None = None
        self.going: Future[Draft] | None = None

    def __call__(self, text: Sequence[int], most: int, cache: KVCache) -> Draft:
        """At most `most` guesses; others are made while these are checked."""
        text = list(text)
        found = self._made_ahead(text, most)
        self._count(text, found is not None)
        if found is None:
            found = self.worker.submit(carried(self._guess), text, most).result()
        whole = [*text, *found.tokens]
        further = min(most + 1, self.capacity - len(whole))
        if found.tokens and further > 1:
            self.going = self.worker.submit(carried(self._guess), whole, further)
        self.last = text, found
        return found

    def _guess(self, text: list[int], most: int) -> Draft:
        """Continue a text; runs in the worker."""
        begin, rng = time.perf_counter(), None
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, len(text)])

        def stop(tokens: Sequence[int]) -> str | None:
            return "enough" if self.enough.is_set() else self.draft.stop(tokens)

        job = self.draft._replace(rng=rng, stop=stop)
        found = guesses(job, self.follower.logits, text, most)
        self.seconds += time.perf_counter() - begin
        self.guesses += len(found.tokens)
        return found

    def _made_ahead(self, text: list[int], most: int) -> Draft | None:
        """The guesses made in advance, if the text went on as they suppose."""
        going, self.going = self.going, None
        if going is None or self.last is None:
            return None
        before, drafted = self.last
        whole = [*before, *drafted.tokens]
        if text[:-1] == whole:
            ahead = going.result()
            if ahead.tokens[:1] == text[-1:] and len(ahead.tokens) > 1:
                probs = ahead.probs and ahead.probs[1 : 1 + most]
                return Draft(ahead.tokens[1 : 1 + most], probs)
        self._drop(going)
        return None

    def _drop(self, going: Future[Draft]) -> None:
        """Have the worker give up what nobody wants; an error in it is no error."""
        self.enough.set()
        going.exception()
        self.enough.clear()

    def _count(self, text: list[int], ready: bool) -> None:
        """Learn from the text what became of the last guesses."""
        r = self.rounds._replace(ready=self.rounds.ready + ready)
        if self.last is not None:
            before, drafted = self.last
            kept = len(text) - len(before) - 1
            failed = kept < len(drafted.tokens)
            r = Rounds(
                r.rounds + 1,
                r.drafted + len(drafted.tokens),
                r.kept + kept,
                r.ready,
                r.failed + failed,
            )
        self.rounds = r

    def close(self) -> None:
        """End the thread; it makes no further guess."""
        self.enough.set()
        self.worker.shutdown()


class Drafts:
    """Makes an `Ahead` for every text, and keeps them: the `guess` of `Helpers`."""

    def __init__(self) -> None:
        self.made: list[Ahead] = []

    def __call__(self, draft: Job) -> Ahead:
        """A draft for one text; those before it are over."""
        for ahead in self.made:
            ahead.close()
        self.made.append(Ahead(draft))
        return self.made[-1]


@contextmanager
def guessing_ahead() -> Iterator[Drafts]:
    """Within the block, assistants guess ahead; after it, their threads have ended.

    Yields
    ------
    Drafts
        For the field `guess` of `Helpers`.
    """
    drafts = Drafts()
    try:
        yield drafts
    finally:
        for ahead in drafts.made:
            ahead.close()
