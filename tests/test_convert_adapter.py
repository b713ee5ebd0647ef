"""LoRA adapters: merged as the papers say, or refused by one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, normal, seeds

from npllama.cli.main import main
from npllama.config import config_to_hf
from npllama.convert.adapter import merge, scaling
from npllama.files.checkpoint import load, lost_on_the_way
from npllama.files.npz import read_npz
from npllama.weights import tensor_shapes

UP = "model.layers.1.mlp.up_proj"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = replace(DISTINCT, tie_word_embeddings=True)


def write_base(folder, config):
    """A base model; return its tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    chance = np.random.default_rng(0)
    shapes = tensor_shapes(config).items()
    tensors = {n: chance.standard_normal(s).astype(np.float32) for n, s in shapes}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return tensors


def factors(stem, rows, columns, rank=2, seed=1):
    """The two factors of one linear layer, by their names in the file."""
    return {
        f"base_model.model.{stem}.lora_A.weight": normal(
            [seed, 0], rank, columns, dtype="float32"
        ),
        f"base_model.model.{stem}.lora_B.weight": normal(
            [seed, 1], rows, rank, dtype="float32"
        ),
    }


def write_adapter(folder, tensors, **changes):
    """An adapter as PEFT lays it out: rank 2, alpha 3."""
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3} | changes
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture
def paths(tmp_path):
    """A base model, a place for an adapter, and a place for the result."""
    write_base(tmp_path / "base", DISTINCT)
    return tmp_path / "base", tmp_path / "adapter", tmp_path / "out.npz"


def run(paths):
    base, adapter, out = map(str, paths)
    return main(["convert", base, out, "--adapter", adapter, "--quiet"])


def refused(paths, capsys):
    """The one line with which an adapter is refused."""
    assert run(paths) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("npllama convert: ") and not paths[2].exists()
    return line


# ---- the formula --------------------------------------------------------------------


def merged_in_loops(w, a, b, scale, m):
    """W' = W + s B A, and its rows brought to the lengths m: no broadcasting."""
    F, E, R = len(w), len(w[0]), len(a)
    y = [[w[i][j] + scale * sum(b[i][r] * a[r][j] for r in range(R))
          for j in range(E)] for i in range(F)]  # fmt: skip
    if m is None:
        return np.array(y)
    lengths = [sum(x * x for x in row) ** 0.5 for row in y]
    return np.array([[x * m[i] / lengths[i] for x in row] for i, row in enumerate(y)])


@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 4), st.booleans(), seeds)
def test_merging_adds_the_scaled_product(F, E, R, with_lengths, seed):
    w, a, b = normal([seed, 0], F, E), normal([seed, 1], R, E), normal([seed, 2], F, R)
    m = normal([seed, 3], F) if with_lengths else None
    found = merge(w, a, b, 0.7, m)
    np.testing.assert_allclose(found, merged_in_loops(w, a, b, 0.7, m), rtol=1e-9)


def test_the_scale_is_alpha_over_rank_or_its_root():
    settings = {"r": 4, "lora_alpha": 6}
    assert scaling(settings, "model.layers.0.mlp.up_proj", 4) == 6 / 4
    assert scaling(settings | {"use_rslora": True}, "x", 4) == 6 / 2


def test_patterns_give_a_module_its_own_rank_and_alpha():
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "k_proj": 8},
        "alpha_pattern": {r"layers\.[01]\..*q_proj": 9},
    }
    assert scaling(settings, "model.layers.1.self_attn.q_proj", 2) == 9 / 2
    assert scaling(settings, "model.layers.0.self_attn.q_proj", 4) == 9 / 4
    assert scaling(settings, "model.layers.0.self_attn.k_proj", 8) == 6 / 8
    # A pattern is a module's whole name or its end after a dot.
    assert scaling(settings, "model.layers.0.self_attn.other_k_proj", 4) == 6 / 4


# ---- a folder -----------------------------------------------------------------------


def test_only_what_the_adapter_names_changes(paths):
    base, adapter, out = paths
    before = safetensors.numpy.load_file(base / "model.safetensors")
    write_adapter(adapter, factors(UP, 11, 7))
    assert run(paths) == 0
    after = read_npz(out).tensors
    a, b = factors(UP, 11, 7).values()
    for name, tensor in before.items():
        if name == f"{UP}.weight":
            expected = merged_in_loops(tensor, a, b, 1.5, None)
            np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(after[name], tensor)
    assert lost_on_the_way(out) == [
        "merged with the adapter adapter: rank 2, alpha 3, 1 tensor"
    ]
    source = json.loads(read_npz(out).files["npllama.json"])["source"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= source.keys()


@pytest.mark.parametrize("which", ["lm_head", "model.embed_tokens"])
def test_one_of_two_that_were_tied_may_change_alone(tmp_path, which):
    tensors = write_base(tmp_path / "base", TIED)
    whole = normal(5, *tensors[EMBED].shape, dtype="float32")
    write_adapter(tmp_path / "adapter", {f"base_model.model.{which}.weight": whole})
    paths = tmp_path / "base", tmp_path / "adapter", tmp_path / "out.npz"
    assert run(paths) == 0
    model = load(paths[2])
    new, old = model.lm_head, model.embed
    if which != "lm_head":
        new, old = old, new
    np.testing.assert_array_equal(new, whole)
    np.testing.assert_array_equal(old, tensors[EMBED])


def test_words_that_an_adapter_adds_make_the_vocabulary_larger(paths):
    whole = {
        f"base_model.model.{name}": normal([i], 15, 7, dtype="float32")
        for i, name in enumerate((EMBED, HEAD))
    }
    write_adapter(paths[1], whole)
    assert run(paths) == 0
    assert load(paths[2]).config == replace(DISTINCT, vocab_size=15)


GOOD = factors(UP, 11, 7)
A = f"base_model.model.{UP}.lora_A.weight"
LENGTHS = f"base_model.model.{UP}.lora_magnitude_vector"
ELSEWHERE = factors("model.layers.9.mlp.up_proj", 11, 7)
FAULTS = {
    "another kind": (GOOD, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "no kind": (GOOD, {"peft_type": None}, "peft_type is None"),
    "layers twice": (GOOD, {"layer_replication": [[0, 2]]}, "layer_replication is"),
    "single tokens": (
        GOOD,
        {"trainable_token_indices": [1, 2]},
        "trainable_token_indices is [1, 2]",
    ),
    "a residual base": (
        GOOD,
        {"init_lora_weights": "pissa_niter_4"},
        "'pissa_niter_4'",
    ),
    "another rank": (GOOD, {"r": 4}, f"{UP}: rank 2; adapter_config.json says 4"),
    "alpha as text": (GOOD, {"lora_alpha": "8"}, "lora_alpha '8' is not a number"),
    "half a pair": ({A: GOOD[A]}, {}, f"{UP}: one of lora_A.weight and lora_B"),
    "another width": (
        factors(UP, 11, 6),
        {},
        "factors (11, 2) and (2, 6) do not make (11, 7)",
    ),
    "another layer": (GOOD | ELSEWHERE, {}, "model.layers.9.mlp.up_proj.lora_A.weight"),
    "lengths unsaid": (
        GOOD | {LENGTHS: np.ones(11, np.float32)},
        {},
        "use_dora and lora_magnitude_vector disagree",
    ),
    "lengths missing": (GOOD, {"use_dora": True}, "use_dora and lora_magnitude_vector"),
    "lengths of another": (
        GOOD | {LENGTHS: np.ones(7, np.float32)},
        {"use_dora": True},
        "(7,) lengths for 11 rows",
    ),
    "nothing": ({}, {}, "no tensor of the model is changed"),
    "a pattern without end": (
        GOOD,
        {"rank_pattern": {r"(\w+)*x": 2}},
        "may take for ever",
    ),
    "a pattern of many ways": (
        GOOD,
        {"alpha_pattern": {".*" * 30 + "x": 2}},
        "may take for ever",
    ),
    "a pattern of many groups": (
        GOOD,
        {"rank_pattern": {"(.|.)" * 25 + "X": 2}},
        "may take for ever",
    ),
    "a pattern of many choices": (
        GOOD,
        {"rank_pattern": {".?" * 60 + "X": 2}},
        "may take for ever",
    ),
    "no pattern": (GOOD, {"rank_pattern": {"(": 2}}, "is not a pattern"),
    "patterns as a list": (GOOD, {"alpha_pattern": [1]}, "not an object"),
    "integers": ({A: np.ones((2, 7), np.int8)}, {}, "dtype I8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_cannot_be_merged_is_refused_by_name(paths, capsys, fault):
    tensors, changes, words = FAULTS[fault]
    write_adapter(paths[1], tensors, **changes)
    line = refused(paths, capsys)
    assert words in line and str(paths[1]) in line


def test_a_folder_without_an_adapter_is_named(paths, capsys):
    paths[1].mkdir()
    assert "adapter_config.json" in refused(paths, capsys)
    (paths[1] / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "no adapter_model.safetensors" in refused(paths, capsys)
