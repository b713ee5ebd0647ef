"""From seconds to a table.

A program's figure is the median over rounds of each round's median; `min` and
`max` are those of single rounds.  Programs are compared inside each round,
where the machine was equally fast for all, and the comparison is the median of those
ratios: how many times faster npllama is.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

OURS, FLOOR = "npllama", "BLAS floor"


def summary(
    rounds: dict[str, list[list[float]]], figure: Callable[[float], float]
) -> dict[str, dict]:
    """Figures and ratios of programs that did the same work in the same rounds.

    Parameters
    ----------
    rounds : mapping of program to its rounds, each the seconds of several calls
    figure : function
        What is told of so many seconds per call: tokens per second, milliseconds.
    """
    middles = {name: [median(r) for r in times] for name, times in rounds.items()}
    ours = middles[OURS]

    def one(theirs: list[float]) -> dict[str, Any]:
        figures = [figure(seconds) for seconds in theirs]
        return {
            "median": median(figures),
            "min": min(figures),
            "max": max(figures),
            "npllama_is_times": median(t / o for t, o in zip(theirs, ours)),
        }

    return {
        name: one(middles[name]) | {"rounds_seconds": times}
        for name, times in rounds.items()
    }


def faster_variants(rows: dict[str, dict]) -> dict[str, dict]:
    """Of each peer's variants, such as ``x (eager)`` and ``x (sdpa)``, the faster."""
    ratios = {name: row["npllama_is_times"] for name, row in rows.items()}
    best: dict[str, str] = {}
    for name in sorted(rows, key=ratios.__getitem__):
        best.setdefault(without_variant(name), name)
    return {name: row for name, row in rows.items() if name in best.values()}


def without_variant(name: str) -> str:
    """``x`` of ``x (eager)``."""
    return name.rsplit(" (", 1)[0]


def machine(threads: int) -> dict[str, Any]:
    """The facts without which a figure means nothing."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore
    return {
        "cpu": _first_match("/proc/cpuinfo", r"model name\s*:\s*(.+)")
        or platform.processor(),
        "processors": os.cpu_count(),
        "threads": threads,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "memory_bytes": int(_first_match("/proc/meminfo", r"MemTotal:\s+(\d+)") or 0)
        * 1024,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
    }


def _first_match(path: str, pattern: str) -> str | None:
    file = Path(path)
    found = re.search(pattern, file.read_text()) if file.exists() else None
    return found and found[1]


# A line of the table: shape, measure, program, median, min, max, unit, ratio.
Line = tuple[str, str, str, str, str, str, str, str]
HEAD: Line = ("model", "measure", "program", "median", "min", "max", "unit", "ratio")


def table(results: dict[str, Any]) -> str:
    """All results as aligned text."""
    lines = [HEAD]
    for name, size in results["sizes"].items():
        lines += _load_lines(name, size["load"])
        for measure in ("prefill", "decode"):
            lines += _rate_lines(name, measure, size[measure])
        lines += _memory_lines(name, size["memory"])
    for part in results.get("attention", []):
        lines += _attention_lines(part)
    if "cells" in results:
        lines += _cell_lines(results["cells"])
    if "serving" in results:
        lines += _cell_lines({"passes": {}} | results["serving"])
    if "decoding" in results:
        lines += _decoding_lines(results["decoding"])
    if "roofline" in results:
        lines += _roofline_lines(results["roofline"])
    facts = results["machine"]
    title = (
        f"{facts['cpu']}, {facts['threads']} of {facts['processors']} processors; "
        f"Python {facts['python']}, NumPy {facts['numpy']}, {facts['blas']}; float32, batch 1"
    )
    end = "ratio: how many times faster npllama is, the median over rounds"
    if "decoding" in results:
        end += "; in decoding: than the way above it"
    if "roofline" in results:
        end += "; of the roofline: prediction / measurement"
    return "\n".join([title, "", *_align(_without_repeats(lines)), "", end])


def _load_lines(name: str, load: dict[str, Any]) -> list[Line]:
    def line(measure: str, value: float, unit: str) -> Line:
        return (name, measure, OURS, _figure(value), "", "", unit, "")

    lines = [
        line("load", load["seconds"] * 1e3, "ms"),
        line("first token", load["first_token"] * 1e3, "ms"),
    ]
    for moment in ("before", "after", "touched"):
        if load[moment]:
            words = {"touched": "after first token"}.get(moment, f"{moment} load")
            lines.append(line(f"memory {words}", load[moment]["resident"] / 1e6, "MB"))
    return lines


def _rate_lines(name: str, measure: str, part: dict[str, Any]) -> list[Line]:
    rows = faster_variants(part["programs"])
    title = f"{measure} {part['tokens']}"
    return [_line(name, title, who, row, "token/s") for who, row in rows.items()]


def _line(name: str, measure: str, who: str, row: dict, unit: str) -> Line:
    ratio = "" if who == OURS else f"{row['npllama_is_times']:.2f}"
    low, middle, high = (_figure(row[key]) for key in ("min", "median", "max"))
    return (name, measure, who, middle, low, high, unit, ratio)


def _memory_lines(name: str, memory: dict[str, dict[str, int]]) -> list[Line]:
    return [
        (name, "peak memory", who, _figure(m["peak"] / 1e6), "", "", "MB", "")
        for who, m in memory.items()
        if m
    ]


def _attention_lines(part: dict[str, Any]) -> list[Line]:
    measure = f"s = {part['positions']}"
    lines = [
        _line("attention", measure, who, row, "ms")
        for who, row in part["programs"].items()
    ]
    used = part["memory"]["bytes"]
    if used is not None:
        measure = f"memory, s = {part['memory']['positions']}"
        lines.append(
            ("attention", measure, OURS, _figure(used / 1e6), "", "", "MB", "")
        )
    return lines


def _cell_lines(part: dict[str, Any]) -> list[Line]:
    size, lines = part["size"], []
    for measure, rows in part["passes"].items():
        for who, row in faster_variants(rows).items():
            lines.append(_line(size, measure, who, row, "token/s"))
    for measure, rows in part.items():
        if measure not in ("size", "passes"):
            unit = "ms" if measure == "start" else "token/s"
            lines += [_line(size, measure, who, row, unit) for who, row in rows.items()]
    return lines


def _decoding_lines(part: dict[str, Any]) -> list[Line]:
    lines = []
    for key in ("sampling", "lookup"):
        size, times = part[key]["size"], part[key]["seconds"]
        first = next(iter(times))
        for who, seconds in times.items():
            rates = [part[key]["tokens"] / s for s in seconds]
            figures = [_figure(f(rates)) for f in (median, min, max)]
            # Here the two ways of npllama are compared with each other.
            ratio = median(a / b for a, b in zip(times[first], seconds))
            shown = "" if who == first else f"{ratio:.2f}"
            lines.append((size, key, who, *figures, "token/s", shown))
    for way, kept in part["pair"]["kept"].items():
        measure = f"kept of {part['pair']['guesses']} guesses"
        lines.append(("stories", measure, way, _figure(kept), "", "", "tokens", ""))
    return lines


def _roofline_lines(part: dict[str, Any]) -> list[Line]:
    """What the probe found, then prediction and measurement of every size."""
    lines: list[Line] = []
    units = {
        "flops": (1e9, "GFLOP/s"),
        "bandwidth": (1e9, "GB/s"),
        "elementwise": (1e9, "1e9 elements/s"),
        "overhead": (1e-6, "us/layer"),
    }
    for rate, (scale, unit) in units.items():
        found = [probe[rate] / scale for probe in part["probes"]]
        low, middle, high = (_figure(f(found)) for f in (min, median, max))
        lines.append(("probe", rate, "this machine", middle, low, high, unit, ""))
    for name, size in part["sizes"].items():
        for measure, row in size.items():
            measure = f"{measure} {row['tokens']}"
            for who, key, ratio in (
                (OURS, "measured", ""),
                ("roofline", "predicted", f"{row['predicted_is_times']:.2f}"),
            ):
                cells = (_figure(row[key]), "", "", "token/s", ratio)
                lines.append((name, measure, who, *cells))
    return lines


def _figure(x: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _without_repeats(lines: list[Line]) -> list[Line]:
    """Say what does not change from line to line only once."""
    out = lines[:1]
    for above, line in zip(lines, lines[1:]):
        model = line[0] if line[0] != above[0] else ""
        measure = line[1] if line[:2] != above[:2] else ""
        out.append((model, measure, *line[2:]))
    return out


def _align(lines: list[Line]) -> list[str]:
    """Text to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]

    def cell(i: int, text: str) -> str:
        figure = HEAD[i] in ("median", "min", "max", "ratio")
        return text.rjust(widths[i]) if figure else text.ljust(widths[i])

    return ["  ".join(cell(i, text) for i, text in enumerate(line)) for line in lines]
