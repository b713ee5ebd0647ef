"""Run chapters with their shape comments switched on.

`Checks(names, dtype)` loads copies of modules in which what was a comment is checked:

* `x = ...  # (B, T, D)`: the shape of x, behind every assignment that says so;
* `x, y : (B, T) int64` under Parameters: shape and dtype on entry, and likewise
  what stands under Returns; `float` means the one float type of this run, so that
  a float64 array in a float32 run is an error wherever a shape is documented;
* `n : int`, `name : str`: the type, exactly: a NumPy scalar is no Python number;
* `layer : Layer`: every field of a record, by the comments behind its fields.

A letter that the code itself assigns, as `B, T = tokens.shape` does, has that value;
any other is bound by its first use in a call and must agree ever after.  `D // 2`
is computed, `*B` stands for any number of axes, and `T_or_1` is one of the two.
Every place that makes such a claim is a site; `sites - reached` are the claims that
nothing has put to the test.
"""

import ast
import re
from typing import NamedTuple

from chapters import claims_behind_code, entries, load, source_of

ARRAY = re.compile(r"(?:[\w, ]+ of )?\(([A-Z\d*.][^()]*)\)(?: (\w+))?")
SCALARS = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}


class ShapeError(AssertionError):
    """A comment is false, or cannot be checked."""


class Site(NamedTuple):
    """One claim: where it stands, about what, and what it says."""

    where: str
    name: str
    claim: str


# ---- reading ----------------------------------------------------------------


class Rewriter(ast.NodeTransformer):
    """Turns the claims of one module into calls of `__check__` and `__result__`."""

    def __init__(self, checks, module, source):
        self.checks, self.module, self.returns = checks, module, []
        self.comments = claims_behind_code(source)
        self.tree = ast.fix_missing_locations(self.visit(ast.parse(source)))
        if self.comments:
            raise ShapeError(f"{module}: these stand at no assignment: {self.comments}")

    def site(self, line, name, claim):
        """Number of a new site; None if the claim is prose."""
        known = claim in self.checks.records or claim in SCALARS or claim[0] == '"'
        if not (known or re.fullmatch("[A-Z]", claim) or ARRAY.fullmatch(claim)):
            if re.search(r"\([A-Z*.]|(float|int)\d", claim):
                raise ShapeError(f"{self.module}:{line}: cannot check {name} : {claim}")
            return None
        self.checks.sites.append(Site(f"{self.module}:{line}", name, claim))
        return len(self.checks.sites) - 1

    def check(self, line, name, claim):
        """Statements that check a variable; none if the claim is prose."""
        number = self.site(line, name, claim)
        text = f"__check__({number}, {name}, __env__, locals())"
        return [] if number is None else ast.parse(text).body

    def visit_ClassDef(self, node):
        record = {}
        for field in (f for f in node.body if isinstance(f, ast.AnnAssign)):
            claim = self.comments.pop(field.end_lineno, None)
            kinds = re.findall(r"\w+", ast.unparse(field.annotation))
            inner = [kind for kind in kinds if kind in self.checks.records]
            if claim or inner:
                name = f"{node.name}.{field.target.id}"
                number = self.site(field.lineno, name, claim or inner[0])
                record[field.target.id] = number
        if record:
            self.checks.records[node.name] = record
        return self.generic_visit(node)

    def visit_FunctionDef(self, node):
        before = ast.parse("__env__ = {}").body
        for name, claim in entries(node, "Parameters"):
            before += self.check(node.lineno, name, claim)
        results = [
            self.site(node.lineno, f"{name} of {node.name}()", claim)
            for name, claim in entries(node, "Returns")
        ]
        self.returns.append(results)
        self.generic_visit(node)
        self.returns.pop()
        at = 1 if ast.get_docstring(node) else 0
        node.body[at:at] = before
        return node

    def visit_Return(self, node):
        if node.value is not None and self.returns[-1]:
            call = ast.parse(f"__result__({self.returns[-1]}, 0, __env__, locals())")
            call.body[0].value.args[1] = node.value
            node.value = call.body[0].value
        return node

    def commented(self, node):
        claim = self.comments.pop(node.end_lineno, None)
        if claim is None:
            return node
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n for t in targets for n in getattr(t, "elts", [t])]
        if not all(isinstance(name, ast.Name) for name in names):
            raise ShapeError(f"{self.module}:{node.lineno}: {claim} is about no name")
        return [node] + sum((self.check(node.lineno, n.id, claim) for n in names), [])

    visit_Assign = visit_AugAssign = visit_AnnAssign = commented


# ---- checking ---------------------------------------------------------------


class Checks:
    """Checked copies of chapters, for a run in one float type.

    `sources` replaces the text of some chapters.
    """

    def __init__(self, names, dtype, sources=None):
        self.dtype, self.sites, self.reached, self.records = dtype, [], set(), {}
        texts = {name: source_of(name) for name in names} | (sources or {})
        self.modules = load(
            names,
            lambda name: Rewriter(self, name, texts[name]).tree,
            {"__check__": self.check, "__result__": self.result},
        )

    def result(self, numbers, value, env, local):
        """Check what a function returns, one value or a tuple, and pass it on."""
        for number, one in zip(numbers, [value] if len(numbers) == 1 else value):
            if number is not None:
                self.check(number, one, env, local)
        return value

    def check(self, number, value, env, local):
        """Raise ShapeError if a value is not what its site claims."""
        if value is None:
            return
        self.reached.add(number)
        agree = all(local.get(letter, n) == n for letter, n in env.items())
        self.demand(number, agree, "other sizes in the code", env)
        claim = self.sites[number].claim
        array = ARRAY.fullmatch(claim)
        if array:
            for one in value if " of " in claim else [value]:
                self.array(number, one, *array.groups(), env, local)
        elif claim in self.records:
            for one in value if type(value) is tuple else [value]:
                for field, inner in self.records[claim].items():
                    self.check(inner, getattr(one, field), env, local)
        elif claim in SCALARS:
            self.demand(number, type(value) in SCALARS[claim], type(value), env)
        elif claim[0] == '"':
            self.demand(number, f'"{value}"' in claim, value, env)
        else:
            self.demand(number, fits(claim, value, env, local), value, env)

    def array(self, number, value, dims, dtype, env, local):
        """Check one array against `dims` and, if it is a float, the run's dtype."""
        dims = [dim.strip() for dim in dims.split(",") if dim.strip()]
        shape = list(value.shape)
        if dims and dims[0][0] in "*.":
            n = len(shape) - len(dims) + 1
            shape, dims = [tuple(shape[: max(n, 0)]), *shape[max(n, 0) :]], dims[:]
        right = len(dims) == len(shape)
        right = right and all(fits(d, n, env, local) for d, n in zip(dims, shape))
        floating = dtype == "float" or (dtype is None and value.dtype.kind == "f")
        expected = self.dtype if floating else dtype or value.dtype
        self.demand(number, right and value.dtype == expected, value, env)

    def demand(self, number, right, found, env):
        if not right:
            if hasattr(found, "shape"):
                found = f"{found.dtype} of {found.shape}"
            raise ShapeError(f"{self.sites[number]}: found {found}, where {env}")

    def unreached(self):
        """The claims that nothing has put to the test."""
        return [s for i, s in enumerate(self.sites) if i not in self.reached]


def fits(dim, n, env, local):
    """Is n the size that `dim` names?  Binds a letter that is still free."""
    if dim == "...":
        return True
    if "_or_" in dim:
        return any(fits(part, n, env, local) for part in dim.split("_or_"))
    if not re.fullmatch(r"\*?[A-Z]", dim):
        sizes = env | {k: v for k, v in local.items() if re.fullmatch("[A-Z]", k)}
        return eval(dim, {"__builtins__": {}}, sizes) == n
    return (local[dim] if dim in local else env.setdefault(dim, n)) == n
