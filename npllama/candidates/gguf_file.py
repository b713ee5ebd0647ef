"""The same weights as a GGUF file, for llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from npllama.candidates.text import check_silu
from npllama.config import BY_LENGTH, Config
from npllama.rope import frequencies, llama3_frequencies

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name: blk.3.ffn_up.bias of model.layers.3.mlp.up_proj.bias."""
    module, _, kind = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.{kind}"


def neighbours(tensor: np.ndarray, D: int) -> np.ndarray:
    """Rows of q or k from the halves layout to that of neighbours, head by head.

    llama.cpp turns neighbouring coordinates where Hugging Face turns halves.

    Parameters
    ----------
    tensor : (H * D, E) or (H * D,) float32
    """
    heads = tensor.reshape(-1, 2, D // 2, *tensor.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(tensor.shape)


def slowdown(config: Config) -> np.ndarray:
    """How many times slower each pair turns under llama3 scaling.

    llama.cpp has no key for this scaling; it reads these numbers as a tensor.

    Returns
    -------
    (D // 2,) float32
    """
    D = config.head_dim
    plain = frequencies(config.rope.rope_theta, D, "float32")
    return plain / llama3_frequencies(config.rope, D, "float32")


def add_numbers(writer, config: Config) -> None:
    """Write the config under llama.cpp's keys, and that there is no vocabulary."""
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.rope_theta)
    add_scaling(writer, config)


def add_scaling(writer, config: Config) -> None:
    """Write how RoPE is stretched, where llama.cpp has keys for it."""
    import gguf

    rope = config.rope
    if rope.rope_type in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.rope_type))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.rope_type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_max_position_embeddings)
    if rope.rope_type in BY_LENGTH:
        raise ValueError(f"llama.cpp is given no {rope.rope_type} RoPE scaling here")


def write_gguf(path: Path, config: Config, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a float32 GGUF file, one tensor in memory at a time.

    Parameters
    ----------
    path : Path
    config : Config
    tensors : mapping of Hugging Face's names to float32 arrays

    Raises
    ------
    ValueError
        If llama.cpp cannot compute this config.
    """
    import gguf

    check_silu(config, "llama.cpp")
    writer = gguf.GGUFWriter(path, "llama")
    add_numbers(writer, config)
    extra = {}
    if config.rope.rope_type == "llama3":
        extra["rope_freqs.weight"] = slowdown(config)
    # First all names and shapes, then the data in the same order.
    for name, array in extra.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    for name, array in tensors.items():
        writer.add_tensor_info(gguf_name(name), array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in extra.values():
        writer.write_tensor_data(array)
    for name, array in tensors.items():
        turned = ".q_proj." in name or ".k_proj." in name
        array = neighbours(array, config.head_dim) if turned else array
        writer.write_tensor_data(np.ascontiguousarray(array))
    writer.close()
