r"""A JSON schema as a machine that reads JSON texts.

A schema describes values; this chapter turns it into a description of texts, a tree
for `automaton`.  Each keyword becomes a node: an object with properties is a list of
members, an array is a list of items, a choice is an "or".  A definition becomes a
piece, and ``$ref`` a call of it.  So it is built once however often it is used, and
it may contain itself, as the node of a tree contains its children.

    {"type": "object", "properties": {"age": {"type": "integer"}}}

    then: "{", list of: (then: '"age": ', integer) 0 to 1 times, "}"

Every text that the machine accepts fits the schema.  Of the many ways to write a
value it accepts one: properties in the order of the schema, one space after ``:`` and
``,``.  Four more decisions:

- An object has only the declared properties, unless ``additionalProperties`` allows
  others, or none are declared.  An array with ``prefixItems`` has all of these unless
  ``minItems`` is less, and no more unless ``items`` allows more.
- A ``pattern`` may match anywhere in the string, as the standard says, unless
  ``^`` and ``$`` bind it.  Character classes are those on which JavaScript and Python
  agree (`regex`).
- Numbers between bounds have 15 digits at most, and no exponent.
- ``format`` is enforced for the formats of `json_text`, and refused for others.

A keyword that would restrict further, and that this chapter cannot express, is refused
by name: `NotUnderstood`, which `engine` may take up.  Annotations are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from npllama.decoding import json_text
from npllama.decoding.automaton import Machine, compile_node, without_endless
from npllama.decoding.json_text import literal, quoted, written
from npllama.decoding.regex import AGREED, NOTHING, Node, parse, parse_search
from npllama.decoding.schema_values import (
    TYPES,
    NotUnderstood,
    among,
    check_one_of,
    kind_of,
    named,
    names_of,
    target,
    under_names,
)
from npllama.decoding.schema_words import (
    BOUNDS,
    CHOICES,
    KEYWORDS,
    LENGTHS,
    check_kinds,
    is_annotation,
)


class Book(NamedTuple):
    """The whole schema, and the pieces made from it so far, by their ``$ref``."""

    root: Any
    pieces: dict[str, Node]


def schema_machine(schema: Mapping[str, Any] | str) -> Machine:
    """Build the machine of JSON texts that fit a schema.

    Parameters
    ----------
    schema : mapping, or its JSON text

    Raises
    ------
    NotUnderstood
        If it holds a keyword, or a combination of them, that is not understood.
    ValueError
        If it is not a schema, or nothing fits it.
    """
    root = read_schema(schema)
    book = Book(root, {ANYTHING: _anything()})
    try:
        node = without_endless(_value(root, book, ()), book.pieces)
        if node is None:
            raise ValueError("schema: every value that fits is endless")
        return compile_node(node, book.pieces)
    except RecursionError:
        raise ValueError("schema: nested too deeply") from None


def read_schema(schema: Mapping[str, Any] | str) -> Any:
    """The schema as a mapping; ValueError if its text is not JSON."""
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError) as error:
        raise ValueError(f"schema: not JSON ({error!s:.60})") from None


ANYTHING = "any value"


def _anything() -> Node:
    """Any JSON value."""
    call: Node = ("call", ANYTHING)
    string = quoted(("repeat", json_text.CHARACTER, 0, None))
    member: Node = ("then", [string, literal(": "), call])
    return (
        "or",
        [
            _braced("{", [(member, 0, None)], "}"),
            _braced("[", [(call, 0, None)], "]"),
            *(string, json_text.NUMBER),
            *map(literal, ("true", "false", "null")),
        ],
    )


def _braced(left: str, entries: list, right: str) -> Node:
    return ("then", [literal(left), ("list", entries), literal(right)])


def _value(schema: Any, book: Book, inside: tuple[str, ...]) -> Node:
    """The texts that fit a schema.

    Parameters
    ----------
    inside : tuple of str
        References that were followed since the last bracket.
    """
    if schema is True:
        return ("call", ANYTHING)
    check_kinds(schema)
    meant = {word for word in schema if not is_annotation(word)}
    if not meant:
        return ("call", ANYTHING)
    if meant & {"const", "enum"}:
        return _listed(schema, meant)
    for word in ("$ref", *sorted(CHOICES)):
        if word in meant:
            for other in sorted(meant - {word}):
                raise NotUnderstood(
                    f"schema: {other!r} beside {word!r} is not understood"
                )
            if word == "$ref":
                return _reference(schema[word], book, inside)
            return _choice(word, schema[word], book, inside)
    types = _types(schema, meant)
    known = set().union(*(KEYWORDS.get(kind, set()) for kind in types)) | {"type"}
    for word in sorted(meant - known):
        raise NotUnderstood(f"schema: keyword {word!r} is not understood")
    return ("or", [_typed(kind, schema, book) for kind in types])


def _types(schema: Mapping, meant: set[str]) -> list[str]:
    """The types that are named, or the one to which the keywords apply."""
    types = schema.get("type")
    if types is None:
        types = [kind for kind in TYPES[:4] if KEYWORDS[kind] & meant]
        for word in sorted(meant - set().union(*KEYWORDS.values())):
            raise NotUnderstood(f"schema: keyword {word!r} is not understood")
        if len(types) != 1:
            raise NotUnderstood(f"schema: no 'type' beside {', '.join(sorted(meant))}")
    types = [types] if isinstance(types, str) else list(types)
    for kind in types:
        if kind not in TYPES:
            raise ValueError(f"schema: type {kind!r} is not one of {', '.join(TYPES)}")
    if not types:
        raise ValueError("schema: 'type' without any type")
    return types


#  ---- values that are listed -------------------------------------------------


def _listed(schema: Mapping, meant: set[str]) -> Node:
    """The values of enum or const that the keywords beside it allow."""
    word = "const" if "const" in schema else "enum"
    values = [schema["const"]] if word == "const" else list(schema["enum"])
    if not values:
        raise ValueError("schema: a choice without options: 'enum' is empty")
    if word == "const" and "enum" in schema and not among(values[0], schema["enum"]):
        raise ValueError("schema: 'const' is not among 'enum'")
    others = sorted(meant - {"const", "enum", "type"})
    for other in others:
        if other not in LENGTHS | BOUNDS:
            raise NotUnderstood(f"schema: {other!r} beside {word!r} is not understood")
    texts = [json_text.value(value) for value in values]
    left = [text for text, v in zip(texts, values) if _allowed(v, schema)]
    if not left:
        beside = (others or ["type"])[0]
        raise ValueError(f"schema: {beside!r} beside {word!r} leaves no value")
    return ("or", left)


def _allowed(value: Any, schema: Mapping) -> bool:
    """Whether type, bounds and lengths allow a value."""
    if "type" in schema:
        types = _types(schema, set())
        if kind_of(value) not in types and not (
            kind_of(value) == "integer" and "number" in types
        ):
            return False
    if isinstance(value, str):
        low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        return low <= len(value) <= high
    if kind_of(value) in ("integer", "number"):
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and value > schema.get("exclusiveMinimum", -math.inf)
            and value < schema.get("exclusiveMaximum", math.inf)
        )
    return True


#  ---- references and choices -------------------------------------------------


def _reference(name: str, book: Book, inside: tuple[str, ...]) -> Node:
    """A call of the piece that a ``$ref`` names."""
    if name in inside:
        raise ValueError(f"schema: {name} contains itself with nothing around it")
    if name not in book.pieces:
        book.pieces[name] = NOTHING  # known from here on: it may call itself
        book.pieces[name] = _value(target(name, book.root), book, (*inside, name))
    return ("call", name)


def _choice(word: str, options: Any, book: Book, inside: tuple[str, ...]) -> Node:
    """One of several schemas."""
    if not options:
        raise ValueError(f"schema: a choice without options: {word!r} is empty")
    if word == "allOf" and len(options) > 1:
        raise NotUnderstood("schema: 'allOf' of several schemas is not understood")
    if word == "oneOf":
        check_one_of(options, book.root)
    return ("or", [_value(option, book, inside) for option in options])


#  ---- the types --------------------------------------------------------------


def _typed(kind: str, schema: Mapping, book: Book) -> Node:
    """The values of one type that fit."""
    if kind == "object" and schema.get("properties"):
        # Equal objects are built once, whether a reference says so or not.
        name = "object " + json.dumps(schema, default=repr)
        if name not in book.pieces:
            book.pieces[name] = NOTHING
            book.pieces[name] = _object(schema, book)
        return ("call", name)
    if kind == "object":
        return _object(schema, book)
    if kind == "array":
        return _array(schema, book)
    if kind == "string":
        return _string(schema)
    if kind in ("integer", "number"):
        return _number(kind, schema)
    words = ("true", "false") if kind == "boolean" else ("null",)
    return ("or", [literal(word) for word in words])


def _object(schema: Mapping, book: Book) -> Node:
    properties = schema.get("properties", {})
    required = set(schema.get("required", ()))
    more = schema.get("additionalProperties", not properties)
    names = json_text.other_than(list(properties))
    if "propertyNames" in schema:
        allowed = names_of(schema["propertyNames"], book.root)
        if isinstance(allowed, list):
            properties, more = under_names(allowed, properties, more), False
        elif properties:
            raise NotUnderstood(
                "schema: 'propertyNames' beside 'properties' is not understood"
            )
        else:
            names = _string(allowed)
    entries = []
    for name in sorted(required - properties.keys()):
        raise NotUnderstood(f"schema: required property {name!r} is not declared")
    for name, part in properties.items():
        if part is False and name not in required:
            continue
        key = ("then", [json_text.value(name), literal(": ")])
        with named(name):
            member = ("then", [key, _value(part, book, ())])
        entries.append((member, int(name in required), 1))
    if more is not False:
        key = ("then", [names, literal(": ")])
        entries.append((("then", [key, _value(more, book, ())]), 0, None))
    return _braced("{", entries, "}")


def _array(schema: Mapping, book: Book) -> Node:
    if schema.get("uniqueItems"):
        raise NotUnderstood("schema: keyword 'uniqueItems' is not understood")
    high = schema.get("maxItems")
    heads = list(schema.get("prefixItems", ()))[:high]
    low = schema.get("minItems", len(heads))
    rest = schema.get("items", "prefixItems" not in schema)
    # A list of items cannot have holes, so the heads come one after the other.
    first = [(_value(item, book, ()), 1, 1) for item in heads]
    options = [_braced("[", first[:n], "]") for n in range(low, len(first))]
    if rest is False or high == len(first):
        options += [_braced("[", first, "]")] * (low <= len(first))
    else:
        most = None if high is None else high - len(first)
        item = (_value(rest, book, ()), max(0, low - len(first)), most)
        options.append(_braced("[", [*first, item], "]"))
    if not options:
        raise ValueError(f"schema: no array has {low} items here")
    return ("or", options)


def _string(schema: Mapping) -> Node:
    for word in ("pattern", "format"):
        if word in schema:
            for other in sorted(schema.keys() & (KEYWORDS["string"] - {word})):
                raise NotUnderstood(
                    f"schema: {other!r} beside {word!r} is not understood"
                )
    if "pattern" in schema:
        return quoted(written(parse_search(schema["pattern"], AGREED)))
    name = schema.get("format")
    if name in json_text.FORMATS:
        return quoted(parse(json_text.FORMATS[name]))
    if name is not None and name not in json_text.FREE_FORMATS:
        raise NotUnderstood(f"schema: format {name!r} is not understood")
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    return quoted(("repeat", json_text.CHARACTER, low, high))


def _bound(
    schema: Mapping, word: str, exclusive: str, tighter: Any
) -> tuple[Decimal | None, bool]:
    """The tighter of two bounds, as it is written, and whether it is excluded."""
    closed, opened = (
        None if schema.get(name) is None else Decimal(repr(schema[name]))
        for name in (word, exclusive)
    )
    if opened is None or closed is None:
        return (closed, False) if opened is None else (opened, True)
    bound = tighter(closed, opened)
    return bound, bound == opened


def _number(kind: str, schema: Mapping) -> Node:
    if not schema.keys() & BOUNDS:
        return json_text.INTEGER if kind == "integer" else json_text.NUMBER
    low, open_low = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, open_high = _bound(schema, "maximum", "exclusiveMaximum", min)
    if kind == "number":
        node = json_text.decimals(low, high, open_low, open_high)
    else:
        least = None if low is None else math.ceil(low) + (open_low and low % 1 == 0)
        most = (
            None if high is None else math.floor(high) - (open_high and high % 1 == 0)
        )
        node = json_text.integers(least, most)
    if node is None:
        raise ValueError(f"schema: no {kind} lies between its bounds")
    return node
