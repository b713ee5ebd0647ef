"""One thread that reads ahead: where a model lies in its file, and buffers in a cycle.

A model's file is a directory and tensors, one after the other.  `contents` looks
through the directory; a `Source` reads bytes into arrays that its caller made, in
pieces, as float32 whatever is stored; a `Reader` is the thread that does so ahead of
whoever uses what was read.  `storage` makes a model of them.

With two buffers, the thread waits when both are full, and its user when both are
empty.  An error while reading is raised where the part would have been used.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npllama.files.checkpoint import STORED, checked, locate, refuse_source
from npllama.files.npz import offset_of, read_open
from npllama.weights import LAYER_NAMES, Model, assemble

PIECE = 2**20  # elements that are read at a time

#  ---- what lies where ----------------------------------------------------------


class Span(NamedTuple):
    """Where a tensor lies in a file."""

    at: int  # of its first byte
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its elements."""
        return math.prod(self.shape)


class Contents(NamedTuple):
    """A model that stays in its file: all that is small, and where the rest lies.

    A *part* is what is read at once: part i < L is layer i, part L the head.
    """

    path: Path
    model: Model  # with config and tokenizer, without weights
    stored: str  # "float32", "float16", "bfloat16" or "float64"
    parts: tuple[tuple[Span, ...], ...]  # L layers, then the head
    words: tuple[str, ...]  # what the tensors of a layer are called in `Layer`
    embed: Span
    norm: Span

    @property
    def itemsize(self) -> int:
        """Bytes of an element in the file."""
        return np.dtype(STORED[self.stored]).itemsize

    def bytes_of(self, part: int) -> int:
        """Bytes of a part in the file."""
        return sum(span.size for span in self.parts[part]) * self.itemsize


def contents(path: str | os.PathLike) -> Contents:
    """Look through the directory of a model's file; no weight is read.

    Raises
    ------
    ValueError, OSError
        As `checkpoint.load`; also for a tensor in Fortran's order.
    """
    path = locate(path)
    refuse_source(path)
    with open(path, "rb") as file:
        archive = read_open(file, path)
    config, stored, tokenizer = checked(path, archive)
    for name, tensor in archive.tensors.items():
        if not isinstance(tensor, np.ndarray):
            raise ValueError(f"{path}: {name} is packed; `load` maps such a file")
        if not tensor.flags.c_contiguous:
            raise ValueError(f"{path}: tensor {name} lies in Fortran's order")
    mapped = assemble(config, archive.tensors, tokenizer)
    spans = {n: Span(offset_of(t), t.shape) for n, t in archive.tensors.items()}
    first = {w: t for w, t in mapped.layers[0]._asdict().items() if t is not None}

    def layer(i: int) -> tuple[Span, ...]:
        names = (f"model.layers.{i}.{LAYER_NAMES[word]}" for word in first)
        return tuple(
            Span(spans[name].at, tensor.shape)  # with heads on an axis of their own
            for name, tensor in zip(names, first.values())
        )

    embed = spans["model.embed_tokens.weight"]
    head = spans.get("lm_head.weight", embed)
    wishes = json.loads(archive.files.get("generation_config.json", b"{}"))
    nothing = np.empty(0, dtype=np.float32)
    model = Model(config, nothing, (), nothing, nothing, tokenizer, wishes)
    parts = (*map(layer, range(config.num_hidden_layers)), (head,))
    norm = spans["model.norm.weight"]
    return Contents(path, model, stored, parts, tuple(first), embed, norm)


#  ---- reading ------------------------------------------------------------------


class Source:
    """A file that is read into given arrays; it counts what was read.

    Two threads may read.
    """

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        self.file = open(path, "rb", buffering=0)
        self.bytes_read, self.seconds = 0, 0.0

    def fill(self, at: int, out: np.ndarray) -> None:
        """Read as many bytes as fit into a contiguous array.

        Writes
        ------
        The array.

        Raises
        ------
        ValueError
            If the file ends before.
        OSError
            If it cannot be read, or was closed.
        """
        view, done = memoryview(out.reshape(-1).view(np.uint8).data), 0
        while done < len(view):
            with self.lock:
                begin = time.perf_counter()
                n = self._read(at + done, view[done:])
                self.seconds += time.perf_counter() - begin
                self.bytes_read += n
            done += n

    def _read(self, at: int, view: memoryview) -> int:
        try:
            self.file.seek(at)
            n = self.file.readinto(view)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        if not n:
            raise ValueError(f"{self.path}: ends at byte {at}: truncated meanwhile")
        return n


def widen_into(out: np.ndarray, tensor: np.ndarray, stored: str) -> None:
    """Turn what was stored into float32; as `checkpoint.widen`, without new memory.

    Parameters
    ----------
    out : (M,) float32
    tensor : (M,) array as it lies in the file
    stored : "float32", "float16", "bfloat16" or "float64"

    Writes
    ------
    `out`
    """
    if stored == "bfloat16":
        # The upper half of a float32: shift it into place.
        bits = out.view(np.uint32)  # (M,)
        np.copyto(bits, tensor)
        np.left_shift(bits, 16, out=bits)
        return
    with np.errstate(invalid="ignore", over="ignore"):
        np.copyto(out, tensor, casting="same_kind")


def read_stored(source: Source, found: Contents, span: Span) -> np.ndarray:
    """A whole tensor as it is stored, flat."""
    array = np.empty(span.size, dtype=STORED[found.stored])
    for e in range(0, span.size, PIECE):
        source.fill(span.at + e * found.itemsize, array[e : e + PIECE])
    return array


def in_pieces(
    source: Source, found: Contents, span: Span, out: np.ndarray, piece: np.ndarray
) -> Iterator[None]:
    """Read a tensor as float32, and pause after every piece.

    Parameters
    ----------
    out : (M,) float32
    piece : (PIECE,) array of the stored dtype
        Where a piece is put before it is widened.

    Writes
    ------
    `out` and `piece`
    """
    for e in range(0, span.size, PIECE):
        some = out[e : e + PIECE]
        at = span.at + e * found.itemsize
        if found.stored == "float32":
            source.fill(at, some)
        else:
            raw = piece[: len(some)]
            source.fill(at, raw)
            widen_into(some, raw, found.stored)
        yield


class Reader:
    """A thread that fills buffers ahead of whoever uses them, in a cycle.

    The parts of `order` are numbered as they are read, pass after pass: number n goes
    to buffer n mod `buffers`.  So all there is to know are two numbers, how many parts
    were filled and how many were used.

    Parameters
    ----------
    order : sequence of int
        The parts of one pass.
    buffers : int
    fill : function
        From (part, buffer) to an iterator that fills it, a piece at a time.
    """

    def __init__(self, order: Sequence[int], buffers: int, fill: Callable):
        self.order, self.buffers, self.fill = tuple(order), buffers, fill
        self.filled = self.used = 0
        self.waited = 0.0  # seconds that a user waited
        self.error: BaseException | None = None
        self.closed = False
        self.turn = threading.Condition()
        self.thread = threading.Thread(target=self._work, name="storage", daemon=True)
        if self.order:
            self.thread.start()

    def _work(self) -> None:
        try:
            while self._has_room():
                part = self.order[self.filled % len(self.order)]
                for _ in self.fill(part, self.filled % self.buffers):
                    if self.closed:
                        return
                with self.turn:
                    self.filled += 1
                    self.turn.notify_all()
        except BaseException as error:  # it belongs to whoever waits for a part
            with self.turn:
                self.error = error
                self.turn.notify_all()

    def _has_room(self) -> bool:
        """Wait until a buffer is free; False if there is nothing left to do."""
        with self.turn:
            while self.filled - self.used >= self.buffers and not self.closed:
                self.turn.wait()
            return not self.closed

    def take(self, part: int) -> int:
        """Wait for a part, and return its number.

        It stays until it is released.  Parts before it are dropped: a pass may have
        ended early, by an error or an interrupt.

        Raises
        ------
        ValueError, OSError
            What went wrong while reading; or that the reader was closed.
        """
        while True:
            begin = time.perf_counter()
            with self.turn:
                while self.filled == self.used and not (self.error or self.closed):
                    self.turn.wait()
                self.waited += time.perf_counter() - begin
                if self.closed:
                    raise ValueError("the layers were closed")
                if self.filled == self.used:
                    raise self.error  # type: ignore[misc]
            if self.order[self.used % len(self.order)] == part:
                return self.used
            self.release(self.used)

    def release(self, number: int) -> None:
        """Give the buffer of a part back; nothing happens if it is free already."""
        with self.turn:
            self.used = max(self.used, number + 1)
            self.turn.notify_all()

    def close(self) -> None:
        """End the thread, and wait until it has ended."""
        with self.turn:
            self.closed = True
            self.turn.notify_all()
        if self.order:
            self.thread.join()
