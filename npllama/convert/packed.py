r"""Numbers of a few bits, packed into words of 32, and back.

A weight that was rounded is stored as whole numbers q of a few bits (the *codes*),
with a scale s and a zero point z for each group of inputs:

$$\hat{W}_{cj} = s_{cG} \, (q_{cj} - z_{cG}), \qquad G = \text{group of input } j$$

A scale is float16 or bfloat16 and q - z a small whole number, so their product is
exact in float32.  Readers that compute in float16 round it.  How q and z lie in the
words differs; `layouts` says how.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npllama.convert.source import Tensor
from npllama.files.checkpoint import widen

INTEGERS = ("int32", "I32")  # as torch and safetensors say it
FLOATS = ("float16", "bfloat16", "float32")

Parts = dict[str, Tensor]


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Numbers of a few bits, laid end to end along the first axis of words.

    The lowest bits come first, and a number may continue in the next word.

    Parameters
    ----------
    words : (W, C) uint32
    bits : int
    count : int
        Numbers per column.

    Returns
    -------
    (count, C) uint32
    """
    at = np.arange(count) * bits
    word, shift = at // 32, (at % 32).astype(np.uint32)[:, None]
    numbers = words[word] >> shift
    over = at % 32 + bits > 32
    numbers[over] |= words[word[over] + 1] << (32 - shift[over])
    return numbers & np.uint32(2**bits - 1)


def grouped(
    q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Turn codes into weights: scale times (code - zero point).

    Parameters
    ----------
    q : (S, C) integer
        A row for each input.
    zeros, scales : (groups, C) float32
    groups : (S,) int
        The group of every input.

    Returns
    -------
    (C, S) float32
        Output axis first.
    """
    w = q.astype(np.float32)
    w -= zeros[groups]
    w *= scales[groups]
    return np.ascontiguousarray(w.T)


#  ---- reading parts ----------------------------------------------------------


def words_of(tensor: Tensor) -> np.ndarray:
    """Words of 32 bits as unsigned: shifting a signed one would copy its sign bit."""
    return np.ascontiguousarray(tensor.read()).view(np.uint32)


def floats_of(tensor: Tensor) -> np.ndarray:
    return widen(tensor.read(), tensor.dtype, "float32")


def need(parts: Parts, name: str, kinds: tuple[str, ...]) -> tuple[int, ...]:
    """The shape of a part, which must be there, a matrix, and of a given dtype."""
    tensor = parts.get(name)
    if tensor is None:
        raise ValueError(f"{name} is missing")
    if tensor.dtype not in kinds or len(tensor.shape) != 2:
        raise ValueError(
            f"{name} is {tensor.dtype} {tensor.shape}, not a matrix of {kinds[0]}"
        )
    return tensor.shape


def expect(parts: Parts, name: str, shape: tuple[int, ...]) -> None:
    found = parts[name].shape
    if found != shape:
        raise ValueError(f"{name} has shape {found}; expected {shape}")


def bits_of(words: int, count: int, known: tuple[Any, ...]) -> int:
    """How many bits each of `count` numbers has if they fill that many words.

    The `known` bits are tried in order; the first is the config's, if it has one.
    """
    for bits in known:
        if bits in range(2, 9) and -(-count * bits // 32) == words:
            return bits
    raise ValueError(f"{count} inputs in {words} words; not 2, 3, 4 or 8 bits each")


def groups_of(count: int, groups: int, size: Any) -> np.ndarray:
    """The group of every input, where groups are consecutive."""
    if groups < 1:
        raise ValueError("no group has a scale")
    size = size if type(size) is int and size > 0 else -(-count // groups)
    if -(-count // size) != groups:
        raise ValueError(f"{count} inputs by {size} are not {groups} groups")
    return np.arange(count) // size


def given_groups(tensor: Tensor, groups: int) -> np.ndarray:
    """The group of every input, as a file gives it."""
    index = tensor.read().astype(np.int64)  # (S,)
    if index.min() < 0 or index.max() >= groups:
        raise ValueError(f"{tensor.file}: an input is in a group that is not there")
    return index
