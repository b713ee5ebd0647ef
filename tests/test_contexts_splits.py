"""Keys in splits, after a shared prefix, and in trees: attention all the same."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, attention_cases, normal, random_model, seeds, token_ids
from tolerances import assert_close, assert_same, depth

from npllama.attention import blocked, naive
from npllama.cache import KVCache, new_cache
from npllama.contexts.prefixes import ancestors, cascade, depths, over_tree
from npllama.contexts.splits import split_keys, splits_by_occupancy
from npllama.cost import FlopCounter
from npllama.decoding.tree import run_tree
from npllama.model import forward

# ---- splits -----------------------------------------------------------------


@given(attention_cases(), st.integers(1, 9))
def test_splits_of_any_size_are_attention(case, size):
    arrays, here = case[:4], case.start[:, None] + np.arange(case.q.shape[1])
    here, terms = here < case.k.shape[2], case.q.shape[3] + case.k.shape[2]
    y = split_keys(size)(*arrays)
    assert y.dtype == case.q.dtype
    assert_close(y[here], naive(*arrays)[here], 2 * terms, scale=3)


@pytest.mark.parametrize("T, G", [(1, 1), (4, 2), (3, 1)])
def test_one_split_is_attention_at_once_to_the_bit(T, G):
    q = normal(T, 1, T, 3 * G, 8, dtype="float32")
    k, v = (normal(n, 1, 3, 9 + T, 8, dtype="float32") for n in (1, 2))
    assert_same(split_keys(99)(q, k, v, np.array([9])), blocked(q, k, v, np.array([9])))


def test_a_fixed_size_gives_the_same_floats_in_any_company():
    """Row 1 alone, and between two others, one of which is longer."""
    q = normal(0, 3, 1, 6, 8, dtype="float32")
    k, v = (normal(n, 3, 3, 40, 8, dtype="float32") for n in (1, 2))
    start, way = np.array([30, 21, 5]), split_keys(4)
    alone = way(q[1:2], k[1:2], v[1:2], start[1:2])
    assert_same(way(q, k, v, start)[1:2], alone)


def test_splits_fill_the_processors_as_flash_attention_does():
    """A100: 108 processors.  A batch of 1, 16, 64 and 96 blocks of work."""
    numbers = [splits_by_occupancy(blocks, 108, 64) for blocks in (1, 16, 64, 96)]
    assert numbers == [64, 6, 3, 1]
    assert splits_by_occupancy(1, 108, 4) == 1
    # Twelve splits of 64 blocks are as long as eleven, so nobody makes twelve.
    assert all(splits_by_occupancy(n, 108, 64) != 12 for n in range(1, 108))


# ---- a shared prefix --------------------------------------------------------


def sharing(model, prefix, starts, room, seed):
    """A cache whose rows begin alike and then hold other positions of their own."""
    config, B = model.config, len(starts)
    dtype = model.embed.dtype.name
    cache = new_cache(config, B, max(starts) + room, dtype)
    if prefix:
        forward(model, token_ids(config, seed, 1, prefix).repeat(B, 0), cache)
        for array in cache[:2]:  # to the bit, as pages that are shared would be
            array[:, 1:, :, :prefix] = array[:, :1, :, :prefix]
    own = np.array(starts) - prefix
    if own.max():
        tokens = token_ids(config, seed + 1, B, int(own.max()))
        forward(model, tokens, cache, own)
    return cache


@given(st.integers(0, 6), st.lists(st.integers(0, 5), min_size=1, max_size=3),
       st.integers(1, 4), seeds)  # fmt: skip
@example(6, [2, 0, 5], 3, 0)
@example(5, [0, 0], 1, 1)
def test_a_shared_prefix_is_met_once_and_nothing_changes(prefix, more, T, seed):
    model = random_model(DISTINCT, seed)
    starts = [prefix + n for n in more]
    cache = sharing(model, prefix, starts, 2 * T, seed)
    other = KVCache(*(array.copy() for array in cache))
    for step in range(2):
        tokens = token_ids(DISTINCT, seed + 2 + step, len(starts), T)
        found = forward(model, tokens, cache, attend=cascade(prefix))
        expected = forward(model, tokens, other, attend=naive)
        scale = 10 * max(1, np.abs(expected).max())
        assert_close(found, expected, depth(DISTINCT, 40), scale=scale)


def test_a_shared_prefix_is_read_once_at_as_many_flops():
    """85 keys of each head for the 245 of rows that read them all."""
    prefix, starts = 40, [44, 49, 49, 53, 45]
    model = random_model(DISTINCT, 0)
    cache = sharing(model, prefix, starts, 1, 0)
    tokens, counts = token_ids(DISTINCT, 0, 5, 1), []
    for attend in (cascade(prefix), blocked):
        cache.length[:] = starts
        with FlopCounter() as count:
            forward(model, tokens, cache, attend=attend)
        counts.append([count.by("name")[name] for name in ("scores", "values")])
    for ours, theirs in zip(*counts):
        each = DISTINCT.head_dim * DISTINCT.num_key_value_heads * 2
        assert ours.flops == theirs.flops
        assert (ours.kept, theirs.kept) == (each * 85, each * 245)


def test_a_prefix_longer_than_a_row_is_refused():
    q, k, v = (normal(n, 2, 2, 2, 4) for n in range(3))
    with pytest.raises(ValueError, match="prefix of 5 positions, where a row holds 3"):
        cascade(5)(q, k, v, np.array([6, 3]))
    with pytest.raises(ValueError, match="-1 positions: 0 at least"):
        cascade(-1)
    with pytest.raises(ValueError, match="splits of 0 keys: 1 at least"):
        split_keys(0)


# ---- trees ------------------------------------------------------------------

trees = st.integers(1, 6).flatmap(
    lambda T: st.tuples(*(st.integers(-1, t - 1) for t in range(T)))
)
BRANCHES = (-1, 0, 0, 1, -1, 4, 3)


def test_a_guess_sees_itself_and_those_it_branches_from():
    seen = [np.flatnonzero(row).tolist() for row in ancestors([-1, 0, 0, 1, -1])]
    assert seen == [[0], [0, 1], [0, 2], [0, 1, 3], [4]]
    assert depths(ancestors([-1, 0, 0, 1, -1])).tolist() == [0, 1, 1, 2, 0]
    for parents in ([0], [-1, 2], [-1, -2]):
        with pytest.raises(ValueError, match="has parent"):
            ancestors(parents)


@given(trees, st.integers(0, 5), seeds)
@example(BRANCHES, 5, 0)
@example(BRANCHES, 0, 1)
def test_every_branch_of_a_tree_is_what_it_is_alone(parents, S, seed):
    model, T = random_model(DISTINCT, seed), len(parents)
    tokens, visible = token_ids(DISTINCT, seed + 1, T), ancestors(parents)
    cache = new_cache(DISTINCT, 1, S + T)
    if S:
        forward(model, token_ids(DISTINCT, seed, 1, S), cache)
    before = KVCache(*(array.copy() for array in cache))
    also = KVCache(*(array.copy() for array in cache))
    step = depths(visible)
    found = forward(
        model,
        tokens[None],
        cache,
        attend=over_tree(visible),
        positions=(S + step)[None],
    )[0]
    scale = 10 * max(1, np.abs(found).max())
    terms = depth(DISTINCT, S + T)
    assert_close(run_tree(model, tokens, step, visible, also), found, terms, scale)
    for t in range(T):
        branch = tokens[visible[t]][None]
        alone = KVCache(*(array.copy() for array in before))
        expected = forward(model, branch, alone, attend=naive)[0, -1]
        assert_close(found[t], expected, terms, scale)
