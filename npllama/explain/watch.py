"""What observers see of a generation, in order.

The model shows its arrays, the pipeline each distribution, and a strategy what it has
chosen.  `Watch` writes all of it down as one list of events:

- a `Pass`, for every run of the model over some tokens;
- a `Decision`, for every distribution that a token was chosen from;
- a `Drafted`, for the guesses of a draft, before they are checked;
- a `Listed`, for candidates and beams of a search.

A pass that begins inside the pipeline is that of a second opinion (guidance, an
amateur); it is marked as `beside`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from npllama.cost.product import LOOKUP, NOTHING, Total, cost
from npllama.explain.choices import Choice, Drawn, choice_of, choices_of_beams
from npllama.ops import Kind, Observer

Beams = list[tuple[int, int, float]]  # row of the parent, last token, score


@dataclass(eq=False)
class Pass:
    """A run of the model over the next tokens of B texts."""

    start: int  # positions that the cache held before
    new: int  # positions that it got
    rows: int  # texts side by side, B
    beside: bool = False  # a second opinion
    # Of each layer, (B, H, T, S): what every new position looks at.
    attention: list[np.ndarray | None] = field(default_factory=list)
    # The residual stream: the embedding, then after each layer, (B, T, E).
    stream: list[np.ndarray] = field(default_factory=list)
    costs: dict[str, Total] = field(default_factory=dict)  # by product

    def count(self, kind: Kind) -> None:
        """Add the cost of a product."""
        self.costs[kind.name] = self.costs.get(kind.name, NOTHING) + cost(kind)


@dataclass(eq=False)
class Decision:
    """A distribution on its way through the pipeline, and what came of it."""

    stages: list[tuple[str, np.ndarray]]  # name of the step, (B, V) after it
    u: list[float] = field(default_factory=list)  # the numbers of the draw
    q: np.ndarray | None = None  # (V,), that the guess under test was drawn from
    listed: Beams = field(default_factory=list)  # what a search listed of it
    rows: list[Choice] = field(default_factory=list)  # for each text, once chosen


class Drafted(NamedTuple):
    """Guesses that are now to be checked."""

    tokens: list[int]


class Listed(NamedTuple):
    """Beams that a search lists: candidates, those that ended, those that go on."""

    kind: str
    beams: Beams


Event = Pass | Decision | Drafted | Listed


class Watch(Observer):
    """Writes down what happens in a generation.

    Parameters
    ----------
    steps : int
        How many steps the pipeline has.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self.events: list[Event] = []
        # Beams of a group come after those of earlier groups: where, and how many.
        self.first = self.many = 0
        self._parts: list[np.ndarray] = []
        self._decision: Decision | None = None
        self._guesses: list[int] = []  # that are still to be checked

    # ---- the model

    def begin(self, start: np.ndarray, new: np.ndarray, x: np.ndarray) -> None:
        """A pass begins."""
        inside = self._decision is not None and self._is_open(self._decision)
        here = Pass(int(start[0]), int(new[0]), len(start), inside)
        here.count(Kind("embed_tokens", LOOKUP, x.shape[:-1], x.shape, x.dtype))
        self.events.append(here)

    def product(self, kind: Kind, a: np.ndarray, b: Any, y: np.ndarray) -> None:
        """A product was computed; weights of attention are kept until all heads are."""
        here = self._pass()
        if here is None:
            return
        here.count(kind)
        if kind.name == "values" and kind.equation.startswith("BKGTS,"):
            self._parts.append(a / a.sum(axis=-1, keepdims=True))

    def note(self, name: str, x: np.ndarray) -> None:
        """An array was computed, or something was decided."""
        if name in ("embed_tokens", "output"):
            self._pass().stream.append(x)
        elif name == "attention":
            self._pass().attention.append(put_together(self._parts, x.shape))
            self._parts = []
        elif name == "process" or name.startswith("process."):
            self._shape(name, x)
        elif name in ("candidates", "ended", "beams"):
            self._list(name, x)
        elif name == "draft":
            self._guesses = x.tolist()
            self.events.append(Drafted(x.tolist()))
        elif self._decision is not None:
            self._decide(name, x)

    def _pass(self) -> Pass | None:
        """The pass that is computed now."""
        passes = (event for event in reversed(self.events) if isinstance(event, Pass))
        return next(passes, None)

    # ---- what is decided

    def _is_open(self, decision: Decision) -> bool:
        return len(decision.stages) <= self.steps

    def _shape(self, name: str, logits: np.ndarray) -> None:
        """The pipeline begins, or one of its steps is done."""
        if name == "process":
            self.settle()
            self._decision = Decision([])
            self.events.append(self._decision)
        self._decision.stages.append((name.partition(".")[2], logits))

    def _decide(self, name: str, x: np.ndarray) -> None:
        """A number was drawn, or a token chosen."""
        decision = self._decision
        if name == "u":
            decision.u += x.tolist()
        elif name == "q":
            decision.q = x
        elif name == "chosen":
            guess = self._guesses.pop(0) if self._guesses else None
            drawn = Drawn(decision.u, guess, decision.q)
            decision.rows = [choice_of(decision.stages, 0, int(x[0]), drawn)]
            decision.stages, self._decision = [], None

    def _list(self, name: str, x: np.ndarray) -> None:
        """A search lists beams; what it lists of its last distributions is shown."""
        beams = [(int(parent), int(token), score) for parent, token, score in x]
        if name == "candidates":
            self.first, self.many = self.first + self.many, len(self._rows())
        if name != "beams":
            beams = [(self.first + parent, *rest) for parent, *rest in beams]
        self.events.append(Listed(name, beams))
        if self._decision is not None:
            self._decision.listed += beams
        if name == "beams":
            self.settle()
            self.first = self.many = 0

    def _rows(self) -> np.ndarray:
        """The distributions of all rows before the first step, (B, V)."""
        return self._decision.stages[0][1]

    def settle(self) -> None:
        """Keep what is shown of a search's distributions, and let the rest go."""
        decision, self._decision = self._decision, None
        if decision is not None and decision.listed:
            here = [(p - self.first, token) for p, token, _ in decision.listed]
            decision.rows = choices_of_beams(decision.stages, here)
            decision.stages = []


def put_together(parts: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """The weights of all heads and queries, from those of blocks.

    Parameters
    ----------
    parts : list of (B, K', G, T', S') float
        In the order of `attention.blocked`: for some rows and heads, one block of
        queries after the other; then for the next heads; then for the next rows.
    shape : (B, T, H, D)
        Of what attention found.

    Returns
    -------
    (B, H, T, S) float
        None if there are no parts, or they are of another kind.
    """
    if not parts:
        return None
    B, T, H, _ = shape
    whole = np.zeros((B, H, T, max(part.shape[-1] for part in parts)), parts[0].dtype)
    b = h = t = 0
    for part in parts:
        rows, K, G, queries, S = part.shape
        if b + rows > B or h + K * G > H or t + queries > T:
            return None  # these were blocks of keys
        here = np.s_[b : b + rows, h : h + K * G, t : t + queries, :S]
        whole[here] = part.reshape(rows, K * G, queries, S)
        t += queries
        if t == T:
            h, t = h + K * G, 0
        if h == H:
            b, h = b + rows, 0
    return whole
