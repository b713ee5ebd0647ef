"""Tiny checkpoints that gptqmodel quantised, and the weights that it makes of them.

gptqmodel runs in bfloat16 and rounds the scales to it; here they are given back to
it as the file has them, in float32, so that its unpacking is all that is recorded.
Each case is a folder as gptqmodel saves it, without what only it reads; a few of
its dequantised weights stand in ``expected.npz``.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

MODULES = ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
CASES = {
    "gptq_4": dict(bits=4, group_size=32, sym=True, desc_act=False),
    "gptq_4_act_order": dict(bits=4, group_size=32, sym=False, desc_act=True),
    "gptq_3": dict(bits=3, group_size=32, sym=True, desc_act=False),
    "gptq_8_whole": dict(
        bits=8, group_size=-1, sym=True, desc_act=False, act_group_aware=False
    ),
    "gptq_2_v2": dict(
        bits=2, group_size=32, sym=False, desc_act=False, format="gptq_v2"
    ),
}
KEPT = ("config.json", "quantize_config.json", "model.safetensors")


def tiny_llama(folder: Path) -> None:
    """A LLaMA of one block with random weights, and the tokenizer gptqmodel wants."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=24,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = models.WordLevel({f"w{i}": i for i in range(24)}, unk_token="w0")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token="w2", unk_token="w0"
    ).save_pretrained(folder)


def quantised(source: Path, out: Path, settings: dict) -> dict[str, np.ndarray]:
    """Quantise, save, load again, and return some of the weights it dequantises."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    chance = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 24, (1, 32), generator=chance) for _ in range(8)]
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    config = QuantizeConfig(**settings)
    model = GPTQModel.load(str(source), config, device="cpu")
    model.quantize(data, batch_size=1)
    model.save(str(out))
    return read_by_gptqmodel(out)


def read_by_gptqmodel(folder: Path) -> dict[str, np.ndarray]:
    """Some of the weights of a folder as gptqmodel dequantises them."""
    import safetensors.torch
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH)
    modules = dict(model.model.named_modules())
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    found = {}
    for name in (f"model.layers.0.{module}" for module in MODULES):
        modules[name].scales = stored[f"{name}.scales"].float()
        weight = modules[name].dequantize_weight()  # (inputs, outputs)
        found[f"{name}.weight"] = weight.T.float().numpy()
    return found


def make(folder: Path) -> None:
    """Write tests/goldens/packed/gptq_*/."""
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # with more it does not start on 2 cores
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tiny_llama(work / "tiny")
        for case, settings in CASES.items():
            weights = quantised(work / "tiny", work / case, settings)
            target = folder / "packed" / case
            target.mkdir(parents=True, exist_ok=True)
            for file in KEPT:
                shutil.copy(work / case / file, target / file)
            np.savez(target / "expected.npz", **weights)
