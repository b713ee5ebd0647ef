"""Published speeds, to hold beside the bounds of the roofline.

What programs reached on real cards, as their makers or users published it.  If one of
these figures beat its bound, the bound would be wrong.

References
----------
gpt-fast: README of pytorch-labs/gpt-fast at commit 0f925b5, A100 limited to 330 W.
llama.cpp: README of XiongjieDai/GPU-Benchmarks-on-LLM-Inference at commit 00dd2bd.
TensorRT-LLM: docs/source/performance.md of NVIDIA/TensorRT-LLM at commit 138f96d; first
tokens by version 0.5, the rest by 0.6.1 (L40S: 0.5).
"""

from __future__ import annotations

from typing import NamedTuple

from npllama.config import preset
from npllama.cost.cards import one_card
from npllama.cost.hardware import HARDWARE
from npllama.cost.roofline import FUSED, Dtypes, Prediction, dtypes, predict


class Speed(NamedTuple):
    """One published figure."""

    source: str  # the program that reached it
    card: str
    cards: int
    model: str
    kinds: Dtypes
    batch: int
    prompt: int
    new: int  # tokens made of each row; 1 if the first alone was timed
    figure: float  # tokens per second of all rows; milliseconds to the first token

    @property
    def first(self) -> bool:
        """Whether it is the time to the first token."""
        return self.new == 1


def predicted(speed: Speed) -> Prediction:
    """What the roofline says of the same text."""
    machine = HARDWARE[speed.card]._replace(cards=speed.cards)
    config = one_card(preset(speed.model), speed.cards)
    sizes = speed.batch, speed.prompt, speed.new
    return predict(config, machine, *sizes, speed.kinds, FUSED)


def bound(speed: Speed) -> float:
    """The best possible, in the figure's unit."""
    seconds = predicted(speed).seconds
    return 1e3 * seconds if speed.first else speed.batch * speed.new / seconds


def reached(speed: Speed) -> float:
    """The part of the bound that was reached, 1 at most."""
    part = bound(speed) / speed.figure
    return part if speed.first else 1 / part


HALF, EIGHT, FOUR = dtypes("fp16"), dtypes("int8"), dtypes("int4", group=32)
FLOAT8 = dtypes("fp8", "fp8", "fp8")


def _gpt_fast(model, kinds, cards, figure):
    """200 tokens after 5."""
    return Speed("gpt-fast", "a100-80g", cards, model, kinds, 1, 5, 200, figure)


def _first(card, kinds, model, cards, prompt, milliseconds):
    """The first token after a prompt."""
    where = "TensorRT-LLM", card, cards, model, kinds
    return Speed(*where, 1, prompt, 1, milliseconds)


def _throughput(card, kinds, batch, prompt, new, figure):
    """All tokens of a batch."""
    where = "TensorRT-LLM", card, 1, "llama-2-7b", kinds
    return Speed(*where, batch, prompt, new, figure)


def _llamacpp(card, figure):
    """1,024 tokens after nothing but the one that begins a text."""
    return Speed("llama.cpp", card, 1, "llama-3-8b", HALF, 1, 1, 1024, figure)


SPEEDS = (
    _gpt_fast("llama-2-7b", HALF, 1, 104.9),
    _gpt_fast("llama-2-7b", EIGHT, 1, 155.58),
    _gpt_fast("llama-2-7b", FOUR, 1, 196.80),
    _gpt_fast("llama-2-70b", EIGHT, 1, 19.13),
    _gpt_fast("llama-2-70b", FOUR, 1, 25.25),
    _gpt_fast("llama-2-7b", HALF, 2, 168.84),
    _gpt_fast("llama-2-7b", HALF, 8, 328.43),
    _gpt_fast("llama-2-70b", HALF, 2, 21.32),
    _gpt_fast("llama-2-70b", HALF, 8, 62.50),
    _llamacpp("rtx-3090", 46.51),
    _llamacpp("rtx-4090", 54.34),
    _throughput("a100-80g", HALF, 384, 128, 128, 5586),
    _throughput("a100-80g", HALF, 60, 128, 2048, 1928),
    _throughput("a100-80g", HALF, 52, 2048, 128, 591),
    _throughput("h100", FLOAT8, 768, 128, 128, 19694),
    _throughput("h100", FLOAT8, 80, 2048, 128, 2244),
    _throughput("l40s", FLOAT8, 32, 2048, 128, 581),
    _first("a100-80g", HALF, "llama-2-7b", 1, 128, 16),
    _first("a100-80g", HALF, "llama-2-7b", 1, 2048, 133),
    _first("a100-80g", HALF, "llama-2-70b", 4, 2048, 377),
    _first("h100", FLOAT8, "llama-2-7b", 1, 128, 7),
    _first("h100", FLOAT8, "llama-2-7b", 1, 2048, 36),
    _first("h100", FLOAT8, "llama-2-70b", 4, 2048, 109),
    _first("l40s", FLOAT8, "llama-2-7b", 1, 2048, 73),
)


def shown(figure: float) -> str:
    """Four digits, or all before the point."""
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.4g}"


def compared() -> list[tuple[str, ...]]:
    """Published speeds beside the bounds of the same texts."""
    rows: list[tuple[str, ...]] = [
        ("source", "card", "model", "dtype", "texts", "published", "bound", "reached")
    ]
    for s in SPEEDS:
        card = s.card if s.cards == 1 else f"{s.cards} x {s.card}"
        texts = f"{s.batch} x ({s.prompt:,} + {s.new:,})"
        unit = "ms" if s.first else "tokens/s"
        figures = (f"{shown(f)} {unit}" for f in (s.figure, bound(s)))
        kind = s.kinds.weights
        rows.append(
            (s.source, card, s.model, kind, texts, *figures, f"{reached(s):.2f}")
        )
    return rows
