"""The trace file: read back as written, by others too, and never believed blindly."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import THOROUGH
from strategies import DISTINCT, random_model, seeds

from npllama.cache import new_cache
from npllama.cli.main import main
from npllama.files.checkpoint import locate, widen
from npllama.golden import trace as trace_module
from npllama.golden.record import Wanted, record
from npllama.golden.trace import AXES, FORMAT, META, read_golden, read_trace
from npllama.model import forward
from npllama.rope import halves_order, rotate, rotate_neighbours


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A small golden trace, with a floor."""
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    model = random_model(DISTINCT, 0, "float64")
    record(model, [[1, 5, 9]], path, Wanted(2, floors=("float32",)))
    return path


def rewritten(path, out, meta=None, tensors=None):
    """The same trace with other entries of meta.json, or other tensors."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != META}
        entries = json.loads(file[META])
    arrays |= tensors or {}
    arrays = {name: a for name, a in arrays.items() if a is not None}
    np.savez(out, **arrays)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(META, json.dumps(entries | (meta or {})))
    return out


# ---- what a trace is --------------------------------------------------------


def test_numpy_reads_the_file_and_names_stand_in_order_of_execution(golden):
    trace = read_golden(golden)
    with np.load(golden) as file:
        assert [name for name in file.files if name != META] == trace.names
        for name in trace:
            np.testing.assert_array_equal(file[name], trace[name])
    places = [name.rpartition("/")[2] for name in trace.names]
    block = places[1 : places.index("model.layers.0.output") + 1]
    assert [p.removeprefix("model.layers.0.") for p in block] == [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.q_rope",
        "self_attn.k_rope",
        "self_attn.attention",
        "self_attn.o_proj",
        "post_attention",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.act_fn",
        "mlp.down_proj",
        "output",
    ]
    assert trace.meta["format"] == FORMAT


def test_a_file_of_arrays_alone_is_a_candidate(tmp_path):
    logits = np.arange(6.0).reshape(1, 2, 3)
    np.savez(tmp_path / "c.npz", **{"prefill/lm_head": logits})
    trace = read_trace(tmp_path / "c.npz")
    assert trace.names == ["prefill/lm_head"] and trace.meta == {}
    np.testing.assert_array_equal(trace["prefill/lm_head"], logits)


def test_bfloat16_is_kept_as_its_bits(tmp_path):
    bits = np.array([[[0x3F80, 0x4049, 0xC0A0]]], dtype=np.uint16)
    np.savez(tmp_path / "a.npz", **{"prefill/lm_head": bits})
    stored = {"stored": {"prefill/lm_head": "bfloat16"}}
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr(META, json.dumps(stored))
    found = read_trace(tmp_path / "a.npz")["prefill/lm_head"]
    np.testing.assert_array_equal(found, widen(bits, "bfloat16", "float32"))
    assert found.dtype == np.float32 and found[0, 0, 0] == 1


@given(seed=seeds, folded=st.booleans())
def test_interleaved_pairs_come_out_as_halves(tmp_path_factory, seed, folded):
    rng = np.random.default_rng(seed)
    B, T, H, D = 1, 3, 2, 6
    # Meta's order of the coordinates of each head, and what turning makes of it.
    interleaved = rng.standard_normal((B, T, H, D))
    angle = rng.standard_normal((B, T, D // 2))
    turned = rotate_neighbours(interleaved, np.cos(angle), np.sin(angle))
    names = ("q_proj", "q_rope")
    arrays = {
        f"prefill/model.layers.0.self_attn.{name}": x.reshape(B, T, -1) if folded else x
        for name, x in zip(names, (interleaved, turned))
    }
    path = tmp_path_factory.mktemp("layout") / "c.npz"
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(META, '{"rope_layout": "interleaved", "head_dim": 6}')
    q, q_rope = (a.reshape(B, T, H, D) for a in read_trace(path).values())
    np.testing.assert_array_equal(q, interleaved[..., halves_order(D)])
    np.testing.assert_allclose(rotate(q, np.cos(angle), np.sin(angle)), q_rope)


# ---- what the README says ---------------------------------------------------

README = Path(trace_module.__file__).with_name("README.md").read_text("utf-8")


def test_candidate_written_as_the_readme_says_is_within_the_floor(
    tmp_path, monkeypatch, capsys
):
    model = random_model(DISTINCT, 0, "float64")
    wanted = Wanted(2, floors=("float32", "bfloat16"))
    record(model, [[1, 5, 9]], tmp_path / "golden.npz", wanted)

    def my_model(tokens):
        return forward(model, tokens, new_cache(DISTINCT, *tokens.shape, "float64"))

    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", README, re.S)
    for code, dtype in ((first, "float32"), (second, "bfloat16")):
        exec(code, {"my_model": my_model})
        assert main(["golden", "compare", "golden.npz", "candidate.npz"]) == 0
        told = f"all 3 tensors are within the noise floor of {dtype}"
        assert told in capsys.readouterr().out


def test_the_readme_lists_every_tensor_under_its_axes():
    listed = {}
    for names, axes in re.findall(r"^\| (`.*?) \| (\(.*?\)) \|", README, re.M):
        first, *more = re.findall(r"`(?:model\.layers\.0\.)?([\w.]+)`", names)
        folder = first.rpartition(".")[0]
        for name in (first, *(n if "." in n else f"{folder}.{n}" for n in more)):
            listed[name] = "".join(re.findall("[A-Z]", axes))
    assert listed.pop("u") == "B"
    assert listed == AXES


# ---- what is refused --------------------------------------------------------


FLOOR = {"float32": {"prefill/lm_head": {"rms": 1e-7, "max": 1e-6}}}
BAD_META = {
    "a format of another time": ({"format": "npllama-golden-9"}, "not a golden trace"),
    "a layout nobody knows": ({"rope_layout": "thirds"}, "rope_layout is 'thirds'"),
    "heads of an odd size": ({"head_dim": 3}, "head_dim is 3"),
    "heads of no size": ({"head_dim": True}, "head_dim is True"),
    "a floor that is no number": (
        {"floor": {"float32": {"a": {"rms": "low"}}}},
        "the floor of 'float32'",
    ),
    "a floor that is infinite": (
        {"floor": {"float32": {"a": {"rms": float("inf")}}}},
        "the floor of 'float32'",
    ),
    "a floor that is a list": ({"floor": {"bfloat16": [1]}}, "the floor of 'bfloat16'"),
    "no shapes": ({"shapes": {}}, "no list of shapes"),
    "shapes that are a list": ({"shapes": []}, "shapes is"),
    "a tensor too many": ({"shapes": {"tokens": [1, 5]}}, "is not listed"),
    "a floor too few": ({"floor": {"float32": {}}}, "has no floor in 'float32'"),
    "a floor beyond all floats": (
        {"floor": {"float32": {"a": {"rms": 10**400}}}},
        "the floor of 'float32'",
    ),
    "no config": ({"config": {}}, "'num_attention_heads' is missing"),
    "a prompt of no tokens": ({"prompt_tokens": 0}, "prompt_tokens is 0"),
    "a longer prompt": ({"prompt_tokens": 4}, "its config gives"),
    "a dtype nobody records": ({"dtype": "float16"}, "not 'float16'"),
    "a longer description": ({"said": " " * 2**25}, "bytes; 33554432 are the most"),
    "bits of an unknown kind": ({"stored": {"a": "int4"}}, "stored as 'int4'"),
    "pairs without heads": (
        {"rope_layout": "interleaved", "head_dim": None},
        "head_dim is None",
    ),
}


@pytest.mark.parametrize("meta, words", BAD_META.values(), ids=BAD_META)
def test_a_description_that_makes_no_sense_is_one_line(golden, tmp_path, meta, words):
    path = rewritten(golden, tmp_path / "g.npz", meta)
    with pytest.raises(ValueError, match=words) as caught:
        read_golden(path)
    assert len(str(caught.value).splitlines()) == 1 and "g.npz" in str(caught.value)


BAD_TENSORS = {
    "not finite": ({"prefill/lm_head": np.full((1, 3, 13), np.nan)}, "not finite"),
    "whole numbers": ({"prefill/lm_head": np.ones((1, 3, 13), int)}, "not 'float64'"),
    "tokens of another model": ({"tokens": np.full((1, 5), 13)}, "outside the vocab"),
    "tokens before the first": ({"tokens": np.full((1, 5), -1)}, "outside the vocab"),
    "a number alone": ({"cache.k": np.float64(1)}, "no heads of"),
    "a number per draw and more": ({"u": np.ones((1, 1, 1))}, "two axes"),
    "missing": ({"prefill/lm_head": None}, "prefill/lm_head' is missing"),
    "misshapen": ({"prefill/lm_head": np.zeros((1, 3, 14))}, r"is \[1, 3, 14\]"),
    "empty": ({"prefill/lm_head": np.zeros((1, 0, 13))}, "is empty"),
    "pickled": ({"prefill/lm_head": np.array([{}], object)}, "plain numbers"),
    "strings": ({"prefill/lm_head": np.array(["a"])}, "plain numbers"),
    "fractions of tokens": ({"tokens": np.zeros((1, 5))}, "integers are needed"),
}


@pytest.mark.parametrize("tensors, words", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_cannot_be_are_one_line(golden, tmp_path, tensors, words):
    path = rewritten(golden, tmp_path / "g.npz", tensors=tensors)
    with pytest.raises(ValueError, match=words) as caught:
        read_golden(path)
    assert len(str(caught.value).splitlines()) == 1


ALIEN = ["decode.2/lm_head", "decode.x/lm_head", "prefill/lm_head/x", "lm_head"]
ALIEN += ["prefill/model.layers.99.output", "prefill/output", "prefill/tokens"]
ALIEN += ["prefill/model.layers.0.lm_head", "prefill/model.layers.x.output"]


@pytest.mark.parametrize("name", ALIEN)
def test_a_tensor_that_the_model_does_not_have_is_refused(golden, tmp_path, name):
    trace, extra = read_golden(golden), {name: np.ones((1, 3, 7))}
    floor = {"float32": dict.fromkeys([*trace, name], {"rms": 0.1})}
    shapes = {n: list(a.shape) for n, a in {**trace, **extra}.items()}
    meta = {"shapes": shapes, "floor": floor}
    path = rewritten(golden, tmp_path / "g.npz", meta, extra)
    with pytest.raises(ValueError, match="not one of this model and its steps"):
        read_golden(path)


PATHS = ["../out", "a/../../out", "/out", "C:/out", "..\\out", "a\nb"]


@pytest.mark.parametrize("name", PATHS)
def test_a_name_that_leads_out_of_the_file_is_refused(tmp_path, name):
    path = tmp_path / "c.npz"
    np.savez(path, **{name: np.ones(2)})
    with pytest.raises(ValueError, match="is not a name of a tensor") as caught:
        read_trace(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_weights_file_is_no_golden_trace():
    with pytest.raises(ValueError, match="make one with: npllama golden record"):
        read_golden(locate("stories-draft"))


def damaged(data, rng):
    """A copy with a few bytes changed, most of them where the structure is."""
    out = bytearray(data)
    directory = data.rindex(b"PK\x01\x02", 0, data.index(b"PK\x05\x06"))
    first = data.index(b"PK\x01\x02")
    for _ in range(int(rng.integers(1, 9))):
        start, end = [(0, len(data)), (first, len(data)), (directory, len(data))][
            rng.integers(3)
        ]
        out[rng.integers(start, end)] = rng.integers(256)
    if rng.random() < 0.2:
        out = out[: rng.integers(len(out))]
    return bytes(out)


def test_any_damage_gives_a_trace_or_one_line(golden, tmp_path):
    data, path = golden.read_bytes(), tmp_path / "damaged.npz"
    thorough = THOROUGH
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(10_000 if thorough else 300):
        path.write_bytes(damaged(data, rng))
        for read in (read_trace, read_golden):
            try:
                for array in read(path).values():
                    assert array.size <= len(data)
            except ValueError as error:
                assert len(str(error).splitlines()) == 1
                refused += 1
    assert refused > 100
