r"""A watermark: bias every draw in a way that only the key's owner can see.

The *green list* watermark seeds a random generator with a secret key and the
last token of the text, draws from it a share gamma of the vocabulary, the green
tokens, and adds delta to their logits. A reader notices nothing; the owner of
the key counts the green tokens. Of a text written without the key a share
gamma is green, so over n tokens the count g has the z-score

$$z = (g - \gamma n) / \sqrt{n \gamma (1 - \gamma)}$$

which for marked text grows like the square root of n. Unmarked text reaches a
z-score of 3 with a chance of 1 in 740.

There are two schemes. With "lefthash" the list depends on the last token
alone. With "selfhash" each candidate for the next token selects a list of its
own, and is green if it is on that list. This is harder to steal, and is done
for the 40 most probable tokens only.

References: Kirchenbauer et al. 2023, arXiv:2301.10226, algorithm 2, and
2023, arXiv:2306.04634, algorithm 3; transformers, ``WatermarkLogitsProcessor``
and ``WatermarkDetector``, whose green lists on a CPU are reproduced exactly.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npllama.sampling.rows import Row, Tokens, one_of, per_history, token_ids

Ids = NDArray[np.int64]

TABLE_SIZE = 1_000_003
CANDIDATES = 40


def mersenne_words(seed: int, count: int) -> NDArray[np.uint32]:
    """Return the first 32-bit words of the Mersenne twister that torch seeds.

    NumPy's old generator runs the same twister from the same seeding, of which
    torch keeps the low 32 bits of the seed.
    """
    stream = np.random.RandomState(seed & 0xFFFFFFFF).bytes(4 * count)
    return np.frombuffer(stream, "<u4")


def torch_randperm(seed: int, size: int, count: int) -> Ids:
    """Return the first `count` numbers of torch's CPU permutation of `size`.

    Parameters
    ----------
    seed, size, count : int

    Returns
    -------
    (count,) int64
        As `torch.randperm(size, generator=...)[:count]`: a Fisher-Yates
        shuffle, of which only the beginning is needed.
    """
    order = list(range(size))
    words = mersenne_words(seed, count).tolist()
    for i in range(min(count, size - 1)):
        j = i + words[i] % (size - i)
        order[i], order[j] = order[j], order[i]
    return np.array(order[:count], np.int64)


@lru_cache(maxsize=4)
def _hash_table(key: int) -> Ids:
    return torch_randperm(key, TABLE_SIZE, TABLE_SIZE)


class GreenList(NamedTuple):
    """The secrets of a green list watermark; transformers' defaults.

    Attributes
    ----------
    greenlist_ratio : float
        gamma, in (0, 1).
    bias : float
        delta, added to green logits.
    hashing_key : int
    seeding_scheme : {"lefthash", "selfhash"}
    context_width : int
        Tokens that "selfhash" hashes together; 1 or more.
    pick : function of a seed, V and the number of green tokens
        Returns the green ids.
    table : function of the key
        Returns the permutation of 1,000,003 numbers that "selfhash" uses.
    """

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1
    pick: Callable[[int, int, int], Ids] = torch_randperm
    table: Callable[[int], Ids] = _hash_table


def _check(config: GreenList) -> None:
    if not 0 < config.greenlist_ratio < 1:
        raise ValueError(
            f"greenlist_ratio must lie in (0, 1), got {config.greenlist_ratio}"
        )
    one_of("seeding_scheme", config.seeding_scheme, ("lefthash", "selfhash"))
    if config.context_width < 1 or not math.isfinite(config.bias):
        raise ValueError(
            "a watermark needs context_width >= 1 and a finite bias, "
            f"got {config.context_width} and {config.bias}"
        )


def green_seed(context: Ids, config: GreenList) -> int:
    """Hash the end of a text to the seed of its green list.

    Parameters
    ----------
    context : (T,) int64
        The text; with "selfhash" it ends in the candidate itself.
    config : GreenList

    Returns
    -------
    int
        In [0, 2^64 - 1).
    """
    if config.seeding_scheme == "lefthash":
        return config.hashing_key * int(context[-1]) % (2**64 - 1)
    table = config.table(config.hashing_key)
    hashed = table[context[-config.context_width :] % TABLE_SIZE] + 1
    # The products wrap around in 64 bits, so some are negative. The least one
    # decides, so few of the tokens in the window change the seed.
    products = np.int64(config.hashing_key) * hashed * hashed[-1:]
    return int(products.min()) % (2**64 - 1)


def green_tokens(context: Ids, size: int, config: GreenList) -> Ids:
    """Return the ids on the green list that follows `context`.

    Parameters
    ----------
    context : (T,) int64
    size : int
        V.
    config : GreenList

    Returns
    -------
    (floor(gamma V),) int64
    """
    count = int(size * config.greenlist_ratio)
    return config.pick(green_seed(context, config), size, count)


def _green_candidates(row: Row, history: Ids, config: GreenList) -> Ids:
    """Return the probable tokens that are on the list they imply themselves."""
    best = np.argsort(-row, kind="stable")[:CANDIDATES]
    green = [
        token
        for token in best
        if token in green_tokens(np.append(history, token), row.size, config)
    ]
    return np.array(green, np.int64)


def _lift_green(row: Row, history: Ids, config: GreenList) -> Row:
    """Add the bias to the logits of the tokens that are green after this history."""
    row = row.copy()
    if history.size < config.context_width:
        return row
    if config.seeding_scheme == "lefthash":
        green = green_tokens(history, row.size, config)
    else:
        green = _green_candidates(row, history, config)
    row[green] += row.dtype.type(config.bias)
    return row


def watermark(logits: ArrayLike, tokens: Tokens, config: GreenList) -> Row:
    """Add the bias to the logits of the green tokens.

    Parameters
    ----------
    logits : (V,) or (B, V) float
    tokens : (T,) int, or B of them
        Prompt and output. A text shorter than `context_width` is not marked.
    config : GreenList

    Returns
    -------
    (V,) or (B, V) float

    Raises
    ------
    ValueError
        If the configuration is out of range or an id is no token.
    """
    _check(config)

    return per_history(logits, tokens, _lift_green, config)


class Detection(NamedTuple):
    """What a watermark detector found.

    Attributes
    ----------
    num_tokens_scored, num_green_tokens : int
    z_score : float
    p_value : float
        The chance that text without the watermark scores as high.
    """

    num_tokens_scored: int
    num_green_tokens: int
    z_score: float
    p_value: float


def _verdict(n: int, g: int, gamma: float) -> Detection:
    z = (g - gamma * n) / math.sqrt(n * gamma * (1 - gamma))
    return Detection(n, g, z, 0.5 * math.erfc(z / math.sqrt(2)))


def detect_watermark(
    tokens: ArrayLike,
    vocab_size: int,
    config: GreenList,
    *,
    ignore_repeated_ngrams: bool = False,
) -> Detection:
    """Count the green tokens of a text, and say how unlikely that count is.

    Parameters
    ----------
    tokens : (T,) int
        Without the prompt and without a begin-of-text token, which
        transformers' detector takes off by itself.
    vocab_size : int
        V, as it was when the text was written.
    config : GreenList
        As it was when the text was written.
    ignore_repeated_ngrams : bool
        Count equal passages once, so that a text cannot pass by repeating.

    Returns
    -------
    Detection
        A z-score above 3 is taken for a watermark.

    Raises
    ------
    ValueError
        If the text is too short or the configuration is out of range.
    """
    _check(config)
    text = token_ids(tokens, vocab_size, "tokens")
    if text.size <= config.context_width:
        raise ValueError(
            f"a text of {text.size} tokens is too short for context_width "
            f"{config.context_width}: nothing to score"
        )
    own = config.seeding_scheme == "selfhash"
    width = config.context_width if own else config.context_width + 1
    passages = np.lib.stride_tricks.sliding_window_view(text, width)
    unique, times = np.unique(passages, axis=0, return_counts=True)
    green = [
        passage[-1]
        in green_tokens(passage if own else passage[:-1], vocab_size, config)
        for passage in unique
    ]
    times = np.ones_like(times) if ignore_repeated_ngrams else times
    return _verdict(int(times.sum()), int(times[green].sum()), config.greenlist_ratio)
