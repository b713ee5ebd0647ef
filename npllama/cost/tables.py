"""The tables of the README about cost, computed each time they are printed.

    npllama flops --table NAME

prints one of them; a test holds the README to what is printed.  None has a formula
of its own: figures come from `formulas`, `product`, `roofline` and `traffic`, and
published figures are printed beside them, marked as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

import numpy as np

from npllama.config import preset
from npllama.cost import traffic
from npllama.cost.formulas import (
    Operator,
    Work,
    cache_bytes,
    operators,
    parameters,
    tabulate,
)
from npllama.cost.hardware import HARDWARE
from npllama.cost.meetings import Meetings
from npllama.cost.product import cost
from npllama.cost.roofline import offload_seconds
from npllama.cost.speeds import compared
from npllama.ops import Kind

Rows = list[tuple[str, ...]]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table, the first of them its head, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(c.rjust(w) for c, w in zip(cells, widths)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


#  ---- arithmetic intensity ---------------------------------------------------

NEW, SEEN = (1, 2, 4, 8, 128, 512, 4096), (128, 512, 4096, 32000)


def met(new: int, seen: int) -> dict[str, Operator]:
    """Operators of LLaMA-2-7B when n queries meet l keys, which may be fewer."""
    config = preset("llama-2-7b")
    H = config.num_attention_heads
    work = Work(1, new, new, Meetings(1, H * new * seen, H * new, H * seen))
    return {op.name: op for op in tabulate(config, work, "square")}


def intensity() -> Rows:
    """FLOPs per element of LLaMA-2-7B's products, by new positions n and seen l."""
    names = [f"act-to-act, l = {seen}" for seen in SEEN]
    rows: Rows = [("n", "projection", *names, "FFN")]
    for new in NEW:
        found = [met(new, seen) for seen in SEEN]
        ops = [found[0]["q_proj"], *(each["scores"] for each in found)]
        ops.append(found[0]["gate_proj"])
        rows.append((str(new), *(f"{op.intensity:#.7g}" for op in ops)))
    return rows


def linear() -> Rows:
    """FLOPs per byte of one linear layer, 1024 to 4096 in fp16."""
    rows: Rows = [("batch", "FLOPs", "bytes", "FLOPs/byte")]
    half = np.dtype(np.float16)
    for batch in (1, 8, 64, 512):
        kind = Kind("linear", "BE,FE->BF", (batch, 1024), (4096, 1024), half)
        found = cost(kind)
        sizes = f"{found.flops:,}", f"{found.bytes['float16']:,}"
        rows.append((str(batch), *sizes, f"{found.byte_intensity:.0f}"))
    return rows


#  ---- one token --------------------------------------------------------------

UNIT = 2**20
CONTEXTS = (128, 512, 4096, 32768)
PARTS = {
    "projections": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "act-to-act": ("scores", "values"),
    "FFN, two matrices": ("up_proj", "down_proj"),
    "FFN, three matrices": ("gate_proj", "up_proj", "down_proj"),
}


def read(op: Operator) -> int:
    """Elements that an operator reads, without what is in flight."""
    return op.weights + op.cache


def decode() -> Rows:
    """One token of LLaMA-2-7B by context, in units of 2^20 FLOPs or elements read.

    Elements are those of weights, keys and values; what is in flight is left out, as
    the published table does.
    """
    config = preset("llama-2-7b")
    costs = {n: {o.name: o for o in operators(config, 1, 1, n - 1)} for n in CONTEXTS}

    def row(title: str, parts: Iterable[str], number: Callable) -> tuple[str, ...]:
        names = [name for part in parts for name in PARTS[part]]
        sums = (sum(number(costs[n][name]) for name in names) for n in CONTEXTS)
        return (title, *(f"{n / UNIT:g}" for n in sums))

    rows: Rows = [("context", *map(str, CONTEXTS))]
    for title, number in (("FLOPs", attrgetter("flops")), ("MOPs", read)):
        rows += [row(f"{part}, {title}", [part], number) for part in PARTS]
        for ffn in ("two", "three"):
            parts = ("projections", "act-to-act", f"FFN, {ffn} matrices")
            rows.append(row(f"total with {ffn}, {title}", parts, number))
    return rows


#  ---- memory -----------------------------------------------------------------


def cache() -> Rows:
    """Keys, values and weights in fp16; the factor that grouped heads save."""
    head = ("model", "weights", "cache/token", "1,024 tokens", "GQA saves")
    rows: Rows = [(*head, "cache/token without")]
    for name in ("llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3-8b"):
        config = preset(name)
        weights = 2 * sum(parameters(config).values())
        token, text = cache_bytes(config), cache_bytes(config, 1024)
        factor = config.num_attention_heads // config.num_key_value_heads
        cells = f"{weights / 1e9:.1f} GB", f"{token / 2**10:.0f} KiB"
        more = f"{text / 2**20:.0f} MiB", f"{factor}x"
        rows.append((name, *cells, *more, f"{factor * token / 2**10:.0f} KiB"))
    return rows


def offload() -> Rows:
    """A model of 7.7 GB in 3.5 GB of memory, the rest over 4 GB/s."""
    seconds = offload_seconds(7.7e9, 3.5e9, 4e9)
    head = ("held", "memory", "storage", "s/token", "token/s")
    values = ("7.7 GB", "3.5 GB", "4 GB/s", f"{seconds:.2f}", f"{1 / seconds:.2f}")
    return [head, values]


def ridge() -> Rows:
    """Where each machine turns from memory-bound to compute-bound, in fp16."""
    rows: Rows = [("hardware", "TFLOP/s", "GB/s", "FLOPs/byte")]
    for name, h in HARDWARE.items():
        rate, bandwidth = h.rate("fp16") / 1e12, h.bandwidth / 1e9
        rows.append((name, f"{rate:.4g}", f"{bandwidth:,.0f}", f"{h.ridge():.0f}"))
    return rows


#  ---- FlashAttention ---------------------------------------------------------

ON_CHIP = (192, 128, 96)  # KiB that four tiles share
SQUARE = 128  # keys and queries of a tile of FlashAttention 2


def flash() -> Rows:
    """Traffic at figure 2's setting: N 1024, D 64, 16 heads, batch 64, fp16."""
    N, D, heads = 1024, 64, 64 * 16
    count = traffic.PRODUCTS

    def row(name: str, parts: Sequence, products: Sequence[int]) -> tuple[str, ...]:
        """Forward, backward and both."""
        moved = [heads * traffic.total(iter(part)).bytes(D) for part in parts]
        flops = [heads * traffic.product_flops(N, D, n) for n in products]
        return (
            name,
            *(f"{n / 1e9:.3f}" for n in (*moved, sum(moved))),
            *(f"{n / 1e9:.1f}" for n in (*flops, sum(flops))),
        )

    standard = (traffic.standard_forward(N), traffic.standard_backward(N))
    products = [count["forward"], count["backward"]]
    head = ("GB forward", "backward", "both", "GFLOPs forward", "backward", "both")
    rows = [("attention", *head), row("standard", standard, products)]
    swapped = row("", [traffic.swapped_forward(N, SQUARE, SQUARE)], products[:1])
    products[1] += count["recomputed"]
    for size in ON_CHIP:
        tiles = N, *traffic.tile_sizes(size * 1024 // 2, D)
        parts = (traffic.tiled_forward(*tiles), traffic.tiled_backward(*tiles))
        rows.append(row(f"tiled, {size} KiB on chip", parts, products))
    second = f"FlashAttention 2, {SQUARE} x {SQUARE}"
    rows.append((second, swapped[1], "", "", swapped[3], "", ""))
    rows.append(("published, standard", "", "", "40.3", "", "", "66.6"))
    rows.append(("published, FlashAttention", "", "", "4.4", "", "", "75.2"))
    return rows


TABLES: dict[str, Callable[[], Rows]] = {
    "intensity": intensity,
    "linear": linear,
    "decode": decode,
    "cache": cache,
    "ridge": ridge,
    "offload": offload,
    "speeds": compared,
    "flash": flash,
}
