"""Somebody else's LLaMA with any of a hundred faults: candidates for the diagnosis.

Written apart from the package, as `backend` is, but step by step and with a cache, as a
backend runs; and every part of it can be exchanged.  `FAULTS` lists the exchanges, and
the keys by which the diagnosis may call each; any other key is a wrong name.
"""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
from backend import cut, rounding

from npllama.config import Rope
from npllama.rope import scaled_frequencies


def norm(x, gain, eps, r):
    return r(r(x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps))) * gain)


def angles(config, at):
    speed, _ = scaled_frequencies(config.rope, config.head_dim, "float32", 0, 512)
    return at[:, None, None].astype(np.float32) * speed


def turn(x, angle, r):
    a, b = np.split(x, 2, -1)
    cos, sin = r(np.cos(angle)), r(np.sin(angle))
    return np.concatenate([r(r(a * cos) - r(b * sin)), r(r(b * cos) + r(a * sin))], -1)


def bend(gate, r):
    return r(gate / (1 + np.exp(-gate)))


def parts():
    """Every part as it should be."""
    return SimpleNamespace(
        norm=norm,
        eps=lambda config: config.rms_norm_eps,
        angles=angles,
        turn=turn,
        place=lambda first, end, prompt: np.arange(first, end),
        heads=lambda H, K: np.arange(H) // (H // K),
        scale=lambda config: 1 / math.sqrt(config.head_dim),
        seen=lambda query, key: key <= query,
        soft=lambda scores: np.exp(scores - scores.max(-1, keepdims=True)),
        bend=bend,
        mixed=lambda gate, up, r: r(gate * up),
        added=lambda x, y, r: r(x + y),
        stored=lambda x, first: x,
        embedded=lambda x: x,
        logits=lambda z: z,
        weights=lambda model: model,
        head=lambda model: model.lm_head,
        seen_as=lambda name, x: x,
        round=None,
    )


def run(model, tokens, prompt, dtype="float32", change=None):
    """Every tensor of a run, by its name in a trace."""
    p = parts()
    (change or (lambda p: None))(p)
    r, model = p.round or rounding(dtype, None), p.weights(model)
    c, S = model.config, tokens.shape[1]
    steps = [("prefill", 0, prompt)]
    steps += [(f"decode.{i}", prompt + i, prompt + i + 1) for i in range(S - prompt)]
    found, caches = {}, [([], []) for _ in model.layers]
    for name, first, end in steps:
        step(
            p,
            r,
            model,
            c,
            tokens[:, first:end],
            (name, first, end, prompt),
            caches,
            found,
        )
    for which, i in (("cache.k", 0), ("cache.v", 1)):
        found[which] = np.stack([np.concatenate(x[i], 2) for x in caches])
    return found | {"tokens": tokens}


def times(x, w, r):
    return r(x @ r(np.float32(w)).T)


def step(p, r, model, c, tokens, where, caches, found):
    name, first, end, prompt = where

    def see(module, x):
        x = found[f"{name}/{module}"] = p.seen_as(f"{name}/{module}", x)
        return x

    B, T = tokens.shape
    angle = p.angles(c, p.place(first, end, prompt))
    eps = p.eps(c)
    x = see("model.embed_tokens", p.embedded(r(np.float32(model.embed))[tokens]))
    for i, w in enumerate(model.layers):
        at = f"model.layers.{i}."
        x = block(
            p, r, c, w, x, angle, eps, (i, first, end), caches[i], partial(put, see, at)
        )
    h = see("model.norm", p.norm(x, r(np.float32(model.norm)), eps, r))
    see("lm_head", p.logits(times(h, p.head(model), r)))


def put(see, at, module, x):
    return see(at + module, x)


def block(p, r, c, w, x, angle, eps, where, cache, see):
    i, first, end = where
    (B, T, E), H = x.shape, c.num_attention_heads
    K, D = c.num_key_value_heads, c.head_dim
    h = see("input_layernorm", p.norm(x, r(np.float32(w.attn_norm)), eps, r))
    q, k, v = (
        see(f"self_attn.{n}_proj", times(h, a.reshape(-1, E), r).reshape(B, T, -1, D))
        for n, a in (("q", w.wq), ("k", w.wk), ("v", w.wv))
    )
    q = see("self_attn.q_rope", p.turn(q, angle, r))
    k = see("self_attn.k_rope", p.turn(k, angle, r))
    for store, y in zip(cache, (k, v)):
        store.append(p.stored(y.swapaxes(1, 2), first))
    k, v = (np.concatenate(store, 2) for store in cache)
    share = p.heads(H, K)
    scores = r(np.einsum("bthd,bhsd->bhts", q, k[:, share]) * np.float32(p.scale(c)))
    seen = p.seen(np.arange(first, end)[:, None], np.arange(k.shape[2]))
    scores = see("self_attn.scores", np.where(seen, scores, np.float32(-np.inf)))
    e = p.soft(scores)
    y = r(np.einsum("bhts,bhsd->bthd", r(e / e.sum(-1, keepdims=True)), v[:, share]))
    y = see("self_attn.attention", y).reshape(B, T, -1)
    y = see("self_attn.o_proj", times(y, w.wo.reshape(E, -1), r))
    x = see("post_attention", p.added(x, y, r))
    h = see("post_attention_layernorm", p.norm(x, r(np.float32(w.mlp_norm)), eps, r))
    gate = see("mlp.gate_proj", times(h, w.w_gate, r))
    up = see("mlp.up_proj", times(h, w.w_up, r))
    gate = see("mlp.act_fn", p.bend(gate, r))
    y = see("mlp.down_proj", times(p.mixed(gate, up, r), w.w_down, r))
    return see("output", p.added(x, y, r))


# ---- the faults ----------------------------------------------------------------------


def sets(**wrong):
    """An exchange of parts."""
    return lambda p: vars(p).update(wrong)


def reads(change):
    """An exchange of weights, in every block."""
    return sets(weights=lambda m: m._replace(layers=tuple(map(change, m.layers))))


def reads_one(change, i=1):
    """An exchange of weights in one block."""

    def weights(m):
        return m._replace(
            layers=tuple(change(w) if j == i else w for j, w in enumerate(m.layers))
        )

    return sets(weights=weights)


def shows(end, change):
    """Another tensor shown, and used, under names that end so."""
    return sets(seen_as=lambda name, x: change(x) if name.endswith(end) else x)


def neighbours(x, angle, r):
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = np.cos(angle), np.sin(angle)
    return r(np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape))


def with_rope(**numbers):
    def wrong(config, at):
        rope = Rope(**({"rope_theta": config.rope.rope_theta} | numbers))
        speed, _ = scaled_frequencies(rope, config.head_dim, "float32", 0, 512)
        return at[:, None, None].astype(np.float32) * speed

    return sets(angles=wrong)


def with_powers(powers):
    def wrong(config, at):
        D = config.head_dim
        w = config.rope.rope_theta ** -powers(np.arange(D // 2), D)
        return at[:, None, None] * np.float32(w)

    return sets(angles=wrong)


def placed(wrong):
    return sets(place=lambda first, end, prompt: wrong(np.arange(first, end), prompt))


def erf(x):
    return np.frompyfunc(math.erf, 1, 1)(x.astype(float)).astype(np.float32)


BENDS = {
    "gelu": lambda g: g * (1 + erf(g / math.sqrt(2))) / 2,
    "tanh gelu": lambda g: g * (1 + np.tanh(0.7978845608 * (g + 0.044715 * g**3))) / 2,
    "quick gelu": lambda g: g / (1 + np.exp(-1.702 * g)),
    "relu": lambda g: np.maximum(g, 0),
    "relu squared": lambda g: np.maximum(g, 0) ** 2,
    "sigmoid": lambda g: 1 / (1 + np.exp(-g)),
    "tanh": np.tanh,
    "no bend": lambda g: g,
    "softplus": lambda g: np.log1p(np.exp(g)),
    "leaky relu": lambda g: np.where(g > 0, g, 0.01 * g),
    "silu of half": lambda g: g / (1 + np.exp(-g / 2)),
}


def mean_square(x):
    return (x * x).mean(-1, keepdims=True)


NORMS = {
    "eps outside": (
        lambda x, g, e, r: r(r(x / (np.sqrt(mean_square(x)) + e)) * g),
        {"eps outside", "eps"},
    ),
    "l2 norm": (
        lambda x, g, e, r: r(x / np.sqrt((x * x).sum(-1, keepdims=True) + e) * g),
        {"l2 norm"},
    ),
    "layer norm": (
        lambda x, g, e, r: norm(x - x.mean(-1, keepdims=True), g, e, r),
        {"layer norm"},
    ),
    "variance": (
        lambda x, g, e, r: r(x / np.sqrt(x.var(-1, keepdims=True) + e) * g),
        set(),
    ),
    "no gain": (lambda x, g, e, r: norm(x, np.ones_like(g), e, r), {"no gain"}),
    "gain plus one": (lambda x, g, e, r: norm(x, 1 + g, e, r), {"gain plus one"}),
    "mean of one less": (
        lambda x, g, e, r: r(
            x / np.sqrt((x * x).sum(-1, keepdims=True) / (x.shape[-1] - 1) + e) * g
        ),
        {"scaled"},
    ),
    "mean absolute": (
        lambda x, g, e, r: r(x / (np.abs(x).mean(-1, keepdims=True) + e) * g),
        set(),
    ),
    "no norm": (lambda x, g, e, r: r(x * g), set()),
}


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


LOGITS = {
    "log-probabilities": (log_softmax, {"log-probabilities"}),
    "probabilities": (lambda z: np.exp(log_softmax(z)), {"probabilities"}),
    "ids up one": (lambda z: np.roll(z, 1, -1), {"shifted ids"}),
    "ids down one": (lambda z: np.roll(z, -1, -1), {"shifted ids"}),
    "ids up five": (lambda z: np.roll(z, 5, -1), {"other order"}),
    "ids reversed": (lambda z: z[..., ::-1], {"other order"}),
    "one position late": (
        lambda z: np.roll(z, 1, 1) if z.shape[1] > 1 else z,
        {"shifted positions"},
    ),
    "soft cap": (lambda z: 3 * np.tanh(z / 3), set()),
    "temperature": (lambda z: z / 0.7, {"scaled"}),
    "negated": (lambda z: -z, {"scaled"}),
    "last id unwritten": (
        lambda z: z * (np.arange(z.shape[-1]) < z.shape[-1] - 20),
        {"not written"},
    ),
}


def quantised(bits, group=None, levels=None):
    top = levels or 2 ** (bits - 1) - 1

    def change(w):
        def low(a, heads_last):
            m = a.reshape(len(a), -1) if heads_last else a.reshape(-1, a.shape[-1])
            g = m.reshape(len(m), -1, group or m.shape[-1])
            s = np.abs(g).max(-1, keepdims=True) / top
            return (np.round(g / s) * s).reshape(a.shape)

        names = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
        return w._replace(**{n: low(getattr(w, n), n == "wo") for n in names})

    return reads(change)


def transposed(word):
    def change(w):
        a = getattr(w, word)
        m = a.reshape(len(a), -1) if word == "wo" else a.reshape(-1, a.shape[-1])
        return w._replace(**{word: m.reshape(m.shape[::-1]).T.reshape(a.shape)})

    return reads_one(change)


def other(word, seed=9):
    def change(w):
        a = getattr(w, word)
        drawn = np.random.default_rng(seed).standard_normal(a.shape)
        return w._replace(
            **{word: (1 if a.ndim > 1 else 0.3) * drawn * a.std() + (a.ndim == 1)}
        )

    return reads_one(change)


def spoilt(word, index, number):
    def change(w):
        a = getattr(w, word).copy()
        a.reshape(-1)[index] = number
        return w._replace(**{word: a})

    return reads_one(change)


def first_zero(name, x):
    """Values of the first positions never written to the cache."""
    x = x.copy()
    x[:, :3] = 0
    return x


def visible(rule):
    return sets(seen=rule)


# What is wrong: the exchange, and the keys that may name it.
FAULTS = {
    "interleaved": (sets(turn=neighbours), {"interleaved"}),
    "no rotation": (sets(turn=lambda x, a, r: x), {"no rotation"}),
    "turned back": (sets(turn=lambda x, a, r: turn(x, -a, r)), set()),
    "queries not turned": (shows("q_rope", lambda x: x), set()),
    "no scaling": (with_rope(), {"rope scaling"}),
    "theta 1e4": (with_rope(rope_theta=1e4), {"rope theta", "rope scaling"}),
    "theta 1e6": (with_rope(rope_theta=1e6), {"rope theta", "rope scaling"}),
    "exponent D - 2": (with_powers(lambda i, D: 2 * i / (D - 2)), {"rope exponent"}),
    "exponent i / D": (with_powers(lambda i, D: i / D), {"rope exponent"}),
    "exponent i": (with_powers(lambda i, D: 2 * (i + 1) / D), set()),
    "position + 1": (placed(lambda at, prompt: at + 1), {"position"}),
    "position - 1": (placed(lambda at, prompt: at - 1), {"position"}),
    "position + 3": (placed(lambda at, prompt: at + 3), set()),
    "decode + 1": (
        placed(lambda at, prompt: at + (at >= prompt)),
        {"position in decode", "position"},
    ),
    "decode - 1": (
        placed(lambda at, prompt: at - (at >= prompt)),
        {"position in decode", "position"},
    ),
    "decode from 0": (
        placed(lambda at, prompt: np.where(at < prompt, at, at - prompt)),
        {"position restarts", "position"},
    ),
    "decode at 0": (
        placed(lambda at, prompt: np.where(at < prompt, at, 0)),
        {"position restarts", "position"},
    ),
    "tile": (sets(heads=lambda H, K: np.arange(H) % K), {"tile"}),
    "first head for all": (sets(heads=lambda H, K: np.zeros(H, int)), set()),
    "heads reversed": (
        sets(heads=lambda H, K: (np.arange(H) // (H // K))[::-1]),
        set(),
    ),
    "no scale": (sets(scale=lambda c: 1.0), {"scale"}),
    "1 / D": (sets(scale=lambda c: 1 / c.head_dim), {"scale twice"}),
    "1 / sqrt(E)": (
        sets(scale=lambda c: 1 / math.sqrt(c.hidden_size)),
        {"scale of width"},
    ),
    "1 / sqrt(D / 2)": (sets(scale=lambda c: math.sqrt(2 / c.head_dim)), {"scaled"}),
    "one later": (visible(lambda q, k: k <= q + 1), {"mask"}),
    "two later": (visible(lambda q, k: k <= q + 2), set()),
    "no mask": (visible(lambda q, k: k <= q + len(k)), {"no mask", "mask"}),
    "window 4": (visible(lambda q, k: (k <= q) & (k > q - 4)), {"window", "mask"}),
    "window 7": (visible(lambda q, k: (k <= q) & (k > q - 7)), {"hidden", "mask"}),
    "window 16": (visible(lambda q, k: (k <= q) & (k > q - 16)), {"window", "mask"}),
    "first key hidden": (
        visible(lambda q, k: (k <= q) & ((k > 0) | (q == 0))),
        {"hidden", "mask"},
    ),
    "fifth key hidden": (visible(lambda q, k: (k <= q) & (k != 5)), {"hidden", "mask"}),
    "prompt forgotten": (
        visible(lambda q, k: (k <= q) & ((q < 20) | (k >= 20))),
        {"hidden", "mask", "window"},
    ),
    "itself hidden": (visible(lambda q, k: (k < q) | (q == 0)), {"hidden", "mask"}),
    "softmax of base 2": (
        sets(soft=lambda s: np.exp2(s - s.max(-1, keepdims=True))),
        set(),
    ),
    "softmax plus one": (
        sets(soft=lambda s: np.exp(s - s.max(-1, keepdims=True)) * 0.9),
        set(),
    ),
    "values unwritten": (
        sets(
            stored=lambda x, first: (
                x if first else x * (np.arange(x.shape[2]) > 2)[:, None]
            )
        ),
        set(),
    ),
    "gate and up": (
        reads(lambda w: w._replace(w_gate=w.w_up, w_up=w.w_gate)),
        {"gate and up"},
    ),
    "gate and up in one": (
        reads_one(lambda w: w._replace(w_gate=w.w_up, w_up=w.w_gate)),
        {"gate and up"},
    ),
    "q and k swapped": (reads(lambda w: w), set()),
    "mlp norm of attn": (
        reads(lambda w: w._replace(mlp_norm=w.attn_norm)),
        {"other gain"},
    ),
    "gain of ones in one": (
        reads_one(lambda w: w._replace(mlp_norm=np.ones_like(w.mlp_norm))),
        {"no gain"},
    ),
    "attn gain of ones in one": (
        reads_one(lambda w: w._replace(attn_norm=np.ones_like(w.attn_norm))),
        {"no gain"},
    ),
    "bend after up": (sets(mixed=lambda g, u, r: r(g * u * u)), set()),
    "no up": (sets(mixed=lambda g, u, r: g), set()),
    "residual twice": (sets(added=lambda x, y, r: r(2 * x + y)), set()),
    "no residual": (sets(added=lambda x, y, r: y), {"swapped"}),
    "residual scaled": (sets(added=lambda x, y, r: r(x + y * np.float32(0.5))), set()),
    "embedding scaled": (sets(embedded=lambda x: x * np.float32(8)), {"scaled"}),
    "embedding times 1.02": (sets(embedded=lambda x: x * np.float32(1.02)), {"scaled"}),
    "head tied": (sets(head=lambda m: m.embed), {"head tied"}),
    "head random": (
        sets(
            head=lambda m: np.random.default_rng(3).standard_normal(m.lm_head.shape) / 8
        ),
        {"unlike", "head untied"},  # the latter where the config ties it
    ),
    "head transposed": (
        sets(head=lambda m: m.lm_head.reshape(m.lm_head.shape[::-1]).T),
        {"transposed", "unlike"},
    ),
    "int8 rows": (quantised(8), {"quantised"}),
    "int4 rows": (quantised(4), {"quantised"}),
    "int4 levels 8": (quantised(4, levels=8), set()),
    "truncated": (sets(round=cut), {"truncated", "narrow"}),
    "bfloat16 in float32": (
        sets(round=rounding("bfloat16", None)),
        {"narrow", "truncated"},
    ),
    "float16 in float32": (sets(round=rounding("float16", None)), {"narrow"}),
    "nan weight": (spoilt("w_up", 70, np.nan), {"not finite"}),
    "inf weight": (spoilt("wo", 11, np.inf), {"not finite"}),
    "nan value": (
        shows(
            "layers.1.self_attn.v_proj",
            lambda x: np.where(np.arange(x.shape[-1]) == 3, np.nan, x),
        ),
        {"not finite"},
    ),
    "overflow": (
        shows("layers.1.mlp.gate_proj", lambda x: np.where(np.abs(x) > 1.5, np.inf, x)),
        {"not finite"},
    ),
    "down times 1.1": (
        shows("layers.1.mlp.down_proj", lambda x: x * np.float32(1.1)),
        {"scaled"},
    ),
    "output times 1.1": (
        shows("layers.0.output", lambda x: x * np.float32(1.1)),
        {"scaled"},
    ),
    "positions unwritten": (
        shows(
            "layers.1.self_attn.o_proj",
            lambda x: x * (np.arange(x.shape[1]) != 3)[:, None],
        ),
        {"not written"},
    ),
    "head unwritten": (
        shows(
            "layers.1.self_attn.attention",
            lambda x: x * (np.arange(x.shape[2]) != 1)[:, None],
        ),
        {"not written"},
    ),
    "q heads permuted": (
        shows("layers.1.self_attn.q_proj", lambda x: x[:, :, ::-1]),
        {"other order"},
    ),
    "coordinates reversed": (
        shows("layers.1.mlp.up_proj", lambda x: x[..., ::-1]),
        {"other order"},
    ),
    "noise in one": (
        shows(
            "layers.1.mlp.down_proj",
            lambda x: (
                x
                + np.float32(0.1)
                * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
            ),
        ),
        set(),
    ),
    "constant added": (
        shows("layers.1.self_attn.q_proj", lambda x: x + np.float32(0.3)),
        set(),
    ),
    "a bias forgotten": (
        shows(
            "layers.0.mlp.up_proj",
            lambda x: (
                x + np.float32(0.1) * np.arange(x.shape[-1], dtype=np.float32) / 100
            ),
        ),
        set(),
    ),
}
FAULTS |= {
    f"bend: {n}": (sets(bend=lambda g, r, f=f: r(np.float32(f(g)))), {"activation"})
    for n, f in BENDS.items()
}
FAULTS |= {f"norm: {n}": (sets(norm=f), keys) for n, (f, keys) in NORMS.items()}
FAULTS |= {
    f"eps {e:g}": (sets(eps=lambda c, e=e: e), {"eps"})
    for e in (1e-6, 1e-4, 1e-3, 0.0, 3e-5)
}
FAULTS |= {f"logits: {n}": (sets(logits=f), keys) for n, (f, keys) in LOGITS.items()}
FAULTS |= {
    f"transposed {w}": (transposed(w), {"transposed", "unlike"})
    for w in ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
}
FAULTS |= {
    f"other {w}": (other(w), {"unlike"}) for w in ("wq", "wv", "wo", "w_up", "w_down")
}
# Drawn around 1: where a model's gains vary little, as good as none.
FAULTS |= {
    f"other {w}": (other(w), {"other gain", "no gain"})
    for w in ("attn_norm", "mlp_norm")
}
for same in ("queries not turned", "q and k swapped", "softmax plus one"):
    del FAULTS[same]  # right after all: exchanges that change nothing

# What a candidate may show: all, what forward hooks see, residual streams, logits.
HOOKS = ("layernorm", "_proj", "model.norm", "lm_head", "embed_tokens", "output")
VIEWS = {
    "all": "",
    "hooks": HOOKS,
    "outputs": ("output", "lm_head"),
    "logits": ("lm_head",),
}
# Products of weights with which an activation has nothing to do.
BLAMELESS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")


def is_true(fault, keys, scene, finding):
    """Whether what a report says of a tensor is true: a key of the fault, or nothing.

    It is true as well that the error came with the inputs, of a product of right weights
    after another activation.
    """
    if finding is None or finding.fault in keys:
        return True
    blameless = fault.startswith("bend: ") and scene.row.name.endswith(BLAMELESS)
    return blameless and finding.fault == "inputs"
