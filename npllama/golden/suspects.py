"""What a wrong tensor would be, were one of the usual faults made in its operation.

Everything that the first wrong tensor was made from is still right.  So a suspicion can
be tested by computing the tensor again, with the mistake in.  The inputs are the
candidate's own where it has them (its rounding errors are then in both), else the
golden ones.  Each function of this chapter does that for one kind of operation, and
most need no weights: a gain can be read off the golden tensors on its two sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from npllama.config import Config
from npllama.golden.compare import Row, Tensors, aligned
from npllama.golden.faults import (
    EPSILONS,
    MATRICES,
    TEXTS,
    dense_attention,
    grouped,
    scores_of,
    transposed,
    wrong_attentions,
    wrong_ropes,
)
from npllama.golden.floor import split_name, steps_of
from npllama.ops import einsum
from npllama.rope import rope_tables, rotate, rotate_neighbours
from npllama.weights import Model


class Suspicion(NamedTuple):
    """What the tensor would be, were the fault made."""

    fault: str
    text: str
    tensor: np.ndarray


class Scene(NamedTuple):
    """The first tensor outside, and what may be looked at to explain it."""

    golden: Tensors
    candidate: Tensors
    row: Row
    dtype: str
    factor: float
    config: Config
    model: Model | None = None

    @property
    def step(self) -> str:
        return split_name(self.row.name)[0]

    @property
    def module(self) -> str:
        return split_name(self.row.name)[1]

    @property
    def exact(self) -> np.ndarray:
        return np.asarray(self.golden[self.row.name], dtype=np.float64)

    def sibling(self, kind: str) -> str:
        """Name of another tensor of the same layer and step."""
        layer = ".".join(self.module.split(".")[:3])
        return f"{self.step}/{layer}.{kind}"

    def given(self, name: str) -> np.ndarray | None:
        """A tensor of the candidate, of the golden trace if it has none, or None."""
        if name not in self.golden:
            return None
        exact = np.asarray(self.golden[name], dtype=np.float64)
        if name not in self.candidate:
            return exact
        try:
            y = aligned(name, self.candidate[name], exact).astype(np.float64)
        except ValueError:
            return exact
        return y if np.isfinite(y[np.isfinite(exact)]).all() else exact


def candidate_of(scene: Scene) -> np.ndarray:
    """The candidate's tensor in the golden shape."""
    y = aligned(scene.row.name, scene.candidate[scene.row.name], scene.exact)
    return y.astype(np.float64)


#  ---- what a tensor is made from ---------------------------------------------

MADE_FROM = {
    "self_attn.q_proj": ("input_layernorm",),
    "self_attn.k_proj": ("input_layernorm",),
    "self_attn.v_proj": ("input_layernorm",),
    "self_attn.q_rope": ("self_attn.q_proj",),
    "self_attn.k_rope": ("self_attn.k_proj",),
    "self_attn.scores": ("self_attn.q_rope", "self_attn.k_rope"),
    "self_attn.attention": (
        "self_attn.q_rope",
        "self_attn.k_rope",
        "self_attn.v_proj",
    ),
    "self_attn.o_proj": ("self_attn.attention",),
    "post_attention_layernorm": ("post_attention",),
    "mlp.gate_proj": ("post_attention_layernorm",),
    "mlp.up_proj": ("post_attention_layernorm",),
    "mlp.act_fn": ("mlp.gate_proj",),
    "mlp.down_proj": ("mlp.act_fn", "mlp.up_proj"),
    "output": ("post_attention", "mlp.down_proj"),
}


def made_from(name: str, layers: int) -> list[str]:
    """Names of the tensors that one is computed from, in the same step.

    Parameters
    ----------
    name : str
        Such as ``"prefill/model.layers.1.input_layernorm"``.
    layers : int
        L, the number of blocks.
    """
    step, module = split_name(name)
    words = module.split(".")
    if module in ("model.norm", "lm_head"):
        last = f"model.layers.{layers - 1}.output" if module != "lm_head" else None
        return [f"{step}/{last or 'model.norm'}"]
    if words[:2] != ["model", "layers"]:
        return []
    layer, kind = ".".join(words[:3]), ".".join(words[3:])
    i = int(words[2])
    before = f"model.layers.{i - 1}.output" if i else "model.embed_tokens"
    if kind == "input_layernorm":
        return [f"{step}/{before}"]
    if kind == "post_attention":
        return [f"{step}/{before}", f"{step}/{layer}.self_attn.o_proj"]
    return [f"{step}/{layer}.{part}" for part in MADE_FROM.get(kind, ())]


def kind_of(module: str) -> str:
    """The module's name inside its layer: ``"mlp.up_proj"``."""
    words = module.split(".")
    return ".".join(words[3:]) if words[:2] == ["model", "layers"] else module


#  ---- suspicions, operation by operation -------------------------------------


def of_norm(scene: Scene) -> Iterator[Suspicion]:
    """Epsilon and gain.  The gain is read off the golden tensors."""
    source = made_from(scene.row.name, scene.config.num_hidden_layers)[0]
    x, x_exact = scene.given(source), scene.golden.get(source)
    if x is None:
        return
    eps = scene.config.rms_norm_eps
    bare = normed(np.asarray(x_exact, dtype=np.float64), eps)
    axes = tuple(range(bare.ndim - 1))
    size = np.square(bare).sum(axis=axes)  # (E,)
    gain = (bare * scene.exact).sum(axis=axes) / np.where(size > 0, size, 1)  # (E,)
    yield Suspicion("inputs", TEXTS["inputs"], normed(x, eps) * gain)
    name = scene.module.split(".")[-1] if scene.module != "model.norm" else scene.module
    yield Suspicion("no gain", TEXTS["no gain"].format(name), normed(x, eps))
    text = TEXTS["gain plus one"].format(name)
    yield Suspicion("gain plus one", text, normed(x, eps) * (1 + gain))
    y = candidate_of(scene)
    for guess in (*EPSILONS, fitted_eps(x, gain, y)):
        if not math.isclose(guess, eps, rel_tol=0.1):
            text = TEXTS["eps"].format(guess, eps)
            yield Suspicion("eps", text, normed(x, guess) * gain)
    if bare.size // bare.shape[-1] >= 4:
        ours = normed(x, eps)
        fit = (ours * y).sum(axis=axes) / np.maximum(
            np.square(ours).sum(axis=axes), 1e-300
        )
        yield Suspicion("other gain", TEXTS["other gain"], ours * fit)


def normed(x: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm without its gain."""
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps)


def fitted_eps(x: np.ndarray, gain: np.ndarray, y: np.ndarray) -> float:
    """The epsilon under which x becomes y: the median over positions.

    A row of y is s times the row of x with its gain, and 1 / s^2 = mean(x^2) + eps.
    """
    target = x * gain
    s = (y * target).sum(axis=-1) / np.maximum(np.square(target).sum(axis=-1), 1e-300)
    with np.errstate(all="ignore"):
        eps = 1 / np.square(s) - np.square(x).mean(axis=-1)
    eps = eps[np.isfinite(eps)]
    return float(max(np.median(eps), 0.0)) if eps.size else 0.0


def positions_of(scene: Scene) -> np.ndarray:
    """Positions of the step, (1, T) int64."""
    steps = {step.name: step for step in steps_of(scene.golden)}
    step = steps[scene.step]
    return np.arange(step.first, step.end)[None]


def turned(x, config: Config, positions) -> np.ndarray:
    return rotate(x, *rope_tables(config, positions, "float64"))


def wrong_turns(x: np.ndarray, config: Config, at: np.ndarray) -> Iterator[Suspicion]:
    """Queries or keys, turned in every wrong way.

    Parameters
    ----------
    x : (B, T, H, D) float64
    at : (1, T) int64
        Their positions.
    """
    tables = rope_tables(config, at, "float64")
    yield Suspicion("interleaved", TEXTS["interleaved"], rotate_neighbours(x, *tables))
    yield Suspicion("no rotation", TEXTS["no rotation"], x)
    for key, text, rope in wrong_ropes(config.rope):
        yield Suspicion(key, text, turned(x, replace(config, rope=rope), at))
    for shift in (1, -1, 2, -2):
        text = TEXTS["position"].format(shift)
        yield Suspicion("position", text, turned(x, config, at + shift))


def of_rope(scene: Scene) -> Iterator[Suspicion]:
    """Layout, scaling, positions."""
    x = scene.given(scene.sibling(kind_of(scene.module).replace("rope", "proj")))
    if x is not None:
        right = turned(x, scene.config, positions_of(scene))
        yield Suspicion("inputs", TEXTS["inputs"], right)
        yield from wrong_turns(x, scene.config, positions_of(scene))


def history(scene: Scene, kind: str) -> np.ndarray | None:
    """A tensor of this layer over all positions up to this step: (B, K, S, D)."""
    name = split_name(scene.sibling(kind))[1]
    parts = []
    for step in steps_of(scene.golden):
        parts.append(scene.given(f"{step.name}/{name}"))
        if step.name == scene.step:
            break
    if any(part is None for part in parts):
        return None
    return np.concatenate(parts, axis=1).swapaxes(1, 2)


def of_attention(scene: Scene) -> Iterator[Suspicion]:
    """Scale, grouping and mask, in what attention returns."""
    q = scene.given(scene.sibling("self_attn.q_rope"))
    k, v = (history(scene, f"self_attn.{n}") for n in ("k_rope", "v_proj"))
    if q is None or k is None or v is None:
        return
    start = np.broadcast_to(positions_of(scene)[:, 0], len(q))
    right: tuple[str, str, dict] = ("inputs", TEXTS["inputs"], {})
    wrong = wrong_attentions(q.shape[-1], q.shape[2] // k.shape[1])
    for key, text, options in (right, *wrong):
        yield Suspicion(key, text, dense_attention(q, k, v, start, **options))


# A score below this is hidden: some backends write that instead of -inf.
HIDDEN = -1e4


def of_scores(scene: Scene) -> Iterator[Suspicion]:
    """Scale and grouping; and the mask, which shows in what is hidden."""
    q = scene.given(scene.sibling("self_attn.q_rope"))
    k, y = history(scene, "self_attn.k_rope"), candidate_of(scene)
    if q is None or k is None:
        return

    def scores(scale=None, tile=False):
        return scores_of(q, grouped(q, k, k, tile)[1], scale)

    at = positions_of(scene)[0]  # (T,)
    right, G = scores(), q.shape[2] // k.shape[1]
    others = []
    for key, text, options in wrong_attentions(q.shape[-1], G):
        if "mask_shift" not in options:
            others.append(Suspicion(key, text, scores(**options)))
        elif options["mask_shift"] is not None:
            last = at + options["mask_shift"]  # (T,)
            hidden = np.arange(y.shape[-1]) > last[:, None]  # (T, S)
            if ((y < HIDDEN) == hidden).all():
                yield Suspicion(key, text, np.where(hidden, y, right))
    yield Suspicion("inputs", TEXTS["inputs"], right)
    yield from others


def of_product(scene: Scene) -> Iterator[Suspicion]:
    """A weight read transposed, or right: its product with the right input."""
    weight = weight_of(scene)
    x = None if weight is None else input_of_product(scene)
    if weight is None or x is None:
        return
    w, bias = weight
    name = scene.module.split(".")[-1]
    outputs, inputs = scene.exact.size // (x.size // x.shape[-1]), x.shape[-1]
    w = w.reshape(outputs, inputs).astype(np.float64)
    text = TEXTS["transposed"].format(f"the weight of {name}")
    wrong = transposed(w, (outputs, inputs))
    for key, said, used in (
        ("inputs", TEXTS["inputs"], w),
        ("transposed", text, wrong),
    ):
        y = einsum("BTE,FE->BTF", x, used, name).reshape(scene.exact.shape)
        yield Suspicion(key, said, y if bias is None else y + bias)


def weight_of(scene: Scene) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The matrix and the bias that make the tensor, if the model is at hand."""
    words = {name: word for word, name in MATRICES.items()}
    name = scene.module.split(".")[-1]
    if scene.model is None:
        return None
    if name == "lm_head":
        return scene.model.lm_head, None
    if name not in words:
        return None
    layer = scene.model.layers[int(scene.module.split(".")[2])]
    return getattr(layer, words[name]), getattr(layer, "b" + words[name][1:])


def input_of_product(scene: Scene) -> np.ndarray | None:
    """What a weight is multiplied with, heads merged: (B, T, E)."""
    sources = made_from(scene.row.name, scene.config.num_hidden_layers)
    parts = [scene.given(name) for name in sources]
    if not parts or any(part is None for part in parts):
        return None
    x = parts[0] * parts[1] if len(parts) == 2 else parts[0]
    return x.reshape(*x.shape[:2], -1)


def of_head(scene: Scene) -> Iterator[Suspicion]:
    """The embedding in place of the output head.

    Without the model, the vectors of the tokens that were run are known at least: they
    tell a few columns, and the others stay open (NaN).
    """
    x = input_of_product(scene)
    if x is None or scene.config.tie_word_embeddings:
        return
    tokens, vectors = known_embeddings(scene)
    y = np.full(scene.exact.shape, np.nan, dtype=np.float64)  # (B, T, V)
    if len(tokens):
        y[..., tokens] = einsum("BTE,NE->BTN", x, vectors, "lm_head")
        yield Suspicion("head tied", TEXTS["head tied"], y)


def known_embeddings(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and the embedding of each: (N,) int64 and (N, E) float64."""
    if scene.model is not None:
        embed = scene.model.embed.astype(np.float64)
        return np.arange(len(embed)), embed
    tokens, vectors = [], []
    for step in steps_of(scene.golden):
        x = scene.golden.get(f"{step.name}/model.embed_tokens")
        if x is not None:
            tokens += scene.golden["tokens"][:, step.first : step.end].ravel().tolist()
            vectors += list(np.reshape(x, (-1, x.shape[-1])))
    found, first = np.unique(np.array(tokens, dtype=np.int64), return_index=True)
    return found, np.array(vectors, dtype=np.float64)[first]


def of_any(scene: Scene) -> Iterator[Suspicion]:
    """Another tensor in this one's place, or this one times a number."""
    y, exact = candidate_of(scene), scene.exact
    for name in scene.golden:
        step, module = split_name(name)
        if step != scene.step or name == scene.row.name:
            continue
        other = scene.golden[name]
        if other.shape != exact.shape or np.array_equal(other, exact):
            continue
        pair = {kind_of(module), kind_of(scene.module)}
        both = pair == {"mlp.gate_proj", "mlp.up_proj"}
        key = "gate and up" if both else "swapped"
        yield Suspicion(key, TEXTS[key].format(module), np.asarray(other, np.float64))
    shown = np.isfinite(y) & np.isfinite(exact)
    size = np.square(exact[shown]).sum()
    if size > 0:
        times = float((y[shown] * exact[shown]).sum() / size)
        yield Suspicion("scaled", TEXTS["scaled"].format(times), times * exact)


SUSPECTS = {
    "input_layernorm": of_norm,
    "post_attention_layernorm": of_norm,
    "model.norm": of_norm,
    "self_attn.q_rope": of_rope,
    "self_attn.k_rope": of_rope,
    "self_attn.scores": of_scores,
    "self_attn.attention": of_attention,
    "lm_head": of_head,
}


def suspicions(scene: Scene) -> Iterator[Suspicion]:
    """All that can be tested at this tensor, from its inputs alone."""
    kind = kind_of(scene.module)
    if kind in SUSPECTS:
        yield from SUSPECTS[kind](scene)
    yield from of_product(scene)
    yield from of_any(scene)
