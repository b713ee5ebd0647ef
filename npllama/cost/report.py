"""Counts as a tree: for people, as JSON, as CSV.

The tree follows the model: all, then each phase, then the parts outside the blocks and
the blocks themselves (together, or one by one), then each component.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from npllama.cost.product import NOTHING, Product, Total, grouped


class Node(NamedTuple):
    """A part of the model, what it costs, and its own parts."""

    name: str
    total: Total
    parts: tuple[Node, ...] = ()


def tree(products: Sequence[Product], each_layer: bool = False) -> Node:
    """Arrange products by phase, layer and name.

    Parameters
    ----------
    each_layer : bool
        Show every layer; by default they are summed.
    """
    phases = [
        _node(phase, _layers([p for p in products if p.phase == phase], each_layer))
        for phase in grouped(products, "phase")
    ]
    return _node("total", phases)


def _layers(products: Sequence[Product], each_layer: bool) -> Iterator[Node]:
    """The parts of one phase, in the order in which they first ran."""
    numbers = [n for n in grouped(products, "layer") if n is not None]
    outside = [p for p in products if p.layer is None]
    leaves = [Node(name, cost) for name, cost in grouped(outside, "name").items()]
    yield from (leaf for leaf in leaves if leaf.name == "embed_tokens")
    for n in numbers if each_layer else numbers[:1]:
        inside = [
            p for p in products if (p.layer == n if each_layer else p.layer is not None)
        ]
        name = f"layer {n}" if each_layer else f"{len(numbers)} layers"
        parts = [Node(name, cost) for name, cost in grouped(inside, "name").items()]
        yield _node(name, parts)
    yield from (leaf for leaf in leaves if leaf.name != "embed_tokens")


def _node(name: str, parts: Iterable[Node]) -> Node:
    parts = tuple(parts)
    return Node(name, sum((part.total for part in parts), NOTHING), parts)


# ---- for people -------------------------------------------------------------

HEADINGS = ("", "calls", "FLOPs", "share", "elements moved", "FLOPs/element")


def lines(root: Node) -> Iterator[str]:
    """The tree as a table, a line per node."""
    rows = [HEADINGS, *_rows(root, max(root.total.flops, 1), 0)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *numbers in rows:
        cells = [text.rjust(width) for text, width in zip(numbers, widths[1:])]
        yield "  ".join([name.ljust(widths[0]), *cells])


def html(root: Node) -> str:
    """The tree as a table for a notebook."""
    headings = "".join(f"<th>{name}" for name in HEADINGS)
    rows = [
        f"<tr><td><pre>{name}</pre>" + "".join(f"<td>{number}" for number in numbers)
        for name, *numbers in _rows(root, max(root.total.flops, 1), 0)
    ]
    return f"<table><tr>{headings}{''.join(rows)}</table>"


def _rows(node: Node, flops: int, depth: int) -> Iterator[tuple[str, ...]]:
    cost = node.total
    yield (
        "  " * depth + node.name,
        f"{cost.calls:,}",
        f"{cost.flops:,}",
        f"{100 * cost.flops / flops:.1f}%",
        f"{cost.mops:,}",
        f"{cost.intensity:.2f}",
    )
    for part in node.parts:
        yield from _rows(part, flops, depth + 1)


# ---- for programs -----------------------------------------------------------


def as_dict(node: Node) -> dict[str, Any]:
    """The tree as nested dictionaries, ready for JSON."""
    cost = node.total
    data = {"name": node.name, **cost._asdict(), "mops": cost.mops}
    data |= {"flops_per_element": cost.intensity, "flops_per_byte": cost.byte_intensity}
    return data | (
        {"parts": [as_dict(part) for part in node.parts]} if node.parts else {}
    )


COLUMNS = "phase layer name equation shapes calls flops read written kept bytes".split()


def as_csv(products: Iterable[Product]) -> str:
    """A line per product; shapes as ``1x5x288 768x288 1x5x768``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for p in products:
        shapes = " ".join("x".join(map(str, shape)) or "1" for shape in p.shapes)
        layer = "" if p.layer is None else p.layer
        cost = p.total
        numbers = (*cost[:5], sum(cost.bytes.values()))
        writer.writerow([p.phase, layer, p.name, p.equation, shapes, *numbers])
    return text.getvalue()
