"""Record the logits of llama.cpp, a third truth beside transformers and the loops.

A model of `model_cases` is written as a GGUF file in float32 and evaluated through
llama-cpp-python, its cache in float32 too.  llama.cpp computes in another layout
(RoPE turns neighbours, so the rows of q and k are permuted), in another order, and
partly with approximations of its own, so agreement is coarser than with
transformers, though only just: about 1e-6 of the logits' range.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from npllama.candidates.gguf_file import write_gguf

from .model_cases import CASES, Case, config_of, tensors_of, tokens_of

FILE = "model_llamacpp.npz"
# One prefill, then token by token through the cache.
PREFILL = 20
RECORDED = ("mha", "gqa", "mqa", "wide_heads", "all_biases_tied", "linear", "yarn")


def logits(case: Case, folder: Path) -> np.ndarray:
    """Logits of the first row, at every position, as (T, V) float32."""
    path = folder / f"{case.name}.gguf"
    write_gguf(path, config_of(case), tensors_of(case, "float32"))
    tokens = tokens_of(case)[0].tolist()
    float32 = llama_cpp.GGML_TYPE_F32
    model = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_threads=1,
        logits_all=True,
        type_k=float32,
        type_v=float32,
        verbose=False,
    )
    model.eval(tokens[:PREFILL])
    for token in tokens[PREFILL:]:
        model.eval([token])
    return np.array(model.scores[: len(tokens)], dtype=np.float32)


def make(folder: Path) -> None:
    """Write model_llamacpp.npz into `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        golden = {
            case.name: logits(case, Path(scratch))
            for case in CASES
            if case.name in RECORDED
        }
    path = Path(folder) / FILE
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(golden)} models, {llama_cpp.__version__}")
