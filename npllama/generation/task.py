"""From a config and its prompts to jobs.

Some preparation is needed between options and strategies: text becomes tokens, limits
are resolved, stopping rules and formats are made.  All prompts share a `Plan`, which is
made once for a config; each prompt has a `Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.automaton import Machine, compile_regex
from npllama.decoding.common import Job, Process, Stop
from npllama.decoding.engine import (
    Grammar,
    compile_grammar,
    compile_schema,
    guide_of,
)
from npllama.decoding.guided import Format, Guide, guided, heal
from npllama.decoding.speculative import Propose
from npllama.decoding.stopping import Trimmer, after_seconds, at_strings
from npllama.generation.options import GenerationConfig
from npllama.generation.pipeline import pipeline
from npllama.generation.steps import Setting
from npllama.text.tokenizer import StreamDecoder, Tokenizer
from npllama.weights import Model

Prompt = str | Sequence[int]
DEFAULT_NEW_TOKENS = 20


class Helpers(NamedTuple):
    """Models and rules that some strategies need besides the model."""

    assistant: Model | None = None  # drafts for speculative decoding
    amateur: Model | None = None  # for contrastive decoding
    stop: Stop | None = None  # a further rule for stopping
    # From the assistant's job to its guesses; `speculative.assisted` by default.
    guess: Callable[[Job], Propose] | None = None


class Plan(NamedTuple):
    """A model and a config, with all that is made once for its prompts."""

    model: Model
    config: GenerationConfig
    helpers: Helpers
    eos: tuple[int, ...]
    guide: Format | None  # of the format that binds the new text
    rules: tuple[Stop, ...]  # further reasons to end a text


class Task(NamedTuple):
    """One prompt, ready to be continued."""

    plan: Plan
    given: list[int]  # the prompt as it came
    job: Job  # its prompt may lack a last token, which is to be healed
    capacity: int  # tokens that prompt and text may have together
    healing: Guide | None  # restores the bytes of that token
    healed: str  # the text of that token; the new text begins with it
    row: int = 0  # its number among those that are to be continued


#  ---- once for a config ------------------------------------------------------


def plan_of(model: Model, config: GenerationConfig, helpers: Helpers) -> Plan:
    """Prepare what all prompts of a config share.

    Raises
    ------
    ValueError
        If a format is malformed, text is needed and the model has no tokenizer, or a
        helper does not fit.
    """
    if any(helper is not None for helper in helpers):
        check_helpers(model, config, helpers)
    eos = config.eos_token_id
    eos = tuple(model.config.eos_token_id if eos is None else eos)
    guide, rules = None, list[Stop]()
    if (config.regex, config.json_schema, config.grammar) != (None, None, None):
        guide = guide_of(tokenizer_of(model), format_of(config), eos)
    if config.stop_strings:
        rules.append(at_strings(tokenizer_of(model), config.stop_strings))
    if config.max_time is not None:
        rules.append(after_seconds(config.max_time))
    if helpers.stop is not None:
        rules.append(helpers.stop)
    return Plan(model, config, helpers, eos, guide, tuple(rules))


def reason_to_end(plan: Plan, tokens: Sequence[int]) -> str | None:
    """Why a text ends here: an end token, a completed format, or a rule."""
    if tokens and tokens[-1] in plan.eos:
        return "eos"
    if plan.guide is not None and plan.guide.finished(tokens):
        return "format"
    return next(filter(None, (rule(tokens) for rule in plan.rules)), None)


def check_helpers(model: Model, config: GenerationConfig, helpers: Helpers) -> None:
    """Raise ValueError if a helper has another vocabulary, or cannot be used."""
    V = model.config.vocab_size
    for name in ("assistant", "amateur"):
        helper = getattr(helpers, name)
        if helper is not None and helper.config.vocab_size != V:
            raise ValueError(
                f"the {name} knows {helper.config.vocab_size} tokens, the model {V}: "
                "they must share one vocabulary"
            )
    others = config.selected + ["best_of"] * (config.best_of is not None)
    if helpers.assistant is not None and others:
        raise ValueError(f"an assistant and {others[0]} exclude each other")


def format_of(config: GenerationConfig) -> Machine | Grammar | None:
    """The format that binds the new text, if the config names one.

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
    """Prepare a prompt.

    Raises
    ------
    ValueError
        If the prompt is empty, is text while the model has no tokenizer, or leaves
        no room for new tokens.
    """
    given = encode_prompt(plan.model, prompt, plan.config.allowed_special)
    if not given:
        raise ValueError("the prompt is empty: give text, or at least one token")
    prompt, healing, healed = given, None, ""
    if plan.config.token_healing:
        prompt, healing = heal(tokenizer_of(plan.model), given)
    if healing is not None:
        taken = tokenizer_of(plan.model).token_bytes(given[-1])
        healed = taken.decode("utf-8", "replace")
    limit = plan.config.max_new_tokens
    if limit is None:
        limit = limit_of(plan.config, len(prompt))
    job = Job(plan.model, prompt, limit, partial(reason_to_end, plan))
    return Task(plan, given, job, job.capacity, healing, healed)


def limit_of(config: GenerationConfig, prompt: int) -> int:
    """New tokens at most, by the length of the whole text."""
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
    plan, formats = tasks[0].plan, list[Process]()
    if plan.guide is not None:
        formats = [guided(plan.guide, [len(task.given) for task in tasks])]
    if any(task.healing for task in tasks):
        formats.append(partial(heal_rows, tasks))
    setting = Setting(
        config=plan.config,
        prompts=[task.job.prompt for task in tasks],
        eos=plan.eos,
        ends=[task.capacity for task in tasks],
        model=plan.model,
        amateur=plan.helpers.amateur,
        rngs=rngs,
        first=tasks[0].row,
        formats=formats,
        memory={},
    )
    names = plan.config.order
    if setting.amateur is None:
        names = [name for name in names if name != "contrastive_alpha"]
    process, draws = partial(pipeline, setting, names), plan.config.do_sample
    return [
        task.job._replace(process=process, rng=rng if draws else None, cache=cache)
        for task, rng in zip(tasks, rngs)
    ]


def heal_rows(
    tasks: Sequence[Task], history: Sequence[Sequence[int]], logits: np.ndarray
) -> np.ndarray:
    """Let each row restore the bytes that were taken from its own prompt."""
    logits = logits.copy()
    for b, tokens in enumerate(history):
        task = tasks[b % len(tasks)]
        if task.healing is not None:
            heal_row = guided(task.healing, [len(task.job.prompt)])
            logits[b] = heal_row([tokens], logits[b : b + 1])[0]
    return logits


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
    """Token ids of a prompt; text begins as the checkpoint says, ids stay as given.

    Names of special tokens in a text count only if they are allowed.

    Raises
    ------
    TypeError
        If it is neither text nor whole numbers.
    ValueError
        If it is text and the model has no tokenizer, if an id is not a token, or if
        an allowed name is not that of a special token.
    """
    V = model.config.vocab_size
    if isinstance(prompt, str):
        tokenizer = tokenizer_of(model)
        tokens = tokenizer.encode(prompt, allowed_special=allowed_special)
        for token in tokens:
            if token >= V:
                raise ValueError(
                    f"the prompt: {tokenizer.piece(token)!r} is token {token}, outside "
                    f"the embedding's 0 to {V - 1}"
                )
        return tokens
    if isinstance(prompt, bytes):
        raise TypeError("a prompt is text or token ids, found bytes: decode them")
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
            raise TypeError(f"a prompt is text or token ids, found {token!r:.60} in it")
        if not 0 <= token < V:
            raise ValueError(
                f"the prompt: {token} is outside the vocabulary, 0 to {V - 1}"
            )
    return [int(token) for token in prompt]


class Shower:
    """Decodes new tokens, and holds back what a stop string may still remove.

    What all calls of `push` return, joined, is the text of the task; with `echo` it
    begins with the prompt.  A model without a tokenizer shows nothing.
    """

    def __init__(self, task: Task):
        config, tokenizer = task.plan.config, task.plan.model.tokenizer
        echo = config.echo and tokenizer is not None
        self.decoder = tokenizer and StreamDecoder(tokenizer, continuing=not echo)
        # A prompt may end within a character, so one decoder reads prompt and text.
        self.prompt = "".join(map(self.decoder.push, task.job.prompt)) if echo else ""
        self.skip = 0 if echo else len(task.healed)
        strings = () if config.include_stop_str_in_output else config.stop_strings
        self.trimmer = Trimmer(strings) if strings else None
        # An end token is no part of a text that keeps to a format.
        self.silent = task.plan.eos if task.plan.guide is not None else ()

    def push(self, token: int, reason: str | None = None) -> str:
        """What can be shown for certain now; all that is left if the text has ended."""
        if self.decoder is None:
            return ""
        text = "" if token in self.silent else self.decoder.push(token)
        text += self.decoder.flush() if reason else ""
        text, self.skip = text[self.skip :], max(0, self.skip - len(text))
        if self.trimmer is not None:
            text = self.trimmer.push(text, stops=reason == "stop")
            text += self.trimmer.flush() if reason else ""
        prompt, self.prompt = self.prompt, ""
        return prompt + text
