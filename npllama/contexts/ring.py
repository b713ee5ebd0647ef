r"""A window that goes round: a stream without moving anything.

`streaming` moves and turns what is kept whenever something is forgotten.  A *ring
buffer* does neither: a new position takes the slot of one that nobody will see again.
The sinks keep the first c slots, and the others go round in the other N - c:

$$\mathrm{slot}(p) = \begin{cases} p & p < c \\
  c + (p - c) \bmod (N - c) & \text{else} \end{cases}$$

With N = 6 and c = 2, positions lie so after 6, 7, 8 and 11 of them:

    0 1 2 3 4 5
    0 1 6 3 4 5
    0 1 6 7 4 5
    0 1 10 7 8 9

Keys stay as they were written, turned by their positions in the text.  That is
possible since RoPE knows distances only: within the window these are right, and for the
sinks it is the query that is turned back, as in `sinks`.

A piece of T tokens is written before its queries look, so the first of them must find
its W positions still there: the ring has W + T - 1 slots.  T = 1 takes W.

What a ring finds has the bits of `sinks.at_once` on a cache that holds the whole text:
keys are read in the order of their positions, of which a ring that has gone round makes
a copy.  The order does not matter to attention itself, only to its rounding.

References
----------
Jiang et al. 2023, arXiv:2310.06825 (Mistral 7B), section 2, "rolling buffer cache";
transformers' sliding-window cache, which reads W - 1 positions and the new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.attention import QUERY_BLOCK
from npllama.cache import KVCache, new_cache
from npllama.config import Config
from npllama.contexts.perplexity import text_of
from npllama.contexts.sinks import a_row
from npllama.contexts.streaming import Stream, check_stream
from npllama.decoding.common import PREFILL_CHUNK
from npllama.model import forward
from npllama.sampling import log_softmax
from npllama.serving.pages import as_run
from npllama.weights import Model


class Ring(NamedTuple):
    """Keys and values of the sinks and of the last positions of one text."""

    k: np.ndarray  # (L, 1, K, N, D)
    v: np.ndarray  # (L, 1, K, N, D)
    length: np.ndarray  # (1,) int64, positions read, gone ones included
    stream: Stream


def new_ring(config: Config, stream: Stream, piece: int = 1, dtype="float32") -> Ring:
    """An empty ring, for pieces of up to so many tokens.

    Raises
    ------
    ValueError
        As `check_stream`, or if a piece has no token.
    """
    check_stream(config, stream)
    if piece < 1:
        raise ValueError(f"pieces of {piece} tokens: 1 or more are needed")
    k, v, length = new_cache(config, 1, stream.window + piece - 1, dtype)
    return Ring(k, v, length, stream)


def slots(p: np.ndarray, sinks: int, N: int) -> np.ndarray:
    """Where positions p lie in a ring of N slots; of p's shape.

    >>> slots(np.array([0, 1, 10, 7, 8, 9]), 2, 6).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return np.where(p < sinks, p, sinks + (p - sinks) % (N - sinks))


class Turn(NamedTuple):
    """One piece of a text: where it is written, and what its queries see."""

    config: Config
    stream: Stream
    first: int  # position of the first new token
    N: int

    def places(self, low: int, high: int) -> slice | np.ndarray:
        """Where the positions from low to high lie; a slice is read without a copy."""
        return as_run(slots(np.arange(low, high), self.stream.sinks, self.N))

    def write(self, store: np.ndarray, new: np.ndarray, *_: np.ndarray) -> None:
        """Write new keys (or values) of one layer over those that nobody will see.

        Parameters
        ----------
        store : (1, K, N, D) float
        new : (1, T, K, D) float
        """
        T = new.shape[1]
        store[0][:, self.places(self.first, self.first + T)] = new[0].swapaxes(0, 1)

    def attend(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, *_: np.ndarray
    ) -> np.ndarray:
        """Attention, as `sinks.at_once`.

        Parameters
        ----------
        q : (1, T, H, D) float
        k, v : (1, K, N, D) float

        Returns
        -------
        (1, T, H, D) float
        """
        how = self.places, QUERY_BLOCK
        return a_row(q[0], k[0], v[0], self.first, self.config, self.stream, how)[None]


def forward_ring(
    model: Model, tokens: np.ndarray, ring: Ring, last: bool = False
) -> np.ndarray:
    """Run one piece of a text through the model.

    Writes
    ------
    Into the ring; adds to its length.

    Parameters
    ----------
    model : Model
    tokens : (T,) int64
    ring : Ring
    last : bool
        Return only the logits after the last token.

    Returns
    -------
    (T_or_1, V) float

    Raises
    ------
    ValueError
        If the piece is longer than the ring was made for, or as `forward`.
    """
    N, T, first = ring.k.shape[3], len(tokens), int(ring.length[0])
    if not 1 <= T <= N - ring.stream.window + 1:
        raise ValueError(
            f"a piece of {T} tokens; this ring takes 1 to {N - ring.stream.window + 1}"
        )
    turn = Turn(model.config, ring.stream, first, N)
    # forward writes after what a cache holds: here, at most all that a ring can.
    held = KVCache(ring.k, ring.v, np.minimum(ring.length, N - T))
    logits = forward(
        model,
        tokens[None],
        held,
        last=last,
        attend=turn.attend,
        write=turn.write,
        positions=np.arange(first, first + T)[None],
    )
    ring.length[0] += T
    return logits[0]


def ring_streamed(model: Model, tokens: Sequence[int], ring: Ring) -> np.ndarray:
    """Run more tokens of a stream, in pieces as long as the ring takes.

    Writes
    ------
    Into the ring.

    Parameters
    ----------
    model : Model
    tokens : sequence of int
        At least one.
    ring : Ring

    Returns
    -------
    (V,) float
        The logits after the last token.

    Raises
    ------
    ValueError
        If there is no token.
    """
    piece, text = ring.k.shape[3] - ring.stream.window + 1, text_of(tokens)
    for t in range(0, len(text), piece):
        logits = forward_ring(model, text[t : t + piece], ring, last=True)[0]  # (V,)
    return logits


def surprise_in_ring(
    model: Model, tokens: Sequence[int], stream: Stream, piece: int = PREFILL_CHUNK
) -> np.ndarray:
    """The surprise at every token but the first, in memory for window and piece.

    Returns
    -------
    (S - 1,) float64
        In nats; as `streaming.surprise_of_stream`, a piece at a time.

    Raises
    ------
    ValueError
        As `new_ring`, if there is no token, or if one is outside the vocabulary.
    """
    text = text_of(tokens, piece)  # (S,)
    nats = np.empty(len(text) - 1, dtype=np.float64)  # (S - 1,)
    piece = min(piece, max(1, len(nats)))
    ring = new_ring(model.config, stream, piece, model.embed.dtype.name)
    for t in range(0, len(nats), piece):
        part = text[t : min(t + piece, len(nats))]  # (T,)
        logits = forward_ring(model, part, ring)  # (T, V)
        after = text[t + 1 : t + 1 + len(part)]  # (T,)
        nats[t : t + len(part)] = -log_softmax(logits)[np.arange(len(part)), after]
    return nats
