"""A folder as transformers saves it: config, weights, tokenizer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npllama.config import Config, config_from_hf
from npllama.convert import pytorch, safetensors
from npllama.convert.layouts import unpacked
from npllama.convert.source import Checkpoint, Tensor, companions, contents, read_json
from npllama.weights import tensor_shapes

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
    if any(os.path.lexists(folder / name) for name in names):
        return True
    # Old GPTQ folders call their one file gptq_model-4bit-128g.safetensors or so.
    alone = len(list(folder.glob("*.safetensors"))) == 1
    return alone and os.path.lexists(folder / "config.json")


def open_hf(folder: Path, tokenizer: bool = True) -> Checkpoint:
    """Describe a Hugging Face checkpoint.

    Raises
    ------
    ValueError
        If the folder is not a LLaMA, or its files contradict each other.
    OSError
        If a file cannot be read.
    """
    found, notes = companions(folder, tokenizer=tokenizer), list[str]()
    data, quantization, read = _settings(folder, found)
    try:
        config = config_from_hf(data)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    scaling = data.get("rope_parameters") or data.get("rope_scaling") or {}
    parts = [d.get("partial_rotary_factor") or 1 for d in (data, scaling)]
    if parts != [1, 1] and config.rope.rope_type == "default":
        notes.append(
            f"{folder / 'config.json'}: partial_rotary_factor is ignored and all pairs "
            "turn, as in transformers 5; if that is not how the model was trained, it "
            "will talk nonsense"
        )
    expected = tensor_shapes(config)
    tensors, index = _weights(folder, {*expected, HEAD}, notes)
    try:
        tensors, lost = unpacked(quantization, tensors, expected)
    except ValueError as error:
        told = str(error)
        where = f"{folder / 'config.json'}: " if told.startswith("config: ") else ""
        raise ValueError(where + told) from None
    tensors, config = _tied(tensors, config, notes)
    kept = _known(tensors, config, notes)
    sources = [*read, *index, *dict.fromkeys(t.file for t in tensors.values())]
    sources += [path for path in found.values() if path not in sources]
    return Checkpoint(folder, config, kept, contents(found), sources, notes, lost)


def _settings(
    folder: Path, found: dict[str, Path]
) -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
    """The config, how its weights are quantised, and the files that say so."""
    read = [folder / "config.json"]
    data = read_json(read[0])
    if "generation_config.json" in found:
        data = _add_stops(data, read_json(found["generation_config.json"]))
    if "quantization" in data:
        raise ValueError(
            f"{read[0]}: weights quantised by mlx; save them in full precision"
        )
    quantization = data.pop("quantization_config", None) or {}
    if not isinstance(quantization, dict):
        raise ValueError(f"{read[0]}: quantization_config is not an object")
    beside = folder / "quantize_config.json"
    if beside.is_file():
        quantization = read_json(beside) | quantization
        read.append(beside)
    return data, quantization, read


def _tied(
    tensors: dict[str, Tensor], config: Config, notes: list[str]
) -> tuple[dict[str, Tensor], Config]:
    """Drop a tied output layer that equals the embedding; untie one that differs.

    Writes
    ------
    notes : if the two differ
    """
    if not config.tie_word_embeddings or HEAD not in tensors:
        return tensors, config
    if _same_head(tensors):
        rest = dict(tensors)
        return rest | {EMBED: rest.pop(HEAD)}, config
    notes.append(
        f"{tensors[HEAD].file}: {HEAD}: differs from {EMBED}, though the "
        "config ties them; kept as it is, untied, as transformers 5 does"
    )
    return tensors, replace(config, tie_word_embeddings=False)


def _known(
    tensors: dict[str, Tensor], config: Config, notes: list[str]
) -> dict[str, Tensor]:
    """The tensors that a LLaMA of this config has; the others are left out.

    Writes
    ------
    notes : which were left out, but for rotary frequencies, which old files keep
    """
    expected = tensor_shapes(config)
    extra: dict[Path, list[str]] = {}
    for name in sorted(tensors.keys() - expected.keys()):
        if not name.endswith(".rotary_emb.inv_freq"):
            extra.setdefault(tensors[name].file, []).append(name)
    for file, names in extra.items():
        notes.append(
            f"{file}: left out, as transformers does, for a LLaMA of this config has "
            f"none: {listed(names)}"
        )
    return {name: t for name, t in tensors.items() if name in expected}


def listed(names: list[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _add_stops(data: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """Add the end tokens of ``generation_config.json``, at which `generate` stops."""
    ids: list[Any] = []
    told = generation.get("eos_token_id")
    # If config.json has no entry, LlamaConfig uses 2.
    default = 2 if told is None else None
    for value in (data.get("eos_token_id", default), told):
        several = value if isinstance(value, list) else [value]
        ids += [i for i in several if i is not None and i not in ids]
    return data | {"eos_token_id": ids}


def _same_head(tensors: dict[str, Tensor]) -> bool:
    """Whether the output layer is the embedding, or stands in for one left out."""
    head, embed = tensors[HEAD], tensors.get(EMBED)
    if embed is None:
        return True
    if (head.shape, head.dtype) != (embed.shape, embed.dtype):
        return False
    return np.array_equal(head.read(), embed.read())


def _weights(
    folder: Path, needed: Collection[str], notes: list[str]
) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors, and the index that was used if there is one."""
    for single, reader in FORMATS.items():
        index = folder / f"{single}.index.json"
        if os.path.lexists(folder / single):
            return reader(folder / single), []
        if os.path.lexists(index):
            return _sharded(index, reader, needed, notes), [index]
    return safetensors.open_file(_only_file(folder)), []


def _only_file(folder: Path) -> Path:
    """The one file of tensors in a folder, by another name than usual."""
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{folder}: no weights; expected one of {', '.join(FORMATS)}")
    return found[0]


def _sharded(
    index: Path, reader: Reader, needed: Collection[str], notes: list[str]
) -> dict[str, Tensor]:
    """The tensors of all shards.

    The index must be right about tensors that are needed or may be packed; an error
    about others is only noted.

    Writes
    ------
    notes : tensors that an index promises and no shard holds, or the reverse
    """
    promised = read_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise ValueError(f"{index}: no weight_map, which says where each tensor is")
    for name, shard in promised.items():
        _check_shard_name(index, name, shard)
    shards = {s: reader(index.parent / s) for s in dict.fromkeys(promised.values())}
    absent = [name for name, shard in promised.items() if name not in shards[shard]]
    for name in absent:
        if name in needed and name != HEAD:  # a tied output layer may be absent
            raise ValueError(
                f"{index.parent / promised[name]}: {name}: missing; {index.name} "
                "promises it here"
            )
    if absent:
        notes.append(f"{index}: promised, but in no shard: {listed(absent)}")
    found: dict[str, Tensor] = {}
    for tensors in shards.values():
        for name, tensor in tensors.items():
            if name not in promised:
                found.setdefault(name, tensor)
    if found:
        notes.append(f"{index}: in a shard, but not promised: {listed(list(found))}")
    for name, shard in promised.items():
        if name in shards[shard]:
            found[name] = shards[shard][name]
    return found


def _check_shard_name(index: Path, name: str, shard: Any) -> None:
    bare = isinstance(shard, str) and re.fullmatch(r"[^/\\\0]+", shard)
    if not bare or shard in (".", ".."):
        raise ValueError(
            f"{index}: {name}: shard {shard!r:.80} is not the bare name of a file in the "
            "folder"
        )
    if not (index.parent / shard).is_file():
        raise ValueError(
            f"{index.parent / shard}: missing; {index.name} promises {name} here"
        )
