"""Checkpoints from anywhere: a model or one line, and nothing beside it.

Each input is a whole one with one to three changes, drawn from a seed.
"""

import json
import resource
import shutil
import struct
import sys
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from profiles import THOROUGH
from strategies import DISTINCT
from test_chat import HOSTILE, LONG
from test_convert import write_folder
from test_convert_gguf import TIED, sentencepiece_fields, write_gguf
from test_convert_packed import CASES, GOLDENS
from test_vocabulary import ENGINE, MODEL, RANKS, SIZE, WHOLE, metaspace, pieces_json

import npllama
from npllama.cli.main import main

MANY = 1000 if THOROUGH else 200
MOST_KB = 2**20  # a gigabyte

# ---- texts that stand in place of a value of JSON ------------------------------------

VALUES = """null true false -1 0 1 2.5 1e999 NaN -Infinity 2147483648 18446744073709551616
"" "x" "\\ud800" "a\\nb\\u0000" "\\u001b[31m" "\\u2028" "BF16" "gptq" [] [[]] {} {"":[]}
[-1] [true] ["a"] ["a","b"] [null,null] {"type":"Sequence"} {"Regex":"(a+)+$"}
{"content":5} {"id":-1,"content":"n"} {"id":1099511627776,"content":"n"}
{"id":5,"content":"n"} {"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated"}
{"type":"Unigram","vocab":[["a",-1]],"unk_id":0} {"type":"BPE","vocab":{},"merges":[]}
{"rope_type":"yarn","factor":4} {"rope_type":"longrope"} [["zz","yy"]]""".split()
VALUES += ["1" + "0" * 5000, "[" * 9000 + "]" * 9000, '{"a":' * 900 + "1" + "}" * 900]
VALUES += ['"' + "y" * 70_000 + '"', "[" + "0," * 20_000 + "0]"]


def place_in(data, rng):
    """A container somewhere in a JSON value, and one of its keys."""
    while True:
        keys = list(data) if isinstance(data, dict) else range(len(data))
        key = keys[rng.integers(len(keys))]
        inside = data[key]
        if not isinstance(inside, (dict, list)) or not inside or rng.random() < 0.3:
            return data, key
        data = inside


def other_json(data, rng):
    """The bytes of a JSON object after a change somewhere in it."""
    data, new, mark = json.loads(json.dumps(data)), "", "@@"
    at, key = place_in(data, rng)
    kind = rng.integers(10)
    if kind < 6:
        new, at[key] = VALUES[rng.integers(len(VALUES))], mark
    elif kind == 6:
        del at[key]
    elif kind == 7 and isinstance(at, dict):
        at[f"{key} "] = at.pop(key)
    elif kind == 8 and isinstance(at, dict):  # the same key twice
        new = f"{at[key]!s:.20}"
        text = json.dumps(data).replace(json.dumps(key), f"{json.dumps(key)}: 0, ", 1)
        return text.encode()
    else:
        other, same = place_in(data, rng)
        at[key] = json.loads(json.dumps(other[same]))
    text = json.dumps(data).replace(f'"{mark}"', new).encode()
    return other_bytes(text, rng) if rng.random() < 0.1 else text


def other_bytes(data, rng, first=None):
    """Some bytes changed, most of them near the beginning, or the rest cut off."""
    out = bytearray(data)
    if not out or rng.random() < 0.2:
        return bytes(out[: rng.integers(len(out) + 1)])
    end = min(first or len(out), len(out))
    for _ in range(rng.integers(1, 6)):
        out[rng.integers(end)] = rng.choice([0, 1, 8, 9, 127, 255, rng.integers(256)])
    return bytes(out)


# ---- one maker for each kind of input --------------------------------------------------

FIELDS = """llama.expert_count llama.attention.key_length llama.attention.head_count_kv
llama.rope.dimension_count llama.rope.scaling.type llama.rope.scaling.factor split.count
llama.block_count llama.embedding_length llama.context_length llama.rope.freq_base
general.alignment general.architecture tokenizer.ggml.model tokenizer.ggml.tokens
tokenizer.ggml.scores tokenizer.ggml.token_type tokenizer.ggml.merges tokenizer.ggml.pre
tokenizer.ggml.bos_token_id tokenizer.ggml.eot_token_id tokenizer.chat_template""".split()
SAID = [
    0,
    1,
    2**32 - 1,
    0.0,
    float("nan"),
    1e38,
    True,
    "",
    "gpt2",
    "yarn",
    "a\nb\x1b[1m",
]
SAID += [[0], [1.0, 2.0], ["a"], ["a", "b", "ab"], [7] * 5000]
COUNTS = [0, 1, 255, 2**31, 2**40, 2**63 - 1, 2**64 - 1]


def hostile_gguf(folder, rng):
    """A GGUF file with other fields, lengths or bytes."""
    path, changes = folder / "model.gguf", {}
    config = TIED
    if rng.random() < 0.4:
        config = replace(TIED, vocab_size=SIZE)
        changes = sentencepiece_fields(ENGINE)
    for key in rng.choice(FIELDS, rng.integers(0, 3)):
        changes[str(key)] = SAID[rng.integers(len(SAID))]
    write_gguf(path, config, ["F32", "Q8_0", "Q4_1"][rng.integers(3)], **changes)
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        # What stands before a name is its length, and after it sizes or a value.
        names = [b"blk.0.attn_q.weight", b"token_embd.weight", b"llama.block_count"]
        name = names[rng.integers(3)]
        at = data.find(name) + (len(name) + 4 if rng.random() < 0.7 else -8)
        at = 8 if rng.random() < 0.2 else at  # how many tensors there are
        if at >= 8:
            data[at : at + 8] = struct.pack("<Q", COUNTS[rng.integers(len(COUNTS))])
    if rng.random() < 0.4:
        data = other_bytes(data, rng, data.find(b"output_norm.weight") + 60)
    path.write_bytes(data)
    return path


def hostile_packed(folder, rng):
    """A folder of packed weights with another config or another file of tensors."""
    shutil.copytree(GOLDENS / CASES[rng.integers(len(CASES))], folder / "packed")
    folder = folder / "packed"
    (folder / "expected.npz").unlink()
    for name in ("config.json", "quantize_config.json"):
        path = folder / name
        if path.exists() and rng.random() < 0.6:
            path.write_bytes(other_json(json.loads(path.read_bytes()), rng))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    kind = rng.integers(4)
    if kind == 0:
        header = other_json(json.loads(data[8 : 8 + length]), rng)
        data = struct.pack("<Q", len(header)) + header + data[8 + length :]
    elif kind == 1:
        data = struct.pack("<Q", COUNTS[rng.integers(len(COUNTS))]) + data[8:]
    elif kind == 2:
        data = other_bytes(data, rng, 3000)
    path.write_bytes(data)
    return folder


WRITTEN = [WHOLE, pieces_json(), pieces_json(**metaspace("first", True))]
ASIDE = {
    "tokenizer_config.json": {
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "added_tokens_decoder": {"900": {"content": "<think>", "special": False}},
        "additional_special_tokens": ["<x>"],
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    },
    "special_tokens_map.json": {"bos_token": "<s>", "pad_token": {"content": "<p>"}},
    "added_tokens.json": {"<think>": 900, "<x>": 901},
    "generation_config.json": {"eos_token_id": [1, 2], "temperature": 0.5, "top_k": 5},
    "config.json": None,
}


def hostile_tokenizer(folder, rng):
    """A folder with another tokenizer, or other settings beside it."""
    write_folder(folder, replace(DISTINCT, vocab_size=902))
    kind = rng.integers(5)
    if kind < 3:
        content = other_json(WRITTEN[kind], rng)
        (folder / "tokenizer.json").write_bytes(content)
    else:
        content = [MODEL, RANKS][kind - 3]
        content = other_bytes(content, rng) if rng.random() < 0.7 else content
        (folder / "tokenizer.model").write_bytes(content)
    for name, data in ASIDE.items():
        if rng.random() < 0.3:
            data = data or json.loads((folder / name).read_bytes())
            (folder / name).write_bytes(other_json(data, rng))
    return folder


MAKERS = [hostile_gguf, hostile_packed, hostile_tokenizer]

# ---- what comes of it --------------------------------------------------------------------


def shown(capfd, command, *arguments):
    """Exit code and the lines on stderr of a command, which never stumbles."""
    code = main([command, *map(str, arguments)])
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert code in (0, 1) and all(line.isprintable() for line in lines), err
    if code == 1:
        assert len(lines) == 1 and lines[0].startswith(f"npllama {command}: "), err
        assert out == "" and len(lines[0]) < 1100
    return code, lines


def converted(capfd, make, folder, seed):
    """Convert one input; return whether it is a model, which can then be used."""
    folder.mkdir()
    source, out = make(folder, np.random.default_rng(seed)), folder / "out" / "o.npz"
    out.parent.mkdir()
    code, lines = shown(capfd, "convert", source, out, "--quiet")
    left = [path.name for path in out.parent.iterdir()]
    assert left == ([] if code else ["o.npz"])
    if not code:
        assert all(line.startswith("npllama convert: warning: ") for line in lines)
        assert shown(capfd, "info", out) == (0, [])
        if tokenizer := npllama.load(out).tokenizer:
            tokenizer.decode(range(tokenizer.vocab_size), skip_special=False)
    shutil.rmtree(folder)
    return not code


@pytest.mark.parametrize("make", MAKERS)
def test_hostile_checkpoint_is_a_model_or_one_line(make, tmp_path, capfd):
    found = [converted(capfd, make, tmp_path / "a", seed) for seed in range(25)]
    assert 0 < sum(found) < 25


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
def test_many_hostile_checkpoints_are_models_or_one_line(make, tmp_path, capfd):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = [converted(capfd, make, tmp_path / "a", 99 + i) for i in range(MANY)]
    assert 0 < sum(found) < MANY
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KB


# ---- on purpose ----------------------------------------------------------------------------


def test_what_a_file_calls_a_tensor_cannot_move_the_cursor(tmp_path, capfd):
    path = tmp_path / "model.gguf"
    write_gguf(path, TIED, extra={"\x1b[2J.weight": np.ones(2, np.float32)})
    code, (line,) = shown(capfd, "convert", path, tmp_path / "o.npz")
    assert code == 1 and r": \x1b[2J.weight: not part of" in line


def test_sentencepiece_writes_nothing_of_its_own(tmp_path, capfd):
    folder = tmp_path / "checkpoint"
    write_folder(folder, replace(DISTINCT, vocab_size=SIZE))
    # The library warns of a piece that is a zero byte.
    piece = next(i for i in range(SIZE) if len(ENGINE.id_to_piece(i).encode()) == 1)
    text = b"\x0a\x01" + ENGINE.id_to_piece(piece).encode()
    model = MODEL.replace(text, b"\x0a\x01\x00", 1)
    assert model != MODEL
    (folder / "tokenizer.model").write_bytes(model)
    assert shown(capfd, "convert", folder, tmp_path / "o.npz", "--quiet") == (0, [])


PARTS = {
    "config.json": (b"{}", "give the folder that it is in"),
    "tokenizer.model": (MODEL, "give the folder that it is in"),
    "pytorch_model.bin": (b"\x80\x02}q\x00.", "give the folder that it is in"),
    "README.md": (b"# A model", "not a folder, a .gguf or a .bin"),
    "empty": (b"", "not a folder, a .gguf or a .bin"),
    "model.npz": (b"PK\3\4", "an .npz, which is what convert makes"),
}


@pytest.mark.parametrize("name", PARTS)
def test_part_of_a_checkpoint_is_not_taken_for_another_kind(name, tmp_path, capfd):
    content, words = PARTS[name]
    (tmp_path / name).write_bytes(content)
    code, (line,) = shown(capfd, "convert", tmp_path / name, tmp_path / "o.npz")
    assert code == 1 and words in line and "llama2.c" not in line


TEMPLATES = {
    **HOSTILE,
    "a huge number beside its marks": "<|im_start|><|im_end|>{{ 9 ** (9 ** 9) }}",
    "its marks alone": "[INST]",
    "a refusal that moves the cursor": "{{ raise_exception('\x1b[2J\nno') }}",
    "half a pair": "{{ '\\ud800' }}",
    "a megabyte": "x" * 10**6,
    "a megabyte of programs": "{{ 1 }}" * 150_000,
    "a long chain": "{{ a" + "|upper" * 5000 + " }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TEMPLATES if kind not in LONG])
def test_no_template_makes_a_talk_stumble(kind, tmp_path, capfd, monkeypatch):
    folder, out = tmp_path / "checkpoint", tmp_path / "o.npz"
    write_folder(folder, replace(DISTINCT, vocab_size=902))
    (folder / "tokenizer.json").write_text(json.dumps(WHOLE))
    settings = {"chat_template": TEMPLATES[kind], "bos_token": "<|begin_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.chdir(tmp_path)  # where a template would write
    assert shown(capfd, "convert", folder, out, "--quiet") == (0, [])
    assert shown(capfd, "info", out) == (0, [])
    monkeypatch.setattr(sys, "stdin", StringIO("Hi\nSo?\n"))
    code, lines = shown(capfd, "chat", "--weights", out, "--max-new-tokens", "2")
    assert code or all(line.startswith(("[", "npllama: ")) for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "o.npz"]
