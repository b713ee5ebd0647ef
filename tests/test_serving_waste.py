"""Where the places of a cache go: the allocator's laws, the bars that were published."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import seeds

from npllama.serving.buddy import block_for, give_back, new_buddy, take

# ---- the buddy allocator ----------------------------------------------------


def blocks_of(buddy):
    """(address, size) of every block, free or taken."""
    free = [(a, size) for size, some in buddy.free.items() for a in some]
    return free, list(buddy.taken.items())


def check(buddy, total):
    """The blocks tile all places, and no two buddies are free at once."""
    free, taken = blocks_of(buddy)
    places = sorted(free + taken)
    assert [a for a, _ in places] == np.cumsum([0, *(s for _, s in places)])[
        :-1
    ].tolist()
    assert sum(size for _, size in places) == total
    for address, size in free:
        assert (address ^ size, size) not in free
    for address, size in places:
        assert size == block_for(size) and address % size == 0


@given(st.integers(1, 200), seeds, st.integers(1, 40))
@example(12, 0, 40)
@example(16, 1, 40)
def test_blocks_tile_the_memory_whatever_is_taken_and_given_back(total, seed, n):
    rng, buddy = np.random.default_rng(seed), new_buddy(total)
    empty = new_buddy(total)
    for _ in range(n):
        if buddy.taken and rng.random() < 0.4:
            give_back(buddy, int(rng.choice(list(buddy.taken))))
        else:
            n = int(rng.integers(1, total + 2))
            largest = max((s for s, some in buddy.free.items() if some), default=0)
            address = take(buddy, n)
            assert (address is None) == (block_for(n) > largest)
            if address is not None:
                assert buddy.taken[address] == block_for(n)
        check(buddy, total)
    for address in list(buddy.taken):
        give_back(buddy, address)
    assert buddy == empty


def test_a_block_is_halved_and_its_halves_become_one_again():
    buddy = new_buddy(8)
    assert [take(buddy, n) for n in (1, 2, 3)] == [0, 2, 4]
    assert buddy.free[1] == {1: None} and take(buddy, 2) is None
    give_back(buddy, 2)
    assert buddy.free[2] == {2: None}
    give_back(buddy, 0)
    assert buddy.free[4] == {0: None} and not buddy.free[1] and not buddy.free[2]


def test_seven_contexts_of_2048_fit_into_the_published_memory():
    buddy = new_buddy(15_728)
    assert [take(buddy, 2048) is not None for _ in range(8)] == [True] * 7 + [False]
    assert take(buddy, 1024) is not None


def test_senseless_sizes_are_refused():
    with pytest.raises(ValueError, match="total"):
        new_buddy(0)
    with pytest.raises(ValueError, match="n: 0"):
        take(new_buddy(4), 0)
