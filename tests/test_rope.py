"""Chapter 5: rotary positions."""

from dataclasses import replace

import numpy as np
import spec
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, dtypes, normal, ropes, seeds
from tolerances import assert_close, assert_same

from npllama.config import ROPE_TYPES, Rope
from npllama.rope import (
    frequencies,
    halves_order,
    llama3_frequencies,
    rope_tables,
    rotate,
    rotate_neighbours,
    scaled_frequencies,
)

heads = st.sampled_from([2, 4, 6, 64])
positions = st.integers(0, 10_000)
# A table is as exact as the angle, and that is as large as the position.
FAR = 20_000
UNCHANGED_WITHIN = st.just(2 * FAR)  # `dynamic` then never stretches
UNSCALED = [kind for kind in ROPE_TYPES if kind not in ("yarn", "longrope")]


def turned(x, config, *at):
    """The rows of x as they are at the given positions: (T, D) in and out."""
    tables = rope_tables(config, np.array([at]), x.dtype.name)
    return rotate(x[None, :, None], *tables)[0, :, 0]


# ---- laws -------------------------------------------------------------------


@given(configs(trained=UNCHANGED_WITHIN), positions, positions, positions, seeds)
def test_rope_scores_depend_only_on_distance(config, m, n, shift, seed):
    # Not true of `dynamic` beyond the trained length: its speeds change as the
    # text grows, and keys in the cache keep the old ones.
    q, k = normal(seed, 2, 1, config.head_dim)
    here = turned(q, config, m) @ turned(k, config, n).T
    there = turned(q, config, m + shift) @ turned(k, config, n + shift).T
    assert_close(there, here, FAR, scale=10)


@given(configs(UNSCALED), positions, seeds)
def test_turning_keeps_the_length_of_every_pair(config, position, seed):
    x = normal(seed, 1, config.head_dim)
    half = config.head_dim // 2
    y = turned(x, config, position)
    before, after = (np.hypot(z[:, :half], z[:, half:]) for z in (x, y))
    assert_close(after, before, 1)


@given(configs(UNSCALED), seeds, dtypes)
def test_position_zero_is_not_turned(config, seed, dtype):
    x = normal(seed, 1, config.head_dim, dtype=dtype)
    assert_same(turned(x, config, 0), x)


@given(configs(UNSCALED, UNCHANGED_WITHIN), positions, positions, seeds)
def test_turning_twice_is_turning_by_the_sum(config, m, n, seed):
    x = normal(seed, 1, config.head_dim)
    twice = turned(turned(x, config, m), config, n)
    assert_close(twice, turned(x, config, m + n), FAR)


@given(st.integers(1, 3), st.integers(1, 3), heads, seeds, dtypes)
def test_halves_equal_the_complex_form_under_the_permutation(T, H, D, seed, dtype):
    config = replace(DISTINCT, head_dim=D)
    x = normal(seed, 1, T, H, D, dtype=dtype)
    tables = rope_tables(config, 1000 + np.arange(T)[None], dtype)
    order = halves_order(D)
    neighbours = rotate_neighbours(x, *tables)
    halves = rotate(x[..., order], *tables)
    assert neighbours.dtype == dtype
    assert_close(halves, neighbours[..., order], 1)


@given(heads)
def test_halves_order_is_a_permutation_that_keeps_pairs_together(D):
    order = halves_order(D)
    assert sorted(order) == list(range(D))
    first, second = order[: D // 2], order[D // 2 :]
    assert (first == 2 * np.arange(D // 2)).all() and (second == first + 1).all()


@given(ropes(["llama3"]), heads, dtypes)
def test_llama3_scaling_is_monotone_and_leaves_short_wavelengths_alone(rope, D, dtype):
    w = frequencies(rope.rope_theta, D, dtype)
    scaled = llama3_frequencies(rope, D, dtype)
    slack = 1 + 4 * np.finfo(dtype).eps
    assert (scaled[1:] <= scaled[:-1] * slack).all()
    assert (scaled <= w * slack).all() and (scaled * slack >= w / rope.factor).all()
    turns = rope.original_max_position_embeddings * w / (2 * np.pi)
    assert_same(
        scaled[turns >= rope.high_freq_factor], w[turns >= rope.high_freq_factor]
    )
    slow = turns <= rope.low_freq_factor
    assert_close(scaled[slow], w[slow] / rope.factor, 1)


@given(st.sampled_from([1.5, 4.0, 32.0]), positions, seeds)
def test_linear_scaling_divides_the_position(factor, position, seed):
    x = normal(seed, 1, 6)
    config = replace(DISTINCT, head_dim=6)
    linear = replace(config, rope=Rope("linear", factor=2.0))
    assert_close(turned(x, linear, 2 * position), turned(x, config, position), FAR)


@given(st.integers(0, 127), dtypes)
def test_dynamic_scaling_begins_after_the_trained_length(last, dtype):
    plain = replace(DISTINCT, max_position_embeddings=128)
    dynamic = replace(plain, rope=Rope("dynamic", factor=4.0))
    at = np.array([[last]])
    for one, other in zip(
        rope_tables(plain, at, dtype), rope_tables(dynamic, at, dtype)
    ):
        assert_same(one, other)
    at = np.array([[last + 128]])
    sines = (rope_tables(c, at, dtype)[1] for c in (plain, dynamic))
    assert not np.array_equal(*sines)


@given(st.integers(0, 63), dtypes)
def test_longrope_takes_its_long_factors_after_the_trained_length(last, dtype):
    slower = {"short_factor": (1.0, 2.0), "long_factor": (4.0, 8.0)}
    longrope = Rope("longrope", 1e4, 1.0, 64, **slower)
    config = replace(DISTINCT, head_dim=4, rope=longrope)
    w = frequencies(1e4, 4, dtype)
    for S, factors in ((last + 1, (1, 2)), (last + 65, (4, 8))):
        found, factor = scaled_frequencies(longrope, 4, dtype, S, 128)
        np.testing.assert_allclose(found, w / factors, rtol=4 * np.finfo(dtype).eps)
        assert factor == 1.0
        cos, _ = rope_tables(config, np.array([[S - 1]]), dtype)
        assert_same(cos[0, 0], np.cos(np.array(S - 1, dtype) * found))


@given(configs(), positions, st.integers(1, 5), dtypes)
def test_rows_of_a_batch_get_the_tables_they_would_get_alone(config, start, T, dtype):
    at = np.array([[start + 3], [start], [start // 2]]) + np.arange(T)
    together = rope_tables(config, at, dtype)
    for b in range(3):
        alone = rope_tables(config, at[b : b + 1], dtype)
        assert_same(together[0][b], alone[0][0])
        assert_same(together[1][b], alone[1][0])


def test_float32_frequencies_are_the_float64_ones_rounded_as_torch_does():
    # Powers rounded before they are inverted: the last bit is torch's.
    exponent = np.arange(0, 64, 2, dtype=np.float32) / np.float32(64)
    rounded = (500000.0 ** exponent.astype(np.float64)).astype(np.float32)
    assert_same(frequencies(500000.0, 64, "float32"), np.float32(1) / rounded)


# ---- spec -------------------------------------------------------------------


trained = st.sampled_from([16, 4096])
FRACTIONAL = Rope("yarn", 10000.0, 4.0, 4096, truncate=False)
MSCALE = Rope("yarn", 10000.0, 4.0, 4096, mscale=0.75, mscale_all_dim=1.25)


@given(configs(trained=trained), st.sampled_from([1, 30, 5000, 131072]), dtypes)
@example(replace(DISTINCT, head_dim=64, rope=FRACTIONAL), 30, "float64")
@example(replace(DISTINCT, head_dim=64, rope=MSCALE), 30, "float64")
def test_frequencies_equal_the_spec(config, seen, dtype):
    D = config.head_dim
    longest = config.max_position_embeddings
    w, factor = scaled_frequencies(config.rope, D, dtype, seen, longest)
    expected = [spec.rope_frequency(config, i, seen) for i in range(D // 2)]
    assert w.dtype == dtype
    # The exponent is rounded, and with it the logarithm of the power, up to 14.
    np.testing.assert_allclose(w, expected, rtol=32 * np.finfo(dtype).eps)
    factors = {"yarn": spec.yarn_attention_factor}
    factors |= {"longrope": spec.longrope_attention_factor}
    own = factors.get(config.rope.rope_type, lambda rope: 1.0)
    assert factor == own(config.rope)


@given(configs(trained=trained), st.integers(0, 9000), st.integers(1, 4), seeds, dtypes)
def test_rotate_equals_the_spec(config, start, T, seed, dtype):
    x = normal(seed, T, config.head_dim, dtype=dtype)
    at = range(start, start + T)
    y = turned(x, config, *at)
    expected = [
        spec.rotate(one, t, config, start + T) for t, one in zip(at, x.tolist())
    ]
    assert y.dtype == dtype
    assert_close(y, expected, 1 + 4 * (start + T))
