"""The metrics of a server, in Prometheus's format.

Counters only grow, and end in ``_total``; gauges say what holds now; a histogram
counts, for each of several bounds, the values up to it.  The names are those of vLLM
with another prefix, so that its dashboards can be used.  One metric is only here:
``flops_total``, the FLOPs of all products of this process, counted while they ran.

Two times are often mixed up.  The *time to first token* runs from the request's
arrival, its time in the queue included.  The *inter-token latency* is the gap between
two tokens of one text, each gap one value.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from npllama.serving.engine import Statistics

PREFIX = "npllama:"
# Seconds.
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
WHOLE = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass
class Histogram:
    """Counts how many values do not exceed each bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)  # one more than there are bounds
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


def histograms() -> dict[str, Histogram]:
    """An empty histogram for each time that the server measures."""
    return {
        "time_to_first_token_seconds": Histogram(FIRST),
        "inter_token_latency_seconds": Histogram(NEXT),
        "e2e_request_latency_seconds": Histogram(WHOLE),
    }


def gauges(done: Statistics) -> dict[str, tuple[str, float]]:
    """The current state: {name: (meaning, value)}."""
    return {
        "num_requests_running": ("Texts that hold pages.", done.running),
        "num_requests_waiting": ("Texts that wait for pages.", done.waiting),
        "kv_cache_usage_perc": (
            "Pages in use, as a part of all.",
            done.pages_used / done.pages,
        ),
    }


def counters(done: Statistics, flops: int) -> dict[str, tuple[str, float]]:
    """Sums since the start: {name: (meaning, value)}."""
    return {
        "prompt_tokens_total": ("Tokens of prompts.", done.prompt_tokens),
        "generation_tokens_total": ("Tokens made.", done.generated_tokens),
        "prefix_cache_queries_total": (
            "Tokens looked for in pages of others.",
            done.prefix_queries,
        ),
        "prefix_cache_hits_total": ("Tokens found there.", done.prefix_hits),
        "num_preemptions_total": ("Texts that lost their pages.", done.preemptions),
        "recomputed_tokens_total": ("Positions run again.", done.recomputed),
        "iterations_total": ("Passes through the model.", done.steps),
        "flops_total": ("Floating-point operations of all products.", flops),
    }


def exposition(
    done: Statistics, times: Mapping[str, Histogram], flops: int, model: str
) -> str:
    """All metrics as text."""
    label = 'model_name="' + escaped(model) + '"'
    lines = [*_simple("gauge", gauges(done), label)]
    lines += _simple("counter", counters(done, flops), label)
    name = f"{PREFIX}request_success_total"
    lines += [
        f"# HELP {name} Texts that ended, by the reason.",
        f"# TYPE {name} counter",
    ]
    for reason, n in sorted(done.finished.items()):
        lines += [f'{name}{{{label},finished_reason="{escaped(reason)}"}} {n}']
    for title, histogram in times.items():
        lines += _buckets(f"{PREFIX}{title}", histogram, label)
    return "\n".join(lines) + "\n"


def _simple(
    kind: str, entries: Mapping[str, tuple[str, float]], label: str
) -> Iterator[str]:
    for name, (says, value) in entries.items():
        yield f"# HELP {PREFIX}{name} {says}"
        yield f"# TYPE {PREFIX}{name} {kind}"
        yield f"{PREFIX}{name}{{{label}}} {value}"


def _buckets(name: str, histogram: Histogram, label: str) -> Iterator[str]:
    yield f"# HELP {name} {name.removeprefix(PREFIX).replace('_', ' ')}."
    yield f"# TYPE {name} histogram"
    count = 0
    for bound, n in zip((*histogram.bounds, "+Inf"), histogram.counts):
        count += n
        yield f'{name}_bucket{{{label},le="{bound}"}} {count}'
    yield f"{name}_sum{{{label}}} {histogram.sum}"
    yield f"{name}_count{{{label}}} {count}"


def escaped(text: str) -> str:
    """A text as the value of a label."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
