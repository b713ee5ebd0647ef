"""Weights in 2 to 8 bits: GPTQ, AWQ and compressed-tensors, back to numbers.

- GPTQ packs the codes along the inputs and the zero points along the outputs.  Its
  first format stores z - 1 for a zero point z, its second z; some files say "gptq" but
  hold the second.  If all zero points are the middle of the range (`sym`), the data
  shows which format it is.  Inputs may be grouped in any order, ``g_idx``.
- AWQ ("gemm") packs both along the outputs, eight to a word, in the order 0, 2, 4,
  6, 1, 3, 5, 7, and stores the zero.
- compressed-tensors ("pack-quantized") packs the codes along the inputs, output
  first as the weight itself; symmetric unless there are zeros.

References
----------
Frantar et al. 2022, arXiv:2210.17323 (GPTQ); Lin et al. 2023, arXiv:2306.00978
(AWQ); AutoGPTQ, nn_modules/qlinear; AutoAWQ, utils/packing_utils.py;
compressed-tensors, compressors/pack_quantized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npllama.convert.packed import (
    FLOATS,
    INTEGERS,
    Parts,
    bits_of,
    expect,
    floats_of,
    given_groups,
    grouped,
    groups_of,
    need,
    unpack,
    words_of,
)
from npllama.convert.source import Tensor, tensors_of

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
READABLE = "gptq, awq and compressed-tensors can be read"

Shapes = Mapping[str, tuple[int, ...]]


#  ---- GPTQ -------------------------------------------------------------------


class Gptq(NamedTuple):
    """What a ``quantization_config`` says of GPTQ's layout."""

    stores_less_one: bool
    group_size: Any
    symmetric: bool
    bits: Any


def gptq_settings(settings: dict[str, Any]) -> Gptq:
    """Read them; ValueError for another format."""
    kind = settings.get("checkpoint_format", settings.get("format", "gptq"))
    if kind not in ("gptq", "gptq_v2"):
        raise ValueError(
            f"config: GPTQ in the format {kind!r:.80}; 'gptq' and 'gptq_v2' can be read"
        )
    symmetric = settings.get("sym") is True
    return Gptq(
        kind == "gptq", settings.get("group_size"), symmetric, settings.get("bits")
    )


def read_gptq(
    gptq: Gptq, parts: Parts, shape: tuple[int, ...]
) -> tuple[int, Callable[[], np.ndarray]]:
    """Bits, and a function that unpacks the weight."""
    C, S = shape
    words, _ = need(parts, "qweight", INTEGERS)
    groups, _ = need(parts, "scales", FLOATS)
    need(parts, "qzeros", INTEGERS)
    bits = bits_of(words, S, (gptq.bits, 4, 8, 3, 2))
    expect(parts, "qweight", (words, C))
    expect(parts, "scales", (groups, C))
    expect(parts, "qzeros", (groups, -(-C * bits // 32)))
    if "g_idx" in parts:
        expect(parts, "g_idx", (S,))
    else:
        groups_of(S, groups, gptq.group_size)  # must be possible
    return bits, partial(_dequantise_gptq, gptq, parts, shape, bits)


def _dequantise_gptq(
    gptq: Gptq, parts: Parts, shape: tuple[int, ...], bits: int
) -> np.ndarray:
    C, S = shape
    scales = floats_of(parts["scales"])  # (groups, C)
    if "g_idx" in parts:
        groups = given_groups(parts["g_idx"], len(scales))  # (S,)
    else:
        groups = groups_of(S, len(scales), gptq.group_size)  # (S,)
    stored = unpack(words_of(parts["qzeros"]).T, bits, C).T  # (groups, C)
    zeros = zero_points(stored, bits, gptq).astype(np.float32)
    return grouped(unpack(words_of(parts["qweight"]), bits, S), zeros, scales, groups)


def zero_points(stored: np.ndarray, bits: int, gptq: Gptq) -> np.ndarray:
    """The zero points, whether z - 1 is stored or z.

    Parameters
    ----------
    stored : (groups, C) uint32

    Returns
    -------
    (groups, C) uint32
    """
    middle, less_one = 2 ** (bits - 1), gptq.stores_less_one
    other = middle if less_one else middle - 1
    if gptq.symmetric and np.all(stored == other):
        less_one = not less_one  # the file says one version and holds the other
    # Add within a number's own bits: a stored 15 must not carry into the next number.
    return (stored + less_one) & np.uint32(2**bits - 1)


#  ---- AWQ --------------------------------------------------------------------


def awq_settings(settings: dict[str, Any]) -> Any:
    """The group size; ValueError for another layout."""
    version = str(settings.get("version", "gemm")).lower()
    bits = settings.get("bits", settings.get("w_bit", 4))
    if version != "gemm" or bits != 4:
        raise ValueError(
            f"config: AWQ {version!r:.80} of {bits} bits; 'gemm' of 4 can be read"
        )
    return settings.get("group_size", settings.get("q_group_size"))


def read_awq(
    group_size: Any, parts: Parts, shape: tuple[int, ...]
) -> tuple[int, Callable[[], np.ndarray]]:
    """Bits, and a function that unpacks the weight."""
    C, S = shape
    groups, _ = need(parts, "scales", FLOATS)
    for name, rows in (("qweight", S), ("qzeros", groups)):
        need(parts, name, INTEGERS)
        expect(parts, name, (rows, C // 8))
    expect(parts, "scales", (groups, C))
    order = groups_of(S, groups, group_size)  # (S,)
    return 4, partial(_dequantise_awq, parts, order)


def _dequantise_awq(parts: Parts, groups: np.ndarray) -> np.ndarray:
    q, zeros = (awq_codes(words_of(parts[name])) for name in ("qweight", "qzeros"))
    return grouped(q, zeros.astype(np.float32), floats_of(parts["scales"]), groups)


def awq_codes(words: np.ndarray) -> np.ndarray:
    """The codes of a packed matrix, its columns in order.

    Parameters
    ----------
    words : (rows, C // 8) uint32

    Returns
    -------
    (rows, C) uint32
    """
    codes = np.empty((*words.shape, 8), np.uint32)
    for place, column in enumerate(AWQ_ORDER):
        codes[..., column] = words >> np.uint32(4 * place) & np.uint32(15)
    return codes.reshape(len(words), -1)


#  ---- compressed-tensors -----------------------------------------------------


def compressed_settings(settings: dict[str, Any]) -> Any:
    """Bits per weight, if the settings say so.

    ValueError for another format than "pack-quantized", or rounded activations.
    """
    kind = settings.get("format")
    if kind != "pack-quantized":
        raise ValueError(
            f"config: compressed-tensors in the format {kind!r:.80}; 'pack-quantized' can "
            "be read"
        )
    groups, bits = settings.get("config_groups"), None
    for group in groups.values() if isinstance(groups, dict) else ():
        if not isinstance(group, dict):
            continue
        weights = group.get("weights")
        bits = weights.get("num_bits") if isinstance(weights, dict) else None
        if group.get("input_activations"):
            raise ValueError(
                "config: compressed-tensors that quantise activations, too; here they "
                "are floats"
            )
    return bits


def read_compressed(
    told: Any, parts: Parts, shape: tuple[int, ...]
) -> tuple[int, Callable[[], np.ndarray]]:
    """Bits, and a function that unpacks the weight."""
    C, S = shape
    _, words = need(parts, "weight_packed", INTEGERS)
    _, groups = need(parts, "weight_scale", FLOATS)
    bits = bits_of(words, S, (told, 4, 8, 3, 2, 5, 6, 7))
    expect(parts, "weight_packed", (C, words))
    expect(parts, "weight_scale", (C, groups))
    if "weight_zero_point" in parts:
        need(parts, "weight_zero_point", INTEGERS)
        expect(parts, "weight_zero_point", (-(-C * bits // 32), groups))
    if "weight_g_idx" in parts:
        expect(parts, "weight_g_idx", (S,))
    if "weight_shape" in parts:
        own = tuple(parts["weight_shape"].read().tolist())
        if own != shape:
            raise ValueError(f"weight_shape is {own}; the config asks for {shape}")
    return bits, partial(_dequantise_compressed, parts, shape, bits)


def _dequantise_compressed(
    parts: Parts, shape: tuple[int, ...], bits: int
) -> np.ndarray:
    C, S = shape
    scales = floats_of(parts["weight_scale"]).T  # (groups, C)
    # Codes are signed, and are stored with this added; so are zeros.
    zeros = np.full(scales.shape, 2 ** (bits - 1), np.float32)  # (groups, C)
    if "weight_zero_point" in parts:
        words = words_of(parts["weight_zero_point"])
        zeros = unpack(words, bits, C).T.astype(np.float32)  # (groups, C)
    groups = groups_of(S, len(scales), None)  # (S,)
    if "weight_g_idx" in parts:
        groups = given_groups(parts["weight_g_idx"], len(scales))  # (S,)
    return grouped(
        unpack(words_of(parts["weight_packed"]).T, bits, S), zeros, scales, groups
    )


class Layout(NamedTuple):
    """How one kind of checkpoint keeps its weights."""

    words: tuple[str, ...]  # what stands in place of `weight`, the codes first
    settings: Callable[[dict[str, Any]], Any]
    read: Callable[..., tuple[int, Callable[[], np.ndarray]]]


LAYOUTS = {
    "gptq": Layout(
        ("qweight", "qzeros", "scales", "g_idx"), gptq_settings, read_gptq
    ),
    "awq": Layout(("qweight", "qzeros", "scales"), awq_settings, read_awq),
    "compressed-tensors": Layout(
        ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape",
         "weight_g_idx"),
        compressed_settings,
        read_compressed,
    ),
}  # fmt: skip


#  ---- a checkpoint ------------------------------------------------------------


def unpacked(
    settings: dict[str, Any], tensors: dict[str, Tensor], shapes: Shapes
) -> tuple[dict[str, Tensor], list[str]]:
    """Find the packed weights of a checkpoint; each is made whole when it is read.

    Parameters
    ----------
    settings : dict
        The ``quantization_config``; empty if there is none.
    tensors : dict
        By their names on disk.
    shapes : mapping
        The weights that the config asks for.

    Returns
    -------
    tensors : dict
        With one tensor for the parts of each packed weight.
    lost : list of str
        A line for each number of bits: what was dequantised.

    Raises
    ------
    ValueError
        If they are quantised in a way that cannot be read.
    """
    kind = _kind(settings, tensors)
    if kind is None:
        return tensors, []
    rest: dict[str, Any] = dict(tensors)
    counts = Counter[int]()
    layout = LAYOUTS[kind]
    read_as = layout.settings(settings)
    for name, shape in shapes.items():
        stem = name.removesuffix(".weight")
        parts = {k: rest.pop(f"{stem}.{k}", None) for k in layout.words}
        if name.endswith(".weight") and parts[layout.words[0]] is not None:
            given = {k: t for k, t in parts.items() if t is not None}
            file = given[layout.words[0]].file
            try:
                bits, read = layout.read(read_as, given, shape)
            except ValueError as error:
                raise ValueError(f"{file}: {stem}: {error}") from None
            rest[name] = Tensor(file, shape, "float32", read)
            counts[bits] += 1
    rest = _without_zero_biases(rest, shapes)
    lost = [
        f"dequantised from {kind}, {b} bits: {tensors_of(n)}" for b, n in counts.items()
    ]
    return rest, lost


def _kind(settings: dict[str, Any], tensors: dict[str, Tensor]) -> str | None:
    """Which of `LAYOUTS` it is; None if nothing is packed."""
    method = settings.get("quant_method")
    if method is None and not settings:
        if any(name.endswith(".qweight") for name in tensors):
            return "gptq"  # files older than quantize_config.json
        return None
    if method is None and "bits" in settings and "group_size" in settings:
        method = "gptq"  # quantize_config.json of AutoGPTQ does not say it
    if not isinstance(method, str) or method not in LAYOUTS:
        raise ValueError(
            f"config: weights quantised by {method!r:.80}; of quantised ones, {READABLE}"
        )
    return method


def _without_zero_biases(tensors: dict[str, Tensor], shapes: Shapes) -> Parts:
    """Leave out biases that the config does not know, which GPTQ files keep as zeros."""
    kept = {}
    for name, tensor in tensors.items():
        weight = f"{name.removesuffix('.bias')}.weight"
        if name.endswith(".bias") and name not in shapes and weight in shapes:
            if np.any(tensor.read()):
                raise ValueError(
                    f"{tensor.file}: {name}: not zero, and the config has no biases"
                )
        else:
            kept[name] = tensor
    return kept
