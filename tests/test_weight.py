"""A second operand that is not an array, in every place where a weight stands."""

from typing import NamedTuple

import numpy as np
import pytest
from backend import random_model as sharp_model
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, dtypes, normal, random_model, seeds, token_ids
from test_golden_floor import golden
from tolerances import assert_close, assert_same, depth

from npllama.cache import new_cache
from npllama.cost import FlopCounter
from npllama.golden.compare import compare
from npllama.golden.floor import floor
from npllama.model import forward
from npllama.ops import Observer, einsum, multiply, observing, rowwise

MATRICES = "wq wk wv wo w_gate w_up w_down".split()


class Transposed(NamedTuple):
    """A weight kept with the summed axes first, in float16 where that loses nothing."""

    matrix: np.ndarray  # (S, C)
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def kept(self):
        return "transposed", self.matrix.nbytes

    def times(self, a):
        return multiply(a, self.matrix.astype(self.dtype))


def transposed(weight, outputs=1):
    """Keep a weight whose first axes are its outputs the other way round."""
    C = int(np.prod(weight.shape[:outputs]))
    return Transposed(weight.reshape(C, -1).T.copy(), weight.shape, weight.dtype)


def all_transposed(model):
    """The same model, every matrix that is multiplied kept the other way round."""
    axes = {"wq": 2, "wk": 2, "wv": 2}

    def of(layer):
        changed = {n: transposed(getattr(layer, n), axes.get(n, 1)) for n in MATRICES}
        return layer._replace(**changed)

    layers = tuple(of(layer) for layer in model.layers)
    return model._replace(layers=layers, lm_head=transposed(model.lm_head))


def narrowed(model):
    """The same model in float32."""

    def narrow(weight):
        return None if weight is None else weight.astype(np.float32)

    layers = tuple(type(layer)(*map(narrow, layer)) for layer in model.layers)
    arrays = {n: narrow(getattr(model, n)) for n in ("embed", "norm", "lm_head")}
    return model._replace(layers=layers, **arrays)


def logits_of(model, tokens):
    B, T = tokens.shape
    return forward(model, tokens, new_cache(model.config, B, T, model.embed.dtype.name))


@given(configs(), st.integers(1, 3), st.integers(1, 6), seeds, dtypes, st.booleans())
def test_a_model_of_such_weights_gives_the_logits_of_one_of_arrays(
    config, B, T, seed, dtype, exact
):
    model, tokens = random_model(config, seed, dtype), token_ids(config, seed, B, T)
    with rowwise(exact):
        plain, other = (logits_of(m, tokens) for m in (model, all_transposed(model)))
    assert other.dtype == dtype
    scale = 1 + np.abs(plain).max()
    assert_close(other, plain, depth(config, T), scale=scale)


def test_rows_of_such_a_weight_are_the_same_bits_in_any_company():
    model = all_transposed(random_model(DISTINCT, 0))
    tokens = token_ids(DISTINCT, 0, 9, 5)
    with rowwise():
        together = logits_of(model, tokens)
        for b in range(9):
            assert_same(together[b : b + 1], logits_of(model, tokens[b : b + 1]))


@given(configs(), st.integers(1, 3), st.integers(1, 6), seeds)
def test_flops_are_counted_as_ever_and_bytes_as_they_are_kept(config, B, T, seed):
    model, tokens = random_model(config, seed), token_ids(config, seed, B, T)
    other = all_transposed(model)
    with FlopCounter() as plain:
        logits_of(model, tokens)
    with FlopCounter() as count:
        logits_of(other, tokens)
    assert count.total[:5] == plain.total[:5]
    weights = [getattr(layer, n) for layer in other.layers for n in MATRICES]
    kept = sum(w.kept[1] for w in [*weights, other.lm_head])
    assert count.total.bytes["transposed"] == kept
    assert sum(count.total.bytes.values()) == sum(plain.total.bytes.values())


def test_such_weights_are_seen_by_whoever_watches():
    class Watcher(Observer):
        def __init__(self):
            self.kept = {}

        def product(self, kind, a, b, y):
            self.kept[kind.name] = kind.kept, type(b)

    model = all_transposed(random_model(DISTINCT, 0))
    with observing(Watcher()) as seen:
        logits_of(model, token_ids(DISTINCT, 0, 1, 3))
    assert seen.kept.pop("scores") == seen.kept.pop("values") == (None, np.ndarray)
    assert len(seen.kept) == 8
    for kept, kind in seen.kept.values():
        assert kept[0] == "transposed" and kind is Transposed


def test_the_golden_reference_records_such_weights_and_finds_them_right_or_wrong():
    model = sharp_model(1)
    exact = golden(model)
    plain = narrowed(model)
    floors = floor(exact, model, "float32")
    right = all_transposed(plain)
    assert compare(exact, golden(right), floors, "float32").first is None
    layer = right.layers[1]
    w_up = layer.w_up._replace(matrix=layer.w_up.matrix * np.float32(1.01))
    layers = (right.layers[0], layer._replace(w_up=w_up))
    wrong = golden(right._replace(layers=layers))
    first = compare(exact, wrong, floors, "float32").first
    assert first.name == "prefill/model.layers.1.mlp.up_proj"


def test_outputs_must_come_first():
    weight = transposed(normal(0, 5, 3, dtype="float32"))
    a = normal(1, 2, 5, dtype="float32")
    with pytest.raises(
        ValueError, match="y: TF,FE->TE: a Weight has its outputs first"
    ):
        einsum("TF,FE->TE", a, weight, "y")
    with pytest.raises(ValueError, match="axis E is 5 and 3"):
        einsum("TE,FE->TF", a, weight, "y")
