"""The laws one by one: which hold, which are broken and by what case.

A sampler that raises an exception breaks many laws at once.  The report shows the
case once, and says of the other laws that the exception is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from npllama.conformance.hints import hint
from npllama.conformance.offers import Offer, offers_of
from npllama.testing import CHECKS
from npllama.testing.laws import RAISED, counterexample


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
        """The strategies without an offer."""
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


def examine(offers: Iterable[Offer] | Mapping[str, Any]) -> Report:
    """Try every law of every offer.

    Parameters
    ----------
    offers : list of Offer, or dict
        What `load` or `offers_of` returns, or the dictionary that a factory returns.

    Returns
    -------
    Report
        As many cases are tried as the active profile of Hypothesis says.

    Raises
    ------
    BadSampler
        If the dictionary offers nothing that can be checked.
    """
    few = offers_of(offers) if isinstance(offers, Mapping) else offers
    return Report([result for offer in few for result in examined(offer)])


def lines(report: Report) -> Iterator[str]:
    """The lines of a report."""
    for offer, results in groupby(report.results, key=lambda result: result.offer):
        yield from _lines_of(offer, list(results))
    if report.not_offered:
        yield not_offered(report.not_offered)
    for name in sorted({result.strategy for result in report.broken}):
        yield f"how {name} is called, and its conventions: help(npllama.testing.check_{name})"
    yield summary(report.results, len(report.not_offered))


def _lines_of(offer: str, results: list[Result]) -> Iterator[str]:
    """The lines of one offer."""
    seen: set[str] = set()
    yield offer
    for result in results:
        case = (result.example or "").splitlines()[1:]  # without the statement
        raised = next((x for x in case if x.strip().startswith(RAISED)), "")
        again = " (the same exception)" if raised in seen else ""
        yield f"  {'BROKEN' if result.example else 'holds '}  {result.law}{again}"
        if not again:
            yield from (f"          {line.strip()}" for line in case)
        seen |= {raised} - {""}
    yield from sorted({f"  HINT    {r.hint}" for r in results if r.hint})


FEW = 5


def not_offered(names: list[str]) -> str:
    """The strategies that were not offered: by name if they are few."""
    if len(names) <= FEW:
        return f"not offered: {', '.join(names)}"
    return f"not offered: {len(names)} strategies, listed by help(npllama.testing)"


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
