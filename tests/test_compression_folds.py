"""Folds change no function; what they do to rounding; factors of the released codes."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import DISTINCT, configs, random_model, seeds, token_ids
from test_weight import logits_of
from tolerances import assert_same

from npllama.compression.calibrate import HALVES, Inputs, inputs_of
from npllama.compression.folds import (
    PLACES,
    RoundedInputs,
    awq,
    awq_factors,
    fold,
    in_eight_bits,
    matrices,
    mean_weight,
    search,
    smooth_factors,
    smoothed,
    w8a8,
)
from npllama.compression.gptq import Recipe, objective, rtn, values_of
from npllama.compression.quality import divergence
from npllama.cost import FlopCounter

GOLDEN = np.load(Path(__file__).parent / "goldens" / "folds.npz")
places = st.sampled_from([*PLACES])


def cases(name):
    return [(i, *ast.literal_eval(c)) for i, c in enumerate(GOLDEN[f"{name}.cases"])]


def parts(rows):
    w = GOLDEN["w"].astype(np.float64)[: sum(rows)]
    return np.split(w, np.cumsum(rows)[:-1])


def sums(x):
    size = np.abs(x)
    return Inputs(x.T.dot(x), size.sum(0), size.max(0), len(x))


def factors(layer, place, seed, powers=False):
    """Factors for all channels of a place."""
    made = getattr(layer, PLACES[place].before[0])
    shape = made.shape[:-1] if made.ndim > 1 else made.shape
    rng = np.random.default_rng(seed)
    return 2.0 ** (rng.integers(-6, 7, shape) if powers else rng.normal(size=shape))


def folded(model, seed, powers=False):
    """The same model, every place of every block folded."""

    def of(layer, i):
        for place in PLACES:
            layer = fold(layer, place, factors(layer, place, seed + i, powers))
        return layer

    layers = tuple(of(layer, i) for i, layer in enumerate(model.layers))
    return model._replace(layers=layers)


def everything(layer, config, x):
    """What goes into all matrices of a block."""
    found = {}
    for half in HALVES:
        words = [word for stage in half.stages for word in stage]
        found |= inputs_of(words, half, [x], layer, config)
        x = half.run(x, layer, config)
    return found


# ---- the released codes --------------------------------------------------------


@pytest.mark.parametrize("case", cases("awq"), ids=str)
def test_factors_are_those_of_autoawq(case):
    i, rows, bits, zero, group, duo = case
    kind, size = "asymmetric" if zero else "restricted", "channel"
    recipe = Recipe(bits, kind, size if group == -1 else group)
    found = search(parts(rows), sums(GOLDEN["x"].astype(np.float64)), recipe, duo)
    # its mean of the inputs is summed in float32
    np.testing.assert_allclose(found, GOLDEN[f"awq.{i}"], rtol=1e-6)


def test_autoawq_took_many_factors():
    spread = [np.ptp(np.log(GOLDEN[f"awq.{i}"])) for i, *_ in cases("awq")]
    assert len(cases("awq")) == 32 and len({round(x, 6) for x in spread}) > 10


@pytest.mark.parametrize("case", cases("smooth"), ids=str)
def test_factors_are_those_of_smoothquant(case):
    i, rows, alpha = case
    most = np.abs(GOLDEN["x"].astype(np.float64)).max(0)
    s = smooth_factors(most, parts(rows), alpha)
    np.testing.assert_allclose(1 / s, GOLDEN[f"smooth.{i}.gain"], rtol=1e-12)
    weights = np.concatenate(parts(rows)) * s
    np.testing.assert_allclose(weights, GOLDEN[f"smooth.{i}.weights"], rtol=1e-12)


# ---- a fold is no change -------------------------------------------------------


BIASED = replace(DISTINCT, attention_bias=True, mlp_bias=True)


@given(configs(), seeds)
@example(DISTINCT, 0)
@example(BIASED, 0)
def test_a_folded_model_is_the_same_function(config, seed):
    model = random_model(config, seed, "float64")
    tokens = token_ids(config, seed, 2, 5)
    one, two = logits_of(model, tokens), logits_of(folded(model, seed), tokens)
    scale = np.abs(one).max()
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-12 * max(scale, 1))


@given(configs(), st.sampled_from(["float32", "float64"]), seeds)
@example(DISTINCT, "float32", 0)
def test_powers_of_two_change_no_bit(config, dtype, seed):
    model = random_model(config, seed, dtype)
    tokens, other = token_ids(config, seed, 2, 5), folded(model, seed, powers=True)
    assert_same(logits_of(other, tokens), logits_of(model, tokens))


@given(configs(), places, seeds)
@example(DISTINCT, "values", 0)
@example(DISTINCT, "hidden", 0)
def test_a_fold_divides_the_inputs_of_its_matrices(config, place, seed):
    model = random_model(config, seed, "float64")
    layer = model.layers[0]
    x = np.random.default_rng(seed).normal(size=(1, 4, config.hidden_size))
    s = factors(layer, place, seed)
    before = everything(layer, config, x)
    after = everything(fold(layer, place, s), config, x)
    if place == "values":
        s = np.repeat(s, layer.wq.shape[0] // len(s), axis=0)
    word = PLACES[place].after[0]
    for one, two in ((before[word].most, after[word].most),):
        np.testing.assert_allclose(two, one / s.ravel(), rtol=1e-9)
    for other in {"wq", "wo", "w_gate", "w_down"} - {word}:
        np.testing.assert_allclose(after[other].most, before[other].most, rtol=1e-9)


def test_a_fold_by_hand():
    layer = random_model(DISTINCT, 0).layers[0]
    s = np.ones(layer.w_up.shape[0], dtype=np.float32)
    s[3] = 4
    found = fold(layer, "hidden", s)
    assert_same(found.w_up[3] * 4, layer.w_up[3])
    assert_same(found.w_down[:, 3], layer.w_down[:, 3] * 4)
    assert_same(found.w_gate, layer.w_gate)
    assert found.w_up.dtype == np.float32


# ---- what it is for ------------------------------------------------------------


def test_smoothing_by_hand():
    w = [np.array([[1.0, 1], [-1, 0.5]]), np.array([[-4.0, -2]])]
    s = smooth_factors(np.array([16.0, 8]), w)
    assert s == pytest.approx([2, 2])
    assert smooth_factors(np.array([16.0, 8]), w, 1.0) == pytest.approx([16, 8])
    assert smooth_factors(np.array([16.0, 8]), w, 0.0) == pytest.approx([1 / 4, 1 / 2])
    zero = smooth_factors(np.array([0.0, 1]), [np.array([[0.0, 0]])])
    assert zero == pytest.approx([1e-5, 1e-5**-0.5])


def test_smoothed_inputs_and_weights_are_equally_large():
    model = random_model(DISTINCT, 0, "float64")
    layer = model.layers[0]
    x = np.random.default_rng(0).normal(size=(1, 9, 7)) * np.arange(1, 8)
    found = smoothed(layer, everything(layer, DISTINCT, x))
    inputs = everything(found, DISTINCT, x)
    for place, word in (("attn", "wq"), ("mlp", "w_gate")):
        heavy = np.max([np.abs(w).max(0) for w in matrices(found, place)], axis=0)
        np.testing.assert_allclose(inputs[word].most, heavy, rtol=1e-9)


def massive(seed=0):
    """A model two of whose normalised channels are many times larger than the rest."""
    model = random_model(DISTINCT, seed, "float64")

    def of(layer):
        for norm, after in (("attn_norm", "wq wk wv"), ("mlp_norm", "w_gate w_up")):
            gain = getattr(layer, norm).copy()
            gain[[2, 5]] *= 300
            new = {norm: gain}
            for word in after.split():
                w = getattr(layer, word).copy()
                w[..., [2, 5]] /= 300
                new[word] = w
            layer = layer._replace(**new)
        return layer

    return model._replace(layers=tuple(map(of, model.layers)))


def apart(model, other, tokens):
    return divergence(logits_of(model, tokens), logits_of(other, tokens)).mean()


def smoothed_model(model, tokens, alpha=0.5):
    layers, x = [], model.embed[tokens]
    config = model.config
    for layer in model.layers:
        rows = x.reshape(1, -1, x.shape[-1])
        layers.append(smoothed(layer, everything(layer, config, rows), alpha))
        for half in HALVES:
            x = np.concatenate([half.run(row[None], layer, config) for row in x])
    return model._replace(layers=tuple(layers))


@pytest.mark.parametrize("per_token", [True, False])
def test_eight_bits_are_nearer_after_smoothing(per_token):
    model = massive()
    fitted, tokens = token_ids(DISTINCT, 1, 4, 8), token_ids(DISTINCT, 2, 4, 8)
    plain = apart(model, w8a8(model, per_token), tokens)
    smooth = smoothed_model(model, fitted)
    assert apart(model, smooth, tokens) < 1e-15
    assert apart(model, w8a8(smooth, per_token), tokens) * 10 < plain


def test_eight_bits_by_hand():
    a = np.array([[127.0, 0.6, -1.4], [1.27, 0.006, -0.014]])
    assert in_eight_bits(a, "channel")[0].tolist() == [127, 1, -1]
    assert in_eight_bits(a, "channel")[1] == pytest.approx([1.27, 0.01, -0.01])
    assert in_eight_bits(a, "tensor")[1].tolist() == [1, 0, 0]
    w = np.array([[1.0, 10, 100]])
    for per_token, expected in ((True, [37, 0.37]), (False, [37, 1])):
        found = RoundedInputs(w, w.shape, per_token).times(a)
        assert found[:, 0] == pytest.approx(expected)


def test_bytes_of_eight_bits_are_counted():
    model = w8a8(random_model(DISTINCT, 0))
    with FlopCounter() as count:
        logits_of(model, token_ids(DISTINCT, 0, 1, 3))
    weights = [
        w for layer in model.layers for w in layer if isinstance(w, RoundedInputs)
    ]
    assert count.total.bytes["int8"] == sum(
        w.weight.size + 4 * len(w.weight) for w in weights
    )


# ---- AWQ -----------------------------------------------------------------------


def test_awq_factors_by_hand():
    s = awq_factors(np.array([1.0, 4, 16]), None, 0.5)
    assert s == pytest.approx([0.5, 1, 2])  # 1 2 4 over the root of 1 times 4
    s = awq_factors(np.array([1.0, 4]), np.array([0.25, 1]), 0.5)
    one, four = 1 / 0.5001, 2 / 1.0001
    assert s == pytest.approx(np.array([one, four]) / np.sqrt(one * four))
    w = [np.array([[1.0, 2, 3, 3]]), np.array([[0.0, 4, -6, 1]])]
    expected = [0.25, 1, 1, (1 + 1 / 6) / 2]
    assert mean_weight(w, 2) == pytest.approx(expected, rel=1e-5)
    # a channel that is never excited, and one whose weights are all 0
    s = awq_factors(np.array([0.0, 1]), None, 0.5)
    assert s == pytest.approx([0.01, 100])
    assert np.isfinite(awq_factors(np.array([0.0, 1]), np.array([1.0, 0]), 0.5)).all()


@given(seeds, st.booleans())
@example(0, True)
def test_no_other_rho_errs_less(seed, duo):
    rng = np.random.default_rng(seed)
    w = [rng.normal(size=(5, 16)), rng.normal(size=(3, 16))]
    x = rng.normal(size=(40, 16)) * np.exp(rng.normal(size=16))
    inputs, recipe = sums(x), Recipe(3, "restricted", 8)

    def error(s):
        return sum(
            objective(m, values_of(rtn(m * s, recipe)) / s, inputs.gram) for m in w
        )

    best = error(search(w, inputs, recipe, duo))
    heavy = mean_weight(w, 8) if duo else None
    for step in (0, 7, 13, 19):
        assert best <= error(awq_factors(inputs.mean, heavy, step / 20)) * (1 + 1e-9)
    if not duo:  # rho = 0 is plain rounding
        assert best <= error(np.ones(16)) * (1 + 1e-9)


def test_awq_keeps_what_large_inputs_meet():
    rng = np.random.default_rng(0)
    w = [rng.normal(size=(32, 64))]
    x = rng.normal(size=(200, 64))
    x[:, [3, 40]] *= 50
    inputs, recipe = sums(x), Recipe(3, "restricted", 32)
    s = search(w, inputs, recipe)
    assert min(s[[3, 40]]) > 3 * np.delete(s, [3, 40]).max()
    plain, found = (
        objective(w[0], values_of(rtn(w[0] * f, recipe)) / f, inputs.gram)
        for f in (np.ones(64), s)
    )
    assert found * 5 < plain


@settings(max_examples=5)  # each searches eight times
@given(configs(), seeds)
@example(DISTINCT, 0)
def test_awq_gives_the_same_function(config, seed):
    model = random_model(config, seed, "float64")
    x = np.random.default_rng(seed).normal(size=(1, 6, config.hidden_size))
    layers = [
        awq(layer, everything(layer, config, x), Recipe(3, "restricted", 2))
        for layer in model.layers
    ]
    tokens = token_ids(config, seed, 2, 5)
    one = logits_of(model, tokens)
    two = logits_of(model._replace(layers=tuple(layers)), tokens)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-11 * max(np.abs(one).max(), 1))


def test_awq_leaves_values_alone_that_query_heads_share():
    x = np.random.default_rng(0).normal(size=(1, 6, 7))
    layer = random_model(DISTINCT, 0, "float64").layers[0]
    found = awq(layer, everything(layer, DISTINCT, x), Recipe(3, "restricted", 2))
    assert_same(found.wo, layer.wo)
    config = replace(DISTINCT, num_key_value_heads=6)
    layer = random_model(config, 0, "float64").layers[0]
    found = awq(layer, everything(layer, config, x), Recipe(3, "restricted", 2))
    assert (found.wo != layer.wo).any()


# ---- refusals ------------------------------------------------------------------


def test_factors_that_do_not_fit_are_refused():
    layer = random_model(DISTINCT, 0).layers[0]
    with pytest.raises(ValueError, match=r"factors of \(3,\); attn_norm has .*\(7,\)"):
        fold(layer, "attn", np.ones(3))
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="not a finite number above 0"):
            fold(layer, "attn", np.full(7, bad))
    with pytest.raises(ValueError, match="alpha 1.5: from 0 to 1"):
        smoothed(layer, {}, 1.5)
