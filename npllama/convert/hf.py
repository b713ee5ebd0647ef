"""A folder as transformers saves it: config, weights, tokenizer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npllama.config import config_from_hf
from npllama.convert import pytorch, safetensors
from npllama.convert.source import Checkpoint, Tensor, companions, contents, read_json

Reader = Callable[[Path], dict[str, Tensor]]
# In transformers' order of preference; each may be split, with an index beside it.
FORMATS: dict[str, Reader] = {
    "model.safetensors": safetensors.open_file,
    "pytorch_model.bin": pytorch.open_file,
}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def is_hf(folder: Path) -> bool:
    """Whether a folder holds weights under a name that Hugging Face uses."""
    names = [name for single in FORMATS for name in (single, f"{single}.index.json")]
    return any(os.path.lexists(folder / name) for name in names)


def open_hf(folder: Path) -> Checkpoint:
    """Describe a Hugging Face checkpoint.

    Raises
    ------
    ValueError
        If the folder is no LLaMA, or its files contradict each other.
    OSError
        If a file cannot be read.
    """
    found = companions(folder)
    config_path = folder / "config.json"
    data = read_json(config_path)
    if "generation_config.json" in found:
        data = _add_stops(data, read_json(found["generation_config.json"]))
    try:
        config = config_from_hf(data)
    except ValueError as error:
        raise ValueError(f"{config_path}: {error}") from None
    tensors, index = _weights(folder)
    tensors = {name: t for name, t in tensors.items() if not _is_harmless(name)}
    sources = [config_path, *index, *dict.fromkeys(t.file for t in tensors.values())]
    notes = []
    if config.tie_word_embeddings and HEAD in tensors:
        if _same_head(tensors):
            tensors[EMBED] = tensors.pop(HEAD)
        else:
            config = replace(config, tie_word_embeddings=False)
            notes.append(
                f"{tensors[HEAD].file}: {HEAD}: differs from {EMBED}, though the "
                "config ties them; kept as it is, untied, as transformers 5 does"
            )
    sources += found.values()
    return Checkpoint(folder, config, tensors, contents(found), sources, notes)


def _add_stops(data: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """Add the end tokens of ``generation_config.json``, at which `generate` stops."""
    ids: list[Any] = []
    for value in (data.get("eos_token_id", 2), generation.get("eos_token_id")):
        several = value if isinstance(value, list) else [value]
        ids += [i for i in several if i is not None and i not in ids]
    return data | {"eos_token_id": ids}


def _is_harmless(name: str) -> bool:
    """Old checkpoints keep the rotary frequencies, which follow from the config."""
    return name.endswith(".rotary_emb.inv_freq")


def _same_head(tensors: dict[str, Tensor]) -> bool:
    """Whether the output layer is the embedding, or stands in for one left out."""
    head, embed = tensors[HEAD], tensors.get(EMBED)
    if embed is None:
        return True
    if (head.shape, head.dtype) != (embed.shape, embed.dtype):
        return False
    return np.array_equal(head.read(), embed.read())


def _weights(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors, and the index that was used if there is one."""
    for single, reader in FORMATS.items():
        index = folder / f"{single}.index.json"
        if os.path.lexists(folder / single):
            return reader(folder / single), []
        if os.path.lexists(index):
            return _sharded(index, reader), [index]
    raise ValueError(f"{folder}: no weights; expected one of {', '.join(FORMATS)}")


def _sharded(index: Path, reader: Reader) -> dict[str, Tensor]:
    """The tensors of all shards, which must be those that the index promises."""
    promised = read_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise ValueError(f"{index}: no weight_map, which says where each tensor is")
    for name, shard in promised.items():
        _check_shard_name(index, name, shard)
    shards = {s: reader(index.parent / s) for s in dict.fromkeys(promised.values())}
    for name, shard in promised.items():
        if name not in shards[shard]:
            raise ValueError(
                f"{index.parent / shard}: {name}: missing; {index.name} promises it here"
            )
    found: dict[str, Tensor] = {}
    for shard, tensors in shards.items():
        for name in tensors:
            if promised.get(name) != shard and not _is_harmless(name):
                raise ValueError(
                    f"{index.parent / shard}: {name}: {index.name} does not promise it "
                    "here; index and shards are of different models"
                )
        found |= tensors
    return found


def _check_shard_name(index: Path, name: str, shard: Any) -> None:
    bare = isinstance(shard, str) and re.fullmatch(r"[^/\\\0]+", shard)
    if not bare or shard in (".", ".."):
        raise ValueError(
            f"{index}: {name}: shard {shard!r} is not the bare name of a file in the "
            "folder"
        )
    if not (index.parent / shard).is_file():
        raise ValueError(
            f"{index.parent / shard}: missing; {index.name} promises {name} here"
        )
