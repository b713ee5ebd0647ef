"""What is to be done: once for a config, and for each of its prompts.

Some preparation lies between the user's words (`options`) and the strategies
(`decoding`): text becomes tokens, limits are resolved, stopping rules and formats
are made.  A `Plan` holds what all prompts share, a `Task` what one prompt needs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.automaton import Machine, compile_regex
from npllama.decoding.common import Job, Process, Stop, room
from npllama.decoding.engine import (
    Grammar,
    compile_grammar,
    compile_schema,
    guide_of,
)
from npllama.decoding.guided import Format, Guide, guided, heal
from npllama.decoding.stopping import (
    Trimmer,
    after_seconds,
    at_strings,
    at_tokens,
    first_of,
)
from npllama.generation.limits import ways
from npllama.generation.options import GenerationConfig
from npllama.generation.pipeline import pipeline
from npllama.generation.steps import Setting
from npllama.text.tokenizer import StreamDecoder, Tokenizer
from npllama.weights import Model

Prompt = str | Sequence[int]
DEFAULT_NEW_TOKENS = 20


class Helpers(NamedTuple):
    """What some strategies need besides the model."""

    assistant: Model | None = None  # drafts for speculative decoding
    amateur: Model | None = None  # from whom contrastive decoding keeps away
    stop: Stop | None = None  # a further rule for stopping


class Plan(NamedTuple):
    """What a config asks of a model, made once for all its prompts."""

    model: Model
    config: GenerationConfig
    helpers: Helpers
    eos: tuple[int, ...]
    guide: Format | None  # of the format that binds the new text
    whole: Stop  # ends a text that is whole: after an end token, or a full format
    stop: Stop  # ends it also for the other reasons that the config names


class Task(NamedTuple):
    """One prompt, ready to be continued."""

    plan: Plan
    given: list[int]  # the prompt as it came
    prompt: list[int]  # the same, perhaps without a token that is to be healed
    healing: Guide | None  # restores the bytes of that token
    healed: str  # the text of that token, with which the new text will begin
    max_new_tokens: int
    row: int = 0  # its number among those that are to be continued

    @property
    def capacity(self) -> int:
        """Positions that the whole text may take."""
        return room(self.plan.model, len(self.prompt), self.max_new_tokens)


#  ---- once for a config ------------------------------------------------------


def plan_of(model: Model, config: GenerationConfig, helpers: Helpers) -> Plan:
    """Make what all prompts of a config share.

    Raises
    ------
    ValueError
        If a format is malformed, text is needed and the model has no tokenizer, or a
        helper does not fit.
    """
    check_helpers(model, config, helpers)
    eos = config.eos_token_id
    eos = tuple(model.config.eos_token_id if eos is None else eos)
    guide, whole, others = None, [at_tokens(eos)], list[Stop]()
    if (compiled := format_of(config)) is not None:
        guide = guide_of(tokenizer_of(model), compiled, eos)
        whole.append(lambda tokens: "format" if guide.finished(tokens) else None)
    if config.stop_strings:
        others.append(at_strings(tokenizer_of(model), config.stop_strings))
    if config.max_time is not None:
        others.append(after_seconds(config.max_time))
    if helpers.stop is not None:
        others.append(helpers.stop)
    stop = first_of(whole + others)
    return Plan(model, config, helpers, eos, guide, first_of(whole), stop)


def check_helpers(model: Model, config: GenerationConfig, helpers: Helpers) -> None:
    """Raise ValueError if a helping model has other tokens, or no use."""
    V = model.config.vocab_size
    for name in ("assistant", "amateur"):
        helper = getattr(helpers, name)
        if helper is not None and helper.config.vocab_size != V:
            raise ValueError(
                f"the {name} knows {helper.config.vocab_size} tokens, the model {V}: "
                "they must share one vocabulary"
            )
    others = ways(config) + ["best_of"] * (config.best_of is not None)
    if helpers.assistant is not None and others:
        raise ValueError(f"an assistant and {others[0]} exclude each other")


def format_of(config: GenerationConfig) -> Machine | Grammar | None:
    """What binds the new text, if the config names a format.

    Raises
    ------
    ValueError
        If the regular expression, the schema or the grammar is malformed.
    """
    if config.json_schema is not None:
        return compile_schema(config.json_schema)
    if config.grammar is not None:
        return compile_grammar(config.grammar)
    return None if config.regex is None else compile_regex(config.regex)


#  ---- for each prompt --------------------------------------------------------


def prepare(plan: Plan, prompt: Prompt) -> Task:
    """Make a task of a prompt.

    Raises
    ------
    ValueError
        If the prompt is empty, is text while the model has no tokenizer, or leaves
        no room for new tokens.
    """
    given = encode_prompt(plan.model, prompt, plan.config.allowed_special)
    if not given:
        raise ValueError("the prompt is empty: give text, or at least one token")
    shortened, healing, healed = given, None, ""
    if plan.config.token_healing:
        shortened, healing = heal(tokenizer_of(plan.model), given)
    if healing is not None:
        taken = tokenizer_of(plan.model).token_bytes(given[-1])
        healed = taken.decode("utf-8", "replace")
    limit = _limit(plan.config, len(shortened))
    room(plan.model, len(shortened), limit)
    return Task(plan, given, shortened, healing, healed, limit)


def _limit(config: GenerationConfig, prompt: int) -> int:
    """New tokens at most: given directly, or by the length of the whole text."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is None:
        return DEFAULT_NEW_TOKENS
    if config.max_length <= prompt:
        raise ValueError(
            f"max_length is {config.max_length}, but the prompt has {prompt} tokens"
        )
    return config.max_length - prompt


def jobs_of(
    tasks: Sequence[Task],
    rngs: Sequence[np.random.Generator],
    cache: KVCache | None = None,
) -> list[Job]:
    """A job for every task; as rows of one batch they share a process."""
    plan, process = tasks[0].plan, process_of(tasks, rngs)
    return [
        Job(
            plan.model,
            task.prompt,
            task.max_new_tokens,
            plan.stop,
            process,
            rng if plan.config.do_sample else None,
            cache,
        )
        for task, rng in zip(tasks, rngs)
    ]


def process_of(
    tasks: Sequence[Task], rngs: Sequence[np.random.Generator] = ()
) -> Process:
    """The pipeline for rows that continue the prompts of these tasks."""
    plan, formats = tasks[0].plan, list[Process]()
    if plan.guide is not None:
        formats = [guided(plan.guide, [len(task.given) for task in tasks])]
    if any(task.healing for task in tasks):
        formats.append(_healing(tasks))
    setting = Setting(
        prompts=[task.prompt for task in tasks],
        eos=plan.eos,
        ends=[task.capacity for task in tasks],
        model=plan.model,
        amateur=plan.helpers.amateur,
        rngs=rngs,
        first=tasks[0].row,
        formats=formats,
    )
    return pipeline(plan.config, setting)


def _healing(tasks: Sequence[Task]) -> Process:
    """Each row restores the bytes that were taken from its own prompt."""

    def process(history: Sequence[Sequence[int]], logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        for b, tokens in enumerate(history):
            task = tasks[b % len(tasks)]
            if task.healing is not None:
                heal_row = guided(task.healing, [len(task.prompt)])
                logits[b] = heal_row([tokens], logits[b : b + 1])[0]
        return logits

    return process


#  ---- text -------------------------------------------------------------------


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer, or ValueError if it came without one."""
    if model.tokenizer is None:
        raise ValueError(
            "this model came without a tokenizer: give token ids, or convert the "
            "checkpoint together with its tokenizer file"
        )
    return model.tokenizer


def is_prompt(prompts: Any) -> bool:
    """Whether this is one prompt rather than a list of them.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, bytes) or not isinstance(prompts, (Sequence, np.ndarray)):
        raise TypeError(
            f"prompts: {type(prompts).__name__} found; text, a list of token ids, or a "
            "list of either is needed"
        )
    return len(prompts) > 0 and not isinstance(prompts[0], (Sequence, np.ndarray))


def encode_prompt(
    model: Model, prompt: Prompt, allowed_special: str | Collection[str] = ()
) -> list[int]:
    """Token ids of a prompt: text as the checkpoint begins it, ids as they are given.

    A special token stands in a text by its name only where that is allowed.

    Raises
    ------
    TypeError
        If it is neither text nor whole numbers.
    ValueError
        If it is text and the model has no tokenizer, an id is not a token, or a name
        is allowed that no special token has.
    """
    if isinstance(prompt, str):
        tokenizer = tokenizer_of(model)
        return _embedded(
            model, tokenizer.encode(prompt, allowed_special=allowed_special)
        )
    if isinstance(prompt, bytes):
        raise TypeError("a prompt is text or token ids, found bytes: decode them")
    V = model.config.vocab_size
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
            raise TypeError(f"a prompt is text or token ids, found {token!r:.60} in it")
        if not 0 <= token < V:
            raise ValueError(
                f"the prompt: {token} is outside the vocabulary, 0 to {V - 1}"
            )
    return [int(token) for token in prompt]


def _embedded(model: Model, tokens: list[int]) -> list[int]:
    """Tokens of a text; ValueError if the embedding has no row for one of them."""
    V = model.config.vocab_size
    for token in tokens:
        if token >= V:
            name = model.tokenizer.piece(token)
            raise ValueError(
                f"the prompt: {name!r} is token {token}, outside the embedding's "
                f"0 to {V - 1}"
            )
    return tokens


class Shower:
    """Decodes new tokens, and holds back what a stop string may still remove.

    What all calls of `push` and then `flush` return is the text of the task; with
    `echo` it begins with the prompt.  A model without a tokenizer shows nothing.
    """

    def __init__(self, task: Task):
        config, tokenizer = task.plan.config, task.plan.model.tokenizer
        echo = config.echo and tokenizer is not None
        self.decoder = tokenizer and StreamDecoder(tokenizer, continuing=not echo)
        # A prompt may end within a character, so one decoder reads prompt and text.
        self.prompt = "".join(map(self.decoder.push, task.prompt)) if echo else ""
        self.skip = 0 if echo else len(task.healed)
        strings = () if config.include_stop_str_in_output else config.stop_strings
        self.trimmer = Trimmer(strings) if strings else None
        # An end token is no part of a text that keeps to a format.
        self.silent = task.plan.eos if task.plan.guide is not None else ()

    def push(self, token: int) -> str:
        """What can be shown for certain now."""
        if self.decoder is None or token in self.silent:
            return ""
        return self._show(self.decoder.push(token))

    def flush(self) -> str:
        """What is left at the end."""
        if self.decoder is None:
            return ""
        text = self._show(self.decoder.flush())
        return text + (self.trimmer.flush() if self.trimmer else "")

    def _show(self, text: str) -> str:
        text, self.skip = text[self.skip :], max(0, self.skip - len(text))
        prompt, self.prompt = self.prompt, ""
        return prompt + (self.trimmer.push(text) if self.trimmer else text)


def text_of(task: Task, tokens: Sequence[int]) -> str:
    """The text to report for new tokens."""
    shower = Shower(task)
    return "".join(map(shower.push, tokens)) + shower.flush()
