"""Weights in 4 bits beside the same shape in float32: speed and memory.

    python tools/packed_speed.py                      110M and 1.1B
    python tools/packed_speed.py --sizes 7b --packed  only in 4 bits, for the memory

Weights are random, in groups of 64.  Every measurement runs in a process of its own,
the two kinds in turn; of each the best round is told: a prompt, then tokens one by one,
and the largest resident memory, with all pages of the file that were touched.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from npllama.bench.random_model import random_tensors
from npllama.cache import new_cache
from npllama.cli.timing import peak_memory_mb
from npllama.compression.packed import byte_table
from npllama.config import Config, preset
from npllama.files.checkpoint import load, save
from npllama.files.packed import Packed
from npllama.model import forward
from npllama.weights import tensor_shapes

SIZES = {
    "15m": "stories15m",
    "110m": "stories110m",
    "1.1b": "tinyllama-1.1b",
    "7b": "llama-2-7b",
}
GROUP = 64


def packed_tensors(config: Config) -> Iterator[tuple[str, np.ndarray | Packed]]:
    """Random codes for all matrices of the blocks, random floats for the rest."""
    rng = np.random.default_rng(0)
    table = byte_table(np.arange(16) - 8, 4)
    for name, (C, *rest) in tensor_shapes(config).items():
        if not rest:
            yield name, np.ones(C, dtype=np.float32)
        elif "proj" not in name:
            yield name, 0.02 * rng.standard_normal((C, *rest), dtype=np.float32)
        else:
            (S,) = rest
            codes = rng.integers(0, 256, (C, S // 2), dtype=np.uint8)
            scale = np.full((C, -(-S // GROUP)), 0.005, dtype=np.float16)
            yield name, Packed("int4", GROUP, codes, scale, None, None, table, (C, S))


def measure(path: str, prompt: int, steps: int, cpu: bool) -> dict[str, float]:
    """Read a prompt and then one token after another; in this process."""
    clock = time.process_time if cpu else time.perf_counter
    model = load(path)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, prompt))
    cache = new_cache(model.config, 1, prompt + steps)
    begin = clock()
    forward(model, tokens, cache, last=True)
    spent = clock() - begin
    times = []
    for _ in range(steps):
        begin = clock()
        forward(model, tokens[:, :1], cache, last=True)
        times.append(clock() - begin)
    return {
        "prompt": prompt / spent,
        "decode": 1 / float(np.median(times)),
        "peak_mb": peak_memory_mb() or float("nan"),
    }


def in_a_process(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """The same, where nothing else has touched memory."""
    words = ["--measure", str(path), str(options.prompt), str(options.steps)]
    words += ["--cpu"] if options.cpu else []
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, check=True, text=True
    )
    return json.loads(done.stdout)


def run(size: str, folder: Path, options: argparse.Namespace) -> None:
    """Write the models of a size, measure them in turn, and print a line for each."""
    config, makers = preset(SIZES[size]), {"int4": packed_tensors}
    if not options.packed:
        makers["float32"] = random_tensors
    paths = {kind: folder / f"{size}-{kind}.npz" for kind in makers}
    for kind, make in makers.items():
        save(paths[kind], config, make(config))
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in makers}
    for _ in range(options.rounds):
        for kind, path in paths.items():
            found[kind].append(in_a_process(path, options))
    for kind, path in paths.items():
        best = {name: max(f[name] for f in found[kind]) for name in found[kind][0]}
        print(
            f"{size:>5} {kind:>8}  file {path.stat().st_size / 1e6:7.0f} MB  "
            f"peak {best['peak_mb'] * 2**20 / 1e6:6.0f} MB  "
            f"prompt of {options.prompt} {best['prompt']:7.1f} tokens/s  "
            f"decode {best['decode']:7.2f} tokens/s",
            flush=True,
        )
        path.unlink()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--sizes", nargs="+", choices=SIZES, default=["110m", "1.1b"])
    option("--packed", action="store_true", help="no float32")
    option("--prompt", type=int, default=256, metavar="N", help="tokens (default: 256)")
    option("--steps", type=int, default=16, metavar="N", help="tokens (default: 16)")
    option("--rounds", type=int, default=3, metavar="N", help="(default: 3)")
    option(
        "--cpu",
        action="store_true",
        help="the processor's time, not the clock's: on a busy machine, with one "
        "thread of BLAS (OPENBLAS_NUM_THREADS=1)",
    )
    option("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        path, prompt, steps = options.measure
        print(json.dumps(measure(path, int(prompt), int(steps), options.cpu)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            run(size, Path(folder), options)


if __name__ == "__main__":
    main()
