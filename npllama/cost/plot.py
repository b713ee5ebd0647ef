"""The roofline, drawn: matplotlib is needed for this alone."""

from __future__ import annotations

import os
from pathlib import Path

from npllama.cost.hardware import Hardware
from npllama.cost.roofline import Dtypes, Prediction

MARKS = {"prefill": "o", "decode": "s"}


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
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in ("png", "svg", "pdf"):
        raise ValueError(f"{path}: the name must end in .png, .svg or .pdf")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{path}: there is no folder {Path(path).parent}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    roof, ridge = machine.rate(kinds.arithmetic), machine.ridge(kinds.arithmetic)
    phases = {"prefill": found.prefill, "decode": found.decode}
    shown = [op for part in phases.values() for op in part.operators if op.flops]
    low = min(0.5, *(op.intensity / 2 for op in shown))
    high = max(4 * ridge, *(op.intensity * 2 for op in shown))
    axes.plot([low, ridge, high], [low * machine.bandwidth, roof, roof], color="0.3")
    axes.axvline(ridge, color="0.7", linestyle=":")
    axes.annotate(f"ridge {ridge:.0f}", (ridge, low * machine.bandwidth))
    for name, part in phases.items():
        ops = [op for op in part.operators if op.flops]
        reached = [op.flops / op.seconds for op in ops]
        axes.scatter(
            [op.intensity for op in ops], reached, marker=MARKS[name], label=name
        )
        for op, rate in zip(ops, reached):
            place, away = (op.intensity, rate), (4, 4 if name == "prefill" else -10)
            axes.annotate(op.name, place, away, textcoords="offset points", fontsize=7)
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="FLOPs per byte", ylabel="FLOP/s at most")
    axes.legend()
    part_file = Path(f"{path}.{os.getpid()}.part")
    try:
        figure.savefig(part_file, format=ending)
        os.replace(part_file, path)
    finally:
        part_file.unlink(missing_ok=True)
