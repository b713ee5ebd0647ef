"""Many prompts, on as many machines as there are.

Every prompt is one job: a worker loads the weights, records one trace, and writes one
file.  Jobs go to any `concurrent.futures.Executor`: processes of this machine
(`workers`), or those of a Dask cluster that see the same files.

A file appears only when it is complete, so a file that exists is done.  A run that was
killed can be started again, and ends with the same files, byte for byte.  Two runs at
once, or a cluster that gives one job to two workers, do some work twice, but no harm.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.files.checkpoint import load, locate
from npllama.files.whole import Stamp, check_place, stamp_of
from npllama.generation.task import encode_prompt
from npllama.golden.record import ALL, Wanted, record, sha256
from npllama.golden.streamed import StreamedModel
from npllama.golden.trace import read_golden

Prompt = str | list[int]

# Seconds after which a file that another machine wrote must be seen on this one.
PATIENCE = 60.0


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
    """Record one prompt; a file under the path is replaced when the new one is whole.

    Raises
    ------
    ValueError, OSError
        If the model or the prompt cannot be used, or the file cannot be written.
    """
    check_place(job.path, {"the model": locate(job.weights)})
    stamp = stamp_of(locate(job.weights))
    # One model at a time is enough for the floors too: they start from float32.
    model = _model(job.weights, job.dtype, job.stream, stamp)
    floors = None
    if job.wanted.floors:
        floors = _model(job.weights, "float32", job.stream, stamp)
    tokens = encode_prompt(model, job.prompt)
    rng = None if job.seed is None else np.random.default_rng(job.seed)
    about = identity(job, stamp)
    record(model, [tokens], job.path, job.wanted, rng=rng, plain=floors, weights=about)
    return job.path


def do(job: Job) -> str:
    """Record one prompt, unless its file is there already; return the path.

    Raises
    ------
    ValueError, OSError
        As `record_job`; also if the file is damaged, or that of another job.
    """
    if not os.path.exists(job.path):
        try:
            return record_job(job)
        except ValueError as error:
            named = str(error).startswith(job.path)
            raise ValueError(error if named else f"{job.path}: {error}") from None
    found = read_golden(job.path).meta
    expected = identity(job, stamp_of(locate(job.weights)))
    if any(found.get(key) != value for key, value in expected.items()):
        raise ValueError(
            f"{job.path}: holds another run; remove it or choose another place"
        )
    return job.path


#  ---- which weights ------------------------------------------------------------


def identity(job: Job, stamp: Stamp | None) -> dict[str, Any]:
    """The entries of ``meta.json`` by which a job knows its own trace."""
    return {"request": job.request(), "weights_sha256": _hash(job.weights, stamp)}


# A worker keeps the model and its hash between its jobs.  It may live for days, and
# the file be replaced under its path: the stamp is part of what they are kept under.
@lru_cache(maxsize=2)
def _model(weights: str, dtype: str, stream: bool, stamp: Stamp | None):
    model = StreamedModel(weights, dtype) if stream else load(weights, dtype)
    _check_stamp(weights, stamp)
    return model


@lru_cache(maxsize=2)
def _hash(weights: str, stamp: Stamp | None) -> str:
    found = sha256(locate(weights))
    _check_stamp(weights, stamp)
    return found


def _check_stamp(weights: str, stamp: Stamp | None) -> None:
    """Raise ValueError if another file has taken the place of the one being read."""
    if stamp_of(locate(weights)) != stamp:
        raise ValueError(f"{weights}: was replaced while it was read; try again")


#  ---- many -----------------------------------------------------------------------


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
    # Not splitlines: it also splits at line ends that JSON allows inside a text.
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

    The folders of the files are made.  What is returned exists.

    Parameters
    ----------
    jobs : iterable of Job
    executor : concurrent.futures.Executor
        Such as `workers`, or ``get_executor()`` of a Dask client.
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
    for folder in {Path(job.path).parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    futures: list[Future[str]] = []
    try:
        futures.extend(executor.submit(do, job) for job in jobs)
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            tell(done, len(jobs))
    finally:
        for future in futures:
            future.cancel()
    paths = [job.path for job in jobs]
    _wait_for(paths)
    return paths


def _wait_for(paths: Sequence[str]) -> None:
    """Raise ValueError unless all files are here; a network may need a moment."""
    deadline = time.monotonic() + PATIENCE
    for path in paths:
        while not os.path.exists(path):
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{path}: was recorded and is not here; "
                    "do the workers write to the same folder?"
                )
            time.sleep(0.1)
