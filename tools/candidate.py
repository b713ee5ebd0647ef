"""Run another backend on the tokens of a golden trace, and write what it computes.

    npllama golden record stories --prompt "Once upon a time" -o golden.npz
    python tools/candidate.py transformers stories --golden golden.npz -o candidate.npz
    npllama golden compare golden.npz candidate.npz --weights stories

BACKEND is one of

    transformers   forward hooks: every tensor; float32, bfloat16, float16
    jax            tools/candidates/jax_llama.py: every tensor; float32, bfloat16
    llama.cpp      through llama-cpp-python and a GGUF file: logits; float32
    onnx           ONNX Runtime on an exported graph, given for MODEL: logits

and needs what its name says, nothing else of the list.  MODEL is the ``.npz`` that the
golden trace was recorded from, or the name of a model that ships with npllama.  The
tokens are the golden trace's: the backend runs the prompt at once and then a token at
a time, and chooses none itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from candidates.text import text_of  # noqa: E402

from npllama.files.checkpoint import load, locate  # noqa: E402
from npllama.files.npz import write_array, write_text, writing  # noqa: E402
from npllama.files.whole import check_place  # noqa: E402
from npllama.golden.trace import META, read_golden  # noqa: E402

# Module of each backend, and the distribution whose version is written down.
BACKENDS = {
    "transformers": ("transformers_hooks", "transformers"),
    "jax": ("jax_llama", "jax"),
    "llama.cpp": ("llamacpp", "llama-cpp-python"),
    "onnx": ("onnx_graph", "onnxruntime"),
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


def candidate(backend: str, source: str, golden: Path, out: Path, dtype: str) -> int:
    """Run a backend on a golden trace's tokens and write its tensors to `out`.

    Raises
    ------
    ValueError
        If the golden trace, the model or the dtype cannot be used.
    OSError
        If a file cannot be read or written.
    ImportError
        If the backend is not installed.
    """
    module, distribution = BACKENDS[backend]
    run = import_module(f"candidates.{module}").run
    place = Path(source) if backend == "onnx" else locate(source)
    check_place(out, {"the golden trace": golden, "the model": place})
    trace = read_golden(golden)
    text = text_of(trace)
    model = place if backend == "onnx" else load(place)
    meta = {
        "producer": f"{distribution} {version(distribution)}",
        "dtype": dtype,
        "rope_layout": "half",
    }
    return write(out, run(model, text, dtype), meta, trace, text.tokens)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 1, and a line that says why, if the backend cannot run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backend", choices=BACKENDS, metavar="BACKEND")
    parser.add_argument("model", metavar="MODEL", help=".npz or shipped name; .onnx")
    parser.add_argument("--golden", type=Path, required=True, metavar="GOLDEN.npz")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.npz")
    args = parser.parse_args(argv)
    try:
        count = candidate(
            args.backend, args.model, args.golden, args.output, args.dtype
        )
    except (ImportError, PackageNotFoundError) as error:
        print(f"candidate: {args.backend} is not installed: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"candidate: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {count} tensors of {args.backend} in {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
