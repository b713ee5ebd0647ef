"""A law: one statement about a sampler, and the cases it is tried on.

A check is a list of laws.  For each, Hypothesis looks for a case that breaks it and
makes that case as small as possible; cases of known bugs are tried first.  A failure
report shows the law, the smallest failing case, and expected versus actual.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisException

Case = dict[str, Any]


class Violation(AssertionError):
    """A law that does not hold, and the smallest case found that breaks it."""


class Law(NamedTuple):
    """What must hold of a sampler in all cases."""

    says: str  # the statement, about the world and not about code
    cases: st.SearchStrategy[Case]
    # (sampler, **case), raising Violation where the case breaks the law.
    holds: Callable[..., None]
    known: tuple[Case, ...] = ()  # tried first


# ---- words ------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value for people: few digits, long arrays cut."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        most = 20 if value.size <= 20 else 12
        few = [shown(x) for x in value[:most]]
        rest = [f"... {value.size} in all"] if value.size > most else []
        return f"[{', '.join(few + rest)}]"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"[{', '.join(shown(row) for row in value)}]"
    if isinstance(value, (np.floating, float)):
        # Each type in its own shortest form: 0.1, not 0.10000000149011612.
        text = str(value if isinstance(value, np.floating) else np.float64(value))
        return text.removesuffix(".0")
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{shown(k)}: {shown(v)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        left, right = ("[", "]") if isinstance(value, list) else ("(", ")")
        return f"{left}{', '.join(shown(x) for x in value)}{right}"
    return str(value) if isinstance(value, np.generic) else repr(value)


def report(law: Law, case: Case, problem: BaseException) -> str:
    """A broken law in words: the statement, the case, and the problem."""
    what = str(problem) if isinstance(problem, Violation) else raised(problem)
    lines = [law.says, *(f"  {name} = {shown(x)}" for name, x in case.items())]
    return "\n".join([*lines, *(f"  {line}" for line in what.splitlines())])


RAISED = "it raised "


def raised(problem: BaseException) -> str:
    """An exception in one line, and the line of the sampler that it came from."""
    words = f"{RAISED}{type(problem).__name__}: {problem}".splitlines()[0]
    return f"{words}{_place(problem)}"


def _place(problem: BaseException) -> str:
    """Where an exception was raised, by the innermost frame of the user's own code."""
    kit = str(Path(__file__).parent)
    frames = traceback.extract_tb(problem.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(kit)]
    own = [f for f in theirs if "site-packages" not in f.filename] or theirs
    if not own:
        return ""
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})"


# ---- trying a law -----------------------------------------------------------


def counterexample(law: Law, sampler: Callable, shrink: bool = True) -> str | None:
    """The smallest case that breaks a law, in words; None if no case does.

    Parameters
    ----------
    law : Law
    sampler : function
    shrink : bool
        Whether to look for the smallest case, or stop at the first.

    Returns
    -------
    str or None
        The active profile of Hypothesis sets the number of cases.
    """

    def trial(case: Case) -> None:
        try:
            law.holds(sampler, **case)
        except HypothesisException:
            raise
        except (Exception, SystemExit) as problem:
            raise Violation(report(law, case, problem)) from problem

    phases = set(settings().phases) - (set() if shrink else {Phase.shrink})
    search = settings(
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )(given(law.cases)(trial))
    try:
        with np.errstate(all="ignore"):
            for case in law.known:
                trial(case)
            search()
    except Violation as violation:
        return str(violation)
    except Flaky:
        return f"{law.says}\n  the same case gave one result, then another"
    return None


# ---- conventions ------------------------------------------------------------


class Convention(NamedTuple):
    """One way in which implementations differ on purpose."""

    default: Any
    choices: tuple = ()  # empty if any value will do that `allows` allows
    allows: Callable[[Any], bool] = lambda value: True
    words: str = ""  # what is allowed


def one_of(*choices: Any) -> Convention:
    """A convention with named choices; the first is the default."""
    words = f"it is one of {', '.join(map(repr, choices))}"
    return Convention(choices[0], choices, lambda value: value in choices, words)


def from_one(default: int | None) -> Convention:
    """A whole number from 1 on; or None, where that is the default."""

    def allows(value: Any) -> bool:
        return (value is None and default is None) or (
            type(value) is int and value >= 1
        )

    return Convention(default, (), allows, "a number from 1 on is needed")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= math.inf


def number(default: float) -> Convention:
    """A number above 0."""

    return Convention(default, (), _is_positive, "a number above 0 is needed")


def some_of(*choices: Any) -> Convention:
    """A tuple of some of the choices; all by default."""

    def allows(value: Any) -> bool:
        several = isinstance(value, (tuple, list)) and len(value) > 0
        return several and all(one in choices for one in value)

    few = ", ".join(map(repr, choices))
    return Convention(choices, (), allows, f"a tuple of values is needed, of {few}")


FLAG = Convention(False, (), lambda value: type(value) is bool, "it is True or False")


# ---- checks -----------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Check:
    """The laws of one strategy.  Called with a sampler, it tries to break them.

    Parameters
    ----------
    name : str
        The strategy.
    arguments : str
        How a sampler is called.
    laws : function
        The conventions, by name, to the laws that hold under them.
    conventions : dict of Convention
    """

    name: str
    arguments: str
    laws: Callable[..., Iterator[Law]]
    conventions: Mapping[str, Convention]

    def __post_init__(self) -> None:
        # help(check_top_k) tells of top-k, not of checks in general.
        object.__setattr__(self, "__doc__", self.laws.__doc__)

    def __call__(self, sampler: Callable, /, **conventions: Any) -> None:
        """Raise `Violation` at the first law that does not hold.

        Raises
        ------
        TypeError
            If the sampler is not a function.
        ValueError
            If there is no such convention, or no such value of it.
        """
        __tracebackhide__ = True  # pytest shows the caller's line, not this one
        if not callable(sampler):
            raise TypeError(
                f"{self.name}: the sampler is {sampler!r:.60}, not a function"
            )
        for law in self.under(conventions):
            if example := counterexample(law, sampler):
                raise Violation(f"{self.name}: {example}")

    def __repr__(self) -> str:
        defaults = [f"{key}={c.default!r}" for key, c in self.conventions.items()]
        words = ", ".join(["sampler", *(["*", *defaults] if defaults else [])])
        return f"check_{self.name}({words})"

    @property
    def signature(self) -> str:
        """How a sampler is called, such as ``top_k(logits, k)``."""
        return f"{self.name}({self.arguments})"

    def under(self, conventions: Mapping[str, Any]) -> list[Law]:
        """The laws under some conventions, the others being the defaults.

        Raises
        ------
        ValueError
            If there is no such convention, or no such value of it.
        """
        for key, value in conventions.items():
            if key not in self.conventions:
                few = ", ".join(self.conventions) or "none"
                raise ValueError(f"{self.name} has no convention {key!r}; it has {few}")
            if not self.conventions[key].allows(value):
                words = self.conventions[key].words
                raise ValueError(f"{self.name}: {key} is {value!r}; {words}")
        defaults = {key: c.default for key, c in self.conventions.items()}
        return list(self.laws(**(defaults | dict(conventions))))


CHECKS: dict[str, Check] = {}


def check_of(
    name: str, arguments: str, **conventions: Convention
) -> Callable[[Callable[..., Iterator[Law]]], Check]:
    """Make the laws of a strategy its `Check`, and list that in `CHECKS`."""

    def listed(laws: Callable[..., Iterator[Law]]) -> Check:
        CHECKS[name] = Check(name, arguments, laws, conventions)
        return CHECKS[name]

    return listed
