"""LoRA adapters that PEFT saved, merged here; needs the [oracle] extra."""

import copy
import json

import numpy as np
import pytest
from needs import needs

from npllama.cache import new_cache
from npllama.convert.convert import convert
from npllama.files.checkpoint import load, lost_on_the_way
from npllama.files.npz import read_npz
from npllama.model import forward

torch = needs("torch")
transformers = needs("transformers")
peft = needs("peft")

SIZES = dict(
    vocab_size=29,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
ATTENTION = ["q_proj", "v_proj", "o_proj"]
CASES = {
    "plain": dict(r=3, lora_alpha=7, target_modules=ATTENTION),
    "every projection": dict(r=2, lora_alpha=3, target_modules="all-linear"),
    "rank-stabilised": dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["k_proj", "down_proj"]
    ),
    "patterns": dict(
        r=4,
        lora_alpha=6,
        target_modules=[*ATTENTION, "up_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2, "up_proj": 5},
        alpha_pattern={r".*\.0\..*v_proj": 11},
    ),
    "lengths": dict(r=3, lora_alpha=5, use_dora=True, target_modules=[*ATTENTION]),
    "embeddings": dict(r=3, lora_alpha=5, target_modules=["embed_tokens", "gate_proj"]),
    "embeddings with lengths": dict(
        r=3, lora_alpha=5, use_dora=True, target_modules=["embed_tokens", "q_proj"]
    ),
    "output": dict(r=3, lora_alpha=5, target_modules=["lm_head", "q_proj"]),
    "whole tensors": dict(
        r=3,
        lora_alpha=5,
        target_modules=ATTENTION,
        modules_to_save=["embed_tokens", "lm_head", "norm"],
    ),
    "a whole embedding": dict(
        r=3, lora_alpha=5, target_modules=ATTENTION, modules_to_save=["embed_tokens"]
    ),
    "biases": dict(r=3, lora_alpha=5, target_modules=ATTENTION, bias="lora_only"),
}


def with_chance(parameters):
    """No factor of zero, no length that the base already has."""
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.3 * torch.randn_like(parameter)


def build(folder, case, tied):
    """A base model and an adapter, saved; return the model that PEFT runs."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        **SIZES, tie_word_embeddings=tied, attention_bias=True
    )
    base = transformers.LlamaForCausalLM(config)
    with_chance(base.parameters())
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(**CASES[case]))
    with_chance(p for p in model.parameters() if p.requires_grad)
    model.save_pretrained(folder / "adapter")
    # As anyone would load it.
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
    return peft.PeftModel.from_pretrained(base, folder / "adapter").eval()


def close(ours, theirs, of=2e-6):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= of * np.ptp(theirs)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", CASES)
def test_a_merged_adapter_runs_as_peft_runs_it(tmp_path, case, tied):
    model, out = build(tmp_path, case, tied), tmp_path / "out.npz"
    convert(tmp_path / "base", out, adapter=tmp_path / "adapter")
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 9))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    ours = load(out)
    close(forward(ours, tokens, new_cache(ours.config, 2, 9)), expected)
    (line,) = lost_on_the_way(out)
    assert line.startswith("merged with the adapter adapter: rank ")
    if not tied:
        whole = copy.deepcopy(model).merge_and_unload().state_dict()
        for name, tensor in read_npz(out).tensors.items():
            close(tensor, whole[name].numpy())


@pytest.mark.parametrize("case", ["embeddings", "a whole embedding"])
def test_an_adapter_that_keeps_the_tie_changes_both(tmp_path, monkeypatch, case):
    monkeypatch.setitem(CASES, "kept", CASES[case] | dict(ensure_weight_tying=True))
    model, out = build(tmp_path, "kept", True), tmp_path / "out.npz"
    convert(tmp_path / "base", out, adapter=tmp_path / "adapter")
    ours, tokens = load(out), np.arange(18).reshape(2, 9)
    np.testing.assert_array_equal(ours.lm_head, ours.embed)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    close(forward(ours, tokens, new_cache(ours.config, 2, 9)), expected)


def test_an_adapter_saved_by_pytorch_is_read(tmp_path):
    build(tmp_path, "plain", False)
    convert(tmp_path / "base", tmp_path / "one.npz", adapter=tmp_path / "adapter")
    from safetensors.torch import load_file

    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    convert(tmp_path / "base", tmp_path / "two.npz", adapter=tmp_path / "adapter")
    one, two = (read_npz(tmp_path / f"{n}.npz").tensors for n in ("one", "two"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("begin", ["pissa", "olora"])
def test_a_beginning_that_changes_the_base_is_refused(tmp_path, begin):
    build(tmp_path, "plain", False)
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"init_lora_weights": begin}
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="save the adapter as an ordinary LoRA"):
        convert(tmp_path / "base", tmp_path / "out.npz", adapter=tmp_path / "adapter")
