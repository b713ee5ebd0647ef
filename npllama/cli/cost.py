"""The command line of what it costs: ``npllama flops`` and ``npllama roofline``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from npllama.cli.options import UsageError
from npllama.config import PRESETS, Config, config_from_hf, preset
from npllama.cost.formulas import (
    Operator,
    cache_bytes,
    check_pass,
    generation,
    parameters,
    total,
)
from npllama.cost.hardware import HARDWARE, Hardware
from npllama.cost.meetings import CAUSAL
from npllama.cost.memory import activation_peak
from npllama.cost.plot import draw_roofline
from npllama.cost.probe import THIS_MACHINE, hardware
from npllama.cost.roofline import (
    BYTES,
    Phase,
    Prediction,
    compute_bound_batch,
    dtypes,
    most_tokens,
    offload_seconds,
    predict,
    speculative_speedup,
    token_bytes,
    weight_bytes,
)
from npllama.cost.tables import TABLES, markdown
from npllama.cost.textbook import without_cache
from npllama.files.checkpoint import locate
from npllama.files.npz import read_npz

MOST = 10**7  # of rows or positions: beyond that, a figure was mistyped
MOST_GUESSES = 1000
LARGEST = 1e9  # of TFLOP/s, GB and GB/s


def add_commands(commands) -> None:
    """Add ``flops`` and ``roofline``."""
    flops = commands.add_parser(
        "flops",
        help="what a text costs, operator by operator",
        description="What a text costs, operator by operator; nothing is run.",
    )
    add_sizes(flops, needed=False)
    flops.add_argument(
        "--causal",
        choices=CAUSAL,
        default="square",
        help="which pairs of positions attention multiplies (default: square)",
    )
    flops.add_argument(
        "--table", choices=TABLES, help="print a table of cost/README.md instead"
    )
    roof = commands.add_parser(
        "roofline",
        help="what a machine could do",
        description="How long a text takes on a machine, at best.",
    )
    add_sizes(roof, needed=True)
    add_machine(roof)
    option = roof.add_argument
    kinds = ", ".join(BYTES)
    # fmt: off
    option("--weights-dtype", metavar="DTYPE",
           help=f"{kinds} (default: fp16; on {THIS_MACHINE} fp32)")
    option("--cache-dtype", metavar="DTYPE", help="fp16, or fp32 with such weights")
    option("--acceptance", type=float, metavar="P",
           help="speculation: probability that a guess is kept")
    option("--guesses", type=int, default=4, metavar="N", help="per round (default: 4)")
    option("--draft-cost", type=float, default=0.1, metavar="C",
           help="a pass of the draft, as a part of one of the model (default: 0.1)")
    option("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf")
    # fmt: on


def add_sizes(command: argparse.ArgumentParser, needed: bool) -> None:
    """What is run: a model, rows, positions."""
    option = command.add_argument
    # fmt: off
    option("--config", required=needed, metavar="MODEL",
           help="a preset, a config.json, or an .npz")
    option("--batch", type=int, default=1, metavar="B", help="rows (default: 1)")
    option("--prompt", type=int, default=512, metavar="T",
           help="positions of each prompt (default: 512)")
    option("--new-tokens", type=int, default=128, metavar="N",
           help="tokens to make of each (default: 128)")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def add_machine(command: argparse.ArgumentParser) -> None:
    """Which machine: by name, or by numbers."""
    option = command.add_argument
    # fmt: off
    option("--hardware", metavar="NAME",
           help=f"{', '.join(HARDWARE)} or {THIS_MACHINE}, which is measured; the last "
                "is the default unless --tflops and --bandwidth are given")
    option("--tflops", type=float, metavar="X", help="TFLOP/s instead of the machine's")
    option("--bandwidth", type=float, metavar="X", help="GB/s of its memory")
    option("--memory", type=float, metavar="X", help="GB of memory")
    option("--storage", type=float, metavar="X",
           help="GB/s from where that lies which the memory cannot hold")
    # fmt: on


#  ---- what was asked ---------------------------------------------------------


def read_config(name: str) -> Config:
    """A config by preset, from a ``config.json`` or from an ``.npz``."""
    if name in PRESETS:
        return preset(name)
    try:
        path = locate(name)
    except FileNotFoundError:
        known = ", ".join(PRESETS)
        raise UsageError(
            f"no config {name!r}: no such file, and no preset of {known}"
        ) from None
    try:
        if path.suffix == ".npz":
            text = read_npz(path).files.get("config.json", b"null")
        else:
            text = path.read_bytes()
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("no JSON object of a config")
        return config_from_hf(data)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # An .npz says its own name already.
        words = str(error).removeprefix(f"{path}: ")
        raise UsageError(f"{path}: {words}") from None


def sizes(options: argparse.Namespace) -> tuple[int, int, int]:
    """Batch, prompt and new tokens, each a number that can be meant."""
    found = (options.batch, options.prompt, options.new_tokens)
    for name, value in zip(("--batch", "--prompt", "--new-tokens"), found):
        if not 1 <= value <= MOST:
            raise UsageError(f"{name} is {value}; it must be 1 to {MOST:,}")
    check_pass(*found[:2])
    return found


def machine_of(options: argparse.Namespace) -> Hardware:
    """The machine that was named, with the numbers that were given."""
    changes = {"bandwidth": 1e9, "memory": 1e9, "storage": 1e9, "tflops": 1e12}
    given = {}
    for name, unit in changes.items():
        value = getattr(options, name)
        if value is not None:
            if not 0 < value <= LARGEST:
                most = f"{LARGEST:.0e}"
                raise UsageError(f"--{name} is {value}; it must be above 0, to {most}")
            given[name] = value * unit
    if "tflops" in given:
        given["flops"] = {"fp32": given.pop("tflops")}
    if options.hardware is None and {"flops", "bandwidth"} <= set(given):
        return Hardware("these numbers", **given)
    try:
        found = hardware(options.hardware or THIS_MACHINE)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return found._replace(**given)


#  ---- flops ------------------------------------------------------------------

FLOPS_HEAD = ("", "FLOPs", "share", "elements moved", "FLOPs/element")


def run_flops(options: argparse.Namespace) -> None:
    """Print what a text costs, or one of the README's tables."""
    if options.table:
        rows = TABLES[options.table]()
        print(json.dumps(rows) if options.json else markdown(rows))
        return
    if options.config is None:
        raise UsageError("--config MODEL or --table NAME is needed")
    config, (batch, prompt, new) = read_config(options.config), sizes(options)
    phases = generation(config, batch, prompt, new, causal=options.causal)
    parts = parameters(config)
    facts = {
        "parameters": sum(parts.values()),
        "cache bytes per token, fp16": cache_bytes(config),
        "cache bytes of the text, fp16": cache_bytes(
            config, batch * (prompt + new - 1)
        ),
        "activations at most, elements": activation_peak(
            config, batch, prompt, last=True
        ),
        "FLOPs without a cache": total(without_cache(config, batch, prompt, new)).flops,
    }
    if options.json:
        told = {name: list(map(as_dict, ops)) for name, ops in phases._asdict().items()}
        whole = {"causal": options.causal, **told, **facts, "components": parts}
        print(json.dumps(whole))
        return
    for name, ops in phases._asdict().items():
        positions = batch * (prompt if name == "prefill" else new - 1)
        if not positions:
            print("decode: none, the prompt's own pass gives the first new token\n")
            continue
        print(f"{name}: {positions:,} positions, causal attention as {options.causal}")
        print(aligned([FLOPS_HEAD, *flops_rows(ops)]), end="\n\n")
    for fact, number in facts.items():
        print(f"{fact} {number:,.0f}")


def as_dict(op: Operator) -> dict[str, Any]:
    """An operator with what follows from it."""
    return op._asdict() | {"mops": op.mops, "flops_per_element": intensity(op)}


def intensity(op: Operator) -> float:
    """FLOPs per element moved; 0 where nothing is."""
    return op.intensity if op.mops else 0.0


def flops_rows(ops: Sequence[Operator]) -> Iterable[tuple[str, ...]]:
    """A line for each operator, and their sum."""
    whole = total(ops)
    for op in (*ops, whole):
        share = f"{100 * op.flops / max(whole.flops, 1):.1f}%"
        yield (op.name, f"{op.flops:,}", share, f"{op.mops:,}", f"{intensity(op):.2f}")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(cells: Sequence[str]) -> str:
        figures = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))
        return "  ".join([cells[0].ljust(widths[0]), *figures])

    return "\n".join(map(line, rows))


#  ---- roofline ---------------------------------------------------------------

ROOF_HEAD = ("", "FLOPs", "bytes", "FLOPs/byte", "time", "bound by")


def run_roofline(options: argparse.Namespace) -> None:
    """Print, and draw if asked, what a machine could do."""
    config, (batch, prompt, new) = read_config(options.config), sizes(options)
    ours = options.hardware == THIS_MACHINE
    ours |= options.hardware is None and None in (options.tflops, options.bandwidth)
    # What is measured, and what npllama computes in, is fp32.
    weights = options.weights_dtype or ("fp32" if ours else "fp16")
    try:
        kinds = dtypes(weights, options.cache_dtype)
    except ValueError as error:
        raise UsageError(str(error)) from None
    machine, causal = machine_of(options), "blocks" if ours else "square"
    found = predict(config, machine, batch, prompt, new, kinds, causal)
    facts = summary(options, config, machine, kinds, found)
    if options.plot:
        draw(options, machine, kinds, found)
    if options.json:
        phases = {"prefill": found.prefill, "decode": found.decode}
        told = {name: phase_dict(part) for name, part in phases.items()}
        data = {"hardware": machine._asdict(), "dtypes": kinds._asdict()}
        print(json.dumps(data | told | facts))
        return
    roof = f"{machine.rate(kinds.arithmetic) / 1e12:.4g} TFLOP/s"
    print(
        f"{machine.name}: {roof}, {machine.bandwidth / 1e9:,.4g} GB/s; "
        f"weights {kinds.weights}, cache {kinds.cache}"
    )
    for name, part in (
        ("prefill", found.prefill),
        ("one step of decode", found.decode),
    ):
        print(f"\n{name}: bound by {part.bound}")
        print(aligned([ROOF_HEAD, *roof_rows(part)]))
        if part.between:
            print(f"between the products: {said_time(part.between)} of it")
    print()
    for fact, value in facts.items():
        print(f"{fact}: {said(value)}")


def summary(options, config, machine: Hardware, kinds, found: Prediction) -> dict:
    """What follows from the prediction, by name."""
    batch, prompt, new = sizes(options)
    cached = batch * (prompt + new - 1) * token_bytes(config, kinds)
    held = weight_bytes(config, kinds) + cached
    facts: dict[str, Any] = {
        "ridge, FLOPs/byte": machine.ridge(kinds.arithmetic),
        "time to first token, s": found.prefill.seconds,
        "prefill, tokens/s": found.prefill.rate,
        "time per token, s": found.per_token,
        "decode, tokens/s": found.decode.rate,
        "the whole text, s": found.seconds,
        "batch at which decode is bound by computing": compute_bound_batch(
            config, machine, prompt, kinds
        ),
        "the same with an empty cache": compute_bound_batch(config, machine, 0, kinds),
        "weights, GB": weight_bytes(config, kinds) / 1e9,
        "cache of the text, GB": cached / 1e9,
    }
    fit = most_tokens(config, machine, kinds)
    if fit is not None:
        facts["positions that fit beside the weights"] = fit
        facts["rows of this text that fit"] = fit // (prompt + new - 1)
    if machine.memory is not None and held > machine.memory:
        facts["does not fit, GB"] = (held - machine.memory) / 1e9
        if machine.storage is not None:
            seconds = offload_seconds(held, machine.memory, machine.storage)
            facts["time per token from storage, s"] = seconds
            facts["decode from storage, tokens/s"] = batch / seconds
    if options.acceptance is not None:
        drafted = (options.acceptance, options.guesses, options.draft_cost)
        if options.guesses > MOST_GUESSES:
            raise UsageError(f"--guesses is {options.guesses}; at most {MOST_GUESSES}")
        try:
            facts["speculation, times faster"] = speculative_speedup(*drafted)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return facts


def draw(options, machine: Hardware, kinds, found: Prediction) -> None:
    """Write the picture."""
    title = f"{options.config} on {machine.name}"
    try:
        draw_roofline(options.plot, machine, kinds, found, title)
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib: pip install 'npllama[plot]'"
        ) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def phase_dict(part: Phase) -> dict[str, Any]:
    """A phase for JSON."""
    operators = [
        op._asdict() | {"seconds": op.seconds, "bound": op.bound}
        for op in part.operators
    ]
    return {
        "seconds": part.seconds,
        "bound": part.bound,
        "between": part.between,
        "operators": operators,
    }


def roof_rows(part: Phase) -> Iterable[tuple[str, ...]]:
    """A line for each operator, and their sum."""
    for op in part.operators:
        figures = (f"{op.flops:,}", f"{op.bytes:,.0f}", f"{op.intensity:.2f}")
        yield (op.name, *figures, said_time(op.seconds), op.bound)
    flops, moved = (
        sum(getattr(op, key) for op in part.operators) for key in ("flops", "bytes")
    )
    figures = (f"{flops:,}", f"{moved:,.0f}", f"{flops / moved:.2f}")
    yield ("total", *figures, said_time(part.seconds), part.bound)


def said_time(seconds: float) -> str:
    """With a unit that suits."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-9:.3g} ns"


def said(value: float | int | None) -> str:
    """A number for people."""
    if value is None:
        return "never"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


RUN = {"flops": run_flops, "roofline": run_roofline}
