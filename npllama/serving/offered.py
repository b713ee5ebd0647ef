r"""What a server offers: one model, its token names, and its end tokens.

Programs that compare texts by their tokens need names of tokens.  The text of a token
is a bad name: two tokens may be the same text (``<0x41>`` and ``A``), and a token may
be half a character.  So every token gets a name that no other has.
"""

from __future__ import annotations

from typing import NamedTuple

from npllama.decoding.common import context_length
from npllama.generation.limits import id_list
from npllama.generation.wishes import options_of
from npllama.text.chat import choose_format, stop_tokens
from npllama.text.tokenizer import Tokenizer
from npllama.weights import Model


class Served(NamedTuple):
    """The model that a server offers, and what it tells of it."""

    model: Model
    name: str
    fingerprint: str  # how it computes: version, dtype, whether bit by bit
    style: str  # of its conversations; see `text.chat`
    eos: tuple[int, ...]  # tokens that end a text
    ends: tuple[int, ...]  # those that end an answer in a conversation
    longest: int  # positions that prompt and text may take together
    names: tuple[str, ...]  # of all tokens, no two alike
    created: int  # seconds since 1970


def offered(
    model: Model, name: str, fingerprint: str, longest: int, created: int = 0
) -> Served:
    """What is told of a model, worked out once.

    Parameters
    ----------
    model : Model
    name : str
        What clients call it.
    fingerprint : str
        How it computes.
    longest : int
        Positions that the pages hold together.
    created : int
        Seconds since 1970.

    Raises
    ------
    ValueError
        If the checkpoint's ``generation_config.json`` is malformed.
    """
    tokenizer, style = model.tokenizer, "plain"
    eos = id_list(options_of(model).get("eos_token_id", model.config.eos_token_id))
    ends = set(eos)
    if tokenizer is not None:
        style, _ = choose_format(tokenizer)
        ends |= stop_tokens(tokenizer, style)
    longest = min(context_length(model.config), longest)
    names = token_names(tokenizer, model.config.vocab_size)
    rest = (longest, names, created)
    return Served(model, name, fingerprint, style, eos, tuple(sorted(ends)), *rest)


def token_names(tokenizer: Tokenizer | None, V: int) -> tuple[str, ...]:
    r"""A name for every token: its text, if that is whole and no other token's.

    Others are written by their bytes, as ``bytes:\xe2\x80``, or by their id.
    """
    names, taken = [""] * V, set[str]()
    known = min(V, tokenizer.vocab_size) if tokenizer else 0
    # If a byte token and a piece are the same text, the piece gets the plain name.
    pieces = range(known)
    for i in sorted(pieces, key=lambda i: tokenizer.piece(i).startswith("<0x")):
        name, content, _ = tokenizer.token(i)
        text = text_or_none(content) if content else name
        raw = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        choices = (text, raw if content else None, f"token:{i}")
        names[i] = next(c for c in choices if c and c not in taken)
        taken.add(names[i])
    return tuple(name or f"token:{i}" for i, name in enumerate(names))


def text_or_none(content: bytes) -> str | None:
    """The text of some bytes, unless they are parts of characters."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None
