r"""LoRA: a fine-tune kept as small differences, merged into the weights.

LoRA changes a weight by a matrix of low rank R.  Only its two thin factors are trained
and kept, and merging adds their product:

$$W' = W + s\,B A, \qquad s = \alpha / R \;\text{ or, rank-stabilised, }\;
\alpha / \sqrt{R}$$

DoRA also gives every row of the result a length m of its own:
$W'_c \cdot m_c / \lVert W'_c \rVert$.  For an embedding, which is used by columns,
the factors are transposed and the lengths belong to columns.

An adapter may also contain whole tensors (``modules_to_save``, biases), which replace
those of the model.  If the output layer is tied to the embedding and an adapter changes
one of them, the other does not change, so the two are no longer tied.  PEFT does the
same when it applies an adapter without merging.  With ``ensure_weight_tying`` both
change, and PEFT saves factors for both.

The merge is computed in float32 and rounded once, when it is written; PEFT computes
in the dtype of the weights.

References
----------
Hu et al. 2021, arXiv:2106.09685 (LoRA); Kalajdzievski 2023, arXiv:2312.03732
(rank-stabilised); Liu et al. 2024, arXiv:2402.09353 (DoRA).  The files: PEFT,
docs/source/developer_guides/checkpoint.md.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.convert import pytorch, safetensors
from npllama.convert.source import Checkpoint, Tensor, read_json, tensors_of
from npllama.files.checkpoint import STORED, widen
from npllama.ops import einsum
from npllama.weights import tensor_shapes

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PREFIX = "base_model.model."
LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
LENGTHS = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
# Settings under which the factors mean something else.
OTHERWISE = (
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# Initialisations that subtract the first factors from the weights.
RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Factors(NamedTuple):
    """What an adapter has for one weight."""

    a: Tensor  # (R, E) for a linear layer, (R, V) for an embedding
    b: Tensor  # (F, R), (E, R)
    lengths: Tensor | None  # of DoRA: (F,), (E,)
    scale: float
    embedding: bool


def merged(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with the adapter of a folder merged into it.

    Raises
    ------
    ValueError
        If the adapter is not a LoRA, or does not fit the model.
    OSError
        If a file cannot be read.
    """
    settings_path = folder / "adapter_config.json"
    settings = read_json(settings_path)
    tensors = adapter_tensors(folder)
    try:
        check_settings(settings)
        checkpoint = _untied(checkpoint, tensors, settings)
        every, changed = _merge(checkpoint, tensors, settings)
    except ValueError as error:
        raise ValueError(f"{settings_path.parent}: {error}") from None
    rows = every[EMBED].shape[0] if EMBED in every else checkpoint.config.vocab_size
    ranks = f"rank {settings.get('r')}, alpha {settings.get('lora_alpha')}"
    line = f"merged with the adapter {folder.resolve().name}: {ranks}, {tensors_of(changed)}"
    used = list(dict.fromkeys(tensor.file for tensor in tensors.values()))
    return checkpoint._replace(
        config=replace(checkpoint.config, vocab_size=rows),
        tensors=every,
        sources=[*checkpoint.sources, settings_path, *used],
        lost=[*checkpoint.lost, line],
    )


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors, under the names of the model's modules."""
    if (folder / "adapter_model.safetensors").exists():
        found = safetensors.open_file(folder / "adapter_model.safetensors")
    elif (folder / "adapter_model.bin").exists():
        found = pytorch.open_file(folder / "adapter_model.bin")
    else:
        raise ValueError(f"{folder}: no adapter_model.safetensors or adapter_model.bin")
    for name, tensor in found.items():
        if tensor.dtype not in STORED:
            raise ValueError(f"{tensor.file}: {name}: dtype {tensor.dtype}")
    # PEFT names a whole tensor of a layer that LoRA wraps after its base layer.
    plain = (name.replace(".base_layer.", ".") for name in found)
    return dict(zip((name.removeprefix(PREFIX) for name in plain), found.values()))


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError for an adapter whose factors mean something else."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"peft_type is {kind!r:.80}; only 'LORA' is read")
    for key in OTHERWISE:
        if settings.get(key):
            raise ValueError(
                f"{key} is {settings[key]!r:.80}; it is not understood here"
            )
    begin = str(settings.get("init_lora_weights", True)).lower()
    if begin.startswith(RESIDUAL):
        raise ValueError(
            f"init_lora_weights is {begin!r:.80}, which changed the weights before "
            "training; save the adapter as an ordinary LoRA"
        )


def _untied(
    checkpoint: Checkpoint, tensors: dict[str, Tensor], settings: dict[str, Any]
) -> Checkpoint:
    """Give the output layer a tensor of its own if the adapter changes one of two."""
    stems = ["lm_head."]
    if not settings.get("ensure_weight_tying"):
        stems.append("model.embed_tokens.")
    touched = any(name.startswith(tuple(stems)) for name in tensors)
    if not (checkpoint.config.tie_word_embeddings and touched):
        return checkpoint
    both = checkpoint.tensors | {HEAD: checkpoint.tensors[EMBED]}
    config = replace(checkpoint.config, tie_word_embeddings=False)
    return checkpoint._replace(config=config, tensors=both)


def _merge(
    checkpoint: Checkpoint, tensors: dict[str, Tensor], settings: dict[str, Any]
) -> tuple[dict[str, Tensor], int]:
    """All tensors of the model, and how many of them the adapter changed."""
    rest, every, changed = dict(tensors), dict(checkpoint.tensors), 0
    for name in tensor_shapes(checkpoint.config):
        stem = name.removesuffix(".weight")
        whole = rest.pop(name, None)
        if whole is not None:
            every[name] = whole
        found = take_factors(rest, stem, settings)
        if found is not None:
            every[name] = _with(every, name, found)
        changed += whole is not None or found is not None
    if rest:
        raise ValueError(
            f"{min(rest)}: no part of a LoRA, or not of a LLaMA of this config"
        )
    if not changed:
        raise ValueError("no tensor of the model is changed by it")
    return every, changed


def take_factors(
    rest: dict[str, Tensor], stem: str, settings: dict[str, Any]
) -> Factors | None:
    """Take what belongs to one module out of `rest`."""
    for a_name, b_name in (LINEAR, EMBEDDING):
        a = rest.pop(f"{stem}.{a_name}", None)
        b = rest.pop(f"{stem}.{b_name}", None)
        if a is None and b is None:
            continue
        if a is None or b is None or len(a.shape) != 2:
            raise ValueError(f"{stem}: one of {a_name} and {b_name} is missing")
        lengths = [rest.pop(f"{stem}.{name}", None) for name in LENGTHS]
        m = next((t for t in lengths if t is not None), None)
        if (m is not None) != bool(settings.get("use_dora")):
            raise ValueError(f"{stem}: use_dora and lora_magnitude_vector disagree")
        scale = scaling(settings, stem, a.shape[0])
        return Factors(a, b, m, scale, a_name == EMBEDDING[0])
    return None


def scaling(settings: dict[str, Any], module: str, rank: int) -> float:
    """The factor on the product of a module: alpha / R, or alpha / sqrt(R).

    `rank_pattern` and `alpha_pattern` give modules numbers of their own.
    """
    told = _own(settings, "rank_pattern", module, settings.get("r", 8))
    alpha = _own(settings, "alpha_pattern", module, settings.get("lora_alpha", 8))
    if told != rank or rank < 1:
        raise ValueError(
            f"{module}: rank {rank}; adapter_config.json says {told!r:.80}"
        )
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise ValueError(f"{module}: lora_alpha {alpha!r:.80} is not a number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def may_not_end(pattern: str) -> bool:
    """Whether a regular expression may try too many ways to match a name.

    The ways multiply with every repetition and every group, so a few of both are
    allowed, as in ``^.*layers\\.(0|1)\\..*q_proj$``.
    """
    repeated, groups = len(re.findall(r"[*+?{]", pattern)), pattern.count("(")
    again = re.search(r"\)[*+{]", pattern)
    return bool(again) or repeated > 4 or groups > 4 or len(pattern) > 200


def _own(settings: dict[str, Any], key: str, module: str, default: Any) -> Any:
    """A module's own value, by the first pattern that its name ends in."""
    patterns = settings.get(key) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{key} is {patterns!r:.80}, not an object")
    for pattern, value in patterns.items():
        if may_not_end(pattern):
            raise ValueError(f"{key}: {pattern!r:.80} may take for ever to match")
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ValueError(
                f"{key}: {pattern!r:.80} is not a pattern: {error}"
            ) from None
    return default


def _with(every: dict[str, Tensor], name: str, factors: Factors) -> Tensor:
    """The tensor `name` with factors merged into it when it is read."""
    base = every.get(name)
    if base is None:
        raise ValueError(f"{name}: the model has none")
    rows, columns = base.shape[::-1] if factors.embedding else base.shape
    rank = factors.a.shape[0]
    if factors.a.shape != (rank, columns) or factors.b.shape != (rows, rank):
        raise ValueError(
            f"{name}: factors {factors.b.shape} and {factors.a.shape} do not make "
            f"{(rows, columns)}"
        )
    if factors.lengths is not None and math.prod(factors.lengths.shape) != rows:
        raise ValueError(f"{name}: {factors.lengths.shape} lengths for {rows} rows")
    return base._replace(dtype="float32", read=partial(_read, base, factors))


def _read(base: Tensor, factors: Factors) -> np.ndarray:
    w = read_float32(base)
    w = w.T if factors.embedding else w
    m = None if factors.lengths is None else read_float32(factors.lengths).reshape(-1)
    y = merge(w, read_float32(factors.a), read_float32(factors.b), factors.scale, m)
    return np.ascontiguousarray(y.T if factors.embedding else y)


def read_float32(tensor: Tensor) -> np.ndarray:
    return widen(tensor.read(), tensor.dtype, "float32")


def merge(
    w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float, m: np.ndarray | None
) -> np.ndarray:
    """Add a product of two thin matrices; then scale the rows to lengths, if given.

    Parameters
    ----------
    w : (F, E) float32
        Any weight; F are its outputs, E its inputs.
    a : (R, E) float32
    b : (F, R) float32
    scale : float
    m : (F,) float32, or None

    Returns
    -------
    (F, E) float32
    """
    y = w + einsum("FR,RE->FE", b, a, "lora") * scale
    if m is not None:
        y *= (m / np.linalg.norm(y, axis=1))[:, None]
    return y
