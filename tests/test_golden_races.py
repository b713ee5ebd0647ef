"""Two recorders at once, resumes beside workers that live, signals at any moment.

Whatever happens, a trace is whole or not there, and success is only reported with it.
A few rounds of each run here; all of them, which take some twenty minutes, with

    NPLLAMA_RACES=all pytest tests/test_golden_races.py
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from children import started

from npllama.files.whole import parts_of

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "npllama", "golden", "record", "stories-draft"]
FEW = ["--floor", "float32", "--new-tokens", "1", "-o"]
ALL = os.environ.get("NPLLAMA_RACES") == "all"
PAIRS, RESUMES, SIGNALS = (200, 50, 200) if ALL else (3, 2, 6)
PATIENCE = 170  # seconds: a machine with much to do runs a command in a minute


def record(*words, **streams):
    """Start a recorder, in the background."""
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [*COMMAND, *map(str, words)]
    return started(command, env=here | {"OPENBLAS_NUM_THREADS": "1"}, **quiet)


# A process that has imported the package, and forks for every command that it is given.
DRIVER = """
import json, os, sys
from npllama.cli.main import main

for line in sys.stdin:
    order, given = json.loads(line)
    if order == "start":
        answer = os.fork()
        if answer == 0:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(1, 2)
            os._exit(main(given))
    else:
        pid, status = os.waitpid(given, os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def ask():
    """Start a recorder within a millisecond, or ask for its exit code (None: it runs)."""
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    here |= {"OPENBLAS_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", DRIVER]
    with started(command, env=here, limit=3600, **pipes) as driver:

        def answer(order, *given):
            if order == "start":
                given = ["golden", "record", "stories-draft", *map(str, given)]
            else:
                (given,) = given
            driver.stdin.write(json.dumps([order, given]) + "\n")
            driver.stdin.flush()
            return json.loads(driver.stdout.readline())

        yield answer


def ended(ask, pid):
    """The exit code of a recorder, when it has ended."""
    deadline = time.monotonic() + PATIENCE
    while (code := ask("poll", pid)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return code


def to_end(*words):
    with record(*words) as process:
        return process.wait(PATIENCE)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of one trace, recorded in peace, and the words that make it."""
    path, words = tmp_path_factory.mktemp("whole") / "g.npz", ["--tokens", "1,5,9"]
    assert to_end(*words, *FEW, path) == 0
    return path.read_bytes(), words


@pytest.fixture(scope="module")
def run_of_six(tmp_path_factory):
    """A file of prompts, and what recording them in peace gives."""
    folder = tmp_path_factory.mktemp("six")
    prompts = folder / "prompts.txt"
    prompts.write_text("Once upon a time\nLong ago\nThe cat\nA dog\nHe said\nWe\n")
    assert to_end("--prompts", prompts, *FEW, folder / "out") == 0
    return prompts, contents(folder / "out")


def test_two_recorders_of_one_trace_leave_it_whole(tmp_path, whole, ask):
    expected, words = whole
    rng = random.Random(0)
    for i in range(PAIRS):
        path = tmp_path / f"{i}.npz"
        codes = {ask("start", *words, *FEW, path): None}
        time.sleep(rng.uniform(0, 0.1))
        codes[ask("start", *words, *FEW, path)] = None
        while None in codes.values():
            if path.exists():
                assert path.read_bytes() == expected
            for pid in [pid for pid, code in codes.items() if code is None]:
                codes[pid] = ask("poll", pid)
        assert list(codes.values()) == [0, 0]
        assert path.read_bytes() == expected and parts_of(path) == []


def test_two_commands_that_start_together_leave_a_whole_trace(tmp_path, whole):
    expected, words = whole
    path = tmp_path / "g.npz"
    with record(*words, *FEW, path) as one, record(*words, *FEW, path) as two:
        assert (one.wait(PATIENCE), two.wait(PATIENCE)) == (0, 0)
    assert path.read_bytes() == expected and parts_of(path) == []


@pytest.mark.slow
def test_a_run_that_is_killed_can_be_resumed_beside_its_workers(tmp_path, run_of_six):
    prompts, expected = run_of_six
    rng = random.Random(0)
    for i in range(RESUMES):
        folder = tmp_path / str(i)
        words = ["--prompts", prompts, "--workers", 2, *FEW, folder]
        with record(*words) as first:
            deadline = time.monotonic() + rng.uniform(0.5, 6)
            while time.monotonic() < deadline and len(traces(folder)) < 6:
                time.sleep(0.005)
            first.kill()  # it alone: its workers live on for a moment
            assert to_end(*words) == 0
        assert traces(folder) == expected
        # What the old workers were writing when they ended is theirs to remove.
        deadline = time.monotonic() + PATIENCE
        while contents(folder) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        assert contents(folder) == expected


def traces(folder):
    """What a reader finds in a folder: whole traces, if all is well."""
    return {path.name: path.read_bytes() for path in Path(folder).glob("?????.npz")}


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path, run_of_six):
    prompts, _ = run_of_six
    words = ["--prompts", prompts, "--workers", 2, "--new-tokens", 300, "-o"]
    with record(*words, tmp_path / "out") as parent:
        workers, deadline = set(), time.monotonic() + PATIENCE
        while len(workers) < 2 and time.monotonic() < deadline:
            workers = {
                pid for pid in children_of(parent.pid) if "spawn_main" in of(pid)
            }
            time.sleep(0.01)
        assert len(workers) == 2
        parent.kill()
        parent.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while any("spawn_main" in of(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def of(pid):
    """The command line of a process; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_of(pid):
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("processes are looked up in /proc, which Linux has")
    found = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, timeout=60
    )
    return found.stdout.split()


KINDS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]


def test_a_signal_at_any_moment_leaves_a_whole_trace_or_none(tmp_path, whole, ask):
    expected, words = whole
    rng, reported = random.Random(1), 0
    for i in range(SIGNALS):
        path, number = tmp_path / f"{i}.npz", KINDS[i % 4]
        pid = ask("start", *words, *FEW, path)
        if i % 2:  # half of them while it writes
            deadline = time.monotonic() + PATIENCE
            while not parts_of(path) and time.monotonic() < deadline:
                pass
        time.sleep(rng.uniform(0, 0.1))
        code = stopped(ask, pid, number)
        # Ended by the signal itself: before the command was there to hear it.
        assert code in (0, 130, -number)
        found = path.read_bytes() if path.exists() else None
        assert found in (None, expected) and (code != 0 or found == expected)
        assert parts_of(path) == [] or number == signal.SIGKILL
        reported += code == 0
    assert reported < SIGNALS


def stopped(ask, pid, number):
    """Send a signal to a recorder; its exit code, that of the signal or another."""
    os.kill(pid, number)  # a child that was not waited for can still be named
    return ended(ask, pid)


@pytest.mark.parametrize("number", KINDS)
def test_a_signal_while_python_starts_leaves_nothing(tmp_path, whole, number):
    path = tmp_path / "g.npz"
    with record(*whole[1], *FEW, path) as process:
        time.sleep(0.05)
        process.send_signal(number)
        # Python itself, which looks for its packages, ends with 1 on an interrupt.
        assert process.wait(PATIENCE) in (130, 1, -number)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_signal_to_a_run_with_workers_leaves_whole_traces(tmp_path, run_of_six):
    prompts, expected = run_of_six
    rng = random.Random(2)
    for i in range(SIGNALS // 4):
        folder, number = tmp_path / str(i), KINDS[i % 3]
        words = ["--prompts", prompts, "--workers", 2, *FEW, folder]
        with ExitStack() as stack:
            process = stack.enter_context(record(*words, start_new_session=True))
            deadline = time.monotonic() + rng.uniform(0.5, 5)
            while time.monotonic() < deadline and len(traces(folder)) < 6:
                time.sleep(0.005)
            to_all = i % 2  # as a terminal does
            send = os.killpg if to_all else os.kill
            try:
                send(process.pid, number)
            except ProcessLookupError:
                pass  # it was done
            code = process.wait(PATIENCE)
        # A worker that is given no time removes its part after its parent has gone.
        deadline = time.monotonic() + PATIENCE
        while list(folder.glob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.05)
        found = contents(folder) if folder.exists() else {}
        assert code in (0, 130, -number)
        assert code != 0 or found == expected
        assert found.items() <= expected.items()
