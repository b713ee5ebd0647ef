"""What is to be done for one prompt, with everything a strategy will ask for.

Between the user's words (`options`) and the strategies (`decoding`) lies some
preparation: text becomes tokens, limits are resolved, stopping rules and formats
are made.  A `Task` is its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from npllama.decoding.automaton import Machine, compile_regex
from npllama.decoding.common import Process, Stop, room
from npllama.decoding.contrastive_decoding import contrastive_decoding
from npllama.decoding.guided import guide_for, guided, heal
from npllama.decoding.json_schema import schema_to_regex
from npllama.decoding.stopping import (
    Trimmer,
    after_seconds,
    at_strings,
    at_tokens,
    first_of,
    trim,
)
from npllama.generation.options import GenerationConfig
from npllama.generation.pipeline import Setting, pipeline
from npllama.text.tokenizer import StreamDecoder, Tokenizer
from npllama.weights import Model

Prompt = str | Sequence[int]
DEFAULT_NEW_TOKENS = 20


class Helpers(NamedTuple):
    """What some strategies need besides the model."""

    assistant: Model | None = None  # drafts for speculative decoding
    amateur: Model | None = None  # from whom contrastive decoding keeps away
    stop: Stop | None = None  # a further rule for stopping


class Task(NamedTuple):
    """One prompt, ready to be continued."""

    model: Model
    config: GenerationConfig
    helpers: Helpers
    given: list[int]  # the prompt as it came
    prompt: list[int]  # the same, possibly without a token that is to be healed
    healed: str  # text of that token, which the new text will begin with
    eos: tuple[int, ...]
    stop: Stop
    max_new_tokens: int
    formats: list[Process]
    row: int = 0  # its number among those that are to be continued

    @property
    def capacity(self) -> int:
        """Positions that the whole text may take."""
        return room(self.model, len(self.prompt), self.max_new_tokens)


def prepare(
    model: Model, prompt: Prompt, config: GenerationConfig, helpers: Helpers
) -> Task:
    """Make a task of a prompt and a config.

    Raises
    ------
    ValueError
        If text is given or needed and the model has no tokenizer, the prompt is
        empty, or no room is left behind it.
    """
    given = encode_prompt(model, prompt)
    if not given:
        raise ValueError("the prompt is empty: give text, or at least one token")
    shortened, formats, healed = list(given), [], ""
    if config.token_healing:
        shortened, guide = heal(tokenizer_of(model), given)
        if guide is not None:
            formats.append(guided(guide, [len(shortened)]))
            healed = (
                tokenizer_of(model).token_bytes(given[-1]).decode("utf-8", "replace")
            )
    eos = config.eos_token_id
    eos = tuple(model.config.eos_token_id if eos is None else eos)
    rules = [at_tokens(eos)]
    if (machine := format_of(config)) is not None:
        guide = guide_for(tokenizer_of(model), machine, eos)
        formats.append(guided(guide, [len(given)]))
        rules.append(lambda tokens: "format" if guide.finished(tokens) else None)
    if config.stop_strings:
        rules.append(at_strings(tokenizer_of(model), config.stop_strings))
    if config.max_time is not None:
        rules.append(after_seconds(config.max_time))
    if helpers.stop is not None:
        rules.append(helpers.stop)
    limit = _limit(config, len(shortened))
    room(model, len(shortened), limit)
    stop = first_of(rules)
    return Task(
        model, config, helpers, given, shortened, healed, eos, stop, limit, formats
    )


def format_of(config: GenerationConfig) -> Machine | None:
    """What the new text is held to, if the config names a format.

    Raises
    ------
    ValueError
        If the regular expression or the schema is malformed.
    """
    if config.json_schema is not None:
        return compile_regex(schema_to_regex(config.json_schema))
    return None if config.regex is None else compile_regex(config.regex)


def _limit(config: GenerationConfig, prompt: int) -> int:
    """New tokens at most: said directly, or through the length of the whole."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is None:
        return DEFAULT_NEW_TOKENS
    if config.max_length <= prompt:
        raise ValueError(
            f"max_length is {config.max_length}, but the prompt has {prompt} tokens"
        )
    return config.max_length - prompt


def process_of(
    tasks: Sequence[Task], rngs: Sequence[np.random.Generator] = ()
) -> Process:
    """The pipeline for rows that continue the prompts of these tasks.

    All tasks have one config and one model.
    """
    first = tasks[0]
    formats = first.formats
    if len(tasks) > 1 and any(task.formats for task in tasks):
        formats = [_row_by_row([task.formats for task in tasks])]
    ends = [task.capacity for task in tasks]
    amateur, objections = first.helpers.amateur, []
    if amateur is not None:
        config = first.config
        check_vocabulary("amateur", amateur, first.model)
        alpha, beta = config.contrastive_alpha, config.contrastive_beta
        objections = [contrastive_decoding(amateur, max(ends), alpha, beta)]
    setting = Setting(
        prompts=[task.prompt for task in tasks],
        eos=first.eos,
        ends=ends,
        model=first.model,
        rngs=rngs,
        first=first.row,
        formats=formats,
        objections=objections,
    )
    return pipeline(first.config, setting)


def check_vocabulary(name: str, helper: Model, model: Model) -> None:
    """Raise ValueError if a helping model speaks of other tokens."""
    V, other = model.config.vocab_size, helper.config.vocab_size
    if V != other:
        raise ValueError(
            f"the {name} knows {other} tokens, the model {V}: they must share one "
            "vocabulary"
        )


def _row_by_row(formats: Sequence[Sequence[Process]]) -> Process:
    """Formats that differ from row to row, as one step."""

    def process(history, logits):
        rows = []
        for b, tokens in enumerate(history):
            row = logits[b : b + 1]
            for step in formats[b % len(formats)]:
                row = step([tokens], row)
            rows.append(row)
        return np.concatenate(rows)

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


def encode_prompt(model: Model, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: text as the checkpoint begins it, ids as they are given.

    Raises
    ------
    TypeError
        If it is neither text nor numbers that are whole.
    ValueError
        If it is text and the model has no tokenizer, or an id is no token.
    """
    if isinstance(prompt, str):
        return _embedded(model, tokenizer_of(model).encode(prompt))
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
    """Turns the tokens of a task into the text that is shown of them."""

    def __init__(self, task: Task):
        self.decoder = StreamDecoder(tokenizer_of(task.model), continuing=True)
        strings = task.config.stop_strings
        cut = strings and not task.config.include_stop_str_in_output
        self.trimmer = Trimmer(strings) if cut else None
        self.skip = len(task.healed)

    def push(self, token: int) -> str:
        """What can be shown for certain now."""
        return self._show(self.decoder.push(token))

    def flush(self) -> str:
        """What is left at the end."""
        text = self._show(self.decoder.flush())
        return text + (self.trimmer.flush() if self.trimmer else "")

    def _show(self, text: str) -> str:
        text, self.skip = text[self.skip :], max(0, self.skip - len(text))
        return self.trimmer.push(text) if self.trimmer else text


def text_of(task: Task, tokens: Sequence[int]) -> str:
    """The text to report for new tokens; empty if the model has no tokenizer."""
    if task.model.tokenizer is None:
        return ""
    decoder = StreamDecoder(task.model.tokenizer, continuing=True)
    text = "".join(map(decoder.push, tokens)) + decoder.flush()
    text = text[len(task.healed) :]
    if not task.config.include_stop_str_in_output:
        text = trim(text, task.config.stop_strings)
    if task.config.echo:
        text = echoed(task.model, task.given) + text
    return text


def echoed(model: Model, prompt: Prompt) -> str:
    """The text of a prompt, as its tokens say it."""
    return tokenizer_of(model).decode(encode_prompt(model, prompt))
