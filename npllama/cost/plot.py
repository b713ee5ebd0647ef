"""The roofline, drawn; only this needs matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npllama.cost.curves import Point
from npllama.cost.hardware import Hardware
from npllama.cost.roofline import Dtypes, Phase, Prediction
from npllama.files.whole import check_place, new_file

MARKS = {"prefill": "o", "decode": "s"}
# Where a name is put: below the mark of prefill, to the right of that of decode.
PLACES: dict[str, dict[str, Any]] = {
    "prefill": {"xytext": (0, -8), "ha": "center", "va": "top"},
    "decode": {"xytext": (24, 0), "ha": "left", "va": "center"},
}
FORMATS = ("png", "svg", "pdf")
BOUND_MARKS = {"memory": "s", "compute": "o", "link": "^", "overhead": "D"}
XLABELS = {"batch": "rows", "context": "positions of the prompt"}


def marks(part: Phase) -> dict[tuple[float, float], list[str]]:
    """{(FLOPs per byte, FLOP/s): names}; those near each other are one."""
    found: dict[float, tuple[tuple[float, float], list[str]]] = {}
    for op in part.operators:
        if op.flops:
            near = round(5 * math.log10(op.intensity))
            place = (op.intensity, op.flops / op.seconds)
            found.setdefault(near, (place, []))[1].append(op.name)
    return dict(found.values())


def draw_operators(axes: Any, phases: dict[str, Phase]) -> None:
    """Draw one mark for similar operators, and list their names below it."""
    for name, part in phases.items():
        groups = marks(part)
        x, y = zip(*groups)
        axes.scatter(x, y, marker=MARKS[name], label=name, zorder=3)
        for place, names in groups.items():
            axes.annotate(
                "\n".join(names),
                place,
                textcoords="offset points",
                fontsize=7,
                **PLACES[name],
            )


def draw_roof(axes: Any, machine: Hardware, kinds: Dtypes, reach: list[float]) -> None:
    """Memory's slope, arithmetic's ceiling, and the ridge between them."""
    roof, ridge = machine.rate(kinds.arithmetic), machine.ridge(kinds.arithmetic)
    low, high = min(ridge / 8, *reach) / 2, max(ridge, *reach) * 4
    axes.plot([low, ridge, high], [low * machine.bandwidth, roof, roof], color="0.3")
    axes.axvline(ridge, color="0.7", linestyle=":")
    axes.annotate(
        f"ridge {ridge:.0f}",
        (ridge, low * machine.bandwidth),
        (4, 0),
        textcoords="offset points",
    )


def ending_of(path: str | os.PathLike) -> str:
    """The format that a name asks for.

    Raises
    ------
    ValueError
        If that is none that can be drawn, or if the folder is missing.
    """
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise ValueError(f"{path}: the name must end in .png, .svg or .pdf")
    check_place(path)
    return ending


def draw_curve(
    path: str | os.PathLike, points: Sequence[Point], over: str, title: str
) -> None:
    """Write a picture of speed over the batch or the context.

    Raises
    ------
    ImportError, ValueError
        As for `draw_roofline`.
    """
    ending = ending_of(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    size = [getattr(p, over) for p in points]
    axes.plot(size, [p.rate for p in points], color="0.3")
    for bound, mark in BOUND_MARKS.items():
        some = [p for p in points if p.fits and p.bound == bound]
        if some:
            x, y = [getattr(p, over) for p in some], [p.rate for p in some]
            axes.scatter(x, y, marker=mark, label=f"bound by {bound}", zorder=3)
    lost = [p for p in points if not p.fits]
    if lost:
        x, y = [getattr(p, over) for p in lost], [p.rate for p in lost]
        axes.scatter(x, y, marker="x", color="k", label="does not fit", zorder=3)
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel=XLABELS[over], ylabel="tokens per second, all rows")
    axes.legend()
    with new_file(path) as file:
        figure.savefig(file, format=ending)


def draw_roofline(
    path: str | os.PathLike,
    machine: Hardware,
    kinds: Dtypes,
    found: Prediction,
    title: str,
) -> None:
    """Write a picture of every operator under the roof; png, svg or pdf by the name.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the name ends in no format that can be drawn, or its folder is missing.
    """
    ending = ending_of(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    phases = {"prefill": found.prefill, "decode": found.decode}
    reach = [x for part in phases.values() for x, _ in marks(part)]
    draw_roof(axes, machine, kinds, reach)
    draw_operators(axes, phases)
    axes.set(xscale="log", yscale="log", title=title)
    axes.margins(y=0.2)
    axes.set(xlabel="FLOPs per byte", ylabel="FLOP/s at most")
    axes.legend(loc="upper left")
    with new_file(path) as file:
        figure.savefig(file, format=ending)
