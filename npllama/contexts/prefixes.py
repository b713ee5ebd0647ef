"""Keys that many queries share: cascade attention, and trees.

Texts often begin alike: with the same instructions, or the same document.  In a batch
of them every row reads the keys of this prefix again.  *Cascade attention* lets the
queries of all rows meet the prefix in one product, then each row its own suffix, and
merges the two attention states.  The FLOPs stay the same; the keys that are read fall
from the sum of all lengths to

    prefix + sum of (length - prefix)

Queries of a tree of guesses share a prefix, too: the text so far, which all of them
see whole.  Among each other, every guess sees only itself and its *ancestors*, from
which it branches off.  So the text needs no mask, and the guesses a small one:

    parents  -1 0 0 1      sees   x . . .
                                  x x . .
                                  x . x .
                                  x x . x

This is the attention of `decoding.tree`, put together from two states.

References
----------
Juravsky et al. 2024, arXiv:2402.05099 (Hydragen); Ye et al. 2024, "Cascade Inference"
(FlashInfer); Miao et al. 2023, arXiv:2305.09781 (SpecInfer), for trees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npllama.contexts.states import (
    Attend,
    AttentionState,
    in_the_future,
    merge_states,
    state_of,
)


def cascade(shared: int) -> Attend:
    """A way to attend, for `forward`: rows whose first positions are the same.

    Parameters
    ----------
    shared : int
        Positions of the prefix.  All rows must hold the same keys and values there;
        only those of row 0 are read.

    Returns
    -------
    function
        As `attention.naive`.  ValueError if a row holds fewer positions: new ones
        belong to the suffix.
    """
    if shared < 0:
        raise ValueError(f"a prefix of {shared} positions: 0 at least")

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray):
        B, T, H, D = q.shape
        if start.min() < shared:
            raise ValueError(
                f"a prefix of {shared} positions, where a row holds {start.min()}"
            )
        together = q.reshape(B * T, H, D)
        y, lse = state_of(together, k[0, :, :shared], v[0, :, :shared])
        y, lse = y.reshape(q.shape), lse.reshape(B, T, H)
        found = np.empty_like(q)  # (B, T, H, D)
        for b, first in enumerate(start.tolist()):
            own = slice(shared, min(first + T, k.shape[2]))
            hidden = in_the_future(first, slice(0, T), own)
            suffix = state_of(q[b], k[b, :, own], v[b, :, own], hidden)
            found[b] = merge_states(AttentionState(y[b], lse[b]), suffix).y
        return found

    return attend


#  ---- trees -------------------------------------------------------------------


def ancestors(parents: Sequence[int]) -> np.ndarray:
    """What every guess of a tree sees: itself, and the guesses that it branches from.

    Parameters
    ----------
    parents : T of them
        For each guess an earlier one, or -1 if it follows the text.

    Returns
    -------
    (T, T) bool

    Raises
    ------
    ValueError
        If a parent does not come before its guess.
    """
    visible = np.eye(len(parents), dtype=bool)  # (T, T)
    for t, parent in enumerate(parents):
        if not -1 <= parent < t:
            raise ValueError(f"guess {t} has parent {parent}: -1 to {t - 1} is right")
        if parent >= 0:
            visible[t] |= visible[parent]
    return visible


def depths(visible: np.ndarray) -> np.ndarray:
    """How many positions after the text each guess (T, T) stands; (T,) int64."""
    return visible.sum(axis=1) - 1


def over_tree(visible: np.ndarray) -> Attend:
    """A way to attend, for `forward`: the new tokens are a tree of guesses.

    Give `forward` their positions: those of `depths`, after the positions of the text.

    Parameters
    ----------
    visible : (T, T) bool
        Row t is what guess t sees of the others; see `ancestors`.

    Returns
    -------
    function
        As `attention.naive`: every row has a tree of this form.
    """
    hidden = ~visible

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray):
        y = np.empty_like(q)  # (B, T, H, D)
        for b, first in enumerate(start.tolist()):
            own = slice(first, first + q.shape[1])
            text = state_of(q[b], k[b, :, :first], v[b, :, :first])
            tree = state_of(q[b], k[b, :, own], v[b, :, own], hidden)
            y[b] = merge_states(text, tree).y
        return y

    return attend
