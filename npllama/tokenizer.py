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

Back from tokens to text every token stands for some bytes, and the text is those
bytes, one token after the other.  A character may be spread over several tokens:
whoever shows text while it is being made has to wait for its last byte.

*Special tokens* such as ``<|eot_id|>`` mark what is not text: beginnings, ends, who
speaks.  They have ids but are never made from text unless the caller allows it:
what a user typed must not be able to end his turn and begin somebody else's.

What goes in comes out again, ``decode(encode(text)) == text``, but for the character
U+2581 itself: SentencePiece takes it for a space.

References
----------
Sennrich et al. 2016, arXiv:1508.07909 (byte-pair encoding); Kudo and Richardson
2018, arXiv:1808.06226 (SentencePiece).  Meta's code: llama/tokenizer.py and
llama-models, models/llama3/tokenizer.py.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import tiktoken

SPACE = "\u2581"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """One face for both kinds of tokenizer.

    Attributes
    ----------
    kind : "sentencepiece" or "tiktoken"
    bos_id, eos_id : int or None
        Beginning and end of a sequence.
    special : dict of str to int
        Tokens that are recognised in a text only when that is allowed.
    contents : sequence of bytes
        What every token of the vocabulary adds to a text.
    names : sequence of str
        The same for people to read.
    merge : function from str to list of int
        The tokens of a text that has no special ones, in the library's own code.
    leading_space : bool
        Whether a space is put in front of every text.
    """

    kind: Literal["sentencepiece", "tiktoken"]
    bos_id: int | None
    eos_id: int | None
    special: dict[str, int] = field(repr=False)
    contents: Sequence[bytes] = field(repr=False)
    names: Sequence[str] = field(repr=False)
    merge: Callable[[str], list[int]] = field(repr=False)
    leading_space: bool = False

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary; ids run from 0 to this, exclusive."""
        return len(self.contents)

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
            Put the beginning-of-sequence token in front, the end token behind, if
            the vocabulary has them.
        allowed_special : "all" or strings
            Special tokens to recognise where their name stands in the text; all
            others are text like any other.

        Raises
        ------
        ValueError
            If the text holds half a surrogate pair, which is no character, or a
            name is allowed that no special token has.
        """
        check_text(text)
        allowed = set(self.special if allowed_special == "all" else allowed_special)
        if unknown := sorted(allowed - self.special.keys()):
            raise ValueError(f"allowed_special: {unknown[0]!r} is no special token")
        tokens = [self.bos_id] if bos and self.bos_id is not None else []
        for part in split_at(text, allowed):
            tokens += [self.special[part]] if part in allowed else self.merge(part)
        return tokens + ([self.eos_id] if eos and self.eos_id is not None else [])

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
        stream = StreamDecoder(self, skip_special=skip_special)
        return "".join([*map(stream.push, tokens), stream.flush()])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds in the middle of a text; none if special."""
        return self.contents[self._checked(token)]

    def piece(self, token: int) -> str:
        """A token's name for people: its text, or the name of a special token."""
        return self.names[self._checked(token)]

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(
                f"token {token} is outside the vocabulary, 0 to {self.vocab_size - 1}"
            )
        return token


class StreamDecoder:
    """Decodes token by token, and never hands out half a character.

    What `push` returned, and at the end `flush`, is the same text as `decode` gives.

    Parameters
    ----------
    tokenizer : Tokenizer
    continuing : bool
        The tokens go on from a text that was shown before, so a space in front of
        the first piece is part of the text.  Otherwise SentencePiece's own leading
        space is taken off.
    skip_special : bool
        As for `decode`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        continuing: bool = False,
        skip_special: bool = True,
    ):
        self.tokenizer = tokenizer
        self.skip_special = skip_special
        self.strip_space = tokenizer.leading_space and not continuing
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes, possibly none.

        Writes
        ------
        The bytes of an unfinished character, and whether text has begun.
        """
        content, name = self.tokenizer.token_bytes(token), self.tokenizer.piece(token)
        if content and self.strip_space:
            self.strip_space = False
            content = content[1:] if name.startswith(SPACE) else content
        if name in self.tokenizer.special and not (content or self.skip_special):
            content = name.encode()
        return self.utf8.decode(content)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that stayed incomplete."""
        return self.utf8.decode(b"", final=True)


#  ---- splitting --------------------------------------------------------------

# How LLaMA 3 splits text before merging: contractions, words, numbers of at most
# three digits, punctuation with the line ends behind it, white space.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# tiktoken may fail on huge texts and huge runs, so Meta cuts them first.
LONGEST_TEXT = 400_000
LONGEST_RUN = 25_000


def check_text(text: str) -> None:
    """Raise an error, with one clear line, for what cannot be written in UTF-8."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected str, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: character {error.start} ({text[error.start]!a}) is half a "
            "surrogate pair, which is no character"
        ) from None


def split_at(text: str, names: Collection[str]) -> list[str]:
    """Cut a text at names, which are kept; of names that overlap the longest counts."""
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)


def cut_long_text(text: str) -> list[str]:
    """Cut a text so that no part, and no run of (non-)space in it, is too long.

    References
    ----------
    Meta llama-models, models/llama3/tokenizer.py, `encode` and
    `_split_whitespaces_or_nonwhitespaces`.
    """
    starts = []
    for begin in range(0, len(text), LONGEST_TEXT):
        starts.append(begin)
        for run in re.finditer(r"\s+|\S+", text[begin : begin + LONGEST_TEXT]):
            starts += range(begin + run.start(), begin + run.end(), LONGEST_RUN)[1:]
    return [text[i:j] for i, j in zip(starts, [*starts[1:], len(text)])]


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
        their content), or else ``tokenizer.json`` of the LLaMA 3 kind.  From
        ``special_tokens_map.json`` and ``tokenizer_config.json``, if they are
        there, the names of the beginning and end tokens, and tokens that were added
        to a SentencePiece model.

    Raises
    ------
    ValueError
        If there is none of them, or it cannot be read.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in members:
            settings |= _reading(name, read_settings, members[name])
    if content := members.get("tokenizer.model"):
        ranks = looks_like_ranks(content)
        read = from_ranks if ranks else from_sentencepiece
        tokenizer = _reading("tokenizer.model", read, content)
    elif content := members.get("tokenizer.json"):
        tokenizer = _reading("tokenizer.json", from_tokenizer_json, content)
    else:
        raise ValueError("no tokenizer: no tokenizer.model or tokenizer.json, or empty")
    if tokenizer.kind == "sentencepiece":
        tokenizer = _reading("tokenizer_config.json", with_added, tokenizer, settings)
    return with_ends(tokenizer, settings)


def _reading(file: str, read: Callable[..., Any], *given: Any) -> Any:
    """What `read` makes of a file; whatever is wrong with it, a ValueError says."""
    try:
        return read(*given)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: not of the layout it should have ({error})"
        ) from None
    except (RecursionError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None


def read_settings(content: bytes) -> dict[str, Any]:
    """A JSON object."""
    settings = json.loads(content)
    if not isinstance(settings, dict):
        raise ValueError("not a JSON object")
    return settings


def with_ends(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer with the beginning and end tokens that the settings name."""

    def named(key: str, default: int | None) -> int | None:
        name = settings.get(key)
        name = name.get("content") if isinstance(name, dict) else name
        return (
            tokenizer.special.get(name, default) if isinstance(name, str) else default
        )

    bos = named("bos_token", tokenizer.bos_id)
    return replace(tokenizer, bos_id=bos, eos_id=named("eos_token", tokenizer.eos_id))


#  ---- SentencePiece


def from_sentencepiece(content: bytes) -> Tokenizer:
    """A tokenizer of LLaMA 1 or 2: a SentencePiece model."""
    try:
        engine = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise ValueError("neither a SentencePiece model nor tiktoken ranks") from None
    ids = list(range(engine.vocab_size()))
    names = engine.id_to_piece(ids)
    bos, eos = engine.bos_id(), engine.eos_id()
    return Tokenizer(
        "sentencepiece",
        bos_id=bos if bos >= 0 else None,
        eos_id=eos if eos >= 0 else None,
        special={names[i]: i for i in ids if engine.is_control(i)},
        contents=[piece_bytes(engine, i, names[i]) for i in ids],
        names=names,
        merge=engine.encode,
        leading_space=engine.encode("a", out_type=str)[0].startswith(SPACE),
    )


def piece_bytes(
    engine: sentencepiece.SentencePieceProcessor, token: int, name: str
) -> bytes:
    """What a piece of a SentencePiece model adds to a text."""
    if engine.is_byte(token):
        return bytes([int(name[3:-1], 16)])  # its name is <0x0A>
    if engine.is_control(token):
        return b""
    if engine.is_unknown(token):
        return engine.decode([token]).encode()  # the model says what is shown
    return name.replace(SPACE, " ").encode()


def with_added(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer with the tokens that a fine-tuning added behind its model's."""
    listed = settings.get("added_tokens_decoder") or {}
    known = tokenizer.vocab_size
    added = {int(i): token for i, token in listed.items() if int(i) >= known}
    check_ids([*range(known), *sorted(added)])
    behind = [added[i] for i in sorted(added)]
    return replace(
        tokenizer,
        special=tokenizer.special | special_ids(added),
        contents=[*tokenizer.contents, *map(added_bytes, behind)],
        names=[*tokenizer.names, *(token["content"] for token in behind)],
    )


def special_ids(added: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Added tokens by name, as Hugging Face describes them."""
    ids = {token["content"]: i for i, token in added.items()}
    if len(ids) < len(added) or "" in ids:
        raise ValueError("two added tokens have one name, or one has none")
    return ids


def added_bytes(token: Mapping[str, Any]) -> bytes:
    """What an added token adds to a text: its name, unless it is marked special."""
    return b"" if token.get("special", True) else token["content"].encode()


def check_ids(ids: Sequence[int]) -> None:
    """Raise ValueError unless every number from 0 on is the id of one token."""
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(f"the ids of {len(ids)} tokens are not 0 to {len(ids) - 1}")


#  ---- tiktoken


def looks_like_ranks(content: bytes) -> bool:
    """Whether a file begins as tiktoken's ranks do: base64, a space, a number."""
    first = content[:1000].lstrip().split(b"\n", 1)[0]
    return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} +\d+\s*", first) is not None


def from_ranks(content: bytes) -> Tokenizer:
    """A tokenizer of LLaMA 3: one line per token, its bytes and its rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError:
                raise ValueError(f"line {number} is not a token and its rank") from None
    names = enumerate(llama3_special_names(), len(ranks))
    return from_merges(ranks, {i: {"content": name} for i, name in names})


def llama3_special_names() -> list[str]:
    """The 256 special tokens behind the ranks, as LLaMA 3.1 and later name them.

    In LLaMA 3.0, and in Hugging Face's files, some that are named here are called
    reserved, and the reserved ones are counted otherwise.  The ids of those in use
    are the same everywhere.

    References
    ----------
    Meta llama-models, models/llama3/tokenizer.py.
    """
    names = """begin_of_text end_of_text reserved_special_token_0
        reserved_special_token_1 finetune_right_pad_id step_id start_header_id
        end_header_id eom_id eot_id python_tag image""".split()
    names += [f"reserved_special_token_{i}" for i in range(2, 256 - len(names) + 2)]
    return [f"<|{name}|>" for name in names]


def from_merges(ranks: dict[bytes, int], added: Mapping[int, Mapping]) -> Tokenizer:
    """A tokenizer that merges the bytes of lowest rank first, as LLaMA 3's does."""
    check_ids([*ranks.values(), *added])
    if b"" in ranks or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError(
            "a token is empty, or a single byte has none: text would be lost"
        )
    engine = tiktoken.Encoding(
        "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    special = special_ids(added)
    shown = {i: token for token, i in ranks.items()}
    named = {i: token.decode("utf-8", "replace") for i, token in shown.items()}
    shown |= {i: added_bytes(token) for i, token in added.items()}
    named |= {i: name for name, i in special.items()}
    return Tokenizer(
        "tiktoken",
        bos_id=special.get("<|begin_of_text|>"),
        eos_id=special.get("<|end_of_text|>"),
        special=special,
        contents=[shown[i] for i in range(len(shown))],
        names=[named[i] for i in range(len(named))],
        merge=lambda text: [
            token
            for cut in cut_long_text(text)
            for token in engine.encode_ordinary(cut)
        ],
    )


def from_tokenizer_json(content: bytes) -> Tokenizer:
    """A byte-level BPE in Hugging Face's JSON, as LLaMA 3 comes with, for tiktoken.

    There the vocabulary is written in printable characters that stand for bytes,
    and tokens are numbered in the order in which they were merged.
    """
    data = read_settings(content)
    added = {token["id"]: token for token in data.get("added_tokens") or ()}
    check_kind(data)
    letters = byte_letters()
    vocabulary, special = data["model"]["vocab"], special_ids(added)
    vocabulary = {token: i for token, i in vocabulary.items() if token not in special}
    check_merges(data["model"]["merges"], vocabulary)
    ranks = {bytes(letters[c] for c in token): i for token, i in vocabulary.items()}
    return from_merges(ranks, added)


def check_kind(data: Mapping[str, Any]) -> None:
    """Raise ValueError for a tokenizer that works in another way than LLaMA 3's."""
    model, steps = data["model"], (data.get("pre_tokenizer") or {}).get("pretokenizers")
    split, bytewise = steps if steps and len(steps) == 2 else ({}, {})
    if (
        model.get("type", "BPE") != "BPE"
        or any(model.get(key) for key in ("dropout", "byte_fallback"))
        or data.get("normalizer")
        or bytewise.get("type") != "ByteLevel"
        or bytewise.get("add_prefix_space")
        or bytewise.get("use_regex", True)
        or split.get("behavior") != "Isolated"
        or split.get("pattern") != {"Regex": LLAMA3_PATTERN}
    ):
        raise ValueError(
            "not a byte-level BPE that splits text as LLaMA 3's does; for LLaMA 1 and "
            "2 give tokenizer.model"
        )


def check_merges(
    merges: Sequence[str | Sequence[str]], vocabulary: Mapping[str, int]
) -> None:
    """Raise ValueError unless merging by rank is merging in the order of this list."""
    made = ["".join(pair).replace(" ", "") for pair in merges]
    order = [vocabulary[token] for token in made]
    never_made = vocabulary.keys() - set(made)
    if order != sorted(order) or any(len(token) != 1 for token in never_made):
        raise ValueError("merges and ids of tokens are not in the same order")


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
