"""What this machine can do, measured in a second or two.

A data-sheet's figures bound any program; a prediction for this program needs what
NumPy gets.  So the probe does what a forward pass does, on arrays of its sizes:

*Memory*, by matrix-vector products, for that is all that decode does: every weight
is read once, multiplied and forgotten.  The weights are more than processors' caches
hold, and lie in pages of the kind that a mapped file has, not in the large ones that
NumPy asks for: finding small pages takes its time, and a model's weights are mapped.

*Arithmetic*, by products of 256 positions with matrices of a small and of a large
model, since larger ones are done at a better rate.  Every product meets weights
that are not in the cache, as in a forward pass.

*Everything else*, by SiLU.  A GPU's compiler melts what stands between two products
into them; NumPy walks through the array once for each function, on one core.  With a
BLAS on several cores it takes a fifth of the time of a prompt, too much to leave out.

Each is the median of several rounds, after one that is forgotten.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np

from npllama.cost.hardware import THIS_MACHINE, Hardware
from npllama.feedforward import silu
from npllama.ops import einsum

# (E, F) of a model of 110 million parameters, and of one of 1.1 billion.
WIDTHS = ((768, 2048), (2048, 5632))
POSITIONS, ROUNDS = 256, 5
BEYOND_CACHES = 2**28  # bytes
# What SiLU does to an element: negate, exponentiate, add one, divide.
SILU = 4


def rate_of(work: Callable[[], object], amount: float) -> float:
    """Units per second: of `amount` units, in the median of several calls."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return amount / median(seconds)


def weights(size: int) -> list[np.ndarray]:
    """Matrices of both widths in turn, of so many bytes, in small pages."""
    pool = np.frombuffer(mmap.mmap(-1, size), dtype=np.float32)
    pool[:] = 0.5
    found: list[np.ndarray] = []
    begin = 0
    while True:
        E, F = WIDTHS[len(found) % 2]
        if begin + E * F > len(pool):
            return found
        found.append(pool[begin : begin + E * F].reshape(F, E))
        begin += E * F


def multiply(matrices: list[np.ndarray], T: int) -> None:
    """Each with as many positions."""
    inputs = {E: np.ones((T, E), dtype=np.float32) for E, _ in WIDTHS}
    for w in matrices:
        einsum("TE,FE->TF", inputs[w.shape[1]], w, "probe")


def memory_rate(matrices: list[np.ndarray]) -> float:
    """Bytes per second of matrix-vector products."""
    size = sum(w.nbytes for w in matrices)
    return rate_of(lambda: multiply(matrices, 1), size)


def product_rate(matrices: list[np.ndarray]) -> float:
    """FLOP/s of products with many positions, half of them at each width."""
    small = [w for w in matrices if w.shape[1] == WIDTHS[0][0]]
    large = [w for w in matrices if w.shape[1] == WIDTHS[1][0]]
    some, one = small[:4], large[:1]
    rates = []
    for group in (some, one):
        flops = 2 * POSITIONS * sum(w.size for w in group)
        rates.append(rate_of(partial(multiply, group, POSITIONS), flops))
    return len(rates) / sum(1 / rate for rate in rates)


def elementwise_rate() -> float:
    """Elements per second that one NumPy function walks through."""
    x = np.ones((POSITIONS, WIDTHS[0][1]), dtype=np.float32)  # (T, F)
    return rate_of(lambda: silu(x), SILU * x.size)


def memory_bytes() -> int | None:
    """Bytes of memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def this_machine() -> Hardware:
    """Measure this machine, in float32, with as many threads as BLAS takes."""
    matrices = weights(BEYOND_CACHES)
    return Hardware(
        THIS_MACHINE,
        {"fp32": product_rate(matrices)},
        memory_rate(matrices),
        memory_bytes(),
        elementwise=elementwise_rate(),
    )
