r"""Keys and values in few bits: what shares a scale.

The weights of a model are there once, but keys and values grow with every token of
every text: with long texts, the cache is what fills a memory.  Its numbers can be
rounded as weights are (see `grid`).  But a group's range is not widened to contain 0:
it keeps its lowest number m and a scale s, both as floats, and the code q stands for

$$\hat{x} = m + s \, q, \qquad s = (\max x - m) / (2^b - 1)$$

What shares a scale decides how well this works.  In trained models, a few channels of
the keys are large at all positions; values have no such channels:

    keys of a head    channel 0     1     2
    position 0              0.3   9.1  -0.2
    position 1             -0.5   8.7   0.4

Groups *per token* run along a row of this table.  The large channel spans the whole
grid, and its neighbours fall together.  Groups *per channel* run down a column, and
every channel has a range of its own.  KIVI has keys per channel and values per token,
in groups of 32, and 2 bits each.

A cache of 8 bits as llama.cpp's ``q8_0`` has groups of 32 per token, but no m: it is
*symmetric*, and codes stand for s (q - 128).

Bits per number, with s and m in float16:

    2 bits, groups of 32     3       4 bits, groups of 32               5
    2 bits, groups of 128    2.25    8 bits, groups of 32, symmetric    8.5

References
----------
Liu et al. 2024, "KIVI", arXiv:2402.02750, and ``quant/new_pack.py`` of jy-yuan/KIVI;
``quantize_row_q8_0`` of ggml.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npllama.compression.grid import over_groups, spread


class Rule(NamedTuple):
    """How keys, or values, are rounded."""

    bits: int
    per: str  # "channel" or "token": what has scales of its own
    group: int = 32  # numbers that share a scale
    symmetric: bool = False  # no lowest number


class Rules(NamedTuple):
    """How a cache is rounded."""

    keys: Rule
    values: Rule
    residual: int = 128  # R, positions that are kept as floats
    ends: str = "float16"  # the dtype of scales and lowest numbers


def kivi(bits: int = 2, group: int = 32, residual: int = 128) -> Rules:
    """Keys per channel, values per token."""
    return Rules(Rule(bits, "channel", group), Rule(bits, "token", group), residual)


def q8_0() -> Rules:
    """Eight bits per token, as llama.cpp has them; nothing stays a float."""
    rule = Rule(8, "token", 32, symmetric=True)
    return Rules(rule, rule, residual=0)


def check_rules(rules: Rules) -> None:
    """Raise ValueError unless a cache can be rounded so."""
    if rules.ends not in ("float16", "float32"):
        raise ValueError(f"ends {rules.ends!r}: float16 or float32")
    if rules.residual < 0:
        raise ValueError(f"residual {rules.residual}: 0 or more positions")
    for name, rule in ("keys", rules.keys), ("values", rules.values):
        if not 1 + rule.symmetric <= rule.bits <= 8 or rule.group < 1:
            raise ValueError(
                f"{name} of {rule.bits} bits in groups of {rule.group}: 1 to 8 bits, 2 "
                "at least if symmetric, and groups of 1 or more"
            )
        if rule.per not in ("channel", "token"):
            raise ValueError(f"{name} per {rule.per!r}: per 'channel' or 'token'")
        if rule.per == "channel" and not _whole(rules.residual, rule.group):
            raise ValueError(
                f"{name} in groups of {rule.group} tokens: the residual must be a "
                f"multiple of that, from {rule.group} on; found {rules.residual}"
            )


def _whole(residual: int, group: int) -> bool:
    return residual > 0 and residual % group == 0


#  ---- rounding ----------------------------------------------------------------


def in_groups(x: np.ndarray, per: str) -> np.ndarray:
    """Keys (or values) of one text as rows along which groups run.

    Parameters
    ----------
    x : (K, T, D)
    per : "channel" or "token"

    Returns
    -------
    (K * D, T) or (K * T, D)
    """
    x = x.swapaxes(1, 2) if per == "channel" else x
    return x.reshape(-1, x.shape[-1])


def round_off(
    x: np.ndarray, rule: Rule, ends: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Round keys (or values).

    As in ggml, codes are found before the scales are rounded to their own dtype.

    Parameters
    ----------
    x : (K, T, D) float
    rule : Rule
    ends : str

    Returns
    -------
    codes : (K, T, D) uint8
    scale : (K, T / group, D), or (K, T, ceil(D / group)) per token
        Of every group; the last may be short.
    lowest : as scale, or None if symmetric

    Raises
    ------
    ValueError
        If a number is not finite, or too large for the dtype of the ends.
    """
    K, T, D = x.shape
    rows, most = in_groups(x, rule.per), 2**rule.bits - 1
    S = rows.shape[1]
    high = over_groups(np.maximum, rows, rule.group)  # (rows, groups)
    low = over_groups(np.minimum, rows, rule.group)  # (rows, groups)
    if rule.symmetric:
        half = 2 ** (rule.bits - 1)
        scale, low = np.maximum(high, -low) / (half - 1), np.zeros_like(low)
    else:
        half, scale = 0, (high - low) / most
    # A group of equal numbers has no steps: all are its lowest.
    step = np.where(scale == 0, x.dtype.type(1), scale)
    steps = (rows - spread(low, S, rule.group)) / spread(step, S, rule.group)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.clip(np.round(steps) + half, 0, most).astype(np.uint8)
        scale, low = scale.astype(ends), low.astype(ends)
    if not (np.isfinite(scale).all() and np.isfinite(low).all()):
        raise ValueError(f"a key or value is not finite, or too large for {ends}")

    def back(a: np.ndarray) -> np.ndarray:
        a = a.reshape(K, D if rule.per == "channel" else T, -1)
        return a.swapaxes(1, 2) if rule.per == "channel" else a

    return back(codes), back(scale), None if rule.symmetric else back(low)


def restored(
    codes: np.ndarray, scale: np.ndarray, lowest: np.ndarray | None, rule: Rule
) -> np.ndarray:
    """The numbers that codes stand for.

    Parameters
    ----------
    codes : (K, T, D) float
        Whole numbers.  They are written over.
    scale, lowest : see `round_off`
        Of all groups that these codes belong to.

    Returns
    -------
    (K, T, D) float
    """
    axis, dtype = (1 if rule.per == "channel" else 2), codes.dtype
    T, D = codes.shape[1:]

    def every(a: np.ndarray) -> np.ndarray:
        return np.repeat(a.astype(dtype), rule.group, axis=axis)[:, :T, :D]

    if lowest is None:
        codes -= 2 ** (rule.bits - 1)
    codes *= every(scale)
    if lowest is not None:
        codes += every(lowest)
    return codes


def due(n: int, rule: Rule, residual: int) -> int:
    """How many positions of a text of n are rounded."""
    if rule.per == "channel":
        return n // residual * residual
    return max(0, n - residual)
