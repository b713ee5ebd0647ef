r"""Vocabularies of pieces, merged by SentencePiece.

They come in one of three files:

- ``tokenizer.model``, SentencePiece's own (LLaMA 1 and 2, TinyLlama, Yi ...);
- ``tokenizer.json`` of that kind, which transformers writes: pieces and merges, but
  no scores.  SentencePiece merges the pair with the best score, so a score that
  falls with every merge in the list rebuilds the model;
- llama2.c's ``tokenizer.bin``: for every piece its score, its length, its bytes.

Where the files differ, the first is right, since the models were trained with
it.  So here a text that begins with a space gets another one in front,
whichever file the vocabulary came from.  The *Metaspace* step of a newer
``tokenizer.json`` adds none to such a text, so in Hugging Face " a" and "a"
are then the same tokens.

A piece that fine-tuning declared special (such as Yi's ``<|im_start|>``) becomes a
control piece, which SentencePiece never makes from text.

A SentencePiece model is a message of protocol buffers: fields, each with its
number.  If a field occurs twice, the later one counts, except for pieces,
which all count.

References
----------
Kudo and Richardson 2018, arXiv:1808.06226; google/sentencepiece,
src/sentencepiece_model.proto; karpathy/llama2.c, tokenizer.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from npllama.text.merges import check_merges, merge_pairs, ranks_of
from npllama.text.settings import LARGEST_ID, Json, Settings, assemble, special_names
from npllama.text.tokenizer import SPACE, Token, Tokenizer, unchanged

#  ---- protocol buffers -------------------------------------------------------

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of a model
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # how a field is written


class Piece(NamedTuple):
    """One piece of a SentencePiece model."""

    text: str
    score: float
    kind: int = NORMAL


def varint(number: int) -> bytes:
    """A whole number, seven bits a byte, the lowest first."""
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + varint(number >> 7)


def field(number: int, value: int | float | bytes) -> bytes:
    """One field of a message."""
    if isinstance(value, bytes):
        return varint(number << 3 | LENGTH) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | FIXED32) + struct.pack("<f", value)
    return varint(number << 3 | VARINT) + varint(value)


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    number = shift = 0
    while True:
        byte = content[at]
        at, number, shift = at + 1, number | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return number, at


def fields(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(number, whole field, content of it) for every field of a message."""
    at = 0
    while at < len(content):
        begin = at
        key, at = read_varint(content, at)
        size = {FIXED64: 8, FIXED32: 4}.get(key & 7, 0)
        if key & 7 == LENGTH:
            size, at = read_varint(content, at)
        elif key & 7 == VARINT:
            _, end = read_varint(content, at)
            size = end - at
        elif not size:
            raise ValueError("not a SentencePiece model")
        yield key >> 3, content[begin : at + size], content[at : at + size]
        at += size


def piece_field(piece: Piece) -> bytes:
    """One piece, as a field of a model."""
    text = field(1, piece.text.encode())
    return field(PIECES, text + field(2, float(piece.score)) + field(3, piece.kind))


def model_of(pieces: Sequence[Piece], ends: Sequence[int]) -> bytes:
    """A SentencePiece model with LLaMA's settings, but without the space in front.

    Parameters
    ----------
    pieces : sequence of Piece
        One of them of kind `UNKNOWN`.
    ends : (bos, eos)
        Ids, or -1.
    """
    unknown = [piece.kind for piece in pieces].index(UNKNOWN)
    falls_back = any(piece.kind == BYTE for piece in pieces)
    ids = (field(40 + i, n & (2**64 - 1)) for i, n in enumerate((unknown, *ends, -1)))
    trainer = field(3, 2) + field(4, len(pieces)) + field(35, int(falls_back))
    return b"".join(
        [
            *map(piece_field, pieces),
            field(TRAINER, trainer + b"".join(ids)),
            field(NORMALIZER, field(1, b"identity") + NO_SPACE + field(4, 0)),
        ]
    )


NO_SPACE = field(3, 0)  # the normalizer's: no space in front of a text


def without_space(model: bytes) -> bytes:
    """The same model, but no space is put in front of a text."""
    return model + field(NORMALIZER, NO_SPACE)


def as_control(model: bytes, names: Collection[str]) -> bytes:
    """The same model, in which pieces of these names are control pieces."""
    parts = []
    for number, whole, content in fields(model):
        if number == PIECES:
            text = next(value for n, _, value in fields(content) if n == 1)
            if text.decode() in names:
                whole = field(PIECES, content + field(3, CONTROL))
        parts.append(whole)
    return b"".join(parts)


#  ---- tokenizer.model --------------------------------------------------------

Merge = Callable[[str, bool], list[int]]
ERRORS_ONLY = 2  # a level of SentencePiece's log


def engine_of(model: bytes) -> Any:
    """The library's own object for a model."""
    try:
        import sentencepiece  # here, since much of the package has no text to split
    except ModuleNotFoundError:
        raise ValueError(
            "its texts need a library: pip install sentencepiece"
        ) from None
    # It would log warnings, such as of a piece that is a zero byte, to stderr.
    sentencepiece.SetMinLogLevel(ERRORS_ONLY)
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def from_model(content: bytes, settings: Settings) -> Tokenizer:
    """A tokenizer of a SentencePiece model."""
    engine = engine_of(content)
    size = engine.vocab_size()
    apart = special_names(settings)
    typed = [engine.id_to_piece(i) for i in range(size) if not _marked(engine, i)]
    if apart.intersection(typed):
        content = as_control(content, apart.intersection(typed))
        engine = engine_of(content)
    unknown = engine.unk_id()
    # The model's own text for the unknown token counts, even if a file calls it special.
    kept = tuple(t for t in settings.added if t.id != unknown)
    leads = engine.encode("a", out_type=str)[0].startswith(SPACE)
    leads = leads and settings.add_prefix_space is not False
    return assemble(
        {i: piece_token(engine, i) for i in range(size)},
        named_ends(engine),
        settings._replace(added=kept),
        kind="sentencepiece",
        merge=spaced(content, "first" if not settings.legacy else "always", leads),
        leading_space=leads,
    )


def _marked(engine: Any, index: int) -> bool:
    return engine.is_control(index) or engine.is_unknown(index) or engine.is_byte(index)


def named_ends(engine: Any) -> dict[str, str]:
    """Names of the tokens at both ends, as the model has them."""
    ends = {"bos_token": engine.bos_id(), "eos_token": engine.eos_id()}
    return {key: engine.id_to_piece(i) for key, i in ends.items() if i >= 0}


def spaced(model: bytes, scheme: str, leads: bool) -> Merge:
    """Merge by a model, with a space before each part ("always") or only the first."""
    engine, bare = engine_of(model), engine_of(without_space(model))
    if not leads:
        return lambda text, begins: bare.encode(text)
    if scheme == "always":
        return lambda text, begins: engine.encode(text)
    return lambda text, begins: (engine if begins else bare).encode(text)


def piece_token(engine: Any, index: int) -> Token:
    """One piece of a SentencePiece model."""
    name = engine.id_to_piece(index)
    if engine.is_control(index):
        return Token(name, b"", special=True)
    if engine.is_byte(index):  # its name is <0x0A>
        return Token(name, bytes([int(name[3:-1], 16)]))
    if engine.is_unknown(index):  # the model says what is shown
        return Token(name, engine.decode([index]).encode())
    return Token(name, name.replace(SPACE, " ").encode())


#  ---- tokenizer.bin ----------------------------------------------------------

LLAMA2C_ENDS = {"\n<s>\n": "<s>", "\n</s>\n": "</s>"}


def model_of_llama2c(content: bytes) -> bytes:
    """The SentencePiece model that a ``tokenizer.bin`` was written from.

    Raises
    ------
    ValueError
        If the file is cut off, or holds anything else.
    """
    pieces: list[Piece] = []
    at = 4  # after the length of the longest piece
    while at < len(content):
        if at + 8 > len(content):
            raise ValueError("the file is cut off")
        score, length = struct.unpack_from("<fi", content, at)
        at += 8 + length
        if not 0 < length <= at <= len(content):
            raise ValueError("the file is cut off, or is not llama2.c's")
        text = content[at - length : at].decode()
        text = LLAMA2C_ENDS.get(text, text).replace(" ", SPACE)
        pieces.append(Piece(text, score, _kind_in_llama2c(len(pieces), text)))
    if len(pieces) < 259:
        raise ValueError(
            f"{len(pieces)} pieces: llama2.c has 3 marks and 256 bytes first"
        )
    return model_of(pieces, (1, 2)) + field(NORMALIZER, field(3, 1))


def _kind_in_llama2c(index: int, text: str) -> int:
    """The kind of a piece, which follows from its place."""
    if index < 3:
        return CONTROL if index else UNKNOWN
    if index < 259:
        if text != f"<0x{index - 3:02X}>":
            raise ValueError(f"piece {index} is {text!r:.20}, not a byte")
        return BYTE
    return NORMAL


def from_llama2c(content: bytes, settings: Settings) -> Tokenizer:
    """A tokenizer of llama2.c."""
    return from_model(model_of_llama2c(content), settings)


#  ---- tokenizer.json ---------------------------------------------------------


class Form(NamedTuple):
    """How a ``tokenizer.json`` prepares a text for merging."""

    scheme: str  # "always", "first" or "never": where a space is put in front
    normalise: Callable[[str], str]  # if that comes before added words are looked for
    words: bool  # every space begins a word, and no piece crosses into the next


def with_marks(text: str) -> str:
    """Spaces as SentencePiece writes them, with one in front."""
    return SPACE + text.replace(" ", SPACE) if text else text


def without_front(text: str) -> str:
    """Spaces as SentencePiece writes them."""
    return text.replace(" ", SPACE)


def form_of(data: Json) -> Form:
    """The form of a ``tokenizer.json`` of pieces.

    Raises
    ------
    ValueError
        If its steps are not those of LLaMA's.
    """
    written = data.get("normalizer")
    steps = [written] if written else []
    if written and written["type"] == "Sequence":
        steps = written["normalizers"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    split = data.get("pre_tokenizer")
    if split is None and steps == [prepend, replace]:
        return Form("never", with_marks, False)
    if split is None and steps == [replace]:
        return Form("never", without_front, False)
    if split and split["type"] == "Metaspace" and not steps:
        old = "always" if split.get("add_prefix_space", True) else "never"
        scheme = str(split.get("prepend_scheme", old))
        if split.get("replacement", SPACE) == SPACE:
            return Form(scheme, unchanged, bool(split.get("split", True)))
    kinds = [step["type"] for step in (*steps, *([split] if split else ()))]
    raise ValueError(f"pieces are prepared in a way not known here ({kinds!r:.120})")


def from_pieces(data: Json, settings: Settings) -> Tokenizer:
    """A tokenizer of LLaMA 1 or 2 in Hugging Face's JSON, for SentencePiece.

    Raises
    ------
    ValueError
        If it prepares or merges a text in a way that is not known.
    """
    form, model = form_of(data), data["model"]
    if settings.add_prefix_space is False:
        form = form._replace(scheme="never")
        if form.normalise is with_marks:
            form = form._replace(normalise=without_front)
    pieces = rebuilt(model, special_names(settings))
    engine = engine_of(model_of(pieces, (-1, -1)))
    return assemble(
        {i: piece_token(engine, i) for i in model["vocab"].values()},
        {"bos_token": "<s>", "eos_token": "</s>"},
        settings,
        kind="sentencepiece",
        merge=merger_of(engine, form),
        leading_space=form.scheme != "never" or form.normalise is with_marks,
        normalise=form.normalise,
    )


def merger_of(engine: Any, form: Form) -> Merge:
    """The tokens of a text; the engine itself adds no space in front."""

    def merge(text: str, begins: bool) -> list[int]:
        leads = form.scheme == "always" or (form.scheme == "first" and begins)
        text = f" {text}" if leads and text else text
        return [i for part in parts(text) for i in engine.encode(part)]

    def parts(text: str) -> list[str]:
        return words_of(text) if form.words else [text]

    return merge


def words_of(text: str) -> list[str]:
    """Cut before every space."""
    first, *others = text.replace(SPACE, " ").split(" ")
    return [part for part in (first, *(f" {word}" for word in others)) if part]


def rebuilt(model: Json, apart: Collection[str]) -> list[Piece]:
    """The pieces of a ``tokenizer.json`` by their ids, with scores by their merges.

    A piece that no merge makes cannot come from a text, nor can a special one.
    """
    vocabulary: Mapping[str, int] = model["vocab"]
    pairs = [p for p in merge_pairs(model["merges"]) if "".join(p) not in apart]
    ranks = ranks_of(pairs)
    check_merges(pairs, ranks)
    if lost := [token for token in ranks if token not in vocabulary]:
        raise ValueError(f"model.merges makes {lost[0]!r:.40}, which has no id")
    bytewise = {f"<0x{byte:02X}>" for byte in range(256)}
    if missing := sorted(bytewise - vocabulary.keys()):
        raise ValueError(f"byte_fallback needs a token {missing[0]}, which is missing")
    if max(vocabulary.values()) > LARGEST_ID or min(vocabulary.values()) < 0:
        raise ValueError(f"an id of model.vocab is not between 0 and {LARGEST_ID}")
    if any("\0" in token for token in vocabulary if token not in apart):
        raise ValueError(
            "SentencePiece has no pieces with a zero byte, model.vocab has"
        )
    unknown = model.get("unk_token") or "<unk>"
    names = {i: name for name, i in vocabulary.items()}
    pieces = []
    for i in range(max(names) + 1):
        name = names.get(i, f"<no piece {i}>")
        made = name in ranks or len(name) == 1
        kind = NORMAL if made and name not in apart and i in names else CONTROL
        kind = BYTE if name in bytewise else UNKNOWN if name == unknown else kind
        pieces.append(Piece(name, -float(ranks.get(name, len(pairs) + i)), kind))
    if unknown not in vocabulary:
        pieces.append(Piece(unknown, 0.0, UNKNOWN))
    return pieces
