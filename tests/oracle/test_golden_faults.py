"""The usual faults of LLaMA backends, made in the JAX page one at a time.

Each is caught at the tensor where it was made and called by its name, at float32 and at
bfloat16, whether the backend shows all its tensors or, where that can be told at all,
its logits only.  The page runs uncompiled here, so that functions can be exchanged.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from golden_models import recorded, verdict
from needs import needs
from profiles import THOROUGH

jax = needs("jax")
jnp = jax.numpy

from npllama.candidates import jax_llama as page  # noqa: E402
from npllama.candidates.text import named_weights  # noqa: E402
from npllama.config import Rope  # noqa: E402

LAYER = "prefill/model.layers.{}."
QUERY, NORM = LAYER.format(0) + "self_attn.q_rope", LAYER.format(0) + "input_layernorm"
SCORES = LAYER.format(0) + "self_attn.scores"
ATTENTION = LAYER.format(0) + "self_attn.attention"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Golden traces by (model, whether they hold the scores)."""
    folder = tmp_path_factory.mktemp("golden")
    return {
        (name, scores): recorded(folder, name, scores=scores)
        for name in ("stories", "mha", "gqa", "mqa")
        for scores in (False, True)
    }


# ---- the page with something wrong -----------------------------------------------


def neighbours(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def shifted(tables, by, config, positions, dtype):
    return tables(config, positions + by, dtype)


def shifted_in_decode(tables, config, positions, dtype):
    return tables(config, positions + (len(positions) == 1), dtype)


def without_scaling(speeds, config):
    return speeds(replace(config, rope=Rope(rope_theta=config.rope.rope_theta)))


def wrong_eps(norm, x, gain, eps):
    return norm(x, gain, 1e-6)


# Function of the page, and what stands in its place (given the right one).
FUNCTIONS = {
    "interleaved": ("rotate", lambda right: neighbours),
    "scale": ("scaled", lambda right: lambda scores, D: scores),
    "position": ("tables", lambda right: partial(shifted, right, 1)),
    "position in decode": ("tables", lambda right: partial(shifted_in_decode, right)),
    "tile": ("share", lambda right: lambda x, G: jnp.tile(x, (1, G, 1, 1))),
    "later seen": (
        "visible",
        lambda right: lambda positions, N: right(positions + 1, N),
    ),
    "itself hidden": (
        "visible",
        lambda right: lambda positions, N: right(positions - 1, N),
    ),
    "rope scaling": ("frequencies", lambda right: partial(without_scaling, right)),
    "eps": ("rms_norm", lambda right: partial(wrong_eps, right)),
}


def cut(x):
    """float32 without the lower half of its bits."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def cut_everywhere(monkeypatch):
    """Cut the results of modules, and of the two halves of a norm, to bfloat16."""
    see, norm = page.Place.see, page.rms_norm

    def norm_cut(x, gain, eps):
        return cut(norm(x, jnp.ones_like(gain), eps)) * gain

    monkeypatch.setattr(page.Place, "see", lambda at, name, x: see(at, name, cut(x)))
    monkeypatch.setattr(page, "rms_norm", norm_cut)


def transposed(name, weights):
    w = weights[name]
    return weights | {name: w.reshape(w.shape[::-1]).T}


def ones(name, weights):
    return weights | {name: jnp.ones_like(weights[name])}


def swapped(weights):
    names = {"gate_proj": "up_proj", "up_proj": "gate_proj"}

    def other(name):
        part = name.split(".")[-2]
        return name.replace(part, names.get(part, part))

    return {name: weights[other(name)] for name in weights}


def tied(weights):
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}


def untied(weights):
    embed = weights["model.embed_tokens.weight"]
    head = 0.02 * np.random.default_rng(5).standard_normal(embed.shape)
    return weights | {"lm_head.weight": jnp.asarray(head, embed.dtype)}


GAIN = "model.layers.1.post_attention_layernorm"
WEIGHTS = {
    "no gain": partial(ones, f"{GAIN}.weight"),
    "no last gain": partial(ones, "model.norm.weight"),
    "gate and up": swapped,
    "head tied": tied,
    "head untied": untied,
} | {
    f"transposed {part}": partial(transposed, f"model.layers.1.{part}.weight")
    for part in (
        "self_attn.q_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
}

# Fault, model, first tensor outside, and the key of the finding.
CASES = [
    ("interleaved", "stories", QUERY, "interleaved"),
    ("interleaved", "gqa", QUERY, "interleaved"),
    ("interleaved", "mqa", QUERY, "interleaved"),
    ("position", "stories", QUERY, "position"),
    ("position", "mha", QUERY, "position"),
    (
        "position in decode",
        "gqa",
        QUERY.replace("prefill", "decode.0"),
        "position in decode",
    ),
    ("rope scaling", "mqa", QUERY, "rope scaling"),
    ("scale", "stories", SCORES, "scale"),
    ("scale", "gqa", SCORES, "scale"),
    ("tile", "stories", SCORES, "tile"),
    ("tile", "gqa", SCORES, "tile"),
    ("later seen", "stories", ATTENTION, "mask"),
    ("later seen", "mqa", ATTENTION, "mask"),
    ("itself hidden", "gqa", SCORES, "mask"),
    ("eps", "mha", NORM, "eps"),
    ("eps", "gqa", NORM, "eps"),
    ("no gain", "gqa", f"prefill/{GAIN}", "no gain"),
    ("no last gain", "stories", "prefill/model.norm", "no gain"),
    ("truncated", "stories", NORM, "truncated"),
    ("truncated", "gqa", NORM, "truncated"),
    ("gate and up", "stories", LAYER.format(0) + "mlp.gate_proj", "gate and up"),
    ("gate and up", "mqa", LAYER.format(0) + "mlp.gate_proj", "gate and up"),
    ("head tied", "gqa", "prefill/lm_head", "head tied"),
    ("head untied", "mqa", "prefill/lm_head", "head untied"),
    ("head untied", "stories", "prefill/lm_head", "head untied"),
] + [
    (name, "mha", LAYER.format(1) + name.split()[1], "transposed")
    for name in WEIGHTS
    if name.startswith("transposed")
]

# The shipped model takes some seconds a fault: only under the thorough profile.
if not THOROUGH:
    CASES = [case for case in CASES if case[1] != "stories"]


def faulty(run, fault, dtype, monkeypatch):
    """Tensors of the page with one fault."""
    weights = named_weights(run.model)
    weights = {name: jnp.asarray(w, dtype) for name, w in weights.items()}
    if fault in FUNCTIONS:
        name, wrong = FUNCTIONS[fault]
        monkeypatch.setattr(page, name, wrong(getattr(page, name)))
    if fault in WEIGHTS:
        weights = WEIGHTS[fault](weights)
    if fault == "truncated":
        weights = {name: w.astype(jnp.float32) for name, w in weights.items()}
        cut_everywhere(monkeypatch)
    with jax.disable_jit():
        return list(page.run_weights(weights, run.model.config, run.text))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault, name, tensor, key", CASES)
def test_fault_is_caught_where_it_is_and_named(
    runs, monkeypatch, fault, name, tensor, key, dtype
):
    run = runs[name, True]
    result, finding = verdict(run, faulty(run, fault, dtype, monkeypatch), dtype)
    assert result.first.name == tensor
    assert finding and finding.fault == key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "fault, name, key",
    [("scale", "gqa", "scale"), ("tile", "gqa", "tile"), ("later seen", "mqa", "mask")],
)
def test_fault_is_named_without_the_scores(runs, monkeypatch, fault, name, key, dtype):
    run = runs[name, False]
    result, finding = verdict(run, faulty(run, fault, dtype, monkeypatch), dtype)
    assert result.first.name == ATTENTION
    assert finding and finding.fault == key


@pytest.mark.parametrize(
    "fault, name, key",
    [
        ("interleaved", "gqa", "interleaved"),
        ("scale", "mha", "scale"),
        ("tile", "gqa", "tile"),
        ("later seen", "gqa", "mask"),
        ("rope scaling", "mqa", "rope scaling"),
        ("eps", "mha", "eps"),
        ("gate and up", "gqa", "gate and up"),
        ("head tied", "gqa", "head tied"),
    ],
)
def test_fault_of_the_whole_model_is_named_from_the_logits_alone(
    runs, monkeypatch, fault, name, key
):
    run = runs[name, False]
    tensors = faulty(run, fault, "float32", monkeypatch)
    result, finding = verdict(run, tensors, "float32", only="lm_head")
    assert result.first.name == "prefill/lm_head"
    assert finding and finding.fault == key
