"""Numbers rounded to a few bits, and the scales that they need.

A group of g numbers of b bits shares a scale and, in some formats, a second number: a
zero point, or the lowest number of the group.  So a number takes

    b + (bits of both) / g

bits, where b is rounded up to 2, 4 or 8, as codes lie in whole parts of a byte.  In
float16, 4-bit codes in groups of 128 take 4.125 bits if only scales are stored; 2-bit
codes in groups of 32 with scale and lowest number take 3.
"""

from __future__ import annotations

from typing import NamedTuple

from npllama.config import Config


class Format(NamedTuple):
    """How numbers are kept in few bits."""

    bits: int
    group: int  # numbers that share a scale
    ends: int = 2  # numbers that a group needs: its scale, its lowest
    end_bits: int = 16  # of each of them


def code_bits(bits: int) -> int:
    """The room that a code takes: 2, 4 or 8 bits."""
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def stored_bits(format: Format) -> float:
    """Bits per number, its part of the group's scale included.

    >>> stored_bits(Format(2, 32)), stored_bits(Format(4, 128, ends=1))
    (3.0, 4.125)
    """
    own = format.ends * format.end_bits
    return code_bits(format.bits) + own / format.group


def rounded_cache_bytes(
    config: Config,
    rows: int,
    capacity: int,
    keys: Format,
    values: Format,
    residual: int,
    float_bytes: int = 4,
) -> int:
    """Bytes of a cache whose keys are rounded per channel and values per token.

    Besides codes and scales for `capacity` positions it has `residual` positions as
    floats, and notes for every layer and row how many positions of either are rounded.
    One layer that is unpacked to be used is not counted: see `unpacked_bytes`.

    Parameters
    ----------
    config : Config
    rows, capacity : int
        B and N.
    keys, values : Format
    residual : int
        R.
    float_bytes : int
        Of an element of the residual.
    """
    K, D, L = config.num_key_value_heads, config.head_dim, config.num_hidden_layers
    heads, left = L * rows * K, min(capacity, residual)
    total = 0
    for format, groups in (
        (keys, capacity // keys.group * D),
        (values, capacity * -(-D // values.group)),
    ):
        codes = capacity * -(-D * code_bits(format.bits) // 8)
        ends = groups * format.ends * format.end_bits // 8
        total += heads * (codes + ends + left * D * float_bytes) + L * rows * 8
    return total


def unpacked_bytes(
    config: Config, rows: int, capacity: int, float_bytes: int = 4
) -> int:
    """Bytes of one layer of keys and values as plain arrays."""
    K, D = config.num_key_value_heads, config.head_dim
    return 2 * rows * K * capacity * D * float_bytes
