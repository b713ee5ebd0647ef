"""Codes, scales and groups that auto-gptq and gptqmodel find for one small matrix.

Both run on a CPU.  auto-gptq asks for what transformers 5 no longer has, so only its
file of the algorithm is imported.
"""

import itertools
import os
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np

C, S, N = 5, 192, 256  # rows and inputs of the matrix, inputs of the calibration
# bits, symmetric, clipped, group (-1: the row), act-order, static groups
AUTO = [
    (4, sym, mse, group, act, static)
    for sym, mse, group, act, static in itertools.product(
        (True, False), (True, False), (-1, 128, 32), (False, True), (False, True)
    )
    if not (static and group == -1)
]
AUTO += [
    (bits, sym, False, group, act, False)
    for bits, sym, group, act in itertools.product(
        (2, 3, 8), (True, False), (-1, 40), (False, True)
    )
]
MODEL = [
    (bits, sym, False, group, act, False)
    for bits, sym, group, act in itertools.product(
        (3, 4, 8), (True, False), (-1, 64, 32), (False, True)
    )
]


def matrix() -> tuple[np.ndarray, np.ndarray]:
    """Weights, one row without a negative, and correlated inputs of unlike size."""
    chance = np.random.default_rng(17)
    w = chance.standard_t(4, (C, S))
    w[2] = np.abs(w[2])
    mix = chance.normal(size=(S, S)) / np.sqrt(S)
    x = chance.normal(size=(N, S)) + chance.normal(size=(N, S)).dot(mix)
    x *= np.exp(0.7 * chance.normal(size=S))
    return w.astype(np.float16), x.astype(np.float16)


def found(linear, scale, zero, index) -> dict[str, np.ndarray]:
    """What a package left in its layer, as codes."""
    scale, zero = scale.float().numpy(), zero.float().numpy()
    index = index.numpy().astype(np.int64)
    values = linear.weight.data.float().numpy().astype(np.float64)
    codes = values / scale.astype(np.float64)[:, index] + zero[:, index]
    assert np.abs(codes - np.round(codes)).max() < 1e-3
    return {
        "codes": np.round(codes).astype(np.uint8),
        "scale": scale,
        "zero": zero.astype(np.uint8),
        "groups": index.astype(np.uint8),
    }


def layer(w: np.ndarray):
    import torch

    linear = torch.nn.Linear(S, C, bias=False)
    linear.weight.data = torch.from_numpy(w.astype(np.float32))
    return linear


def stub(name: str, folder: str) -> None:
    """A package whose own ``__init__`` is not run."""
    package = types.ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package


def auto(w: np.ndarray, x: np.ndarray, case: tuple) -> dict[str, np.ndarray]:
    """One configuration of auto-gptq."""
    import torch

    torch.cuda.synchronize = lambda *_: None  # called without asking for a GPU
    if "auto_gptq" not in sys.modules:
        folder = next(iter(find_spec("auto_gptq").submodule_search_locations))
        stub("auto_gptq", folder)
        stub("auto_gptq.quantization", f"{folder}/quantization")
    from auto_gptq.quantization.gptq import GPTQ

    bits, sym, mse, group, act, static = case
    linear = layer(w)
    run = GPTQ(linear)
    run.quantizer.configure(bits, perchannel=True, sym=sym, mse=mse)
    run.add_batch(torch.from_numpy(x.astype(np.float32)), None)
    scale, zero, index = run.fasterquant(
        percdamp=0.01, group_size=group, actorder=act, static_groups=static
    )
    return found(linear, scale, zero, index)


def model(w: np.ndarray, x: np.ndarray, case: tuple) -> dict[str, np.ndarray]:
    """One configuration of gptqmodel."""
    import torch
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    bits, sym, _, group, act, _ = case
    linear = layer(w)
    config = QuantizeConfig(
        bits=bits,
        group_size=group,
        sym=sym,
        desc_act=act,
        act_group_aware=False,
        damp_percent=0.01,
    )
    run = GPTQ(linear, config)
    run.quantizer.configure(perchannel=True)
    run.add_batch(torch.from_numpy(x.astype(np.float32))[None], torch.zeros(1))
    values, scale, zero, index, *_ = run.quantize(blocksize=128)
    linear.weight.data = values
    return found(linear, scale, zero, index)


def make(folder: Path) -> None:
    """Write gptq.npz."""
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # with more it does not start on 2 cores
    w, x = matrix()
    arrays = {"w": w, "x": x}
    for name, cases, run in (("auto", AUTO, auto), ("model", MODEL, model)):
        arrays[f"{name}.cases"] = np.array(cases, dtype=np.int64)
        for i, case in enumerate(cases):
            for part, array in run(w, x, case).items():
                arrays[f"{name}.{i}.{part}"] = array
    np.savez_compressed(folder / "gptq.npz", **arrays)
