r"""Calibration: what goes into each matrix when the model reads real text.

Rounding that looks at outputs has to know the inputs x that occur.  It needs no more
than sums over them: $X X^T$, (S, S), for GPTQ; the mean and the largest |x| of every
input channel for methods that scale channels.  An observer of the one product sees
them: the inputs of a matrix are the first operand of its product.

The model is run block by block, not token by token: all texts go through block 0, then
all through block 1, and so on.  So only the residual streams of the texts and the sums
of one block are in memory.  The seven matrices of a block have only four different
inputs:

    wq, wk, wv    the residual stream, normalised
    wo            what the heads found
    w_gate, w_up  the residual stream after attention, normalised
    w_down        the hidden layer

These are the *stages* of a block.  If a stage is rounded before the inputs of the next
one are collected, each matrix is fitted to inputs that carry the errors made before it
and can make up for them (*true sequential*); and block l + 1 reads what the rounded
block l wrote.

A text for calibration should be of the kind that the model reads.  Each row of it
begins as the model's texts do, usually with BOS.

References
----------
``gptq.py`` and ``llama.py`` of IST-DASLab/gptq; the option ``true_sequential`` there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from npllama.attention import attention
from npllama.config import Config
from npllama.feedforward import ACTIVATIONS, feed_forward
from npllama.norm import rms_norm
from npllama.ops import Kind, Observer, multiply, observing
from npllama.rope import rope_tables
from npllama.weights import LAYER_NAMES, Layer

#  ---- a block, by halves ------------------------------------------------------


def attention_half(x: np.ndarray, layer: Layer, config: Config) -> np.ndarray:
    """The residual stream of one text after the attention half of a block.

    Parameters
    ----------
    x : (1, T, E) float
        The whole text, from its first token.
    layer : Layer
    config : Config

    Returns
    -------
    (1, T, E) float
    """
    T = x.shape[1]
    normed = rms_norm(x, layer.attn_norm, config.rms_norm_eps)  # (1, T, E)
    tables = rope_tables(config, np.arange(T)[None], x.dtype.name)
    K, D = config.num_key_value_heads, config.head_dim
    k, v = (np.zeros((1, K, T, D), dtype=x.dtype) for _ in "kv")  # (1, K, T, D)
    start, count = np.zeros(1, dtype=np.int64), np.full(1, T, dtype=np.int64)
    return x + attention(normed, layer, tables, k, v, start, count)


def feed_forward_half(x: np.ndarray, layer: Layer, config: Config) -> np.ndarray:
    """The residual stream of one text after the feed-forward half: (1, T, E)."""
    normed = rms_norm(x, layer.mlp_norm, config.rms_norm_eps)  # (1, T, E)
    return x + feed_forward(normed, layer, ACTIVATIONS[config.hidden_act])


class Half(NamedTuple):
    """A half of a block, and its matrices, those of the same inputs together."""

    run: Callable[[np.ndarray, Layer, Config], np.ndarray]
    stages: tuple[tuple[str, ...], ...]


HALVES = (
    Half(attention_half, (("wq", "wk", "wv"), ("wo",))),
    Half(feed_forward_half, (("w_gate", "w_up"), ("w_down",))),
)
MATRICES = tuple(word for half in HALVES for stage in half.stages for word in stage)


def through(xs: Iterable[np.ndarray], layer: Layer, config: Config) -> list[np.ndarray]:
    """Residual streams after a whole block; (1, T, E) each, T of its own."""
    for half in HALVES:
        xs = [half.run(x, layer, config) for x in xs]
    return list(xs)


#  ---- what goes in ------------------------------------------------------------


class Inputs(NamedTuple):
    """Sums over all inputs of a matrix."""

    gram: np.ndarray  # (S, S) float64, the sum of x x^T
    total: np.ndarray  # (S,) float64, the sum of |x|
    most: np.ndarray  # (S,) float64, the largest |x|
    tokens: int

    @property
    def mean(self) -> np.ndarray:
        """(S,) float64: the mean of |x|."""
        return self.total / self.tokens


class Gram(Observer):
    """Sums up the inputs of products, by the words of their weights in `Layer`."""

    def __init__(self, words: Iterable[str]):
        self.words = {LAYER_NAMES[word].split(".")[-2]: word for word in words}
        self.found: dict[str, Inputs] = {}

    def product(self, kind: Kind, a: np.ndarray, b: Any, y: np.ndarray) -> None:
        """Add the inputs of one product, in float64, or X X' might have no inverse."""
        word = self.words.get(kind.name)
        if word is None:
            return
        x = a.reshape(a.shape[0] * a.shape[1], -1).astype(np.float64)  # (n, S)
        size = np.abs(x)
        new = Inputs(multiply(x.T, x), size.sum(axis=0), size.max(axis=0), len(x))
        old = self.found.get(word)
        if old is not None:
            most = np.maximum(old.most, new.most)
            new = Inputs(
                old.gram + new.gram,
                old.total + new.total,
                most,
                old.tokens + new.tokens,
            )
        self.found[word] = new


def inputs_of(
    words: Sequence[str],
    half: Half,
    xs: Iterable[np.ndarray],
    layer: Layer,
    config: Config,
) -> dict[str, Inputs]:
    """What goes into some matrices of a half-block when texts run through it.

    Parameters
    ----------
    words : sequence of str
        Such as ``("wq", "wk", "wv")``; those of a stage share one entry's arrays.
    half : Half
    xs : iterable of (1, T, E) float
    layer : Layer
    config : Config
    """
    firsts = {stage[0]: stage for stage in half.stages if set(stage) & set(words)}
    with observing(Gram(firsts)) as gram:
        for x in xs:
            half.run(x, layer, config)
    return {
        word: found for first, found in gram.found.items() for word in firsts[first]
    }


#  ---- the texts ---------------------------------------------------------------


def rows_of(
    texts: Iterable[Sequence[int]], front: Sequence[int], length: int
) -> list[np.ndarray]:
    """Cut texts into rows that each begin as the model's texts do.

    Parameters
    ----------
    texts : iterable of sequences of int
        Token ids without those at the front.
    front : sequence of int
        What every text begins with; often BOS.
    length : int
        Tokens of a row at most; the last row of a text may be shorter.

    Returns
    -------
    list of (1, T) int64
        Without rows of a single token.

    Raises
    ------
    ValueError
        If a row has no room for text.

    >>> [row.tolist() for row in rows_of([[5, 6, 7], [8]], [1], 3)]
    [[[1, 5, 6]], [[1, 7]], [[1, 8]]]
    """
    step = length - len(front)
    if step < 1:
        raise ValueError(f"rows of {length} tokens have no room after {len(front)}")
    rows = []
    for text in texts:
        for first in range(0, len(text), step):
            row = np.array([[*front, *text[first : first + step]]], dtype=np.int64)
            if row.shape[1] > 1:
                rows.append(row)
    return rows
