"""Break the package on purpose and see whether the named test notices.

    python tests/mutation.py < mutants.json

reads a list of [file, old text, new text, test], and for each prints one line of
JSON, [exit code of pytest, end of its output].  It works on a temporary copy of the
package.  All runs share this process, so that NumPy and Hypothesis are imported
once; whatever belongs to the package or its tests is imported anew for every mutant.
"""

import contextlib
import importlib
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import children
import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


class Mutant(NamedTuple):
    """A fault, and the test that must fail because of it."""

    file: str  # below npllama/
    old: str  # stands there exactly once
    new: str
    test: str  # as pytest names it, below tests/


def collected():
    """The mutants of every list `MUTANTS` in a file tests/*mutants.py."""
    files = sorted(set(TESTS.glob("*mutants.py")) - set(TESTS.glob("test_*")))
    lists = [importlib.import_module(file.stem).MUTANTS for file in files]
    return [
        Mutant(file.removeprefix("npllama/"), old, new, test.removeprefix("tests/"))
        for faults in lists
        for file, old, new, test in faults
    ]


def run(mutants):
    """(exit code, output) of the named test for every mutant; 1 is a failed test."""
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutants"}
    child = children.run(
        [sys.executable, __file__],
        input=json.dumps(mutants),
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
        limit=60 * (2 + len(mutants)),
    )
    return [json.loads(line) for line in child.stdout.splitlines()]


def forget():
    """Unload the package, its tests, and the tools that they use."""
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        ours = name.partition(".")[0] == "npllama" or file.parent == TESTS
        ours |= ROOT / "tools" in file.parents
        if ours and name != "__main__":
            del sys.modules[name]


def fails(mutant, folder):
    """Run one test against one mutant of the package in `folder`."""
    path = folder / "npllama" / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new, 1), encoding="utf-8")
    paths = shlex.join(map(str, [folder, ROOT / "tools", TESTS]))
    test = TESTS / mutant.test
    arguments = ["-x", "-n0", "-m", "", "-p", "no:cacheprovider"]
    arguments += ["-c", str(ROOT / "setup.cfg")]
    forget()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = pytest.main([str(test), *arguments, "-o", f"pythonpath={paths}"])
    path.write_text(text, encoding="utf-8")
    return int(code), output.getvalue()[-2000:]


def main():
    # Two versions of a file within one second would share their compiled form.
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "npllama", folder / "npllama", ignore=ignored)
        (folder / "weights").symlink_to(ROOT / "weights")
        for fault in json.load(sys.stdin):
            print(json.dumps(fails(Mutant(*fault), folder)), flush=True)


if __name__ == "__main__":
    main()
