"""Part I once more, in plain loops.

Nothing here is fast and nothing is clever: one number at a time, in the order of
the formula, in float64 (Python's floats), without broadcasting, blocks or a cache.
An array is a nested list; a text is one row, computed from its first token.  What
the package computes must agree with this up to rounding.
"""

import math
from itertools import product as every

from npllama.config import Config, Rope
from npllama.weights import Layer, Model

# ---- products ---------------------------------------------------------------


def dot(a, b):
    """Sum of the products of two equally long lists."""
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


def plus(a, b):
    """Coordinate by coordinate."""
    return [a[i] + b[i] for i in range(len(a))]


def linear(matrix, x, bias=None):
    """One dot product per row of the matrix, and its bias."""
    y = [dot(row, x) for row in matrix]
    return y if bias is None else plus(y, bias)


def contract(equation, a, b, sizes):
    """The product that an equation names; a dictionary from index to number.

    For every value of every letter, one multiplication and one addition.
    """
    left, right, out = equation.replace("->", ",").split(",")
    y: dict[tuple, float] = {}
    letters = list(sizes)
    for values in every(*(range(sizes[c]) for c in letters)):
        at = dict(zip(letters, values))
        index = tuple(at[c] for c in out)
        number = a[tuple(at[c] for c in left)] * b[tuple(at[c] for c in right)]
        y[index] = y.get(index, 0.0) + float(number)
    return y


# ---- norm, SwiGLU -----------------------------------------------------------


def rms_norm(x, gain, eps):
    """One vector, divided by its root mean square, times the gain."""
    rms = math.sqrt(dot(x, x) / len(x) + eps)
    return [x[i] / rms * gain[i] for i in range(len(x))]


def silu(x):
    """A number times its sigmoid."""
    return x / (1 + math.exp(-x)) if x > -700 else 0.0


def relu(x):
    """The larger of a number and 0."""
    return x if x > 0 else 0.0


def gelu(x):
    """A number times the normal distribution up to it."""
    return x * math.erfc(-x / math.sqrt(2)) / 2


def tanh_gelu(x):
    """GPT-2's approximation."""
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


BENDS = {"silu": silu, "relu": relu, "gelu": gelu, "gelu_pytorch_tanh": tanh_gelu}


def feed_forward(x, layer: Layer, bend=silu):
    """SwiGLU of one vector."""
    gate = linear(layer.w_gate, x, layer.b_gate)
    up = linear(layer.w_up, x, layer.b_up)
    hidden = [bend(gate[f]) * up[f] for f in range(len(up))]
    return linear(layer.w_down, hidden, layer.b_down)


# ---- rope -------------------------------------------------------------------


def frequency(i, theta, D):
    """Radians per position of pair i."""
    return 1 / theta ** (2 * i / D)


def llama3_frequency(i, rope: Rope, D):
    """Three cases: the fast hands, the slow hands, and those between."""
    w = frequency(i, rope.rope_theta, D)
    wavelength = 2 * math.pi / w
    trained = rope.original_max_position_embeddings
    if wavelength < trained / rope.high_freq_factor:
        return w
    if wavelength > trained / rope.low_freq_factor:
        return w / rope.factor
    smooth = trained / wavelength - rope.low_freq_factor
    smooth /= rope.high_freq_factor - rope.low_freq_factor
    return (1 - smooth) * w / rope.factor + smooth * w


def yarn_frequency(i, rope: Rope, D):
    """Pairs before `low` are left alone, pairs after `high` slowed, a ramp between."""
    trained = rope.original_max_position_embeddings
    ends = []
    for turns in (rope.beta_fast or 32, rope.beta_slow or 1):
        pair = D * math.log(trained / (turns * 2 * math.pi))
        ends.append(pair / (2 * math.log(rope.rope_theta)))
    low, high = ends
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    if low == high:
        high += 0.001
    ramp = min(max((i - low) / (high - low), 0), 1)
    w = frequency(i, rope.rope_theta, D)
    return (1 - ramp) * w + ramp * w / rope.factor


def yarn_attention_factor(rope: Rope):
    """What YaRN multiplies cosines and sines by."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    above, below = 1.0, 0.0
    if rope.mscale and rope.mscale_all_dim:
        above, below = rope.mscale, rope.mscale_all_dim
    if rope.factor <= 1:
        return 1.0
    growth = 0.1 * math.log(rope.factor)
    return (above * growth + 1) / (below * growth + 1)


def longrope_attention_factor(rope: Rope):
    """How much longrope lengthens queries and keys."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1:
        return 1.0
    trained = rope.original_max_position_embeddings
    return math.sqrt(1 + math.log(rope.factor) / math.log(trained))


def rope_frequency(config: Config, i, seen):
    """Radians per position of pair i in a text of `seen` positions."""
    rope, D, trained = config.rope, config.head_dim, config.max_position_embeddings
    if rope.rope_type == "linear":
        return frequency(i, rope.rope_theta, D) / rope.factor
    if rope.rope_type == "dynamic" and seen > trained:
        stretch = rope.factor * seen / trained - (rope.factor - 1)
        return frequency(i, rope.rope_theta * stretch ** (D / (D - 2)), D)
    if rope.rope_type == "llama3":
        return llama3_frequency(i, rope, D)
    if rope.rope_type == "yarn":
        return yarn_frequency(i, rope, D)
    if rope.rope_type == "longrope":
        long = seen > rope.original_max_position_embeddings
        factors = rope.long_factor if long else rope.short_factor
        return frequency(i, rope.rope_theta, D) / factors[i]
    return frequency(i, rope.rope_theta, D)


def rotate(x, position, config: Config, seen):
    """One head, every pair (i, i + D/2) turned by the position's angle."""
    half = config.head_dim // 2
    rope, factor = config.rope, 1.0
    if rope.rope_type == "yarn":
        factor = yarn_attention_factor(rope)
    if rope.rope_type == "longrope":
        factor = longrope_attention_factor(rope)
    y = [0.0] * len(x)
    for i in range(half):
        angle = position * rope_frequency(config, i, seen)
        cos, sin = math.cos(angle) * factor, math.sin(angle) * factor
        y[i] = x[i] * cos - x[i + half] * sin
        y[i + half] = x[i + half] * cos + x[i] * sin
    return y


# ---- attention --------------------------------------------------------------


def softmax(scores):
    """Exponentials divided by their sum."""
    peak = max(scores)
    e = [math.exp(score - peak) for score in scores]
    return [number / sum(e) for number in e]


def attend(q, keys, values):
    """One query of one head over the keys that it may see."""
    D = len(q)
    p = softmax([dot(q, key) / math.sqrt(D) for key in keys])
    return [dot(p, [value[d] for value in values]) for d in range(D)]


def causal_attention(q, k, v, start):
    """One row: q is [T][H][D], k and v are [K][N][D]."""
    y = []
    for t in range(len(q)):
        seen = start + t + 1
        heads = []
        for h in range(len(q[t])):
            shared = h // (len(q[t]) // len(k))
            heads.append(attend(q[t][h], k[shared][:seen], v[shared][:seen]))
        y.append(heads)
    return y


# ---- the model --------------------------------------------------------------


def heads_of(matrices, biases, x):
    """The projection of one vector for every head."""
    some = biases is not None
    return [
        linear(matrices[h], x, biases[h] if some else None)
        for h in range(len(matrices))
    ]


def attention(xs, layer: Layer, config: Config):
    """The attention half of a block on a whole text: [T][E] to [T][E]."""
    T = len(xs)
    q = [heads_of(layer.wq, layer.bq, x) for x in xs]
    k = [heads_of(layer.wk, layer.bk, x) for x in xs]
    v = [heads_of(layer.wv, layer.bv, x) for x in xs]
    q = [[rotate(head, t, config, T) for head in q[t]] for t in range(T)]
    k = [[rotate(head, t, config, T) for head in k[t]] for t in range(T)]
    by_head = [[[row[h] for row in each] for h in range(len(k[0]))] for each in (k, v)]
    out = []
    for heads in causal_attention(q, *by_head, 0):
        merged = [number for head in heads for number in head]
        wo = [[number for head in row for number in head] for row in layer.wo]
        out.append(linear(wo, merged, layer.bo))
    return out


def forward(model: Model, tokens):
    """Logits [T][V] of one text, given as a list of tokens."""
    eps, bend = model.config.rms_norm_eps, BENDS[model.config.hidden_act]
    x = [model.embed[token].tolist() for token in tokens]
    for arrays in model.layers:
        layer = Layer(*(None if w is None else w.tolist() for w in arrays))
        normed = [rms_norm(one, layer.attn_norm, eps) for one in x]
        mixed = attention(normed, layer, model.config)
        x = [plus(x[t], mixed[t]) for t in range(len(x))]
        normed = [rms_norm(one, layer.mlp_norm, eps) for one in x]
        x = [plus(x[t], feed_forward(normed[t], layer, bend)) for t in range(len(x))]
    lm_head, gain = model.lm_head.tolist(), model.norm.tolist()
    return [linear(lm_head, rms_norm(one, gain, eps)) for one in x]
