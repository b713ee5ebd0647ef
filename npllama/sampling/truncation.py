r"""Truncation: cut off the tail before drawing.

A model spreads a little probability over tens of thousands of tokens that
make no sense, and in a text of a thousand tokens one of them is sure to be
drawn. Truncation removes the improbable ones and leaves the rest as they are.
The samplers of this chapter differ in where they cut:

- `top_k` after a number of tokens,
- `top_p` after a share of the probability,
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .draw import Probs, softmax
from .rows import Row, keep_only


def _at_least_one(min_tokens_to_keep: int) -> None:
    if min_tokens_to_keep < 1:
        raise ValueError(
            f"min_tokens_to_keep must be 1 or more, got {min_tokens_to_keep}"
        )


def _kth_largest(values: NDArray, k: int) -> float:
    """Return the k-th largest value, by selection: nothing is sorted."""
    k = min(k, values.size)
    return np.partition(values, -k)[-k]


def top_k(
    logits: ArrayLike,
    k: int,
    *,
    ties: Literal["all", "lowest"] = "all",
    min_tokens_to_keep: int = 1,
) -> Row:
    """Keep the k most probable tokens.

    Parameters
    ----------
    logits : (..., V) float32
    k : int
        1 or more; at k >= V nothing is removed.
    ties : {"all", "lowest"}
        Which of the tokens equal to the k-th stay. "all": each of them, so
        more than k may remain (Hugging Face, vLLM). "lowest": exactly k, those
        with the lowest ids first (llama.cpp, which leaves the choice to its
        partial sort).
    min_tokens_to_keep : int
        Raises k to this number.

    Returns
    -------
    (..., V) float32

    Raises
    ------
    ValueError
        If k or min_tokens_to_keep is below 1.

    References
    ----------
    Fan, Lewis and Dauphin 2018, arXiv:1805.04833, section 5.4.
    """
    _at_least_one(min_tokens_to_keep)
    if k < 1:
        raise ValueError(f"top_k must be 1 or more, got {k} (leave it out to keep all)")
    k = max(k, min_tokens_to_keep)

    def kept(values: Row) -> NDArray:
        kth = _kth_largest(values, k)
        if ties == "all":
            return values >= kth
        above = np.flatnonzero(values > kth)
        equal = np.flatnonzero(values == kth)
        return np.concatenate([above, equal[: k - above.size]])

    return keep_only(logits, kept)


def _leading(
    values: Row, enough: Callable[[Probs], int], ties: str, at_least: int
) -> NDArray[np.intp]:
    """Return the positions of the largest values, as many as are `enough`.

    Parameters
    ----------
    values : (n,) float32
        Logits, none of them removed.
    enough : function of the running sums of the sorted probabilities
        Returns how many to take; more than it was shown means "show me more".
    ties : {"highest", "lowest"}
        Which position comes first among equal values.
    at_least : int
        Take no fewer than this.
    """
    # Sorting 32,000 values to keep 50 is waste: select some hundreds, sort
    # those, and only where they do not suffice come back for four times more.
    # All values equal to the last one selected come along, so the candidates
    # are the true beginning of the sorted order.
    probs = softmax(values)
    size = max(256, at_least)
    while True:
        candidates = np.flatnonzero(values >= _kth_largest(values, size))
        if ties == "highest":
            candidates = candidates[::-1]
        order = candidates[np.argsort(-values[candidates], kind="stable")]
        count = enough(np.cumsum(probs[order]))
        if count <= order.size or order.size == values.size:
            return order[: max(count, at_least)]
        size *= 4


def top_p(
    logits: ArrayLike,
    p: float,
    *,
    ties: Literal["highest", "lowest"] = "highest",
    crossing: Literal["exclusive", "inclusive"] = "exclusive",
    min_tokens_to_keep: int = 1,
) -> Row:
    """Keep the *nucleus*: the most probable tokens that hold the mass p.

    Parameters
    ----------
    logits : (..., V) float32
    p : float
        In [0, 1]. 0 keeps one token, 1 keeps all.
    ties : {"highest", "lowest"}
        Which ids are kept first among equally probable tokens: the highest
        (Hugging Face and vLLM, who sort upwards) or the lowest (llama.cpp,
        Meta).
    crossing : {"exclusive", "inclusive"}
        A token stays while the mass *before* it is < p ("exclusive": Hugging
        Face, vLLM, llama.cpp) or <= p ("inclusive": Meta, llama2.c), which is
        one token more where a sum meets p exactly.
    min_tokens_to_keep : int
        Keep at least this many.

    Returns
    -------
    (..., V) float32

    Raises
    ------
    ValueError
        If p lies outside [0, 1] or min_tokens_to_keep is below 1.

    References
    ----------
    Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """
    _at_least_one(min_tokens_to_keep)
    if not 0 <= p <= 1:
        raise ValueError(f"top_p must lie in [0, 1], got {p}")
    side: Literal["left", "right"] = "left" if crossing == "exclusive" else "right"

    def kept(values: Row) -> NDArray:
        # At p = 1 rounding could complete the sum before the last token.
        if p == 1:
            return np.arange(values.size)

        def enough(mass: Probs) -> int:
            # The tokens whose running sum stays below p, and the one that crosses.
            return int(np.searchsorted(mass, p, side=side)) + 1

        return _leading(values, enough, ties, min_tokens_to_keep)

    return keep_only(logits, kept)
