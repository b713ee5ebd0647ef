"""The picture of FlashAttention: in which order tiles meet, and what each order moves."""

from __future__ import annotations

from collections import Counter

import numpy as np

from npllama.book.svg import Figure, box, drawing, line, text
from npllama.contexts.tiles import SlowMemory, flash_1, flash_2
from npllama.weights import Model

T, TILE = 16, 4  # positions of the text; queries and keys of a tile
CELL = 13


class Watched(SlowMemory):
    """A slow memory that writes down which tiles of queries and keys meet."""

    def __init__(self) -> None:
        super().__init__()
        self.chip: dict[str, slice] = {}
        self.met: list[tuple[slice, slice]] = []  # of queries, of keys

    def load(self, name: str, array: np.ndarray, rows: slice) -> np.ndarray:
        """Bring some rows to the chip; the last that comes lets two tiles meet."""
        self.chip[name] = rows
        # The inner loop of the first listing loads queries, of the second keys.
        if name == self.deepest and {"q", "k"} <= set(self.chip):
            self.met.append((self.chip["q"], self.chip["k"]))
        return super().load(name, array, rows)

    deepest = ""  # what the inner loop loads last of queries and keys


def run(order: int) -> Watched:
    """One head of random numbers, by one of the two listings."""
    slow, D = Watched(), TILE
    slow.deepest = "q" if order == 1 else "k"
    way = flash_1(4 * D * TILE, slow) if order == 1 else flash_2(TILE, TILE, slow)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, T, 1, D), dtype=np.float32)
    k, v = rng.standard_normal((2, 1, 1, T, D), dtype=np.float32)
    way(q, k, v, np.zeros(1, int))
    return slow


def square(slow: Watched, left: float, top: float) -> list[str]:
    """All pairs of a query and a key, and the tiles in the order in which they meet."""
    side = TILE * CELL
    parts = []
    for i in range(T // TILE):
        for j in range(T // TILE):
            if j > i:
                tip = "all keys are later than all queries: never visited"
                parts.append(
                    box(left + j * side, top + i * side, side, side, "none", tip,
                        stroke="var(--line)", stroke_dasharray="3 3")
                )  # fmt: skip
    for number, (queries, keys) in enumerate(slow.met, 1):
        x, y = left + keys.start * CELL, top + queries.start * CELL
        tip = f"queries {queries.start} to {queries.stop - 1} meet keys "
        tip += f"{keys.start} to {keys.stop - 1}"
        parts.append(box(x, y, side, side, "mark", tip, stroke="var(--soft)"))
        if queries.start == keys.start:  # the diagonal: later keys are masked
            parts.append(line(x, y, x + side, y + side, "soft"))
        parts.append(text(x + side / 2, y + side / 2 + 5, str(number), "middle"))
    parts.append(text(left, top - 8, "keys"))
    parts.append(text(left - 8, top + 12, "queries", "end"))
    return parts


def moved(counts: Counter[str], left: float, top: float) -> list[str]:
    """How many rows of each array went to or from the slow memory, as bars."""
    parts = []
    for row, name in enumerate(("q", "k", "v", "o", "l", "m", "lse")):
        y = top + row * 25
        parts.append(text(left - 6, y + 12, name, "end"))
        parts.append(box(left, y, 0.75 * counts[name], 16, "link"))
        parts.append(text(left + 0.75 * counts[name] + 6, y + 12, str(counts[name])))
    return parts


def tiles(model: Model) -> Figure:
    """Both orders of FlashAttention over one head of 16 positions."""
    parts = []
    for order, left in ((1, 60.0), (2, 480.0)):
        slow = run(order)
        outer = ("keys", "queries")[order - 1]
        parts.append(
            text(left, 14, f"FlashAttention {order}: {outer} in the outer loop")
        )
        parts += square(slow, left, 50)
        parts.append(text(left + 260, 42, "rows moved"))
        parts += moved(slow.moved, left + 260, 52)
    return Figure(
        drawing(
            900, 275, parts, "FlashAttention's tiles in the order in which they meet"
        ),
        f"{T} queries and {T} keys in tiles of {TILE}. A number says when two tiles meet "
        "on the chip; dashed tiles lie in the future and are never visited, and in those "
        "that are cut by a line some keys are masked. The bars count the rows that travel "
        "between the chip and the slow memory: the first order reads and writes every "
        "result again for each tile of keys, the second reads the keys again for each "
        "tile of queries. Neither writes a score. (Rows of q, k, v and o have D numbers, "
        "the others one.)",
    )
