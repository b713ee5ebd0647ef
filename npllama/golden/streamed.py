"""Models larger than memory: one weight at a time.

The forward pass asks for the layers in order, and for each weight of a layer once.  So
the weights may stay in the mapped file, in the 16 bits they are stored in; one is
widened when it is asked for, and gone when its product is done.  The pages that were
read for a layer are given back to the system with the next, or the whole file would
end up in memory.

It reads all weights again for every step, so it suits a prompt and a few tokens.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence

import numpy as np

from npllama.config import Config
from npllama.files.checkpoint import checked, locate, refuse_source, widen
from npllama.files.npz import read_npz
from npllama.weights import Layer, assemble


class Table:
    """The embedding as it lies in the file; rows are widened when they are looked up."""

    def __init__(self, stored: np.ndarray, kind: str, dtype: str):
        self.stored, self.kind, self.dtype = stored, kind, np.dtype(dtype)

    def __getitem__(self, tokens: np.ndarray) -> np.ndarray:
        """(*B,) int64 to (*B, E)."""
        return widen(self.stored[tokens], self.kind, self.dtype.name)


class StreamedLayer:
    """A block whose weights are widened when they are asked for, one by one."""

    def __init__(self, stored: Layer, kind: str, dtype: str):
        self.stored, self.kind, self.dtype = stored, kind, dtype

    def __getattr__(self, word: str) -> np.ndarray | None:
        """A weight by its word in `Layer`."""
        tensor = getattr(self.stored, word)
        return None if tensor is None else widen(tensor, self.kind, self.dtype)


class Layers(Sequence[StreamedLayer]):
    """The blocks of a model in a mapped file."""

    def __init__(self, config: Config, tensors: Mapping[str, np.ndarray], kind, dtype):
        self.tensors, self.kind, self.dtype = tensors, kind, dtype
        self.blocks = assemble(config, tensors).layers

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, i):
        """Block i; what was read for others is let go."""
        let_go(self.tensors)
        return StreamedLayer(self.blocks[i], self.kind, self.dtype)


def let_go(tensors: Mapping[str, np.ndarray]) -> None:
    """Give back the pages of the mapped file (where the system has a way to)."""
    base = next(iter(tensors.values())).base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


class StreamedModel:
    """What the forward pass needs of a `Model`, never more than a layer in memory.

    Parameters
    ----------
    path : path or str
        Of an ``.npz`` as for `checkpoint.load`.
    dtype : "float32" or "float64"
        The arithmetic that the forward pass will run in.

    Raises
    ------
    ValueError, OSError
        As `checkpoint.load`.
    """

    def __init__(self, path: str | os.PathLike, dtype: str = "float64"):
        path = locate(path)
        refuse_source(path)
        archive = read_npz(path)
        self.config, self.kind, self.tokenizer = checked(path, archive)
        self.tensors, self.dtype = archive.tensors, dtype
        self.embed = Table(self.tensors["model.embed_tokens.weight"], self.kind, dtype)
        self.layers = Layers(self.config, self.tensors, self.kind, dtype)

    @property
    def norm(self) -> np.ndarray:
        """(E,), the gain of the last norm."""
        return widen(self.tensors["model.norm.weight"], self.kind, self.dtype)

    @property
    def lm_head(self) -> np.ndarray:
        """(V, E), made anew each time it is asked for."""
        tied = self.config.tie_word_embeddings
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return widen(self.tensors[name], self.kind, self.dtype)
