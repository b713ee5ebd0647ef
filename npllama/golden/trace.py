"""A file that holds every tensor of a run.

A trace is an ``.npz`` like that of the weights: one array per tensor in the order in
which the model computed them, uncompressed, so that it can be mapped and read with
``np.load``.  (A candidate may be compressed.)  A tensor is named ``step/module``.  Steps
are ``prefill`` and ``decode.0``, ``decode.1`` ... (one token each); modules are named as
in transformers:

    model.embed_tokens                                (B, T, E)
    model.layers.0.input_layernorm                    (B, T, E)
    model.layers.0.self_attn.q_proj                   (B, T, H, D), bias included
    model.layers.0.self_attn.k_proj, v_proj           (B, T, K, D)
    model.layers.0.self_attn.q_rope, k_rope           the same, rotated
    model.layers.0.self_attn.scores                   (B, H, T, S), scaled; -inf where
                                                      masked; only if asked for
    model.layers.0.self_attn.attention                (B, T, H, D)
    model.layers.0.self_attn.o_proj                   (B, T, E)
    model.layers.0.post_attention                     (B, T, E), the residual stream
    model.layers.0.post_attention_layernorm           (B, T, E)
    model.layers.0.mlp.gate_proj, up_proj, act_fn     (B, T, F); act_fn is the gate, bent
    model.layers.0.mlp.down_proj                      (B, T, E)
    model.layers.0.output                             (B, T, E), the residual stream
    model.norm                                        (B, T, E)
    lm_head                                           (B, T, V), the logits

After the steps come ``cache.k`` and ``cache.v`` (L, B, K, S, D), ``tokens`` (B, S),
all that were run, and ``u`` (B, draws), the number in [0, 1) that decided each draw.

``meta.json`` holds the format, the program and dtype of the computation, the config,
the weights' SHA-256, and whether `rowwise` was on.  A candidate needs no ``meta.json``:
all arrays that it has under these names are compared.  Four entries help to read one:

    dtype        "bfloat16": what it computed in, where the arrays are wider
    stored       {name: "bfloat16"}: the array is uint16, the upper halves of float32
    rope_layout  "interleaved": pairs are neighbours (2i, 2i + 1), as Meta, llama2.c
                 and GGUF have them; q, k and the cached keys are reordered
    head_dim     D, by which "interleaved" finds the heads

The README beside this file shows how to write one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from npllama.config import Config, config_from_hf
from npllama.files.checkpoint import widen
from npllama.files.npz import Reading, read_npz
from npllama.rope import halves_order

FORMAT = "npllama-golden-1"
META = "meta.json"
# Tensors whose coordinates follow the layout of RoPE's pairs.
TURNED = ("q_proj", "k_proj", "q_rope", "k_rope", "cache.k")
# A trace is read whole anyway, so its checksums cost little; a candidate that somebody
# saved with `np.savez_compressed` may take a gigabyte of memory.
CHECKED = Reading(check=True, unpack=2**30)
# How many unknown names are looked up: a search takes milliseconds.
MOST_SEARCHED = 5
# JSON takes some twenty times its size in memory; no honest description is so long.
MOST_META = 2**25


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
            D = self.meta["head_dim"]
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
        If it is not an ``.npz`` of plain arrays, if a checksum is wrong, or if its
        ``meta.json`` makes no sense.
    OSError
        If it cannot be read.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f"{path}: is a pipe or a device; a file is needed")
    archive = read_npz(path, CHECKED)
    try:
        if not archive.tensors:
            raise ValueError("there are no arrays in it")
        meta = _meta(archive.files.get(META, b"{}"))
        for name, tensor in archive.tensors.items():
            _check_name(name)
            _check_tensor(name, tensor, meta)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Trace(archive.tensors, meta)


def _check_name(name: str) -> None:
    """Raise ValueError if a file of this name would be unpacked somewhere else."""
    folders = name.replace("\\", "/").split("/")
    if ".." in folders or folders[0] == "" or ":" in name:
        raise ValueError(f"{name!r:.80} is not a name of a tensor")


def _check_tensor(name: str, tensor: np.ndarray, meta: dict[str, Any]) -> None:
    """Raise ValueError if it cannot be what its name and ``meta.json`` say."""
    if tensor.size == 0:
        raise ValueError(f"{name} is empty, of shape {tensor.shape}")
    if name in ("tokens", "u") and tensor.ndim > 2:
        raise ValueError(f"{name} is of shape {tensor.shape}; two axes are needed")
    if name == "tokens" and tensor.dtype.kind not in "iu":
        raise ValueError(f"tokens are {tensor.dtype}; integers are needed")
    if name in meta.get("stored", {}) and tensor.dtype != np.uint16:
        raise ValueError(f"{name} is {tensor.dtype}; bfloat16 is stored as uint16")
    head_dim = meta.get("head_dim")
    if head_dim and name.endswith(TURNED):
        if tensor.ndim == 0 or tensor.shape[-1] % head_dim:
            raise ValueError(
                f"{name} is of shape {tensor.shape}: no heads of {head_dim} numbers"
            )


#  ---- golden traces ----------------------------------------------------------

# Axes of the tensors of one step; S counts the positions up to the end of it.
AXES = {
    "model.embed_tokens": "BTE",
    "model.norm": "BTE",
    "lm_head": "BTV",
    "input_layernorm": "BTE",
    "self_attn.q_proj": "BTHD",
    "self_attn.k_proj": "BTKD",
    "self_attn.v_proj": "BTKD",
    "self_attn.q_rope": "BTHD",
    "self_attn.k_rope": "BTKD",
    "self_attn.scores": "BHTS",
    "self_attn.attention": "BTHD",
    "self_attn.o_proj": "BTE",
    "post_attention": "BTE",
    "post_attention_layernorm": "BTE",
    "mlp.gate_proj": "BTF",
    "mlp.up_proj": "BTF",
    "mlp.act_fn": "BTF",
    "mlp.down_proj": "BTE",
    "output": "BTE",
    "cache.k": "LBKSD",
    "cache.v": "LBKSD",
}
NAME = re.compile(r"(prefill|decode\.(\d{1,9}))/(?:model\.layers\.(\d{1,9})\.)?(.+)")


def read_golden(path: str | os.PathLike) -> Trace:
    """Open a trace that `record` wrote, and make sure that all of it is there.

    Every tensor is read once, and its checksum computed: what others are compared
    with must be beyond doubt.

    Raises
    ------
    ValueError
        As `read_trace`; also if a tensor is missing, of a shape that its config
        does not give, or not finite, or if a noise floor is missing.
    """
    trace = read_trace(path)
    if trace.meta.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not a golden trace; make one with: npllama golden record"
        )
    try:
        _check_listed(trace)
        config = config_from_hf(trace.meta.get("config", {}))
        _check_tokens(trace, config)
        for name, tensor in trace.tensors.items():
            _check_golden(name, tensor, trace, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return trace


def _check_listed(trace: Trace) -> None:
    """Raise ValueError unless ``meta.json`` lists every tensor, floors included."""
    shapes = trace.meta.get("shapes")
    if not isinstance(shapes, dict) or not shapes:
        raise ValueError(f"{META} has no list of shapes")
    for name, shape in shapes.items():
        if name not in trace:
            raise ValueError(f"tensor {name!r:.80} is missing")
        found = list(trace.tensors[name].shape)
        if found != shape:
            raise ValueError(f"tensor {name} is {found}; {META} says {shape!r:.40}")
    for name in trace:
        if name not in shapes:
            raise ValueError(f"tensor {name} is not listed in {META}")
    for dtype, floors in trace.meta.get("floor", {}).items():
        for name in trace:
            if name not in ("tokens", "u") and name not in floors:
                raise ValueError(f"{META}: {name} has no floor in {dtype!r:.40}")


def _check_tokens(trace: Trace, config: Config) -> None:
    """Raise ValueError unless these can have been the tokens of the run."""
    tokens, first = trace.get("tokens"), trace.meta.get("prompt_tokens")
    if tokens is None or tokens.ndim != 2:
        raise ValueError("it has no tokens, integers of (B, S)")
    if type(first) is not int or not 1 <= first <= tokens.shape[1]:
        raise ValueError(f"{META}: prompt_tokens is {first!r:.40}")
    if not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
        raise ValueError(f"a token is outside the vocabulary of {config.vocab_size}")


def _check_golden(name: str, tensor: np.ndarray, trace: Trace, config: Config) -> None:
    """Raise ValueError if a tensor is not as `record` writes it."""
    if name == "tokens":
        return
    dtype = "float64" if name == "u" else trace.meta.get("dtype")
    if tensor.dtype.name != dtype or dtype not in ("float32", "float64"):
        raise ValueError(f"tensor {name} is {tensor.dtype}, not {dtype!r:.40}")
    shape = golden_shape(name, trace, config)
    if name != "u" and tensor.shape != shape:
        raise ValueError(f"tensor {name} is {tensor.shape}; its config gives {shape}")
    hidden = -np.inf if name.endswith(".scores") else 0.0
    if not (np.isfinite(tensor) | (tensor == hidden)).all():
        raise ValueError(f"tensor {name} has numbers that are not finite")


def golden_shape(name: str, trace: Trace, config: Config) -> tuple[int, ...] | None:
    """The shape that a tensor of a golden trace must have; None for ``u``.

    Raises
    ------
    ValueError
        If there is no such tensor.
    """
    B, S = trace.tensors["tokens"].shape
    first, T = trace.meta["prompt_tokens"], 1
    if name == "u":
        return None
    axes = AXES.get(name) if name.startswith("cache.") else None
    if found := NAME.fullmatch(name):
        step, number, layer, module = found.groups()
        T, S = (first, first) if step == "prefill" else (1, first + int(number) + 1)
        inside = module not in ("model.embed_tokens", "model.norm", "lm_head")
        known = layer is not None and int(layer) < config.num_hidden_layers
        axes = AXES.get(module) if inside == known else None
    if axes is None or S > trace.tensors["tokens"].shape[1]:
        raise ValueError(f"tensor {name!r:.80} is not one of this model and its steps")
    size = {
        "B": B,
        "T": T,
        "S": S,
        "E": config.hidden_size,
        "F": config.intermediate_size,
        "V": config.vocab_size,
        "L": config.num_hidden_layers,
        "H": config.num_attention_heads,
        "K": config.num_key_value_heads,
        "D": config.head_dim,
    }
    return tuple(size[axis] for axis in axes)


def check_names(golden: Trace, candidate: Trace) -> None:
    """Raise ValueError if a candidate has a tensor whose name looks misspelt.

    Tensors of other names are not compared.  A misspelt one would go missing
    silently, so an unknown name is compared with the golden names that are missing.
    """
    lacking = {name.lower(): name for name in golden if name not in candidate}
    unknown = [n for n in candidate if n not in golden and not _is_name(n)]
    for name in unknown[:MOST_SEARCHED]:
        near = difflib.get_close_matches(name[:200].lower(), lacking, n=1, cutoff=0.85)
        if near:
            right = lacking[near[0]]
            raise ValueError(f"no tensor is called {name!r:.80}; is it {right!r}?")


def _is_name(name: str) -> bool:
    """Whether a trace of some model could have a tensor of this name."""
    found = NAME.fullmatch(name)
    return name in ("tokens", "u") or (found.group(4) if found else name) in AXES


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
    if len(text) > MOST_META:
        raise ValueError(f"{META}: {len(text)} bytes; {MOST_META} are the most")
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
    if layout == "interleaved" and "head_dim" not in meta:
        raise ValueError(f'{META}: rope_layout "interleaved" needs head_dim')
    for name, dtype in meta.get("stored", {}).items():
        if dtype != "bfloat16":
            raise ValueError(
                f"{META}: {name!r:.80} is stored as {dtype!r:.40}; bfloat16 is known"
            )
    for dtype, floors in meta.get("floor", {}).items():
        _check_floors(dtype, floors)
    return meta


def _check_floors(dtype: str, floors: Any) -> None:
    """Raise ValueError unless these are {name: {"rms": number >= 0}}."""
    entries = floors.values() if isinstance(floors, dict) else [None]
    for entry in entries:
        rms = entry.get("rms") if isinstance(entry, dict) else None
        number = type(rms) in (int, float)
        if not number or not 0 <= rms <= sys.float_info.max:
            raise ValueError(f"{META}: the floor of {dtype!r:.40} is damaged")
