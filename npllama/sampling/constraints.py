r"""Constraints: what a text may, must and must not contain.

A constraint does not look at probabilities: it removes given tokens, or all
except these. Most constraints depend on the length of the text so far, which
includes the prompt, as in transformers; a batch may pass one length for all
rows, or one for each.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npllama.sampling.draw import log_softmax
from npllama.sampling.rows import Row, Tokens, checked, per_history, token_ids

Ids = NDArray[np.int64]
Lengths = ArrayLike


def suppress(logits: ArrayLike, suppress_tokens: ArrayLike) -> Row:
    """Remove the given tokens.

    Parameters
    ----------
    logits : (..., V) float
    suppress_tokens : int or (n,) int

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If an id is no token.
    """
    out = checked(logits).copy()
    out[..., token_ids(suppress_tokens, out.shape[-1], "suppress_tokens")] = -np.inf
    return out


def _where(rows: NDArray[np.bool_], then: Row, otherwise: Row) -> Row:
    """Choose whole rows: `then` where true; a single value applies to all rows."""
    if rows.ndim and rows.shape != otherwise.shape[:-1]:
        raise ValueError(
            f"lengths have shape {rows.shape}, but the rows are {otherwise.shape[:-1]}"
        )
    return np.where(rows[..., None], then, otherwise)


def begin_suppress(
    logits: ArrayLike, length: Lengths, begin_suppress_tokens: ArrayLike, begin: Lengths
) -> Row:
    """Remove the given tokens from the first new position only.

    Parameters
    ----------
    logits : (..., V) float
    length : int or (...) int
        Tokens so far.
    begin_suppress_tokens : int or (n,) int
    begin : int or (...) int
        The length at which generation starts.

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If an id is no token.
    """
    first = np.asarray(length) == np.asarray(begin)
    return _where(first, suppress(logits, begin_suppress_tokens), checked(logits))


def min_length(
    logits: ArrayLike, length: Lengths, min_length: int, eos_token_id: ArrayLike
) -> Row:
    """Forbid the end while the text, prompt included, is shorter than asked.

    Parameters
    ----------
    logits : (..., V) float
    length : int or (...) int
        Tokens so far.
    min_length : int
        0 or more.
    eos_token_id : int or (n,) int
        vLLM's ``min_tokens`` forbids every stop token: pass them all.

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If min_length is below 0 or an id is no token.
    """
    if min_length < 0:
        raise ValueError(f"min_length must be 0 or more, got {min_length}")
    logits = checked(logits)
    ends = token_ids(eos_token_id, logits.shape[-1], "eos_token_id")
    short = np.asarray(length) < min_length
    return _where(short, suppress(logits, ends), logits)


def min_new_tokens(
    logits: ArrayLike,
    length: Lengths,
    prompt_length: Lengths,
    min_new_tokens: int,
    eos_token_id: ArrayLike,
) -> Row:
    """Forbid the end until `min_new_tokens` tokens follow the prompt.

    Parameters
    ----------
    logits : (..., V) float
    length, prompt_length : int or (...) int
        Tokens so far, and how many of them are the prompt.
    min_new_tokens : int
        0 or more.
    eos_token_id : int or (n,) int

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If min_new_tokens is below 0 or an id is no token.

    Examples
    --------
    Token 2 would end the text after one new token of two.

    >>> print(min_new_tokens(np.zeros(5), 4, 3, 2, 2))
    [  0.   0. -inf   0.   0.]
    """
    if min_new_tokens < 0:
        raise ValueError(f"min_new_tokens must be 0 or more, got {min_new_tokens}")
    new = np.asarray(length) - np.asarray(prompt_length)
    return min_length(logits, new, min_new_tokens, eos_token_id)


def _force(logits: Row, ids: Ids) -> Row:
    """Return logits that allow the given tokens alone, with equal chances."""
    out = np.full_like(logits, -np.inf)
    out[..., ids] = 0.0
    return out


def forced_bos(logits: ArrayLike, length: Lengths, bos_token_id: int) -> Row:
    """Force the second token of the text.

    Parameters
    ----------
    logits : (..., V) float
    length : int or (...) int
        Tokens so far; the rule applies at 1. It is made for encoder-decoder
        models, whose output starts from one token.
    bos_token_id : int

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If the id is no token.
    """
    logits = checked(logits)
    ids = token_ids(bos_token_id, logits.shape[-1], "forced_bos_token_id")
    return _where(np.asarray(length) == 1, _force(logits, ids), logits)


def forced_eos(
    logits: ArrayLike, length: Lengths, max_length: int, eos_token_id: ArrayLike
) -> Row:
    """Force an end token at the last position.

    Parameters
    ----------
    logits : (..., V) float
    length : int or (...) int
        Tokens so far; the rule applies at max_length - 1.
    max_length : int
    eos_token_id : int or (n,) int
        Several get equal chances.

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If an id is no token.
    """
    logits = checked(logits)
    ids = token_ids(eos_token_id, logits.shape[-1], "forced_eos_token_id")
    last = np.asarray(length) == max_length - 1
    return _where(last, _force(logits, ids), logits)


def allowed_tokens(logits: ArrayLike, allowed_token_ids: ArrayLike) -> Row:
    """Remove all tokens but the given ones.

    Parameters
    ----------
    logits : (..., V) float
    allowed_token_ids : int or (n,) int

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If none is allowed or an id is no token.

    Examples
    --------
    >>> print(allowed_tokens([4.0, -1.0, 2.0, 0.0, 1.0], [1, 4]))
    [-inf  -1. -inf -inf   1.]
    """
    logits = checked(logits)
    ids = token_ids(allowed_token_ids, logits.shape[-1], "allowed_token_ids")
    if not ids.size:
        raise ValueError("allowed_token_ids is empty: no token could follow")
    out = np.full_like(logits, -np.inf)
    out[..., ids] = logits[..., ids]
    return out


def prefix_allowed_tokens(
    logits: ArrayLike,
    tokens: Tokens,
    prefix_allowed_tokens_fn: Callable[[int, Ids], ArrayLike],
    *,
    num_beams: int = 1,
) -> Row:
    """Allow the tokens that a function of the text so far returns.

    Grammars can be written as such functions.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
    prefix_allowed_tokens_fn : function of a batch number and its tokens
        Returns the ids that may follow.
    num_beams : int
        Number of consecutive rows that belong to one batch number.

    Returns
    -------
    (V,) or (B, V) float
        If earlier samplers removed all allowed tokens, in all beams of a batch
        number, the allowed tokens come back with logit 0 (transformers 5;
        version 4 left such rows empty).

    Raises
    ------
    ValueError
        If the function allows nothing, or returns an id that is no token.

    References
    ----------
    De Cao et al. 2021, arXiv:2010.00904, section 3.2; transformers,
    `PrefixConstrainedLogitsProcessor`.
    """
    logits = checked(logits)
    beams = np.atleast_2d(logits)
    if num_beams < 1 or len(beams) % num_beams:
        raise ValueError(f"{len(beams)} rows are not groups of num_beams={num_beams}")
    batch = iter(range(len(beams)))

    def mask(row: Row, history: Ids) -> Row:
        allowed = prefix_allowed_tokens_fn(next(batch) // num_beams, history)
        return allowed_tokens(np.zeros_like(row), allowed)

    masks = np.atleast_2d(per_history(logits, tokens, mask))
    out = np.where(masks == 0, beams, masks)
    alive = (out > -np.inf).any(axis=-1).reshape(-1, num_beams).any(axis=-1)
    rescued = np.where(np.repeat(alive, num_beams)[:, None], out, masks)
    return rescued.reshape(logits.shape)


def remove_invalid_values(logits: ArrayLike) -> Row:
    """Replace NaN by 0 and infinities by the largest finite numbers.

    Every other sampler refuses NaN and plus infinity; this one hides such errors,
    so that generation can continue.

    Parameters
    ----------
    logits : (..., V) float

    Returns
    -------
    (..., V) float
        Removed tokens come back, with a logit so low that they are never drawn
        while another token remains.
    """
    logits = np.asarray(logits)
    if not np.issubdtype(logits.dtype, np.floating):
        raise TypeError(f"logits must be floating point numbers, got {logits.dtype}")
    return np.nan_to_num(logits, copy=True, nan=0.0)


def renormalize(logits: ArrayLike) -> Row:
    """Turn logits into log-probabilities of the same type.

    Parameters
    ----------
    logits : (..., V) float

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If a row has no finite value.
    """
    return log_softmax(logits).astype(checked(logits).dtype)
