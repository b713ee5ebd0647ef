r"""What a schema says about values, before any text is written.

Two questions come up before a schema can become texts.  What does a reference refer
to?  And can two schemas fit one value?  ``oneOf`` requires a value that fits exactly
one of several schemas.  If no two of them have a value in common, that is the same as
"one of them", which is easy to write.  The second question is hard in general, so
`disjoint` looks only for certain reasons: no common type, no common value in two
lists, or a property that both require with disjoint schemas.  The last is how unions
are usually discriminated:

    {"kind": {"const": "cat"}, ...}     {"kind": {"const": "dog"}, ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from npllama.decoding.schema_words import KEYWORDS, check_kinds, is_annotation

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


class NotUnderstood(ValueError):
    """The schema may be sound; this chapter cannot express it."""


@contextmanager
def named(place: str) -> Iterator[None]:
    """Say in which property a schema is wrong, or not understood."""
    try:
        yield
    except ValueError as error:
        kind = NotUnderstood if isinstance(error, NotUnderstood) else ValueError
        raise kind(f"{error}, in {place!r}") from None


def kind_of(value: Any) -> str:
    """The JSON type of a value; whole numbers are integers, 1.0 included."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if value == value // 1 else "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, Mapping) else "array"


def among(value: Any, values: Any) -> bool:
    return any(same(value, other) for other in values)


def same(a: Any, b: Any) -> bool:
    """Equal as JSON: 1 is 1.0, but true is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def target(name: str, root: Any) -> Any:
    """The schema that a JSON pointer such as ``#/$defs/node`` names."""
    if name.partition("#")[0] or not (name == "#" or name.startswith("#/")):
        raise NotUnderstood(f"schema: $ref {name!r} points outside of the schema")
    found = root
    for word in unquote(name).split("/")[1:]:
        word = word.replace("~1", "/").replace("~0", "~")
        if isinstance(found, (list, tuple)) and word.isdigit():
            found = dict(enumerate(found)).get(int(word))
        elif isinstance(found, Mapping):
            found = found.get(word)
        if found is None or not isinstance(found, (bool, Mapping, list, tuple)):
            raise ValueError(f"schema: $ref {name!r} leads nowhere")
    return found


def disjoint(a: Any, b: Any, root: Any, depth: int = 8) -> bool:
    """Whether it is certain that no value fits both schemas.

    It is certain if they have no type in common, if both list values and share none,
    or if both require a property whose schemas are disjoint.
    """
    a, b = (followed(schema, root) for schema in (a, b))
    if not isinstance(a, Mapping) or not isinstance(b, Mapping) or depth == 0:
        return False
    for one, other in ((a, b), (b, a)):
        for word in ("anyOf", "oneOf"):
            if one.get(word):
                return all(disjoint(x, other, root, depth - 1) for x in one[word])
    listed = [values_of(schema) for schema in (a, b)]
    if None not in listed:
        return not any(among(value, listed[1]) for value in listed[0])
    if not kinds_of(a) & kinds_of(b):
        return True
    if kinds_of(a) != {"object"} and kinds_of(b) != {"object"}:
        return False
    common = set(a.get("required", ())) & set(b.get("required", ()))
    shared = (a.get("properties", {}), b.get("properties", {}))
    return any(
        disjoint(shared[0][name], shared[1][name], root, depth - 1)
        for name in common
        if all(name in properties for properties in shared)
    )


def check_one_of(options: Sequence[Any], root: Any) -> None:
    """Raise NotUnderstood unless no value fits two of the options."""
    for a, b in combinations(options, 2):
        if not disjoint(a, b, root):
            raise NotUnderstood(
                "schema: 'oneOf', two of whose options may fit one value, "
                "is not understood"
            )


def followed(schema: Any, root: Any) -> Any:
    """The schema that a chain of references and lone allOf leads to."""
    for _ in range(16):
        if not isinstance(schema, Mapping):
            return schema
        if isinstance(schema.get("$ref"), str):
            schema = target(schema["$ref"], root)
        elif isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
            schema = schema["allOf"][0]
        else:
            return schema
    return True


def values_of(schema: Mapping) -> list | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def kinds_of(schema: Mapping) -> set[str]:
    """The types that a schema allows; number includes integer."""
    values = values_of(schema)
    if values is not None:
        kinds = {kind_of(value) for value in values}
    else:
        types = schema.get("type", TYPES)
        kinds = {types} if isinstance(types, str) else set(types)
    return kinds | {"integer"} if "number" in kinds else kinds


def names_of(schema: Any, root: Any) -> list[str] | Mapping:
    """What ``propertyNames`` allows: a list of names, or a schema of strings.

    Raises
    ------
    NotUnderstood
        If it is neither.
    """
    names = followed(schema, root)
    if names is True:
        return {}
    meant = set()
    if isinstance(names, Mapping):
        check_kinds(names)
        meant = {word for word in names if not is_annotation(word)}
        kinds = names.get("type", "string")
        able = "string" in ([kinds] if isinstance(kinds, str) else kinds)
        if able and len(meant & {"enum", "const"}) == 1 and len(meant - {"type"}) == 1:
            return [name for name in values_of(names) if isinstance(name, str)]
        if able and meant <= KEYWORDS["string"] | {"type"}:
            return {word: names[word] for word in meant - {"type"}}
    raise NotUnderstood(
        "schema: 'propertyNames' other than strings or a list is not understood"
    )


def under_names(names: list[str], properties: Mapping, more: Any) -> dict[str, Any]:
    """The properties, including those that may be added under listed names."""
    declared = {name: part for name, part in properties.items() if name in names}
    if more is False:
        return declared
    return declared | {name: more for name in names if name not in properties}
