"""Weights packed by AutoAWQ's and compressed-tensors' own code, and unpacked by it.

Only the packing is theirs: the codes come from rounding to the nearest, for what is
recorded is how codes, scales and zeros lie in a file, and not how they were chosen.
"""

import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np

SIZES = dict(vocab_size=24, hidden_size=64, intermediate_size=96)
SIZES |= dict(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
GROUP = 32
COMPRESSED = {
    "compressed_4": dict(num_bits=4, symmetric=True, strategy="group", group_size=32),
    "compressed_4_zeros": dict(
        num_bits=4, symmetric=False, strategy="group", group_size=32
    ),
    "compressed_3_channel": dict(num_bits=3, symmetric=True, strategy="channel"),
    "compressed_8": dict(num_bits=8, symmetric=True, strategy="group", group_size=32),
}


def weights() -> dict:
    """The tensors of a tiny LLaMA, in torch's float32."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config).state_dict()


def write(folder: Path, state: dict, quantization: dict, expected: dict) -> None:
    """One checkpoint, and some of its dequantised weights."""
    import safetensors.torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.LlamaConfig(
        **SIZES, max_position_embeddings=64, architectures=["LlamaForCausalLM"]
    )
    data = config.to_dict() | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(data, indent=1))
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    kept = ("k_proj", "o_proj", "down_proj")
    some = {n: w for n, w in expected.items() if any(k in n for k in kept)}
    np.savez(folder / "expected.npz", **some)


def asymmetric(w, bits: int):
    """Scale and zero of every group of inputs: (C, groups) each."""
    import torch

    groups = w.reshape(len(w), -1, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / (2**bits - 1)).half().float()
    return scale, torch.round(-low / scale).clamp(0, 2**bits - 1)


def awq(folder: Path, state: dict) -> None:
    """The layout "gemm", packed by WQLinear_GEMM."""
    import torch

    # The package itself imports what transformers 5 no longer has.
    package = types.ModuleType("awq")
    package.__path__ = list(find_spec("awq").submodule_search_locations)
    sys.modules["awq"] = package
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    packed, expected = {}, {}
    for name, w in state.items():
        if "_proj" not in name:
            packed[name] = w
            continue
        scale, zero = asymmetric(w, 4)
        linear = torch.nn.Linear(*w.T.shape, bias=False)
        linear.weight.data = w
        made = WQLinear_GEMM.from_linear(linear, 4, GROUP, False, scale.T, zero.T)
        for part in ("qweight", "qzeros", "scales"):
            packed[name.replace("weight", part)] = getattr(made, part)
        whole = dequantize_gemm(made.qweight, made.qzeros, made.scales, 4, GROUP)
        expected[name] = whole.T.float().numpy()
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP}
    settings |= {"zero_point": True, "version": "gemm"}
    write(folder / "awq_gemm", packed, settings, expected)


def compressed(folder: Path, state: dict, case: str) -> None:
    """The layout "pack-quantized", packed by its compressor."""
    import torch
    from compressed_tensors.compressors.pack_quantized.base import (
        PackedQuantizationCompressor,
    )
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(**COMPRESSED[case])
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    packed, expected = {}, {}
    for name, w in state.items():
        if "_proj" not in name:
            packed[name] = w
            continue
        groups = w.reshape(len(w), -1, GROUP if args.group_size else w.shape[1])
        scale = (groups.abs().amax(-1) / (2 ** (args.num_bits - 1) - 0.5)).half()
        zero = torch.zeros_like(scale, dtype=torch.int8)
        if not args.symmetric:
            scale, zero = asymmetric(w, args.num_bits)
            scale = scale.half()
            zero = (zero - 2 ** (args.num_bits - 1)).to(torch.int8)
        parts = {"weight": w.half(), "weight_scale": scale, "weight_zero_point": zero}
        made = PackedQuantizationCompressor.compress(parts, scheme)
        whole = PackedQuantizationCompressor.decompress(made, scheme)
        expected[name] = whole["weight"].float().numpy()
        for part, tensor in made.items():
            packed[name.replace("weight", part)] = tensor
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    settings["config_groups"] = {"group_0": scheme.model_dump(mode="json")}
    write(folder / case, packed, settings | {"ignore": ["lm_head"]}, expected)


def make(folder: Path) -> None:
    """Write tests/goldens/packed/awq_*/ and compressed_*/."""
    state = weights()
    awq(folder / "packed", state)
    for case in COMPRESSED:
        compressed(folder / "packed", state, case)
