"""Bit-exact in any company: the law of `ops.rowwise`."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    DISTINCT,
    chunkings,
    configs,
    dtypes,
    normal,
    random_model,
    seeds,
    token_ids,
)
from tolerances import assert_same

from npllama.cache import KVCache, new_cache
from npllama.config import Config
from npllama.cost import FlopCounter
from npllama.cost.formulas import decode_steps, one_pass, tabulate
from npllama.model import forward
from npllama.ops import einsum, is_rowwise, rowwise

# Wide enough that BLAS has several kernels to choose from.
WIDE = Config(50, 77, 130, 2, 6, 3, 16, attention_bias=True, mlp_bias=True)
SHAPES = {
    "grouped, with biases": WIDE,
    "multi-head": replace(WIDE, num_key_value_heads=6, attention_bias=False),
    "multi-query": replace(WIDE, num_key_value_heads=1),
    "wider": Config(64, 288, 768, 1, 6, 2, 48),
}


def alone(model, tokens):
    """The logits of one text, read at once."""
    dtype = model.embed.dtype.name
    cache = new_cache(model.config, 1, len(tokens), dtype)
    with rowwise():
        return forward(model, tokens[None], cache)[0]


def in_company(model, tokens, chunks):
    """The logits of equally long texts, in a batch and in pieces."""
    B, T = tokens.shape
    cache = new_cache(model.config, B, T + 3, model.embed.dtype.name)
    ends = np.cumsum(chunks)
    with rowwise():
        parts = [
            forward(model, tokens[:, end - n : end], cache)
            for n, end in zip(chunks, ends)
        ]
    return np.concatenate(parts, axis=1)


@given(
    configs(), st.integers(1, 12), st.integers(1, 9).flatmap(chunkings), seeds, dtypes
)
@example(DISTINCT, 8, [1, 4, 2], 0, "float32")
def test_logits_are_the_same_bits_in_any_batch_and_any_chunking(
    config, B, chunks, seed, dtype
):
    model = random_model(config, seed, dtype)
    tokens = token_ids(config, seed, B, sum(chunks))
    together = in_company(model, tokens, chunks)
    for b in range(B):
        assert_same(together[b], alone(model, tokens[b]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_batch_size_and_chunking_of_wide_layers_gives_the_same_bits(shape, dtype):
    config = SHAPES[shape]
    model, T = random_model(config, 3, dtype), 40
    tokens = token_ids(config, 4, 12, T)
    expected = [alone(model, row) for row in tokens]
    for B in range(1, 13):
        for n in (1, 3, 7, 16, T) if B in (1, 5, 12) else (8,):
            chunks = [n] * (T // n) + [T % n] * (T % n > 0)
            for row, one in zip(in_company(model, tokens[:B], chunks), expected):
                assert_same(row, one)


def test_without_it_the_company_shows_in_the_last_bits():
    # The law above would say little if every way gave the same bits anyway.
    model = random_model(WIDE, 3)
    tokens = token_ids(WIDE, 4, 12, 40)
    cache = new_cache(WIDE, 12, 40)
    together = forward(model, tokens, cache)[0]
    assert (together != alone(model, tokens[0])).any()


@given(configs(), st.data(), seeds, dtypes)
def test_rows_of_unequal_length_are_the_same_bits_as_alone(config, data, seed, dtype):
    counts = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    starts = data.draw(st.lists(st.integers(0, 4), min_size=len(counts),
                                max_size=len(counts)))  # fmt: skip
    model, T = random_model(config, seed, dtype), max(counts)
    texts = [
        token_ids(config, b, s + n) for b, (s, n) in enumerate(zip(starts, counts))
    ]
    cache = new_cache(config, len(counts), 9, dtype)
    with rowwise():
        for b, (text, start) in enumerate(zip(texts, starts)):
            if start:
                one = KVCache(*(a[:, b : b + 1] for a in cache[:2]), np.zeros(1, int))
                forward(model, text[None, :start], one)
        cache.length[:] = starts
        tokens = np.zeros((len(counts), T), dtype=np.int64)
        for b, (text, start) in enumerate(zip(texts, starts)):
            tokens[b, : counts[b]] = text[start:]
        logits = forward(model, tokens, cache, np.array(counts))
    for b, text in enumerate(texts):
        assert_same(logits[b, : counts[b]], alone(model, text)[starts[b] :])


@given(configs(), st.integers(1, 4), st.integers(1, 9).flatmap(chunkings), seeds)
@example(DISTINCT, 3, [4, 1, 1], 0)
def test_what_it_costs_is_what_is_predicted(config, B, chunks, seed):
    model, cached, work = random_model(config, seed), 0, []
    for n in chunks:
        work.append(one_pass(config, B, n, cached, causal="rowwise"))
        cached += n
    with FlopCounter() as count:
        in_company(model, token_ids(config, seed, B, cached), chunks)
    expected = tabulate(config, sum(work[1:], work[0]), "rowwise")
    found = {n: (t.calls, t.flops, t.mops, t.kept) for n, t in count.by("name").items()}
    assert found == {
        op.name: (op.calls, op.flops, op.mops, op.weights + op.cache) for op in expected
    }


@given(configs(), st.integers(1, 4), st.integers(0, 9000), st.integers(1, 5))
def test_steps_of_decode_cost_the_sum_of_the_passes(config, B, cached, steps):
    one_by_one = [
        one_pass(config, B, 1, cached + i, causal="rowwise") for i in range(steps)
    ]
    whole = decode_steps(config, B, steps, cached, "rowwise")
    assert sum(one_by_one[1:], one_by_one[0]) == whole


@pytest.mark.parametrize("threads", ["1", "2"])
def test_it_holds_however_many_threads_blas_has(threads):
    # Threads divide large products only; how many there are is read at the start.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    code = "import test_rowwise as t; t.large_products_are_the_same_bits()"
    folder = os.path.dirname(__file__)
    places = [os.path.dirname(folder), folder]
    paths = {"PYTHONPATH": os.pathsep.join(places), **dict.fromkeys(names, threads)}
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=os.environ | paths, check=True, timeout=60)


def large_products_are_the_same_bits():
    """Check products of many rows, of a size that BLAS divides among threads."""
    a, w = (
        normal(i, *shape, dtype="float32")
        for i, shape in enumerate([(33, 900), (2100, 900)])
    )
    with rowwise():
        whole = einsum("TE,FE->TF", a, w, "y")
        for n in (1, 2, 5, 8, 32):
            assert_same(einsum("TE,FE->TF", a[:n], w, "y"), whole[:n])


def test_the_switch_is_off_again_after_the_block_and_after_an_error():
    assert not is_rowwise()
    with pytest.raises(RuntimeError), rowwise():
        assert is_rowwise()
        raise RuntimeError
    assert not is_rowwise()
    with rowwise(), rowwise(on=False):
        assert not is_rowwise()
