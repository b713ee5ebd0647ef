"""Meta's ``params.json``: the numbers of a LLaMA in other words.

Two numbers are missing there.  The feed-forward width follows from a rule.  The
context length follows from the model's generation, which is recognised by a large
vocabulary, scaled RoPE, or Code LLaMA's theta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npllama.config import Config, Rope, check, flag, number, positive


def ffn_width(data: Mapping[str, Any], width: int) -> int:
    """Two thirds of four times the width, or a multiple of it, rounded up."""
    multiplier = number(data, "ffn_dim_multiplier", 1.0)
    if not 0 < multiplier < 100:
        raise ValueError(f"params: 'ffn_dim_multiplier' is {multiplier}, not around 1")
    wide = int(multiplier * int(2 * (4 * width) / 3))
    multiple = positive(data, "multiple_of", 256)
    return multiple * ((wide + multiple - 1) // multiple)


def config_from_params(data: Mapping[str, Any], vocab_size: int) -> Config:
    """Read Meta's ``params.json``.

    The feed-forward width is not written there but follows from a rule: two
    thirds of four times the model's width (SwiGLU has three matrices where the
    plain block has two), times `ffn_dim_multiplier`, rounded up to a multiple of
    `multiple_of`.

    Parameters
    ----------
    data : mapping
        With ``dim``, ``n_layers``, ``n_heads`` and the rest.
    vocab_size : int
        Rows of the embedding: LLaMA 1 and 2 write ``"vocab_size": -1``.

    Raises
    ------
    ValueError
        If a number is missing or impossible.

    References
    ----------
    Meta llama/model.py, `FeedForward` and `ModelArgs`.  The context length is not
    in the file either: LLaMA 3.1 and later are recognised by `use_scaled_rope`, Code
    LLaMA by its theta of 1e6.
    Meta's own code scales them all by 8; the 3.2 models (width 2048 and 3072)
    were published with 32, which is used here unless the file says otherwise.
    """
    heads, width = positive(data, "n_heads"), positive(data, "dim")
    if width % heads:
        raise ValueError(f"params: dim {width} is not a multiple of n_heads {heads}")
    scaled = flag(data, "use_scaled_rope")
    theta = number(data, "rope_theta", 10000.0)
    rope = Rope(rope_theta=theta)
    if scaled:
        factor = number(data, "rope_scaling_factor", 32.0 if width < 4096 else 8.0)
        rope = Rope("llama3", theta, factor, 8192, 1.0, 4.0)
    llama3 = vocab_size > 100_000
    positions = 8192 if llama3 else 16384 if theta == 1e6 else 4096
    positions = 131072 if scaled else positions
    config = Config(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=ffn_width(data, width),
        num_hidden_layers=positive(data, "n_layers"),
        num_attention_heads=heads,
        num_key_value_heads=positive(data, "n_kv_heads", heads),
        head_dim=width // heads,
        max_position_embeddings=positions,
        rms_norm_eps=number(data, "norm_eps", 1e-5),
        rope=rope,
        bos_token_id=128000 if llama3 else 1,
        eos_token_id=(128001, 128008, 128009) if llama3 else (2,),
    )
    return check(config)
