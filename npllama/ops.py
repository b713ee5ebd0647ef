"""Chapter 1: the one product.

A LLaMA is matrix products with a little arithmetic between them.  Every product
of this book goes through the one function `einsum`, written as an equation

    y = einsum("BTE,FE->BTF", x, w_gate, "gate_proj")

that names the axes of both operands and of the result.  A letter in both operands
and in the result is a batch axis; one in both but not in the result is summed
over; the others are rows (of `a`) and columns (of `b`).  The equation is the shape
comment of the line, checked on every call, and the cost can be read off it:
2 x the product of its letters, a multiplication and an addition each.

Any such product is one matrix multiplication: bring the axes of `a` into the order
batch, rows, summed and those of `b` into batch, summed, columns; merge each kind
into one axis; multiply; split the axes again.  Transposing and merging only
renumber an array's strides, so weights are multiplied as they lie on disk.

An observer may look on: ``with observing(obs):`` lets ``obs`` see every product and
every array that a later chapter hands to `note`, to record them.  A ledger gets a
line for every product, to count it.  Nothing else in this book knows that it is
being watched.

At its end the chapter asks the system, once, to keep the memory of freed arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np


class Observer(Protocol):
    """What may watch a computation, such as a recorder of activations."""

    def enter(self, place: str) -> None:
        """The computation has come to `place`, such as ``model.layers.3``."""

    def product(self, name: str, equation: str, a, b, y) -> None:
        """The product `y` of `a` and `b` was computed."""

    def note(self, name: str, x: np.ndarray) -> None:
        """The array `x` was computed, by anything but a product."""


class Kind(NamedTuple):
    """All that the cost of a product depends on."""

    name: str
    equation: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype: np.dtype


class Ledger(Protocol):
    """What only counts gets a line for every product: that takes hardly any time."""

    lines: list  # the Kind of every product, and every place (str)

    def begin(self, start: np.ndarray, x: np.ndarray) -> None:
        """A pass through the model begins."""


_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())
_ledgers: ContextVar[tuple[Ledger, ...]] = ContextVar("ledgers", default=())


@contextmanager
def observing(observer: Observer) -> Iterator[Observer]:
    """Let `observer` watch what is computed inside the ``with`` block.

    Do not hold it open across the ``yield`` of a generator: what the consumer
    computes in between would be seen as well.
    """
    token = _observers.set((*_observers.get(), observer))
    try:
        yield observer
    finally:
        _observers.reset(token)


@contextmanager
def keeping(ledger: Ledger) -> Iterator[Ledger]:
    """Let `ledger` get its lines inside the ``with`` block; each once, also if nested."""
    ledgers = _ledgers.get()
    token = _ledgers.set(ledgers if ledger in ledgers else (*ledgers, ledger))
    try:
        yield ledger
    finally:
        _ledgers.reset(token)


def begin(start: np.ndarray, x: np.ndarray) -> None:
    """Tell the ledgers that a pass through the model begins.

    Parameters
    ----------
    start : (B,) int64
        Positions that each row holds before it.
    x : (B, T, E) float
        Embeddings of the new ones.
    """
    for ledger in _ledgers.get():
        ledger.begin(start, x)


def enter(place: str) -> None:
    """Tell all who watch which part of the model comes next."""
    for observer in _observers.get():
        observer.enter(place)
    for ledger in _ledgers.get():
        ledger.lines.append(place)


def note(name: str, x: np.ndarray) -> None:
    """Show an array to the observers."""
    for observer in _observers.get():
        observer.note(name, x)


class Plan(NamedTuple):
    """How one equation becomes one matrix multiplication; None: leave as it is."""

    kind: Kind
    order_a: tuple[int, ...] | None
    shape_a: tuple[int, ...] | None
    order_b: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    shape_y: tuple[int, ...] | None
    order_y: tuple[int, ...] | None
    skinny: bool


# Attention's shapes change with every token, so plans come and go.
@lru_cache(maxsize=4096)
def plan(
    equation: str, shape_a: tuple, shape_b: tuple, name: str, dtype: np.dtype
) -> Plan:
    """Work out, once per equation and shapes, how to compute a product.

    Raises
    ------
    ValueError
        If the shapes do not fit the equation, or it is none.
    """
    operands, out = equation.split("->")
    word_a, word_b = operands.split(",")
    size = _sizes(equation, word_a, word_b, shape_a, shape_b, name)

    batch = [c for c in word_a if c in word_b and c in out]
    summed = [c for c in word_a if c in word_b and c not in out]
    rows = [c for c in word_a if c not in word_b]
    columns = [c for c in word_b if c not in word_a]
    if sorted(out) != sorted(batch + rows + columns) or _repeats(word_a, word_b):
        raise ValueError(f"{name}: {equation}: a letter is repeated, lost or unknown")

    def sizes(letters: list[str]) -> tuple[int, ...]:
        return tuple(size[c] for c in letters)

    M, S, C = (math.prod(sizes(kind)) for kind in (rows, summed, columns))
    y = batch + rows + columns
    return Plan(
        kind=Kind(name, equation, shape_a, shape_b, dtype),
        order_a=_order(word_a, batch + rows + summed),
        shape_a=_unless(len(rows) == len(summed) == 1, (*sizes(batch), M, S)),
        order_b=_order(word_b, batch + summed + columns),
        shape_b=_unless(len(summed) == len(columns) == 1, (*sizes(batch), S, C)),
        shape_y=_unless(len(rows) == len(columns) == 1, sizes(y)),
        order_y=_order("".join(y), list(out)),
        skinny=not batch and 2 <= M <= 7,
    )


def _sizes(equation, word_a, word_b, shape_a, shape_b, name) -> dict[str, int]:
    """Size of every letter, or ValueError if the shapes contradict the equation."""
    if len(word_a) != len(shape_a) or len(word_b) != len(shape_b):
        raise ValueError(f"{name}: {equation} does not fit {shape_a} and {shape_b}")
    size = dict(zip(word_a, shape_a))
    for letter, length in zip(word_b, shape_b):
        if size.setdefault(letter, length) != length:
            raise ValueError(
                f"{name}: {equation}: axis {letter} is {size[letter]} and {length}"
            )
    return size


def _repeats(*words: str) -> bool:
    return any(len(set(word)) < len(word) for word in words)


def _order(word: str, letters: list[str]) -> tuple[int, ...] | None:
    order = tuple(word.index(c) for c in letters)
    return None if order == tuple(range(len(order))) else order


def _unless(same: bool, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if same else shape


# A block of weights of this many elements stays in the processor's cache.
BLOCK = 2**19


def skinny_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply a few rows by a large matrix, block by block.

    BLAS is at its best with one row or with many.  With two to seven (a small
    batch, a few drafted tokens to verify, the beams of a search) it is up to three
    times slower than this: for each block of weights, while it lies in the cache,
    one matrix-vector product per row.

    Parameters
    ----------
    a : (M, S) float
    b : (S, C) float
        The transpose of a weight matrix.

    Returns
    -------
    (M, C) float
    """
    M, S = a.shape
    C = b.shape[1]
    y = np.empty((M, C), dtype=np.result_type(a, b))  # (M, C)
    step = max(1, BLOCK // max(S, 1))
    for c in range(0, C, step):
        block = b.T[None, c : c + step]
        np.matmul(block, a[:, :, None], out=y[:, c : c + step, None])
    return y


def einsum(equation: str, a: np.ndarray, b: np.ndarray, name: str) -> np.ndarray:
    """Multiply two arrays as `equation` says.

    Parameters
    ----------
    equation : str
        Such as ``"BTE,FE->BTF"``: one letter per axis, no letter twice in a word.
        Every letter stands in two or three of the words; one that stands in only
        one operand and not in the result is not allowed.
    a, b : arrays of one dtype
    name : str
        What the product is called when it is counted, recorded or refused.

    Returns
    -------
    array, of the same dtype
        Possibly a transposed view.

    Raises
    ------
    ValueError
        If the shapes do not fit the equation.
    """
    p = plan(equation, a.shape, b.shape, name, a.dtype)
    left = a if p.order_a is None else a.transpose(p.order_a)
    left = left if p.shape_a is None else left.reshape(p.shape_a)
    right = b if p.order_b is None else b.transpose(p.order_b)
    right = right if p.shape_b is None else right.reshape(p.shape_b)
    y = skinny_product(left, right) if p.skinny else np.matmul(left, right)
    y = y if p.shape_y is None else y.reshape(p.shape_y)
    y = y if p.order_y is None else y.transpose(p.order_y)
    for observer in _observers.get():
        observer.product(name, equation, a, b, y)
    for ledger in _ledgers.get():
        ledger.lines.append(p.kind)
    return y


def keep_freed_memory() -> None:
    """Have up to 64 MiB of freed arrays kept for the next ones.

    GNU's C library gives large arrays back to the system, which then has to clear
    every page of the next ones: a tenth to a third of the time of a prompt.  It
    learns, and keeps twice the largest array that it saw freed, but a layer has
    several of that size at once.  So one of nearly 32 MiB (the most it heeds; larger
    ones always go back) is freed at the start.  Elsewhere nothing changes.

    References
    ----------
    ``man mallopt``, M_MMAP_THRESHOLD, on the threshold that adjusts itself.
    """
    np.empty(2**25 - 2**13, dtype=np.uint8)


keep_freed_memory()
