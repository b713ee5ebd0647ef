"""The thread that owns the model, and the desk in front of it.

Clients come and go on threads of their own; the engine runs on one.  Between them is
a desk: `submit` leaves a request there, together with a function that takes its
events, and `abort` gives it up.  `run` is the thread's work: step while there is
something to do, sleep while there is not.

The engine's thread can run the first step of a request before `submit` has returned.
Events that come before anyone waits for them are kept until then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from npllama.cost.counter import FlopCounter
from npllama.ops import rowwise
from npllama.serving.engine import Engine, Event, Statistics
from npllama.serving.metrics import exposition, histograms
from npllama.serving.requests import Request, copies

Take = Callable[[Event], None]


@dataclass
class Waiting:
    """A client that waits for the events of a request."""

    take: Take
    texts: int  # that have not ended
    arrived: float  # seconds, by the desk's clock
    latest: dict[int, float] = field(default_factory=dict)  # last token, by choice


class Desk:
    """Takes requests for an engine from any thread, and hands out its events.

    Parameters
    ----------
    engine : Engine
    clock : function
        Seconds that never go back.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic):
        self.engine, self.clock = engine, clock
        self.flops, self.times = FlopCounter(), histograms()
        self.failed: Exception | None = None  # what ended the thread
        self._waiting: dict[int, Waiting] = {}
        self._early: dict[int, list[Event]] = {}
        self._lock, self._work = threading.Lock(), threading.Event()
        self._closed = False

    # ---- from any thread

    def submit(self, request: Request, take: Take) -> int:
        """Ask for texts; `take` is called with each event, on the engine's thread.

        Raises
        ------
        ValueError, TypeError
            As `Engine.submit`.
        """
        arrived = self.clock()
        id = self.engine.submit(request)
        with self._lock:
            waiting = Waiting(take, copies(request.config), arrived)
            self._waiting[id] = waiting
            for event in self._early.pop(id, []):
                self._hand(waiting, event)
        self._work.set()
        return id

    def abort(self, id: int) -> None:
        """Give up a request; nothing happens if it has ended already."""
        self.engine.abort(id)
        self._work.set()

    def close(self) -> None:
        """End the thread after its current step."""
        self._closed = True
        self._work.set()

    def metrics(self, model: str) -> str:
        """Counters and gauges for Prometheus."""
        done: Statistics = self.engine.statistics()
        with self._lock:
            return exposition(done, self.times, self.flops.total.flops, model)

    # ---- the engine's thread

    def run(self, bitwise: bool = False) -> None:
        """Step until the desk is closed.

        Parameters
        ----------
        bitwise : bool
            Whether a text's logits shall be the same, bit for bit, whatever runs
            beside it.
        """
        with self.flops:
            if not bitwise:
                self._steps()
                return
            with rowwise():
                self._steps()

    def _steps(self) -> None:
        while not self._closed:
            if not self.engine.busy:
                self._work.wait()
                self._work.clear()
                continue
            try:
                self.deliver(self.engine.step())
            except Exception as error:
                if not self._give_up_all(error):
                    self.failed = error  # it is not the requests that are at fault
                    return

    def deliver(self, events: Sequence[Event]) -> None:
        """Hand out the events of a step."""
        with self._lock:
            for event in events:
                if event.id in self._waiting:
                    self._hand(self._waiting[event.id], event)
                elif event.reason != "abort":  # of one that was given up
                    self._early.setdefault(event.id, []).append(event)

    def _hand(self, waiting: Waiting, event: Event) -> None:
        """Hand out one event, and record the time."""
        now = self.clock()
        before = waiting.latest.get(event.choice)
        if event.token is not None:
            kind = "time_to_first_token" if before is None else "inter_token_latency"
            since = waiting.arrived if before is None else before
            self.times[f"{kind}_seconds"].add(now - since)
            waiting.latest[event.choice] = now
        waiting.take(event)
        if event.reason is not None:
            waiting.texts -= 1
            if not waiting.texts:
                self.times["e2e_request_latency_seconds"].add(now - waiting.arrived)
                del self._waiting[event.id]

    def _give_up_all(self, error: Exception) -> int:
        """Tell all waiting clients that a step failed; return how many there were."""
        with self._lock:
            gone, self._waiting = self._waiting, {}
        for id, waiting in gone.items():
            self.engine.abort(id)
            waiting.take(Event(id, 0, reason="error", error=error))
        return len(gone)
