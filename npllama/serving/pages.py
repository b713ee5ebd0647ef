"""Pages: memory for keys and values, dealt out in pieces of one size.

Nobody knows how long a text will become.  A cache that reserves room for the longest
possible text leaves most of it empty; one that reserves little must be moved when it
is full.  Operating systems solved this long ago.  Cut the memory into *pages* of P
positions each, give a text one page at a time, and note for each text in its *block
table* which pages it has, in order:

    text of 10 positions, P = 4        block table  2 0 5
    position   0  1  2  3   4  5  6  7   8  9
    place      8  9 10 11   0  1  2  3  20 21

Position p of a text lies at place ``table[p // P] * P + p % P``.  At most P - 1 places
of a text are unused, and two texts may share a page.  This is PagedAttention.  It
changes where keys lie, not what is computed with them.

The *pool* of all pages is an ordinary cache of one row with Q P positions; all layers
use the same table.

References
----------
Kwon et al. 2023, arXiv:2309.06180, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npllama.cache import KVCache, new_cache
from npllama.config import Config


def new_pool(config: Config, pages: int, page_size: int, dtype: str) -> KVCache:
    """Make a pool of empty pages.

    Parameters
    ----------
    config : Config
    pages : int
        Q, pages of the pool.
    page_size : int
        P, positions of a page.
    dtype : "float32" or "float64"
        That of the model's weights.

    Returns
    -------
    KVCache
        k and v of (L, 1, K, Q * P, D).  Its one length means nothing.

    Raises
    ------
    ValueError
        If there would be no pages, or nothing in a page.
    """
    for name, size in ("pages", pages), ("page_size", page_size):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"{name} is {size!r}; it must be a whole number, 1 or more"
            )
    return new_cache(config, 1, pages * page_size, dtype)


def places(table: Sequence[int], S: int, page_size: int) -> np.ndarray:
    """Where the first S positions of a text lie.

    >>> places([2, 0, 5], 10, 4).tolist()
    [8, 9, 10, 11, 0, 1, 2, 3, 20, 21]

    Parameters
    ----------
    table : page numbers
        The block table, with at least S positions.
    S : int
    page_size : int
        P, positions of a page.

    Returns
    -------
    (S,) int64
    """
    first = np.array(table, dtype=np.int64) * page_size  # (pages,)
    every = first[:, None] + np.arange(page_size)  # (pages, P)
    return every.reshape(-1)[:S]


def as_run(places: np.ndarray) -> np.ndarray | slice:
    """Consecutive places as a slice, which is read without a copy; others as given."""
    first, n = int(places[0]) if len(places) else 0, len(places)
    run = np.array_equal(places, np.arange(first, first + n))
    return slice(first, first + n) if run else places


def gather(store: np.ndarray, places: np.ndarray | slice) -> np.ndarray:
    """Keys (or values) of one text, in order.

    Parameters
    ----------
    store : (1, K, N, D) float
        One layer of the pool.
    places : (S,) int64, or a slice
        See `as_run`.

    Returns
    -------
    (1, K, S, D) float
        A view for a slice, else a copy: what is written to it is lost.
    """
    if isinstance(places, slice):
        return store[:, :, places]
    return store.take(places, axis=2)  # half the time of an index


def copy_page(pool: KVCache, source: int, target: int, page_size: int) -> None:
    """Copy the keys and values of one page, in all layers.

    Writes
    ------
    Page `target` of the pool.

    Parameters
    ----------
    pool : KVCache
    source, target : int
        Numbers of pages.
    page_size : int
        P, positions of a page.
    """
    page, new = (np.s_[n * page_size : (n + 1) * page_size] for n in (source, target))
    for array in (pool.k, pool.v):
        array[:, :, :, new] = array[:, :, :, page]
