"""Top-p sampling as Meta publishes it with LLaMA, written from its definition.

The function there takes probabilities and draws at once: tokens are sorted by
falling probability, a token is cut off where the sum of those before it *exceeds* p,
what is left is divided by its sum, and one of it is drawn.  So the token at which a
sum meets p exactly is not the last one: one more stays than elsewhere.  Of equals
torch's sort brings the lowest ids first.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def factory() -> dict[str, Any]:
    """What Meta's code does, held to the kit's own conventions."""
    return {
        "greedy": lambda logits: int(np.argmax(logits)),
        "temperature": temperature,
        "top_p": top_p,
        "sample": sample,
    }


def by_its_conventions() -> dict[str, Any]:
    """The same by the conventions that it follows."""
    return factory() | {
        "temperature": (temperature, {"zero": "unsaid"}),
        "top_p": (top_p, {"ties": "lowest", "crossing": "inclusive"}),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, (V,) float32."""
    mass = np.exp(logits - logits.max())
    return mass / mass.sum()


def temperature(logits: np.ndarray, t: float) -> np.ndarray:
    """Divide; temperature 0 is not sent here but decided greedily."""
    return logits / np.float32(t)


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """What is left to draw from."""
    probs = softmax(logits)
    order = np.argsort(-probs, kind="stable")
    falling = probs[order]
    before = np.cumsum(falling, dtype=np.float32) - falling
    out = logits.copy()
    out[order[before > np.float32(p)]] = -np.inf
    return out


def sample(logits: np.ndarray, seed: int) -> int:
    """Draw from what is left."""
    probs = softmax(logits).astype(np.float64)
    return int(np.random.default_rng(seed).choice(len(probs), p=probs / probs.sum()))
