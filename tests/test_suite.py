"""What the tests themselves promise: they end, and what they skip they say why."""

import ast
import signal
import sys
from pathlib import Path

import children
import pytest

TESTS = Path(__file__).parent
FILES = sorted(
    p for p in TESTS.rglob("*.py") if "goldens" not in p.relative_to(TESTS).parts
)


def calls(file):
    """Every call in a file, as it is written, and its node."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_test_waits_for_ever(file):
    """Processes are started by `children`, and barriers and joins have a limit."""
    for name, node in calls(file):
        last = name.rpartition(".")[2]
        limited = node.args or {k.arg for k in node.keywords} & {"timeout", "limit"}
        if file.name != "children.py":
            assert name not in ("subprocess.run", "subprocess.Popen"), node.lineno
            assert not name.startswith("subprocess.check_"), node.lineno
        if last == "Barrier":
            assert "timeout" in {k.arg for k in node.keywords}, node.lineno
        if last == "communicate" or name in ("process.wait", "thread.join"):
            assert limited, f"{file.name}:{node.lineno}: {name} has no timeout"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_skipped_says_why(file):
    for name, node in calls(file):
        if name in ("pytest.skip", "pytest.importorskip", "pytest.mark.skipif"):
            words = {k.arg for k in node.keywords}
            said = "reason" in words or name == "pytest.skip" and node.args
            assert said, f"{file.name}:{node.lineno}: use needs() or give a reason"


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
