"""The speed of this machine, measured in a few seconds.

The figures of a data sheet bound any program; a prediction for this program needs the
speed that NumPy reaches.  So the probe does the work of a forward pass, on arrays of
the same sizes:

*Memory*, by matrix-vector products, since decode consists of these: every weight is
read once and multiplied.  The weights exceed the processors' caches.  They lie in
pages of the size that a mapped file has, not in the large ones that NumPy requests:
small pages take longer to find, and a model's weights are mapped.

*Arithmetic*, by products of 256 positions with matrices of a small and of a large
model, since larger matrices reach a better rate.  There are so many of them that none
is still in the cache when it is used again, as in a forward pass.

*Everything else*, by RMSNorm, a rotation and SiLU.  A GPU's compiler fuses such
operations into the products; NumPy passes over the array once for each function, on
one core.  With a BLAS on several cores this takes a seventh of the time of a prompt,
too much to ignore.

*The interpreter*, by a narrow model: the time of a layer of decode beyond its products
with weights.  A call of NumPy costs a microsecond before any arithmetic, and twice
that after streaming weights have displaced its code from the caches, so it is measured
in that state.

Each figure is the median of several rounds, after one that is discarded.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np

from npllama.cache import new_cache
from npllama.config import Config
from npllama.cost.hardware import HARDWARE, Hardware
from npllama.cost.roofline import NORM, ROTATION, SILU
from npllama.feedforward import silu
from npllama.model import forward
from npllama.norm import rms_norm
from npllama.ops import einsum
from npllama.rope import rotate
from npllama.weights import Model, assemble, tensor_shapes

THIS_MACHINE = "this-machine"

# (E, F) of a model of 110 million parameters, and of one of 1.1 billion.
WIDTHS = ((768, 2048), (2048, 5632))
POSITIONS, ROUNDS, LAYERS = 256, 5, 8
BEYOND_CACHES = 2**28  # bytes


def seconds_of(work: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def rate_of(work: Callable[[], object], amount: float) -> float:
    """Units per second: of `amount` units, in the median of several calls."""
    work()
    return amount / median(seconds_of(work) for _ in range(ROUNDS))


def weights(size: int) -> list[np.ndarray]:
    """Matrices of both widths, about half of `size` bytes each, in small pages."""
    pool = np.frombuffer(mmap.mmap(-1, size), dtype=np.float32)
    pool[:] = 0.5
    found: list[np.ndarray] = []
    begin = 0
    while True:
        # A wide one takes as much room as seven narrow ones.
        E, F = WIDTHS[0 if len(found) % 8 else 1]
        if begin + E * F > len(pool):
            return found
        found.append(pool[begin : begin + E * F].reshape(F, E))
        begin += E * F


def multiply(matrices: list[np.ndarray], T: int) -> None:
    """Multiply each matrix with this many positions."""
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
    rates = []
    for group in (small, large):
        flops = 2 * POSITIONS * sum(w.size for w in group)
        rates.append(rate_of(partial(multiply, group, POSITIONS), flops))
    return len(rates) / sum(1 / rate for rate in rates)


def elementwise_rate() -> float:
    """Elements per second that one NumPy function walks through."""
    E, F = WIDTHS[0]
    x, gate = (np.ones((1, POSITIONS, size), dtype=np.float32) for size in (E, F))
    q = x.reshape(1, POSITIONS, -1, 64)  # (1, T, H, D)
    cos = sin = np.ones((1, POSITIONS, 32), dtype=np.float32)

    def between() -> None:
        rms_norm(x, x[0, 0], 1e-5)
        rotate(q, cos, sin)
        silu(gate)

    return rate_of(between, NORM * x.size + ROTATION * q.size + SILU * gate.size)


def narrow_model() -> Model:
    """Eight layers of a model of 110 million parameters, more than caches hold."""
    E, F = WIDTHS[0]
    heads, head_dim, vocabulary = E // 64, 64, 64
    config = Config(vocabulary, E, F, LAYERS, heads, heads, head_dim)
    shapes = tensor_shapes(config).items()
    return assemble(
        config, {name: np.full(shape, 0.01, np.float32) for name, shape in shapes}
    )


def layer_overhead() -> float:
    """Seconds that a layer of decode takes beyond its products with weights."""
    model = narrow_model()
    cache, token = new_cache(model.config, 1, 1), np.zeros((1, 1), dtype=np.int64)
    matrices = [
        w.reshape(-1, w.shape[-1])
        for layer in model.layers
        for w in (layer.wq, layer.wk, layer.wv, layer.w_gate, layer.w_up, layer.w_down)
    ] + [layer.wo.reshape(len(layer.wo), -1) for layer in model.layers]
    inputs = {size: np.ones((1, size), dtype=np.float32) for size in WIDTHS[0]}

    def step() -> None:
        cache.length[:] = 0
        forward(model, token, cache)

    def products() -> None:
        for w in matrices:
            einsum("TE,FE->TF", inputs[w.shape[1]], w, "probe")

    step()
    products()
    # Alternately, since a machine's speed varies over time.
    more = [seconds_of(step) - seconds_of(products) for _ in range(4 * ROUNDS)]
    return max(median(more), 0.0) / LAYERS


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
        overhead=layer_overhead(),
    )


def hardware(name: str) -> Hardware:
    """A machine by its name; this one is measured.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones.
    """
    if name == THIS_MACHINE:
        return this_machine()
    if name not in HARDWARE:
        known = ", ".join([*HARDWARE, THIS_MACHINE])
        raise ValueError(f"no hardware {name!r}; there are {known}")
    return HARDWARE[name]
