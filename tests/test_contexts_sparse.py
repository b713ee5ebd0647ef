"""What a pattern skips is what its mask hides, and its pairs are counted exactly."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, random_model, seeds, token_ids

from npllama.attention import naive
from npllama.cache import new_cache
from npllama.contexts.sparse import (
    Interleaved,
    attending,
    by_head,
    mask,
    merged_fixed_pairs,
    merged_strided_pairs,
    own_block,
    own_block_pairs,
    reach,
    strided,
    strided_pairs,
    summaries,
    summary_pairs,
    union,
    visited,
    window,
    window_pairs,
)
from npllama.cost import FlopCounter
from npllama.model import forward


@st.composite
def patterns(draw):
    """A pattern, and who sees whom by its definition, in plain words."""
    l = draw(st.integers(1, 7))  # noqa: E741
    c = draw(st.integers(1, l))
    return draw(
        st.sampled_from(
            [
                (window(l), lambda i, j: i - l < j),
                (strided(l), lambda i, j: (i - j) % l == 0),
                (own_block(l), lambda i, j: j >= i - i % l),
                (summaries(l, c), lambda i, j: j % l in range(l - c, l)),
                (
                    union(strided(l), window(l + 1)),
                    lambda i, j: (i - j) % l == 0 or j in range(i - l, i + 1),
                ),
                (
                    union(own_block(l), summaries(l, c)),
                    lambda i, j: i // l == j // l or j % l >= l - c,
                ),
            ]
        )
    )


def masked(sees):
    """Attention that sees by a definition: pair by pair, in float64."""

    def attend(q, k, v, start):
        B, T, H, D = q.shape
        y = np.zeros_like(q)
        for b, h, t in np.ndindex(B, H, T):
            i, kind = int(start[b]) + t, h * k.shape[1] // H
            seen = [j for j in range(i + 1) if sees(i, j)]
            if seen:
                scores = k[b, kind, seen] @ q[b, t, h] / np.sqrt(D)
                p = np.exp(scores - scores.max())
                y[b, t, h] = p @ v[b, kind, seen] / p.sum()
        return y

    return attend


def logits_of(model, tokens, parts, attend):
    cache = new_cache(model.config, len(tokens), tokens.shape[1], "float64")
    pieces = np.split(tokens, np.cumsum(parts)[:-1], axis=1)
    return np.concatenate(
        [forward(model, piece, cache, attend=attend) for piece in pieces], axis=1
    )


@given(patterns(), seeds, st.lists(st.integers(1, 9), min_size=1, max_size=3),
       st.integers(1, 5), st.integers(1, 2))  # fmt: skip
@example((summaries(5, 2), lambda i, j: j % 5 >= 3), 0, [1, 9, 3], 2, 2)
@example((strided(3), lambda i, j: (i - j) % 3 == 0), 0, [4, 9], 2, 1)
@example((window(3), lambda i, j: i - j < 3), 0, [4, 9, 1], 2, 1)
@example((own_block(4), lambda i, j: i // 4 == j // 4), 0, [3, 9, 1], 2, 1)
def test_blocks_of_a_pattern_are_its_mask_in_any_pieces(pattern, seed, parts, block, B):
    found, sees = pattern
    model, T = random_model(DISTINCT, seed, "float64"), sum(parts)
    tokens = np.stack([token_ids(DISTINCT, [seed, b], T) for b in range(B)])
    ours = logits_of(model, tokens, parts, attending(found, block))
    theirs = logits_of(model, tokens, [T], masked(sees))
    assert np.allclose(ours, theirs)


@given(patterns(), st.integers(1, 40))
@example((window(3), lambda i, j: i - j < 3), 9)
@example((strided(3), lambda i, j: (i - j) % 3 == 0), 9)
@example((own_block(4), lambda i, j: i // 4 == j // 4), 9)
@example((summaries(5, 2), lambda i, j: j % 5 >= 3), 12)
def test_the_mask_is_the_definition(pattern, n):
    found, sees = pattern
    expected = [[j <= i and bool(sees(i, j)) for j in range(n)] for i in range(n)]
    assert np.array_equal(mask(found, n), expected)


@pytest.mark.parametrize("pattern", [window(20), strided(1), own_block(20)])
def test_a_pattern_that_hides_nothing_is_full_attention(pattern):
    model = random_model(DISTINCT, 1, "float64")
    tokens = token_ids(DISTINCT, 1, 20)[None]
    full = logits_of(model, tokens, [20], naive)
    assert np.allclose(logits_of(model, tokens, [20], attending(pattern)), full)


def test_float32_stays_float32():
    model = random_model(DISTINCT, 1)
    cache = new_cache(DISTINCT, 1, 9)
    tokens = token_ids(DISTINCT, 1, 9)[None]
    for pattern in (window(3), strided(2), summaries(3, 1)):
        cache.length[:] = 0
        assert forward(model, tokens, cache, attend=attending(pattern)).dtype == "f4"


@given(st.integers(1, 9), st.integers(0, 12), st.integers(1, 12))
@example(3, 1, 5)
def test_pairs_of_a_window_are_in_closed_form(W, cached, new):
    pairs = mask(window(W), cached + new)[cached:].sum()
    assert window_pairs(W, cached, new) == pairs
    assert visited(window(W), cached, new, 1) == pairs


@given(st.integers(1, 8), st.integers(1, 6), st.data())
def test_pairs_of_the_sparse_transformer_are_in_closed_form(size, blocks, data):
    n, cells = size * blocks, data.draw(st.integers(1, size))
    assert strided_pairs(size, n) == mask(strided(size), n).sum()
    assert own_block_pairs(size, n) == mask(own_block(size), n).sum()
    assert summary_pairs(size, cells, n) == mask(summaries(size, cells), n).sum()


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 12), st.integers(1, 8))
@example(4, 5, 5, 2)
def test_pairs_of_merged_heads_are_in_closed_form(size, blocks, W, cells):
    n, cells = size * blocks, min(cells, size)
    strides = union(window(W), strided(size))
    assert merged_strided_pairs(W, size, n) == mask(strides, n).sum()
    fixed = union(own_block(size), summaries(size, cells))
    assert merged_fixed_pairs(size, cells, n) == mask(fixed, n).sum()


def test_pairs_of_1024_positions_by_32():
    """The paper's strided row has 33 keys, that of its released code 32."""
    n, c = 1024, 8
    assert (window_pairs(33, 0, n), window_pairs(32, 0, n)) == (33264, 32272)
    assert (strided_pairs(32, n), own_block_pairs(32, n)) == (16896, 16896)
    assert summary_pairs(32, c, n) == 128128
    assert mask(union(window(33), strided(32)), n).sum() == 48144
    assert merged_strided_pairs(33, 32, n) == 48144
    assert merged_fixed_pairs(32, c, n) == 143872
    assert mask(union(own_block(32), summaries(32, c)), n).sum() == 143872
    assert visited(window(1024), 0, 4096, 128) == 4125696
    assert 1.12 < 4125696 / window_pairs(1024, 0, 4096) < 1.13


@given(patterns(), st.integers(0, 6), st.integers(1, 12), st.integers(1, 5))
def test_what_is_visited_is_what_is_counted(pattern, cached, new, block):
    model = random_model(DISTINCT, 0)
    tokens = token_ids(DISTINCT, 0, cached + new)[None]
    cache = new_cache(DISTINCT, 1, cached + new)
    if cached:
        forward(model, tokens[:, :cached], cache)
    with FlopCounter() as count:
        attend = attending(pattern[0], block)
        forward(model, tokens[:, cached:], cache, attend=attend)
    pairs = visited(pattern[0], cached, new, block)
    L, H, D = (getattr(DISTINCT, name) for name in
               ("num_hidden_layers", "num_attention_heads", "head_dim"))  # fmt: skip
    by_name = count.by("name")
    counted = sum(by_name[name].flops for name in ("scores", "values"))
    assert counted == 4 * L * H * D * pairs


def test_layers_take_turns_and_begin_anew_with_every_pass():
    config = replace(DISTINCT, num_hidden_layers=3)
    model = random_model(config, 0, "float64")
    tokens = token_ids(config, 0, 12)[None]
    first, second = own_block(3), summaries(3, 1)
    turns = iter([first, second, first] * 2)

    def by_hand(q, k, v, start):
        return attending(next(turns))(q, k, v, start)

    ours = logits_of(model, tokens, [7, 5], Interleaved([first, second], 3))
    assert np.array_equal(ours, logits_of(model, tokens, [7, 5], by_hand))


def test_heads_look_at_cells_of_their_own():
    """Six heads, three key heads: the Sparse Transformer's sub-blocks by turns."""
    model, size, cells = random_model(DISTINCT, 4, "float64"), 5, 2
    tokens = token_ids(DISTINCT, 4, 17)[None]
    own = [summaries(size, cells, turn) for turn in range(2)]

    def by_hand(q, k, v, start):
        y = np.zeros_like(q)
        for h in range(q.shape[2]):
            low = (3, 1)[h % 2]
            only = masked(lambda i, j, low=low: low <= j % 5 < low + 2)
            y[:, :, h : h + 1] = only(
                q[:, :, h : h + 1], k[:, h // 2 : h // 2 + 1], v[:, h // 2 : h // 2 + 1],
                start)  # fmt: skip
        return y

    assert DISTINCT.num_attention_heads == 2 * DISTINCT.num_key_value_heads
    ours = logits_of(model, tokens, [9, 8], by_head(own))
    assert np.allclose(ours, logits_of(model, tokens, [17], by_hand))
    seen = [set(np.flatnonzero(mask(p, 20)[19])) for p in own]
    assert seen == [{3, 4, 8, 9, 13, 14, 18, 19}, {1, 2, 6, 7, 11, 12, 16, 17}]


def test_a_fixed_pattern_reaches_everything_only_if_blocks_come_first():
    for cells, first, last in ((8, 0.98, 0.24), (1, 0.97, 0.03)):
        layers = [own_block(32), summaries(32, cells)]
        assert round(reach(layers, 1024), 2) == first
        assert round(reach(layers[::-1], 1024), 2) == last
    layers = [window(9), strided(8)]
    assert reach(layers, 64) == reach(layers[::-1], 64) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: window(0),
        lambda: strided(0),
        lambda: own_block(-1),
        lambda: summaries(4, 5),
        lambda: summaries(4, 0),
        lambda: summaries(4, 2, 2),
        lambda: summaries(4, 2, -1),
    ],  # fmt: skip
)
def test_patterns_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError, match=r"is needed|from 1 to all"):
        make()
