"""Rounding: what a grid is, how far it moves a weight, and who calls it symmetric."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import dtypes, seeds
from tolerances import assert_same

from npllama.compression.grid import (
    ANT_EXPONENT,
    GPTQ_EXPONENT,
    KINDS,
    Grid,
    codebook_grid,
    find_grid,
    from_codes,
    nearest,
    nf4_points,
    spread,
    to_codes,
)

kinds = st.sampled_from(KINDS)
groups = st.integers(1, 9) | st.sampled_from(["channel", "tensor"])
shapes = st.tuples(st.integers(1, 4), st.integers(1, 13))
bits_of = st.integers(2, 8)


def weights(seed, shape, dtype="float64"):
    """Weights of which some are outliers, some zero, and some rows all positive."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(2, shape) * (rng.random(shape) < 0.8)
    w[rng.random(shape[0]) < 0.2] **= 2
    return w.astype(dtype)


def per_input(numbers, w, grid):
    return np.broadcast_to(spread(numbers, w.shape[1], grid.group), w.shape)


def rounded(w, grid):
    return from_codes(to_codes(w, grid), grid)


# ---- by hand -------------------------------------------------------------------

ROW = np.array([[-0.3, 0.1, 0.5, 0.9]])


def test_four_weights_by_hand():
    grid = find_grid(ROW, 2)
    assert grid.scale.tolist() == [[pytest.approx(0.4)]] and grid.zero.tolist() == [[1]]
    assert to_codes(ROW, grid).tolist() == [[0, 1, 2, 3]]
    assert rounded(ROW, grid) == pytest.approx(np.array([[-0.4, 0, 0.4, 0.8]]))


def test_three_rules_give_three_grids():
    w = np.array([[-1.0, 0.25, 0.5]])
    asymmetric, symmetric, restricted = (find_grid(w, 4, kind) for kind in KINDS)
    assert asymmetric[2:4] == (pytest.approx(1.5 / 15), 10)
    assert symmetric[2:4] == (pytest.approx(2 / 15), 8)
    assert restricted[2:4] == (pytest.approx(1 / 7), 8)
    assert restricted.lowest == 1


def test_gptqs_symmetric_grid_has_no_code_for_the_largest():
    grid = find_grid(np.array([[1.0, -1.0]]), 4, "symmetric")
    assert rounded(np.array([[1.0, -1.0]]), grid) == pytest.approx(
        np.array([[14 / 15, -16 / 15]])
    )


def test_gptqs_symmetric_grid_of_a_group_without_negatives_is_half_as_wide():
    w = np.array([[0.1, 0.5, 1.0, 0.2]])
    assert rounded(w, find_grid(w, 4, "symmetric")) == pytest.approx(
        np.array([[2 / 15, 7 / 15, 7 / 15, 0.2]])
    )
    assert rounded(w, find_grid(w, 4, "restricted"))[0, 2] == pytest.approx(1)


def test_a_group_far_from_zero_still_has_zero_in_its_grid():
    grid = find_grid(np.array([[5.0, 6.0]]), 4)
    assert grid[2:4] == (pytest.approx(0.4), 0)
    grid = find_grid(np.array([[-5.0, -6.0]]), 4)
    assert grid[2:4] == (pytest.approx(0.4), 15)


def test_zeros_get_the_grid_of_one():
    for w in (np.zeros((1, 3)), np.full((1, 3), 1e-45, dtype=np.float32)):
        assert find_grid(w, 4).scale == pytest.approx(2 / 15)
        assert (rounded(w, find_grid(w, 4)) == 0).all()
    assert (rounded(0 * w, codebook_grid(0 * w, nf4_points())) == 0).all()


def test_the_last_group_may_be_short():
    w = np.array([[1.0, 2.0, 3.0, 4.0, 7.0], [-8.0, 0.0, -4.0, 1.0, -1.0]])
    grid = find_grid(w, 3, "restricted", 2)
    assert grid.scale.tolist() == [[2 / 3, 4 / 3, 7 / 3], [8 / 3, 4 / 3, 1 / 3]]
    assert to_codes(w, grid)[0].tolist() == [6, 7, 6, 7, 7]


def test_half_goes_to_the_even_step():
    grid = Grid(4, 4, np.ones((1, 1)), np.full((1, 1), 8.0))
    w = np.array([[0.5, 1.5, 2.5, -0.5]])
    assert to_codes(w, grid).tolist() == [[8, 10, 10, 8]]


def test_eight_bits_fill_their_codes():
    w = (np.arange(256) - 128)[None] / 100
    assert to_codes(w, find_grid(w, 8))[0].tolist() == list(range(256))


# ---- laws ----------------------------------------------------------------------


@given(shapes, bits_of, kinds, groups, dtypes, seeds)
@example((2, 7), 4, "asymmetric", 3, "float32", 0)
@example((3, 5), 4, "symmetric", "tensor", "float64", 0)
@example((3, 5), 2, "restricted", "channel", "float64", 1)
def test_a_weight_inside_the_grid_moves_by_half_a_step_at_most(
    shape, bits, kind, group, dtype, seed
):
    w = weights(seed, shape, dtype)
    grid = find_grid(w, bits, kind, group)
    value, codes = rounded(w, grid), to_codes(w, grid)
    assert value.dtype == dtype and codes.dtype == np.uint8
    assert codes.max() < 2**bits and codes.min() >= grid.lowest
    scale, zero = per_input(grid.scale, w, grid), per_input(grid.zero, w, grid)
    slack = 1 + 16 * 2**bits * np.finfo(dtype).eps
    inside = w <= (2**bits - 1 - zero) * scale
    inside |= kind != "symmetric"  # the others clip nothing
    assert (np.abs(w - value) <= slack * scale / 2)[inside].all()
    assert ((value <= w) & (codes == 2**bits - 1))[~inside].all()


@given(shapes, bits_of, kinds, groups, dtypes, seeds)
def test_values_of_a_grid_stay_where_they_are(shape, bits, kind, group, dtype, seed):
    grid = find_grid(weights(seed, shape, dtype), bits, kind, group)
    chance = np.random.default_rng(seed)
    codes = chance.integers(grid.lowest, 2**bits, shape, dtype=np.uint8)
    assert_same(to_codes(from_codes(codes, grid), grid), codes)


@given(shapes, bits_of, kinds, groups, st.integers(-20, 20), seeds)
def test_scaling_by_a_power_of_two_scales_the_scales_only(
    shape, bits, kind, group, power, seed
):
    w = weights(seed, shape)
    w[:, 0] = 1  # no group of zeros alone, whose grid does not scale
    group = "channel" if group != "tensor" else group
    one, two = (find_grid(x, bits, kind, group) for x in (w, w * 2.0**power))
    assert_same(two.scale, one.scale * 2.0**power)
    assert_same(two.zero, one.zero)
    assert_same(to_codes(w * 2.0**power, two), to_codes(w, one))


@given(shapes, bits_of, kinds, st.integers(1, 9), st.booleans(), seeds)
def test_rows_are_independent(shape, bits, kind, group, clip, seed):
    w = weights(seed, shape)
    order = np.random.default_rng(seed).permutation(len(w))
    grids = [
        find_grid(x, bits, kind, group, ANT_EXPONENT if clip else None)
        for x in (w, w[order])
    ]
    assert_same(to_codes(w, grids[0])[order], to_codes(w[order], grids[1]))
    part = grids[0].take(1, 3)
    assert_same(to_codes(w[1:3], part), to_codes(w, grids[0])[1:3])


@given(shapes, bits_of, kinds, groups, st.sampled_from([2.0, 2.4]), seeds)
@example((1, 12), 2, "asymmetric", 5, 2.4, 0)
def test_clipping_never_errs_more(shape, bits, kind, group, exponent, seed):
    w = weights(seed, shape)
    free, tight = (find_grid(w, bits, kind, group, p) for p in (None, exponent))
    assert (tight.scale <= free.scale).all() and (tight.scale > 0.2 * free.scale).all()
    error = [np.abs(rounded(w, g) - w) ** exponent for g in (free, tight)]
    assert error[1].sum() <= error[0].sum()


def test_clipping_gives_up_the_outlier():
    w = np.array([[-0.5, -0.4, -0.3, -0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9]])
    for exponent in (ANT_EXPONENT, GPTQ_EXPONENT):
        tight = find_grid(w, 2, exponent=exponent)
        shrunken = 1.4 / 3 * np.array([1 - i / 100 for i in range(80)])
        errors = [
            (np.abs(rounded(w, tight._replace(scale=s[None, None])) - w) ** exponent)
            for s in shrunken
        ]
        best = np.argmin([error.sum() for error in errors])
        assert best > 0 and tight.scale == pytest.approx(shrunken[best])
    # a large error weighs more with a larger exponent
    assert find_grid(w, 2, exponent=8.0).scale > find_grid(w, 2, exponent=0.5).scale


@given(st.integers(1, 8), st.booleans(), groups, seeds)
def test_a_codebook_rounds_to_its_nearest_point(bits, clip, group, seed):
    chance = np.random.default_rng(seed)
    points = chance.permutation(np.round(chance.normal(size=2**bits), 1))
    points[0] = 3  # the largest magnitude is not zero
    w = weights(seed, (3, 7))
    grid = codebook_grid(w, points, group, ANT_EXPONENT if clip else None)
    values = per_input(grid.scale, w, grid)[..., None] * points  # (C, S, points)
    least = np.abs(values - w[..., None]).min(-1)
    np.testing.assert_allclose(np.abs(rounded(w, grid) - w), least, atol=1e-12)
    if not clip and group == "tensor":
        largest = (grid.scale * np.abs(points).max()).item()
        assert largest == pytest.approx(np.abs(w).max() or largest)


def test_equal_points_take_the_first_code_and_a_tie_the_lower_point():
    points = np.array([0.0, 1.0, -1.0, -0.0])
    assert nearest(np.array([0.0, 0.5, -0.5, 9.0]), points).tolist() == [0, 0, 2, 1]


def test_the_points_of_nf4_are_the_published_ones():
    # Dettmers et al. 2023, appendix E
    published = """
        -1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453
        -0.28444138169288635 -0.18477343022823334 -0.09105003625154495 0.0
        0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
        0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""
    assert_same(nf4_points(), np.array(published.split(), dtype=np.float32))


def relative_error(w, grid):
    return ((rounded(w, grid) - w) ** 2).mean() / (w**2).mean()


def test_errors_of_the_table():
    rng = np.random.default_rng(0)
    drawn = {
        "uniform": (rng.uniform(-1, 1, (256, 256)), 0.004, 0.004),
        "normal": (rng.standard_normal((256, 256)), 0.028, 0.012),
        "Laplace": (rng.laplace(size=(256, 256)), 0.10, 0.03),
    }
    for w, kept, clipped in drawn.values():
        found = [
            relative_error(w, find_grid(w, 4, group="tensor", exponent=p))
            for p in (None, ANT_EXPONENT)
        ]
        assert found == [
            pytest.approx(kept, rel=0.15),
            pytest.approx(clipped, rel=0.15),
        ]
    normal = drawn["normal"][0]
    nf4 = relative_error(normal, codebook_grid(normal, nf4_points()))
    even = relative_error(normal, find_grid(normal, 4, "restricted", 64))
    assert [nf4, even] == [
        pytest.approx(0.0085, abs=2e-4),
        pytest.approx(0.0117, abs=2e-4),
    ]


def test_small_groups_err_less():
    w = np.random.default_rng(0).standard_normal((64, 256))
    sizes = ["tensor", "channel", 64, 16]
    errors = [relative_error(w, find_grid(w, 4, group=size)) for size in sizes]
    assert errors == sorted(errors, reverse=True)


# ---- refusals ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9,), "9 bits, asymmetric: from 1 to 8"),
        ((0,), "0 bits"),
        ((1, "restricted"), "from 2 on if restricted"),
        ((4, "odd"), "kind 'odd' is not one of asymmetric, symmetric, restricted"),
        ((4, "symmetric", 0), "group 0: a number of inputs from 1 on"),
        ((4, "symmetric", "row"), "group 'row': .* 'channel' or 'tensor'"),
        ((4, "symmetric", True), "group True"),
    ],
)
def test_what_makes_no_grid_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_grid(ROW, *arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_refused(bad):
    w = np.array([[1.0, bad]])
    with np.errstate(invalid="ignore"):
        for kind in KINDS:
            with pytest.raises(ValueError, match="not a finite number"):
                find_grid(w, 4, kind)
        with pytest.raises(ValueError, match="not a finite number"):
            codebook_grid(w, nf4_points())


def test_codebooks_are_powers_of_two():
    with pytest.raises(ValueError, match="3 points; a codebook has 2, 4, 8"):
        codebook_grid(ROW, np.array([0.0, 1.0, 2.0]))


def test_codebooks_keep_the_dtype():
    for dtype in ("float32", "float64"):
        w = ROW.astype(dtype)
        for points in (nf4_points(), nf4_points().astype("float64")):
            grid = codebook_grid(w, points, 2, ANT_EXPONENT)
            assert {rounded(w, grid).dtype, grid.scale.dtype} == {np.dtype(dtype)}
