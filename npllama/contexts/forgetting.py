"""Every way to forget, on one text: what does it cost in perplexity?

Two experiments, for a window of W keys.  In the first the text is read as a stream, and
the tokens after the first W count.  In the second a prompt is read in full, cut once to
W keys, and the text goes on; the tokens after it count.  There SnapKV, which only cuts
once, can be compared.

A text that the model wrote, or nearly knows by heart, tells little.  Compare each way
with the first row, where all keys are in view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.contexts.eviction import (
    Kept,
    heaviest,
    keep,
    read_on,
    read_prompt,
    snap,
    surprise_of_h2o,
)
from npllama.contexts.perplexity import Surprise, Window, surprise
from npllama.contexts.ring import surprise_in_ring
from npllama.contexts.sinks import context_shift
from npllama.contexts.streaming import Stream
from npllama.sampling import log_softmax
from npllama.weights import Model


class Outcome(NamedTuple):
    """What one way to forget made of a text."""

    way: str
    found: Surprise


#  ---- a stream ------------------------------------------------------------------


def streams_compared(
    model: Model, tokens: Sequence[int], W: int, sinks: Sequence[int]
) -> Iterator[Outcome]:
    """Read the text with all in view, then with W keys, by every way.

    Parameters
    ----------
    model : Model
    tokens : S of them, more than W
    W : int
    sinks : sequence of int
        Numbers of sinks to try.

    Yields
    ------
    Outcome
        Of the tokens from W on.
    """

    def counted(way: str, nats: np.ndarray) -> Outcome:
        return Outcome(way, Surprise(np.arange(W, len(tokens)), nats[W - 1 :]))

    yield counted("all in view", surprise(model, tokens, Window(0, 1, len(tokens))))
    for c in sinks:
        nats = surprise_in_ring(model, tokens, Stream(W, c))
        yield counted(f"{sinks_named(c)} + last {W - c}", nats)
    for c in sorted({0, max(sinks)}):
        shift = context_shift(W, c)
        nats = surprise_in_ring(model, tokens, shift)
        last = f"last {W - c - shift.discard + 1} to {W - c}"
        yield counted(f"context shift: {c} first + {last}", nats)
    nats = surprise_of_h2o(model, tokens, W, W // 2)
    yield counted(f"H2O: {W - W // 2} heaviest + last {W // 2}", nats)


def sinks_named(c: int) -> str:
    """So many sinks, in words."""
    return f"{c} sink" if c == 1 else f"{c} sinks"


#  ---- a prompt that is cut once ---------------------------------------------------


class Cut(NamedTuple):
    """A way to cut a prompt."""

    way: str
    from_last: bool  # weights are those of the prompt's last queries, not of all
    cut: Callable[[Kept], None]  # writes into what it is given


def cuts_of(W: int, sinks: int, watched: int) -> list[Cut]:
    """Ways to cut a prompt to W keys.

    Parameters
    ----------
    W : int
    sinks : int
    watched : int
        SnapKV's window.
    """

    def last(kept: Kept, c: int) -> None:
        held = int(kept.cache.length[0])
        cells = np.concatenate([np.arange(c), np.arange(held - W + c, held)])  # (W,)
        keep(kept, np.broadcast_to(cells, (*kept.weight.shape[:2], W)))

    def heavy(kept: Kept) -> None:
        held = int(kept.cache.length[0])
        keep(kept, heaviest(kept.weight[..., :held], W - W // 2, W // 2))

    first, half = sinks_named(sinks), W // 2
    most = f"all but the {W - half} heaviest and the last {half}, by all queries"
    by = f"SnapKV, {watched} queries"
    return [
        Cut("nothing", False, lambda kept: None),
        Cut(f"all but the last {W}", False, lambda kept: last(kept, 0)),
        Cut(f"all but {first} and the last {W - sinks}", False,
            lambda kept: last(kept, sinks)),
        # H2O's choice, made once; H2O itself drops keys while it reads.
        Cut(most, False, heavy),
        Cut(f"{by}, mean", True, lambda kept: snap(kept, W, watched)),
        Cut(f"{by}, max", True, lambda kept: snap(kept, W, watched, 7, "max")),
    ]  # fmt: skip


def cuts_compared(
    model: Model, tokens: Sequence[int], prompt: int, W: int, sinks: int, watched: int
) -> Iterator[Outcome]:
    """Read a prompt, cut its keys to W, and read the rest of the text.

    Parameters
    ----------
    model : Model
    tokens : S of them
    prompt : int
        Tokens of the prompt, more than W; two tokens or more follow it.
    W, sinks, watched : int
        See `cuts_of`.

    Yields
    ------
    Outcome
        Of the tokens after the first that follows the prompt: this one is predicted
        before anything is cut.
    """
    n, text = len(tokens), np.array(tokens, dtype=np.int64)
    by_all, _ = read_prompt(model, tokens[:prompt], prompt, n)
    by_last, _ = read_prompt(model, tokens[:prompt], watched, n)
    for way, from_last, cut in cuts_of(W, sinks, watched):
        kept = _copy(by_last if from_last else by_all)
        cut(kept)
        logp = log_softmax(read_on(model, text[prompt:-1], kept, watch=False))  # (T, V)
        nats = -logp[np.arange(len(logp)), text[prompt + 1 :]]  # (T,)
        places = np.arange(prompt + 1, n)
        yield Outcome(way, Surprise(places, nats.astype(np.float64)))


def _copy(kept: Kept) -> Kept:
    cache = KVCache(*(array.copy() for array in kept.cache))
    return Kept(cache, kept.weight.copy(), kept.read.copy())
