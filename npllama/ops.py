"""Chapter 1: the one product.

A LLaMA is matrix products with a little arithmetic between them.  Every product
of this book goes through the one function `einsum`, written as an equation

    y = einsum("BTE,FE->BTF", x, w_gate, "gate_proj")

that names the axes of both operands and of the result.  A letter in both
operands and in the result is a batch axis; one in both but not in the result
is summed over.  The others are rows, if they stand in the first operand, `a`,
and columns, if they stand in the second, `b`.  The equation is a shape comment
that is checked on every call.  It also tells the cost: 2 x the product of the
sizes of its letters, for a multiplication and an addition each.

Any such product is one matrix multiplication: bring the axes of `a` into the order
batch, rows, summed and those of `b` into batch, summed, columns; merge each kind
into one axis; multiply; split the axes again.  Transposing and merging only
change an array's strides, so weights are multiplied as they lie on disk.

The second operand may also be a `Weight` that is not an array (one packed into
four bits, say).  It brings its own multiplication, and its memory counts as
the bytes that it keeps.

To see what is computed, run it inside ``with observing(obs):``, with an
`Observer` as obs.  Nothing else in this book knows that it is being watched.

At its end the chapter asks the system, once, to keep the memory of freed arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

#  ---- who watches ------------------------------------------------------------


class Kind(NamedTuple):
    """All that the cost of a product depends on."""

    name: str
    equation: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype: np.dtype
    kept: tuple[str, int] | None = None  # of a `Weight`: its format, its bytes


class Observer:
    """Watches a computation, to record or to count it.

    A subclass overrides the methods for what it wants to see; the others do
    nothing.
    """

    def begin(self, start: np.ndarray, new: np.ndarray, x: np.ndarray) -> None:
        """A pass through the model begins; the arguments are those of `ops.begin`."""

    def enter(self, place: str) -> None:
        """The computation has come to `place`, such as ``model.layers.3``."""

    def product(self, kind: Kind, a: np.ndarray, b: Any, y: np.ndarray) -> None:
        """The product `y` of `a` and `b` was computed."""

    def note(self, name: str, x: np.ndarray) -> None:
        """The array `x` was computed, by anything but a product."""


Watcher = TypeVar("Watcher", bound=Observer)
_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())


@contextmanager
def observing(observer: Watcher) -> Iterator[Watcher]:
    """Let `observer` watch what is computed inside the ``with`` block.

    If blocks of one observer are nested, it still sees everything only once.
    Do not hold a block open across the ``yield`` of a generator: the observer
    would also see what the consumer computes in between.
    """
    watching = _observers.get()
    once = any(other is observer for other in watching)
    token = _observers.set(watching if once else (*watching, observer))
    try:
        yield observer
    finally:
        _observers.reset(token)


def begin(start: np.ndarray, new: np.ndarray, x: np.ndarray) -> None:
    """Tell the observers that a pass through the model begins.

    Parameters
    ----------
    start : (R,) int64
        Positions that each text holds before the pass.
    new : (R,) int64
        Positions that each text gets, padding included.
    x : (B, T, E) float
        Embeddings of all new positions: a text per row, or all texts in one row.
    """
    for observer in _observers.get():
        observer.begin(start, new, x)


def enter(place: str) -> None:
    """Tell the observers which part of the model comes next."""
    for observer in _observers.get():
        observer.enter(place)


def note(name: str, x: np.ndarray) -> None:
    """Show an array to the observers."""
    for observer in _observers.get():
        observer.note(name, x)


#  ---- what an equation means -------------------------------------------------


class Plan(NamedTuple):
    """How an equation becomes a matrix multiplication; None: leave the array as is."""

    kind: Kind
    order_a: tuple[int, ...] | None
    shape_a: tuple[int, ...] | None
    order_b: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    shape_y: tuple[int, ...] | None
    order_y: tuple[int, ...] | None
    batched: bool  # a letter stands in all three words
    weight: bool  # the letters of `b` are columns, then summed


# Attention's shapes change with every token, so plans come and go.
@lru_cache(maxsize=4096)
def plan(
    equation: str,
    shape_a: tuple,
    shape_b: tuple,
    name: str,
    dtype: np.dtype,
    kept: tuple[str, int] | None = None,
) -> Plan:
    """Work out, once per equation and shapes, how to compute a product.

    Raises
    ------
    ValueError
        If the shapes do not fit the equation, or it is not the equation of a product.
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

    M, Z, C = (math.prod(sizes(kind)) for kind in (rows, summed, columns))
    y = batch + rows + columns
    return Plan(
        kind=Kind(name, equation, shape_a, shape_b, dtype, kept),
        order_a=_order(word_a, batch + rows + summed),
        shape_a=_unless(len(rows) == len(summed) == 1, (*sizes(batch), M, Z)),
        order_b=_order(word_b, batch + summed + columns),
        shape_b=_unless(len(summed) == len(columns) == 1, (*sizes(batch), Z, C)),
        shape_y=_unless(len(rows) == len(columns) == 1, sizes(y)),
        order_y=_order("".join(y), list(out)),
        batched=bool(batch),
        weight=not batch and list(word_b) == columns + summed,
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


#  ---- multiplying ------------------------------------------------------------

# Below, a product has M rows and C columns, and sums over Z numbers.

# A block of weights of this many elements stays in the processor's cache.
BLOCK = 2**19


def row_by_row(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply every row by a large matrix on its own, block by block.

    While a block of weights lies in the processor's cache, every row is
    multiplied by it, with one matrix-vector product each.  BLAS is at its best
    with one row or with many: with two to seven (a small batch, a few drafted
    tokens to verify, the beams of a search) it is up to three times slower
    than this.

    Parameters
    ----------
    a : (M, Z) float
    b : (Z, C) float
        The transpose of a weight matrix.

    Returns
    -------
    (M, C) float
    """
    M, Z = a.shape
    C = b.shape[1]
    y = np.empty((M, C), dtype=np.result_type(a, b))  # (M, C)
    step = max(1, BLOCK // max(Z, 1))
    for c in range(0, C, step):
        block = b.T[None, c : c + step]
        np.matmul(block, a[:, :, None], out=y[:, c : c + step, None])
    return y


_rowwise: ContextVar[bool] = ContextVar("rowwise", default=False)


@contextmanager
def rowwise(on: bool = True) -> Iterator[None]:
    """Make the numbers of a text independent of the texts beside it, bit for bit.

    BLAS sums a row in another order when there are more rows beside it.  So
    the last bits of a text's numbers depend on the batch, and on the pieces in
    which its prompt is run.  Inside this ``with`` block every row is
    multiplied alone, and attention takes one query at a time.  Then a text
    gives the same floats in a batch, in chunks or in a packed row as alone.
    But a prompt takes several times as long.

    References
    ----------
    Horace He and Thinking Machines Lab 2025, "Defeating Nondeterminism in LLM
    Inference"; vLLM has it as ``VLLM_BATCH_INVARIANT=1``.
    """
    token = _rowwise.set(on)
    try:
        yield
    finally:
        _rowwise.reset(token)


def is_rowwise() -> bool:
    """Whether the computation runs inside a `rowwise` block."""
    return _rowwise.get()


# Up to FEW rows are multiplied one by one.  Up to SOME rows, the weights are the first
# operand: some BLAS kernels are then 1.5 times faster, and none is notably slower.
FEW, SOME = 7, 64


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply rows by a matrix, uncounted: for `einsum` and the insides of a `Weight`.

    Parameters
    ----------
    a : (M, Z) float
    b : (Z, C) float

    Returns
    -------
    (M, C) float
    """
    M = len(a)
    if 2 <= M <= FEW or _rowwise.get():
        return row_by_row(a, b)
    if FEW < M <= SOME:
        return np.ascontiguousarray(np.matmul(b.T, a.T).T)
    return np.matmul(a, b)


class Weight(Protocol):
    """A second operand that is not an array: packed into few bits, adapted, ...

    In an equation, the letters of its output come first, then those that are
    summed, as for every weight of the book.
    """

    shape: tuple[int, ...]
    dtype: np.dtype  # of the arithmetic, that of the first operand
    kept: tuple[str, int]  # the name of its format, and the bytes that it keeps

    def times(self, a: np.ndarray) -> np.ndarray:
        """Multiply rows: (M, Z), with the summed axes as Z, to (M, C), the output."""


def einsum(equation: str, a: np.ndarray, b: Any, name: str) -> np.ndarray:
    """Multiply two arrays as `equation` says.

    Parameters
    ----------
    equation : str
        Such as ``"BTE,FE->BTF"``: one letter per axis, no letter twice in a word.
        Every letter stands in two or three of the words; one that stands in only
        one operand and not in the result is not allowed.
    a : array
    b : array of the same dtype, or a `Weight`
    name : str
        What the product is called when it is counted, recorded or refused.

    Returns
    -------
    array, of the same dtype
        Possibly a transposed view.

    Raises
    ------
    ValueError
        If the shapes do not fit the equation, or its order does not fit a `Weight`.
    """
    array = isinstance(b, np.ndarray)
    kept = None if array else b.kept
    p = plan(equation, a.shape, b.shape, name, a.dtype, kept)
    left = a if p.order_a is None else a.transpose(p.order_a)
    left = left if p.shape_a is None else left.reshape(p.shape_a)
    if array:
        right = b if p.order_b is None else b.transpose(p.order_b)
        right = right if p.shape_b is None else right.reshape(p.shape_b)
        y = np.matmul(left, right) if p.batched else multiply(left, right)
    elif p.weight:
        y = b.times(left)
    else:
        raise ValueError(f"{name}: {equation}: a Weight has its outputs first")
    y = y if p.shape_y is None else y.reshape(p.shape_y)
    y = y if p.order_y is None else y.transpose(p.order_y)
    for observer in _observers.get():
        observer.product(p.kind, a, b, y)
    return y


def keep_freed_memory() -> None:
    """Have up to 64 MiB of freed arrays kept for the next ones.

    GNU's C library returns large freed arrays to the system, which then has to
    clear every page of the next ones.  That takes a tenth to a third of the
    time of a prompt.  The library adapts: it keeps up to twice the size of the
    largest array that it saw freed.  But a layer has several of that size at
    once.  So this function frees one array of nearly 32 MiB, the largest size
    to which the library adapts (larger arrays always go back).  With other C
    libraries nothing changes.

    References
    ----------
    ``man mallopt``, M_MMAP_THRESHOLD, on the threshold that adjusts itself.
    """
    np.empty(2**25 - 2**13, dtype=np.uint8)


keep_freed_memory()
