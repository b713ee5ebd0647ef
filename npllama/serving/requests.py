"""Requests to the engine.

A request asks for one text, or for several samples of one prompt.  Each text has its
own process, its own source of chance and its own rule for ending, made as `generate`
makes them.

All ways that grow one text work here: greedy search, sampling with all that shapes a
distribution, formats, and guesses by prompt lookup or by a draft model.  Searches that
compare texts, and strategies that read the model's inner states, have loops of their
own; they are refused, and so is a request that could never be served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.common import ending, longest
from npllama.decoding.speculative import Draft
from npllama.generation.options import GenerationConfig
from npllama.generation.strategies import draft
from npllama.generation.task import (
    Helpers,
    Prompt,
    Shower,
    Task,
    is_prompt,
    jobs_of,
    plan_of,
    prepare,
)
from npllama.serving.writing import Writing
from npllama.weights import Model


class Request(NamedTuple):
    """One prompt, and how to continue it."""

    prompt: Prompt
    config: GenerationConfig = GenerationConfig()
    rng: np.random.Generator | None = None  # a fresh one by default
    helpers: Helpers = Helpers()
    salt: str = ""  # only requests of one salt share pages
    logits: bool = False  # whether the events shall hold the model's logits
    adapter: str = ""  # the name of one that the engine has; "": the model as it is


class Adapters(Protocol):
    """Adapters by name, of which every text of a pass may use another."""

    def __contains__(self, name: object) -> bool: ...

    def beside(self, model: Model, rows: np.ndarray, logits: np.ndarray) -> Model:
        """The model for one pass: names for (T,) positions and for (M,) logits."""


def copies(config: GenerationConfig) -> int:
    """The number of texts that the engine writes for one prompt."""
    return config.best_of or config.num_return_sequences


def received(
    model: Model, pool: KVCache, request: Request, numbers: Iterator[int]
) -> Writing:
    """Make a request ready; its further texts are the `others` of the first.

    Parameters
    ----------
    model : Model
    pool : KVCache
    request : Request
    numbers : iterator of int
        New numbers; the first is that of the request and of its first text.

    Raises
    ------
    ValueError, TypeError
        As `generate`; also if the request asks for another way of writing, or its
        prompt leaves no room in the pool.
    """
    check_request(request)
    plan = plan_of(model, request.config, request.helpers)
    task, room = prepare(plan, request.prompt), longest(model, pool)
    if len(task.job.prompt) >= room:
        raise ValueError(
            f"the prompt has {len(task.job.prompt)} tokens; all pages together hold "
            f"{room}, and at least one must be left to generate"
        )
    rng = np.random.default_rng() if request.rng is None else request.rng
    number = next(numbers)
    first, *others = [
        begun(task._replace(row=choice), child, pool, request)
        for choice, child in enumerate(rng.spawn(copies(request.config)))
    ]
    for text in first, *others:
        text.request = number
        text.id = number if text is first else next(numbers)
    first.others = tuple(others)
    return first


def check_request(request: Request) -> None:
    """Raise TypeError or ValueError if the engine cannot serve this request."""
    if not isinstance(request, Request):
        raise TypeError(f"request: {type(request).__name__} found, not a Request")
    kinds = {"config": GenerationConfig, "helpers": Helpers, "salt": str}
    for name, kind in (kinds | {"adapter": str}).items():
        value = getattr(request, name)
        if not isinstance(value, kind):
            found = type(value).__name__
            raise TypeError(f"{name}: {found} found, not {kind.__name__}")
    if not isinstance(request.rng, (np.random.Generator, type(None))):
        raise TypeError(
            f"rng: {type(request.rng).__name__} found; see numpy.random.default_rng"
        )
    if not is_prompt(request.prompt) and len(request.prompt):
        raise TypeError("a request has one prompt: submit several one by one")
    selected = request.config.selected
    others = [name for name in selected if name != "prompt_lookup_num_tokens"]
    if others:
        raise ValueError(
            f"{others[0]} has a loop of its own, and cannot be run beside other texts: "
            "use generate"
        )


def salt_of(request: Request) -> str:
    """What keeps pages apart: keys of another adapter are others, too.

    No two pairs of adapter and salt give the same.
    """
    if not request.adapter and not request.salt.startswith("["):
        return request.salt
    return json.dumps([request.adapter, request.salt])


def check_adapter(request: Request, adapters: Adapters | None) -> None:
    """Raise ValueError if a request names an adapter that is not there."""
    name = request.adapter
    if name and (adapters is None or name not in adapters):
        raise ValueError(f"adapter: {name!r:.80} is not one that this engine has")


def begun(
    task: Task, rng: np.random.Generator, pool: KVCache, request: Request
) -> Writing:
    """A text that consists of its prompt so far."""
    config, (job,) = request.config, jobs_of([task], [rng])
    lookup, prompt = config.prompt_lookup_num_tokens, list(task.job.prompt)
    guesses = bool(lookup) or request.helpers.assistant is not None
    return Writing(
        id=0,
        request=0,
        choice=task.row,
        task=task,
        job=job,
        ends=ending(job, pool),
        shower=Shower(task),
        salt=salt_of(request),
        adapter=request.adapter,
        keep_logits=request.logits,
        propose=draft(task, rng) if guesses else None,
        guesses=lookup or config.num_assistant_tokens,
        last=min(len(prompt) + job.max_new_tokens, longest(job.model, pool)),
        tokens=prompt,
        seen=0 if config.prompt_logprobs else len(prompt) - 1,
        draft=None if guesses else Draft([]),
        prompt_logprobs=[None] if config.prompt_logprobs else None,
    )
