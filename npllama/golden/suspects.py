"""What a tensor would be if its operation had one of the usual faults.

Everything that the first wrong tensor was made from is still right.  So a suspicion can
be tested by computing the tensor again with the mistake.  The inputs are the
candidate's own where it has them (its rounding errors are then in both), else the
golden ones.  A suspicion is a function of the scene, so that it can be asked about the
same tensor in another step, too.  Most need no weights: a gain can be read off the
golden tensors on its two sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from npllama.golden.faults import (
    MATRICES,
    PACKED,
    QUANTISED,
    flat,
    packed,
    quantised,
    transposed,
)
from npllama.golden.floor import split_name, steps_of
from npllama.golden.scene import Scene, candidate_of, kind_of, made_from
from npllama.golden.slips import TEXTS, Fault, wrong_norms, wrong_parts
from npllama.golden.wrong import RIGHT, Parts, attend, scores_of
from npllama.ops import einsum

ALL = slice(None)
# Products whose inputs may lie on several devices, and how many devices are tried.
SHARED, MOST_SHARES = ("o_proj", "down_proj"), 8


class Suspicion(NamedTuple):
    """A fault, and what the tensor of a scene would be with it.

    `tensor` gives None if that cannot be computed, and NaN for numbers not known.
    """

    fault: str
    text: str
    tensor: Callable[[Scene], np.ndarray | None]


#  ---- the operation computed again --------------------------------------------------

# Which parts of the model make which tensor.
PARTS = {
    "input_layernorm": ("norm",),
    "post_attention_layernorm": ("norm",),
    "model.norm": ("norm",),
    "self_attn.q_rope": ("turn", "moved"),
    "self_attn.k_rope": ("turn", "moved"),
    "self_attn.scores": ("head", "scale", "visible"),
    "self_attn.attention": ("head", "scale", "visible"),
    "mlp.act_fn": ("act",),
    "lm_head": ("logits",),
}


def computed(scene: Scene, parts: Parts) -> np.ndarray | None:
    """The tensor of a scene from its inputs, in the model with these parts."""
    return COMPUTED[kind_of(scene.module)](scene, parts)


def norm_of(scene: Scene, parts: Parts) -> np.ndarray | None:
    """A norm, its gain read off the golden tensors of all steps."""
    x = scene.given(source_of(scene))
    if x is None:
        return None
    return parts.norm(x, gain_of(scene), scene.config.rms_norm_eps)


def source_of(scene: Scene) -> str:
    """Name of the first tensor that this one is made from."""
    return made_from(scene.row.name, scene.config.num_hidden_layers)[0]


def gain_of(scene: Scene) -> np.ndarray:
    """The weight of a norm, (E,): what takes its golden inputs to its outputs."""
    E = scene.config.hidden_size
    both, size = np.zeros((2, E), dtype=np.float64)
    for step in steps_of(scene.golden):
        there = scene.at(step.name)
        x = scene.golden.get(source_of(there))
        if x is None or there.row.name not in scene.golden:
            continue
        bare = RIGHT.norm(
            np.asarray(x, dtype=np.float64), np.ones(E), scene.config.rms_norm_eps
        ).reshape(-1, E)
        both += (bare * there.exact.reshape(-1, E)).sum(axis=0)
        size += np.square(bare).sum(axis=0)
    return both / np.where(size > 0, size, 1)


def bounds_of(scene: Scene) -> tuple[int, int, int]:
    """First position of the step, its end, and the length of the prompt."""
    steps = steps_of(scene.golden)
    step = next(step for step in steps if step.name == scene.step)
    prompt = steps[0].end if steps[0].name == "prefill" else steps[0].first
    return step.first, step.end, prompt


def rope_of(scene: Scene, parts: Parts) -> np.ndarray | None:
    """Queries or keys after the rotation."""
    x = scene.given(scene.sibling(kind_of(scene.module).replace("rope", "proj")))
    first, end, prompt = bounds_of(scene)
    positions = parts.moved(np.arange(end), prompt)[first:]  # (T,)
    return None if x is None else parts.turn(x, scene.config, positions[None])


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


def scores_with(scene: Scene, parts: Parts) -> np.ndarray | None:
    """Scores, -inf where a part hides them."""
    q = scene.given(scene.sibling("self_attn.q_rope"))
    k = history(scene, "self_attn.k_rope")
    if q is None or k is None:
        return None
    first, end, _ = bounds_of(scene)
    seen = parts.visible(np.arange(first, end)[:, None], np.arange(end))  # (T, S)
    return np.where(seen, scores_of(parts, scene.config, q, k), -np.inf)


def attention_with(scene: Scene, parts: Parts) -> np.ndarray | None:
    """What the heads return."""
    q = scene.given(scene.sibling("self_attn.q_rope"))
    k, v = (history(scene, f"self_attn.{n}") for n in ("k_rope", "v_proj"))
    if q is None or k is None or v is None:
        return None
    first, end, _ = bounds_of(scene)
    query = np.arange(first, end)[:, None]  # (T, 1)
    return attend(parts, scene.config, q, k, v, (query, np.full_like(query, end)))


def act_of(scene: Scene, parts: Parts) -> np.ndarray | None:
    """The gate, bent."""
    gate = scene.given(scene.sibling("mlp.gate_proj"))
    return None if gate is None else parts.act(gate, scene.config)


def logits_of(scene: Scene, parts: Parts) -> np.ndarray | None:
    """Logits, from the golden ones where the head is not at hand."""
    right = product_of(scene, flat_weight) if scene.model else scene.exact
    return None if right is None else parts.logits(right)


COMPUTED: dict[str, Callable[[Scene, Parts], np.ndarray | None]] = {
    "input_layernorm": norm_of,
    "post_attention_layernorm": norm_of,
    "model.norm": norm_of,
    "self_attn.q_rope": rope_of,
    "self_attn.k_rope": rope_of,
    "self_attn.scores": scores_with,
    "self_attn.attention": attention_with,
    "mlp.act_fn": act_of,
    "lm_head": logits_of,
}


#  ---- products with weights -----------------------------------------------------------


def flat_weight(w: np.ndarray) -> np.ndarray:
    """A matrix as it is."""
    return w


def weight_of(scene: Scene) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The matrix (F, E) and the bias that make the tensor, if the model is at hand."""
    words = {name: word for word, name in MATRICES.items()}
    name = scene.module.split(".")[-1]
    if scene.model is None:
        return None
    if name == "lm_head":
        return scene.model.lm_head, None
    if name not in words:
        return None
    layer = scene.model.layers[int(scene.module.split(".")[2])]
    w = flat(getattr(layer, words[name]), words[name])
    return w, getattr(layer, "b" + words[name][1:])


def input_of_product(scene: Scene) -> np.ndarray | None:
    """What a weight is multiplied with, heads merged: (B, T, E)."""
    sources = made_from(scene.row.name, scene.config.num_hidden_layers)
    parts = [scene.given(name) for name in sources]
    if not parts or any(part is None for part in parts):
        return None
    x = parts[0] * parts[1] if len(parts) == 2 else parts[0]
    return x.reshape(*x.shape[:2], -1)


def product_of(scene: Scene, change: Callable, part: slice = ALL) -> np.ndarray | None:
    """The tensor as a product with its weight, changed; over a part of the inputs."""
    weight, x = weight_of(scene), input_of_product(scene)
    if weight is None or x is None:
        return None
    w, bias = weight
    w = change(w[:, part].astype(np.float64))
    y = einsum("BTE,FE->BTF", x[..., part], w, "project")
    y = y.reshape(scene.exact.shape)
    return y if bias is None else y + bias


def read_transposed(w: np.ndarray) -> np.ndarray:
    """A matrix (F, E) whose rows were taken for columns."""
    return transposed(w, w.shape)


def of_product(scene: Scene) -> Iterator[Suspicion]:
    """A weight read transposed, or in few bits; or the right one on a wrong input."""
    weight = weight_of(scene)
    if weight is None:
        return
    name = scene.module.split(".")[-1]
    text = TEXTS["transposed"].format(f"the weight of {name}")
    changes: list[tuple[str, str, Callable]] = [
        ("inputs", TEXTS["inputs"], flat_weight),
        ("transposed", text, read_transposed),
    ]
    for said, (bits, group) in QUANTISED.items():
        if not (group and weight[0].shape[-1] % group):
            rounded = partial(quantised, bits=bits, group=group)
            changes.append(("quantised", TEXTS["quantised"].format(said), rounded))
    for said, (bits, group, signed) in PACKED.items():
        if not (group and weight[0].shape[-1] % group):
            rounded = partial(packed, bits=bits, group=group, signed=signed)
            changes.append(("quantised", TEXTS["quantised"].format(said), rounded))
    for key, said, change in changes:
        yield Suspicion(key, said, partial(product_of, change=change))
    if name in SHARED:
        yield from of_shares(weight[0].shape[-1])


def of_shares(E: int) -> Iterator[Suspicion]:
    """The sum over a share of the inputs, as one of several devices has it."""
    for n in range(2, MOST_SHARES + 1):
        for i in range(n if E % n == 0 else 0):
            part = slice(i * E // n, (i + 1) * E // n)
            text = TEXTS["share"].format(i + 1, n)
            yield Suspicion(
                "share", text, partial(product_of, change=flat_weight, part=part)
            )


#  ---- suspicions ----------------------------------------------------------------------


def of_parts(scene: Scene) -> Iterator[Suspicion]:
    """Every slip in the operation; and the right operation, on wrong inputs."""
    kind = kind_of(scene.module)
    if kind not in PARTS:
        return
    yield Suspicion("inputs", TEXTS["inputs"], partial(computed, parts=RIGHT))
    name = scene.module if kind == "model.norm" else kind
    norms = list(wrong_norms(scene.config, name))
    for fault in (*wrong_parts(scene.config), *norms):
        if fault.part in PARTS[kind] and (fault.part != "norm" or fault in norms):
            yield of_fault(fault)
    if "visible" in PARTS[kind]:
        yield from hidden_keys(scene)


def of_fault(fault: Fault) -> Suspicion:
    """The suspicion that a part is another."""
    return Suspicion(fault.key, fault.text, partial(computed, parts=fault.parts))


# A score below this is hidden: some backends write that instead of -inf.
HIDDEN = -1e4


def hidden_keys(scene: Scene) -> Iterator[Suspicion]:
    """Keys that the candidate's own scores hide, whatever the rule."""
    if kind_of(scene.module) != "self_attn.scores":
        return
    y = candidate_of(scene)
    hidden = (y < HIDDEN) & np.isfinite(scene.exact)  # (B, H, T, S)
    if hidden.any():
        keys = np.flatnonzero(hidden.any(axis=(0, 1, 2)))
        few = ", ".join(str(key) for key in keys[:4]) + (
            " ..." if len(keys) > 4 else ""
        )
        yield Suspicion("hidden", TEXTS["hidden"].format(few), hidden_alike)


def hidden_alike(scene: Scene) -> np.ndarray | None:
    """Right scores, hidden where the candidate hides them."""
    right = scores_with(scene, RIGHT)
    return (
        None
        if right is None
        else np.where(candidate_of(scene) < HIDDEN, -np.inf, right)
    )


def of_gain(scene: Scene) -> Iterator[Suspicion]:
    """Another gain, fitted to the candidate: a number for every coordinate."""
    if not kind_of(scene.module).endswith("norm") or scene.exact[..., 0].size < 4:
        return
    bare = norm_of(scene, RIGHT._replace(norm=without_its_gain))
    if bare is None:
        return
    y, axes = candidate_of(scene), tuple(range(bare.ndim - 1))
    size = np.maximum(np.square(bare).sum(axis=axes), 1e-300)  # (E,)
    gain = (bare * y).sum(axis=axes) / size  # (E,)

    def tensor(there: Scene) -> np.ndarray | None:
        found = norm_of(there, RIGHT._replace(norm=without_its_gain))
        return None if found is None else found * gain

    yield Suspicion("other gain", TEXTS["other gain"], tensor)


def without_its_gain(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """Unit root mean square."""
    return RIGHT.norm(x, np.ones_like(gain), eps)


def of_head(scene: Scene) -> Iterator[Suspicion]:
    """The embedding in place of the output head."""
    if scene.module == "lm_head" and not scene.config.tie_word_embeddings:
        yield Suspicion("head tied", TEXTS["head tied"], tied_logits)


def tied_logits(scene: Scene) -> np.ndarray | None:
    """Products with the embedding.

    Without the model, the vectors of the tokens that were run are known at least: they
    tell a few columns, and the others are NaN.
    """
    x = input_of_product(scene)
    tokens, vectors = known_embeddings(scene)
    if x is None or not len(tokens):
        return None
    y = np.full(scene.exact.shape, np.nan, dtype=np.float64)  # (B, T, V)
    y[..., tokens] = einsum("BTE,NE->BTN", x, vectors, "lm_head")
    return y


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
    for name in scene.golden:
        step, module = split_name(name)
        if step != scene.step or module == scene.module:
            continue
        other = scene.golden[name]
        if other.shape != scene.exact.shape or np.array_equal(other, scene.exact):
            continue
        both = {kind_of(module), kind_of(scene.module)} == {
            "mlp.gate_proj",
            "mlp.up_proj",
        }
        key = "gate and up" if both else "swapped"
        yield Suspicion(
            key, TEXTS[key].format(module), partial(other_golden, module=module)
        )
    y, exact = candidate_of(scene), scene.exact
    shown = np.isfinite(y) & np.isfinite(exact)
    size = np.square(exact[shown]).sum()
    times = float((y[shown] * exact[shown]).sum() / size) if size else 1.0
    key, text = "scaled", TEXTS["scaled"].format(times)
    if f"{times:.4g}" != "1":
        yield Suspicion(key, text, partial(times_golden, times=times))


def other_golden(scene: Scene, module: str) -> np.ndarray | None:
    """Another golden tensor of the step."""
    other = scene.golden.get(f"{scene.step}/{module}")
    return None if other is None else np.asarray(other, dtype=np.float64)


def times_golden(scene: Scene, times: float) -> np.ndarray:
    """The golden tensor times a number."""
    return times * scene.exact


def suspicions(scene: Scene) -> Iterator[Suspicion]:
    """All that can be tested at this tensor, from its inputs alone."""
    yield from of_parts(scene)
    yield from of_gain(scene)
    yield from of_head(scene)
    yield from of_product(scene)
    yield from of_any(scene)
