"""Beams: the tree of a search, and the way to the text that won.

A search lists, at every step, its candidates, those that ended, and the beams that go
on; each names its parent by its row at the step before.  The way to a text is found
from these lists: first all rows that could hold its beginning, then back from its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from npllama.explain.choices import Choice
from npllama.explain.watch import Beams, Decision, Event, Listed, Pass


class Level(NamedTuple):
    """One step of a search."""

    candidates: Beams  # (parent, token, score)
    ended: Beams
    going: Beams  # the row of each is its place in the list
    decisions: list[Decision]  # of all groups, in order
    passes: list[Pass]  # before the step

    @property
    def choices(self) -> list[Choice]:
        """What every row could go on with."""
        return [choice for decision in self.decisions for choice in decision.rows]


def levels_of(events: Iterable[Event]) -> list[Level]:
    """The steps of a search."""
    levels, here = [], Level([], [], [], [], [])
    for event in events:
        if isinstance(event, Pass):
            here.passes.append(event)
        elif isinstance(event, Decision):
            here.decisions.append(event)
        elif isinstance(event, Listed):
            {"candidates": here.candidates, "ended": here.ended, "beams": here.going}[
                event.kind
            ].extend(event.beams)
            if event.kind == "beams":
                levels.append(here)
                here = Level([], [], [], [], [])
    return [*levels, here] if here.decisions else levels


def way(levels: Sequence[Level], tokens: Sequence[int]) -> list[int]:
    """The row that held each beginning of a text: before its first token, then on.

    Raises
    ------
    LookupError
        If the lists do not lead to the text.
    """
    # Of step d: each row that holds the first d + 1 tokens, and its parent.
    found: list[dict[int, int]] = []
    for level, token in zip(levels, tokens[:-1]):
        before = found[-1] if found else None
        same = {r: p for r, (p, t, _) in enumerate(level.going) if t == token}
        found.append({r: p for r, p in same.items() if before is None or p in before})
        if not found[-1]:
            raise LookupError("the search did not list this text")
    last = levels[len(tokens) - 1]
    parents = {p for p, t, _ in last.candidates + last.ended if t == tokens[-1]}
    able = [row for row in (found[-1] if found else sorted(parents)) if row in parents]
    # A forced token is no candidate, but all rows of one beginning are alike.
    row = next(iter(able or (found[-1] if found else [0])))
    rows = [row]
    for parents_of in reversed(found):
        row = parents_of[row]
        rows.append(row)
    return rows[::-1]
