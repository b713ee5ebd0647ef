r"""Regular expressions as machines that read bytes.

To hold a model to a format, one must know after every byte whether the text so far
can still become a match.  A finite automaton knows: it is in a set of states, each
byte moves it to another set, and a text can still match as long as the set is not
empty: from every state that is built here, the end can be reached.

A pattern is built from pieces as Thompson did: each piece is a small graph with one
way in and one way out.  Characters beyond ASCII are several bytes in UTF-8, so a
class of characters becomes a few chains of byte ranges.

Understood: literals, ``.``, classes ``[a-z]`` and ``[^...]``, groups ``( )`` and
``(?: )``, ``|``, ``* + ? {m} {m,} {m,n}``, the classes ``\d \w \s \D \W \S`` (of
ASCII), the escapes ``\n \r \t \f \v \xhh \uhhhh`` and a backslash before any other
sign.  The whole text must match; anchors and look-around are refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

LAST = 0x10FFFF
Ranges = list[tuple[int, int]]


class Machine(NamedTuple):
    """A nondeterministic automaton over bytes; state 1 is the accepting one.

    Attributes
    ----------
    silent : list of list of int
        Per state, the states that are entered with it.
    steps : list of list of (low, high, state)
        Per state, where a byte from low to high leads.
    """

    silent: list[list[int]]
    steps: list[list[tuple[int, int, int]]]


START, ACCEPT = 0, 1


def compile_regex(pattern: str) -> Machine:
    """Build the machine that accepts exactly the texts that match `pattern`.

    Raises
    ------
    ValueError
        If the pattern is malformed, too large, or uses what is not understood.
    """
    machine = Machine([[], []], [[], []])
    try:
        _build(machine, parse(pattern), START, ACCEPT)
    except RecursionError:
        raise ValueError(f"regex {pattern!r:.60}: nested too deeply") from None
    return machine


def parse(pattern: str) -> tuple:
    """Read a pattern as a tree.

    Returns
    -------
    ("class", ranges), ("or", nodes), ("then", nodes) or ("repeat", node, low, high)
        With ranges of characters, and None for a `high` without end.

    Raises
    ------
    ValueError
        If the pattern is malformed or uses what is not understood.
    """
    reader = _Reader(pattern)
    node = reader.alternatives()
    if reader.at < len(pattern):
        raise reader.fail("unmatched ')'")
    return node


def enter(machine: Machine, states: frozenset[int]) -> frozenset[int]:
    """The states, and all that are entered silently with them."""
    seen, todo = set(states), list(states)
    while todo:
        for state in machine.silent[todo.pop()]:
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return frozenset(seen)


def step(machine: Machine, states: frozenset[int], byte: int) -> frozenset[int]:
    """Where the machine is after one more byte; empty if the text cannot match."""
    ahead = {
        target
        for state in states
        for low, high, target in machine.steps[state]
        if low <= byte <= high
    }
    return enter(machine, frozenset(ahead))


#  ---- reading a pattern ------------------------------------------------------

_CLASSES = {
    "d": [(48, 57)],
    "w": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "s": [(9, 13), (32, 32)],
}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_COUNTS = re.compile(r"([0-9]{1,9})(,([0-9]{0,9}))?}")
MOST_REPEATS = 1000
MOST_STATES = 200_000


class _Reader:
    """Recursive descent over the pattern; nodes are tuples that begin with a word."""

    def __init__(self, pattern: str):
        self.pattern, self.at = pattern, 0

    def fail(self, why: str) -> ValueError:
        return ValueError(f"regex {self.pattern!r:.60}: {why} at {self.at}")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        if self.at >= len(self.pattern):
            raise self.fail("it ends too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def alternatives(self) -> tuple:
        branches = [self.sequence()]
        while self.peek() == "|":
            self.take()
            branches.append(self.sequence())
        return branches[0] if len(branches) == 1 else ("or", branches)

    def sequence(self) -> tuple:
        parts = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated())
        return ("then", parts)

    def repeated(self) -> tuple:
        node = self.atom()
        if not self._repeats():
            return node
        low, high = self.counts()
        if self.peek() == "?":  # lazy or greedy, the same texts match
            self.take()
        if self._repeats():  # possessive, which would match other texts, or an error
            raise self.fail("a repeat of a repeat: put the inner one in ( )")
        return ("repeat", node, low, high)

    def _repeats(self) -> bool:
        return self.peek() != "" and self.peek() in "*+?{"

    def counts(self) -> tuple[int, int | None]:
        sign = self.take()
        if sign != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        found = _COUNTS.match(self.pattern, self.at)
        if found is None:
            raise self.fail("expected {m}, {m,} or {m,n}")
        self.at = found.end()
        low = int(found[1])
        high = int(found[3]) if found[3] else None if found[2] else low
        if max(low, high or 0) > MOST_REPEATS or (high is not None and high < low):
            raise self.fail(f"a count is above {MOST_REPEATS}, or the wrong way round")
        return low, high

    def atom(self) -> tuple:
        sign = self.take()
        if sign == "(":
            if self.peek() == "?":
                self.take()
                if self.take() != ":":
                    raise self.fail("of the groups (?...) only (?: ) is understood")
            node = self.alternatives()
            if self.peek() != ")":
                raise self.fail("a group is not closed")
            self.take()
            return node
        if sign == "[":
            return ("class", self.bracket())
        if sign == ".":
            return ("class", invert([(10, 10)]))
        if sign == "\\":
            return ("class", self.escape())
        if sign in "^$":
            raise self.fail(f"anchor {sign}: the whole text must match anyway")
        if sign in "*+?":
            raise self.fail(f"nothing before {sign} to repeat")
        return ("class", [(ord(sign), ord(sign))])

    def escape(self) -> Ranges:
        sign = self.take()
        if sign.lower() in _CLASSES:
            ranges = _CLASSES[sign.lower()]
            return invert(ranges) if sign.isupper() else ranges
        if sign in "xu":
            digits = "".join(self.take() for _ in range(2 if sign == "x" else 4))
            try:
                code = int(digits, 16)
            except ValueError:
                raise self.fail(f"{digits!r} is not hexadecimal") from None
            return [(code, code)]
        if sign.isalnum() and sign not in _CONTROLS:
            raise self.fail(f"escape \\{sign} is not understood")
        code = _CONTROLS.get(sign, ord(sign))
        return [(code, code)]

    def bracket(self) -> Ranges:
        negated = self.peek() == "^"
        if negated:
            self.take()
        ranges: Ranges = []
        first = True
        while first or self.peek() != "]":
            first = False
            low = self.member()
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] != "]":
                self.take()
                high = self.member()
                if len(low) != 1 or len(high) != 1 or low[0][0] > high[0][1]:
                    raise self.fail("a range is the wrong way round")
                low = [(low[0][0], high[0][1])]
            ranges += low
        self.take()
        return invert(ranges) if negated else ranges

    def member(self) -> Ranges:
        sign = self.take()
        return self.escape() if sign == "\\" else [(ord(sign), ord(sign))]


def invert(ranges: Ranges) -> Ranges:
    """All characters that are in none of the ranges."""
    gaps, at = [], 0
    for low, high in sorted(ranges):
        if low > at:
            gaps.append((at, low - 1))
        at = max(at, high + 1)
    return gaps + ([(at, LAST)] if at <= LAST else [])


#  ---- building the machine ---------------------------------------------------


def _state(machine: Machine) -> int:
    """Add a state; return its number."""
    if len(machine.steps) >= MOST_STATES:
        raise ValueError(f"regex: its machine has more than {MOST_STATES} states")
    machine.silent.append([])
    machine.steps.append([])
    return len(machine.steps) - 1


def _build(machine: Machine, node: tuple, start: int, end: int) -> None:
    """Add states and steps that lead from `start` to `end` by what `node` matches."""
    kind, content = node[0], node[1]
    if kind == "class":
        chains = [chain for low, high in content for chain in utf8_ranges(low, high)]
        if not chains:
            raise ValueError("regex: a class that no character matches")
        for chain in chains:
            at = start
            for i, (a, b) in enumerate(chain):
                target = end if i == len(chain) - 1 else _state(machine)
                machine.steps[at].append((a, b, target))
                at = target
    elif kind == "or":
        for branch in content:
            _build(machine, branch, start, end)
    elif kind == "then":
        for part in content:
            middle = _state(machine)
            _build(machine, part, start, middle)
            start = middle
        machine.silent[start].append(end)
    else:
        _build_repeat(machine, content, node[2], node[3], start, end)


def _build_repeat(
    machine: Machine, node: tuple, low: int, high: int | None, start: int, end: int
) -> None:
    for _ in range(low):
        middle = _state(machine)
        _build(machine, node, start, middle)
        start = middle
    if high is None:
        loop = _state(machine)
        machine.silent[start].append(loop)
        _build(machine, node, loop, loop)
        machine.silent[loop].append(end)
        return
    for _ in range(high - low):
        machine.silent[start].append(end)
        middle = _state(machine)
        _build(machine, node, start, middle)
        start = middle
    machine.silent[start].append(end)


@lru_cache(maxsize=1024)
def utf8_ranges(low: int, high: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Chains of byte ranges that match exactly the characters low ... high.

    A range is cut wherever its UTF-8 forms stop being "all combinations of a range
    per byte": between lengths, around the surrogates, and at multiples of 64.
    """
    for border in (0x80, 0x800, 0xD800, 0xE000, 0x10000):
        if low < border <= high:
            return utf8_ranges(low, border - 1) + utf8_ranges(border, high)
    if 0xD800 <= low <= 0xDFFF:
        return ()  # surrogates are not characters
    first, last = chr(low).encode(), chr(high).encode()
    for bits in range(6, 6 * len(first), 6):
        block = (1 << bits) - 1
        if (low | block) != (high | block):
            if low & block:
                return utf8_ranges(low, low | block) + utf8_ranges(
                    (low | block) + 1, high
                )
            if high & block != block:
                cut = high & ~block
                return utf8_ranges(low, cut - 1) + utf8_ranges(cut, high)
    return (tuple(zip(first, last)),)
