"""The forward pass gives llama.cpp's logits too, recorded by model_llamacpp.py."""

from pathlib import Path

import numpy as np
import pytest
from goldens.model_cases import CASES, model_of, tokens_of

import npllama

GOLDEN = np.load(Path(__file__).parent / "goldens" / "model_llamacpp.npz")
# Of the logits' range.  llama.cpp orders its sums differently, and some of its
# functions are approximations.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_logits_equal_those_of_llamacpp(name):
    case = next(case for case in CASES if case.name == name)
    model, tokens = model_of(case), tokens_of(case)[:1]
    cache = npllama.new_cache(model.config, 1, tokens.shape[1])
    found = npllama.forward(model, tokens, cache)[0]
    error = np.abs(found - GOLDEN[name]).max() / np.ptp(GOLDEN[name])
    assert error < TOLERANCE


def test_llamacpp_knew_grouped_heads_biases_and_scaled_positions():
    assert {"mha", "gqa", "all_biases_tied", "linear", "yarn"} <= set(GOLDEN)
