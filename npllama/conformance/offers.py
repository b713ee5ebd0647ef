"""What a package says it has: strategies, functions, conventions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from npllama.testing import CHECKS
from npllama.testing.laws import Check, Law


class BadSampler(ValueError):
    """There is nothing to check, and one line that says why."""


class Offer(NamedTuple):
    """One function for one strategy, by stated conventions."""

    strategy: str
    function: Callable
    conventions: dict[str, Any]

    @property
    def check(self) -> Check:
        """The laws of the strategy."""
        return CHECKS[self.strategy]

    @property
    def laws(self) -> list[Law]:
        """Those that hold under these conventions."""
        return self.check.under(self.conventions)

    def __str__(self) -> str:
        stated = [f"{key}={value!r}" for key, value in self.conventions.items()]
        return f"{self.strategy} ({', '.join(stated)})" if stated else self.strategy


def load(spec: str) -> list[Offer]:
    """Import ``module:factory`` and read what it offers.

    Parameters
    ----------
    spec : str
        A module that can be imported, a colon, and the name of a function without
        arguments, or of the dictionary itself.

    Returns
    -------
    list of Offer

    Raises
    ------
    BadSampler
        If there is no such module or factory, or what it returns is no offer.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise BadSampler(f"{spec!r} is not of the form MODULE:FACTORY")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as problem:
        raise BadSampler(
            f"cannot import {module_name!r}: {_line(problem)}"
        ) from problem
    factory = module
    for part in name.split("."):
        if not hasattr(factory, part):
            raise BadSampler(f"{module_name!r} has no {name!r}")
        factory = getattr(factory, part)
    if not callable(factory):
        return offers_of(factory)
    try:
        offered = factory()
    except (Exception, SystemExit) as problem:
        raise BadSampler(f"{name}() raised {_line(problem)}") from problem
    return offers_of(offered)


def _line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0]


def offers_of(offered: Any) -> list[Offer]:
    """Read what a factory returns.

    Parameters
    ----------
    offered : dict
        Names of strategies to functions, to (function, conventions), or to a list of
        such.

    Raises
    ------
    BadSampler
        If it is anything else, or a strategy or convention is not known.
    """
    if not isinstance(offered, Mapping) or not offered:
        raise BadSampler(
            f"a factory returns a dictionary of strategies, found {offered!r:.60}"
        )
    return [
        _offer(str(name), one)
        for name, few in offered.items()
        for one in (few if isinstance(few, list) and few else [few])
    ]


def _offer(name: str, offered: Any) -> Offer:
    if name not in CHECKS:
        near = get_close_matches(name, CHECKS, 1)
        hint = f", perhaps {near[0]!r} is meant" if near else ""
        raise BadSampler(f"no strategy {name!r}{hint}; there are {', '.join(CHECKS)}")
    pair = offered if isinstance(offered, tuple) else (offered, {})
    function, conventions = pair if len(pair) == 2 else (None, None)
    if not callable(function) or not isinstance(conventions, Mapping):
        raise BadSampler(
            f"{name} is offered as {offered!r:.60}: expected a function, or a function "
            "and a dictionary of conventions"
        )
    offer = Offer(name, function, dict(conventions))
    try:
        _ = offer.laws
    except ValueError as problem:
        raise BadSampler(str(problem)) from problem
    return offer
