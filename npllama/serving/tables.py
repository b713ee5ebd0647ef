"""The tables of this part's README, worked out each time they are printed.

    npllama serve-sim --table NAME

prints one of them.  Every trace is drawn from seed 0, so they are the same everywhere;
what others have published stands beside what is found here, and is marked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from npllama.config import Config, preset
from npllama.cost.formulas import cache_elements, parameters, prefill
from npllama.cost.hardware import HARDWARE, Hardware
from npllama.cost.roofline import FUSED, Dtypes, counted, phase
from npllama.cost.tables import Rows
from npllama.serving.latency import Latencies, Targets, goodput, latencies
from npllama.serving.scheduler import Limits
from npllama.serving.sharing import saved_by_forks, saved_by_samples, turnover
from npllama.serving.simulate import Run, continuous, roofline_clock, static
from npllama.serving.trace import LENGTHS, Traffic, traffic
from npllama.serving.waste import (
    RESERVATIONS,
    UNLIMITED,
    Waste,
    Window,
    contiguous,
    internal_of_pages,
    law_of_max,
    paged,
)

# The published setting: 12 GiB of an A100-40G for the cache of OPT-13B, 800 KiB a
# position; a context of 2048, pages of 16.
PLACES, CONTEXT, PAGE = 15_728, 2048, 16
PAGES = "pages"
# Steps over which each trace is averaged.  One of pages settles sooner, since the
# chance of single texts averages out over more of them.
TEXTS = 60_000  # of a trace: more than any of them serves in its span
SPANS = {"sharegpt": Window(2000, 30_000), "alpaca": Window(1000, 8000)}
PAGED_SPANS = {"sharegpt": Window(500, 2500), "alpaca": Window(300, 800)}


def trace_of(name: str, n: int, rate: float = np.inf) -> Traffic:
    """The first n requests of a named kind of traffic."""
    whole = traffic(np.random.default_rng(0), max(n, 2000), LENGTHS[name])
    prompt, output = whole.prompt[:n], whole.output[:n]
    if rate == np.inf:
        return Traffic(whole.arrival[:n], prompt, output)
    timed = traffic(np.random.default_rng(1), n, LENGTHS[name], rate)
    return Traffic(timed.arrival, prompt, output)


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f}"


#  ---- what is wasted ---------------------------------------------------------

# Kwon et al. 2023, figure 2 (the bars, read from the figure's own labels) and 13.
PUBLISHED_WASTE = {
    "Max": ("20.4", "13.3", "57.3", "8.9"),
    "Pow2": ("26.8", "17.9", "13.6", "41.6"),
    "Oracle": ("38.2", "25.2", "0.0", "36.6"),
    PAGES: ("96.3", "", "", ""),
}
PUBLISHED_BATCH = {
    "sharegpt": {"Max": "7.00", "Pow2": "9.81", "Oracle": "13.62", PAGES: "30.42"},
    "alpaca": {"Max": "7.00", "Pow2": "43.24", "Oracle": "72.75", PAGES: "132.44"},
}


@lru_cache(maxsize=2)
def measured_waste(name: str) -> dict[str, Waste]:
    """The four ways of keeping a cache, on one kind of traffic."""
    trace = trace_of(name, TEXTS)
    found = {
        way: contiguous(trace, reserve, PLACES, CONTEXT, SPANS[name])
        for way, reserve in RESERVATIONS.items()
    }
    return found | {PAGES: paged(trace, PLACES, PAGE, PAGED_SPANS[name])}


def waste() -> Rows:
    """Where the places go, in percent, and texts at a time; ShareGPT's lengths."""
    head = ("", "token states", "reserved", "internal", "external, free", "texts")
    rows: Rows = [head]
    for way, found in measured_waste("sharegpt").items():
        rows.append((way, *map(percent, found[:4]), f"{found.batch:.2f}"))
        batch = PUBLISHED_BATCH["sharegpt"][way]
        rows.append(("published", *PUBLISHED_WASTE[way], batch))
    return rows


def batched() -> Rows:
    """Texts at a time on both kinds of traffic."""
    rows: Rows = [("", *PUBLISHED_BATCH["alpaca"])]
    for name in LENGTHS:
        found = measured_waste(name).values()
        rows.append((name, *(f"{one.batch:.2f}" for one in found)))
        rows.append(("published", *PUBLISHED_BATCH[name].values()))
    return rows


def law() -> Rows:
    """The scheme Max, by the law of renewal and step by step."""
    rows: Rows = [("Max", "token states", "reserved", "internal", "external, free")]
    trace = trace_of("sharegpt", TEXTS)
    laws = law_of_max(trace, PLACES, CONTEXT)
    steps = measured_waste("sharegpt")["Max"]
    rows.append(("by renewal", *map(percent, laws[:4])))
    rows.append(("step by step", *map(percent, steps[:4])))
    rows.append(("published", *PUBLISHED_WASTE["Max"]))
    return rows


#  ---- the size of a page -----------------------------------------------------

SIZES = (1, 4, 16, 64, 256)


def filled(trace: Traffic, page_size: int) -> tuple[float, float]:
    """Positions of a text, and empty places of its last page, over all its steps."""
    states = empty = steps = 0
    for prompt, output in zip(trace.prompt.tolist(), trace.output.tolist()):
        positions = prompt + np.arange(output)  # (T,)
        held = -(-positions // page_size) * page_size
        states, steps = states + int(positions.sum()), steps + output
        empty += int((held - positions).sum())
    return states / steps, empty / steps


def page_size() -> Rows:
    """What a page's size costs and saves, on ShareGPT's lengths."""
    head = ("P", "empty per text", "(P - 1) / 2", "of its pages, %")
    rows: Rows = [(*head, "4 samples save, %", "entries for 2048")]
    trace = trace_of("sharegpt", 2000)
    for P in SIZES:
        states, empty = filled(trace, P)
        share = percent(empty / (states + empty))
        figures = f"{empty:.2f}", f"{internal_of_pages(P):.1f}", share
        more = percent(saved_by_samples(trace, 4, P)), f"{CONTEXT // P:,}"
        rows.append((str(P), *figures, *more))
    return rows


#  ---- what is shared ---------------------------------------------------------

WIDTHS = (2, 4, 6)
# Kwon et al. 2023, figure 15; of ShareGPT the text gives the first and the last.
PUBLISHED_SAMPLES = {
    "alpaca": ("6.09", "8.53", "9.79"),
    "sharegpt": ("16.2", "", "30.5"),
}
PUBLISHED_BEAMS = {
    "alpaca": ("37.56", "53.13", "55.16"),
    "sharegpt": ("44.3", "", "66.3"),
}
TURNOVER = 0.12
FORKED = {"alpaca": 120, "sharegpt": 24}  # requests whose beams are forked one by one


def samples() -> Rows:
    """The share of all pages that n samples of a prompt save, in percent."""
    rows: Rows = [("n", *map(str, WIDTHS))]
    for name, published in PUBLISHED_SAMPLES.items():
        trace = trace_of(name, 2000)
        saved = [percent(saved_by_samples(trace, n, PAGE)) for n in WIDTHS]
        rows += [(name, *saved), ("published", *published)]
    return rows


def beams() -> Rows:
    """The share of all pages that n beams save, in percent."""
    rows: Rows = [("n", *map(str, WIDTHS))]
    for name, published in PUBLISHED_BEAMS.items():
        trace, saved = trace_of(name, FORKED[name]), []
        for n in WIDTHS:
            parents = turnover(np.random.default_rng(0), TURNOVER)
            saved.append(percent(saved_by_forks(trace, n, PAGE, parents)[0]))
        rows += [(name, *saved), ("published", *published)]
    return rows


#  ---- chunks and latencies ---------------------------------------------------

MODEL, MACHINE, PROMPT = "llama-2-13b", "a100-40g", 4096
CHUNKS = (4096, 2048, 1024, 512, 256, 128)


def chunk() -> Rows:
    """What it costs to run a prompt of 4,096 positions in chunks."""
    config, machine, kinds = preset(MODEL), HARDWARE[MACHINE], Dtypes()
    head = ("chunk", "weights read", "cached positions read", "read, GB", "ms")
    rows: Rows = [(*head, "more time, %")]
    first = 0.0
    for size in CHUNKS:
        ops = counted(config, partial(prefill, config, 1, PROMPT, chunk=size), FUSED)
        seconds = phase(config, ops, PROMPT, machine, kinds).seconds
        first = first or seconds
        N = PROMPT // size
        positions = size * N * (N + 1) // 2
        moved = N * sum(parameters(config).values()) + cache_elements(config, positions)
        read = f"{N}x", f"{positions:,}", f"{2 * moved / 1e9:,.0f}"
        more = percent(seconds / first - 1)
        rows.append((str(size), *read, f"{1000 * seconds:,.0f}", more))
    return rows


RATE, REQUESTS = 3.0, 80
TARGETS = Targets(ttft=1.0, tpot=0.03)


class Scene(NamedTuple):
    """A model, a machine and its traffic."""

    config: Config
    machine: Hardware
    lengths: str  # of `trace.LENGTHS`
    rate: float  # requests per second
    requests: int
    places: int

    @property
    def trace(self) -> Traffic:
        """The requests."""
        return trace_of(self.lengths, self.requests, self.rate)


def published_scene() -> Scene:
    """The setting of this part's README."""
    machine = HARDWARE[MACHINE]
    return Scene(preset(MODEL), machine, "sharegpt", RATE, REQUESTS, PLACES)


def compared(scene: Scene) -> dict[str, tuple[Run, Latencies]]:
    """Ways to share one machine, on one trace.

    Raises
    ------
    ValueError
        If not even one text of the whole context fits.
    """
    trace, clock = scene.trace, roofline_clock(scene.config, scene.machine)
    rows, pages = scene.places // CONTEXT, scene.places // PAGE
    if rows < 1:
        raise ValueError(
            f"{scene.places} positions fit beside the weights; at least {CONTEXT} "
            "are needed"
        )

    def on_pages(tokens: int, requests: int) -> Run:
        return continuous(trace, clock, Limits(tokens, requests), pages, PAGE)

    runs = {
        f"static, {rows} rows": static(trace, clock, rows),
        f"iterations, {rows} texts": on_pages(UNLIMITED, rows),
        "iterations, pages": on_pages(UNLIMITED, UNLIMITED),
        "chunks of 512, pages": on_pages(512, 512),
        "chunks of 256, pages": on_pages(256, 256),
    }
    return {name: (run, latencies(run.served)) for name, run in runs.items()}


@lru_cache(maxsize=1)
def measured_runs() -> dict[str, tuple[Run, Latencies]]:
    """The ways compared on the published scene."""
    return compared(published_scene())


def needed(trace: Traffic) -> int:
    """The number of positions to compute: all but the last token of each text."""
    return int((trace.prompt + trace.output - 1).sum())


def waiting(scene: Scene, runs: dict[str, tuple[Run, Latencies]]) -> Rows:
    """Rows of latencies, in milliseconds unless the row says otherwise."""
    head = ("", "tokens/s", "TTFT, s", "TPOT", "ITL, 99%", "longest", "E2EL/token")
    rows: Rows = [(*head, "goodput", "in vain, %")]
    useful = needed(scene.trace)
    for name, (run, found) in runs.items():
        gaps = found.itl if found.itl.size else np.zeros(1)
        times = found.mean_tpot, float(np.percentile(gaps, 99)), float(gaps.max())
        rows.append(
            (
                name,
                f"{found.throughput:.0f}",
                f"{found.ttft.mean():.2f}",
                *(f"{1000 * t:.1f}" for t in (*times, found.normalised)),
                f"{goodput(found, TARGETS):.2f}",
                percent(1 - useful / run.positions),
            )
        )
    return rows


def latency() -> Rows:
    """How long requests wait, in milliseconds unless the row says otherwise."""
    return waiting(published_scene(), measured_runs())


TABLES: dict[str, Callable[[], Rows]] = {
    "waste": waste,
    "law": law,
    "batched": batched,
    "page-size": page_size,
    "samples": samples,
    "beams": beams,
    "chunk": chunk,
    "latency": latency,
}
