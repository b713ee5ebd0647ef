r"""Patterns: a regular expression read as a tree.

A pattern is a short way to write a set of texts.  Reading it means finding its parts:
``ab|c*`` is either "a then b" or "c, any number of times", which as a tree is

    or
      then: class a, class b
      repeat 0 to any: class c

The tree has one kind of leaf, the class: a set of characters, given as ranges.  A
literal character is a class of one, ``.`` a class of nearly all.

Understood: literals, ``.``, classes ``[a-z]`` and ``[^...]``, groups ``( )`` and
``(?: )``, ``|``, ``* + ? {m} {m,} {m,n}``, the classes ``\d \w \s \D \W \S``, the
escapes ``\n \r \t \f \v \xhh \uhhhh``, a backslash before any other sign, and the
anchors ``^`` and ``$`` at the ends of a pattern or of its top-level alternatives.
Look-around, back references and inner anchors are refused.

The meaning of ``\w`` depends on the language.  `ASCII` is Python's reading with
``re.ASCII``.  JSON schemas use JavaScript's patterns, but are checked with Python's,
and the two differ: a no-break space is ``\s`` for both, but "é" is ``\w`` for Python
alone.  `AGREED` takes a character only where the two agree:

    pattern   JavaScript     Python         AGREED
    \w        a-z A-Z 0-9 _  all letters    a-z A-Z 0-9 _
    \W        the others     the others     what is no letter for either
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

LAST = 0x10FFFF
Ranges = list[tuple[int, int]]
# ("class", ranges), ("or", nodes), ("then", nodes), ("repeat", node, low, high); the
# `high` of a repeat without end is None.  `automaton` adds two more.
Node = tuple[Any, ...]
NOTHING: Node = ("then", [])
MOST_REPEATS = 1000


def invert(ranges: Ranges) -> Ranges:
    """All characters that are in none of the ranges.

    >>> invert([(98, 99), (0, 96)])
    [(97, 97), (100, 1114111)]
    """
    gaps, at = [], 0
    for low, high in sorted(ranges):
        if low > at:
            gaps.append((at, low - 1))
        at = max(at, high + 1)
    return gaps + ([(at, LAST)] if at <= LAST else [])


class Meaning(NamedTuple):
    """The characters that a class has for certain, and those that it may have."""

    certain: Ranges
    possible: Ranges

    def negated(self) -> Meaning:
        """The meaning of the class that has all other characters."""
        return Meaning(invert(self.possible), invert(self.certain))


Dialect = Callable[[str], Meaning]  # of "d", "w", "s" and "."


def ASCII(letter: str) -> Meaning:
    """Read classes as Python does with ``re.ASCII``."""
    ranges = {
        "d": [(48, 57)],
        "w": [(48, 57), (65, 90), (95, 95), (97, 122)],
        "s": [(9, 13), (32, 32)],
        ".": invert([(10, 10)]),
    }[letter]
    return Meaning(ranges, ranges)


# ECMAScript's WhiteSpace and LineTerminator.
_ECMA_SPACES = [(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)]
_ECMA_SPACES += [(0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F)]
_ECMA_SPACES += [(0x3000, 0x3000), (0xFEFF, 0xFEFF)]


@lru_cache(maxsize=8)
def AGREED(letter: str) -> Meaning:
    """Read classes as JavaScript and Python agree on them."""
    if letter == ".":
        ranges = invert([(10, 10), (13, 13), (0x2028, 0x2029)])
        return Meaning(ranges, ranges)
    ecma = _ECMA_SPACES if letter == "s" else ASCII(letter).certain
    everything = "".join(map(chr, range(LAST + 1)))
    found = re.finditer(rf"\{letter}+", everything)
    python = [(match.start(), match.end() - 1) for match in found]
    possible = ecma + python
    both = invert(invert(ecma) + invert(python))
    return Meaning(both, possible)


def parse(pattern: str, dialect: Dialect = ASCII) -> Node:
    """Read a pattern that has to match the whole text.

    Raises
    ------
    ValueError
        If the pattern is malformed or uses what is not understood.
    """
    return _either([node for _, node, _ in _branches(pattern, dialect)])


def parse_search(pattern: str, dialect: Dialect = ASCII) -> Node:
    """Read a pattern that has to match somewhere in the text.

    Only an anchor then binds it to the beginning or the end.
    """
    anything: Node = ("repeat", ("class", [(0, LAST)]), 0, None)
    return _either(
        [
            ("then", [*[anything] * (not start), node, *[anything] * (not end)])
            for start, node, end in _branches(pattern, dialect)
        ]
    )


def _either(nodes: list[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else ("or", nodes)


def _branches(pattern: str, dialect: Dialect) -> list[tuple[bool, Node, bool]]:
    """Top-level alternatives, each with whether ``^`` begins and ``$`` ends it."""
    reader = _Reader(pattern, dialect)
    branches = []
    while True:
        start = reader.skip("^")
        node = reader.sequence()
        branches.append((start, node, reader.skip("$")))
        if not reader.skip("|"):
            break
    if reader.at < len(pattern):
        raise reader.fail("unmatched ')'" if reader.peek() == ")" else "an inner $")
    return branches


_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_COUNTS = re.compile(r"([0-9]{1,9})(,([0-9]{0,9}))?}")


class _Reader:
    """Recursive descent: a method for each rule of the grammar."""

    def __init__(self, pattern: str, dialect: Dialect):
        self.pattern, self.dialect, self.at = pattern, dialect, 0

    def fail(self, why: str) -> ValueError:
        return ValueError(f"regex {self.pattern!r:.60}: {why} at {self.at}")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        if self.at >= len(self.pattern):
            raise self.fail("it ends too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def skip(self, sign: str) -> bool:
        found = self.peek() == sign
        self.at += found
        return found

    def alternatives(self) -> Node:
        branches = [self.sequence()]
        while self.skip("|"):
            branches.append(self.sequence())
        return _either(branches)

    def sequence(self) -> Node:
        parts = []
        while self.peek() not in ("", "|", ")", "$"):
            parts.append(self.repeated())
        return ("then", parts)

    def repeated(self) -> Node:
        node = self.atom()
        if not self._repeats():
            return node
        low, high = self.counts()
        self.skip("?")  # lazy or greedy, the same texts match
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

    def atom(self) -> Node:
        sign = self.take()
        if sign == "(":
            return self.group()
        if sign == "[":
            return ("class", self.bracket())
        if sign == ".":
            return ("class", self.dialect(".").certain)
        if sign == "\\":
            return ("class", self.escape().certain)
        if sign == "^":
            raise self.fail("^ is understood only at the beginning of the pattern")
        if sign in "*+?":
            raise self.fail(f"nothing before {sign} to repeat")
        return ("class", [(ord(sign), ord(sign))])

    def group(self) -> Node:
        if self.skip("?") and self.take() != ":":
            raise self.fail("of the groups (?...) only (?: ) is understood")
        node = self.alternatives()
        if not self.skip(")"):
            inner = self.peek() == "$"
            raise self.fail("a $ in a group" if inner else "a group is not closed")
        return node

    def escape(self) -> Meaning:
        sign = self.take()
        if sign in "dws":
            return self.dialect(sign)
        if sign in "DWS":
            return self.dialect(sign.lower()).negated()
        if sign in "xu":
            return _exactly(self.hexadecimal(2 if sign == "x" else 4))
        if sign.isalnum() and sign not in _CONTROLS:
            raise self.fail(f"escape \\{sign} is not understood")
        return _exactly(_CONTROLS.get(sign, ord(sign)))

    def hexadecimal(self, length: int) -> int:
        digits = "".join(self.take() for _ in range(length))
        if not re.fullmatch("[0-9a-fA-F]+", digits):
            raise self.fail(f"{digits!r} is not hexadecimal")
        return int(digits, 16)

    def bracket(self) -> Ranges:
        negated = self.skip("^")
        certain: Ranges = []
        possible: Ranges = []
        first = True
        while first or self.peek() != "]":
            first = False
            low = self.member()
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] != "]":
                self.take()
                low = self.range(low, self.member())
            certain += low.certain
            possible += low.possible
        self.take()
        return invert(possible) if negated else certain

    def range(self, low: Meaning, high: Meaning) -> Meaning:
        ends = low.certain + high.certain
        single = len(ends) == 2 and all(a == b for a, b in ends)
        if not single or ends[0][0] > ends[1][0]:
            raise self.fail("a range is the wrong way round")
        ranges = [(ends[0][0], ends[1][1])]
        return Meaning(ranges, ranges)

    def member(self) -> Meaning:
        sign = self.take()
        return self.escape() if sign == "\\" else _exactly(ord(sign))


def _exactly(code: int) -> Meaning:
    return Meaning([(code, code)], [(code, code)])
