"""Pictures of cost, precision and memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npllama.book.svg import Figure, box, disc, drawing, line, path, text
from npllama.config import preset
from npllama.cost import HARDWARE, dtypes, predict
from npllama.cost.roofline import Phase
from npllama.files.checkpoint import load
from npllama.golden.compare import compare
from npllama.golden.record import record
from npllama.golden.trace import read_trace
from npllama.serving.blocks import chain, fork, grow, match, new_blocks, publish, take
from npllama.serving.tables import measured_waste
from npllama.weights import Model


class Axes(NamedTuple):
    """Two logarithmic axes: powers of ten at the edges, and where they are drawn."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    width: float
    top: float
    height: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The point of two numbers."""
        (x0, x1), (y0, y1) = self.x, self.y
        across = (math.log10(x) - x0) / (x1 - x0)
        down = (y1 - max(math.log10(y), y0)) / (y1 - y0)
        return self.left + self.width * across, self.top + self.height * down

    def ticks(self, across: Sequence[float], up: Sequence[float]) -> list[str]:
        """Numbers along both axes."""
        parts = []
        for x in across:
            px, bottom = self.at(x, 10 ** self.y[0])
            parts.append(line(px, bottom, px, bottom + 4, "soft"))
            parts.append(text(px, bottom + 18, f"{x:,g}", "middle"))
        for y in up:
            left, py = self.at(10 ** self.x[0], y)
            parts.append(line(left, py, left + self.width, py))
            parts.append(text(left - 8, py + 4, f"{y:g}", "end"))
        return parts


def roofline(model: Model) -> Figure:
    """Which operators of llama-3-8b are under which part of an A100's roof."""
    machine, kinds = HARDWARE["a100-80g"], dtypes("fp16")
    found = predict(preset("llama-3-8b"), machine, 1, 2048, 128, kinds, "fused")
    roof, ridge = machine.rate(kinds.arithmetic), machine.ridge(kinds.arithmetic)
    axes = Axes((-1, 4), (-1.2, 2.8), 60, 370, 30, 220)
    slope = machine.bandwidth / 1e12
    edge = [(0.1, 0.1 * slope), (ridge, roof / 1e12), (1e4, roof / 1e12)]
    parts = axes.ticks([1, 10, 100, 1000, 1e4], [0.1, 1, 10, 100])
    parts.append(path([axes.at(*p) for p in edge], "soft", stroke_width=2))
    parts.append(text(0, 14, "TFLOP/s"))
    parts.append(text(60 + 185, 290, "FLOPs per byte", "middle"))
    x, y = axes.at(12, 12 * slope)
    parts.append(text(x + 12, y + 12, "memory is the limit"))
    x, y = axes.at(1e4, roof / 1e12)
    parts.append(text(x, y - 8, "arithmetic is the limit", "end"))
    parts += marks_of(axes, found.prefill, "link", "prefill of 2,048 tokens", 60)
    parts += marks_of(axes, found.decode, "hot", "decode, one token", 78)
    parts += shares_of(found.prefill, "link", "prefill", 470)
    parts += shares_of(found.decode, "hot", "decode", 630)
    return Figure(
        drawing(
            790, 300, parts, "Roofline of llama-3-8b on an A100, and shares of time"
        ),
        "llama-3-8b in float16 on one A100. Under the slope an operator waits for memory, "
        "under the flat roof for arithmetic. A prefill's products are at the roof; those "
        "of one token are on the slope, at one FLOP per byte, so a batch is nearly free. "
        "On the right, which operators take the time.",
    )


def marks_of(axes: Axes, part: Phase, fill: str, name: str, y: float) -> list[str]:
    """A disc (prefill) or a square (decode) for every operator, and the legend."""
    round_ = fill == "link"
    points = [(axes.at(op.intensity, op.flops / op.seconds / 1e12), op)
              for op in part.operators if op.flops]  # fmt: skip
    parts = [text(axes.left + 26, y + 4, name)]
    spots = [((axes.left + 14, y), name)]
    for at, op in points:
        spots.append((at, f"{op.name}: {op.seconds / part.seconds:.0%} of the time"))
    for (px, py), tip in spots:
        parts.append(
            disc(px, py, 4.5, fill, tip)
            if round_
            else box(px - 4, py - 4, 8, 8, fill, tip)
        )
    return parts


def shares_of(part: Phase, fill: str, name: str, x: float) -> list[str]:
    """The operators that take longest, as bars."""
    parts = [text(x, 14, f"{name}, share of time")]
    ops = sorted(part.operators, key=lambda op: -op.seconds)[:9]
    for row, op in enumerate(ops):
        share, y = op.seconds / part.seconds, 24 + row * 28
        parts.append(box(x, y, max(1.0, 300 * share), 9, fill))
        parts.append(text(x, y + 20, f"{op.name} {share:.0%}"))
    return parts


def measured_errors(model: Model) -> list[tuple[str, float, float]]:
    """(name, error, noise floor) of every tensor of a prefill in float32."""
    exact = load("stories", "float64")
    prompt = np.array([model.tokenizer.encode("Once upon a time there was a fox.")])
    with tempfile.TemporaryDirectory() as folder:
        golden, plain = Path(folder) / "golden.npz", Path(folder) / "plain.npz"
        record(exact, prompt, golden, plain=model)
        record(model, prompt, plain)
        truth, mine = read_trace(golden), read_trace(plain)
        floors = truth.meta["floor"]["float32"]
        rows = compare(truth, mine, floors, "float32").rows
    return [
        (row.name.removeprefix("prefill/"), row.measures.error, row.floor)
        for row in rows
        if row.name.startswith("prefill/") and row.measures and row.floor
    ]


def errors(model: Model) -> Figure:
    """The error of float32 through the blocks, beside the noise floor."""
    values = measured_errors(model)
    least = min(min(error or 1, floor) for _, error, floor in values)
    most = max(floor for _, _, floor in values)
    axes = Axes(
        (0, 1), (math.log10(least) - 0.2, math.log10(most) + 0.6), 60, 650, 20, 220
    )

    def at(i: int, error: float) -> tuple[float, float]:
        return axes.at(10 ** (i / (len(values) - 1)), error)

    parts = axes.ticks([], [1e-8, 1e-7, 1e-6] if least < 1e-7 else [1e-7, 1e-6])
    parts.append(path([at(i, f) for i, (_, _, f) in enumerate(values)], "soft"))
    above = [at(i, 2 * f) for i, (_, _, f) in enumerate(values)]
    parts.append(path(above, "hot", stroke_dasharray="4 3"))
    for i, (name, error, _) in enumerate(values):
        parts.append(disc(*at(i, error), 3, tip=f"{name}: {error:.1e}"))
    for layer in range(model.config.num_hidden_layers):
        inside = [i for i, v in enumerate(values) if f"layers.{layer}." in v[0]]
        parts.append(line(at(inside[0], 1)[0], 20, at(inside[0], 1)[0], 240))
        middle = at(inside[len(inside) // 2], 1)[0]
        parts.append(text(middle, 258, f"block {layer}", "middle"))
    return Figure(
        drawing(730, 265, parts, "Error of float32, tensor by tensor, and its floor"),
        "Every tensor of one prefill, in the order of computation, in float32 against "
        "float64. Dots: the error, relative to the tensor. Line: the noise floor, how "
        "wrong a right program may be. Dashed: twice that, above which a verdict says "
        "“outside”.",
    )


def waste(model: Model) -> Figure:
    """Where the places of a cache go, by four ways of keeping it."""
    found = measured_waste("sharegpt")
    names = ("token states", "reserved", "never used", "free, too small")
    left, width = 90.0, 560.0
    marks = [{"fill": "link"}, {"fill": "mark"}, {"fill": "line"}, {"fill": "none"}]
    parts = []
    for i, name in enumerate(names):
        x = left + i * 145
        parts.append(box(x, 4, 12, 12, stroke="var(--soft)", **marks[i]))
        parts.append(text(x + 18, 15, name))
    for row, (way, shares) in enumerate(found.items()):
        x, y = float(left), 34 + row * 40
        parts.append(text(0, y + 19, way))
        for i, share in enumerate(shares[:4]):
            tip = f"{way}, {names[i]}: {share:.1%}"
            parts.append(
                box(x, y, width * share, 28, tip=tip, stroke="var(--soft)", **marks[i])
            )
            if share > 0.06:
                fill = "fill:var(--paper,#fff)" if i == 0 else ""
                at = x + width * share / 2
                parts.append(text(at, y + 19, f"{share:.0%}", "middle", style=fill))
            x += width * share
    return Figure(
        drawing(720, 200, parts, "Where the places of a cache go"),
        "The same traffic (conversations of ShareGPT's lengths) on the same memory. Max "
        "reserves the whole context for each text, Pow2 the next power of two, Oracle "
        "knows the length in advance; pages waste only the end of each text's last page.",
    )


def pages(model: Model) -> Figure:
    """Three texts on pages: a shared beginning, and a page copied on writing."""
    blocks = new_blocks(10, 4)
    first = list(range(10))
    names = chain(first, 4)
    one = take(blocks, (), 10)
    publish(blocks, one, names)
    second = [*first[:8], 90, 91, 92]
    two = take(blocks, match(blocks, chain(second, 4), 10), 11)
    three, copies = grow(blocks, fork(blocks, one), 10, 11)
    tables = [("text 1, 10 tokens", one, 10), ("text 2, begins alike", two, 11),
              ("text 3, split off text 1", three, 11)]  # fmt: skip
    parts = [text(0, 14, "block tables"), text(430, 14, "the pool")]
    where = {
        page: (430 + (page % 2) * 110, 30 + (page // 2) * 44) for page in range(10)
    }
    for page, (x, y) in where.items():
        held = blocks.held[page]
        fill = "mark" if held else "none"
        tip = f"page {page}: held by {held}"
        parts.append(box(x, y, 96, 30, fill, tip, stroke="var(--soft)"))
        parts.append(text(x + 8, y + 20, f"page {page}"))
        parts.append(text(x + 88, y + 20, f"× {held}" if held else "free", "end"))
    for row, (name, table, length) in enumerate(tables):
        y = 40 + row * 78
        parts.append(text(0, y - 4, f"{name}"))
        for i, page in enumerate(table):
            x = i * 62
            parts.append(box(x, y + 4, 54, 28, "none", stroke="var(--link)"))
            parts.append(text(x + 27, y + 23, str(page), "middle"))
            used = min(4, length - 4 * i)
            parts.append(text(x + 27, y + 47, f"{used} of 4", "middle"))
    said = ", ".join(f"{a} to {b}" for a, b in copies) or "none"
    parts.append(text(0, 270, f"copied on writing: page {said}"))
    return Figure(
        drawing(660, 285, parts, "Three texts on pages"),
        "A table says which page holds positions 0 to 3, 4 to 7 and so on. Text 2 finds "
        "the two full pages that it begins with, by their names. Text 3 is a copy of text "
        "1: all pages are held twice, until it writes into the last one, which is copied "
        "first. × n: how many tables hold a page.",
    )
