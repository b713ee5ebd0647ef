"""The laws one by one: which hold, which are broken and by what case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from npllama.conformance.offers import Offer
from npllama.testing import CHECKS
from npllama.testing.laws import counterexample, fitting


class Result(NamedTuple):
    """What was found about one law and one offer."""

    strategy: str
    offer: str  # the strategy with the conventions that were stated
    law: str
    example: str | None  # the least case that breaks it, in words
    hint: str | None = None  # conventions under which fewer would be broken


class Report(NamedTuple):
    """What was found about a package."""

    results: list[Result]

    @property
    def broken(self) -> list[Result]:
        """The laws that do not hold."""
        return [result for result in self.results if result.example]

    @property
    def not_offered(self) -> list[str]:
        """Strategies that nothing was said about."""
        return sorted(set(CHECKS) - {result.strategy for result in self.results})

    def text(self) -> str:
        """The report as it is printed."""
        return "\n".join(lines(self))

    def record(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            "results": [result._asdict() for result in self.results],
            "not_offered": self.not_offered,
        }


def examined(offer: Offer) -> Iterator[Result]:
    """Try every law of one offer."""
    fits: str | None = None
    for law in offer.laws:
        example = counterexample(law, offer.function)
        if example and fits is None:
            fits = hint(offer)
        yield Result(offer.strategy, str(offer), law.says, example, example and fits)


def hint(offer: Offer) -> str:
    """By which other conventions a broken offer would do better; or nothing."""
    found = fitting(*offer)
    if found is None:
        return ""
    other, left = found
    changed = [
        f"{key}={value!r}"
        for key, value in other.items()
        if offer.conventions.get(key) != value
    ]
    few = "law is" if left == 1 else "laws are"
    words = f"{left} {few} broken" if left else "all laws hold"
    return f"with {', '.join(changed)} {words}"


def examine(offers: Iterable[Offer]) -> Report:
    """Try every law of every offer.

    Parameters
    ----------
    offers : Offers
        See `offers_of` and `load`.

    Returns
    -------
    Report
        As many cases are tried as the active profile of Hypothesis says.
    """
    return Report([result for offer in offers for result in examined(offer)])


def lines(report: Report) -> Iterator[str]:
    """The lines of a report."""
    for offer, results in groupby(report.results, key=lambda result: result.offer):
        few = list(results)
        yield offer
        for result in few:
            yield f"  {'BROKEN' if result.example else 'holds '}  {result.law}"
            yield from _example(result)
        yield from sorted({f"  HINT    {r.hint}" for r in few if r.hint})
    if report.not_offered:
        yield "not offered: " + ", ".join(report.not_offered)
    for name in sorted({result.strategy for result in report.broken}):
        yield f"how it is called, and its conventions: help(npllama.testing.check_{name})"
    yield summary(report.results, len(report.not_offered))


def _example(result: Result) -> Sequence[str]:
    """The case that breaks a law, without the statement it begins with."""
    return [
        f"          {line.strip()}" for line in (result.example or "").splitlines()[1:]
    ]


def counted(n: int, one: str, more: str) -> str:
    """A number and its noun."""
    return f"{n} {one if n == 1 else more}"


def summary(results: list[Result], missing: int) -> str:
    """The last line."""
    broken = sum(bool(result.example) for result in results)
    offered = len({result.strategy for result in results})
    holds = counted(len(results) - broken, "law holds", "laws hold")
    strategies = counted(offered, "strategy", "strategies")
    are = counted(broken, "is", "are")
    return f"{holds}, {are} broken; {strategies} offered, {missing} not"
