"""A file that holds every tensor of a run.

A trace is an ``.npz`` like that of the weights: uncompressed, one array per tensor in
the order in which the model computed them, so that it can be mapped and read with
``np.load``.  A tensor is named ``step/module``.  Steps are ``prefill`` and
``decode.0``, ``decode.1`` ... (one token each); modules are named as in transformers:

    model.embed_tokens                                (B, T, E)
    model.layers.0.input_layernorm                    (B, T, E)
    model.layers.0.self_attn.q_proj                   (B, T, H, D), bias included
    model.layers.0.self_attn.k_proj, v_proj           (B, T, K, D)
    model.layers.0.self_attn.q_rope, k_rope           the same, turned
    model.layers.0.self_attn.scores                   (B, H, T, S), scaled; -inf where
                                                      masked; only if asked for
    model.layers.0.self_attn.attention                (B, T, H, D)
    model.layers.0.self_attn.o_proj                   (B, T, E)
    model.layers.0.post_attention                     (B, T, E), the residual stream
    model.layers.0.post_attention_layernorm           (B, T, E)
    model.layers.0.mlp.gate_proj, up_proj, act_fn     (B, T, F); act_fn is SiLU(gate)
    model.layers.0.mlp.down_proj                      (B, T, E)
    model.layers.0.output                             (B, T, E), the residual stream
    model.norm                                        (B, T, E)
    lm_head                                           (B, T, V), the logits

Behind the steps stand ``cache.k`` and ``cache.v`` (L, B, K, S, D), ``tokens`` (B, S),
all that were run, and ``u`` (B, draws), the number in [0, 1) behind every draw.

``meta.json`` says the rest: the format, who computed it in which dtype, the config,
the weights' SHA-256.  A candidate needs none of it: whatever arrays it has under these
names are compared.  Three entries help to read one:

    dtype        "bfloat16": what it computed in, where the arrays are wider
    stored       {name: "bfloat16"}: the array is uint16, the upper halves of float32
    rope_layout  "interleaved": pairs are neighbours (2i, 2i + 1), as Meta, llama2.c
                 and GGUF have them; q, k and the cached keys are reordered
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from npllama.npz import read_npz
from npllama.rope import halves_order
from npllama.weights import widen

FORMAT = "npllama-golden-1"
META = "meta.json"
# Tensors whose coordinates follow the layout of RoPE's pairs.
TURNED = ("q_proj", "k_proj", "q_rope", "k_rope", "cache.k")


class Trace(Mapping[str, np.ndarray]):
    """Tensors by name, in the order of execution, and what is said about them.

    An array is mapped from the file and touched when it is asked for.

    Parameters
    ----------
    tensors : mapping of name to array
    meta : dict
        The entries of ``meta.json``.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], meta: dict[str, Any]):
        self.tensors, self.meta = dict(tensors), meta

    @property
    def names(self) -> list[str]:
        """All names, in the order of execution."""
        return list(self.tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor; bfloat16 as float32, RoPE's pairs as halves."""
        tensor = self.tensors[name]
        if self.meta.get("stored", {}).get(name) == "bfloat16":
            tensor = widen(tensor, "bfloat16", "float32")
        interleaved = self.meta.get("rope_layout") == "interleaved"
        if interleaved and name.endswith(TURNED):
            D = self.meta.get("head_dim", tensor.shape[-1])
            heads = tensor.reshape(*tensor.shape[:-1], -1, D)
            tensor = heads[..., halves_order(D)].reshape(tensor.shape)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


#  ---- reading ----------------------------------------------------------------


def read_trace(path: str | os.PathLike) -> Trace:
    """Open a trace, a golden one or a candidate.

    Raises
    ------
    ValueError
        If it is not an ``.npz`` of plain arrays, or its ``meta.json`` makes no sense.
    OSError
        If it cannot be read.
    """
    archive = read_npz(path)
    try:
        meta = _meta(archive.files.get(META, b"{}"))
        for name, dtype in meta.get("stored", {}).items():
            if name in archive.tensors and dtype == "bfloat16":
                if archive.tensors[name].dtype != np.uint16:
                    raise ValueError(f"{name}: bfloat16 is stored as uint16")
        head_dim = meta.get("head_dim")
        for name, tensor in archive.tensors.items():
            _check_tensor(name, tensor, head_dim)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Trace(archive.tensors, meta)


def read_golden(path: str | os.PathLike) -> Trace:
    """Open a trace that `record` wrote, and make sure that all of it is there.

    Raises
    ------
    ValueError
        As `read_trace`; also if a tensor is missing or misshapen, or a number that
        must be finite is not.
    """
    trace = read_trace(path)
    if trace.meta.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not a golden trace; make one with: npllama golden record"
        )
    shapes = trace.meta.get("shapes")
    if not isinstance(shapes, dict) or not shapes:
        raise ValueError(f"{path}: {META} has no list of shapes")
    for name, shape in shapes.items():
        if name not in trace:
            raise ValueError(f"{path}: tensor {name} is missing")
        found = list(trace.tensors[name].shape)
        if found != shape:
            raise ValueError(f"{path}: tensor {name} is {found}; {META} says {shape}")
    for name in trace:
        if name not in shapes:
            raise ValueError(f"{path}: tensor {name} is not listed in {META}")
    tokens = trace.get("tokens")
    if tokens is None or tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise ValueError(f"{path}: it has no tokens, integers of (B, S)")
    return trace


def _check_tensor(name: str, tensor: np.ndarray, head_dim: int | None) -> None:
    if tensor.size == 0:
        raise ValueError(f"{name} is empty, of shape {tensor.shape}")
    if head_dim and name.endswith(TURNED) and tensor.shape[-1:] != ():
        if tensor.shape[-1] % head_dim:
            raise ValueError(
                f"{name} ends in {tensor.shape[-1]} numbers, no heads of {head_dim}"
            )


# What an entry of meta.json has to be, if it is there.
MEANINGS: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "dtype": str,
    "stored": dict,
    "rope_layout": str,
    "head_dim": int,
    "config": dict,
    "floor": dict,
    "shapes": dict,
    "weights_sha256": (str, type(None)),
}


def _meta(text: bytes) -> dict[str, Any]:
    """The entries of ``meta.json``, each of the type that it must have."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{META}: not valid JSON ({error})") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{META}: expected a JSON object, found {meta!r:.40}")
    for name, kind in MEANINGS.items():
        if name in meta and not isinstance(meta[name], kind):
            raise ValueError(f"{META}: {name} is {meta[name]!r:.40}")
    layout = meta.get("rope_layout", "half")
    if layout not in ("half", "interleaved"):
        raise ValueError(
            f'{META}: rope_layout is {layout!r}; "half" or "interleaved" is known'
        )
    head_dim = meta.get("head_dim", 2)
    if isinstance(head_dim, bool) or not 2 <= head_dim <= 2**16 or head_dim % 2:
        raise ValueError(f"{META}: head_dim is {head_dim}; an even number of them")
    for dtype, floors in meta.get("floor", {}).items():
        _check_floors(dtype, floors)
    return meta


def _check_floors(dtype: str, floors: Any) -> None:
    """Raise ValueError unless these are {name: {"rms": number >= 0}}."""
    entries = floors.values() if isinstance(floors, dict) else [None]
    for entry in entries:
        rms = entry.get("rms") if isinstance(entry, dict) else None
        if not isinstance(rms, (int, float)) or not 0 <= rms < float("inf"):
            raise ValueError(f"{META}: the floor of {dtype} is damaged")
