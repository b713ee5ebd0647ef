"""The first tensor outside, and what may be looked at to explain it.

Everything that it was made from is within its floor, if the candidate shows it at all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npllama.config import Config
from npllama.golden.compare import Row, Tensors, aligned
from npllama.golden.floor import split_name
from npllama.weights import Model


def closest(row: Row) -> float:
    """The largest of a tensor's measures, in floors."""
    if row.measures is None or not row.floor:
        return 0.0
    found = [row.measures.error / row.floor]
    if row.evenness is not None and row.evenness.even_floor:
        found.append(row.evenness.even_error / row.evenness.even_floor)
        found.append(row.evenness.spot_floors or 0.0)
    return max(found)


class Scene(NamedTuple):
    """The first tensor outside, and what may be looked at to explain it."""

    golden: Tensors
    candidate: Tensors
    row: Row
    dtype: str
    factor: float
    config: Config
    model: Model | None = None
    rows: tuple[Row, ...] = ()  # all verdicts of the comparison

    @property
    def step(self) -> str:
        return split_name(self.row.name)[0]

    @property
    def module(self) -> str:
        return split_name(self.row.name)[1]

    @property
    def floors(self) -> dict[str, float]:
        """The floor of every tensor that was judged."""
        return {row.name: row.floor for row in self.rows if row.floor is not None}

    @property
    def closeness(self) -> dict[str, float]:
        """How many floors the inputs of a tensor are off."""
        return {row.name: closest(row) for row in self.rows if row.measures}

    @property
    def first(self) -> str:
        """The first tensor outside."""
        outside = (row.name for row in self.rows if row.verdict == "outside")
        return next(outside, self.row.name)

    @property
    def exact(self) -> np.ndarray:
        return np.asarray(self.golden[self.row.name], dtype=np.float64)

    def at(self, step: str) -> Scene:
        """The same tensor in another step."""
        return self._replace(row=self.row._replace(name=f"{step}/{self.module}"))

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
