"""What the properties are drawn from.

Hypothesis draws sizes and a seed, and the seed fills the arrays: shapes are what
shrinks usefully, and drawing every element costs several times as much.  Nothing
is trivial on purpose: gains are not ones, biases not zeros, heads come in several
groups, positions start anywhere.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from npllama.config import ROPE_TYPES, Config, Rope, check
from npllama.weights import Model, assemble, tensor_shapes

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "float64"])


def normal(seed, *shape, dtype="float64"):
    """Independent standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- models -----------------------------------------------------------------


@st.composite
def ropes(draw, rope_types=ROPE_TYPES, D=4):
    """Any way to encode positions, trained on 8 ... 4,096 of them."""
    kind = draw(st.sampled_from(rope_types))
    theta = draw(st.sampled_from([100.0, 10000.0, 500000.0]))
    factor = draw(st.sampled_from([1.5, 4.0, 32.0]))
    trained = draw(st.sampled_from([8, 64, 4096]))
    maybe = st.none() | st.sampled_from([0.5, 1.0, 1.25])
    if kind == "default":
        return Rope(kind, theta)
    if kind in ("linear", "dynamic"):
        return Rope(kind, theta, factor)
    if kind == "longrope":
        slower = st.lists(st.floats(1, 8), min_size=D // 2, max_size=D // 2).map(tuple)
        factors = {"short_factor": draw(slower), "long_factor": draw(slower)}
        return Rope(
            kind, theta, factor, trained, attention_factor=draw(maybe), **factors
        )
    if kind == "llama3":
        high = draw(st.sampled_from([2.0, 4.0]))
        return Rope(kind, theta, factor, trained, 1.0, high)
    fast, slow = draw(st.sampled_from([(None, None), (32.0, 1.0), (4.0, 0.5)]))
    scales = [draw(maybe), draw(maybe), draw(maybe)]
    return Rope(
        *(kind, theta, factor, trained, None, None, scales[0], fast, slow, *scales[1:]),
        truncate=draw(st.booleans()),
    )


# Longer than any text of the tests.
LONG = st.just(128)


@st.composite
def configs(draw, rope_types=ROPE_TYPES, trained=LONG):
    """A small LLaMA; its width E is any number, not only H * D.

    `trained` is ``max_position_embeddings``, where `dynamic` and `longrope` begin to
    stretch.
    """
    K, G = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    D, positions = draw(st.sampled_from([4, 6, 8])), draw(trained)
    rope = draw(ropes(rope_types, D))
    if rope.rope_type == "longrope":
        rope = replace(rope, original_max_position_embeddings=positions)
    return check(
        Config(
            vocab_size=draw(st.integers(2, 13)),
            hidden_size=draw(st.integers(1, 9)),
            intermediate_size=draw(st.integers(1, 11)),
            num_hidden_layers=draw(st.integers(1, 2)),
            num_attention_heads=K * G,
            num_key_value_heads=K,
            head_dim=D,
            max_position_embeddings=positions,
            rms_norm_eps=draw(st.sampled_from([1e-5, 0.1])),
            rope=rope,
            tie_word_embeddings=draw(st.booleans()),
            attention_bias=draw(st.booleans()),
            mlp_bias=draw(st.booleans()),
        )
    )


# Sizes pairwise different, so that no swapped axis fits by luck.
DISTINCT = Config(
    vocab_size=13,
    hidden_size=7,
    intermediate_size=11,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=4,
    attention_bias=True,
    mlp_bias=True,
)


def random_model(config: Config, seed: int, dtype: str = "float32") -> Model:
    """Random weights, of the size at which activations keep their scale."""
    rng = np.random.default_rng(seed)

    def tensor(name: str, shape: tuple) -> np.ndarray:
        values = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1 + values / 3
        elif len(shape) == 2 and "embed" not in name:
            values = 1.5 * values / np.sqrt(shape[1])
        return values.astype(np.float32).astype(dtype)

    shapes = tensor_shapes(config).items()
    return assemble(config, {name: tensor(name, shape) for name, shape in shapes})


def token_ids(config: Config, seed: int, *shape: int) -> np.ndarray:
    """Random tokens of the vocabulary."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


def chunkings(T: int):
    """Every way to cut T positions into pieces that are not empty."""
    cuts = st.lists(st.booleans(), min_size=T - 1, max_size=T - 1)

    def lengths(cut: list) -> list[int]:
        ends = [i + 1 for i, c in enumerate(cut) if c]
        return np.diff([0, *ends, T]).tolist()

    return cuts.map(lengths)


# ---- attention --------------------------------------------------------------


class AttentionCase(NamedTuple):
    """Arguments of `attention.blocked`."""

    q: np.ndarray  # (B, T, H, D)
    k: np.ndarray  # (B, K, N, D)
    v: np.ndarray  # (B, K, N, D)
    start: np.ndarray  # (B,)
    query_block: int
    key_block: int | None
    head_block: int | None


@st.composite
def attention_cases(draw, dtype=None):
    """Any shape, group size, start positions (equal or not) and block sizes.

    A row may end within the T positions, as a padded one does when it fills the
    cache.
    """
    B, T, D = (draw(st.integers(1, n)) for n in (3, 7, 5))
    K, G = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    starts = st.lists(st.integers(0, 9), min_size=B, max_size=B)
    starts = st.integers(0, 9).map(lambda n: [n] * B) | starts
    start = np.array(draw(starts), dtype=np.int64)
    N = int(start.max()) + draw(st.integers(1, T + 2))
    dtype = dtype or draw(dtypes)
    seed = draw(seeds)
    q = normal([seed, 0], B, T, K * G, D, dtype=dtype)
    k = normal([seed, 1], B, K, N, D, dtype=dtype)
    v = normal([seed, 2], B, K, N, D, dtype=dtype)
    blocks = (draw(st.integers(1, n)) for n in (8, 8, 3))
    return AttentionCase(q, k, v, start, *blocks)


# ---- products ---------------------------------------------------------------


class Product(NamedTuple):
    """Arguments of `ops.einsum`, and the size of every letter."""

    equation: str
    a: np.ndarray
    b: np.ndarray
    sizes: dict[str, int]


@st.composite
def products(draw, dtype=None):
    """Any equation of up to six letters, on operands that fit it."""
    letters = "BHSTDE"[: draw(st.integers(1, 6))]
    kinds = [draw(st.sampled_from(["batch", "summed", "row", "column"]))
             for _ in letters]  # fmt: skip

    def word(*allowed: str) -> str:
        found = [c for c, kind in zip(letters, kinds) if kind in allowed]
        return "".join(draw(st.permutations(found)))

    a, b = word("batch", "summed", "row"), word("batch", "summed", "column")
    equation = f"{a},{b}->{word('batch', 'row', 'column')}"
    sizes = {c: draw(st.integers(1, 4)) for c in letters}
    seed, dtype = draw(seeds), dtype or draw(dtypes)
    left = normal([seed, 0], *(sizes[c] for c in a), dtype=dtype)
    right = normal([seed, 1], *(sizes[c] for c in b), dtype=dtype)
    return Product(equation, left, right, sizes)
