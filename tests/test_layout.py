"""Where the files lie, in which order they are read, and what may need what."""

import ast
import re
from itertools import chain

import pytest
from chapters import PACKAGE, PART_ONE, TITLE_PAGE, listed, source_of, tree_of

TEXTS = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
CONTENTS = listed()
# The command line, what makes pages, and what runs the programs of others stand outside
# of it: they may use all, and nothing uses them.
OTHERS = {"bench", "candidates"}
OUTSIDE = {"__init__", "__main__", "cli", "book", "explain", *OTHERS}


def modules_used(source):
    """What a file imports of the package, wherever in it, as dotted names below it."""
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        yield from (m[8:] for m in modules if m.startswith("npllama."))


def siblings_used(source, folder):
    """The files of its own folder that a file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else (a.name for a in node.names)
    for module in modules_used(source):
        if module.startswith(f"{folder}."):
            yield module.split(".")[1]


def sections(folder):
    """Files of a chapter that is a folder, in the order in which its page lists them."""
    page = ast.get_docstring(ast.parse(TEXTS[f"{folder}/__init__.py"]))
    rows = re.findall(r"^ *(`\w+`(?:, `\w+`)*,?(?:  .*)?)$", page, re.M)
    return re.findall(r"`(\w+)`", "\n".join(row.partition("  ")[0] for row in rows))


FOLDERS = [name for name in CONTENTS if (PACKAGE / name).is_dir()]


def test_only_the_network_lies_flat():
    flat = {name.removesuffix(".py") for name in TEXTS if "/" not in name}
    assert flat == {*PART_ONE, "__init__", "__main__"}
    assert len(PART_ONE) == 9  # a first reading


def test_every_chapter_stands_in_the_table_of_contents_and_exists():
    entries = {path.stem for path in PACKAGE.glob("*.py")}
    entries |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(CONTENTS) == entries - OUTSIDE
    assert len(CONTENTS) == len(set(CONTENTS))


def test_chapters_are_numbered_and_begin_with_their_number():
    numbers = re.findall(r"^    (\d+) +`(\w+)`  ", TITLE_PAGE, re.M)
    assert [int(n) for n, _ in numbers] == list(range(1, len(CONTENTS) + 1))
    for number, name in numbers:
        file = f"{name}/__init__.py" if name in FOLDERS else f"{name}.py"
        page = ast.get_docstring(ast.parse(TEXTS[file]))
        assert page.startswith(f"Chapter {number}: "), file


def test_first_reading_is_under_a_thousand_lines_of_code():
    def code(tree):
        doc = [n for n in ast.walk(tree) if isinstance(n, ast.Expr)]
        doc = [n for n in doc if isinstance(getattr(n.value, "value", None), str)]
        said = set(chain(*(range(n.lineno, n.end_lineno + 1) for n in doc)))
        return said

    lines = 0
    for name in PART_ONE:
        said = code(tree_of(name))
        for number, line in enumerate(source_of(name).splitlines(), 1):
            lines += number not in said and bool(re.match(r"\s*[^\s#]", line))
    assert lines < 1000


@pytest.mark.parametrize("folder", [*FOLDERS, *sorted(OTHERS)])
def test_every_section_is_listed_by_its_chapter(folder):
    files = {path.stem for path in (PACKAGE / folder).glob("*.py")}
    files -= {"__init__", "test_laws"}  # what pytest collects is no section
    assert sorted(sections(folder)) == sorted(files)


@pytest.mark.parametrize("folder", [*FOLDERS, *sorted(OTHERS)])
def test_section_needs_only_the_sections_before_it(folder):
    order = sections(folder)
    for number, name in enumerate(order):
        used = set(siblings_used(TEXTS[f"{folder}/{name}.py"], folder)) & set(order)
        assert used <= set(order[: number + 1]), name


def test_chapter_needs_only_the_chapters_before_it():
    for name, text in TEXTS.items():
        chapter = name.partition("/")[0].removesuffix(".py")
        if chapter not in OUTSIDE:
            before = CONTENTS[: CONTENTS.index(chapter) + 1]
            used = {module.partition(".")[0] for module in modules_used(text)}
            assert used <= set(before), name


def uses_before_definition(tree):
    """(user, name) for every function used above the place where it is defined.

    A helper, whose name begins with an underscore, may follow the function that it
    helps.
    """
    defined = {node.name: node.lineno for node in tree.body if hasattr(node, "name")}
    for node in tree.body:
        for inner in ast.walk(node):
            later = defined.get(getattr(inner, "id", None), 0) > node.lineno
            if later and not inner.id.startswith("_"):
                yield getattr(node, "name", "module"), inner.id


# The chapter on configs is told from the whole to the parts instead.
TOLD_BACKWARDS = {"config"}


@pytest.mark.parametrize("name", [n for n in PART_ONE if n not in TOLD_BACKWARDS])
def test_definitions_come_before_their_use(name):
    assert list(uses_before_definition(tree_of(name))) == []


# ---- words before ideas -----------------------------------------------------


def prose(source):
    """Docstrings and comments of a file, in order."""
    tree = ast.parse(source)
    said = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node):
                said.append((node.body[0].lineno, ast.get_docstring(node)))
    for number, line in enumerate(source.splitlines(), 1):
        if "#" in line:
            said.append((number, line.partition("#")[2]))
    return "\n".join(text for _, text in sorted(said))


def terms_too_early(sources):
    """(chapter, term) of each term used in prose before it is introduced.

    A chapter introduces a term by writing it in *italics*, once.
    """
    text = [re.sub(r"\s+", " ", prose(source)) for source in sources]
    italics = [re.findall(r"(?<![\w*])\*([a-z][a-z -]+)\*(?![\w*])", t) for t in text]
    for term in set(chain(*italics)):
        first = next(i for i, terms in enumerate(italics) if term in terms)
        word = re.compile(rf"\b{term}(?:s|es)?\b", re.I)
        for i in range(first):
            if word.search(text[i]):
                yield i, term
        if word.search(text[first].partition(f"*{term}*")[0]):
            yield first, term


def test_terms_are_introduced_before_they_are_used():
    order = ("__init__", *PART_ONE)
    assert [(order[i], t) for i, t in terms_too_early(map(source_of, order))] == []
    assert "*query*" in source_of("__init__") and "*prefill*" in source_of("cache")
    assert list(terms_too_early(['"""A key."""', '"""A *key* is."""'])) == [(0, "key")]
    assert list(terms_too_early(['"""A *key* is a key."""', '"""Key."""'])) == []


def defined(source):
    """The names at the top of a file: functions, classes, constants, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name


def test_every_name_that_is_imported_is_there():
    """Also where an import waits for its command, or for a library."""
    names = {}
    for file, text in TEXTS.items():
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        names["" if module == "__init__" else module] = set(defined(text))
    for file, text in TEXTS.items():
        for used in modules_used(text):
            module, _, name = used.rpartition(".")
            there = used in names or name in names.get(module, ())
            assert there, f"{file}: npllama.{used}"
