"""Conversion of what PyTorch and transformers write; needs the [oracle] extra."""

import base64
import json
import pickle
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from needs import needs
from strategies import DISTINCT

from npllama.cli.main import main as npllama
from npllama.convert.convert import convert
from npllama.files.checkpoint import load, widen
from npllama.files.npz import read_npz
from npllama.rope import halves_order
from npllama.weights import tensor_shapes

torch = needs("torch")
transformers = needs("transformers")

# Grouped heads, a tied or free output layer, biases, scaled positions.
BASE = dict(
    vocab_size=29,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    original_max_position_embeddings=64,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)
CASES = {
    "plain": {},
    "tied": dict(tie_word_embeddings=True),
    "biased": dict(attention_bias=True, mlp_bias=True),
    "wide heads": dict(head_dim=8),
    "scaled": dict(rope_parameters=LLAMA3, max_position_embeddings=512),
    "several ends": dict(eos_token_id=[3, 4]),
}
TORCH = {"float32": torch.float32, "float16": torch.float16}
TORCH |= {"bfloat16": torch.bfloat16}


def main(arguments):
    """Run ``npllama convert``; return its exit code."""
    return npllama(["convert", *arguments])


def random_model(dtype="float32", **changes):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**BASE | changes)
    model = transformers.LlamaForCausalLM(config).to(TORCH[dtype])
    for parameter in model.parameters():  # no gain of one, no bias of zero
        torch.nn.init.normal_(parameter)
    return model


def assert_holds(out, state, dtype):
    """Fail unless the file holds exactly these tensors of PyTorch."""
    tensors = read_npz(out).tensors
    for name, tensor in tensors.items():
        expected = state[name].to(TORCH[dtype]).float().numpy()
        np.testing.assert_array_equal(widen(tensor, dtype, "float32"), expected)
    assert tensors.keys() == state.keys() - (
        {"lm_head.weight"} if load(out).config.tie_word_embeddings else set()
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sharded", [False, True])
def test_what_save_pretrained_writes_is_converted(tmp_path, case, sharded):
    model = random_model(**CASES[case])
    size = "5KB" if sharded else "1GB"
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size=size)
    shards = list((tmp_path / "checkpoint").glob("*.safetensors"))
    assert (len(shards) > 1) == sharded
    out = tmp_path / "out.npz"
    convert(tmp_path / "checkpoint", out, "float32")
    assert_holds(out, model.state_dict(), "float32")


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_the_config_that_is_written(tmp_path, case):
    model = random_model(**CASES[case])
    model.save_pretrained(tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "out.npz", "float32")
    written = json.loads(read_npz(tmp_path / "out.npz").files["config.json"])
    read, true = transformers.LlamaConfig(**written), model.config
    for key in (*BASE, "head_dim", "rms_norm_eps", "max_position_embeddings",
                "rope_parameters", "tie_word_embeddings", "attention_bias",
                "mlp_bias", "bos_token_id"):  # fmt: skip
        assert getattr(read, key) == getattr(true, key), key
    ends = true.eos_token_id
    assert read.eos_token_id == (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize("source", TORCH)
@pytest.mark.parametrize("dtype", TORCH)
def test_every_pair_of_precisions_rounds_as_pytorch_does(tmp_path, source, dtype):
    model = random_model(source)
    model.save_pretrained(tmp_path / "checkpoint")
    out = tmp_path / "out.npz"
    convert(tmp_path / "checkpoint", out, dtype)
    assert_holds(out, model.state_dict(), dtype)


# ---- pytorch_model.bin ----------------------------------------------------------


def write_bin(folder, state, shards=1):
    """A folder as transformers wrote it before safetensors."""
    folder.mkdir(exist_ok=True)
    config = transformers.LlamaConfig(**BASE, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for i in range(shards):
        names = list(state)[i::shards]
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        torch.save({name: state[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = json.dumps({"weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("source", TORCH)
def test_pickled_checkpoints_are_converted(tmp_path, source, shards):
    state = random_model(source).state_dict()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    write_bin(tmp_path / "checkpoint", state, shards)
    out = tmp_path / "out.npz"
    convert(tmp_path / "checkpoint", out, "float32")
    state.pop("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert_holds(out, state, "float32")


def test_parameters_and_transposed_views_are_converted(tmp_path):
    model = random_model()
    state = dict(model.named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name].detach().T.contiguous().T
    assert not state[name].is_contiguous()
    lazy = "model.norm.weight"
    state[lazy] = torch._neg_view(-state[lazy].detach())
    assert state[lazy].is_neg()
    write_bin(tmp_path / "checkpoint", state)
    out = tmp_path / "out.npz"
    convert(tmp_path / "checkpoint", out, "float32")
    assert_holds(out, model.state_dict(), "float32")


class Exploding:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def expanded(state):
    """A tensor that shows more numbers than the file holds."""
    name = "model.embed_tokens.weight"
    return state | {name: torch.zeros(1, 1).expand(29, 24)}


HOSTILE = {
    "code": (lambda s: torch.save(s | {"x": Exploding()}, "f"), "torch refuses it"),
    "plain pickle": (lambda s: pickle.dump({"x": 1}, open("f", "wb")), "not a zip"),
    "old form": (
        lambda s: torch.save(s, "f", _use_new_zipfile_serialization=False),
        "not a zip archive, which torch.save writes",
    ),
    "nothing": (lambda s: open("f", "wb").close(), "not a zip"),
    "another zip": (
        lambda s: zipfile.ZipFile("f", "w").writestr("a", "b"),
        "torch refuses",
    ),
    "a list": (lambda s: torch.save([s], "f"), "expected a dictionary"),
    "a module's state": (lambda s: torch.save({"model": s}, "f"), "model: not a plain"),
    "a number": (lambda s: torch.save(s | {"x": 3}, "f"), "x: not a plain tensor"),
    "sparse": (
        lambda s: torch.save(s | {"x": torch.eye(3).to_sparse()}, "f"),
        "x: not a plain tensor",
    ),
    "without data": (
        lambda s: torch.save(s | {"x": torch.empty(3, device="meta")}, "f"),
        "x: not a plain tensor",
    ),
    "expanded": (lambda s: torch.save(expanded(s), "f"), "larger than its data"),
    "integers": (
        lambda s: torch.save({n: t.to(torch.int8) for n, t in s.items()}, "f"),
        "embed_tokens.weight: dtype int8",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_pickle_that_is_not_weights_is_refused(tmp_path, monkeypatch, capsys, case):
    write, words = HOSTILE[case]
    state = random_model().state_dict()
    write_bin(tmp_path / "checkpoint", state)
    monkeypatch.chdir(tmp_path)
    write(state)
    (tmp_path / "f").replace(tmp_path / "checkpoint" / "pytorch_model.bin")
    assert main(["checkpoint", "out.npz"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("npllama convert: checkpoint/pytorch_model.bin: ")
    assert words in line and len(line) < 300
    assert not (tmp_path / "out.npz").exists()


def test_a_pickle_cut_or_damaged_anywhere_gives_one_line(tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    write_bin(folder, random_model().state_dict())
    path = folder / "pytorch_model.bin"
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for i in range(60):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 1 + i):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged if i % 3 else data[: rng.integers(len(data))])
        code = main([str(folder), str(tmp_path / "out.npz"), "--quiet"])
        lines = capsys.readouterr().err.splitlines()
        assert code in (0, 1)
        assert code == 0 or len(lines) == 1


# ---- Meta's slices ----------------------------------------------------------------

META = replace(
    DISTINCT,
    vocab_size=16,
    hidden_size=32,
    intermediate_size=96,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    attention_bias=False,
    mlp_bias=False,
)
PARAMS = dict(dim=32, n_layers=2, n_heads=8, n_kv_heads=4, multiple_of=32)
PARAMS |= dict(norm_eps=1e-5, vocab_size=-1)
# Meta's names, and the axis along which a tensor is cut into slices.
META_NAMES = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "model.embed_tokens": ("tok_embeddings", 1),
    "model.norm": ("norm", None),
    "lm_head": ("output", 0),
}


def to_meta(state, D, embed_axis):
    """Rename and reorder as Meta keeps it: (tensor, axis of the cut) by name."""
    result = {}
    for name, tensor in state.items():
        key = next(k for k in META_NAMES if name.removesuffix(".weight").endswith(k))
        meta, axis = META_NAMES[key]
        if key in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = tensor.reshape(-1, D, tensor.shape[1])
            neighbours = torch.empty_like(heads)
            neighbours[:, torch.from_numpy(halves_order(D))] = heads
            tensor = neighbours.reshape(tensor.shape)
        if name.startswith("model.layers."):
            meta = f"layers.{name.split('.')[2]}.{meta}"
        axis = embed_axis if meta == "tok_embeddings" else axis
        result[f"{meta}.weight"] = (tensor, axis)
    return result


def write_meta(folder, state, slices, embed_axis=1, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(PARAMS | changes))
    tensors = to_meta(state, META.head_dim, embed_axis)
    for i in range(slices):
        part = {
            name: tensor if axis is None else tensor.chunk(slices, axis)[i].clone()
            for name, (tensor, axis) in tensors.items()
        }
        part["rope.freqs"] = torch.ones(2)
        torch.save(part, folder / f"consolidated.{i:02}.pth")


def meta_state(tied=False):
    torch.manual_seed(2)
    shapes = tensor_shapes(replace(META, tie_word_embeddings=tied))
    return {n: torch.randn(s).to(torch.bfloat16) for n, s in shapes.items()}


@pytest.mark.parametrize("slices", [1, 2, 4])
@pytest.mark.parametrize("embed_axis", [0, 1], ids=["llama 3", "llama 2"])
@pytest.mark.parametrize("tied", [False, True])
def test_slices_are_joined_and_turned_to_halves(tmp_path, slices, embed_axis, tied):
    state = meta_state(tied)
    write_meta(tmp_path / "meta", state, slices, embed_axis)
    out = tmp_path / "out.npz"
    convert(tmp_path / "meta", out, "bfloat16")
    assert load(out).config == replace(META, tie_word_embeddings=tied)
    assert_holds(out, state, "bfloat16")


def test_meta_order_equals_the_permutation_of_transformers():
    # As transformers' own converter writes it, with a view and a transpose.
    H, D, E = 3, 8, 5
    w = torch.randn(H * D, E)
    theirs = w.view(H, D // 2, 2, E).transpose(1, 2).reshape(H * D, E)
    ours = w.numpy().reshape(H, D, E)[:, halves_order(D)].reshape(H * D, E)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_the_tokenizer_is_found_one_folder_up(tmp_path):
    write_meta(tmp_path / "meta", meta_state(), 1)
    ranks = [b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(ranks))
    done = convert(tmp_path / "meta", tmp_path / "out.npz", "float32")
    assert any("has 512 tokens, the config's vocab_size is 16" in n for n in done.notes)


def change_slice(path, **changes):
    part = torch.load(path)
    for name, tensor in changes.items():
        part[name] = tensor
    torch.save({n: t for n, t in part.items() if t is not None}, path)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: (f / "consolidated.01.pth").unlink(), "consolidated.01.pth: missing"),
        (lambda f: (f / "params.json").write_text("{}"), "params.json: config: 'n_heads'"),
        (
            lambda f: (f / "params.json").write_text(json.dumps(PARAMS | {"n_layers": 3})),
            "model.layers.2.input_layernorm.weight: missing",
        ),
        (
            lambda f: change_slice(f / "consolidated.01.pth", **{"norm.weight": None}),
            "consolidated.01.pth: norm.weight: not in every slice",
        ),
        (
            lambda f: change_slice(
                f / "consolidated.02.pth", **{"output.weight": torch.ones(4, 31)}
            ),
            "consolidated.02.pth: output.weight: unlike the slice in",
        ),
        (
            lambda f: change_slice(f / "consolidated.00.pth", extra=torch.ones(1)),
            "extra: not in every slice",
        ),
        (
            lambda f: [
                change_slice(path, **{"tok_embeddings.weight": None})
                for path in f.glob("*.pth")
            ],
            "consolidated.00.pth: tok_embeddings.weight: missing",
        ),
        (
            lambda f: [
                change_slice(path, **{"tok_embeddings.weight": torch.ones(())})
                for path in f.glob("*.pth")
            ],
            "consolidated.00.pth: tok_embeddings.weight: shape (); expected two axes",
        ),
        (
            lambda f: [
                change_slice(path, **{"model.norm.weight": torch.ones(32)})
                for path in f.glob("*.pth")
            ],
            "model.norm.weight: stands for model.norm.weight again",
        ),
        (
            lambda f: (f / "params.json").write_text(
                json.dumps(PARAMS | {"vocab_size": 17})
            ),
            "params.json: params: vocab_size 17, but tok_embeddings.weight has 16 rows",
        ),
        (
            lambda f: [
                shutil.copy(f / "whole" / "consolidated.00.pth", path)
                for path in [*f.glob("*.pth")]
            ],
            "attention.wq.weight: whole in one of 4 slices",
        ),
    ],
)  # fmt: skip
def test_slices_that_do_not_fit_are_named(tmp_path, capsys, damage, words):
    write_meta(tmp_path / "meta", meta_state(), 4)
    write_meta(tmp_path / "meta" / "whole", meta_state(), 1)
    damage(tmp_path / "meta")
    assert main([str(tmp_path / "meta"), str(tmp_path / "out.npz")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
