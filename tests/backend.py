"""Somebody else's LLaMA, right or with one fault: a candidate for the comparison.

Written apart from the package: one pass over all positions, plain NumPy, every result
rounded.  `fault` names what is wrong with it.
"""

import numpy as np

from npllama.config import Config, Rope
from npllama.rope import scaled_frequencies
from npllama.weights import Model, assemble, tensor_shapes

SCALED = Rope("llama3", 5e5, 8.0, 16, 1.0, 4.0)


def random_model(seed, tied=False, rope=SCALED, **sizes) -> Model:
    """A small model in float64 with gains that are not one."""
    sizes = dict(V=160, E=64, F=112, L=2, H=4, K=2, D=16) | sizes
    V, E, F, L, H, K, D = (sizes[letter] for letter in "VEFLHKD")
    config = Config(V, E, F, L, H, K, D, 512, 1e-5, rope, tied)
    rng = np.random.default_rng(seed)

    def tensor(name, shape):
        if len(shape) == 1:
            return 1 + 0.3 * rng.standard_normal(shape)
        std = 0.03 if "embed" in name else 1 / np.sqrt(shape[-1])
        return std * rng.standard_normal(shape)

    shapes = tensor_shapes(config)
    tensors = {n: np.float64(np.float32(tensor(n, s))) for n, s in shapes.items()}
    return assemble(config, tensors)


def cut(x):
    """float32 without its lower half."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def rounding(dtype, fault):
    if fault == "truncated":
        return cut
    if dtype == "bfloat16":
        import ml_dtypes

        return lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)
    return lambda x: np.asarray(x).astype(dtype).astype(np.float32)


def backend(model, tokens, prompt, dtype="float32", fault=None, layer=1):
    """Every tensor of a run, by its name in a trace.

    `layer` is where a wrong weight stands.
    """
    c, r = model.config, rounding(dtype, fault)
    H, K, D = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    B, S = tokens.shape
    eps = 1e-6 if fault == "eps" else c.rms_norm_eps
    rope = Rope(rope_theta=c.rope.rope_theta) if fault == "rope scaling" else c.rope
    speed, _ = scaled_frequencies(rope, D, "float32", 0, 512)
    where = np.arange(S) + (fault == "position")
    angle = where[:, None, None].astype(np.float32) * speed
    cos, sin = r(np.cos(angle)), r(np.sin(angle))
    found = {}

    def norm(x, gain):
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps))
        return r(r(x) * r(gain))

    def turn(x):
        pairs = (x[..., 0::2], x[..., 1::2]) if fault == "interleaved" else None
        a, b = pairs or np.split(x, 2, -1)
        left, right = r(r(a * cos) - r(b * sin)), r(r(b * cos) + r(a * sin))
        if pairs:
            return np.stack([left, right], -1).reshape(x.shape)
        return np.concatenate([left, right], -1)

    def times(x, w, name=""):
        w = r(w)
        if fault == f"transposed {name}":
            w = w.reshape(w.shape[::-1]).T
        return r(x @ w.T)

    def put(module, x, axis=1):
        names = ["prefill", *(f"decode.{i}" for i in range(S - prompt))]
        ends = [0, *range(prompt, S + 1)]
        for name, a, b in zip(names, ends, ends[1:]):
            found[f"{name}/{module}"] = x[:, a:b]
        return x

    x = put("model.embed_tokens", r(model.embed)[tokens])
    for i, w in enumerate(model.layers):
        here, at = i == layer, f"model.layers.{i}."
        gains = [w.attn_norm, w.mlp_norm]
        if fault == "no gain" and here:
            gains[1] = np.ones_like(gains[1])
        h = put(at + "input_layernorm", norm(x, gains[0]))
        E = h.shape[-1]
        q = times(h, w.wq.reshape(-1, E)).reshape(B, S, H, D)
        k = times(h, w.wk.reshape(-1, E)).reshape(B, S, K, D)
        v = times(h, w.wv.reshape(-1, E)).reshape(B, S, K, D)
        for name, y in (("q", q), ("k", k), ("v", v)):
            put(f"{at}self_attn.{name}_proj", y.reshape(B, S, -1))  # heads folded
        q, k = turn(q), turn(k)
        put(at + "self_attn.q_rope", q), put(at + "self_attn.k_rope", k)
        kv = np.arange(H) % K if fault == "tile" else np.arange(H) // (H // K)
        scores = r(np.einsum("bthd,bshd->bhts", q, k[:, :, kv]))
        if fault != "scale":
            scores = r(scores / np.float32(np.sqrt(D)))
        # What comes after a step is not there yet.
        ends = np.maximum(np.arange(1, S + 1), prompt)[:, None] - 1
        reach = np.minimum(np.arange(S)[:, None] + (fault == "mask"), ends)
        scores = np.where(np.arange(S) > reach, -np.inf, scores)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p = r(p / p.sum(-1, keepdims=True))
        y = r(np.einsum("bhts,bshd->bthd", p, v[:, :, kv])).reshape(B, S, -1)
        put(at + "self_attn.attention", y)
        wo = w.wo.reshape(E, -1)
        y = put(at + "self_attn.o_proj", times(y, wo, "o_proj" if here else "-"))
        x = put(at + "post_attention", r(x + y))
        h = put(at + "post_attention_layernorm", norm(x, gains[1]))
        gate, up = w.w_gate, w.w_up
        if fault == "gate and up":
            gate, up = up, gate
        gate = put(at + "mlp.gate_proj", times(h, gate, "gate_proj" if here else "-"))
        up = put(at + "mlp.up_proj", times(h, up))
        y = put(at + "mlp.act_fn", r(gate / (1 + np.exp(-gate))))
        y = put(at + "mlp.down_proj", times(r(y * up), w.w_down))
        x = put(at + "output", r(x + y))
    h = put("model.norm", norm(x, model.norm))
    head = model.lm_head
    if fault == "head tied":
        head = model.embed
    if fault == "head untied":
        head = np.random.default_rng(10**6).standard_normal(head.shape) / 8
    put("lm_head", times(h, head))
    return found | {"tokens": tokens}
