"""OliVe: pairs by hand, the released code's numbers, and where it pays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, random_model, seeds, token_ids
from test_compression_packed import dequantised, merged
from test_weight import MATRICES, logits_of
from tolerances import assert_same

from npllama.compression import ant
from npllama.compression.grid import from_codes
from npllama.compression.olive import (
    RATIOS,
    abfloat,
    byte_table,
    decode,
    encode,
    olive,
    olive_format,
    packed_olive,
    search,
    three_sigma,
    values,
    victims,
)
from npllama.files.checkpoint import load, save
from npllama.ops import rowwise

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = np.load(ROOT / "tests" / "goldens" / "ant_olive.npz")
CASES = [
    (i, name, mode, int(bits), activations == "True")
    for i, (name, mode, bits, activations) in enumerate(GOLDEN["olive.cases"].tolist())
]
FEW = RATIOS[::29]
INT, FLINT = olive_format("int"), olive_format("flint")


def relative_error(w, value):
    return ((value - w) ** 2).sum() / (w**2).sum()


def spiked(seed, shape=(16, 64), share=0.03):
    """Normal numbers of which a few are many times larger."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape)
    far = rng.random(shape) < share
    w[far] *= rng.uniform(5, 60, far.sum())
    return w


# ---- the released code ---------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[1]}-{c[2]}-{c[3]}-{c[4]}")
def test_numbers_are_those_of_the_released_code(case):
    i, name, mode, bits, activations = case
    x = GOLDEN[f"x.{name}"].astype(np.float64)
    kinds = ("int", "flint") if mode.startswith("ant-") else (mode,)
    group = "tensor" if activations else "channel"
    found = olive(x, bits, group, kinds, "first", released=True)
    assert found.format.name[:-1] == str(GOLDEN[f"olive.{i}.kind"])
    alpha = GOLDEN[f"olive.{i}.alpha"].reshape(-1, 1)
    np.testing.assert_allclose(found.scale * found.format.top, alpha, rtol=1e-12)
    step = GOLDEN[f"olive.{i}.y"] / (alpha / found.format.top)
    np.testing.assert_allclose(step, np.round(step), atol=1e-9, rtol=1e-12)
    assert_same(decode(found.codes, found.format), np.round(step).astype(np.float32))


def test_recorded_tensors_have_outliers_of_both_kinds():
    sizes = [np.abs(GOLDEN[f"olive.{i}.y"]) for i, *_ in CASES]
    tops = [GOLDEN[f"olive.{i}.alpha"] for i, *_ in CASES]
    assert sum((y > top * 1.5).sum() for y, top in zip(sizes, tops, strict=True)) > 20


# ---- by hand -------------------------------------------------------------------


def test_abfloats_begin_where_the_grid_ends():
    assert INT.outlier[:8].tolist() == [0, 12, 16, 24, 32, 48, 64, 96]
    assert FLINT.outlier[:8].tolist() == [0, 24, 32, 48, 64, 96, 128, 192]
    assert INT.outlier[8:].tolist() == [0, -12, -16, -24, -32, -48, -64, -96]
    assert (INT.top, INT.border, FLINT.top, FLINT.border) == (7, 9.5, 16, 20)
    paper, code = (olive_format("int", 8, released) for released in (False, True))
    # (8 + mantissa) << (exponent + 4), and (32 + mantissa) << (exponent + 2)
    assert paper.outlier[[1, 2, 8, 127]].tolist() == [144, 160, 256, 15 << 19]
    assert code.outlier[[1, 2, 32, 127]].tolist() == [132, 136, 256, 63 << 5]
    assert code.identifier == 128 and code.normal[129] == -127
    assert abfloat(4, 1, 8.0)[1] == 12 and abfloat(4, 1, 9.0)[1] == 24


def test_bytes_of_three_pairs():
    w = np.array([[5, -3, 96, 0.4, -0.4, -24]])
    codes = encode(w, INT)
    assert codes.tolist() == [[0b0101, 0b1101, 0b0111, 0b1000, 0b1000, 0b1011]]
    assert decode(codes, INT).tolist() == [[5, -3, 96, 0, 0, -24]]
    found = olive(w, kinds=("int",))._replace(codes=codes)
    assert packed_olive(found).codes.tolist() == [[0xD5, 0x87, 0xB8]]


def test_the_border_and_halves_go_as_released():
    w = np.array([[9.5, 1, -9.5, 1, 9.4, 1, -9.4, 1, 0.5, -0.5, 14, 1, -14, 1, 500, 1]])
    expected = [12, 0, -12, 0, 7, 1, -7, 1, 1, 0, 16, 0, -12, 0, 96, 0]
    assert decode(encode(w, INT), INT).tolist() == [expected]
    w = np.array([[20, 1, -20, 1, 19.9, 1, 28, 1, -28, 1]])
    expected = [24, 0, -24, 0, 16, 1, 32, 0, -24, 0]
    assert decode(encode(w, FLINT), FLINT).tolist() == [expected]


def test_of_two_outliers_the_paper_keeps_the_larger_and_the_code_the_first():
    w = np.array([[13.0, 90, -90, 13, 13, 13, 1, 90]])
    kept = {k: decode(encode(w, INT, k), INT).tolist()[0] for k in ("larger", "first")}
    assert kept["larger"] == [0, 96, -96, 0, 12, 0, 0, 96]
    assert kept["first"] == [12, 0, -96, 0, 12, 0, 0, 96]
    # The error is that of the number that was given up.
    w = np.tile([13.0, 90], (1, 8))
    errors = [((decode(encode(w, INT, k), INT) - w) ** 2).sum() for k in kept]
    assert errors[0] * 10 < errors[1]


def test_no_normal_number_has_the_identifier():
    assert INT.normal[8] == 0 == FLINT.normal[8]
    w = np.array([[-8.0, -7.6, -9, 0.0, -0.0, -0.2]])
    for format in (INT, FLINT):
        assert (encode(w, format) != 8).all()
    assert decode(encode(w, INT), INT)[0, :3].tolist() == [-7, -7, -7]


def test_the_last_input_of_an_odd_row_is_alone():
    w = np.array([[1.0, 2, 90], [90, 1, 2]])
    codes = encode(w, INT)
    assert codes.shape == (2, 4)
    assert decode(codes, INT)[:, :3].tolist() == [[1, 2, 96], [96, 0, 2]]
    weight = packed_olive(olive(w, kinds=("int",))._replace(codes=codes))
    assert (weight.dense() / weight.scale).tolist() == [[1, 2, 96], [96, 0, 2]]


def test_every_pair_has_a_byte_of_its_own():
    for format in (INT, FLINT):
        table = byte_table(format)
        pairs = {tuple(pair) for pair in table.tolist()}
        # two normal numbers; an outlier on the left; on the right; and 0x88 for none
        assert len(pairs) == 15 * 15 + 14 + 14
        byte = np.arange(256)
        again = encode(table.astype(np.float64), format)
        used = again[:, 0] + 16 * again[:, 1] == byte
        # 0x88 is no pair; an identifier beside 0 is neither; all others come back
        assert used.sum() == 253 and not used[[0x88, 0x80, 0x08]].any()


def test_three_sigma_looks_at_the_mean_too():
    w = np.array([[1.0, 2, 3, 4, 5], [-5, -4, -3, -2, -1]])
    assert three_sigma(w, 5) == pytest.approx(3 + 3 * np.sqrt(2.5))
    assert three_sigma(w, 4)[0, 1] == 5  # of one number there is no deviation


# ---- laws ----------------------------------------------------------------------

formats = st.sampled_from(
    [INT, FLINT, olive_format("int", 8), olive_format("int", 8, True)]
)


@given(formats, st.sampled_from(["larger", "first"]), st.integers(1, 9), seeds)
@example(INT, "larger", 7, 0)
def test_what_was_rounded_stays(format, keep, S, seed):
    w = spiked(seed, (3, S), 0.3) * 3
    codes = encode(w, format, keep)
    value = decode(codes, format)
    assert_same(encode(value.astype(np.float64), format, keep), codes)
    # of a pair, at most one is an outlier, and its partner 0
    pairs = np.abs(value).reshape(3, -1, 2)
    far = pairs > format.top
    assert not far.all(-1).any() and (pairs.min(-1)[far.any(-1)] == 0).all()
    # all that are not victims go to the nearest point there is
    table = np.concatenate([format.normal, format.outlier])
    nearest = np.abs(w[..., None] - table).min(-1)
    lost = codes[:, :S] == format.identifier
    off = np.abs(value[:, :S] - w)
    np.testing.assert_allclose(off[~lost], nearest[~lost])


@given(formats, seeds)
def test_victims_are_the_smaller_or_the_second(format, seed):
    w = np.abs(spiked(seed, (2, 12), 0.5)) * 4
    border = format.border
    for keep in ("larger", "first"):
        given_up = victims(w, border, keep).reshape(2, -1, 2)
        pairs = w.reshape(2, -1, 2)
        both = (pairs >= border).all(-1)
        assert_same(given_up.any(-1), (pairs >= border).any(-1))
        assert not given_up.all(-1).any()
        kept = np.where(given_up, 0, pairs).max(-1)
        assert_same(kept[~both], pairs.max(-1)[~both])
        assert_same(
            kept[both], (pairs.max(-1) if keep == "larger" else pairs[..., 0])[both]
        )


@given(st.integers(1, 9) | st.just("channel"), seeds)
@example(3, 0)
def test_no_other_scale_errs_less(group, seed):
    w = spiked(seed, (2, 7), 0.2)
    size = 7 if group == "channel" else min(group, 7)
    scale, error = search(w, INT, size, ratios=FEW)
    found = olive(w, group=group, kinds=("int",), ratios=FEW)
    assert_same(found.scale, scale)
    np.testing.assert_allclose(((values(found) - w) ** 2).sum(), error, rtol=1e-9)
    base = three_sigma(w, size)
    base[base == 0] = 1
    for ratio in FEW:
        wide = found._replace(scale=base * ratio * 0.01 / INT.top)
        ratios = w / np.repeat(wide.scale, size, axis=1)[:, :7]
        other = values(wide._replace(codes=encode(ratios, INT)))
        assert error <= ((other - w) ** 2).sum() * (1 + 1e-12)


@given(
    st.integers(1, 9) | st.sampled_from(["channel", "tensor"]), st.integers(1, 9), seeds
)
@example("tensor", 7, 0)
@example(4, 7, 0)
def test_packed_pairs_stand_for_the_same_numbers(group, S, seed):
    w = spiked(seed, (3, S), 0.2).astype(np.float32)
    found = olive(w, group=group, ratios=FEW)
    weight = packed_olive(found)
    assert weight.format == f"olive_{found.format.name}"
    assert weight.dtype == np.float32 and weight.codes.shape == (3, -(-S // 2))
    held = found._replace(scale=weight.scale.astype(np.float32))
    assert_same(weight.dense(), values(held))
    one = olive(w.astype(np.float64), group=group, ratios=FEW)
    assert values(one).dtype == np.float64


def all_packed(model, pack):
    """The same model with every matrix of its blocks packed."""

    def of(layer):
        new = {}
        for name in MATRICES:
            w = getattr(layer, name)
            new[name] = pack(w.reshape(merged(name, w.shape))).reshape(w.shape)
        return layer._replace(**new)

    return model._replace(layers=tuple(map(of, model.layers)))


def as_olive(w):
    return packed_olive(olive(w, group=4, ratios=FEW))


def as_ant(w):
    kinds = (ant.KINDS[w.size % 3],)  # not all of one kind
    kind, grid = ant.ant(w, 4, 4, kinds, ratios=(60, 80, 100))
    return ant.packed_ant(w, kind, grid)


@pytest.mark.parametrize("pack", [as_olive, as_ant])
def test_a_packed_model_gives_the_bits_of_what_it_stands_for(pack, tmp_path):
    model = all_packed(random_model(DISTINCT, 0), pack)
    tokens = token_ids(DISTINCT, 0, 2, 5)
    with rowwise():
        one, two = logits_of(model, tokens), logits_of(dequantised(model), tokens)
    assert_same(one, two)
    formats = {getattr(layer, n).format for layer in model.layers for n in MATRICES}
    assert len(formats) > 1
    save(tmp_path / "m.npz", DISTINCT, named(model))
    with rowwise():
        assert_same(logits_of(load(tmp_path / "m.npz"), tokens), one)


def named(model):
    from test_compression_packed import tensors_of

    return tensors_of(model)


# ---- where it pays -------------------------------------------------------------


def test_published_order_of_errors():
    """OliVe of 8 bits < OliVe < ANT < int of 4 bits, wherever there are outliers."""
    rng = np.random.default_rng(0)
    for w in (
        rng.standard_t(3, (64, 64)),
        rng.standard_t(2, (64, 64)),
        spiked(0, (64, 64), 0.005),
    ):
        flat = w.reshape(1, -1)
        whole = ant.search(flat, ant.points("int", 4), w.size, (100,))[1]
        _, grid = ant.ant(flat, 4)
        kinds = ((rounded_by_ant(flat, grid) - flat) ** 2).sum()
        four, eight = (
            ((values(olive(w, bits, "tensor", ratios=RATIOS[::4])) - w) ** 2).sum()
            for bits in (4, 8)
        )
        assert eight * 5 < four and four * 1.5 < kinds and kinds * 2 < whole


def rounded_by_ant(w, grid):
    return from_codes(ant.to_ant(w, grid), grid)


@pytest.mark.slow
def test_the_tool_tells_what_outliers_cost(capsys):
    import outliers  # here, since it puts this project's folder on the path

    weights, text = ROOT / "weights" / "stories.npz", ROOT / "README.md"
    outliers.main([str(weights), str(text), "--blocks", "4", "--tokens", "24"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:5]] == list(outliers.NAMES)
    for line in lines[1:5]:
        whole, clipped, kinds, *_, eight = map(float, line.split()[4:])
        assert whole >= clipped >= kinds > 10 * eight
    assert [line[:10].strip() for line in lines[7:]] == [
        "as it is",
        "alpha 0.5",
        "alpha 0.75",
    ]
    assert all(0 < float(x) < 0.1 for line in lines[7:] for x in line[10:].split())


def test_without_outliers_it_gains_nothing():
    w = np.random.default_rng(0).uniform(-1, 1, (64, 64))
    even = ant.search(w, ant.points("int", 4), 64)[1]
    found = ((values(olive(w, ratios=RATIOS[::4])) - w) ** 2).sum()
    assert even < found
    w = np.random.default_rng(0).standard_normal((64, 64))
    even = ant.search(w.reshape(1, -1), ant.points("int", 4), w.size)[1]
    found = olive(w, group="tensor", ratios=RATIOS[::4])
    found = ((values(found) - w) ** 2).sum()
    assert found == pytest.approx(even, rel=0.15)


def test_victims_cost_as_little_as_any_and_clipping_is_ruinous():
    w = spiked(1, (64, 128), 0.005)
    far = np.abs(w) > 3 * w.std()
    given_up = victims(np.abs(w), 3 * w.std())
    chance = np.random.default_rng(0).permutation(np.flatnonzero(~far))
    random = np.isin(np.arange(w.size), chance[: given_up.sum()]).reshape(w.shape)
    lost, other = ((w**2)[some].sum() for some in (given_up, random))
    clipped = ((np.clip(w, -3 * w.std(), 3 * w.std()) - w) ** 2).sum()
    assert 0.3 < lost / other < 3 and clipped > 30 * max(lost, other)


# ---- refusals ------------------------------------------------------------------


def test_what_is_no_format_is_refused():
    for kind, bits in (("flint", 8), ("int", 5), ("pot", 4)):
        with pytest.raises(ValueError, match=f"{kind}{bits}: OliVe has int4, flint4"):
            olive_format(kind, bits)
    w = np.ones((1, 4))
    with pytest.raises(ValueError, match="keep 'last' is not one of larger, first"):
        olive(w, keep="last")
    with pytest.raises(ValueError, match="no kind of numbers is left"):
        olive(w, kinds=())
    with pytest.raises(ValueError, match="int8: a pair takes two bytes"):
        packed_olive(olive(w, 8))
    for bad in (np.nan, np.inf):
        with np.errstate(invalid="ignore"):
            with pytest.raises(ValueError, match="a number is not finite"):
                olive(np.array([[1.0, bad]]))
    assert (values(olive(np.zeros((2, 4)))) == 0).all()
