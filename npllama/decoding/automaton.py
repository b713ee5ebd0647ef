r"""Machines that read bytes and know whether a text can still match.

To hold a model to a format, one must know after every byte whether the text so far
can still become a match.  A finite automaton knows this.  It is in a set of states,
and each byte moves it to another set.  The text can still match as long as the set is
not empty, since every state built here has a way to the end.

A machine is built from the tree of a pattern (`regex`) as Thompson did: each node
becomes a small graph with one way in and one way out.  Arrows lead from state
to state: some are taken with a byte, others silently.  The pattern ``ab|c``
gives

    0 --a--> 2 --b--> 1
    0 --c-----------> 1

and reading "a" moves the set {0} to {2}.  Characters beyond ASCII are several bytes
in UTF-8, so a class of characters becomes a few chains of byte ranges.

Two more kinds of node make formats cheap for which a pattern would be very long.

``("list", entries)`` is a list with ", " between its items, some of which may be
absent.  A pattern would have to hold each item twice, with and without a comma before
it, and twice again for each list around it.  Here the two ways, from "no item yet"
and from "an item already", meet before the item.  So each item is built once, and the
size of the machine is the sum of its items.

``("call", name)`` is a *piece*: a node that is built once and used many times,
like a subroutine.  The machine then has to know where to return to after the
piece.  So a *place* is a pair: a state, and the place to return to, or None.
A piece that calls itself can nest without end.  No finite automaton can do
that: the machine then has a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from npllama.decoding.regex import Node, parse

MOST_STATES = 200_000
Place = tuple[int, Any]  # a state, and the place to return to or None


class Machine(NamedTuple):
    """An automaton over bytes with a stack; state 1 is the accepting one.

    Attributes
    ----------
    silent : list of list of int
        Per state, the states that are entered with it.
    steps : list of list of (low, high, state)
        Per state, where a byte from low to high leads.
    calls : list of list of (first state of a piece, state to return to)
    ends : set of int
        Last states of pieces.
    """

    silent: list[list[int]]
    steps: list[list[tuple[int, int, int]]]
    calls: list[list[tuple[int, int]]]
    ends: set[int]


START, ACCEPT = (0, None), (1, None)
Places = frozenset[Place]


def empty_machine() -> Machine:
    """The machine of two states and no way between them."""
    return Machine([[], []], [[], []], [[], []], set())


def compile_regex(pattern: str) -> Machine:
    """Build the machine that accepts exactly the texts that match `pattern`.

    Raises
    ------
    ValueError
        If the pattern is malformed, too large, or uses what is not understood.
    """
    try:
        return compile_node(parse(pattern))
    except RecursionError:
        raise ValueError(f"regex {pattern!r:.60}: nested too deeply") from None


def compile_node(node: Node, pieces: Mapping[Any, Node] | None = None) -> Machine:
    """Build the machine of a node and of the pieces that it calls by name."""
    builder = _Builder(empty_machine(), pieces or {}, {})
    builder.build(node, START[0], ACCEPT[0])
    return builder.machine


def without_endless(node: Node, pieces: dict[Any, Node]) -> Node | None:
    """The node without the ways that never end, or None if all ways are such.

    A piece that must call itself never ends, such as an object that requires another
    of its kind.  A text that took this way could not finish, so the way is removed.

    Writes into `pieces`: such ways are removed there, too.
    """
    fine: set[Any] = set()
    while True:
        found = {name for name in pieces if _pruned(pieces[name], fine) is not None}
        if found == fine:
            break
        fine = found
    for name in pieces.keys() - fine:
        del pieces[name]
    pieces |= {name: _pruned(pieces[name], fine) for name in pieces}
    return _pruned(node, fine)


def _pruned(node: Node, fine: set[Any]) -> Node | None:
    """The node without calls of pieces other than the `fine` ones."""
    kind, content = node[0], node[1]
    if kind == "class":
        return node
    if kind == "call":
        return node if content in fine else None
    if kind == "repeat":
        inner = _pruned(content, fine)
        if inner is None:
            return ("then", []) if node[2] == 0 else None
        return ("repeat", inner, *node[2:])
    if kind == "list":
        items = [(_pruned(item, fine), low, high) for item, low, high in content]
        if any(item is None and low > 0 for item, low, _ in items):
            return None
        return ("list", [entry for entry in items if entry[0] is not None])
    parts = [_pruned(part, fine) for part in content]
    if kind == "then":
        return None if None in parts else ("then", parts)
    left = [part for part in parts if part is not None]
    return ("or", left) if left else None


def enter(machine: Machine, places: Places) -> Places:
    """The places, and all that are entered silently with them."""
    seen, todo = set(places), list(places)
    while todo:
        for place in _silently(machine, todo.pop()):
            if place not in seen:
                seen.add(place)
                todo.append(place)
    return frozenset(seen)


def _silently(machine: Machine, place: Place) -> Iterator[Place]:
    state, back = place
    for target in machine.silent[state]:
        yield (target, back)
    for first, after in machine.calls[state]:
        yield (first, (after, back))
    if state in machine.ends:
        yield back


def step(machine: Machine, places: Places, byte: int) -> Places:
    """The places after one more byte; empty if the text cannot match."""
    ahead = {
        (target, back)
        for state, back in places
        for low, high, target in machine.steps[state]
        if low <= byte <= high
    }
    return enter(machine, frozenset(ahead))


#  ---- building the machine ---------------------------------------------------


class _Builder(NamedTuple):
    """Adds states and arrows to a machine, node by node."""

    machine: Machine
    pieces: Mapping[Any, Node]
    built: dict[Any, int]  # first state of each piece

    def state(self) -> int:
        """Add a state; return its number."""
        if len(self.machine.steps) >= MOST_STATES:
            raise ValueError(f"regex: its machine has more than {MOST_STATES} states")
        self.machine.silent.append([])
        self.machine.steps.append([])
        self.machine.calls.append([])
        return len(self.machine.steps) - 1

    def build(self, node: Node, start: int, end: int) -> None:
        """Lead from `start` to `end` by what `node` matches."""
        kind, content = node[0], node[1]
        if kind == "class":
            self.characters(content, start, end)
        elif kind == "or":
            for branch in content:
                self.build(branch, start, end)
        elif kind == "then":
            self.sequence(content, start, end)
        elif kind == "repeat":
            self.repeat(content, node[2], node[3], start, end)
        elif kind == "list":
            self.list(content, start, end)
        else:
            self.call(content, start, end)

    def characters(self, ranges, start: int, end: int) -> None:
        chains = [chain for low, high in ranges for chain in utf8_ranges(low, high)]
        if not chains:
            raise ValueError("regex: a class that no character matches")
        for chain in chains:
            at = start
            for i, (low, high) in enumerate(chain):
                target = end if i == len(chain) - 1 else self.state()
                self.machine.steps[at].append((low, high, target))
                at = target

    def sequence(self, parts, start: int, end: int) -> None:
        for part in parts:
            middle = self.state()
            self.build(part, start, middle)
            start = middle
        self.machine.silent[start].append(end)

    def repeat(self, node, low: int, high: int | None, start: int, end: int) -> None:
        node = self.shared(node, max(low, high or 0))
        for _ in range(low):
            middle = self.state()
            self.build(node, start, middle)
            start = middle
        if high is None:
            loop = self.state()
            self.machine.silent[start].append(loop)
            self.build(node, loop, loop)
            self.machine.silent[loop].append(end)
            return
        for _ in range(high - low):
            self.machine.silent[start].append(end)
            middle = self.state()
            self.build(node, start, middle)
            start = middle
        self.machine.silent[start].append(end)

    def shared(self, node: Node, copies: int) -> Node:
        """The node itself, or a call of it if that many copies would be large."""
        small = node[0] == "call" or (node[0] == "class" and len(node[1]) == 1)
        return node if copies < 3 or small else ("call", node)

    def call(self, piece: Any, start: int, end: int) -> None:
        """Go through a piece, which is built at its first call."""
        key = id(piece) if isinstance(piece, tuple) else piece
        if key not in self.built:
            self.built[key] = first = self.state()
            last = self.state()
            self.machine.ends.add(last)
            self.build(
                piece if isinstance(piece, tuple) else self.pieces[piece], first, last
            )
        self.machine.calls[start].append((self.built[key], end))

    def list(self, entries, start: int, end: int) -> None:
        """Go through entries (node, low, high): items that come low to high times."""
        nothing, something = start, None  # states: before any item, after an item
        for node, low, high in entries:
            nothing, something = self.entry(node, low, high, nothing, something)
        for state in (nothing, something):
            if state is not None:
                self.machine.silent[state].append(end)

    def entry(self, node, low: int, high: int | None, nothing, something):
        """Add the items of one entry; return the two states after it."""
        silent = self.machine.silent
        skipped = self.state() if low == 0 and nothing is not None else None
        after = self.state()
        if skipped is not None:
            silent[nothing].append(skipped)
        if low == 0 and something is not None:
            silent[something].append(after)
        copies = max(low, 1) if high is None else high
        node = self.shared(node, copies)
        for i in range(copies):
            begin, finish = self.state(), self.state()
            if i == 0 and nothing is not None:
                silent[nothing].append(begin)
            if something is not None:
                self.comma(something, begin)
            self.build(node, begin, finish)
            if i + 1 >= low:
                silent[finish].append(after)
            something = finish
        if high is None:
            self.comma(finish, begin)
        return skipped, after

    def comma(self, start: int, end: int) -> None:
        middle = self.state()
        self.machine.steps[start].append((ord(","), ord(","), middle))
        self.machine.steps[middle].append((ord(" "), ord(" "), end))


@lru_cache(maxsize=4096)
def utf8_ranges(low: int, high: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Chains of byte ranges that match exactly the characters low ... high.

    A range is cut wherever its UTF-8 forms stop being "all combinations of a range
    per byte": between lengths, around the surrogates, and at multiples of 64.

    >>> utf8_ranges(ord("a"), ord("\u00ff"))
    (((97, 127),), ((194, 195), (128, 191)))
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
