r"""The small files beside a tokenizer.

A checkpoint keeps some settings apart from the vocabulary: which token begins a text,
which tokens fine-tuning added, how conversations are written.  Over the years it has
kept them in different files.

- ``tokenizer_config.json``: names of the tokens at both ends, ``add_bos_token`` and
  ``add_eos_token``, ``add_prefix_space``, ``legacy``, the added tokens by their ids
  (``added_tokens_decoder``) and the chat template.
- ``special_tokens_map.json``: the same names, and further special tokens.
- ``added_tokens.json``: added tokens by their names, as transformers wrote them
  before it kept them in the first file.
- ``tokenizer.json``: its ``added_tokens``, and in ``post_processor`` the tokens that
  are put around every text, even where the vocabulary comes from another file.
- ``chat_template.jinja``: the chat template, in newer checkpoints.

If two files contradict each other, the first in this list counts.  If no file
says which tokens stand around a text, it begins with the beginning-of-sequence
token and has no end token, as in LLaMA's training; a ``tokenizer.json`` always
says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from npllama.text.tokenizer import NO_TOKEN, Mark, Token, Tokenizer

Json = dict[str, Any]

# Ids beyond this are a broken file, not a vocabulary: the largest have 262,144.
LARGEST_ID = 2**20


class Added(NamedTuple):
    """A token that was added to a vocabulary."""

    id: int
    name: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Settings(NamedTuple):
    """What a checkpoint says about its tokenizer beside the vocabulary.

    `ends` holds the names of "bos_token" and "eos_token" if a file gives them; None
    means that there is no such token.  Any other entry that is None was not given.
    """

    ends: dict[str, str | None] = {}
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool = True
    added: tuple[Added, ...] = ()
    special_names: frozenset[str] = frozenset()
    around: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    chat_template: str = ""


def naming(file: str, read: Callable[..., Any], *given: Any) -> Any:
    """Read a file; raise a ValueError that names it for any error."""
    try:
        return read(*given)
    except Exception as error:
        raise ValueError(f"{file}: {_why(error)}") from None


def _why(error: Exception) -> str:
    """What is wrong with a file, in words, if Python's own do not say it."""
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return str(error)
    reasons: dict[Any, str] = {
        KeyError: f"there is no {error}",
        UnicodeError: "it is not UTF-8",
        RecursionError: "it is nested too deeply",
        (TypeError, AttributeError, IndexError): "a value is of another kind",
    }
    found = (why for kind, why in reasons.items() if isinstance(error, kind))
    return f"broken, or not as LLaMA's are: {next(found, f'{error}'):.99}"


def read_json(files: Mapping[str, bytes], name: str) -> Json:
    """A file that is one JSON object; an empty one if there is no such file."""
    content = files.get(name)
    return naming(name, _object, content) if content else {}


def _object(content: bytes) -> Json:
    data = json.loads(content)
    if not isinstance(data, dict):
        raise TypeError(f"expected an object, found {data!r:.40}")
    return data


def read_settings(files: Mapping[str, bytes], whole: Json) -> Settings:
    """The settings in the files of a checkpoint.

    Parameters
    ----------
    files : mapping of file name to content
    whole : dict
        What ``tokenizer.json`` holds; empty if there is none.

    Raises
    ------
    ValueError
        If one of the files cannot be read; the message names it.
    """
    config, names, ids = (
        read_json(files, f"{name}.json")
        for name in ("tokenizer_config", "special_tokens_map", "added_tokens")
    )
    of_config = naming("tokenizer_config.json", config_settings, config)
    of_names = naming("special_tokens_map.json", config_settings, names)
    special = of_config.special_names | of_names.special_names
    added = {token.id: token for token in naming("added_tokens.json", listed, ids)}
    added = {i: t._replace(special=t.name in special) for i, t in added.items()}
    inside = naming("tokenizer.json", added_inside, whole)
    added |= {token.id: token for token in (*inside, *of_config.added)}
    template = files.get("chat_template.jinja", b"").decode("utf-8", "replace")
    return of_config._replace(
        ends=of_names.ends | of_config.ends,
        added=tuple(added[i] for i in sorted(added)),
        special_names=special,
        around=naming("tokenizer.json", tokens_around, whole) if whole else None,
        chat_template=template or of_config.chat_template,
    )


def config_settings(data: Json) -> Settings:
    """What ``tokenizer_config.json`` or ``special_tokens_map.json`` says."""
    decoder = data.get("added_tokens_decoder") or {}
    ends = {
        key: name_of(data[key]) for key in ("bos_token", "eos_token") if key in data
    }
    return Settings(
        # An empty name, as some old checkpoints have, says nothing.
        ends={key: name for key, name in ends.items() if name != ""},
        add_bos=_flag(data, "add_bos_token"),
        add_eos=_flag(data, "add_eos_token"),
        add_prefix_space=_flag(data, "add_prefix_space"),
        legacy=data.get("legacy") is not False,
        added=tuple(added_token(_id(i), token) for i, token in decoder.items()),
        special_names=frozenset(_special_names(data)),
        chat_template=_template(data.get("chat_template")),
    )


def _id(written: str) -> int | str:
    """An id, which as a key of JSON is a string; anything else stays what it is."""
    return int(written) if re.fullmatch("[0-9]{1,9}", written) else written


def name_of(token: Any) -> str | None:
    """A token's name, which may be given with its other properties."""
    if isinstance(token, dict):
        return str(token["content"])
    return None if token is None else str(token)


def _flag(data: Json, key: str) -> bool | None:
    return None if data.get(key) is None else bool(data[key])


def _special_names(data: Json) -> Iterator[str]:
    """Names of the tokens that the file lists as special."""
    more = data.get("additional_special_tokens") or data.get("extra_special_tokens")
    more = more.values() if isinstance(more, dict) else more or ()
    others = {name_of(data.get(f"{key}_token")) for key in "pad cls sep mask".split()}
    # The text of the unknown token is shown, though LLaMA 2 pads with it.
    others -= {"<unk>", name_of(data.get("unk_token"))}
    ends = (data.get("bos_token"), data.get("eos_token"))
    yield from filter(None, (*map(name_of, (*ends, *more)), *others))


def _template(written: Any) -> str:
    """The chat template; of several by name, the one called "default"."""
    if isinstance(written, list):
        several = {entry["name"]: entry["template"] for entry in reversed(written)}
        written = several.get("default", next(reversed(several.values()), ""))
    return written if isinstance(written, str) else ""


#  ---- added tokens -----------------------------------------------------------


def added_token(index: Any, data: Json) -> Added:
    """A token, with its properties as Hugging Face writes them."""
    if type(index) is not int:
        raise ValueError(f"an added token has the id {index!r:.40}")
    if not 0 <= index <= LARGEST_ID:
        raise ValueError(f"an added token has the id {index}, beyond {LARGEST_ID}")
    special = bool(data.get("special", True))
    normalized = bool(data.get("normalized", not special))
    left, right, word = (
        bool(data.get(key)) for key in ("lstrip", "rstrip", "single_word")
    )
    name = _checked(data["content"])
    return Added(index, name, special, left, right, word, normalized)


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"an added token is called {name!r:.40}")
    name.encode()  # no half of a surrogate pair
    return name


def listed(ids: Json) -> tuple[Added, ...]:
    """The tokens of ``added_tokens.json``."""
    word = {"special": False}
    return tuple(added_token(i, word | {"content": name}) for name, i in ids.items())


def added_inside(whole: Json) -> tuple[Added, ...]:
    """The added tokens of ``tokenizer.json``."""
    listed = whole.get("added_tokens") or ()
    return tuple(added_token(token["id"], token) for token in listed)


def tokens_around(whole: Json) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor of ``tokenizer.json`` puts before and after a text.

    Raises
    ------
    ValueError
        If it is of a kind that does something else.
    """
    front: tuple[int, ...] = ()
    back: tuple[int, ...] = ()
    step = whole.get("post_processor") or {"type": "Sequence", "processors": []}
    for part in step["processors"] if step["type"] == "Sequence" else [step]:
        if part["type"] == "TemplateProcessing":
            before, after = _template_ids(part)
            front, back = (*before, *front), (*back, *after)
        elif part["type"] in ("BertProcessing", "RobertaProcessing"):
            front, back = (int(part["cls"][1]), *front), (*back, int(part["sep"][1]))
        elif part["type"] != "ByteLevel":  # which only counts characters
            raise ValueError(f"post_processor {part['type']!r:.40} is not known")
    return front, back


def _template_ids(part: Json) -> tuple[list[int], list[int]]:
    """The ids before and after the text in a post-processor's template."""
    sides: tuple[list[int], list[int]] = [], []
    seen = 0
    for piece in part["single"]:
        if "Sequence" in piece:
            seen = 1
        else:
            token = part["special_tokens"][piece["SpecialToken"]["id"]]
            sides[seen].extend(map(int, token["ids"]))
    return sides


#  ---- putting a tokenizer together -------------------------------------------


def special_names(settings: Settings) -> set[str]:
    """Names of all tokens that the settings call special."""
    return {t.name for t in settings.added if t.special} | settings.special_names


def assemble(
    tokens: Mapping[int, Token],
    ends: Mapping[str, str],
    settings: Settings,
    **rest: Any,
) -> Tokenizer:
    """Make a tokenizer from a vocabulary, what was added to it, and the settings.

    Parameters
    ----------
    tokens : mapping of id to Token
        The vocabulary, which may have gaps.
    ends : mapping of "bos_token" and "eos_token" to names
        Those of the vocabulary itself; the settings may name others.
    settings : Settings
    **rest
        The other fields of `Tokenizer`.
    """
    settings = settings._replace(added=_added(tokens, settings))
    # A piece that is only listed once more keeps its own text, such as a space.
    added = {
        t.id: _token(t.name, t.special)
        for t in settings.added
        if t.special or tokens.get(t.id, NO_TOKEN).name != t.name
    }
    table = dict(tokens) | added
    for i, token in table.items():
        if token.name in settings.special_names and not token.special:
            table[i] = _token(token.name, special=True)
    if max(table, default=0) > LARGEST_ID:
        raise ValueError(f"a token has the id {max(table)}, beyond {LARGEST_ID}")
    flags = {t.id: Mark(t.id, t.special, *t[3:]) for t in settings.added}
    marks: dict[str, Mark] = {}
    for i in sorted(table):
        if i in flags or table[i].special:
            # If two tokens have one name, a text is encoded with the first.
            marks.setdefault(table[i].name, flags.get(i, Mark(i)))
    names = {token.name: i for i, token in reversed(sorted(table.items()))}
    names |= {name: mark.id for name, mark in marks.items()}
    ends_named = dict(ends) | settings.ends
    bos, eos = (names.get(ends_named.get(key)) for key in ("bos_token", "eos_token"))
    front, back = _around(settings, bos, eos)
    return Tokenizer(
        bos_id=bos,
        eos_id=eos,
        marks=marks,
        vocabulary=[table.get(i, NO_TOKEN) for i in range(max(table, default=-1) + 1)],
        front=front,
        back=back,
        chat_template=settings.chat_template,
        **rest,
    )


def _added(tokens: Mapping[int, Token], settings: Settings) -> tuple[Added, ...]:
    """What was added; a list of names may repeat special tokens (LLaMA 2's often does)."""
    return tuple(
        t._replace(special=True, normalized=False)
        if t.id in tokens and tokens[t.id][::2] == (t.name, True)
        else t
        for t in settings.added
    )


def _token(name: str, special: bool) -> Token:
    """An added token: hidden if special, text otherwise."""
    return Token(name, b"" if special else name.encode(), special)


def _around(
    settings: Settings, bos: int | None, eos: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens before and after every text."""
    front, back = settings.around or ((bos,), ())
    if settings.add_bos is None and settings.add_eos is None:
        pass
    else:
        begins = bos in front if settings.add_bos is None else settings.add_bos
        front, back = (bos,) if begins else (), (eos,) if settings.add_eos else ()
    return tuple(i for i in front if i is not None), tuple(
        i for i in back if i is not None
    )
