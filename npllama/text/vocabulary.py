r"""The files that a tokenizer is read from.

A vocabulary comes in one of three files, and all three become the same thing, a
list of tokens and a function that merges:

- SentencePiece's own model (LLaMA 1 and 2), which that library reads;
- a list of ranks (LLaMA 3, as Meta ships it): a line per token, its bytes in base64
  and the number that says how early it was merged;
- ``tokenizer.json`` (LLaMA 3, as Hugging Face ships it): the same vocabulary in
  printable characters that stand for bytes, with the merges spelled out.

Beside them ``tokenizer_config.json`` and ``special_tokens_map.json`` say which
tokens begin and end a sequence, and which were added by fine-tuning.

A file may come from anywhere.  Ranks that would lose text, or merges that tiktoken
would make in another order than the model was trained on, are refused: the model
would still talk, only worse.  SentencePiece does what its file says.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken

from npllama.text.tokenizer import (
    LLAMA3_PATTERN,
    SPACE,
    Token,
    Tokenizer,
    cut_long_text,
)

Settings = dict[str, Any]


def load_tokenizer_file(path: str | os.PathLike) -> Tokenizer:
    """Read one tokenizer file; see `load_tokenizer`."""
    name = "tokenizer.json" if Path(path).suffix == ".json" else "tokenizer.model"
    return load_tokenizer({name: Path(path).read_bytes()})


def load_tokenizer(members: Mapping[str, bytes]) -> Tokenizer:
    """Make a tokenizer from the files of a checkpoint.

    Parameters
    ----------
    members : mapping of file name to content
        ``tokenizer.model`` (SentencePiece, or tiktoken's ranks: told apart by
        their content), or else ``tokenizer.json`` of the LLaMA 3 kind.  Which
        tokens begin and end a sequence, and which were added to a SentencePiece
        model, is taken from ``special_tokens_map.json`` and
        ``tokenizer_config.json``, if they are there; the form of conversations
        from the latter, or from ``chat_template.jinja``.

    Raises
    ------
    ValueError
        If there is none of them, or it cannot be read.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in members:
            settings |= _reading(name, read_settings, members[name])
    if content := members.get("chat_template.jinja"):
        settings["chat_template"] = content.decode("utf-8", "replace")
    if content := members.get("tokenizer.model"):
        read = from_ranks if looks_like_ranks(content) else from_sentencepiece
        return _reading("tokenizer.model", read, content, settings)
    if content := members.get("tokenizer.json"):
        return _reading("tokenizer.json", from_tokenizer_json, content, settings)
    raise ValueError("no tokenizer: no tokenizer.model or tokenizer.json, or empty")


def _reading(file: str, read: Callable[..., Any], *given: Any) -> Any:
    """What `read` makes of a file; whatever is wrong with it, a ValueError says."""
    try:
        return read(*given)
    except Exception as error:
        told = isinstance(error, ValueError) and not isinstance(error, UnicodeError)
        why = str(error) if told else f"broken, or not as LLaMA's are ({error!r:.99})"
        raise ValueError(f"{file}: {why}") from None


def read_settings(content: bytes) -> dict[str, Any]:
    """The names of the tokens at both ends, the added tokens, the chat template."""
    data = json.loads(content)
    ends = {key: data[key] for key in ("bos_token", "eos_token") if data.get(key)}
    names = {
        k: t["content"] if isinstance(t, dict) else str(t) for k, t in ends.items()
    }
    added = (data.get("added_tokens_decoder") or {}).items()
    found: Settings = names | {}
    found["added"] = [(int(i), added_token(token)) for i, token in added]
    if template := data.get("chat_template"):
        # Some checkpoints have several, by name: conversations, tools ...
        several = template if isinstance(template, list) else [template]
        texts = (t["template"] if isinstance(t, dict) else str(t) for t in several)
        found["chat_template"] = "\n".join(texts)
    return found


def added_token(data: Settings) -> Token:
    """A token that Hugging Face added; if not marked special, a text shows its name."""
    content = b"" if data.get("special", True) else data["content"].encode()
    return Token(data["content"], content, special=True)


def assemble(
    tokens: Sequence[tuple[int, Token]], settings: Settings, **rest: Any
) -> Tokenizer:
    """A tokenizer of tokens with ids, of which the settings name the ends."""
    ids = [i for i, _ in tokens]
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(f"the ids of {len(ids)} tokens are not 0 to {len(ids) - 1}")
    names = [token.name for _, token in tokens if token.special]
    special = {token.name: i for i, token in tokens if token.special}
    if len(special) < len(names) or "" in special:
        raise ValueError("two special tokens have one name, or one has none")
    bos, eos = (special.get(settings[key]) for key in ("bos_token", "eos_token"))
    vocabulary = [token for _, token in sorted(tokens)]
    template = settings.get("chat_template", "")
    return Tokenizer(
        bos_id=bos,
        eos_id=eos,
        special=special,
        vocabulary=vocabulary,
        chat_template=template,
        **rest,
    )


#  ---- SentencePiece


def from_sentencepiece(content: bytes, settings: Settings) -> Tokenizer:
    """A tokenizer of LLaMA 1 or 2: a SentencePiece model."""
    engine = sentencepiece.SentencePieceProcessor(model_proto=content)
    size, ends = engine.vocab_size(), (engine.bos_id(), engine.eos_id())
    bos, eos = (engine.id_to_piece(i) if i >= 0 else None for i in ends)
    # What fine-tuning added has its place behind the model's own tokens.
    added = [(i, token) for i, token in settings.get("added", ()) if i >= size]
    return assemble(
        [*((i, sentencepiece_token(engine, i)) for i in range(size)), *added],
        {"bos_token": bos, "eos_token": eos} | settings,
        kind="sentencepiece",
        merge=engine.encode,
        leading_space=engine.encode("a", out_type=str)[0].startswith(SPACE),
    )


def sentencepiece_token(engine: Any, index: int) -> Token:
    """One piece of a SentencePiece model."""
    name = engine.id_to_piece(index)
    if engine.is_control(index):
        return Token(name, b"", special=True)
    if engine.is_byte(index):  # its name is <0x0A>
        return Token(name, bytes([int(name[3:-1], 16)]))
    if engine.is_unknown(index):  # the model says what is shown
        return Token(name, engine.decode([index]).encode())
    return Token(name, name.replace(SPACE, " ").encode())


#  ---- tiktoken


def looks_like_ranks(content: bytes) -> bool:
    """Whether a file begins as tiktoken's ranks do: base64, a space, a number."""
    first = content[:1000].lstrip().split(b"\n", 1)[0]
    return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} +\d+\s*", first) is not None


def from_ranks(content: bytes, settings: Settings) -> Tokenizer:
    """A tokenizer of LLaMA 3: one line per token, its bytes and its rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError:
                raise ValueError(f"line {number} is not a token and its rank") from None
    special = [Token(name, b"", special=True) for name in llama3_special_names()]
    return from_merges(ranks, list(enumerate(special, len(ranks))), settings)


def llama3_special_names() -> list[str]:
    """The 256 special tokens behind the ranks, as Meta names them since LLaMA 3.2.

    Those that a conversation is made of have the same ids in LLaMA 3.0 and in
    Hugging Face's files; some of the others are called reserved there.

    References
    ----------
    Meta llama-models, models/llama3/tokenizer.py.
    """
    names = """begin_of_text end_of_text reserved_special_token_0
        reserved_special_token_1 finetune_right_pad_id step_id start_header_id
        end_header_id eom_id eot_id python_tag image""".split()
    names += [f"reserved_special_token_{i + 2}" for i in range(256 - len(names))]
    return [f"<|{name}|>" for name in names]


def from_merges(
    ranks: dict[bytes, int], added: Sequence[tuple[int, Token]], settings: Settings
) -> Tokenizer:
    """A tokenizer that merges what has the lowest rank first, as LLaMA 3's does."""
    if b"" in ranks or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError(
            "a token is empty, or a single byte has none: text would be lost"
        )
    if len(set(ranks.values())) < len(ranks):
        raise ValueError("two tokens have one rank")
    tokens = [(i, Token(t.decode("utf-8", "replace"), t)) for t, i in ranks.items()]
    engine = tiktoken.Encoding(
        "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )

    def merge(text: str) -> list[int]:
        return [t for cut in cut_long_text(text) for t in engine.encode_ordinary(cut)]

    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return assemble(
        [*tokens, *added],
        ends | settings,
        kind="tiktoken",
        merge=merge,
        leading_space=False,
    )


def from_tokenizer_json(content: bytes, settings: Settings) -> Tokenizer:
    """A byte-level BPE in Hugging Face's JSON, as LLaMA 3 comes with, for tiktoken.

    There the vocabulary is written in printable characters that stand for bytes,
    and tokens are numbered in the order in which they were merged.
    """
    data = json.loads(content)
    check_kind(data)
    added = [(token["id"], added_token(token)) for token in data["added_tokens"]]
    apart = {token.name for _, token in added}
    text = {t: i for t, i in data["model"]["vocab"].items() if t not in apart}
    check_merges(data["model"]["merges"], text)
    letters = byte_letters()
    ranks = {bytes(letters[c] for c in token): i for token, i in text.items()}
    return from_merges(ranks, added, settings)


def check_kind(data: Settings) -> None:
    """Raise ValueError for a tokenizer that works in another way than LLaMA 3's."""
    model, steps = data["model"], (data["pre_tokenizer"] or {}).get("pretokenizers")
    keys = ("type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex")
    found = [[step[key] for key in keys if key in step] for step in steps or ()]
    split = ["Split", {"Regex": LLAMA3_PATTERN}, "Isolated", False]
    bytewise = ["ByteLevel", False, False]
    others = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    changes = data["normalizer"] or any(model.get(key) for key in others)
    if model["type"] != "BPE" or changes or found != [split, bytewise]:
        raise ValueError(
            "not a byte-level BPE that splits a text as LLaMA 3's does (LLaMA 1 and 2 "
            "need the tokenizer.model that this file was made from)"
        )


def check_merges(
    merges: Sequence[Sequence[str]], vocabulary: Mapping[str, int]
) -> None:
    """Raise ValueError unless merging by rank is merging in the order of this list."""
    made = ["".join(pair).replace(" ", "") for pair in merges]
    order = [vocabulary[token] for token in made]
    never_made = vocabulary.keys() - set(made)
    if order != sorted(order) or any(len(token) > 1 for token in never_made):
        raise ValueError("model.merges is not in the order of the ids in model.vocab")


def byte_letters() -> dict[str, int]:
    """Which character stands for which byte in a byte-level vocabulary.

    Printable characters of Latin-1 stand for themselves, the other bytes, in
    order, for the characters from U+0100 on.

    References
    ----------
    OpenAI gpt-2, encoder.py, `bytes_to_unicode`.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + i): byte for i, byte in enumerate(hidden)}
