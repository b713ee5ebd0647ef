"""What the ways to attend of long texts cost: counted, and in closed form."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT
from test_cost_formulas import agree, predicted, run

from npllama.contexts import sparse
from npllama.contexts.prefixes import ancestors, cascade, over_tree
from npllama.contexts.splits import split_keys
from npllama.contexts.tiles import flash_1, flash_2
from npllama.cost import activation_peak, decode, operators
from npllama.cost.formulas import one_pass
from npllama.cost.meetings import in_decode
from npllama.cost.ways import (
    of_cascade,
    of_own_blocks,
    of_splits,
    of_stride,
    of_summaries,
    of_tiles,
    of_tree,
    of_window,
)

D = DISTINCT.head_dim


def patterns(n, c, block):
    """Sparse ways to attend, and what they cost, for one size of a pattern."""
    c = min(c, n)
    pairs = [
        (sparse.window(n), of_window(n, block)),
        (sparse.strided(n), of_stride(n, block)),
        (sparse.own_block(n), of_own_blocks(n, block)),
        (sparse.summaries(n, c), of_summaries(n, c, block)),
    ]
    return [(sparse.attending(pattern, block), way) for pattern, way in pairs]


def arrangements(columns, rows):
    """Exact ways to attend, and what they cost."""
    return [
        (flash_1(4 * D * columns), of_tiles(columns, min(columns, D))),
        (flash_2(columns, rows), of_tiles(columns, rows)),
        (split_keys(columns), of_splits(columns)),
    ]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 5),
       st.lists(st.integers(0, 9), min_size=1, max_size=2),
       st.lists(st.integers(1, 9), min_size=1, max_size=2), st.integers(0, 6))  # fmt: skip
@example(3, 2, 2, [4, 0], [7, 1], 0)
@example(3, 2, 2, [4, 1], [7, 1], 1)
@example(3, 2, 2, [4, 1], [7, 1], 2)
@example(5, 2, 3, [9, 3], [8, 1], 3)
@example(3, 2, 2, [4, 0], [7, 1], 4)
@example(3, 2, 2, [4, 0], [7, 1], 5)
@example(3, 2, 2, [4, 0], [7, 1], 6)
def test_what_is_counted_is_what_is_predicted(n, c, block, start, lengths, which):
    attend, way = [*patterns(n, c, block), *arrangements(n, c)][which]
    counted = run(DISTINCT, start, lengths, attend)
    agree(counted.by("phase", "name"), predicted(DISTINCT, start, lengths, causal=way))
    equations = {(p.phase, p.name): p.equation for p in counted.products()}
    told = predicted(DISTINCT, start, lengths, causal=way)
    assert equations == {key: op.equation for key, op in told.items()}


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(1, 5), st.data()
)
@example([7, 5, 9], 3, None)
def test_a_shared_prefix_costs_what_is_predicted(start, new, data):
    shared = data.draw(st.integers(0, min(start))) if data else 4
    counted = run(DISTINCT, start, [new], cascade(shared))
    told = predicted(DISTINCT, start, [new], causal=of_cascade(shared))
    agree(counted.by("phase", "name"), told)
    keys = told[next(key for key in told if key[1] == "scores")].cache
    each = DISTINCT.num_hidden_layers * DISTINCT.num_key_value_heads * D
    assert keys == each * (shared + sum(n + new - shared for n in start))


@pytest.mark.parametrize("cached", [0, 6])
def test_a_tree_costs_what_is_predicted(cached):
    attend = over_tree(ancestors([-1, 0, 0, 1]))
    counted = run(DISTINCT, [cached], [4], attend)
    told = predicted(DISTINCT, [cached], [4], causal=of_tree())
    agree(counted.by("phase", "name"), told)


def test_decode_in_a_window_costs_the_same_at_any_length():
    """Sixteen thousand positions or a million: W keys and no more."""
    costs = [decode(DISTINCT, 1, n, 3, causal=of_window(64)) for n in (16384, 10**6)]
    assert costs[0] == costs[1]
    met = in_decode(DISTINCT, 2, 5, 3, of_window(6))
    assert met.pairs == 2 * DISTINCT.num_attention_heads * (4 + 5 + 6 + 6 + 6)


def test_pairs_of_the_closed_forms_are_those_that_patterns_visit():
    """At 1,024 positions by 32, and Mistral's window at 4,096."""
    for pattern, way in (
        (sparse.window(33), of_window(33)),
        (sparse.strided(32), of_stride(32)),
        (sparse.own_block(32), of_own_blocks(32)),
        (sparse.summaries(32, 8), of_summaries(32, 8)),
    ):
        met = way(DISTINCT, 1024, [0]).pairs
        visited = sparse.visited(pattern, 0, 1024)
        assert met == DISTINCT.num_attention_heads * visited
    heads = DISTINCT.num_attention_heads
    assert of_window(1024, 128)(DISTINCT, 4096, [0]).pairs == heads * 4125696


def test_splits_and_the_prefix_cost_no_flops():
    """As many FLOPs as all rows alone; a tile of the future is all that is saved."""
    square = operators(DISTINCT, 3, 1, 40)
    for way in (of_splits(7), of_cascade(40), of_tiles(5, 3)):
        found = operators(DISTINCT, 3, 1, 40, causal=way)
        assert [op.flops for op in found] == [op.flops for op in square]


def test_what_is_no_way_is_refused():
    for wrong in ("window", None, 3):
        with pytest.raises(ValueError, match="is not one of square"):
            one_pass(DISTINCT, 1, 1, causal=wrong)
    with pytest.raises(ValueError, match="memory is known of square"):
        activation_peak(DISTINCT, 1, 1, causal=of_tree())
