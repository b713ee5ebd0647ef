"""One face for all of generation: text in, text out.

`generate` takes one prompt or several, as text or as token ids, and a
`GenerationConfig`, whose fields are spelled, and default, as in transformers;
`stream` yields the text piece by piece as it comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding import Process, Step, Stop, sample, unprocessed
from npllama.sampling import temperature, top_k, top_p
from npllama.tokenizer import StreamDecoder, Tokenizer
from npllama.weights import Model

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate; a value out of range is refused with the legal range.

    Parameters
    ----------
    max_new_tokens : int
        Tokens to add at most.
    do_sample : bool
        Draw each token at random; otherwise take the likeliest (greedy).
    temperature : float
        Above 0.  Logits are divided by it: below 1 sharpens, above 1 flattens.
    top_k : int
        Keep the k likeliest tokens; 0 keeps all.
    top_p : float
        Above 0, at most 1.  Keep the smallest set of likeliest tokens that holds
        this probability.
    eos_token_id : tuple of int, optional
        Tokens that end the text; those of the model's config by default.

    Raises
    ------
    ValueError
        If a value is out of range.

    References
    ----------
    transformers `GenerationConfig`, whose names and defaults these are.
    """

    max_new_tokens: int = 20
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    eos_token_id: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _demand(_whole(self.max_new_tokens, 1), self, "max_new_tokens", "1 or more")
        temperature_ok = _real(self.temperature) and self.temperature > 0
        _demand(
            temperature_ok, self, "temperature", "above 0 (greedy: do_sample=False)"
        )
        _demand(_whole(self.top_k, 0), self, "top_k", "a whole number; 0 keeps all")
        top_p_ok = _real(self.top_p) and 0 < self.top_p <= 1
        _demand(top_p_ok, self, "top_p", "above 0 and at most 1")


def _demand(fits: bool, config: GenerationConfig, name: str, legal: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {getattr(config, name)!r}; it must be {legal}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _real(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


class Generation(NamedTuple):
    """One finished text."""

    prompt_tokens: list[int]
    tokens: list[int]  # the new ones, an ending EOS included
    text: str  # of the new tokens, without special ones
    finish_reason: str  # "eos", "length" or "context"


def generate(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
) -> Generation | list[Generation]:
    """Continue one prompt, or several side by side.

    Parameters
    ----------
    model : Model
    prompts : str, or token ids, or a list of either
        Text is encoded with a beginning-of-sequence token; ids are taken as given.
    config : GenerationConfig
    rng : np.random.Generator
        Where chance comes from; a fresh one by default.  Each row draws from a
        child of its own, so its text does not depend on its neighbours.

    Returns
    -------
    Generation, or a list of them if several prompts were given

    Raises
    ------
    ValueError
        If a prompt is empty or too long, or a token is outside the vocabulary.
    """
    config = config or GenerationConfig()
    single = _is_prompt(prompts)
    rows = [encode_prompt(model, p) for p in ([prompts] if single else prompts)]
    new: list[list[int]] = [[] for _ in rows]
    reasons = ["length"] * len(rows)
    for step in _steps(model, rows, config, rng):
        for b, (token, reason) in enumerate(zip(step.tokens, step.reasons)):
            if token is not None:
                new[b].append(token)
                reasons[b] = reason or reasons[b]
    done = [
        Generation(row, tokens, decode_continuation(model, tokens), reason)
        for row, tokens, reason in zip(rows, new, reasons)
    ]
    return done[0] if single else done


class Piece(NamedTuple):
    """One step of a growing text."""

    token: int
    text: str  # whole characters that this token completed; may be empty
    reason: str | None  # why the text ends here, if it does


def pieces(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
    cache: KVCache | None = None,
) -> Iterator[Piece]:
    """Continue one prompt, yielding every token as it is decided.

    Parameters
    ----------
    cache : KVCache
        One row that may hold a beginning of the prompt, as in a chat.

    Yields
    ------
    Piece
    """
    decoder = StreamDecoder(_tokenizer(model), continuing=True)
    row = encode_prompt(model, prompt)
    for step in _steps(model, [row], config or GenerationConfig(), rng, cache):
        token, reason = step.tokens[0], step.reasons[0]
        text = decoder.push(token) + (decoder.flush() if reason else "")
        yield Piece(token, text, reason)


def stream(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    rng: np.random.Generator | None = None,
) -> Iterator[str]:
    """Continue one prompt, yielding the new text as it grows.

    Every piece is whole characters; joined, they are the `text` that `generate`
    returns.

    Yields
    ------
    str
    """
    for piece in pieces(model, prompt, config, rng):
        if piece.text:
            yield piece.text


def _steps(model, rows, config, rng, cache=None) -> Iterator[Step]:
    eos = config.eos_token_id
    eos = model.config.eos_token_id if eos is None else eos
    rng = rng or np.random.default_rng()
    rngs = rng.spawn(len(rows)) if config.do_sample else None
    process = warpers(config) if config.do_sample else unprocessed
    limit = config.max_new_tokens
    return sample(model, rows, ends_with(eos), limit, process, rngs, cache)


def warpers(config: GenerationConfig) -> Process:
    """Temperature, then top-k, then top-p: the order of transformers."""

    def process(history, logits):
        if config.temperature != 1.0:
            logits = temperature(logits, config.temperature)
        if config.top_k:
            logits = top_k(logits, config.top_k)
        if config.top_p < 1:
            logits = top_p(logits, config.top_p)
        return logits

    return process


def ends_with(eos: Sequence[int]) -> Stop:
    """Stop behind any of the given tokens."""
    ids = frozenset(eos)
    return lambda tokens: "eos" if tokens and tokens[-1] in ids else None


def encode_prompt(model: Model, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: text begins with the model's BOS, ids stay as given."""
    if not isinstance(prompt, str):
        return [int(token) for token in prompt]
    return _tokenizer(model).encode(prompt, bos=True)


def decode_continuation(model: Model, tokens: Sequence[int]) -> str:
    """Text of new tokens; empty if the model came without a tokenizer."""
    if model.tokenizer is None:
        return ""
    decoder = StreamDecoder(model.tokenizer, continuing=True)
    return "".join(decoder.push(token) for token in tokens) + decoder.flush()


def _is_prompt(prompts: object) -> bool:
    if isinstance(prompts, str):
        return True
    return len(prompts) > 0 and isinstance(prompts[0], (int, np.integer))


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        raise ValueError(
            "this model came without a tokenizer: give token ids, or convert the "
            "checkpoint together with its tokenizer file"
        )
    return model.tokenizer
