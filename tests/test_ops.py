"""Chapter 1: the product is right, counted, and refuses what does not fit."""

import math
import os
import platform
import sys
import threading
from pathlib import Path

import children
import numpy as np
import pytest
import spec
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import dtypes, normal, products, seeds
from tolerances import assert_close, assert_same

from npllama import ops
from npllama.ops import (
    FEW,
    SOME,
    Observer,
    einsum,
    enter,
    multiply,
    note,
    observing,
    row_by_row,
)


class Watcher(Observer):
    """An observer that keeps all that it is shown."""

    def __init__(self):
        self.places, self.products, self.notes = [], [], []

    def enter(self, place):
        self.places.append(place)

    def product(self, kind, a, b, y):
        self.products.append((kind.name, kind.equation, a.shape, b.shape, y.shape))

    def note(self, name, x):
        self.notes.append(name)


def summed(case):
    """How many numbers each entry of the result is the sum of."""
    out = case.equation.split("->")[1]
    return math.prod(n for c, n in case.sizes.items() if c not in out)


# ---- laws -------------------------------------------------------------------


@given(products())
def test_product_equals_numpys_einsum(case):
    y = einsum(case.equation, case.a, case.b, "y")
    expected = np.einsum(case.equation, case.a, case.b)
    assert y.dtype == case.a.dtype
    assert_close(y, expected, summed(case), scale=10)


@given(products())
def test_product_does_not_depend_on_how_the_operands_lie_in_memory(case):
    y = einsum(case.equation, case.a, case.b, "y")
    a, b = case.a.copy(order="F"), case.b.copy(order="F")
    turned = einsum(case.equation, a, b, "y")
    assert_close(turned, y, summed(case), scale=10)


@given(products(dtype="float64"), st.data())
def test_product_is_additive_over_a_split_of_a_summed_axis(case, data):
    shared = set(case.equation.split(",")[0]) & set(case.equation[:-1].split(",")[1])
    letters = [c for c in shared if c not in case.equation.split("->")[1]]
    if not letters:
        return
    letter = data.draw(st.sampled_from(sorted(letters)))
    at = data.draw(st.integers(0, case.sizes[letter]))
    left, right = case.equation.split("->")[0].split(",")
    a = np.split(case.a, [at], axis=left.index(letter))
    b = np.split(case.b, [at], axis=right.index(letter))
    parts = [einsum(case.equation, a[i], b[i], "part") for i in range(2)]
    whole = einsum(case.equation, case.a, case.b, "whole")
    assert_close(parts[0] + parts[1], whole, summed(case), scale=10)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), seeds, dtypes)
@example(2, 1, 1, 0, "float32")
@example(3, ops.BLOCK // 7, 15, 0, "float32")
@example(7, ops.BLOCK + 1, 3, 0, "float32")
def test_few_rows_times_a_matrix_equals_matmul(M, S, C, seed, dtype):
    a, b = normal([seed, 0], M, S, dtype=dtype), normal([seed, 1], C, S, dtype=dtype).T
    y = row_by_row(a, b)
    assert y.dtype == dtype
    assert_close(y, np.matmul(a, b), S, scale=10)


@pytest.mark.parametrize("M", [1, 2, FEW, FEW + 1, 33, SOME, SOME + 1, 100])
@given(S=st.integers(1, 9), C=st.integers(1, 9), seed=seeds, dtype=dtypes)
def test_any_number_of_rows_gives_the_same_product(M, S, C, seed, dtype):
    a, b = normal([seed, 0], M, S, dtype=dtype), normal([seed, 1], C, S, dtype=dtype).T
    y = multiply(a, b)
    assert y.dtype == dtype and y.flags.c_contiguous
    assert_close(y, np.matmul(a, b), S, scale=10)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 9), seeds)
def test_rows_of_a_product_do_not_depend_on_one_another(M, S, C, seed):
    x, w = normal([seed, 0], M, S), normal([seed, 1], C, S)
    clean = einsum("TE,FE->TF", x, w, "y")
    x[1:] = np.nan
    assert_close(einsum("TE,FE->TF", x, w, "y")[0], clean[0], S, scale=10)


def test_small_blocks_of_weights_give_the_same_product(monkeypatch):
    a, b = normal(0, 3, 5), normal(1, 11, 5).T
    expected = np.matmul(a, b)
    # A column that is left out must not be right by what lay there before.
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
    for block in (1, 5, 9, 10, 54, 55, 56):
        monkeypatch.setattr(ops, "BLOCK", block)
        assert_close(row_by_row(a, b), expected, 5)


# ---- spec -------------------------------------------------------------------


@given(products())
def test_product_equals_the_spec(case):
    y = einsum(case.equation, case.a, case.b, "y")
    expected = np.empty(y.shape, dtype=np.float64)
    for index, number in spec.contract(*case).items():
        expected[index] = number
    assert_close(y, expected, summed(case), scale=10)


# ---- what is refused --------------------------------------------------------


def test_axis_of_two_lengths_is_named():
    x, w = np.zeros((2, 3, 7)), np.zeros((11, 5))
    with pytest.raises(ValueError, match="^gate: BTE,FE->BTF: axis E is 7 and 5$"):
        einsum("BTE,FE->BTF", x, w, "gate")


def test_wrong_number_of_axes_is_refused():
    for a, b in [((2, 7), (11, 7)), ((2, 3, 7), (11, 7, 1))]:
        with pytest.raises(ValueError, match="^gate: BTE,FE->BTF does not fit"):
            einsum("BTE,FE->BTF", np.zeros(a), np.zeros(b), "gate")


@pytest.mark.parametrize(
    "equation", ["TE,FE->F", "TE,EF->T", "TE,EF->TG", "TT,TF->TF", "TE,EF->TFF"]
)
def test_equation_that_is_no_product_is_refused(equation):
    # A letter of one operand alone cannot be summed: that would be no product.
    x = np.ones((3, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=f"^y: {equation}: a letter is repeated"):
        einsum(equation, x, x, "y")


# ---- observers --------------------------------------------------------------


@given(products())
def test_flops_of_a_product_are_twice_the_product_of_its_letters(case):
    watcher = Watcher()
    with observing(watcher):
        einsum(case.equation, case.a, case.b, "y")
    ((name, equation, a, b, y),) = watcher.products
    assert (name, equation, a, b) == ("y", case.equation, case.a.shape, case.b.shape)
    sizes = dict(zip(equation.replace(",", "").replace("->", ""), (*a, *b, *y)))
    multiplications = len(spec.contract(*case)) * summed(case)
    assert 2 * math.prod(sizes.values()) == 2 * multiplications


def test_nothing_is_seen_outside_the_with_block():
    watcher = Watcher()
    x = np.ones((2, 2))
    with observing(watcher) as seen:
        assert seen is watcher
    einsum("TE,FE->TF", x, x, "after")
    enter("after")
    note("after", x)
    with pytest.raises(RuntimeError), observing(watcher):
        raise RuntimeError
    einsum("TE,FE->TF", x, x, "after an error")
    assert not (watcher.products or watcher.places or watcher.notes)


def test_nested_observers_each_see_their_own_block():
    outer, inner = Watcher(), Watcher()
    x = np.ones((2, 2))
    with observing(outer):
        enter("one")
        with observing(inner):
            enter("two")
            einsum("TE,FE->TF", x, x, "both")
            note("x", x)
        note("y", x)
    assert outer.places == ["one", "two"] and inner.places == ["two"]
    assert outer.notes == ["x", "y"] and inner.notes == ["x"]
    assert outer.products == inner.products and len(inner.products) == 1


def test_observers_of_two_threads_do_not_see_one_another():
    watchers = [Watcher(), Watcher()]
    both_are_watching = threading.Barrier(2, timeout=20)

    def work(i):
        with observing(watchers[i]):
            both_are_watching.wait()
            note(f"thread {i}", np.ones(1))
            both_are_watching.wait()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [w.notes for w in watchers] == [["thread 0"], ["thread 1"]]


def test_watching_does_not_change_the_product():
    a, b = normal(0, 3, 5), normal(1, 7, 5)
    alone = einsum("TE,FE->TF", a, b, "y")
    with observing(Watcher()):
        assert_same(einsum("TE,FE->TF", a, b, "y"), alone)


# ---- memory between products ------------------------------------------------

PAGES = """
import resource, sys
import numpy as np
if sys.argv[1:]:
    sys.path.insert(0, sys.argv[1])
    import npllama.ops

def silu(x):
    below = -x
    above = np.exp(below)
    del below
    above += 1
    return x / above

x = np.ones(2**19, dtype=np.float32)
for turn in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        silu(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not GNU's C library")
def test_memory_of_freed_arrays_is_kept():
    def fresh_pages(*folder):
        env = {k: v for k, v in os.environ.items() if "MALLOC" not in k.upper()}
        ran = children.run(
            [sys.executable, "-c", PAGES, *folder],
            env=env, capture_output=True, check=True, encoding="utf-8",
        )  # fmt: skip
        return int(ran.stdout)

    kept = fresh_pages(str(Path(ops.__file__).parents[1]))
    assert kept < 512 < 20 * 512 < fresh_pages()
