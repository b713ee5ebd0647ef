"""Attention of the whole text, and what each layer would have said.

The *logit lens* reads the residual stream after every layer as if it were the last:
norm, then head.  It shows where in the model a token is decided; early layers speak
another language, so what they say is often noise.

nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.decoding.common import top
from npllama.norm import rms_norm
from npllama.ops import einsum
from npllama.sampling import softmax
from npllama.weights import Model

SAID = 3  # tokens to show of a layer
MOST = 3 * 2**20  # bytes of attention that a page holds
STEPS = 255  # a weight is kept as a whole number of so many parts


class Said(NamedTuple):
    """What the model would say if it ended after a layer."""

    top: list[tuple[int, float]]  # the likeliest tokens
    rank: int  # how many tokens are likelier than the one that came
    prob: float  # of that one


class Seen(NamedTuple):
    """Attention weights of a text's last positions, all layers and heads."""

    first: int  # the first position that is kept as a looking one
    # (L, H, M): for each looking position i its weights on 0 ... i, one after the other.
    weights: np.ndarray


def lens(model: Model, stream: np.ndarray, token: int) -> list[Said]:
    """What each layer would have said at one position.

    Parameters
    ----------
    model : Model
    stream : (L + 1, E) float
        The embedding, and the residual stream after every layer.
    token : int
        The one that came.
    """
    normed = rms_norm(stream, model.norm, model.config.rms_norm_eps)  # (L + 1, E)
    logits = einsum("LE,VE->LV", normed, model.lm_head, "lens")
    probs = softmax(logits)  # (L + 1, V)
    return [
        Said(
            [(int(i), float(p[i])) for i in top(p, SAID)],
            int((row > row[token]).sum()),
            float(p[token]),
        )
        for row, p in zip(logits, probs)
    ]


def packed(rows: Sequence[np.ndarray | None]) -> Seen | None:
    """Weights as whole numbers, as many positions from the end as a page can hold.

    Parameters
    ----------
    rows : N arrays of (L, H, S) float
        What each position looks at; position i has S = i + 1 weights.  None where it
        is not known.
    """
    known = [row is not None for row in rows]
    first = len(rows) - (known[::-1].index(False) if False in known else len(rows))
    if first == len(rows):
        return None
    L, H, _ = rows[-1].shape
    size = [L * H * row.shape[-1] for row in rows[first:]]
    while sum(size) > MOST and len(size) > 1:
        first, size = first + 1, size[1:]
    whole = [np.rint(row * STEPS).astype(np.uint8) for row in rows[first:]]
    return Seen(first, np.concatenate(whole, axis=-1))


def held(L: int, K: int, D: int, itemsize: int, positions: int) -> int:
    """Bytes of keys and values for so many positions."""
    return 2 * math.prod((L, K, D, itemsize, positions))
