"""Right backends are found right: other frameworks pass the comparison."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from golden_models import CONFIGS, models, recorded, verdict
from needs import needs
from profiles import THOROUGH

from npllama.candidates import llamacpp
from npllama.config import Rope

MODELS = ("stories", *CONFIGS)
TRANSFORMERS = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every model's golden trace, recorded once."""
    folder = tmp_path_factory.mktemp("golden")
    return {name: recorded(folder, name) for name in MODELS}


def assert_within(result, count=None):
    """Every tensor that was compared is within its floor, and as many as said."""
    assert result.first is None, result.first
    within = [row.name for row in result.rows if row.verdict == "within"]
    assert len(within) >= count
    return within


# ---- transformers ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TRANSFORMERS)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_passes(runs, name, dtype):
    hooks = hooks_of_transformers()
    run = runs[name]
    result, _ = verdict(run, hooks.run(run.model, run.text, dtype), dtype)
    L = run.model.config.num_hidden_layers
    assert_within(result, 5 * (3 + 15 * L) + 2)
    # Everything but the scores, which its eager attention keeps to itself.
    missing = {
        row.name.split(".")[-1] for row in result.rows if row.verdict == "missing"
    }
    assert missing <= {"scores"}


def hooks_of_transformers():
    transformers = needs("transformers")
    if not transformers.__version__.startswith("5."):
        pytest.skip("the oracle is transformers 5")
    from npllama.candidates import transformers_hooks

    return transformers_hooks


def test_speeds_of_rope_rounded_along_with_a_model_are_noticed(runs):
    """``net.to(bfloat16)`` rounds a buffer that loading in bfloat16 leaves alone."""
    hooks, run = hooks_of_transformers(), runs["mqa"]
    net = hooks.build(run.model, "bfloat16").to(__import__("torch").bfloat16)
    result, _ = verdict(run, hooks.run_net(net, run.text), "bfloat16")
    assert result.first.name == "prefill/model.layers.0.self_attn.q_rope"


def test_width_that_transformers_refuses_is_a_line(runs):
    model = runs["gqa"].model
    odd = model._replace(config=replace(model.config, hidden_size=50))
    with pytest.raises(ValueError, match="no hidden_size 50 with 6 heads"):
        hooks_of_transformers().build(odd, "float32")


# ---- JAX ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_jax_page_passes(runs, name, dtype):
    needs("jax")
    from npllama.candidates import jax_llama

    run = runs[name]
    result, _ = verdict(run, jax_llama.run(run.model, run.text, dtype), dtype)
    L = run.model.config.num_hidden_layers
    assert_within(result, 5 * (3 + 16 * L) + 2)
    assert {row.verdict for row in result.rows} == {"within"} and not result.extra


def test_jax_page_says_what_it_has_not(runs):
    needs("jax")
    from npllama.candidates import jax_llama

    run = runs["mqa"]
    with pytest.raises(ValueError, match="float32, bfloat16, not 'float16'"):
        next(jax_llama.run(run.model, run.text, "float16"))
    config = run.model.config
    yarn = run.model._replace(config=config.__class__(**{**vars(config), "rope": YARN}))
    with pytest.raises(ValueError, match="no yarn scaling"):
        next(jax_llama.run(yarn, run.text))


YARN = Rope("yarn", factor=4.0, original_max_position_embeddings=16)


# ---- llama.cpp ---------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_llamacpp_passes(runs, name):
    needs("llama_cpp")
    run = runs[name]
    result, _ = verdict(run, llamacpp.run(run.model, run.text), "float32")
    assert len(assert_within(result, 5)) == 5


# ---- ONNX Runtime ------------------------------------------------------------------


def export(net, path, cached):
    """Write a model of transformers as an ONNX graph."""
    import torch
    from transformers import DynamicCache

    config = net.config
    L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    names = [f"past_key_values.{i}.{n}" for i in range(L) for n in ("key", "value")]

    class Graph(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, input_ids, position_ids, *past):
            cache = DynamicCache()
            for i in range(len(past) // 2):
                cache.update(*past[2 * i : 2 * i + 2], i)
            out = self.net(
                input_ids, position_ids=position_ids, past_key_values=cache,
                use_cache=cached,
            )  # fmt: skip
            new = out.past_key_values.layers if cached else []
            return (
                out.logits,
                *(x for layer in new for x in (layer.keys, layer.values)),
            )

    past = [torch.zeros(1, K, 3, D) for _ in names] if cached else []
    names = names if cached else []
    T, P = (torch.export.Dim(n, min=m, max=512) for n, m in (("T", 2), ("P", 0)))
    ids = torch.arange(3, 8)[None]
    torch.onnx.export(
        Graph(),
        (ids, ids.clone(), *past),  # one tensor twice would become one input
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["input_ids", "position_ids", *names],
        output_names=["logits", *(n.replace("past_key_values", "present") for n in names)],
        dynamic_shapes=({1: T}, {1: T}, *[tuple({2: P} for _ in past)] * cached),
    )  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
def test_exported_graph_passes_in_onnx_runtime(runs, tmp_path, cached):
    needs("onnxruntime")
    needs("onnxscript")
    from npllama.candidates import onnx_graph

    run = runs["gqa"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = hooks_of_transformers().build(run.model, "float32")
        export(net, tmp_path / "model.onnx", cached)
    named = onnx_graph.run(tmp_path / "model.onnx", run.text)
    result, _ = verdict(run, named, "float32")
    assert len(assert_within(result, 5)) == 5


# ---- many right runs ---------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_right_backends_pass_with_other_weights_and_tokens(tmp_path, name, seeds):
    hooks = hooks_of_transformers()
    for seed in seeds:
        run = recorded(tmp_path, name, seed)
        for dtype in TRANSFORMERS:
            result, _ = verdict(run, hooks.run(run.model, run.text, dtype), dtype)
            assert_within(result, 100)
        models.cache_clear()


@pytest.fixture
def seeds():
    """A few, or under the thorough profile of Hypothesis many."""

    thorough = THOROUGH
    return np.arange(1, 41 if thorough else 4).tolist()
