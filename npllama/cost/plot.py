"""The roofline, drawn; only this needs matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from npllama.cost.curves import Point
from npllama.cost.hardware import Hardware
from npllama.cost.roofline import Dtypes, Phase, Prediction, Timed
from npllama.files.whole import check_place, new_file

MARKS, COLOURS = {"prefill": "o", "decode": "s"}, {"prefill": "C0", "decode": "C1"}
# Where names are put, so that none covers another: those of decode below the slope, those
# of a prefill above it; under the flat roof in turns below and above.
BESIDE: dict[str, Any] = {"xytext": (11, -9), "ha": "left", "va": "top"}
ABOVE: dict[str, Any] = {"xytext": (-9, 9), "ha": "right", "va": "bottom"}
FLAT: tuple[dict[str, Any], ...] = (
    {"xytext": (0, -13), "ha": "center", "va": "top"},
    {"xytext": (0, 13), "ha": "center", "va": "bottom"},
)
# Further off, for names that would still cover others.
OFF: tuple[dict[str, Any], ...] = (
    {"xytext": (0, -55), "ha": "center", "va": "top"},
    {"xytext": (0, -95), "ha": "center", "va": "top"},
    {"xytext": (-25, 30), "ha": "right", "va": "bottom"},
)
NEAR = 0.35  # marks of one phase that are closer, in powers of ten, share their names
LARGEST = 400.0  # area of a mark that takes all the time
FORMATS = ("png", "svg", "pdf")
BOUND_MARKS = {"memory": "s", "compute": "o", "link": "^", "overhead": "D"}
XLABELS = {"batch": "rows", "context": "positions of the prompt"}


class Mark(NamedTuple):
    """Operators of one phase that lie near each other under the roof."""

    names: tuple[str, ...]
    intensity: float  # FLOPs per byte
    rate: float  # FLOP/s
    share: float  # of the phase's time


def marks(part: Phase) -> list[Mark]:
    """The products of a phase, by their place under the roof."""
    found: list[Mark] = []
    for op in sorted((o for o in part.operators if o.flops), key=_intensity):
        rate, share = op.flops / op.seconds, op.seconds / part.seconds
        last = found[-1] if found else None
        if last and math.log10(op.intensity / last.intensity) < NEAR:
            names, together = (*last.names, op.name), last.share + share
            found[-1] = last._replace(names=names, share=together)
        else:
            found.append(Mark((op.name,), op.intensity, rate, share))
    return found


def _intensity(op: Timed) -> float:
    return op.intensity


def draw_operators(axes: Any, phases: dict[str, Phase], ridge: float) -> None:
    """Draw one mark for operators near each other, as large as their share of time."""
    for name, part in phases.items():
        colour = COLOURS[name]
        axes.scatter([], [], marker=MARKS[name], color=colour, label=name)
        for turn, mark in enumerate(marks(part)):
            place = mark.intensity, mark.rate
            size = 25 + LARGEST * mark.share
            axes.scatter(*place, size, colour, marker=MARKS[name], zorder=3, alpha=0.8)
            slope = ABOVE if name == "prefill" else BESIDE
            free = slope if mark.intensity < ridge else FLAT[turn % 2]
            axes.annotate(
                fill(", ".join(mark.names), 20),
                place,
                textcoords="offset points",
                fontsize=7,
                zorder=4,
                **free,
            )


def move_apart(axes: Any) -> None:
    """Put names elsewhere that would cover other words."""
    axes.figure.draw_without_rendering()
    names = [text for text in axes.texts if hasattr(text, "xyann")]
    others = [*(t for t in axes.texts if t not in names), axes.get_legend()]
    taken = [other.get_window_extent() for other in others]
    for name in names:
        for place in (None, BESIDE, ABOVE, *FLAT, *OFF):
            if place:
                name.xyann = place["xytext"]
                name.set(ha=place["ha"], va=place["va"])
            box = name.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def draw_roof(axes: Any, machine: Hardware, kinds: Dtypes, reach: list[float]) -> None:
    """Memory's slope, arithmetic's ceiling, the ridge between them, and their names."""
    roof, ridge = machine.rate(kinds.arithmetic), machine.ridge(kinds.arithmetic)
    low, high = min(ridge / 8, *reach) / 4, max(ridge, *reach) * 8
    axes.plot([low, ridge, high], [low * machine.bandwidth, roof, roof], color="0.3")
    axes.axvline(ridge, color="0.7", linestyle=":")
    axes.axvspan(low, ridge, color="0.96", zorder=0)
    axes.set(xlim=(low, high), ylim=(low * machine.bandwidth / 2, roof * 6))
    words = {"memory is the limit": low * 1.15, "arithmetic is the limit": ridge * 1.15}
    for said, x in words.items():
        axes.text(x, roof * 4.4, said, ha="left", va="center", fontsize=9, color="0.3")
    middle = math.sqrt(low * machine.bandwidth * roof)
    axes.text(ridge * 1.15, middle, f"ridge {ridge:.0f}", color="0.3")


def draw_shares(axes: Any, name: str, part: Phase) -> None:
    """The share of the time that each operator of a phase takes, as bars."""
    shares = {op.name: op.seconds / part.seconds for op in part.operators}
    if part.between:
        shares["between products"] = part.between / part.seconds
    shares = dict(sorted(shares.items(), key=lambda item: item[1]))
    bars = axes.barh(
        list(shares), [100 * s for s in shares.values()], color=COLOURS[name]
    )
    axes.bar_label(bars, [f"{100 * s:.0f}%" for s in shares.values()], fontsize=7)
    axes.tick_params(labelsize=7)
    axes.set(
        title=f"{name}: share of {seconds_text(part.seconds)}",
        xlim=(0, 125 * max(shares.values())),
    )
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def seconds_text(seconds: float) -> str:
    """Seconds, or milliseconds below one."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


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
    figure = roofline_figure(machine, kinds, found, title)
    with new_file(path) as file:
        figure.savefig(file, format=ending)


def roofline_figure(
    machine: Hardware, kinds: Dtypes, found: Prediction, title: str
) -> Any:
    """The roof with its operators, and beside it who takes the time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    grid = figure.subplot_mosaic(
        [["roof", "prefill"], ["roof", "decode"]], width_ratios=[2.2, 1]
    )
    phases = {"prefill": found.prefill, "decode": found.decode}
    axes = grid["roof"]
    axes.set(xscale="log", yscale="log", title=title)
    reach = [mark.intensity for part in phases.values() for mark in marks(part)]
    draw_roof(axes, machine, kinds, reach)
    draw_operators(axes, phases, machine.ridge(kinds.arithmetic))
    axes.set(xlabel="FLOPs per byte", ylabel="FLOP/s at most; larger marks take longer")
    axes.legend(loc="lower right")
    for name, part in phases.items():
        draw_shares(grid[name], name, part)
    move_apart(axes)
    return figure
