"""Chapter 7: attention, in loops, as the dense formula, and in blocks."""

import math
from dataclasses import replace

import numpy as np
import spec
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import (
    DISTINCT,
    AttentionCase,
    attention_cases,
    configs,
    dtypes,
    normal,
    random_model,
    seeds,
)
from tolerances import assert_close, assert_same

from npllama.attention import (
    LARGE,
    attention,
    blocked,
    default_blocks,
    dense,
    naive,
    none_is_large,
    softmax,
)
from npllama.cache import new_cache
from npllama.rope import rope_tables
from npllama.weights import Layer


def terms(case):
    """Length of the sums: D in a score, as many positions in the average."""
    return case.q.shape[-1] + case.k.shape[2]


def row(case, b):
    """The case of one row alone."""
    arrays = (array[b : b + 1] for array in case[:4])
    return AttentionCase(*arrays, *case[4:])


def in_blocks(case):
    return blocked(*case)


def in_loops(case):
    return naive(*case[:4])


def densely(case):
    return dense(*case[:4])


paths = st.sampled_from([in_loops, in_blocks, densely])
# The dense formula multiplies what it masks by zero, and 0 * nan is nan.
safe_paths = st.sampled_from([in_loops, in_blocks])


def real(case):
    """Which queries have a place in the cache; the rest are padding."""
    T, N = case.q.shape[1], case.k.shape[2]
    return case.start[:, None] + np.arange(T) < N


# ---- softmax ----------------------------------------------------------------

scores = hnp.arrays(
    np.float32, (3, 5), elements=st.floats(-(2.0**99), 2.0**99, width=32)
)


@given(scores)
@example(np.full((3, 5), 3e38, dtype=np.float32))
def test_weights_are_not_negative_and_sum_to_one(scores):
    p = softmax(scores)
    assert p.dtype == np.float32 and (p >= 0).all()
    assert_close(p.sum(axis=-1), np.ones(3), 5)


@given(seeds, st.sampled_from([-100.0, 0.5, 1000.0]))
def test_softmax_does_not_see_a_constant(seed, constant):
    x = normal(seed, 3, 5)
    assert_close(softmax(x + constant), softmax(x), 5, scale=1 + abs(constant))


@given(scores)
def test_softmax_equals_the_spec(scores):
    expected = [spec.softmax(one) for one in scores.tolist()]
    assert_close(softmax(scores), expected, 5, scale=1)


# ---- laws -------------------------------------------------------------------


@given(attention_cases())
def test_blocked_equals_naive(case):
    y = blocked(*case)
    assert y.dtype == case.q.dtype
    here = real(case)
    assert_close(y[here], in_loops(case)[here], terms(case), scale=3)


@given(attention_cases("float64"))
def test_default_blocks_equal_naive_too(case):
    long = case._replace(query_block=128, key_block=None, head_block=None)
    here = real(case)
    assert_close(in_blocks(long)[here], in_loops(case)[here], terms(case), scale=3)


def test_several_default_blocks_equal_naive():
    B, T, start, K, G, D, N = 2, 150, 4200, 2, 2, 3, 4360
    assert default_blocks(B, 128, G, start + T) == (4096, 1)
    q, k, v = normal(0, B, T, K * G, D), normal(1, B, K, N, D), normal(2, B, K, N, D)
    starts = np.array([start, start - 7])
    assert_close(blocked(q, k, v, starts), naive(q, k, v, starts), N, scale=3)


@given(attention_cases("float64"), st.sampled_from([1e2, 1e5]))
def test_large_scores_do_not_disturb_the_running_softmax(case, scale):
    case = case._replace(q=case.q * scale)
    here = real(case)
    expected = in_loops(case)[here]
    assert_close(in_blocks(case)[here], expected, terms(case), scale=10 * scale)


@given(st.sampled_from([0.3, 0.99, 1.01, 2.0, 1e3, 1e15]), st.booleans(), seeds)
def test_scores_around_the_limit_neither_overflow_nor_vanish(share, down, seed):
    # Keys and queries along one direction, so that a score is as large as its bound.
    T, D = 12, 4
    along = np.abs(normal(seed, 1, T, 1, D, dtype="float32"))
    q = along / np.sqrt(np.square(along).sum(axis=-1, keepdims=True))
    q *= math.sqrt(share * LARGE) * D**0.25
    k = (-q if down else q).transpose(0, 2, 1, 3)
    v, start = normal(seed, 1, 1, T, D, dtype="float32"), np.array([0])
    assert none_is_large(q, k) == (share < 1)
    with np.errstate(over="raise", invalid="raise"):
        y = blocked(q, k, v, start)
    exact = naive(*(x.astype(np.float64) for x in (q, k, v)), start)
    assert_close(y, exact, D * share * LARGE, scale=1 + np.abs(exact).max())


@given(attention_cases("float64"), paths)
def test_changing_the_future_changes_nothing(case, path):
    before = path(case)
    k, v = case.k.copy(), case.v.copy()
    for b, t in np.ndindex(case.q.shape[:2]):
        future = int(case.start[b]) + t + 1
        k[b, :, future:], v[b, :, future:] = 7.0, -1e9
        y = path(case._replace(k=k, v=v))
        assert_close(y[b, t], before[b, t], terms(case), scale=3)
        k[b], v[b] = case.k[b], case.v[b]


@given(attention_cases("float64"), safe_paths)
@example(
    AttentionCase(*(normal(i, 1, 2, 2, 4) for i in range(3)), np.array([0]), 9, 9, 9),
    in_blocks,
)
def test_future_that_is_not_a_number_changes_nothing(case, path):
    # A weight of zero does not help here: 0 * nan is nan.
    before = path(case)
    t = case.q.shape[1] // 2
    for b, start in enumerate(case.start):
        case.k[b, :, start + t + 1 :] = np.nan
        case.v[b, :, start + t + 1 :] = np.nan
    after = path(case)
    assert_close(after[:, : t + 1], before[:, : t + 1], terms(case), scale=3)


@given(attention_cases("float64"), safe_paths)
def test_row_does_not_depend_on_its_neighbours(case, path):
    alone = path(row(case, 0))
    for value in (np.nan, 1e300):
        for array in case[:3]:
            array[1:] = value
        with np.errstate(over="ignore", invalid="ignore"):
            together = path(case)
        assert_close(together[:1], alone, terms(case), scale=3)


@given(attention_cases(), paths, st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_result(case, path, random):
    order = list(range(len(case.start)))
    random.shuffle(order)
    permuted = AttentionCase(*(array[order] for array in case[:4]), *case[4:])
    assert_close(path(permuted), path(case)[order], terms(case), scale=3)


@given(attention_cases(), paths)
def test_grouped_queries_equal_multi_head_with_keys_repeated(case, path):
    G = case.q.shape[2] // case.k.shape[1]
    k, v = (np.repeat(array, G, axis=1) for array in (case.k, case.v))
    repeated = path(case._replace(k=k, v=v))
    assert_close(repeated, path(case), terms(case), scale=3)


@given(attention_cases("float64"), paths)
def test_result_lies_in_the_convex_hull_of_the_values(case, path):
    y = path(case)
    G = case.q.shape[2] // case.k.shape[1]
    for b, t, h in zip(
        *np.nonzero(np.broadcast_to(real(case)[..., None], y.shape[:3]))
    ):
        seen = case.v[b, h // G, : case.start[b] + t + 1]
        # In every direction, not only along the axes.
        along = normal([0, h], 4, y.shape[-1])
        values, mixed = seen @ along.T, along @ y[b, t, h]
        assert (mixed <= values.max(axis=0) + 1e-12).all()
        assert (mixed >= values.min(axis=0) - 1e-12).all()


@given(attention_cases("float64"), paths)
def test_first_position_of_a_text_takes_home_its_own_value(case, path):
    case = case._replace(start=np.zeros_like(case.start))
    y = path(case)
    G = case.q.shape[2] // case.k.shape[1]
    assert_close(y[:, 0], np.repeat(case.v[:, :, 0], G, axis=1), 1)


@given(attention_cases(), paths)
def test_attending_changes_none_of_its_arguments(case, path):
    before = [array.copy() for array in case[:4]]
    path(case)
    for array, copy in zip(case[:4], before):
        assert_same(array, copy)


# ---- spec -------------------------------------------------------------------


@given(attention_cases(), paths)
def test_attention_equals_the_spec(case, path):
    y = path(case)
    for b, arrays in enumerate(zip(*(array.tolist() for array in case[:4]))):
        n = int(real(case)[b].sum())
        expected = spec.causal_attention(*arrays)[:n]
        assert_close(y[b, :n], expected, terms(case), scale=3)


@given(
    configs(["default", "yarn"]), st.integers(1, 3), st.integers(1, 4), seeds, dtypes
)
def test_attention_half_of_a_block_equals_the_spec(config, B, T, seed, dtype):
    layer = random_model(config, seed, dtype).layers[0]
    x = normal([seed, 1], B, T, config.hidden_size, dtype=dtype)
    cache = new_cache(config, B, T + 1, dtype)
    start, count = np.zeros(B, dtype=np.int64), np.full(B, T)
    tables = rope_tables(config, np.tile(np.arange(T), (B, 1)), dtype)
    y = attention(x, layer, tables, cache.k[0], cache.v[0], start, count)
    lists = Layer(*(None if w is None else w.tolist() for w in layer))
    expected = [spec.attention(one, lists, config) for one in x.tolist()]
    assert y.dtype == dtype
    E, HD = config.hidden_size, config.num_attention_heads * config.head_dim
    scale = 10 * max(1, np.abs(expected).max())
    assert_close(y, expected, 2 * E + HD + T, scale=scale)


def test_attention_remembers_turned_keys_and_plain_values():
    config = replace(DISTINCT, attention_bias=False)
    layer = random_model(config, 0, "float64").layers[0]
    B, T, N = 2, 3, 9
    x, cache = normal(1, B, T, config.hidden_size), new_cache(config, B, N, "float64")
    start, count = np.array([4, 1]), np.array([3, 2])
    tables = rope_tables(config, start[:, None] + np.arange(T), "float64")
    attention(x, layer, tables, cache.k[0], cache.v[0], start, count)
    for b, t in np.ndindex(B, T):
        at = start[b] + t
        for h in range(config.num_key_value_heads):
            if t < count[b]:
                key = spec.linear(layer.wk[h], x[b, t])
                turned = spec.rotate(key, at, config, at + 1)
                assert_close(cache.k[0, b, h, at], turned, 20)
                assert_close(
                    cache.v[0, b, h, at], spec.linear(layer.wv[h], x[b, t]), 20
                )
            else:
                assert not cache.k[0, b, h, at].any()


def test_weights_of_one_query_are_shared_by_score_alone():
    # Two equal keys share their weight equally, wherever they stand.
    q, v = np.ones((1, 1, 1, 2)), normal(0, 1, 1, 4, 2)
    k = np.tile(normal(1, 1, 1, 1, 2), (1, 1, 4, 1))
    for path in (naive, dense, blocked):
        y = path(q, k, v, np.array([3]))
        assert_close(y[0, 0, 0], v[0, 0].mean(axis=0), 4)
