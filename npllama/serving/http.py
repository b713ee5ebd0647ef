"""The routes of the server: OpenAI's, and those that tools expect beside them.

    GET   /v1/models             the one model
    POST  /v1/completions        continue texts
    POST  /v1/chat/completions   answer in a conversation
    POST  /tokenize, /detokenize   GET /tokenizer_info
    GET   /health                503 while the model is loaded, and while the server ends
    GET   /metrics               for Prometheus

A stream is an *async* generator: when the client leaves, an exception ends it, and its
`finally` gives up the requests.  A plain generator would never be resumed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Message
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from npllama.serving import answers, protocol
from npllama.serving.clients import (
    Gone,
    State,
    body_of,
    check_room,
    events,
    guarded,
    json_response,
    ready,
    refusal,
    streamed,
)
from npllama.serving.fields import Refused
from npllama.serving.offered import Served

STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def app_of(state: State, more: Sequence[Route] = ()) -> Any:
    """The application, in ASGI's sense, with more routes if there are any."""
    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/completions", writing(protocol.completion_of), methods=["POST"]),
        Route("/v1/chat/completions", writing(protocol.chat_of), methods=["POST"]),
        Route("/tokenize", answering(protocol.tokenized), methods=["POST"]),
        Route("/detokenize", answering(protocol.detokenized), methods=["POST"]),
        Route("/tokenizer_info", ends_of_texts),
        Route("/health", health),
        Route("/metrics", metrics),
        *more,
    ]
    handlers = {Refused: refused, HTTPException: no_route, ClientDisconnect: left}
    app = Starlette(routes=routes, exception_handlers={**handlers, Gone: left})
    app.state.serving = state
    return guarded(app, state)


#  ---- texts --------------------------------------------------------------------


def writing(read: Callable[[Any, Served], protocol.Ask]) -> Callable:
    """The route that writes texts for bodies which `read` understands."""

    async def route(message: Message) -> Response:
        state = message.app.state.serving
        served, _ = ready(state)
        body = await body_of(message, state.bounds.body)
        # Long texts take long to cut into tokens; others are served meanwhile.
        ask = await run_in_threadpool(read, body, served)
        check_room(state, len(ask.prompts) * ask.written)
        name = f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}"
        telling = answers.Telling(served, ask, name, int(time.time()))
        happening = events(state, message, ask)
        await anext(happening)  # all is handed in, or an error says what is wrong
        if ask.stream:
            stream = streamed(telling, happening)
            return StreamingResponse(
                stream, headers=STREAM, media_type="text/event-stream"
            )
        parts = []
        async with aclosing(happening):
            async for happened in happening:
                parts += answers.parts_of(telling, *happened) if happened else []
        return json_response(answers.whole(telling, parts))

    return route


#  ---- everything else ----------------------------------------------------------


def answering(answer: Callable[[Any, Served], dict[str, Any]]) -> Callable:
    """The route that answers a body without the engine."""

    async def route(message: Message) -> Response:
        state = message.app.state.serving
        served, _ = ready(state)
        body = await body_of(message, state.bounds.body)
        return json_response(await run_in_threadpool(answer, body, served))

    return route


async def models(message: Message) -> Response:
    served, _ = ready(message.app.state.serving)
    return json_response({"object": "list", "data": [answers.model_dict(served)]})


async def one_model(message: Message) -> Response:
    served, _ = ready(message.app.state.serving)
    protocol.check_model(message.path_params["name"], served)
    return json_response(answers.model_dict(served))


async def ends_of_texts(message: Message) -> Response:
    served, _ = ready(message.app.state.serving)
    return json_response(protocol.tokenizer_info(served))


async def health(message: Message) -> Response:
    served, _ = ready(message.app.state.serving)
    return json_response({"status": "ok", "arithmetic": served.fingerprint})


async def metrics(message: Message) -> Response:
    served, desk = ready(message.app.state.serving)
    text = await run_in_threadpool(desk.metrics, served.name)
    return Response(text, media_type="text/plain; version=0.0.4")


async def refused(message: Message, error: Exception) -> Response:
    return refusal(error)


async def left(message: Message, error: Exception) -> Response:
    return refusal(Gone())


async def no_route(message: Message, error: Any) -> Response:
    return refusal(Refused(error.detail, status=error.status_code))
