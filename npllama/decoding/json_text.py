r"""How JSON writes single values, as trees of patterns.

Between its quotation marks, a JSON string writes most characters as they are, some as
two (``\n``, ``\"``), and any as ``\u`` with four hexadecimal digits.  A character
beyond U+FFFF then takes two of these, a surrogate pair, which counts as one character;
half a pair is not one.

A number between bounds is a matter of its digits.  From 37 to 52 are the texts

    3 then 7 to 9     4 then any digit     5 then 0 to 2

After the first digit at most one bound still matters, so the tree grows with the
number of digits, not with their value.  A fraction is the same, with a point in the
middle, and zeros at the end may be left out.  Fractions with bounds are written with
15 digits at most and without an exponent: so many digits survive a conversion to
float64, but more might be rounded across the bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from npllama.decoding.regex import LAST, NOTHING, Node, Ranges, invert, parse

DIGITS = 15
CHARACTER = parse(
    r'[^"\\\x00-\x1f]|\\["\\/bfnrt]'
    r"|\\u([0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
INTEGER = parse("-?(0|[1-9][0-9]*)")
NUMBER = parse(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")

_DIGIT: Node = ("class", [(48, 57)])
_DAY = "(0[1-9]|1[0-9]|2[0-8])"
_LEAP = "[0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00"
_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DATE = (
    rf"({_YEAR}-((0[1-9]|1[0-2])-{_DAY}|(0[13-9]|1[0-2])-(29|30)"
    rf"|(0[13578]|1[02])-31)|({_LEAP})-02-29)"
)
_HOUR = "([01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,6}})?(Z|[-+]{_HOUR}:[0-5][0-9])"
_TIMES = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
_DAYS = "([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL = "[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?"
_HEX = "[0-9a-fA-F]"

_UUID = f"{_HEX}{{8}}-{_HEX}{{4}}-%s{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}"

# RFC 3339 for dates and times, RFC 4122 for uuid; of the other standards the plain
# forms: no quoted local parts in an address, no zone in an IP address.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P({_DAYS}({_TIMES})?|{_TIMES}|[0-9]+W)",
    "uuid": f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "email": rf"[a-zA-Z0-9_+-]+(\.[a-zA-Z0-9_+-]+)*@({_LABEL}\.)+[a-zA-Z]{{2,24}}",
}
FORMATS |= {f"uuid{version}": _UUID % version for version in range(1, 9)}
# Formats that do not restrict the text.
FREE_FORMATS = {"password", "binary", "path", "file-path", "directory-path"}


def literal(text: str) -> Node:
    """The tree of one text."""
    return ("then", [("class", [(ord(c), ord(c))]) for c in text])


def value(content: Any) -> Node:
    """The tree of one JSON value, as `json.dumps` writes it."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError) as error:
        raise ValueError(f"schema: {content!r:.60} is not JSON ({error})") from None
    return literal(text)


def quoted(content: Node) -> Node:
    """A string: quotation marks around its content."""
    return ("then", [literal('"'), content, literal('"')])


#  ---- strings ----------------------------------------------------------------

# Quotation marks, backslashes and control characters must be escaped.
_BARE = [(32, 33), (35, 91), (93, LAST)]
_ESCAPED = [*range(32), 34, 92]


def written(node: Node) -> Node:
    """The JSON text of the strings that a tree matches, each character in one way."""
    kind, content = node[0], node[1]
    if kind == "class":
        return ("or", _characters(content))
    if kind == "repeat":
        return ("repeat", written(content), node[2], node[3])
    return (kind, [written(part) for part in content])


def _characters(ranges: Ranges) -> list[Node]:
    bare = [
        (max(low, first), min(high, last))
        for low, high in ranges
        for first, last in _BARE
        if max(low, first) <= min(high, last)
    ]
    marks = [c for c in _ESCAPED if any(low <= c <= high for low, high in ranges)]
    escapes = [literal(json.dumps(chr(c))[1:-1]) for c in marks]
    return ([("class", bare)] if bare else []) + escapes


def _character(sign: str) -> Node:
    return literal(json.dumps(sign, ensure_ascii=False)[1:-1])


def other_than(names: Sequence[str]) -> Node:
    """All strings but the given ones, each character written in one way only."""
    return quoted(_other_than(list(names)))


def _other_than(rests: list[str]) -> Node:
    """What may follow a beginning that some names share; `rests` are their rests."""
    firsts = sorted({rest[0] for rest in rests if rest})
    others = invert([(ord(c), ord(c)) for c in firsts])
    anything: Node = ("repeat", ("or", _characters([(0, LAST)])), 0, None)
    options = [("then", [("or", _characters(others)), anything])]
    options += [NOTHING] * ("" not in rests)
    for first in firsts:
        after = _other_than([rest[1:] for rest in rests if rest[:1] == first])
        options.append(("then", [_character(first), after]))
    return ("or", options)


#  ---- numbers between bounds -------------------------------------------------


def either(options: Sequence[Node]) -> Node | None:
    """One of the options; None if there are none."""
    return ("or", list(options)) if options else None


def integers(low: int | None, high: int | None) -> Node | None:
    """Whole numbers from `low` to `high`, or None if there are none."""
    options = []
    if low is None or low < 0:
        least, most = max(1, -(high or 0)), None if low is None else -low
        negative = either(list(_magnitudes(least, most)))
        options += [("then", [literal("-"), negative])] if negative else []
    if (low is None or low <= 0) and (high is None or high >= 0):
        options.append(literal("0"))
    if high is None or high > 0:
        options += _magnitudes(max(1, low or 1), high)
    return either(options)


def _magnitudes(low: int, high: int | None) -> Iterator[Node]:
    """Whole numbers from `low`, at least 1, to `high`, by their number of digits."""
    longest = len(str(low if high is None else high))
    for n in range(len(str(low)), longest + 1):
        first = max(low, 10 ** (n - 1))
        last = 10**n - 1 if high is None else min(high, 10**n - 1)
        if first <= last:
            yield _whole(str(first), str(last), n)
    if high is None:
        longer: Node = ("repeat", _DIGIT, longest, None)
        yield ("then", [("class", [(49, 57)]), longer])


def decimals(
    low: Decimal | None, high: Decimal | None, open_low: bool, open_high: bool
) -> Node | None:
    """Numbers of up to 15 digits between bounds, which are excluded where open."""
    options = []
    if low is None or low < 0:
        least = (Decimal(0), True) if high is None or high >= 0 else (-high, open_high)
        most = None if low is None else -low
        negative = either(list(_fractions(least[0], most, least[1], open_low)))
        options += [("then", [literal("-"), negative])] if negative else []
    if high is None or high >= 0:
        positive = (Decimal(0), False) if low is None or low < 0 else (low, open_low)
        options += _fractions(positive[0], high, positive[1], open_high)
    return either(options)


def _fractions(
    low: Decimal, high: Decimal | None, open_low: bool, open_high: bool
) -> Iterator[Node]:
    """Numbers as in `decimals`, from 0 on, by the number of digits before the point."""
    for n in range(1, DIGITS + 1):
        unit = Decimal(10) ** (DIGITS - n)  # all numbers as multiples of its inverse
        first = int((low * unit).to_integral_value(ROUND_CEILING))
        first += open_low and first == low * unit
        first = max(first, 0 if n == 1 else 10 ** (DIGITS - 1))
        last = 10**DIGITS - 1
        if high is not None:
            most = int((high * unit).to_integral_value(ROUND_FLOOR))
            last = min(last, most - (open_high and most == high * unit))
        if first <= last:
            yield _whole(str(first).zfill(DIGITS), str(last), n)


def _ways(low: str, high: str) -> Iterator[tuple[Node, str, str]]:
    """First digits of the numbers from `low` to `high`, and the bounds of the rest."""
    zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
    if low[0] == high[0]:
        yield literal(low[0]), low[1:], high[1:]
        return
    yield literal(low[0]), low[1:], nines
    if ord(high[0]) - ord(low[0]) > 1:
        yield ("class", [(ord(low[0]) + 1, ord(high[0]) - 1)]), zeros, nines
    yield literal(high[0]), zeros, high[1:]


def _whole(low: str, high: str, n: int) -> Node:
    """Digits from `low` to `high`, of which n stand before the point."""
    high = high.zfill(len(low))
    if n == 0:
        options = [NOTHING] * (not low.strip("0"))
        if low:
            options.append(("then", [literal("."), _after_point(low, high)]))
        return ("or", options)
    if not low.strip("0") and not high.strip("9"):
        rest = _whole(low[n:], high[n:], 0)
        return ("then", [("repeat", _DIGIT, n, n), rest])
    return (
        "or",
        [("then", [digit, _whole(a, b, n - 1)]) for digit, a, b in _ways(low, high)],
    )


def _after_point(low: str, high: str) -> Node:
    """One digit or more after the point; missing digits are zeros."""
    if not low.strip("0") and not high.strip("9"):
        return ("repeat", _DIGIT, 1, len(low))
    options = []
    for digit, a, b in _ways(low, high):
        if not a.strip("0"):
            options.append(digit)
        if a:
            options.append(("then", [digit, _after_point(a, b)]))
    return ("or", options)
