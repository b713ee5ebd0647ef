r"""What a page saves: the memory of a server, place by place.

The cache of a server is a fixed number of *places*: each holds the key and value of one
position.
At any moment a place is

- used, by a position that was computed (a *token state*);
- reserved, for a position that its text will reach later;
- wasted inside, in a piece that a text holds and will never fill;
- outside of all texts: free, or lost to the rounding of an allocator.

Only used places do any work.  Kwon et al. measured their share under three ways of
reserving a contiguous piece, and with pages:

- Max reserves the whole context for every text;
- Pow2 is told how long the new text will be, up to a factor of two;
- Oracle knows it exactly;
- pages reserve nothing: a text holds the pages of its positions so far.

Here the four serve the same trace, one token per text and step, with a queue that is
never empty.  The contiguous pieces come from the allocator of `buddy`, the pages from
`blocks` by way of `scheduler`.

Max is so simple that its bars follow from two averages.  A text of n new tokens is
seen in n steps; so a step sees long texts more often, in proportion to n, and each
somewhere between its first token and its last.  With p tokens of prompt, a running
text holds, and will still add, on average

$$E[n (p + (n - 1) / 2)] / E[n] \qquad E[n (n - 1) / 2] / E[n]$$

(`renewal`).  Both are larger than for an average text at half its length, since the
mean of n² is larger than the square of the mean.

References
----------
Kwon et al. 2023, arXiv:2309.06180, figure 2 and section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from npllama.serving.blocks import new_blocks
from npllama.serving.buddy import block_for, give_back, new_buddy, take
from npllama.serving.scheduler import (
    Limits,
    State,
    Text,
    arrived,
    left,
    replaced,
    schedule,
)
from npllama.serving.trace import Traffic

# As if one step could read any prompt: waste is counted in steps, not in seconds.
UNLIMITED = 10**9
AHEAD = 4  # texts that wait: the scheduler must never run out of them


class Waste(NamedTuple):
    """Shares of all places, averaged over the steps; and texts that ran at a time."""

    states: float
    reserved: float
    internal: float
    external: float
    batch: float


class Window(NamedTuple):
    """The steps that are averaged over: those after `first`, up to `last`."""

    first: int
    last: int


def averaged(sums: np.ndarray, places: int, window: Window) -> Waste:
    """Shares from sums over the window of states, reserved, internal and texts."""
    steps = window.last - window.first
    states, reserved, internal = (sums[:3] / (steps * places)).tolist()
    rest = 1 - states - reserved - internal
    return Waste(states, reserved, internal, rest, float(sums[3] / steps))


#  ---- contiguous pieces ------------------------------------------------------


def reserve_all(prompt: int, output: int, context: int) -> int:
    """Max: reserve the whole context, since the length is unknown."""
    return context


def reserve_power(prompt: int, output: int, context: int) -> int:
    """Pow2: the length is known in advance, and rounded up to a power of two."""
    return min(prompt + block_for(output), context)


def reserve_exactly(prompt: int, output: int, context: int) -> int:
    """Oracle: reserve exactly the positions that will be computed."""
    return prompt + output - 1


Reserve = Callable[[int, int, int], int]
RESERVATIONS: dict[str, Reserve] = {
    "Max": reserve_all,
    "Pow2": reserve_power,
    "Oracle": reserve_exactly,
}


def contiguous(
    trace: Traffic, reserve: Reserve, places: int, context: int, window: Window
) -> Waste:
    """Serve a trace, each text in one piece of the buddy allocator.

    Only the ends of texts are simulated: how long a text runs is known in advance, so
    its sums over the window are, too.

    Parameters
    ----------
    trace : Traffic
        Everybody waits from the beginning; first come, first served.
    reserve : function
        (prompt, output, context) -> places, such as `reserve_all`.
    places, context : int
    window : Window

    Raises
    ------
    ValueError
        If a text fits nowhere, or the trace is over before the window is.
    """
    buddy, ends, sums = new_buddy(places), list[tuple[int, int]](), np.zeros(4)
    now, waiting = 0, 0
    lengths = list(zip(trace.prompt.tolist(), trace.output.tolist()))
    while now < window.last:
        while True:
            if waiting == len(lengths):
                raise ValueError(f"the trace of {waiting} texts ends at step {now}")
            prompt, output = lengths[waiting]
            size = reserve(prompt, output, context)
            address = take(buddy, size)
            if address is None:
                break
            heappush(ends, (now + output, address))
            sums += seen(prompt, output, size, now, window)
            waiting += 1
        if not ends:
            raise ValueError(f"a text of {size} places does not fit into {places}")
        now = ends[0][0]
        while ends and ends[0][0] == now:
            give_back(buddy, heappop(ends)[1])
    return averaged(sums, places, window)


def seen(prompt: int, output: int, size: int, begin: int, window: Window) -> np.ndarray:
    """Add one text to the sums over the window.

    In its r-th step, r = 1 ... output, it has prompt + r - 1 states.

    Returns
    -------
    (4,) float64
        States, reserved places, places never used, and steps.
    """
    before = min(max(window.first - begin, 0), output)
    steps = max(min(window.last - begin, output) - before, 0)
    states = steps * (prompt + before) + steps * (steps - 1) // 2
    need = prompt + output - 1
    return np.array([states, steps * need - states, steps * (size - need), steps])


#  ---- pages ------------------------------------------------------------------


def paged(
    trace: Traffic,
    places: int,
    page_size: int,
    window: Window,
    watermark: float = 0.01,
    texts: int = UNLIMITED,
) -> Waste:
    """Serve a trace with pages, by the scheduler that the engine uses.

    Parameters
    ----------
    trace : Traffic
        Everybody waits from the beginning.
    places, page_size : int
    window : Window
    watermark : float
        See `scheduler.Limits`.
    texts : int
        That run at a time, at most.

    Returns
    -------
    Waste
        Nothing is reserved; internal is what is empty in the last page of each text.
    """
    pages, limits = places // page_size, Limits(UNLIMITED, texts, None, watermark)
    state, sums, coming = State((), 0, new_blocks(pages, page_size)), np.zeros(4), 0
    for step in range(1, window.last + 1):
        while len(state.texts) - state.running < AHEAD:
            if coming == len(trace.prompt):
                raise ValueError(f"the trace of {coming} texts ends at step {step}")
            state = arrived(state, Text(coming, int(trace.prompt[coming])))
            coming += 1
        state = schedule(state, limits).state
        if step > window.first:
            running = state.texts[: state.running]
            states = sum(text.computed for text in running)
            held = (pages - len(state.blocks.free)) * page_size
            sums += [states, 0, held - states, len(running)]
        state = next_tokens(state, trace)
    return averaged(sums, places, window)


def next_tokens(state: State, trace: Traffic) -> State:
    """Give one more token to every text that has computed all it has, or end it."""
    length = trace.prompt + trace.output
    ready = [text for text in state.texts[: state.running] if not text.missing]
    grown = [text._replace(decided=text.decided + 1) for text in ready]
    ended = [text.id for text in grown if text.decided == length[text.id]]
    return left(replaced(state, *grown), ended)


#  ---- in closed form ---------------------------------------------------------


def renewal(trace: Traffic) -> tuple[float, float]:
    """Places that a running text uses, and will still use, on average.

    Seen at a random moment, while texts follow each other without a gap: so a text is
    found in proportion to its length.
    """
    p, n = trace.prompt.astype(float), trace.output.astype(float)
    held = (n * (p + (n - 1) / 2)).sum() / n.sum()
    coming = (n * (n - 1) / 2).sum() / n.sum()
    return float(held), float(coming)


def law_of_max(trace: Traffic, places: int, context: int) -> Waste:
    """The bars of Max by `renewal`, for a context that is a power of two."""
    fit = places // context
    held, coming = (fit * mean / places for mean in renewal(trace))
    external = 1 - fit * context / places
    return Waste(held, coming, 1 - external - held - coming, external, float(fit))


def internal_of_pages(page_size: int) -> float:
    """Empty places in a text's last page, on average: (P - 1) / 2.

    It has 0 to P - 1 of them, each number as often as any other while it grows.
    """
    return (page_size - 1) / 2
