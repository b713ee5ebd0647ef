r"""Chapter 3: text to tokens and back.

A model knows a fixed list of pieces of text, its vocabulary; a tokenizer cuts any
text into them.  Both kinds in use are *byte-pair encodings*: begin with single
characters (or bytes), and merge the pair that was most frequent in training, again
and again.  No text is impossible, since a character outside the vocabulary falls
back to the bytes of its UTF-8 form.

- LLaMA 1 and 2 and Code Llama: SentencePiece.  A space is part of the piece that
  follows it (written U+2581), and one is put in front of every text, so that a word
  is the same piece at the beginning as in the middle.
- LLaMA 3: tiktoken.  The text is first split by a regular expression (words,
  numbers of up to three digits, punctuation ...), then bytes are merged within
  each part.

*Special tokens* such as ``<|eot_id|>`` mark what is not text: beginnings, ends, who
speaks.  They have ids but are never made from text unless the caller allows it:
what a user typed must not be able to end his turn and begin somebody else's.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sentencepiece
import tiktoken

SPACE = "\u2581"

# How LLaMA 3 splits text before merging: contractions, words, numbers of at most
# three digits, punctuation with the line ends behind it, white space.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# tiktoken's splitter fails on huge runs, so longer text is cut first, as Meta does.
LONGEST_TEXT = 400_000
LONGEST_RUN = 25_000


class Tokenizer(NamedTuple):
    """One face for both kinds of tokenizer.

    Attributes
    ----------
    kind : "sentencepiece" or "tiktoken"
    vocab_size : int
        Ids run from 0 to this, exclusive.
    bos_id, eos_id : int or None
    special : dict of str to int
        Tokens that are not text.
    engine : the library's own object
    """

    kind: Literal["sentencepiece", "tiktoken"]
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    special: dict[str, int]
    engine: Any

    def encode(
        self,
        text: str,
        *,
        bos: bool = True,
        eos: bool = False,
        allowed_special: Literal["all"] | Collection[str] = (),
    ) -> list[int]:
        """Cut a text into tokens.

        Parameters
        ----------
        text : str
        bos, eos : bool
            Put the beginning-of-sequence token in front, the end token behind.
        allowed_special : "all" or strings
            Special tokens to recognise where their name stands in the text; all
            others are text like any other.

        Raises
        ------
        ValueError
            If the text has half a surrogate pair, which is no character.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text: character {error.start} is half a surrogate pair, not text"
            ) from None
        allowed = self.special if allowed_special == "all" else allowed_special
        tokens = [self.bos_id] if bos and self.bos_id is not None else []
        for part in split_special(text, [s for s in allowed if s in self.special]):
            tokens += [self.special[part.text]] if part.special else self._plain(part)
        return tokens + ([self.eos_id] if eos and self.eos_id is not None else [])

    def _plain(self, part: Part) -> list[int]:
        if self.kind == "tiktoken":
            cuts = cut_long_text(part.text)
            return [t for cut in cuts for t in self.engine.encode_ordinary(cut)]
        return self.engine.encode(part.text)

    def decode(self, tokens: Iterable[int], *, skip_special: bool = True) -> str:
        """Put tokens together to a text; bytes that are not UTF-8 become U+FFFD.

        Parameters
        ----------
        skip_special : bool
            Leave special tokens out; otherwise their names are written.

        Raises
        ------
        ValueError
            If a token is not in the vocabulary.
        """
        decoder = StreamDecoder(self, skip_special=skip_special)
        return "".join(decoder.push(token) for token in tokens) + decoder.flush()

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds in the middle of a text; none if special."""
        self._check(token)
        if token in self.special.values():
            return b""
        if self.kind == "tiktoken":
            try:
                return self.engine.decode_single_token_bytes(token)
            except KeyError:  # a gap in the ids
                return b""
        if self.engine.is_byte(token):
            return bytes([int(self.engine.id_to_piece(token)[3:-1], 16)])
        if self.engine.is_control(token) or self.engine.is_unused(token):
            return b""
        if self.engine.is_unknown(token):
            return " \u2047 ".encode()  # what SentencePiece shows for it
        return self.engine.id_to_piece(token).replace(SPACE, " ").encode()

    def piece(self, token: int) -> str:
        """A token's name for people: its text, or the name of a special token."""
        self._check(token)
        names = {i: name for name, i in self.special.items()}
        return names.get(token) or self.token_bytes(token).decode("utf-8", "replace")

    def _check(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise ValueError(
                f"token {token} is outside the vocabulary, 0 to {self.vocab_size - 1}"
            )


class StreamDecoder:
    """Decodes token by token, and never hands out half a character.

    Parameters
    ----------
    tokenizer : Tokenizer
    continuing : bool
        The tokens go on from a text that was shown before, so a space in front of
        the first piece is part of the text.  Otherwise SentencePiece's dummy space
        is taken off.
    skip_special : bool
    """

    def __init__(
        self, tokenizer: Tokenizer, *, continuing: bool = False, skip_special: bool = True
    ):
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self.at_start = not continuing and tokenizer.kind == "sentencepiece"

    def push(self, token: int) -> str:
        """The characters that this token completes, possibly none."""
        content = self.tokenizer.token_bytes(token)
        if not content:
            if self.skip_special or token not in self.tokenizer.special.values():
                return ""
            return self.bytes.decode(b"", True) + self._name(token)
        if self.at_start:
            if self.tokenizer.engine.id_to_piece(token).startswith(SPACE):
                content = content[1:]
            self.at_start = False
        return self.bytes.decode(content)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that stayed incomplete."""
        return self.bytes.decode(b"", True)

    def _name(self, token: int) -> str:
        self.bytes.reset()
        return self.tokenizer.piece(token)


#  ---- splitting --------------------------------------------------------------


class Part(NamedTuple):
    """A stretch of text, or the name of a special token."""

    text: str
    special: bool


def split_special(text: str, names: Sequence[str]) -> list[Part]:
    """Cut a text at the given names; of names that overlap the longest counts."""
    if not names:
        return [Part(text, False)] if text else []
    longest_first = sorted(names, key=len, reverse=True)
    pattern = "|".join(re.escape(name) for name in longest_first)
    parts, at = [], 0
    for match in re.finditer(pattern, text):
        parts += [Part(text[at : match.start()], False), Part(match[0], True)]
        at = match.end()
    parts.append(Part(text[at:], False))
    return [part for part in parts if part.text]


def cut_long_text(text: str) -> list[str]:
    """Cut text so that no piece, and no run of (non-)space in it, is too long.

    References
    ----------
    Meta llama3/tokenizer.py, `encode` and `_split_whitespaces_or_nonwhitespaces`.
    """
    cuts = []
    for at in range(0, len(text), LONGEST_TEXT):
        piece = text[at : at + LONGEST_TEXT]
        begin = run = 0
        for i, character in enumerate(piece):
            same = i > 0 and character.isspace() == piece[i - 1].isspace()
            run = run + 1 if same else 1
            if run > LONGEST_RUN:
                cuts.append(piece[begin:i])
                begin, run = i, 1
        cuts.append(piece[begin:])
    return cuts


#  ---- reading files ----------------------------------------------------------


def load_tokenizer_file(path: str | os.PathLike) -> Tokenizer:
    """Read one tokenizer file; see `load_tokenizer`."""
    path = Path(path)
    name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
    return load_tokenizer({name: path.read_bytes()})


def load_tokenizer(members: Mapping[str, bytes]) -> Tokenizer:
    """Make a tokenizer from the files of a checkpoint.

    Parameters
    ----------
    members : mapping of file name to content
        ``tokenizer.model`` (SentencePiece, or tiktoken's ranks: told apart by
        their content), or else ``tokenizer.json`` of the LLaMA 3 kind.

    Raises
    ------
    ValueError
        If there is none of them, or it cannot be read.
    """
    if "tokenizer.model" in members:
        content = members["tokenizer.model"]
        ranks = looks_like_ranks(content)
        read = from_ranks if ranks else from_sentencepiece
        return _named("tokenizer.model", read, content)
    if "tokenizer.json" in members:
        return _named("tokenizer.json", from_tokenizer_json, members["tokenizer.json"])
    raise ValueError("no tokenizer: neither tokenizer.model nor tokenizer.json is there")


def _named(name: str, read, content: bytes) -> Tokenizer:
    try:
        return read(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def from_sentencepiece(content: bytes) -> Tokenizer:
    """A tokenizer of LLaMA 1 or 2: a SentencePiece model."""
    try:
        engine = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError("neither a SentencePiece model nor tiktoken ranks") from None
    size = engine.vocab_size()
    if not size:
        raise ValueError("the SentencePiece model is empty")
    control = [i for i in range(size) if engine.is_control(i)]
    special = {engine.id_to_piece(i): i for i in control}
    bos, eos = engine.bos_id(), engine.eos_id()
    return Tokenizer(
        "sentencepiece",
        size,
        bos if bos >= 0 else None,
        eos if eos >= 0 else None,
        special,
        engine,
    )


def looks_like_ranks(content: bytes) -> bool:
    """Whether a file begins as tiktoken's ranks do: base64, a space, a number."""
    first = content[:200].split(b"\n", 1)[0]
    return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+\r?", first) is not None


def from_ranks(content: bytes) -> Tokenizer:
    """A tokenizer of LLaMA 3: one line per token, its bytes and its rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is not a token and its rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"the ranks of {len(ranks)} tokens are not 0 to {len(ranks) - 1}")
    names = llama3_special_names()
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    return _tiktoken(LLAMA3_PATTERN, ranks, special)


def llama3_special_names() -> list[str]:
    """The 256 special tokens behind the ranks, as LLaMA 3.1 and later name them.

    LLaMA 3.0 calls some of them reserved; those in use have the same ids in both.

    References
    ----------
    Meta llama-models, llama3/tokenizer.py.
    """
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ]
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(2, 2 + 256 - len(names)))
    return [*names, *reserved]


def from_tokenizer_json(content: bytes) -> Tokenizer:
    """A byte-level BPE in Hugging Face's JSON, as LLaMA 3 comes with, for tiktoken.

    There the vocabulary is written in printable characters that stand for bytes,
    and tokens are numbered in the order in which they were merged.
    """
    try:
        data = json.loads(content)
        model, added = data["model"], data.get("added_tokens") or []
        vocabulary = model["vocab"]
        if model.get("type", "BPE") != "BPE" or not isinstance(vocabulary, dict):
            raise ValueError("not a BPE vocabulary")
        special = {str(token["content"]): int(token["id"]) for token in added}
        pattern = split_pattern(data.get("pre_tokenizer") or {})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not the layout of a tokenizers file ({error})") from None
    if pattern is None:
        raise ValueError("not a byte-level BPE with a split pattern, as LLaMA 3 has")
    letters = byte_letters()
    ranks = {}
    for token, rank in vocabulary.items():
        if token in special:
            continue
        try:
            ranks[bytes(letters[c] for c in token)] = int(rank)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"token {token!r} is not written in byte letters") from None
    return _tiktoken(pattern, ranks, special)


def split_pattern(pre_tokenizer: Mapping) -> str | None:
    """The regular expression of a pre-tokenizer; None if it is of another kind."""
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" not in kinds:
        return None
    for step in steps:
        if step.get("type") == "Split":
            return step["pattern"]["Regex"]
    return None


def byte_letters() -> dict[str, int]:
    """Which character stands for which byte in a byte-level vocabulary.

    Printable characters of Latin-1 stand for themselves, the other bytes, in
    order, for the characters from U+0100 on.

    References
    ----------
    OpenAI GPT-2 encoder.py, `bytes_to_unicode`.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _tiktoken(pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> Tokenizer:
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError("some single bytes have no token, so some text would be lost")
    ids = [*ranks.values(), *special.values()]
    if len(set(ids)) < len(ids) or min(ids) < 0:
        raise ValueError("two tokens have one id, or an id is negative")
    try:
        engine = tiktoken.Encoding(
            "llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(f"tiktoken refuses it ({error})") from None
    bos = special.get("<|begin_of_text|>")
    eos = special.get("<|end_of_text|>", special.get("<|eot_id|>"))
    return Tokenizer("tiktoken", max(ids) + 1, bos, eos, special, engine)
