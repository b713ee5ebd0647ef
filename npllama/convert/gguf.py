"""GGUF as a source: llama.cpp's names, order of rows and settings, taken back.

llama.cpp permutes the rows of q and k, and their biases, to Meta's order of
neighbours: H heads for q, K for k.  Its floats are float32, so 1e-5 is stored as
9.99999975e-6, and is read as the shortest decimal that rounds to the same float32.  Of
llama3's scaling it keeps only the result, ``rope_freqs.weight``, the divisor of every
frequency.  The parameters are recovered by trying those in use, and a table that fits
none of them is refused.  LongRoPE's two lists of factors are tensors as well.

Fields are trusted only where the tensors do not show the same: the number of embedding
rows gives the size of the vocabulary, and the output is tied unless ``output.weight``
exists.
``general.file_type`` describes no single tensor and is not read.

References
----------
llama.cpp, convert_hf_to_gguf.py, `LlamaModel`; src/llama-model.cpp, `load_hparams`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from npllama.config import Config, Rope, config_from_hf
from npllama.convert.gguf_file import Fields, Header, read_header
from npllama.convert.gguf_text import tokenizer_files
from npllama.convert.meta import to_halves
from npllama.convert.source import Checkpoint, Tensor, hinting, tensors_of
from npllama.files.checkpoint import STORED, widen
from npllama.rope import frequencies, llama3_frequencies
from npllama.weights import tensor_shapes

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EMBED, HEAD, ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
# Fields that change the arithmetic, and the values at which they do not.
CHANGES: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
}


def open_gguf(path: Path, tokenizer: bool = True) -> Checkpoint:
    """Describe a GGUF file, or all files of a split one, given any of them.

    Without `tokenizer` its fields are not looked at.

    Raises
    ------
    ValueError
        If it is not a LLaMA, or something in it cannot be read.
    OSError
        If a file is missing or cannot be read.
    """
    _need_gguf(path)
    paths, header = _whole(path)
    notes: list[str] = []
    try:
        config = config_of(header)
    except ValueError as error:
        raise ValueError(f"{paths[0]}: {error}") from None
    with hinting():
        try:
            files = tokenizer_files(header.fields, notes) if tokenizer else {}
        except ValueError as error:
            raise ValueError(f"{paths[0]}: {error}") from None
    tensors = {
        hf_name(name): to_halves(hf_name(name), tensor, config.head_dim)
        for name, tensor in header.tensors.items()
        if name not in (ROPE, SHORT, LONG) and not name.endswith(".attn_rot_embd")
    }
    blocks = Counter(kind for kind in header.types.values() if kind[0] not in "FB")
    lost = [f"dequantised from {kind}: {tensors_of(n)}" for kind, n in blocks.items()]
    return Checkpoint(
        path,
        config,
        tensors | _absent_biases(config, tensors),
        files,
        paths,
        notes=[f"{paths[0]}: {note}" for note in notes],
        lost=lost,
    )


def hf_name(name: str) -> str:
    """Hugging Face's name of one of llama.cpp's tensors; an unknown name as it is."""
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        layer, word = match.groups()
        if word in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[word]}.{kind}"
    return f"{NAMES[stem]}.{kind}" if stem in NAMES else name


def config_of(header: Header) -> Config:
    """The config that the fields and the tensors' shapes describe.

    Raises
    ------
    ValueError
        If it is not a LLaMA, or a field asks for arithmetic that LLaMAs do not have.
    """
    fields, tensors = header.fields, header.tensors
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise ValueError(
            f"general.architecture is {kind!r:.80}; only 'llama' can be read"
        )
    own = {k.removeprefix("llama."): v for k, v in fields.items() if k[:6] == "llama."}
    if EMBED not in tensors or len(tensors[EMBED].shape) != 2:
        raise ValueError(f"{EMBED}: missing, or not a matrix")
    heads, width = _count(own, "attention.head_count"), _count(own, "embedding_length")
    kv_heads = own.get("attention.head_count_kv", heads)
    D = own.get("attention.key_length", width // max(1, heads))
    _check_fields(own, D)
    data = {
        "vocab_size": tensors[EMBED].shape[0],
        "hidden_size": width,
        "intermediate_size": _count(own, "feed_forward_length"),
        "num_hidden_layers": _count(own, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": D,
        "max_position_embeddings": _count(own, "context_length"),
        "rms_norm_eps": _short(own, "attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": HEAD not in tensors,
        "attention_bias": any(re.search(r"attn_\w+\.bias", name) for name in tensors),
        "mlp_bias": any(re.search(r"ffn_\w+\.bias", name) for name in tensors),
        **_ends(fields),
    }
    rope = _long_rope(own, tensors) or _rope(own)
    if ROPE in tensors:
        rope = _from_divisors(_floats(ROPE, tensors), data["head_dim"], rope)
    return config_from_hf(data | {"rope_parameters": rope})


def _check_fields(own: Fields, D: int) -> None:
    """Raise ValueError for a field that asks for what LLaMAs do not do."""
    for key, harmless in CHANGES.items():
        if own.get(key, harmless[0]) not in harmless:
            raise ValueError(
                f"llama.{key} is {own[key]!r:.80}; LLaMAs have no such thing"
            )
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, D) != D:
            raise ValueError(
                f"llama.{key} is {own[key]!r:.80}; LLaMA's is its head size {D}"
            )


def _count(own: Fields, key: str) -> int:
    value = own.get(key)
    if type(value) is not int:
        what = "missing" if value is None else "not a whole number"
        raise ValueError(f"llama.{key} is {what}")
    return value


def _short(own: Fields, key: str, default: float | None = None) -> float:
    """A float32 as its author wrote it: the shortest decimal that rounds to it."""
    value = own.get(key, default)
    if type(value) not in (int, float):
        raise ValueError(f"llama.{key} is {value!r:.80}, not a number")
    return float(str(np.float32(value)))


def _ends(fields: Fields) -> Fields:
    """Where a text begins, and every token that ends one."""
    ids = [
        fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")
    ]
    ends = list(dict.fromkeys(i for i in ids if i is not None))
    return {
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends,
    }


def _floats(name: str, tensors: dict[str, Tensor]) -> np.ndarray:
    """A small tensor that says how positions are encoded, as float32."""
    tensor = tensors[name]
    if tensor.dtype not in STORED:
        raise ValueError(f"{name}: dtype {tensor.dtype}, which is not read here")
    return widen(tensor.read(), tensor.dtype, "float32")


def _rope(own: Fields) -> Fields:
    """Rope parameters in Hugging Face's words."""
    rope = {"rope_type": "default", "rope_theta": _short(own, "rope.freq_base", 1e4)}
    # A factor without a type means linear; older files have scale_linear instead.
    kind = own.get("rope.scaling.type", "linear")
    old = _short(own, "rope.scale_linear", 1.0)
    factor = _short(own, "rope.scaling.factor", old)
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ValueError(f"llama.rope.scaling.type is {kind!r:.80}; it cannot be read")
    trained = own.get("rope.scaling.original_context_length", own["context_length"])
    rope |= {"rope_type": "yarn", "factor": factor}
    rope |= {"original_max_position_embeddings": trained}
    sharper = _short(own, "rope.scaling.attn_factor", 1.0)
    if sharper != 1:  # llama.cpp multiplies, Hugging Face replaces
        rope["attention_factor"] = sharper * (0.1 * np.log(factor).item() + 1)
    return rope


def _long_rope(own: Fields, tensors: dict[str, Tensor]) -> Fields | None:
    """The parameters of LongRoPE; None for any other scaling.

    llama.cpp chooses the factors by the context that it is started with, and scales
    attention only if the file says so.  Hugging Face chooses by the length of the text,
    and infers the scale, so it is always written here.
    """
    if own.get("rope.scaling.type") != "longrope":
        for name in (SHORT, LONG):
            if name in tensors:
                raise ValueError(f"{name}: llama.rope.scaling.type is not 'longrope'")
        return None
    for name in (SHORT, LONG):
        if name not in tensors:
            raise ValueError(f"{name}: missing; llama.rope.scaling.type is 'longrope'")
    short, long = (
        [float(str(f)) for f in _floats(n, tensors).ravel()] for n in (SHORT, LONG)
    )
    return {
        "rope_type": "longrope",
        "rope_theta": _short(own, "rope.freq_base", 1e4),
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": own.get(
            "rope.scaling.original_context_length", own["context_length"]
        ),
        "attention_factor": _short(own, "rope.scaling.attn_factor", 1.0),
    }


def _from_divisors(divisors: np.ndarray, D: int, rope: Fields) -> Fields:
    """The llama3 scaling whose frequencies are the plain ones over `divisors`.

    Parameters
    ----------
    divisors : (D // 2,) float32
    rope : dict
        The unscaled parameters.

    Raises
    ------
    ValueError
        If no scaling that is in use gives these divisors.
    """
    theta, found = rope["rope_theta"], divisors.astype(np.float64)
    if np.array_equal(found, np.ones(D // 2)):
        return rope
    if rope["rope_type"] != "default" or found.shape != (D // 2,):
        raise ValueError(f"{ROPE}: {found.shape} divisors beside {rope['rope_type']}")
    plain = frequencies(theta, D, "float64")
    for factor in dict.fromkeys((8.0, 32.0, float(str(divisors.max())))):
        for trained in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
            for low, high in ((1.0, 4.0), (1.0, 2.0), (1.0, 8.0)):
                scaling = Rope("llama3", theta, factor, trained, low, high)
                scaled = plain / llama3_frequencies(scaling, D, "float64")
                if np.allclose(scaled, found, rtol=1e-5, atol=0):
                    return {
                        "rope_type": "llama3",
                        "rope_theta": theta,
                        "factor": factor,
                        "original_max_position_embeddings": trained,
                        "low_freq_factor": low,
                        "high_freq_factor": high,
                    }
    raise ValueError(f"{ROPE}: the divisors of no llama3 scaling that is in use")


def _absent_biases(config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for the biases that one layer lacks while others have them."""
    shapes = tensor_shapes(config).items()
    lacking = {n: s for n, s in shapes if n.endswith(".bias") and n not in tensors}
    any_file = next(iter(tensors.values())).file

    def zeros(shape: tuple[int, ...]) -> Tensor:
        return Tensor(any_file, shape, "float32", lambda: np.zeros(shape, np.float32))

    return {name: zeros(shape) for name, shape in lacking.items()}


def _need_gguf(path: Path) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{path}: only the package gguf knows its types; pip install "
            "'npllama[convert]'"
        ) from None


def _header(path: Path) -> Header:
    """A header without lists where one value is needed, such as one per layer."""
    header = read_header(path)
    begins = ("general.architecture", "llama.", "split.", "tokenizer.ggml.model")
    for key, value in header.fields.items():
        single = key.startswith(begins) or key.endswith("_token_id")
        if single and isinstance(value, (list, np.ndarray)):
            raise ValueError(f"{path}: {key} is not one value for the whole model")
    return header


def _whole(path: Path) -> tuple[list[Path], Header]:
    """All files of a split model, and their headers as one."""
    match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
    first = _header(path)
    parts = first.fields.get("split.count", 1)
    if parts in (0, 1):
        return [path], first
    if not match or int(match[2]) != parts:
        raise ValueError(
            f"{path}: one of {parts} files, which should be called "
            f"NAME-00001-of-{parts:05}.gguf and so on"
        )
    paths = [
        path.with_name(f"{match[1]}-{i:05}-of-{parts:05}.gguf")
        for i in range(1, parts + 1)
    ]
    headers = [_header(part) for part in paths]
    tensors: dict[str, Tensor] = {}
    types: dict[str, str] = {}
    for i, (part, header) in enumerate(zip(paths, headers)):
        if header.fields.get("split.no") != i:
            raise ValueError(f"{part}: split.no is not {i}, as its name says")
        for name in header.tensors.keys() & tensors.keys():
            raise ValueError(f"{part}: {name}: also in {tensors[name].file}")
        tensors |= header.tensors
        types |= header.types
    told = headers[0].fields.get("split.tensors.count", len(tensors))
    if told != len(tensors):
        raise ValueError(f"{paths[0]}: {told} tensors promised, {len(tensors)} found")
    return paths, Header(headers[0].fields, tensors, types)
