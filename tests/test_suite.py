"""What the tests' own helpers promise: children that can be interrupted, and that end."""

import signal
import sys

import children
import pytest

SHOW = "import signal; print(signal.getsignal(signal.SIGINT).__name__)"


@pytest.mark.parametrize("start", ["run", "started"])
def test_a_child_can_be_interrupted_where_its_parent_cannot(start):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command, pipes = [sys.executable, "-c", SHOW], {"stdout": -1, "text": True}
        if start == "run":
            out = children.run(command, **pipes).stdout
        else:
            with children.started(command, **pipes) as process:
                out = process.communicate(timeout=60)[0]
    finally:
        signal.signal(signal.SIGINT, before)
    assert out == "default_int_handler\n"


def test_whoever_waits_for_a_child_that_hangs_is_freed():
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with children.started(command, limit=1, stdout=-1) as process:
        assert process.stdout.readline() == b""
    with pytest.raises(children.subprocess.TimeoutExpired):
        children.run(command, limit=1)
