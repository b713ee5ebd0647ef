"""``npllama generate --prompts FILE -o OUT``: many prompts, one result a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from dataclasses import replace
from typing import Any

from npllama.cli.golden import executor, progress
from npllama.cli.options import UsageError, generation_config, generator, in_context
from npllama.files.whole import check_place
from npllama.generation.options import GenerationConfig, check_names
from npllama.generation.task import Helpers
from npllama.serving.prompts import (
    Job,
    Line,
    Setting,
    answer_all,
    answered,
    batches,
    helpers_of,
    key_of,
    model_of,
    positions_of,
    read_lines,
)
from npllama.serving.results import add, results
from npllama.serving.saved import fingerprint
from npllama.weights import Model

Result = tuple[Job, dict[str, Any]]


def add_prompts_options(command: argparse.ArgumentParser) -> None:
    """A file of prompts, and where its results go."""
    option = command.add_argument_group("Many prompts").add_argument
    # fmt: off
    option("--prompts", metavar="FILE",
           help='JSON lines of {"prompt": text} or {"tokens": ids}, and, if they want, '
                '"seed" (default: --seed, or 0, plus the number of lines before), "id" '
                "and options by name")
    option("-o", "--output", metavar="OUT",
           help="with --prompts: results, one a line; what is there is not done again")
    option("--at-once", type=int, default=16, metavar="N",
           help="with --prompts: texts side by side (default: 16)")
    option("--rowwise", action="store_true",
           help="with --prompts: the same floats whatever runs beside; slower")
    option("--workers", type=int, default=1, metavar="N",
           help="with --prompts: processes to use (default: 1)")
    option("--dask", metavar="ADDRESS",
           help="with --prompts: the scheduler of a Dask cluster")
    # fmt: on


def check_prompts_options(options: argparse.Namespace) -> None:
    """Raise UsageError for what does not go together."""
    if options.prompts is None:
        needing = {"-o": options.output, "--dask": options.dask}
        needing |= {"--workers": options.workers != 1, "--rowwise": options.rowwise}
        for name, given in (needing | {"--at-once": options.at_once != 16}).items():
            if given:
                raise UsageError(f"{name} needs many prompts: --prompts FILE")
        return
    others = (
        "prompt tokens json save_cache load_cache flops stream_window cache_bits "
        "adapter"
    ).split()
    for name in others:
        if getattr(options, name):
            word = "PROMPT" if name == "prompt" else "--" + name.replace("_", "-")
            raise UsageError(f"--prompts and {word} exclude each other")
    if options.output is None:
        raise UsageError("--prompts needs a place for the results: -o OUT")
    for name in ("at_once", "workers"):
        if not 1 <= getattr(options, name) <= 1024:
            raise UsageError(f"--{name.replace('_', '-')} must be from 1 to 1024")


def run_prompts(options: argparse.Namespace) -> int:
    """Answer all prompts that have no result yet; 1 if one could not be answered."""
    try:
        check_place(options.output, {"the file of prompts": options.prompts})
        lines = read_lines(options.prompts)
    except ValueError as error:
        raise UsageError(str(error)) from None
    # With a seed drawn anew, no later run could continue this one.
    options.seed = options.seed or 0
    generator(options)
    setting = Setting(options.weights, options.assistant, options.amateur)
    setting = setting._replace(
        at_once=options.at_once, rowwise=options.rowwise, context=options.context
    )
    model, helpers = model_of(setting.weights), helpers_of(setting)
    model = in_context(model, options.context)
    jobs = jobs_of(options, model, helpers, lines)
    keys = keys_of(jobs, model, helpers, options.context)
    failed = 0
    try:
        with results(options.output, keys) as (done, file):
            left = [job for job in jobs if job.number not in done]
            with progress(len(left)) as tell:
                for count, (job, result) in enumerate(work(options, setting, left), 1):
                    add(file, job.number, keys[job.number], result)
                    failed += "error" in result
                    tell(count, len(left))
    except BrokenExecutor:
        again = "the same command goes on with what is left"
        raise ValueError(
            f"a process was killed or ran out of memory; {again}"
        ) from None
    told = f"{len(left)} results in {options.output}"
    told += f", {len(done)} were there" if done else ""
    print(told + (f"; {failed} failed" if failed else ""), file=sys.stderr)
    return int(failed > 0)


def jobs_of(
    options: argparse.Namespace, model: Model, helpers: Helpers, lines: Sequence[Line]
) -> list[Job]:
    """What each line asks for; UsageError with its number if it cannot be done."""
    jobs = []
    for index, line in enumerate(lines):
        try:
            config = line_config(options, model, line)
            seed = options.seed + index if line.seed is None else line.seed
            job = Job(index, line.prompt, config, seed, line.id)
            positions_of(model, job, helpers)
        except (ValueError, TypeError, OverflowError, UsageError) as error:
            where = f"{options.prompts}: line {line.number}"
            raise UsageError(f"{where}: {error}") from None
        jobs.append(job)
    return jobs


def line_config(
    options: argparse.Namespace, model: Model, line: Line
) -> GenerationConfig:
    """The options of a line, on top of those of the command."""
    if "prefix_allowed_tokens_fn" in line.options:
        raise UsageError("a function cannot stand in a file")
    check_names(line.options)
    config = generation_config(options, model, line.options)
    return replace(config, allowed_special="all") if options.special else config


def keys_of(
    jobs: Sequence[Job], model: Model, helpers: Helpers, context: int | None = None
) -> list[str]:
    """The key of each job's result."""
    named = {"model": model, "assistant": helpers.assistant, "amateur": helpers.amateur}
    weights = {name: fingerprint(m) for name, m in named.items() if m is not None}
    weights |= {} if context is None else {"context": str(context)}
    return [key_of(job, weights) for job in jobs]


def work(
    options: argparse.Namespace, setting: Setting, jobs: Sequence[Job]
) -> Iterator[Result]:
    """Answer the jobs here, in other processes, or on a cluster."""
    if not jobs:
        return
    if options.dask is None and options.workers == 1:
        model = model_of(setting.weights, setting.context)
        helpers = helpers_of(setting)
        yield from answered(model, jobs, setting, helpers)
        return
    with executor(options) as pool:
        some = batches(jobs, setting.at_once)
        futures = {pool.submit(answer_all, setting, part): part for part in some}
        try:
            for future in as_completed(futures):
                yield from zip(futures[future], future.result())
        finally:
            for future in futures:
                future.cancel()
