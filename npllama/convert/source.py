"""What a checkpoint is, whatever format it comes in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.config import Config
from npllama.text.pieces import model_of_llama2c
from npllama.text.settings import naming

# These travel along into the .npz, if they are there.
OF_TOKENIZERS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.bin",
)
OTHERS = ("generation_config.json",)
COMPANIONS = (*OF_TOKENIZERS, *OTHERS)


class Tensor(NamedTuple):
    """One tensor of a checkpoint, described but not yet read.

    `read` returns it as `checkpoint` stores it: bfloat16 as its bits in
    uint16.  A `dtype` that is not a key of `checkpoint.STORED` cannot be read.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Checkpoint(NamedTuple):
    """A model as it lies on disk: what to write, and what it was made from."""

    path: Path
    config: Config
    tensors: dict[str, Tensor]  # under Hugging Face's names
    files: dict[str, bytes]  # the tokenizer and what else travels along
    sources: list[Path]  # every file that was used
    notes: list[str]  # what the user should know
    lost: Sequence[str] = ()  # what the weights went through on the way


def refuse_pointer(path: Path) -> None:
    """Raise ValueError if Git left a note here in place of the large file."""
    with open(path, "rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise ValueError(
                f"{path}: a Git LFS pointer, not the file itself; run git lfs pull"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is a ValueError that names the file."""
    refuse_pointer(path)
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, found {data!r:.40}")
    return data


def companions(*folders: Path, tokenizer: bool) -> dict[str, Path]:
    """Where the files that travel along are; the first folder that has one wins.

    Without `tokenizer`, files that only a tokenizer needs are not looked at.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for name in COMPANIONS if tokenizer else OTHERS:
            if (folder / name).is_file():
                found.setdefault(name, folder / name)
    for name, path in found.items():
        with hinting() if name in OF_TOKENIZERS else nullcontext():
            refuse_pointer(path)
    return found


@contextmanager
def hinting() -> Iterator[None]:
    """Add to an error about a tokenizer that the weights can do without it."""
    try:
        yield
    except ValueError as error:
        hint = "--no-tokenizer converts the weights alone"
        raise ValueError(f"{error}; {hint}") from None


def contents(found: dict[str, Path]) -> dict[str, bytes]:
    """The bytes of the files that travel along."""
    files = {name: path.read_bytes() for name, path in found.items()}
    # llama2.c keeps the pieces of a SentencePiece model in a file of its own.
    if content := files.pop("tokenizer.bin", b""):
        if not {"tokenizer.model", "tokenizer.json"} & files.keys():
            with hinting():
                where = str(found["tokenizer.bin"])
                files["tokenizer.model"] = naming(where, model_of_llama2c, content)
    # The two say the same; the SentencePiece model or rank file is the original.
    if "tokenizer.model" in files and "tokenizer.json" in files:
        with hinting():
            rest = beside_a_model(read_json(found["tokenizer.json"]))
        del files["tokenizer.json"]
        files |= {"tokenizer.json": json.dumps(rest).encode()} if rest else {}
    return files


def beside_a_model(data: dict[str, Any]) -> dict[str, Any]:
    """What only ``tokenizer.json`` says: what was added, and what begins a text."""
    kept = ("added_tokens", "post_processor")
    return {key: data[key] for key in kept if key in data}


def tensors_of(count: int) -> str:
    """A number of tensors, in words."""
    return f"{count} tensor{'s' if count != 1 else ''}"
