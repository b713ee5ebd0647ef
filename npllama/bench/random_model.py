"""A model to measure: the shape of a preset, the weights at random."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from npllama.bench.processes import Failure
from npllama.config import Config
from npllama.files.checkpoint import save
from npllama.weights import tensor_shapes


def random_tensors(config: Config) -> Iterator[tuple[str, np.ndarray]]:
    """Weights small enough that numbers stay in range, one tensor at a time."""
    rng = np.random.default_rng(0)
    for name, shape in tensor_shapes(config).items():
        tensor = rng.standard_normal(shape, dtype=np.float32)
        tensor *= 0.02
        yield name, tensor + 1 if len(shape) == 1 else tensor


def write_model(config: Config, path: Path, copies: int) -> int:
    """Write the model, return its number of parameters.

    Raises
    ------
    Failure
        If the disk has no room for as many copies as the peers will make.
    """
    count = sum(int(np.prod(shape)) for shape in tensor_shapes(config).values())
    need, free = 4 * count * copies, shutil.disk_usage(path.parent).free
    if need > free:
        raise Failure(
            f"{path.parent} has {free / 1e9:.1f} GB free and {need / 1e9:.1f} GB are "
            "needed; set TMPDIR to a larger folder"
        )
    save(path, config, random_tensors(config))
    return count
