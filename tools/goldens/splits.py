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
from npllama.convert.gguf_text import SPLITS as OF_LLAMA_CPP
from npllama.text.splits import LLAMA3, QWEN2


def isolated(pattern: str):
    """A step that cuts out what a pattern matches."""
    return pre.Split(Regex(pattern), "isolated")


def of_bytes(use_regex: bool, space: bool = False):
    """The step that writes bytes as letters, and may split as GPT-2 does."""
    return pre.ByteLevel(add_prefix_space=space, use_regex=use_regex)


CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DIGITS = pre.Digits(individual_digits=True)


def cutting(name: str) -> list:
    """The steps that llama.cpp knows by a name, up to the one for bytes."""
    steps = OF_LLAMA_CPP[name]["pretokenizers"][:-1]
    return [isolated(step["pattern"]["Regex"]) for step in steps]


DEEPSEEK = [*map(isolated, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK)), DIGITS]
SPLITS = {
    "gpt-2": of_bytes(True),
    "gpt-2 with a space": of_bytes(True, True),
    "smollm": pre.Sequence([DIGITS, of_bytes(True)]),
    "llama-3": pre.Sequence([isolated(LLAMA3), of_bytes(False)]),
    "qwen2": pre.Sequence([isolated(QWEN2), of_bytes(False)]),
    "deepseek-coder": pre.Sequence([*DEEPSEEK, of_bytes(False)]),
    "deepseek-llm": pre.Sequence(
        [*cutting("deepseek-llm")[:-1], DIGITS, of_bytes(False)]
    ),
    "numbers whole": pre.Sequence([*cutting("deepseek-llm"), of_bytes(False)]),
    "viking": pre.Sequence([*cutting("viking"), of_bytes(False)]),
    "seed-coder": pre.Sequence([*cutting("seed-coder"), of_bytes(False)]),
}


# Where splits differ: spaces before digits, scripts within a word, marks in a row.
EXTRA = [
    "a  1   2",
    "   12  \t3\n 4",
    "x\u4e2d\u6587y \u4e2d a\u3000\u4e2d \u3000\u3000z",
    "\u3042\u304b\u304d\u4e00\u3001\u3002 ...\u3002\uff01a \uff1f!",
    "\uac00\ub098 x\uac00 1\uac00",
    "don't DON'T 'S '\u017f it's'll",
    "a_b-c/d \\ ~`^+<=>|$",
    "\u2003\u2003a \u2003 b\u00a0\u00a0c",
    "\n \n\r\n \t\n a",
]


def train(kind: str, size: int = 560) -> Tokenizer:
    """A small byte-level BPE with the split of a family."""
    tokenizer = Tokenizer(models.BPE())
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    # Trained on whole lines, it has tokens that cross every border: a split that is
    # missing shows.
    tokenizer.pre_tokenizer = of_bytes(False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, *EXTRA * 9], trainer)
    tokenizer.pre_tokenizer = SPLITS[kind]
    return tokenizer


def make(folder: Path) -> None:
    """Write splits.json."""
    golden, texts = {}, TEXTS + MARKED + EXTRA
    for kind in SPLITS:
        tokenizer = train(kind)
        whole = json.loads(tokenizer.to_str())
        encoded = [[text, tokenizer.encode(text).ids] for text in texts]
        golden[kind] = {
            "normalizer": whole["normalizer"],
            "pre_tokenizer": whole["pre_tokenizer"],
            "merges": whole["model"]["merges"],
            "encode": encoded,
        }
    text = json.dumps(golden, separators=(",", ":"), ensure_ascii=True)
    (folder / "splits.json").write_text(text + "\n", encoding="utf-8")
