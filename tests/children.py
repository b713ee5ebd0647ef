"""Processes that a test starts: with the signals of a fresh shell, and with an end.

A program started by ``nohup``, or in the background of a script, ignores some signals,
and its children inherit that.  A test that interrupts such a child would wait for
ever, or pass without having tested anything.  So every child begins with the signals
as a terminal gives them, and none may run for longer than `LIMIT` seconds.
"""

import os
import signal
import subprocess
import threading
from contextlib import contextmanager

LIMIT = 180
IGNORED = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last


def reset_signals():
    """Undo in a new process what it inherited."""
    for name in IGNORED:
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_DFL)


FRESH = {"preexec_fn": reset_signals} if os.name == "posix" else {}


def run(command, *, limit=LIMIT, **options):
    """Run a program to its end, as `subprocess.run` does, but never for ever.

    Raises
    ------
    subprocess.TimeoutExpired
        After `limit` seconds; the program was killed then.
    """
    if before := options.pop("preexec_fn", None):
        options["preexec_fn"] = lambda: (reset_signals(), before())
    return subprocess.run(command, timeout=limit, **(FRESH | options))


@contextmanager
def started(command, *, limit=LIMIT, **options):
    """Start a program; whoever waits for its output is freed after `limit` seconds.

    Yields
    ------
    subprocess.Popen
        Killed, and waited for, when the block is left.
    """
    process = subprocess.Popen(command, **(FRESH | options))
    end = threading.Timer(limit, process.kill)
    end.start()
    try:
        yield process
    finally:
        end.cancel()
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream and not stream.closed:
                stream.close()
        process.wait(LIMIT)
