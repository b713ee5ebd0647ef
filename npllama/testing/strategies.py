"""Cases for samplers: strategies of Hypothesis for logits, texts, options.

Samplers fail at ties, at removed tokens, at rows of equal logits, at numbers whose
exponential overflows, and where a running sum meets a threshold exactly.  These
strategies make such rows on purpose, from few and simple numbers, so that a failing
case is easy to read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Row = NDArray[np.float32]

seeds = st.integers(0, 2**32 - 1)
GONE = float("-inf")


def array(values: Any) -> Row:
    """Make logits of numbers in lists, float32."""
    return np.array(values, np.float32)


def row(*values: float) -> Row:
    """Write down a row of logits, (V,) float32."""
    return array(values)


# Rows on which a small mistake shows.  The first three have more tokens than some
# samplers look at: the best one last, many equally good ones, and an id beyond 16 bits.
# Then the best, and two tokens just above and below half of its probability; the same
# at a quarter, after one of a half; and probabilities 1/2, 1/4, 1/8, 1/8.
RISING = array(np.arange(2000) / 8)
WIDE = array(np.arange(3000) % 7 / 8)
LAST = array(np.arange(70_000) == 69_999)
HALVES = row(0, np.log(0.5) + 2e-4, np.log(0.5) - 2e-4)
EIGHTHS = row(0, np.log(0.5), np.log(0.25) + 2e-4, np.log(0.25) - 2e-4)
HALVING = row(*np.log([1 / 2, 1 / 4, 1 / 8, 1 / 8]))


def of_values(values: st.SearchStrategy[float], most: int = 8) -> st.SearchStrategy:
    """Rows of up to `most` logits drawn one by one, at least one of them finite."""
    few = st.lists(values, min_size=1, max_size=most)
    return few.filter(lambda row: max(row) > GONE).map(array)


def integers(low: int = -4, high: int = 4) -> st.SearchStrategy[float]:
    """Whole numbers as floats: their sums and differences are exact."""
    return st.integers(low, high).map(float)


@st.composite
def equal_logits(draw: Any) -> Row:
    """Rows whose probabilities are exact: 2^n equals, the others removed or nothing.

    Sums of such probabilities are exact in every type, so that a threshold can be
    met to the last bit.
    """
    equals = 2 ** draw(st.integers(0, 4))
    value = draw(st.sampled_from([0.0, 3.0, -200.0]))
    # e^-2000 is 0 in every type: there, but never drawn.
    others = draw(st.lists(st.sampled_from([GONE, value - 2000]), max_size=4))
    return array(draw(st.permutations([value] * equals + others)))


@st.composite
def random_logits(draw: Any, most: int = 40, scales: tuple = (0.3, 2.0, 8.0)) -> Row:
    """Normal numbers, of which some may be removed."""
    rng = np.random.default_rng(draw(seeds))
    size, scale = draw(st.integers(1, most)), draw(st.sampled_from(scales))
    found = rng.standard_normal(size).astype(np.float32) * np.float32(scale)
    if draw(st.booleans()):
        found[rng.random(size) < 0.3] = GONE
        found[rng.integers(size)] = 1
    return found


def logits(large: bool = False) -> st.SearchStrategy[Row]:
    """Rows of every dangerous kind, (V,) float32 with a finite value or more.

    Parameters
    ----------
    large : bool
        Now and then as many as a thousand tokens: implementations that select
        instead of sorting have a seam somewhere.
    """
    ties = of_values(integers())
    removed = of_values(st.sampled_from([0.0, 1.0, 2.0, GONE]))
    huge = of_values(st.sampled_from([-1e4, -500.0, 0.0, 500.0, 1e4, GONE]))
    # Neighbours among floats: apart, but not by much.
    next_up = float(np.nextafter(np.float32(1), np.float32(2)))
    close = of_values(st.sampled_from([1.0, next_up, 0.5]))
    kinds = [ties, removed, equal_logits(), huge, close, random_logits()]
    return st.one_of(*kinds, random_logits(1000)) if large else st.one_of(*kinds)


def batches() -> st.SearchStrategy[NDArray[np.float32]]:
    """Batches of rows of different kinds, (B, V) float32."""
    values = st.sampled_from([0.0, 1.0, 2.5, -3.0, 40.0, GONE])

    def rows(size: int) -> st.SearchStrategy:
        one = st.lists(values, min_size=size, max_size=size)
        one = one.filter(lambda row: max(row) > GONE)
        return st.lists(one, min_size=1, max_size=3).map(array)

    return st.integers(1, 6).flatmap(rows)


def shares(low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[float]:
    """Numbers between, above all those that sums of exact probabilities can meet."""
    dyadic = st.integers(1, 31).map(lambda n: n / 32).filter(lambda x: low < x < high)
    # Below that a float32 is denormal, and 0 to some processors.
    least = max(low, float(np.finfo(np.float32).tiny))
    return st.one_of(dyadic, st.floats(least, high, exclude_min=True, exclude_max=True))


@st.composite
def probabilities(draw: Any, parts: int = 64, most: int = 8) -> NDArray[np.float64]:
    """Distributions in multiples of 1 / parts, (V,) float64: all sums are exact."""
    size = draw(st.integers(1, most))
    cuts = draw(st.lists(st.integers(0, parts), min_size=size - 1, max_size=size - 1))
    return np.diff([0, *sorted(cuts), parts]) / parts


def cases(**strategies: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    """Independent values by name, in this order."""
    return st.tuples(*strategies.values()).map(lambda few: dict(zip(strategies, few)))


def histories(size: int, most: int = 10) -> st.SearchStrategy[NDArray[np.int64]]:
    """Texts of few different tokens, so that passages come back, (T,) int64."""
    tokens = st.lists(st.integers(0, min(size, 3) - 1), max_size=most)
    return tokens.map(lambda text: np.array(text, np.int64))


def with_history(
    rows: st.SearchStrategy[Row] | None = None, most: int = 10
) -> st.SearchStrategy[dict[str, Any]]:
    """Rows, and a text that led to each."""
    return (logits() if rows is None else rows).flatmap(
        lambda row: cases(logits=st.just(row), history=histories(row.size, most))
    )


def joined(
    first: st.SearchStrategy[dict], **more: st.SearchStrategy
) -> st.SearchStrategy[dict[str, Any]]:
    """Add values by name to those of `first`."""
    return st.tuples(first, cases(**more)).map(lambda two: two[0] | two[1])
