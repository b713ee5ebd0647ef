"""What the laws of the samplers are tried on.

Sizes and a seed are drawn, the numbers come from `default_rng(seed)`: that is
several times faster than drawing numbers, and shrinks to the same small cases.
"""

import numpy as np
import sampling_cases as cases
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
TIED, FEW, EQUAL, HUGE, CLOSE, FEW_EQUAL, SIXTYFOURTHS = range(1, 8)


@st.composite
def rows(draw, kinds=range(8), min_size=1, max_size=64):
    """Draw one row of logits, (V,) float32, with at least one finite value."""
    rng = np.random.default_rng(draw(seeds))
    size = draw(st.integers(min_size, max_size))
    return cases.row_of(rng, size, draw(st.sampled_from(list(kinds))))


@st.composite
def distinct_rows(draw, min_size=1, max_size=64):
    """Draw a row without ties, (V,) float32, its values well apart."""
    rng = np.random.default_rng(draw(seeds))
    size = draw(st.integers(min_size, max_size))
    steps = rng.uniform(0.05, 1.0, size)
    return rng.permutation(np.cumsum(steps) - steps.sum() / 2).astype(np.float32)


@st.composite
def batches(draw, max_size=40):
    """Draw a batch of rows of different kinds, (B, V) float32."""
    rng = np.random.default_rng(draw(seeds))
    size, count = draw(st.integers(1, max_size)), draw(st.integers(1, 4))
    return np.stack([cases.row_of(rng, size, rng.integers(8)) for _ in range(count)])


@st.composite
def histories(draw, size, max_length=24):
    """Draw a text of few different tokens, so that passages return."""
    rng = np.random.default_rng(draw(seeds))
    return rng.integers(0, min(size, 4), draw(st.integers(0, max_length)))


@st.composite
def rows_with_histories(draw, kinds=range(8), max_length=24):
    """Draw a row and the tokens that led to it."""
    row = draw(rows(kinds))
    return row, draw(histories(row.size, max_length))


def shares(low=0.0, high=1.0):
    """Draw a number between, no round one: no sum meets it exactly."""
    return seeds.map(lambda seed: float(np.random.default_rng(seed).uniform(low, high)))


def kept(logits):
    """Return which tokens are left, as a mask."""
    return np.asarray(logits) > -np.inf


def count(logits):
    """Count the tokens that are left."""
    return int(np.count_nonzero(kept(logits)))
