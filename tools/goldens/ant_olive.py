"""What the released code of ANT and of OliVe makes of small tensors.

The code is no package: it is taken from its repository with git.  Its one CUDA kernel,
which looks for the nearest point, is written again for torch, in float32 as there.
"""

import contextlib
import io
import itertools
import subprocess
import sys
import tempfile
import types
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np

SOURCE = "https://github.com/clevercool/ANT-Quantization"
COMMIT = "bc840673b614fac644081f3169a9c81dff2d8dc1"
ANT_KINDS = "ant-int-flint-pot-float"
OLIVE_KINDS = "ant-int-flint"
ROOT = Path(__file__).resolve().parents[2]


def tensors() -> dict[str, np.ndarray]:
    """Small tensors, from even to very uneven; two of a trained model."""
    chance = np.random.default_rng(23)
    shape = (6, 64)
    spiked = chance.normal(size=shape)
    places = chance.random(shape) < 0.03
    spiked[places] *= chance.uniform(5, 60, places.sum())
    with np.load(ROOT / "weights" / "stories.npz") as model:
        down = model["model.layers.4.mlp.down_proj.weight"].astype(np.float64)
    # the rows whose largest weight stands out most
    odd = np.argsort(-np.abs(down).max(1) / down.std(1), kind="stable")[:6]
    found = {
        "uniform": chance.uniform(-1, 1, shape),
        "normal": chance.normal(size=shape),
        "laplace": chance.laplace(size=shape),
        "t3": chance.standard_t(3, shape),
        "t2": chance.standard_t(2, shape),
        "spiked": spiked,
        "positive": np.abs(chance.standard_t(3, shape)),
        "down": down[odd, :64],
    }
    return {name: x.astype(np.float16) for name, x in found.items()}


def ant_cases() -> list[tuple]:
    """Tensor, kinds, bits, and whether it is treated as activations."""
    names = ["uniform", "normal", "laplace", "t3", "t2", "spiked", "down"]
    cases = [(name, ANT_KINDS, 4, False) for name in names]
    cases += [
        ("t3", kind, bits, False)
        for kind, bits in itertools.product(("int", "flint", "pot", "float"), (3, 5, 6))
    ]
    cases += [("laplace", kind, 4, False) for kind in ("flint", "pot", "float")]
    cases += [("t2", ANT_KINDS, 8, False)]
    cases += [(name, ANT_KINDS, 4, True) for name in ("positive", "t2")]
    cases += [
        ("positive", kind, bits, True)
        for kind, bits in itertools.product(("int", "flint", "pot", "float"), (3, 4, 5))
    ]
    return cases


def olive_cases() -> list[tuple]:
    """Tensor, kinds, bits, and whether it is treated as activations."""
    names = ["uniform", "normal", "laplace", "t3", "t2", "spiked", "down"]
    modes = (OLIVE_KINDS, "int", "flint")
    cases = [(n, mode, 4, False) for n, mode in itertools.product(names, modes)]
    cases += [(name, "int", 8, False) for name in ("t2", "spiked")]
    cases += [(n, OLIVE_KINDS, 4, True) for n in ("t3", "t2", "spiked")]
    return cases


def nearest(x, points):
    """The kernel: the nearest point, in float32; of two the later one."""
    import torch

    off = (x.float()[:, None] - points.float()).abs()
    least = off.min(dim=1, keepdim=True).values
    place = torch.arange(len(points)).expand_as(off)
    place = torch.where(off == least, place, -1).max(dim=1).values
    return points[place], None


def module(folder: Path):
    """The file of quantisers in a folder of the repository."""
    kernel = types.ModuleType("quant_cuda")
    kernel.quant = nearest
    sys.modules["quant_cuda"] = kernel
    sys.modules["quant_affine"] = types.ModuleType("quant_affine")
    file = folder / "antquant" / "quant_modules.py"
    spec = spec_from_file_location("quant_modules", file)
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def one(quantisers, x: np.ndarray, case: tuple, most: int) -> dict[str, np.ndarray]:
    """The kind, the scales and the numbers of one case."""
    import torch

    _, mode, bits, activations = case
    args = types.SimpleNamespace(
        w_up=most, a_up=most, w_low=75, a_low=75, percent=100, search=True
    )
    args.no_outlier = False
    run = quantisers.TensorQuantizer(
        mode=mode,
        bit=bits,
        is_signed=not activations,
        is_enable=True,
        is_input=activations,
        args=args,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it chose
        y = run(torch.from_numpy(x.astype(np.float64)))
    return {
        "kind": np.array(run.mode),
        "alpha": run.alpha.detach().numpy(),
        "top": run.quant_grid.max().numpy(),
        "y": y.detach().numpy(),
    }


def make(folder: Path) -> None:
    """Write ant_olive.npz."""
    import torch

    torch.set_num_threads(1)  # its threads only wait for each other here
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    inputs = tensors()
    arrays = {f"x.{name}": x for name, x in inputs.items()}
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["git", "clone", "-q", SOURCE, name], check=True)
        subprocess.run(["git", "-C", name, "checkout", "-q", COMMIT], check=True)
        for method, cases, most in (
            ("ant", ant_cases(), 150),
            ("olive", olive_cases(), 250),
        ):
            quantisers = module(Path(name) / f"{method}_quantization")
            arrays[f"{method}.cases"] = np.array([list(map(str, c)) for c in cases])
            for i, case in enumerate(cases):
                for part, array in one(quantisers, inputs[case[0]], case, most).items():
                    arrays[f"{method}.{i}.{part}"] = array
    torch.distributed.destroy_process_group()
    np.savez_compressed(folder / "ant_olive.npz", **arrays)
