"""The configurations and passes whose FLOPs are compared with torch's count.

Needs NumPy and npllama only.
"""

from __future__ import annotations

from . import model_cases

NAMES = (
    "gqa",
    "mha",
    "mqa",
    "head_dim_by_division",
    "wide_heads",
    "narrow_heads",
    "tied",
    "attention_bias",
    "mlp_bias",
    "all_biases_tied",
    "one_layer",
    "odd_sizes",
    "five_layers",
    "ratios_of_405b",
    "llama3.2",
)
CASES = [case for case in model_cases.CASES if case.name in NAMES]
BATCHES = (1, 3)
# New positions of each pass: a prompt, two steps of decode, two more chunks.
PASSES = (13, 1, 1, 7, 4)
KINDS = ("eager", "sdpa", "math")
COMPONENTS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "attention",  # scores and values
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "lm_head",
    "all",
)
