"""The command ``npllama``, from its first moment.

NumPy and the package take part of a second to be imported, and nothing in a package
can run before the package itself.  So this file stands outside: Ctrl-C while Python
imports is answered as it is at any other time, with one line and exit code 130.
"""

import os
import signal
import sys

INTERRUPTED = 130


def main() -> int:
    """Run the command; return its exit code."""
    heard = signal.getsignal(signal.SIGINT)
    if heard is signal.default_int_handler:  # not under nohup
        signal.signal(signal.SIGINT, _leave)
    from npllama.cli.main import main as run

    try:
        signal.signal(signal.SIGINT, heard)
        code = run()
        if code == INTERRUPTED:
            os._exit(code)  # all is said; threads that were interrupted may never end
        return code
    except KeyboardInterrupt:  # in the moments before and after the command's own care
        return _say()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt


def _leave(number: int, frame: object) -> None:
    """Leave at once: an exception might be caught by what is being imported."""
    os._exit(_say())


def _say() -> int:
    os.write(2, b"npllama: interrupted\n")
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
