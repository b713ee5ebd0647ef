"""Pieces of several texts in one row: the same logits, and nothing wasted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, dtypes, random_model, seeds, token_ids
from tolerances import assert_close, assert_same, depth

from npllama.attention import blocked
from npllama.cache import KVCache, append, new_cache
from npllama.config import Rope
from npllama.cost import FlopCounter
from npllama.cost.formulas import packed_pass, tabulate
from npllama.model import forward
from npllama.ops import rowwise
from npllama.serving.packed import as_run, forward_packed, packed

STEADY = ["default", "linear", "yarn", "llama3"]  # all but dynamic


@st.composite
def traffic(draw):
    """Lengths of texts, and passes: who gets how many tokens, in which order.

    Some texts wait, some read a piece of their prompt, some get one token.
    """
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    left, passes = list(lengths), []
    while any(left):
        order = draw(st.permutations([r for r, n in enumerate(left) if n]))
        chosen = order[: draw(st.integers(1, len(order)))]
        counts = [draw(st.integers(1, left[r]) | st.just(1)) for r in chosen]
        for r, n in zip(chosen, counts):
            left[r] -= n
        passes.append((chosen, counts))
    return lengths, passes, draw(st.booleans())


def pool(config, room, R, dtype):
    """An empty cache of one row for R texts; what is not written must not be read."""
    cache = new_cache(config, 1, room, dtype)
    cache.k[:] = cache.v[:] = np.nan
    return KVCache(cache.k, cache.v, np.zeros(R, dtype=np.int64))


def places_of(lengths, scattered, seed):
    """Places for each text, consecutive or anywhere."""
    room = sum(lengths) + 3
    free = (
        np.random.default_rng(seed).permutation(room) if scattered else np.arange(room)
    )
    return np.split(free[: sum(lengths)], np.cumsum(lengths)[:-1]), room


def run_packed(model, texts, passes, places, room):
    """Logits of every position of every text, and the pieces of each pass."""
    cache = pool(model.config, room, len(texts), model.embed.dtype.name)
    found, pieces = [[] for _ in texts], []
    for chosen, counts in passes:
        start = cache.length[chosen]
        some = KVCache(cache.k, cache.v, start.copy())
        new = [texts[r][s : s + n] for r, s, n in zip(chosen, start, counts)]
        logits = forward_packed(model, new, some, [places[r] for r in chosen], False)
        cache.length[chosen] = some.length
        for r, part in zip(chosen, np.split(logits[0], np.cumsum(counts)[:-1])):
            found[r].append(part)
        pieces.append(list(zip(start.tolist(), counts)))
    return [np.concatenate(parts) for parts in found], pieces


def run_alone(model, text):
    cache = new_cache(model.config, 1, len(text), model.embed.dtype.name)
    return forward(model, text[None], cache)[0]


# Two texts in pieces, in changing order, anywhere in the cache.
PIECES = [5, 4], [([0], [3]), ([1, 0], [2, 1]), ([0, 1], [1, 2])], True


@given(configs(STEADY), traffic(), seeds, dtypes, st.booleans())
@example(DISTINCT, PIECES, 0, "float32", True)
def test_every_text_of_a_packed_row_has_the_logits_it_has_alone(
    config, traffic, seed, dtype, exact
):
    lengths, passes, scattered = traffic
    model = random_model(config, seed, dtype)
    texts = [token_ids(config, [seed, r], n) for r, n in enumerate(lengths)]
    places, room = places_of(lengths, scattered, seed)
    with rowwise(exact):
        together, _ = run_packed(model, texts, passes, places, room)
        for text, logits in zip(texts, together):
            alone = run_alone(model, text)
            if exact:
                assert_same(logits, alone)
            else:
                scale = 1 + np.abs(alone).max()
                assert_close(logits, alone, depth(config, len(text)), scale=scale)


@given(configs(STEADY), traffic(), seeds, st.booleans())
def test_what_a_packed_pass_costs_is_what_is_predicted(config, traffic, seed, exact):
    lengths, passes, scattered = traffic
    model = random_model(config, seed)
    texts = [token_ids(config, [seed, r], n) for r, n in enumerate(lengths)]
    places, room = places_of(lengths, scattered, seed)
    with rowwise(exact), FlopCounter() as count:
        _, pieces = run_packed(model, texts, passes, places, room)
    causal = "rowwise" if exact else "blocks"
    work, squares = {}, {}
    for segments in pieces:
        steps = {cached > 0 and new == 1 for cached, new in segments}
        phase = "mixed" if len(steps) > 1 else "decode" if True in steps else "prefill"
        logits = sum(new for _, new in segments)
        one = packed_pass(config, segments, causal=causal, logits=logits)
        work[phase] = work[phase] + one if phase in work else one
        pairs = sum(new * (cached + new) for cached, new in segments)
        squares[phase] = squares.get(phase, 0) + pairs
    expected = {
        (phase, op.name): (op.calls, op.flops, op.mops, op.weights + op.cache)
        for phase, sums in work.items()
        for op in tabulate(config, sums, causal)
    }
    found = count.by("phase", "name")
    assert {k: (t.calls, t.flops, t.mops, t.kept) for k, t in found.items()} == expected
    per_pair = (
        4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    )
    for phase, both in count.attention().items():
        assert both["square"] == per_pair * squares[phase]


def test_a_packed_row_reads_the_weights_once_and_computes_no_padding():
    model = random_model(DISTINCT, 0)
    texts = [token_ids(DISTINCT, r, n) for r, n in enumerate([9, 1, 1, 1])]
    cache = pool(DISTINCT, 40, 4, "float32")
    places = np.split(np.arange(40), 4)
    with FlopCounter() as count:
        forward_packed(model, texts, cache, places)
    gate = count.by("name")["gate_proj"]
    E, F, L = 7, 11, DISTINCT.num_hidden_layers
    assert (gate.calls, gate.flops) == (L, 2 * 12 * E * F * L)
    assert count.by("name")["lm_head"].flops == 2 * 4 * E * DISTINCT.vocab_size
    assert cache.length.tolist() == [9, 1, 1, 1]


@given(configs(STEADY), seeds, st.booleans())
def test_logits_are_given_at_the_places_that_are_wanted(config, seed, exact):
    model, counts = random_model(config, seed), [3, 1, 2]
    texts = [token_ids(config, [seed, r], n) for r, n in enumerate(counts)]
    places = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])

    def logits(last):
        return forward_packed(model, texts, pool(config, 6, 3, "float32"), places, last)

    with rowwise():
        every = logits(False)
        assert_same(logits(True), every[:, [2, 3, 5]])
        assert_same(logits(np.array([5, 0])), every[:, [5, 0]])
        assert logits(np.array([], dtype=int)).shape == (1, 0, config.vocab_size)


def test_only_the_new_places_are_written():
    model = random_model(DISTINCT, 0)
    texts = [token_ids(DISTINCT, r, 2) for r in range(2)]
    cache = pool(DISTINCT, 9, 2, "float32")
    forward_packed(model, texts, cache, [np.array([7, 2]), np.array([4, 5])])
    for array in cache[:2]:
        written = np.isfinite(array).all(axis=(0, 1, 2, 4))
        assert np.flatnonzero(written).tolist() == [2, 4, 5, 7]


def test_consecutive_places_are_read_as_a_view():
    assert as_run(np.array([4, 5, 6])) == slice(4, 7)
    assert as_run(np.array([], dtype=int)) == slice(0, 0)
    for places in ([4, 6], [5, 4], [4, 4], [4, 6, 5, 7]):
        assert as_run(np.array(places)) is not None
        assert not isinstance(as_run(np.array(places)), slice)


def test_a_text_without_new_tokens_changes_nothing():
    model = random_model(DISTINCT, 0)
    texts, places = (
        [token_ids(DISTINCT, 0, 3), np.array([], int)],
        np.split(np.arange(6), 2),
    )
    cache = pool(DISTINCT, 6, 2, "float32")
    with rowwise():
        logits = forward_packed(model, texts, cache, places, last=False)
        assert_same(logits[0], run_alone(model, texts[0]))
    assert cache.length.tolist() == [3, 0]


REFUSED = {
    "too few places": (
        dict(places=[np.arange(2), np.arange(3, 6)]),
        "text 0: 2 places",
    ),
    "a token outside": (dict(texts=[[1, 2, 99], [1]]), "99 is outside the vocabulary"),
    "no room": (dict(room=2), "capacity is 2"),
    "an unsteady turn": (
        dict(config=replace(DISTINCT, rope=Rope("dynamic", 1e4, 2.0))),
        "dynamic turns by a row's length",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_packed_is_refused_and_nothing_is_written(case):
    change, message = REFUSED[case]
    given = dict(texts=[[1, 2, 3], [1]], room=9, config=DISTINCT)
    given |= dict(places=[np.arange(3), np.arange(4, 6)])
    given |= change
    cache = pool(given["config"], given["room"], 2, "float32")
    with pytest.raises(ValueError, match=message):
        forward_packed(
            random_model(given["config"], 0), given["texts"], cache, given["places"]
        )
    assert np.isnan(cache.k).all() and not cache.length.any()


def test_forward_refuses_a_packed_row_that_it_cannot_place():
    model, cache = random_model(DISTINCT, 0), pool(DISTINCT, 9, 2, "float32")
    layout = packed(cache.length, np.array([2, 1]), [np.arange(2), np.arange(2, 4)])
    tokens = token_ids(DISTINCT, 0, 1, 3)
    for count, write, message in [
        ([2, 1], append, "its own write and attend"),
        ([1, 1], layout.write, "sums to 2; the row holds 3"),
        (None, layout.write, "expected 2 numbers"),
    ]:
        count = count and np.array(count)
        with pytest.raises(ValueError, match=message):
            forward(model, tokens, cache, count, write=write, attend=blocked)
