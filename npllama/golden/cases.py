"""The inputs on which kernels go wrong: seeded, small, and each for a reason.

A wrong kernel is right on most numbers.  A mask that is off by one shows only if the
key after the query differs; swapped heads only if there are several; a missing
subtraction of the maximum only if scores are large; a wrong epsilon only if the input
is as small as epsilon; positions in half precision only beyond 256.  So each entry of
`KINDS` names a danger and draws inputs that have it.  Sizes are odd where possible,
and all different.  After a row's last position a cache holds stale but finite numbers,
as if it was used before: a kernel that reads them returns another result.

`ops` rounds these numbers to a dtype and gives the result that a kernel must return.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Inputs = dict[str, Any]
Maker = Callable[[np.random.Generator], Inputs]
# Stale keys and values are larger than real ones, so that reading them shows.
STALE = 3.0


#  ---- normalisation ----------------------------------------------------------


def norm_inputs(rng, rows: int, E: int, scale=1.0, eps=1e-5) -> Inputs:
    """Activations of one size, and gains that are not one."""
    x = scale * rng.standard_normal((rows, E))  # (rows, E)
    return {"x": x, "gain": 1 + 0.5 * rng.standard_normal(E), "eps": eps}


def constant_rows(rng, rows: int, E: int) -> Inputs:
    """Rows without variance, the last of them zeros: LayerNorm would return zeros."""
    made = norm_inputs(rng, rows, E)
    level = np.append(rng.uniform(1, 3, rows - 1), 0.0)  # (rows,)
    return made | {"x": np.repeat(level[:, None], E, axis=1)}


NORM: dict[str, Maker] = {
    "one token": partial(norm_inputs, rows=1, E=16),
    "odd sizes": partial(norm_inputs, rows=5, E=37),
    "wide": partial(norm_inputs, rows=3, E=4096),
    "constant rows and zeros": partial(constant_rows, rows=4, E=24),
    # eps is 10 times the mean square of the first, and a tenth of that of the other
    "tiny values": partial(norm_inputs, rows=7, E=33, scale=1e-3, eps=1e-5),
    "small values, small eps": partial(norm_inputs, rows=7, E=33, scale=3e-3, eps=1e-6),
    # the squares overflow float16
    "large magnitudes": partial(norm_inputs, rows=3, E=65, scale=5e3),
}


#  ---- positions --------------------------------------------------------------


def rope_inputs(rng, start: list[int], T: int, H: int, D: int, theta=1e4) -> Inputs:
    """Heads, and rows of consecutive positions from `start` on."""
    B = len(start)
    x = rng.standard_normal((B, T, H, D))  # (B, T, H, D)
    positions = np.array(start)[:, None] + np.arange(T)  # (B, T)
    return {"x": x, "positions": positions, "theta": theta}


ROPE: dict[str, Maker] = {
    "one token": partial(rope_inputs, start=[1], T=1, H=1, D=8),
    "odd length": partial(rope_inputs, start=[0], T=7, H=3, D=10),
    "one pair": partial(rope_inputs, start=[40], T=5, H=3, D=2),
    "start above zero": partial(rope_inputs, start=[29], T=5, H=6, D=16),
    "ragged": partial(rope_inputs, start=[0, 61, 17], T=3, H=2, D=12),
    # bfloat16 has no odd numbers here
    "beyond 256": partial(rope_inputs, start=[301, 517], T=9, H=2, D=64),
    "long context": partial(rope_inputs, start=[8001], T=3, H=5, D=128, theta=5e5),
}


#  ---- attention --------------------------------------------------------------


def attention_inputs(
    rng, start: list[int], T: int, N: int, H: int, K: int, D: int
) -> Inputs:
    """Queries of T new positions, and a cache that holds their keys and more.

    Row b sees ``start[b] + T`` positions at its last query; the rest is stale.
    """
    B = len(start)
    q = rng.standard_normal((B, T, H, D))  # (B, T, H, D)
    k, v = rng.standard_normal((2, B, K, N, D))  # (B, K, N, D)
    for b, first in enumerate(start):
        k[b, :, first + T :] *= STALE
        v[b, :, first + T :] = STALE
    return {"q": q, "k": k, "v": v, "start": np.array(start)}


def equal_keys(rng, start: list[int], T: int, N: int, H: int, K: int, D: int) -> Inputs:
    """Equal keys, so that every query takes the plain mean of the values it sees."""
    made = attention_inputs(rng, start, T, N, H, K, D)
    return made | {"k": np.repeat(made["k"][:, :, :1], N, axis=2)}


def large_queries(rng, **sizes: Any) -> Inputs:
    """Queries so large that each sees little more than one key."""
    made = attention_inputs(rng, **sizes)
    return made | {"q": 40.0 * made["q"]}


ATTENTION: dict[str, Maker] = {
    "first token": partial(attention_inputs, start=[0], T=1, N=1, H=4, K=4, D=8),
    "odd prefill": partial(attention_inputs, start=[0], T=7, N=7, H=3, K=3, D=10),
    "room left": partial(attention_inputs, start=[0], T=5, N=12, H=4, K=2, D=8),
    "decode": partial(attention_inputs, start=[36], T=1, N=48, H=6, K=3, D=16),
    "start above zero": partial(
        attention_inputs, start=[13], T=5, N=32, H=4, K=2, D=12
    ),
    "gqa 8:1": partial(attention_inputs, start=[9], T=3, N=16, H=16, K=2, D=8),
    "mqa": partial(attention_inputs, start=[5], T=4, N=11, H=7, K=1, D=6),
    "ragged": partial(attention_inputs, start=[0, 3, 17, 30], T=3, N=37, H=4, K=2, D=8),
    # longer than the usual block of queries, by one and a bit
    "long prefill": partial(attention_inputs, start=[0], T=131, N=131, H=2, K=1, D=16),
    "long context": partial(
        attention_inputs, start=[2045], T=3, N=2100, H=4, K=2, D=16
    ),
    "wide heads": partial(attention_inputs, start=[6], T=3, N=9, H=2, K=1, D=128),
    "large magnitudes": partial(large_queries, start=[4], T=5, N=13, H=4, K=2, D=16),
    "equal keys": partial(equal_keys, start=[8], T=5, N=21, H=4, K=2, D=8),
}


#  ---- feed-forward -----------------------------------------------------------


def swiglu_inputs(rng, B: int, T: int, E: int, F: int, scale=1.0) -> Inputs:
    """Activations and the three matrices, output axis first."""
    x = scale * rng.standard_normal((B, T, E))  # (B, T, E)
    w_gate, w_up = rng.standard_normal((2, F, E)) / np.sqrt(E)  # (F, E)
    w_down = rng.standard_normal((E, F)) / np.sqrt(F)  # (E, F)
    return {"x": x, "w_gate": w_gate, "w_up": w_up, "w_down": w_down}


def gates(rng, rows: int, F: int, scale=1.0) -> Inputs:
    """Both widenings as a fused activation kernel gets them."""
    gate = scale * rng.standard_normal((rows, F))  # (rows, F)
    gate[0, :2] = 0, -scale
    return {"gate": gate, "up": rng.standard_normal((rows, F))}


SWIGLU: dict[str, Maker] = {
    "one token": partial(swiglu_inputs, B=1, T=1, E=8, F=12),
    "odd sizes": partial(swiglu_inputs, B=2, T=3, E=13, F=29),
    "wide": partial(swiglu_inputs, B=1, T=5, E=96, F=256),
    # the exponential of a gate overflows float32
    "large magnitudes": partial(swiglu_inputs, B=1, T=5, E=16, F=24, scale=50.0),
}
SILU_AND_MUL: dict[str, Maker] = {
    "one token": partial(gates, rows=1, F=16),
    "odd sizes": partial(gates, rows=5, F=37),
    "wide": partial(gates, rows=3, F=1408),
    "large magnitudes": partial(gates, rows=3, F=65, scale=200.0),
}


#  ---- probabilities ----------------------------------------------------------


def score_rows(rng, rows: int, S: int, scale=1.0, offset=0.0) -> Inputs:
    """Scores or logits."""
    return {"scores": offset + scale * rng.standard_normal((rows, S))}


def hidden_scores(rng, rows: int, S: int) -> Inputs:
    """Rows of a causal mask: -inf after the diagonal; the first row keeps one score."""
    scores = rng.standard_normal((rows, S))  # (rows, S)
    scores[np.arange(S) > np.arange(rows)[:, None]] = -np.inf
    return {"scores": scores}


def equal_scores(rng, rows: int, S: int) -> Inputs:
    """Rows of one number each."""
    level = rng.uniform(-4, 4, (rows, 1))  # (rows, 1)
    return {"scores": np.repeat(level, S, axis=1)}


SOFTMAX: dict[str, Maker] = {
    "one score": partial(score_rows, rows=3, S=1),
    "odd length": partial(score_rows, rows=5, S=37, scale=3.0),
    "long": partial(score_rows, rows=2, S=4097, scale=2.0),
    "hidden": partial(hidden_scores, rows=9, S=11),
    "equal": partial(equal_scores, rows=4, S=23),
    # exp overflows; far below zero all exponentials of a row vanish
    "large magnitudes": partial(score_rows, rows=4, S=33, scale=300.0),
    "far above zero": partial(score_rows, rows=4, S=33, offset=1000.0),
    "far below zero": partial(score_rows, rows=4, S=33, offset=-1000.0),
}


#  ---- chance -----------------------------------------------------------------

# The last number below 1 that float32 has: a cast to fewer digits would make it 1.
ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def dyadic(rng, B: int, V: int, parts: int) -> Inputs:
    """Multiples of 1/parts, many of them 0; every u on a multiple or midway.

    Sums are exact in float32, in any order, so there is one right token: at an edge it
    is the piece that begins there, and never a token of probability 0.
    """
    possible = rng.random((B, V)) < 0.5  # (B, V)
    possible[np.arange(B), rng.integers(0, V, B)] = True
    share = possible / possible.sum(axis=1, keepdims=True)  # (B, V)
    u = rng.integers(0, 2 * parts, B) / (2 * parts)  # (B,)
    u[:2] = 0, ALMOST_ONE
    return {"probs": rng.multinomial(parts, share) / parts, "u": u}


def one_possible(rng, V: int) -> Inputs:
    """All mass on one token, not always the first or the last."""
    u = np.array([0.0, 0.5, ALMOST_ONE])  # (B,)
    place = rng.permutation(V)[: len(u)]
    return {"probs": np.eye(V)[place], "u": u}


def away_from_edges(rng, B: int, V: int) -> Inputs:
    """Any probabilities; each u in the middle of a piece that rounding cannot move.

    These tokens are among the likelier ones, since their pieces have to be wide.
    """
    probs = rng.dirichlet(np.full(V, 4 / V), B)  # (B, V)
    probs = probs.astype(np.float16).astype(np.float64)  # (B, V)
    ends = np.cumsum(probs, axis=1)  # (B, V)
    likely = np.argsort(-probs, axis=1)[np.arange(B), rng.integers(0, 3, B)]
    middle = (ends - probs / 2)[np.arange(B), likely] / ends[:, -1]
    return {"probs": probs, "u": middle.astype(np.float32).astype(np.float64)}


DRAW: dict[str, Maker] = {
    "one token in the vocabulary": partial(dyadic, B=3, V=1, parts=2),
    "edges": partial(dyadic, B=99, V=7, parts=16),
    # sums of these need more digits than half precision has
    "fine edges": partial(dyadic, B=199, V=80, parts=4096),
    "one possible token": partial(one_possible, V=9),
    "odd vocabulary": partial(away_from_edges, B=33, V=101),
    "large vocabulary": partial(away_from_edges, B=5, V=32001),
}

KINDS: dict[str, dict[str, Maker]] = {
    "rms_norm": NORM,
    "rope": ROPE,
    "rope_interleaved": ROPE,
    "attention": ATTENTION,
    "swiglu": SWIGLU,
    "silu_and_mul": SILU_AND_MUL,
    "softmax": SOFTMAX,
    "draw": DRAW,
}
