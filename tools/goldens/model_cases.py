"""The configurations that the forward pass is held to transformers on.

Needs NumPy and npllama only: weights and tokens come from seeds, so a golden file
stores answers alone.  Every option of a LLaMA's config is in some case, in both
spellings, with sizes that are pairwise different, gains and biases that matter, and
positions far beyond the trained length where RoPE is scaled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from npllama.config import Config, config_from_hf
from npllama.weights import Model, assemble, tensor_shapes

# Row 0 is full, row 1 shorter: the batch is ragged.
LENGTHS = (48, 31)
# Positions whose logits are stored.
STORED = (0, 7, 19, 20, 30, 47)
LONG = 2600
STORED_LONG = (0, 600, LONG - 1)
# Every text is run at once, in chunks, and as 20 tokens and then one by one.
RUNS = ("whole", "chunks", "steps")
CHUNK, FIRST_PART = 7, 20
# Greedy continuations start from this many tokens of row 0.
PROMPT, GREEDY_TOKENS = 5, 200
# Random models love to repeat one token, and now and then two tokens tie.  So the
# texts come from other weights: of each case the first, counted from 0, whose text
# keeps its variety to the end and whose choices are all clear.
GREEDY_SEEDS = {
    "gqa": 31,
    "mha": 3,
    "mqa": 20,
    "attention_bias": 83,
    "mlp_bias": 2,
    "all_biases_tied": 3,
    "odd_sizes": 7,
    "codellama": 1,
    "linear": 10,
    "dynamic": 27,
    "llama3.1": 12,
    "yarn": 0,
}


class Case(NamedTuple):
    """A config as it stands in a config.json, and whether its text is long."""

    name: str
    config: dict[str, Any]
    long: bool = False


BASE: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _rope(kind: str, theta: float = 10000.0, **more) -> dict[str, Any]:
    """RoPE as transformers 5 spells it."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def _old_rope(kind: str, theta: float = 10000.0, key="rope_type", **more):
    """RoPE as transformers 4 spells it."""
    return {"rope_theta": theta, "rope_scaling": {key: kind, **more}}


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
# Narrower heads have no pair between the slowed and the unslowed ones.
YARN_SIZES = {"head_dim": 32, "max_position_embeddings": 128}


def _yarn(theta: float = 10000.0, **more) -> dict[str, Any]:
    return {**_rope("yarn", theta, **{**YARN, **more}), **YARN_SIZES}


_CHANGES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 6},
    "mqa": {"num_key_value_heads": 1},
    "head_dim_by_division": {"head_dim": None, "hidden_size": 48},
    "wide_heads": {"head_dim": 16},
    "narrow_heads": {"head_dim": 2, "num_attention_heads": 6},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "all_biases_tied": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "eps_1e-6": {"rms_norm_eps": 1e-6},
    "eps_1e-2": {"rms_norm_eps": 1e-2},
    "one_layer": {"num_hidden_layers": 1},
    "odd_sizes": {
        "vocab_size": 41,
        "hidden_size": 35,
        "intermediate_size": 29,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 6,
        "num_hidden_layers": 3,
    },
    "five_layers": {"num_hidden_layers": 5},
    "several_eos": {"eos_token_id": [2, 5, 7]},
    "llama1": {"num_key_value_heads": None, "rms_norm_eps": 1e-6, "rope_theta": 1e4},
    "codellama": {"rope_theta": 1e6},
    "llama3": _rope("default", 5e5),
    "ratios_of_405b": {
        "hidden_size": 64,
        "num_attention_heads": 16,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": 208,
    },
    "linear": _rope("linear", factor=4.0),
    "linear_old": _old_rope("linear", key="type", factor=2.5),
    "dynamic": {**_rope("dynamic", factor=3.0), "max_position_embeddings": 16},
    "dynamic_old": {**_old_rope("dynamic", factor=2.0), "max_position_embeddings": 24},
    "llama3.1": _rope("llama3", 5e5, **LLAMA3),
    "llama3.1_old": _old_rope("llama3", 5e5, **LLAMA3),
    "llama3.2": {
        **_rope("llama3", 5e5, **{**LLAMA3, "factor": 32.0}),
        "tie_word_embeddings": True,
        "head_dim": 16,
    },
    "yarn": _yarn(),
    "yarn_old": {**_old_rope("yarn", key="type", **YARN), **YARN_SIZES},
    "yarn_not_truncated": _yarn(truncate=False),
    "yarn_factor_inferred": _yarn(factor=None),
    "yarn_attention_factor": _yarn(attention_factor=1.3),
    "yarn_mscale": _yarn(mscale=1.5, mscale_all_dim=0.7),
    "yarn_betas": _yarn(500.0, beta_fast=2.0, beta_slow=0.5),
}

CASES = [Case(name, {**BASE, **change}) for name, change in _CHANGES.items()] + [
    Case(
        f"long_{kind}",
        {**BASE, "num_hidden_layers": 1, "max_position_embeddings": LONG, **change},
        long=True,
    )
    for kind, change in {
        "default": {},
        "llama3": _rope(
            "llama3", 5e5, **{**LLAMA3, "original_max_position_embeddings": 512}
        ),
    }.items()
]


GREEDY_CASES = [
    case._replace(name=f"{case.name} greedy {GREEDY_SEEDS[case.name]}")
    for case in CASES
    if case.name in GREEDY_SEEDS
]


def config_of(case: Case) -> Config:
    """The config as npllama reads it."""
    return config_from_hf(case.config)


def tensors_of(case: Case, dtype: str) -> dict[str, np.ndarray]:
    """Random weights; rounded to float32 first, so that both dtypes have the same."""
    rng = np.random.default_rng(list(case.name.encode()))
    tensors = {}
    for name, shape in tensor_shapes(config_of(case)).items():
        # Scaled so that attention is far from uniform; gains around one.
        spread = 0.3 if len(shape) == 1 else 1.3 / np.sqrt(shape[-1])
        values = rng.normal(size=shape) * spread
        values += 1.0 if name.endswith("norm.weight") else 0.0
        tensors[name] = values.astype(np.float32).astype(dtype)
    return tensors


def model_of(case: Case, dtype: str = "float32") -> Model:
    """The model for npllama."""
    return assemble(config_of(case), tensors_of(case, dtype))


def tokens_of(case: Case) -> np.ndarray:
    """(2, 48) token ids, or (1, 2600) of a long case."""
    rng = np.random.default_rng(7)
    shape = (1, LONG) if case.long else (2, LENGTHS[0])
    return rng.integers(0, case.config["vocab_size"], shape)


def lengths_of(case: Case) -> tuple[int, ...]:
    """Real tokens of each row."""
    return (LONG,) if case.long else LENGTHS


def runs_of(case: Case) -> tuple[str, ...]:
    """How the case's texts are run; the long ones at once only."""
    return RUNS[:1] if case.long else RUNS


def stored(case: Case, length: int) -> list[int]:
    """Positions whose logits are stored, of a row of this length."""
    return [t for t in (STORED_LONG if case.long else STORED) if t < length]


def pieces(run: str, T: int) -> list[slice]:
    """How a text of T tokens is cut when it is run."""
    starts = {
        "whole": [0],
        "chunks": list(range(0, T, CHUNK)),
        "steps": [0, *range(FIRST_PART, T)],
    }[run]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], T])]
