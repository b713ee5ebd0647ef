"""The command ``npllama convert``: a public checkpoint becomes one ``.npz``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from npllama.cli.options import UsageError, one_line
from npllama.convert.convert import convert, megabytes
from npllama.files.ending import INTERRUPTED, Ended
from npllama.files.whole import stamp_of

DTYPES = ("float32", "float16", "bfloat16")


def add_commands(commands) -> None:
    """Add ``convert``."""
    command = commands.add_parser(
        "convert",
        help="make an .npz of a public checkpoint",
        description="Convert a LLaMA checkpoint to the .npz that npllama loads.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("source", metavar="SRC",
           help="folder of Hugging Face or Meta, a .gguf, a .bin of llama2.c, or an "
           "installed package that holds a .gguf")
    option("out", metavar="OUT.npz", type=Path, help="file to write")
    option("--dtype", choices=DTYPES, default="float32",
           help="how weights are stored; float32 loads without a copy (default)")
    option("--adapter", type=Path, metavar="DIR",
           help="folder of a LoRA adapter (PEFT) to merge into the weights")
    option("--no-tokenizer", action="store_true",
           help="leave the tokenizer out: the model reads and writes token ids")
    option("--context", type=int, metavar="N",
           help="positions that the model may see (default: what the source says); "
           "what it says beyond its own is unproved")
    option("--quiet", action="store_true", help="no bar and no summary")
    # fmt: on


def run_convert(options: argparse.Namespace) -> int:
    """Convert one checkpoint; say what the user should know about it."""
    if options.out.suffix != ".npz":
        raise UsageError(f"{options.out}: the result's name should end in .npz")
    _need_ml_dtypes(options.dtype)
    before = stamp_of(options.out)
    try:
        done = convert(
            options.source,
            options.out,
            options.dtype,
            quiet=options.quiet,
            tokenizer=not options.no_tokenizer,
            context=options.context,
            adapter=options.adapter,
        )
    except (KeyboardInterrupt, Ended):
        # The file may have got its name in the moment before.
        whole = stamp_of(options.out) != before
        written = f"{options.out} is whole" if whole else "nothing was written"
        _complain(f"interrupted; {written}")
        return INTERRUPTED
    except OSError as error:
        error.filename = error.filename or str(options.out)
        raise
    for note in done.notes:
        _complain(f"warning: {note}")
    if not options.quiet:
        size = megabytes(options.out.stat().st_size)
        _say(f"{options.out}: {len(done.tensors)} tensors, {options.dtype}, {size}")
    return 0


def _need_ml_dtypes(dtype: str) -> None:
    if dtype == "bfloat16":
        try:
            import ml_dtypes  # noqa: F401
        except ImportError:
            raise ValueError(
                "--dtype bfloat16: needs ml_dtypes; pip install 'npllama[convert]'"
            ) from None


def _say(message: str) -> None:
    """Print a line; a closed output is not a failure of the conversion."""
    try:
        print(message, flush=True)
    except OSError:
        # Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> None:
    print(f"npllama convert: {one_line(message)}", file=sys.stderr)


RUN = {"convert": run_convert}
