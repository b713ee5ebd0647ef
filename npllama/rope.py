"""Chapter 5: rotary position embedding (RoPE).

Attention compares a query with keys by dot products, which know nothing of order.
RoPE brings the position in by *turning*: it takes the coordinates of a head in
pairs, and turns pair number i of a vector at position t by the angle t * w_i.
The dot product of two turned pairs depends only on the difference of their
angles, so that of a query and a key depends on the two vectors and on their
distance, never on where in the text they stand.  The speeds w_i fall from one
radian per position to almost none, like the hands of a clock: fast pairs tell
neighbours apart, slow pairs tell distant positions apart.

Which coordinates form a pair is a convention of the file.  Meta pairs neighbours
(2i, 2i + 1), the two parts of one complex number; Hugging Face pairs halves
(i, i + D/2).  With the same weights the wrong choice looks right for some twenty
positions, while all angles are small, and then talks gibberish.  This book
computes with halves; other layouts are permuted when weights are converted.

A model trained on short texts can be stretched by slowing the hands down; each
way of doing it (`linear`, `dynamic`, `yarn`, `llama3`, `longrope`) is a function of
this chapter.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from npllama.config import BY_LENGTH, Config, Rope

#  ---- the speed of each pair -------------------------------------------------


def wavelengths(theta: float, D: int, dtype: str) -> np.ndarray:
    """Positions per radian of every pair: 1 divided by `frequencies`.

    Returns
    -------
    (D // 2,) float
    """
    exponent = np.arange(0, D, 2, dtype=dtype) / np.array(D, dtype=dtype)  # (D // 2,)
    wavelength = np.power(theta, exponent.astype(np.float64)).astype(dtype)  # (D // 2,)
    return wavelength


def frequencies(theta: float, D: int, dtype: str) -> np.ndarray:
    r"""Angle per position of every pair: $w_i = \theta^{-2i/D}$.

    Parameters
    ----------
    theta : float
        10,000 in LLaMA 1 and 2, 1e6 in Code Llama, 5e5 in LLaMA 3.
    D : int
        Head size.
    dtype : str
        In float32 the power is rounded before it is inverted, as in torch.
        The order matters: at position 8,192 one bit in a frequency is a
        thousandth of a radian.

    Returns
    -------
    (D // 2,) float
        Radians per position.

    References
    ----------
    Su et al. 2021, arXiv:2104.09864, section 3.2.2.
    """
    return 1 / wavelengths(theta, D, dtype)


def linear_frequencies(rope: Rope, D: int, dtype: str) -> np.ndarray:
    """Position interpolation: every hand runs `factor` times slower.

    Returns
    -------
    (D // 2,) float

    References
    ----------
    Chen et al. 2023, arXiv:2306.15595.
    """
    return frequencies(rope.rope_theta, D, dtype) / rope.factor


def dynamic_frequencies(rope: Rope, D: int, dtype: str, S: int, trained: int):
    """Dynamic NTK scaling: grow theta once the text outgrows the trained length.

    Keys already in the cache keep the speed at which they were turned, as in
    transformers.

    Parameters
    ----------
    S : int
        Positions seen so far, this call included.
    trained : int
        ``max_position_embeddings``; nothing changes while S stays within it.

    Returns
    -------
    (D // 2,) float
    """
    stretch = rope.factor * max(S, trained) / trained - (rope.factor - 1)
    return frequencies(rope.rope_theta * stretch ** (D / (D - 2)), D, dtype)


def llama3_frequencies(rope: Rope, D: int, dtype: str) -> np.ndarray:
    """LLaMA 3.1: slow down the slow hands only.

    A pair that turns often within the trained context keeps its speed.  One
    that does not complete a turn is slowed by `factor`.  Between the two, the
    speeds are blended.

    Returns
    -------
    (D // 2,) float

    References
    ----------
    Meta llama-models, llama3/model.py, `apply_scaling`.
    """
    w = frequencies(rope.rope_theta, D, dtype)  # (D // 2,)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turns = rope.original_max_position_embeddings * w / (2 * math.pi)  # (D // 2,)
    blend = np.clip((turns - low) / (high - low), 0, 1)  # (D // 2,)
    return (1 - blend) * w / rope.factor + blend * w


def yarn_frequencies(rope: Rope, D: int, dtype: str) -> np.ndarray:
    """YaRN: blend between slowed and unslowed hands along the pair's index.

    The trained length is ``original_max_position_embeddings``, if the config
    has it, as in llama.cpp and transformers 5; transformers 4.49 reads
    ``max_position_embeddings`` even then.

    Returns
    -------
    (D // 2,) float

    References
    ----------
    Peng et al. 2023, arXiv:2309.00071, section 3.2 and appendix A.1.
    """

    def pair_that_turns(times: float) -> float:
        """Index (not whole) of the pair with so many turns in the trained length."""
        wavelength = rope.original_max_position_embeddings / (times * 2 * math.pi)
        return D * math.log(wavelength) / (2 * math.log(rope.rope_theta))

    low = pair_that_turns(rope.beta_fast or 32)
    high = pair_that_turns(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    high = high + 0.001 if low == high else high
    index = np.arange(D // 2, dtype=dtype)  # (D // 2,)
    slowed = np.clip((index - low) / (high - low), 0, 1)  # (D // 2,)
    w = frequencies(rope.rope_theta, D, dtype)  # (D // 2,)
    return w / rope.factor * slowed + w * (1 - slowed)


def yarn_attention_factor(rope: Rope) -> float:
    """YaRN also sharpens attention: it scales q and k, through cosine and sine.

    References
    ----------
    Peng et al. 2023, eq. 22; `mscale` and `mscale_all_dim` as in transformers 5 (4.49
    does not know them).
    """

    def scale(weight: float) -> float:
        stretched = rope.factor is not None and rope.factor > 1
        return 0.1 * weight * math.log(rope.factor) + 1 if stretched else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def longrope_frequencies(rope: Rope, D: int, dtype: str, S: int) -> np.ndarray:
    """LongRoPE: every hand has two factors, for short and for long texts.

    A search found these factors.  The long ones apply once the text is longer
    than the trained context; as with `dynamic_frequencies`, keys in the cache
    keep the speed at which they were turned.  transformers 5 lets the longest
    row of a batch decide for all rows; 4.49 never takes the long factors.

    Parameters
    ----------
    S : int
        Positions seen so far, this call included.

    Returns
    -------
    (D // 2,) float

    References
    ----------
    Ding et al. 2024, arXiv:2402.13753.
    """
    long = S > rope.original_max_position_embeddings
    factors = rope.long_factor if long else rope.short_factor
    slower = np.array(factors, dtype=dtype)  # (D // 2,)
    return 1 / (slower * wavelengths(rope.rope_theta, D, dtype))


def longrope_attention_factor(rope: Rope) -> float:
    """LongRoPE scales q and k, through cosine and sine, at any length."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor is None or rope.factor <= 1:
        return 1.0
    trained = math.log(rope.original_max_position_embeddings)
    return math.sqrt(1 + math.log(rope.factor) / trained)


@lru_cache(maxsize=64)
def scaled_frequencies(rope: Rope, D: int, dtype: str, S: int, trained: int):
    """Speeds of the pairs under the config's scaling; the factor on cosine and sine.

    Returns
    -------
    w : (D // 2,) float
    attention_factor : float
    """
    if rope.rope_type == "linear":
        return linear_frequencies(rope, D, dtype), 1.0
    if rope.rope_type == "dynamic":
        return dynamic_frequencies(rope, D, dtype, S, trained), 1.0
    if rope.rope_type == "llama3":
        return llama3_frequencies(rope, D, dtype), 1.0
    if rope.rope_type == "yarn":
        return yarn_frequencies(rope, D, dtype), yarn_attention_factor(rope)
    if rope.rope_type == "longrope":
        factor = longrope_attention_factor(rope)
        return longrope_frequencies(rope, D, dtype, S), factor
    return frequencies(rope.rope_theta, D, dtype), 1.0


#  ---- turning ----------------------------------------------------------------


def rope_tables(config: Config, positions: np.ndarray, dtype: str):
    """Cosine and sine of every angle that the given positions need.

    Parameters
    ----------
    config : Config
    positions : (B, T) int64
        Rising along T.
    dtype : "float32" or "float64"
        Never narrower: in bfloat16 positions beyond 256 would coincide.

    Returns
    -------
    cos, sin : (B, T, D // 2) float
    """
    D, trained = config.head_dim, config.max_position_embeddings
    # Some scalings depend on the length; with 0, all others share one cached result.
    by_length = config.rope.rope_type in BY_LENGTH
    seen = [int(last) + 1 if by_length else 0 for last in positions[:, -1]]
    pairs = [scaled_frequencies(config.rope, D, dtype, S, trained) for S in seen]
    w = np.stack([w for w, _ in pairs])[:, None]  # (B, 1, D // 2)
    angles = positions[:, :, None].astype(dtype) * w  # (B, T, D // 2)
    factor = pairs[0][1]
    return np.cos(angles) * factor, np.sin(angles) * factor


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    r"""Turn each pair of coordinates (i, i + D/2) of every head by its angle.

    $$(a, b) \mapsto (a \cos - b \sin,\; b \cos + a \sin)$$

    Parameters
    ----------
    x : (B, T, H, D) float
        Queries, or keys (then H is the number of key heads).
    cos, sin : (B, T, D // 2) float
        From `rope_tables`.

    Returns
    -------
    (B, T, H, D) float

    Examples
    --------
    The first pair (x[0], x[2]) turns by a right angle, the second (x[1], x[3]) not at all.

    >>> angle = np.array([[[math.pi / 2, 0.0]]])
    >>> x = np.array([[[[1.0, 2.0, 0.0, 3.0]]]])
    >>> print(rotate(x, np.cos(angle), np.sin(angle))[0, 0, 0].round(3))
    [0. 2. 1. 3.]
    """
    half = x.shape[-1] // 2
    cos, sin = cos[:, :, None], sin[:, :, None]
    a, b = x[..., :half], x[..., half:]
    y = np.empty_like(x)  # (B, T, H, D)
    np.subtract(a * cos, b * sin, out=y[..., :half])
    np.add(b * cos, a * sin, out=y[..., half:])
    return y


#  ---- the other layout -------------------------------------------------------


def rotate_neighbours(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    r"""Meta's form: each pair (2i, 2i + 1) is a complex number times $e^{i t w}$.

    Equal to `rotate` once the coordinates are reordered by `halves_order`; shown
    because it is the shortest statement of the idea, not used by the model.

    Parameters
    ----------
    x : (B, T, H, D) float
    cos, sin : (B, T, D // 2) float

    Returns
    -------
    (B, T, H, D) float
    """
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)[:, :, None]
    y = np.empty_like(x)  # (B, T, H, D)
    y[..., 0::2], y[..., 1::2] = turned.real, turned.imag
    return y


def halves_order(D: int) -> np.ndarray:
    """For each place in the halves layout, its coordinate in the neighbours layout.

    ``x[..., halves_order(D)]`` takes a head from Meta's order to Hugging Face's.

    Returns
    -------
    (D,) int64
    """
    return np.arange(D).reshape(D // 2, 2).T.reshape(D)
