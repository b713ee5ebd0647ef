"""Weights larger than memory: layers are read while others compute.

A forward pass uses its layers in order, and then the head, `lm_head`.  So they need not
all be in memory: while one is used, a thread reads the next from the file.  Two buffers
suffice, which take turns:

    reading     0 1 2 3 4 5 ...          layer i goes to buffer i mod 2, once
    computing     0 1 2 3 4 ...          layer i - 2 has been used

If reading takes longer than computing, as it mostly does, the time of a pass is that of
the reading: (bytes read) / (bytes per second), see `offload`.  The thread goes on with
layer 0 while the head computes and a token is chosen.

Some layers can stay in memory, *pinned*: they are not read again.  They stay as they
are stored; what is stored in 16 bits is widened into a buffer whenever it is used, by
the same thread.  To the forward pass all this is a model like any other: its layers
come from an iterator, its embedding reads the rows that are looked up, and its head is
a `Weight`.

Nothing is mapped.  A mapped file fills the memory with its pages, which ones the
system decides, and an error while reading kills the process.  Here every byte is read
into arrays that were made at the beginning, and an error is an exception.

References
----------
Sheng et al. 2023, arXiv:2303.06865 (FlexGen), section 4; the bound is derived in
``cost/README.md``, section 4.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from npllama.contexts.reading import (
    PIECE,
    Contents,
    Reader,
    Source,
    Span,
    contents,
    in_pieces,
    read_stored,
    widen_into,
)
from npllama.files.checkpoint import STORED
from npllama.ops import multiply
from npllama.weights import Layer, Model

ALIGNMENT = 16  # elements: 64 bytes, as in the file
#  ---- a model on storage -------------------------------------------------------


def aligned(size: int) -> np.ndarray:
    """(size,) float32, not set, that begin where the processor likes it."""
    raw = np.empty(size + ALIGNMENT, dtype=np.float32)
    skip = -(raw.ctypes.data // raw.itemsize) % ALIGNMENT
    return raw[skip : skip + size]


def starts_of(spans: Iterable[Span]) -> list[int]:
    """Where the tensors of a part begin in a buffer, and where the last ends."""
    sizes = (-(-span.size // ALIGNMENT) * ALIGNMENT for span in spans)
    return [0, *accumulate(sizes)]


def buffer_size(found: Contents, pinned: Collection[int]) -> int:
    """Elements of a buffer that holds any of the parts that need one."""
    needed = needing_buffers(found, pinned)
    return max((starts_of(found.parts[i])[-1] for i in needed), default=0)


def needing_buffers(found: Contents, pinned: Collection[int]) -> list[int]:
    """Parts that pass through a buffer: all but pinned ones that need no widening."""
    direct = set(pinned) if found.stored == "float32" else set()
    return [i for i in range(len(found.parts)) if i not in direct]


class Streamed:
    """The layers of a model, read from its file in every pass.

    Iterating yields every `Layer` in order.  Its arrays are overwritten when the next
    layers have been asked for.  One pass can run at a time.  It should be closed, by
    ``close()`` or a ``with`` block.

    Parameters
    ----------
    path : path or str
        Of an ``.npz`` as for `checkpoint.load`.
    pinned : collection of int
        Parts that stay in memory; L is the head.
    buffers : int
        At least 1.  With one, reading and computing take turns.

    Attributes
    ----------
    bytes_read : int
        Of all weights so far, pinned ones included.
    times : list of float
        Seconds of every pass so far, from its first layer to the head.

    Raises
    ------
    ValueError, OSError
        As `contents`; or if there is no such part, or no buffer.  While iterating: if
        the file cannot be read.
    """

    def __init__(
        self, path: str | os.PathLike, pinned: Collection[int] = (), buffers: int = 2
    ):
        found = contents(path)
        wrong = [part for part in pinned if not 0 <= part < len(found.parts)]
        if wrong or buffers < 1:
            raise ValueError(
                f"pinned parts {wrong} of 0 to {len(found.parts) - 1}, {buffers} "
                "buffers: there is no such part, or no buffer"
            )
        self.contents = found
        self.times: list[float] = []
        self.begun = 0.0
        self.source = source = Source(found.path)
        self.pinned = {
            part: [read_stored(source, found, span) for span in found.parts[part]]
            for part in sorted(pinned)
        }
        size = buffer_size(found, pinned)
        self.buffers = [aligned(size) for _ in range(buffers)]
        fill = partial(fill_part, source, found, self.pinned, self.buffers)
        order = needing_buffers(found, pinned)
        self.reader = Reader(order, buffers, partial(fill, piece_for(found)))
        # Whoever forgets to close it leaves no thread, at the latest when Python ends.
        self._end = weakref.finalize(self, close_both, self.reader, source)

    def __len__(self) -> int:
        return len(self.contents.parts) - 1

    def __iter__(self) -> Iterator[Layer]:
        self.begun = time.perf_counter()
        for i in range(len(self)):
            if i not in self.reader.order:
                yield self._layer(self.pinned[i])
                continue
            number = self.reader.take(i)
            yield self._layer(self._tensors(i, number))
            # Only here: a pass that was broken off leaves the layer to the next.
            self.reader.release(number)

    def _layer(self, tensors: Sequence[np.ndarray]) -> Layer:
        shapes = (span.shape for span in self.contents.parts[0])
        named = zip(self.contents.words, tensors, shapes)
        return Layer(**{word: t.reshape(shape) for word, t, shape in named})

    def _tensors(self, part: int, number: int) -> list[np.ndarray]:
        """Views of the buffer that holds a part, flat."""
        buffer = self.buffers[number % len(self.buffers)]
        spans = self.contents.parts[part]
        return [buffer[a : a + s.size] for a, s in zip(starts_of(spans), spans)]

    def times_head(self, a: np.ndarray) -> np.ndarray:
        """Multiply rows by the head: (M, E) to (M, V)."""
        part = len(self)
        (span,) = self.contents.parts[part]
        if part in self.reader.order:
            number = self.reader.take(part)
            (weight,) = self._tensors(part, number)  # (V * E,)
            y = multiply(a, weight.reshape(span.shape).T)
            self.reader.release(number)
        else:
            y = multiply(a, self.pinned[part][0].reshape(span.shape).T)
        self.times.append(time.perf_counter() - self.begun)
        return y

    @property
    def bytes_read(self) -> int:
        """Bytes of the file that were read so far."""
        return self.source.bytes_read

    def close(self) -> None:
        """End the reading thread, and close the file."""
        self._end()

    def __enter__(self) -> Streamed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def piece_for(found: Contents) -> np.ndarray:
    """Room for what is read before it is widened; none if nothing is."""
    size = 0 if found.stored == "float32" else PIECE
    return np.empty(size, dtype=STORED[found.stored])


def fill_part(
    source: Source,
    found: Contents,
    pinned: dict[int, list[np.ndarray]],
    buffers: Sequence[np.ndarray],
    piece: np.ndarray,
    part: int,
    buffer: int,
) -> Iterator[None]:
    """Bring a part into a buffer, from the file or from where it is pinned.

    Writes
    ------
    The buffer and `piece`.
    """
    spans = found.parts[part]
    for i, (span, start) in enumerate(zip(spans, starts_of(spans))):
        out = buffers[buffer][start : start + span.size]
        if part in pinned:
            widen_into(out, pinned[part][i], found.stored)
            yield
        else:
            yield from in_pieces(source, found, span, out, piece)


def close_both(reader: Reader, source: Source) -> None:
    """End the thread, then close the file that it reads."""
    reader.close()
    source.file.close()


class Rows:
    """The embedding on storage: a row is read when it is looked up."""

    dtype = np.dtype(np.float32)

    def __init__(self, layers: Streamed):
        self.layers = layers

    def __getitem__(self, tokens: np.ndarray) -> np.ndarray:
        """(*B,) int64 to (*B, E) float32."""
        found, source = self.layers.contents, self.layers.source
        E = found.model.config.hidden_size
        raw = np.empty((tokens.size, E), dtype=STORED[found.stored])
        for row, token in zip(raw, tokens.ravel().tolist()):
            source.fill(found.embed.at + token * row.nbytes, row)
        wide = np.empty(raw.size, dtype=np.float32)
        widen_into(wide, raw.reshape(-1), found.stored)
        return wide.reshape(*tokens.shape, E)


class Head:
    """The head on storage, a `Weight`."""

    dtype = np.dtype(np.float32)

    def __init__(self, layers: Streamed):
        self.layers = layers
        found, part = layers.contents, len(layers)
        self.shape = found.parts[part][0].shape  # (V, E)
        self.kept = f"{found.stored} on storage", found.bytes_of(part)

    def times(self, a: np.ndarray) -> np.ndarray:
        """Multiply rows: (M, E) to (M, V)."""
        return self.layers.times_head(a)


def model_on_storage(layers: Streamed) -> Model:
    """A `Model` for `forward` and all that is built on it.

    Its logits have the bits of those of a loaded model.
    """
    found = layers.contents
    norm = np.empty(found.norm.size, dtype=np.float32)
    widen_into(norm, read_stored(layers.source, found, found.norm), found.stored)
    here: Any = {"embed": Rows(layers), "layers": layers, "lm_head": Head(layers)}
    return found.model._replace(norm=norm, **here)


def read_per_pass(found: Contents, pinned: Collection[int], positions: int) -> int:
    """Bytes that a pass over some positions reads: what is not pinned, and their rows."""
    parts = (i for i in range(len(found.parts)) if i not in pinned)
    row = found.model.config.hidden_size * found.itemsize
    return sum(map(found.bytes_of, parts)) + positions * row
