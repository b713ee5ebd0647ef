"""What machines can do: operations per second, and bytes per second.

The figures are those of the makers' data sheets, for dense products (some sheets
advertise twice as much, for matrices half of whose entries are zero), and no program
reaches them quite.  `this_machine` is measured instead.

References
----------
NVIDIA data sheets: A100 (2021), H100 (2023), H200 (2023); Ada GPU architecture white
paper (2023) for the RTX 4090 (tensor cores summing in float16), its RTX 4060 by the
same rates.  Apple, M1 Ultra (2022).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import numpy as np

from npllama.ops import einsum


class Hardware(NamedTuple):
    """A machine, as a roofline sees it.

    Parameters
    ----------
    name : str
    flops : mapping of dtype to FLOP/s
        Of products in "fp32", "fp16" (or bfloat16) and "int8".
    bandwidth : float
        Bytes per second between memory and processor.
    memory : float
        Bytes.
    storage : float
        Bytes per second from what holds more than the memory: a disk, or a host.
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float | None = None
    storage: float | None = None

    def rate(self, dtype: str) -> float:
        """FLOP/s in a dtype, or in the next wider one that is known."""
        wider = ("int4", "int8", "fp16", "fp32")
        for name in wider[wider.index(dtype) :]:
            if name in self.flops:
                return self.flops[name]
        return max(self.flops.values())

    def ridge(self, dtype: str = "fp16") -> float:
        """FLOPs per byte at which computing takes as long as moving."""
        return self.rate(dtype) / self.bandwidth


def _gpu(name, fp32, fp16, int8, bandwidth, memory) -> Hardware:
    """In TFLOP/s, GB/s and GB."""
    flops = {"fp32": fp32 * 1e12, "fp16": fp16 * 1e12, "int8": int8 * 1e12}
    return Hardware(name, flops, bandwidth * 1e9, memory * 1e9)


HARDWARE = {
    h.name: h
    for h in (
        _gpu("a100-80g", 19.5, 312, 624, 2039, 80),
        _gpu("a100-40g", 19.5, 312, 624, 1555, 40),
        _gpu("h100", 67, 989.4, 1978.9, 3350, 80),
        _gpu("h200", 67, 989.4, 1978.9, 4800, 141),
        _gpu("rtx-4090", 82.6, 330.3, 660.6, 1008, 24),
        _gpu("rtx-4060", 15.1, 60.5, 121, 272, 8),
        _gpu("m1-ultra", 21, 21, 21, 800, 128),
    )
}
THIS_MACHINE = "this-machine"


def hardware(name: str) -> Hardware:
    """A machine by its name.

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


#  ---- this machine -----------------------------------------------------------

# A matrix far larger than any cache, for the bandwidth, and the shapes of a prompt of
# 256 tokens in a feed-forward, for the rate: what a forward pass itself is made of.
PROBED = (8192, 8192)
PROMPT, WIDE, NARROW = 256, 5632, 2048


def this_machine() -> Hardware:
    """Measure, in about two seconds, what a float32 forward pass gets here.

    The bandwidth is that of a matrix-vector product, which reads every weight once,
    as decode does; the rate that of a product with a prompt, as in prefill.  BLAS
    chooses its threads as it does for the model.
    """
    rng = np.random.default_rng(0)
    w = rng.standard_normal(PROBED, dtype=np.float32)  # (F, E)
    x = rng.standard_normal((1, PROBED[1]), dtype=np.float32)  # (1, E)
    seconds = typical(lambda: einsum("TE,FE->TF", x, w, "probe"))
    bandwidth = w.nbytes / seconds
    w = rng.standard_normal((WIDE, NARROW), dtype=np.float32)
    x = rng.standard_normal((PROMPT, NARROW), dtype=np.float32)
    seconds = typical(lambda: einsum("TE,FE->TF", x, w, "probe"))
    flops = 2 * PROMPT * WIDE * NARROW / seconds
    return Hardware(THIS_MACHINE, {"fp32": flops}, bandwidth, _memory())


def typical(call: Callable[[], object], repeats: int = 9) -> float:
    """Median seconds of a call, the first left out."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def _memory() -> float | None:
    """Bytes of memory; None where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return None
