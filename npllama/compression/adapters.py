r"""LoRA beside its base: a fine-tune that leaves the weights as they are.

LoRA changes a weight by a matrix of low rank R, kept as two thin factors.  `convert`
can add their product to the weight once and for all.  Here the weight stays, and each
product gets the change as two thin products more:

$$y = x W' + s\,(x A') B', \qquad s = \alpha / R \;\text{ or, rank-stabilised, }\;
\alpha / \sqrt{R}$$

with W (C, S), A (R, S) and B (C, R).  For n rows that takes 2 n R (S + C) FLOPs more
than the 2 n S C of the weight itself.  For a matrix of 4096 x 4096 and a rank of 16
that is one in 128:

>>> 2 * 16 * (4096 + 4096) / (2 * 4096 * 4096)
0.0078125

So many fine-tunes share one copy of the weights, which may be packed into few bits, as
in QLoRA.  They may even share a pass: every row gets the change of its own text's
adapter, and the weights are read once for all of them (`Adapters`, which an engine can
be given).  Inside `ops.rowwise` a text's numbers are, bit for bit, those of a pass in
which it is alone.

What is more than two factors of a linear layer cannot stand beside its base here: DoRA,
which scales the rows of the sum W + s B A; factors of the embedding; whole tensors.
`convert` merges them.

References
----------
Hu et al. 2021, arXiv:2106.09685, section 4.1 (LoRA); Kalajdzievski 2023,
arXiv:2312.03732 (rank-stabilised); Dettmers et al. 2023, arXiv:2305.14314 (QLoRA); Chen
et al. 2023, "Punica", arXiv:2310.18547 (many adapters in one pass).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.config import Config
from npllama.convert.adapter import (
    Factors,
    adapter_tensors,
    check_settings,
    read_float32,
    take_factors,
)
from npllama.convert.source import Tensor, read_json
from npllama.ops import einsum, multiply
from npllama.weights import LAYER_NAMES, Layer, Model, tensor_shapes

#  ---- the product --------------------------------------------------------------


class LowRank(NamedTuple):
    """What an adapter adds to one weight: s B A."""

    a: np.ndarray  # (R, S) float
    b: np.ndarray  # (C, R) float
    scale: float


def change(x: np.ndarray, added: LowRank, name: str) -> np.ndarray:
    """What an adapter adds to a product; counted as two products under its name.

    Parameters
    ----------
    x : (M, S) float
    added : LowRank
    name : str
        Of the product, such as ``"q_proj"``.

    Returns
    -------
    (M, C) float
    """
    # In the letters of the book: T rows, E inputs, F outputs.
    low = einsum("TE,RE->TR", x, added.a, f"{name}.lora_A")
    # The scale goes where the fewest numbers are.
    return einsum("TR,FR->TF", low * added.scale, added.b, f"{name}.lora_B")


Rows = slice | np.ndarray  # an array holds the places of some rows


class Adapted(NamedTuple):
    """A `Weight` with the changes of adapters beside it, each for some of the rows."""

    base: Any  # an array or another Weight, (C, S), perhaps with axes of heads
    name: str  # of its product
    changes: tuple[tuple[Rows, LowRank], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the base."""
        return self.base.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the arithmetic."""
        return self.base.dtype

    @property
    def kept(self) -> tuple[str, int]:
        """The base's format and bytes; factors count in products of their own."""
        if isinstance(self.base, np.ndarray):
            return self.base.dtype.name, self.base.nbytes
        return self.base.kept

    def __repr__(self) -> str:
        ranks = ", ".join(str(len(added.a)) for _, added in self.changes)
        return f"Adapted({self.name} {self.shape}, ranks {ranks or 'none'})"

    def times(self, a: np.ndarray) -> np.ndarray:
        """Multiply rows: (M, S) to (M, C)."""
        if isinstance(self.base, np.ndarray):
            y = multiply(a, self.base.reshape(-1, a.shape[1]).T)  # (M, C)
        else:
            y = self.base.times(a)  # (M, C)
        for rows, added in self.changes:
            y[rows] += change(a[rows], added, self.name)
        return y


#  ---- a model ------------------------------------------------------------------

Adapter = Mapping[str, LowRank]  # by module: "model.layers.0.self_attn.q_proj"
HEAD = "lm_head"


class Use(NamedTuple):
    """An adapter, and the rows of a pass that it is for; all of them by default."""

    adapter: Adapter
    rows: Rows = slice(None)  # of the new positions of all texts
    logits: Rows = slice(None)  # of those whose logits are wanted


def adapted(model: Model, uses: Iterable[Use]) -> Model:
    """A model whose weights have adapters beside them; nothing is copied.

    Parameters
    ----------
    model : Model
        Its matrices may be packed, or adapted already.
    uses : iterable of Use
        With rows that are not all, for a single pass.
    """
    uses = list(uses)

    def beside(base: Any, module: str) -> Any:
        found = []
        for use in uses:
            rows = use.logits if module == HEAD else use.rows
            if module in use.adapter and (isinstance(rows, slice) or len(rows)):
                found.append((rows, use.adapter[module]))
        name = module.rpartition(".")[2]
        return Adapted(base, name, tuple(found)) if found else base

    def layer_beside(i: int, layer: Layer) -> Layer:
        modules = {
            word: f"model.layers.{i}.{name.removesuffix('.weight')}"
            for word, name in LAYER_NAMES.items()
            if word.startswith("w")
        }
        return layer._replace(
            **{word: beside(getattr(layer, word), m) for word, m in modules.items()}
        )

    layers = tuple(layer_beside(i, layer) for i, layer in enumerate(model.layers))
    return model._replace(layers=layers, lm_head=beside(model.lm_head, HEAD))


@dataclass(frozen=True)
class Adapters:
    """Adapters by name, for an engine whose requests name them.

    Parameters
    ----------
    named : mapping of name to Adapter
    """

    named: Mapping[str, Adapter]

    def __contains__(self, name: object) -> bool:
        return name in self.named

    def beside(self, model: Model, rows: np.ndarray, logits: np.ndarray) -> Model:
        """The model for one pass.

        Parameters
        ----------
        model : Model
        rows : (T,) str
            The adapter of every new position; "" stands for none.
        logits : (M,) str
            Of every position whose logits are wanted.
        """
        uses = (
            Use(
                self.named[str(name)],
                np.flatnonzero(rows == name),
                np.flatnonzero(logits == name),
            )
            for name in np.unique(rows)
            if name
        )
        return adapted(model, uses)


#  ---- a folder -----------------------------------------------------------------


def read_adapter(folder: Path, config: Config, dtype: str = "float32") -> Adapter:
    """Read a folder that PEFT wrote.

    Parameters
    ----------
    folder : path
        With ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``).
    config : Config
        Of the model.
    dtype : "float32" or "float64"
        That of the model's arithmetic.

    Raises
    ------
    ValueError
        If the adapter is not a LoRA, does not fit the model, or can only be merged.
    OSError
        If a file cannot be read.
    """
    settings = read_json(folder / "adapter_config.json")
    rest = adapter_tensors(folder)
    try:
        check_settings(settings)
        if settings.get("use_dora"):
            raise ValueError(f"use_dora: DoRA scales the rows of the sum; {MERGE}")
        found = _linear(config, rest, settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None

    def read(tensor: Tensor) -> np.ndarray:
        return read_float32(tensor).astype(dtype, copy=False)

    return {m: LowRank(read(f.a), read(f.b), f.scale) for m, f in found.items()}


MERGE = "merge it first: npllama convert BASE OUT.npz --adapter DIR"


def _linear(
    config: Config, rest: dict[str, Tensor], settings: dict[str, Any]
) -> dict[str, Factors]:
    """The factors of every module, checked; nothing else may be in the file."""
    shapes = tensor_shapes(config)
    if config.tie_word_embeddings:
        # Its factors change the head alone, not the embedding that it is tied to.
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    found = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if name in rest:
            raise ValueError(f"{name} is a whole tensor; {MERGE}")
        factors = take_factors(rest, module, settings)
        if factors is None:
            continue
        if factors.embedding:
            raise ValueError(f"{module}: an embedding is not multiplied; {MERGE}")
        b, a = factors.b.shape, factors.a.shape
        if (*b, *a) != (shape[0], a[0], a[0], *shape[1:]):
            raise ValueError(f"{module}: factors {b} and {a} do not make {shape}")
        found[module] = factors
    if rest:
        raise ValueError(
            f"{min(rest)}: no part of a LoRA, or not of a LLaMA of this config"
        )
    if not found:
        raise ValueError("no matrix of the model is changed by it")
    return found
