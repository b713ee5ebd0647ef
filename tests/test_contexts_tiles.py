"""FlashAttention by its listings: attention, and the traffic that papers count."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.control import assume
from strategies import (
    DISTINCT,
    AttentionCase,
    attention_cases,
    normal,
    random_model,
    seeds,
    token_ids,
)
from tolerances import assert_close, assert_same, depth

from npllama.attention import blocked, naive
from npllama.cache import new_cache
from npllama.contexts.tiles import SlowMemory, flash_1, flash_2
from npllama.cost import traffic
from npllama.model import forward

small = st.integers(1, 9)
CASE = AttentionCase(
    normal(0, 2, 5, 6, 4, dtype="float32"),
    *(normal(n, 2, 3, 14, 4, dtype="float32") for n in (1, 2)),
    np.array([8, 3]),
    2,
    3,
    1,
)


def real(case):
    """Which queries have a place in the cache; the rest are padding."""
    return case.start[:, None] + np.arange(case.q.shape[1]) < case.k.shape[2]


@given(attention_cases(), small, small)
@example(CASE, 3, 2)
@example(CASE, 2, 9)
@example(CASE, 20, 20)
def test_tiles_of_any_size_are_attention(case, columns, rows):
    arrays = case[:4]
    expected, here = naive(*arrays), real(case)
    D, terms = case.q.shape[3], case.q.shape[3] + case.k.shape[2]
    for attend in (flash_1(4 * D * columns), flash_2(columns, rows)):
        y = attend(*arrays)
        assert y.dtype == case.q.dtype
        assert_close(y[here], expected[here], 2 * terms, scale=3)


@given(attention_cases("float64"), st.sampled_from([1e2, 1e5]), small)
@example(CASE._replace(q=CASE.q.astype("f8") * 1e5, k=CASE.k.astype("f8"),
                       v=CASE.v.astype("f8")), 1.0, 2)  # fmt: skip
def test_large_scores_change_the_maximum_and_nothing_else(case, large, columns):
    case = case._replace(q=case.q * large)
    here, D = real(case), case.q.shape[3]
    expected = naive(*case[:4])[here]
    for attend in (flash_1(4 * D * columns), flash_2(columns, 2)):
        found = attend(*case[:4])[here]
        assert_close(found, expected, 40, scale=1e6 if large < 2 else 10 * large)


@given(seeds, st.lists(st.integers(1, 6), min_size=1, max_size=4), small, small)
@example(0, [5, 1, 3, 1], 2, 3)
@example(1, [9], 1, 1)
def test_the_model_attends_by_tiles_with_caches_in_any_pieces(
    seed, parts, columns, rows
):
    """Rows of unequal lengths, two of them padded; grouped heads; prefill and decode."""
    model, T = random_model(DISTINCT, seed), sum(parts)
    D = DISTINCT.head_dim
    logits = []
    for attend in (naive, flash_1(4 * D * columns), flash_2(columns, rows)):
        cache = new_cache(DISTINCT, 2, 4 + T)
        forward(model, token_ids(DISTINCT, seed, 2, 4), cache, np.array([4, 2]))
        tokens = token_ids(DISTINCT, seed + 1, 2, T)
        pieces = np.split(tokens, np.cumsum(parts)[:-1], axis=1)
        found = [forward(model, piece, cache, attend=attend) for piece in pieces]
        logits.append(np.concatenate(found, axis=1))
    scale = max(1, np.abs(logits[0]).max())
    for ours in logits[1:]:
        assert_close(ours, logits[0], depth(DISTINCT, 4 + T), scale=10 * scale)


@pytest.mark.parametrize("T, G", [(1, 1), (4, 2), (3, 1)])
def test_one_tile_is_attention_at_once_to_the_bit(T, G):
    K, D, first = 3, 8, 9
    q = normal(T, 1, T, K * G, D, dtype="float32")
    k, v = (normal(n, 1, K, first + T, D, dtype="float32") for n in (1, 2))
    expected = blocked(q, k, v, np.array([first]))
    assert_same(flash_1(4 * D * 99)(q, k, v, np.array([first])), expected)
    assert_same(flash_2(99, 99)(q, k, v, np.array([first])), expected)


# ---- traffic ----------------------------------------------------------------


def counted(way, new, cached, D=3):
    slow = SlowMemory()
    q = normal(0, 1, new, 6, D)
    k, v = (normal(n, 1, 2, cached + new, D) for n in (1, 2))
    way(slow)(q, k, v, np.array([cached]))
    return slow


@given(st.integers(1, 12), st.integers(0, 12), small, small)
@example(10, 0, 3, 4)
@example(7, 5, 4, 3)
@example(1, 6, 4, 3)
def test_what_moves_is_what_the_closed_forms_say(new, cached, columns, rows):
    D = 3
    first = counted(lambda slow: flash_1(4 * D * columns, slow), new, cached, D)
    tiles = traffic.tile_sizes(4 * D * columns, D)
    assert tiles == (columns, min(columns, D))
    assert first.traffic == traffic.tiled_forward_sum(new, *tiles, cached)
    second = counted(lambda slow: flash_2(columns, rows, slow), new, cached, D)
    assert second.traffic == traffic.swapped_forward_sum(new, columns, rows, cached)


def test_every_array_moves_as_listed():
    """Ten queries, none before them; tiles of three keys, and of two queries."""
    slow = counted(lambda slow: flash_1(4 * 2 * 3, slow), 10, 0, 2)
    # Queries that are visited: all by the first keys, then those from 2, 6 and 8 on.
    visits = 10 + 8 + 4 + 2
    assert slow.moved == {"k": 10, "v": 10, "q": visits, "o": 10 + 2 * visits,
                          "l": 10 + 2 * visits, "m": 10 + 2 * visits}  # fmt: skip
    slow = counted(lambda slow: flash_2(3, 2, slow), 10, 0, 2)
    # Keys that the five tiles of queries read: 3, 6, 6, 9 and all.
    keys = 3 + 6 + 6 + 9 + 10
    assert slow.moved == {"q": 10, "k": keys, "v": keys, "o": 10, "lse": 10}


@given(seeds, st.integers(2, 9), st.integers(1, 9))
@example(0, 7, 3)
def test_a_whole_model_moves_its_layers_and_rows(seed, T, columns):
    assume(columns <= T)
    model, slow = random_model(DISTINCT, seed), SlowMemory()
    cache = new_cache(DISTINCT, 2, T + 1)
    attend = flash_2(columns, 2, slow)
    forward(model, token_ids(DISTINCT, seed, 2, T), cache, attend=attend)
    forward(model, token_ids(DISTINCT, seed, 2, 1), cache, attend=attend)
    whole = traffic.swapped_forward_sum(T, columns, 2, 0)
    step = traffic.swapped_forward_sum(1, columns, 2, T)
    L = DISTINCT.num_hidden_layers
    assert slow.traffic == tuple(2 * L * (a + b) for a, b in zip(whole, step))


def test_a_chip_too_small_and_tiles_without_rows_are_refused():
    q, k, v = (normal(n, 1, 2, 2, 8) for n in range(3))
    with pytest.raises(ValueError, match="31 elements; four vectors of 8 need 32"):
        flash_1(31)(q, k, v, np.array([0]))
    with pytest.raises(ValueError, match="tiles of 0 keys and 3 queries: 1 at least"):
        flash_2(0, 3)
