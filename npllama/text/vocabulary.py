r"""The files that a tokenizer is read from.

A checkpoint has its vocabulary in one of several files, and all of them become the
same thing: a list of tokens, and a function that merges.  `pieces` reads the files of
LLaMA 1 and 2, `byte_level` those of LLaMA 3; this section opens the right one.

Some files split texts in a way that is not known here, or need merges that the
libraries would make in another order than in training.  Hugging Face's own library
reads them where it is installed (`borrowed`).  Elsewhere they are refused by name,
because with wrong tokens the model would still answer, but worse.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npllama.text.borrowed import decoder_of, from_library
from npllama.text.byte_level import (
    check_added,
    from_byte_level,
    from_ranks,
    looks_like_ranks,
)
from npllama.text.pieces import from_llama2c, from_model, from_pieces
from npllama.text.settings import (
    LARGEST_ID,
    Json,
    Settings,
    naming,
    read_json,
    read_settings,
)
from npllama.text.tokenizer import Tokenizer


def load_tokenizer_file(path: str | os.PathLike) -> Tokenizer:
    """Read one tokenizer file; see `load_tokenizer`."""
    name = "tokenizer.json" if Path(path).suffix == ".json" else "tokenizer.model"
    return load_tokenizer({name: Path(path).read_bytes()})


def load_tokenizer(members: Mapping[str, bytes]) -> Tokenizer:
    """Make a tokenizer from the files of a checkpoint.

    Parameters
    ----------
    members : mapping of file name to content
        ``tokenizer.model`` (SentencePiece's, or tiktoken's ranks, by its content),
        or else ``tokenizer.json``: byte-level BPE, or pieces with bytes to fall back
        on; or else llama2.c's ``tokenizer.bin``.  For the other files see
        `settings`.

        A ``tokenizer.json`` made from another source, such as a GGUF, needs
        ``model`` (``type`` "BPE", ``vocab``, ``merges``; ``byte_fallback`` true for
        pieces), ``pre_tokenizer`` and ``normalizer`` as Hugging Face writes them, and
        ``added_tokens`` with id, content and special.  Gaps and missing bytes are
        allowed.  ``post_processor``, or ``add_bos_token`` in
        ``tokenizer_config.json``, says whether a text begins with BOS.

    Raises
    ------
    ValueError
        If there is none of them, or it cannot be read.
    """
    whole = read_json(members, "tokenizer.json")
    settings = read_settings(members, whole)
    if content := members.get("tokenizer.model"):
        read = from_ranks if looks_like_ranks(content) else from_model
        return naming("tokenizer.model", read, content, settings)
    if "model" in whole or (whole and not members.get("tokenizer.bin")):
        return naming("tokenizer.json", from_json, whole, settings)
    if content := members.get("tokenizer.bin"):
        return naming("tokenizer.bin", from_llama2c, content, settings)
    raise ValueError("no tokenizer: no tokenizer.model or tokenizer.json, or empty")


def from_json(data: Json, settings: Settings) -> Tokenizer:
    """A tokenizer of Hugging Face's JSON."""
    model = data.get("model")
    if not isinstance(model, dict):
        raise ValueError("it has no entry 'model'")
    # Files before 2022 do not name the type of a BPE.
    kind = model.get("type", "BPE" if "merges" in model else "")
    if kind == "BPE":
        check_ids(model["vocab"])
        check_added(model["vocab"], settings.added)
    try:
        if kind != "BPE":
            raise ValueError(f"a vocabulary of type {kind!r:.40} is not BPE")
        of_pieces = bool(model.get("byte_fallback"))
        made = (from_pieces if of_pieces else from_byte_level)(data, settings)
        if data.get("decoder") and decoder_of(data["decoder"])[0] == of_pieces:
            raise ValueError("the decoder and byte_fallback contradict each other")
        return made
    except ValueError as error:
        return _borrowed(data, settings, error)


def check_ids(vocabulary: Any) -> None:
    """Raise ValueError unless every token, named by a string, has an id of its own."""
    if not isinstance(vocabulary, dict):
        raise ValueError("model.vocab is not a mapping of tokens to ids")
    for name, index in vocabulary.items():
        if type(index) is not int or not 0 <= index <= LARGEST_ID:
            raise ValueError(f"model.vocab gives {name!r:.40} the id {index!r:.40}")
    names = {index: name for name, index in vocabulary.items()}
    for name, index in vocabulary.items():
        if names[index] != name:
            raise ValueError(
                f"model.vocab gives {name!r:.40} and {names[index]!r:.40} one id, {index}"
            )


def _borrowed(data: Json, settings: Settings, why: ValueError) -> Tokenizer:
    """Let the library read a file that this package refuses for the given reason."""
    try:
        return from_library(data, settings)
    except ImportError:
        raise ValueError(f"{why}; npllama[tokenizers] may read it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{why}; nor does tokenizers read it ({error!s:.99})"
        ) from None
