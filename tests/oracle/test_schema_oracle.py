"""What is written under a schema fits it, says the library jsonschema.

The schemas are random ones of the kinds that pydantic writes, and those that pydantic
writes for ordinary models; the texts are random walks through what is allowed.
"""

import json
import os
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import numpy as np
import pytest
from needs import needs
from schemas import Bytes, fits, root, text_under

from npllama.decoding import engine
from npllama.decoding.guided import Guide
from npllama.decoding.json_schema import schema_machine

jsonschema = needs("jsonschema")
pydantic = needs("pydantic")
needs("rfc3339_validator")  # without it jsonschema takes any text for a date-time

from pydantic import BaseModel, Field, StringConstraints, create_model  # noqa: E402

CHECK = jsonschema.Draft202012Validator
# On demand more: a run of 2,000 takes some ten minutes.
SCHEMAS = int(os.environ.get("NPLLAMA_SCHEMAS", "150"))


def problems(schema, guide, seed, texts):
    """Texts under a guide that the schema does not fit, each with the reason."""
    rng = np.random.default_rng(seed)
    validator = CHECK(schema, format_checker=CHECK.FORMAT_CHECKER)
    found = [text_under(guide, rng) for _ in range(texts)]
    reasons = [(text, fits(validator, text)) for text in found if text is not None]
    return [(text, why) for text, why in reasons if why], len(reasons)


def engine_s(schema):
    """The engine's grammar of a schema, also where our own machine would do."""
    return engine._checked(engine.plainly(schema), "llguidance")


@pytest.mark.parametrize("compiled, least", [(schema_machine, 0.9), (engine_s, 0.85)])
def test_random_texts_fit_random_schemas(compiled, least):
    accepted = texts = 0
    for seed in range(SCHEMAS):
        schema = root(np.random.default_rng(seed))
        try:
            guide = engine.guide_of(Bytes(), compiled(schema), [Bytes.eos])
        except ValueError:
            continue
        wrong, read = problems(schema, guide, seed, 3)
        assert not wrong, (seed, wrong[0], json.dumps(schema))
        accepted, texts = accepted + 1, texts + read
    assert accepted > least * SCHEMAS and texts > 2 * accepted


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}
BEYOND = [
    {"type": "string", "pattern": "^[a-c]+$", "minLength": 2, "maxLength": 3},
    {"type": "string", "pattern": r"^\W$", "maxLength": 3},
    {"type": "string", "pattern": r"^\S+$", "maxLength": 3},
    {"type": "string", "pattern": r"\s", "maxLength": 3},
    {"type": "string", "pattern": r"^\d.$", "maxLength": 3},
    {"type": "string", "format": "date", "minLength": 3},
    {"type": "string", "format": "date", "pattern": "^2"},
    {"type": "string", "format": "uri"},
    {"type": "string", "format": "ipv6"},
    {"type": "object", "minProperties": 2},
    {"type": "object", "maxProperties": 1},
    {"type": "object", "patternProperties": {r"^\w$": {"type": "integer"}}},
    OBJECT | {"patternProperties": {"^x": {"type": "null"}}},
    OBJECT | {"required": ["b"]},
    {"allOf": [OBJECT, {"type": "object", "required": ["b"], "properties": {"b": {}}}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    {
        "$ref": "#/$defs/x",
        "maximum": 5,
        "$defs": {"x": {"minimum": 3}},
        "type": "integer",
    },
    {"anyOf": [{"minimum": 3}, {"maximum": -3}], "type": "integer"},
    {"type": "integer", "multipleOf": 7, "exclusiveMaximum": 0},
    {"type": "number", "multipleOf": 0.5, "exclusiveMaximum": 0},
    {"type": "number", "multipleOf": 1, "exclusiveMinimum": 0, "maximum": 3},
    {"enum": ["a", "bbb"], "pattern": "b"},
    {"minimum": 3, "maxLength": 2},
    {"oneOf": [{"type": "integer", "multipleOf": 3}, {"type": "null"}]},
    {"anyOf": [{"type": "integer"}], "oneOf": [{"const": 3}, {"const": None}]},
    {"propertyNames": {"format": "uuid"}, "minProperties": 1},
    {"propertyNames": {"minLength": 2, "maxLength": 3}, "minProperties": 1},
    {"propertyNames": {"pattern": "^a"}, "additionalProperties": {"multipleOf": 5}},
    {"propertyNames": {"enum": ["a", "b"]}, "minProperties": 1},
    {"type": "object", "patternProperties": {"^x$": {"type": "null"}}},
    OBJECT | {"x-guidance": {"lenient": True}, "minProperties": 1, "required": ["a"]},
]


@pytest.mark.parametrize("schema", BEYOND, ids=lambda schema: json.dumps(schema)[:60])
def test_what_the_engine_writes_beyond_our_machine_fits(schema):
    with pytest.raises(ValueError, match="understood|no 'type'|not declared"):
        schema_machine(schema)
    guide = engine.guide_of(Bytes(), engine.compile_schema(schema), [Bytes.eos])
    wrong, read = problems(schema, guide, 0, 40)
    assert wrong == [] and read > 10


REFUSED = [
    (
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "uniqueItems",
    ),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"type": "string"}, "then": {"minLength": 3}}, "if"),
    ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    (OBJECT | {"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    (OBJECT | {"unevaluatedProperties": False}, "unevaluatedProperties"),
    (OBJECT | {"propertyNames": {"pattern": "^x"}}, "propertyNames"),
    ({"type": "number", "multipleOf": 0.1}, "multipleOf"),
    (
        {"properties": {"price": {"type": "number", "multipleOf": 0.1}}},
        "multipleOf.*, in 'price'",
    ),
    (
        {"oneOf": [{"multipleOf": 3, "type": "integer"}, {"type": "integer"}]},
        "oneOf.*one value, is not understood$",
    ),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"type": "string", "format": "moon-phase"}, "moon-phase"),
]


@pytest.mark.parametrize("schema, name", REFUSED)
def test_what_neither_takes_is_refused_by_name(schema, name):
    with pytest.raises(ValueError, match=name):
        engine.compile_schema(schema)


def test_names_are_only_those_that_a_pattern_declares():
    schema = {"type": "object", "patternProperties": {"^x$": {"type": "null"}}}
    guide = engine.guide_of(Bytes(), engine.compile_schema(schema), [Bytes.eos])
    assert guide.look(list(b'{"x": null}')).whole
    assert not guide.look(list(b'{"y')).allowed.any()


def test_a_grammar_nests_as_no_pattern_can():
    grammar = engine.compile_grammar('start: "(" start ")" | "a"')
    guide = engine.guide_of(Bytes(), grammar, [Bytes.eos])
    for text, whole in (("((a))", True), ("((a)", False), ("a", True), ("(", False)):
        assert guide.look(list(text.encode())).whole == whole
    assert not guide.look(list(b"(b")).allowed.any()
    assert guide.finished(list(b"a")) and not guide.finished(list(b"(a"))
    with pytest.raises(ValueError, match="grammar"):
        engine.compile_grammar("start: ???")


def test_the_engine_s_own_end_token_never_comes():
    class Silent(Bytes):  # two more tokens without text, before the end token
        def token_bytes(self, index):
            return b"" if index in (0, 1) else super().token_bytes(index)

    grammar = engine.compile_grammar('start: "yes" | "no"')
    guide = engine.guide_of(Silent(), grammar, [Bytes.eos])
    assert not guide.look([]).allowed[[0, 1]].any()
    assert np.flatnonzero(guide.look(list(b"yes")).allowed).tolist() == [Bytes.eos]
    assert guide.finished(list(b"yes")) and not guide.look([0]).allowed.any()


def test_the_engine_goes_from_any_text_to_any_other():
    grammar = engine.compile_grammar("start: /(ab|ba){2,4}/")
    guide = engine.guide_of(Bytes(), grammar, [Bytes.eos])
    fresh = engine.guide_of(Bytes(), grammar, [Bytes.eos])
    rng = np.random.default_rng(0)
    for _ in range(60):
        tokens = rng.choice(list(b"ab"), rng.integers(0, 9)).tolist()
        fresh._go_to([])
        for one, other in zip(guide.look(tokens), fresh.look(tokens)):
            np.testing.assert_array_equal(one, other)


#  ---- pydantic ---------------------------------------------------------------


class Color(Enum):
    red = "red"
    blue = "blue"


class Level(IntEnum):
    low = 1
    high = 2


class Address(BaseModel):
    street: str
    zip: str = Field(pattern=r"^\d{5}$")
    city: str | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(9, ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool = True


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


class Linked(BaseModel):
    value: float
    next: Optional["Linked"] = None


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
Word = Annotated[str, StringConstraints(pattern="^[A-Z]{3}$")]
FIELDS = [
    {"a": int, "b": int | None, "c": bool},
    {"home": Address, "work": Address | None},
    {"color": Color, "level": Level},
    {"pet": Pet},
    {"pets": list[Pet]},
    {"tree": Tree, "list": Linked},
    {"scores": dict[str, float]},
    {"meta": dict[str, Any], "any": Any},
    {"triple": tuple[int, str, bool], "many": tuple[int, ...]},
    {
        "n": Annotated[int, Field(gt=0, lt=100)],
        "x": Annotated[float, Field(ge=0, le=1)],
    },
    {"p": pydantic.PositiveInt, "q": pydantic.NonNegativeFloat},
    {"d": date, "t": datetime, "u": UUID},
    {"t": time, "s": timedelta},
    {"ip": IPv4Address, "path": Path, "secret": pydantic.SecretStr},
    {"name": Annotated[str, Field(min_length=1, max_length=4000)]},
    {"code": Word, "codes": dict[Literal["a", "b"], Word]},
    {"tags": Annotated[list[str], Field(min_length=1, max_length=5)]},
    {"items": list, "options": dict},
    {"amount": Annotated[Decimal, Field(ge=0)]},
    {"choice": Literal["a", 1, None, True]},
    {"where": dict[str, list[Address]]},
    {"either": int | str | None, "grid": list[list[int]]},
    {"old": Annotated[int, Field(deprecated=True, description="x", examples=[1])]},
    {"raw": bytes, "colors": list[Color]},
    {"by_color": dict[Color, int]},
    {"by_id": dict[UUID, Address], "id": pydantic.UUID4},
    {"one": Cat | Dog | None},
    # These go through the engine.
    {"code": Annotated[str, StringConstraints(pattern="^[A-Z]+$", max_length=5)]},
    {"url": pydantic.HttpUrl},
    {"n": Annotated[int, Field(multiple_of=5, ge=10)]},
    {"keyed": dict[Annotated[str, StringConstraints(pattern="^x")], int]},
    {"few": Annotated[dict[str, int], Field(min_length=1, max_length=2)]},
    {"by_id": dict[UUID, Address], "n": Annotated[int, Field(multiple_of=5)]},
    {"pet": Pet, "code": Annotated[str, Field(pattern="^[A-Z]+$", max_length=5)]},
]


@pytest.mark.parametrize("number", range(len(FIELDS)))
@pytest.mark.parametrize("extra", ["ignore", "forbid", "allow"])
def test_what_pydantic_writes_for_ordinary_models_is_accepted(number, extra):
    named = {name: (kind, ...) for name, kind in FIELDS[number].items()}
    config = pydantic.ConfigDict(extra=extra)
    made = create_model("Made", __config__=config, **named)
    schema = made.model_json_schema()
    guide = engine.guide_of(Bytes(), engine.compile_schema(schema), [Bytes.eos])
    assert isinstance(guide, Guide) == (number < len(FIELDS) - 7)
    wrong, read = problems(schema, guide, number, 6)
    assert wrong == [] and read
