"""One pass over pieces of several texts.

A server runs many texts at a time: in one pass it may read a piece of one text's
prompt, and a single token of each of thirty others.  As rows of a batch they would all
be padded to the longest piece.  But outside attention a model treats each position
alone, so the pieces can stand one after the other in a single row:

    text        0  0  0  1  2  2
    position    0  1  2  7  4  5
    place      12 13 14  3  8  1

Only attention has to know which positions belong together: it takes the pieces one by
one, each with the keys and values of its own text.  These may lie anywhere in the
cache; the *place* of a position is its index there.  Orca calls this selective
batching; vLLM runs every step this way.

The weights are read once for all texts, and nothing is computed for padding.

References
----------
Yu et al. 2022, "Orca", OSDI, section 3.2; Kwon et al. 2023, arXiv:2309.06180.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.attention import blocked
from npllama.cache import KVCache
from npllama.model import forward
from npllama.serving.pages import as_run, gather
from npllama.weights import Model


class Piece(NamedTuple):
    """The new positions of one text in a packed row."""

    start: np.ndarray  # (1,) int64, positions that the text holds before
    row: slice  # its part of the row
    new: np.ndarray | slice  # (T,) places of its new positions
    all: np.ndarray | slice  # (S,) places of all its positions


class Packed(NamedTuple):
    """Where texts lie in a packed row and in the cache."""

    pieces: tuple[Piece, ...]

    def write(self, store: np.ndarray, new: np.ndarray, *_: np.ndarray) -> None:
        """Write new keys (or values) of one layer, each to its place.

        Parameters
        ----------
        store : (1, K, N, D) float
        new : (1, T, K, D) float
        """
        for piece in self.pieces:
            store[0][:, piece.new] = new[0, piece.row].swapaxes(0, 1)

    def attend(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, *_: np.ndarray
    ) -> np.ndarray:
        """Attention: every piece sees the positions of its own text.

        Parameters
        ----------
        q : (1, T, H, D) float
        k, v : (1, K, N, D) float

        Returns
        -------
        (1, T, H, D) float
        """
        y = np.empty_like(q)  # (1, T, H, D)
        for piece in self.pieces:
            keys, values = gather(k, piece.all), gather(v, piece.all)
            y[:, piece.row] = blocked(q[:, piece.row], keys, values, piece.start)
        return y


def packed(
    start: np.ndarray, count: np.ndarray, places: Sequence[np.ndarray]
) -> Packed:
    """Lay out a packed row.

    Parameters
    ----------
    start : (R,) int64
        Positions that each text holds before.
    count : (R,) int64
        Positions that each text gets.
    places : R arrays (S,) int64
        Where in the cache the positions of each text lie, the new ones included.

    Raises
    ------
    ValueError
        If a text has fewer places than positions.
    """
    pieces, t = [], 0
    for number, (s, n) in enumerate(zip(start.tolist(), count.tolist())):
        where = np.asarray(places[number])[: s + n]
        if len(where) < s + n:
            raise ValueError(f"text {number}: {len(where)} places, {s + n} positions")
        row = slice(t, t + n)
        pieces.append(Piece(np.array([s]), row, as_run(where[s:]), as_run(where)))
        t += n
    return Packed(tuple(piece for piece in pieces if piece.row.start < piece.row.stop))


def forward_packed(
    model: Model,
    texts: Sequence[np.ndarray],
    cache: KVCache,
    places: Sequence[np.ndarray],
    last: bool | np.ndarray = True,
) -> np.ndarray:
    """Run the next tokens of several texts through the model, in one row.

    Writes
    ------
    Keys and values of the new positions into their places; adds to the lengths.

    Parameters
    ----------
    model : Model
    texts : R arrays (T,) int64
        The next tokens of each text; a text may have none.
    cache : KVCache
        k and v of (L, 1, K, N, D), shared by all texts, and R lengths.
    places : R arrays (S,) int64
        Where the positions of each text lie, from its first to its last new one.
    last : bool, or (M,) int64
        Return only the logits that follow the last token of each text; or those at
        the given places of the row.

    Returns
    -------
    (1, T_or_M, V) float
        With `last`, a row of R logits; those of a text without new tokens mean
        nothing.

    Raises
    ------
    ValueError
        As `forward`; or if a text has fewer places than positions.
    """
    count = np.array([len(tokens) for tokens in texts], dtype=np.int64)
    layout = packed(cache.length, count, places)
    tokens = np.concatenate([np.asarray(t, dtype=np.int64) for t in texts])[None]
    return forward(
        model,
        tokens,
        cache,
        count,
        last=last,
        attend=layout.attend,
        write=layout.write,
    )
