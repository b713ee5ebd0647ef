"""Processes that record side by side, and end with the one that started them.

A pool of processes outlives a parent that is killed: its workers wait for jobs for
ever, or go on writing files that the next run writes too.  So the parent holds one end
of a pipe, and every worker listens at the other.  When the parent is gone, however it
went, the system closes its end, and the workers hear of it.

A worker that is asked to end drops its job and removes what it was writing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from typing import Any

from npllama.files.ending import INTERRUPTED, SIGNALS, Ended, end

# Seconds that a worker has for putting its files in order.
GRACE = 10.0


class Workers(ProcessPoolExecutor):
    """A pool whose workers die of a signal, and never of a Ctrl-C meant for us."""

    def submit(
        self, job: Callable[..., Any], /, *arguments: Any, **more: Any
    ) -> Future:
        """Hand a job to a worker; the first jobs start the processes."""
        with _interrupts_held_back():
            return super().submit(_in_worker, job, *arguments, **more)


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Start a pool of `count` processes; an interrupt in the block ends them at once.

    After an ordinary error, jobs that have begun are finished.
    """
    # Fresh processes: a fork would copy the threads of BLAS in any state.
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = Workers(count, context, _begin, (theirs,))
    with theirs, ours:
        try:
            yield pool
        except (KeyboardInterrupt, SystemExit):
            ours.close()
            # An interrupt may have hit the pool itself, so it is not waited for.
            pool.shutdown(wait=False, cancel_futures=True)
            _wait_for_children()
            raise
        except BaseException:
            pool.shutdown()
            raise
        pool.shutdown()


def _wait_for_children() -> None:
    """Give workers their time to put files in order, and no more."""
    deadline = time.monotonic() + GRACE
    for child in active_children():
        child.join(max(deadline - time.monotonic(), 0))


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Block SIGINT: processes that start in the block never see one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(theirs: Connection) -> None:
    """What a worker does first: see to it that it will end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in SIGNALS:
        signal.signal(number, end)
    threading.Thread(target=_end_with_parent, args=(theirs,), daemon=True).start()


def _end_with_parent(theirs: Connection) -> None:
    """Wait until the parent's end of the pipe is closed, then end this process."""
    with suppress(EOFError, OSError):
        theirs.recv()
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(GRACE)
    os._exit(1)


def _in_worker(job: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Do a job; a signal that ends it ends the process.

    The pool would send the exception to the parent as the job's, and go on.
    """
    try:
        return job(*arguments, **more)
    except Ended:
        os._exit(INTERRUPTED)
