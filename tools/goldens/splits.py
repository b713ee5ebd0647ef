"""What Hugging Face's `tokenizers` makes of texts, for every split of `splits`.

The vocabularies are trained here.  Only their merges are kept: the letters of bytes
come first, in the order of their characters, then one token per merge.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from goldens.tokenizer import CORPUS, MARKED, TEXTS
from npllama.text.splits import LLAMA3, QWEN2


def isolated(pattern: str):
    """A step that cuts out what a pattern matches."""
    return pre.Split(Regex(pattern), "isolated")


def of_bytes(use_regex: bool, space: bool = False):
    """The step that writes bytes as letters, and may split as GPT-2 does."""
    return pre.ByteLevel(add_prefix_space=space, use_regex=use_regex)


CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DIGITS = pre.Digits(individual_digits=True)
DEEPSEEK = [*map(isolated, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK)), DIGITS]
SPLITS = {
    "gpt-2": of_bytes(True),
    "gpt-2 with a space": of_bytes(True, True),
    "smollm": pre.Sequence([DIGITS, of_bytes(True)]),
    "llama-3": pre.Sequence([isolated(LLAMA3), of_bytes(False)]),
    "qwen2": pre.Sequence([isolated(QWEN2), of_bytes(False)]),
    "deepseek-coder": pre.Sequence([*DEEPSEEK, of_bytes(False)]),
}


def train(kind: str, size: int = 420) -> Tokenizer:
    """A small byte-level BPE with the split of a family."""
    tokenizer = Tokenizer(models.BPE())
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = SPLITS[kind]
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make(folder: Path) -> None:
    """Write splits.json."""
    golden = {}
    for kind in SPLITS:
        tokenizer = train(kind)
        whole = json.loads(tokenizer.to_str())
        encoded = [[text, tokenizer.encode(text).ids] for text in TEXTS + MARKED]
        golden[kind] = {
            "normalizer": whole["normalizer"],
            "pre_tokenizer": whole["pre_tokenizer"],
            "merges": whole["model"]["merges"],
            "encode": encoded,
        }
    text = json.dumps(golden, separators=(",", ":"), ensure_ascii=True)
    (folder / "splits.json").write_text(text + "\n", encoding="utf-8")
