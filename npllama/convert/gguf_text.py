r"""A tokenizer from the fields of a GGUF file, as the files of Hugging Face.

llama.cpp keeps two kinds.  ``llama`` is a SentencePiece model without its file:
pieces, scores and kinds, from which the file is written anew.  ``gpt2`` is a
byte-level BPE: names, merges, and a word, `pre`, for how a text is split before
bytes are merged; it becomes a ``tokenizer.json``.  Tokens are those of llama.cpp
itself, which normalises no text, even if the original tokenizer did (Qwen2's).

Tokens that are marked as unused only pad the vocabulary, and are left out.

References
----------
llama.cpp, src/llama-vocab.cpp, `impl::load` and `llm_tokenizer_bpe`; sentencepiece,
sentencepiece_model.proto.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from npllama.text.splits import LLAMA3 as LLAMA3_PATTERN
from npllama.text.splits import QWEN2, SEED_CODER, TRAILING

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)

Fields = dict[str, Any]


def tokenizer_files(fields: Fields, notes: list[str]) -> dict[str, bytes]:
    """The files of a tokenizer; empty if the fields hold none that can be read.

    Raises
    ------
    ValueError
        If the fields contradict each other.

    Writes
    ------
    notes : why there is no tokenizer
    """
    kind, names = (fields.get(f"tokenizer.ggml.{k}") for k in ("model", "tokens"))
    if names is None:
        return {}
    if not isinstance(names, list) or kind not in ("llama", "gpt2"):
        notes.append(f"tokenizer.ggml.model {kind!r:.80} cannot be read")
        return {}
    kinds = _column(fields, "token_type", [NORMAL] * len(names))
    pre = _of(str, fields, "tokenizer.ggml.pre", "default")
    settings = _settings(fields, names, kinds, kind == "llama" or pre in LLAMA3)
    if kind == "llama":
        scores = _column(fields, "scores", [0.0] * len(names))
        files = {"tokenizer.model": sentencepiece_model(fields, names, scores, kinds)}
    elif pre in SPLITS:
        data = json.dumps(byte_level(fields, names, kinds, pre), ensure_ascii=False)
        files = {"tokenizer.json": data.encode()}
    else:
        raise ValueError(
            f"tokenizer.ggml.pre is {pre!r:.80}: how it splits a text is not known"
        )
    text = json.dumps(settings, ensure_ascii=False, indent=1)
    return files | {"tokenizer_config.json": text.encode()}


def _of(kind: type, fields: Fields, key: str, default: Any) -> Any:
    """A field, which must be of one kind if it is there."""
    value = fields.get(key, default)
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {value!r:.80}, not a {kind.__name__}")
    return value


def _column(fields: Fields, key: str, default: list) -> list:
    """One value for every token."""
    values = fields.get(f"tokenizer.ggml.{key}")
    if values is None:
        return default
    if not isinstance(values, np.ndarray):  # texts are a list
        raise ValueError(f"tokenizer.ggml.{key} is {values!r:.80}, not numbers")
    values = values.tolist()
    if len(values) != len(default):
        raise ValueError(
            f"tokenizer.ggml.{key} has {len(values)} entries for {len(default)} tokens"
        )
    return values


def _settings(
    fields: Fields, names: list[str], kinds: list[int], adds_bos: bool
) -> Fields:
    """What ``tokenizer_config.json`` says; a flag that is absent has a default."""
    settings: Fields = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for end, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"),
                     ("pad", "padding")):  # fmt: skip
        settings[f"{end}_token"] = _name(fields, key, names)
    for key, default in (("add_bos_token", adds_bos), ("add_eos_token", False)):
        settings[key] = _of(bool, fields, f"tokenizer.ggml.{key}", default)
    prefix = "tokenizer.ggml.add_space_prefix"
    if prefix in fields:
        settings["add_prefix_space"] = _of(bool, fields, prefix, True)
    if template := _of(str, fields, "tokenizer.chat_template", ""):
        settings["chat_template"] = template
    settings["clean_up_tokenization_spaces"] = False
    added = {str(token["id"]): token for token in added_tokens(names, kinds)}
    for token in added.values():
        del token["id"]
    return settings | {"added_tokens_decoder": added}


def _name(fields: Fields, key: str, names: Sequence[str]) -> str | None:
    index = fields.get(f"tokenizer.ggml.{key}_token_id")
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < len(names):
        raise ValueError(f"tokenizer.ggml.{key}_token_id {index!r:.80} is not a token")
    return names[index]


def added_tokens(names: Sequence[str], kinds: Sequence[int]) -> list[Fields]:
    """Tokens that are found in a text before it is split, as Hugging Face lists them.

    Control tokens are special; those that a user defined are words.
    """
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return [
        {"id": i, "content": name, **flags, "special": kind == CONTROL}
        for i, (name, kind) in enumerate(zip(names, kinds))
        if kind in (CONTROL, USER)
    ]


#  ---- byte-level BPE ---------------------------------------------------------


def _bytes(use_regex: bool) -> Fields:
    """The step that turns bytes to letters, and splits as GPT-2 does if asked."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _splitting(*patterns: str) -> Fields:
    """Steps that cut out what a pattern matches, one after the other."""
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    steps = [split | {"pattern": {"Regex": pattern}} for pattern in patterns]
    return {"type": "Sequence", "pretokenizers": [*steps, _bytes(False)]}


def _digits_apart() -> Fields:
    digits = {"type": "Digits", "individual_digits": True}
    return {"type": "Sequence", "pretokenizers": [digits, _bytes(True)]}


# The letters that have two cases, as DeepSeek-LLM lists them.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a"
    "\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_NO_MARKS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

# What `pre` may say, and the pre_tokenizer that splits so.  LLaMA 3's own also
# takes a part that is a token whole, without merging.
LLAMA3 = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2".split()
_AS_LLAMA3 = ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe")
_AS_QWEN2 = "qwen2 stablelm2 megrez deepseek-r1-qwen hunyuan solar-open grok-2 kormo"
_AS_SMOLLM = "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"
_AS_GPT2 = "gpt-2 phi-2 olmo jais mpt trillion mellum exaone4 gigachat a.x-4.0"
SPLITS: dict[str, Fields] = dict.fromkeys(
    (*LLAMA3, *_AS_LLAMA3), _splitting(LLAMA3_PATTERN)
)
SPLITS |= dict.fromkeys(_AS_QWEN2.split(), _splitting(QWEN2))
SPLITS |= dict.fromkeys(_AS_SMOLLM.split(), _digits_apart())
SPLITS |= dict.fromkeys(_AS_GPT2.split(), _bytes(True))
SPLITS |= {
    "deepseek-llm": _splitting(
        r"[\r\n]", rf"\s?[{_CASED}]+", _MARKS, TRAILING, _CJK, r"\p{N}+"
    ),
    "deepseek-coder": _splitting(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"),
    "viking": _splitting(_NO_MARKS, r"\p{N}"),
    "poro-chat": _splitting(_NO_MARKS),
    "seed-coder": _splitting(SEED_CODER),
}


def byte_level(
    fields: Fields, names: Sequence[str], kinds: Sequence[int], pre: str
) -> Fields:
    """A ``tokenizer.json`` with these names and merges that splits as `pre` says."""
    merges = fields.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ValueError("tokenizer.ggml.merges is missing")
    pairs = [merge.split(" ") for merge in merges]
    vocab = {name: i for i, name in enumerate(names) if kinds[i] != UNUSED}
    bos = _name(fields, "bos", names)
    adds = _of(bool, fields, "tokenizer.ggml.add_bos_token", pre in LLAMA3)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(names, kinds),
        "normalizer": None,
        "pre_tokenizer": SPLITS[pre],
        "post_processor": _begins_with(bos, vocab) if adds and bos else None,
        "decoder": _bytes(True) | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in LLAMA3,
            "vocab": vocab,
            "merges": pairs,
        },
    }


def _begins_with(bos: str, vocab: dict[str, int]) -> Fields:
    """The step that puts BOS in front of a text."""
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": bos, "type_id": 1}},
              {"Sequence": {"id": "B", "type_id": 1}}]  # fmt: skip
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, *second],
        "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
    }


#  ---- SentencePiece ----------------------------------------------------------


def sentencepiece_model(
    fields: Fields, names: Sequence[str], scores: Iterable[float], kinds: Sequence[int]
) -> bytes:
    """SentencePiece's own file: its pieces, and the settings of LLaMA's.

    A BPE merges by score, so pieces and scores define it completely.  GGUF does not
    hold the normaliser's table; LLaMA's is "identity", which has none.
    """
    pieces = b"".join(
        _part(1, _part(1, name.encode()) + _float(2, score) + _int(3, kind))
        for name, score, kind in zip(names, scores, kinds)
    )
    ends = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}  # the fields' numbers
    ids = {end: fields.get(f"tokenizer.ggml.{end}_token_id", -1) for end in ends}
    ids |= {"unk": kinds.index(UNKNOWN) if UNKNOWN in kinds else 0, "pad": -1}
    trainer = _int(3, 2) + _int(4, len(names)) + _int(35, BYTE in kinds)  # 2 is BPE
    trainer += b"".join(_int(number, ids[end]) for end, number in ends.items())
    prefix = _of(bool, fields, "tokenizer.ggml.add_space_prefix", True)
    tidy = _of(bool, fields, "tokenizer.ggml.remove_extra_whitespaces", False)
    normalizer = _part(1, b"identity") + _part(2, b"")
    normalizer += _int(3, prefix) + _int(4, tidy) + _int(5, True)
    return pieces + _part(2, trainer) + _part(3, normalizer)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, as Protocol Buffers write a number."""
    value &= 2**64 - 1
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _part(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content
