"""Whether a sampler that breaks laws follows another convention."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from npllama.conformance.offers import Offer
from npllama.testing.laws import Check, Law, counterexample


def alternatives(
    check: Check, conventions: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every other choice of conventions, those that change least first."""
    named = {key: c for key, c in check.conventions.items() if c.choices}
    now = {key: c.default for key, c in named.items()} | dict(conventions)
    changes = [
        {key: value for key, value in zip(named, values) if value != now[key]}
        for values in itertools.product(*(c.choices for c in named.values()))
    ]
    for changed in sorted(changes, key=len):
        if changed:
            yield dict(conventions) | changed


def fitting(
    check: Check, sampler: Callable, conventions: Mapping[str, Any]
) -> tuple[dict[str, Any], int] | None:
    """Other conventions under which at most half as many laws are broken.

    Returns
    -------
    (dict, int) or None
        Those that break the fewest, and of these that change the least; and how many
        laws they break.
    """

    def broken(choice: Mapping[str, Any]) -> Iterator[Law]:
        laws = check.under(choice)
        return (law for law in laws if counterexample(law, sampler, shrink=False))

    best, fewest = None, sum(1 for _ in broken(conventions)) // 2 + 1
    for other in alternatives(check, conventions):
        n = sum(1 for _ in itertools.islice(broken(other), fewest))
        if n < fewest:
            best, fewest = other, n
        if fewest == 0:
            break
    return None if best is None else (best, fewest)


def hint(offer: Offer) -> str:
    """Conventions under which a sampler would break fewer laws, in words; or nothing."""
    better = fitting(offer.check, offer.function, offer.conventions)
    if better is None:
        return ""
    other, left = better
    changed = [
        f"{key}={value!r}"
        for key, value in other.items()
        if offer.conventions.get(key) != value
    ]
    few = "law is" if left == 1 else "laws are"
    words = f"{left} {few} broken" if left else "all laws hold"
    return f"with {', '.join(changed)} {words}"
