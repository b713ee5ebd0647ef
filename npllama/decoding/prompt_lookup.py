"""Prompt lookup: guess that the text repeats itself.

Summaries quote, programs repeat names, answers use the words of the question.  So
look for an earlier occurrence of the last few tokens, and guess that the text
continues as it did there.  The draft costs nothing.  If the guess is wrong, the pass
of the target still gives one token, as without a guess.

The guess involves no chance: its distribution q is 1 at each token, so the rule of
`rejection` keeps a token x with probability p(x).

Saxena 2023, prompt-lookup-decoding; details as in transformers 5.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from npllama.cache import KVCache
from npllama.decoding.speculative import Draft, Propose


def continuation(
    text: Sequence[int], most: int, max_matching_ngram_size: int = 2
) -> list[int]:
    """The tokens that followed the last tokens of a text where these first occurred.

    Looks for as many last tokens as possible, at most `max_matching_ngram_size`; of
    several places the leftmost counts.  (The latest would do as well; after the
    leftmost there is most to copy.)

    Parameters
    ----------
    text : token ids
    most : int
        Tokens to copy at most.
    max_matching_ngram_size : int

    Returns
    -------
    list of int
        Empty if not even the last token occurs twice.
    """
    ids = np.asarray(text)  # (S,)
    for n in range(min(max_matching_ngram_size, len(ids) - 1), 0, -1):
        # The last n tokens themselves are not among the places to look at.
        places = sliding_window_view(ids[:-1], n)  # (S - n, n)
        found = np.flatnonzero((places == ids[-n:]).all(axis=1))
        if found.size:
            start = int(found[0]) + n
            return ids[start : start + most].tolist()
    return []


def prompt_lookup(
    max_matching_ngram_size: int = 2, eos: Collection[int] = ()
) -> Propose:
    """Guess the tokens that followed the same tokens earlier.

    Parameters
    ----------
    max_matching_ngram_size : int
        Longest sequence of last tokens to look for.
    eos : token ids
        A guess ends before any of them, since another text would follow.

    Returns
    -------
    function
        For `speculate`.

    Raises
    ------
    ValueError
        If the size is less than 1.
    """
    if max_matching_ngram_size < 1:
        raise ValueError(
            f"max_matching_ngram_size is {max_matching_ngram_size}; at least 1 token "
            "must be looked for"
        )
    return partial(look_up, max_matching_ngram_size, eos)


def look_up(
    longest: int, eos: Collection[int], text: Sequence[int], most: int, cache: KVCache
) -> Draft:
    """Guess by `continuation`, up to a token that ends a text; no cache is needed."""
    found = continuation(text, most, longest)
    ends = [i for i, token in enumerate(found) if token in eos]
    return Draft(found[: ends[0]] if ends else found)
