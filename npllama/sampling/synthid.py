r"""SynthID: a watermark that does not change the distribution on average.

The green list of the last chapter makes some tokens more probable than others.
SynthID holds a tournament instead. For every key there is a random function g that
gives each token, in its context, a 0 or a 1, and each layer of the tournament moves
probability from the zeros to the ones:

$$p_i \leftarrow p_i \, (1 + g_i - \sum_j g_j p_j)$$

Half of all keys give the token a 1 and half a 0, so on average over keys the factor
is 1, and the text is as good as without a mark. But with the keys the mark can be
detected: `synthid_detector`.

The random functions are a hash, a linear congruential generator in 64-bit
arithmetic that wraps around, of the last tokens, the candidate and the key.

References: Dathathri et al. 2024, Nature 634, 818-823; transformers,
``SynthIDTextWatermarkLogitsProcessor``, whose g-values are reproduced exactly.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npllama.sampling.draw import Probs, softmax
from npllama.sampling.rows import Row, checked
from npllama.sampling.watermark import mersenne_words

Ints = NDArray[np.int64]
MULTIPLIER = np.int64(6364136223846793005)


class SynthID(NamedTuple):
    """The secrets of a SynthID watermark, with transformers' names and defaults.

    Attributes
    ----------
    keys : tuple of int
        One for each layer of the tournament.
    ngram_len : int
        The candidate and the tokens before it that are hashed; 2 or more.
    sampling_table_size, sampling_table_seed : int
        The table of bits that turns hashes into g-values.
    context_history_size : int
        A context that returns within this many steps is not marked again.
    skip_first_ngram_calls : bool
        Leave the first ngram_len - 1 tokens unmarked.
    """

    keys: tuple[int, ...]
    ngram_len: int = 5
    sampling_table_size: int = 2**16
    sampling_table_seed: int = 0
    context_history_size: int = 1024
    skip_first_ngram_calls: bool = False


class SynthIDState(NamedTuple):
    """What the watermark remembers of a text.

    Attributes
    ----------
    context : (..., ngram_len - 1) int64
        The last tokens written; zeros before the first.
    seen : (..., context_history_size) int64
        Hashes of the contexts marked, newest first.
    calls : int
    """

    context: Ints
    seen: Ints
    calls: int


def check_synthid(config: SynthID) -> None:
    """Raise ValueError if the configuration is out of range."""
    if not config.keys or config.ngram_len < 2:
        raise ValueError(
            "SynthID needs at least one key and ngram_len >= 2, "
            f"got {len(config.keys)} keys and {config.ngram_len}"
        )
    if config.sampling_table_size < 1 or config.context_history_size < 1:
        raise ValueError(
            "SynthID needs sampling_table_size and context_history_size >= 1, "
            f"got {config.sampling_table_size} and {config.context_history_size}"
        )


def synthid_start(config: SynthID, rows: tuple[int, ...] = ()) -> SynthIDState:
    """Return the state before the first token.

    Parameters
    ----------
    config : SynthID
    rows : tuple of int
        The leading axes of the logits: () for one row, (B,) for a batch.

    Returns
    -------
    SynthIDState

    Raises
    ------
    ValueError
        If the configuration is out of range.
    """
    check_synthid(config)
    context = np.zeros((*rows, config.ngram_len - 1), np.int64)
    seen = np.zeros((*rows, config.context_history_size), np.int64)
    return SynthIDState(context, seen, 0)


def synthid_next(state: SynthIDState, token: ArrayLike) -> SynthIDState:
    """Return the state after `token` (one for each row) was written."""
    newest = np.asarray(token, np.int64)[..., None]
    context = np.concatenate([state.context[..., 1:], newest], axis=-1)
    return state._replace(context=context)


def _absorb(hashed: Ints, data: Ints) -> Ints:
    """Mix numbers into hashes, all of the same shape or broadcast."""
    # Arrays wrap around silently, single numbers would warn: keep an axis.
    return (np.atleast_1d(hashed) + data) * MULTIPLIER + 1


def hash_context(context: Ints) -> Ints:
    """Hash the last axis of contexts, (..., n) -> (..., 1)."""
    hashed = np.ones((*context.shape[:-1], 1), np.int64)
    for i in range(context.shape[-1]):
        hashed = _absorb(hashed, context[..., i : i + 1])
    return hashed


@lru_cache(maxsize=4)
def _bits(size: int, seed: int) -> Ints:
    """Return the table of bits, torch.randint(0, 2) on a CPU."""
    return (mersenne_words(seed, size) % 2).astype(np.int64)


def g_values(hashed: Ints, key: int, config: SynthID) -> Ints:
    """Return the g-values of hashed n-grams under one key."""
    bits = _bits(config.sampling_table_size, config.sampling_table_seed)
    return bits[_absorb(hashed, np.int64(key)) % bits.size]


def tournament_layer(probs: Probs, g: Ints) -> Probs:
    """Move probability from the tokens with g = 0 to those with g = 1.

    Parameters
    ----------
    probs : (..., V) float64
    g : (..., V) int64
        0 or 1.

    Returns
    -------
    (..., V) float64
        Adds up to 1 again.
    """
    # The same as 1 + g - sum(g p), which rounding could take below 0.
    return probs * (g + ((1 - g) * probs).sum(axis=-1, keepdims=True))


def synthid(
    logits: ArrayLike, state: SynthIDState, config: SynthID
) -> tuple[Row, SynthIDState]:
    """Mark one row of logits, or a batch of them.

    Parameters
    ----------
    logits : (..., V) float
    state : SynthIDState
        Of the same leading axes.
    config : SynthID

    Returns
    -------
    logits : (..., V) float
        Log-probabilities; if the context was seen before, the unchanged logits.
        Removed tokens stay removed (transformers writes the lowest finite number).
    state : SynthIDState
        For the next call, after `synthid_next` has added the token.

    Raises
    ------
    ValueError
        If the state belongs to other rows or the configuration is out of range.
    """
    check_synthid(config)
    logits = checked(logits)
    if state.context.shape != (*logits.shape[:-1], config.ngram_len - 1):
        raise ValueError(
            f"the state's context has shape {state.context.shape}, "
            f"the logits {logits.shape} with ngram_len {config.ngram_len}"
        )
    state = state._replace(calls=state.calls + 1)
    if config.skip_first_ngram_calls and state.calls < config.ngram_len:
        return logits.copy(), state
    context = hash_context(state.context)  # (..., 1)
    repeated = (state.seen == context).any(axis=-1, keepdims=True)
    hashed = _absorb(context, np.arange(logits.shape[-1]))  # (..., V)
    probs = softmax(logits)
    for key in config.keys:
        probs = tournament_layer(probs, g_values(hashed, key, config))
    with np.errstate(divide="ignore"):
        marked = np.log(probs).astype(logits.dtype)
    seen = np.concatenate([context, state.seen[..., :-1]], axis=-1)
    return np.where(repeated, logits, marked), state._replace(seen=seen)
