r"""A whole model in few bits: block by block, each finished block kept.

`calibrate` brings texts through the model; here every matrix of a block is rounded by
a method of `METHODS`, one row of a table each.  The embedding is looked up and not
multiplied, so it stays in floats, and with it the head; norms and biases are small.

Every report gives, for each matrix, the loss: the relative squared error of its outputs
on the inputs that it was fitted to,

$$\frac{\mathrm{tr}\,(W - Q)\, H\, (W - Q)^T}{\mathrm{tr}\, W H W^T}$$

and, for the block, the divergence (see `quality`) of the model whose blocks are rounded
up to this one, on texts that were held out.

To quantise a large model takes hours.  So each block is written to a file of its own,
in a folder beside the result, when it is done.  A run that was stopped goes on after the
last whole block: it brings the texts through the finished blocks, which is quick, and
gives the very numbers that it would have given.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import npllama
from npllama.compression.ant import ant, packed_ant
from npllama.compression.calibrate import (
    HALVES,
    MATRICES,
    Inputs,
    inputs_of,
    through,
)
from npllama.compression.folds import awq
from npllama.compression.gptq import Quantised, Recipe, gptq, objective, rtn
from npllama.compression.olive import olive, packed_olive
from npllama.compression.packed import packed
from npllama.compression.quality import divergence
from npllama.config import Config
from npllama.convert.convert import narrow
from npllama.files.checkpoint import widen
from npllama.files.npz import read_npz, write_array, write_text, writing
from npllama.files.packed import TABLE, Packed, collect, parts_of
from npllama.golden.streamed import StreamedModel
from npllama.norm import rms_norm
from npllama.ops import einsum
from npllama.weights import LAYER_NAMES, Layer, layer_shapes

#  ---- methods -----------------------------------------------------------------


class Method(NamedTuple):
    """A way to round a matrix (C, S), perhaps after the block was prepared for it."""

    says: str  # in a line
    round: Callable[[np.ndarray, Inputs | None, Recipe], Packed]
    needs_inputs: bool = False  # there has to be a text for calibration
    # Of a block and what goes into its matrices: the same block, up to rounding, with
    # weights that are easier to round.
    prepare: Callable[[Layer, Mapping[str, Inputs], Recipe], Layer] | None = None
    bits: Sequence[int] = range(2, 9)  # that it has
    own_values: bool = False  # it has no other kind of grid, and clips by itself


def as_packed(found: Quantised, recipe: Recipe) -> Packed:
    """Pack what was rounded; points of a codebook go by the name of the recipe's kind."""
    name = None if found.grid.points is None else recipe.kind
    return packed(found.codes, found.grid, found.groups, name)


def by_rtn(w: np.ndarray, inputs: Inputs | None, recipe: Recipe) -> Packed:
    """Every weight to its nearest value."""
    return as_packed(rtn(w, recipe), recipe)


def by_gptq(w: np.ndarray, inputs: Inputs | None, recipe: Recipe) -> Packed:
    """Column by column, errors made up for by later columns."""
    assert inputs is not None
    return as_packed(gptq(w, inputs.gram, recipe), recipe)


def by_ant(w: np.ndarray, inputs: Inputs | None, recipe: Recipe) -> Packed:
    """To the nearest, of the kind of numbers that suits the matrix."""
    return packed_ant(w, *ant(w, recipe.bits, recipe.group))


def by_olive(w: np.ndarray, inputs: Inputs | None, recipe: Recipe) -> Packed:
    """To the nearest, outliers in place of their neighbours."""
    return packed_olive(olive(w, recipe.bits, recipe.group))


METHODS = {
    "rtn": Method("round every weight to the nearest value", by_rtn),
    "gptq": Method("make up for errors by the weights that are left", by_gptq, True),
    "awq": Method("spare the weights that large inputs meet", by_rtn, True, awq),
    "ant": Method(
        "round to the kind of numbers that suits each matrix",
        by_ant,
        bits=range(3, 9),
        own_values=True,
    ),
    "olive": Method(
        "let outliers take the place of their neighbours",
        by_olive,
        bits=(4,),
        own_values=True,
    ),
}


@dataclass(frozen=True)
class Plan:
    """What is to be done to a model."""

    method: str = "gptq"
    recipe: Recipe = Recipe()
    sequential: bool = True  # a stage sees what the stages before it lost
    float_inputs: bool = False  # no block sees what the blocks before it lost


def check(plan: Plan) -> None:
    """Raise ValueError if the method cannot follow the recipe."""
    method, recipe = METHODS[plan.method], plan.recipe
    if recipe.bits not in method.bits:
        known = ", ".join(map(str, method.bits))
        raise ValueError(f"{plan.method} has {known} bits, not {recipe.bits}")
    if method.own_values and (recipe.kind, recipe.exponent) != ("symmetric", None):
        raise ValueError(f"{plan.method} has values of its own: no other grid, no clip")


class Report(NamedTuple):
    """What became of a block."""

    number: int
    losses: dict[str, float]  # by word in `Layer`; of the outputs, relative
    divergence: float | None  # with the blocks up to this one rounded


class Done(NamedTuple):
    """A block in few bits."""

    layer: Layer
    losses: dict[str, float]


#  ---- a block -----------------------------------------------------------------


def flat_shape(word: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape (C, S) of a weight as a matrix, its heads merged."""
    outputs = 2 if word in ("wq", "wk", "wv") else 1
    return math.prod(shape[:outputs]), math.prod(shape[outputs:])


def loss(w: np.ndarray, rounded: np.ndarray, inputs: Inputs | None) -> float:
    """The relative squared error of the outputs; of the weights if inputs are unknown."""
    gram = np.eye(w.shape[1], dtype=np.float64) if inputs is None else inputs.gram
    whole = objective(w, np.zeros_like(w), gram)
    return objective(w, rounded, gram) / whole if whole else 0.0


def in_few_bits(
    layer: Layer, xs: Sequence[np.ndarray], plan: Plan, config: Config
) -> Done:
    """Round all matrices of a block.

    Parameters
    ----------
    layer : Layer
    xs : sequence of (1, T, E) float
        What goes into the block; empty if nothing is known.
    plan : Plan
    config : Config
    """
    method, losses = METHODS[plan.method], dict[str, float]()
    if method.prepare is not None:
        layer = method.prepare(layer, _all_inputs(layer, xs, config), plan.recipe)
    whole, sequential = layer, plan.sequential and not plan.float_inputs
    for half in HALVES:
        every = tuple(word for stage in half.stages for word in stage)
        for words in half.stages if sequential else (every,):
            known = inputs_of(words, half, xs, layer, config)
            for word in words:
                w, inputs = getattr(layer, word), known.get(word)
                matrix = w.reshape(flat_shape(word, w.shape))  # (C, S)
                found = method.round(matrix, inputs, plan.recipe)
                losses[word] = loss(matrix, found.dense(), inputs)
                new: dict[str, Any] = {word: found.reshape(w.shape)}
                layer = layer._replace(**new)
        xs = [half.run(x, layer if sequential else whole, config) for x in xs]
    return Done(layer, losses)


def _all_inputs(layer: Layer, xs, config: Config) -> dict[str, Inputs]:
    """What goes into every matrix of a block in floats."""
    found: dict[str, Inputs] = {}
    for half in HALVES:
        every = [word for stage in half.stages for word in stage]
        found |= inputs_of(every, half, xs, layer, config)
        xs = [half.run(x, layer, config) for x in xs]
    return found


#  ---- blocks that are done ----------------------------------------------------


class FinishedBlocks:
    """Finished blocks in a folder, for a run that goes on.

    Parameters
    ----------
    folder : path
        Made when the first block is kept.
    mark : str
        Of the run; blocks with another mark do not count.
    """

    def __init__(self, folder: Path, mark: str):
        self.folder, self.mark = folder, mark

    def put(self, i: int, done: Done) -> None:
        """Keep block i."""
        self.folder.mkdir(exist_ok=True)
        about: dict[str, Any] = {"mark": self.mark, "losses": done.losses, "packed": {}}
        with writing(self.folder / f"{i}.npz") as archive:
            tables = {}
            for word, w in done.layer._asdict().items():
                if isinstance(w, Packed):
                    about["packed"][word] = {"format": w.format, "group": w.group}
                    tables[TABLE + w.format] = w.table.astype(np.float32)
                    for part, array in parts_of(word, w).items():
                        write_array(archive, part, array)
                elif w is not None:
                    write_array(archive, word, w)
            for name, table in tables.items():
                write_array(archive, name, table)
            write_text(archive, "about.json", json.dumps(about))

    def get(self, i: int, config: Config) -> Done | None:
        """Block i, if this run has finished it."""
        try:
            archive = read_npz(self.folder / f"{i}.npz")
            about = json.loads(archive.files["about.json"])
            if about["mark"] != self.mark:
                return None
            of = {word: layer_shapes(config)[LAYER_NAMES[word]] for word in MATRICES}
            collect(archive.tensors, about["packed"], of)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Done(_with_heads(archive.tensors, config), about["losses"])

    def clear(self) -> None:
        """Remove the blocks, and the folder if nothing else is in it."""
        for path in self.folder.glob("*.npz"):
            if path.stem.isdecimal():
                path.unlink()
        with suppress(OSError):
            self.folder.rmdir()


def _with_heads(tensors: Mapping[str, Any], config: Config) -> Layer:
    """A block of its weights, those of heads with the heads on an axis of their own."""
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    E = config.hidden_size
    split = {"wq": (H, D, E), "wk": (K, D, E), "wv": (K, D, E), "wo": (E, H, D)}
    return Layer(**{n: w.reshape(split.get(n, w.shape)) for n, w in tensors.items()})


def mark_of(path: Path, plan: Plan, rows: Sequence[np.ndarray]) -> str:
    """A SHA-256 of all that the blocks of a run depend on."""
    stat = path.stat()
    told = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {plan}"
    digest = hashlib.sha256(f"{npllama.__version__} {told}".encode())
    for row in rows:
        digest.update(str(row.shape).encode())
        digest.update(row.tobytes())
    return digest.hexdigest()


#  ---- the model ---------------------------------------------------------------


def block_of(model: StreamedModel, i: int) -> Layer:
    """A block of a model on disk, in memory."""
    layer = model.layers[i]
    return Layer(**{word: getattr(layer, word) for word in LAYER_NAMES})


def logits_of(model: StreamedModel, x: np.ndarray) -> np.ndarray:
    """Logits of the residual stream after the last block: (1, T, E) to (1, T, V)."""
    normed = rms_norm(x, model.norm, model.config.rms_norm_eps)  # (1, T, E)
    return einsum("BTE,VE->BTV", normed, model.lm_head, "lm_head")


def through_the_rest(
    model: StreamedModel, xs: Sequence[np.ndarray], first: int
) -> list[np.ndarray]:
    """Logits of texts that stand before block `first`.

    The remaining blocks run in floats.
    """
    for i in range(first, model.config.num_hidden_layers):
        xs = through(xs, model.layers[i], model.config)
    return [logits_of(model, x) for x in xs]


def quantised(
    model: StreamedModel,
    rows: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    plan: Plan,
    kept: FinishedBlocks,
) -> Iterator[Report]:
    """Round a model block by block.

    Parameters
    ----------
    model : StreamedModel
    rows, held_out : sequences of (1, T) int64
        Texts to fit the blocks to, and texts to judge them by.
    plan : Plan
    kept : FinishedBlocks

    Writes
    ------
    Every block, into `kept`; those that are there already are used as they are.

    Raises
    ------
    ValueError
        If the method needs texts and there are none, or a matrix cannot be rounded.
    """
    if METHODS[plan.method].needs_inputs and not rows:
        raise ValueError(f"{plan.method} needs texts to fit the weights to; none given")
    config = model.config
    xs, judged = [[model.embed[row] for row in of] for of in (rows, held_out)]
    exact = through_the_rest(model, judged, 0)
    for i in range(config.num_hidden_layers):
        done = kept.get(i, config)
        whole = block_of(model, i) if done is None or plan.float_inputs else None
        if done is None:
            try:
                done = in_few_bits(whole, xs, plan, config)
            except ValueError as error:
                raise ValueError(f"model.layers.{i}: {error}") from None
            kept.put(i, done)
        xs = through(xs, whole if plan.float_inputs else done.layer, config)
        judged = through(judged, done.layer, config)
        found = through_the_rest(model, judged, i + 1)
        apart = [divergence(p, q).ravel() for p, q in zip(exact, found)]
        yield Report(
            i, done.losses, float(np.concatenate(apart).mean()) if apart else None
        )


def tensors_of(
    model: StreamedModel, kept: FinishedBlocks
) -> Iterator[tuple[str, np.ndarray | Packed]]:
    """All tensors of a model whose blocks are kept, as `files.checkpoint.save` wants."""
    config = model.config
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        if name in model.tensors:
            yield name, model.tensors[name]
    for i in range(config.num_hidden_layers):
        done = kept.get(i, config)
        if done is None:
            raise ValueError(f"block {i} is not in {kept.folder}")
        for word, w in done.layer._asdict().items():
            if w is not None:
                name = f"model.layers.{i}.{LAYER_NAMES[word]}"
                yield name, _stored(word, w, model, name)


def _stored(word: str, w: Any, model: StreamedModel, name: str) -> Any:
    """A weight of a finished block as the file keeps it."""
    if isinstance(w, Packed):
        return w.reshape(flat_shape(word, w.shape))
    own = model.tensors[name]
    # What no method has changed need not be narrowed again.
    same = np.array_equal(w.ravel(), widen(own, model.kind, "float32").ravel())
    return own if same else narrow(w.reshape(own.shape), model.kind)
