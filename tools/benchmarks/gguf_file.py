"""The same weights as a GGUF file, for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

GGUF_NAMES = {
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


def write_gguf(source: str, target: Path) -> int:
    """Write an ``.npz`` of npllama as a float32 GGUF file; return its vocabulary size.

    llama.cpp turns neighbouring coordinates where Hugging Face turns halves, so
    the rows of q and k are reordered within each head.
    """
    import gguf

    with np.load(source) as file:
        config = json.loads(file["config.json"])
        names = [name for name in file.files if not name.endswith(".json")]
        writer = gguf.GGUFWriter(target, "llama")
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("none")
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
        writer.add_rope_dimension_count(config["head_dim"])
        # First all names and shapes, then the data, one tensor in memory at a time.
        for name in names:
            tensor = file[name]
            writer.add_tensor_info(
                _gguf_name(name), tensor.shape, tensor.dtype, tensor.nbytes
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:
            writer.write_tensor_data(_gguf_rows(name, file[name], config["head_dim"]))
        writer.close()
    return config["vocab_size"]


def _gguf_name(name: str) -> str:
    outside = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outside:
        return outside[name]
    _, _, i, rest = name.split(".", 3)
    return f"blk.{i}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def _gguf_rows(name: str, tensor: np.ndarray, D: int) -> np.ndarray:
    """The tensor with its rows in the order that llama.cpp expects."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    E = tensor.shape[1]
    halves = tensor.reshape(-1, 2, D // 2, E)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1, E)
