"""``npllama info``: what is told of a model, and the check of a whole file."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from strategies import DISTINCT
from test_golden_record import called, saved

from npllama.cli import info
from npllama.config import PRESETS, config_to_hf, preset
from npllama.files.checkpoint import STORED, locate, save
from npllama.files.npz import read_npz
from npllama.weights import tensor_shapes


def told(capsys, *words):
    code, out, err = called(capsys, "info", *words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("stored", STORED)
def test_the_file_is_told_with_its_path_its_size_and_what_it_is_stored_in(
    capsys, tmp_path, stored
):
    path = saved(tmp_path / "m.npz", DISTINCT, stored)
    facts = told(capsys, str(path))
    assert facts == told(capsys, "--weights", str(path))
    expected = {"path": str(path), "bytes": path.stat().st_size, "stored in": stored}
    assert facts["file"] == expected
    assert facts["text"] == {"tokenizer": None}
    total = sum(int(np.prod(shape)) for shape in tensor_shapes(DISTINCT).values())
    assert facts["parameters"]["total"] == total
    assert facts["bytes, as computed with"]["weights"] == 4 * total


def test_the_tokenizer_and_the_form_of_conversation_are_told(capsys):
    facts = told(capsys)
    assert facts == told(capsys, "stories")
    text = {"tokenizer": "sentencepiece", "tokens": 1024, "chat format": "plain"}
    assert facts["text"] == text | {"chat template": False}


def test_truth_values_are_told_as_true_and_false(capsys):
    _, out, _ = called(capsys, "info")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line[0] == " ")
    assert lines["tie_word_embeddings"] == "true"
    assert lines["attention_bias"] == lines["mlp_bias"] == "false"
    assert lines["vocab_size"] == "1,024"
    assert info.as_text({"h": {"a": None, "b": 1, "c": True}}).split() == [
        *("h", "a", "none", "b", "1", "c", "true")
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_told_without_any_weights(capsys, name):
    facts = told(capsys, name)
    assert facts == told(capsys, "--config", name) and "file" not in facts
    assert facts["config"]["hidden_size"] == preset(name).hidden_size


def test_a_config_is_told_without_any_weights(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_to_hf(DISTINCT)))
    assert told(capsys, str(path))["config"]["vocab_size"] == 13
    model = saved(tmp_path / "m.npz", DISTINCT, "float32")
    assert "file" not in told(capsys, "--config", str(model))


def test_what_a_conversion_lost_is_told(capsys, tmp_path):
    shapes = tensor_shapes(DISTINCT).items()
    tensors = ((name, np.ones(shape, np.float32)) for name, shape in shapes)
    lost = {"lost": ["weights were Q4_K", "an adapter was merged"]}
    save(tmp_path / "m.npz", DISTINCT, tensors, metadata=lost)
    told_of = told(capsys, str(tmp_path / "m.npz"))["converted"]
    assert list(told_of.values()) == lost["lost"]


@pytest.mark.parametrize(
    "words, code, message",
    [
        (("nowhere",), 1, "no weights file nowhere"),
        (("a", "--weights", "b"), 2, "a and b: one model at a time"),
        (("--config", "nowhere"), 2, "no config 'nowhere'"),
        (("--check", "llama-2-7b"), 2, "--check reads an .npz"),
        (("--check", "--config", "stories"), 2, "--check reads an .npz"),
    ],
)
def test_what_cannot_be_told_is_one_line(capsys, words, code, message):
    got, out, err = called(capsys, "info", *words)
    assert got == code and not out and message in err and err.count("\n") == 1


# ---- --check --------------------------------------------------------------------


def test_a_flipped_bit_in_any_member_is_found_and_the_member_named(capsys, tmp_path):
    path = tmp_path / "m.npz"
    right = locate("stories-draft").read_bytes()
    path.write_bytes(right)
    assert told(capsys, "--check", str(path))["file"]["checksums"] == "all right"
    archive = read_npz(path)
    place = {name: tensor.tobytes() for name, tensor in archive.tensors.items()}
    for name, content in (place | archive.files).items():
        at = right.index(content) + len(content) // 2
        path.write_bytes(right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :])
        code, out, err = called(capsys, "info", "--check", str(path))
        assert code == 1 and not out and err.count("\n") == 1
        assert str(path) in err and name in err and "checksum is wrong" in err


def test_a_large_model_is_checked_in_little_memory(capsys, tmp_path):
    config = replace(DISTINCT, vocab_size=2**20)
    path = saved(tmp_path / "m.npz", config, "float32")
    assert path.stat().st_size > 50e6
    tracemalloc.start()
    assert called(capsys, "info", "--check", str(path))[0] == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
