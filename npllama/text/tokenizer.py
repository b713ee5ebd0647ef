r"""Text to tokens and back.

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

On the way back every token stands for some bytes, and the text is these bytes, one
token's after the other's.  A character may be spread over several tokens: whoever
shows a text while it is being made has to wait for its last byte.  What went in
comes out, but for U+2581 itself, which SentencePiece takes for a space.  (A
SentencePiece model may also have been trained to tidy a text up first, or without
bytes to fall back on; LLaMA's were not.)

*Special tokens* such as ``<|eot_id|>`` mark what is not text: beginnings, ends, who
speaks.  They have ids but are never made from text unless the caller allows it:
what a user typed must not be able to end his turn and begin somebody else's.

References
----------
Sennrich et al. 2016, arXiv:1508.07909 (byte-pair encoding); Kudo and Richardson
2018, arXiv:1808.06226 (SentencePiece).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

SPACE = "\u2581"


class Token(NamedTuple):
    """One entry of a vocabulary."""

    name: str  # for people to read
    content: bytes  # what it adds in the middle of a text
    special: bool = False  # recognised in a text only where that is allowed


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """One face for both kinds of tokenizer.

    Attributes
    ----------
    kind : "sentencepiece" or "tiktoken"
    bos_id, eos_id : int or None
        Beginning and end of a sequence.
    special : dict of str to int
        Special tokens by their names.
    vocabulary : sequence of Token
    merge : function from str to list of int
        The tokens of a text that has no special ones: the library's own code.
    leading_space : bool
        Whether a space is put in front of every text.  (transformers 5 puts none in
        front of a text that begins with one.)
    chat_template : str
        How the checkpoint itself writes conversations, in Jinja, if it says so.
    """

    kind: Literal["sentencepiece", "tiktoken"]
    bos_id: int | None
    eos_id: int | None
    special: dict[str, int] = field(repr=False)
    vocabulary: Sequence[Token] = field(repr=False)
    merge: Callable[[str], list[int]] = field(repr=False)
    leading_space: bool
    chat_template: str = field(default="", repr=False)

    @property
    def vocab_size(self) -> int:
        """Number of tokens; their ids run from 0 to this, exclusive."""
        return len(self.vocabulary)

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
            there are such tokens.
        allowed_special : "all" or strings
            Special tokens to recognise where their name stands in the text; all
            others are text like any other.  (transformers recognises them all.)
            What stands behind one is a text of its own: SentencePiece puts a space in
            front, as transformers does with ``legacy=True``.

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

        As in Python, one for every character that was begun; SentencePiece itself
        writes one for every byte.

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

    def token(self, index: int) -> Token:
        """An entry of the vocabulary; ValueError if there is none of that id."""
        if not 0 <= index < self.vocab_size:
            raise ValueError(
                f"token {index} is outside the vocabulary, 0 to {self.vocab_size - 1}"
            )
        return self.vocabulary[index]

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token adds in the middle of a text; none if special."""
        return self.token(index).content

    def piece(self, index: int) -> str:
        """A token's name for people to read."""
        return self.token(index).name


class StreamDecoder:
    """Decodes token by token, and never hands out half a character.

    What all calls of `push` and then `flush` return is what `decode` returns.

    Parameters
    ----------
    tokenizer : Tokenizer
    continuing : bool
        The tokens go on from a text that was shown before, so a space in front of
        the first piece is part of the text.  Otherwise the space that SentencePiece
        put there is taken off.
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
        """The characters that this token completes, possibly none."""
        name, content, special = self.tokenizer.token(index)
        if self.at_start and content:
            self.at_start = False
            content = content[1:] if name.startswith(SPACE) else content
        if special and not content and not self.skip_special:
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
