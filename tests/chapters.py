"""The package as a text: its chapters, in the order of the title page."""

import ast
import io
import re
import sys
import tokenize
import types
from pathlib import Path

import npllama

PACKAGE = Path(npllama.__file__).parent
TITLE_PAGE = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text("utf-8")))


def listed(part=""):
    """Names in the table of contents: of one part, such as "Part I,", or of all."""
    parts = re.split(r"^(?=Part )", TITLE_PAGE or "", flags=re.M)[1:]
    lines = "".join(text for text in parts if text.startswith(part))
    return tuple(re.findall(r"^    \d+ +`(\w+)`  ", lines, re.M))


def path_of(name):
    """File of a chapter, such as ``rope``, or of a section, such as ``files.npz``."""
    return PACKAGE / f"{name.replace('.', '/')}.py"


def source_of(name):
    """Text of a chapter."""
    return path_of(name).read_text(encoding="utf-8")


def tree_of(name):
    """Syntax tree of a chapter."""
    return ast.parse(source_of(name))


PART_ONE = listed("Part I,")
# The chapters of sizes and arrays, which have shapes to be wrong about.
ARRAYS = (*PART_ONE, "files.npz", "files.checkpoint")


# A shape, perhaps with a dtype, or the letter of a size.
COMMENT = re.compile(r"# (\([A-Z\d*.][^()]*\)(?: \w+\d+(?=[,;]|$))?|[A-Z](?=[,;]|$))")


def claims_behind_code(source):
    """Claims behind code, by line."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            if match := COMMENT.match(token.string):
                found[token.start[0]] = match[1]
    return found


def entries(node, section):
    """(name, type) of all entries in one section of a numpydoc docstring."""
    doc = ast.get_docstring(node) or ""
    _, _, rest = doc.partition(f"{section}\n{'-' * len(section)}\n")
    body = re.split(r"\n\S.*\n---", rest)[0]
    for line in re.findall(r"^\S.*", body, re.M):
        names, _, claim = line.rpartition(" : ")
        yield from ((name, claim) for name in (names or "result").split(", "))


def load(names, tree_of, given):
    """Copies of chapters, made from rewritten trees, that import one another."""
    full = [f"npllama.{name}" for name in names]
    real = {name: sys.modules.pop(name) for name in full if name in sys.modules}
    try:
        for name, short in zip(full, names):
            module = sys.modules[name] = types.ModuleType(name)
            module.__dict__.update(given, __file__=f"{short}.py")
            exec(compile(tree_of(short), f"{short}.py", "exec"), module.__dict__)
        return types.SimpleNamespace(**{n.split(".")[-1]: sys.modules[n] for n in full})
    finally:
        for name in full:
            sys.modules.pop(name, None)
        sys.modules.update(real)
