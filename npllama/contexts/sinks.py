r"""A stream in one pass: what each position sees of it, and from how far.

`streaming` reads a text token by token, and moves what is kept.  We can compute
beforehand which positions each token will see, so one pass can read the whole text.
With a window of W positions, c of them sinks, and d forgotten at a time, the stream has
forgotten

$$e(i) = d \lceil \max(0,\; i + 1 - W) / d \rceil$$

positions when it reads token i.  Then i sees

    j < c                at the distance i - e(i) - j
    c + e(i) <= j <= i   at the distance i - j

The positions of the window have moved up together with the query, so their distances
are those of the text.  Only the sinks have come nearer.  RoPE knows distances only: for
the sinks, the query is turned back by e(i) positions, and no key is ever turned again.
So keys stay where and as they were written.  For W = 4, c = 1 and d = 1, the distances
are:

    0
    1 0
    2 1 0
    3 2 1 0
    3 . 2 1 0
    3 . . 2 1 0

Without sinks this is a sliding window, `sparse.window(W)`.  With c `n_keep` and d half
of the rest, it is what llama.cpp calls a context shift.

This is the stream itself, at any depth, up to rounding, and it takes the time of a
prefill.  What it lacks is the constant memory, for the whole text is in the cache; see
`ring`.

References
----------
Xiao et al. 2023, arXiv:2309.17453, section 3.2; llama.cpp, tools/server, "context
shift".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from npllama.attention import QUERY_BLOCK
from npllama.config import Config
from npllama.contexts.states import Attend, merge_states, state_of
from npllama.contexts.streaming import Stream, check_stream, turned_back
from npllama.rope import rotate

# Where in a cache the positions from one to another lie.
Places = Callable[[int, int], "slice | np.ndarray"]


def context_shift(window: int, n_keep: int = 0) -> Stream:
    """llama.cpp's way to go on: half of what follows the first `n_keep` is forgotten.

    Its server shifts when the context has one free place left, so its window is one
    less than its context; and it adds one to `n_keep` if the text begins with BOS.
    """
    return Stream(window, n_keep, max(1, (window - n_keep) // 2))


def forgotten(i: np.ndarray, stream: Stream) -> np.ndarray:
    """How many positions are gone when position i is read; of i's shape.

    >>> forgotten(np.arange(10), Stream(window=6, sinks=1, discard=3)).tolist()
    [0, 0, 0, 0, 0, 0, 3, 3, 3, 6]
    """
    over = np.maximum(i + 1 - stream.window, 0)
    return -(-over // stream.discard) * stream.discard


def stream_pairs(stream: Stream, n: int) -> int:
    """Pairs of a query and a key in a stream of n tokens, in each head.

    The first W see what is there; then, over and over, d tokens see W - d + 1 ... W.
    Each pair costs 4 D FLOPs in every head of every layer: 4 L H D in all.

    >>> stream_pairs(Stream(window=4, sinks=1, discard=1), 6)  # the picture above
    18
    """
    W, _, d = stream
    first, rest = min(n, W), max(0, n - W)
    turns, more = divmod(rest, d)
    each = d * (2 * W - d + 1) // 2
    return (
        first * (first + 1) // 2
        + turns * each
        + more * (W - d)
        + more * (more + 1) // 2
    )


def at_once(config: Config, stream: Stream, block: int = QUERY_BLOCK) -> Attend:
    """A way to attend, for `forward`: each position sees what it would in a stream.

    Parameters
    ----------
    config : Config
    stream : Stream
    block : int
        Queries that are taken at a time.

    Returns
    -------
    function
        As `attention.naive`: (q, k, v, start) to (B, T, H, D).

    Raises
    ------
    ValueError
        As `check_stream`.
    """
    check_stream(config, stream)

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray):
        y = np.empty_like(q)  # (B, T, H, D)
        for b, first in enumerate(start.tolist()):
            y[b] = a_row(q[b], k[b], v[b], first, config, stream, (slice, block))
        return y

    return attend


def a_row(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    first: int,
    config: Config,
    stream: Stream,
    how: tuple[Places, int],
) -> np.ndarray:
    """What the queries of one row find, a block of them at a time.

    Parameters
    ----------
    q : (T, H, D) float
    k, v : (K, N, D) float
    first : int
        Position of the first query.
    config : Config
    stream : Stream
    how : places, block
        Where the positions from one to another lie, and queries of a block.

    Returns
    -------
    (T, H, D) float
    """
    y, (places, block) = np.empty_like(q), how  # (T, H, D)
    for t in range(0, len(q), block):
        i = np.arange(first + t, first + min(t + block, len(q)))  # (T,)
        e, last = forgotten(i, stream), int(i[-1]) + 1
        some = q[t : t + block]  # (T, H, D)
        # Until something is forgotten, sinks are positions like all others.
        least = stream.sinks + e if e[-1] else e  # (T,), the first that each sees
        keys = places(int(least[0]), last)
        hidden = hidden_from(i, np.arange(int(least[0]), last), least)  # (T, S)
        found = state_of(some, k[:, keys], v[:, keys], hidden)
        if stream.sinks and e[-1]:
            tables = turned_back(config, e, q.dtype.name)  # (1, T, D // 2)
            sinks = np.arange(min(stream.sinks, last))
            hidden = hidden_from(i, sinks, np.zeros_like(i))  # (T, c)
            few = np.s_[:, : len(sinks)]
            near = state_of(rotate(some[None], *tables)[0], k[few], v[few], hidden)
            found = merge_states(near, found)
        y[t : t + block] = found.y
    return y


def hidden_from(i: np.ndarray, j: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Which keys j are not among those from `least` to i; (T, S) bool."""
    return (j > i[:, None]) | (j < least[:, None])
