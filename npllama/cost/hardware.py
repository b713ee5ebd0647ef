"""The speed of machines: operations per second, and bytes per second.

The figures come from the makers' data sheets, for dense products (some sheets
advertise twice as much, for matrices half of whose entries are zero), and no program
quite reaches them.  `probe` measures this machine instead.

References
----------
NVIDIA data sheets: A100 (2021), H100 (2023), H200 (2023), V100 SXM2 (2020), T4 (2019),
L4 and L40S (2023), RTX A6000 (2021); GA102 white paper (2021) for the RTX 3090; Ada GPU
architecture white paper (2023) for the RTX 4090, its RTX 4060 by the same rates.  AMD,
MI300X (2023).  Apple, M1 Ultra (2022).  All rates are of products that sum in float32 (or
int32); the RTX 3090, 4090 and 4060 are twice as fast where they sum in float16.  A card
that is sold with 24 GB has 24 GiB, of which a driver keeps some.  Links: NVLink or
Infinity Fabric where a card has it, else PCI Express, each way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Hardware(NamedTuple):
    """A machine, as a roofline sees it.

    Parameters
    ----------
    name : str
    flops : mapping of dtype to FLOP/s
        Of products in "fp32", "fp16" (or bfloat16), "int8" and "fp8".
    bandwidth : float
        Bytes per second between memory and processor.
    memory : float
        Bytes.
    storage : float
        Bytes per second from what holds more than the memory: a disk, or a host.
    elementwise : float
        Elements per second outside of products.  None if a compiler fuses the
        operations between two products into them, as on a GPU.
    overhead : float
        Seconds that the interpreter takes per layer, however small the arrays are.
        None if kernels are queued ahead, as on a GPU.
    link : float
        Bytes per second from one card to the others.
    cards : int
        How many share one model (`cards.one_card`); all figures are of one of them.
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float | None = None
    storage: float | None = None
    elementwise: float | None = None
    overhead: float | None = None
    link: float | None = None
    cards: int = 1

    def rate(self, dtype: str) -> float:
        """FLOP/s in a dtype, or in the next wider one that is known."""
        # fp8 is neither wider than int8 nor narrower.
        narrow = ["fp8"] if dtype == "fp8" else ["int4", "int8"]
        wider = [*narrow, "fp16", "fp32"]
        for name in wider[wider.index(dtype) :]:
            if name in self.flops:
                return self.flops[name]
        return max(self.flops.values())

    def ridge(self, dtype: str = "fp16") -> float:
        """FLOPs per byte at which computing takes as long as moving."""
        return self.rate(dtype) / self.bandwidth

    def slowed(self, mfu: float, mbu: float) -> Hardware:
        """What a program gets that reaches these parts of the peaks.

        Parameters
        ----------
        mfu, mbu : float
            Model FLOPs utilisation and model bandwidth utilisation, above 0, to 1.
        """
        flops = {dtype: rate * mfu for dtype, rate in self.flops.items()}
        return self._replace(flops=flops, bandwidth=self.bandwidth * mbu)


def _gpu(name, fp32, fp16, int8, bandwidth, memory, link, fp8=None) -> Hardware:
    """In TFLOP/s, GB/s and GiB; None where the processor has no such products."""
    rates = {"fp32": fp32, "fp16": fp16, "int8": int8, "fp8": fp8}
    flops = {dtype: rate * 1e12 for dtype, rate in rates.items() if rate}
    room = memory * 2**30
    return Hardware(name, flops, bandwidth * 1e9, room, link=link * 1e9)


HARDWARE = {
    h.name: h
    for h in (
        _gpu("a100-80g", 19.5, 312, 624, 2039, 80, 300),
        _gpu("a100-40g", 19.5, 312, 624, 1555, 40, 300),
        _gpu("h100", 67, 989.4, 1978.9, 3350, 80, 450, fp8=1978.9),
        _gpu("h200", 67, 989.4, 1978.9, 4800, 140.4, 450, fp8=1978.9),
        _gpu("v100", 15.7, 125, None, 900, 32, 150),
        _gpu("t4", 8.1, 65, 130, 320, 16, 16),
        _gpu("l4", 30.3, 121, 242.5, 300, 24, 32, fp8=242.5),
        _gpu("l40s", 91.6, 362.05, 733, 864, 48, 32, fp8=733),
        _gpu("a6000", 38.7, 154.8, 309.7, 768, 48, 56),
        _gpu("mi300x", 163.4, 1307.4, 2614.9, 5300, 192, 448, fp8=2614.9),
        _gpu("rtx-3090", 35.6, 71, 284, 936, 24, 56),
        _gpu("rtx-4090", 82.6, 165.2, 660.6, 1008, 24, 32, fp8=330.3),
        _gpu("rtx-4060", 15.1, 30.2, 121, 272, 8, 16, fp8=60.5),
        _gpu("m1-ultra", 21, 21, 21, 800, 128, 2.5),
    )
}
