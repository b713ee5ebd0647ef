"""Predictions as tables of text, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from npllama.cost.curves import Point
from npllama.cost.formulas import Operator, total
from npllama.cost.roofline import Phase

FLOPS_HEAD = ("", "FLOPs", "share", "elements moved", "FLOPs/element")
ROOF_HEAD = ("", "FLOPs", "bytes", "FLOPs/byte", "time", "share", "bound by")
CURVE_HEAD = ("rows", "context", "first token", "per token", "tokens/s", "bound by")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text: names on the left, figures on the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(cells: Sequence[str]) -> str:
        figures = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))
        return "  ".join([cells[0].ljust(widths[0]), *figures])

    return "\n".join(map(line, rows))


def number_text(value: float | int | None) -> str:
    """A number for people; None means never."""
    if value is None:
        return "never"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def time_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-9:.3g} ns"


# ---- operators --------------------------------------------------------------


def operator_dict(op: Operator) -> dict[str, Any]:
    """An operator, and what follows from it, for JSON."""
    return op._asdict() | {"mops": op.mops, "flops_per_element": _intensity(op)}


def _intensity(op: Operator) -> float:
    """FLOPs per element moved; 0 where nothing is."""
    return op.intensity if op.mops else 0.0


def operator_table(ops: Sequence[Operator]) -> str:
    """A line for each operator, and one for their sum."""
    whole = total(ops)
    rows = [
        (
            op.name,
            f"{op.flops:,}",
            f"{100 * op.flops / max(whole.flops, 1):.1f}%",
            f"{op.mops:,}",
            f"{_intensity(op):.2f}",
        )
        for op in (*ops, whole)
    ]
    return aligned([FLOPS_HEAD, *rows])


# ---- phases under a roof ----------------------------------------------------


def phase_dict(phase: Phase) -> dict[str, Any]:
    """A phase for JSON."""
    operators = [
        op._asdict() | {"seconds": op.seconds, "bound": op.bound}
        for op in phase.operators
    ]
    return {
        "seconds": phase.seconds,
        "bound": phase.bound,
        "between": phase.between,
        "operators": operators,
    }


def phase_table(phase: Phase) -> str:
    """A line for each operator, one for their sum, and what lies between them."""
    lines = [aligned([ROOF_HEAD, *_phase_rows(phase)])]
    if phase.between:
        lines.append(f"between the products: {time_text(phase.between)} of it")
    return "\n".join(lines)


def _phase_rows(phase: Phase) -> Iterable[tuple[str, ...]]:
    for op in phase.operators:
        figures = (f"{op.flops:,}", f"{op.bytes:,.0f}", f"{op.intensity:.2f}")
        share = f"{100 * op.seconds / phase.seconds:.1f}%"
        yield (op.name, *figures, time_text(op.seconds), share, op.bound)
    flops = sum(op.flops for op in phase.operators)
    moved = sum(op.bytes for op in phase.operators if not op.link)  # in memory
    figures = (f"{flops:,}", f"{moved:,.0f}", f"{flops / moved:.2f}")
    yield ("total", *figures, time_text(phase.seconds), "100.0%", phase.bound)


def curve_table(points: Iterable[Point]) -> str:
    """A line for each point of a curve."""
    rows = [
        (
            f"{p.batch:,}",
            f"{p.context:,}",
            time_text(p.first),
            time_text(p.step),
            f"{p.rate:,.4g}",
            p.bound if p.fits else "DOES NOT FIT",
        )
        for p in points
    ]
    return aligned([CURVE_HEAD, *rows])
