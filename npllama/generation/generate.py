"""One interface to all of generation: text in, text out.

`generate` takes one prompt or several, as text or as token ids, and a
`GenerationConfig`; `stream` yields the text as it grows.  The config selects the
strategy, as in transformers: beams if `num_beams` is above 1, contrastive search if
`penalty_alpha` is set, and so on; otherwise sampling or greedy search.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.common import Step, ranked
from npllama.decoding.logprobs import TokenLogprob, text_logprobs, token_logprob
from npllama.generation.options import GenerationConfig, with_options
from npllama.generation.pipeline import removers
from npllama.generation.strategies import search, write
from npllama.generation.task import (
    Helpers,
    Prompt,
    Shower,
    Task,
    is_prompt,
    plan_of,
    prepare,
)
from npllama.generation.wishes import options_of
from npllama.sampling import NothingLeft
from npllama.weights import Model

NO_HELPERS = Helpers()


class Generation(NamedTuple):
    """One finished text."""

    prompt_tokens: list[int]
    tokens: list[int]  # the new ones, with the one that ended the text
    text: str  # of the new tokens, without special ones
    finish_reason: str  # "eos", "length", "context", "stop", "time", "format"
    score: float | None = None  # what the strategy ranks texts by, if it does
    logprobs: list[TokenLogprob] | None = None
    # One per token of the prompt; nothing comes before the first, so that is None.
    prompt_logprobs: list[TokenLogprob | None] | None = None
    speculation: dict[str, int] | None = None  # rounds, and tokens drafted, accepted

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return (
            f"Generation({text!r}, {len(self.tokens)} tokens, {self.finish_reason!r})"
        )


def generate(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
    helpers: Helpers = NO_HELPERS,
    cache: KVCache | None = None,
    **options: Any,
) -> Generation | list[Generation]:
    """Continue one prompt, or several side by side.

    Parameters
    ----------
    model : Model
    prompts : str, or token ids, or a list of either
        Text is encoded with a beginning-of-sequence token; ids are taken as given.
    config : GenerationConfig
        By default the checkpoint's ``generation_config.json``, if it has one.
    rng : np.random.Generator
        The source of chance; a new one by default.  Each row draws from its own
        child of it, so its text does not depend on its neighbours.
    helpers : Helpers
        A draft model, an amateur, another stopping rule.
    cache : KVCache
        Of one row, for one text of one prompt: as for `pieces`.
    **options
        Fields of a `GenerationConfig` that replace those of `config`, such as
        ``max_new_tokens=5``.

    Returns
    -------
    Generation, or a list of them
        A list if there are several prompts, or several texts per prompt
        (``num_return_sequences``).  Texts of the first prompt come first; a search
        may find fewer than asked for.

    Raises
    ------
    ValueError
        If a prompt is empty or too long, a token is outside the vocabulary, or the
        options leave no token to choose.
    TypeError
        If a prompt is neither text nor token ids, or another argument has the wrong
        type.
    """
    config, rng = _asked(model, config, rng, options)
    single = is_prompt(prompts)
    given: Sequence[Any] = [prompts] if single else prompts
    if not len(given):
        raise ValueError("prompts: the list is empty; give at least one")
    if cache is not None and (len(given) > 1 or most_texts(config) > 1):
        raise ValueError("a cache is for one text of one prompt, without a search")
    plan = plan_of(model, config, helpers)
    tasks = [prepare(plan, prompt) for prompt in given]
    wanted = config.num_return_sequences
    copies = config.best_of or wanted
    observe = config.logprobs is not None or copies > wanted
    try:
        if config.num_beams > 1:
            texts = searched(tasks, rng)
        else:
            rows = [task for task in tasks for _ in range(copies)]
            rows = [task._replace(row=row) for row, task in enumerate(rows)]
            steps = [list[Step]() for _ in rows]
            entries = [list[TokenLogprob]() for _ in rows]
            for step in write(rows, rng.spawn(len(rows)), cache):
                if observe and step.logits is not None:
                    entries[step.row].append(entry_of(step, config.logprobs or 0))
                steps[step.row].append(step._replace(logits=None, processed=None))
            texts = [generation_of(*row) for row in zip(rows, steps, entries)]
    except NothingLeft as error:
        raise naming_options(error, config, len(tasks)) from None
    texts = likeliest(texts, copies, wanted) if copies > wanted else texts
    return texts[0] if single and wanted == 1 else texts


class Piece(NamedTuple):
    """One step of a growing text."""

    token: int
    text: str  # whole characters that can no longer change; may be empty
    reason: str | None  # why the text ends here, if it does


def pieces(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
    cache: KVCache | None = None,
    helpers: Helpers = NO_HELPERS,
    **options: Any,
) -> Iterator[Piece]:
    """Continue one prompt, yielding every token as it is decided.

    Parameters
    ----------
    cache : KVCache
        One row that may hold a beginning of the prompt, as in a chat.  Lookahead
        decoding and contrastive search make their own instead.

    Yields
    ------
    Piece
        Their texts, joined, are the `text` that `generate` returns.

    Raises
    ------
    ValueError
        As `generate`; also for several texts, for log-probabilities, and for beams,
        since a search knows its text only at the end.
    """
    config, rng = _asked(model, config, rng, options)
    if not is_prompt(prompt):
        raise TypeError("a stream is of one prompt; several are for generate")
    if most_texts(config) > 1:
        raise ValueError("beams and several texts cannot be streamed; use generate")
    if config.logprobs is not None or config.prompt_logprobs:
        raise ValueError("log-probabilities are not streamed; use generate")
    task = prepare(plan_of(model, config, helpers), prompt)
    shower = Shower(task)
    try:
        for step in write([task], rng.spawn(1), cache):
            for token in step.tokens[:-1]:
                yield Piece(token, shower.push(token), None)
            last = step.tokens[-1]
            yield Piece(last, shower.push(last, step.reason), step.reason)
    except NothingLeft as error:
        raise naming_options(error, config) from None


def stream(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
    helpers: Helpers = NO_HELPERS,
    **options: Any,
) -> Iterator[str]:
    """Continue one prompt, yielding the new text as it grows.

    Every piece is whole characters; joined, they are the `text` that `generate`
    returns.

    Yields
    ------
    str
    """
    for piece in pieces(model, prompt, config, rng, None, helpers, **options):
        if piece.text:
            yield piece.text


def _asked(
    model: Model,
    config: GenerationConfig | None,
    rng: np.random.Generator | None,
    options: Mapping[str, Any],
) -> tuple[GenerationConfig, np.random.Generator]:
    """Check the arguments; fill in the defaults of config and rng."""
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
    return with_options(config, options) if options else config, rng


def most_texts(config: GenerationConfig) -> int:
    """How many texts of one prompt are written side by side."""
    return max(config.num_beams, config.best_of or config.num_return_sequences)


def naming_options(
    error: NothingLeft, config: GenerationConfig, prompts: int = 1
) -> ValueError:
    """The same error, naming the prompt and the options that removed every token."""
    copies = (
        1 if config.num_beams > 1 else config.best_of or config.num_return_sequences
    )
    where = f"prompt {error.row // copies}: " if prompts > 1 else ""
    names = removers(config)
    by = f"every token is removed by {names}" if names else str(error)
    return NothingLeft(f"{where}{by}; no text can go on")


#  ---- whole texts ------------------------------------------------------------


def searched(tasks: Sequence[Task], rng: np.random.Generator) -> list[Generation]:
    """The best texts of a search for each prompt."""
    texts: list[Generation] = []
    for row, (task, child) in enumerate(zip(tasks, rng.spawn(len(tasks)))):
        try:
            best = search(task._replace(row=row), child)
        except NothingLeft as error:
            error.row = row
            raise
        for text in best[: task.plan.config.num_return_sequences]:
            whole = generation_of(task, [Step(text.tokens, text.reason)])
            texts.append(whole._replace(score=text.score))
    return texts


def likeliest(texts: list[Generation], copies: int, wanted: int) -> list[Generation]:
    """For each prompt, the texts with the largest summed log-probability, best first.

    `copies` texts of the first prompt come first; `wanted` of them are returned.
    """
    groups = [texts[i : i + copies] for i in range(0, len(texts), copies)]
    return [text for group in groups for text in ranked(group)[:wanted]]


def entry_of(step: Step, top: int) -> TokenLogprob:
    """How likely the token of a step was."""
    return token_logprob(step.logits, step.tokens[0], top, step.processed)


def generation_of(
    task: Task, steps: Sequence[Step], entries: Sequence[TokenLogprob] = ()
) -> Generation:
    """Report a text; compute the log-probabilities that are missing."""
    config, model, prompt = task.plan.config, task.plan.model, task.job.prompt
    tokens = [token for step in steps for token in step.tokens]
    shower, reason = Shower(task), steps[-1].reason
    shown = [shower.push(token) for token in tokens[:-1]]
    shown.append(shower.push(tokens[-1], reason))
    score = sum(entry.logprob for entry in entries) if entries else None
    logprobs = prompt_logprobs = speculation = None
    if config.logprobs is not None:
        whole, top = [*prompt, *tokens], config.logprobs
        logprobs = list(entries) or text_logprobs(model, whole, len(prompt), top)
    if config.prompt_logprobs:
        top = config.logprobs or 0
        prompt_logprobs = [None, *text_logprobs(model, task.given, 1, top)]
    if drafted := sum(step.drafted for step in steps):
        accepted = sum(step.accepted for step in steps)
        speculation = {"rounds": len(steps), "drafted": drafted, "accepted": accepted}
    return Generation(
        task.given,
        tokens,
        "".join(shown),
        reason,
        score,
        logprobs,
        prompt_logprobs,
        speculation,
    )
