"""Record: run the model, and keep every number on the way.

The forward pass shows its arrays to observers (`ops`).  The recorder is one, and writes
each tensor to the file immediately, so it holds only one at a time.  A prompt runs in
one pass, then one token per pass.  Tokens are the likeliest ones, or they are drawn;
then the number u of every draw is kept, so that any backend can repeat it.

Golden numbers are float64.  The effect of lower precision on them, the noise floor, is
measured with the same weights and written to the same file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from npllama.attention import blocked, softmax
from npllama.cache import new_cache
from npllama.config import config_to_hf
from npllama.decoding.common import context_length
from npllama.files.npz import adding_to, read_open, write_array, write_text
from npllama.files.whole import new_file
from npllama.golden.floor import floor
from npllama.golden.precision import check_dtype
from npllama.golden.trace import FORMAT, META, MOST_META, Trace
from npllama.model import forward
from npllama.ops import Kind, Observer, einsum, is_rowwise, note, observing
from npllama.sampling import draw
from npllama.sampling import softmax as probabilities
from npllama.weights import Layer, Model

FLOORS = ("float32", "bfloat16", "float16")

# What the forward pass calls its products and arrays, and the module of each.
MODULES = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "q_rope": "self_attn.q_rope",
    "k_rope": "self_attn.k_rope",
    "masked_scores": "self_attn.scores",
    "attention": "self_attn.attention",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "act_fn": "mlp.act_fn",
    "down_proj": "mlp.down_proj",
}
# Products that are no module of their own: attention's, block by block.
INNER = {"scores", "values"}
BIASES = {"q_proj": "bq", "k_proj": "bk", "v_proj": "bv", "o_proj": "bo"}
BIASES |= {"gate_proj": "b_gate", "up_proj": "b_up", "down_proj": "b_down"}


class Wanted(NamedTuple):
    """What to run, and what to keep of it.

    Parameters
    ----------
    new_tokens : int
        Steps of decode after the prompt.
    only : patterns
        Names of modules to keep, such as ``model.layers.0.*``; all, if empty.
    scores : bool
        Keep attention's scores as well, which are large: (B, H, T, S) per layer.
    floors : dtypes
        Whose noise floors to measure; none, if empty.
    """

    new_tokens: int = 0
    only: tuple[str, ...] = ()
    scores: bool = False
    floors: tuple[str, ...] = FLOORS


ALL = Wanted()


class Recorder(Observer):
    """An observer that passes on every tensor, under its name in a trace.

    Parameters
    ----------
    model : Model
        Its biases are added to the products that they belong to.
    keep : function
        Called with each name and array; the array is only valid during the call.
    """

    def __init__(self, model: Model, keep: Callable[[str, np.ndarray], None]):
        self.model, self.keep = model, keep
        self.step = self.place = ""
        self.layer: Layer | None = None

    def enter(self, place: str) -> None:
        """The computation enters a block, or leaves the blocks."""
        if place != self.place and place.startswith("model.layers."):
            self.layer = self.model.layers[int(place.rsplit(".", 1)[1])]
        self.place = place

    def product(self, kind: Kind, a, b, y) -> None:
        """A product was computed; a module's output has its bias added."""
        name = kind.name
        if name in INNER:
            return
        bias = getattr(self.layer, BIASES[name]) if name in BIASES else None
        self.note(name, y if bias is None else y + bias)

    def note(self, name: str, x: np.ndarray) -> None:
        """An array was computed."""
        first, dot, rest = name.partition(".")  # "q_proj.lora_A" is inside "q_proj"
        module = (
            name
            if first == "lm_head"
            else f"{self.place}.{MODULES.get(first, first)}{dot}{rest}"
        )
        self.keep(f"{self.step}/{module}", x)


def attend_in_one_piece(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Causal attention with all scores at once, so that they can be looked at.

    Parameters
    ----------
    q : (B, T, H, D) float
    k, v : (B, K, N, D) float
    start : (B,) int64

    Returns
    -------
    (B, T, H, D) float
    """
    B, T, H, D = q.shape
    K, S = k.shape[1], int(start.max()) + T
    grouped = q.reshape(B, T, K, H // K, D)
    scores = einsum("BTKGD,BKSD->BKGTS", grouped, k[:, :, :S], "scores")
    scores = scores * (1 / math.sqrt(D))  # (B, K, G, T, S)
    position = start[:, None] + np.arange(T)  # (B, T)
    hidden = np.arange(S) > position[:, :, None]  # (B, T, S)
    scores = np.where(hidden[:, None, None], -np.inf, scores)  # (B, K, G, T, S)
    note("masked_scores", scores.reshape(B, H, T, S))
    y = einsum("BKGTS,BKSD->BTKGD", softmax(scores), v[:, :, :S], "values")
    return y.reshape(B, T, H, D)


#  ---- running ----------------------------------------------------------------


def choose(logits: np.ndarray, rng: np.random.Generator | None) -> tuple[Any, Any]:
    """The next token of every row, and the numbers u of the draw if there was one.

    Parameters
    ----------
    logits : (B, V) float

    Returns
    -------
    tokens : (B,) int64
    u : (B,) float64, or None
    """
    if rng is None:
        return logits.argmax(axis=-1), None
    u = rng.random(len(logits))  # (B,)
    return np.asarray(draw(probabilities(logits), u)), u


def run(
    model: Model,
    prompt: np.ndarray,
    wanted: Wanted,
    keep: Callable[[str, np.ndarray], None],
    rng: np.random.Generator | None = None,
) -> None:
    """Prefill and decode, handing every tensor to `keep`.

    Parameters
    ----------
    model : Model
    prompt : (B, T) int64
    wanted : Wanted
    keep : function
        Of name and array.
    rng : np.random.Generator
        None takes the likeliest token.
    """
    B, T = prompt.shape
    cache = new_cache(model.config, B, T + wanted.new_tokens, model.embed.dtype.name)
    recorder = Recorder(model, keep)
    attend = attend_in_one_piece if wanted.scores else blocked
    steps = ["prefill", *(f"decode.{i}" for i in range(wanted.new_tokens))]
    tokens, drawn = prompt, []
    for i, recorder.step in enumerate(steps):
        with observing(recorder):
            logits = forward(
                model, tokens[:, -T if i == 0 else -1 :], cache, attend=attend
            )
        if i < wanted.new_tokens:
            chosen, u = choose(logits[:, -1], rng)
            tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
            drawn += [] if u is None else [u]
    for name, array in (("cache.k", cache.k), ("cache.v", cache.v)):
        keep(name, array)
    keep("tokens", tokens)
    if drawn:
        keep("u", np.stack(drawn, axis=1))


def record(
    model: Model,
    prompt: Sequence[Sequence[int]] | np.ndarray,
    path: str | os.PathLike,
    wanted: Wanted = ALL,
    *,
    rng: np.random.Generator | None = None,
    plain: Model | None = None,
    weights: Mapping[str, Any] | None = None,
) -> None:
    """Run the model on a prompt and write a golden trace.

    Parameters
    ----------
    model : Model
        Its dtype is that of the trace; load it with ``dtype="float64"``.
    prompt : (B, T) int
        Rows of one length.
    path : path or str
        Of the ``.npz``; the file appears when it is whole.
    wanted : Wanted
    rng : np.random.Generator
        Draw tokens; None takes the likeliest.
    plain : Model
        The same weights in float32, for the noise floors; `model` by default.
    weights : mapping
        Entries about the weights for ``meta.json``, such as ``weights_sha256``.

    Raises
    ------
    ValueError
        If the prompt is empty, ragged, outside the vocabulary or too long, or a
        pattern of `only` names nothing.
    """
    prompt = check_prompt(model, prompt, wanted)
    shapes: dict[str, list[int]] = {}

    def keep(name: str, array: np.ndarray) -> None:
        if selected(name, wanted.only):
            shapes[name] = list(array.shape)
            write_array(archive, name, array)

    with new_file(path) as file:
        with adding_to(file) as archive:
            run(model, prompt, wanted, keep, rng)
        if not any("/" in name for name in shapes):
            raise ValueError(f"no tensor has a name like {' or '.join(wanted.only)}")
        file.flush()
        meta = about(model, prompt, shapes) | dict(weights or {})
        trace = Trace(read_open(file, path).tensors, meta)
        meta["floor"] = {
            dtype: floor(trace, plain or model, dtype) for dtype in wanted.floors
        }
        with adding_to(file) as archive:
            write_text(archive, META, described(meta))


def described(meta: Mapping[str, Any]) -> str:
    """The text of ``meta.json``; ValueError if no reader would take so long a one."""
    text = json.dumps(meta)
    if len(text) > MOST_META:
        count = len(meta["shapes"])
        raise ValueError(f"too many tensors to describe ({count}): keep fewer")
    return text


def selected(name: str, only: Sequence[str]) -> bool:
    """Whether a tensor was asked for; the tokens that were run always are."""
    module = name.rpartition("/")[2]
    always = not only or name in ("tokens", "u")
    return always or any(fnmatch.fnmatchcase(module, pattern) for pattern in only)


def check_prompt(model: Model, prompt, wanted: Wanted) -> np.ndarray:
    """The prompt as integers of (B, T), or a ValueError that says what is wrong."""
    lengths = {len(row) for row in prompt}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"prompt: rows of one length, at least 1, are needed; found {sorted(lengths)}"
        )
    if wanted.new_tokens < 0:
        raise ValueError(f"new_tokens is {wanted.new_tokens}; it must be 0 or more")
    for dtype in wanted.floors:
        check_dtype(dtype)
    longest = context_length(model.config)
    if (total := max(lengths) + wanted.new_tokens) > longest:
        raise ValueError(f"{total} tokens do not fit in a context of {longest}")
    return np.asarray(prompt)


def about(model: Model, prompt: np.ndarray, shapes: dict) -> dict[str, Any]:
    """What ``meta.json`` says of a run."""
    return {
        "format": FORMAT,
        "producer": "npllama",
        "dtype": model.embed.dtype.name,
        "config": config_to_hf(model.config),
        "head_dim": model.config.head_dim,
        "rope_layout": "half",
        "rowwise": is_rowwise(),
        "prompt_tokens": prompt.shape[1],
        "versions": {"numpy": np.__version__, "python": platform.python_version()},
        "shapes": shapes,
    }


def sha256(path: str | os.PathLike) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
