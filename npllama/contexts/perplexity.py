r"""Perplexity: how much a text surprises a model.

A model gives every token a probability before it sees it.  The *surprise* at a token
is the negative logarithm of that probability: 0 where the model was certain.  The
perplexity of a text is the exponential of the mean surprise,

$$\mathrm{PPL} = \exp\Big(-\frac{1}{n} \sum_i \log p(x_i \mid x_{<i})\Big)$$

A model that hesitates between k equally likely tokens every time has a perplexity of k.
Whatever changes a model or its cache shows here: a window on attention, keys in fewer
bits, rounded weights.

A text longer than the context is read in *windows*.  Tokens at the head of a window
have little before them and surprise more, so the number depends on where windows
begin and which of their tokens count.  Of ten tokens in windows of four:

    strided by 2          halves, as llama.cpp
    [0 1 2 3]             [0 1 2 3]
        [2 3 4 5]                 [4 5 6 7]
            [4 5 6 7]
    counted: 1 2 3 4 ...  counted: 3, 7

*Strided* windows overlap, and each counts what no window before it counted: every
token but the first counts once, with at least `length` - `stride` tokens before it.
llama.cpp's windows stand side by side and only their second *halves* count; what does
not fill a window at the end is left out, and the model's BOS takes the place of a
window's first token.  Numbers of different conventions cannot be compared.

References
----------
Jelinek et al. 1977, "Perplexity, a measure of the difficulty of speech recognition
tasks"; the page on perplexity of fixed-length models in the documentation of
transformers; ``tools/perplexity`` of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from npllama.cache import new_cache
from npllama.decoding.common import PREFILL_CHUNK
from npllama.model import forward
from npllama.sampling import log_softmax
from npllama.weights import Model


class Window(NamedTuple):
    """A part of a text that is run by itself."""

    begin: int
    first: int  # the first token that counts; after `begin`
    end: int  # the token after the last


class Surprise(NamedTuple):
    """What a text did to a model: one entry for every token that counts."""

    places: np.ndarray  # (n,) int64, where the tokens stand in the text
    nats: np.ndarray  # (n,) float64, the surprise at each

    @property
    def perplexity(self) -> float:
        """The exponential of the mean surprise."""
        return math.exp(self.nats.mean())

    @property
    def error(self) -> float:
        """The standard error of the perplexity, if tokens were independent.

        llama.cpp prints the same after its ``+/-``; NaN for a single token.
        """
        n = len(self.nats)
        return (
            self.perplexity * self.nats.std() / math.sqrt(n - 1) if n > 1 else math.nan
        )


def strided(n: int, length: int, stride: int) -> list[Window]:
    """Windows that overlap; each counts what none before it counted.

    Parameters
    ----------
    n : int
        Tokens of the text.
    length : int
        Tokens of a window, at most.
    stride : int
        From one window's begin to the next.  At most `length` - 1: in windows that do
        not overlap nothing would come before their first tokens.

    Raises
    ------
    ValueError
        If a number is out of range.

    >>> strided(7, 4, 2)
    [Window(begin=0, first=1, end=4), Window(begin=2, first=4, end=6), Window(begin=4, first=6, end=7)]
    """
    if not 1 <= stride < length:
        raise ValueError(
            f"stride {stride} and windows of {length} tokens: a stride is 1 or more, and "
            "less than the window"
        )
    _at_least(n, 2)
    windows, counted = [], 1
    for begin in range(0, n, stride):
        end = min(begin + length, n)
        windows.append(Window(begin, counted, end))
        counted = end
        if end == n:
            break
    return windows


def halves(n: int, length: int) -> list[Window]:
    """Windows side by side, whose second halves count, as in llama.cpp.

    Parameters
    ----------
    n, length : int
        Tokens of the text, and of a window.

    Raises
    ------
    ValueError
        If the text does not fill one window, or no token of a window would count.

    >>> halves(10, 4)
    [Window(begin=0, first=3, end=4), Window(begin=4, first=7, end=8)]
    """
    if length < 3:
        raise ValueError(f"windows of {length} tokens: 3 or more are needed")
    _at_least(n, length)
    begins = range(0, n - length + 1, length)
    return [Window(b, b + length // 2 + 1, b + length) for b in begins]


def _at_least(n: int, least: int) -> None:
    if n < least:
        raise ValueError(f"the text has {n} tokens; {least} or more are needed")


def text_of(tokens: Sequence[int], piece: int = 1) -> np.ndarray:
    """A text to be read in pieces, (S,) int64.

    Raises
    ------
    ValueError
        If it has no token, or a piece has none.
    """
    _at_least(len(tokens), 1)
    if piece < 1:
        raise ValueError(f"pieces of {piece} tokens: 1 or more are needed")
    return np.array(tokens, dtype=np.int64)


def surprise(
    model: Model, tokens: Sequence[int], window: Window, bos: int | None = None
) -> np.ndarray:
    """Run one window, and read off the surprise at the tokens that count.

    Parameters
    ----------
    model : Model
    tokens : sequence of int
        The whole text.
    window : Window
    bos : int, optional
        Takes the place of the window's first token.

    Returns
    -------
    (end - first,) float64
        In nats.

    Raises
    ------
    ValueError
        If a token is outside the vocabulary.
    """
    begin, first, end = window
    text = np.array(tokens[begin:end], dtype=np.int64)  # (S,)
    if bos is not None:
        text[0] = bos
    # The last token is only predicted, not run: nothing comes after it.
    cache = new_cache(model.config, 1, max(len(text) - 1, 1), model.embed.dtype.name)
    found = []
    for t in range(0, len(text) - 1, PREFILL_CHUNK):
        part = text[t : min(t + PREFILL_CHUNK, len(text) - 1)]  # (T,)
        # The logits at position i predict token i + 1.
        wanted = np.arange(max(first - begin - 1 - t, 0), len(part))  # (M,)
        logits = forward(model, part[None], cache, last=wanted)[0]  # (M, V)
        if len(wanted):
            logp = log_softmax(logits)  # (M, V)
            found.append(-logp[np.arange(len(wanted)), text[t + wanted + 1]])
    return np.concatenate(found).astype(np.float64)


def gathered(windows: Iterable[Window], nats: Iterable[np.ndarray]) -> Surprise:
    """Put the windows' surprises together, in the order of the text."""
    places = [np.arange(window.first, window.end) for window in windows]
    return Surprise(np.concatenate(places), np.concatenate(list(nats)))


def perplexity(
    model: Model,
    tokens: Sequence[int],
    windows: Sequence[Window],
    bos: int | None = None,
) -> Surprise:
    """How much a text surprises a model.

    Parameters
    ----------
    model : Model
    tokens : sequence of int
    windows : sequence of Window
        From `strided` or `halves`.
    bos : int, optional
        Takes the place of every window's first token; llama.cpp does so if the model
        begins its texts with BOS.

    Returns
    -------
    Surprise

    Raises
    ------
    ValueError
        If a token is outside the vocabulary.
    """
    each = (surprise(model, tokens, window, bos) for window in windows)
    return gathered(windows, each)
