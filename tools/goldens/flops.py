"""Record what torch's own counter says of transformers' LLaMA.

`FlopCounterMode` sees the operators that run (``aten.mm``, ``aten.bmm`` ...) and has
a formula for each that it knows.  Attention is run in three ways: "eager", plain
products; "sdpa", torch's fused function with the kernel that it chooses on a CPU; and
"math", the same function made of plain products.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from .flops_cases import BATCHES, CASES, COMPONENTS, KINDS, PASSES
from .model_cases import Case

FILE = "flops.npz"


def flops(counts: dict, suffix: str) -> int:
    """FLOPs of all operators inside the modules whose names end so."""
    found = [sum(ops.values()) for name, ops in counts.items() if name.endswith(suffix)]
    return sum(found)


def row(counts: dict) -> list[int]:
    """FLOPs by component; attention is what its module does besides projecting."""
    parts = {name: flops(counts, name) for name in COMPONENTS}
    projections = sum(parts[f"{name}_proj"] for name in "qkvo")
    parts["attention"] = flops(counts, ".self_attn") - projections
    parts["all"] = flops(counts, "Global")
    return [parts[name] for name in COMPONENTS]


@torch.no_grad()
def counted(case: Case, batch: int, kind: str) -> np.ndarray:
    """FLOPs of one pass after the other, after what was cached before.

    Returns
    -------
    (passes, components) int64
    """
    name = "eager" if kind == "eager" else "sdpa"
    model = LlamaForCausalLM(LlamaConfig(**case.config, attn_implementation=name))
    model.eval()
    cache, rows = None, []
    for new in PASSES:
        tokens = torch.zeros((batch, new), dtype=torch.long)
        plain = sdpa_kernel(SDPBackend.MATH) if kind == "math" else nullcontext()
        with FlopCounterMode(display=False) as mode, plain:
            cache = model(tokens, past_key_values=cache, use_cache=True).past_key_values
        rows.append(row(mode.get_flop_counts()))
    return np.array(rows, dtype=np.int64)


def make(folder: Path) -> None:
    """Write flops.npz into `folder`."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    golden = {
        kind: np.stack([[counted(case, b, kind) for b in BATCHES] for case in CASES])
        for kind in KINDS
    }
    path = Path(folder) / FILE
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(CASES)} configurations, torch {torch.__version__}")
