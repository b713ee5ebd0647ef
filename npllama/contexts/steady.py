"""Is a stream constant in memory and in time per token?  Measured, and drawn.

One text is written three ways: with *all kept*, as plain decoding does, whose cache
and whose attention grow; with what is kept *moved up*, as `streaming`; and in a *ring*.
Every so many tokens we note how long a token took and how much memory the process held.
Time is the processor's, added up over all threads: a clock on the wall also counts what
other programs do meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npllama.cache import KVCache, new_cache
from npllama.contexts.offload import resident_bytes
from npllama.contexts.ring import new_ring, ring_streamed
from npllama.contexts.streaming import Run, Stream, endless
from npllama.cost.plot import ending_of
from npllama.decoding.common import Job, Step
from npllama.files.whole import new_file
from npllama.model import forward
from npllama.weights import Model

ALL_KEPT, MOVED, RING = "all kept", "moved up", "ring"
WAYS = (ALL_KEPT, MOVED, RING)


class Tick(NamedTuple):
    """What was noted when a text had so many tokens."""

    tokens: int
    seconds: float  # of the processor, per token since the tick before
    resident: int  # bytes that the process held


def written(model: Model, stream: Stream, tokens: int, way: str) -> Iterator[Step]:
    """A text of so many tokens, drawn from the model's distribution.

    Parameters
    ----------
    model : Model
    stream : Stream
    tokens : int
    way : "all kept", "moved up" or "ring"

    Raises
    ------
    ValueError
        As `check_stream`, or for another way.
    """
    run = run_for(model, stream, tokens, way)
    first = model.tokenizer.bos_id if model.tokenizer else None
    begin = [1 if first is None else first]
    return endless(
        Job(model, begin, tokens, rng=np.random.default_rng(0)), stream, run=run
    )


def run_for(model: Model, stream: Stream, tokens: int, way: str) -> Run | None:
    """How tokens go through a cache; None for the way of `streaming`."""
    dtype = model.embed.dtype.name
    if way == ALL_KEPT:
        cache = new_cache(model.config, 1, tokens + 1, dtype)
        return partial(all_kept, model, cache=cache)
    if way == RING:
        return partial(
            ring_streamed, model, ring=new_ring(model.config, stream, 1, dtype)
        )
    if way != MOVED:
        raise ValueError(f"{way!r}: the ways are {', '.join(WAYS)}")
    return None


def all_kept(model: Model, tokens: Sequence[int], cache: KVCache) -> np.ndarray:
    """Run more tokens as plain decoding does; (V,) float, the logits after them."""
    return forward(model, np.array([tokens]), cache, last=True)[0, 0]


def ticks(steps: Iterable[Step], every: int) -> Iterator[Tick]:
    """Note time and memory whenever so many tokens have come."""
    begin = time.process_time()
    for n, _ in enumerate(steps, 1):
        if n % every == 0:
            now = time.process_time()
            yield Tick(n, (now - begin) / every, resident_bytes())
            begin = time.process_time()


def slope(found: list[Tick]) -> float:
    """How much longer a token takes per 1,000 tokens, as a part of the median.

    By the median of the slopes between all pairs of ticks (Theil and Sen), which a
    few slow ticks do not move.

    Raises
    ------
    ValueError
        If there are fewer than two ticks.
    """
    if len(found) < 2:
        raise ValueError(f"a slope of {len(found)} ticks; 2 or more are needed")
    t = np.array([tick.tokens for tick in found], dtype=np.float64)  # (n,)
    y = np.array([tick.seconds for tick in found], dtype=np.float64)  # (n,)
    a, b = np.triu_indices(len(found), 1)
    return float(1000 * np.median((y[b] - y[a]) / (t[b] - t[a])) / np.median(y))


def draw_steady(
    path: str | os.PathLike, found: dict[str, list[Tick]], title: str
) -> None:
    """Write a picture of time and memory as a text grows; png, svg or pdf by the name.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the name ends in no format that can be drawn, its folder is missing, or
        a way has no tick.
    """
    ending = ending_of(path)
    for way, noted in found.items():
        if not noted:
            raise ValueError(f"{way}: no tick was noted, so there is nothing to draw")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for way, noted in found.items():
        at = [tick.tokens for tick in noted]
        above.plot(at, [1e3 * tick.seconds for tick in noted], label=way)
        _draw_growth(below, at, noted, way)
    above.set(ylabel="processor's ms per token", title=title)
    below.set(ylabel="MB held, beyond the first tick's", xlabel="tokens of the text")
    above.set_ylim(bottom=0)
    above.legend()
    with new_file(path) as file:
        figure.savefig(file, format=ending)


def _draw_growth(axes: Any, at: list[int], noted: list[Tick], way: str) -> None:
    """Memory since the first tick: all ways share one process."""
    first = noted[0].resident
    axes.plot(at, [(tick.resident - first) / 1e6 for tick in noted], label=way)
