"""The fields of a request, as in OpenAI's API.

OpenAI's fields have OpenAI's defaults, and every other option of `GenerationConfig`
that grows one text may be given under its name here, such as ``top_k`` or ``min_p``.

A server must not answer a question that was not asked.  Fields of OpenAI's that do
not change the text (`IGNORED`) are passed over; any other that is not understood is
refused, so that a misspelt ``temperature`` does not pass unnoticed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from npllama.generation import limits as must_be
from npllama.generation.limits import Range
from npllama.generation.options import OPTIONS, GenerationConfig

MOST_LOGPROBS = 100  # alternatives per token: each is a few dozen bytes of JSON
MOST_TEXTS = 128  # of one prompt


class Refused(ValueError):
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ):
        super().__init__(message)
        self.param, self.status, self.code, self.kind = param, status, code, kind


#  ---- fields -------------------------------------------------------------------


class Field(NamedTuple):
    """A field of a body."""

    range: Range
    default: Any
    option: str | None = None  # the option of `GenerationConfig` that it sets


def numbered(value: Any) -> Any:
    """Read a mapping whose keys are numbers written as text, as JSON requires."""
    if not isinstance(value, Mapping):
        return value
    return {int(k) if k.isdecimal() else k: bias for k, bias in value.items()}


OBJECT = Range(lambda value: isinstance(value, Mapping), "an object")
TEXT = Range(lambda value: isinstance(value, str), "text")
ANY = Range(lambda value: True, "anything")
TURNS = Range(lambda value: isinstance(value, tuple) and value, "a list of messages")
TEXTS = must_be.whole(1, MOST_TEXTS)
BIASES = must_be.LOGIT_BIAS._replace(
    legal="an object of token ids and numbers from -1e30 to 1e30", read=numbered
)

SHARED = {
    "model": Field(TEXT, None),
    "stream": Field(must_be.FLAG, False),
    "stream_options": Field(OBJECT, None),
    "n": Field(TEXTS, 1),
    "seed": Field(must_be.whole(-(2**63)), None),
    "temperature": Field(must_be.NOT_NEGATIVE, 1.0),
    "top_p": Field(must_be.SHARE, 1.0, "top_p"),
    "stop": Field(must_be.STRINGS, (), "stop_strings"),
    "presence_penalty": Field(must_be.MODERATE, 0.0, "presence_penalty"),
    "frequency_penalty": Field(must_be.MODERATE, 0.0, "frequency_penalty"),
    "logit_bias": Field(BIASES, None, "logit_bias"),
    "response_format": Field(OBJECT, None),
}
COMPLETION = SHARED | {
    "prompt": Field(ANY, None),
    "max_tokens": Field(must_be.COUNT, 16),
    "logprobs": Field(must_be.whole(0, MOST_LOGPROBS), None),
    "echo": Field(must_be.FLAG, False),
    "best_of": Field(TEXTS, None),
}
CHAT = SHARED | {
    "messages": Field(TURNS, ()),
    "max_tokens": Field(must_be.SIZE, None),
    "max_completion_tokens": Field(must_be.SIZE, None),
    "logprobs": Field(must_be.FLAG, False),
    "top_logprobs": Field(must_be.whole(0, MOST_LOGPROBS), None),
}

# Fields of OpenAI's that leave the text as it is.
IGNORED = set(
    """user metadata store service_tier safety_identifier prompt_cache_key
    prompt_cache_retention prediction parallel_tool_calls""".split()
)
# Fields that leave the text as it is if they have one of these values.
NOTHING_ASKED: dict[str, list[Any]] = {
    "tools": [[]],
    "functions": [[]],
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "modalities": [["text"]],
    "suffix": [""],
}
# Options that are asked for in OpenAI's words only.
CALLED = {
    "num_return_sequences": "n",
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "stop_strings": "stop",
    "do_sample": "temperature (0 takes the likeliest token)",
    "prompt_logprobs": "echo, with logprobs",
}


def read_fields(
    body: Any, fields: Mapping[str, Field]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the fields of a body, one by one.

    Returns
    -------
    given : dict
        OpenAI's fields, each with its value or its default.
    extras : dict
        Options under their names here.

    Raises
    ------
    Refused
    """
    if not isinstance(body, dict):
        raise Refused("the body is not a JSON object")
    # What is null was not given.
    body = {name: value for name, value in body.items() if value is not None}
    given = {name: field.default for name, field in fields.items()}
    extras = {}
    for name, value in body.items():
        if name in fields:
            given[name] = checked(name, value, fields[name])
        elif name in OPTIONS and name not in CALLED and name not in CHAT | COMPLETION:
            extras[name] = value
        elif name not in IGNORED and value not in NOTHING_ASKED.get(name, []):
            raise Refused(what_is(name, fields), name, code="unsupported_parameter")
    return given, extras


def checked(name: str, value: Any, field: Field) -> Any:
    """The value of a field, converted to one form."""
    try:
        return field.range.checked(name, value, field.default)
    except ValueError as error:
        raise Refused(str(error), name) from None


def what_is(name: str, fields: Mapping[str, Field]) -> str:
    """The message for a field that the server does not accept."""
    if name in CALLED:
        return f"{name!r} is called {CALLED[name]} here"
    near = difflib.get_close_matches(name, [*fields, *OPTIONS.keys() - CALLED], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name!r:.80} is not supported here{hint}"


#  ---- options ------------------------------------------------------------------


def options_of(given: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """The options of `GenerationConfig` that both kinds of body ask for."""
    named = {
        field.option: given[name] for name, field in fields.items() if field.option
    }
    greedy = given["temperature"] == 0
    return named | {
        "do_sample": not greedy,
        "temperature": 1.0 if greedy else given["temperature"],
        "top_k": 0,  # OpenAI has none; transformers' default would be 50
        "include_stop_str_in_output": False,
        "json_schema": schema_of(given["response_format"]),
        # Without chance all texts are equal: one is written for all.
        "num_return_sequences": 1 if greedy else given["n"],
        "best_of": None if greedy else given.get("best_of"),
    }


def schema_of(format: Mapping[str, Any] | None) -> Any:
    """The schema that a ``response_format`` holds the text to, if any."""
    kind = None if format is None else format.get("type")
    if format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    named = format.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if kind == "json_schema" and isinstance(schema, Mapping):
        return schema
    raise Refused(
        'response_format: expected {"type": "text"}, {"type": "json_object"} or '
        '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
        "response_format",
    )


def config_of(
    options: Mapping[str, Any], extras: Mapping[str, Any]
) -> GenerationConfig:
    """All options as a config."""
    if options["json_schema"] is not None and extras.get("json_schema") is not None:
        raise Refused(
            "response_format and json_schema exclude each other", "response_format"
        )
    try:
        return GenerationConfig(**{**options, **extras})
    except (ValueError, TypeError) as error:
        name = str(error).partition(" ")[0].rstrip(":,")
        raise Refused(str(error), name if name in OPTIONS else None) from None
