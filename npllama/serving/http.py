"""The routes of the server: OpenAI's, and those that tools expect beside them.

    GET   /v1/models             the one model
    POST  /v1/completions        continue texts
    POST  /v1/chat/completions   answer in a conversation
    POST  /tokenize, /detokenize   GET /tokenizer_info
    GET   /health                503 while the model is loaded, and while the server ends
    GET   /metrics               for Prometheus

A stream is an *async* generator: when the client leaves, it is told so, and its
`finally` gives up what was asked.  A plain generator would never be resumed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Message
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from npllama.serving.answers import (
    KEEP_ALIVE,
    Telling,
    chunks,
    ending,
    model_dict,
    parts_of,
    sse,
    whole,
)
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
)
from npllama.serving.fields import Refused
from npllama.serving.offered import Served
from npllama.serving.protocol import (
    Ask,
    chat_of,
    check_model,
    completion_of,
    detokenized,
    tokenized,
    tokenizer_info,
)

STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def app_of(state: State) -> Any:
    """The application, in ASGI's sense."""
    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/completions", writing(completion_of), methods=["POST"]),
        Route("/v1/chat/completions", writing(chat_of), methods=["POST"]),
        Route("/tokenize", answering(tokenized), methods=["POST"]),
        Route("/detokenize", answering(detokenized), methods=["POST"]),
        Route("/tokenizer_info", ends_of_texts),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    handlers = {Refused: refused, HTTPException: no_route, ClientDisconnect: left}
    app = Starlette(routes=routes, exception_handlers={**handlers, Gone: left})
    app.state.serving = state
    return guarded(app, state)


#  ---- texts --------------------------------------------------------------------


def writing(read: Callable[[Any, Served], Ask]) -> Callable:
    """The route that writes texts for bodies which `read` understands."""

    async def route(message: Message) -> Response:
        state = message.app.state.serving
        served, _ = ready(state)
        body = await body_of(message, state.bounds.body)
        # Long texts take long to cut into tokens; others are served meanwhile.
        ask = await run_in_threadpool(read, body, served)
        check_room(state, len(ask.prompts) * ask.written)
        name = f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}"
        telling = Telling(served, ask, name, int(time.time()))
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
                parts += parts_of(telling, *happened) if happened else []
        return json_response(whole(telling, parts))

    return route


async def streamed(telling: Telling, happening: AsyncGenerator) -> AsyncIterator[str]:
    """A stream of server-sent events, which ends once, whatever happens."""
    error = None
    async with aclosing(happening):
        try:
            async for happened in happening:
                if happened is None:
                    yield KEEP_ALIVE
                for part in parts_of(telling, *happened) if happened else []:
                    for piece in chunks(telling, part):
                        yield sse(piece)
        except Gone:
            return
        except Refused as reason:
            error = reason
    for line in ending(telling, error):
        yield line


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
    return json_response({"object": "list", "data": [model_dict(served)]})


async def one_model(message: Message) -> Response:
    served, _ = ready(message.app.state.serving)
    check_model(message.path_params["name"], served)
    return json_response(model_dict(served))


async def ends_of_texts(message: Message) -> Response:
    served, _ = ready(message.app.state.serving)
    return json_response(tokenizer_info(served))


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
