r"""One row at a time: what all samplers have in common.

A *row* is the model's prediction of the next token: V logits, one for each word
of the vocabulary. A token whose logit is minus infinity is *removed*: its
probability is exactly 0, and no later sampler may bring it back.

Every sampler is a pure function from logits to logits. It is defined for one row
and applied to each row of a batch alone, so no row can see another. Most samplers
only decide which of the remaining tokens stay. They use `keep_only`, which
guarantees four things for all of them: its input is not changed, kept tokens keep
their value to the last bit, the type stays, removed tokens stay removed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Row = NDArray[np.floating]
Tokens = ArrayLike | Sequence[ArrayLike]


def checked(logits: ArrayLike) -> Row:
    """Return `logits` as an array; refuse values that cannot be ranked.

    Parameters
    ----------
    logits : (..., V) float

    Returns
    -------
    (..., V) float
        The same memory if it was an array already.

    Raises
    ------
    TypeError
        If the numbers are not floating: they could not hold minus infinity.
    ValueError
        If the last axis is empty or a value is NaN or plus infinity.
    """
    logits = np.asarray(logits)
    if not np.issubdtype(logits.dtype, np.floating):
        raise TypeError(f"logits must be floating point numbers, got {logits.dtype}")
    if logits.ndim == 0 or logits.size == 0:
        raise ValueError(f"logits must have shape (..., V), V > 0, got {logits.shape}")
    # One pass finds both: the maximum of anything with a NaN is NaN.
    if not logits.max() < np.inf:
        bad = np.argwhere(~(logits < np.inf))[0]
        where = ", ".join(str(i) for i in bad)
        raise ValueError(
            f"logits[{where}] is {logits[tuple(bad)]}: logits must be finite or -inf "
            "(remove_invalid_values replaces NaN and +inf)"
        )
    return logits


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the option `name` has one of its values."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def keep_only(
    logits: ArrayLike, kept: Callable[..., NDArray[np.bool_]], *settings: Any
) -> Row:
    """Remove from every row all tokens except those that `kept` selects.

    Parameters
    ----------
    logits : (..., V) float
    kept : function of the n finite values of a row, in the order of their ids
        Returns (n,) bool: which of them stay.
    *settings
        What `kept` takes after the values.

    Returns
    -------
    (..., V) float
        The value of each kept token, minus infinity for every other. A row
        without any finite value is returned unchanged.
    """
    logits = checked(logits)
    left = logits > -np.inf  # (..., V)
    for index in np.ndindex(logits.shape[:-1]):
        row = left[index]
        if row.any():
            row[row] = kept(logits[index][row], *settings)
    return np.where(left, logits, logits.dtype.type(-np.inf))


def only(size: int, positions: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return the (size,) mask that is true at `positions`."""
    mask = np.zeros(size, np.bool_)
    mask[positions] = True
    return mask


def token_ids(ids: ArrayLike, size: int, name: str) -> NDArray[np.int64]:
    """Return `ids` as a flat array after checking that the vocabulary has them.

    Parameters
    ----------
    ids : int or (n,) int
    size : int
        V; every id must lie in [0, V).
    name : str
        Their name in error messages.

    Returns
    -------
    (n,) int64

    Raises
    ------
    TypeError
        If they are not integers.
    ValueError
        If they are nested or one lies outside the vocabulary.
    """
    array = np.atleast_1d(np.asarray(ids))
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must be one list of ids, got shape {array.shape}")
    outside = (array < 0) | (array >= size)
    if outside.any():
        bad = array[outside][0]
        raise ValueError(
            f"{name} holds {bad}, but the vocabulary has ids 0 to {size - 1}"
        )
    return array.astype(np.int64)


def per_history(
    logits: ArrayLike,
    tokens: Tokens,
    change: Callable[..., Row],
    *settings: Any,
) -> Row:
    """Apply `change` to every row together with the tokens that led to it.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them for a batch, which may differ in length
    change : function of a row (V,) and its history (T,)
        Returns the new row.
    *settings
        What `change` takes after these.

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If there is not one history for each row, or an id is not a token.
    """
    logits = checked(logits)
    if logits.ndim > 2:
        raise ValueError(
            f"logits with a history have shape (V,) or (B, V), got {logits.shape}"
        )
    size = logits.shape[-1]
    rows = logits.reshape(-1, size)
    histories = [tokens] if logits.ndim == 1 else list(tokens)  # type: ignore[arg-type]
    if len(histories) != len(rows):
        raise ValueError(f"{len(rows)} rows of logits, but {len(histories)} histories")
    ids = [token_ids(history, size, "tokens") for history in histories]  # type: ignore[arg-type]
    changed = [change(row, history, *settings) for row, history in zip(rows, ids)]
    return np.stack(changed).reshape(logits.shape).astype(logits.dtype, copy=False)
