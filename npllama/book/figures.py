"""Pictures of Part I: positions as clocks, one head's attention, the cache as it fills."""

from __future__ import annotations

import math

import numpy as np

from npllama.attention import dense, softmax
from npllama.book.svg import Figure, box, disc, drawing, line, text
from npllama.cache import new_cache
from npllama.config import preset
from npllama.model import forward
from npllama.ops import einsum
from npllama.rope import rope_tables
from npllama.weights import Model

SENTENCE = "Lily had a red ball. She lost the ball."


def clocks(model: Model) -> Figure:
    """RoPE's hands: where each pair of coordinates points at each position."""
    pairs = [0, 2, 4, 8, model.config.head_dim // 2 - 1]
    positions = np.arange(12)
    cos, sin = rope_tables(model.config, positions[None], "float64")
    r, step, left, top = 20, 52, 110, 40
    parts = [text(left + p * step + r, 20, str(p), "middle") for p in positions]
    parts.append(text(left - 20, 20, "position", "end"))
    for row, i in enumerate(pairs):
        y = top + row * step + r
        turn = 2 * math.pi / math.atan2(sin[0, 1, i], cos[0, 1, i])
        parts.append(text(0, y - 2, f"pair {i}"))
        parts.append(text(0, y + 13, f"{turn:,.0f} per turn"))
        for p in positions:
            x, c, s = left + p * step + r, cos[0, p, i], sin[0, p, i]
            tip = f"pair {i} at position {p}: {math.degrees(math.atan2(s, c)):.0f} degrees"
            parts.append(disc(x, y, r, "none", tip, stroke="var(--line)"))
            parts.append(line(x, y, x + r * c, y - r * s, "link", stroke_width=2))
            parts.append(disc(x + r * c, y - r * s, 2.5))
    width, height = left + len(positions) * step, top + len(pairs) * step
    return Figure(
        drawing(width, height, parts, "The angle of some pairs at twelve positions"),
        "Each pair of coordinates of a query or key is turned like the hand of a clock. "
        "The first pairs turn fast and tell neighbours apart; the last hardly move and "
        "tell near from far. A score depends only on the angle between two hands, so "
        "only on how far two positions are apart.",
    )


def weights_of(model: Model, prompt: str) -> tuple[list[str], np.ndarray]:
    """The pieces of a text, and all attention weights, (L, H, T, T)."""
    tokens = model.tokenizer.encode(prompt)
    found = []

    def watching(q, k, v, start):
        T, D, G = q.shape[1], q.shape[3], q.shape[2] // k.shape[1]
        keys = np.repeat(k[0, :, :T], G, axis=0)  # (H, T, D)
        scores = einsum("THD,HSD->HTS", q[0], keys, "scores")
        scores[:, np.triu(np.ones((T, T), bool), 1)] = -np.inf
        found.append(softmax(scores / math.sqrt(D)))
        return dense(q, k, v, start)

    cache = new_cache(model.config, 1, len(tokens))
    forward(model, np.array([tokens]), cache, attend=watching)
    return [piece_of(model, t) for t in tokens], np.stack(found)


def best_head(weights: np.ndarray) -> tuple[int, int]:
    """The head that looks back farthest, among those with a clear opinion."""
    T = weights.shape[-1]
    places = np.arange(T)
    peak = weights[:, :, 2:].max(axis=-1).mean(axis=-1)
    distance = np.abs(places[:, None] - places)
    far = (weights * distance)[:, :, 2:].sum(axis=-1).mean(axis=-1)
    not_first = weights[:, :, 2:, 1:].sum(axis=-1).mean(axis=-1)
    layer, head = np.unravel_index(int((peak * far * not_first**2).argmax()), far.shape)
    return int(layer), int(head)


def head(model: Model) -> Figure:
    """What one head looks at, for every position of a short text."""
    pieces, weights = weights_of(model, SENTENCE)
    layer, h = best_head(weights)
    p = weights[layer, h]
    T, size, left, top = len(pieces), 30, 70, 70
    parts = []
    for t in range(T):
        y, x = top + t * size, left + t * size
        parts.append(text(left - 8, y + 20, pieces[t], "end"))
        turned = f"rotate(-60 {x + 16} {top - 8})"
        parts.append(text(x + 16, top - 8, pieces[t], transform=turned))
        for s in range(t + 1):
            tip = f"{pieces[t]} looks at {pieces[s]}: {p[t, s]:.0%}"
            share = f"{p[t, s]:.3f}"
            parts.append(
                box(
                    left + s * size,
                    y,
                    size - 1,
                    size - 1,
                    "link",
                    tip,
                    fill_opacity=share,
                )
            )
            if p[t, s] >= 0.1:
                fill = "fill:var(--paper,#fff)" if p[t, s] > 0.5 else ""
                at = left + s * size + size / 2
                shown = f"{p[t, s]:.1f}".lstrip("0")
                parts.append(text(at, y + 20, shown, "middle", style=fill))
    side = left + T * size
    return Figure(
        drawing(side + 40, top + T * size, parts, "Attention weights of one head"),
        f"Head {h} of block {layer} of the model that ships, on “{SENTENCE}” "
        "A row is a position that looks; its weights sum to one. The upper triangle is "
        "the future, which nobody sees. Point at a square for its number.",
    )


def sharing(model: Model) -> Figure:
    """Which query heads share which keys: MHA, GQA, MQA."""
    rows = [
        ("MHA, as llama-2-7b: 32 of 32 (8 shown)", 8, 8),
        ("GQA, as llama-3-8b: 4 query heads each (8 shown)", 8, 2),
        ("MQA: one for all", 8, 1),
    ]
    assert preset("llama-3-8b").num_key_value_heads * 4 == 32
    parts = []
    for row, (words, H, K) in enumerate(rows):
        y = 24 + row * 110
        parts.append(text(0, y - 8, words))
        for h in range(H):
            k = h // (H // K)
            x, below = 20 + h * 64, 20 + (k + 0.5) * 64 * H / K - 32
            parts.append(line(x + 20, y + 24, below + 20, y + 56, "soft"))
            parts.append(box(x, y, 40, 24, "mark"))
            parts.append(text(x + 20, y + 16, f"q{h}", "middle"))
        for k in range(K):
            below = 20 + (k + 0.5) * 64 * H / K - 32
            parts.append(box(below, y + 56, 40, 24, "none", stroke="var(--link)"))
            parts.append(text(below + 20, y + 72, f"k{k} v{k}", "middle"))
    return Figure(
        drawing(540, 340, parts, "Query heads and the key heads that they share"),
        "Query head h reads the keys and values of head h // G: neighbours share. The "
        "cache holds only the lower row, so it is G times smaller.",
    )


def filling(model: Model) -> Figure:
    """The cache of two texts: a prefill of unequal lengths, then three tokens."""
    rows = [model.tokenizer.encode(words) for words in ("Once upon a time", "The cat")]
    count = np.array([len(row) for row in rows])
    tokens = np.zeros((2, count.max()), dtype=np.int64)
    for b, row in enumerate(rows):
        tokens[b, : len(row)] = row
    N = int(count.max()) + 4
    cache = new_cache(model.config, 2, N)
    logits = forward(model, tokens, cache, count, last=True)
    states = [("after the prompts", cache.length.copy())]
    for n in range(3):
        new = logits[:, -1].argmax(axis=-1)[:, None]
        logits = forward(model, new, cache)
        states.append((f"after token {n + 1}", cache.length.copy()))
    words = [[piece_of(model, t)[:5] for t in row] for row in rows]
    parts = []
    for n, (when, length) in enumerate(states):
        parts.append(text(0, 31 + n * 90, when))
        for b in range(2):
            parts += slots(words[b], int(length[b]), N, 10 + n * 90 + b * 38)
    return Figure(
        drawing(210 + N * 38, 10 + len(states) * 90, parts, "A cache as it fills"),
        f"Two texts in one cache of {N} positions per row. Rows begin at the left and "
        "have a length each; what lies beyond it is never read. A pass over one token "
        "per row writes one position per row, wherever that row stands.",
    )


def piece_of(model: Model, token: int) -> str:
    """A token without the sign of its space."""
    return model.tokenizer.piece(token).replace("▁", " ").strip() or "␣"


def slots(words: list[str], length: int, N: int, y: float) -> list[str]:
    """One row of a cache: its words, then new tokens, then empty places."""
    parts = []
    for s in range(N):
        x, fill = 130 + s * 38, "mark" if s < length else "none"
        parts.append(box(x, y, 34, 30, fill, stroke="var(--line)"))
        if s < length:
            shown = words[s] if s < len(words) else f"+{s - len(words) + 1}"
            parts.append(text(x + 17, y + 20, shown, "middle"))
    return [*parts, text(136 + N * 38, y + 21, f"length {length}")]
