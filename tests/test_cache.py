"""Chapter 6: the cache."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, dtypes, normal, random_model, seeds
from tolerances import assert_same

from npllama import forward
from npllama.cache import append, new_cache


@given(st.integers(1, 3), st.integers(0, 5), st.data(), seeds, dtypes)
def test_append_writes_the_new_positions_and_nothing_else(B, T, data, seed, dtype):
    K, N, D = 3, 11, 2
    rows = st.lists(st.integers(0, N - T), min_size=B, max_size=B)
    start = np.array(data.draw(rows))
    counts = st.lists(st.integers(0, T), min_size=B, max_size=B)
    count = np.array(data.draw(counts))
    before = normal([seed, 0], B, K, N, D, dtype=dtype)
    new = normal([seed, 1], B, T, K, D, dtype=dtype)
    store = before.copy()
    append(store, new, start, count)
    for b in range(B):
        for k in range(K):
            for n in range(N):
                written = start[b] <= n < start[b] + count[b]
                expected = new[b, n - start[b], k] if written else before[b, k, n]
                assert_same(store[b, k, n], expected)


@given(configs(), st.integers(1, 3), st.integers(1, 9), dtypes)
def test_new_cache_is_empty_and_of_the_models_shape(config, B, N, dtype):
    cache = new_cache(config, B, N, dtype)
    K, D = config.num_key_value_heads, config.head_dim
    for array in (cache.k, cache.v):
        assert array.shape == (config.num_hidden_layers, B, K, N, D)
        assert array.dtype == dtype
    assert cache.length.tolist() == [0] * B
    assert not np.shares_memory(cache.k, cache.v)


@pytest.mark.parametrize("batch, capacity", [(0, 5), (2, 0), (-1, 5)])
def test_cache_without_room_is_refused(batch, capacity):
    with pytest.raises(ValueError, match=f"{batch} rows and {capacity} positions"):
        new_cache(DISTINCT, batch, capacity)


def test_model_in_the_place_of_its_config_is_named():
    model = random_model(DISTINCT, 0)
    with pytest.raises(TypeError, match="config: Model found; give model.config"):
        new_cache(model, 1, 5)
    with pytest.raises(TypeError, match="cache: NoneType found; see new_cache"):
        forward(model, np.array([[1]]), None)
