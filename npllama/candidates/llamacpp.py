"""llama.cpp, through llama-cpp-python: logits only.

The weights are written as a GGUF file in float32 and evaluated with a cache in float32.
llama.cpp computes in another layout and in another order, and does not show what it
computes inside.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from npllama.candidates.gguf_file import write_gguf
from npllama.candidates.text import Named, Text, named_weights
from npllama.weights import Model

DTYPES = ("float32",)


def opened(path: Path, capacity: int):
    """A GGUF file as a model of llama.cpp that keeps the logits of every position."""
    import llama_cpp

    float32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        str(path),
        n_ctx=max(capacity, 256),  # llama.cpp rounds up to that
        n_threads=1,
        logits_all=True,
        type_k=float32,
        type_v=float32,
        verbose=False,
    )


def evaluate(model, tokens: np.ndarray) -> np.ndarray:
    """Logits of the next tokens of a text, (T, V) float32."""
    first = model.n_tokens
    model.eval(tokens.tolist())
    return np.array(model.scores[first : model.n_tokens], dtype=np.float32)


def run(model: Model, text: Text, dtype: str = "float32") -> Named:
    """The logits of llama.cpp with these weights, step by step.

    Yields
    ------
    (name, array) pairs, one per step

    Raises
    ------
    ValueError
        If `dtype` is not float32, or llama.cpp cannot compute this config.
    """
    if dtype not in DTYPES:
        raise ValueError(f"llama.cpp is run in float32 here, not in {dtype!r}")
    B, S = text.tokens.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, model.config, named_weights(model))
        rows = [opened(path, S) for _ in range(B)]
        for step, tokens in text.pieces():
            logits = [evaluate(row, part) for row, part in zip(rows, tokens)]
            yield f"{step.name}/lm_head", np.stack(logits)
