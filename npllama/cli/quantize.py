"""``npllama quantize``: the weights of a model rounded to a few bits."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from npllama.cli.options import UsageError
from npllama.cli.perplexity import read_text
from npllama.compression.calibrate import MATRICES, rows_of
from npllama.compression.folder import BITS, settings_of, write_folder
from npllama.compression.gptq import Recipe
from npllama.compression.quantize import (
    METHODS,
    FinishedBlocks,
    Plan,
    Report,
    check,
    mark_of,
    quantised,
    tensors_of,
)
from npllama.convert.convert import megabytes
from npllama.decoding import context_length
from npllama.files.checkpoint import locate, lost_on_the_way, save
from npllama.files.ending import Ended
from npllama.files.npz import read_npz
from npllama.files.whole import check_folder, check_place
from npllama.generation.task import encode_prompt
from npllama.golden.streamed import StreamedModel
from npllama.weights import LAYER_NAMES, Model

LONGEST = 2048  # tokens of a row, as published
HELD_OUT = 1024  # tokens, at least, that the divergence is measured on


def add_commands(commands) -> None:
    """Add ``quantize``."""
    command = commands.add_parser(
        "quantize",
        help="round a model's weights to a few bits",
        description="Round a model's weights to a few bits. A run that was stopped "
        "goes on where it was when the same command is given again.",
        allow_abbrev=False,
    )
    option = command.add_argument
    says = "; ".join(f"{name}: {method.says}" for name, method in METHODS.items())
    # fmt: off
    option("model", metavar="MODEL", help="an .npz, or the name of a shipped model")
    option("out", metavar="OUT", type=Path,
           help="the .npz to write; or a new folder, in the layout of gptqmodel and "
           "transformers")
    option("--method", choices=METHODS, default="gptq", help=f"{says} (default: gptq)")
    add_grid_options(command)
    option("--calibrate", metavar="FILE",
           help="text of the kind that the model reads, or JSON lines of "
           '{"text": ...} or {"tokens": ...} (FILE.jsonl); what gptq and awq fit '
           "to, and all are judged by")
    option("--nsamples", type=int, default=128, metavar="N",
           help="rows of text to fit to, at most (default: 128)")
    option("--model-seqlen", type=int, metavar="N",
           help=f"tokens of a row (default: the context, {LONGEST} at most)")
    add_gptq_options(command)
    option("--json", action="store_true", help="print a JSON object for each block")
    # fmt: on


def add_grid_options(command: argparse.ArgumentParser) -> None:
    """The values that a weight may take."""
    option = command.add_argument_group("grid").add_argument
    # fmt: off
    option("--bits", type=int, default=4, choices=range(2, 9), metavar="N",
           help="of a weight, 2 to 8 (default: 4)")
    option("--group-size", type=int, default=128, metavar="N",
           help="inputs that share a scale; -1: all of a row (default: 128)")
    option("--sym", action=argparse.BooleanOptionalAction, default=True,
           help="a grid with as many steps on either side of 0 (default: on)")
    option("--nf4", action="store_true", help="the points of NF4 instead of even steps")
    option("--mse", type=float, metavar="P",
           help="clip large weights where the sum of |error|^P falls; 2.4 is published")
    # fmt: on


def add_gptq_options(command: argparse.ArgumentParser) -> None:
    """How methods are fitted to the text."""
    option = command.add_argument_group("fitting").add_argument
    on_off = argparse.BooleanOptionalAction
    # fmt: off
    option("--desc-act", action=on_off, default=False,
           help="gptq: columns of the largest inputs first (act-order; default: off)")
    option("--static-groups", action=on_off, default=False,
           help="gptq: all scales before any weight moves (default: off)")
    option("--damp-percent", type=float, default=0.01, metavar="X",
           help="gptq: part of the mean of H added to its diagonal (default: 0.01)")
    option("--true-sequential", action=on_off, default=True,
           help="inputs of a matrix come from the rounded ones before it in its block "
           "(default: on)")
    option("--float-inputs", action="store_true",
           help="inputs come from the model in floats alone")
    # fmt: on


def run_quantize(options: argparse.Namespace) -> None:
    """Round the blocks of a model, and put them together."""
    plan, path = plan_of(options), locate(options.model)
    check_out(options.out, plan, path)
    model = StreamedModel(path, "float32")
    refuse_packed(model, path)
    rows, held_out = texts_of(options, model)
    kept = FinishedBlocks(
        options.out.with_name(f"{options.out.name}.blocks"), mark_of(path, plan, rows)
    )
    tell = Teller(options.json, model.config.num_hidden_layers)
    try:
        with tell.bar():
            for report in quantised(model, rows, held_out, plan, kept):
                tell.block(report)
    except (KeyboardInterrupt, Ended):
        if kept.folder.exists():
            again = f"finished blocks are in {kept.folder}; the same command goes on"
            print(f"npllama quantize: {again}", file=sys.stderr)
        raise
    count = len(MATRICES) * model.config.num_hidden_layers
    if options.out.suffix == ".npz":
        write_npz(options.out, path, model, kept, said(plan, count))
    else:
        tensors, files = tensors_of(model, kept), read_npz(path).files
        write_folder(options.out, model.config, tensors, plan, model.kind, files)
    kept.clear()
    if not options.json:
        sizes = [megabytes(size_of(p)) for p in (options.out, path)]
        print(f"{options.out}: {sizes[0]}; {options.model}: {sizes[1]}")


def check_out(out: Path, plan: Plan, path: Path) -> None:
    """Raise UsageError, before the work, if the result cannot be written."""
    try:
        if out.suffix == ".npz":
            check_place(out, {"the model": path})
            return
        if out.suffix:
            raise ValueError(f"{out}: name an .npz, or a folder without an ending")
        check_folder(out)
        settings_of(plan)
        if plan.recipe.bits not in BITS:
            raise ValueError(f"{out}: GPTQ's layout has {BITS} bits; an .npz has all")
        import safetensors.numpy  # noqa: F401
    except ValueError as error:
        raise UsageError(str(error)) from None
    except ImportError:
        raise UsageError(
            f"{out}: a folder needs safetensors: pip install 'npllama[convert]'"
        ) from None


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def plan_of(options: argparse.Namespace) -> Plan:
    """The options as a plan; UsageError if they do not go together."""
    if options.group_size < 1 and options.group_size != -1:
        raise UsageError(f"--group-size {options.group_size}: 1 or more, or -1")
    if options.nsamples < 1:
        raise UsageError(f"--nsamples {options.nsamples}: 1 or more")
    if not 0 <= options.damp_percent <= 1:
        raise UsageError(f"--damp-percent {options.damp_percent}: from 0 to 1")
    if options.mse is not None and not 0 < options.mse <= 10:
        raise UsageError(f"--mse {options.mse}: above 0, and 10 at most")
    if options.nf4 and options.bits != 4:
        raise UsageError(f"--nf4 has 4 bits, not {options.bits}")
    if METHODS[options.method].needs_inputs and options.calibrate is None:
        raise UsageError(f"--method {options.method} needs a text: --calibrate FILE")
    recipe = Recipe(
        options.bits,
        "nf4" if options.nf4 else "symmetric" if options.sym else "asymmetric",
        "channel" if options.group_size == -1 else options.group_size,
        options.mse,
        options.desc_act,
        options.static_groups,
        options.damp_percent,
    )
    plan = Plan(options.method, recipe, options.true_sequential, options.float_inputs)
    try:
        check(plan)
    except ValueError as error:
        raise UsageError(f"--method {error}") from None
    return plan


def refuse_packed(model: StreamedModel, path: Path) -> None:
    """Raise UsageError if the weights are in few bits already."""
    if any(not isinstance(w, np.ndarray) for w in model.tensors.values()):
        raise UsageError(f"{path}: its weights are in few bits already")


#  ---- texts -------------------------------------------------------------------


def texts_of(
    options: argparse.Namespace, model: StreamedModel
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of tokens to fit to, and the last ones of the file, to judge by."""
    if options.calibrate is None:
        return [], []
    front = model.tokenizer.front if model.tokenizer else ()
    length = options.model_seqlen or min(context_length(model.config), LONGEST)
    if not 2 <= length <= context_length(model.config):
        raise UsageError(f"--model-seqlen {length}: from 2 to the model's context")
    tokens = []
    for text in read(options.calibrate):
        ids = encode_prompt(cast(Model, model), text)
        begins = tuple(ids[: len(front)]) == front
        tokens.append(ids[len(front) :] if begins else ids)
    try:
        rows = rows_of(tokens, front, length)
    except ValueError as error:
        raise UsageError(f"--model-seqlen: {error}") from None
    rows, held_out = held_back(rows)
    if not rows:
        raise UsageError(f"{options.calibrate}: too short; two rows of text are needed")
    return rows[: options.nsamples], held_out


def held_back(
    rows: list[np.ndarray], least: int = HELD_OUT
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All rows but the last ones; and those, so many tokens or half of the rows."""
    n, tokens = 0, 0
    while tokens < least and 2 * (n + 1) <= len(rows):
        n += 1
        tokens += rows[-n].shape[1]
    return rows[: len(rows) - n], rows[len(rows) - n :]


def read(name: str) -> Iterator[str | list[int]]:
    """The texts of a file: a whole file, or those of its lines of JSON."""
    whole = read_text(name)
    if not name.endswith(".jsonl"):
        yield whole
        return
    # Not splitlines: it also splits at line ends that JSON allows inside a text.
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        text = entry.get("text", entry.get("tokens")) if isinstance(entry, dict) else 0
        if not isinstance(text, (str, list)):
            raise UsageError(
                f'{name}: line {number} is not {{"text": ...}} or {{"tokens": ...}}'
            )
        yield text


#  ---- what is shown -----------------------------------------------------------


class Teller:
    """Tells of every block, under a bar if someone is looking."""

    def __init__(self, as_json: bool, total: int):
        self.as_json, self.total, self.advance = as_json, total, None
        self.begun = False

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show a bar on the terminal, if tqdm is installed."""
        try:
            from tqdm import tqdm
        except ImportError:
            tqdm = None
        if tqdm is None or not sys.stderr.isatty():
            yield
            return
        with tqdm(total=self.total, unit="block", leave=False) as bar:
            self.advance = bar.update
            yield

    def block(self, report: Report) -> None:
        """Print the losses of a block's matrices, and the divergence."""
        if self.advance:
            self.advance()
        if self.as_json:
            print(json.dumps(report._asdict()), flush=True)
            return
        if not self.begun:
            names = [LAYER_NAMES[word].split(".")[-2] for word in report.losses]
            print("block", *(f"{name:>10}" for name in names), "       KL")
            self.begun = True
        apart = "" if report.divergence is None else f"{report.divergence:.2e}"
        losses = (f"{x:10.2e}" for x in report.losses.values())
        print(f"{report.number:5}", *losses, f"{apart:>9}", flush=True)


def said(plan: Plan, count: int) -> str:
    """What was done, in a line for ``npllama info``."""
    recipe = plan.recipe
    group = (
        "a scale per row" if recipe.group == "channel" else f"groups of {recipe.group}"
    )
    more = "" if METHODS[plan.method].own_values else f", {recipe.kind}"
    more += ", act-order" if recipe.act_order else ""
    return (
        f"quantised by {plan.method}, {recipe.bits} bits, {group}{more}: "
        f"{count} tensors"
    )


def write_npz(
    out: Path, path: Path, model: StreamedModel, kept: FinishedBlocks, line: str
) -> None:
    """Put the blocks together with what stays in floats."""
    files = dict(read_npz(path).files)
    about: dict[str, Any] = json.loads(files.pop("npllama.json", b"{}"))
    files.pop("config.json")
    for name in ("dtype", "packed"):
        about.pop(name, None)
    lost = {"lost": [*lost_on_the_way(path), line]}
    tensors = tensors_of(model, kept)
    save(
        out,
        model.config,
        tensors,
        dtype=model.kind,
        files=files,
        metadata=about | lost,
    )


RUN = {"quantize": run_quantize}
