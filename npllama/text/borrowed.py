r"""All other kinds of ``tokenizer.json``, through Hugging Face's library.

Some files need a split that is not known here, a Unigram model, or merges that only
the list of pairs can make.  The library `tokenizers` reads all of them, and is used
where it is installed (the extra ``npllama[tokenizers]``).  The library only merges.
`Tokenizer.encode` finds special tokens and added words, as for every other file, so
what a user types stays text; the library sees each part between them as a text.

The library decodes whole texts, but a stream needs the bytes of each token.  They
follow from the decoder, if it is that of bytes or that of pieces.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from npllama.text.byte_level import LLAMA3_ENDS, byte_letters, byte_token
from npllama.text.merges import merge_pairs
from npllama.text.settings import Json, Settings, assemble, special_names
from npllama.text.tokenizer import SPACE, Token, Tokenizer

SENTENCEPIECE_ENDS = {"bos_token": "<s>", "eos_token": "</s>"}


def from_library(data: Json, settings: Settings) -> Tokenizer:
    """A tokenizer of any ``tokenizer.json`` that the library reads.

    Raises
    ------
    ImportError
        If the library is not installed.
    ValueError
        If it cannot read the file, or the bytes of its tokens are not known.
    """
    import tokenizers

    if data["model"].get("dropout"):
        raise ValueError("model.dropout makes tokens by chance; set it to null")
    check_prefix(data["model"])
    bytewise, strips = decoder_of(data.get("decoder"))
    # Added tokens and tokens around a text are handled elsewhere.
    nothing = {"post_processor": None, "truncation": None, "padding": None}
    bare = data | nothing | {"added_tokens": []}
    engine = guarded(tokenizers.Tokenizer.from_str, json.dumps(bare))
    vocabulary: dict[str, int] = engine.get_vocab(with_added_tokens=False)
    read = partial(byte_token, letters=byte_letters()) if bytewise else piece_of
    apart = {vocabulary[n] for n in special_names(settings) if n in vocabulary}

    def merge(text: str, begins: bool) -> list[int]:
        tokens = guarded(engine.encode, text, add_special_tokens=False).ids
        if made := apart.intersection(tokens):
            name = engine.id_to_token(min(made))
            raise ValueError(f"text: this tokenizer reads it as the special {name!r}")
        return tokens

    return assemble(
        {i: read(name) for name, i in vocabulary.items()},
        LLAMA3_ENDS if bytewise else SENTENCEPIECE_ENDS,
        settings,
        kind="tokenizers",
        merge=merge,
        leading_space=strips,
    )


def check_prefix(model: Json) -> None:
    """Raise ValueError if a merge lacks the prefix that its second part should have.

    The library cuts it off unseen, and may end the whole process if it is not there.
    """
    prefix = model.get("continuing_subword_prefix")
    for _, second in merge_pairs(model.get("merges") or ()) if prefix else ():
        if not second.startswith(prefix):
            raise ValueError(
                f"model.continuing_subword_prefix {prefix!r:.40} does not begin "
                f"{second!r:.40}"
            )


def guarded(call: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Return the result of a call; turn every error of the library into a ValueError.

    A failure in its Rust code is not an `Exception` in Python.
    """
    try:
        return call(*given, **named)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise ValueError(f"tokenizers: {' '.join(str(error).split()):.150}") from None


def decoder_of(written: Any) -> tuple[bool, bool]:
    """Whether tokens are written in letters for bytes; whether a first space is cut.

    Raises
    ------
    ValueError
        If the decoder does anything else.
    """
    steps = written["decoders"] if (written or {}).get("decoders") else [written]
    kinds = [step["type"] if step else "nothing" for step in steps]
    if kinds == ["ByteLevel"]:
        return True, False
    if kinds == ["Metaspace"]:
        old = "always" if steps[0].get("add_prefix_space", True) else "never"
        return False, steps[0].get("prepend_scheme", old) != "never"
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        spaces = [s for s in steps if s["type"] == "Replace"]
        if [s.get("content") for s in spaces] == [" "]:
            return False, "Strip" in kinds
    raise ValueError(f"a decoder of {', '.join(map(str, kinds)):.80} is not known")


def piece_of(name: str) -> Token:
    """A token that is written as a piece."""
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return Token(name, bytes([int(name[3:5], 16)]))
    return Token(name, name.replace(SPACE, " ").encode())
