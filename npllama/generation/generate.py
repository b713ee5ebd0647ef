"""One face for all of generation: text in, text out.

`generate` takes one prompt or several, as text or as token ids, and a
`GenerationConfig` that says how; `stream` yields the text as it grows.  Which
strategy runs follows from the config, as in transformers: beams if `num_beams` is
above 1, contrastive search if `penalty_alpha` is set, and so on; without any of
them, sampling or greedy search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.common import Hypothesis
from npllama.decoding.logprobs import TokenLogprob, text_logprobs, token_logprob
from npllama.decoding.sample import sample
from npllama.decoding.speculative import Round
from npllama.generation.options import GenerationConfig, options_of
from npllama.generation.strategies import Growth, growing, searching
from npllama.generation.task import (
    Helpers,
    Prompt,
    Shower,
    Task,
    echoed,
    is_prompt,
    prepare,
    process_of,
    text_of,
)
from npllama.weights import Model

NO_HELPERS = Helpers()


class Generation(NamedTuple):
    """One finished text."""

    prompt_tokens: list[int]
    tokens: list[int]  # the new ones, one that ended the text included
    text: str  # of the new tokens, without special ones
    finish_reason: str  # "eos", "length", "context", "stop", "time", "format"
    score: float | None = None  # what the strategy ranked by, if it ranked
    logprobs: list[TokenLogprob] | None = None
    # One per token of the prompt; nothing is before the first, so that is None.
    prompt_logprobs: list[TokenLogprob | None] | None = None
    speculation: dict[str, int] | None = None  # rounds, and tokens drafted, accepted


def generate(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
    helpers: Helpers = NO_HELPERS,
) -> Generation | list[Generation]:
    """Continue one prompt, or several side by side.

    Parameters
    ----------
    model : Model
    prompts : str, or token ids, or a list of either
        Text is encoded with a beginning-of-sequence token; ids are taken as given.
    config : GenerationConfig
        By default what the checkpoint's ``generation_config.json`` says, if any.
    rng : np.random.Generator
        Where chance comes from; a fresh one by default.  Each row draws from a
        child of its own, so its text does not depend on its neighbours.
    helpers : Helpers
        A draft model, an amateur, a rule of one's own for stopping.

    Returns
    -------
    Generation, or a list of them
        A list if several prompts were given, or several texts asked for
        (``num_return_sequences``): then those of the first prompt come first, and
        may be fewer if a search finds no more.

    Raises
    ------
    ValueError
        If a prompt is empty or too long, a token is outside the vocabulary, or the
        options leave no token to choose.
    TypeError
        If a prompt is neither text nor token ids, or another argument not what it
        should be.
    """
    config, rng = _asked(model, config, rng)
    single = is_prompt(prompts)
    texts: Sequence[Any] = [prompts] if single else prompts
    if not len(texts):
        raise ValueError("prompts: the list is empty; give at least one")
    tasks = numbered([prepare(model, text, config, helpers) for text in texts])
    search, grow = searching(config), growing(config, helpers)
    if search is not None:
        found = [
            generation_of(task, hypothesis)
            for task, child in zip(tasks, rng.spawn(len(tasks)))
            for hypothesis in search(task, child)[: config.num_return_sequences]
        ]
    elif grow is not None:
        wanted = config.num_return_sequences
        copies = numbered([task for task in tasks for _ in range(wanted)])
        children = rng.spawn(len(copies))
        found = [grown(task, grow, child) for task, child in zip(copies, children)]
    else:
        found = sample_batch(tasks, rng)
    return found[0] if single and config.num_return_sequences == 1 else found


class Piece(NamedTuple):
    """One step of a growing text."""

    token: int
    text: str  # whole characters that are certain now; may be empty
    reason: str | None  # why the text ends here, if it does


def pieces(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
    cache: KVCache | None = None,
    helpers: Helpers = NO_HELPERS,
) -> Iterator[Piece]:
    """Continue one prompt, yielding every token as it is decided.

    Parameters
    ----------
    cache : KVCache
        One row that may hold a beginning of the prompt, as in a chat; of use to
        greedy search and sampling only.

    Yields
    ------
    Piece

    Raises
    ------
    ValueError
        As `generate`; also if several texts are asked for, a strategy that knows
        its text only at the end, or log-probabilities.
    """
    config, rng = _asked(model, config, rng)
    if not is_prompt(prompt):
        raise TypeError("a stream is of one prompt; several are for generate")
    if searching(config) is not None or max(_copies(config)) > 1:
        raise ValueError("beams and several texts cannot be streamed; use generate")
    if config.logprobs is not None or config.prompt_logprobs:
        raise ValueError("log-probabilities are not streamed; use generate")
    task = prepare(model, prompt, config, helpers)
    grow = growing(config, helpers)
    child = rng.spawn(1)[0]
    rounds = grow(task, child) if grow else sampled(task, child, cache)
    shower = Shower(task)
    for round in rounds:
        for i, token in enumerate(round.tokens):
            reason = round.reason if i == len(round.tokens) - 1 else None
            text = shower.push(token) + (shower.flush() if reason else "")
            yield Piece(token, text, reason)


def stream(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
    helpers: Helpers = NO_HELPERS,
) -> Iterator[str]:
    """Continue one prompt, yielding the new text as it grows.

    Every piece is whole characters; joined, they are the `text` that `generate`
    returns.

    Yields
    ------
    str
    """
    config, rng = _asked(model, config, rng)
    grown = pieces(model, prompt, config, rng, helpers=helpers)
    for i, piece in enumerate(grown):
        if i == 0 and config.echo:
            yield echoed(model, prompt)
        if piece.text:
            yield piece.text


def _asked(
    model: Model, config: GenerationConfig | None, rng: np.random.Generator | None
) -> tuple[GenerationConfig, np.random.Generator]:
    """Options and source of chance, or their defaults; TypeError if they are none."""
    if not isinstance(model, Model):
        raise TypeError(f"model: {type(model).__name__} found; see npllama.load")
    config = GenerationConfig(**options_of(model)) if config is None else config
    rng = np.random.default_rng() if rng is None else rng
    if not isinstance(config, GenerationConfig):
        raise TypeError(f"config: {type(config).__name__} found, not GenerationConfig")
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng: {type(rng).__name__} found; see numpy.random.default_rng"
        )
    return config, rng


def numbered(tasks: Sequence[Task]) -> list[Task]:
    """The same tasks, each with its number."""
    return [task._replace(row=row) for row, task in enumerate(tasks)]


#  ---- sampling and greedy search, side by side -------------------------------


def _copies(config: GenerationConfig) -> tuple[int, int]:
    """How many texts to draw per prompt, and how many of them to return."""
    wanted = config.num_return_sequences
    return config.best_of or wanted, wanted


def sampled(
    task: Task, rng: np.random.Generator, cache: KVCache | None
) -> Iterator[Round]:
    """One row of `sample`, a token a round."""
    rngs = [rng] if task.config.do_sample else None
    process = process_of([task], [rng])
    limit = task.max_new_tokens
    steps = sample(task.model, [task.prompt], task.stop, limit, process, rngs, cache)
    for step in steps:
        token = step.tokens[0]
        assert token is not None
        yield Round([token], 0, 0, step.reasons[0])


def sample_batch(tasks: list[Task], rng: np.random.Generator) -> list[Generation]:
    """Continue all prompts in one batch, each as often as the config asks.

    With `best_of`, those of a prompt whose tokens have the largest summed
    log-probability are returned, best first.
    """
    config = tasks[0].config
    copies, wanted = _copies(config)
    rows = [task for task in tasks for _ in range(copies)]
    rngs = rng.spawn(len(rows))
    tokens: list[list[int]] = [[] for _ in rows]
    reasons = [""] * len(rows)
    seen: list[list[TokenLogprob]] = [[] for _ in rows]
    observe = config.logprobs is not None or copies > wanted
    for step in sample(
        rows[0].model,
        [task.prompt for task in rows],
        rows[0].stop,
        [task.max_new_tokens for task in rows],
        process_of(rows, rngs),
        rngs if config.do_sample else None,
    ):
        for b, token in enumerate(step.tokens):
            if token is None:
                continue
            tokens[b].append(token)
            reasons[b] = step.reasons[b] or ""
            if observe:
                top, processed = config.logprobs or 0, step.processed[b]
                seen[b].append(token_logprob(step.raw[b], token, top, processed))
    found = []
    for first in range(0, len(rows), copies):
        group = list(range(first, first + copies))
        if copies > wanted:
            group.sort(key=lambda b: -sum(entry.logprob for entry in seen[b]))
        for b in group[:wanted]:
            score = sum(entry.logprob for entry in seen[b]) if observe else None
            hypothesis = Hypothesis(tokens[b], score, reasons[b])
            found.append(generation_of(rows[b], hypothesis, seen[b]))
    return found


def grown(task: Task, grow: Growth, rng: np.random.Generator) -> Generation:
    """Run a strategy that grows one text to its end."""
    rounds = list(grow(task, rng))
    tokens = [token for round in rounds for token in round.tokens]
    hypothesis = Hypothesis(tokens, None, rounds[-1].reason or "length")
    drafted, accepted = sum(r.drafted for r in rounds), sum(r.accepted for r in rounds)
    counts = {"rounds": len(rounds), "drafted": drafted, "accepted": accepted}
    return generation_of(task, hypothesis)._replace(
        speculation=counts if drafted else None
    )


def generation_of(
    task: Task, found: Hypothesis, seen: list[TokenLogprob] | None = None
) -> Generation:
    """Report a text; log-probabilities that were not seen are worked out."""
    config = task.config
    whole = [*task.prompt, *found.tokens]
    logprobs = prompt_logprobs = None
    if config.logprobs is not None:
        top, start = config.logprobs, len(task.prompt)
        logprobs = seen or text_logprobs(task.model, whole, start, top)
    if config.prompt_logprobs:
        top = config.logprobs or 0
        prompt_logprobs = [None, *text_logprobs(task.model, task.given, 1, top)]
    return Generation(
        task.given,
        found.tokens,
        text_of(task, found.tokens),
        found.reason,
        found.score,
        logprobs,
        prompt_logprobs,
    )
