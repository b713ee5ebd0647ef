r"""A JSON schema as a regular expression.

What a schema allows, nested to a fixed depth, is a regular language, so it can be
written as a pattern and handed to `automaton`.  Understood are the keywords that
describe shape: ``type`` (one or several), ``properties``, ``required``, ``items``,
``prefixItems``, ``minItems``, ``maxItems``, ``minLength``, ``maxLength``,
``pattern``, ``enum``, ``const``, ``anyOf``, ``oneOf``, and ``$ref`` into ``$defs``
as long as no definition contains itself.  A keyword that would restrict further
(such as ``minimum``) is refused rather than ignored.  A ``pattern`` has to match
the whole string; JSON writes some characters as escapes, and so does the text.

Objects come with exactly the properties that are declared, in their order, those
that are not required possibly left out, and one space behind ``:`` and ``,``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from npllama.decoding.automaton import LAST, Ranges, parse

_UNICODE = r"\\u[0-9a-fA-F]{4}"
_CHARACTER = rf'([^"\\\x00-\x1f]|\\["\\/bfnrt]|{_UNICODE})'
_INTEGER = r"-?(0|[1-9][0-9]*)"
_NUMBER = rf"{_INTEGER}(\.[0-9]+)?([eE][-+]?[0-9]+)?"
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment"}
_NOTES |= {"$defs", "definitions", "additionalProperties", "format"}
_KEYWORDS = {
    "object": {"properties", "required"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
}
_COUNTS = {"minItems", "maxItems", "minLength", "maxLength"}
_KINDS: dict[str, Any] = {"properties": Mapping, "type": (str, list, tuple)}
_KINDS |= dict.fromkeys(["pattern", "$ref"], str)
_LISTS = ["required", "prefixItems", "enum", "anyOf", "oneOf"]
_KINDS |= dict.fromkeys(_LISTS, (list, tuple))


def schema_to_regex(schema: Mapping[str, Any] | str) -> str:
    """Write the pattern of all JSON texts that fit a schema.

    Parameters
    ----------
    schema : mapping, or its JSON text

    Raises
    ------
    ValueError
        If it is not a schema, is recursive, or uses a keyword that is not
        understood.
    """
    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError) as error:
        raise ValueError(f"schema: not JSON ({error!s:.60})") from None
    try:
        return _value(read, read, ())
    except RecursionError:
        raise ValueError("schema: nested too deeply") from None


# What decides alone, and what may stand beside it all the same: a type that the
# values have anyway.
_ALONE = {"$ref": set(), "const": {"type", "enum"}, "enum": {"type"}}
_ALONE |= {"anyOf": set(), "oneOf": set()}


def _value(schema: Any, root: Any, inside: tuple[str, ...]) -> str:
    _check_kinds(schema)
    for word in _ALONE:
        if word in schema:
            for other in schema.keys() - _ALONE[word] - _NOTES - {word}:
                raise ValueError(f"schema: {other!r} beside {word!r} is not understood")
            return _alone(word, schema[word], root, inside)
    types = schema.get("type")
    if types is None:
        implied = [t for t, words in _KEYWORDS.items() if words & schema.keys()]
        if len(implied) != 1:
            raise ValueError(f"schema: no 'type' in {dict(schema)}")
        types = implied
    types = [types] if isinstance(types, str) else types
    return _either(_typed(kind, schema, root, inside, types) for kind in types)


def _alone(word: str, value: Any, root: Any, inside: tuple[str, ...]) -> str:
    """The pattern of a keyword that decides alone."""
    if word == "$ref":
        return _reference(value, root, inside)
    if word == "const":
        return _literal(value)
    if word == "enum":
        return _either(_literal(choice) for choice in value)
    return _either(_value(option, root, inside) for option in value)


def _check_kinds(schema: Any) -> None:
    """Raise ValueError if a keyword says something of another kind than it should."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"schema: expected an object, found {schema!r:.60}")
    for word, value in schema.items():
        fits = isinstance(value, _KINDS.get(word, object))
        if word in _COUNTS:
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if word == "required" and fits:
            fits = all(isinstance(name, str) for name in value)
        if not fits:
            raise ValueError(f"schema: {word!r} cannot be {value!r:.60}")
    if "const" in schema and schema["const"] not in schema.get(
        "enum", [schema["const"]]
    ):
        raise ValueError("schema: 'const' is not among 'enum'")
    for word in ("Items", "Length"):
        if schema.get("max" + word, math.inf) < schema.get("min" + word, 0):
            raise ValueError(f"schema: max{word} is below min{word}")


def _typed(kind, schema, root, inside, types) -> str:
    if kind not in _TYPES:
        raise ValueError(f"schema: type {kind!r} is not one of {', '.join(_TYPES)}")
    known = set().union(*(_KEYWORDS.get(t, set()) for t in types)) | {"type"}
    for word in schema.keys() - known - _NOTES:
        raise ValueError(f"schema: keyword {word!r} is not understood")
    if kind == "object":
        return _object(schema, root, inside)
    if kind == "array":
        return _array(schema, root, inside)
    if kind == "string":
        return _string(schema)
    plain = {"number": _NUMBER, "integer": _INTEGER, "boolean": "(true|false)"}
    return plain.get(kind, "null")


def _reference(name: str, root: Any, inside: tuple[str, ...]) -> str:
    if name in inside:
        raise ValueError(f"schema: {name} contains itself; a regex cannot nest freely")
    target = root
    for word in name.removeprefix("#/").split("/"):
        if not isinstance(target, Mapping) or word not in target:
            raise ValueError(f"schema: $ref {name!r} leads nowhere")
        target = target[word]
    return _value(target, root, (*inside, name))


def _object(schema, root, inside) -> str:
    properties = schema.get("properties", {})
    required = set(schema.get("required", ()))
    for name in required - properties.keys():
        raise ValueError(f"schema: required property {name!r} is not declared")
    members = [
        (f"{_literal(name)}: {_value(value, root, inside)}", name in required)
        for name, value in properties.items()
    ]
    return r"\{" + _members(members, first=True) + r"\}"


def _members(members: list[tuple[str, bool]], first: bool) -> str:
    """Members in order; a comma before each but the first that is there."""
    if not members:
        return ""
    (text, required), rest = members[0], members[1:]
    here = text if first else f", {text}"
    if required:
        return here + _members(rest, first=False)
    if not first:
        return f"({here})?" + _members(rest, first=False)
    return _either([here + _members(rest, first=False), _members(rest, first=True)])


def _array(schema, root, inside) -> str:
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    first = schema.get("prefixItems", ())[:high]
    heads = [_value(item, root, inside) for item in first]
    if high == 0:
        return r"\[\]"
    if "items" not in schema:
        if not heads or low > len(heads):
            raise ValueError("schema: an array needs 'items'")
        return r"\[" + ", ".join(heads) + r"\]"
    item = _value(schema["items"], root, inside)
    low = max(low - len(heads), 0)
    high = None if high is None else high - len(heads)
    if heads:
        return r"\[" + ", ".join(heads) + f"(, {item})" + _count(low, high) + r"\]"
    more = _count(max(low - 1, 0), None if high is None else high - 1)
    some = f"{item}(, {item}){more}"
    return r"\[" + (some if low else f"({some})?") + r"\]"


def _string(schema) -> str:
    if "pattern" in schema:
        for other in schema.keys() & _COUNTS:
            raise ValueError(f"schema: {other!r} beside 'pattern' is not understood")
        pattern = schema["pattern"].removeprefix("^")
        if pattern.endswith("$") and not pattern.endswith(r"\$"):
            pattern = pattern[:-1]
        return f'"{_written(parse(pattern))}"'
    return (
        f'"{_CHARACTER}{_count(schema.get("minLength", 0), schema.get("maxLength"))}"'
    )


def _written(node: tuple) -> str:
    """The pattern of what JSON writes for the strings that a parsed pattern matches."""
    kind, content = node[0], node[1]
    if kind == "class":
        return _either(_characters(content))
    if kind == "or":
        return _either([_written(branch) for branch in content])
    if kind == "then":
        return "".join(_written(part) for part in content)
    return f"({_written(content)}){_count(node[2], node[3])}"


def _characters(ranges: Ranges) -> list[str]:
    """Patterns of characters as they stand in a JSON string, most of them bare."""
    bare, written = "", []
    for low, high in ranges:
        for first, last in _BARE:
            if max(low, first) <= min(high, last):
                bare += f"{_code(max(low, first))}-{_code(min(high, last))}"
        marks = [c for c in _ESCAPED if low <= c <= high]
        written += [_literal(chr(c))[1:-1] for c in marks]
    return ([f"[{bare}]"] if bare else []) + written


# Quotation marks, backslashes and control characters cannot stand bare.
_BARE = [(32, 33), (35, 91), (93, LAST)]
_ESCAPED = [*range(32), 34, 92]


def _code(character: int) -> str:
    """A character inside of brackets."""
    return f"\\u{character:04x}" if character < 128 else chr(character)


def _count(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _literal(value: Any) -> str:
    """The pattern that matches one JSON value, as it is written."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"schema: {value!r:.60} is not JSON ({error})") from None
    return re.sub(r"[\\.^$*+?{}\[\]()|]", r"\\\g<0>", text)


def _either(options) -> str:
    options = list(options)
    if not options:
        raise ValueError("schema: a choice without options")
    return options[0] if len(options) == 1 else f"({'|'.join(options)})"
