"""Many prompts, on as many machines as there are.

Every prompt is a job of its own: a worker loads the weights, records one trace, and
writes one file.  Jobs go to any `concurrent.futures.Executor`: processes of this
machine, or the workers of a Dask cluster that see the same files.

A file appears when it is whole, so what exists is done: a run that was killed goes on
where it was, and ends with the same files, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, as_completed
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.files.checkpoint import load, locate
from npllama.generation.task import encode_prompt
from npllama.golden.record import ALL, PART, Wanted, check_place, record, sha256
from npllama.golden.streamed import StreamedModel
from npllama.golden.trace import read_golden

Prompt = str | list[int]


class Job(NamedTuple):
    """One prompt to record.

    Parameters
    ----------
    weights : str
        Path of the model, or the name of a shipped one.
    prompt : str or token ids
    path : str
        Of the trace.
    wanted : Wanted
    dtype : "float64" or "float32"
    seed : ints
        Of the draws; None takes the likeliest tokens.
    stream : bool
        Hold one layer at a time.
    """

    weights: str
    prompt: Prompt
    path: str
    wanted: Wanted = ALL
    dtype: str = "float64"
    seed: tuple[int, ...] | None = None
    stream: bool = False

    def request(self) -> dict[str, Any]:
        """What makes one trace differ from another, for ``meta.json``."""
        request = self._asdict()
        del request["weights"], request["path"], request["stream"]
        request["wanted"] = self.wanted._asdict()
        # As it will come back from the file: tuples are lists in JSON.
        return json.loads(json.dumps(request))


def record_job(job: Job) -> str:
    """Record one prompt; what stood under the path is replaced when all went well.

    Raises
    ------
    ValueError, OSError
        If the model or the prompt cannot be used, or the path is that of the model.
    """
    path = Path(job.path)
    check_place(path, {"the model": locate(job.weights)})
    path.parent.mkdir(parents=True, exist_ok=True)
    for end in (PART, f"{PART}.[0-9]*.part"):  # left by a killed run
        for left in path.parent.glob(escape(path.name) + end):
            left.unlink(missing_ok=True)
    # One model at a time is enough for the floors too: they start from float32.
    model = _model(job.weights, job.dtype, job.stream)
    floors = _model(job.weights, "float32", job.stream) if job.wanted.floors else None
    tokens = encode_prompt(model, job.prompt)
    rng = None if job.seed is None else np.random.default_rng(job.seed)
    about = identity(job)
    record(model, [tokens], path, job.wanted, rng=rng, plain=floors, weights=about)
    return job.path


def do(job: Job) -> str:
    """Record one prompt, unless its file is there already; return the path.

    Raises
    ------
    ValueError, OSError
        As `record_job`; also if the file is that of another job.
    """
    if not os.path.exists(job.path):
        try:
            return record_job(job)
        except ValueError as error:
            raise ValueError(f"{job.path}: {error}") from None
    found = read_golden(job.path).meta
    if any(found.get(key) != value for key, value in identity(job).items()):
        raise ValueError(
            f"{job.path}: holds another run; remove it or choose another place"
        )
    return job.path


def identity(job: Job) -> dict[str, Any]:
    """The entries of ``meta.json`` by which a job knows its own trace."""
    hashed = _hash(str(locate(job.weights)))
    return {"request": job.request(), "weights_sha256": hashed}


@lru_cache(maxsize=2)
def _model(weights: str, dtype: str, stream: bool):
    """A worker keeps the model between its jobs."""
    return StreamedModel(weights, dtype) if stream else load(weights, dtype)


@lru_cache(maxsize=2)
def _hash(path: str) -> str:
    return sha256(path)


def read_prompts(path: str | os.PathLike) -> list[Prompt]:
    r"""Prompts of a file: one per line, or JSON lines with "prompt" or "tokens".

    Raises
    ------
    ValueError
        If it is not UTF-8, has no prompts, or a line of JSON is no prompt.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    # Not splitlines: JSON may hold other ends of lines inside of its texts.
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{path}: there are no prompts in it")
    structured = lines[0].lstrip().startswith("{")
    if not structured:
        return list(lines)
    return [_json_prompt(path, i, line) for i, line in enumerate(lines, start=1)]


def _json_prompt(path, number: int, line: str) -> Prompt:
    try:
        entry = json.loads(line)
        (kind,) = {"prompt", "tokens"} & set(entry)  # one, whatever else is said
        found = entry[kind]
    except (ValueError, RecursionError, TypeError):
        kind, found = None, None
    whole = kind == "tokens" and isinstance(found, list) and found
    if whole and all(isinstance(t, int) and not isinstance(t, bool) for t in found):
        return found
    if kind == "prompt" and isinstance(found, str) and found:
        return found
    raise ValueError(
        f'{path}: prompt {number} is neither {{"prompt": text}} nor '
        f'{{"tokens": [ids]}}: {line:.40}'
    )


def record_all(
    jobs: Iterable[Job],
    executor: Executor,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Record all jobs, in whatever order they get done.

    Parameters
    ----------
    jobs : iterable of Job
    executor : concurrent.futures.Executor
        Such as a `ProcessPoolExecutor`, or `get_executor()` of a Dask client.
    tell : function
        Called with the number of jobs done and of all, after each.

    Returns
    -------
    list of str
        Paths, in the order of the jobs.

    Raises
    ------
    ValueError, OSError
        The first that a job raised; jobs that had not begun are given up, and what
        was written stays.
    """
    jobs = list(jobs)
    futures = [executor.submit(do, job) for job in jobs]
    try:
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            tell(done, len(jobs))
    finally:
        for future in futures:
            future.cancel()
    return [job.path for job in jobs]
