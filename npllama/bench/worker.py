"""Inside a timed process: requests come in as lines of JSON, answers go out.

Its arguments are KIND NAME THREADS and more, where KIND is ``programs``, ``attention``,
``batches``, ``serving``, ``decoding`` or ``roofline`` and NAME one of its programs; `processes` gives them.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list]:
    """Time several calls in turn, A B C A B C, so that noise falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def memory() -> dict[str, int]:
    """Resident bytes of this process: now, and at the worst moment so far.

    Pages of a mapped file count as soon as they are touched.  Empty where the
    system does not tell (anything but Linux).
    """
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text))
    words = {"VmRSS": "resident", "VmHWM": "peak"}
    return {words[key]: int(value) * 1024 for key, value in found.items()}


def forget_peak() -> None:
    """Let the worst moment begin now (Linux; elsewhere nothing happens)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def keep_to(threads: int) -> None:
    """Use no more processors than threads: some libraries take all they see."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    """Answer requests until there are no more."""
    # Libraries like to print; what they print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, name, threads, *arguments = sys.argv[1:]
    keep_to(int(threads))
    program = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if program is None:
                module = importlib.import_module(f"npllama.bench.{kind}")
                program = module.PROGRAMS[name](int(threads), *arguments)
            answer = getattr(program, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)
