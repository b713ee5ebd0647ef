"""Who holds which page: nothing leaks, nothing is shared that differs."""

from npllama.serving.blocks import (
    chain,
    drop,
    grow,
    match,
    new_blocks,
    publish,
    take,
)


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
