"""Chapter 2: the numbers that define a LLaMA.

A LLaMA is one architecture in many sizes.  A 15M toy and the 405B model differ
only in a few integers, an epsilon, and how positions are encoded.  This
chapter names these numbers as Hugging Face's ``config.json`` does.  It reads
them from that file (as transformers 4 or 5 writes it) or from a table of
well-known models.

A wrong number here gives a model that runs and talks nonsense, so everything is
checked once, on the way in, and the rest of the book may trust it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

# Every layer's tensors are listed by name: a wrong number should not fill memory.
MOST_LAYERS = 10_000
# The largest theta in use is below 1e11; angles should neither vanish nor overflow.
MOST_ROPE = 1e12
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
TRAINED = "original_max_position_embeddings"  # the name of one field of `Rope`
# With these types, the angles also depend on the length of the text.
BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True)
class Rope:
    """How rotary embeddings turn positions into angles; explained in `rope`.

    Only `rope_theta` matters for ``rope_type="default"``; the other fields belong
    to the scalings that stretch a trained context.  None means "not given": the
    value that transformers would infer is used.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None  # one number for every pair
    long_factor: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Config:
    """The size and shape of one LLaMA, in Hugging Face's words.

    The letters are those used for array shapes in every later chapter.
    """

    vocab_size: int  # V
    hidden_size: int  # E
    intermediate_size: int  # F
    num_hidden_layers: int  # L
    num_attention_heads: int  # H, the query heads
    num_key_value_heads: int  # K, each shared by G = H / K query heads
    head_dim: int  # D; H * D is usually E, but need not be
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"  # what bends the gate; see `feedforward`
    bos_token_id: int | None = 1
    eos_token_id: tuple[int, ...] = (2,)


def config_from_hf(data: Mapping[str, Any]) -> Config:
    """Read the dictionary of a Hugging Face ``config.json``.

    Parameters
    ----------
    data : mapping
        As ``LlamaConfig`` writes it: transformers 4 (``rope_theta`` and
        ``rope_scaling``) or transformers 5 (``rope_parameters``).

    Raises
    ------
    ValueError
        If it is not a LLaMA, or a number is missing or impossible.
    """
    _refuse_other_architectures(data)
    heads = positive(data, "num_attention_heads")
    hidden = positive(data, "hidden_size")
    if data.get("head_dim") is None and hidden % heads:
        raise ValueError(
            f"config: hidden_size {hidden} is not a multiple of "
            f"num_attention_heads {heads}, and no head_dim is given"
        )
    positions = positive(data, "max_position_embeddings", 2048)
    config = Config(
        vocab_size=positive(data, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=positive(data, "intermediate_size"),
        num_hidden_layers=positive(data, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=positive(data, "num_key_value_heads", heads),
        head_dim=positive(data, "head_dim", hidden // heads),
        max_position_embeddings=positions,
        rms_norm_eps=number(data, "rms_norm_eps", 1e-6),
        rope=_rope_from_hf(data, positions),
        tie_word_embeddings=flag(data, "tie_word_embeddings"),
        attention_bias=flag(data, "attention_bias"),
        mlp_bias=flag(data, "mlp_bias"),
        hidden_act=_activation(data),
        bos_token_id=_first(_token_ids(data, "bos_token_id", 1)),
        eos_token_id=_token_ids(data, "eos_token_id", 2),
    )
    return check(config)


def config_to_hf(config: Config) -> dict[str, Any]:
    """Write a config as the dictionary of a ``config.json`` that transformers 5 reads."""
    rope = {
        key: value for key, value in asdict(config.rope).items() if value is not None
    }
    if config.rope.rope_type != "yarn" and config.rope.truncate:
        del rope["truncate"]
    data = asdict(config) | {"rope_parameters": rope}
    del data["rope"]
    return data | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "eos_token_id": list(config.eos_token_id),
    }


def check(config: Config) -> Config:
    """Return `config` if its numbers fit together, else raise ValueError."""
    for field in fields(Config)[:8]:  # the sizes
        positive(vars(config), field.name)
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if config.num_hidden_layers > MOST_LAYERS:
        raise ValueError(
            f"config: num_hidden_layers {config.num_hidden_layers} is above "
            f"{MOST_LAYERS}; the largest LLaMA has 126"
        )
    if H % K:
        raise ValueError(
            f"config: num_attention_heads {H} is not a multiple of "
            f"num_key_value_heads {K}: every key/value head serves equally many"
        )
    if D % 2:
        raise ValueError(f"config: head_dim {D} is odd; rotary pairs need an even one")
    _activation(vars(config))
    _check_rope(config.rope, D)
    if D == 2 and config.rope.rope_type == "dynamic":
        raise ValueError("config: rope_type 'dynamic' needs a head_dim above 2")
    if not config.rms_norm_eps >= 0:
        raise ValueError(f"config: rms_norm_eps {config.rms_norm_eps} is below 0")
    return config


# The first checkpoints of LLaMA 1 have the second spelling.
ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM")
# transformers has several names for one activation; each is read as the first of them.
_SAME = {"silu": "swish", "relu": "relu", "gelu": "gelu_python"}
_SAME |= {"gelu_pytorch_tanh": "gelu_python_tanh gelu_new gelu_fast gelu_accurate"}
ACTIVATION_NAMES = {n: one for one, same in _SAME.items() for n in [one, *same.split()]}


def _refuse_other_architectures(data: Mapping[str, Any]) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"config: expected a JSON object, found {type(data).__name__}")
    kind = data.get("model_type", "llama")
    named = data.get("architectures") or ARCHITECTURES[:1]
    known = isinstance(named, (list, tuple)) and any(n in ARCHITECTURES for n in named)
    if kind != "llama" or not known:
        raise ValueError(
            f"config: model_type {kind!r:.80}, architectures {named!s:.80}: only "
            "LlamaForCausalLM models can be read"
        )
    if data.get("quantization_config"):
        raise ValueError("config: quantized weights; save the model in full precision")


def _activation(data: Mapping[str, Any]) -> str:
    """The activation, under the first of its names."""
    name = data.get("hidden_act", "silu")
    if not isinstance(name, str) or name not in ACTIVATION_NAMES:
        known = ", ".join(_SAME)
        raise ValueError(f"config: hidden_act {name!r:.80} is not one of {known}")
    return ACTIVATION_NAMES[name]


def _rope_from_hf(data: Mapping[str, Any], positions: int) -> Rope:
    """Read both spellings; if a file has both, `rope_scaling` counts."""
    both = [data.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    for found in both:
        if not isinstance(found, Mapping):
            raise ValueError(
                f"config: rope parameters are {found!r:.80}, not an object"
            )
    scaling = both[0] or both[1]
    _refuse_partial_rotation(data, scaling)
    known = {field.name for field in fields(Rope)}
    given = {key: scaling[key] for key in known if scaling.get(key) is not None}
    given.setdefault("rope_type", scaling.get("type") or "default")
    theta = data.get("rope_theta")
    theta = given.setdefault("rope_theta", 10000.0 if theta is None else theta)
    if both[0] and both[1].get("rope_theta", theta) != theta:
        raise ValueError(
            f"config: rope_scaling and rope_parameters both stand there, and their "
            f"rope_theta differ: {theta!r}, {both[1]['rope_theta']!r}"
        )
    if given["rope_type"] in ("yarn", "llama3", "longrope"):
        given |= _trained_context(data, given, positions)
    for key in ("short_factor", "long_factor"):
        if isinstance(given.get(key), list):
            given[key] = tuple(given[key])
    return Rope(**given)


def _refuse_partial_rotation(data: Mapping[str, Any], scaling: Mapping[str, Any]):
    """LLaMA's code in transformers turns all pairs.

    Without scaling, version 5 ignores this field; with most scalings it breaks on it,
    and version 4 breaks on it always.
    """
    part = scaling.get("partial_rotary_factor", data.get("partial_rotary_factor"))
    scaled = (scaling.get("rope_type") or scaling.get("type")) not in (None, "default")
    if scaled and part not in (None, 1):
        raise ValueError(f"config: partial_rotary_factor {part!r:.80} with a scaling")


def _trained_context(
    data: Mapping[str, Any], given: dict[str, Any], positions: int
) -> dict[str, Any]:
    """The context that was trained, and how far it is stretched.

    Like transformers, take the full context if the trained one is not given.
    """
    inside, outside = given.get(TRAINED, positions), data.get(TRAINED)
    found: dict[str, Any] = {TRAINED: inside if outside is None else outside}
    trained = positive(found, TRAINED)
    if given["rope_type"] != "llama3" and "factor" not in given:
        found["factor"] = positions / trained
    return found


def _check_rope(rope: Rope, D: int) -> None:
    if rope.rope_type not in ROPE_TYPES:
        raise ValueError(
            f"config: rope_type {rope.rope_type!r:.80} is not one of {', '.join(ROPE_TYPES)}"
        )
    for name in _ROPE_NEEDS.get(rope.rope_type, ()):
        if getattr(rope, name) is None:
            raise ValueError(f"config: rope_type {rope.rope_type!r:.80} needs {name!r}")
    for name, value in asdict(rope).items():
        if name in ("rope_type", "truncate") or value is None:
            continue
        several = name in ("short_factor", "long_factor")
        if several and (not isinstance(value, tuple) or len(value) != D // 2):
            raise ValueError(
                f"config: rope {name} is not a list of {D // 2} numbers, one for every "
                "pair of a head"
            )
        for one in value if several else (value,):
            _check_rope_number(name, one)
    flag(vars(rope), "truncate")
    if rope.rope_type == "yarn" and rope.rope_theta == 1:
        raise ValueError("config: rope_type 'yarn' needs a rope_theta other than 1")
    if rope.rope_type == "longrope" and rope.original_max_position_embeddings == 1:
        raise ValueError("config: rope_type 'longrope' needs a longer trained context")
    if rope.rope_type == "llama3" and rope.low_freq_factor == rope.high_freq_factor:
        raise ValueError("config: rope low_freq_factor equals high_freq_factor")


def _check_rope_number(name: str, value: Any) -> None:
    if not _is_real(value) or not 1 / MOST_ROPE <= value <= MOST_ROPE:
        raise ValueError(
            f"config: rope {name} {value!r:.80} is not a number from {1 / MOST_ROPE:.0e} "
            f"to {MOST_ROPE:.0e}"
        )


_ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", TRAINED),
    "llama3": ("factor", TRAINED, "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor", TRAINED),
}


def positive(data: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Read a positive integer, or its default; ValueError if it is not one."""
    value = data.get(key)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"config: {key!r} is missing")
    if type(value) is not int or not 0 < value < 2**63:
        raise ValueError(f"config: {key!r} is {value!r:.80}, not a positive integer")
    return value


def number(data: Mapping[str, Any], key: str, default: float) -> float:
    """Read a number, or its default; ValueError if it is not one."""
    value = data.get(key)
    value = default if value is None else value
    if not _is_real(value):
        raise ValueError(f"config: {key!r} is {value!r:.80}, not a number")
    return float(value)


def _is_real(value: Any) -> bool:
    """Whether it is a number that a float can hold: no NaN, infinity or bool."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def flag(data: Mapping[str, Any], key: str) -> bool:
    """Read true or false; false if the key is missing."""
    value = data.get(key) or False
    if not isinstance(value, bool):
        raise ValueError(f"config: {key!r} is {value!r:.80}, not true or false")
    return value


def _token_ids(data: Mapping[str, Any], key: str, default: int) -> tuple[int, ...]:
    """One id, several (LLaMA 3 stops at any of three), or none (null)."""
    value = data.get(key, default)
    ids = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    ids = () if value is None else ids
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise ValueError(f"config: {key!r} is {value!r:.80}, not a token id or several")
    return ids


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _llama(V, E, F, L, H, K, positions, eps=1e-5, theta=10000.0, **more) -> Config:
    """One row of the table of presets."""
    rope = Rope(rope_theta=theta)
    more = {"head_dim": E // H, "rope": rope} | more
    return Config(
        V, E, F, L, H, K, max_position_embeddings=positions, rms_norm_eps=eps, **more
    )


_SHARED: dict[str, Any] = {"tie_word_embeddings": True}
_V3: dict[str, Any] = {"bos_token_id": 128000, "eos_token_id": (128001,)}
_V31 = _V3 | {"eos_token_id": (128001, 128008, 128009)}
_TIED = _V31 | _SHARED


def _llama3(factor: float) -> Rope:
    return Rope("llama3", 500000.0, factor, 8192, 1.0, 4.0)


# fmt: off
PRESETS: dict[str, Config] = {
    #                          V      E      F      L    H   K   positions
    "stories15m":      _llama(32000,   288,   768,   6,   6,  6,    256, **_SHARED),
    "stories42m":      _llama(32000,   512,  1376,   8,   8,  8,   1024, **_SHARED),
    "stories110m":     _llama(32000,   768,  2048,  12,  12, 12,   1024, **_SHARED),
    "tinyllama-1.1b":  _llama(32000,  2048,  5632,  22,  32,  4,   2048),
    "llama-7b":        _llama(32000,  4096, 11008,  32,  32, 32,   2048, 1e-6),
    "llama-13b":       _llama(32000,  5120, 13824,  40,  40, 40,   2048, 1e-6),
    "llama-30b":       _llama(32000,  6656, 17920,  60,  52, 52,   2048, 1e-6),
    "llama-65b":       _llama(32000,  8192, 22016,  80,  64, 64,   2048),
    "llama-2-7b":      _llama(32000,  4096, 11008,  32,  32, 32,   4096),
    "llama-2-13b":     _llama(32000,  5120, 13824,  40,  40, 40,   4096),
    "llama-2-70b":     _llama(32000,  8192, 28672,  80,  64,  8,   4096),
    "codellama-7b":    _llama(32016,  4096, 11008,  32,  32, 32,  16384, theta=1e6),
    "codellama-13b":   _llama(32016,  5120, 13824,  40,  40, 40,  16384, theta=1e6),
    "codellama-34b":   _llama(32000,  8192, 22016,  48,  64,  8,  16384, theta=1e6),
    "llama-3-8b":      _llama(128256, 4096, 14336,  32,  32,  8,   8192, theta=5e5, **_V3),
    "llama-3-70b":     _llama(128256, 8192, 28672,  80,  64,  8,   8192, theta=5e5, **_V3),
    "llama-3.1-8b":    _llama(128256, 4096, 14336,  32,  32,  8, 131072, rope=_llama3(8.0), **_V31),
    "llama-3.1-70b":   _llama(128256, 8192, 28672,  80,  64,  8, 131072, rope=_llama3(8.0), **_V31),
    "llama-3.1-405b":  _llama(128256, 16384, 53248, 126, 128, 8, 131072, rope=_llama3(8.0), **_V31),
    "llama-3.2-1b":    _llama(128256, 2048,  8192,  16,  32,  8, 131072, rope=_llama3(32.0), **_TIED),
    "llama-3.2-3b":    _llama(128256, 3072,  8192,  28,  24,  8, 131072, rope=_llama3(32.0), **_TIED),
}
# fmt: on
PRESETS["llama-33b"] = PRESETS["llama-30b"]


def preset(name: str, **changes: Any) -> Config:
    """Look up a well-known model, optionally with some numbers changed.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r:.80}; there are {', '.join(PRESETS)}")
    return check(replace(PRESETS[name], **changes))
