"""One file that is the whole model.

The file is a plain ``.npz``: arrays under Hugging Face's names, and some small files:
``config.json``, those of the tokenizer, ``generation_config.json`` if there was one,
and ``npllama.json`` (the dtype, and the origin of the weights).

Every tensor is a view of the mapped file (see `npz`), so loading costs neither time
nor memory.

bfloat16, which NumPy does not know, is kept as its 16 bits in a uint16 array; it
is the upper half of a float32, so widening it is a shift by 16.

Matrices may be kept in fewer bits (see `packed`); everything else keeps its dtype.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npllama.config import Config, check, config_from_hf, config_to_hf
from npllama.files.npz import Archive, read_npz, write_array, write_text, writing
from npllama.files.packed import TABLE, Packed, collect, parts_of
from npllama.text.tokenizer import Tokenizer
from npllama.text.vocabulary import load_tokenizer
from npllama.weights import Model, assemble, check_shapes, tensor_shapes

STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
STORED |= {"float64": np.float64}

#  ---- reading --------------------------------------------------------------


def load(
    path: str | os.PathLike, dtype: str = "float32", context: int | None = None
) -> Model:
    """Load a model.

    Weights stored in `dtype` are mapped and never copied; others are widened or
    narrowed once, tensor by tensor.

    Parameters
    ----------
    path : path or str
        Of an ``.npz`` written by `save` or ``npllama convert``, or the name of
        a model that ships with npllama: ``stories``, ``stories-draft``.
    dtype : "float32" or "float64"
        The arithmetic that the forward pass will run in.
    context : int, or None
        Positions that the model may see, in place of what its file says; see
        `with_context`.

    Raises
    ------
    ValueError
        If the file is not a model, or a tensor is missing, extra or misshapen.
    OSError
        If it cannot be read.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(
            f"dtype {dtype!r}: the forward pass runs in float32 or float64"
        )
    path = locate(path)
    refuse_source(path)
    archive = read_npz(path)
    config, stored, tokenizer = checked(path, archive)
    if context is not None:
        config = with_context(config, context)
    wishes = _json_object(archive.files, "generation_config.json")
    tensors = {name: widen(t, stored, dtype) for name, t in archive.tensors.items()}
    return assemble(config, tensors, tokenizer)._replace(generation_config=wishes)


def with_context(config: Config, context: int) -> Config:
    """The same model with another number of positions.

    Nothing that is computed changes: only where a text has to end.  What a model says
    beyond the positions that it was made for is unproved.

    Raises
    ------
    ValueError
        If it is not a positive integer, or the model's RoPE is scaled dynamically.
    """
    if config.rope.rope_type == "dynamic":
        raise ValueError(
            f"context {context}: with rope_type 'dynamic' the context follows from "
            "factor, which changes every angle beyond the trained length"
        )
    return check(replace(config, max_position_embeddings=context))


def lost_on_the_way(path: str | os.PathLike) -> list[str]:
    """Changes by a conversion to the weights (dequantised, merged), a line for each."""
    path = locate(path)
    lost = _json_object(read_npz(path).files, "npllama.json").get("lost", [])
    return [str(line) for line in lost] if isinstance(lost, list) else [str(lost)]


def checked(path: Path, archive: Archive) -> tuple[Config, str, Tokenizer | None]:
    """Make sure that an archive is a whole model.

    Writes
    ------
    The archive's tensors: a `Packed` takes the place of its parts.

    Returns
    -------
    config : Config
    stored : "float32", "float16", "bfloat16" or "float64"
        What the tensors are stored in.
    tokenizer : Tokenizer, or None

    Raises
    ------
    ValueError
        If a tensor is missing, extra, misshapen or of another dtype.
    """
    config, stored = _description(path, archive.files)
    try:
        about = _json_object(archive.files, "npllama.json")
        collect(archive.tensors, about.get("packed", {}), _multiplied(config))
        check_shapes(config, {name: t.shape for name, t in archive.tensors.items()})
        for name, tensor in archive.tensors.items():
            if isinstance(tensor, np.ndarray) and tensor.dtype != STORED[stored]:
                raise ValueError(f"tensor {name} is {tensor.dtype}, not {stored}")
        _json_object(archive.files, "generation_config.json")  # is one, if it is there
        return config, stored, _tokenizer(archive.files)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _multiplied(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices that are multiplied; the embedding is looked up."""
    shapes = tensor_shapes(config).items()
    return {n: s for n, s in shapes if len(s) == 2 and "embed_tokens" not in n}


# Files of a checkpoint that is a folder, and not whole by themselves.
OF_FOLDERS = (".safetensors", ".pth", ".pt", ".json", ".model")


def refuse_source(path: Path) -> None:
    """Raise ValueError, with the command that converts it, for another format."""
    kind = _kind_of(path)
    if kind not in ("folder", ".gguf", ".bin", *OF_FOLDERS):
        return
    source = path.parent if kind in OF_FOLDERS else path
    command, given = "npllama convert {} OUT.npz", shlex.quote(str(source))
    adapter = (source / "adapter_config.json").is_file()
    if adapter and not (source / "config.json").is_file():
        command = "npllama convert BASE OUT.npz --adapter {}"
    raise ValueError(
        f"{path}: not an .npz of npllama; {command.format(given)} makes one"
    )


def _kind_of(path: Path) -> str:
    """The format of a checkpoint by its name, and by how it begins."""
    if not path.is_file():
        return "folder" if path.is_dir() else ""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return ".gguf"
    # PyTorch's files of this name are zips or pickles; llama2.c's begin with a width.
    of_torch = magic == b"PK\3\4" or magic[:2] == b"\x80\x02"
    return ".pt" if path.suffix == ".bin" and of_torch else path.suffix


def packaged(name: str) -> list[Path] | None:
    """Every ``.gguf`` of an installed package; None if there is no such package.

    None of the package's code runs.
    """
    from importlib import metadata  # it is slow to import, and seldom needed

    try:
        files = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError):
        return None
    return [Path(str(f.locate())) for f in files if f.suffix == ".gguf"]


def locate(name: str | os.PathLike) -> Path:
    """Path of a weights file, given as a path or as the name of a shipped model.

    Raises
    ------
    FileNotFoundError
        If there is neither; the message lists the shipped models.
    ValueError
        If it is a package to convert; the message has the command.
    """
    path = Path(name)
    if str(name) and path.exists():  # an empty name would be this folder
        return path
    # In a checkout the files lie beside the package, installed in one of their own.
    folders = [Path(__file__).parents[2] / "weights"]
    folders += [Path(entry) / "npllama_weights" for entry in sys.path]
    shipped = {f.stem: f for folder in folders for f in folder.glob("*.npz")}
    if str(name) in shipped:
        return shipped[str(name)]
    if packaged(str(name)):
        raise ValueError(
            f"{name}: an installed package, not an .npz of npllama; npllama convert "
            f"{name} OUT.npz makes one"
        )
    known, asked = ", ".join(sorted(shipped)), str(name) or "of an empty name"
    raise FileNotFoundError(f"no weights file {asked}; shipped with npllama: {known}")


def widen(tensor: Any, stored: str, dtype: str) -> Any:
    """Turn a stored tensor into `dtype`; the very same array if it already is.

    Parameters
    ----------
    tensor : array as it lies in the file, or `Packed`
    stored : "float32", "float16", "bfloat16" or "float64"
    dtype : "float32" or "float64"
    """
    if isinstance(tensor, Packed):
        return tensor.astype(dtype)
    if stored == "bfloat16":
        # A bfloat16 is the upper half of a float32: shift it into place.
        tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN stays NaN, without a word
        return tensor.astype(dtype, copy=False)


def _description(path, files: Mapping[str, bytes]) -> tuple[Config, str]:
    """The config, and the name of the dtype that the tensors are stored in."""
    if "config.json" not in files:
        raise ValueError(f"{path}: no config.json inside; make it with npllama convert")
    try:
        config = config_from_hf(_json_object(files, "config.json"))
        stored = _json_object(files, "npllama.json").get("dtype", "float32")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(stored, str) or stored not in STORED:
        raise ValueError(
            f"{path}: dtype {stored!r:.80} is not one of {', '.join(STORED)}"
        )
    return config, stored


def _json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        data = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{name}: expected a JSON object, found {data!r:.40}")
    return data


def _tokenizer(files: Mapping[str, bytes]) -> Tokenizer | None:
    present = any(name in files for name in ("tokenizer.model", "tokenizer.json"))
    return load_tokenizer(files) if present else None


#  ---- writing --------------------------------------------------------------


def save(
    path: str | os.PathLike,
    config: Config,
    tensors: Iterable[tuple[str, np.ndarray | Packed]],
    *,
    dtype: str = "float32",
    files: Mapping[str, bytes] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, one tensor at a time, so that one tensor is held in memory.

    The file grows under another name and is renamed when it is complete: a reader of
    `path` finds the old file or the new one, never a part.

    Parameters
    ----------
    tensors : iterable of (name, array)
        Under Hugging Face's names, in the dtype that `dtype` names; bfloat16 as
        its bits in uint16.  A matrix may be a `Packed`, of the shape (C, S).
    dtype : "float32", "float16", "bfloat16" or "float64"
    files : mapping of name to bytes
        The tokenizer's files.
    metadata : mapping
        Further entries of ``npllama.json``, such as the source's SHA-256.

    Raises
    ------
    ValueError
        If a tensor is missing, extra, misshapen or of another dtype.
    """
    found: dict[str, tuple[int, ...]] = {}
    tables: dict[str, np.ndarray] = {}
    packed: dict[str, dict[str, Any]] = {}
    with writing(path) as archive:
        write_text(archive, "config.json", json.dumps(config_to_hf(config), indent=1))
        for name, content in (files or {}).items():
            write_text(archive, name, content)
        for name, tensor in tensors:
            found[name] = tensor.shape
            if isinstance(tensor, Packed):
                packed[name] = {"format": tensor.format, "group": tensor.group}
                tables[tensor.format] = tensor.table.astype(np.float32)
                for part, array in parts_of(name, tensor).items():
                    write_array(archive, part, array)
            elif tensor.dtype != STORED[dtype]:
                raise ValueError(f"tensor {name} is {tensor.dtype}, not {dtype}")
            else:
                write_array(archive, name, tensor)
            del tensor  # before the next one is made
        for format, table in tables.items():
            write_array(archive, TABLE + format, table)
        about = {"dtype": dtype} | ({"packed": packed} if packed else {})
        text = json.dumps(about | dict(metadata or {}), indent=1)
        write_text(archive, "npllama.json", text)
        check_shapes(config, found)
