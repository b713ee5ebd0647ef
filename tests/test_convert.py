"""Conversion: what comes out is what went in, or one line says why not."""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import children
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, seeds
from test_vocabulary import ENGINE, SIZE, llama2c_tokenizer

from npllama.cli.main import main as npllama
from npllama.config import config_to_hf
from npllama.convert.convert import convert, narrow
from npllama.convert.safetensors import open_file
from npllama.files.checkpoint import load, widen
from npllama.files.npz import read_npz
from npllama.generation.generate import generate
from npllama.generation.options import GenerationConfig
from npllama.rope import halves_order
from npllama.text.chat import detect_format
from npllama.weights import tensor_shapes

TOOL = Path(__file__).parent.parent / "tools" / "convert_hf.py"
TIED = replace(DISTINCT, tie_word_embeddings=True)
OUTSIDE = {"float64": "f8", "float32": "f4", "float16": "f2"}
OUTSIDE |= {"bfloat16": ml_dtypes.bfloat16}
GATE = "model.layers.1.mlp.gate_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def main(arguments):
    """Run ``npllama convert``; return its exit code."""
    return npllama(["convert", *arguments])


def random_tensors(config, dtype="float32", seed=0):
    """Tensors of a model as other libraries hold them; bfloat16 by ml_dtypes."""
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(config).items()
    return {n: rng.standard_normal(s).astype(OUTSIDE[dtype]) for n, s in shapes}


def write_config(folder, config, **changes):
    text = json.dumps(config_to_hf(config) | changes)
    (folder / "config.json").write_text(text)


def write_folder(folder, config=DISTINCT, dtype="float32", **changes):
    """A checkpoint as Hugging Face lays it out; return its tensors."""
    tensors = random_tensors(config, dtype)
    folder.mkdir(exist_ok=True)
    write_config(folder, config, **changes)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return tensors


def write_shards(folder, config=DISTINCT):
    """The same in two shards and an index; return the tensors and the index."""
    tensors = random_tensors(config)
    folder.mkdir(exist_ok=True)
    write_config(folder, config)
    names, weight_map = list(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{i:05}-of-00002.safetensors"
        safetensors.numpy.save_file({n: tensors[n] for n in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    write_index(folder, weight_map)
    return tensors, weight_map


def write_index(folder, weight_map):
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "checkpoint"
    write_folder(path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.npz"


def fails(capsys, *arguments, code=1):
    """Run the command, which must fail; return the one line that it says."""
    assert main([str(a) for a in arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("npllama convert: ")
    return lines[0]


# ---- what comes out is what went in -------------------------------------------------


@given(
    config=configs(),
    source=st.sampled_from([*OUTSIDE]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    seed=seeds,
)
def test_every_tensor_is_rounded_once_to_the_nearest(
    tmp_path_factory, config, source, dtype, seed
):
    folder = tmp_path_factory.mktemp("checkpoint")
    tensors = random_tensors(config, source, seed)
    write_config(folder, config)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    convert(folder, folder / "out.npz", dtype)
    archive = read_npz(folder / "out.npz")
    assert archive.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.astype(OUTSIDE[dtype]).astype("f4")
        result = widen(archive.tensors[name], dtype, "float32")
        np.testing.assert_array_equal(result, expected)
    assert load(folder / "out.npz").config == config


def test_shards_give_the_same_file_as_one(tmp_path):
    write_folder(tmp_path / "one")
    write_shards(tmp_path / "two")
    for name in ("one", "two"):
        convert(tmp_path / name, tmp_path / f"{name}.npz", "float32")
    one, two = (read_npz(tmp_path / f"{name}.npz").tensors for name in ("one", "two"))
    assert list(one) == list(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_cache_of_links_is_followed(tmp_path, out):
    # Hugging Face's cache holds links under the files' names to blobs elsewhere.
    tensors, _ = write_shards(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for blob in (tmp_path / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(blob)
    convert(snapshot, out, "float32")
    np.testing.assert_array_equal(load(out).embed, tensors[EMBED])


def test_the_source_is_recorded_by_its_sha256(folder, out):
    convert(folder, out, "float32")
    recorded = json.loads(read_npz(out).files["npllama.json"])["source"]
    assert recorded.keys() == {"config.json", "model.safetensors"}
    for name, digest in recorded.items():
        content = (folder / name).read_bytes()
        assert digest == hashlib.sha256(content).hexdigest()


def test_end_tokens_of_the_generation_config_are_added(tmp_path, out):
    write_folder(tmp_path / "checkpoint", eos_token_id=3)
    path = tmp_path / "checkpoint" / "generation_config.json"
    path.write_text('{"eos_token_id": [5, 3, 4], "temperature": 0.6}')
    convert(tmp_path / "checkpoint", out, "float32")
    assert load(out).config.eos_token_id == (3, 5, 4)
    assert read_npz(out).files["generation_config.json"] == path.read_bytes()


@pytest.mark.parametrize(
    "own, wished, expected",
    [
        (None, [201, 9], (201, 9)),  # LLaMA 3's id 2 is "#"
        (None, 7, (7,)),
        (None, None, (2,)),  # as LlamaConfig
        ([4], [9], (4, 9)),
        (4, None, (4,)),
    ],
)
def test_an_end_token_that_is_not_given_is_not_added(
    tmp_path, out, own, wished, expected
):
    folder = tmp_path / "checkpoint"
    write_folder(folder)
    data = config_to_hf(DISTINCT) | {"eos_token_id": own}
    if own is None:
        del data["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(data))
    wishes = {} if wished is None else {"eos_token_id": wished}
    (folder / "generation_config.json").write_text(json.dumps(wishes))
    convert(folder, out, "float32")
    assert load(out).config.eos_token_id == expected


def test_rotary_frequencies_of_old_checkpoints_are_left_behind(tmp_path, out):
    folder = tmp_path / "checkpoint"
    tensors = write_folder(folder)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    safetensors.numpy.save_file(tensors | extra, folder / "model.safetensors")
    convert(folder, out, "float32")
    assert read_npz(out).tensors.keys() == tensors.keys()


def test_a_tied_checkpoint_may_hold_either_name_or_both_alike(tmp_path, out):
    folder = tmp_path / "checkpoint"
    tensors = write_folder(folder, TIED)
    embed = tensors[EMBED]
    both = tensors | {HEAD: embed}
    only_head = {n: t for n, t in both.items() if n != EMBED}
    for held in (tensors, both, only_head):
        safetensors.numpy.save_file(held, folder / "model.safetensors")
        assert not [n for n in convert(folder, out, "float32").notes if HEAD in n]
        model = load(out)
        assert model.config.tie_word_embeddings and model.lm_head is model.embed
        np.testing.assert_array_equal(model.embed, embed)


def test_a_tied_checkpoint_with_another_head_is_untied_with_a_warning(
    tmp_path, out, capsys
):
    folder = tmp_path / "checkpoint"
    tensors = write_folder(folder, TIED)
    tensors[HEAD] = tensors[EMBED] + 1
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert main([str(folder), str(out)]) == 0
    assert "lm_head.weight: differs from" in capsys.readouterr().err
    model = load(out)
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.lm_head, tensors[HEAD])


def test_the_tokenizer_travels_along(tmp_path, out, shipped_tokenizer):
    folder = tmp_path / "checkpoint"
    write_folder(folder, replace(DISTINCT, vocab_size=shipped_tokenizer.size))
    (folder / "tokenizer.model").write_bytes(shipped_tokenizer.content)
    (folder / "tokenizer.json").write_text("{}")  # the original of the two is taken
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    convert(folder, out, "float32")
    files = read_npz(out).files
    assert files["tokenizer.model"] == shipped_tokenizer.content
    assert "tokenizer_config.json" in files and "tokenizer.json" not in files
    assert load(out).tokenizer.vocab_size == shipped_tokenizer.size


def test_a_chat_model_keeps_its_form_and_its_makers_wishes(
    tmp_path, out, shipped_tokenizer
):
    folder = tmp_path / "checkpoint"
    write_folder(folder, replace(DISTINCT, vocab_size=shipped_tokenizer.size))
    (folder / "tokenizer.model").write_bytes(shipped_tokenizer.content)
    template = {"chat_template": "{{ bos_token + '[INST] ' + content + ' [/INST]' }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(template))
    wishes = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 64}
    (folder / "generation_config.json").write_text(json.dumps(wishes))
    convert(folder, out, "float32")
    model = load(out)
    assert detect_format(model.tokenizer) == "llama-2"
    assert model.generation_config == wishes
    words = ["chat", "--weights", str(out), "--max-new-tokens", "2"]
    done = children.run(
        [sys.executable, "-m", "npllama", *words],
        input="the cat",
        capture_output=True,
        encoding="utf-8",
        cwd=TOOL.parent.parent,
    )
    assert done.returncode == 0 and done.stderr.startswith("[llama-2 turns, told")


def test_a_tokenizer_larger_than_the_embedding_is_warned_of(
    folder, out, capsys, shipped_tokenizer
):
    # As the official Llama-2-7b-hf was at its release: a pad token without a row.
    size = shipped_tokenizer.size
    write_folder(folder, replace(DISTINCT, vocab_size=size - 1))
    (folder / "tokenizer.model").write_bytes(shipped_tokenizer.content)
    assert main([str(folder), str(out)]) == 0
    warning = capsys.readouterr().err
    assert f"the tokenizer has {size} tokens, the config's vocab_size is" in warning
    model = load(out)
    assert generate(model, [1, 2], GenerationConfig(max_new_tokens=2)).tokens
    with pytest.raises(ValueError, match=str(size - 1)):
        generate(model, [1, size - 1], GenerationConfig(max_new_tokens=2))


STRANGE = {
    "of nothing": ("tokenizer.json", "{}"),
    "not JSON": ("tokenizer.json", "<html>"),
    "of WordPiece": ("tokenizer.json", '{"model": {"type": "WordPiece"}}'),
    "of unigrams": ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": []}}'),
    "an unknown split": (
        "tokenizer.json",
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, '
        '"pre_tokenizer": {"type": "BertPreTokenizer"}}',
    ),
    "no SentencePiece model": ("tokenizer.model", "version 2"),
    "a pointer": ("tokenizer.model", "version https://git-lfs.github.com/spec/v1"),
    "a pointer beside": ("added_tokens.json", "version https://git-lfs.github.com"),
    "pieces cut off": ("tokenizer.bin", "x" * 300),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_weights_are_converted_without_a_tokenizer_that_cannot_be_read(
    folder, out, capsys, kind, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (folder / STRANGE[kind][0]).write_text(STRANGE[kind][1])
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (folder / "generation_config.json").write_text('{"top_k": 3}')
    assert "--no-tokenizer converts the weights alone" in fails(capsys, folder, out)
    assert main([str(folder), str(out), "--no-tokenizer"]) == 0
    assert capsys.readouterr().err == ""
    files = read_npz(out).files
    assert files.keys() == {"config.json", "npllama.json", "generation_config.json"}
    assert load(out).tokenizer is None


def test_a_context_beyond_the_trained_one_is_said_to_be_unproved(folder, out, capsys):
    assert main([str(folder), str(out), "--context", "4096"]) == 0
    assert "made for 2048 positions" in capsys.readouterr().err
    assert load(out).config == replace(DISTINCT, max_position_embeddings=4096)
    assert main([str(folder), str(out), "--context", "64"]) == 0
    assert "positions" not in capsys.readouterr().err
    assert "not a positive integer" in fails(capsys, folder, out, "--context", "0")
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    write_config(folder, DISTINCT, rope_parameters=scaling)
    line = fails(capsys, folder, out, "--context", "4096")
    assert "'dynamic' the context follows from factor" in line


def test_a_share_of_turning_pairs_of_any_kind_is_warned_of(folder, out, capsys):
    write_config(folder, DISTINCT, partial_rotary_factor={"a": 1})
    assert main([str(folder), str(out)]) == 0
    assert "config.json: partial_rotary_factor is ignored" in capsys.readouterr().err


def test_a_share_of_turning_pairs_that_llamas_ignore_is_warned_of(folder, out, capsys):
    write_config(folder, DISTINCT, partial_rotary_factor=0.5)
    assert main([str(folder), str(out)]) == 0
    assert "partial_rotary_factor is ignored" in capsys.readouterr().err
    assert load(out).config == DISTINCT
    write_config(folder, DISTINCT, partial_rotary_factor=1.0)
    assert main([str(folder), str(out)]) == 0
    assert "partial_rotary_factor" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def shipped_tokenizer(tmp_path_factory):
    """A small SentencePiece model, trained on the spot."""
    import sentencepiece

    prefix = tmp_path_factory.mktemp("tokenizer") / "small"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat and the hat", "a bat sat"] * 20),
        model_prefix=str(prefix),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )

    class Trained:
        content = prefix.with_suffix(".model").read_bytes()
        size = sentencepiece.SentencePieceProcessor(f"{prefix}.model").vocab_size()

    return Trained


# ---- llama2.c -----------------------------------------------------------------------

# Its header holds no head size, so E is H * D here, and there are no biases.
LLAMA2C = replace(
    DISTINCT,
    hidden_size=24,
    max_position_embeddings=10,
    rms_norm_eps=1e-5,
    attention_bias=False,
    mlp_bias=False,
)


def to_neighbours(tensor, D):
    """Undo `halves_order`: rows of q or k as Meta and llama2.c keep them."""
    heads = tensor.reshape(-1, D, tensor.shape[1])
    result = np.empty_like(heads)
    result[:, halves_order(D)] = heads
    return result.reshape(tensor.shape)


def llama2c_bytes(config, tensors):
    """The file that llama2.c's export writes, version 0, from its description."""
    E, D, V = config.hidden_size, config.head_dim, config.vocab_size
    header = struct.pack(
        "<7i",
        *(E, config.intermediate_size, config.num_hidden_layers),
        *(config.num_attention_heads, config.num_key_value_heads),
        *(V if config.tie_word_embeddings else -V, config.max_position_embeddings),
    )

    def layers(name):
        stored = [
            tensors[f"model.layers.{i}.{name}.weight"]
            for i in range(config.num_hidden_layers)
        ]
        turned = name in ("self_attn.q_proj", "self_attn.k_proj")
        return [to_neighbours(t, D) if turned else t for t in stored]

    order = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj")
    order += ("self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm")
    order += ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
    parts = [tensors[EMBED]]
    for name in order:
        parts += layers(name)
    angles = np.full((config.max_position_embeddings, D // 2), 0.5, np.float32)
    parts += [tensors["model.norm.weight"], angles, angles]
    parts += [] if config.tie_word_embeddings else [tensors[HEAD]]
    return header + b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_checkpoints_are_turned_to_halves(tmp_path, out, tied):
    config = replace(LLAMA2C, tie_word_embeddings=tied, eos_token_id=(2, 1))
    tensors = random_tensors(config)
    path = tmp_path / "stories.bin"
    path.write_bytes(llama2c_bytes(config, tensors))
    convert(path, out, "float32")
    archive = read_npz(out)
    assert load(out).config == config
    assert archive.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(archive.tensors[name], tensor)


def test_the_tokenizer_beside_a_llama2c_checkpoint_is_carried(tmp_path, out, capsys):
    config = replace(LLAMA2C, vocab_size=SIZE)
    path = tmp_path / "stories.bin"
    path.write_bytes(llama2c_bytes(config, random_tensors(config)))
    (tmp_path / "tokenizer.bin").write_bytes(llama2c_tokenizer())
    assert main([str(path), str(out)]) == 0
    assert "tokenizer" not in capsys.readouterr().err  # nothing is missing
    assert load(out).tokenizer.encode("the fox") == [1, *ENGINE.encode("the fox")]


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda d: d[:-1], "bytes; its header asks for"),
        (lambda d: d + b"\0", "bytes; its header asks for"),
        (lambda d: d[:20], "too short"),
        (lambda d: b"", "too short"),
        (lambda d: b"24ka" + d[4:], "export it as version 0"),
        (lambda d: b"PK\3\4" + d[4:], "give the folder"),
        (
            lambda d: struct.pack("<7i", 8, 8, 2**31 - 1, 2, 2, 9, 9),
            "num_hidden_layers",
        ),
        (lambda d: struct.pack("<7i", 2**31 - 4, 2, 9999, 2, 1, 9, 9), "asks for"),
        (lambda d: struct.pack("<7i", -1, 8, 2, 2, 2, 9, 9), "'hidden_size' is -1"),
        (lambda d: b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_a_damaged_llama2c_checkpoint_is_refused(tmp_path, out, capsys, damage, words):
    path = tmp_path / "stories.bin"
    data = llama2c_bytes(LLAMA2C, random_tensors(LLAMA2C))
    path.write_bytes(damage(data))
    line = fails(capsys, path, out)
    assert f"{path}: " in line and words in line


# ---- what is wrong is named: the folder ---------------------------------------------


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


FAULTS = {
    "missing": (lambda t: t.pop(GATE), "checkpoint", r"missing; .* (11, 7)"),
    "misshapen": (
        lambda t: t.update({GATE: np.ascontiguousarray(t[GATE].T)}),
        "model.safetensors",
        "shape (7, 11); the config asks for (11, 7)",
    ),
    "integers": (
        lambda t: t.update({GATE: t[GATE].astype(np.int8)}),
        "model.safetensors",
        "dtype I8; weights should be one of float32",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_tensor_is_named_before_anything_is_written(folder, out, capsys, fault):
    change, where, words = FAULTS[fault]
    change_tensors(folder, change)
    out.write_bytes(b"old")
    line = fails(capsys, folder, out)
    assert f"{where}: {GATE}: " in line
    assert all(word in line for word in words.split(" .* "))
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(out.parent)) == ["checkpoint", "out.npz"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architectures": ["MistralForCausalLM"]}, "only LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"rope_theta": float("nan"), "rope_parameters": {}}, "rope_theta nan is not"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight: missing"),
        ({"vocab_size": 14}, f"{EMBED}: shape (13, 7); the config asks for (14, 7)"),
    ],
)
def test_a_wrong_config_is_named(tmp_path, out, capsys, change, words):
    write_folder(tmp_path / "checkpoint", **change)
    assert words in fails(capsys, tmp_path / "checkpoint", out)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"[" * 100_000, b""])
def test_a_file_that_is_not_json_is_named(folder, out, capsys, name, content):
    (folder / name).write_bytes(content)
    assert f"{folder / name}: " in fails(capsys, folder, out)


def test_missing_files_are_named(folder, out, capsys):
    assert "nowhere: no such folder" in fails(capsys, folder / "nowhere", out)
    (folder / "config.json").unlink()
    assert f"No such file or directory: {folder / 'config.json'}" in fails(
        capsys, folder, out
    )
    (folder / "model.safetensors").unlink()
    line = fails(capsys, folder, out)
    assert "expected model.safetensors, pytorch_model.bin" in line


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.model", "config.json"]
)
def test_a_git_lfs_pointer_is_recognised(folder, out, capsys, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (folder / name).write_text(pointer)
    line = fails(capsys, folder, out)
    assert f"{folder / name}: " in line
    assert "git lfs pull" in line


def test_without_torch_its_formats_say_what_to_install(
    folder, out, capsys, monkeypatch
):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    line = fails(capsys, folder, out)
    assert "pytorch_model.bin: " in line and "pip install torch" in line


def test_without_ml_dtypes_bfloat16_says_what_to_install(
    folder, out, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    line = fails(capsys, folder, out, "--dtype", "bfloat16")
    assert "pip install 'npllama[convert]'" in line
    assert not out.exists()


# ---- what is wrong is named: shards -------------------------------------------------


@pytest.mark.parametrize(
    "shard",
    [
        *("../model.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b"),
        *(None, 3, ["model.safetensors"]),
    ],
    ids=repr,
)
def test_a_shard_outside_the_folder_is_refused(tmp_path, out, capsys, shard):
    folder = tmp_path / "checkpoint"
    _, weight_map = write_shards(folder)
    shutil.copy(folder / weight_map[GATE], tmp_path / "model.safetensors")
    write_index(folder, weight_map | {GATE: shard})
    line = fails(capsys, folder, out)
    assert f"{GATE}: shard {shard!r} is not the bare name" in line


def test_shards_and_index_must_agree(tmp_path, out, capsys):
    folder = tmp_path / "checkpoint"
    _, weight_map = write_shards(folder)
    home, other = (
        weight_map[GATE],
        (set(weight_map.values()) - {weight_map[GATE]}).pop(),
    )

    write_index(folder, weight_map | {GATE: other})
    assert f"{other}: {GATE}: missing; model" in fails(capsys, folder, out)
    write_index(folder, {})
    assert "index.json: no weight_map" in fails(capsys, folder, out)
    write_index(folder, weight_map)
    (folder / home).unlink()
    assert f"{folder / home}: missing; " in fails(capsys, folder, out)


def test_what_an_index_leaves_out_is_used_and_said(tmp_path, out, capsys):
    folder = tmp_path / "checkpoint"
    tensors, weight_map = write_shards(folder)
    write_index(folder, {n: s for n, s in weight_map.items() if n != GATE})
    assert main([str(folder), str(out)]) == 0
    assert f"in a shard, but not promised: {GATE}" in capsys.readouterr().err
    np.testing.assert_array_equal(load(out).layers[1].w_gate, tensors[GATE])


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", HEAD, "score.weight"]
)
def test_what_an_index_promises_and_nobody_needs_may_be_absent(
    tmp_path, out, capsys, name
):
    folder = tmp_path / "checkpoint"
    _, weight_map = write_shards(folder, TIED)
    write_index(folder, weight_map | {name: weight_map[GATE]})
    assert main([str(folder), str(out)]) == 0
    assert f"promised, but in no shard: {name}" in capsys.readouterr().err
    assert load(out).config == TIED


def test_an_output_layer_that_is_promised_and_needed_must_be_there(
    tmp_path, out, capsys
):
    folder = tmp_path / "checkpoint"
    _, weight_map = write_shards(folder, TIED)
    write_config(folder, DISTINCT)
    write_index(folder, weight_map | {HEAD: weight_map[GATE]})
    assert main([str(folder), str(out)]) == 1
    assert f"{HEAD}: missing; the config asks for" in capsys.readouterr().err


EXTRA = ["model.layers.0.self_attn.rotary_emb.cos_cached", "score.weight",
         "v_head.summary.weight", "model.layers.1.self_attn.k_scale",
         "model.layers.7.mlp.up_proj.weight"]  # fmt: skip


@pytest.mark.parametrize("name", EXTRA)
def test_extra_tensors_are_left_out_and_named(folder, out, capsys, name):
    change_tensors(folder, lambda t: t.update({name: np.ones(3, np.float32)}))
    assert main([str(folder), str(out)]) == 0
    warnings = capsys.readouterr().err
    assert f"{folder / 'model.safetensors'}: left out, as transformers" in warnings
    assert name in warnings and name not in read_npz(out).tensors


def test_of_many_extra_tensors_a_few_are_named(folder, out, capsys):
    extra = {f"extra.{i}": np.ones(1, np.float32) for i in range(9)}
    change_tensors(folder, lambda t: t.update(extra))
    assert main([str(folder), str(out)]) == 0
    assert "extra.3, extra.4 and 4 more" in capsys.readouterr().err


# ---- what is wrong is named: a safetensors file -------------------------------------


def file_with(path, header, data=b"", length=None):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + text + data)
    return path


def entry(begin, end, shape=None, dtype="F32"):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "an overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "b: overlaps"),
    "a gap": ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "b: follows a gap"),
    "a gap in front": ({"a": entry(4, 8)}, 8, "a: follows a gap"),
    "a hidden end": ({"a": entry(0, 4)}, 8, "4 bytes after the last tensor"),
    "a truncation": ({"a": entry(0, 8)}, 7, "a: ends at byte 8 of 7: .* truncated"),
    "the same place": ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "b: overlaps"),
    "a wrong size": ({"a": entry(0, 8, [3])}, 8, "a: .* 8 bytes; .* takes 12"),
    "a reversed place": ({"a": entry(8, 4, [1])}, 8, "a: .* -4 bytes"),
    "a negative place": ({"a": entry(-4, 0, [1])}, 8, "a: .* not counts"),
    "a negative shape": ({"a": entry(0, 4, [-1, -1])}, 4, "a: .* not counts"),
    "a fraction": ({"a": entry(0, 4, [1.0])}, 4, "a: .* not counts"),
    "a truth": ({"a": entry(0, 4, [True])}, 4, "a: .* not counts"),
    "an immense shape": ({"a": entry(0, 4, [2**62, 2**62])}, 4, "a: .* takes"),
    "an unknown dtype": ({"a": entry(0, 4, dtype="F33")}, 4, "a: dtype 'F33'"),
    "a list for a dtype": ({"a": entry(0, 4, dtype=[])}, 4, "a: dtype"),
    "no place": ({"a": {"dtype": "F32", "shape": []}}, 4, "a: .* data_offsets"),
    "no entry": ({"a": 7}, 4, "a: its entry"),
    "no object": ([], 0, "not a JSON object"),
    "no JSON": (b"{", 0, "not valid JSON"),
    "no text": (b"\xff\xff", 0, "not valid JSON"),
    "deep JSON": (b"[" * 100_000, 0, "not valid JSON"),
    "a name twice": (b'{"a": 1, "a": 2}', 0, "'a' occurs 2 times"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, case):
    header, size, words = HEADERS[case]
    path = file_with(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(ValueError, match=words) as caught:
        open_file(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("length", [3, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(tmp_path, length):
    path = file_with(tmp_path / "model.safetensors", b"{}", length=length)
    with pytest.raises(ValueError, match="truncated, or not safetensors"):
        open_file(path)


def test_a_safetensors_file_cut_anywhere_is_refused(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for length in (*range(0, 40), *range(40, len(data), 97), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="model.safetensors: "):
            open_file(path)


@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([*b'0123456789[]{}",:-eF\0\xff'])),
        min_size=1,
        max_size=6,
    )
)
@example([(0.0, 255)])
def test_any_bytes_changed_in_a_header_give_tensors_or_one_line(
    tmp_path_factory, edits
):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    safetensors.numpy.save_file({"a": np.ones((2, 3)), "b": np.ones(5)}, path)
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    for where, byte in edits:
        data[int(where * (8 + length - 1))] = byte
    path.write_bytes(data)
    try:
        tensors = open_file(path)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        # What is accepted can be read, and covers the file.
        sizes = [np.prod(t.shape, dtype=int) for t in tensors.values()]
        assert sum(sizes) > 0


# ---- values -------------------------------------------------------------------------


def test_values_that_are_not_finite_are_warned_of_and_kept(folder, out, capsys):
    def poison(tensors):
        tensors[GATE][2, 3] = np.nan
        tensors[EMBED][1, 1] = -np.inf

    change_tensors(folder, poison)
    assert main([str(folder), str(out), "--quiet"]) == 0
    errors = capsys.readouterr().err
    for name in (GATE, EMBED):
        assert f"warning: {folder / 'model.safetensors'}: {name}: holds NaN" in errors
    assert errors.count("holds NaN") == 2
    assert np.isnan(load(out).layers[1].w_gate[2, 3])
    assert load(out).embed[1, 1] == -np.inf


def test_values_too_large_for_float16_are_warned_of(folder, out, capsys):
    change_tensors(folder, lambda t: t[GATE].__setitem__((0, 0), 65520.0))
    assert main([str(folder), str(out), "--dtype", "float16"]) == 0
    assert f"{GATE}: has values too large for float16" in capsys.readouterr().err
    assert main([str(folder), str(out), "--dtype", "bfloat16"]) == 0
    assert "too large" not in capsys.readouterr().err


@given(seeds)
def test_rounding_to_bfloat16_takes_the_nearest_and_ties_go_to_even(seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, 200, dtype=np.uint32)
    bits[::3] = bits[::3] & 0xFFFF0000 | 0x8000  # exactly between two
    wide = bits.view(np.float32)[np.isfinite(bits.view(np.float32))]
    bits = wide.view(np.uint32).astype(np.uint64)
    odd = (bits >> 16) & 1
    expected = ((bits + 0x7FFF + odd) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(narrow(wide, "bfloat16"), expected)


# ---- writing ------------------------------------------------------------------------


def test_a_conversion_replaces_the_old_file(folder, out, capsys):
    out.write_bytes(b"old")
    assert main([str(folder), str(out)]) == 0
    assert "35 tensors, float32" in capsys.readouterr().out
    assert load(out).config == DISTINCT
    assert sorted(os.listdir(out.parent)) == ["checkpoint", "out.npz"]


def test_a_target_that_cannot_be_is_named(folder, tmp_path, capsys):
    (tmp_path / "folder.npz").mkdir()
    assert "folder.npz: a folder" in fails(capsys, folder, tmp_path / "folder.npz")
    line = fails(capsys, folder, tmp_path / "missing" / "out.npz")
    assert "there is no folder" in line and "make it first" in line


@pytest.mark.parametrize("kind", ["the file", "a link to it"])
def test_the_source_is_never_overwritten(tmp_path, capsys, kind):
    tensors, shard = random_tensors(DISTINCT), tmp_path / "shard.npz"
    write_config(tmp_path, DISTINCT)
    write_index(tmp_path, dict.fromkeys(tensors, shard.name))
    safetensors.numpy.save_file(tensors, shard)
    before, out = shard.read_bytes(), shard
    if kind == "a link to it":
        out = tmp_path / "out.npz"
        out.symlink_to(shard)
    assert "a file of the source" in fails(capsys, tmp_path, out)
    assert shard.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_line_that_nobody_can_read_is_no_failure(folder, out):
    with open("/dev/full", "w") as full:
        done = children.run(
            [sys.executable, TOOL, folder, out], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert load(out).config == DISTINCT


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{folder}", "out.bin"], "should end in .npz"),
        (["{folder}", "out"], "should end in .npz"),
        (["{folder}"], "OUT.npz"),
        ([], "SRC"),
        (["{folder}", "{out}", "--dtype", "int8"], "'int8'"),
        (["{folder}", "{out}", "--bogus"], "--bogus"),
    ],
)
def test_misuse_is_answered_with_one_line_and_code_2(
    folder, out, capsys, arguments, words
):
    try:
        code = main([a.format(folder=folder, out=out) for a in arguments])
    except SystemExit as left:  # argparse leaves so
        code = left.code
    assert code == 2
    line = capsys.readouterr().err
    assert words in line and len(line.splitlines()) == 1
    assert not out.exists()


def test_a_disk_without_room_is_noticed_before_writing(
    folder, out, capsys, monkeypatch
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0)
    )
    line = fails(capsys, folder, out)
    assert "the result takes" in line and "0.0 MB are free" in line


def test_a_write_that_fails_leaves_the_old_file(folder, out):
    resource = pytest.importorskip("resource", reason="limits are a matter of Unix")
    out.write_bytes(b"old")
    done = children.run(
        [sys.executable, TOOL, folder, out],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"npllama convert: File too large: {out}\n"
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(out.parent)) == ["checkpoint", "out.npz"]


# The command, made to stop for a long while after the first tensor.
SLOW = """
import sys, time
from npllama.cli.main import main
from npllama.convert import convert
real = convert.converted
def slow(*arguments):
    yield next(real(*arguments))
    print("waiting", flush=True)
    time.sleep(600)
convert.converted = slow
sys.exit(main(["convert", *sys.argv[1:]]))
"""


# Closing a terminal is a SIGHUP; Windows has none.
KILLS = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]


@pytest.mark.parametrize("signal_number", KILLS)
def test_an_interrupted_conversion_leaves_nothing(folder, out, signal_number):
    with children.started(
        [sys.executable, "-c", SLOW, folder, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TOOL.parent.parent,
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        assert any(name.endswith(".part") for name in os.listdir(out.parent))
        process.send_signal(signal_number)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert errors == "npllama convert: interrupted; nothing was written\n"
    assert os.listdir(out.parent) == ["checkpoint"]


# ---- what a user gives in place of the result ---------------------------------------


# What someone may give, how it begins, and the source that is to be converted.
GIVEN = {
    "checkpoint": (None, "checkpoint"),
    "checkpoint/model.safetensors": (None, "checkpoint"),
    "checkpoint/config.json": (None, "checkpoint"),
    "checkpoint/pytorch_model.bin": (b"PK\3\4", "checkpoint"),
    "checkpoint/pytorch_model-00001-of-00002.bin": (b"\x80\x02\x8a", "checkpoint"),
    "checkpoint/model.safetensors.index.json": (b"{}", "checkpoint"),
    "checkpoint/consolidated.00.pth": (b"PK\3\4", "checkpoint"),
    "checkpoint/lit_model.pt": (b"PK\3\4", "checkpoint"),
    "checkpoint/tokenizer.model": (b"\n", "checkpoint"),
    "model.gguf": (b"GGUF", "model.gguf"),
    "model-00001-of-00002.gguf": (b"GGUF", "model-00001-of-00002.gguf"),
    "of another name": (b"GGUF", "'of another name'"),
    "stories15M.bin": (b"\x20\1\0\0", "stories15M.bin"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_another_format_given_as_weights_is_told_its_command(
    tmp_path, capsys, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "checkpoint")
    begin, source = GIVEN[name]
    if begin is not None:
        (tmp_path / name).write_bytes(begin)
    for command in (["generate", "x"], ["chat"], ["info"], ["perplexity", __file__]):
        if command == ["info"] and name.endswith(".json"):
            continue  # it tells a config, too
        assert npllama([*command, "--weights", name]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"; npllama convert {source} OUT.npz makes one" in line, command


def test_an_adapter_or_a_package_given_as_weights_is_told_its_command(
    tmp_path, capsys, monkeypatch
):
    (tmp_path / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "some_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\n")
    (info / "RECORD").write_text("some_model/weights.gguf,,\n")
    path = str(tmp_path / "adapter")
    merge = f"npllama convert BASE OUT.npz --adapter {path} makes one"
    for name, words in {
        path: merge,
        f"{path}/adapter_model.safetensors": merge,
        "some-model": "some-model: an installed package, not an .npz of npllama; "
        "npllama convert some-model OUT.npz makes one",
        "some_model": "npllama convert some_model OUT.npz makes one",
    }.items():
        for command in (["generate", "x"], ["chat"], ["info"]):
            assert npllama([*command, "--weights", name]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert words in line, command
    (info / "RECORD").write_text("some_model/__init__.py,,\n")
    assert npllama(["info", "some-model"]) == 1
    assert "no weights file some-model" in capsys.readouterr().err


WISHES = [
    ({"temperature": 0.0, "do_sample": False}, []),
    ({"top_p": 0.0}, []),
    ({"top_k": 0, "do_sample": False}, []),
    ({"min_p": 5.0, "typical_p": 0.0}, []),
    ({"num_beams": 1, "length_penalty": 0.7, "early_stopping": True}, []),
    ({"diversity_penalty": 5.0}, []),
    ({"num_beam_groups": 2, "diversity_penalty": 0.0}, []),
    ({"num_beams": 4, "diversity_penalty": 0.5}, []),
    ({"num_return_sequences": 3}, ["--do-sample"]),
    ({"force_words_ids": [[1]]}, ["--num-beams", "2"]),
    ({"top_p": 0.0, "do_sample": True}, ["--top-p", "0.9"]),
    ({"temperature": -1.0, "do_sample": True}, ["--temperature", "0.7"]),
]


@pytest.mark.parametrize("wishes, words", WISHES, ids=str)
def test_wishes_without_effect_are_passed_over(folder, out, capsys, wishes, words):
    (folder / "generation_config.json").write_text(json.dumps(wishes))
    convert(folder, out, "float32")
    model = load(out)
    options = ["--weights", str(out), *words]
    assert npllama(["generate", "x", *options]) == 1
    # All that is wrong is that this model has no tokenizer for the text.
    assert "generation_config" not in capsys.readouterr().err
    assert model.generation_config == wishes


def test_a_wish_that_has_an_effect_is_checked(folder, out, capsys):
    text = json.dumps({"top_p": 0.0, "do_sample": True})
    (folder / "generation_config.json").write_text(text)
    convert(folder, out, "float32")
    assert npllama(["generate", "x", "--weights", str(out)]) == 1
    assert "generation_config.json: top_p" in capsys.readouterr().err
