"""Meta's own folder: slices of the model, one per GPU, and ``params.json``.

The weights were trained cut into N slices: most matrices by rows, the two that
write into the residual stream by columns, so that each GPU needs to talk only
once per block.  Joining puts the slices end to end again.  Meta rotates
neighbouring coordinates of a head, Hugging Face the two halves, so that the rows
of q and k also change their order.

References
----------
Meta llama/model.py; `permute` of transformers' convert_llama_weights_to_hf.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from npllama.config import Config
from npllama.convert import pytorch
from npllama.convert.params import config_from_params
from npllama.convert.source import Checkpoint, Tensor, companions, contents, read_json
from npllama.rope import halves_order
from npllama.weights import tensor_shapes

EMBED = "tok_embeddings.weight"
NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def is_meta(folder: Path) -> bool:
    """Whether a folder holds what Meta distributes."""
    return (folder / "params.json").is_file() and bool(_slices(folder))


def open_meta(folder: Path, tokenizer: bool = True) -> Checkpoint:
    """Describe a checkpoint of Meta's.

    Raises
    ------
    ValueError
        If slices are missing or do not fit together, or torch is not installed.
    OSError
        If a file cannot be read.
    """
    paths = _slices(folder)
    slices = [pytorch.open_file(path) for path in paths]
    _check_slices(paths, slices)
    config = _config(folder / "params.json", slices)
    expected = tensor_shapes(config)
    tensors = {}
    for meta_name in slices[0]:
        if meta_name == "rope.freqs":  # follows from the config
            continue
        name = hf_name(meta_name)
        parts = [tensors[meta_name] for tensors in slices]
        if name in tensors:
            raise ValueError(f"{parts[0].file}: {meta_name}: stands for {name} again")
        joined = _join(parts, expected.get(name, parts[0].shape), meta_name)
        tensors[name] = to_halves(name, joined, config.head_dim)
    # LLaMA 1 and 2 came with the tokenizer one folder up, shared by all sizes.
    found = companions(folder, folder.parent, tokenizer=tokenizer)
    sources = [folder / "params.json", *paths, *found.values()]
    return Checkpoint(folder, config, tensors, contents(found), sources, [])


def hf_name(name: str) -> str:
    """Hugging Face's name of one of Meta's tensors; an unknown name as it is."""
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name):
        layer, word = match.groups()
        if word in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[word]}.weight"
    word = name.removesuffix(".weight")
    return f"{NAMES[word]}.weight" if word in NAMES else name


def to_halves(name: str, tensor: Tensor, D: int) -> Tensor:
    """Reorder the rows of q and k as rotate-half needs them; leave the rest alone."""
    if not re.search(r"\b[qk]_proj\.(weight|bias)$", name):
        return tensor

    def read() -> np.ndarray:
        heads = tensor.read().reshape(-1, D, *tensor.shape[1:])  # (H, D, E) or (H, D)
        return heads[:, halves_order(D)].reshape(tensor.shape)

    return tensor._replace(read=read)


def _slices(folder: Path) -> list[Path]:
    return sorted(folder.glob("consolidated.*.pth"))


def _check_slices(paths: list[Path], slices: list[dict[str, Tensor]]) -> None:
    """Raise ValueError unless all slices are there, with the same tensors."""
    for i, path in enumerate(paths):
        if path.name != f"consolidated.{i:02}.pth":
            raise ValueError(f"{path.parent / f'consolidated.{i:02}.pth'}: missing")
    for path, tensors in zip(paths, slices):
        for name in sorted(slices[0].keys() ^ tensors.keys()):
            raise ValueError(f"{path}: {name}: not in every slice of the model")
    if EMBED not in slices[0]:
        raise ValueError(f"{paths[0]}: {EMBED}: missing")
    if len(shape := slices[0][EMBED].shape) != 2:
        raise ValueError(f"{paths[0]}: {EMBED}: shape {shape}; expected two axes")


def _config(path: Path, slices: list[dict[str, Tensor]]) -> Config:
    params = read_json(path)
    try:
        config = config_from_params(params, _vocab_size(params, slices))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return replace(config, tie_word_embeddings="output.weight" not in slices[0])


def _vocab_size(params: dict, slices: list[dict[str, Tensor]]) -> int:
    """Rows of the embedding: LLaMA 1 and 2 cut its columns, LLaMA 3 its rows."""
    rows, columns = slices[0][EMBED].shape
    found = rows * len(slices) if columns == params.get("dim") else rows
    told = params.get("vocab_size")
    if told not in (None, -1, found):
        raise ValueError(
            f"params: vocab_size {told!r:.80}, but {EMBED} has {found} rows"
        )
    return found


def _join(parts: list[Tensor], whole: tuple[int, ...], name: str) -> Tensor:
    """Put the slices of one tensor end to end along the axis they were cut."""
    first = parts[0]
    for part in parts:
        if (part.shape, part.dtype) != (first.shape, first.dtype):
            raise ValueError(f"{part.file}: {name}: unlike the slice in {first.file}")
    if first.shape == whole:
        if len(parts) > 1 and len(whole) > 1:  # only norms are not cut
            raise ValueError(
                f"{first.file}: {name}: whole in one of {len(parts)} slices"
            )
        return first
    for axis, length in enumerate(first.shape):
        joined = (*first.shape[:axis], length * len(parts), *first.shape[axis + 1 :])
        if joined == whole:
            return first._replace(shape=whole, read=partial(_concatenate, parts, axis))
    return first


def _concatenate(parts: list[Tensor], axis: int) -> np.ndarray:
    return np.concatenate([part.read() for part in parts], axis)
