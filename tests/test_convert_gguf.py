"""GGUF as a source: what llama.cpp's own library writes is read back."""

import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, seeds

from npllama.cli.main import main
from npllama.config import Rope
from npllama.convert.convert import convert, locate, open_checkpoint
from npllama.convert.gguf import LAYER_NAMES, NAMES
from npllama.convert.gguf_file import read_header
from npllama.convert.gguf_text import SPLITS, tokenizer_files
from npllama.files.checkpoint import load
from npllama.files.npz import read_npz
from npllama.rope import frequencies, llama3_frequencies
from npllama.text.byte_level import byte_letters
from npllama.text.vocabulary import load_tokenizer
from npllama.weights import tensor_shapes

# Rows of whole blocks of 32, and sizes that are pairwise different.
CONFIG = replace(
    DISTINCT,
    vocab_size=37,
    hidden_size=64,
    intermediate_size=96,
    head_dim=32,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=(2,),
)
TIED = replace(CONFIG, tie_word_embeddings=True, attention_bias=False, mlp_bias=False)
TYPES = gguf.GGMLQuantizationType
PLAIN = {"F32": np.float32, "F16": np.float16}


def random_tensors(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(config).items()
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes}


def to_neighbours(tensor, heads):
    """Rows of q or k as llama.cpp's converter turns them: halves, interleaved."""
    parts = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(tensor.shape)


def llamacpp_name(name):
    stem, _, kind = name.rpartition(".")
    outside = {hf: own for own, hf in NAMES.items()}
    if stem in outside:
        return f"{outside[stem]}.{kind}"
    layer, part = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem).groups()
    inside = {hf: own for own, hf in LAYER_NAMES.items()}
    return f"blk.{layer}.{inside[part]}.{kind}"


def to_llamacpp(config, tensors):
    """The tensors under llama.cpp's names, in its order of rows."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    result = {}
    for name, tensor in tensors.items():
        turned = next((n for word, n in heads.items() if f".{word}." in name), None)
        tensor = to_neighbours(tensor, turned) if turned else tensor
        result[llamacpp_name(name)] = tensor
    return result


def add_fields(writer, config, **changes):
    """The metadata of a LLaMA; a change to None leaves a field out."""
    fields = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope.rope_theta,
    }
    whole = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    whole = {f"llama.{k}": v for k, v in fields.items()} | whole
    for key, value in (whole | changes).items():
        add = {float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        add |= {int: writer.add_uint32, list: writer.add_array}
        for written in writer.kv_data:
            written.pop(key, None)  # gguf 0.10 refuses to write a key twice
        if value is not None:
            add[type(value)](key, value)


def quantised(tensor, kind):
    """A tensor's data in a type; norms and biases stay float32, as llama.cpp's do."""
    if tensor.ndim == 1:
        return tensor, TYPES.F32
    if kind in PLAIN:
        return tensor.astype(PLAIN[kind]), TYPES[kind]
    return gguf.quantize(tensor, TYPES[kind]), TYPES[kind]


def write_gguf(path, config=CONFIG, kind="F32", extra=None, arch="llama", **changes):
    """A GGUF file by the library of llama.cpp; return its tensors, under our names."""
    tensors = random_tensors(config)
    writer = gguf.GGUFWriter(path, arch)
    add_fields(writer, config, **changes)
    for name, tensor in (to_llamacpp(config, tensors) | (extra or {})).items():
        data, of = quantised(tensor, kind)
        writer.add_tensor(name, data, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.npz"


def refused(path, out, capsys, *more):
    """The one line with which ``npllama convert`` refuses a file."""
    assert main(["convert", str(path), str(out), *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("npllama convert: ") and not out.exists()
    return line


# ---- tensors ------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["biases", "tied"])
def test_a_file_of_floats_comes_back_whole(path, out, config):
    tensors = write_gguf(path, config)
    convert(path, out)
    assert load(out).config == config
    found = read_npz(out).tensors
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    "kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
)
def test_every_type_is_dequantised_as_its_makers_do(path, out, kind):
    tensors = to_llamacpp(TIED, write_gguf(path, TIED, kind))
    convert(path, out)
    found = to_llamacpp(TIED, read_npz(out).tensors)
    for name, tensor in tensors.items():
        data, of = quantised(tensor, kind)
        expected = gguf.dequantize(data, of)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_blocks_of_256_are_read_in_order(path, kind):
    # gguf can only decode these types, so the blocks are random bytes.
    config = replace(TIED, hidden_size=256, intermediate_size=512)
    block, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, (96, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    add_fields(writer, config)
    writer.add_tensor("blk.0.ffn_down.weight", data, raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_header(path).tensors["blk.0.ffn_down.weight"]
    assert tensor.shape == (96, 2 * block) == (96, 512)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(data, TYPES[kind])
    np.testing.assert_array_equal(tensor.read(), expected)


def test_a_row_of_blocks_is_the_same_read_at_once_or_in_pieces(path, monkeypatch):
    write_gguf(path, TIED, "Q8_0")
    tensor = read_header(path).tensors["blk.1.ffn_up.weight"]
    whole = tensor.read()
    monkeypatch.setattr("npllama.convert.gguf_file.AT_ONCE", 4 * 64 * 7)
    np.testing.assert_array_equal(tensor.read(), whole)


def test_what_rounding_took_is_told(path, out, capsys):
    write_gguf(path, TIED, "Q4_1")
    convert(path, out)
    lost = json.loads(read_npz(out).files["npllama.json"])["lost"]
    assert lost == ["dequantised from Q4_1: 15 tensors"]
    assert main(["info", "--weights", str(out)]) == 0
    assert "dequantised from Q4_1: 15 tensors" in capsys.readouterr().out
    write_gguf(path, TIED, "F16")
    convert(path, out)
    assert "lost" not in json.loads(read_npz(out).files["npllama.json"])


def test_biases_of_some_projections_are_zero_in_the_others(path, out):
    config = replace(TIED, attention_bias=True)
    tensors = random_tensors(config)
    biases = {n: t for n, t in tensors.items() if n.endswith("k_proj.bias")}
    extra = to_llamacpp(config, biases)
    write_gguf(path, TIED, extra=extra)
    convert(path, out)
    found = read_npz(out).tensors
    for name, tensor in tensors.items():
        if name.endswith(".bias"):
            expected = tensor if name in biases else np.zeros_like(tensor)
            np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("given", [1, 2, 3])
def test_a_split_model_is_read_from_any_of_its_files(tmp_path, out, given):
    tensors, count = random_tensors(TIED), 3
    every = list(to_llamacpp(TIED, tensors).items())
    for i in range(count):
        writer = gguf.GGUFWriter(tmp_path / f"m-{i + 1:05}-of-{count:05}.gguf", "llama")
        if i == 0:
            add_fields(writer, TIED)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(every))
        for name, tensor in every[i::count]:
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    convert(tmp_path / f"m-{given:05}-of-{count:05}.gguf", out)
    found = read_npz(out).tensors
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert len(json.loads(read_npz(out).files["npllama.json"])["source"]) == count
    convert(tmp_path, out)  # a folder that holds nothing else
    (tmp_path / f"m-00002-of-{count:05}.gguf").unlink()
    with pytest.raises(OSError, match="m-00002-of-00003"):
        convert(tmp_path / f"m-00001-of-{count:05}.gguf", out)


# ---- the config ---------------------------------------------------------------------


def divisors(theta, D, rope):
    plain = frequencies(theta, D, "float64")
    return (plain / llama3_frequencies(rope, D, "float64")).astype(np.float32)


@pytest.mark.parametrize("factor, trained", [(8.0, 8192), (32.0, 8192), (4.0, 4096)])
def test_llama3_scaling_is_recovered_from_its_divisors(path, out, factor, trained):
    rope = Rope("llama3", 500000.0, factor, trained, 1.0, 4.0)
    config = replace(TIED, rope=rope, head_dim=64)
    freqs = {"rope_freqs.weight": divisors(5e5, 64, rope)}
    write_gguf(path, config, extra=freqs)
    convert(path, out)
    assert load(out).config == config
    assert "rope_freqs.weight" not in read_npz(out).tensors


def test_divisors_of_no_known_scaling_are_refused(path, out, capsys):
    freqs = {"rope_freqs.weight": np.linspace(1, 3, 16, dtype=np.float32)}
    write_gguf(path, TIED, extra=freqs)
    assert "rope_freqs.weight: the divisors of no llama3" in refused(path, out, capsys)


@pytest.mark.parametrize("sharper, trained", [(None, 64), (1.25, 64), (1.0, None)])
def test_factors_of_longrope_are_tensors(path, out, sharper, trained):
    factors = np.linspace(1, 3, 16, dtype=np.float32)
    extra = {"rope_factors_short.weight": np.sqrt(factors)}
    extra |= {"rope_factors_long.weight": factors}
    fields = {
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.original_context_length": trained,
        "llama.rope.scaling.attn_factor": sharper,
    }
    write_gguf(path, TIED, extra=extra, **fields)
    convert(path, out)
    rope = load(out).config.rope
    assert rope.rope_type == "longrope" and rope.attention_factor == (sharper or 1.0)
    positions = TIED.max_position_embeddings
    assert rope.original_max_position_embeddings == (trained or positions)
    np.testing.assert_array_equal(np.float32(rope.short_factor), np.sqrt(factors))
    np.testing.assert_array_equal(np.float32(rope.long_factor), factors)
    assert not [name for name in read_npz(out).tensors if "rope" in name]


def typed(path, name, kind):
    """Give a tensor of one axis another type; its bytes stay."""
    data = bytearray(path.read_bytes())
    at = data.index(name) + len(name) + 4 + 8  # the number of axes, and its length
    data[at : at + 4] = struct.pack("<I", kind)
    path.write_bytes(data)


def test_factors_of_bfloat16_are_read_as_such(path, out):
    bits = np.arange(0x3F80, 0x3F80 + 32, dtype=np.uint16)
    factors = (bits[:16].astype(np.uint32) << 16).view(np.float32)
    names = ("rope_factors_short.weight", "rope_factors_long.weight")
    extra = dict.fromkeys(names, bits.view(np.float32))
    write_gguf(path, TIED, extra=extra, **{"llama.rope.scaling.type": "longrope"})
    for name in names:
        typed(path, name.encode(), TYPES.BF16)
    convert(path, out)
    rope = load(out).config.rope
    assert rope.short_factor == rope.long_factor == tuple(factors.tolist())


@pytest.mark.parametrize("name", ["rope_freqs", "rope_factors_short"])
def test_factors_that_are_no_floats_are_named(path, out, capsys, name):
    names = ("rope_factors_short", "rope_factors_long")
    names = names if name in names else (name,)
    extra = {f"{n}.weight": np.ones(16, np.float32) for n in names}
    kind = {} if name == "rope_freqs" else {"llama.rope.scaling.type": "longrope"}
    write_gguf(path, TIED, extra=extra, **kind)
    typed(path, f"{name}.weight".encode(), TYPES.I32)
    assert f"{name}.weight: dtype I32" in refused(path, out, capsys)


def test_divisors_of_one_change_nothing(path, out):
    write_gguf(path, TIED, extra={"rope_freqs.weight": np.ones(16, np.float32)})
    convert(path, out)
    assert load(out).config == TIED


SCALINGS = {
    "linear": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        Rope("linear", factor=4.0),
    ),
    "a factor alone": ({"llama.rope.scaling.factor": 2.0}, Rope("linear", factor=2.0)),
    "the old word": ({"llama.rope.scale_linear": 2.5}, Rope("linear", factor=2.5)),
    "none": (
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.0},
        Rope(),
    ),
    "yarn": (
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 512,
        },
        Rope("yarn", factor=4.0, original_max_position_embeddings=512),
    ),
    "yarn, sharper": (
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 1.0,
            "llama.rope.scaling.attn_factor": 1.5,
        },
        Rope("yarn", 1e4, 1.0, 2048, attention_factor=1.5),
    ),
}


@pytest.mark.parametrize("case", SCALINGS)
def test_scaling_of_positions_is_read(path, case):
    fields, rope = SCALINGS[case]
    write_gguf(path, TIED, **fields)
    assert open_checkpoint(path).config.rope == rope


@given(st.sampled_from([1e-5, 1e-6, 3e-6, 1e-8, 0.1]), st.integers(3, 7))
def test_a_float_is_read_as_its_author_wrote_it(tmp_path_factory, eps, power):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    rope = Rope(rope_theta=float(10**power))
    write_gguf(path, replace(TIED, rms_norm_eps=eps, rope=rope))
    config = open_checkpoint(path).config
    assert config.rms_norm_eps == eps and config.rope == rope


def test_every_end_of_a_text_is_known(path):
    ends = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2}
    write_gguf(path, TIED, **ends)
    assert open_checkpoint(path).config.eos_token_id == (2, 5)


def test_what_may_be_absent_has_llamacpps_default(path):
    absent = ("rope.freq_base", "attention.head_count_kv", "attention.key_length",
              "attention.value_length", "rope.dimension_count")  # fmt: skip
    config = replace(TIED, num_attention_heads=2, num_key_value_heads=2)
    write_gguf(path, config, **{f"llama.{key}": None for key in absent})
    assert open_checkpoint(path).config == config


REFUSED = {
    "another architecture": (dict(arch="qwen2"), "general.architecture is 'qwen2'"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8"),
    "a window": (
        {"llama.attention.sliding_window": 9},
        "attention.sliding_window is 9",
    ),
    "a list of ends": (
        {"tokenizer.ggml.eot_token_id": [1, 2]},
        "eot_token_id is not one",
    ),
    "a list of sizes": (
        {"llama.rope.dimension_count": [1, 2]},
        "count is not one value",
    ),
    "a list of truths": ({"llama.attention.causal": [True]}, "causal is not one value"),
    "a list of kinds": ({"tokenizer.ggml.model": [1.0, 2.0]}, "model is not one value"),
    "a list of parts": ({"split.count": [1, 2]}, "split.count is not one value"),
    "no number": (
        {"llama.rope.freq_base": float("nan")},
        "rope_theta nan is not a number",
    ),
    "a size in words": ({"llama.context_length": "x"}, "length is not a whole number"),
    "heads by layer": (
        {"llama.attention.head_count": [6, 6]},
        "head_count is not one value for the whole model",
    ),
    "no width": ({"llama.embedding_length": None}, "llama.embedding_length is missing"),
    "no epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": None},
        "layer_norm_rms_epsilon is None, not a number",
    ),
    "half a rotation": ({"llama.rope.dimension_count": 16}, "its head size 32"),
    "longrope without its factors": (
        {"llama.rope.scaling.type": "longrope"},
        "rope_factors_short.weight: missing; llama.rope.scaling.type is 'longrope'",
    ),
    "factors without longrope": (
        dict(extra={"rope_factors_long.weight": np.ones(16, np.float32)}),
        "rope_factors_long.weight: llama.rope.scaling.type is not 'longrope'",
    ),
    "factors of another head": (
        {
            "llama.rope.scaling.type": "longrope",
            "extra": {
                "rope_factors_long.weight": np.ones(9, np.float32),
                "rope_factors_short.weight": np.ones(9, np.float32),
            },
        },
        "short_factor is not a list of 16 numbers",
    ),
    "another scaling": ({"llama.rope.scaling.type": "ntk"}, "type is 'ntk'"),
    "a stray tensor": (
        dict(extra={"blk.0.attn_q_norm.weight": np.ones(32, np.float32)}),
        "blk.0.attn_q_norm.weight: not part of a LLaMA",
    ),
    "one of several": ({"split.count": 3}, "one of 3 files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_llama_is_refused_by_name(path, out, capsys, case):
    changes, words = REFUSED[case]
    write_gguf(path, TIED, **changes)
    line = refused(path, out, capsys)
    assert f"{path}: " in line and words in line


# ---- damaged files ------------------------------------------------------------------


@given(seeds)
def test_any_bytes_changed_in_a_header_give_a_model_or_one_line(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    write_gguf(path, TIED, "Q8_0", **{"tokenizer.ggml.tokens": ["a", "b"]})
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    end = data.index(b"output_norm.weight") + 60
    for at in rng.integers(0, end, rng.integers(1, 5)):
        data[at] = rng.choice([0, 1, 2, 8, 9, 127, 128, 255, rng.integers(256)])
    path.write_bytes(data[: rng.integers(len(data))] if seed % 5 == 0 else data)
    try:
        checkpoint = open_checkpoint(path)
    except (ValueError, OSError) as error:
        assert len(str(error).splitlines()) == 1
    else:
        for tensor in checkpoint.tensors.values():
            assert tensor.read().shape == tensor.shape


def test_a_type_that_gguf_knows_and_cannot_read_is_named(path, out, capsys):
    write_gguf(path, TIED, "Q8_0")
    data, name = bytearray(path.read_bytes()), b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # axes, and their lengths
    assert data[at] == TYPES.Q8_0
    data[at] = TYPES.Q8_1  # larger blocks: the last tensors would end beyond the file
    path.write_bytes(data + bytes(10**5))
    line = refused(path, out, capsys)
    assert "up_proj.weight: dtype Q8_1; weights should be one of" in line


COLUMNS = [
    ({"tokenizer.ggml.token_type": "abc"}, "token_type is 'abc', not numbers"),
    ({"tokenizer.ggml.token_type": 7}, "token_type is 7, not numbers"),
    ({"tokenizer.ggml.token_type": ["a"]}, "token_type is ['a'], not numbers"),
    ({"tokenizer.ggml.scores": "abc"}, "scores is 'abc', not numbers"),
    ({"tokenizer.ggml.scores": [1.0]}, "scores has 1 entries for 37 tokens"),
    ({"tokenizer.ggml.pre": ["a"]}, "pre is ['a'], not a str"),
    ({"tokenizer.ggml.add_bos_token": "no"}, "add_bos_token is 'no', not a bool"),
    ({"tokenizer.ggml.add_space_prefix": 7}, "add_space_prefix is 7, not a bool"),
    ({"tokenizer.ggml.eos_token_id": 37}, "eos_token_id 37 is not a token"),
]


@pytest.mark.parametrize("change, words", COLUMNS)
def test_a_column_that_is_none_is_named(path, out, capsys, change, words):
    fields = {"model": "llama", "tokens": [f"t{i}" for i in range(37)]}
    fields = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    write_gguf(path, TIED, **fields | change)
    line = refused(path, out, capsys)
    assert f"{path}: tokenizer.ggml.{words}; --no-tokenizer converts the" in line


@pytest.mark.parametrize("sizes", [(), (0,), (0, 4), (31, 2), (33,), (1,)])
def test_rows_that_are_not_blocks_are_refused(path, out, capsys, sizes):
    write_gguf(path, TIED, "Q8_0")
    data, name = path.read_bytes(), b"blk.0.attn_q.weight"
    at = data.index(name) + len(name)  # a number of sizes, innermost first; two of them
    said = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    path.write_bytes(data[:at] + said + data[at + 20 :])
    width = sizes[0] if sizes else 1
    assert f"rows of {width} are not whole blocks of 32" in refused(path, out, capsys)


HEADERS = {
    "another file": (b"GGML", "should begin with GGUF"),
    "nothing": (b"", "empty"),
    "big-endian": (b"GGUF\0\0\0\3", "big-endian"),
    "version 1": (b"GGUF\1\0\0\0", "GGUF version 1"),
    "cut": (b"GGUF\3\0\0\0\1", "truncated"),
    "an endless array": (
        b"GGUF\3\0\0\0" + bytes(8) + b"\1" + bytes(7)
        + b"\1" + bytes(7) + b"a" + b"\x09\0\0\0" + b"\4\0\0\0" + b"\xff" * 8,
        "truncated",
    ),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies_is_refused(path, out, capsys, case):
    data, words = HEADERS[case]
    path.write_bytes(data)
    assert words in refused(path, out, capsys)


def test_without_gguf_the_extra_is_named(path, out, capsys, monkeypatch):
    import sys

    write_gguf(path, TIED)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'npllama[convert]'" in refused(path, out, capsys)


# ---- where it lies ------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["some-model", "some_model"])
def test_an_installed_package_may_hold_the_file(tmp_path, monkeypatch, spelling):
    site = tmp_path / "site"
    (site / "some_model").mkdir(parents=True)
    (site / "some_model" / "__init__.py").write_text("raise SystemExit('it ran')")
    file = site / "some_model" / "weights.gguf"
    write_gguf(file, TIED)
    info = site / "some_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\n")
    (info / "RECORD").write_text(
        "some_model/weights.gguf,,\nsome_model/__init__.py,,\n"
    )
    monkeypatch.syspath_prepend(site)
    assert locate(spelling) == file
    (info / "RECORD").write_text("some_model/__init__.py,,\n")
    with pytest.raises(ValueError, match="a package with 0 files .gguf"):
        locate(spelling)


def test_a_name_of_nothing_is_said(out, capsys):
    line = refused("no-such-thing", out, capsys)
    assert "no-such-thing: no such folder or file, and no installed package" in line


def test_of_two_models_in_a_folder_one_must_be_given(tmp_path, out, capsys):
    write_gguf(tmp_path / "a.gguf", TIED)
    write_gguf(tmp_path / "b.gguf", TIED)
    assert "give one of a.gguf, b.gguf" in refused(tmp_path, out, capsys)


# ---- the tokenizer ------------------------------------------------------------------

MODEL = Path(__file__).parent / "goldens" / "tokenizers" / "sentencepiece.model"


def sentencepiece_fields(engine):
    """The fields that llama.cpp's converter makes of a SentencePiece model."""
    size = range(engine.vocab_size())
    kinds = [
        2 if engine.is_unknown(i) else 3 if engine.is_control(i)
        else 6 if engine.is_byte(i) else 5 if engine.is_unused(i) else 1
        for i in size
    ]  # fmt: skip
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [engine.id_to_piece(i) for i in size],
        "tokenizer.ggml.scores": [engine.get_score(i) for i in size],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": engine.bos_id(),
        "tokenizer.ggml.eos_token_id": engine.eos_id(),
        "tokenizer.ggml.unknown_token_id": engine.unk_id(),
    }


def test_a_sentencepiece_model_is_written_anew(path, out):
    original = sentencepiece.SentencePieceProcessor(str(MODEL))
    config = replace(TIED, vocab_size=original.vocab_size())
    write_gguf(path, config, **sentencepiece_fields(original))
    files = open_checkpoint(path).files
    anew = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    texts = MODEL.read_bytes().decode("utf-8", "replace").split("\n")[:300]
    texts += ["", " ", "  two", "Once upon a time", "naïve 漢字 🙂\n\t", "\u2581"]
    assert anew.encode(texts) == original.encode(texts)
    size = range(original.vocab_size())
    for of in ("id_to_piece", "is_control", "is_byte", "is_unknown", "get_score"):
        assert [getattr(anew, of)(i) for i in size] == [
            getattr(original, of)(i) for i in size
        ]
    ends = [engine.bos_id() for engine in (anew, original)]
    assert ends[0] == ends[1] and anew.eos_id() == original.eos_id()
    convert(path, out)
    assert load(out).tokenizer.encode("Once upon") == [
        original.bos_id(), *original.encode("Once upon")
    ]  # fmt: skip


@pytest.mark.parametrize("pre", SPLITS)
def test_every_splitting_by_name_is_one_that_can_be_read(pre):
    names = [*byte_letters(), "ab"]
    fields = {"model": "gpt2", "pre": pre, "tokens": names, "merges": ["a b"]}
    fields = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    tokenizer = load_tokenizer(tokenizer_files(fields, []))
    assert tokenizer.kind == "tiktoken"
    assert tokenizer.decode(tokenizer.encode("ab, 12\n c")) == "ab, 12\n c"
    assert tokenizer.encode("ab", bos=False) == [256]


def test_an_unknown_splitting_is_refused_by_its_name(path, out, capsys):
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "strange",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
    }
    write_gguf(path, TIED, **fields)
    line = refused(path, out, capsys)
    assert "tokenizer.ggml.pre is 'strange'" in line and "--no-tokenizer" in line
    assert main(["convert", str(path), str(out), "--no-tokenizer", "--quiet"]) == 0
    assert load(out).tokenizer is None
