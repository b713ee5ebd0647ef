"""A cache that outlives its request.

To read a long text once and ask about it many times, keep its keys and values in a
file.  They are valid only for the weights, config, dtype and tokens that they were
computed from, so the file says which these were.  It is an ``.npz``:

    k, v          (L, K, S, D), of the S positions that were computed
    tokens        (S,), those positions' tokens
    npllama.json  the dtype, the config, a fingerprint of the weights, the version

Keys are stored rotated to their positions, 0 to S - 1, and the key at a position
depends on all tokens up to it.  So another prompt can use the beginning that it
shares with the saved tokens, and no more.  Even a prompt whose tokens are all saved has
to run its last one, or there would be no logits to choose the next token from.

A bit that flipped in a key would give a text that is only a little wrong.  So the
file ends in the SHA-256 of all before it, where a zip has its comment, and a file
that differs from what was written is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

import npllama
from npllama.cache import KVCache, new_cache
from npllama.config import BY_LENGTH, config_to_hf
from npllama.files.npz import BLOCK, adding_to, read_open, write_array, write_text
from npllama.files.whole import new_file
from npllama.weights import Model

FORMAT = 1  # of the file; another number is another arrangement
DIGEST = 64  # hexadecimal digits of a SHA-256
# A large tensor is recognised by this many samples of this many elements.
SAMPLES, SAMPLE = 16, 1024


class Saved(NamedTuple):
    """Keys and values of a text."""

    k: np.ndarray  # (L, K, S, D)
    v: np.ndarray  # (L, K, S, D)
    tokens: list[int]  # S


#  ---- what it was made with -------------------------------------------------


def sampled(tensor: np.ndarray) -> Iterator[np.ndarray]:
    """A whole small tensor; of a large one its ends, and samples between them."""
    flat = tensor.reshape(-1)
    if flat.size <= SAMPLES * SAMPLE:
        yield flat
        return
    for start in np.linspace(0, flat.size - SAMPLE, SAMPLES, dtype=np.int64):
        yield flat[start : start + SAMPLE]


def arrays_of(weight: Any) -> Iterator[np.ndarray]:
    """The arrays that a weight is kept in: itself, or the fields of its record."""
    if isinstance(weight, np.ndarray):
        yield weight
    elif isinstance(weight, tuple):
        for part in weight:
            yield from arrays_of(part)


def fingerprint(model: Model) -> str:
    """A SHA-256 that distinguishes the weights of one model from those of another.

    Names, shapes and dtypes go into it, all of every small tensor, and 16 samples of
    1,024 elements of every large one.  So it costs little even for a model that is
    larger than the memory, and a training step changes it; a change to a few chosen
    elements between the samples would not.

    Parameters
    ----------
    model : Model
        Its weights may be plain arrays or records of arrays.
    """
    digest = hashlib.sha256()
    named = {"embed": model.embed, "norm": model.norm, "lm_head": model.lm_head}
    for i, layer in enumerate(model.layers):
        named |= {f"{i}.{name}": w for name, w in layer._asdict().items()}
    for name, weight in named.items():
        for array in arrays_of(weight):
            digest.update(f"{name} {array.shape} {array.dtype.str};".encode())
            for part in sampled(array):
                digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    return digest.hexdigest()


def description(model: Model) -> dict[str, Any]:
    """Everything that keys and values depend on besides the tokens, as the file keeps it."""
    about = {
        "format": FORMAT,
        "dtype": model.embed.dtype.name,
        "config": config_to_hf(model.config),
        "weights": fingerprint(model),
    }
    return json.loads(json.dumps(about))  # tuples are lists there


def refuse_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first field in which two descriptions differ."""
    for name, value in expected.items():
        here, there = value, found.get(name)
        if here == there:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            for part in here | there:
                if here.get(part) != there.get(part):
                    name, here, there = (
                        f"{name}.{part}",
                        here.get(part),
                        there.get(part),
                    )
                    break
        raise ValueError(
            f"saved with {name} {there!r:.80}; this model has {here!r:.80}"
        )


def refuse_by_length(model: Model) -> None:
    """Raise ValueError if a key depends on what comes after it."""
    kind = model.config.rope.rope_type
    if kind in BY_LENGTH:
        raise ValueError(
            f"rope_type {kind} turns keys by the length of the whole text, so none "
            "can be kept for another text"
        )


#  ---- writing ---------------------------------------------------------------


def save_cache(
    path: str | os.PathLike, cache: KVCache, tokens: Sequence[int], model: Model
) -> int:
    """Save the keys and values of a text.

    The file appears when it is whole; one that stood there before is replaced.

    Parameters
    ----------
    path : path or str
    cache : KVCache
        Of one row.
    tokens : token ids
        The text.  It may be longer than what was computed: the last token of a
        finished text has not been run, and is not saved.
    model : Model
        With which the keys and values were computed.

    Returns
    -------
    int
        Positions that were saved.

    Raises
    ------
    ValueError
        If the cache is empty, holds more positions than there are tokens, or belongs
        to another model; if the model's keys depend on what comes after them.
    OSError
        If the file cannot be written.
    """
    refuse_by_length(model)
    L, K, D = cache.k.shape[0], *cache.k.shape[2::2]
    c = model.config
    ours = (c.num_hidden_layers, c.num_key_value_heads, c.head_dim)
    if (
        len(cache.length) != 1
        or (L, K, D) != ours
        or cache.k.dtype != model.embed.dtype
    ):
        raise ValueError(f"cache: {cache!r} is not one row of this model's")
    S = int(cache.length[0])
    if not 0 < S <= len(tokens):
        raise ValueError(f"cache: it holds {S} positions of {len(tokens)} tokens")
    about = description(model) | {"npllama": npllama.__version__}
    with new_file(path) as file:
        with adding_to(file) as archive:
            archive.comment = b"0" * DIGEST
            write_text(archive, "npllama.json", json.dumps(about, indent=1))
            write_array(archive, "tokens", np.array(tokens[:S], dtype=np.int64))
            write_array(archive, "k", cache.k[:, 0, :, :S])
            write_array(archive, "v", cache.v[:, 0, :, :S])
        written = digest_of(file)
        file.seek(-DIGEST, os.SEEK_END)
        file.write(written)
    return S


def digest_of(file: BinaryIO) -> bytes:
    """The SHA-256 of a file without the digits at its end."""
    left = file.seek(0, os.SEEK_END) - DIGEST
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0 and (block := file.read(min(left, BLOCK))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest().encode()


#  ---- reading ---------------------------------------------------------------


def load_cache(path: str | os.PathLike, model: Model) -> Saved:
    """Load the keys and values of a text; they are mapped, not copied.

    Raises
    ------
    ValueError
        If the file is not what was written, or was made with another model, config,
        dtype or version of the format; the message names the field that differs.
    OSError
        If it cannot be read.
    """
    refuse_by_length(model)
    with open(path, "rb") as file:
        found = digest_of(file)
        if file.read() != found:
            raise ValueError(f"{path}: damaged, or not a saved cache")
        archive = read_open(file, path)
    try:
        about = json.loads(archive.files.get("npllama.json", b"{}"))
        refuse_difference(about, description(model))
        return checked(archive.tensors, model)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def checked(tensors: Mapping[str, np.ndarray], model: Model) -> Saved:
    """The arrays of a file, after checking that they belong to a text of this model."""
    c, nothing = model.config, np.zeros(0, dtype=np.int64)
    k, v, tokens = (tensors.get(name, nothing) for name in ("k", "v", "tokens"))
    S = len(tokens) if tokens.shape == tokens.reshape(-1).shape else 0
    shape = (c.num_hidden_layers, c.num_key_value_heads, S, c.head_dim)
    kinds = (k.dtype, v.dtype, tokens.dtype)
    wanted = (model.embed.dtype, model.embed.dtype, np.dtype(np.int64))
    if k.shape != shape or v.shape != shape or kinds != wanted or not S:
        raise ValueError(
            f"not a saved cache: k {k.shape}, v {v.shape}, tokens {tokens.shape}"
        )
    return Saved(k, v, tokens.tolist())


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of first tokens that two texts share."""
    shared = 0
    for one, other in zip(a, b):
        if one != other:
            break
        shared += 1
    return shared


def restore(
    saved: Saved, prompt: Sequence[int], model: Model, capacity: int
) -> KVCache:
    """Make a cache of the positions that a prompt shares with a saved text.

    Parameters
    ----------
    saved : Saved
    prompt : token ids
    model : Model
    capacity : int
        Positions that the cache can hold, N, at least those of the prompt.

    Returns
    -------
    KVCache
        Of one row and 0 to ``len(prompt) - 1`` positions: the last token has to run.

    Raises
    ------
    ValueError
        If the prompt is empty, or longer than the capacity.
    """
    if not 0 < len(prompt) <= capacity:
        raise ValueError(f"prompt: {len(prompt)} tokens; give 1 to {capacity}")
    S = min(common(saved.tokens, prompt), len(prompt) - 1)
    cache = new_cache(model.config, 1, capacity, model.embed.dtype.name)
    cache.k[:, 0, :, :S] = saved.k[:, :, :S]
    cache.v[:, 0, :, :S] = saved.v[:, :, :S]
    cache.length[0] = S
    return cache
