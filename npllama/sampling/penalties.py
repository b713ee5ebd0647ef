r"""Penalties: make tokens that the text already holds less likely.

Language models repeat themselves, and each repetition makes the next one more
probable. A penalty lowers the logits of tokens that occurred: once
(`repetition_penalty`, `presence_penalty`) or for each occurrence
(`frequency_penalty`). The next chapter looks at whole passages.
`exponential_decay_length_penalty` changes the logit of one token, the end, against
texts that do not end.

Libraries disagree on which text counts. Here the caller decides, by the `tokens`
passed in. Hugging Face's penalties see prompt and output; vLLM's presence and
frequency penalties see the output only; llama.cpp sees the last 64 tokens, prompt
included (`last_n=64`).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npllama.sampling.rows import Row, Tokens, checked, per_history, token_ids

Ids = NDArray[np.int64]


def window_of(last_n: int | None) -> slice:
    """Return the slice of a history that holds its last `last_n` tokens."""
    if last_n is None:
        return slice(None)
    if last_n < 0:
        raise ValueError(f"last_n must be 0 or more, or None for all, got {last_n}")
    return slice(-last_n, None) if last_n else slice(0)


def _less_likely(row: Row, history: Ids, penalty: float, window: slice) -> Row:
    """Divide the logits of the tokens seen, or multiply where they are negative."""
    row, seen = row.copy(), np.unique(history[window])
    factor = row.dtype.type(penalty)
    row[seen] = np.where(row[seen] < 0, row[seen] * factor, row[seen] / factor)
    return row


def repetition_penalty(
    logits: ArrayLike, tokens: Tokens, penalty: float, *, last_n: int | None = None
) -> Row:
    r"""Lower the probability of tokens that occurred, by scaling their logits.

    $$l \leftarrow l / \theta \;\text{ if } l \ge 0, \qquad
      l \leftarrow l \cdot \theta \;\text{ if } l < 0$$

    This happens once per token, however often it occurred. The rule treats logit 0
    as special, although adding a constant to all logits changes no probability. So
    it acts differently on log-probabilities, which are all below 0, than on logits.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
        Prompt and output (Hugging Face, vLLM).
    penalty : float
        Above 0. Over 1 discourages repetition, below 1 encourages it.
    last_n : int, optional
        Count only the last `last_n` tokens; llama.cpp 64.

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If the penalty is not a finite number above 0, or an id is no token.

    References
    ----------
    Keskar et al. 2019, arXiv:1909.05858, section 4.1, who divide negative
    logits, too; every library multiplies those.

    Examples
    --------
    What occurred is divided where it is above 0, multiplied where it is below.

    >>> print(repetition_penalty([4.0, -1.0, 2.0, 0.0, 1.0], [0, 1, 0], 2.0))
    [ 2. -2.  2.  0.  1.]
    """
    if not 0 < penalty < math.inf:
        raise ValueError(f"repetition_penalty must be above 0, got {penalty}")
    return per_history(logits, tokens, _less_likely, penalty, window_of(last_n))


def encoder_repetition_penalty(
    logits: ArrayLike, prompt: Tokens, penalty: float
) -> Row:
    """Make the prompt's tokens more probable: the repetition penalty inverted.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    prompt : (T,) int, or B of them
    penalty : float
        Above 0. Over 1 makes the prompt's tokens *more* probable.

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If the penalty is not a finite number above 0, or an id is no token.

    References
    ----------
    transformers, `EncoderRepetitionPenaltyLogitsProcessor`.
    """
    if not 0 < penalty < math.inf:
        raise ValueError(f"encoder_repetition_penalty must be above 0, got {penalty}")
    return repetition_penalty(logits, prompt, 1 / penalty)


def _subtract(
    row: Row, history: Ids, penalty: float, window: slice, most: float
) -> Row:
    """Lower each logit for each time that its token occurred, at most `most` times."""
    count = np.minimum(np.bincount(history[window], minlength=row.size), most)
    return row - (float(penalty) * count).astype(row.dtype)


def presence_penalty(
    logits: ArrayLike, tokens: Tokens, penalty: float, *, last_n: int | None = None
) -> Row:
    """Lower the logit of every token that occurred by `penalty`.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
        The output alone (OpenAI's service, vLLM).
    penalty : float
        Finite; vLLM and OpenAI allow -2 to 2.
    last_n : int, optional
        Count only the last `last_n` tokens; llama.cpp 64.

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If the penalty is not finite, or an id is no token.

    Examples
    --------
    Once, however often.

    >>> print(presence_penalty([4.0, -1.0, 2.0, 0.0, 1.0], [0, 1, 0], 0.5))
    [ 3.5 -1.5  2.   0.   1. ]
    """
    if not math.isfinite(penalty):
        raise ValueError(f"presence_penalty must be finite, got {penalty}")
    return per_history(logits, tokens, _subtract, penalty, window_of(last_n), 1)


def frequency_penalty(
    logits: ArrayLike, tokens: Tokens, penalty: float, *, last_n: int | None = None
) -> Row:
    """Lower the logit of every token by `penalty` for each time it occurred.

    Parameters, result and errors are those of `presence_penalty`.

    Examples
    --------
    Token 0 occurred twice.

    >>> print(frequency_penalty([4.0, -1.0, 2.0, 0.0, 1.0], [0, 1, 0], 0.5))
    [ 3.  -1.5  2.   0.   1. ]
    """
    if not math.isfinite(penalty):
        raise ValueError(f"frequency_penalty must be finite, got {penalty}")
    window = window_of(last_n)
    return per_history(logits, tokens, _subtract, penalty, window, math.inf)


def exponential_decay_length_penalty(
    logits: ArrayLike,
    new_tokens: ArrayLike,
    start: int,
    factor: float,
    eos_token_id: ArrayLike,
) -> Row:
    r"""Make the end more probable, the longer the text is.

    $$l_{eos} \leftarrow l_{eos} + |l_{eos}| \, (f^{\,n - start} - 1)$$

    once n, the number of new tokens, exceeds `start`.

    Parameters
    ----------
    logits : (..., V) float
    new_tokens : (...) int
        Tokens after the prompt: one number, or one for each row.
    start : int
        0 or more.
    factor : float
        f, above 0; over 1 hastens the end.
    eos_token_id : int or (n,) int

    Returns
    -------
    (..., V) float
        A removed end stays removed.

    Raises
    ------
    ValueError
        If start, factor or an id is out of range.

    References
    ----------
    transformers, `ExponentialDecayLengthPenalty`.
    """
    if start < 0 or not 0 < factor < math.inf:
        raise ValueError(
            "exponential_decay_length_penalty needs start >= 0 and factor > 0, "
            f"got {start} and {factor}"
        )
    out = checked(logits).copy()
    eos = token_ids(eos_token_id, out.shape[-1], "eos_token_id")
    late = np.maximum(np.asarray(new_tokens) - start, 0)
    # Unlimited growth would turn a long text's logits into infinities.
    most = float(np.finfo(out.dtype).max)
    with np.errstate(over="ignore"):
        growth = np.minimum(np.float64(factor) ** late - 1, most)[..., None]
    value = out[..., eos].astype(np.float64)
    changes = (value > -np.inf) & (growth != 0)
    grown = value + np.abs(value, where=changes, out=np.zeros_like(value)) * growth
    out[..., eos] = np.where(changes, np.minimum(grown, most), value)
    return out
