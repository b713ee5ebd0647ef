r"""How long it takes, simulated: three ways to share one machine.

The clock is a roofline: a pass through the model takes as long as `cost.roofline` says
of its FLOPs and bytes on a machine that is named.  So nothing is run, the result is
the same everywhere, and models and machines that are not at hand can be simulated too.
Only passes take time here; real servers are slower.

- *Static batching* fills the rows of a batch, pads the prompts to the longest, and
  writes until the longest text ends.  Until then a row whose text has ended is
  padding, and new requests wait.
- *Iteration-level scheduling* (Orca) decides anew after every pass.  A text that ends
  makes room at once, and a new one's whole prompt runs in the next pass, beside the
  next tokens of all others.  While a long prompt runs, these wait for it.
- *Chunked prefill* (Sarathi-Serve) limits the positions of a pass; the next tokens of
  running texts come first.  A long prompt takes several passes, and none of them is
  long.

The last two are the `scheduler` of this part with different limits.  A chunk costs
extra: it reads the weights again, and the keys of all chunks before it.  A prompt of
N chunks of C positions reads C N (N + 1) / 2 positions of keys instead of C N, and
the weights N times.  FLOPs are the same.

References
----------
Yu et al. 2022, "Orca", OSDI; Agrawal et al. 2024, arXiv:2403.02310.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from npllama.config import Config
from npllama.cost.formulas import Operator, packed_pass, tabulate
from npllama.cost.hardware import Hardware
from npllama.cost.roofline import FUSED, Dtypes, counted, phase
from npllama.serving.blocks import new_blocks
from npllama.serving.latency import Served
from npllama.serving.scheduler import Limits, State, Text, arrived, schedule
from npllama.serving.trace import Traffic
from npllama.serving.waste import next_tokens

Pieces = Sequence[tuple[int, int]]  # (cached, new) of each text in a pass
Clock = Callable[[Pieces], float]  # seconds that a pass takes


class Run(NamedTuple):
    """The outcome of a simulation."""

    served: list[Served]
    passes: int
    positions: int  # that went through the model, padding included
    recomputed: int  # of them, because a text was preempted


def pass_operators(
    config: Config, pieces: Pieces, causal: str = FUSED
) -> tuple[Operator, ...]:
    """The products of one packed pass; by default with attention as one program."""

    def count(causal: str) -> tuple[Operator, ...]:
        return tabulate(config, packed_pass(config, pieces, causal=causal), causal)

    return counted(config, count, causal)


def roofline_clock(
    config: Config, machine: Hardware, kinds: Dtypes | None = None
) -> Clock:
    """The seconds of a pass at the roof of a machine."""
    kinds = kinds or Dtypes()

    def seconds(pieces: Pieces) -> float:
        ops = pass_operators(config, pieces)
        return phase(config, ops, len(pieces), machine, kinds).seconds

    return seconds


def continuous(
    trace: Traffic, clock: Clock, limits: Limits, pages: int, page_size: int
) -> Run:
    """Serve a trace on pages; the scheduler decides before every pass.

    Parameters
    ----------
    trace : Traffic
    clock : function
        Seconds of a pass, such as `roofline_clock`.
    limits : Limits
        With `tokens` as many as a prompt has at most, that is iteration-level
        scheduling; with fewer, chunked prefill.
    pages, page_size : int

    Raises
    ------
    ValueError
        If a text has more positions than there are places.
    """
    check_fits(trace, pages * page_size)
    state, now, coming = State((), 0, new_blocks(pages, page_size)), 0.0, 0
    times: list[list[float]] = [[] for _ in trace.arrival]
    passes = positions = recomputed = 0
    while coming < len(times) or state.texts:
        if not state.texts:
            now = max(now, float(trace.arrival[coming]))
        while coming < len(times) and trace.arrival[coming] <= now:
            state = arrived(state, Text(coming, int(trace.prompt[coming])))
            coming += 1
        plan = schedule(state, limits)
        now += clock([(segment.start, segment.new) for segment in plan.segments])
        passes += 1
        positions += sum(segment.new for segment in plan.segments)
        recomputed += sum(segment.recomputed for segment in plan.segments)
        for text in plan.state.texts[: plan.state.running]:
            if not text.missing:
                times[text.id].append(now)
        state = next_tokens(plan.state, trace)
    served = [Served(float(a), t) for a, t in zip(trace.arrival, times)]
    return Run(served, passes, positions, recomputed)


def check_fits(trace: Traffic, places: int) -> None:
    """Raise ValueError for a text that the server could never finish."""
    longest = int((trace.prompt + trace.output).max()) - 1
    if longest > places:
        raise ValueError(f"a text has {longest} positions; there are {places} places")


def static(trace: Traffic, clock: Clock, rows: int) -> Run:
    """Serve a trace in batches of rows that are padded to the longest.

    A batch begins with all that wait, up to `rows`; tokens are shown as they are
    written.
    """
    times: list[list[float]] = [[] for _ in trace.arrival]
    now, first, n = 0.0, 0, len(times)
    passes = positions = 0
    while first < n:
        now = max(now, float(trace.arrival[first]))
        last = first
        while last < min(n, first + rows) and trace.arrival[last] <= now:
            last += 1
        batch = range(first, last)
        prompt = int(trace.prompt[first:last].max())
        for r in range(int(trace.output[first:last].max())):
            cached, new = (prompt + r - 1, 1) if r else (0, prompt)
            now += clock([(cached, new)] * len(batch))
            passes, positions = passes + 1, positions + new * len(batch)
            for i in batch:
                if r < trace.output[i]:
                    times[i].append(now)
        first = last
    served = [Served(float(a), t) for a, t in zip(trace.arrival, times)]
    return Run(served, passes, positions, 0)
