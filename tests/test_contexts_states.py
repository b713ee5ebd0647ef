"""What queries find among some keys, put together, is what they find among all."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import dtypes, normal, seeds
from tolerances import assert_close, assert_same

from npllama.attention import blocked, naive
from npllama.contexts import states
from npllama.contexts.states import (
    AttentionState,
    in_the_future,
    merge_states,
    no_keys,
    state_of,
)

sizes = st.tuples(*(st.integers(1, n) for n in (5, 3, 3, 5)), st.integers(0, 9))
FIVE = (4, 3, 2, 5, 7)


def arrays(size, seed, dtype="float64", large=1.0):
    T, K, G, D, S = size
    q = large * normal([seed, 0], T, K * G, D, dtype=dtype)
    return q, *(normal([seed, n], K, S, D, dtype=dtype) for n in (1, 2))


def by_definition(q, k, v, hidden):
    """The state, pair by pair, in float64 and without a shift."""
    T, H, D = q.shape
    y, lse = np.zeros((T, H, D)), np.full((T, H), -np.inf)
    for t, h in np.ndindex(T, H):
        keys, values = (x[h * len(k) // H][~hidden[t]] for x in (k, v))
        weights = np.exp((keys @ q[t, h].astype(np.float64)) / math.sqrt(D))
        if len(weights):
            y[t, h] = weights @ values / weights.sum()
            lse[t, h] = math.log(weights.sum())
    return y, lse


def some_hidden(size, seed):
    hidden = np.random.default_rng([seed, 9]).random((size[0], size[4])) < 0.4
    hidden[:1] = True  # one query sees no key at all
    return hidden


def assert_alike(one, other, size, scale=1.0):
    for ours, theirs in zip(one, other):
        assert np.array_equal(np.isneginf(ours), np.isneginf(theirs))
        finite = np.isfinite(theirs)
        assert_close(ours[finite], theirs[finite], sum(size), scale=5 * scale)


def test_the_example_of_the_page_is_true():
    found = doctest.testmod(states)
    assert found.attempted >= 3 and found.failed == 0


@given(sizes, seeds, dtypes)
@example(FIVE, 0, "float32")
@example((2, 1, 1, 3, 0), 0, "float32")
def test_a_state_is_the_average_and_the_logarithm_of_the_sum(size, seed, dtype):
    q, k, v = arrays(size, seed, dtype)
    hidden = some_hidden(size, seed)
    found = state_of(q, k, v, hidden)
    assert {x.dtype.name for x in found} == {dtype}
    assert_alike(found, by_definition(q, k, v, hidden), size)
    assert_alike(state_of(q, k, v), by_definition(q, k, v, np.zeros_like(hidden)), size)


@given(
    sizes, seeds, st.sampled_from([1.0, 1e3, 1e5]), st.randoms(note_method_calls=False)
)
@example(FIVE, 0, 1e5, None)
@example(FIVE, 1, 1.0, None)
def test_keys_in_any_pieces_and_any_order_are_all_keys(size, seed, large, random):
    q, k, v = arrays(size, seed, large=large)
    hidden = some_hidden(size, seed)
    S = size[4]
    order, cuts = np.arange(S), [2, 2, 5]
    if random is not None:
        random.shuffle(order)
        cuts = sorted(random.randint(0, S) for _ in range(3))
    pieces = [
        state_of(q, k[:, some], v[:, some], hidden[:, some])
        for some in np.split(order, np.minimum(cuts, S))
    ]
    whole = state_of(q, k, v, hidden)
    left = no_keys(q)
    for piece in pieces:
        left = merge_states(left, piece)
    right = no_keys(q)
    for piece in pieces[::-1]:
        right = merge_states(piece, right)
    for found in (left, right):
        assert_alike(found, whole, size, large)


@given(sizes, seeds, dtypes)
@example(FIVE, 0, "float32")
def test_merging_commutes_and_no_keys_are_neutral_to_the_bit(size, seed, dtype):
    q, k, v = arrays(size, seed, dtype)
    one = state_of(q, k, v, some_hidden(size, seed))
    other = state_of(q, k[:, ::-1], v, some_hidden(size, seed + 1))
    for ours, theirs in zip(merge_states(one, other), merge_states(other, one)):
        assert_same(ours, theirs)
    for found in (merge_states(one, no_keys(q)), merge_states(no_keys(q), one)):
        for ours, theirs in zip(found, one):
            assert_same(ours, theirs)


def test_two_states_without_a_key_make_a_third_without_a_warning():
    q = normal(0, 2, 3, 4, dtype="float32")
    with np.errstate(all="raise"):
        found = merge_states(no_keys(q), no_keys(q))
    assert_same(found.y, np.zeros_like(q))
    assert_same(found.lse, np.full((2, 3), -np.inf, np.float32))


def test_scores_that_would_overflow_alone_are_merged():
    """exp(1000) is infinite; so are weights that no maximum was taken from."""
    low, high = (
        AttentionState(np.array([[[y]]]), np.array([[lse]]))
        for y, lse in ((3.0, 999.0), (7.0, 1000.0))
    )
    with np.errstate(all="raise"):
        found = merge_states(low, high)
    w = math.exp(-1)
    assert_close(found.y, [[[(3 * w + 7) / (w + 1)]]], 4)
    assert_close(found.lse, [[1000 + math.log(1 + w)]], 4)


@given(sizes, seeds, st.integers(0, 12), st.integers(0, 9))
@example(FIVE, 0, 3, 2)
def test_what_lies_in_the_future_is_hidden(size, seed, first, begin):
    T, S = size[0], size[4]
    i, j = first + np.arange(T)[:, None], begin + np.arange(S)
    found = in_the_future(first, slice(0, T), slice(begin, begin + S))
    assert np.array_equal(np.zeros((T, S), bool) if found is None else found, j > i)
    if found is None:
        assert not (j > i).any()
    else:
        assert S == 0 or (j > i).any()


@pytest.mark.parametrize("T, G", [(1, 1), (4, 2), (3, 1)])
def test_a_state_over_all_keys_is_attention_to_the_bit(T, G):
    """One product of one row, in the same arrangement: the same sums."""
    K, D, first = 3, 8, 9
    q, k, v = arrays((T, K, G, D, first + T), T, "float32")
    hidden = in_the_future(first, slice(0, T), slice(0, first + T))
    found = state_of(q, k, v, hidden)
    assert_same(found.y, blocked(q[None], k[None], v[None], np.array([first]))[0])
    expected = naive(q[None], k[None], v[None], np.array([first]))[0]
    assert_close(found.y, expected, D + first + T, scale=3)
