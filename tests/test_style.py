"""What holds for the text of the package, read from its syntax trees."""

import ast
import builtins
import keyword
import re
from functools import cache

import pytest
from chapters import PACKAGE, PART_ONE, TITLE_PAGE, source_of, tree_of

ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
TOOLS = sorted((ROOT / "tools").rglob("*.py")) if (ROOT / "tools").is_dir() else []
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*FILES, *TOOLS]
}
IN_PACKAGE = [name for name in TEXTS if name.startswith("npllama/")]


@cache
def nodes_of(source):
    """All nodes of a text's tree; every rule looks at the same ones."""
    return tuple(ast.walk(ast.parse(source)))


def found_in(names, search):
    """{file: what `search` finds in its text}, of the files where it finds any."""
    found = {name: list(search(TEXTS[name])) for name in names}
    return {name: things for name, things in found.items() if things}


# ---- one product ------------------------------------------------------------

PRODUCTS = "matmul dot tensordot inner vdot multi_dot vecdot matvec vecmat convolve"


def products(source):
    """Lines that multiply arrays by anything but the one `einsum`."""
    lines = []
    for node in nodes_of(source):
        if isinstance(node, (ast.BinOp, ast.AugAssign)):
            found = isinstance(node.op, ast.MatMult)
        elif isinstance(node, ast.Attribute):
            numpys = isinstance(node.value, ast.Name) and node.value.id in (
                "np",
                "numpy",
            )
            found = node.attr in PRODUCTS.split() or (numpys and node.attr == "einsum")
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            numpys = (node.module or "").partition(".")[0] in ("numpy", "operator")
            found = numpys and names & {*PRODUCTS.split(), "einsum"}
        else:
            found = False
        if found:
            lines.append(node.lineno)
    return lines


def test_only_the_first_chapter_multiplies_matrices():
    # The benchmark measures what a bare product takes: the floor below the book.
    bare = "npllama/bench/programs.py"
    assert set(found_in(IN_PACKAGE, products)) == {"npllama/ops.py", bare}


@pytest.mark.parametrize(
    "line",
    [
        "y = a @ b",
        "a @= b",
        "y = np.matmul(a, b)",
        "y = np.einsum('ij,jk->ik', a, b)",
        "y = a.dot(b)",
        "y = np.linalg.multi_dot([a, b])",
        "from numpy import tensordot",
        "product = np.inner",
    ],
)
def test_product_that_is_planted_is_found(line):
    source = source_of("norm")
    assert products(source) == []
    assert len(products(f"{source}\n\n{line}\n")) == 1


LETTERS = set(re.findall(r"(?:^| )([A-Z])  \w", TITLE_PAGE, re.M))


def strange_equations(source):
    """Products whose equation is no constant, or has letters that are no sizes."""
    for node in nodes_of(source):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "einsum":
            equation = getattr(node.args[0], "value", "")
            known = set(re.findall("[A-Z]", equation)) <= LETTERS
            if not (known and re.fullmatch("[A-Z]+,[A-Z]+->[A-Z]+", equation)):
                yield ast.unparse(node)


def test_letters_of_equations_stand_in_the_table_of_letters():
    assert LETTERS == set("BTSNEHKGDFVLPQR")
    assert found_in(IN_PACKAGE, strange_equations) == {}
    assert list(strange_equations("einsum('TE,EX->TX', a, b, 'y')")) != []


# ---- the kit -----------------------------------------------------------------


def asserts(source):
    return [n.lineno for n in nodes_of(source) if isinstance(n, ast.Assert)]


def test_the_kit_raises_what_is_broken_and_asserts_nothing():
    # `python -O` drops assertions, and pytest rewrites those of an installed plugin.
    kit = [name for name in IN_PACKAGE if "/testing/" in name or "/golden/" in name]
    assert len(kit) > 20 and found_in(kit, asserts) == {}
    assert asserts("if x:\n    assert y, z") == [2]


# ---- size -------------------------------------------------------------------


def long_functions(source):
    """Functions of more than 40 lines that are not empty, comment or docstring."""
    lines = source.splitlines()
    for node in nodes_of(source):
        if isinstance(node, ast.FunctionDef):
            doc = node.body[0] if ast.get_docstring(node) else None
            said = range(doc.lineno, doc.end_lineno + 1) if doc else ()
            numbers = set(range(node.lineno, node.end_lineno + 1)) - set(said)
            if sum(bool(re.match(r"\s*[^\s#]", lines[n - 1])) for n in numbers) > 40:
                yield node.name


def test_function_fits_the_eye():
    assert found_in(TEXTS, long_functions) == {}
    body = "    x = 1\n"
    assert list(long_functions("def f():\n" + 39 * body)) == []
    assert list(long_functions("def f():\n" + 40 * body)) == ["f"]


def test_file_is_one_chapter_long():
    long = {name for name, text in TEXTS.items() if text.count("\n") > 420}
    assert long == set()


# ---- words ------------------------------------------------------------------


def words(tree):
    """Every word that the code of a file knows, string constants included."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield from word.split(".")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if len(node.value) < 60:
                yield from re.findall(r"\w+", node.value)


def vocabulary():
    """Every word that the code of the package knows."""
    known = set(dir(builtins)) | set(keyword.kwlist)
    for path in FILES:
        known |= {path.stem, path.parent.name}
        known |= set(words(ast.parse(path.read_text(encoding="utf-8"))))
    return known


KNOWN = vocabulary()


def unknown_names(source):
    """What stands in single backticks in docstrings and is no name of the package.

    Code of others stands in double backticks, or under References.
    """
    for node in nodes_of(source):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            doc = (ast.get_docstring(node) or "").partition("\nReferences\n---")[0]
            for quoted in re.findall(r"(?<!`)`([\w.]+)(?:\(\))?`(?!`)", doc):
                if not set(quoted.split(".")) <= KNOWN:
                    yield quoted


def test_names_in_docstrings_exist():
    assert found_in(IN_PACKAGE, unknown_names) == {}
    source = 'def f():\n    """See `einsum`, `ops.einsum` and `einsun`."""\n'
    assert list(unknown_names(source)) == ["einsun"]


# ---- types and dangers ------------------------------------------------------

CONSTRUCTORS = "zeros ones empty full linspace eye identity"


def without_dtype(tree):
    """Calls that make arrays of NumPy's default type, float64."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if any(word.arg == "dtype" for word in node.keywords):
                continue
            name, numbers = node.func.attr, [n for a in node.args for n in ast.walk(a)]
            floats = (isinstance(getattr(n, "value", None), float) for n in numbers)
            if name in CONSTRUCTORS.split() or (name == "arange" and any(floats)):
                yield ast.unparse(node)


@pytest.mark.parametrize("name", PART_ONE)
def test_every_array_is_made_with_a_dtype(name):
    assert list(without_dtype(tree_of(name))) == []


def test_array_without_a_dtype_is_found():
    source = "np.zeros(3)\nnp.arange(3)\nnp.arange(0, 1, 0.5)\nnp.full(3, 0.0)"
    assert len(list(without_dtype(ast.parse(source)))) == 3


def dangers(source):
    """Ways to run what a file says, by their names."""
    for node in nodes_of(source):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if getattr(node.value, "value", None) is not False:
                yield "allow_pickle"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = {alias.name for alias in node.names} | {
                getattr(node, "module", "")
            }
            yield from modules & {"pickle", "marshal", "shelve", "dill"}
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call in ("eval", "exec", "os.system"):
                yield call
            safe = any(
                word.arg == "weights_only" and getattr(word.value, "value", 0) is True
                for word in node.keywords
            )
            if call == "torch.load" and not safe:
                yield call


def test_nothing_loads_a_pickle():
    assert found_in(TEXTS, dangers) == {}


def test_danger_that_is_planted_is_found():
    source = "import pickle\nnp.load(f, allow_pickle=True)\ntorch.load(f)\neval(x)"
    found = dangers(f"{source}\nnp.load(f, allow_pickle=False)\n")
    assert sorted(found) == ["allow_pickle", "eval", "pickle", "torch.load"]


def test_text_names_no_place_of_one_machine():
    place = re.compile(r"(?<![\w.])/(?:root|home|work|tmp|opt)/\w+")
    assert found_in(TEXTS, place.findall) == {}


# ---- the tests --------------------------------------------------------------

TESTS = [
    path
    for path in sorted((ROOT / "tests").rglob("*.py"))
    if "goldens" not in path.parts
]


def calls(file):
    """Every call in a file: the function as it is written, and the node."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_no_test_waits_for_ever(file):
    """Whoever starts a process uses `children`; whoever waits says how long."""
    for name, node in calls(file):
        words = {keyword.arg for keyword in node.keywords}
        where = f"{file.name}:{node.lineno}: {name}"
        if name == "subprocess.Popen":
            assert file.name == "children.py", f"{where}: use children.started"
        if name == "subprocess.run" or name.endswith("Barrier"):
            assert "timeout" in words, f"{where} has no timeout: use children.run"
        if name in ("process.communicate", "process.wait", "thread.join"):
            assert node.args or "timeout" in words, f"{where} has no timeout"


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_what_is_skipped_says_why(file):
    for name, node in calls(file):
        if name in ("pytest.skip", "pytest.importorskip", "pytest.mark.skipif"):
            words = {keyword.arg for keyword in node.keywords}
            reason = "reason" in words or (name == "pytest.skip" and node.args)
            assert reason, f"{file.name}:{node.lineno}: use needs(), or give a reason"
