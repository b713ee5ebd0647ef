"""Factors that AutoAWQ and SmoothQuant's released code find for small matrices.

Of AutoAWQ only the file of its search is run; what it imports besides is not needed
there.  SmoothQuant is no package: its one file is taken from its repository with git.
"""

import itertools
import subprocess
import sys
import tempfile
import types
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np

SMOOTHQUANT = "https://github.com/mit-han-lab/smoothquant"
COMMIT = "c61476d728e42ae0d8a35e7e78494edcac3237b5"
S, N = 64, 96  # inputs of the matrices, tokens
# rows of every matrix, bits, zero point, group (-1: the row), weights count too
AWQ = [
    (rows, bits, zero, group, duo)
    for rows, bits, zero, group, duo in itertools.product(
        ((12, 6, 6), (10,)), (3, 4), (True, False), (-1, 32), (True, False)
    )
]
SMOOTH = [((12, 6, 6), 0.5), ((10, 10), 0.5), ((12, 6, 6), 0.75), ((10,), 0.3)]


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Rows for all matrices, and activations whose channels are of unlike size."""
    chance = np.random.default_rng(29)
    w = chance.standard_t(5, (24, S)) * 0.1
    x = chance.normal(size=(N, S)) * np.exp(chance.normal(size=S))
    x[:, 5] *= 40
    return w.astype(np.float16), x.astype(np.float16)


def split(w: np.ndarray, rows: tuple[int, ...]) -> list[np.ndarray]:
    """The first rows as matrices of so many rows each."""
    return np.split(w[: sum(rows)], np.cumsum(rows)[:-1])


def layers(w: np.ndarray, rows: tuple[int, ...]) -> list:
    """Linear layers with these weights, in float64."""
    import torch

    found = []
    for some in split(w.astype(np.float64), rows):
        linear = torch.nn.Linear(S, len(some), bias=False, dtype=torch.float64)
        linear.weight.data = torch.from_numpy(some.copy())
        found.append(linear)
    return found


def stubs(**contents: tuple[str, ...]) -> None:
    """Modules, by their names with _ for a dot, that hold nothing but names."""
    for name, names in contents.items():
        module = types.ModuleType(name.replace("__", "."))
        module.__path__ = []
        vars(module).update({n: types.SimpleNamespace() for n in names})
        sys.modules[module.__name__] = module


def from_file(name: str, path: Path):
    """Run a file as a module."""
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def awq_quantizer():
    """AutoAWQ's class of the search, without what it imports for whole models."""
    folder = Path(find_spec("awq").submodule_search_locations[0])
    linears = ("GEMM", "GEMV", "Marlin", "GEMVFast")
    stubs(
        awq=(),
        awq__utils=(),
        awq__modules=(),
        awq__quantize=(),
        awq__utils__calib_data=("get_calib_dataset",),
        awq__quantize__scale=("apply_scale", "apply_clip"),
        awq__modules__linear=tuple(f"WQLinear_{kind}" for kind in linears),
        awq__utils__utils=("get_best_device",),
        awq__utils__module=(
            "append_str_prefix",
            "get_named_linears",
            "set_op_by_name",
            "exclude_layers_to_not_quantize",
        ),
    )
    sys.modules["awq.utils.utils"].clear_memory = lambda *_: None
    sys.modules["awq.utils.module"].get_op_name = lambda *_: "layer"
    return from_file("quantizer", folder / "quantize" / "quantizer.py").AwqQuantizer


def awq(quantizer, w: np.ndarray, x: np.ndarray, case: tuple) -> np.ndarray:
    """Factors of one case; several matrices count together, side by side."""
    import torch

    rows, bits, zero, group, duo = case

    class Beside(torch.nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

        def forward(self, x):
            return torch.cat([part(x) for part in self.parts], dim=-1)

        def state_dict(self):
            # What it keeps to go back to is a copy only if it comes from a GPU.
            return {n: w.clone() for n, w in super().state_dict().items()}

    run = quantizer.__new__(quantizer)
    run.w_bit, run.zero_point, run.duo_scaling = bits, zero, duo
    run.group_size = S if group == -1 else group
    run.n_parallel_calib_samples, run.max_chunk_memory = None, 2**30
    parts = layers(w, rows)
    with torch.no_grad():
        found = run._search_best_scale(
            None, None, parts, torch.from_numpy(x.astype(np.float64)), Beside(parts)
        )
    return found[-1].numpy()


def smooth(module, w: np.ndarray, x: np.ndarray, case: tuple) -> dict[str, np.ndarray]:
    """The norm's gain, once 1, and the weights after smoothing."""
    import torch

    rows, alpha = case
    norm = module.LlamaRMSNorm(S).double()
    parts = layers(w, rows)
    most = torch.from_numpy(np.abs(x.astype(np.float64)).max(axis=0))
    with torch.no_grad():
        module.smooth_ln_fcs_llama_like(norm, parts, most, alpha)
        weights = torch.cat([part.weight for part in parts]).numpy()
        return {"gain": norm.weight.numpy(), "weights": weights}


def make(folder: Path) -> None:
    """Write folds.npz."""
    import torch

    torch.set_num_threads(1)
    w, x = inputs()
    arrays = {"w": w, "x": x}
    quantizer = awq_quantizer()
    for i, case in enumerate(AWQ):
        arrays[f"awq.{i}"] = awq(quantizer, w, x, case)
    with tempfile.TemporaryDirectory() as name:
        git = ["git", "-C", name]
        subprocess.run([*git, "clone", "-qn", SMOOTHQUANT, "."], check=True)
        subprocess.run(
            [*git, "checkout", "-q", COMMIT, "--", "smoothquant"], check=True
        )
        module = from_file("smooth", Path(name) / "smoothquant" / "smooth.py")
        for i, case in enumerate(SMOOTH):
            for part, array in smooth(module, w, x, case).items():
                arrays[f"smooth.{i}.{part}"] = array
    arrays["awq.cases"] = np.array([repr(case) for case in AWQ])
    arrays["smooth.cases"] = np.array([repr(case) for case in SMOOTH])
    np.savez_compressed(folder / "folds.npz", **arrays)
