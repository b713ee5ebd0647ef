"""Between a client and the desk: what comes in, what goes out, who has left.

Events come from the engine's thread and are read by a coroutine, through a queue.  A
client may leave at any time.  Then nobody reads on, and `events` gives up its requests
in its `finally`, so that their pages are free after the next step.  A client that is
slow to read holds no page either: its text is written at the engine's pace, and waits
in the queue.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as Message
from starlette.responses import Response

from npllama.serving.answers import (
    KEEP_ALIVE,
    Telling,
    as_json,
    broken,
    chunks,
    ending,
    failure,
    parts_of,
    sse,
)
from npllama.serving.desk import Desk
from npllama.serving.engine import Event
from npllama.serving.fields import Refused
from npllama.serving.offered import Served
from npllama.serving.protocol import Ask
from npllama.serving.requests import Request

POLL = 0.5  # seconds between two looks at whether the client is still there
SIGN_OF_LIFE = 15.0  # seconds after which a stream that tells nothing says so
# When a text's time is up: seconds for its end to come, and as many more for the client
# to read it.
GRACE = 10.0
PATIENCE = 60.0  # seconds for the body of a request to arrive


@dataclass(frozen=True)
class Bounds:
    """The limits of a server."""

    body: int = 2**22  # bytes of a request
    texts: int = 256  # that are being written or wait for it
    seconds: float = 600.0  # for a request
    key: str | None = None  # without which nobody is served


@dataclass
class State:
    """What the routes share."""

    bounds: Bounds
    served: Served | None = None  # None while the model is being loaded
    desk: Desk | None = None
    draining: bool = False  # what runs is finished, nothing new is begun
    open: int = 0  # texts that are being written or wait for it


class Gone(Exception):
    """The client has left."""


def ready(state: State) -> tuple[Served, Desk]:
    """The model and its desk; raise `Refused` while there is no model."""
    why = "the model is being loaded" if state.desk is None else None
    if state.desk is not None and state.desk.failed is not None:
        why = f"the engine has failed: {type(state.desk.failed).__name__}"
    why = "the server is shutting down" if state.draining else why
    if why is not None:
        raise Refused(why, status=503, kind="server_error")
    return state.served, state.desk


#  ---- in -----------------------------------------------------------------------


async def body_of(message: Message, most: int) -> Any:
    """The JSON of a request.

    Raises
    ------
    Refused
        If it is larger than `most` bytes, compressed, late, or not JSON.
    """
    form = message.headers.get("content-encoding", "identity")
    if form.lower() != "identity":
        why = f"the body is compressed ({form:.40}); send it as plain JSON"
        raise Refused(why, status=415)
    # Who says how much is coming is told at once that it is too much.
    if int(message.headers.get("content-length", 0)) > most:
        raise Refused(f"the body is larger than {most} bytes", status=413)
    try:
        body = await asyncio.wait_for(arrived(message, most), PATIENCE)
    except asyncio.TimeoutError:
        why = f"the body did not arrive within {PATIENCE:g} seconds"
        raise Refused(why, status=408) from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON ({error})") from None


async def arrived(message: Message, most: int) -> bytes:
    """The bytes of a body, of which there may be so many."""
    body = b""
    async for piece in message.stream():
        body += piece
        if len(body) > most:
            raise Refused(f"the body is larger than {most} bytes", status=413)
    return body


def check_room(state: State, texts: int) -> None:
    """Raise `Refused` if the server cannot take this many more texts."""
    most = state.bounds.texts
    if texts > most:
        raise Refused(f"{texts} texts are asked for; this server takes {most} at once")
    if state.open + texts > most:
        raise Refused(
            f"the queue is full: {state.open} of {most} texts; try again later",
            status=429,
            code="rate_limit_exceeded",
            kind="rate_limit_error",
        )


#  ---- out ----------------------------------------------------------------------

Take = Callable[[Event], None]


async def events(
    state: State, message: Message, ask: Ask
) -> AsyncGenerator[tuple[int, Event] | None]:
    """Submit the requests, and yield their events: (number of the prompt, event).

    None is yielded first, when all is handed in, and again whenever a while has
    passed.

    Raises
    ------
    Refused
        If the engine refuses, a text fails, or it takes too long.
    Gone
        If the client has left.
    """
    desk, queue, ids = state.desk, asyncio.Queue[Any](), list[int]()
    loop = asyncio.get_running_loop()
    texts = left = len(ask.prompts) * ask.written

    def put(happened: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and who waited with it
            loop.call_soon_threadsafe(queue.put_nowait, happened)

    state.open += texts
    watching = asyncio.create_task(watch(message, queue, state.bounds.seconds + GRACE))
    try:
        await run_in_threadpool(hand_in, desk, requests_of(state, ask), put, ids)
        yield None
        while left:
            happened = await queue.get()
            if isinstance(happened, Exception):
                raise happened
            yield happened
            left -= happened is not None and happened[1].reason is not None
    finally:
        watching.cancel()
        state.open -= texts
        for id in ids:
            desk.abort(id)


def requests_of(state: State, ask: Ask) -> list[Request]:
    """Make a request for every prompt.

    Each has the same seed, so that a prompt's text does not depend on the others.
    """
    longest = min(ask.config.max_time or math.inf, state.bounds.seconds)
    config = replace(ask.config, max_time=longest)
    return [Request(p, config, np.random.default_rng(ask.seed)) for p in ask.prompts]


def hand_in(
    desk: Desk, requests: Sequence[Request], put: Callable, ids: list[int]
) -> None:
    """Submit all requests; `put` gets their events.  Writes into `ids`."""

    def take(number: int) -> Take:
        return lambda event: put(told(number, event))

    try:
        for number, request in enumerate(requests):
            ids.append(desk.submit(request, take(number)))
    except (ValueError, TypeError) as error:
        raise Refused(str(error)) from None


def told(number: int, event: Event) -> tuple[int, Event] | Exception:
    """An event as `events` yields it; an error becomes an end."""
    failed = event.reason == "error"
    return broken(event.error) if failed else (number, event)


async def watch(message: Message, queue: asyncio.Queue, seconds: float) -> None:
    """Put into the queue that the client has left, that time is up, or nothing new."""
    waited = 0.0
    while not await message.is_disconnected():
        await asyncio.sleep(POLL)
        waited += POLL
        if waited > seconds:
            late = f"the request took longer than {seconds:g} s"
            queue.put_nowait(Refused(late, status=503, kind="server_error"))
            return
        if waited % SIGN_OF_LIFE == 0:
            queue.put_nowait(None)
    queue.put_nowait(Gone())


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


#  ---- around every request -----------------------------------------------------


def guarded(app: Any, state: State) -> Any:
    """Wrap the application: check the key, limit the time, answer errors."""

    async def call(scope: Any, receive: Callable, send: Callable) -> None:
        begun = False

        async def tell(answer: Any) -> None:
            nonlocal begun
            begun = True
            if answer["type"] == "http.response.start":
                headers = [*answer["headers"], (b"x-npllama-arithmetic", how(state))]
                answer = answer | {"headers": headers}
            await send(answer)

        try:
            check_key(scope, state.bounds.key)
            limit = state.bounds.seconds + 2 * GRACE
            await asyncio.wait_for(app(scope, receive, tell), limit)
        except Exception as error:
            if not begun:
                await refusal(error)(scope, receive, tell)
            if not isinstance(error, (Refused, asyncio.TimeoutError)):
                print(f"npllama serve: {error!r:.300}", file=sys.stderr, flush=True)

    return call


def how(state: State) -> bytes:
    """The header that says how the model computes."""
    return state.served.fingerprint.encode() if state.served else b"loading"


def check_key(scope: Mapping[str, Any], key: str | None) -> None:
    """Raise `Refused` if the server needs a key and the client sent a wrong one or none.

    How long it takes does not depend on how much of the key is right.
    """
    if key is None or scope["path"] == "/health":
        return
    given = dict(scope["headers"]).get(b"authorization", b"")
    if not hmac.compare_digest(given, f"Bearer {key}".encode()):
        raise Refused(
            "the API key is missing or wrong", status=401, code="invalid_api_key"
        )


def refusal(error: Exception) -> Response:
    """Answer a request that failed."""
    if isinstance(error, Gone):
        return Response(status_code=499)  # nobody reads it
    if isinstance(error, asyncio.TimeoutError):
        error = Refused("the request took too long", status=503, kind="server_error")
    told = error if isinstance(error, Refused) else broken(RuntimeError(str(error)))
    headers = {"retry-after": "1"} if told.status == 429 else {}
    return json_response(failure(told), told.status, headers)


def json_response(data: Any, status: int = 200, headers: Any = None) -> Response:
    """Data as JSON."""
    return Response(as_json(data), status, headers, media_type="application/json")
