"""The ``.bin`` of llama2.c, version 0: seven numbers, then everything in float32.

Each kind of weight is one array for all layers, end to end; the kinds come in the
order in which the C program reads them.

References
----------
llama2.c export.py, `legacy_export`; run.c, `memory_map_weights`.
"""

from __future__ import annotations

import math
import os
import struct
from functools import partial
from pathlib import Path

import numpy as np

from npllama.config import Config, config_from_hf
from npllama.convert.meta import to_halves
from npllama.convert.source import (
    Checkpoint,
    Tensor,
    companions,
    contents,
    refuse_pointer,
)
from npllama.weights import LAYER_NAMES, layer_shapes

Places = dict[str, tuple[tuple[int, ...], int]]  # shape and offset, by name
HEADER = struct.Struct("<7i")
# What llama2.c stores, in its order; the classifier follows only if it is untied.
LAYERS = ("attn_norm", "wq", "wk", "wv", "wo", "mlp_norm", "w_gate", "w_down", "w_up")


def open_llama2c(path: Path, tokenizer: bool = True) -> Checkpoint:
    """Describe a ``.bin`` of llama2.c.

    Raises
    ------
    ValueError
        If the header is impossible, or the size is not what it asks for.
    OSError
        If it cannot be read.
    """
    refuse_pointer(path)
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    config = _config(path, header)
    places, end = _places(config)
    size = os.path.getsize(path)
    if end != size:
        raise ValueError(
            f"{path}: {size} bytes; its header asks for {end}: truncated, or not a "
            ".bin of llama2.c"
        )
    tensors = {
        name: to_halves(name, _tensor(path, shape, start), config.head_dim)
        for name, (shape, start) in places.items()
    }
    found = companions(path.parent, tokenizer=tokenizer)
    sources = [path, *found.values()]
    return Checkpoint(path, config, tensors, contents(found), sources, [])


def _config(path: Path, header: bytes) -> Config:
    if header[:4] == b"PK\x03\x04":
        raise ValueError(f"{path}: a file of PyTorch; give the folder that it is in")
    if header[:4] == b"24ka":
        raise ValueError(f"{path}: a later version of llama2.c; export it as version 0")
    if len(header) < HEADER.size:
        raise ValueError(f"{path}: too short for a .bin of llama2.c")
    width, hidden, layers, heads, kv_heads, vocab, positions = HEADER.unpack(header)
    data = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": abs(vocab),
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": vocab > 0,
        # The stories models separate texts by the beginning token, and run.c stops
        # at it; chat models end with the usual one.
        "eos_token_id": [2, 1],
    }
    try:
        return config_from_hf(data)
    except ValueError as error:
        raise ValueError(f"{path}: not a .bin of llama2.c ({error})") from None


def _places(config: Config) -> tuple[Places, int]:
    """Shape and offset of every tensor by Hugging Face's name, and the file's end."""
    V, E, L = config.vocab_size, config.hidden_size, config.num_hidden_layers
    places: Places = {"model.embed_tokens.weight": ((V, E), HEADER.size)}
    at = HEADER.size + 4 * V * E
    shapes = layer_shapes(config)
    for name in (LAYER_NAMES[word] for word in LAYERS):
        for i in range(L):
            places[f"model.layers.{i}.{name}"] = (shapes[name], at)
            at += 4 * math.prod(shapes[name])
    places["model.norm.weight"] = ((E,), at)
    at += 4 * E
    # Two tables of rotary angles follow, which are computed anew here.
    at += 4 * config.max_position_embeddings * config.head_dim
    if not config.tie_word_embeddings:
        places["lm_head.weight"] = ((V, E), at)
        at += 4 * V * E
    return places, at


def _tensor(path: Path, shape: tuple[int, ...], start: int) -> Tensor:
    return Tensor(path, shape, "float32", partial(_read, path, shape, start))


def _read(path: Path, shape: tuple[int, ...], start: int) -> np.ndarray:
    return np.fromfile(path, "<f4", math.prod(shape), offset=start).reshape(shape)
