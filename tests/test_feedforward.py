"""Chapter 8: SwiGLU."""

import numpy as np
import spec
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import configs, dtypes, normal, random_model, seeds
from tolerances import assert_close

from npllama.feedforward import feed_forward, silu
from npllama.weights import Layer


@given(hnp.arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False)))
@example(np.array([-np.inf, -1e30, -100.0, -0.0, np.inf], dtype=np.float32))
def test_silu_of_any_number_equals_the_spec(x):
    x = x[x > -np.inf]
    y = silu(x)
    assert y.dtype == np.float32
    expected = np.array([spec.silu(float(number)) for number in x])
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-35)


def test_silu_leaves_its_argument_alone():
    x = normal(0, 5)
    before = x.copy()
    silu(x)
    assert (x == before).all()


@given(hnp.arrays(np.float64, 5, elements=st.floats(-500, 500)))
def test_silu_of_a_number_and_its_negative_differ_by_the_number(x):
    assert_close(silu(x) - silu(-x), x, 2)


@given(configs(), st.integers(1, 3), st.integers(1, 5), seeds, dtypes)
def test_feed_forward_equals_the_spec(config, B, T, seed, dtype):
    model = random_model(config, seed, dtype)
    E, F = config.hidden_size, config.intermediate_size
    x = normal([seed, 1], B, T, E, dtype=dtype)
    y = feed_forward(x, model.layers[0])
    weights = (None if w is None else w.tolist() for w in model.layers[0])
    layer = Layer(*weights)
    expected = [[spec.feed_forward(one, layer) for one in row] for row in x.tolist()]
    assert y.dtype == dtype
    assert_close(y, expected, E + F, scale=10)


@given(configs(), st.integers(2, 9), seeds)
def test_feed_forward_of_a_position_is_its_own_affair(config, T, seed):
    layer = random_model(config, seed, "float64").layers[-1]
    x = normal([seed, 1], 1, T, config.hidden_size)
    alone = feed_forward(x[:, :1], layer)
    x[:, 1:] = np.nan
    terms = config.hidden_size + config.intermediate_size
    assert_close(feed_forward(x, layer)[:, :1], alone, terms, scale=10)
