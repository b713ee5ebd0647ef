"""Where every name of the package is defined."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from npllama.book.contents import PACKAGE

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Target(NamedTuple):
    """A definition: its module below the package, and its name; "" is the module."""

    module: str
    name: str


def path_of(module: str) -> Path | None:
    """The file of ``rope``, of ``sampling`` or of ``sampling.draw``."""
    path = PACKAGE / module.replace(".", "/")
    found = [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()]
    return found[0] if module and found else None


@cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module."""
    path = path_of(module)
    return ast.parse(path.read_text(encoding="utf-8") if path else "")


def defined(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


@cache
def scope_of(module: str) -> dict[str, Target]:
    """What the names at the top of a module stand for, if they are of the package."""
    scope = {}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "npllama"
        ):
            source = (node.module or "").removeprefix("npllama").lstrip(".")
            for alias in node.names:
                if target := resolved(source, alias.name):
                    scope[alias.asname or alias.name] = target
    for node in tree_of(module).body:
        scope |= {name: Target(module, name) for name in defined(node)}
    return scope


def resolved(module: str, name: str) -> Target | None:
    """What a name of a module stands for, through any number of imports."""
    inner = f"{module}.{name}".lstrip(".")
    if path_of(inner):
        return Target(inner, "")
    return scope_of(module).get(name) if module else None


def uses(module: str) -> Iterator[tuple[int, int, int, Target]]:
    """(line, first column, last column, target) of every use of a known name.

    A name that a function assigns, or takes as a parameter, is its own.
    """
    yield from _uses(tree_of(module), scope_of(module), module)


def _uses(
    node: ast.AST, scope: dict[str, Target], module: str
) -> Iterator[tuple[int, int, int, Target]]:
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        own = own_names(node)
        scope = {name: t for name, t in scope.items() if name not in own}
    if isinstance(node, ast.Name) and node.id in scope:
        target = scope[node.id]
        if target.module != module or isinstance(node.ctx, ast.Load):
            yield node.lineno, node.col_offset, node.end_col_offset or 0, target
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = scope.get(node.value.id)
        inner = resolved(owner.module, node.attr) if owner and not owner.name else None
        if inner and node.end_lineno == node.lineno:
            end = node.end_col_offset or 0
            yield node.lineno, end - len(node.attr), end, inner
    for child in ast.iter_child_nodes(node):
        yield from _uses(child, scope, module)


def own_names(node: ast.FunctionDef | ast.Lambda) -> set[str]:
    """Parameters of a function, and what it assigns."""
    stored = {
        n.id
        for n in ast.walk(node)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    return stored | {n.arg for n in ast.walk(node.args) if isinstance(n, ast.arg)}


@lru_cache
def everywhere() -> dict[str, Target]:
    """Names that only one module defines, or that the title page exports."""
    found: dict[str, list[Target]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        if not module or parts[0] in ("cli", "book", "__main__"):
            continue
        for node in tree_of(module).body:
            for name in defined(node):
                found.setdefault(name, []).append(Target(module, name))
    return {name: all_[0] for name, all_ in found.items() if len(all_) == 1}


def meant(words: str, module: str) -> Target | None:
    """What a name in the prose of a module stands for."""
    first, _, rest = words.removeprefix("npllama.").partition(".")
    inside = Target(module, first) if first in _defined_by(module) else None
    target = inside or scope_of(module).get(first) or resolved(module, first)
    target = target or resolved(module.rpartition(".")[0], first) or resolved("", first)
    target = target or everywhere().get(first)
    if rest and target and not target.name:
        return resolved(target.module, rest.partition(".")[0]) or target
    return target


def _defined_by(module: str) -> set[str]:
    return {name for node in tree_of(module).body for name in defined(node)}
