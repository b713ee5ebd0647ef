"""Record the logits of llama.cpp, a third truth beside transformers and the loops.

A model of `model_cases` is written as a GGUF file in float32 and evaluated through
llama-cpp-python, its cache in float32 too.  llama.cpp computes in another layout
(RoPE turns neighbours, so the rows of q and k are permuted), in another order, and
partly with approximations of its own, so agreement is coarser than with
transformers, though only just: about 1e-6 of the logits' range.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from npllama.config import Config

from .model_cases import CASES, Case, config_of, tensors_of, tokens_of

FILE = "model_llamacpp.npz"
# One prefill, then token by token through the cache.
PREFILL = 20
RECORDED = ("mha", "gqa", "mqa", "wide_heads", "all_biases_tied", "linear", "yarn")

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
    """llama.cpp's name of a tensor: model.layers.3.mlp.up_proj.bias is blk.3.ffn_up.bias."""
    module, _, kind = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.{kind}"


def neighbours(tensor: np.ndarray, D: int) -> np.ndarray:
    """Rows of q or k from the halves layout to that of neighbours, head by head.

    Parameters
    ----------
    tensor : (H * D, E) or (H * D,) float32
    """
    heads = tensor.reshape(-1, 2, D // 2, *tensor.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(tensor.shape)


def add_numbers(writer: gguf.GGUFWriter, config: Config) -> None:
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
    if config.rope.rope_type != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(config.rope.rope_type))
        writer.add_rope_scaling_factor(config.rope.factor)
    if config.rope.rope_type == "yarn":
        trained = config.rope.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(trained)


def write_gguf(case: Case, path: Path) -> None:
    """Write the case's model as a GGUF file."""
    config = config_of(case)
    writer = gguf.GGUFWriter(path, "llama")
    add_numbers(writer, config)
    for name, tensor in tensors_of(case, "float32").items():
        if ".q_proj." in name or ".k_proj." in name:
            tensor = neighbours(tensor, config.head_dim)
        writer.add_tensor(gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(case: Case, folder: Path) -> np.ndarray:
    """Logits of the first row, at every position, as (T, V) float32."""
    path = folder / f"{case.name}.gguf"
    write_gguf(case, path)
    tokens = tokens_of(case)[0].tolist()
    float32 = llama_cpp.GGML_TYPE_F32
    model = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_threads=1,
        logits_all=True,
        type_k=float32,
        type_v=float32,
        verbose=False,
    )
    model.eval(tokens[:PREFILL])
    for token in tokens[PREFILL:]:
        model.eval([token])
    return np.array(model.scores[: len(tokens)], dtype=np.float32)


def make(folder: Path) -> None:
    """Write model_llamacpp.npz into `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        golden = {
            case.name: logits(case, Path(scratch))
            for case in CASES
            if case.name in RECORDED
        }
    path = Path(folder) / FILE
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(golden)} models, {llama_cpp.__version__}")
