"""Small tokenizers of both kinds, and what Hugging Face's own code makes of texts.

The tokenizers are trained here, on a few lines in many scripts: a SentencePiece
model with the settings of LLaMA 2's, and a byte-level BPE in both of the files that
LLaMA 3 comes in, ranks and ``tokenizer.json``.  The answers are those of the
`tokenizers` library, which has both algorithms once more in code of its own, through
transformers' classes.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from npllama.text.byte_level import byte_letters, llama3_special_names
from npllama.text.splits import LLAMA3 as LLAMA3_PATTERN

CORPUS = """Once upon a time a small fox lived at the edge of the forest.
She had lost her red ball, and she looked for it under every tree.
"Have you seen it?" she asked the owl. "I haven't," said the owl; "we'll look."
They'd walked 12 miles by 1830, or 1,234.5 steps: it's a long way, isn't it?
def forward(x, y=None):\n    if y is None:\n        return x ** 2
The café in Zürich serves crème brûlée; naïve façades, coöperation, Ångström.
Вечером лиса нашла мяч под старым деревом и пошла домой.
夜になると、狐は古い木の下で赤いボールを見つけました。
राम ने लाल गेंद पेड़ के नीचे देखी। وجدت الثعلبة الكرة تحت الشجرة.
user assistant system [INST] [/INST] <<SYS>> <</SYS>> \t tabs \r\n lines\n\n\n
""".split("\n") * 20  # fmt: skip

TEXTS = [
    "",
    "a",
    "  two  spaces   three ",
    "Once upon a time",
    " Once upon a time",
    "Hello, world! It's 12345678 o'clock, isn't it? I'LL go.",
    "line\nline\r\nline\r\rline\n\n\n  indented\n\ttab \t end\n ",
    "naïve café; e\u0301 combining \u0301\u0301",
    "狐は古い木の下 мяч под деревом गेंद पेड़ الكرة",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family \U0001f1e8\U0001f1ed \U0001f44d\U0001f3fd",
    "zero\x00width\u200b\ufeff\u00a0space \x7f\x1b",
    "[INST] <<SYS>> not a mark <</SYS>> [/INST]",
    "def f(x):\n    return x**2  # comment\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---===" * 5,
    " " * 100,
    "\n" * 50,
    "\U0010ffff \ufffd \ud7ff \ue000",
    "ⅷ ½ ٣٤ 1²3 x̂ ſ ŉ K",
]
MARKED = ["a<|eot_id|>b", "<|begin_of_text|>", "<s>", "</s> <s>", "x<unk>"]
PAIRS = ["<|eot_id|>a", "hi <|begin_of_text|>there<|end_of_text|>", "<|eot_id|>" * 2]


def train_sentencepiece() -> bytes:
    """A SentencePiece BPE with the settings of LLaMA 2's, but 560 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=560,
        character_coverage=0.98,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_surface=" \u2047 ",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def train_byte_level() -> Tokenizer:
    """A byte-level BPE as LLaMA 3's, but of 512 tokens and the special ones."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(llama3_special_names())
    return tokenizer


def ranks_of(tokenizer: Tokenizer) -> bytes:
    """The same merges in the other file of LLaMA 3."""
    letters = byte_letters()
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    lines = []
    for token, rank in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        content = base64.b64encode(bytes(letters[c] for c in token))
        lines.append(content + b" %d\n" % rank)
    return b"".join(lines)


def answers(tokenizer, texts: list[str], **options) -> list[list]:
    """[text, ids, text of these ids] for every text."""
    encoded = [tokenizer.encode(text, **options) for text in texts]
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded]
    return [list(entry) for entry in zip(texts, encoded, decoded)]


def shuffled(tokenizer, ids: list[int]) -> list[list]:
    """[ids, text] for tokens in an order that no text gives."""
    rng = np.random.default_rng(0)
    lists = [rng.choice(ids, size=n).tolist() for n in (1, 1, 2, 3, 5, 8, 20, 50)]
    return [[x, tokenizer.decode(x, skip_special_tokens=True)] for x in lists]


def ask_sentencepiece(content: bytes) -> dict[str, list]:
    """Answers for a SentencePiece model.

    Bytes out of order are left out: where they are no UTF-8, this library writes
    U+FFFD for every byte, others for every character that was begun.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(content)
        tokenizer = LlamaTokenizer.from_pretrained(folder)
    pieces = [
        i for name, i in tokenizer.get_vocab().items() if not name.startswith("<")
    ]
    return {
        "encode": answers(tokenizer, TEXTS + MARKED, split_special_tokens=True),
        "decode": shuffled(tokenizer, sorted(pieces)),
    }


def ask_byte_level(file: Path) -> dict[str, list]:
    """Answers for a byte-level BPE."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file), clean_up_tokenization_spaces=False
    )
    return {
        "encode": answers(tokenizer, TEXTS + MARKED, split_special_tokens=True),
        "special": answers(tokenizer, PAIRS),
        "decode": shuffled(tokenizer, list(range(len(tokenizer)))),
    }


def make(folder: Path) -> None:
    """Write the tokenizers and tokenizer.json, the answers."""
    models_at = folder / "tokenizers"
    models_at.mkdir(exist_ok=True)
    model, byte_level = train_sentencepiece(), train_byte_level()
    (models_at / "sentencepiece.model").write_bytes(model)
    (models_at / "ranks.model").write_bytes(ranks_of(byte_level))
    byte_level.save(str(models_at / "byte_level.json"), pretty=False)
    golden = {
        "sentencepiece": ask_sentencepiece(model),
        "tiktoken": ask_byte_level(models_at / "byte_level.json"),
    }
    text = json.dumps(golden, separators=(",", ":"), ensure_ascii=True)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
