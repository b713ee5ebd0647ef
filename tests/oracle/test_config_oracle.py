"""Odd but legal configs: loaded as transformers loads them, or refused by name."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import needs
from strategies import random_model

from npllama.cache import new_cache
from npllama.config import config_from_hf
from npllama.model import forward

torch = needs("torch")
transformers = needs("transformers")
if not transformers.__version__.startswith("5.23"):
    pytest.skip("the oracle is transformers 5.23", allow_module_level=True)

ABSENT = object()


def maybe(*values):
    """One of the values, or the field is left out, or it is null."""
    return st.sampled_from([ABSENT, None, *values])


def given_or_absent(*values):
    return st.sampled_from([ABSENT, *values])


@st.composite
def scalings(draw, D):
    """A rope dictionary of any kind, with what it may and may not have."""
    kind = draw(st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3",
                                 "longrope", "proportional"]))  # fmt: skip
    rope = {draw(st.sampled_from(["type", "rope_type"])): kind}
    if kind != "default":
        rope["factor"] = draw(st.sampled_from([1, 1.0, 2, 4.0, 8.0]))
    if kind in ("yarn", "llama3", "longrope"):
        rope["original_max_position_embeddings"] = draw(
            given_or_absent(4, 16, 64) if kind != "llama3" else st.just(8)
        )
    if kind == "llama3":
        rope |= {"low_freq_factor": draw(st.sampled_from([1, 1.0]))}
        rope |= {"high_freq_factor": draw(st.sampled_from([4, 4.0, 3.5]))}
    if kind == "longrope":
        slower = st.lists(st.sampled_from([1, 1.5, 3.0]), min_size=D // 2,
                          max_size=D // 2)  # fmt: skip
        rope |= {"short_factor": draw(slower), "long_factor": draw(slower)}
        rope["factor"] = draw(given_or_absent(1.0, 2.0))
    if kind == "proportional":
        rope["factor"] = draw(given_or_absent(1, 2.0))
        rope["partial_rotary_factor"] = draw(given_or_absent(0.1, 0.25, 0.5, 0.7, 1.0))
    if kind in ("yarn", "longrope"):
        rope["attention_factor"] = draw(maybe(0.7, 1.25))
    if kind == "yarn":
        rope["beta_fast"], rope["beta_slow"] = (
            draw(maybe(16, 32.0)),
            draw(maybe(1, 2.0)),
        )
        rope["truncate"] = draw(given_or_absent(True, False))
    rope["rope_theta"] = draw(given_or_absent(1e4, 500000, 100.0))
    return {key: value for key, value in rope.items() if value is not ABSENT}


@st.composite
def odd_configs(draw):
    """A config.json that someone may have written."""
    heads = draw(st.sampled_from([1, 2, 4]))
    D = draw(st.sampled_from([4, 8, 6]))
    data = {
        "vocab_size": draw(st.integers(2, 19)),
        "hidden_size": heads * draw(st.sampled_from([4, 6, 8])),
        "intermediate_size": draw(st.integers(1, 13)),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(maybe(1, heads)),
        "head_dim": draw(st.sampled_from([D, D, None])),
        "max_position_embeddings": draw(given_or_absent(8, 32, 2048)),
        "rms_norm_eps": draw(given_or_absent(0.0, 1e-8, 1e-5, 1.0)),
        "hidden_act": draw(
            given_or_absent(
                "silu", "swish", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "mish"
            )
        ),
        "tie_word_embeddings": draw(given_or_absent(True, False)),
        "attention_bias": draw(given_or_absent(True, False)),
        "mlp_bias": draw(given_or_absent(True, False)),
        "bos_token_id": draw(maybe(0, 1)),
        "eos_token_id": draw(maybe(0, [0, 1], [1])),
        "pad_token_id": draw(maybe(0, -1)),
        "model_type": draw(given_or_absent("llama")),
        "architectures": draw(maybe(["LlamaForCausalLM"], ["LLaMAForCausalLM"], [])),
        "rope_theta": draw(given_or_absent(1e4, 10000, 5e5)),
        "partial_rotary_factor": draw(
            st.sampled_from([ABSENT] * 9 + [1, 1.0, 0.5, 0.25])
        ),
        "original_max_position_embeddings": draw(
            st.sampled_from([ABSENT] * 6 + [4, 16])
        ),
        "attention_dropout": draw(given_or_absent(0.0, 0)),
        "initializer_range": draw(given_or_absent(0.02, 1.0)),
        "pretraining_tp": draw(given_or_absent(1, 2)),
        "use_cache": draw(given_or_absent(True, False)),
        "torch_dtype": draw(given_or_absent("float16", "bfloat16")),
        "some_other_field": draw(given_or_absent("x", [1], None)),
    }
    size = data["head_dim"] or data["hidden_size"] // heads
    for key in ("rope_scaling", "rope_parameters"):
        data[key] = draw(st.just(ABSENT) | st.none() | scalings(size))
    return {key: value for key, value in data.items() if value is not ABSENT}


def theirs(data, ours, tokens, split):
    """Logits of transformers with the same weights, in two pieces."""
    model = ours
    config = transformers.LlamaConfig(**data, attn_implementation="eager")
    net = transformers.LlamaForCausalLM(config).eval().float()
    state = {
        "model.embed_tokens.weight": model.embed,
        "model.norm.weight": model.norm,
        "lm_head.weight": model.lm_head,
    }
    names = {"attn_norm": "input_layernorm.weight", "wq": "self_attn.q_proj.weight",
             "wk": "self_attn.k_proj.weight", "wv": "self_attn.v_proj.weight",
             "wo": "self_attn.o_proj.weight", "bq": "self_attn.q_proj.bias",
             "bk": "self_attn.k_proj.bias", "bv": "self_attn.v_proj.bias",
             "bo": "self_attn.o_proj.bias", "w_gate": "mlp.gate_proj.weight",
             "mlp_norm": "post_attention_layernorm.weight",
             "w_up": "mlp.up_proj.weight", "w_down": "mlp.down_proj.weight",
             "b_gate": "mlp.gate_proj.bias", "b_up": "mlp.up_proj.bias",
             "b_down": "mlp.down_proj.bias"}  # fmt: skip
    for i, layer in enumerate(model.layers):
        for word, name in names.items():
            if (w := getattr(layer, word)) is not None:
                state[f"model.layers.{i}.{name}"] = w
    shapes = {name: t.shape for name, t in net.state_dict().items()}
    assert shapes.keys() == state.keys()
    net.load_state_dict(
        {n: torch.from_numpy(w.reshape(shapes[n]).copy()) for n, w in state.items()}
    )
    with torch.no_grad():
        first = net(torch.from_numpy(tokens[:, :split]), use_cache=True)
        rest = net(torch.from_numpy(tokens[:, split:]),
                   past_key_values=first.past_key_values)  # fmt: skip
    return torch.cat([first.logits, rest.logits], 1).numpy(), config


def ends(value):
    """Token ids as a set."""
    several = value if isinstance(value, list) else [value]
    return {i for i in several if i is not None}


def loaded(data):
    """The config that npllama makes of it, or the line with which it is refused."""
    try:
        return config_from_hf(data), None
    except ValueError as error:
        return None, str(error)


def runs_by_accident(data):
    """Whether a share of turning pairs and a scaling run in transformers nevertheless.

    p-RoPE means it.  With longrope and a single speed broadcasting spreads
    that one over all factors; with two speeds or more it breaks.  Other scalings break.
    """
    for key in ("rope_parameters", "rope_scaling"):
        rope = data.get(key) or {}
        kind = rope.get("rope_type", rope.get("type"))
        part = rope.get("partial_rotary_factor", data.get("partial_rotary_factor"))
        size = (
            data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]
        )
        if kind == "proportional" or (
            kind == "longrope" and int(size * (part or 1)) == 2
        ):
            return True
    return False


def disputed(data, line):
    """Whether a config that transformers runs is one that is refused on purpose."""
    # p-RoPE is Gemma's: transformers' general code gives it to a LLaMA, too.
    return (
        "rope_theta differ" in line
        or ("partial_rotary_factor" in line and runs_by_accident(data))
        or "'proportional' is not one of" in line
        or data.get("hidden_act") == "mish"
    )


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(odd_configs(), st.integers(0, 2**32 - 1))
def test_an_odd_config_runs_as_transformers_runs_it_or_is_refused(data, seed):
    config, line = loaded(dict(data))
    if config is None:
        assert len(line.splitlines()) == 1 and re.search(r"[a-z]+_[a-z_]+", line)
        try:
            net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**data))
            net(torch.tensor([[0, 1]]))
        except Exception:
            return  # neither can
        assert disputed(data, line), (line, data)
        return
    model = random_model(config, seed)
    chance = np.random.default_rng(seed)
    tokens = chance.integers(0, config.vocab_size, (1, 21))
    split = int(chance.integers(1, 20))
    expected, own = theirs(data, model, tokens, split)
    cache = new_cache(config, 1, 21)
    found = np.concatenate([forward(model, tokens[:, :split], cache),
                            forward(model, tokens[:, split:], cache)], 1)  # fmt: skip
    assert np.abs(found - expected).max() <= 2e-5 * max(np.ptp(expected), 1e-6), data
    assert set(config.eos_token_id) == ends(own.eos_token_id)
    assert config.bos_token_id == own.bos_token_id
    assert config.max_position_embeddings == own.max_position_embeddings
