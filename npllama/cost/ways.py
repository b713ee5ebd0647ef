"""How queries meet keys in long texts, in closed form.

`meetings` has what a model does by itself.  Here are the ways to attend of `contexts`:
a window, sparse patterns, tiles, splits, a shared prefix, a tree.  Each function takes
the sizes of a way and gives another function, from (config, new, starts) to the
meetings in one layer.  It may stand for the word that `formulas` takes as `causal`:

    operators(config, 1, 1, cached=16000, causal=of_window(4096))

Rows attend one by one, so every row has products of its own.

    way             queries of a product   keys of a product
    of_window       a block of them        from W - 1 before the first to the last
    of_stride       a block of one class   all of the class, up to the last
    of_own_blocks   a block of them        from the first's block to the last
    of_summaries    a block of them        the last cells of every block before
    of_tiles        a tile                 a tile, unless it lies in the future
    of_splits       all                    a split
    of_cascade      of all rows; of one    the prefix; the suffix of that row
    of_tree         all                    the text; the tree
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from npllama.attention import QUERY_BLOCK
from npllama.config import Config
from npllama.cost.meetings import Meetings, Way
from npllama.cost.traffic import sees_none, spans

# Of one head of one row that holds some positions and gets more: how many queries and
# keys each product has.
Products = Callable[[int, int], Iterator[tuple[int, int]]]


def _row_by_row(products: Products) -> Way:
    """A way in which rows attend one by one."""

    def meet(config: Config, new: int, starts: Sequence[int]) -> Meetings:
        found = [pair for cached in starts for pair in products(cached, new)]
        return _meetings(config, found)

    return meet


def _meetings(config: Config, products: Sequence[tuple[int, int]]) -> Meetings:
    """Meetings of products with the given numbers of queries and keys, in every head."""
    H, K = config.num_attention_heads, config.num_key_value_heads
    return Meetings(
        len(products),
        H * sum(queries * keys for queries, keys in products),
        H * sum(queries for queries, _ in products),
        K * sum(keys for _, keys in products),
    )


def _by_blocks(seen: Callable[[int, int], int], block: int) -> Way:
    """Blocks of queries; `seen` gives the keys for the first's and the last's place."""

    def products(cached: int, new: int) -> Iterator[tuple[int, int]]:
        for here in spans(new, block):
            first, last = cached + here.start, cached + here.stop - 1
            yield last + 1 - first, seen(first, last)

    return _row_by_row(products)


#  ---- patterns ----------------------------------------------------------------


def of_window(W: int, block: int = QUERY_BLOCK) -> Way:
    """Of `contexts.sparse.window`: the last W positions, with the query's own."""
    return _by_blocks(lambda first, last: last + 1 - max(0, first + 1 - W), block)


def of_own_blocks(size: int, block: int = QUERY_BLOCK) -> Way:
    """Of `contexts.sparse.own_block`: the positions since the last multiple."""
    return _by_blocks(lambda first, last: last + 1 - first // size * size, block)


def of_summaries(size: int, cells: int, block: int = QUERY_BLOCK) -> Way:
    """Of `contexts.sparse.summaries`: the last cells of each block, and the query's own block."""

    def seen(first: int, last: int) -> int:
        whole, rest = divmod(last + 1, size)
        return whole * cells + max(0, rest - (size - cells))

    return _by_blocks(seen, block)


def of_stride(stride: int, block: int = QUERY_BLOCK) -> Way:
    """Of `contexts.sparse.strided`: every position with the query's own remainder."""

    def products(cached: int, new: int) -> Iterator[tuple[int, int]]:
        for r in range(min(stride, new)):
            for here in spans(-(-(new - r) // stride), block):  # of this class
                last = cached + r + (here.stop - 1) * stride
                yield here.stop - here.start, last // stride + 1

    return _row_by_row(products)


#  ---- exact arrangements ------------------------------------------------------


def of_tiles(columns: int, rows: int) -> Way:
    """Of `contexts.tiles`, both listings: tiles meet unless all keys are later."""

    def products(cached: int, new: int) -> Iterator[tuple[int, int]]:
        for queries in spans(new, rows):
            for keys in spans(cached + new, columns):
                if not sees_none(queries, keys, cached):
                    yield queries.stop - queries.start, keys.stop - keys.start

    return _row_by_row(products)


def of_splits(size: int) -> Way:
    """Of `contexts.splits`: all queries meet every split, up to the last one's key."""
    return _row_by_row(
        lambda cached, new: (
            (new, keys.stop - keys.start) for keys in spans(cached + new, size)
        )
    )


def of_cascade(shared: int) -> Way:
    """Of `contexts.prefixes.cascade`: all rows meet the prefix in one product."""

    def meet(config: Config, new: int, starts: Sequence[int]) -> Meetings:
        suffixes = [(new, cached + new - shared) for cached in starts]
        return _meetings(config, [(len(starts) * new, shared), *suffixes])

    return meet


def of_tree() -> Way:
    """Of `contexts.prefixes.over_tree`: all guesses meet the text, then each other."""
    return _row_by_row(lambda cached, new: iter([(new, cached), (new, new)]))
