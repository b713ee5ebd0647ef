"""A folder in GPTQ's layout is read back bit for bit, here and by gptqmodel."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, random_model, seeds
from test_compression_packed import tensors_of as named
from test_convert_packed import dense, load_tensors

from npllama.cli.main import main
from npllama.compression.folder import (
    as_gptq,
    parts_of,
    settings_of,
    words_of,
    write_folder,
)
from npllama.compression.gptq import Recipe, gptq
from npllama.compression.packed import packed
from npllama.compression.quantize import METHODS, Plan
from npllama.convert.convert import convert, narrow
from npllama.convert.packed import unpack
from npllama.files.checkpoint import load, save
from npllama.files.packed import Packed

GOLDENS = Path(__file__).parent / "goldens" / "packed"
CONFIG = replace(DISTINCT, hidden_size=8, intermediate_size=12)


@given(st.integers(2, 8), st.integers(1, 70), st.integers(1, 3), seeds)
@example(3, 64, 2, 0)
@example(3, 11, 1, 1)
def test_numbers_are_laid_end_to_end(bits, count, columns, seed):
    chance = np.random.default_rng(seed)
    numbers = chance.integers(0, 2**bits, (count, columns), dtype=np.uint32)
    found = words_of(numbers, bits)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found.view(np.uint32), dense(numbers, bits))
    np.testing.assert_array_equal(unpack(found.view(np.uint32), bits, count), numbers)


def test_a_matrix_by_hand():
    w = np.float32([[-0.8, 0.7, 0.2, 0.0], [0.0, 1.5, 3.0, -1.5]])
    weight = METHODS["rtn"].round(w, None, Recipe(4, "symmetric", 2))
    found = as_gptq(weight)
    # of 15 steps from -0.8 to 0.8, from -0.2 to 0.2; from 0 (no negative), from -3
    assert found.codes.T.tolist() == [[0, 15, 15, 8], [8, 15, 15, 4]]
    assert found.zero.tolist() == [[8, 8], [8, 8]] and found.groups.tolist() == [
        0,
        0,
        1,
        1,
    ]
    parts = parts_of(weight, less_one=True)
    assert parts["qweight"].tolist() == [[0x8FF0, 0x4FF8]]
    assert parts["qzeros"].tolist() == [[0x77], [0x77]]
    assert parts_of(weight, less_one=False)["qzeros"].tolist() == [[0x88], [0x88]]
    assert parts["scales"].shape == (2, 2) and parts["g_idx"].dtype == np.int32


def test_inputs_in_the_order_of_their_size_come_back_to_their_places():
    chance = np.random.default_rng(0)
    w, x = chance.normal(size=(3, 8)), chance.normal(size=(20, 8)) * np.arange(1, 9)
    found = gptq(w, x.T.dot(x), Recipe(4, "asymmetric", 2, act_order=True))
    theirs = as_gptq(packed(found.codes, found.grid, found.groups))
    np.testing.assert_array_equal(theirs.codes.T, found.codes)
    np.testing.assert_array_equal(theirs.groups, found.groups)
    assert (np.diff(found.groups) < 0).any()


def test_a_format_without_a_place_is_refused():
    w = np.float32(np.random.default_rng(0).normal(size=(3, 8)))
    for recipe in (Recipe(4, "nf4", 4), Recipe(5, "symmetric", 4)):
        weight = METHODS["rtn"].round(w, None, recipe)
        with pytest.raises(ValueError, match=f"no {weight.format}"):
            as_gptq(weight)


def test_one_scale_for_the_whole_matrix_has_no_place():
    w = np.float32(np.random.default_rng(0).normal(size=(3, 8)))
    weight = METHODS["rtn"].round(w, None, Recipe(4, "symmetric"))
    with pytest.raises(ValueError, match="a scale for each row, not one for the whole"):
        as_gptq(weight._replace(scale=weight.scale[:1]))


def test_only_gptq_has_an_order():
    recipe = Recipe(4, "symmetric", 4, act_order=True, static_groups=True)
    found = {name: settings_of(Plan(name, recipe)) for name in ("gptq", "rtn", "awq")}
    assert [x["desc_act"] for x in found.values()] == [True, False, False]
    assert [x["meta"]["static_groups"] for x in found.values()] == [True, False, False]


# ---- a model ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "model.npz"
    save(path, CONFIG, named(random_model(CONFIG, 0)))
    return path


def corpus(folder):
    chance, path = np.random.default_rng(0), folder / "texts.jsonl"
    rows = [chance.integers(0, 13, 20).tolist() for _ in range(4)]
    path.write_text("\n".join(json.dumps({"tokens": row}) for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "words",
    [
        "--bits 4 --group-size 4 --sym --desc-act",
        "--bits 3 --group-size -1 --no-sym",
        "--bits 2 --group-size 5 --no-sym --desc-act",
        "--bits 8 --group-size 4 --sym",
    ],
)
def test_the_folder_holds_the_weights_of_the_npz(path, tmp_path, words):
    more = [*words.split(), "--calibrate", corpus(tmp_path)]
    assert main(["quantize", str(path), str(tmp_path / "q.npz"), *more]) == 0
    assert main(["quantize", str(path), str(tmp_path / "q"), *more]) == 0
    convert(tmp_path / "q", tmp_path / "back.npz")
    ours, back = load(tmp_path / "q.npz"), load(tmp_path / "back.npz")
    assert back.config == CONFIG
    np.testing.assert_array_equal(ours.embed, back.embed)
    np.testing.assert_array_equal(ours.lm_head, back.lm_head)
    for one, two in zip(ours.layers, back.layers):
        assert isinstance(one.wq, Packed)
        for word, w in one._asdict().items():
            np.testing.assert_array_equal(np.asarray(w), getattr(two, word), word)
    settings = json.loads((tmp_path / "q" / "config.json").read_text())
    settings = settings["quantization_config"]
    assert settings == json.loads((tmp_path / "q" / "quantize_config.json").read_text())
    assert settings["desc_act"] == ("--desc-act" in words)
    version = "gptq" if "--sym" in words else "gptq_v2"
    assert settings["checkpoint_format"] == settings["format"] == version
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"q", "q.npz", "back.npz", "texts.jsonl"}


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_what_stays_in_floats_keeps_its_dtype(tmp_path, kind):
    tensors = [(n, narrow(t, kind)) for n, t in named(random_model(CONFIG, 0))]
    save(tmp_path / "m.npz", CONFIG, tensors, dtype=kind)
    words = ["--method", "rtn", "--group-size", "4"]
    assert main(["quantize", str(tmp_path / "m.npz"), str(tmp_path / "q"), *words]) == 0
    found = load_tensors(tmp_path / "q" / "model.safetensors")
    embed = found["model.embed_tokens.weight"]
    assert embed.dtype.name == kind
    assert embed.tobytes() == tensors[0][1].tobytes()
    assert json.loads((tmp_path / "q" / "config.json").read_text())["dtype"] == kind


REFUSED = {
    "a folder that is there": ("", [], "is there already"),
    "another ending": ("q.bin", [], "without an ending"),
    "nf4": ("q", ["--nf4"], "no nf4 grid"),
    "five bits": ("q", ["--bits", "5"], "an .npz has all"),
    "no folder above": ("a/q", [], "no folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused_before_the_work(
    path, tmp_path, capsys, case
):
    name, words, told = REFUSED[case]
    words = ["--method", "rtn", *words]
    assert main(["quantize", str(path), str(tmp_path / name), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from list(named(random_model(CONFIG, 0)))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "q", CONFIG, broken(), Plan())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / f"q.{'0' * 16}.part"
    left.mkdir()
    (left / "config.json").write_text("{")
    write_folder(tmp_path / "q", CONFIG, named(random_model(CONFIG, 0)), Plan())
    assert [p.name for p in tmp_path.iterdir()] == ["q"]
