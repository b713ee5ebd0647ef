"""The numbers of a LLaMA: read alike from every source, and refused if wrong."""

import json
import math
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, configs

from npllama.config import (
    PRESETS,
    Rope,
    config_from_hf,
    config_to_hf,
    preset,
)
from npllama.convert.params import config_from_params
from npllama.weights import tensor_shapes


def transformers_4(config):
    """The config.json that transformers 4 would have written."""
    data = config_to_hf(config)
    rope = data.pop("rope_parameters")
    data["rope_theta"] = rope.pop("rope_theta")
    data["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return data


# ---- laws -------------------------------------------------------------------


@given(configs())
@example(replace(DISTINCT, hidden_act="relu"))
def test_a_config_survives_being_written_and_read(config):
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


@given(configs())
def test_both_spellings_of_transformers_mean_the_same(config):
    assert config_from_hf(transformers_4(config)) == config


@given(configs(rope_types=("linear", "dynamic", "yarn")))
def test_the_oldest_key_for_the_rope_type_is_understood(config):
    data = transformers_4(config)
    data["rope_scaling"]["type"] = data["rope_scaling"].pop("rope_type")
    assert config_from_hf(data) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_being_written_and_read(name):
    assert config_from_hf(config_to_hf(PRESETS[name])) == PRESETS[name]


def test_what_is_left_out_has_the_defaults_of_transformers():
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    data = dict.fromkeys(sizes, 12) | {"num_attention_heads": 3}
    config = config_from_hf(data)
    assert (config.num_key_value_heads, config.head_dim) == (3, 4)
    assert (config.max_position_embeddings, config.rms_norm_eps) == (2048, 1e-6)
    assert config.rope == Rope("default", 10000.0)
    assert not (config.tie_word_embeddings or config.attention_bias or config.mlp_bias)
    assert (config.bos_token_id, config.eos_token_id) == (1, (2,))


@pytest.mark.parametrize(
    "written, read", [(7, (7,)), ([7, 8, 9], (7, 8, 9)), (None, ()), ([], ())]
)
def test_end_tokens_may_be_one_or_several_or_none(written, read):
    data = config_to_hf(DISTINCT) | {"eos_token_id": written}
    assert config_from_hf(data).eos_token_id == read


def test_a_scaling_without_its_trained_length_takes_the_context_as_transformers_does():
    data = config_to_hf(DISTINCT) | {"max_position_embeddings": 4096}
    data["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    assert config_from_hf(data).rope.original_max_position_embeddings == 4096


def test_a_factor_left_out_is_what_the_context_grew_by():
    data = config_to_hf(DISTINCT) | {"max_position_embeddings": 4096}
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 1024}
    assert config_from_hf(data | {"rope_parameters": yarn}).rope.factor == 4


# ---- against the published models ----------------------------------------------

# Parameters as counted by PyTorch in the published checkpoints.
PARAMETERS = {
    "stories15m": 15_191_712,
    "stories42m": 41_689_600,
    "stories110m": 109_529_856,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "codellama-7b": 6_738_546_688,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_as_many_parameters_as_the_published_model(name):
    shapes = tensor_shapes(preset(name)).values()
    assert sum(map(math.prod, shapes)) == PARAMETERS[name]


def test_every_preset_is_counted():
    assert PRESETS.keys() - PARAMETERS.keys() == {"llama-33b"}
    assert PRESETS["llama-33b"] == PRESETS["llama-30b"]


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'llama-8b'.*llama-3-8b"):
        preset("llama-8b")


def test_a_preset_can_be_shrunk():
    small = preset("llama-3-8b", num_hidden_layers=1)
    assert small.num_hidden_layers == 1 and small.hidden_size == 4096
    with pytest.raises(ValueError, match="num_key_value_heads 5"):
        preset("llama-3-8b", num_key_value_heads=5)


# What the published params.json say: dim, n_layers, n_heads, n_kv_heads,
# multiple_of, ffn_dim_multiplier, rope_theta; then which model it is.
PARAMS = [
    ("llama-7b", 4096, 32, 32, None, 256, None, None),
    ("llama-13b", 5120, 40, 40, None, 256, None, None),
    ("llama-30b", 6656, 60, 52, None, 256, None, None),
    ("llama-65b", 8192, 80, 64, None, 256, None, None),
    ("llama-2-70b", 8192, 80, 64, 8, 4096, 1.3, None),
    ("codellama-34b", 8192, 48, 64, 8, 256, 1.0, 1e6),
    ("llama-3-8b", 4096, 32, 32, 8, 1024, 1.3, 5e5),
    ("llama-3-70b", 8192, 80, 64, 8, 4096, 1.3, 5e5),
    ("llama-3.1-8b", 4096, 32, 32, 8, 1024, 1.3, 5e5),
    ("llama-3.1-405b", 16384, 126, 128, 8, 4096, 1.2, 5e5),
    ("llama-3.2-1b", 2048, 16, 32, 8, 256, 1.5, 5e5),
    ("llama-3.2-3b", 3072, 28, 24, 8, 256, 1.0, 5e5),
]
KEYS = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of")
KEYS += ("ffn_dim_multiplier", "rope_theta")
FROM_PARAMS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
FROM_PARAMS += ("num_attention_heads", "num_key_value_heads", "head_dim", "rope")


@pytest.mark.parametrize("row", PARAMS, ids=lambda row: row[0])
def test_params_json_describes_the_same_model_as_the_preset(row):
    name, *values = row
    data = {key: value for key, value in zip(KEYS, values) if value is not None}
    if name.startswith(("llama-3.1", "llama-3.2")):
        data["use_scaled_rope"] = True
    expected = preset(name)
    config = config_from_params(data, expected.vocab_size)
    for field in FROM_PARAMS:
        assert getattr(config, field) == getattr(expected, field), field


def test_swish_is_silu_and_the_first_spelling_of_the_architecture_is_known():
    data = config_to_hf(DISTINCT)
    data |= {"hidden_act": "swish", "architectures": ["LLaMAForCausalLM"]}
    assert config_from_hf(data) == DISTINCT


@pytest.mark.parametrize(
    "written, read",
    [
        ("relu", "relu"),
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_pytorch_tanh"),
        ("gelu_fast", "gelu_pytorch_tanh"),
        ("gelu_accurate", "gelu_pytorch_tanh"),
        ("gelu_python_tanh", "gelu_pytorch_tanh"),
        ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
    ],
)
def test_an_activation_is_known_by_all_its_names(written, read):
    data = config_to_hf(DISTINCT) | {"hidden_act": written}
    assert config_from_hf(data) == replace(DISTINCT, hidden_act=read)


def test_an_epsilon_of_zero_is_read():
    data = config_to_hf(DISTINCT) | {"rms_norm_eps": 0}
    assert config_from_hf(data) == replace(DISTINCT, rms_norm_eps=0.0)


LINEAR = {"rope_type": "linear", "factor": 4.0}
BESIDE = [
    (LINEAR, {}, Rope("linear", factor=4.0)),
    ({"type": "linear", "factor": 4.0}, {}, Rope("linear", factor=4.0)),
    (LINEAR | {"rope_theta": 1e4}, {}, Rope("linear", factor=4.0)),
    (LINEAR, {"rope_type": "dynamic", "factor": 2.0}, Rope("linear", factor=4.0)),
    ({"type": "dynamic", "factor": 2.0}, LINEAR, Rope("dynamic", factor=2.0)),
    ({"type": "default"}, LINEAR, Rope()),
    (None, LINEAR, Rope("linear", factor=4.0)),
    ({}, LINEAR, Rope("linear", factor=4.0)),
]


@pytest.mark.parametrize("scaling, parameters, rope", BESIDE)
def test_rope_scaling_beside_rope_parameters_is_the_one_used(scaling, parameters, rope):
    data = config_to_hf(DISTINCT)
    assert data["rope_parameters"]["rope_type"] == "default"
    data["rope_parameters"] |= parameters
    data["rope_scaling"] = scaling
    assert config_from_hf(data).rope == rope


@pytest.mark.parametrize("trained, stretched", [(None, 1.0), (64, 32.0)])
def test_longrope_has_the_defaults_of_transformers(trained, stretched):
    data = config_to_hf(DISTINCT)  # 2,048 positions
    data["rope_parameters"] = dict(LONGROPE, original_max_position_embeddings=trained)
    rope = config_from_hf(data).rope
    assert rope.factor == stretched and rope.long_factor == (2.0, 3.0)
    assert rope.original_max_position_embeddings == (trained or 2048)


@pytest.mark.parametrize(
    "vocab_size, changes, positions",
    [
        (32000, {}, 4096),
        (32016, {"rope_theta": 1e6}, 16384),  # Code LLaMA
        (32000, {"rope_theta": 1000000}, 16384),
        (128256, {"rope_theta": 5e5}, 8192),
        (128256, {"rope_theta": 5e5, "use_scaled_rope": True}, 131072),
    ],
)
def test_the_context_of_metas_models_is_told_by_their_theta(
    vocab_size, changes, positions
):
    params = {"dim": 8, "n_layers": 1, "n_heads": 2} | changes
    found = config_from_params(params, vocab_size).max_position_embeddings
    assert found == positions


# ---- what is wrong is named -----------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5]}
LONGROPE |= {"long_factor": [2.0, 3.0], "original_max_position_embeddings": 64}
LLAMA3 = asdict(Rope("llama3", 1e4, 8.0, 64, 1.0, 4.0))
HALF = {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}

WRONG = [
    ({"model_type": "mistral"}, "mistral.*LlamaForCausalLM"),
    ({"architectures": ["LlamaModel"]}, "LlamaModel.*LlamaForCausalLM"),
    ({"hidden_act": "prelu"}, "hidden_act 'prelu' is not one of silu, relu, gelu, "),
    ({"hidden_act": ["silu"]}, "hidden_act .'silu'. is not one of"),
    ({"hidden_act": None}, "hidden_act None is not one of"),
    ({"quantization_config": {"bits": 4}}, "quantized"),
    ({"vocab_size": None}, "'vocab_size' is missing"),
    ({"vocab_size": 0}, "'vocab_size' is 0, not a positive integer"),
    ({"hidden_size": 7.0}, "'hidden_size' is 7.0"),
    ({"hidden_size": "7"}, "'hidden_size' is '7'"),
    ({"num_hidden_layers": True}, "'num_hidden_layers' is True"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is above"),
    ({"num_key_value_heads": 4}, "num_attention_heads 6 .* num_key_value_heads 4"),
    ({"head_dim": 5}, "head_dim 5 is odd"),
    ({"head_dim": None}, "hidden_size 7 .* num_attention_heads 6.*head_dim"),
    ({"rms_norm_eps": -1e-9}, "rms_norm_eps -1e-09 is below 0"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
    ({"rms_norm_eps": "1e-5"}, "'rms_norm_eps' is '1e-5', not a number"),
    ({"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1"),
    ({"eos_token_id": "</s>"}, "'eos_token_id' is '</s>'"),
    ({"eos_token_id": [2, None]}, "eos_token_id"),
    ({"rope_parameters": {"rope_type": "su"}}, "'su'.*longrope"),
    ({"rope_parameters": LONGROPE | {"long_factor": None}}, "needs 'long_factor'"),
    ({"rope_parameters": LONGROPE | {"long_factor": [1.0]}}, "long_factor.*2 numbers"),
    ({"rope_parameters": LONGROPE | {"short_factor": 3.0}}, "short_factor.*2 numbers"),
    ({"rope_parameters": LONGROPE | {"long_factor": [1, "a"]}}, "long_factor 'a'"),
    ({"rope_parameters": LONGROPE | {"long_factor": [1, 0]}}, "long_factor 0 is not"),
    (
        {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 1}},
        "longer trained context",
    ),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 3e4},
        "rope_theta differ: 30000.0, 10000.0",
    ),
    ({"rope_scaling": [1]}, "rope parameters are"),
    ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type"),
    ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs 'factor'"),
    ({"rope_parameters": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor"),
    ({"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}}, "equals high_freq_factor"),
    ({"rope_parameters": YARN | {"factor": -1}}, "factor -1 is not a number"),
    ({"rope_parameters": YARN | {"factor": 1e300}}, "factor 1e[+]300 is not a number"),
    ({"rope_parameters": YARN | {"rope_theta": 1}}, "rope_theta other than 1"),
    ({"rope_parameters": YARN | {"factor": math.nan}}, "factor nan is not a"),
    ({"rope_parameters": YARN | {"factor": math.inf}}, "factor inf"),
    ({"rope_parameters": YARN | {"truncate": "no"}}, "'truncate' is 'no'"),
    ({"rope_parameters": 8}, "8, not an object"),
    ({"rope_parameters": None, "rope_theta": "1e4"}, "rope_theta '1e4'"),
    ({"rope_parameters": YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_parameters": LLAMA3, "partial_rotary_factor": "a"}, "partial_.* 'a' with"),
    ({"rope_parameters": HALF}, "partial_rotary_factor 0.5 with a scaling"),
    ({"rope_scaling": HALF, "partial_rotary_factor": 1}, "rotary_factor 0.5 with a"),
    ({"rope_scaling": {"type": "proportional"}}, "rope_type 'proportional'"),
]


PARTS = [
    {"partial_rotary_factor": 0.5},
    {"rope_parameters": HALF | {"rope_type": "default"}},
    {"rope_scaling": {"type": "default"}, "partial_rotary_factor": 0.25},
    {"rope_parameters": {}, "rope_theta": 1e4, "partial_rotary_factor": 0.7},
    {"rope_parameters": YARN, "partial_rotary_factor": 1.0},
    {"rope_parameters": YARN, "partial_rotary_factor": None},
]


@pytest.mark.parametrize("change", PARTS, ids=str)
def test_all_pairs_turn_in_a_llama(change):
    # So does its code in transformers 5.
    data = config_to_hf(DISTINCT) | change
    config = config_from_hf(data)
    data.pop("partial_rotary_factor", None)
    data["rope_parameters"].pop("partial_rotary_factor", None)
    assert config_from_hf(data) == config


@pytest.mark.parametrize("key", config_to_hf(DISTINCT))
def test_a_long_wrong_value_is_not_repeated_whole(key):
    for value in ("a" * 3000, ["a" * 3000]):
        try:
            config_from_hf(config_to_hf(DISTINCT) | {key: value})
        except ValueError as error:
            assert len(str(error)) < 300


@pytest.mark.parametrize("change, words", WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_number_is_named(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        config_from_hf(config_to_hf(DISTINCT) | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dim": None}, "'dim' is missing"),
        ({"n_heads": 5}, "dim 8 is not a multiple of n_heads 5"),
        ({"multiple_of": 0}, "'multiple_of' is 0"),
        ({"norm_eps": -1}, "rms_norm_eps -1"),
        ({"ffn_dim_multiplier": "1.3"}, "'ffn_dim_multiplier' is '1.3'"),
        ({"ffn_dim_multiplier": math.inf}, "'ffn_dim_multiplier' is inf"),
        ({"ffn_dim_multiplier": -1.0}, "'ffn_dim_multiplier' is -1.0"),
        ({"use_scaled_rope": 8}, "'use_scaled_rope' is 8"),
    ],
    ids=str,
)
def test_a_wrong_number_in_params_json_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        config_from_params({"dim": 8, "n_heads": 2, "n_layers": 1} | change, 10)


# Any value that a JSON file may hold, also where it makes no sense.
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
scalars |= st.sampled_from([10**400, -(10**400), "default", "yarn", "llama3"])
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([f.name for f in fields(Rope)]), inner)
    ),
    max_leaves=6,
)
keys = st.sampled_from([*config_to_hf(DISTINCT), "rope_scaling", "rope_theta"])


@given(keys, anything)
@example("rms_norm_eps", 10**400)
@example("rope_parameters", {"rope_theta": 10**400})
@example("architectures", 5)
@example("rope_scaling", {"truncate": False})
def test_any_value_anywhere_gives_a_config_or_one_line(key, value):
    try:
        config = config_from_hf(config_to_hf(DISTINCT) | {key: value})
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert config_from_hf(config_to_hf(config)) == config
