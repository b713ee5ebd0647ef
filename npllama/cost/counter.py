"""Counting what the products cost, while they run.

    with FlopCounter() as count:
        generate(model, "Once upon a time")
    print(count)

Every product of the book goes through `ops.einsum`, which shows it to whoever is
watching: a counter needs no list of layers to hook into, and misses nothing.  It
does as little as can be at each product, it adds one to the number of those with
these shapes; what they cost is worked out when somebody asks.

A pass through the model that brings one new token to rows that all hold some is
*decode*; any other is *prefill*, also one over several tokens that a draft has
guessed.  A product between two passes belongs to the phase of the first.

Of causal attention the counter tells what was done, and what the s x s formula of
the textbooks would say: the full square, its masked half included.

Norms, rotations, softmax, SiLU and residual sums are no products.  They cost a few
operations per element that passes through, and are left out, as in every published
count.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from functools import lru_cache, wraps
from typing import Any

import numpy as np

from npllama.cost.product import (
    LOOKUP,
    NOTHING,
    Operands,
    Product,
    Total,
    cost,
    grouped,
    merged,
    shapes,
)
from npllama.cost.report import as_csv, as_dict, lines, tree
from npllama.ops import observing


@lru_cache(maxsize=16384)
def layer_of(place: str) -> int | None:
    """The number at the end of ``model.layers.3``; None elsewhere."""
    end = place.rpartition(".")[2]
    return int(end) if end.isdecimal() else None


Place = tuple[str, "int | None"]  # phase and layer


class Tally:
    """What one thread has counted, and where in the model it is."""

    def __init__(self) -> None:
        self.place: Place = ("outside", None)
        self.seen = 0  # positions that the rows of this pass will hold, summed
        self.calls: dict[Place, dict[tuple, int]] = defaultdict(
            lambda: defaultdict(int)
        )
        self.here = self.calls[self.place]
        self.squares: dict[Place, int] = defaultdict(int)
        self.folded: list[Product] = []

    def products(self) -> Iterator[Product]:
        """All that was counted."""
        for (phase, layer), calls in dict(self.calls).items():
            for key, n in dict(calls).items():
                kind = Operands(*key)
                name, equation = kind[:2]
                yield Product(phase, layer, name, equation, shapes(kind), cost(kind, n))
        yield from self.folded

    def fold(self) -> None:
        """Keep sums, forget shapes."""
        various = [p._replace(shapes=()) for p in self.products()]
        self.folded = merged(various)
        for calls in self.calls.values():
            calls.clear()


class Own(threading.local):
    """A thread's own tally, put on a list when the thread first asks for it."""

    def __init__(self, tallies: list[Tally]) -> None:
        self.tally = Tally()
        tallies.append(self.tally)
        self.blocks: list[ExitStack] = []


# Attention has new shapes at every step of a text; so many are kept apart.
MOST_SHAPES = 100_000


class FlopCounter:
    """Counts every product computed inside its ``with`` block.

    Counters may be nested, and used by several threads at a time; each counts for
    itself.  A new thread is inside no block: give it its work through `carried`.
    """

    def __init__(self) -> None:
        self._tallies: list[Tally] = []
        self._own = Own(self._tallies)
        self._lock = threading.Lock()

    def __enter__(self) -> FlopCounter:
        block = ExitStack()
        block.enter_context(observing(self))
        self._own.blocks.append(block)
        return self

    def __exit__(self, *_: object) -> None:
        self._own.blocks.pop().close()

    # ---- watching

    def begin(self, start: np.ndarray, T: int) -> None:
        """A pass over `T` new positions of every row begins."""
        tally, starts = self._own.tally, start.tolist()
        phase = "decode" if T == 1 and 0 not in starts else "prefill"
        tally.place = phase, None
        tally.seen = sum(starts) + T * len(starts)
        if sum(map(len, tally.calls.values())) > MOST_SHAPES:
            with self._lock:
                tally.fold()

    def enter(self, place: str) -> None:
        """What follows belongs to another layer."""
        tally = self._own.tally
        tally.place = tally.place[0], layer_of(place)
        tally.here = tally.calls[tally.place]

    def product(self, name: str, equation: str, a, b, y) -> None:
        """Count one product; `Operands` names the fields."""
        here = self._own.tally.here
        here[name, equation, a.shape, b.shape, a.dtype, b.dtype] += 1

    def note(self, name: str, x: np.ndarray) -> None:
        """Count the lookup of embeddings, and the square of attention."""
        tally = self._own.tally
        if name == "embed_tokens":
            tally.here[name, LOOKUP, x.shape[:-1], x.shape, x.dtype, x.dtype] += 1
        elif name == "attention":
            _, T, H, D = x.shape
            # Scores and values: two products of T queries with all that is seen.
            tally.squares[tally.place] += 2 * 2 * T * tally.seen * H * D

    # ---- what was counted

    def products(self) -> list[Product]:
        """All products, by phase, layer, name and shapes, of all threads together."""
        with self._lock:
            return merged(p for tally in list(self._tallies) for p in tally.products())

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

        "executed" is what the products did; "square" what the s x s formula says:
        every new position meets every one seen, and half is masked.
        """
        found: dict[str, dict[str, int]] = {}
        for (phase, name), sums in self.by("phase", "name").items():
            if name in ("scores", "values"):
                both = found.setdefault(phase, {"executed": 0, "square": 0})
                both["executed"] += sums.flops
        for tally in list(self._tallies):
            for (phase, _), flops in dict(tally.squares).items():
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

    def json(self, each_layer: bool = False) -> dict[str, Any]:
        """The same as nested dictionaries."""
        root = as_dict(tree(self.products(), each_layer))
        return root | {"attention": self.attention()}

    def csv(self) -> str:
        """A line for every product."""
        return as_csv(self.products())


def carried(function: Callable) -> Callable:
    """The same function, watched in any thread as it would be watched here.

    Observers belong to the context in which their block was entered, and a thread,
    also one of a pool, starts with an empty one:

        with FlopCounter() as count, ThreadPoolExecutor() as pool:
            list(pool.map(carried(work), parts))
    """
    context = copy_context()

    @wraps(function)
    def inside(*args, **kwargs):
        return context.copy().run(function, *args, **kwargs)

    return inside
