"""ANT: what its bits mean, which kind it takes, and the released code's numbers."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import seeds
from tolerances import assert_same

from npllama.compression.ant import (
    KINDS,
    RELEASED_RATIOS,
    ant,
    errors,
    flint,
    packed_ant,
    points,
    search,
    to_ant,
)
from npllama.compression.grid import find_grid, from_codes, to_codes

GOLDEN = np.load(Path(__file__).parent / "goldens" / "ant_olive.npz")
CASES = [
    (i, name, mode, int(bits), activations == "True")
    for i, (name, mode, bits, activations) in enumerate(GOLDEN["ant.cases"].tolist())
]


def relative_error(w, value):
    return ((value - w) ** 2).sum() / (w**2).sum()


def rounded(w, grid):
    return from_codes(to_ant(w, grid), grid)


# ---- the released code ---------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[1]}-{c[2]}-{c[3]}-{c[4]}")
def test_numbers_are_those_of_the_released_code(case):
    i, name, mode, bits, activations = case
    x = GOLDEN[f"x.{name}"].astype(np.float64)
    kinds = KINDS if mode.startswith("ant-") else (mode,)
    group, signed = "tensor" if activations else "channel", bool((x < 0).any())
    kind, grid = ant(x, bits, group, kinds, signed or not activations, RELEASED_RATIOS)
    flat = x.reshape(1, -1) if activations else x
    their = GOLDEN[f"ant.{i}.y"].reshape(flat.shape)
    # Of 4 bits with a sign pot and float are one kind; released, either comes out.
    names = {"pot", "float"} if kind == "pot" and bits == 4 and signed else {kind}
    assert str(GOLDEN[f"ant.{i}.kind"]) in names
    alpha = GOLDEN[f"ant.{i}.alpha"].reshape(-1, 1)
    np.testing.assert_allclose(grid.scale * grid.points.max(), alpha, rtol=1e-12)
    # Its points end at 10, and are rounded to float32.
    step = their / (alpha / float(GOLDEN[f"ant.{i}.top"]))
    step *= grid.points.max() / float(GOLDEN[f"ant.{i}.top"])
    np.testing.assert_allclose(step, grid.points[to_ant(flat, grid)], rtol=1e-6)


def test_recorded_tensors_take_four_kinds():
    modes = GOLDEN["ant.cases"][:, 1]
    taken = {str(GOLDEN[f"ant.{i}.kind"]) for i, m in enumerate(modes) if "-" in m}
    assert {"int", "flint"} < taken and taken & {"pot", "float"}


# ---- by hand -------------------------------------------------------------------


def test_the_first_bit_of_a_flint_tells_an_int_from_a_float():
    assert [flint(c, 3) for c in range(8)] == [0, 1, 2, 3, 16, 8, 4, 6]
    unsigned = [*range(8), 64, 32, 16, 24, 8, 10, 12, 14]
    assert [flint(c, 4) for c in range(16)] == unsigned
    assert sorted(flint(c, 2) for c in range(4)) == [0, 1, 2, 4]


def test_points_of_four_bits():
    listed = {
        "int": [*range(8), *range(-8, 0)],
        "flint": [0, 1, 2, 3, 16, 8, 4, 6, 0, -1, -2, -3, -16, -8, -4, -6],
        "pot": [0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64],
        "float": [0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64],
    }
    for kind, expected in listed.items():
        assert points(kind, 4).tolist() == expected
    assert points("float", 4, signed=False).tolist() == [
        *(0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192),
    ]
    assert points("float", 5).tolist()[:16] == points("float", 4, False).tolist()
    assert points("pot", 3, signed=False).tolist() == [0, 1, 2, 4, 8, 16, 32, 64]


def test_half_goes_up():
    grid = search(np.array([[7.0]]), points("int", 4), 1, (100,))[0]
    assert grid.scale.tolist() == [[1]]
    w = np.array([[0.5, -0.5, 1.5, -1.5, -7.5, -9]])
    grid = grid._replace(group=6)
    assert grid.points[to_ant(w, grid)].tolist() == [[1, 0, 2, -1, -7, -8]]
    assert grid.points[to_ant(w, grid)].tolist() != to_codes(w, grid).tolist()


def test_the_first_of_equal_kinds_is_taken():
    w = np.random.default_rng(0).standard_t(2, (4, 32))
    assert ant(w, 4, kinds=("pot", "float"))[0] == "pot"
    assert ant(w, 4, kinds=("float", "pot"))[0] == "float"
    assert ant(w, 8)[0] == "int"


def test_zeros_stay_zeros():
    w = np.zeros((2, 6))
    w[1] = [1, 2, 0, 0, -3, 1]
    kind, grid = ant(w, 4)
    assert (rounded(w, grid)[0] == 0).all() and (grid.scale > 0).all()


# ---- laws ----------------------------------------------------------------------

kinds = st.sampled_from(KINDS)


@given(kinds, st.integers(3, 6), st.booleans())
def test_every_point_is_its_own_code(kind, bits, signed):
    table = points(kind, bits, signed)
    assert table.shape == (2**bits,) and (table == np.round(table)).all()
    twice = signed and kind != "int"  # a second zero
    assert len(set(table.tolist())) == 2**bits - twice
    w = table[None].astype(np.float64)
    grid = search(w, table, w.size, (100,))[0]._replace(scale=np.ones((1, 1)))
    assert_same(rounded(w, grid), w)


@given(kinds, st.integers(1, 9), seeds)
@example("flint", 5, 0)
def test_running_sums_give_the_error(kind, group, seed):
    w = np.random.default_rng(seed).standard_t(2, (3, 11))
    grid, error = search(w, points(kind, 4), group)
    np.testing.assert_allclose(error, ((rounded(w, grid) - w) ** 2).sum(), 1e-9, 1e-12)


@given(kinds, seeds)
def test_no_other_scale_errs_less(kind, seed):
    w = np.random.default_rng(seed).standard_t(3, (1, 24))
    grid, error = search(w, points(kind, 4), 24)
    for ratio in (20, 55, 100, 149):
        alone, other = search(w, points(kind, 4), 24, (ratio,))
        assert error <= other * (1 + 1e-12)
        most = np.abs(w).max() / points(kind, 4).max()
        assert alone.scale == pytest.approx(most * ratio / 100)


@given(st.sampled_from([*KINDS, None]), st.integers(1, 9), seeds)
@example(None, 3, 0)
@example("flint", 9, 1)
def test_packed_codes_stand_for_the_same_numbers(kind, group, seed):
    w = np.random.default_rng(seed).standard_t(2, (3, 7)).astype(np.float32)
    kind, grid = ant(w, 4, group, (kind,) if kind else KINDS)
    weight = packed_ant(w, kind, grid)
    assert weight.format == f"ant_{kind}4" and weight.dtype == np.float32
    held = grid._replace(scale=weight.scale.astype(np.float32))
    assert_same(weight.dense(), from_codes(to_ant(w, grid), held))


# ---- the table -----------------------------------------------------------------


def test_errors_of_the_table():
    rng = np.random.default_rng(0)
    shape = (256, 256)
    drawn = {
        "uniform": (rng.uniform(-1, 1, shape), 0.0051, 0.0045, 0.021, 0.025),
        "normal": (rng.standard_normal(shape), 0.033, 0.012, 0.015, 0.038),
        "Laplace": (rng.laplace(size=shape), 0.14, 0.026, 0.022, 0.038),
        "Student": (rng.standard_t(3, shape), 0.70, 0.16, 0.073, 0.046),
    }
    for w, kept, *listed in drawn.values():
        w = w.reshape(1, -1)
        found = [search(w, points(k, 4), w.size)[1] for k in KINDS[:3]]
        whole = search(w, points("int", 4), w.size, (100,))[1]
        for error, expected in zip([whole, *found], [kept, *listed], strict=True):
            assert error / (w**2).sum() == pytest.approx(expected, rel=0.04)


def test_the_kind_follows_the_tail():
    rng = np.random.default_rng(0)
    shape = (16, 256)
    uniform, laplace = rng.uniform(-1, 1, shape), rng.laplace(size=shape)
    assert ant(uniform, 4, "tensor")[0] == "int"
    assert ant(laplace, 4, "tensor")[0] == "flint"
    assert ant(rng.standard_t(2, shape), 4, "tensor")[0] == "pot"
    # never worse than an int that is clipped as well as can be
    grid = ant(laplace, 4)[1]
    even = search(laplace, points("int", 4), 256)[0]
    assert relative_error(laplace, rounded(laplace, grid)) < relative_error(
        laplace, rounded(laplace, even)
    )
    kept = find_grid(laplace, 4, "restricted")
    whole = from_codes(to_codes(laplace, kept), kept)
    assert relative_error(laplace, whole) > 1.8 * relative_error(
        laplace, rounded(laplace, grid)
    )


def test_errors_at_many_scales_by_hand():
    x = np.array([0.4, 1.0, -2.0])
    found = errors(x, points("int", 4), np.array([1.0, 2.0]))
    assert found == pytest.approx([0.16, 0.16 + 1.0])


# ---- refusals ------------------------------------------------------------------


def test_what_is_no_kind_is_refused():
    with pytest.raises(ValueError, match="kind 'uint' is not one of int, flint, pot"):
        points("uint", 4)
    with pytest.raises(ValueError, match="7 bits: flint has from 3 to 6"):
        points("flint", 7)
    with pytest.raises(ValueError, match="1 bits: int has from 2 to 8"):
        ant(np.ones((1, 2)), 1, kinds=("int",))
    with pytest.raises(ValueError, match="no kind of numbers is left"):
        ant(np.ones((1, 2)), kinds=())
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="a number is not finite"):
            ant(np.array([[1.0, bad]]))
