"""How far two results may lie apart, in one place.

A sum of n products, each rounded, is off by at most n * eps times the sum of the
magnitudes of its terms.  Every comparison therefore names the length of its longest
sum (`terms`) and the size of what is summed (`scale`); the rest is SLACK, for the
few roundings that are no part of the sum.  Where two paths perform the same
operations on the same numbers, tests ask for equality instead.
"""

import numpy as np

SLACK = 8


def assert_close(actual, expected, terms, scale=None):
    """Fail unless every error is within what `terms` roundings explain.

    The precision is that of `actual`; `scale` is the largest magnitude in
    `expected` if not given.
    """
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    if scale is None:
        scale = np.abs(expected).max(initial=0)
    bound = SLACK * np.finfo(actual.dtype).eps * terms * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


def assert_same(actual, expected):
    """Fail unless every bit agrees (NaN equals NaN)."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def depth(config, S):
    """Length of all sums that a number passes through, from embedding to logits."""
    E, F = config.hidden_size, config.intermediate_size
    H, D = config.num_attention_heads, config.head_dim
    return E + config.num_hidden_layers * (4 * E + 2 * D + S + H * D + F)
