"""Which pages the book has, in the order of the title page."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import npllama

PACKAGE = Path(npllama.__file__).parent


class Page(NamedTuple):
    """A chapter, a section of a chapter, or the title page."""

    name: str  # "rope", "sampling.truncation"; "" for the title page
    number: str  # "5", "13.4"; "" for the title page
    about: str  # what the table of contents says of it
    part: str  # "Part I, the network"
    path: Path

    @property
    def file(self) -> str:
        """The name of its page."""
        return f"{self.name or 'index'}.html"


def docstring(path: Path) -> str:
    """The docstring of a file."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def chapters(title_page: str) -> list[tuple[str, str, str, str]]:
    """(part, number, name, what it is about), as the title page lists them."""
    found, part = [], ""
    for line in title_page.splitlines():
        if line.startswith("Part "):
            part = line
        elif entry := re.fullmatch(r"    (\d+) +`(\w+)`  +(.*)", line):
            found.append((part, entry[1], entry[2], entry[3]))
    return found


def sections(page: str) -> list[tuple[str, str]]:
    """(name, what it is about) of the sections that a chapter lists."""
    rows = re.findall(r"^ *((?:`\w+`(?:, )?)+,?)(?:  +(\S.*))?$", page, re.M)
    return [
        (name, about) for names, about in rows for name in re.findall(r"`(\w+)`", names)
    ]


@lru_cache
def pages() -> tuple[Page, ...]:
    """All pages, in reading order."""
    title = docstring(PACKAGE / "__init__.py")
    found = [Page("", "", "title page", "", PACKAGE / "__init__.py")]
    for part, number, name, about in chapters(title):
        folder = PACKAGE / name
        if not folder.is_dir():
            found.append(Page(name, number, about, part, PACKAGE / f"{name}.py"))
            continue
        found.append(Page(name, number, about, part, folder / "__init__.py"))
        listed = sections(docstring(folder / "__init__.py"))
        for n, (section, what) in enumerate(listed, 1):
            path = folder / f"{section}.py"
            at = f"{number}.{n}"
            found.append(Page(f"{name}.{section}", at, what, part, path))
    return tuple(found)
