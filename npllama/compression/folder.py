r"""A folder in GPTQ's layout, for other programs.

gptqmodel, transformers, vLLM and others read a folder of Hugging Face in which four
tensors stand for each matrix W (C, S) of b bits:

    qweight  (S b / 32, C)       codes, along the inputs, the first in the lowest bits
    qzeros   (groups, C b / 32)  zero points, along the outputs
    scales   (groups, C)
    g_idx    (S,)                the group of every input

and ``quantization_config`` in ``config.json`` says the rest.  Version 1 stores
each zero point minus one, so it cannot store 0.  We use it for symmetric grids, whose
zero point is always the middle.  Other grids use ``gptq_v2``, which stores the zero
point itself.  `convert.layouts` reads both.

The folder appears when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import npllama
from npllama.compression.packed import byte_table
from npllama.compression.quantize import METHODS, Plan
from npllama.config import Config, config_to_hf
from npllama.files.packed import Packed
from npllama.files.whole import new_folder, write_file

BITS = (2, 3, 4, 8)  # that readers know
WORD = 32
OWN_FILES = ("config.json", "npllama.json")


class Gptq(NamedTuple):
    """A matrix as the layout has it; zero points not yet less one."""

    bits: int
    codes: np.ndarray  # (S, C) uint32
    zero: np.ndarray  # (groups, C) uint32
    scale: np.ndarray  # (groups, C) float16 or float32
    groups: np.ndarray  # (S,) int32


def words_of(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of a few bits, laid end to end along the first axis; zeros fill the last.

    The lowest bits come first, and a number may continue in the next word.  32 numbers
    fill exactly `bits` words.

    Parameters
    ----------
    numbers : (count, C) uint32
    bits : int

    Returns
    -------
    (words, C) int32
    """
    count, C = numbers.shape
    blocks = -(-count // WORD)
    full = np.zeros((blocks * WORD, C), dtype=np.uint32)  # (blocks * 32, C)
    full[:count] = numbers
    words = np.zeros((blocks * bits, C), dtype=np.uint32)  # (blocks * bits, C)
    for k in range(WORD):
        word, shift = divmod(k * bits, WORD)
        words[word::bits] |= full[k::WORD] << np.uint32(shift)
        if shift + bits > WORD:
            words[word + 1 :: bits] |= full[k::WORD] >> np.uint32(WORD - shift)
    return words[: -(-count * bits // WORD)].view(np.int32)


def as_gptq(weight: Packed) -> Gptq:
    """Codes, zero points, scales and groups of a packed matrix.

    Raises
    ------
    ValueError
        If its format has no place in the layout.
    """
    C, S = len(weight.codes), weight.inputs
    bits = next(
        (b for b in BITS if weight.format in (f"int{b}", f"uint{b}")),
        None,
    )
    if bits is not None and len(weight.scale) != C:
        raise ValueError(
            "GPTQ's layout has a scale for each row, not one for the whole matrix"
        )
    if bits is None:
        known = ", ".join(map(str, BITS))
        raise ValueError(f"GPTQ's layout has {known} bits, and no {weight.format}")
    table = byte_table(np.arange(2**bits), bits)
    codes = table[weight.codes].reshape(C, -1)[:, :S].astype(np.uint32)  # (C, S)
    groups = (np.arange(S) // weight.group).astype(np.int32)  # (S,)
    if weight.order is not None:
        back = np.argsort(weight.order)
        codes, groups = codes[:, back], groups[back]
    zero = weight.zero
    if zero is None:
        zero = np.full(weight.scale.shape, 2 ** (bits - 1), dtype=np.uint8)
    return Gptq(bits, codes.T, zero.T.astype(np.uint32), weight.scale.T, groups)


def parts_of(weight: Packed, less_one: bool) -> dict[str, np.ndarray]:
    """The four tensors of a matrix.

    Parameters
    ----------
    weight : Packed
    less_one : bool
        Whether zero points are kept less one, as in the first version.
    """
    found = as_gptq(weight)
    stored = (found.zero - np.uint32(less_one)) & np.uint32(2**found.bits - 1)
    return {
        "qweight": words_of(found.codes, found.bits),
        "qzeros": np.ascontiguousarray(words_of(stored.T, found.bits).T),
        "scales": np.ascontiguousarray(found.scale),
        "g_idx": found.groups,
    }


def settings_of(plan: Plan) -> dict[str, Any]:
    """The ``quantization_config`` of a plan, in the words of gptqmodel."""
    recipe = plan.recipe
    own = METHODS[plan.method].own_values
    if own or recipe.kind not in ("symmetric", "asymmetric"):
        found = plan.method if own else recipe.kind
        raise ValueError(f"GPTQ's layout has no {found} grid")
    version = "gptq" if recipe.kind == "symmetric" else "gptq_v2"
    more = {
        "damp_percent": recipe.damping,
        "static_groups": recipe.static_groups and plan.method == "gptq",
        "true_sequential": plan.sequential,
    }
    return {
        "quant_method": "gptq",
        "checkpoint_format": version,
        "format": version,
        "bits": recipe.bits,
        "group_size": -1 if recipe.group == "channel" else recipe.group,
        "desc_act": recipe.act_order and plan.method == "gptq",
        "sym": recipe.kind == "symmetric",
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"npllama:{npllama.__version__}"], **more},
    }


def gptq_tensors(
    tensors: Iterable[tuple[str, np.ndarray | Packed]], less_one: bool, kind: str
) -> dict[str, np.ndarray]:
    """All tensors of the folder, by their names in it."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        if isinstance(tensor, Packed):
            stem = name.removesuffix("weight")
            for part, array in parts_of(tensor, less_one).items():
                found[stem + part] = array
        elif kind == "bfloat16":
            import ml_dtypes

            found[name] = np.ascontiguousarray(tensor).view(ml_dtypes.bfloat16)
        else:
            found[name] = np.ascontiguousarray(tensor)
    return found


def write_folder(
    out: Path,
    config: Config,
    tensors: Iterable[tuple[str, np.ndarray | Packed]],
    plan: Plan,
    kind: str = "float32",
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model as gptqmodel does.

    Parameters
    ----------
    out : path
        Of the folder, which is not there yet.
    config : Config
    tensors : iterable of (name, array or Packed)
        As for `files.checkpoint.save`.
    plan : Plan
        What was done to the matrices.
    kind : "float32", "float16" or "bfloat16"
        What the arrays are stored in.
    files : mapping of name to bytes
        The tokenizer's files.

    Raises
    ------
    ValueError, OSError
        If the folder is there already, or cannot be written; or if a matrix has no
        place in the layout.
    ImportError
        If safetensors is not installed.
    """
    import safetensors.numpy

    settings = settings_of(plan)
    less_one = settings["checkpoint_format"] == "gptq"
    with new_folder(out) as part:
        for name, content in (files or {}).items():
            if name not in OWN_FILES:
                write_file(part / name, content)
        about = config_to_hf(config) | {"dtype": kind, "quantization_config": settings}
        write_file(part / "config.json", json.dumps(about, indent=1))
        write_file(part / "quantize_config.json", json.dumps(settings, indent=1))
        found = gptq_tensors(tensors, less_one, kind)
        data = safetensors.numpy.save(found, metadata={"format": "pt"})
        write_file(part / "model.safetensors", data)
