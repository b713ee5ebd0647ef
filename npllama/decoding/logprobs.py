"""Log-probabilities: how likely the model found each token.

*Raw* log-probabilities are those of the model's own distribution.  *Processed* ones
are those of the distribution after penalties, temperature and truncation, from which
the token was chosen.  For a given text they are found by *teacher forcing*: run the
text through the model once, and read off the log-probability of each next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.cache import new_cache
from npllama.decoding.common import PREFILL_CHUNK
from npllama.model import forward
from npllama.sampling import log_softmax
from npllama.weights import Model


class TokenLogprob(NamedTuple):
    """What the model thought of one token."""

    token: int
    logprob: float  # raw, natural logarithm
    rank: int  # how many tokens were likelier
    top: list[tuple[int, float]]  # the likeliest tokens and their raw logprobs
    processed: float | None = None


def token_logprob(
    logits: np.ndarray, token: int, top: int, processed: np.ndarray | None = None
) -> TokenLogprob:
    """Read one token off one distribution.

    Parameters
    ----------
    logits : (V,) float
        The model's.
    token, top : int
        The token, and how many of the likeliest to list beside it.
    processed : (V,) float
        The logits that the token was chosen from.
    """
    logp = log_softmax(logits)  # (V,)
    # A stable sort of the few: of equals the lower id comes first.
    few = np.argpartition(-logp, min(top, len(logp) - 1))[: top + 1]
    few = np.flatnonzero(logp >= logp[few].min()) if top else few[:0]
    few = few[np.argsort(-logp[few], kind="stable")][:top]
    return TokenLogprob(
        token,
        float(logp[token]),
        int((logp > logp[token]).sum()),
        [(int(i), float(logp[i])) for i in few],
        None if processed is None else float(log_softmax(processed)[token]),
    )


def text_logprobs(
    model: Model, tokens: Sequence[int], start: int = 1, top: int = 0
) -> list[TokenLogprob]:
    """Log-probabilities of a text's tokens from `start` on, by teacher forcing.

    Parameters
    ----------
    model : Model
    tokens : sequence of int
    start : int
        First token to report; at least 1, since nothing comes before the first.
    top : int
    """
    cache = new_cache(model.config, 1, len(tokens), model.embed.dtype.name)
    entries = []
    for t in range(0, len(tokens) - 1, PREFILL_CHUNK):
        chunk = np.array([tokens[t : min(t + PREFILL_CHUNK, len(tokens) - 1)]])
        logits = forward(model, chunk, cache)[0]
        for i, row in enumerate(logits, t + 1):
            if i >= start:
                entries.append(token_logprob(row, int(tokens[i]), top))
    return entries
