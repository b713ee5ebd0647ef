"""Golden traces of small models, and what the comparison says of a candidate."""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from npllama.candidates.text import Text, text_of
from npllama.config import Config, Rope
from npllama.files.checkpoint import load
from npllama.golden.compare import compare
from npllama.golden.diagnose import diagnose
from npllama.golden.record import Wanted, record
from npllama.golden.scene import Scene
from npllama.golden.trace import read_golden
from npllama.weights import Model, assemble, tensor_shapes

PROMPT, NEW = 20, 4
GQA = Config(97, 48, 80, 3, 6, 2, 8, max_position_embeddings=64, rms_norm_eps=1e-5)
CONFIGS = {
    "mha": replace(GQA, num_key_value_heads=6, head_dim=10),
    "gqa": GQA,
    # llama3 scaling from 16 positions on, so that these few tokens feel it
    "mqa": replace(
        GQA,
        num_key_value_heads=1,
        rope=Rope("llama3", 5e5, 8.0, 16, 1.0, 4.0),
        tie_word_embeddings=True,
    ),
}


def random_tensors(config, seed=0):
    """Weights as large as trained ones: small embeddings, gains that are not one."""
    rng = np.random.default_rng(seed)
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            w = 1 + 0.3 * rng.standard_normal(shape)
        elif "embed" in name:
            w = 0.02 * rng.standard_normal(shape)
        else:
            w = rng.standard_normal(shape) / np.sqrt(shape[-1])
        yield name, w.astype(np.float32)


class Run(NamedTuple):
    """A model in both precisions, and its golden trace."""

    model: Model  # float32
    exact: Model  # float64
    golden: dict
    text: Text


@lru_cache
def models(name, seed=0):
    """A shipped model, or one of `CONFIGS` at random, in float32 and float64."""
    if name not in CONFIGS:
        return load(name), load(name, "float64")
    weights = dict(random_tensors(CONFIGS[name], seed))
    wide = {n: w.astype(np.float64) for n, w in weights.items()}
    return assemble(CONFIGS[name], weights), assemble(CONFIGS[name], wide)


def recorded(folder, name, seed=0, scores=True):
    """Record a golden trace of a random prompt."""
    model, exact = models(name, seed)
    prompt = np.random.default_rng(seed).integers(3, 97, (1, PROMPT))
    path = folder / f"{name}.npz"
    record(exact, prompt, path, Wanted(NEW, scores=scores), plain=model)
    golden = read_golden(path)
    return Run(model, exact, golden, text_of(golden))


def verdict(run, tensors, dtype, only=None):
    """The comparison, and the finding at the first tensor outside, if there is one.

    `only` leaves those tensors whose name ends like that: a backend that shows less.
    """
    candidate = {n: x for n, x in tensors if only is None or n.endswith(only)}
    result = compare(run.golden, candidate, run.golden.meta["floor"][dtype], dtype)
    if result.first is None:
        return result, None
    scene = Scene(
        run.golden, candidate, result.first, dtype, result.factor,
        run.model.config, run.exact, result.rows,
    )  # fmt: skip
    return result, diagnose(scene)
