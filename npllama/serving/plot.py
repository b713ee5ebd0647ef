"""The simulations, drawn: matplotlib is needed for this alone."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from npllama.cost.plot import ending_of
from npllama.files.whole import new_file
from npllama.serving.sharing import saved_by_samples
from npllama.serving.tables import (
    PAGE,
    PUBLISHED_SAMPLES,
    PUBLISHED_WASTE,
    WIDTHS,
    measured_runs,
    measured_waste,
    trace_of,
)

KINDS = ("token states", "reserved", "internal", "external, free")
COLOURS = ("tab:green", "tab:olive", "tab:orange", "0.8")


def draw_waste(axes: Any) -> None:
    """The four bars, each beside the published one, hatched."""
    for place, (way, found) in enumerate(measured_waste("sharegpt").items()):
        published = [float(share or "nan") for share in PUBLISHED_WASTE[way]]
        for side, bars in ((-0.2, [100 * s for s in found[:4]]), (0.2, published)):
            bottom, hatch = 0.0, "//" if side > 0 else None
            for height, colour in zip(bars, COLOURS):
                if not np.isnan(height):
                    axes.bar(
                        place + side, height, 0.38, bottom, color=colour, hatch=hatch
                    )
                    bottom += height
    axes.set_xticks(range(len(PUBLISHED_WASTE)), PUBLISHED_WASTE)
    axes.set(ylabel="% of all places", title="Where places go (hatched: published)")
    marks = [axes.bar(0, 0, color=colour) for colour in COLOURS]
    axes.legend(marks, KINDS, fontsize=7, loc="lower left")


def draw_samples(axes: Any) -> None:
    """What n samples of a prompt save, and what was published."""
    for name, published in PUBLISHED_SAMPLES.items():
        trace = trace_of(name, 2000)
        saved = [100 * saved_by_samples(trace, n, PAGE) for n in WIDTHS]
        (line,) = axes.plot(WIDTHS, saved, marker="o", label=name)
        known = [(n, float(p)) for n, p in zip(WIDTHS, published) if p]
        axes.plot(*zip(*known), "x", color=line.get_color(), label="published")
    axes.set(xlabel="samples of a prompt", ylabel="% of pages saved", title="Sharing")
    axes.set_xticks(WIDTHS)
    axes.legend(fontsize=7)


def draw_latency(axes: Any) -> None:
    """Which part of the gaps between tokens is longer than a time."""
    for name, (_, found) in measured_runs().items():
        gaps = 1000 * np.sort(found.itl)
        axes.plot(gaps, 1 - np.arange(len(gaps)) / len(gaps), label=name)
    axes.set(xscale="log", yscale="log", xlabel="ms", ylabel="share of longer gaps")
    axes.set_title("Gaps between tokens")
    axes.set_xticks([20, 50, 100, 200], ["20", "50", "100", "200"])
    axes.minorticks_off()
    axes.legend(fontsize=7)


def draw_serving(path: str | os.PathLike) -> None:
    """Write the pictures of waste, sharing and latency; png, svg or pdf by the name.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the name ends in no format that can be drawn, or its folder is missing.
    """
    ending = ending_of(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    waste, samples, latency = figure.subplots(1, 3)
    draw_waste(waste)
    draw_samples(samples)
    draw_latency(latency)
    with new_file(path) as file:
        figure.savefig(file, format=ending)
