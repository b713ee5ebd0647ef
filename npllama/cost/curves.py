"""The speed of decoding over the batch, or over the context.

A larger *batch* is free as long as memory is the bound and the weights are most of what
is read: every row uses the same weights.  A longer context is not, since each row reads
keys and values of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from npllama.config import Config
from npllama.cost.facts import Text, held_bytes
from npllama.cost.hardware import Hardware
from npllama.cost.roofline import Dtypes, predict

LARGEST_BATCH, LONGEST = 4096, 2**20


class Point(NamedTuple):
    """One point of both curves."""

    batch: int
    context: int  # positions of the prompt
    first: float  # seconds to the first token
    step: float  # seconds between two tokens of a row
    rate: float  # tokens per second, all rows together
    bound: str  # of a step
    fits: bool


def point(
    config: Config, machine: Hardware, kinds: Dtypes, text: Text, causal: str
) -> Point:
    """What is predicted for one text."""
    found = predict(config, machine, *text, kinds, causal)
    room = machine.memory
    fits = room is None or held_bytes(config, kinds, text) <= room
    first, step = found.prefill.seconds, found.decode
    return Point(
        text.batch, text.prompt, first, step.seconds, step.rate, step.bound, fits
    )


def texts(text: Text, over: str) -> Iterator[Text]:
    """The text at batches, or contexts, of powers of two.

    Parameters
    ----------
    over : "batch" or "context"
        Up to 4,096 rows, or from 128 positions to 1,048,576.

    Raises
    ------
    ValueError
        If `over` is neither.
    """
    if over not in ("batch", "context"):
        raise ValueError(f"over {over!r}: batch or context")
    size = 1 if over == "batch" else 128
    while size <= (LARGEST_BATCH if over == "batch" else LONGEST):
        here = {"batch": size} if over == "batch" else {"prompt": size}
        yield text._replace(**here)
        size *= 2


def curve(
    config: Config,
    machine: Hardware,
    kinds: Dtypes,
    text: Text,
    causal: str,
    over: str,
) -> list[Point]:
    """The points, up to and including the first that does not fit, if any."""
    points = []
    for here in texts(text, over):
        points.append(point(config, machine, kinds, here, causal))
        if not points[-1].fits:
            break
    return points
