"""Counting what the products cost, while they run.

    with FlopCounter() as count:
        generate(model, "Once upon a time")
    print(count)

Every product of the book goes through `ops.einsum`, which shows it to each observer.
So a counter needs no list of layers, and misses nothing.  For each product it only
stores a pointer to its kind, and computes the cost when asked for it.  So counting
costs little, even beside a model whose weights displace everything else from the
processor's cache.

A text that holds some positions and gets one more is in *decode*; any other is in
*prefill*, even one that gets several tokens guessed by a draft.  A pass with texts of
both kinds is *mixed*.  A product between two passes belongs to the phase of the first.

For causal attention the counter reports the work that was done, and the s x s formula
of the textbooks: the full square, including its masked half.

Norms, rotations, softmax, SiLU and residual sums are not products.  They cost a few
operations per element, and are left out, as in every published count.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from functools import wraps
from typing import Any, NamedTuple

import numpy as np

from npllama.cost.product import (
    LOOKUP,
    NOTHING,
    Product,
    Total,
    cost,
    grouped,
    merged,
    shapes,
)
from npllama.cost.report import as_csv, as_dict, html, lines, tree
from npllama.ops import Kind, Observer, observing

# How many lines are kept before they are summed, and how many kinds before their
# shapes are forgotten: attention has new ones at every step of a text.
MOST_LINES, MOST_KINDS = 10_000, 20_000


class Pass(NamedTuple):
    """A line that marks the beginning of a pass through the model."""

    start: list[int]  # R of them, positions that a text holds before
    new: list[int]  # R of them, positions that it gets
    shape: tuple[int, ...]  # (B, T, E), of the embeddings
    dtype: np.dtype

    @property
    def phase(self) -> str:
        """One new position for a text that holds some is a step of decode."""
        steps = {start > 0 and new == 1 for start, new in zip(self.start, self.new)}
        return "mixed" if len(steps) > 1 else "decode" if True in steps else "prefill"

    @property
    def pairs(self) -> int:
        """Every new position and every one that its text then holds, masked or not."""
        return sum(new * (start + new) for start, new in zip(self.start, self.new))

    @property
    def lookup(self) -> Kind:
        """The cost of looking up the embeddings."""
        tokens = self.shape[:-1]
        return Kind("embed_tokens", LOOKUP, tokens, self.shape, self.dtype)


Places = dict[Kind, dict[str, int]]  # calls by kind and place


def _places() -> Places:
    return defaultdict(lambda: defaultdict(int))


class Attended(NamedTuple):
    """A line that marks the end of a layer's attention."""

    shape: tuple[int, ...]  # (B, T, H, D), of what it found


class Tally:
    """What one thread has counted."""

    def __init__(self) -> None:
        self.lines: list[Kind | Pass | Attended | str] = []  # not yet settled
        self.phase, self.place, self.pairs = "outside", "", 0
        # By phase; all layers have the same kinds.
        self.calls: dict[str, Places] = defaultdict(_places)
        self.squares: dict[str, int] = defaultdict(int)  # FLOPs by phase
        self.folded: list[Product] = []

    def settle(self) -> None:
        """Sum the lines that have been written so far."""
        n, here = len(self.lines), self.calls[self.phase]
        for line in self.lines[:n]:
            if isinstance(line, Kind):
                here[line][self.place] += 1
            elif isinstance(line, Attended):
                # In full: two products, of 2 D FLOPs for every pair and head.
                H, D = line.shape[2:]
                self.squares[self.phase] += 2 * 2 * D * H * self.pairs
            elif isinstance(line, Pass):
                self.phase, self.pairs = line.phase, line.pairs
                here = self.calls[self.phase]
                here[line.lookup][self.place] += 1
            else:
                self.place = line
        del self.lines[:n]
        if sum(map(len, self.calls.values())) > MOST_KINDS:
            self.fold()

    def fold(self) -> None:
        """Forget shapes, keep sums."""
        various = [p._replace(shapes=()) for p in self.products()]
        self.folded = merged(various)
        self.calls.clear()

    def products(self) -> Iterator[Product]:
        """All that was summed."""
        for phase, kinds in self.calls.items():
            for kind, places in kinds.items():
                one, three = cost(kind), shapes(kind)
                for place, n in places.items():
                    label = (phase, layer_of(place), kind.name, kind.equation)
                    yield Product(*label, three, one * n)
        yield from self.folded


def layer_of(place: str) -> int | None:
    """The number at the end of ``model.layers.3``; None elsewhere."""
    end = place.rpartition(".")[2]
    return int(end) if end.isdecimal() else None


class ThreadsTally(threading.local):
    """Writes into the calling thread's own tally."""

    def __init__(self, tallies: list[Tally], lock: threading.Lock) -> None:
        # This runs once in every thread, when it first comes here.
        self.lock, self.tally = lock, Tally()
        self.write = self.tally.lines.append
        self.blocks: list[ExitStack] = []
        tallies.append(self.tally)


class FlopCounter(Observer):
    """Counts every product computed inside its ``with`` block.

    Counters may be nested, and several threads may use them at a time; each counts
    separately.  A new thread is not inside the block: pass its work through `carried`.
    Do not keep a counter open across the ``yield`` of a generator, because it would
    also count what the consumer computes in between.
    """

    def __init__(self) -> None:
        self._tallies: list[Tally] = []
        self._lock = threading.Lock()
        self._mine = ThreadsTally(self._tallies, self._lock)

    def __enter__(self) -> FlopCounter:
        block = ExitStack()
        block.enter_context(observing(self))
        self._mine.blocks.append(block)
        return self

    def __exit__(self, *_: object) -> None:
        self._mine.blocks.pop().close()

    # ---- what it sees

    def begin(self, start: np.ndarray, new: np.ndarray, x: np.ndarray) -> None:
        """Write down that a pass begins."""
        mine = self._mine
        mine.write(Pass(start.tolist(), new.tolist(), x.shape, x.dtype))
        if len(mine.tally.lines) > MOST_LINES:
            with self._lock:
                mine.tally.settle()

    def enter(self, place: str) -> None:
        """Write down where the model is."""
        self._mine.write(place)

    def product(self, kind: Kind, a: np.ndarray, b: Any, y: np.ndarray) -> None:
        """Write down which kind of product was computed."""
        self._mine.write(kind)

    def note(self, name: str, x: np.ndarray) -> None:
        """Write down that a layer has attended."""
        if name == "attention":
            self._mine.write(Attended(x.shape))

    # ---- what was counted

    def settle(self) -> None:
        """Sum the lines; this happens by itself when a result is asked for."""
        with self._lock:
            for tally in self._tallies:
                tally.settle()

    def products(self) -> list[Product]:
        """All products, by phase, layer, name and shapes, of all threads together."""
        self.settle()
        with self._lock:
            return merged(p for tally in self._tallies for p in tally.products())

    def by(self, *fields: str) -> dict[Any, Total]:
        """Sums by "name" (the component), "layer", "phase", "equation" or "shapes".

        With several, such as ``by("phase", "name")``, keys are tuples.
        """
        return grouped(self.products(), *fields)

    @property
    def total(self) -> Total:
        """The sum of all."""
        return sum((p.total for p in self.products()), NOTHING)

    def attention(self) -> dict[str, dict[str, int]]:
        """FLOPs of `scores` and `values`, by phase, counted both ways.

        "executed" is the work of the products; "square" is the s x s formula: every
        new position meets every one seen, and half is masked.
        """
        found: dict[str, dict[str, int]] = {}
        for (phase, name), sums in self.by("phase", "name").items():
            if name in ("scores", "values"):
                both = found.setdefault(phase, {"executed": 0, "square": 0})
                both["executed"] += sums.flops
        with self._lock:
            squares = [item for t in self._tallies for item in t.squares.items()]
        for phase, flops in squares:
            both = found.setdefault(phase, {"executed": 0, "square": 0})
            both["square"] += flops
        return found

    # ---- as a tree

    def text(self, each_layer: bool = False) -> str:
        """A table for people: phases, layers, components."""
        rows = [*lines(tree(self.products(), each_layer))]
        for phase, both in self.attention().items():
            rows.append(
                f"attention in {phase}: {both['executed']:,} FLOPs executed; "
                f"the full square, by the s x s formula, has {both['square']:,}"
            )
        for dtype, size in self.total.bytes.items():
            rows.append(f"bytes moved as {dtype}: {size:,}")
        return "\n".join(rows)

    __str__ = text

    def __repr__(self) -> str:
        total = self.total
        return (
            f"FlopCounter({total.calls:,} products, {total.flops:,} FLOPs, "
            f"{total.mops:,} elements moved)"
        )

    def _repr_html_(self) -> str:
        return html(tree(self.products()))

    def json(self, each_layer: bool = False) -> dict[str, Any]:
        """The same as nested dictionaries."""
        root = as_dict(tree(self.products(), each_layer))
        return root | {"attention": self.attention()}

    def csv(self) -> str:
        """A line for every product."""
        return as_csv(self.products())


def carried(function: Callable) -> Callable:
    """The same function, with the observers of this thread in any other.

    Observers belong to the context in which their block was entered, and a new thread
    (of a pool, too) starts with an empty context:

        with FlopCounter() as count, ThreadPoolExecutor() as pool:
            list(pool.map(carried(work), parts))
    """
    context = copy_context()

    @wraps(function)
    def inside(*args, **kwargs):
        return context.copy().run(function, *args, **kwargs)

    return inside
