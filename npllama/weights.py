"""Chapter 3: the weights, what a LLaMA is made of.

A block is nine matrices and vectors, or more where it has biases; a model is an
embedding, L blocks, a norm and a head.

This chapter says what these weights are called, here and on disk, and which shapes a
config gives them.  Later chapters say what the model does with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from npllama.config import Config

#  ---- names ----------------------------------------------------------------

# npllama's word for each weight of a block, and the name it has on disk.
LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight",
    "wq": "self_attn.q_proj.weight",
    "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight",
    "wo": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
    "bq": "self_attn.q_proj.bias",
    "bk": "self_attn.k_proj.bias",
    "bv": "self_attn.v_proj.bias",
    "bo": "self_attn.o_proj.bias",
    "b_gate": "mlp.gate_proj.bias",
    "b_up": "mlp.up_proj.bias",
    "b_down": "mlp.down_proj.bias",
}


def layer_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every weight that one block has, by its name on disk."""
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    E, F = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (E,),
        "wq": (H * D, E),
        "wk": (K * D, E),
        "wv": (K * D, E),
        "wo": (E, H * D),
        "mlp_norm": (E,),
        "w_gate": (F, E),
        "w_up": (F, E),
        "w_down": (E, F),
    }
    if config.attention_bias:
        shapes |= {"bq": (H * D,), "bk": (K * D,), "bv": (K * D,), "bo": (E,)}
    if config.mlp_bias:
        shapes |= {"b_gate": (F,), "b_up": (F,), "b_down": (E,)}
    return {LAYER_NAMES[word]: shape for word, shape in shapes.items()}


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the model, by its name on disk, in order of use."""
    V, E, L = config.vocab_size, config.hidden_size, config.num_hidden_layers
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, E)}
    for i in range(L):
        for name, shape in layer_shapes(config).items():
            shapes[f"model.layers.{i}.{name}"] = shape
    shapes["model.norm.weight"] = (E,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, E)
    return shapes


def check_shapes(config: Config, found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError naming the first tensor that the config does not expect.

    Parameters
    ----------
    found : mapping of name to shape
        What a file holds.
    """
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"tensor {name} is missing; it should be {shape}")
        if tuple(found[name]) != shape:
            raise ValueError(
                f"tensor {name} has shape {tuple(found[name])}; "
                f"the config asks for {shape}"
            )
    for name in found:
        if name not in expected:
            raise ValueError(f"tensor {name} is not part of a LLaMA of this config")


#  ---- records ---------------------------------------------------------------


class Layer(NamedTuple):
    """The weights of one block, output axis first as Hugging Face stores them.

    On disk the heads of q, k, v and o lie merged into one axis, (H * D, E); here
    that axis is split.  A bias is None where the config has none.
    """

    attn_norm: np.ndarray  # (E,)
    wq: np.ndarray  # (H, D, E)
    wk: np.ndarray  # (K, D, E)
    wv: np.ndarray  # (K, D, E)
    wo: np.ndarray  # (E, H, D)
    mlp_norm: np.ndarray  # (E,)
    w_gate: np.ndarray  # (F, E)
    w_up: np.ndarray  # (F, E)
    w_down: np.ndarray  # (E, F)
    bq: np.ndarray | None = None  # (H, D)
    bk: np.ndarray | None = None  # (K, D)
    bv: np.ndarray | None = None  # (K, D)
    bo: np.ndarray | None = None  # (E,)
    b_gate: np.ndarray | None = None  # (F,)
    b_up: np.ndarray | None = None  # (F,)
    b_down: np.ndarray | None = None  # (E,)

    def __repr__(self) -> str:
        given = {n: w.shape for n, w in self._asdict().items() if w is not None}
        return f"Layer({', '.join(f'{name} {shape}' for name, shape in given.items())})"


class Model(NamedTuple):
    """A LLaMA: its numbers, its weights, and the tokenizer it was trained with."""

    config: Config
    embed: np.ndarray  # (V, E)
    layers: tuple[Layer, ...]
    norm: np.ndarray  # (E,)
    lm_head: np.ndarray  # (V, E); the same array as `embed` when tied
    tokenizer: Any = None  # a `Tokenizer`, of the part on text
    generation_config: Mapping[str, Any] | None = None  # how its makers generate

    def __repr__(self) -> str:
        c = self.config
        parameters = sum(map(math.prod, tensor_shapes(c).values()))
        sizes = f"V={c.vocab_size} E={c.hidden_size} F={c.intermediate_size}"
        heads = f"H={c.num_attention_heads} K={c.num_key_value_heads} D={c.head_dim}"
        return (
            f"Model({parameters:,} parameters in {self.embed.dtype}: "
            f"L={c.num_hidden_layers} {sizes} {heads})"
        )

    def _repr_html_(self) -> str:
        layers = f"model.layers.0 ... {self.config.num_hidden_layers - 1}"
        rows = "".join(
            f"<tr><td>{name.replace('model.layers.0', layers)}<td>{shape}"
            for name, shape in tensor_shapes(self.config).items()
            if not name.startswith("model.layers.") or ".layers.0." in name
        )
        return f"<p>{self!r}<table><tr><th>weight<th>shape{rows}</table>"


def assemble(
    config: Config,
    tensors: Mapping[str, np.ndarray],
    tokenizer: Any = None,
) -> Model:
    """Arrange tensors, given by their names on disk, as a `Model`; nothing is copied."""
    split = _head_axes(config)

    def layer(i: int) -> Layer:
        weights = {}
        for word, name in LAYER_NAMES.items():
            tensor = tensors.get(f"model.layers.{i}.{name}")
            if tensor is not None:
                weights[word] = tensor.reshape(split.get(word, tensor.shape))
        return Layer(**weights)

    embed = tensors["model.embed_tokens.weight"]
    lm_head = embed if config.tie_word_embeddings else tensors["lm_head.weight"]
    layers = tuple(layer(i) for i in range(config.num_hidden_layers))
    return Model(
        config, embed, layers, tensors["model.norm.weight"], lm_head, tokenizer
    )


def _head_axes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that have heads, with the heads on an axis of their own."""
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    E = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "wq": (H, D, E),
        "wo": (E, H, D),
        "bq": (H, D),
    }
    return shapes | {"wk": (K, D, E), "wv": (K, D, E), "bk": (K, D), "bv": (K, D)}
