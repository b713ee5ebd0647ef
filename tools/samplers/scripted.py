"""A model for npllama's searches whose logits are any function of the text.

Its forward pass reads the text from where a forward pass keeps it, the cache: token
ids stand there in place of keys.  A search that mixes up the rows of its cache, or
leaves guesses in it that failed, so gets the logits of another text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from npllama.cache import KVCache
from npllama.config import Config

READERS = ("npllama.decoding.common", "npllama.decoding.speculative")


class Scripted(NamedTuple):
    """What the strategies of npllama.decoding ask of a model."""

    config: Config
    embed: np.ndarray  # only its type is looked at
    logits: Callable[[Sequence[int]], np.ndarray]


def scripted(logits: Callable[[Sequence[int]], np.ndarray], size: int) -> Any:
    """Make a model of `size` words from a function of the text."""
    config = Config(size, 2, 2, 1, 1, 1, 2, eos_token_id=())
    return Scripted(config, np.zeros(0, np.float32), logits)


def forward(
    model: Scripted,
    tokens: np.ndarray,
    cache: KVCache,
    count: np.ndarray | None = None,
    last: bool = False,
) -> np.ndarray:
    """Stand in for the forward pass.

    Writes the token ids into the cache.

    Returns
    -------
    (B, T, V) float32
        Or (B, 1, V), after the last token of each row.
    """
    tokens = np.asarray(tokens)
    B, T = tokens.shape
    count = np.full(B, T, np.int64) if count is None else count
    out = np.zeros((B, T, model.config.vocab_size), np.float32)  # (B, T, V)
    for b in range(B):
        for t in range(count[b]):
            place = int(cache.length[b]) + t
            cache.k[0, b, 0, place, 0] = tokens[b, t]
            text = cache.k[0, b, 0, : place + 1, 0].astype(int).tolist()
            out[b, t] = model.logits(text)
    cache.length[:] += count
    return out[np.arange(B), np.maximum(count, 1) - 1][:, None] if last else out


@contextmanager
def instead_of_the_model() -> Iterator[None]:
    """Let the strategies call the `forward` of this module."""
    with ExitStack() as stack:
        for name in READERS:
            stack.enter_context(mock.patch(f"{name}.forward", forward))
        yield
