"""Speeds of the rotary pairs beside transformers, for configurations at random."""

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from needs import needs

torch = needs("torch")
transformers = needs("transformers")
if not transformers.__version__.startswith("5.23"):
    pytest.skip("the oracle is transformers 5.23", allow_module_level=True)

from goldens.model import lifted  # noqa: E402
from transformers.models.llama.modeling_llama import (  # noqa: E402
    LlamaRotaryEmbedding,
)

from npllama.config import config_from_hf  # noqa: E402
from npllama.rope import rope_tables  # noqa: E402

FACTOR = st.floats(1, 64)
TRAINED = st.integers(8, 9000)
# What each scaling must and may be given; a None is left out of the file.
KEYS = {
    "default": {},
    "linear": {"factor": FACTOR},
    "dynamic": {"factor": FACTOR},
    "llama3": {
        "factor": FACTOR,
        "original_max_position_embeddings": TRAINED,
        "low_freq_factor": st.floats(0.5, 3),
        "high_freq_factor": st.floats(3.5, 16),
    },
    "yarn": {
        "factor": FACTOR,
        "original_max_position_embeddings": TRAINED,
        "attention_factor": st.none() | st.floats(0.5, 2),
        "beta_fast": st.none() | st.floats(4, 64),
        "beta_slow": st.none() | st.floats(0.25, 3),
        "mscale": st.none() | st.floats(0.1, 2),
        "mscale_all_dim": st.none() | st.floats(0.1, 2),
        "truncate": st.none() | st.booleans(),
    },
    "longrope": {
        "factor": st.none() | FACTOR,
        "original_max_position_embeddings": TRAINED,
        "attention_factor": st.none() | st.floats(0.5, 2),
    },
}


@st.composite
def configs(draw):
    """A config.json of either spelling, with heads of 4 to 128."""
    kind = draw(st.sampled_from(sorted(KEYS)))
    given_ = {key: draw(value) for key, value in KEYS[kind].items()}
    scaling = {key: value for key, value in given_.items() if value is not None}
    theta = draw(st.sampled_from([1e4, 5e5, 1e6]) | st.floats(100, 1e7))
    D = 2 * draw(st.integers(2, 64))
    if kind == "longrope":
        # transformers keeps these in float32, lifted or not.
        slower = st.lists(st.floats(1, 64, width=32), min_size=D // 2, max_size=D // 2)
        scaling |= {"short_factor": draw(slower), "long_factor": draw(slower)}
    config = {
        "vocab_size": 8,
        "hidden_size": 4 * D,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": draw(TRAINED),
    }
    if draw(st.booleans()):
        rope = {"rope_type": kind, "rope_theta": theta, **scaling}
        return config | {"rope_parameters": rope}
    key = draw(st.sampled_from(["type", "rope_type"]))
    if kind == "default":
        return config | {"rope_theta": theta}
    return config | {"rope_theta": theta, "rope_scaling": {key: kind, **scaling}}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(config=configs(), last=st.integers(0, 12_000))
def test_rotary_tables_equal_those_of_transformers(dtype, config, last):
    """All six scalings, both spellings, positions far beyond what was trained.

    In float32 an angle is as exact as its position times a frequency's last bits,
    so that is the bound; in float64 the oracle's islands are lifted.
    """
    positions = np.unique(np.linspace(0, last, 50).astype(np.int64))[None]
    with lifted() if dtype == "float64" else nullcontext():
        rotary = LlamaRotaryEmbedding(transformers.LlamaConfig(**config))
        x = torch.zeros(1, dtype=getattr(torch, dtype))
        golden = [t.numpy() for t in rotary(x, torch.from_numpy(positions))]
    found = rope_tables(config_from_hf(config), positions, dtype)
    half = golden[0].shape[-1] // 2
    scale = np.abs(golden[0]).max()
    # An island that cannot be lifted: longrope's exponents are float32 in any case.
    longrope = "short_factor" in str(config)
    eps = np.finfo("float32" if longrope else dtype).eps
    bound = 8 * eps * (1 + positions[0, :, None]) * scale
    for ours, theirs in zip(found, golden):
        assert ours.dtype == theirs.dtype == dtype
        assert (np.abs(ours - theirs[..., :half]) <= bound).all()
