r"""Formats beyond our own machine, through the library llguidance.

`json_schema` is written to be read.  It refuses what would need more than a page:
patterns with lengths, several schemas at once, names of properties that match a
pattern, and more.  llguidance is a well-kept engine for these, and for whole
grammars.  It is the extra ``npllama[guide]``, and is used only where our own machine
refuses a schema.

The engine reads some schemas differently, so `plain` rewrites the schema first.  It
removes annotations, including the engine's own switches; gives an object with
declared properties no others, as our machine does; spells out character classes;
uses our formats where we have them, so that no date lies in the year 0; moves
excluded bounds to the next float64; writes ``oneOf`` as ``anyOf`` where no value fits
two options, and ``propertyNames`` as patterns of names.  The engine writes one space
after ``:`` and ``,``, and no other white space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np

from npllama.decoding.automaton import Machine
from npllama.decoding.guided import Format, Look, guide_for, vocabulary_of
from npllama.decoding.json_schema import (
    read_schema,
    schema_machine,
)
from npllama.decoding.json_text import FORMATS, FREE_FORMATS
from npllama.decoding.regex import AGREED, Node, parse_search
from npllama.decoding.schema_values import (
    NotUnderstood,
    check_one_of,
    named,
    names_of,
    under_names,
)
from npllama.decoding.schema_words import CHOICES, check_kinds, is_annotation
from npllama.text.tokenizer import Tokenizer

EXTRA = "pip install npllama[guide] may help: its engine understands more"
MOST_BITS = 32  # tokens per word of the engine's masks


class EngineGuide:
    """A format that llguidance follows; can take the place of a `Guide`.

    Parameters
    ----------
    matcher : llguidance.LLMatcher
    contents : sequence of bytes
        What each token adds to a text.
    eos : token ids
        Allowed only where the text so far already matches.
    """

    def __init__(
        self, matcher: Any, contents: Sequence[bytes], eos: Collection[int] = ()
    ):
        self.matcher, self.V = matcher, len(contents)
        self.eos = [token for token in eos if token < self.V]
        # The engine has an end token of its own among those that add no text.
        self.silent = [i for i, content in enumerate(contents) if not content]
        self.read: list[int] = []  # what the matcher has read so far

    def look(self, tokens: Sequence[int]) -> Look:
        """Tell what may follow these tokens."""
        nothing = Look(np.zeros(self.V, dtype=bool), False)
        if not self._go_to(list(tokens)):
            return nothing
        words = np.zeros(-(-self.V // MOST_BITS), dtype=np.int32)
        self.matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self.matcher.is_error():
            raise ValueError(f"format: llguidance gave up: {self.matcher.get_error()}")
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        allowed = bits[: self.V].astype(bool)
        whole = self.matcher.is_accepting()
        allowed[self.silent] = False
        allowed[self.eos] = whole
        return Look(allowed, whole)

    def _go_to(self, tokens: list[int]) -> bool:
        """Bring the matcher to a text, starting from what it shares with the last."""
        pairs = zip(self.read, tokens)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        same = min(len(self.read), len(tokens)) if same is None else same
        if same < len(self.read):
            self.matcher.rollback(len(self.read) - same)
            del self.read[same:]
        for token in tokens[same:]:
            if token in self.eos or token in self.silent:
                return False  # nothing may follow it
            if not self.matcher.try_consume_tokens([token]):
                return False
            self.read.append(token)
        return True

    def finished(self, tokens: Sequence[int]) -> bool:
        """Whether a text matches and nothing can be added."""
        allowed, whole = self.look(tokens)
        allowed[self.eos] = False
        return whole and not allowed.any()


class Grammar(NamedTuple):
    """A format in the engine's own notation."""

    text: str


def compile_schema(schema: Mapping[str, Any] | str) -> Machine | Grammar:
    """Compile a JSON schema: to our own machine, or else for the engine.

    Raises
    ------
    ValueError
        If it is not a schema, nothing fits it, or neither can express it.
    """
    try:
        return schema_machine(schema)
    except NotUnderstood as error:
        if not installed():
            raise ValueError(f"{error}; {EXTRA}") from None
        return _checked(plainly(schema), f"{error}; nor by llguidance")


def compile_grammar(grammar: str) -> Grammar:
    """Compile a grammar in Lark's notation for the engine.

    Raises
    ------
    ValueError
        If the extra is missing, or the grammar is malformed.
    """
    if not installed():
        raise ValueError("a grammar needs an engine: pip install npllama[guide]")
    from llguidance import LLMatcher

    return _checked(LLMatcher.grammar_from_lark(grammar), "grammar")


def installed() -> bool:
    """Whether the extra is there."""
    return find_spec("llguidance") is not None


def _checked(text: str, asked: str) -> Grammar:
    from llguidance import LLMatcher

    wrong, messages = LLMatcher.validate_grammar_with_warnings(text)
    if wrong:
        reason = messages[0].strip().partition("\n")[0]
        raise ValueError(f"{asked}: {reason:.200}")
    return Grammar(text)


def guide_of(
    tokenizer: Tokenizer, compiled: Machine | Grammar, eos: Collection[int] = ()
) -> Format:
    """A guide that holds the text of a tokenizer to what was compiled.

    Raises
    ------
    ValueError
        If the engine cannot follow the format with these tokens.
    """
    if isinstance(compiled, Machine):
        return guide_for(tokenizer, compiled, eos)
    from llguidance import LLMatcher

    matcher = LLMatcher(engine_tokenizer(tokenizer), compiled.text, log_level=0)
    if matcher.is_error():
        raise ValueError(f"format: llguidance: {matcher.get_error():.200}")
    return EngineGuide(matcher, vocabulary_of(tokenizer).contents, eos)


_ENGINES: dict[int, Any] = {}


def engine_tokenizer(tokenizer: Tokenizer) -> Any:
    """The engine's own tree of a tokenizer's tokens: made once for each."""
    from llguidance import LLTokenizer, TokenizerWrapper

    key = id(tokenizer)
    if key not in _ENGINES:
        _ENGINES[key] = LLTokenizer(TokenizerWrapper(_Tokens(tokenizer)))
        finalize(tokenizer, _ENGINES.pop, key)
    return _ENGINES[key]


class _Tokens:
    """What the engine wants to know about a tokenizer.

    Tokens that add no text, and the end token, are special to it: it never allows
    them inside of a text.
    """

    def __init__(self, tokenizer: Tokenizer):
        contents = vocabulary_of(tokenizer).contents
        empty = [i for i, content in enumerate(contents) if not content]
        self.eos_token_id = empty[0] if empty else 0
        self.bos_token_id = None
        self.special_token_ids = empty
        self.tokens = [
            content or b"<empty %d>" % i for i, content in enumerate(contents)
        ]
        self.bytes = {content: i for i, content in enumerate(contents)}

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of a text: asked by the engine for its own checks only."""
        found = (self.bytes.get(bytes([byte])) for byte in text)
        return [token for token in found if token is not None]


#  ---- what the engine would read in its own way -------------------------------

# Keywords whose values are schemas: by name, in a list, or alone.
NAMED = {"properties", "$defs", "definitions"}
LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
SINGLE = {"items", "additionalProperties"}


def plainly(schema: Mapping[str, Any] | str) -> str:
    """The engine's grammar of a schema, after the rewriting by `plain`.

    Raises
    ------
    ValueError
        If the schema holds a pattern or a divisor that it would read wrongly.
    """
    from llguidance import LLMatcher

    root = read_schema(schema)
    text = json.dumps(plain(root, root, closed=not combines(root)))
    options: Any = {"item_separator": ", ", "key_separator": ": "}
    options |= {"whitespace_flexible": False, "lenient": False}
    return LLMatcher.grammar_from_json_schema(text, overrides=options)


def combines(schema: Any) -> bool:
    """Whether several schemas speak of one value anywhere in a schema."""
    if isinstance(schema, (list, tuple)):
        return any(combines(part) for part in schema)
    if not isinstance(schema, Mapping):
        return False
    meant = [word for word in schema if not is_annotation(word)]
    together = CHOICES & schema.keys() or "$ref" in schema
    several = len(schema.get("allOf") or ()) > 1 or (together and len(meant) > 1)
    return several or any(combines(part) for part in schema.values())


def plain(schema: Any, root: Any, closed: bool) -> Any:
    """Rewrite a schema so that the engine reads it as our own machine does.

    Parameters
    ----------
    root : mapping
        The whole schema, for what references name.
    closed : bool
        Whether objects have only the declared properties unless the schema allows
        others.  False where schemas are combined, since one would exclude properties
        that another requires.
    """
    if not isinstance(schema, Mapping):
        return schema
    check_kinds(schema)
    again = partial(plain, root=root, closed=closed)
    kept: dict[str, Any] = {}
    for word, value in schema.items():
        if word == "patternProperties":
            names = {name: spelled(parse_search(name, AGREED)) for name in value}
            kept[word] = {f"^{names[n]}$": again(value[n]) for n in value}
        elif word in NAMED:
            kept[word] = {}
            for name, part in value.items():
                with named(name):
                    kept[word][name] = again(part)
        elif word in LISTS:
            kept[word] = [again(part) for part in value]
        elif word in SINGLE:
            kept[word] = again(value)
        elif not is_annotation(word):
            kept[word] = value
    _plain_choice(kept, root)
    _plain_string(kept)
    _plain_number(kept)
    _plain_names(kept, root)
    declared = kept.get("properties", {})
    if closed and (declared or "patternProperties" in kept):
        if declared.keys() >= set(kept.get("required", ())):
            kept.setdefault("additionalProperties", False)
    if "prefixItems" in kept:
        kept.setdefault("items", False)
        kept.setdefault("minItems", len(kept["prefixItems"]))
    return kept


def _plain_choice(kept: dict[str, Any], root: Any) -> None:
    """Write ``oneOf`` as ``anyOf``, which is the same; writes into `kept`."""
    if "oneOf" in kept:
        check_one_of(kept["oneOf"], root)
        either = {"anyOf": kept.pop("oneOf")}
        if "anyOf" in kept:
            kept["allOf"] = [*kept.get("allOf", []), either]
        else:
            kept |= either


def _plain_names(kept: dict[str, Any], root: Any) -> None:
    """Write ``propertyNames`` as properties or patterns; writes into `kept`."""
    if "propertyNames" not in kept or "patternProperties" in kept:
        return
    names = names_of(kept["propertyNames"], root)
    properties = kept.get("properties", {})
    more = kept.get("additionalProperties", not properties)
    if isinstance(names, list):
        kept["properties"] = under_names(names, properties, more)
    elif properties:
        return  # which the engine refuses by name
    else:
        string = dict(names)
        low, high = string.pop("minLength", 0), string.pop("maxLength", "")
        if low or high != "":
            string.setdefault("pattern", rf"^[\s\S]{{{low},{high}}}$")
        _plain_string(string)
        if len(string) > 1 or (low or high != "") and "pattern" in names:
            return
        kept["patternProperties"] = {string.get("pattern", "^"): more}
    del kept["propertyNames"]
    kept["additionalProperties"] = False


def _plain_string(kept: dict[str, Any]) -> None:
    """Spell out character classes and formats; writes into `kept`."""
    patterns = []
    if "pattern" in kept:
        patterns.append(spelled(parse_search(kept.pop("pattern"), AGREED)))
    if kept.get("format") in FORMATS:
        patterns.append(f"({FORMATS[kept.pop('format')]})")
    elif kept.get("format") in FREE_FORMATS:
        del kept["format"]
    if patterns:
        kept["pattern"] = f"^{patterns[0]}$"
    if len(patterns) > 1:
        kept["allOf"] = [*kept.get("allOf", []), {"pattern": f"^{patterns[1]}$"}]


def spelled(node: Node) -> str:
    r"""A pattern of a tree in which every class lists its characters.

    >>> print(spelled(parse_search("^ab*$", AGREED)))
    (([\x{61}-\x{61}]([\x{62}-\x{62}]){0,}))
    """
    kind, content = node[0], node[1]
    if kind == "class":
        return "[" + "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in content) + "]"
    if kind == "repeat":
        high = "" if node[3] is None else node[3]
        return f"({spelled(content)}){{{node[2]},{high}}}"
    return "(" + ("|" if kind == "or" else "").join(map(spelled, content)) + ")"


def _plain_number(kept: dict[str, Any]) -> None:
    """Exclude bounds by the next number; writes into `kept`.

    The engine compares digits, but a reader compares the float64 that they round to:
    0.99...9 may be 1.0, and -0 is 0.  So an excluded bound becomes the next float64
    inside it, or 1e-14 if the bound is zero.
    """
    divisor = kept.get("multipleOf", 1)
    if divisor != divisor // 1 and (divisor * 1024) % 1:
        raise ValueError(
            f"schema: multipleOf {divisor} is not understood: a remainder of float64 "
            "is exact for whole numbers, halves, quarters ..."
        )
    whole = "number" not in kept.get("type", ["number"])
    for word, closed, way in (
        ("exclusiveMinimum", "minimum", 1),
        ("exclusiveMaximum", "maximum", -1),
    ):
        if word not in kept:
            continue
        bound = kept.pop(word)
        if whole:
            bound = math.floor(bound) + 1 if way > 0 else math.ceil(bound) - 1
        else:
            bound = math.nextafter(bound, way * math.inf) if bound else way * 1e-14
        tighter = max if way > 0 else min
        kept[closed] = tighter(bound, kept.get(closed, bound))
