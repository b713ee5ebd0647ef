"""Tiny random LLaMAs that every library can be given, made from a seed alone.

The goldens store seeds and what an outside library answered; the tests make the
same model again.  Needs NumPy and npllama only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from npllama.config import Config, config_from_hf
from npllama.weights import Model, assemble, tensor_shapes

EOS, PAD = 3, 0


class Tiny(NamedTuple):
    """A model as transformers' config dictionary and tensors, and a prompt."""

    config: dict
    tensors: dict[str, np.ndarray]
    prompt: list[int]


def tiny(seed: int, *, layers: int = 2, second_eos: bool = False) -> Tiny:
    """Make the model of a seed.

    Its weights are large enough for the distributions to be uneven, so that greedy
    choices are clear; the vocabulary is 12 to 40 words.
    """
    rng = np.random.default_rng(seed)
    V = int(rng.integers(12, 41))
    config: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": [EOS, 5] if second_eos else EOS,
        "pad_token_id": PAD,
    }
    tensors = {
        name: (rng.normal(size=shape) * 0.4 + (len(shape) == 1)).astype(np.float32)
        for name, shape in tensor_shapes(config_of(config)).items()
    }
    prompt = rng.integers(6, V, 5).tolist()
    return Tiny(config, tensors, prompt)


def config_of(data: dict) -> Config:
    """The config as npllama reads it."""
    return config_from_hf(data)


def npllama_model(made: Tiny) -> Model:
    """The model for npllama."""
    return assemble(config_of(made.config), made.tensors)


def transformers_model(made: Tiny):
    """The model for transformers (needs torch and transformers)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**made.config)).eval()
    state = {name: torch.from_numpy(tensor) for name, tensor in made.tensors.items()}
    model.load_state_dict(state)
    return model


def until_eos(tokens: list[int], eos: list[int]) -> list[int]:
    """New tokens up to the first that ends the text, as transformers pads after it."""
    for i, token in enumerate(tokens):
        if token in eos:
            return tokens[: i + 1]
    return tokens
