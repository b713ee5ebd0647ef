r"""Text to tokens and back.

A model knows a fixed list of pieces of text, its vocabulary; a tokenizer cuts any
text into them.  Both kinds in use are *byte-pair encodings*: begin with single
characters (or bytes), and merge the pair that was most frequent in training, again
and again.  Every text can be encoded, since a character outside the vocabulary
becomes the bytes of its UTF-8 form.

- LLaMA 1 and 2, Code Llama, Mistral, TinyLlama: SentencePiece.  A space is part of
  the piece that follows it (written U+2581), and one is added in front of every text,
  so that a word is the same piece at the beginning as in the middle.
- LLaMA 3, SmolLM2, DeepSeek: bytes.  A regular expression first splits the text
  (words, numbers, punctuation ...), then bytes are merged within each part.

For decoding, every token stands for some bytes, and the text is these bytes joined.
A character may be spread over several tokens, so a program that shows a text while it
grows has to wait for the last byte of a character.  Decoding restores the encoded
text, except U+2581 itself, which SentencePiece reads as a space.  (A tokenizer may
also normalise a text first, or have no token for some bytes; LLaMA's own do neither.)

Two kinds of token are never made by merging:

- *Special tokens* such as ``<|eot_id|>`` are not text, but mark beginnings, ends and
  speakers.  A text produces them only where the caller allows it, since what a user
  types must not be able to end a turn and begin another.
- *Added words* such as ``<think>`` are text for which fine-tuning added one token.
  They are found everywhere in a text.

An embedding often has more rows than the vocabulary has tokens, since the
number of rows is padded to a round one.  So a model may choose an id without a
token; it adds no text.

References
----------
Sennrich et al. 2016, arXiv:1508.07909 (byte-pair encoding); Kudo and Richardson
2018, arXiv:1808.06226 (SentencePiece).
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

SPACE = "\u2581"


class Token(NamedTuple):
    """One entry of a vocabulary."""

    name: str  # for people to read
    content: bytes  # what it adds in the middle of a text
    special: bool = False  # recognised in a text only where that is allowed


NO_TOKEN = Token("", b"")


class Mark(NamedTuple):
    """How to find a special token or an added word in a text."""

    id: int
    special: bool = True
    lstrip: bool = False  # includes the white space in front of it
    rstrip: bool = False  # and that after it
    single_word: bool = False  # only where no letter or digit touches it
    normalized: bool = False  # searched after the text was normalised


def unchanged(text: str) -> str:
    """The normal form of tokenizers that do not change a text."""
    return text


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """One interface to all kinds of tokenizer.

    Attributes
    ----------
    kind : "sentencepiece", "tiktoken" or "tokenizers"
        The library that merges.
    bos_id, eos_id : int or None
        Beginning and end of a sequence.
    marks : dict of str to Mark
        Special tokens and added words by their names.
    vocabulary : sequence of Token
    merge : function of (text, begins) to list of int
        The tokens of a text without marks, by the library.  `begins` is false if
        other tokens precede the text.
    leading_space : bool
        Whether a space is added in front of every text.  (transformers 5 adds none in
        front of a text that begins with one.)
    front, back : tuple of int
        Tokens that the checkpoint puts around every text.
    normalise : function of str to str
        Applied to a text before added words are looked for and tokens are merged.
    chat_template : str
        The checkpoint's own form of conversations, in Jinja, if it has one.
    """

    kind: Literal["sentencepiece", "tiktoken", "tokenizers"]
    bos_id: int | None
    eos_id: int | None
    marks: dict[str, Mark] = field(repr=False)
    vocabulary: Sequence[Token] = field(repr=False)
    merge: Callable[[str, bool], list[int]] = field(repr=False)
    leading_space: bool
    front: tuple[int, ...] = ()
    back: tuple[int, ...] = ()
    normalise: Callable[[str], str] = field(default=unchanged, repr=False)
    chat_template: str = field(default="", repr=False)

    @property
    def vocab_size(self) -> int:
        """Number of ids from 0 to the last token's; some may have no token."""
        return len(self.vocabulary)

    @property
    def special(self) -> dict[str, int]:
        """Special tokens by their names."""
        return {name: mark.id for name, mark in self.marks.items() if mark.special}

    def encode(
        self,
        text: str,
        *,
        bos: bool | None = None,
        eos: bool | None = None,
        allowed_special: Literal["all"] | Collection[str] = (),
        guard: str = "",
        continuing: bool = False,
    ) -> list[int]:
        """Cut a text into tokens.

        Parameters
        ----------
        text : str
        bos, eos : bool or None
            Whether the beginning-of-sequence token comes first and the end token
            last, if there are such tokens.  None follows the checkpoint.
        allowed_special : "all" or strings
            Special tokens to recognise by their names in the text; all other names
            are plain text.  (transformers recognises all.)  The text after a
            special token is encoded separately: SentencePiece adds a space in
            front, as transformers does with ``legacy=True``.
        guard : str
            A character that `encode` removes after it has found special tokens
            and added words: so a name that contains it stays plain text.
        continuing : bool
            Other tokens precede the text.

        Raises
        ------
        ValueError
            If the text holds half a surrogate pair, which is not a character, or if
            an allowed name is not that of a special token.
        """
        check_text(text)
        marks = self._wanted(allowed_special)
        first = {name: mark for name, mark in marks.items() if not mark.normalized}
        second = {
            self.normalise(name): mark
            for name, mark in marks.items()
            if mark.normalized
        }
        tokens: list[int] = []
        for part in split_at(text, first):
            if isinstance(part, Mark):
                tokens.append(part.id)
            else:
                begins = not (tokens or continuing)
                part = self.normalise(part)
                tokens += self._merged(part, second, begins, guard)
        front = self.front if bos is None else (self.bos_id,) if bos else ()
        back = self.back if eos is None else (self.eos_id,) if eos else ()
        return [i for i in (*front, *tokens, *back) if i is not None]

    def _wanted(self, allowed: Literal["all"] | Collection[str]) -> dict[str, Mark]:
        """The marks to search for."""
        every = allowed == "all"
        if not every and (unknown := set(allowed) - self.special.keys()):
            raise ValueError(
                f"allowed_special: {min(unknown)!r} is not a special token"
            )
        return {
            name: mark
            for name, mark in self.marks.items()
            if every or not mark.special or name in allowed
        }

    def _merged(
        self, text: str, words: Mapping[str, Mark], begins: bool, guard: str
    ) -> list[int]:
        """The tokens of a normalised part, in which only `words` are still to find."""
        tokens: list[int] = []
        for part in split_at(text, words):
            if isinstance(part, Mark):
                tokens.append(part.id)
            else:
                part = part.replace(guard, "") if guard else part
                tokens += self.merge(part, begins and not tokens)
        return tokens

    def decode(self, tokens: Iterable[int], *, skip_special: bool = True) -> str:
        """Put tokens together to a text; bytes that are not UTF-8 become U+FFFD.

        As in Python, every incomplete character gives one U+FFFD;
        SentencePiece itself writes one for every byte.  An id without a token
        adds nothing.

        Parameters
        ----------
        skip_special : bool
            Leave special tokens out; otherwise their names are written.

        Raises
        ------
        ValueError
            If an id is negative.
        """
        stream = StreamDecoder(self, skip_special=skip_special)
        return "".join([*map(stream.push, tokens), stream.flush()])

    def token(self, index: int) -> Token:
        """An entry of the vocabulary; an empty one if no token has this id."""
        if index < 0:
            raise ValueError(f"token {index} is outside the vocabulary: ids begin at 0")
        return self.vocabulary[index] if index < len(self.vocabulary) else NO_TOKEN

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token adds in the middle of a text; none if special."""
        return self.token(index).content

    def piece(self, index: int) -> str:
        """A token's name for people to read."""
        return self.token(index).name


class StreamDecoder:
    """Decodes token by token, and never returns half a character.

    The results of all calls of `push` and then `flush`, joined, are what `decode`
    returns.

    Parameters
    ----------
    tokenizer : Tokenizer
    continuing : bool
        The tokens continue a text that was shown before, so a space in front of the
        first piece is part of the text.  Otherwise the space that SentencePiece
        added there is removed.
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
        self.at_start = tokenizer.leading_space and not continuing
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """The characters that this token completes, if any."""
        name, content, special = self.tokenizer.token(index)
        if self.at_start and content:
            self.at_start = False
            content = content[1:] if name.startswith(SPACE) else content
        if special and not content and not self.skip_special:
            content = name.encode()
        return self.utf8.decode(content)

    def flush(self) -> str:
        """The rest at the end: U+FFFD for an incomplete character."""
        return self.utf8.decode(b"", final=True)


#  ---- splitting --------------------------------------------------------------

# White space as Unicode defines it: Python counts four control characters, too.
WHITE = re.compile(r"[^\S\x1c-\x1f]*")


def check_text(text: str) -> None:
    """Raise an error for what cannot be written in UTF-8."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected str, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: character {error.start}, {text[error.start]!a}, is half a "
            "surrogate pair, which is no character"
        ) from None


def split_at(text: str, marks: Mapping[str, Mark]) -> Iterator[str | Mark]:
    """Cut a text at the names of marks; where names overlap, the longest counts."""
    start, names = 0, sorted(filter(None, marks), key=len, reverse=True)
    pattern = "|".join(map(re.escape, names))
    for match in re.finditer(pattern, text) if names else ():
        (begin, end), mark = match.span(), marks[match[0]]
        if mark.single_word and _in_a_word(text, begin, end):
            continue
        if mark.lstrip:
            while begin > start and WHITE.fullmatch(text[begin - 1]):
                begin -= 1
            begin = max(begin, start)
        if mark.rstrip:
            end = WHITE.match(text, end).end()
        if begin >= end:  # white space that the mark before it has taken along
            continue
        if start < begin:
            yield text[start:begin]
        yield mark
        start = end
    if start < len(text):
        yield text[start:]


def _in_a_word(text: str, begin: int, end: int) -> bool:
    """Whether a letter or a digit stands directly before or after a part."""
    around = text[max(0, begin - 1) : begin] + text[end : end + 1]
    return any(map(_is_letter, around))


# Symbols that Unicode counts as alphabetic: letters in circles and squares.
CIRCLED = ((0x24B6, 0x24EA), (0x1F130, 0x1F14A), (0x1F150, 0x1F16A), (0x1F170, 0x1F18A))
JOINERS = "\u200c\u200d"


def _is_letter(character: str) -> bool:
    """Whether Unicode counts a character as part of words; not a superscript two."""
    kind = unicodedata.category(character)
    if kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in JOINERS:
        return True
    return any(low <= ord(character) < high for low, high in CIRCLED)
