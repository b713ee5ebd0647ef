"""GPTQ gives the codes of two public implementations, and its identities hold."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from tolerances import assert_same

from npllama.compression.gptq import (
    Recipe,
    damped,
    gptq,
    inverse_factor,
    objective,
    rtn,
    values_of,
)

GOLDEN = np.load(Path(__file__).parent / "goldens" / "gptq.npz")
CASES = [
    (package, i, tuple(case))
    for package in ("auto", "model")
    for i, case in enumerate(GOLDEN[f"{package}.cases"].tolist())
]


def recipe_of(case):
    bits, sym, mse, group, act, static = case
    kind = "symmetric" if sym else "asymmetric"
    group = "channel" if group == -1 else group
    return Recipe(bits, kind, group, 2.4 if mse else None, bool(act), bool(static))


def check_codes(cases):
    w, x = (GOLDEN[name].astype(np.float64) for name in "wx")
    hessian = 2 * x.T.dot(x)
    for package, i, case in cases:
        found = gptq(w, hessian, recipe_of(case))
        their = {p: GOLDEN[f"{package}.{i}.{p}"] for p in ("codes", "zero", "groups")}
        assert_same(found.codes, their["codes"])
        np.testing.assert_array_equal(found.grid.zero, their["zero"])
        np.testing.assert_array_equal(found.groups, their["groups"])
        scale = GOLDEN[f"{package}.{i}.scale"]
        np.testing.assert_allclose(found.grid.scale, scale, rtol=1e-6)


def chosen(case):
    """Whether a plain run looks at a case: the quick ones that differ most."""
    bits, _, mse, group, act, static = case[2]
    return not mse and group == 32 and bits == 4 and (act or not static)


def test_codes_are_those_of_auto_gptq_and_gptqmodel():
    some = [case for case in CASES if chosen(case)]
    assert len(some) == 10 and {case[0] for case in some} == {"auto", "model"}
    check_codes(some)


@pytest.mark.slow
def test_codes_of_all_hundred_configurations():
    assert len(CASES) == 100
    check_codes(CASES)


# ---- identities ----------------------------------------------------------------


def layer(seed, C=5, S=23, n=40):
    """Weights, and H of correlated inputs of unlike size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)).dot(rng.standard_normal((6, S)))
    x += 0.3 * rng.standard_normal((n, S))
    x *= np.exp(rng.standard_normal(S) / 2)
    return rng.standard_normal((C, S)), x.T.dot(x)


recipes = st.builds(
    Recipe,
    bits=st.integers(2, 5),
    kind=st.sampled_from(["asymmetric", "symmetric", "restricted"]),
    group=st.sampled_from(["channel", 4, 5]),
    act_order=st.booleans(),
    static_groups=st.booleans(),
    exponent=st.sampled_from([None, None, 2.4]),
    damping=st.just(0.01),
)


def brute_force(w, hessian, recipe):
    """OBS with a fresh inverse for every column, on the grid of the whole row."""
    grid = rtn(w, recipe).grid
    codes, w, h = np.zeros(w.shape, dtype=np.uint8), w.copy(), damped(hessian, 0.01)
    order = np.argsort(-np.diag(hessian)) if recipe.act_order else range(w.shape[1])
    left = list(order)
    while left:
        j, inverse = left[0], np.linalg.inv(h[np.ix_(left, left)])
        q = np.round(w[:, j] / grid.scale[:, 0]) + grid.zero[:, 0]
        codes[:, j] = q = np.clip(q, 0, 2**recipe.bits - 1)
        e = (w[:, j] - (q - grid.zero[:, 0]) * grid.scale[:, 0]) / inverse[0, 0]
        w[:, left] -= np.outer(e, inverse[0])
        left = left[1:]
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_obs_with_a_fresh_inverse_for_every_column(act_order, seed):
    w, hessian = layer(seed)
    recipe = Recipe(3, act_order=act_order)
    assert_same(gptq(w, hessian, recipe, 4).codes, brute_force(w, hessian, recipe))


@given(recipes, st.integers(1, 25), seeds)
def test_rows_are_independent_and_h_has_no_unit(recipe, block, seed):
    w, hessian = layer(seed)
    found = gptq(w, hessian, recipe, block)
    assert_same(gptq(w[1:3], hessian, recipe, block).codes, found.codes[1:3])
    # An even power of two, whose root, which Cholesky takes, is a power of two as well.
    assert_same(gptq(w, hessian * 2.0**8, recipe, block).codes, found.codes)


@given(recipes, seeds)
def test_the_size_of_a_block_changes_nothing_if_grids_are_known(recipe, seed):
    w, hessian = layer(seed)
    recipe = recipe._replace(static_groups=True)
    one, all_ = (gptq(w, hessian, recipe, block) for block in (1, 128))
    assert_same(one.codes, all_.codes)


def test_grids_are_stale_inside_a_block():
    w, hessian = layer(0)
    one, all_ = (gptq(w, hessian, Recipe(3, group=4), block) for block in (4, 128))
    assert (one.grid.scale != all_.grid.scale).any()
    # those of finished blocks are not: the first group of a block sees its updates
    plain = rtn(w, Recipe(3, group=4)).grid.scale
    assert_same(all_.grid.scale, plain)


@given(recipes, st.integers(1, 25), seeds)
def test_the_error_is_the_objective(recipe, block, seed):
    w, hessian = layer(seed)
    found = gptq(w, hessian, recipe, block)
    h = damped(hessian, 0.01)
    whole = objective(w, values_of(found), h)
    assert found.error == pytest.approx(whole, rel=1e-8)


@given(recipes, seeds)
def test_without_correlation_it_rounds_to_the_nearest(recipe, seed):
    w, hessian = layer(seed)
    recipe = recipe._replace(static_groups=True)
    found = gptq(w, np.diag(np.diag(hessian)), recipe)
    assert_same(found.codes, rtn(w, recipe).codes)


@given(recipes, seeds)
def test_values_of_the_grid_stay_where_they_are(recipe, seed):
    w, hessian = layer(seed)
    recipe = recipe._replace(kind="restricted", static_groups=True)
    once = values_of(rtn(w, recipe))
    first = rtn(once, recipe)
    found = gptq(once, hessian, recipe)
    np.testing.assert_allclose(values_of(found), values_of(first), atol=1e-12)


def test_it_errs_less_than_rounding_and_order_helps():
    total = np.zeros(3)
    for seed in range(12):
        w, hessian = layer(seed, C=16, S=48)
        recipe = Recipe(3)
        for k, found in enumerate(
            [
                rtn(w, recipe),
                gptq(w, hessian, recipe),
                gptq(w, hessian, recipe._replace(act_order=True)),
            ]
        ):
            total[k] += objective(w, values_of(found), hessian)
    assert total[0] > 1.5 * total[1] and total[1] > 1.1 * total[2]


def test_a_factor_of_the_inverse():
    hessian = layer(0)[1]
    U, damping = inverse_factor(hessian, 0.01)
    assert damping == 0.01 and (U == np.triu(U)).all()
    product = U.T.dot(U).dot(damped(hessian, 0.01))
    np.testing.assert_allclose(product, np.eye(len(U)), atol=1e-9)
    # restricted to the last columns it is the factor of that inverse
    part = np.linalg.inv(damped(hessian, 0.01)[5:, 5:])
    np.testing.assert_allclose(U[5:, 5:].T.dot(U[5:, 5:]), part, rtol=1e-6, atol=1e-9)


def test_few_inputs_raise_the_damping():
    w, hessian = layer(0, n=3)
    hessian -= 0.2 * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    found = gptq(w, hessian, Recipe(4))
    assert 0.01 < found.damping <= 1
    with pytest.raises(ValueError, match="no inverse at any damping"):
        gptq(w, -np.eye(23), Recipe(4))


def test_dead_inputs_lose_their_weights():
    w, hessian = layer(0)
    hessian[3] = hessian[:, 3] = 0
    for recipe in (Recipe(4), Recipe(4, group=4, static_groups=True)):
        assert (values_of(gptq(w, hessian, recipe))[:, 3] == 0).all()
    w[:, 3] = 100
    whole, static = Recipe(4), Recipe(4, group=4, static_groups=True)
    # of a row, the grid sees them all the same; of a group found later, not
    assert gptq(w, hessian, whole).grid.scale.min() > 5
    assert gptq(w, hessian, static).grid.scale.max() < 5


def test_codes_of_a_codebook():
    w, hessian = layer(0)
    recipe = Recipe(4, "nf4", 8, static_groups=True)
    near, corrected = rtn(w, recipe), gptq(w, hessian, recipe)
    errors = [objective(w, values_of(found), hessian) for found in (near, corrected)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("recipe", "size", "message"),
    [
        (Recipe(), 22, r"H is \(22, 22\) for weights of 23 inputs"),
        (Recipe(group="tensor"), 23, "'tensor' has one for all"),
        (Recipe(3, "nf4"), 23, "nf4 has 4 bits, not 3"),
        (Recipe(9), 23, "9 bits"),
    ],
)
def test_what_does_not_fit_is_refused(recipe, size, message):
    with pytest.raises(ValueError, match=message):
        gptq(layer(0)[0], np.eye(size), recipe)


def test_inputs_that_are_not_numbers_are_refused():
    w, hessian = layer(0)
    hessian[0, 0] = np.nan
    with pytest.raises(ValueError, match="calibration is not a finite number"):
        gptq(w, hessian, Recipe())
