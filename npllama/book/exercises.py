"""A chapter's exercises: the laws that its tests hold, and what would go wrong.

Every law of the tests is proved to be needed: a list of *mutants* breaks the package
in one place each, and names the test that must notice.  Read the other way round, this
is an exercise: here is a law, there is a small change of the code; why does the law
fail?
"""

from __future__ import annotations

import ast
import importlib
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from npllama.book.shapes import TESTS, importable


class Mutant(NamedTuple):
    """A change of the code, and the law that it breaks."""

    file: str  # below the package: "contexts/streaming.py"
    old: str
    new: str
    law: str  # in words


@cache
def _tests(file: Path) -> dict[str, str]:
    """What the tests of a file say, by the names of their functions."""
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None
    nodes = (
        [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)] if tree else []
    )
    return {node.name: ast.get_docstring(node) or "" for node in nodes}


def law(test: str) -> str:
    """A law in words, from the name of its test and what its docstring adds."""
    file, _, name = test.partition("::")
    name = name.partition("[")[0]
    words = name.removeprefix("test_").replace("_", " ")
    said = _tests(TESTS / Path(file).name).get(name, "")
    said = " ".join(said.partition("\n\n")[0].split())
    return f"{words[:1].upper()}{words[1:]}." + (
        f" ({said.rstrip('.')})" if said else ""
    )


@lru_cache
def mutants() -> tuple[Mutant, ...]:
    """All mutants; none where the tests do not lie beside the package."""
    if not (TESTS / "mutation.py").is_file():
        return ()
    with importable(TESTS):
        try:
            found = importlib.import_module("mutation").collected()
        except ImportError:  # pytest is not installed
            return ()
    return tuple(Mutant(m.file, m.old, m.new, law(m.test)) for m in found)


def of_file(path: str) -> dict[str, list[Mutant]]:
    """The mutants of a file below the package, by the law that they break."""
    found: dict[str, list[Mutant]] = {}
    for mutant in mutants():
        if mutant.file == path:
            found.setdefault(mutant.law, []).append(mutant)
    return found
