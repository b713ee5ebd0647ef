"""A PyTorch file: a zip archive with a pickled dictionary of tensors.

A pickle is a program.  ``weights_only=True`` makes torch run no more of it than
building tensors takes, and refuse the rest; ``mmap=True`` leaves the tensors' data
on disk until it is used.  The file is opened anew for every tensor (the pickle is
small), so that no tensor stays in memory after its turn.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from npllama.convert.source import Tensor, refuse_pointer


def open_file(path: Path) -> dict[str, Tensor]:
    """Describe the tensors of one file.

    Raises
    ------
    ValueError
        If it is not a dictionary of plain tensors, or torch is not installed.
    """
    return {name: _describe(path, name, t) for name, t in _load(path).items()}


def _load(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path}: only torch reads this format; pip install torch"
        ) from None
    refuse_pointer(path)
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise ValueError(
                f"{path}: not a zip archive, which torch.save writes since torch 1.6; "
                "load it and save it again"
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly anything
        raise ValueError(
            f"{path}: torch refuses it, as damaged or more than weights: {_reason(error)}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path}: expected a dictionary of tensors by name")
    return state


def _reason(error: Exception) -> str:
    """The one telling line of a message that may fill a screen."""
    text = str(error).rsplit("WeightsUnpickler error:", 1)[-1].strip()
    text = re.sub(r"^\[enforce fail at [^]]*\]\W*", "", text)
    return text.split("\n", 1)[0].split(". ", 1)[0] or type(error).__name__


def _describe(path: Path, name: str, tensor: Any) -> Tensor:
    import torch

    plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    if not plain or tensor.is_meta:  # a tensor of torch's "meta" has no data
        raise ValueError(f"{path}: {name}: not a plain tensor")
    # A tensor may be a view of fewer numbers than it shows, without bound.
    if tensor.is_quantized or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{path}: {name}: quantized, or larger than its data")
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Tensor(path, tuple(tensor.shape), dtype, partial(_read, path, name))


def _read(path: Path, name: str) -> np.ndarray:
    import torch

    tensor = _load(path)[name].detach().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
