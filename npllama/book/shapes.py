"""The sizes that shape comments had when the tests ran them.

The tests execute every shape comment of Part I on a tiny model whose sizes all differ.
Where the tests lie beside the package, the book runs them and writes the sizes of the
first array at each place beside its letters.
"""

from __future__ import annotations

import ast
import importlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from npllama.book.contents import PACKAGE

TESTS = PACKAGE.parent / "tests"


class Seen(NamedTuple):
    """What one place of a chapter held."""

    module: str
    line: int  # of the statement, or of the function whose docstring says it
    name: str  # of the variable
    sizes: str  # "2 × 5 × 12"


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported by their bare names."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def seen() -> list[Seen]:
    """What the arrays of Part I looked like; nothing where there are no tests."""
    if not (TESTS / "shapecheck.py").is_file():
        return []
    with importable(TESTS):
        try:
            shapecheck = importlib.import_module("shapecheck")
            runs = importlib.import_module("test_shapes")
            chapters = importlib.import_module("chapters")
        except ImportError:  # pytest or hypothesis is not installed
            return []
    found: dict[int, str] = {}

    class Watching(shapecheck.Checks):  # type: ignore[name-defined]
        """Checks that remember the first array at every place."""

        def array(self, number, value, dims, dtype, env, local):
            """Check one array, and remember its shape."""
            super().array(number, value, dims, dtype, env, local)
            found.setdefault(number, " × ".join(map(str, value.shape)))

    checks = Watching(chapters.ARRAYS, "float32")
    with tempfile.TemporaryDirectory() as folder:
        runs.use_every_chapter(checks.modules, Path(folder), "float32")
    rows = []
    for number, sizes in sorted(found.items()):
        site = checks.sites[number]
        module, _, line = site.where.rpartition(":")
        rows.append(Seen(module, int(line), site.name, sizes))
    return rows


def by_line(module: str, rows: list[Seen], tree: ast.Module) -> dict[int, str]:
    """What is added at the end of a line: the sizes of what it assigns."""
    ends = {
        node.lineno: node.end_lineno or node.lineno
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
    }
    mine = [row for row in rows if row.module == module and row.line in ends]
    return {ends[row.line]: row.sizes for row in mine if row.sizes}


def by_entry(module: str, rows: list[Seen], node: ast.stmt) -> dict[str, str]:
    """The sizes of a function's parameters and of its result, by name."""
    mine = [row for row in rows if row.module == module and row.line == node.lineno]
    return {row.name.partition(" of ")[0]: row.sizes for row in mine if row.sizes}
