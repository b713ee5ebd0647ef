"""Chapter 4: RMSNorm."""

import numpy as np
import spec
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import dtypes, normal, seeds
from tolerances import assert_close

from npllama.norm import rms_norm

sizes = st.integers(1, 9)
epsilons = st.sampled_from([1e-6, 1e-5, 0.5])


@given(sizes, sizes, seeds, st.sampled_from([0.01, 1.0, 1000.0]))
def test_norm_does_not_see_the_scale_of_its_input(T, E, seed, scale):
    x, gain = normal([seed, 0], T, E), normal([seed, 1], E)
    y = rms_norm(x, gain, 0.0)
    assert_close(rms_norm(scale * x, gain, 0.0), y, E)
    assert_close(rms_norm(-x, gain, 0.0), -y, E)


@given(sizes, sizes, seeds)
def test_normed_vector_has_unit_root_mean_square(T, E, seed):
    y = rms_norm(normal(seed, T, E), np.ones(E), 0.0)
    assert_close(np.sqrt(np.square(y).mean(axis=-1)), np.ones(T), E)


@given(sizes, sizes, seeds, epsilons)
def test_norm_is_linear_in_the_gain(T, E, seed, eps):
    x, g, h = normal([seed, 0], T, E), normal([seed, 1], E), normal([seed, 2], E)
    together = rms_norm(x, g + 2 * h, eps)
    apart = rms_norm(x, g, eps) + 2 * rms_norm(x, h, eps)
    assert_close(together, apart, E, scale=10)


@given(sizes, sizes, seeds, epsilons)
def test_norm_of_a_position_is_its_own_affair(T, E, seed, eps):
    x, gain = normal([seed, 0], T, E), normal([seed, 1], E)
    alone = rms_norm(x[:1], gain, eps)
    x[1:] = np.inf
    with np.errstate(invalid="ignore"):
        assert_close(rms_norm(x, gain, eps)[:1], alone, E)


@given(
    hnp.arrays(np.float32, (2, 5), elements=st.floats(-1e6, 1e6, width=32)), epsilons
)
@example(np.zeros((2, 5), dtype=np.float32), 1e-6)
def test_norm_of_any_numbers_equals_the_spec(x, eps):
    gain = np.array([0.5, -1.25, 2.0, 3.0, 0.125], dtype=np.float32)
    y = rms_norm(x, gain, eps)
    expected = [spec.rms_norm(row, gain.tolist(), eps) for row in x.tolist()]
    assert y.dtype == np.float32
    assert_close(y, expected, 5, scale=3)


@given(sizes, sizes, sizes, seeds, epsilons, dtypes)
def test_norm_equals_the_spec(B, T, E, seed, eps, dtype):
    x, gain = normal([seed, 0], B, T, E, dtype=dtype), normal([seed, 1], E, dtype=dtype)
    y = rms_norm(x, gain, eps)
    assert y.dtype == dtype
    expected = [
        [spec.rms_norm(one, gain.tolist(), eps) for one in row] for row in x.tolist()
    ]
    assert_close(y, expected, E, scale=3)
