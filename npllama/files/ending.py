"""Signals that end a program, and the time to put its files in order.

Ctrl-C raises KeyboardInterrupt: every `finally` runs, and no half of a file stays.
Two other signals end Python immediately: SIGTERM (``kill``, a batch system, a
container) and SIGHUP (the terminal was closed).  Here they raise an exception too.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# SIGHUP does not exist on Windows.
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if name in dir(signal)
]
# The exit code of a program that was interrupted, by Ctrl-C or by a signal.
INTERRUPTED = 130


class Ended(SystemExit):
    """A signal asks the process to end."""


def end(number: int, frame: object = None) -> None:
    """Handle a signal: raise the matching exception."""
    raise KeyboardInterrupt if number == signal.SIGINT else Ended(INTERRUPTED)


def raise_again(heard: list[int]) -> None:
    """Let the main thread handle a signal once more, when it is elsewhere."""
    time.sleep(0.01)
    if heard:
        _thread.interrupt_main(signal.Signals(heard[-1]))


@contextmanager
def lost_ones_again(heard: list[int]) -> Iterator[None]:
    """Within the block, what a signal raised is raised again where it was ignored.

    Python ignores exceptions in ``__del__`` and in callbacks of weak references and of
    the garbage collector, and a signal may arrive in one of them.
    """
    usual = sys.unraisablehook

    def ignored(what: Any) -> None:
        if heard and isinstance(what.exc_value, (KeyboardInterrupt, Ended)):
            # Here it would be ignored again.  No lock may be asked for, either.
            _thread.start_new_thread(raise_again, (heard,))
        else:
            usual(what)

    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = usual


@contextmanager
def ending_tidily() -> Iterator[None]:
    """Within the block, signals that would end the process raise `Ended`.

    A signal that is handled elsewhere or ignored (as under ``nohup``) does not change.
    Only the main thread can do this; in other threads nothing changes.
    """
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        heard.append(number)
        end(number)

    usual: dict[int, Any] = dict.fromkeys(SIGNALS, signal.SIG_DFL)
    usual[signal.SIGINT] = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    ours = [n for n in usual if main and signal.getsignal(n) == usual[n]]
    try:
        for number in ours:
            signal.signal(number, hear)
        with lost_ones_again(heard):
            yield
    except Exception:
        # What is interrupted may make its own error of ours, as an extension does that
        # is being imported.
        if heard:
            raise Ended(INTERRUPTED) from None
        raise
    finally:
        heard.clear()
        for number in ours:
            signal.signal(number, usual[number])
