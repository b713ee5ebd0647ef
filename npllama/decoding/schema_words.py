"""The words of a JSON schema: what each may be, and which of them restrict nothing.

A schema is a JSON object.  Its keywords restrict values of one type (``minLength``
strings, ``items`` arrays), choose among other schemas, or only tell the reader
something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Keywords of the standard and of OpenAPI that restrict nothing.
ANNOTATIONS = {"title", "description", "default", "examples", "example", "$comment"}
ANNOTATIONS |= {"deprecated", "readOnly", "writeOnly", "nullable", "discriminator"}
ANNOTATIONS |= {"$schema", "$id", "$defs", "definitions", "externalDocs", "xml"}
ANNOTATIONS |= {"contentMediaType", "contentEncoding"}
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
LENGTHS = {"minLength", "maxLength"}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties", "propertyNames"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "string": {"pattern", "format"} | LENGTHS,
    "number": BOUNDS,
    "integer": BOUNDS,
}
COUNTS = {"minItems", "maxItems"} | LENGTHS
CHOICES = {"anyOf", "oneOf", "allOf"}
KINDS: dict[str, Any] = {"properties": Mapping, "type": (str, list, tuple)}
KINDS |= dict.fromkeys(["pattern", "format", "$ref"], str)
KINDS |= dict.fromkeys(["required", "prefixItems", "enum", *CHOICES], (list, tuple))
KINDS |= {"uniqueItems": bool} | dict.fromkeys(BOUNDS, (int, float))


def is_annotation(word: str) -> bool:
    """Whether a keyword restricts nothing: the standard, OpenAPI, or an extension."""
    return word in ANNOTATIONS or word.startswith("x-")


def check_kinds(schema: Any) -> None:
    """Raise ValueError if a keyword has a value of the wrong kind."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"schema: expected an object, found {schema!r:.60}")
    for word, value in schema.items():
        if not isinstance(word, str) or not _fits_kind(word, value):
            raise ValueError(f"schema: {word!r} cannot be {value!r:.60}")
    for word in ("Items", "Length"):
        if schema.get("max" + word, math.inf) < schema.get("min" + word, 0):
            raise ValueError(f"schema: max{word} is below min{word}")


def _fits_kind(word: str, value: Any) -> bool:
    if word in COUNTS:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if word in BOUNDS:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (isinstance(value, int) or math.isfinite(value))
    if word == "required" and isinstance(value, (list, tuple)):
        return all(isinstance(name, str) for name in value)
    return isinstance(value, KINDS.get(word, object))
