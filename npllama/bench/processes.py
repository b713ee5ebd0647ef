"""The outside of a timed process: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
# Another Python gets this package alone, and not what is installed beside it.
START = """
import importlib.util, sys
place = sys.argv.pop(1)
find = importlib.util.spec_from_file_location
spec = find("npllama", f"{place}/__init__.py", submodule_search_locations=[place])
sys.modules["npllama"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["npllama"])
from npllama.bench.worker import main
main()
"""
# What a program needs to be importable; npllama's own needs are not listed.
NEEDS = {
    "torch": ("torch", "transformers"),
    "llama.cpp": ("llama_cpp", "gguf"),
    "jax": ("jax",),
}
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Failure(Exception):
    """A timed program could not do what was asked; the text is one line."""


class Worker:
    """One program in a process of its own, that waits while others are timed."""

    def __init__(
        self, kind: str, name: str, python: str, threads: int, *arguments: str
    ):
        self.name = name
        environment = os.environ | {key: str(threads) for key in THREAD_VARIABLES}
        command = ["-c", START, str(PACKAGE), kind, name, str(threads), *arguments]
        self.process = subprocess.Popen(
            [python, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            # Ctrl-C is for the one who asks; it ends the workers in good order.
            start_new_session=True,
        )

    def ask(self, do: str, **options: Any) -> Any:
        """Send a request, wait for the answer.

        Raises
        ------
        Failure
            If the program says why it cannot, or dies.
        """
        assert self.process.stdin and self.process.stdout
        try:
            print(
                json.dumps({"do": do, **options}), file=self.process.stdin, flush=True
            )
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            raise Failure(f"{self.name}: ended with code {code} (out of memory?)")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise Failure(f"{self.name}: {answer['error']}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()


def missing(name: str, python: str) -> str | None:
    """What keeps a program from running in that Python; None if nothing does."""
    look = (
        "import importlib.util as u, sys; "
        "print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    )
    try:
        answer = subprocess.run(
            [python, "-c", look, *NEEDS[name]],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{python} does not run ({error})"
    absent = answer.stdout.split()
    return f"{python} has no {' and no '.join(absent)}" if absent else None


def interpreter(name: str, chosen: dict[str, str]) -> str:
    """The Python that a program runs in."""
    return chosen.get(name, sys.executable)
