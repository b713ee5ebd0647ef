"""The page as a server shows it, so that a click on a candidate goes on from there.

    GET  /explain                      a form
    GET  /explain?prompt=...           the page; options of generation by their names
    GET  /explain?asked={...}          what a link on a page asks: prompt, the tokens that
                                       the text begins with, seed, options

A link needs no program and no permission of another origin, so that it works from a page
that lies in a file.  Pages are computed beside the engine, one at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import Any, NamedTuple

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as Message
from starlette.responses import HTMLResponse
from starlette.routing import Route

from npllama.explain.collect import explained
from npllama.explain.page import framed, page
from npllama.explain.told import Asked, options_back, told
from npllama.generation.options import OPTIONS, GenerationConfig
from npllama.generation.task import Prompt, encode_prompt, is_prompt
from npllama.generation.wishes import options_of as model_options
from npllama.ops import rowwise
from npllama.serving.clients import ready
from npllama.serving.fields import Refused
from npllama.serving.offered import Served
from npllama.weights import Model

MOST, USUAL = 256, 60  # new tokens


class Wanted(NamedTuple):
    """What a client asks for."""

    prompt: str | list[int]
    first: list[int]
    seed: int
    config: GenerationConfig


def route_of(seconds: float) -> Route:
    """The route of the page; a text takes so many seconds at most."""
    alone = asyncio.Lock()

    async def route(message: Message) -> HTMLResponse:
        served, _ = ready(message.app.state.serving)
        given = dict(message.query_params)
        if not given:
            return HTMLResponse(form(served))
        async with alone:
            text = await run_in_threadpool(answered, served, given, seconds)
        return HTMLResponse(text)

    return Route("/explain", route)


def answered(served: Served, given: Mapping[str, str], seconds: float) -> str:
    """The page that was asked for; `Refused` if it cannot be made."""
    try:
        wanted = wanted_of(served, given, seconds)
        chance = np.random.default_rng(wanted.seed)
        with rowwise(served.fingerprint.endswith("rowwise")):
            found = explained(
                served.model, wanted.prompt, wanted.config, chance, first=wanted.first
            )
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise Refused(f"explain: {error}") from None
    asked = Asked(wanted.prompt, wanted.seed, served.name, first=wanted.first)
    return page(told(found, asked), server="")


def wanted_of(served: Served, given: Mapping[str, str], seconds: float) -> Wanted:
    """What a query asks for.

    Raises
    ------
    ValueError, TypeError
        If it asks for what there is not.
    """
    asked: Any = {}
    if "asked" in given:
        asked = json.loads(given["asked"])
    else:
        options = {
            k: read(k, v) for k, v in given.items() if k not in ("prompt", "seed")
        }
        asked = {"prompt": given.get("prompt", ""), "options": options}
        asked["seed"] = int(given.get("seed") or 0)
    if not isinstance(asked, dict) or not isinstance(asked.get("options", {}), dict):
        raise ValueError(
            "asked: an object with prompt, first, seed and options is needed"
        )
    options = options_back(asked.get("options", {}))
    options = model_options(served.model, options) | options
    if options.get("max_length") is None:
        options.setdefault("max_new_tokens", USUAL)
    config = replace(GenerationConfig(**options), max_time=seconds)
    prompt, seed = asked.get("prompt"), asked.get("seed", 0)
    first = encode_prompt(served.model, list(asked.get("first", [])))
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r:.40}; a whole number from 0 is needed")
    return Wanted(prompt, first, seed, shortened(config, served.model, prompt))


def shortened(
    config: GenerationConfig, model: Model, prompt: Prompt
) -> GenerationConfig:
    """The config with room for `MOST` new tokens at most."""
    if config.max_length is None or config.max_new_tokens is not None:
        return replace(config, max_new_tokens=min(config.max_new_tokens or MOST, MOST))
    if not is_prompt(prompt):
        raise TypeError("a page is of one prompt: text, or a list of token ids")
    begin = len(encode_prompt(model, prompt, config.allowed_special))
    return replace(config, max_length=min(config.max_length, begin + MOST))


def read(name: str, value: str) -> Any:
    """The value of an option in a query: JSON, or a word."""
    if name not in OPTIONS:
        return value  # it is refused by its name
    try:
        return json.loads(value)
    except ValueError:
        return value


def form(served: Served) -> str:
    """A page that asks for a prompt."""
    fields = {
        "seed": ("0", "makes chance repeatable"),
        "max_new_tokens": (str(USUAL), OPTIONS["max_new_tokens"].says),
        "temperature": ("0.8", OPTIONS["temperature"].says),
        "top_p": ("0.95", OPTIONS["top_p"].says),
    }
    rows = "".join(
        f'<p><label>{name} <input name="{name}" value="{value}" inputmode="decimal"> '
        f"</label><small>{escape(says)}</small></p>\n"
        for name, (value, says) in fields.items()
    )
    body = (
        f"<h1>How does {escape(served.name)} write?</h1>\n"
        '<form action="/explain">\n<p><label>prompt <input name="prompt" size="40" '
        'value="Once upon a time" required></label></p>\n'
        f'{rows}<input type="hidden" name="do_sample" value="true">\n'
        '<p><button type="submit">explain</button></p>\n</form>\n'
    )
    return framed(f"npllama explains {served.name}", body)
