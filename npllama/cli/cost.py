"""The commands about cost: ``npllama flops`` and ``npllama roofline``."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any, NamedTuple

from npllama.cli.options import UsageError
from npllama.cli.plots import check_picture, drawn
from npllama.config import PRESETS, Config, config_from_hf, preset
from npllama.cost.cards import one_card
from npllama.cost.curves import curve
from npllama.cost.facts import Text, flops_facts, room_facts, speed_facts, verdict
from npllama.cost.formulas import check_pass, generation, parameters, total
from npllama.cost.hardware import HARDWARE, Hardware
from npllama.cost.meetings import CAUSAL
from npllama.cost.plot import draw_curve, draw_roofline
from npllama.cost.printed import (
    curve_table,
    number_text,
    operator_dict,
    operator_table,
    phase_dict,
    phase_table,
)
from npllama.cost.probe import THIS_MACHINE, hardware
from npllama.cost.roofline import (
    BYTES,
    FUSED,
    Dtypes,
    Prediction,
    dtypes,
    predict,
    speculative_speedup,
)
from npllama.cost.tables import TABLES, markdown
from npllama.files.checkpoint import locate
from npllama.files.npz import read_npz

MOST = 10**7  # of rows or positions: beyond that, a figure was mistyped
MOST_GUESSES = 1000
GUESSES, DRAFT_COST = 4, 0.1  # unless given
MOST_CARDS = 1024
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
    add_kinds(roof)


def add_kinds(command: argparse.ArgumentParser) -> None:
    """What numbers are kept in, how attention is counted, and how speeds are shown."""
    option = command.add_argument
    kinds = ", ".join(BYTES)
    # fmt: off
    option("--weights-dtype", metavar="DTYPE",
           help=f"{kinds} (default: fp16; on {THIS_MACHINE} fp32)")
    option("--group-size", type=int, metavar="G",
           help="weights that share a scale of 16 bits and a zero (default: not counted)")
    option("--cache-dtype", metavar="DTYPE",
           help="of the same (default: fp16, or fp32 with such weights)")
    option("--activations-dtype", metavar="DTYPE",
           help="what products are computed in (default: that of the cache's default)")
    option("--causal", choices=(*CAUSAL, FUSED),
           help="what attention multiplies and moves (default: fused, which no program "
                f"beats; on {THIS_MACHINE} blocks)")
    option("--acceptance", type=float, metavar="P",
           help="speculation: probability that a guess is kept")
    option("--guesses", type=int, metavar="N",
           help=f"with --acceptance: per round (default: {GUESSES})")
    option("--draft-cost", type=float, metavar="C",
           help="with --acceptance: a pass of the draft, as a part of one of the model "
                f"(default: {DRAFT_COST})")
    option("--over", choices=("batch", "context"),
           help="a table of speeds over the batch or the context, as far as it fits")
    option("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf")
    # fmt: on


def add_sizes(command: argparse.ArgumentParser, needed: bool) -> None:
    """The options for sizes: a model, rows, positions."""
    option = command.add_argument
    # fmt: off
    option("--config", required=needed, metavar="MODEL",
           help=f"a config.json, an .npz, or one of {', '.join(PRESETS)}")
    option("--batch", type=int, default=1, metavar="B", help="rows (default: 1)")
    option("--prompt", type=int, default=512, metavar="T",
           help="positions of each prompt (default: 512)")
    option("--new-tokens", type=int, default=128, metavar="N",
           help="tokens to make of each (default: 128)")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def add_machine(command: argparse.ArgumentParser) -> None:
    """The options for a machine: its name, or its numbers."""
    option = command.add_argument
    # fmt: off
    option("--hardware", metavar="NAME",
           help=f"{', '.join(HARDWARE)} or {THIS_MACHINE}, which is measured; the last "
                "is the default unless --tflops and --bandwidth are given")
    option("--tflops", type=float, metavar="X", help="TFLOP/s instead of the machine's")
    option("--bandwidth", type=float, metavar="X", help="GB/s of its memory")
    option("--memory", type=float, metavar="X", help="GB of memory")
    option("--reserve", type=float, default=0, metavar="X",
           help="GB of it that a driver and a runtime take (default: 0)")
    option("--cards", type=int, default=1, metavar="N",
           help="cards that share the model by tensor parallelism (default: 1)")
    option("--link", type=float, metavar="X", help="GB/s from one card to the others")
    option("--mfu", type=float, default=1, metavar="X",
           help="part of the FLOP/s that a program reaches (default: 1)")
    option("--mbu", type=float, default=1, metavar="X",
           help="part of the GB/s that a program reaches (default: 1)")
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
        data = _parsed(text)
        if not isinstance(data, dict):
            raise ValueError("no JSON object of a config")
        return config_from_hf(data)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        # An .npz says its own name already.
        words = str(error).removeprefix(f"{path}: ")
        raise UsageError(f"{path}: {words}") from None


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None


def text_of(options: argparse.Namespace) -> Text:
    """Rows, positions and new tokens; UsageError for impossible numbers."""
    text = Text(options.batch, options.prompt, options.new_tokens)
    for name, value in zip(("--batch", "--prompt", "--new-tokens"), text):
        if not 1 <= value <= MOST:
            raise UsageError(f"{name} is {value}; it must be 1 to {MOST:,}")
    check_pass(text.batch, text.prompt)
    return text


def check_machine(options: argparse.Namespace, ours: bool) -> None:
    """Raise UsageError for impossible numbers, before this machine is measured."""
    for name in ("mfu", "mbu"):
        if not 0 < (part := getattr(options, name)) <= 1:
            raise UsageError(f"--{name} is {part}; it must be above 0, to 1")
    if not 0 <= options.reserve <= LARGEST:
        raise UsageError(f"--reserve is {options.reserve}; it must be 0 to 1e+09")
    if not 1 <= options.cards <= MOST_CARDS:
        raise UsageError(f"--cards is {options.cards}; it must be 1 to {MOST_CARDS}")
    if options.cards > 1 and ours:
        raise UsageError(f"--cards: {THIS_MACHINE} is one")


def machine_of(options: argparse.Namespace) -> Hardware:
    """The machine that was named, with the numbers that were given."""
    changes = {"bandwidth": 1e9, "memory": 1e9, "storage": 1e9, "link": 1e9}
    changes["tflops"] = 1e12
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
        found = Hardware("these numbers", **given)
    else:
        try:
            found = hardware(options.hardware or THIS_MACHINE)._replace(**given)
        except ValueError as error:
            raise UsageError(str(error)) from None
    if options.cards > 1 and found.link is None:
        raise UsageError(f"--cards: give --link GB/s, that of {found.name} is unknown")
    return found._replace(cards=options.cards).slowed(options.mfu, options.mbu)


#  ---- flops ------------------------------------------------------------------


def run_flops(options: argparse.Namespace) -> None:
    """Print what a text costs, or one of the README's tables."""
    if options.table:
        if options.config is not None:
            raise UsageError("--table has models of its own, so it takes no --config")
        rows = TABLES[options.table]()
        print(json.dumps(rows) if options.json else markdown(rows))
        return
    if options.config is None:
        raise UsageError("--config MODEL or --table NAME is needed")
    config, text = read_config(options.config), text_of(options)
    phases = generation(config, *text, causal=options.causal)._asdict()
    facts = flops_facts(config, text)
    if options.json:
        told: dict[str, Any] = {"causal": options.causal}
        told |= {name: list(map(operator_dict, ops)) for name, ops in phases.items()}
        told["totals"] = {n: operator_dict(total(ops)) for n, ops in phases.items()}
        print(json.dumps(told | facts | {"components": parameters(config)}))
        return
    for name, ops in phases.items():
        positions = text.batch * (text.prompt if name == "prefill" else text.new - 1)
        if not positions:
            print("decode: none, the prompt's own pass gives the first new token\n")
            continue
        print(f"{name}: {positions:,} positions, causal attention as {options.causal}")
        print(operator_table(ops), end="\n\n")
    for fact, number in facts.items():
        print(f"{fact} {number:,.0f}")


#  ---- roofline ---------------------------------------------------------------


class Asked(NamedTuple):
    """The options of ``roofline``, after they were checked."""

    config: Config
    text: Text
    machine: Hardware
    kinds: Dtypes
    causal: str
    speculation: dict[str, float]  # a fact, if it was asked for


def asked_of(options: argparse.Namespace) -> Asked:
    """Read and check all options, before anything is worked out.

    Raises
    ------
    UsageError
        If one of them is out of its range.
    """
    config, text = read_config(options.config), text_of(options)
    ours = options.hardware == THIS_MACHINE
    ours |= options.hardware is None and None in (options.tflops, options.bandwidth)
    # What is measured, and what npllama computes in, is fp32.
    weights = options.weights_dtype or ("fp32" if ours else "fp16")
    group = options.group_size
    if group is not None and not 1 <= group <= MOST:
        raise UsageError(f"--group-size is {group}; it must be 1 to {MOST:,}")
    speculation = speculation_of(options)
    check_machine(options, ours)
    try:
        kinds = dtypes(weights, options.cache_dtype, options.activations_dtype, group)
        config = one_card(config, options.cards)
    except ValueError as error:
        raise UsageError(str(error)) from None
    machine = machine_of(options)
    causal = options.causal or ("blocks" if ours else FUSED)
    return Asked(config, text, machine, kinds, causal, speculation)


def speculation_of(options: argparse.Namespace) -> dict[str, float]:
    """How much faster a draft makes it; nothing if none was asked for."""
    guesses, draft_cost = options.guesses, options.draft_cost
    if options.acceptance is None:
        if guesses is not None or draft_cost is not None:
            raise UsageError("--guesses and --draft-cost are for --acceptance")
        return {}
    if options.over:
        raise UsageError("--acceptance is not for --over")
    guesses = GUESSES if guesses is None else guesses
    draft_cost = DRAFT_COST if draft_cost is None else draft_cost
    if guesses > MOST_GUESSES:
        raise UsageError(f"--guesses is {guesses}; at most {MOST_GUESSES}")
    try:
        times = speculative_speedup(options.acceptance, guesses, draft_cost)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return {"speculation, times faster": times}


def run_roofline(options: argparse.Namespace) -> None:
    """Print the roofline, and draw it if asked."""
    check_picture(options.plot)
    asked = asked_of(options)
    config, text, machine, kinds, causal, speculation = asked
    if options.over:
        return print_curve(options, asked)
    found = predict(config, machine, *text, kinds, causal)
    facts = speed_facts(config, machine, kinds, text, found, causal)
    facts |= room_facts(config, machine, kinds, text, options.reserve * 1e9)
    facts |= speculation
    if options.plot:
        title = f"{options.config} on {called(machine)}"
        drawn(
            options.plot,
            partial(draw_roofline, options.plot, machine, kinds, found, title),
        )
    if options.json:
        phases = {"prefill": found.prefill, "decode": found.decode}
        told = {name: phase_dict(phase) for name, phase in phases.items()}
        data = {"hardware": machine._asdict(), "dtypes": kinds._asdict()}
        print(json.dumps(data | told | facts))
    else:
        print_roofline(asked, found, facts)


def print_curve(options: argparse.Namespace, asked: Asked) -> None:
    """Print speeds over the batch or the context, and draw them if asked."""
    config, text, machine, kinds, causal, _ = asked
    points = curve(config, machine, kinds, text, causal, options.over)
    if options.plot:
        title = f"{options.config} on {called(machine)}"
        drawn(
            options.plot, partial(draw_curve, options.plot, points, options.over, title)
        )
    if options.json:
        print(json.dumps([p._asdict() for p in points]))
    else:
        print(curve_table(points))


def called(machine: Hardware) -> str:
    """The name of a machine, and how many of it there are."""
    return machine.name if machine.cards == 1 else f"{machine.cards} x {machine.name}"


def print_roofline(asked: Asked, found: Prediction, facts: dict[str, Any]) -> None:
    """The verdict, the machine, both phases, and what follows from them."""
    machine, kinds = asked.machine, asked.kinds
    for line in verdict(asked.config, machine, kinds, asked.text):
        print(line)
    roof = f"{machine.rate(kinds.arithmetic) / 1e12:.4g} TFLOP/s"
    print(
        f"{called(machine)}: {roof}, {machine.bandwidth / 1e9:,.4g} GB/s; "
        f"weights {kinds.weights}, cache {kinds.cache}, products in "
        f"{kinds.arithmetic}, attention {asked.causal}"
    )
    phases = {"prefill": found.prefill, "one step of decode": found.decode}
    for name, phase in phases.items():
        print(f"\n{name}: bound by {phase.bound}\n{phase_table(phase)}")
    print()
    for fact, value in facts.items():
        print(f"{fact}: {number_text(value)}")


RUN = {"flops": run_flops, "roofline": run_roofline}
