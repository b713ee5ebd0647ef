r"""Many prompts: each is answered as if it were alone.

Each line of the file is one prompt, with options and a seed of its own if needed:

    {"prompt": "Once upon a time", "max_new_tokens": 50, "seed": 3}
    {"tokens": [1, 15043], "temperature": 0, "id": "greeting"}

All lines are checked before work begins.  Those that grow a text go through the engine
together; the others (beams, contrastive search ...) are answered one by one.  The
result of a line follows from the line and its seed, and not from its neighbours: it
has the tokens of `generate` with the same seed.  (The logits are
equal to the last bit only inside `ops.rowwise`; outside, two tokens whose probabilities
agree to six digits may change places.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.decoding.logprobs import TokenLogprob
from npllama.files.checkpoint import load, locate, with_context
from npllama.files.whole import Stamp, stamp_of
from npllama.generation.generate import Generation, generate
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Helpers, plan_of, prepare
from npllama.ops import rowwise
from npllama.serving.blocks import pages_for
from npllama.serving.collect import Answer, answers
from npllama.serving.engine import Engine
from npllama.serving.requests import Request, copies
from npllama.serving.scheduler import Limits
from npllama.weights import Model

PAGE_SIZE, BUDGET = 16, 512
OWN = ("prompt", "tokens", "seed", "id")  # what a line may say besides options


class Line(NamedTuple):
    """The contents of a line of the file."""

    number: int  # in the file, from 1
    prompt: str | list[int]
    seed: int | None
    id: Any  # goes into the result
    options: dict[str, Any]


class Job(NamedTuple):
    """One prompt to answer: with the weights, it determines the result."""

    number: int  # of its result, from 0
    prompt: str | list[int]
    config: GenerationConfig
    seed: int
    id: Any = None


class Setting(NamedTuple):
    """What all prompts of a run share."""

    weights: str
    assistant: str | None = None
    amateur: str | None = None
    at_once: int = 16  # texts that are written side by side
    rowwise: bool = False
    context: int | None = None  # positions of the model; None: its own


#  ---- the file ---------------------------------------------------------------


def read_lines(path: str | os.PathLike) -> list[Line]:
    """Read a file of prompts; skip blank lines.

    Raises
    ------
    ValueError
        If it is not UTF-8, has no prompts, or a line is not a prompt; the message has
        the line's number.
    OSError
        If it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    # Not splitlines: it also splits at line ends that JSON allows inside a text.
    lines = enumerate(text.split("\n"), 1)
    found = [read_line(path, n, line) for n, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path}: there are no prompts in it")
    return found


def read_line(path: str | os.PathLike, number: int, line: str) -> Line:
    """One line, or a ValueError that names it."""
    where = f"{path}: line {number}"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or len({"prompt", "tokens"} & set(entry)) != 1:
        raise ValueError(
            f'{where} is neither {{"prompt": text, ...}} nor {{"tokens": [ids], ...}}: '
            f"{line:.40}"
        )
    prompt, seed = entry.get("prompt"), entry.get("seed")
    if "prompt" in entry and not (isinstance(prompt, str) and prompt):
        raise ValueError(f"{where}: prompt is {prompt!r:.40}; it must be a text")
    if "tokens" in entry:
        prompt = entry["tokens"]
        if not (isinstance(prompt, list) and prompt and all(map(is_whole, prompt))):
            raise ValueError(f"{where}: tokens is {prompt!r:.40}; give a list of ids")
    if seed is not None and not (is_whole(seed) and seed >= 0):
        raise ValueError(f"{where}: seed is {seed!r:.40}; a whole number, 0 or more")
    options = {name: value for name, value in entry.items() if name not in OWN}
    return Line(number, prompt, seed, entry.get("id"), options)


def is_whole(value: Any) -> bool:
    """Whether this is a whole number; in JSON, true is not a number."""
    return isinstance(value, int) and not isinstance(value, bool)


def positions_of(model: Model, job: Job, helpers: Helpers) -> int:
    """Positions that a job's texts may take, all together.

    Raises
    ------
    ValueError, TypeError
        If it can never be answered: as `generate`.
    """
    return (
        copies(job.config)
        * prepare(plan_of(model, job.config, helpers), job.prompt).capacity
    )


def key_of(job: Job, weights: Mapping[str, str]) -> str:
    """A hash of everything that determines a job's result."""
    config = {k: repr(v) for k, v in asdict(job.config).items()}
    about = [job.number, job.prompt, config, job.seed, job.id, dict(weights)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


#  ---- answering --------------------------------------------------------------


def answered(
    model: Model, jobs: Sequence[Job], setting: Setting, helpers: Helpers
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Answer some prompts, each as soon as it is done.

    Yields
    ------
    job : Job
    result : dict
        Seed and texts, or an error, as it goes into the file.
    """
    together = [job for job in jobs if runs_in_engine(job.config)]
    with rowwise(setting.rowwise):
        if together:
            engine = engine_for(model, together, setting, helpers)
            requests = (request_of(job, helpers) for job in together)
            for answer in answers(engine, requests):
                job = together[answer.number]
                yield job, as_result(job, answer, model)
        for job in jobs:
            if not runs_in_engine(job.config):
                yield job, as_result(job, alone(model, job, helpers), model)


def runs_in_engine(config: GenerationConfig) -> bool:
    """Whether the engine can write a text of this config beside others."""
    return config.selected in ([], ["prompt_lookup_num_tokens"])


def engine_for(
    model: Model, jobs: Sequence[Job], setting: Setting, helpers: Helpers
) -> Engine:
    """An engine whose pages hold the largest of the jobs side by side."""
    most = max(setting.at_once, *(copies(job.config) for job in jobs))
    sizes = sorted((positions_of(model, job, helpers) for job in jobs), reverse=True)
    # A text's last page is seldom full, and a fork may hold a copy of one.
    pages = sum(pages_for(size, PAGE_SIZE) for size in sizes[:most])
    spare = 2 * most + max(copies(job.config) for job in jobs)
    limits = Limits(max(BUDGET, most), most)
    return Engine(model, pages + spare, PAGE_SIZE, limits)


def request_of(job: Job, helpers: Helpers) -> Request:
    """A job as the engine takes it."""
    rng = np.random.default_rng(job.seed)
    return Request(job.prompt, job.config, rng, helpers)


def alone(model: Model, job: Job, helpers: Helpers) -> Answer:
    """Answer one prompt that cannot run beside others."""
    rng = np.random.default_rng(job.seed)
    try:
        found = generate(model, [job.prompt], job.config, rng, helpers)
    except ValueError as error:
        return Answer(0, [], error)
    assert isinstance(found, list)
    return Answer(0, found)


def as_result(job: Job, answer: Answer, model: Model) -> dict[str, Any]:
    """An answer as a dictionary."""
    result: dict[str, Any] = {} if job.id is None else {"id": job.id}
    result |= {"prompt": job.prompt, "seed": job.seed}
    if answer.error is not None:
        return result | {"error": " ".join(str(answer.error).split())}
    return result | {"texts": [as_json(text, model) for text in answer.texts]}


def as_json(text: Generation, model: Model) -> dict[str, Any]:
    """A generation as a dictionary, log-probabilities by name, tokens with their text."""
    data = text._asdict()
    for name in ("logprobs", "prompt_logprobs"):
        if data[name] is not None:
            data[name] = [entry and logprob_dict(entry, model) for entry in data[name]]
    return data


def logprob_dict(entry: TokenLogprob, model: Model) -> dict[str, Any]:
    """One token as a dictionary; `text` and `top_text` are None without a tokenizer."""

    def text(token: int) -> str | None:
        content = model.tokenizer and model.tokenizer.token_bytes(token)
        return None if content is None else content.decode("utf-8", "backslashreplace")

    top = [text(token) for token, _ in entry.top]
    return entry._asdict() | {"text": text(entry.token), "top_text": top}


#  ---- elsewhere --------------------------------------------------------------


# A worker keeps the model between its jobs.  It may live for days, and the file be
# replaced under its path: the stamp is part of what a model is kept under.
@lru_cache(maxsize=3)
def _model(weights: str, stamp: Stamp | None) -> Model:
    return load(weights)


def model_of(weights: str, context: int | None = None) -> Model:
    """The model in a file, loaded once for as long as the file stays the same."""
    model = _model(weights, stamp_of(locate(weights)))
    if context is None:
        return model
    return model._replace(config=with_context(model.config, context))


def helpers_of(setting: Setting) -> Helpers:
    """The models that some strategies need besides the main one."""
    assistant, amateur = setting.assistant, setting.amateur
    return Helpers(
        model_of(assistant) if assistant else None,
        model_of(amateur) if amateur else None,
    )


def answer_all(setting: Setting, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Answer some prompts in a process that loads the weights: the work of one worker.

    Returns
    -------
    list of dict
        The results, in the order of the jobs.
    """
    model, helpers = model_of(setting.weights, setting.context), helpers_of(setting)
    found = {job.number: r for job, r in answered(model, jobs, setting, helpers)}
    return [found[job.number] for job in jobs]


def batches(jobs: Iterable[Job], size: int) -> list[list[Job]]:
    """The jobs in groups of one size, each for one worker."""
    some = list(jobs)
    return [some[i : i + size] for i in range(0, len(some), size)]
