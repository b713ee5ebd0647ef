"""From a checkpoint to one file: recognise, check, round, write.

Every name and shape is checked before anything is written; then the tensors pass
through memory one at a time.  The result appears only when it is complete.  Until then
an older file of that name stays, and a run that fails or is interrupted leaves nothing
(one that is killed leaves a file that ends in ``.part``).
"""

from __future__ import annotations

import errno
import hashlib
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from npllama.convert.adapter import merged
from npllama.convert.gguf import open_gguf
from npllama.convert.hf import is_hf, open_hf
from npllama.convert.llama2c import open_llama2c
from npllama.convert.meta import is_meta, open_meta
from npllama.convert.source import Checkpoint, Tensor, hinting
from npllama.files.checkpoint import (
    OF_FOLDERS,
    STORED,
    packaged,
    save,
    widen,
    with_context,
)
from npllama.text.vocabulary import load_tokenizer
from npllama.weights import tensor_shapes

Advance = Callable[[int], object]
PICKLE = b"\x80\x02"  # how a file of PyTorch before 1.6 begins


#  ---- checking -------------------------------------------------------------


def locate(source: str | Path) -> Path:
    """Where a checkpoint is, given as a path or as an installed package that holds it.

    A package must contain exactly one ``.gguf``; none of its code runs.

    Raises
    ------
    ValueError
        If there is no such path, and no package of that name with one such file.
    """
    path = Path(source)
    if path.exists():
        return path
    found = packaged(str(source))
    if found is None:
        raise ValueError(f"{source}: no such folder or file, and no installed package")
    if len(found) != 1:
        raise ValueError(f"{source}: a package with {len(found)} files .gguf, not one")
    return found[0]


def open_checkpoint(path: Path, tokenizer: bool = True) -> Checkpoint:
    """Recognise the format of `path`, and describe its content.

    Without `tokenizer`, files that only a tokenizer needs are not read.

    Raises
    ------
    ValueError
        If no format is recognised, or the files contradict each other.
    OSError
        If a file is missing or cannot be read.
    """
    if path.is_file():
        return _open_file(path, tokenizer)
    if is_hf(path):
        return open_hf(path, tokenizer)
    if is_meta(path):
        return open_meta(path, tokenizer)
    parts = sorted(path.glob("*.gguf"))
    if len({re.sub(r"-\d{5}-of-", "-of-", part.name) for part in parts}) == 1:
        return open_gguf(parts[0], tokenizer)
    several = ", ".join(part.name for part in parts)
    raise ValueError(
        f"{path}: no checkpoint; expected model.safetensors, pytorch_model.bin, an "
        "index of their shards, consolidated.00.pth with params.json, or one .gguf"
        + (f"; give one of {several}" if parts else "")
    )


def _open_file(path: Path, tokenizer: bool) -> Checkpoint:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return open_gguf(path, tokenizer)
    if path.suffix == ".npz":
        raise ValueError(f"{path}: an .npz, which is what convert makes")
    if path.suffix in OF_FOLDERS or magic == b"PK\3\4" or magic[:2] == PICKLE:
        raise ValueError(
            f"{path}: a part of a checkpoint; give the folder that it is in"
        )
    if path.suffix != ".bin":
        raise ValueError(f"{path}: no checkpoint: not a folder, a .gguf or a .bin")
    return open_llama2c(path, tokenizer)


def check_tensors(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless the tensors are exactly those of the config."""
    expected = tensor_shapes(checkpoint.config)
    for name, shape in expected.items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            raise ValueError(
                f"{checkpoint.path}: {name}: missing; the config asks for shape {shape}"
            )
        if tensor.shape != shape:
            raise ValueError(
                f"{tensor.file}: {name}: shape {tensor.shape}; the config asks for "
                f"{shape}"
            )
        if tensor.dtype not in STORED:
            raise ValueError(
                f"{tensor.file}: {name}: dtype {tensor.dtype}; weights should be "
                f"one of {', '.join(STORED)}"
            )
    for name in sorted(checkpoint.tensors.keys() - expected.keys()):
        file = checkpoint.tensors[name].file
        raise ValueError(f"{file}: {name}: not part of a LLaMA of this config")


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise ValueError if the tokenizer cannot be read.

    Writes
    ------
    checkpoint.notes : if there is none, or it outgrows the embedding
    """
    if not {"tokenizer.model", "tokenizer.json"} & checkpoint.files.keys():
        checkpoint.notes.append(
            f"{checkpoint.path}: no tokenizer.model or tokenizer.json; the model will "
            "read and write token ids only"
        )
        return
    with hinting():
        try:
            size = load_tokenizer(checkpoint.files).vocab_size
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: {error}") from None
    # A smaller tokenizer is common: embeddings are padded to a round number.
    rows = checkpoint.config.vocab_size
    if size > rows:
        checkpoint.notes.append(
            f"{checkpoint.path}: the tokenizer has {size} tokens, the config's "
            f"vocab_size is {rows}; ids from {rows} on have no embedding, and a "
            "prompt with one is refused"
        )


def megabytes(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / 1e6:.1f} MB"


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError if `folder` has no room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the result takes {megabytes(needed)}, only {megabytes(free)} are free",
            str(folder),
        )


#  ---- converting -----------------------------------------------------------


@contextmanager
def progress(total: int, quiet: bool) -> Iterator[Advance]:
    """Show a bar of `total` bytes, if someone is looking and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        quiet = True
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    with tqdm(total=total, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update


def convert(
    source: str | Path,
    out: Path,
    dtype: str = "float32",
    *,
    quiet: bool = False,
    tokenizer: bool = True,
    context: int | None = None,
    adapter: Path | None = None,
) -> Checkpoint:
    """Write the checkpoint at `source` to `out`; return what it was.

    Parameters
    ----------
    source : path or str
        Of a checkpoint, or the name of an installed package that holds one.
    out : path
        Of the ``.npz`` to write.
    dtype : "float32", "float16" or "bfloat16"
    quiet : bool
        No progress bar.
    tokenizer : bool
        False leaves the tokenizer out: the model reads and writes token ids.
    context : int
        Positions that the model may see, in place of what the checkpoint says.
    adapter : path
        Of the folder of a LoRA adapter to merge.

    Raises
    ------
    ValueError
        If the source is not a LLaMA that npllama can run.
    OSError
        If a file cannot be read or written.

    Writes
    ------
    out : an ``.npz`` as `npllama.save` makes it
    """
    _check_target(out)
    checkpoint = open_checkpoint(locate(source), tokenizer)
    if adapter is not None:
        checkpoint = merged(checkpoint, adapter)
    if context is not None:
        checkpoint = stretched(checkpoint, context)
    if out.exists() and any(out.samefile(path) for path in checkpoint.sources):
        raise ValueError(f"{out}: a file of the source; give the result another name")
    check_tensors(checkpoint)
    if tokenizer:
        check_tokenizer(checkpoint)
    write(checkpoint, out, dtype, quiet)
    return checkpoint


def stretched(checkpoint: Checkpoint, context: int) -> Checkpoint:
    """The same checkpoint with another number of positions."""
    before = checkpoint.config.max_position_embeddings
    config = with_context(checkpoint.config, context)
    if context > before:
        checkpoint.notes.append(
            f"{checkpoint.path}: made for {before} positions; what it says beyond them "
            f"is unproved, up to the {context} asked for"
        )
    return checkpoint._replace(config=config)


def write(checkpoint: Checkpoint, out: Path, dtype: str, quiet: bool) -> None:
    """Write a checkpoint that was checked.

    Writes
    ------
    out : an ``.npz`` as `npllama.save` makes it
    checkpoint.notes : what was noticed in the tensors
    """
    shapes = tensor_shapes(checkpoint.config)
    size = np.dtype(STORED[dtype]).itemsize * sum(map(math.prod, shapes.values()))
    size += sum(map(len, checkpoint.files.values()))
    check_space(out.parent, size + 1024 * len(shapes))
    total = size + sum(path.stat().st_size for path in checkpoint.sources)
    with progress(total, quiet) as advance:
        hashes = {path.name: sha256(path, advance) for path in checkpoint.sources}
        history = {"source": hashes} | (
            {"lost": list(checkpoint.lost)} if checkpoint.lost else {}
        )
        save(
            out,
            checkpoint.config,
            converted(checkpoint, dtype, advance),
            dtype=dtype,
            files=checkpoint.files,
            metadata=history,
        )


def _check_target(out: Path) -> None:
    if out.is_dir():
        raise ValueError(f"{out}: a folder; give the name of the .npz to write")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}; make it first")


def converted(
    checkpoint: Checkpoint, dtype: str, advance: Advance
) -> Iterator[tuple[str, np.ndarray]]:
    """Read, round and yield one tensor after another, in the order of use.

    Writes
    ------
    checkpoint.notes : a warning for each tensor with values that are not finite
    """
    for name in tensor_shapes(checkpoint.config):
        tensor = checkpoint.tensors[name]
        # No variable may keep the array: two would be in memory at the next turn.
        yield name, _read(name, tensor, dtype, checkpoint.notes)
        advance(math.prod(tensor.shape) * np.dtype(STORED[dtype]).itemsize)


def _read(name: str, tensor: Tensor, dtype: str, notes: list[str]) -> np.ndarray:
    array = tensor.read()
    exact = "float64" if tensor.dtype == "float64" else "float32"
    wide = widen(array, tensor.dtype, exact)
    result = array if tensor.dtype == dtype else narrow(wide, dtype)
    # min and max keep NaN, and rounding keeps the order of numbers, so the two extremes
    # are enough.
    with np.errstate(invalid="ignore"):
        extremes = np.array([wide.min(), wide.max()])
    if not np.isfinite(extremes).all():
        notes.append(f"{tensor.file}: {name}: holds NaN or infinity")
    elif not np.isfinite(widen(narrow(extremes, dtype), dtype, "float32")).all():
        notes.append(f"{tensor.file}: {name}: has values too large for {dtype}")
    return result


def narrow(array: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the nearest value of `dtype`, ties to even.

    Float64 is rounded to float32 before bfloat16, as in PyTorch.

    Parameters
    ----------
    array : (...) float32 or float64
    dtype : "float32", "float16" or "bfloat16"

    Returns
    -------
    (...) float32, float16, or the bits of a bfloat16 in uint16
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            import ml_dtypes

            return array.astype(ml_dtypes.bfloat16).view(np.uint16)
        return array.astype(dtype, copy=False)


def sha256(path: Path, advance: Advance) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
