"""How queries meet keys: the one place where counts of FLOPs disagree.

A new position t, after `cached` others, may look at the keys 0 ... cached + t.  How
many pairs of a query and a key are really multiplied depends on the arrangement:

    square     every new position meets every one seen, and later ones are masked
               afterwards: T S pairs, the s x s of the textbooks and of plain
               PyTorch
    triangle   every position meets only the keys that it may see, the least
               possible: `attention.naive`
    blocks     a block of queries meets the keys up to its last one, a block of keys
               and a few heads at a time: `attention.blocked`
    rowwise    as in blocks, but every query of every row goes alone: `ops.rowwise`

For all four this section gives the number of products, of pairs, and of query
and key vectors read; `ways` does so for the arrangements of long texts.  A pair costs 2 D FLOPs in the scores, and 2 D again when the values are
weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from npllama.attention import LEAST_KEYS, QUERY_BLOCK, default_blocks
from npllama.config import Config

CAUSAL = ("square", "triangle", "blocks", "rowwise")


class Meetings(NamedTuple):
    """How queries meet keys in one layer, summed over rows, heads and products."""

    products: int
    pairs: int  # of a query and a key
    queries: int  # vectors of D elements read
    keys: int  # likewise

    def __add__(self, other):
        return Meetings(*(a + b for a, b in zip(self, other)))

    def __mul__(self, n):
        return Meetings(*(n * a for a in self))


NOBODY = Meetings(0, 0, 0, 0)


class Blocks(NamedTuple):
    """Sizes of the blocks of `attention.blocked`; None: as `default_blocks`."""

    query: int = QUERY_BLOCK
    key: int | None = None
    head: int | None = None


USUAL = Blocks()


# (config, new, starts) to the meetings in a layer, for rows that hold `starts`
# positions and get `new` each; see `ways`.
Way = Callable[[Config, int, Sequence[int]], Meetings]


def square(config: Config, rows: int, new: int, cached: int) -> Meetings:
    """Every new position meets every position seen, in one product."""
    H, K, S = config.num_attention_heads, config.num_key_value_heads, cached + new
    return Meetings(1, rows * H * new * S, rows * H * new, rows * K * S)


def triangle(config: Config, rows: int, new: int, cached: int) -> Meetings:
    """The positions meet cached + 1, cached + 2, ..., cached + new keys.

    Loops take one head at a time, so heads that share keys each read them.
    """
    pairs = new * cached + new * (new + 1) // 2
    return Meetings(new, pairs, new, pairs) * (rows * config.num_attention_heads)


def blocks(
    config: Config,
    rows: int,
    new: int,
    cached: int,
    sizes: tuple[int, int, int],
) -> Meetings:
    """Blocks of queries meet blocks of keys, up to the last of the queries.

    The queries of a block are read again for every block of keys, and the keys for
    every block of queries.  Where a few heads go at a time, there are more
    products of fewer pairs each.
    """
    H, K = rows * config.num_attention_heads, rows * config.num_key_value_heads
    query_block, key_block, head_block = sizes
    turns = ceiling(config.num_key_value_heads, head_block)
    met = NOBODY
    for t in range(0, new, query_block):
        n = min(query_block, new - t)
        seen = cached + t + n
        times = ceiling(seen, key_block)
        met += Meetings(turns * times, H * n * seen, H * n * times, K * seen)
    return met


def sharing(config: Config) -> int:
    """Query heads that share a key head, G."""
    return config.num_attention_heads // config.num_key_value_heads


def ceiling(n: int, size: int) -> int:
    """How many blocks of a size hold n."""
    return -(-n // size)


def rows_of_one_length(
    batch: int, cached: int | Iterable[int]
) -> list[tuple[int, int]]:
    """Rows that are multiplied together, and the positions that each of them holds.

    Rows of one length go together, others one by one.
    """
    if not isinstance(cached, Iterable):
        return [(batch, cached)]
    starts = list(cached)
    alike = len(set(starts)) == 1
    return [(len(starts), starts[0])] if alike else [(1, start) for start in starts]


def in_one_pass(
    config: Config,
    batch: int,
    new: int,
    cached: int | Iterable[int],
    causal: str | Way,
    sizes: Blocks = USUAL,
) -> Meetings:
    """Meetings in a layer when rows that hold `cached` positions get `new` more."""
    groups = rows_of_one_length(batch, cached)
    if not isinstance(causal, str):
        starts = [start for rows, start in groups for _ in range(rows)]
        return causal(config, new, starts)
    if causal == "square":
        met = [square(config, rows, new, start) for rows, start in groups]
    elif causal == "triangle":
        met = [triangle(config, rows, new, start) for rows, start in groups]
    elif causal == "rowwise":
        one = 1, LEAST_KEYS, 1
        met = [blocks(config, 1, new, start, one) * rows for rows, start in groups]
    else:
        longest = max(start for _, start in groups) + new
        queries, G = min(new, sizes.query), sharing(config)
        keys, heads = default_blocks(batch, queries, G, longest)
        full = sizes.query, sizes.key or keys, sizes.head or heads
        met = [blocks(config, rows, new, start, full) for rows, start in groups]
    return sum(met, NOBODY)


def in_packed_pass(
    config: Config, pieces: Iterable[tuple[int, int]], causal: str | Way
) -> Meetings:
    """Meetings in a layer when texts of a packed row attend one by one.

    Parameters
    ----------
    pieces : (cached, new) of each text
    """
    met = [in_one_pass(config, 1, new, cached, causal) for cached, new in pieces]
    return sum(met, NOBODY)


def in_decode(
    config: Config, batch: int, steps: int, cached: int, causal: str | Way
) -> Meetings:
    """Meetings in a layer while `steps` positions follow, one a pass.

    The first sees cached + 1 keys, the last cached + steps: an arithmetic series.
    With one query there is no future to mask, and all ways have its pairs.
    """
    if not isinstance(causal, str):
        each = (causal(config, 1, [cached + i] * batch) for i in range(steps))
        return sum(each, NOBODY)
    H, K = batch * config.num_attention_heads, batch * config.num_key_value_heads
    seen = steps * cached + steps * (steps + 1) // 2
    if causal == "square":
        return Meetings(steps, H * seen, H * steps, K * seen)
    if causal == "triangle":
        return Meetings(H * steps, H * seen, H * steps, H * seen)
    if causal == "rowwise":
        times = _ceilings(cached + steps, LEAST_KEYS) - _ceilings(cached, LEAST_KEYS)
        return Meetings(K * times, H * seen, H * times, K * seen)
    size, _ = default_blocks(batch, 1, sharing(config), cached + steps)
    times = _ceilings(cached + steps, size) - _ceilings(cached, size)
    before, after = (_products(config, batch, n) for n in (cached, cached + steps))
    return Meetings(after - before, H * seen, H * times, K * seen)


def _ceilings(n: int, size: int) -> int:
    """The sum of ceil(i / size) over i = 1 ... n: `size` ones, `size` twos, ..."""
    whole, rest = divmod(n, size)
    return size * whole * (whole + 1) // 2 + rest * (whole + 1)


def _products(config: Config, batch: int, n: int) -> int:
    """Products of one query with 1, 2, ..., n keys in blocks, summed.

    With more than one block of keys there is a product for every key head and block.
    Within one block there is room for X heads with one key each, so for X // S heads
    with S keys (at least one), and the K heads take turns.  There is one turn, and one
    more for every g = 1 ... K - 1 if more than g turns are needed; that is where
    X // S < K / g: from S = X // ceil(K / g) + 1 on.
    """
    K, G = config.num_key_value_heads, sharing(config)
    size, X = default_blocks(batch, 1, G, 1)
    short = min(n, size)
    more = sum(max(0, short - X // ceiling(K, g)) for g in range(1, K))
    return short + more + K * (_ceilings(n, size) - short)
