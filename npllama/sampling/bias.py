r"""Biases: make chosen tokens and sequences more or less likely.

A bias b is added to a logit, which multiplies the odds of the token by e to the
power b: +1 makes it 2.7 times as likely relative to any other. Minus infinity
forbids it. Biases add up, so their order does not matter.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from npllama.sampling.penalties import Ids
from npllama.sampling.rows import Row, Tokens, checked, per_history, token_ids


def _legal_bias(bias: float) -> None:
    if not bias < math.inf:
        raise ValueError(f"a bias must be finite or -inf, got {bias}")


def _favour_endings(
    row: Row, history: Ids, bias: Mapping[tuple[int, ...], float]
) -> Row:
    """Add the biases of the sequences that the next token would complete."""
    text = tuple(history.tolist())
    added = np.zeros(row.size, np.float64)
    for (*begin, last), amount in bias.items():
        # Every text ends with the empty beginning; [-0:] would be all of it.
        if text[max(len(text) - len(begin), 0) :] == tuple(begin):
            added[last] += amount
    return np.where(added == 0, row, row + added.astype(row.dtype))


def sequence_bias(
    logits: ArrayLike, tokens: Tokens, bias: Mapping[tuple[int, ...], float]
) -> Row:
    """Add a bias to every token that would complete one of the sequences.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
        Prompt and output. vLLM looks for bad words in the output only.
    bias : mapping from tuples of ids to float
        A sequence of one id applies at every step. -inf forbids.

    Returns
    -------
    (V,) or (B, V) float
        The biases of sequences that end in the same token add up.

    Raises
    ------
    ValueError
        If a sequence is empty, a bias is NaN or +inf, or an id is no token.

    References
    ----------
    transformers, `SequenceBiasLogitsProcessor`.

    Examples
    --------
    3 4 is favoured: the text ends in 3, so 4 gets the number.

    >>> print(sequence_bias(np.zeros(5), [1, 3], {(3, 4): 2.0, (1, 2): 9.0}))
    [0. 0. 0. 0. 2.]
    """
    size = checked(logits).shape[-1]
    for sequence, amount in bias.items():
        if not token_ids(sequence, size, "sequence_bias").size:
            raise ValueError("a sequence in sequence_bias must hold at least one id")
        _legal_bias(amount)

    return per_history(logits, tokens, _favour_endings, bias)


def logit_bias(logits: ArrayLike, bias: Mapping[int, float]) -> Row:
    """Add a bias to the logits of single tokens.

    Parameters
    ----------
    logits : (..., V) float
    bias : mapping from id to float
        -inf forbids the token. vLLM clips to [-100, 100].

    Returns
    -------
    (..., V) float

    Raises
    ------
    ValueError
        If a bias is NaN or +inf, or an id is no token.

    Examples
    --------
    >>> print(logit_bias([4.0, -1.0, 2.0, 0.0, 1.0], {0: -3.0, 3: -np.inf}))
    [  1.  -1.   2. -inf   1.]
    """
    out = checked(logits).copy()
    ids = token_ids(list(bias), out.shape[-1], "logit_bias")
    for amount in bias.values():
        _legal_bias(amount)
    out[..., ids] += np.array(list(bias.values()), out.dtype)
    return out


def bad_words(
    logits: ArrayLike,
    tokens: Tokens,
    bad_words_ids: Sequence[Sequence[int]],
    eos_token_id: ArrayLike = (),
) -> Row:
    """Remove the tokens that would complete a forbidden sequence.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
        Prompt and output. vLLM matches the output only.
    bad_words_ids : sequences of ids
    eos_token_id : int or (n,) int
        A forbidden sequence that is just an end token is ignored; otherwise a
        text could never end.

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If a sequence is empty or an id is no token.

    References
    ----------
    transformers, `NoBadWordsLogitsProcessor`.
    """
    ends = [(int(eos),) for eos in np.atleast_1d(np.asarray(eos_token_id, np.int64))]
    size = checked(logits).shape[-1]
    for word in bad_words_ids:
        if not token_ids(word, size, "bad_words_ids").size:
            raise ValueError("a sequence in bad_words_ids must hold at least one id")
    words = {tuple(word) for word in bad_words_ids}
    return sequence_bias(logits, tokens, {w: -math.inf for w in words if w not in ends})
