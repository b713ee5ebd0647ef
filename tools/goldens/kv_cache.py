"""Keys and values as KIVI and llama.cpp round them, and attention over KIVI's cache.

KIVI is no package: the variable KIVI names a checkout of jy-yuan/KIVI (recorded at
commit 876b4d2).  Its kernels need a GPU, so its own functions in plain torch take their
place, and whatever else its file of the model imports is left out.
"""

import os
import sys
import types
import typing
from pathlib import Path
from unittest.mock import patch

import numpy as np

BITS, GROUPS = (2, 4, 8), (16, 32)
K, T, D = 2, 32, 32  # of what is rounded
H, WIDTH, RESIDUAL, GROUP = 2, 32, 32, 16  # of the attention
TEXTS = {"short": (5, 70), "even": (64, 35), "long": (107, 25)}  # prompt, new tokens


def numbers() -> dict[str, np.ndarray]:
    """Keys with a large channel, and a text's vectors with the weights they meet."""
    chance = np.random.default_rng(23)
    x = chance.normal(size=(K, T, D))
    x[:, :, 3] = 9 + x[:, :, 3]
    x[1, 16:32, 5] = 0.25  # a group of equal numbers has no steps
    made = {"x": x}
    for name in TEXTS:
        made[f"{name}.text"] = chance.normal(size=(sum(TEXTS[name]), WIDTH))
    for name in ("wq", "wk", "wv", "wo"):
        made[name] = 2 * chance.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
    return {name: a.astype(np.float32) for name, a in made.items()}


def module(name: str, **names) -> types.ModuleType:
    """A module that holds these names and nothing else."""
    made = types.ModuleType(name)
    made.__dict__.update(names)
    return made


def stand_ins(product) -> dict[str, types.ModuleType]:
    """What KIVI's files import, as far as its attention needs it."""
    import torch

    class Turned(torch.nn.Module):
        """Positions turn nothing."""

        def __init__(self, *_, **__):
            super().__init__()

        def forward(self, *_, **__):
            return None, None

    def as_it_is(*_, **__):
        return lambda function: function

    names = {
        "BaseModelOutputWithPast": object,
        "CausalLMOutputWithPast": object,
        "LLAMA_INPUTS_DOCSTRING": "",
        "LlamaPreTrainedModel": torch.nn.Module,
        "LlamaRotaryEmbedding": Turned,
        "Union": typing.Union,
        "add_start_docstrings_to_model_forward": as_it_is,
        "apply_rotary_pos_emb": lambda q, k, *_: (q, k),
        "replace_return_docstrings": as_it_is,
    }
    t, none = "transformers", {"_prepare_4d_causal_attention_mask": None}
    made = [
        *(module(n) for n in (t, f"{t}.models", f"{t}.models.llama", "triton")),
        module("triton.language", constexpr=int),
        module("quant.matmul", cuda_bmm_fA_qB_outer=product),
        module(f"{t}.models.llama.configuration_llama", LlamaConfig=object),
        module(f"{t}.models.llama.modeling_llama", **names),
        module(f"{t}.modeling_attn_mask_utils", **none),
    ]
    made[3].__dict__.update(jit=lambda function: function, language=made[4])
    return {one.__name__: one for one in made}


def kivi(folder: str):
    """KIVI's functions of rounding, and its attention with them instead of kernels."""
    import torch

    def product(group, a, codes, scale, lowest, bits):
        parts = codes, scale[..., None], lowest[..., None]
        b = new_pack.unpack_and_dequant_vcache(*parts, group, bits)
        return torch.matmul(a, b)

    def rounded(x, group, bits):
        codes, scale, lowest = new_pack.quant_and_pack_vcache(x, group, bits)
        return codes, scale[..., 0], lowest[..., 0]

    with (
        patch.dict(sys.modules, stand_ins(product)),
        patch.object(sys, "path", [folder, *sys.path]),
    ):
        from quant import new_pack

        new_pack.triton_quantize_and_pack_along_last_dim = rounded
        from models.llama_kivi import LlamaAttention_KIVI
    return new_pack, LlamaAttention_KIVI


def published(new_pack, x: np.ndarray) -> dict[str, np.ndarray]:
    """Codes, scales, lowest numbers and values, of keys and of values."""
    import torch

    found = {}
    for bits in BITS:
        for group in GROUPS:
            for what, axis in ("k", 2), ("v", 3):
                pack = getattr(new_pack, f"quant_and_pack_{what}cache")
                back = getattr(new_pack, f"unpack_and_dequant_{what}cache")
                packed, scale, low = pack(torch.from_numpy(x)[None], group, bits)
                codes = new_pack.unpack_tensor(packed, bits, axis)[0]
                values = back(packed, scale, low, group, bits)[0]
                parts = {
                    "codes": codes.to(torch.uint8),
                    "scale": scale[0].squeeze(axis),
                }
                parts |= {"lowest": low[0].squeeze(axis), "values": values}
                for part, array in parts.items():
                    found[f"{what}.{bits}.{group}.{part}"] = array.numpy()
    return found


def attention(cls, made: dict[str, np.ndarray], bits: int) -> dict[str, np.ndarray]:
    """What attention gives for a prompt, and then for one token after the other."""
    import torch

    config = types.SimpleNamespace(
        attention_dropout=0.0,
        hidden_size=WIDTH,
        num_attention_heads=H,
        num_key_value_heads=H,
        max_position_embeddings=1000,
        rope_theta=1e4,
        rope_scaling=None,
        attention_bias=False,
        pretraining_tp=1,
        k_bits=bits,
        v_bits=bits,
        group_size=GROUP,
        residual_length=RESIDUAL,
        use_flash=True,  # says so and is not used
    )
    layer = cls(config)
    for name in "qkvo":
        weight = torch.from_numpy(made[f"w{name}"])
        getattr(layer, f"{name}_proj").weight.data = weight
    found = {}
    for name, (prompt, _) in TEXTS.items():
        x = torch.from_numpy(made[f"{name}.text"])[None]
        hidden = torch.full((1, 1, prompt, prompt), float("-inf")).triu(1)
        with torch.no_grad():
            y, _, past = layer(x[:, :prompt], hidden, use_cache=True)
            out = [y]
            for t in range(prompt, x.shape[1]):
                step = x[:, t : t + 1]
                y, _, past = layer(step, past_key_value=past, use_cache=True)
                out.append(y)
        found[f"{name}.{bits}.y"] = torch.cat(out, dim=1)[0].numpy()
    return found


def q8_0(x: np.ndarray) -> dict[str, np.ndarray]:
    """What llama.cpp's format makes of keys."""
    from gguf import GGMLQuantizationType as Kinds
    from gguf.quants import dequantize, quantize

    stored = quantize(x.reshape(-1, D), Kinds.Q8_0)
    return {"q8_0.values": dequantize(stored, Kinds.Q8_0).reshape(x.shape)}


def make(folder: Path) -> None:
    """Write kv_cache.npz."""
    if "KIVI" not in os.environ:
        print("kv_cache: skipped, KIVI must name a checkout of jy-yuan/KIVI")
        return
    made = numbers()
    found = q8_0(made["x"])
    new_pack, cls = kivi(os.environ["KIVI"])
    found |= published(new_pack, made["x"])
    for bits in (2, 4):
        found |= attention(cls, made, bits)
    np.savez_compressed(folder / "kv_cache.npz", **made, **found)
