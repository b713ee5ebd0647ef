"""Faults that the diagnosis was not tuned on: eighty more exchanges, as in `faulty`.

They were written down before any was tried.  What stands in braces are the keys that
may name a fault without being wrong; most have no name of their own.
"""

import math

import numpy as np
from faulty import (
    erf,
    log_softmax,
    mean_square,
    norm,
    other,
    placed,
    reads,
    sets,
    shows,
    turn,
    visible,
    with_powers,
    with_rope,
)

from npllama.golden.precision import rounded


def half_turned(x, angle, r):
    """Only the first half of the coordinates, as partial rotary models do."""
    D = x.shape[-1]
    h = max(D // 4 * 2, 2)
    y = turn(x[..., :h], angle[..., : h // 2], r)
    return np.concatenate([y, x[..., h:]], -1)


def swapped_sin(x, angle, r):
    a, b = np.split(x, 2, -1)
    cos, sin = np.sin(angle), np.cos(angle)
    return r(np.concatenate([a * cos - b * sin, b * cos + a * sin], -1))


def one_sided(x, angle, r):
    a, b = np.split(x, 2, -1)
    return r(np.concatenate([a * np.cos(angle) - b * np.sin(angle), b], -1))


def low_angles(x, angle, r):
    return turn(x, rounded(angle, "bfloat16"), r)


def meta_rows(w, word="wq"):
    a = getattr(w, word)
    H, D, E = a.shape[:-2], a.shape[-2], a.shape[-1]
    pairs = a.reshape(-1, 2, D // 2, E).swapaxes(1, 2).reshape(*H, D, E)
    return w._replace(**{word: pairs})


def both_meta(w):
    return meta_rows(meta_rows(w, "wq"), "wk")


def interleaved_halves(w):
    both = np.concatenate([w.w_gate, w.w_up])
    return w._replace(w_gate=both[0::2], w_up=both[1::2])


def each_rounded(dtype):
    def change(w):
        names = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
        return w._replace(**{n: rounded(getattr(w, n), dtype) for n in names})

    return reads(change)


def uneven_int4(w):
    """int4 with a zero point, 32 to a group (the last shorter)."""
    low = {}
    for name in ("w_gate", "w_up", "w_down"):
        a = getattr(w, name).copy()
        for i in range(0, a.shape[-1], 32):
            g = a[:, i : i + 32]
            least = g.min(-1, keepdims=True)
            s = (g.max(-1, keepdims=True) - least) / 15
            a[:, i : i + 32] = np.round((g - least) / s) * s + least
        low[name] = a
    return w._replace(**low)


def layers(order):
    def weights(m):
        return m._replace(layers=tuple(m.layers[i] for i in order(len(m.layers))))

    return sets(weights=weights)


def dropped(x):
    kept = np.random.default_rng(2).random(x.shape) > 0.1
    return (x * kept / np.float32(0.9)).astype(np.float32)


def best_only(z):
    return np.where(z >= np.sort(z, -1)[..., -40:-39], z, -np.inf)


def clipped(x, g, e, r):
    return norm(np.clip(x, -0.5, 0.5), g, e, r)


def in_two_groups(x, g, e, r):
    y = x.reshape(*x.shape[:-1], 2, -1)
    return r((y / np.sqrt(mean_square(y) + e)).reshape(x.shape) * g)


def turned_alone(which, speed):
    """Queries (0) or keys (1) turned at another speed than the others."""

    def wrong(p):
        count = [0]

        def turned(x, angle, r):
            count[0] += 1
            other = count[0] % 2 != which
            return turn(x, speed * angle if other else angle, r)

        p.turn = turned

    return wrong


def zeros_in_one(*words):
    def weights(m):
        def change(i, w):
            zeros = {word: 0 * getattr(w, word) for word in words}
            return w._replace(**zeros) if i == 1 else w

        return m._replace(layers=tuple(change(i, w) for i, w in enumerate(m.layers)))

    return sets(weights=weights)


def half_of(word):
    """The other half of a sum was left on another device."""

    def change(w):
        a = getattr(w, word).copy()
        m = a.reshape(len(a), -1)
        m[:, m.shape[1] // 2 :] = 0
        return w._replace(**{word: m.reshape(a.shape)})

    return reads(change)


def adapted(w):
    """A small adapter that should not be there."""
    a = w.wq
    m = a.reshape(-1, a.shape[-1])
    rng = np.random.default_rng(4)
    d = rng.standard_normal((len(m), 4)) @ rng.standard_normal((4, m.shape[1]))
    return w._replace(wq=np.float32(m + d / d.std() * m.std() / 5).reshape(a.shape))


def decoded_only(change):
    return lambda x: change(x) if x.shape[1] == 1 else x


BENDS = {
    "mish": lambda g: g * np.tanh(np.log1p(np.exp(g))),
    "elu": lambda g: np.where(g > 0, g, np.expm1(np.minimum(g, 0))),
    "hard swish": lambda g: g * np.clip(g + 3, 0, 6) / 6,
    "selu": lambda g: 1.0507 * np.where(g > 0, g, 1.67326 * np.expm1(np.minimum(g, 0))),
    "silu of 1.1": lambda g: g / (1 + np.exp(-1.1 * g)),
    "silu of -x": lambda g: g / (1 + np.exp(g)),
    "silu clamped at 1": lambda g: np.minimum(g / (1 + np.exp(-g)), 1),
    "softsign": lambda g: g / (1 + np.abs(g)),
    "gelu squared": lambda g: (g * (1 + erf(g / math.sqrt(2))) / 2) ** 2,
}
NORMS = {
    "half of the width": lambda x, g, e, r: r(
        x / np.sqrt(mean_square(x[..., : x.shape[-1] // 2]) + e) * g
    ),
    "gain first": lambda x, g, e, r: r(x * g / np.sqrt(mean_square(x * g) + e)),
    "fourth power": lambda x, g, e, r: r(
        x / ((x**4).mean(-1, keepdims=True) + e) ** 0.25 * g
    ),
    "low mean square": lambda x, g, e, r: r(
        x / np.sqrt(rounded(mean_square(x), "bfloat16") + e) * g
    ),
    "mean square of all": lambda x, g, e, r: r(x / np.sqrt((x * x).mean() + e) * g),
    "no root": lambda x, g, e, r: r(x / (mean_square(x) + e) * g),
    "two groups": in_two_groups,
    "clipped": clipped,
    "gain squared": lambda x, g, e, r: r(norm(x, g, e, r) * g),
}
SCORES = {
    "capped at 5": lambda s: np.exp(5 * np.tanh(s / 5) - 5),
    "twice as sharp": lambda s: np.exp(2 * (s - s.max(-1, keepdims=True))),
    "temperature 1.1": lambda s: np.exp((s - s.max(-1, keepdims=True)) / 1.1),
    "linear": lambda s: np.maximum(s, 0) + 1e-3,
    "clamped at 0": lambda s: np.exp(np.minimum(s, 0)),
}
LOGITS = {
    "best 40": (best_only, {"not finite"}),
    "capped at 30": (lambda z: 30 * np.tanh(z / 30), set()),
    "bias on one": (lambda z: z + 2 * (np.arange(z.shape[-1]) == 3), set()),
    "divided by width": (lambda z: z / np.float32(math.sqrt(48)), {"scaled"}),
    "centred": (lambda z: z - z.mean(-1, keepdims=True), set()),
    "two ids up": (lambda z: np.roll(z, 2, -1), {"shifted ids", "other order"}),
    "two positions late": (
        lambda z: np.roll(z, 2, 1) if z.shape[1] > 2 else z,
        {"shifted positions", "other order"},
    ),
    "sorted": (lambda z: np.sort(z, -1), {"other order"}),
    "penalised": (lambda z: np.where(np.arange(z.shape[-1]) % 7, z, z / 1.3), set()),
    "float16": (lambda z: rounded(z, "float16"), {"narrow", "truncated"}),
    "absolute": (np.abs, set()),
    "all of the last position": (lambda z: 0 * z + z[:, -1:], set()),
    "all of the first position": (lambda z: 0 * z + z[:, :1], set()),
    "three ids hidden": (
        lambda z: np.where(np.arange(z.shape[-1]) < 3, -np.inf, z),
        {"not finite"},
    ),
    "of base 2": (lambda z: log_softmax(z) / np.float32(math.log(2)), set()),
    "zero": (lambda z: 0 * z, {"not written"}),
}

FAULTS = {
    "half of the coordinates turned": (sets(turn=half_turned), set()),
    "sine for cosine": (sets(turn=swapped_sin), set()),
    "second half not turned": (sets(turn=one_sided), set()),
    "angles in bfloat16": (sets(turn=low_angles), set()),
    "theta 5% off": (with_rope(rope_theta=10500.0), {"rope theta", "rope scaling"}),
    "linear by 4": (with_rope(rope_type="linear", factor=4.0), {"rope scaling"}),
    "exponent (2i + 1) / D": (with_powers(lambda i, D: (2 * i + 1) / D), set()),
    "frequencies reversed": (
        with_powers(lambda i, D: 2 * (D // 2 - 1 - i) / D),
        set(),
    ),
    "positions doubled": (placed(lambda at, prompt: 2 * at), set()),
    "positions from the prompt's end": (placed(lambda at, prompt: at - prompt), set()),
    "positions reversed": (placed(lambda at, prompt: at.max() - at), set()),
    "position 0 for all": (placed(lambda at, prompt: 0 * at), {"no rotation"}),
    "decode + 2": (
        placed(lambda at, prompt: at + 2 * (at >= prompt)),
        {"position in decode", "position"},
    ),
    "heads rolled": (
        sets(heads=lambda H, K: np.roll(np.arange(H) // (H // K), 1)),
        set(),
    ),
    "last head for all": (sets(heads=lambda H, K: np.full(H, K - 1)), set()),
    "scale 1% off": (sets(scale=lambda c: 0.99 / math.sqrt(c.head_dim)), {"scaled"}),
    "scale to the fourth root": (sets(scale=lambda c: c.head_dim**-0.25), {"scaled"}),
    "scale negative": (sets(scale=lambda c: -1 / math.sqrt(c.head_dim)), {"scaled"}),
    "scale of query heads": (
        sets(scale=lambda c: 1 / math.sqrt(c.num_attention_heads)),
        {"scaled"},
    ),
    "chunks of 8": (visible(lambda q, k: (k <= q) & (k // 8 == q // 8)), {"hidden"}),
    "prompt sees all of it": (
        visible(lambda q, k: (k <= q) | ((q < 20) & (k < 20))),
        {"no mask", "mask"},
    ),
    "first three hidden": (
        visible(lambda q, k: (k <= q) & ((k > 2) | (q < 3))),
        {"hidden", "mask"},
    ),
    "every other hidden": (
        visible(lambda q, k: (k <= q) & ((q - k) % 2 == 0)),
        {"hidden"},
    ),
    "window 12": (visible(lambda q, k: (k <= q) & (k > q - 12)), {"window", "hidden"}),
    "reversed mask": (visible(lambda q, k: k >= q), set()),
    "meta rows of q": (reads(meta_rows), {"other order", "interleaved"}),
    "meta rows of both": (reads(both_meta), {"other order", "interleaved"}),
    "gate and up interleaved": (reads(interleaved_halves), {"unlike", "other order"}),
    "bfloat16 weights": (each_rounded("bfloat16"), {"narrow", "quantised"}),
    "float8 weights": (each_rounded("float8_e4m3fn"), {"quantised"}),
    "int4 with zero points": (reads(uneven_int4), {"quantised"}),
    "all layers the first": (layers(lambda L: [0] * L), {"other gain"}),
    "layers reversed": (layers(lambda L: range(L)[::-1]), {"other gain"}),
    "other k": (other("wk"), {"unlike"}),
    "other gate": (other("w_gate"), {"unlike"}),
    "value heads reversed": (
        reads(lambda w: w._replace(wv=w.wv[::-1])),
        {"other order"},
    ),
    "rows of down rolled": (
        reads(lambda w: w._replace(w_down=np.roll(w.w_down, 1, 0))),
        {"other order"},
    ),
    "columns of o rolled": (
        reads(lambda w: w._replace(wo=np.roll(w.wo, 1, -1))),
        {"unlike"},
    ),
    "o of negated sign": (reads(lambda w: w._replace(wo=-w.wo)), {"scaled"}),
    "gate plus up": (sets(mixed=lambda g, u, r: r(g + u)), set()),
    "up bent, too": (sets(mixed=lambda g, u, r: r(g * u / (1 + np.exp(-u)))), set()),
    "up clamped": (sets(mixed=lambda g, u, r: r(g * np.clip(u, -0.5, 0.5))), set()),
    "residual subtracted": (sets(added=lambda x, y, r: r(x - y)), set()),
    "residual in bfloat16": (
        sets(added=lambda x, y, r: rounded(x + y, "bfloat16")),
        {"narrow", "truncated"},
    ),
    "residual averaged": (
        sets(added=lambda x, y, r: r((x + y) / np.float32(2))),
        {"scaled"},
    ),
    "embedding of the width": (
        sets(embedded=lambda x: x * np.float32(math.sqrt(x.shape[-1]))),
        {"scaled"},
    ),
    "embedding one late": (
        sets(embedded=lambda x: np.roll(x, 1, 1)),
        {"other order", "shifted positions"},
    ),
    "first embedding zero": (
        sets(embedded=lambda x: x * (np.arange(x.shape[1]) > 0)[:, None]),
        {"not written"},
    ),
    "cache in bfloat16": (
        sets(stored=lambda x, first: rounded(x, "bfloat16")),
        {"narrow"},
    ),
    "cache in float8": (
        sets(stored=lambda x, first: rounded(x, "float8_e4m3fn")),
        {"narrow"},
    ),
    "decode stored as zeros": (
        sets(stored=lambda x, first: x if not first else 0 * x),
        {"not written"},
    ),
    "cache one early": (
        sets(stored=lambda x, first: np.roll(x, 1, 2)),
        {"other order"},
    ),
    "dropout": (shows("layers.1.mlp.down_proj", dropped), set()),
    "down 1% short": (
        shows("layers.1.mlp.down_proj", lambda x: x * np.float32(0.99)),
        {"scaled"},
    ),
    "bias at o": (
        shows(
            "layers.1.self_attn.o_proj",
            lambda x: x + np.float32(0.05) * np.cos(np.arange(x.shape[-1])),
        ),
        set(),
    ),
    "decode's attention halved": (
        shows("self_attn.attention", decoded_only(lambda x: x / 2)),
        {"scaled"},
    ),
    "last coordinate lost": (
        shows(
            "layers.1.self_attn.v_proj",
            lambda x: x * (np.arange(x.shape[-1]) < x.shape[-1] - 1),
        ),
        {"not written"},
    ),
    "keys not turned": (turned_alone(1, 0), {"no rotation"}),
    "queries 3% fast": (turned_alone(0, 1.03), set()),
    "queries turned back": (turned_alone(0, -1), set()),
    "positions clipped at 15": (placed(lambda at, p: np.minimum(at, 15)), set()),
    "window beside two sinks": (
        visible(lambda q, k: (k <= q) & ((k < 2) | (k > q - 6))),
        {"hidden"},
    ),
    "third before hidden": (visible(lambda q, k: (k <= q) & (q - k != 3)), {"hidden"}),
    "first four see each other": (
        visible(lambda q, k: (k <= q) | ((q < 4) & (k < 4))),
        set(),
    ),
    "block left out": (zeros_in_one("wo", "w_down"), {"not written", "swapped"}),
    "half of down": (half_of("w_down"), {"share"}),
    "half of o": (half_of("wo"), {"share"}),
    "adapter in q": (reads(adapted), set()),
    "v of k": (reads(lambda w: w._replace(wv=w.wk)), {"swapped"}),
    "gate of other positions": (
        shows("layers.1.mlp.gate_proj", lambda x: x[:, ::-1]),
        {"other order"},
    ),
    "o of the last position": (
        shows("layers.1.self_attn.o_proj", lambda x: 0 * x + x[:, -1:]),
        set(),
    ),
    "queries of the first position": (
        shows("layers.0.self_attn.q_proj", lambda x: 0 * x + x[:, :1]),
        set(),
    ),
    "queries negated": (shows("layers.0.self_attn.q_proj", lambda x: -x), {"scaled"}),
    "one row not a number": (
        shows(
            "layers.1.input_layernorm",
            lambda x: np.where((np.arange(x.shape[1]) == 4)[:, None], np.nan, x),
        ),
        {"not finite"},
    ),
    "another position's attention": (
        shows("layers.1.self_attn.attention", lambda x: np.roll(x, 1, 1)),
        {"other order"},
    ),
}
FAULTS |= {
    f"bend: {n}": (sets(bend=lambda g, r, f=f: r(np.float32(f(g)))), set())
    for n, f in BENDS.items()
}
FAULTS |= {f"norm: {n}": (sets(norm=f), set()) for n, f in NORMS.items()}
FAULTS["norm: gain squared"][1].add("other gain")
FAULTS |= {f"softmax: {n}": (sets(soft=f), set()) for n, f in SCORES.items()}
FAULTS |= {f"logits: {n}": (sets(logits=f), keys) for n, (f, keys) in LOGITS.items()}
FAULTS |= {
    f"eps {e:g}": (sets(eps=lambda c, e=e: e), {"eps"}) for e in (2e-5, 1e-2, 5e-6)
}
