r"""Repeated passages: penalties that look further back than one token.

An *n-gram* is n consecutive tokens. If the last n - 1 tokens of a text occurred in
it before, one token would now complete the same n-gram again; `no_repeat_ngram`
forbids that token. `dry` finds, for every token, the length of the passage that it
would repeat, and its penalty grows with that length.

As with all penalties, the caller decides by `tokens` what counts as the text.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from npllama.sampling.penalties import Ids, window_of
from npllama.sampling.rows import Row, Tokens, checked, per_history, token_ids


def plain_no_repeat_ngram(row: Row, history: Ids, n: int) -> Row:
    """No-repeat in its plainest form: try every n-gram of the text, one by one."""
    row, text = row.copy(), history.tolist()
    for i in range(len(text) - n + 1):
        *begun, end = text[i : i + n]
        if begun == text[len(text) - (n - 1) :]:
            row[end] = -np.inf
    return row


def _ngram_ends(history: Ids, source: Ids, n: int) -> Ids:
    """Last tokens of the n-grams of `source` that begin with the end of `history`."""
    if history.size < n - 1 or source.size < n:
        return source[:0]
    ngrams = np.lib.stride_tricks.sliding_window_view(source, n)
    begun = history[history.size - (n - 1) :]
    return ngrams[(ngrams[:, :-1] == begun).all(axis=1), -1]


def _ngram_size(name: str, n: int) -> None:
    if n < 1:
        raise ValueError(f"{name} must be 1 or more, got {n} (leave it out for none)")


def _without_repeats(row: Row, history: Ids, n: int, source: Ids | None = None) -> Row:
    """Remove what would complete an n-gram of the source, or of the history."""
    row = row.copy()
    row[_ngram_ends(history, history if source is None else source, n)] = -np.inf
    return row


def no_repeat_ngram(logits: ArrayLike, tokens: Tokens, n: int) -> Row:
    """Remove the tokens that would complete an n-gram of the text.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
        Prompt and output.
    n : int
        1 or more; 1 forbids every token that occurred.

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If n is below 1, or an id is no token.

    References
    ----------
    Paulus, Xiong and Socher 2017, arXiv:1705.04304, section 2.5; transformers,
    `NoRepeatNGramLogitsProcessor`.

    Examples
    --------
    After 1 2 came 3; the text ends in 1 2 again.

    >>> print(no_repeat_ngram(np.zeros(5), [1, 2, 3, 1, 2], 3))
    [  0.   0.   0. -inf   0.]
    """
    _ngram_size("no_repeat_ngram_size", n)
    return per_history(logits, tokens, _without_repeats, n)


def encoder_no_repeat_ngram(
    logits: ArrayLike, tokens: Tokens, prompt: ArrayLike, n: int
) -> Row:
    """Remove the tokens that would complete an n-gram of the prompt.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
        Prompt and output, or the output alone.
    prompt : (P,) int
        The source of forbidden n-grams, the same for every row.
    n : int
        1 or more.

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If n is below 1, or an id is no token.

    References
    ----------
    transformers, `EncoderNoRepeatNGramLogitsProcessor`.
    """
    _ngram_size("encoder_no_repeat_ngram_size", n)
    logits = checked(logits)
    source = token_ids(prompt, logits.shape[-1], "prompt")
    return per_history(logits, tokens, _without_repeats, n, source)


def _since_breaker(history: Ids, breakers: Sequence[Sequence[int]]) -> int:
    """Count the tokens after the last sequence breaker in the history."""
    text, marks = history.tolist(), [list(b) for b in breakers]
    for start in range(len(text) - 1, -1, -1):
        lengths = [len(b) for b in marks if text[start : start + len(b)] == b]
        if lengths:
            return len(text) - start - max(lengths)
    return len(text)


def plain_repeat_lengths(history: Ids, limit: int) -> Ids:
    """`repeat_lengths` in its plainest form: go back from every place, step by step."""
    lengths = np.zeros(history.size, np.int64)
    for j in range(history.size):
        while lengths[j] < min(j, limit) and (
            history[j - 1 - lengths[j]] == history[-1 - lengths[j]]
        ):
            lengths[j] += 1
    return lengths


def repeat_lengths(history: ArrayLike, limit: int) -> Ids:
    """For each place of a text, measure how long a repeat would continue there.

    Parameters
    ----------
    history : (T,) int
    limit : int
        Count no further than this.

    Returns
    -------
    (T,) int64
        At place j, the number of tokens directly before j that equal the last
        tokens of the text.
    """
    history = np.asarray(history, np.int64)
    lengths = np.zeros(history.size, np.int64)
    place = np.arange(history.size)
    for n in range(1, min(limit, history.size) + 1):
        place = place[place >= n]
        place = place[history[place - n] == history[-n]]
        if not place.size:
            break
        lengths[place] = n
    return lengths


def longest_repeats(history: Ids, size: int, breakers: Sequence[Sequence[int]]) -> Ids:
    """Find for every token of the vocabulary the longest repeat it would prolong.

    Parameters
    ----------
    history : (T,) int64
    size : int
        V.
    breakers : sequences of ids

    Returns
    -------
    (V,) int64
        0 for tokens that prolong no repeat, and for breakers.
    """
    lengths = repeat_lengths(history, _since_breaker(history, breakers))
    longest = np.zeros(size, np.int64)
    np.maximum.at(longest, history, lengths)
    longest[[b[0] for b in breakers if len(b) == 1]] = 0
    return longest


def _largest_power(base: float) -> float:
    """The power at which a float32 penalty would overflow.

    llama.cpp divides in float32, so bases 2 and 4 reach powers of 128 and 64. There
    the penalty may overflow and remove the token.
    """
    if not base > 1.000001:
        return math.inf
    largest = np.log(np.finfo(np.float32).max)
    return float(largest / np.log(np.float32(base)) // np.float32(1))


def _check_dry(
    multiplier: float, base: float, allowed_length: int, breakers: list[Ids]
) -> None:
    """Raise ValueError for an option of `dry` that is out of its range."""
    if not (0 <= multiplier < math.inf and 1 <= base < math.inf):
        raise ValueError(f"dry needs m >= 0 and base >= 1, got {multiplier} and {base}")
    if allowed_length < 1 or not all(b.size for b in breakers):
        raise ValueError("dry needs an allowed_length >= 1 and no empty breaker")


def dry(
    logits: ArrayLike,
    tokens: Tokens,
    multiplier: float,
    *,
    base: float = 1.75,
    allowed_length: int = 2,
    last_n: int | None = None,
    sequence_breakers: Sequence[Sequence[int]] = (),
) -> Row:
    r"""Don't repeat yourself: penalise a token by the repeat it would prolong.

    $$l_v \leftarrow l_v - m \cdot b^{\,n - a}$$

    where n is the length of the longest passage that ends the text and that
    also occurred earlier, followed there by v. The penalty grows
    exponentially, so long verbatim repeats disappear, while names and idioms
    stay possible.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
        Prompt and output.
    multiplier : float
        m, 0 or more; 0 does nothing.
    base : float
        b, 1 or more.
    allowed_length : int
        a, 1 or more: shorter repeats are free.
    last_n : int, optional
        Look only at the last `last_n` tokens; llama.cpp 64, in older versions all.
    sequence_breakers : sequences of ids
        A repeat does not reach back across any of these (line breaks, quotes, the
        marks of a chat turn). A breaker of one token is never penalised itself.

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If an option is out of range, a breaker is empty or an id is no token.

    References
    ----------
    p-e-w 2024, text-generation-webui pull request 5677; llama.cpp,
    `llama_sampler_dry_apply`. Not in transformers or vLLM.

    Examples
    --------
    Before came 1 2 3 4; after 1 2 3 again, 4 would make four tokens, and each beyond two
    multiplies: 1 x 1.75.

    >>> print(dry(np.zeros(5), [1, 2, 3, 4, 0, 1, 2, 3], 1.0))
    [ 0.    0.    0.    0.   -1.75]
    """
    size = checked(logits).shape[-1]
    breakers = [token_ids(b, size, "sequence_breakers") for b in sequence_breakers]
    _check_dry(multiplier, base, allowed_length, breakers)
    window, most = window_of(last_n), _largest_power(base)

    def change(row: Row, history: Ids) -> Row:
        longest = longest_repeats(history[window], size, sequence_breakers)
        too_long = np.flatnonzero(longest >= allowed_length)
        power = np.minimum(longest[too_long] - allowed_length, most)
        row = row.copy()
        with np.errstate(over="ignore"):
            penalty = (multiplier * base ** power.astype(float)).astype(row.dtype)
        row[too_long] -= penalty
        return row

    return per_history(logits, tokens, change)
