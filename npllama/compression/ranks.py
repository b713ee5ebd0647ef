r"""Ranks: in how many directions keys, values and attention lie.

A matrix of singular values $\sigma_1 \ge \sigma_2 \ge \dots$ can be of full rank and
still lie nearly in a few directions.  Three measures say in how many:

- r90 and r99: the least r whose $\sum_{i \le r} \sigma_i^2$ is 90 or 99 percent of all;
- the *effective rank*, $\exp$ of the entropy of $\sigma_i / \sum_j \sigma_j$;
- the *stable rank*, $\sum_i \sigma_i^2 / \sigma_1^2$.

None of them means anything alone.  Keys of T positions and D channels have rank D at
most, and so have the scores Q K' of a head (' is the transpose), though they are T by
T.  A random matrix of the same shape is no full measure either: of 64 directions of
noise, 53 hold 90 percent.  So each matrix stands beside random ones that were made
alike; for the scores, products of random queries and keys, and for attention, the
causal softmax of such scores.

The question is whether K and V are of low rank, or Q K', or only the softmax, as
Linformer claims.  Means over all heads on the first 512 tokens of the GPL, SmolLM2 (D =
64), r90 and effective rank, random in brackets:

    matrix             r90           effective rank
    K before RoPE      7.5  (53)     32  (63)
    K                 20.5  (53)     44  (63)
    K, mean removed   35.3  (53)     54  (63)
    V                 38.6  (52)     56  (63)
    Q K'               4.9  (50)     25  (62)
    softmax, causal   51.5  (67)    162 (220)    of 512
    Wq' Wk            34.5  (50)     52  (62)

So scores are of low rank: 5 directions hold 90 percent, where noise needs 50 (24 hold
99 percent).  One vector explains much of this: the mean of the keys, which adds the
same number to all scores of a query; softmax ignores it.  Keys without it need
35 directions, values 39; RoPE spreads what was in few.  And the softmax is not of
lower rank than its scores: it needs ten times as many directions, three quarters of
what noise needs.  "Attention is of low rank" holds by degrees, and by the matrix.

References
----------
Roy and Vetterli 2007, "The effective rank"; Wang et al. 2020, arXiv:2006.04768
(Linformer); Singhania et al. 2024, arXiv:2406.02542 (Loki).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npllama.attention import softmax
from npllama.cache import KVCache, new_cache
from npllama.config import BY_LENGTH
from npllama.cost.plot import ending_of
from npllama.decoding.common import PREFILL_CHUNK
from npllama.files.whole import new_file
from npllama.model import forward
from npllama.ops import Observer, multiply, observing
from npllama.rope import rope_tables, rotate
from npllama.weights import Model

#  ---- measures ------------------------------------------------------------------


def spectrum(x: np.ndarray) -> np.ndarray:
    """Singular values, the largest first.

    Parameters
    ----------
    x : (M, C) float

    Returns
    -------
    (min(M, C),) float64
    """
    return np.linalg.svd(x.astype(np.float64), compute_uv=False)


def energy_rank(values: np.ndarray, share: float) -> int:
    """The least r whose squares make up `share` of all; 0 for a matrix of zeros.

    >>> energy_rank(np.array([3.0, 1.0, 0.0]), 0.9)
    1
    """
    energy = np.cumsum(np.square(values))
    if energy[-1] == 0:
        return 0
    # What rounding takes from the last sum must not count.
    return int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12))) + 1


def effective_rank(values: np.ndarray) -> float:
    """The exponential of the entropy of the singular values' shares.

    >>> round(effective_rank(np.array([2.0, 2.0, 2.0, 0.0])), 6)
    3.0
    """
    shares = values[values > 0] / max(values.sum(), 1e-300)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def stable_rank(values: np.ndarray) -> float:
    """The sum of squares, divided by the largest square."""
    return float(np.square(values / values[0]).sum()) if values[0] > 0 else 0.0


class Ranks(NamedTuple):
    """The measures of one matrix, or means over several."""

    r90: float
    r99: float
    effective: float
    stable: float


def ranks(values: np.ndarray) -> Ranks:
    """All measures of a spectrum."""
    return Ranks(
        energy_rank(values, 0.9),
        energy_rank(values, 0.99),
        effective_rank(values),
        stable_rank(values),
    )


def product_spectrum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Singular values of A B', without making it; D of them.

    With A = U R and B = V S, U and V of orthonormal columns, A B' = U (R S') V', and
    R S' is D by D.

    Parameters
    ----------
    a : (M, D) float
    b : (C, D) float

    Returns
    -------
    (min(M, C, D),) float64
    """
    r, s = (np.asarray(np.linalg.qr(x.astype(np.float64), mode="r")) for x in (a, b))
    return spectrum(multiply(r, s.T))


#  ---- what a model has --------------------------------------------------------------


class Queries(Observer):
    """Observer that keeps the queries of all layers, turned by their positions."""

    def __init__(self) -> None:
        self.found: list[np.ndarray] = []  # (1, T, H, D), layer after layer

    def note(self, name: str, x: np.ndarray) -> None:
        """Keep `x` if it is the queries."""
        if name == "q_rope":
            self.found.append(x)


class Read(NamedTuple):
    """What a text left in all layers."""

    q: np.ndarray  # (L, H, T, D), turned by their positions
    k: np.ndarray  # (L, K, T, D), turned
    v: np.ndarray  # (L, K, T, D)
    before: np.ndarray  # (L, K, T, D), keys before they are turned


def read(model: Model, tokens: Sequence[int], cache: KVCache | None = None) -> Read:
    """Run a text, and keep queries, keys and values.

    Parameters
    ----------
    model : Model
    tokens : T token ids
    cache : KVCache
        Empty, of one row; a new one, if None.

    Raises
    ------
    ValueError
        If the model turns keys by the text's length: each chunk has another table.
    """
    kind = model.config.rope.rope_type
    if kind in BY_LENGTH:
        raise ValueError(
            f"rope_type {kind} turns by a text's length: keys cannot be turned back"
        )
    L, T = len(model.layers), len(tokens)
    cache = cache or new_cache(model.config, 1, T, model.embed.dtype.name)
    chunks = []
    for t in range(0, T, PREFILL_CHUNK):
        queries = Queries()
        with observing(queries):
            part = np.array([tokens[t : t + PREFILL_CHUNK]])
            forward(model, part, cache, last=True)
        chunks.append(np.stack(queries.found)[:, 0])  # (L, T, H, D)
    q = np.concatenate(chunks, axis=1).swapaxes(1, 2)  # (L, H, T, D)
    k, v = (store[:, 0, :, :T].copy() for store in (cache.k, cache.v))
    cos, sin = rope_tables(model.config, np.arange(T)[None], k.dtype.name)
    # Turned back, and without the factor that YaRN's tables have.
    size = np.square(cos) + np.square(sin)
    back = [
        rotate(k[i][None].swapaxes(1, 2), cos / size, -sin / size) for i in range(L)
    ]
    before = np.concatenate(back).swapaxes(1, 2)  # (L, K, T, D)
    return Read(q, k, v, before)


def attended(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The weights of causal attention of one head.

    Parameters
    ----------
    q, k : (T, D) float

    Returns
    -------
    (T, T) float
    """
    scores = multiply(q, k.T) / math.sqrt(q.shape[1])  # (T, T)
    return softmax(np.where(np.tri(len(q), dtype=bool), scores, -np.inf))


class Head(NamedTuple):
    """What one query head has, and the key head that it uses."""

    q: np.ndarray  # (T, D)
    k: np.ndarray  # (T, D)
    v: np.ndarray  # (T, D)
    before: np.ndarray  # (T, D)
    wq: np.ndarray  # (E, D)
    wk: np.ndarray  # (E, D)


# The rows of the table, and the spectrum of each.
MATRICES: dict[str, Callable[[Head], np.ndarray]] = {
    "K before RoPE": lambda one: spectrum(one.before),
    "K": lambda one: spectrum(one.k),
    "K, mean removed": lambda one: spectrum(one.k - one.k.mean(axis=0)),
    "V": lambda one: spectrum(one.v),
    "Q K'": lambda one: product_spectrum(one.q, one.k),
    "softmax, causal": lambda one: spectrum(attended(one.q, one.k)),
    "Wq' Wk": lambda one: product_spectrum(one.wq, one.wk),
}


def heads(model: Model, found: Read) -> Iterator[Head]:
    """All query heads of all layers."""
    H, D = model.config.num_attention_heads, model.config.head_dim
    G = H // model.config.num_key_value_heads
    for i, layer in enumerate(model.layers):
        every = (
            np.asarray(w).reshape(-1, D, w.shape[-1]) for w in (layer.wq, layer.wk)
        )
        wq, wk = every
        for h in range(H):
            k, v, before = (x[i, h // G] for x in found[1:])
            yield Head(found.q[i, h], k, v, before, wq[h].T, wk[h // G].T)


def random_heads(T: int, D: int, E: int, draws: int = 3) -> Iterator[Head]:
    """The same of independent normal numbers."""
    chance = np.random.default_rng(0)
    for _ in range(draws):
        q, k, v, before = chance.standard_normal((4, T, D))
        wq, wk = chance.standard_normal((2, E, D))
        yield Head(q, k, v, before, wq, wk)


class Row(NamedTuple):
    """A kind of matrix: means over all heads, and over random matrices."""

    name: str
    size: int  # singular values
    heads: Ranks
    random: Ranks
    energy: list[float]  # the share of the first r singular values' squares
    energy_random: list[float]


def study(model: Model, tokens: Sequence[int]) -> list[Row]:
    """The ranks of all matrices of all heads on a text, random ones beside."""
    config = model.config
    found = read(model, tokens)
    own = list(heads(model, found))
    noise = list(random_heads(len(tokens), config.head_dim, config.hidden_size))
    rows = []
    for name, of in MATRICES.items():
        spectra = [np.stack([of(one) for one in some]) for some in (own, noise)]
        means, means_random = (_means(x) for x in spectra)
        shares, shares_random = (_energy(x) for x in spectra)
        size = spectra[0].shape[1]
        rows.append(Row(name, size, means, means_random, shares, shares_random))
    return rows


def _means(spectra: np.ndarray) -> Ranks:
    """The measures' means over several matrices."""
    return Ranks(*np.mean([ranks(values) for values in spectra], axis=0).tolist())


def _energy(spectra: np.ndarray) -> list[float]:
    """The mean share of the first r singular values' squares, r from 1 on."""
    sums = np.cumsum(np.square(spectra), axis=1)  # (matrices, size)
    # A matrix of zeros has no share in any direction.
    shares = sums / np.where(sums[:, -1:] > 0, sums[:, -1:], 1)
    return shares.mean(axis=0).tolist()


def draw_spectra(path: str | os.PathLike, rows: Sequence[Row], title: str) -> None:
    """Draw the share of all squares that the first r singular values have.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the name ends in no format that can be drawn, or its folder is missing.
    """
    ending = ending_of(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        r = np.arange(1, row.size + 1)
        (line,) = axes.plot(r, row.energy, label=row.name)
        axes.plot(r, row.energy_random, color=line.get_color(), linestyle=":")
    axes.axhline(0.9, color="0.8")
    axes.set(
        title=f"{title} (dotted: random)",
        xlabel="first r singular values",
        ylabel="their share of all squares, mean over heads",
        xscale="log",
    )
    axes.legend()
    with new_file(path) as file:
        figure.savefig(file, format=ending)
