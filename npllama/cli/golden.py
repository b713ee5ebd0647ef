"""The command line of the golden reference: ``golden record | candidate | compare``.

The exit code is 0 if all is well, 1 if a candidate is outside the noise floor, and 2
if something cannot be used: a file, an option, a prompt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor
from contextlib import contextmanager
from pathlib import Path

from npllama.candidates.candidate import BACKENDS, DTYPES, candidate
from npllama.cli.golden_compare import add_compare, run_compare
from npllama.cli.options import UsageError, in_words
from npllama.golden.prompts import Job, Prompt, read_prompts, record_all, record_job
from npllama.golden.record import FLOORS, Wanted
from npllama.golden.workers import workers


def add_commands(commands) -> None:
    """Add ``golden`` and its own commands."""
    golden = commands.add_parser(
        "golden",
        help="record every tensor of a run, and compare a backend's with it",
        description="Record every tensor of a run, and compare a backend's with it.",
    )
    inner = golden.add_subparsers(dest="action", metavar="COMMAND", required=True)
    add_record(inner)
    add_candidate(inner)
    add_compare(inner)


def add_record(commands) -> None:
    """Add ``golden record``."""
    command = commands.add_parser(
        "record",
        help="run a model and write every tensor of it",
        description="Run a model and write every tensor of it.",
    )
    command.add_argument("weights", metavar="MODEL", help="an .npz, or a shipped model")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT")
    what.add_argument("--tokens", metavar="IDS", help="token ids, such as 1,15,7")
    what.add_argument(
        "--prompts",
        metavar="FILE",
        help='one per line, or JSON lines with "prompt" or "tokens"',
    )
    option = command.add_argument
    # fmt: off
    option("-o", "--output", required=True, metavar="PATH",
           help="the .npz to write; with --prompts, the folder")
    option("--new-tokens", type=int, default=0, metavar="N",
           help="tokens to decode after the prompt (default: 0)")
    option("--only", action="append", default=[], metavar="PATTERN",
           help="keep these modules, such as 'model.layers.0.*'; may be repeated")
    option("--scores", action="store_true", help="keep attention's scores as well")
    option("--dtype", choices=("float64", "float32"), default="float64",
           help="of the arithmetic (default: float64)")
    option("--floor", default=",".join(FLOORS), metavar="DTYPES",
           help=f"noise floors to measure (default: {','.join(FLOORS)})")
    option("--no-floor", dest="floor", action="store_const", const="",
           help="measure none")
    option("--do-sample", action="store_true", help="draw the tokens")
    option("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    option("--stream", action="store_true",
           help="one layer at a time, for models larger than memory")
    option("--workers", type=int, default=1, metavar="N",
           help="with --prompts: processes to use (default: 1)")
    option("--dask", metavar="ADDRESS",
           help="with --prompts: the scheduler of a Dask cluster")
    # fmt: on


def add_candidate(commands) -> None:
    """Add ``golden candidate``."""
    command = commands.add_parser(
        "candidate",
        help="run another backend on a golden trace's tokens",
        description="Run another backend on the tokens of a golden trace, and write "
        "what it computes. It needs what its name says to be installed, and chooses "
        "no token itself.",
        epilog="transformers (float32, bfloat16, float16) and jax (float32, bfloat16) "
        "give every tensor, llama.cpp (float32) and an exported onnx graph the logits.",
    )
    option = command.add_argument
    # fmt: off
    option("backend", choices=BACKENDS, metavar="BACKEND", help=", ".join(BACKENDS))
    option("model", metavar="MODEL",
           help="the .npz that the trace was recorded from, or a shipped model; an .onnx")
    option("--golden", type=Path, required=True, metavar="GOLDEN.npz",
           help="from golden record")
    option("--dtype", choices=DTYPES, default="float32",
           help="what it computes in (default: float32)")
    option("-o", "--output", type=Path, required=True, metavar="OUT.npz",
           help="the candidate to write")
    # fmt: on


def run_candidate(options: argparse.Namespace) -> None:
    """Run one backend."""
    where = options.model, options.golden, options.output
    try:
        count = candidate(options.backend, *where, options.dtype)
    except ImportError as error:
        raise UsageError(str(error)) from None
    print(f"{options.output}: {count} tensors of {options.backend} in {options.dtype}")


def run_record(options: argparse.Namespace) -> None:
    """Record one prompt, or many."""
    wanted = Wanted(
        options.new_tokens, tuple(options.only), options.scores, floors(options.floor)
    )
    if options.seed < 0 or not 1 <= options.workers <= 1024:
        raise UsageError("--seed must be 0 or more, and --workers from 1 to 1024")
    if options.prompts is None:
        if options.dask or options.workers > 1:
            raise UsageError("--workers and --dask need many prompts: --prompts FILE")
        prompt = options.prompt if options.tokens is None else token_ids(options.tokens)
        print(record_job(job(options, prompt, wanted, options.output, 0)))
        return
    prompts = read_prompts(options.prompts)
    width = max(5, len(str(len(prompts))))
    jobs = [
        job(options, prompt, wanted, f"{options.output}/{i:0{width}}.npz", i)
        for i, prompt in enumerate(prompts)
    ]
    with executor(options) as pool, progress(len(jobs)) as tell:
        record_all(jobs, pool, tell)
    print(f"{len(jobs)} traces in {options.output}")


def job(options, prompt: Prompt, wanted: Wanted, path: str, number: int) -> Job:
    """One prompt of the command, with a seed of its own."""
    seed = (options.seed, number) if options.do_sample else None
    return Job(
        options.weights, prompt, path, wanted, options.dtype, seed, options.stream
    )


def token_ids(text: str) -> list[int]:
    """Numbers with commas between them."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--tokens {text!r}: numbers with commas between") from None


def floors(text: str) -> tuple[str, ...]:
    """Names of dtypes with commas between them."""
    return tuple(filter(None, text.split(",")))


@contextmanager
def executor(options: argparse.Namespace) -> Iterator[Executor]:
    """Where jobs run: processes of this machine, or a cluster's workers."""
    if options.dask is None:
        with workers(options.workers) as pool:
            yield pool
        return
    try:
        from distributed import Client
    except ImportError:
        raise UsageError("--dask needs Dask: pip install 'npllama[dask]'") from None
    try:
        client = Client(options.dask, timeout=10)
    except (OSError, ValueError) as error:
        raise UsageError(f"--dask {options.dask}: {error}") from None
    with client, client.get_executor() as pool:
        yield pool


@contextmanager
def progress(total: int, unit: str = "prompt"):
    """Yield a function that shows how many are done, on standard error."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda done, total: print(f"{done} of {total}", file=sys.stderr)
        return
    with tqdm(total=total, unit=unit) as bar:
        yield lambda done, total: bar.update()


GOLDEN = {"record": run_record, "candidate": run_candidate, "compare": run_compare}


def run_golden(options: argparse.Namespace) -> int | None:
    """Run one command of the golden reference."""
    try:
        return GOLDEN[options.action](options)
    except BrokenPipeError:
        raise  # the reader of the output has gone: no file is at fault
    except BrokenExecutor:
        again = "the same command goes on with what is left"
        raise UsageError(
            f"a process was killed or ran out of memory; {again}"
        ) from None
    except OSError as error:
        raise UsageError(in_words(error)) from None
    except MemoryError:
        raise UsageError("out of memory") from None
    except ValueError as error:
        raise UsageError(str(error)) from None


RUN = {"golden": run_golden}
