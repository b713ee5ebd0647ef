"""Packed weights: what GPTQ, AWQ and compressed-tensors wrote is read back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, seeds

from npllama.cli.main import main
from npllama.config import config_to_hf
from npllama.convert.convert import convert, open_checkpoint
from npllama.convert.layouts import Gptq, awq_codes, zero_points
from npllama.convert.packed import unpack
from npllama.convert.safetensors import open_file
from npllama.files.checkpoint import load, lost_on_the_way
from npllama.files.npz import read_npz
from npllama.weights import tensor_shapes

GOLDENS = Path(__file__).parent / "goldens" / "packed"
CASES = sorted(path.name for path in GOLDENS.iterdir())
QUANTISED = 7  # weights of a block


@pytest.fixture
def folder(tmp_path):
    """A copy of a checkpoint that gptqmodel wrote: 4 bits, groups of 32."""
    return shutil.copytree(GOLDENS / "gptq_4", tmp_path / "checkpoint")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.npz"


def refused(folder, out, capsys):
    """The one line with which ``npllama convert`` refuses a folder."""
    assert main(["convert", str(folder), str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("npllama convert: ") and not out.exists()
    return line


def load_tensors(path):
    """The arrays of a safetensors file; bfloat16 as ml_dtypes has it."""
    arrays = {name: (t.read(), t.dtype) for name, t in open_file(path).items()}
    return {
        name: a.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else a
        for name, (a, dtype) in arrays.items()
    }


def change_tensors(folder, change):
    """Change a checkpoint's tensors in place."""
    path = folder / "model.safetensors"
    tensors = load_tensors(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def change_settings(folder, **changes):
    for name, key in (("config.json", "quantization_config"),
                      ("quantize_config.json", None)):  # fmt: skip
        data = json.loads((folder / name).read_text())
        (data[key] if key else data).update(changes)
        (folder / name).write_text(json.dumps(data))


# ---- what their makers wrote ----------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_those_of_the_library_that_packed_them(case, out):
    convert(GOLDENS / case, out)
    found = read_npz(out).tensors
    with np.load(GOLDENS / case / "expected.npz") as expected:
        assert len(expected.files) == 3
        for name in expected.files:
            ours = found[name]
            if not case.startswith("gptq"):  # the others compute in float16
                ours = ours.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(ours, expected[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_what_rounding_took_is_told(case, out):
    convert(GOLDENS / case, out)
    kind, bits = case.split("_")[:2]
    kind = {"compressed": "compressed-tensors"}.get(kind, kind)
    bits = {"gemm": "4"}.get(bits, bits)
    expected = f"dequantised from {kind}, {bits} bits: {QUANTISED} tensors"
    assert lost_on_the_way(out) == [expected]
    assert "quantization_config" not in json.loads(read_npz(out).files["config.json"])


def test_weights_of_scales_times_codes_are_exact_in_float32(folder, out):
    convert(folder, out)
    tensors = load_tensors(folder / "model.safetensors")
    stem = "model.layers.0.mlp.up_proj"
    exact = tensors[f"{stem}.scales"].astype(np.float64).repeat(32, 0)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    words = tensors[f"{stem}.qweight"].view(np.uint32)[:, None]
    codes = (words >> shifts[:, None] & 15).reshape(64, 96)
    expected = exact * (codes.astype(np.float64) - 8)
    found = read_npz(out).tensors[f"{stem}.weight"]
    np.testing.assert_array_equal(found, expected.T)


# ---- laws -----------------------------------------------------------------------------


def dense(numbers, bits):
    """Numbers laid end to end, bit by bit: the spec of `unpack`, in plain loops."""
    count, columns = numbers.shape
    words = np.zeros((-(-count * bits // 32), columns), np.uint32)
    for c in range(columns):
        stream = sum(int(n) << (bits * i) for i, n in enumerate(numbers[:, c]))
        for w in range(len(words)):
            words[w, c] = stream >> (32 * w) & 0xFFFFFFFF
    return words


@given(st.integers(2, 8), st.integers(1, 70), st.integers(1, 3), seeds)
@example(3, 64, 2, 0)
def test_numbers_laid_end_to_end_come_back(bits, count, columns, seed):
    chance = np.random.default_rng(seed)
    numbers = chance.integers(0, 2**bits, (count, columns), dtype=np.uint32)
    found = unpack(dense(numbers, bits), bits, count)
    np.testing.assert_array_equal(found, numbers)


@given(seeds)
def test_awq_columns_stand_in_its_order(seed):
    codes = np.random.default_rng(seed).integers(0, 16, (3, 16), dtype=np.uint32)
    words = np.zeros((3, 2), np.uint32)
    for c in range(2):
        for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            words[:, c] |= codes[:, 8 * c + column] << np.uint32(4 * place)
    np.testing.assert_array_equal(awq_codes(words), codes)


@given(st.sampled_from([2, 3, 4, 8]), seeds)
def test_both_versions_of_gptq_say_the_same_zeros(bits, seed):
    zeros = np.random.default_rng(seed).integers(0, 2**bits, (3, 5), dtype=np.uint32)
    first = (zeros - np.uint32(1)) & np.uint32(2**bits - 1)  # 0 is stored as all ones
    for stored, less_one in ((first, True), (zeros, False)):
        found = zero_points(stored, bits, Gptq(less_one, 32, False, bits))
        np.testing.assert_array_equal(found, zeros)


@pytest.mark.parametrize("less_one", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_that_must_be_the_middle_tell_the_version(less_one, bits):
    # Checkpoints exist that say one version and hold the other.
    middle = 2 ** (bits - 1)
    for stored in (middle, middle - 1):
        given_ = np.full((2, 3), stored, np.uint32)
        found = zero_points(given_, bits, Gptq(less_one, 32, True, bits))
        np.testing.assert_array_equal(found, np.full((2, 3), middle))


# ---- how folders differ ---------------------------------------------------------------


def test_a_file_that_says_one_version_and_holds_the_other_is_read_by_its_data(
    folder, tmp_path
):
    convert(folder, tmp_path / "one.npz")

    def to_second(tensors):
        for name in [n for n in tensors if n.endswith("qzeros")]:
            assert np.all(tensors[name] == 0x77777777)
            tensors[name] = (tensors[name].view(np.uint32) + 0x11111111).view(np.int32)

    change_tensors(folder, to_second)
    convert(folder, tmp_path / "two.npz")
    one, two = (read_npz(tmp_path / f"{n}.npz").tensors for n in ("one", "two"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_folders_older_than_any_settings_are_read(folder, tmp_path):
    convert(folder, tmp_path / "new.npz")
    data = json.loads((folder / "config.json").read_text())
    del data["quantization_config"]
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "quantize_config.json").unlink()
    change_tensors(folder, lambda t: [t.pop(n) for n in [*t] if n.endswith("g_idx")])
    old = folder / "gptq_model-4bit-32g.safetensors"
    (folder / "model.safetensors").rename(old)
    convert(folder, tmp_path / "old.npz")
    new, old = (read_npz(tmp_path / f"{n}.npz").tensors for n in ("new", "old"))
    for name in new:
        np.testing.assert_array_equal(new[name], old[name])


def test_biases_that_are_zero_are_left_out_and_others_refused(folder, out, capsys):
    name = "model.layers.0.self_attn.q_proj.bias"
    change_tensors(folder, lambda t: t.update({name: np.zeros(64, np.float16)}))
    convert(folder, out)
    assert name not in read_npz(out).tensors
    out.unlink()
    change_tensors(folder, lambda t: t[name].__setitem__(3, 1))
    assert f"{name}: not zero" in refused(folder, out, capsys)


STEM = "model.layers.0.mlp.down_proj"


def cut(name, rows):
    def change(tensors):
        whole = tensors[f"{STEM}.{name}"]
        tensors[f"{STEM}.{name}"] = np.ascontiguousarray(whole[:rows])

    return change


DAMAGED = {
    "no scales": (lambda t: t.pop(f"{STEM}.scales"), "scales is missing"),
    "no zeros": (lambda t: t.pop(f"{STEM}.qzeros"), "qzeros is missing"),
    "short codes": (cut("qweight", 7), "96 inputs in 7 words"),
    "scales of nothing": (cut("scales", 0), "qzeros has shape (3, 8); expected (0, 8)"),
    "short zeros": (cut("qzeros", 2), "qzeros has shape (2, 8); expected (3, 8)"),
    "short groups": (cut("g_idx", 95), "g_idx has shape (95,); expected (96,)"),
    "codes as floats": (
        lambda t: t.update({f"{STEM}.qweight": np.ones((12, 64), np.float32)}),
        "qweight is float32 (12, 64), not a matrix of int32",
    ),
    "a group too many": (
        lambda t: t[f"{STEM}.g_idx"].__setitem__(0, 3),
        "an input is in a group that is not there",
    ),
    "a group below": (
        lambda t: t[f"{STEM}.g_idx"].__setitem__(0, -1),
        "an input is in a group that is not there",
    ),
}


@pytest.mark.parametrize(
    "case, name",
    [
        ("gptq_4_act_order", f"{STEM}.g_idx"),
        ("compressed_4", f"{STEM}.weight_shape"),
        ("gptq_4", f"{STEM}.bias"),
    ],
)
def test_part_that_is_no_number_is_named(case, name, tmp_path, out, capsys):
    folder = shutil.copytree(GOLDENS / case, tmp_path / "checkpoint")
    change_tensors(folder, lambda t: t.update({name: np.ones(96, np.bool_)}))
    line = refused(folder, out, capsys)
    assert "model.safetensors: a tensor of BOOL" in line


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_is_named(folder, out, capsys, case):
    change, words = DAMAGED[case]
    change_tensors(folder, change)
    line = refused(folder, out, capsys)
    assert words in line and "model.safetensors: " in line


REFUSED = {
    "bitsandbytes": (
        {"quant_method": "bitsandbytes"},
        "quantised by 'bitsandbytes'; of quantised ones, gptq, awq and",
    ),
    "marlin": ({"checkpoint_format": "marlin"}, "GPTQ in the format 'marlin'"),
    "gemv": ({"quant_method": "awq", "version": "gemv"}, "AWQ 'gemv' of 4 bits"),
    "float-quantized": (
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        "compressed-tensors in the format 'float-quantized'",
    ),
    "rounded activations": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"g": {"input_activations": {"num_bits": 8}}},
        },
        "quantise activations, too",
    ),
    "nothing known": ({"quant_method": 7}, "quantised by 7"),
    "a list": ({"quant_method": ["gptq"]}, "quantised by ['gptq']"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layouts_that_cannot_be_read_are_refused_by_name(folder, out, capsys, case):
    changes, words = REFUSED[case]
    change_settings(folder, **changes)
    line = refused(folder, out, capsys)
    assert f"{folder / 'config.json'}: config: " in line and words in line


def test_weights_of_mlx_are_refused_by_name(folder, out, capsys):
    data = json.loads((folder / "config.json").read_text())
    data["quantization"] = {"group_size": 64, "bits": 4}
    (folder / "config.json").write_text(json.dumps(data))
    assert "quantised by mlx" in refused(folder, out, capsys)


@given(seeds)
def test_any_bytes_changed_give_a_model_or_one_line(tmp_path_factory, seed):
    chance = np.random.default_rng(seed)
    case = CASES[seed % len(CASES)]
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(GOLDENS / case, folder, dirs_exist_ok=True)
    name = ["config.json", "model.safetensors"][seed // 7 % 2]
    data = bytearray((folder / name).read_bytes())
    for at in chance.integers(0, min(len(data), 4000), chance.integers(1, 4)):
        data[at] = chance.choice([*b'0123456789[]{}",:-e', chance.integers(256)])
    (folder / name).write_bytes(data)
    try:
        checkpoint = open_checkpoint(folder)
        arrays = {name: t.read() for name, t in checkpoint.tensors.items()}
    except (ValueError, OSError) as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert all(a.shape == checkpoint.tensors[n].shape for n, a in arrays.items())


# ---- a round trip ---------------------------------------------------------------------


def gptq_of(tensors, bits, group, chance):
    """Every matrix but the embedding rounded to a grid, and packed as version 1."""
    packed, whole = {}, dict(tensors)
    for name, w in tensors.items():
        if w.ndim != 2 or "embed" in name:
            packed[name] = w
            continue
        C, S = w.shape
        groups = -(-S // group)
        q = chance.integers(0, 2**bits, (S, C), dtype=np.uint32)
        zeros = chance.integers(0, 2**bits, (groups, C), dtype=np.uint32)
        scales = chance.standard_normal((groups, C)).astype(np.float16)
        order = chance.permutation(np.arange(S) // group).astype(np.int32)
        less = (zeros - np.uint32(1)) & np.uint32(2**bits - 1)
        stem = name.removesuffix("weight")
        packed |= {
            f"{stem}qweight": dense(q, bits).view(np.int32),
            f"{stem}qzeros": np.ascontiguousarray(dense(less.T, bits).T).view(np.int32),
            f"{stem}scales": scales,
            f"{stem}g_idx": order,
        }
        exact = scales[order].astype(np.float64) * (q - zeros[order].astype(np.float64))
        whole[name] = exact.T.astype(np.float32)
    return packed, whole


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_inputs_in_any_order_of_groups_come_back(tmp_path, out, bits):
    # No size is a multiple of 32: the last word and the last group are not full.
    config = replace(DISTINCT, hidden_size=40, intermediate_size=44)
    chance = np.random.default_rng(bits)
    shapes = tensor_shapes(config).items()
    tensors = {n: chance.standard_normal(s).astype(np.float32) for n, s in shapes}
    packed, whole = gptq_of(tensors, bits, 16, chance)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 16}
    text = json.dumps(config_to_hf(config) | {"quantization_config": settings})
    (tmp_path / "config.json").write_text(text)
    safetensors.numpy.save_file(packed, tmp_path / "model.safetensors")
    convert(tmp_path, out)
    assert load(out).config == config
    for name, tensor in read_npz(out).tensors.items():
        np.testing.assert_array_equal(tensor, whole[name], err_msg=name)
