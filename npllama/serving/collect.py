"""From events to whole texts, for callers that wait for the end.

`answers` runs any number of requests through an engine.  It submits a few at a time,
so that the list of requests may be longer than memory, and yields each answer as soon
as it is whole: short ones overtake long ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from npllama.decoding.common import ranked
from npllama.generation.generate import Generation
from npllama.generation.options import GenerationConfig
from npllama.serving.engine import Engine
from npllama.serving.requests import Request, copies
from npllama.serving.writing import Event


class Answer(NamedTuple):
    """The outcome of a request."""

    number: int  # its place among the requests, from 0
    texts: list[Generation]  # as many as were asked for; none if there was an error
    error: Exception | None = None


def text_of(events: Sequence[Event], config: GenerationConfig) -> Generation:
    """Put one text together from its events."""
    first, last = events[0], events[-1]
    logprobs = [event.logprob for event in events if event.logprob is not None]
    return Generation(
        first.prompt_tokens or [],
        [event.token for event in events if event.token is not None],
        "".join(event.text for event in events),
        last.reason or "",
        sum(entry.logprob for entry in logprobs) if logprobs else None,
        None if config.logprobs is None else logprobs,
        first.prompt_logprobs,
    )


def texts_of(events: Sequence[Event], config: GenerationConfig) -> list[Generation]:
    """Put the texts of a request together from its events; with `best_of`, the likeliest.

    Raises
    ------
    Exception
        The error that ended one of them.
    """
    for event in events:
        if event.error is not None:
            raise event.error
    written, wanted = copies(config), config.num_return_sequences
    texts = [
        text_of([event for event in events if event.choice == choice], config)
        for choice in range(written)
    ]
    if written > wanted:
        texts = ranked(texts)
    return texts[:wanted]


def answers(
    engine: Engine, requests: Iterable[Request], ahead: int | None = None
) -> Iterator[Answer]:
    """Answer all requests, each as soon as it is whole.

    Parameters
    ----------
    engine : Engine
        Nobody else may use it meanwhile.
    requests : iterable of Request
        Read as they are needed.
    ahead : int, optional
        Requests that are submitted at a time; twice as many as run by default.

    Yields
    ------
    Answer
        One for every request; one that is refused or fails has an error.
    """
    ahead = ahead or 2 * engine.limits.requests
    waiting, left = enumerate(requests), True
    numbers: dict[int, tuple[int, Request]] = {}
    events: dict[int, list[Event]] = {}
    while left or numbers:
        while left and len(numbers) < ahead:
            number, request = next(waiting, (0, None))
            left = request is not None
            try:
                if left:
                    id = engine.submit(request)
                    numbers[id], events[id] = (number, request), []
            except (ValueError, TypeError) as error:
                yield Answer(number, [], error)
        for event in engine.step():
            events[event.id].append(event)
        for id in [id for id, (_, r) in numbers.items() if _whole(events[id], r)]:
            number, request = numbers.pop(id)
            yield _answer(number, events.pop(id), request.config)


def _whole(events: Sequence[Event], request: Request) -> bool:
    ended = sum(event.reason is not None for event in events)
    return ended == copies(request.config)


def _answer(number: int, events: list[Event], config: GenerationConfig) -> Answer:
    try:
        return Answer(number, texts_of(events, config))
    except Exception as error:
        return Answer(number, [], error)
