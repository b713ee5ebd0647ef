"""A law: one statement about a sampler, and the cases it is tried on.

A check is a list of laws.  For each, Hypothesis looks for a case that breaks it and
makes that case as small as it can; cases that were somebody's bug once are tried
first.  What is said about a broken law is the statement, the case, and what was
found where something else was expected.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisException

Case = dict[str, Any]


class Violation(AssertionError):
    """A law that does not hold, and the least case found that breaks it."""


class Law(NamedTuple):
    """What must hold of a sampler in all cases."""

    says: str  # the statement, about the world and not about code
    cases: st.SearchStrategy[Case]
    # (sampler, **case), raising Violation where the case breaks the law.
    holds: Callable[..., None]
    known: tuple[Case, ...] = ()  # tried first


# ---- words ------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as a reader would write it down: few digits, long arrays cut."""
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


def told(law: Law, case: Case, problem: BaseException) -> str:
    """A broken law in words."""
    found = str(problem) if isinstance(problem, Violation) else raised(problem)
    lines = [law.says, *(f"  {name} = {shown(x)}" for name, x in case.items())]
    return "\n".join([*lines, *(f"  {line}" for line in found.splitlines())])


def raised(problem: BaseException) -> str:
    """An exception in one line."""
    return f"it raised {type(problem).__name__}: {problem}".splitlines()[0]


# ---- trying a law -----------------------------------------------------------


def counterexample(law: Law, sampler: Callable, shrink: bool = True) -> str | None:
    """The least case that breaks a law, in words; None if none was found.

    Parameters
    ----------
    law : Law
    sampler : function
        What the law is about.
    shrink : bool
        Whether to look for the least case, or be content with any.

    Returns
    -------
    str or None
        As many cases are tried as the active profile of Hypothesis says.
    """

    def trial(case: Case) -> None:
        try:
            law.holds(sampler, **case)
        except HypothesisException:
            raise
        except (Exception, SystemExit) as problem:
            raise Violation(told(law, case, problem)) from problem

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


# ---- checks -----------------------------------------------------------------

CHECKS: dict[str, Callable[..., None]] = {}


def check(laws: Callable[..., Iterator[Law]]) -> Callable[..., None]:
    """Make the laws of a strategy into a check of one sampler.

    Parameters
    ----------
    laws : function
        Named "check_" and the strategy; its keywords are the conventions in which
        implementations differ.

    Returns
    -------
    function
        ``check(sampler, **conventions)`` raises `Violation` at the first law that
        does not hold, ValueError if there is no such convention.  It stands in
        `CHECKS` under the name of the strategy.
    """
    name = laws.__name__.removeprefix("check_")

    @functools.wraps(laws)
    def checked(sampler: Callable, /, **conventions: Any) -> None:
        if not callable(sampler):
            raise TypeError(f"{name}: the sampler is {sampler!r:.60}, not a function")
        for law in laws_of(name, conventions):
            if found := counterexample(law, sampler):
                raise Violation(f"{name}: {found}")

    signature = inspect.signature(laws)
    given_first = inspect.Parameter("sampler", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [given_first, *signature.parameters.values()]
    checked.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=None
    )
    CHECKS[name] = checked
    return checked


def laws_of(name: str, conventions: Mapping[str, Any]) -> list[Law]:
    """The laws of a strategy under some conventions.

    Raises
    ------
    ValueError
        If there is no such strategy, convention, or value of one.
    """
    if name not in CHECKS:
        raise ValueError(f"no strategy {name!r}; there are {', '.join(sorted(CHECKS))}")
    known = conventions_of(name)
    for key, value in conventions.items():
        if key not in known:
            few = ", ".join(known) or "none"
            raise ValueError(f"{name} has no convention {key!r}; it has {few}")
        choices = known[key]
        if choices and value not in choices:
            raise ValueError(
                f"{name}: {key} is {value!r}; it is one of "
                + ", ".join(map(repr, choices))
            )
        _check_free(name, key, value)
    return list(CHECKS[name].__wrapped__(**conventions))  # type: ignore[attr-defined]


def _check_free(name: str, key: str, value: Any) -> None:
    """Raise ValueError if a convention without choices is not of its type."""
    kind = get_type_hints(CHECKS[name].__wrapped__)[key]  # type: ignore[attr-defined]
    counts = kind is int or int in get_args(kind)
    none = value is None and type(None) in get_args(kind)
    if kind is bool and type(value) is not bool:
        raise ValueError(f"{name}: {key} is {value!r}; it is True or False")
    if counts and not none and (type(value) is not int or value < 1):
        raise ValueError(f"{name}: {key} is {value!r}; a number from 1 on is needed")
    if kind is tuple and not (isinstance(value, (tuple, list)) and value):
        raise ValueError(f"{name}: {key} is {value!r}; a tuple of values is needed")


def conventions_of(name: str) -> dict[str, tuple]:
    """The conventions of a strategy, each with its choices; none if it is free."""
    laws = CHECKS[name].__wrapped__  # type: ignore[attr-defined]
    hints = get_type_hints(laws)
    return {
        key: get_args(hints[key]) if get_origin(hints[key]) is Literal else ()
        for key in inspect.signature(laws).parameters
    }


def alternatives(name: str, conventions: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every other choice of conventions, those that change least first."""
    choices = {key: few for key, few in conventions_of(name).items() if few}
    signature = inspect.signature(CHECKS[name])
    now = {key: signature.parameters[key].default for key in choices} | dict(
        conventions
    )
    found = [
        {key: value for key, value in zip(choices, values) if value != now[key]}
        for values in itertools.product(*choices.values())
    ]
    for changed in sorted(found, key=len):
        if changed:
            yield dict(conventions) | changed


def fitting(
    name: str, sampler: Callable, conventions: Mapping[str, Any]
) -> tuple[dict[str, Any], int] | None:
    """Other conventions under which at most half as many laws are broken.

    Returns
    -------
    (dict, int) or None
        Those that break the fewest, and of these that change the least; and how many
        laws they break.
    """

    def broken(choice: Mapping[str, Any]) -> Iterator[Law]:
        laws = laws_of(name, choice)
        return (law for law in laws if counterexample(law, sampler, shrink=False))

    best, fewest = None, sum(1 for _ in broken(conventions)) // 2 + 1
    for other in alternatives(name, conventions):
        count = sum(1 for _ in itertools.islice(broken(other), fewest))
        if count < fewest:
            best, fewest = other, count
        if fewest == 0:
            break
    return None if best is None else (best, fewest)
