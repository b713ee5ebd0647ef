r"""H2O and SnapKV: keep the keys that were looked at.

`streaming` forgets by age.  But which keys matter can be seen while they are used: a
key's *weight* is the sum of the attention that queries have paid to it,

$$a_s = \sum_t p_{ts}$$

counted for every layer and key head by itself; the G query heads that share a key head
are added up, since they must keep the same keys.

- *H2O* (heavy hitters): whenever there is no room, the key with the least weight goes;
  the latest ones stay in any case, for they had little time to be looked at.  What is
  gone never returns.  A sum over all queries favours early keys, which more queries
  have seen; the paper takes it so.
- *SnapKV* cuts once, after the prompt: what the prompt's last queries (its *observation
  window*) look at is what the answer will look at, too.  A key's neighbours are likely
  to belong to it, so weights are pooled over a few places first: by their mean in the
  released code, by their maximum in the paper.  The window itself stays.

Kept keys differ from head to head, but not in number, so they fit into an ordinary
cache whose cells are no longer positions: `forward` is told where new tokens stand.
Keys keep the angles of the text's positions, so unlike a stream such a text still ends
with the model's context; what is saved is memory.

`blocked` computes attention; weights are computed separately and cost a second product
with the keys.  As long as all keys fit, the logits are bit for bit those of a plain
cache.  The weights of three keys, for two queries that share a key head:

    query 1    0.7  0.3   -
    query 2    0.5  0.1  0.4
    weight     1.2  0.4  0.4

References
----------
Zhang et al. 2023, arXiv:2306.14048, algorithm 1 (H2O); Li et al. 2024,
arXiv:2404.14469, section 4 (SnapKV), and FasterDecoding/SnapKV.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.attention import blocked, softmax
from npllama.cache import KVCache, new_cache
from npllama.config import BY_LENGTH, Config
from npllama.contexts.perplexity import text_of
from npllama.contexts.states import by_key_head, in_the_future, scores_among
from npllama.decoding.common import PREFILL_CHUNK
from npllama.model import forward
from npllama.sampling import log_softmax
from npllama.weights import Model


class Kept(NamedTuple):
    """The keys of one text that are kept, and how much they were looked at."""

    cache: KVCache  # of one row; each key head has its own keys, in order
    weight: np.ndarray  # (L, K, N) float, of every cell
    read: np.ndarray  # (1,) int64, tokens of the text


def new_kept(config: Config, room: int, dtype: str = "float32") -> Kept:
    """Nothing kept yet, room for so many keys of each head.

    Raises
    ------
    ValueError
        If the model turns keys by the text's length, which cells do not tell.
    """
    if config.rope.rope_type in BY_LENGTH:
        kind = config.rope.rope_type
        raise ValueError(f"rope_type {kind} turns by a text's length: drop no keys")
    cache = new_cache(config, 1, room, dtype)
    weight = np.zeros((*cache.k.shape[:1], *cache.k.shape[2:4]), dtype=dtype)
    return Kept(cache, weight, np.zeros(1, dtype=np.int64))


#  ---- watching ------------------------------------------------------------------


def weights_of(q: np.ndarray, k: np.ndarray, first: int) -> np.ndarray:
    """What each key got of the queries' attention.

    Parameters
    ----------
    q : (T, H, D) float
    k : (K, S, D) float
        The last T belong to the queries.
    first : int
        S - T.

    Returns
    -------
    (K, S) float
        Summed over the queries and the heads of a group: T G in all.
    """
    hidden = in_the_future(first, slice(0, len(q)), slice(0, k.shape[1]))
    scores = scores_among(by_key_head(q, len(k)), k, hidden)  # (K, G, T, S)
    return softmax(scores).sum(axis=(1, 2))


class Watching:
    """A way to attend, for `forward`: as `blocked`, and weights are added up.

    Writes
    ------
    Into `weight`, layer by layer: one pass only.

    Parameters
    ----------
    weight : (L, K, N) float
    """

    def __init__(self, weight: np.ndarray):
        self.weight, self.layer = weight, 0

    def __call__(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray
    ) -> np.ndarray:
        first, S = int(start[0]), int(start[0]) + q.shape[1]
        self.weight[self.layer, :, :S] += weights_of(q[0], k[0, :, :S], first)
        self.layer += 1
        return blocked(q, k, v, start)


def read_on(
    model: Model,
    tokens: np.ndarray,
    kept: Kept,
    watch: bool = True,
    last: bool = False,
) -> np.ndarray:
    """Run more tokens of a text; its kept keys are all that they see before them.

    Writes
    ------
    Into the cache and, if it is watched, the weights.

    Parameters
    ----------
    model : Model
    tokens : (T,) int64
    kept : Kept
        With room for them.
    watch : bool
    last : bool
        Return only the logits after the last token.

    Returns
    -------
    (T_or_1, V) float
        The logits after every token, or only the last.
    """
    first = int(kept.read[0])
    positions = np.arange(first, first + len(tokens))[None]  # (1, T)
    attend = Watching(kept.weight) if watch else blocked
    logits = forward(
        model, tokens[None], kept.cache, last=last, attend=attend, positions=positions
    )
    kept.read[0] += len(tokens)
    return logits[0]


#  ---- choosing ------------------------------------------------------------------


def heaviest(weight: np.ndarray, heavy: int, recent: int) -> np.ndarray:
    """The cells to keep: the last ones, and those before them with most weight.

    Parameters
    ----------
    weight : (..., S) float
    heavy, recent : int
        How many of each; S is their sum or more.

    Returns
    -------
    (..., heavy + recent) int64
        Rising.  Of cells that weigh the same, later ones stay.

    >>> heaviest(np.array([1.2, 0.4, 0.9, 0.1, 0.3]), heavy=2, recent=1).tolist()
    [0, 2, 4]
    """
    S = weight.shape[-1]
    older = weight[..., : S - recent]  # (..., S - recent)
    order = np.argsort(older, axis=-1, kind="stable")  # the lightest first
    best = np.sort(order[..., older.shape[-1] - heavy :], axis=-1)  # (..., heavy)
    last = np.broadcast_to(np.arange(S - recent, S), (*best.shape[:-1], recent))
    return np.concatenate([best, last], axis=-1)


def pooled(weight: np.ndarray, kernel: int, how: str = "mean") -> np.ndarray:
    """Weights of the places around each: their mean or their largest.

    Parameters
    ----------
    weight : (..., S) float
        No weight is negative; places beyond either end count as 0, also in a mean.
    kernel : int
        Odd: how many places.
    how : "mean" or "max"

    Returns
    -------
    (..., S) float

    Raises
    ------
    ValueError
        If `kernel` is not odd, or `how` another word.
    """
    if kernel < 1 or kernel % 2 == 0 or how not in ("mean", "max"):
        raise ValueError(f"pooling by {how} of {kernel}: mean or max of an odd number")
    half = kernel // 2
    edges = [(0, 0)] * (weight.ndim - 1) + [(half, half)]
    around = np.lib.stride_tricks.sliding_window_view(
        np.pad(weight, edges), kernel, axis=-1
    )  # (..., S, kernel)
    return around.mean(axis=-1) if how == "mean" else around.max(axis=-1)


def keep(kept: Kept, cells: np.ndarray) -> None:
    """Keep some cells of every layer and key head, and move them up.

    Writes
    ------
    Into the cache, its length and the weights.

    Parameters
    ----------
    kept : Kept
    cells : (L, K, M) int64
        Rising.
    """
    M, held = cells.shape[-1], int(kept.cache.length[0])
    for store in (kept.cache.k, kept.cache.v):
        chosen = cells[:, None, :, :, None]  # (L, 1, K, M, 1)
        store[..., :M, :] = np.take_along_axis(store, chosen, axis=3)
    kept.weight[..., :M] = np.take_along_axis(kept.weight, cells, axis=-1)
    kept.weight[..., M:held] = 0
    kept.cache.length[0] = M


#  ---- H2O -----------------------------------------------------------------------


def make_room(kept: Kept, new: int, recent: int) -> None:
    """H2O: drop the keys with least weight until so many new ones fit.

    Writes
    ------
    As `keep`.

    Parameters
    ----------
    kept : Kept
    new : int
        At most room - recent.
    recent : int
        Last keys that stay in any case.

    Raises
    ------
    ValueError
        If they cannot fit.
    """
    N, held = kept.weight.shape[-1], int(kept.cache.length[0])
    stay = min(held, N - new)
    if held > stay:
        if stay < recent:
            raise ValueError(f"{new} new and {recent} recent keys in room for {N}")
        keep(kept, heaviest(kept.weight[..., :held], stay - recent, recent))


def surprise_of_h2o(
    model: Model, tokens: Sequence[int], room: int, recent: int, piece: int = 1
) -> np.ndarray:
    """The surprise at every token but the first, with H2O's cache.

    Parameters
    ----------
    model : Model
    tokens : sequence of int
    room : int
        Keys of a head, the newest included.
    recent : int
        Of these, last ones that stay in any case: half, in the paper.
    piece : int
        Tokens of a pass.  The paper's algorithm is that of 1.

    Returns
    -------
    (S - 1,) float64
        In nats; see `perplexity`.

    Raises
    ------
    ValueError
        As `new_kept` and `make_room`, or if the text or a piece has no token.
    """
    text = text_of(tokens, piece)  # (S,)
    kept = new_kept(model.config, room, model.embed.dtype.name)
    nats = np.empty(len(text) - 1, dtype=np.float64)  # (S - 1,)
    for t in range(0, len(nats), piece):
        part = text[t : min(t + piece, len(nats))]  # (T,)
        make_room(kept, len(part), recent)
        logp = log_softmax(read_on(model, part, kept))  # (T, V)
        after = text[t + 1 : t + 1 + len(part)]  # (T,)
        nats[t : t + len(part)] = -logp[np.arange(len(part)), after]
    return nats


#  ---- SnapKV --------------------------------------------------------------------


def snap(
    kept: Kept, capacity: int, window: int, kernel: int = 5, how: str = "mean"
) -> None:
    """Cut a prompt's keys to so many of each head, by what its last queries saw.

    Writes
    ------
    As `keep`; nothing, if the prompt has no more than `capacity` keys.

    Parameters
    ----------
    kept : Kept
        Whose weights are those that the last `window` queries paid.
    capacity, window : int
        Keys that stay, and how many of them are the last.
    kernel : int
    how : "mean" or "max"
        See `pooled`.

    Raises
    ------
    ValueError
        If the window takes all of the capacity, or as `pooled`.
    """
    if not 1 <= window < capacity:
        raise ValueError(f"a window of {window} in a capacity of {capacity}")
    held = int(kept.cache.length[0])
    if held > capacity:
        prefix = pooled(kept.weight[..., : held - window], kernel, how)  # (L, K, S - w)
        last = np.zeros((*prefix.shape[:-1], window), dtype=prefix.dtype)
        weight = np.concatenate([prefix, last], axis=-1)  # (L, K, S)
        keep(kept, heaviest(weight, capacity - window, window))


def read_prompt(
    model: Model, tokens: Sequence[int], window: int, room: int
) -> tuple[Kept, np.ndarray]:
    """Read a prompt, and watch what its last queries look at.

    Parameters
    ----------
    model : Model
    tokens : sequence of int
        At least one.
    window : int
        Queries that are watched, all of them if there are no more.
    room : int
        Keys that the text will have, new ones included.

    Returns
    -------
    kept : Kept
    logits : (V,) float
        After the last token.

    Raises
    ------
    ValueError
        As `new_kept`, or if there is no token.
    """
    text, unwatched = text_of(tokens), max(0, len(tokens) - window)
    kept = new_kept(model.config, room, model.embed.dtype.name)
    begins = [*range(0, unwatched, PREFILL_CHUNK)]
    begins += range(unwatched, len(text), PREFILL_CHUNK)
    for t, end in zip(begins, [*begins[1:], len(text)]):
        watch = t >= unwatched
        logits = read_on(model, text[t:end], kept, watch, last=True)[0]  # (V,)
    return kept, logits
