"""A backend's tensors on the tokens of a golden trace, written as a candidate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np

from npllama.candidates.text import Named, text_of
from npllama.files.checkpoint import load, locate
from npllama.files.npz import write_array, write_text, writing
from npllama.files.whole import check_place
from npllama.golden.trace import META, read_golden

# Module of each backend, the distribution whose version is written down, and what pip
# installs for it.
BACKENDS = {
    "transformers": ("transformers_hooks", "transformers", "torch transformers"),
    "jax": ("jax_llama", "jax", "jax"),
    "llama.cpp": ("llamacpp", "llama-cpp-python", "llama-cpp-python gguf"),
    "onnx": ("onnx_graph", "onnxruntime", "onnxruntime"),
}
DTYPES = ("float32", "bfloat16", "float16")


def write(
    path: Path,
    named: Iterable[tuple[str, np.ndarray]],
    meta: dict,
    wanted: Iterable[str],
    tokens: np.ndarray,
) -> int:
    """Write those tensors that the golden trace has too, one at a time.

    Returns
    -------
    int
        How many were written, the tokens not counted.
    """
    wanted, count = set(wanted), 0
    with writing(path) as archive:
        for name, array in named:
            if name in wanted:
                write_array(archive, name, array)
                count += 1
        write_array(archive, "tokens", tokens)
        write_text(archive, META, json.dumps(meta))
    return count


def backend_of(name: str) -> tuple[Callable[..., Named], str]:
    """How a backend is run, and its name with its version.

    Raises
    ------
    ImportError
        If it is not installed; the message says what to install.
    """
    module, distribution, packages = BACKENDS[name]
    try:
        producer = f"{distribution} {version(distribution)}"
        return import_module(f"npllama.candidates.{module}").run, producer
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed: pip install {packages} ({error})"
        ) from None


def candidate(backend: str, source: str, golden: Path, out: Path, dtype: str) -> int:
    """Run a backend on a golden trace's tokens and write its tensors to `out`.

    Raises
    ------
    ValueError
        If the golden trace, the model or the dtype cannot be used.
    OSError
        If a file cannot be read or written.
    ImportError
        If the backend is not installed; the message says what to install.
    """
    place = Path(source) if backend == "onnx" else locate(source)
    check_place(out, {"the golden trace": golden, "the model": place})
    trace = read_golden(golden)
    text = text_of(trace)
    run, producer = backend_of(backend)
    model = place if backend == "onnx" else load(place)
    meta = {
        "producer": producer,
        "dtype": dtype,
        "rope_layout": "half",
    }
    return write(out, run(model, text, dtype), meta, trace, text.tokens)
