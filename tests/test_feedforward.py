"""Chapter 8: SwiGLU."""

import numpy as np
import pytest
import spec
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import configs, dtypes, normal, random_model, seeds
from tolerances import assert_close

from npllama.feedforward import ACTIVATIONS, feed_forward, silu
from npllama.weights import Layer


@pytest.mark.parametrize("name", ACTIVATIONS)
@given(x=hnp.arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False)))
@example(x=np.array([-np.inf, -1e30, -100.0, -0.0, np.inf], dtype=np.float32))
@example(x=np.array([-6.0, -0.7, 0.3, 1.0, 5.0], dtype=np.float32))
def test_activation_of_any_number_equals_the_spec(name, x):
    x = x[np.abs(x) < (np.inf if name == "silu" else 1e12)]  # x**3 is finite
    y = ACTIVATIONS[name](x)
    assert y.dtype == np.float32
    expected = np.array([spec.BENDS[name](float(number)) for number in x])
    # Where GELU is nearly 0, it hangs on the last bit of what the curve is asked.
    slack = 3e-7 * np.abs(x) if "gelu" in name else 0
    assert (np.abs(y - expected) <= 2e-6 * np.abs(expected) + slack + 1e-35).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_leaves_its_argument_alone(name):
    x = normal(0, 5)
    before = x.copy()
    ACTIVATIONS[name](x)
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
