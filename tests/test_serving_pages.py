"""Who holds which page: nothing leaks, nothing is shared that differs."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT

from npllama.cache import KVCache
from npllama.serving.blocks import (
    chain,
    copied,
    drop,
    fork,
    grow,
    match,
    new_blocks,
    pages_for,
    publish,
    shrink,
    take,
)
from npllama.serving.pages import as_run, copy_page, gather, new_pool, places

# ---- where positions lie ----------------------------------------------------


@given(st.permutations(range(7)), st.integers(1, 5), st.integers(0, 35))
@example([2, 0, 5, 1, 3, 4, 6], 4, 10)
def test_a_position_lies_on_its_page(order, P, S):
    S = min(S, 7 * P)
    table = order[: pages_for(S, P)]
    found = places(table, S, P).tolist()
    assert found == [table[p // P] * P + p % P for p in range(S)]
    assert len(set(found)) == S


def test_a_run_of_pages_is_read_without_a_copy():
    pool = new_pool(DISTINCT, 5, 3, "float32")
    pool.k[:] = np.arange(15)[:, None]
    for table, shared in [((1, 2, 3), True), ((1, 3), False), ((2, 1), False)]:
        where = places(table, 3 * len(table) - 1, 3)
        keys = gather(pool.k[0], as_run(where))
        assert np.shares_memory(keys, pool.k) == shared
        assert keys[0, 0, :, 0].tolist() == where.tolist()


def test_a_copied_page_is_equal_in_all_layers_and_no_other_page_changes():
    pool = new_pool(DISTINCT, 4, 3, "float64")
    rng = np.random.default_rng(0)
    before = KVCache(*(rng.standard_normal(pool.k.shape) for _ in "kv"), pool.length)
    pool.k[:], pool.v[:] = before.k, before.v
    copy_page(pool, 3, 1, 3)
    for now, old in zip(pool[:2], before[:2]):
        np.testing.assert_array_equal(now[:, :, :, 3:6], old[:, :, :, 9:12])
        now[:, :, :, 3:6] = old[:, :, :, 3:6]
        np.testing.assert_array_equal(now, old)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (2.0, 4), (True, 4)])
def test_an_empty_pool_is_refused(sizes):
    with pytest.raises(ValueError, match="must be a whole number, 1 or more"):
        new_pool(DISTINCT, *sizes, "float32")


# ---- an outside truth -------------------------------------------------------


def test_vllms_example_of_ten_blocks_comes_out_number_for_number():
    # vLLM, docs/design/prefix_caching.md: blocks of 4, a pool of 10.
    blocks, first = new_blocks(10, 4), list(range(100, 117))
    one = take(blocks, (), 15)
    publish(blocks, one, chain(first[:15], 4))
    assert one == (0, 1, 2, 3)
    one, copies = grow(blocks, one, 16, 17)
    publish(blocks, one, chain(first, 4))
    assert (one, copies) == ((0, 1, 2, 3, 4), [])

    names = chain([*first[:10], 1, 2, 3, 4], 4)
    hits = match(blocks, names, 13)
    two = take(blocks, hits, 14)
    publish(blocks, two, names)
    assert (hits, two) == ((0, 1), (0, 1, 5, 6))

    drop(blocks, one)
    assert list(blocks.free) == [7, 8, 9, 4, 3, 2]
    drop(blocks, two)
    assert list(blocks.free) == [7, 8, 9, 4, 3, 2, 6, 5, 1, 0]

    names = chain([*first[:12], *range(17)], 4)
    hits = match(blocks, names, 28)
    assert hits == (0, 1, 2)
    assert take(blocks, hits, 29) == (0, 1, 2, 7, 8, 9, 4, 3)
    assert list(blocks.free) == [6, 5]


# ---- names ------------------------------------------------------------------


def test_a_name_stands_for_the_whole_text_up_to_the_end_of_the_page():
    names = chain([1, 2, 3, 4, 5], 2)
    assert len(names) == 2  # the fifth token fills no page
    assert chain([1, 2, 9, 4], 2)[0] == names[0]
    for other in ([9, 2, 3, 4], [1, 2, 3, 9], [3, 4, 3, 4], [1, 2 + 2**32, 3, 4]):
        assert chain(other, 2)[1] != names[1]
    assert chain([1, 2, 1, 2], 2)[0] != chain([1, 2, 1, 2], 2)[1]
    assert not set(names) & set(chain([1, 2, 3, 4], 2, salt="another tenant"))
    assert chain([1, 2, 3, 4, 5, 6], 2, known=names) == chain([1, 2, 3, 4, 5, 6], 2)


def test_pages_are_found_up_to_the_first_that_is_not_there():
    blocks, tokens = new_blocks(6, 2), [1, 2, 3, 4, 5, 6]
    table, names = take(blocks, (), 6), chain(tokens, 2)
    publish(blocks, table, names)
    assert match(blocks, names, 6) == (0, 1, 2)
    assert match(blocks, names, 5) == (0, 1)  # one token must be left to run
    assert match(blocks, names, 1) == ()
    other = chain([1, 2, 9, 9, 5, 6], 2)
    assert match(blocks, other, 6) == (0,)
    # The second page is gone: the third alone is of no use.
    del blocks.page_of[names[1]], blocks.name_of[1]
    assert match(blocks, names, 6) == (0,)


def test_of_two_equal_pages_the_first_keeps_the_name():
    blocks, names = new_blocks(4, 2), chain([1, 2], 2)
    one, two = take(blocks, (), 2), take(blocks, (), 2)
    publish(blocks, one, names)
    publish(blocks, two, names)
    assert match(blocks, names, 2) == one
    drop(blocks, two)
    drop(blocks, one)
    assert match(blocks, names, 2) == one and two[0] not in blocks.name_of


def test_a_free_page_keeps_its_name_until_it_is_dealt_out():
    blocks, names = new_blocks(3, 2), chain([1, 2], 2)
    table = take(blocks, (), 2)
    publish(blocks, table, names)
    drop(blocks, table)
    assert take(blocks, (), 4) == (1, 2)
    assert match(blocks, names, 2) == (0,)
    assert take(blocks, (), 2) == (0,)
    assert match(blocks, names, 2) == () and blocks.name_of == {}


# ---- taking and giving back -------------------------------------------------


def test_pages_that_are_found_while_free_are_not_there_for_the_rest():
    blocks, names = new_blocks(3, 2), chain([1, 2, 3, 4], 2)
    table = take(blocks, (), 4)
    publish(blocks, table, names)
    drop(blocks, table)
    hits, before = match(blocks, names, 4), copied(blocks)
    assert take(blocks, hits, 8) is None and blocks == before
    assert take(blocks, hits, 6, spare=1) is None and blocks == before
    assert take(blocks, hits, 6) == (0, 1, 2) and not blocks.free


def test_a_text_that_writes_into_a_shared_page_gets_a_copy_and_the_last_holder_none():
    blocks = new_blocks(9, 4)
    one = take(blocks, (), 6)
    two, three = fork(blocks, one), fork(blocks, one)
    two, copies = grow(blocks, two, 6, 7)
    assert (two, copies) == ((0, 2), [(1, 2)])
    three, copies = grow(blocks, three, 6, 9)
    assert (three, copies) == ((0, 3, 4), [(1, 3)])
    assert grow(blocks, one, 6, 7) == ((0, 1), [])
    assert blocks.held[:5] == [3, 1, 1, 1, 1]
    # A page that is full is shared for good.
    four = fork(blocks, two)
    assert grow(blocks, four, 8, 9) == ((0, 2, 5), [])


def test_growth_that_does_not_fit_changes_nothing():
    blocks = new_blocks(3, 2)
    one = take(blocks, (), 3)
    two = fork(blocks, one)
    before = copied(blocks)
    assert grow(blocks, two, 3, 5) is None and blocks == before
    assert grow(blocks, two, 3, 4) == ((0, 2), [(1, 2)])


def test_what_guesses_took_is_given_back():
    blocks = new_blocks(6, 2)
    table = take(blocks, (), 11)
    assert shrink(blocks, table, 5) == (0, 1, 2)
    assert list(blocks.free) == [5, 4, 3]
    assert shrink(blocks, (0, 1, 2), 6) == (0, 1, 2)


# ---- any sequence of all that -----------------------------------------------


def check(blocks, tables):
    """What must hold of the pages at any time."""
    held = Counter(page for table in tables for page in table)
    assert blocks.held == [held[page] for page in range(len(blocks.held))]
    assert set(blocks.free) == {q for q, n in enumerate(blocks.held) if n == 0}
    assert {page: name for name, page in blocks.page_of.items()} == blocks.name_of


class World:
    """Texts on pages, whose contents are kept as lists of tokens."""

    def __init__(self, pages, P):
        self.blocks, self.P = new_blocks(pages, P), P
        self.contents = [[None] * P for _ in range(pages)]
        self.texts = []  # (tokens, table, salt)
        self.found = 0

    def write(self, text, start):
        tokens, table, _ = text
        for p in range(start, len(tokens)):
            self.contents[table[p // self.P]][p % self.P] = tokens[p]

    def begin(self, tokens, salt):
        P, names = self.P, chain(tokens, self.P, salt)
        hits = match(self.blocks, names, len(tokens) - 1)
        assert len(hits) * P < len(tokens)
        table = take(self.blocks, hits, len(tokens))
        if table is None:
            return
        # What was found is the beginning of this very text.
        read = [token for page in hits for token in self.contents[page]]
        assert read == [(salt, t) for t in tokens[: len(hits) * P]]
        self.found += len(read)
        text = [(salt, t) for t in tokens], table, salt
        self.write(text, len(hits) * P)
        publish(self.blocks, table, names)
        self.texts.append(text)

    def extend(self, i, token):
        tokens, table, salt = self.texts[i]
        start = len(tokens)
        grown = grow(self.blocks, table, start, start + 1)
        if grown is None:
            return
        for source, target in grown[1]:
            self.contents[target] = list(self.contents[source])
        text = [*tokens, (salt, token)], grown[0], salt
        self.write(text, start)
        names = chain([t for _, t in text[0]], self.P, salt)
        publish(self.blocks, text[1], names)
        self.texts[i] = text

    def fork(self, i):
        tokens, table, salt = self.texts[i]
        self.texts.append((list(tokens), fork(self.blocks, table), salt))

    def end(self, i):
        drop(self.blocks, self.texts.pop(i)[1])

    def check(self):
        check(self.blocks, [table for _, table, _ in self.texts])
        for tokens, table, _ in self.texts:
            read = [self.contents[p] for p in table]
            assert [t for page in read for t in page][: len(tokens)] == tokens
            assert 0 <= len(table) * self.P - len(tokens) < self.P


@given(
    st.integers(1, 4), st.integers(1, 12), st.lists(st.integers(0, 999), max_size=60)
)
@example(2, 6, [0, 40, 2, 1, 1, 3, 3, 3, 0, 40])
def test_whatever_texts_do_nothing_leaks_and_nobody_reads_what_is_not_his(P, Q, acts):
    world = World(Q, P)
    for act in acts:
        kind, rest = act % 5, act // 5
        if kind == 0 or not world.texts:
            # Two prompts, which differ from some token on, for two tenants.
            tokens = [
                1 + (p >= rest // 4 % 7) * (rest & 1) for p in range(rest % 9 + 1)
            ]
            world.begin(tokens, "ab"[rest // 2 % 2])
        elif kind == 1:
            world.fork(rest % len(world.texts))
        elif kind == 2:
            world.end(rest % len(world.texts))
        else:
            world.extend(rest % len(world.texts), rest % 3)
        world.check()
    while world.texts:
        world.end(0)
    world.check()
    assert len(world.blocks.free) == Q


def test_such_a_world_does_find_pages_of_others():
    world = World(8, 2)
    world.begin([1, 2, 3, 4, 5], "a")
    world.begin([1, 2, 3, 4, 6], "a")
    world.begin([1, 2, 3, 4, 6], "b")
    world.check()
    assert world.found == 4
