"""``npllama kv-bits``: what a cache in fewer bits takes and loses."""

from __future__ import annotations

import argparse
import json

from npllama.cli.kv_options import GROUP, checked
from npllama.cli.options import UsageError
from npllama.cli.perplexity import read_text
from npllama.compression.kv_rounding import Rule, Rules, q8_0
from npllama.compression.kv_texts import Loss, losses
from npllama.cost.tables import markdown
from npllama.decoding.common import context_length
from npllama.files.checkpoint import load
from npllama.generation.task import encode_prompt

# What keys, and values, have scales of their own for; KIVI's way first.
WAYS = (
    ("channel", "token"),
    ("token", "token"),
    ("channel", "channel"),
    ("token", "channel"),
)


def add_commands(commands) -> None:
    """Add ``kv-bits``."""
    command = commands.add_parser(
        "kv-bits",
        help="what a cache in fewer bits takes and loses",
        description="Read a text over caches in fewer bits: their size, and how far "
        "the model's distributions are from those over a plain cache.",
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("file", metavar="FILE", help="a text in UTF-8; '-' reads stdin")
    option("--weights", default="stories", metavar="MODEL",
           help="an .npz, or the name of a shipped model (default: stories)")
    option("--bits", default="8,4,2", metavar="LIST",
           help="bits of a number, with commas (default: 8,4,2)")
    option("--q-group-size", type=int, default=GROUP, metavar="G",
           help=f"numbers that share a scale (default: {GROUP})")
    option("--residual-length", type=int, default=GROUP, metavar="R",
           help="last positions that stay floats, and tokens that are read at a time "
           f"(default: {GROUP})")
    option("--length", type=int, default=512, metavar="N",
           help="tokens of the text that are read (default: 512)")
    option("--json", action="store_true", help="print one JSON object")
    # fmt: on


def run_kv_bits(options: argparse.Namespace) -> None:
    """Read a text over caches of several bits, and print what they lose."""
    several = several_of(options)
    model = load(options.weights)
    tokens = encode_prompt(model, read_text(options.file))
    most = min(max(options.length, 2), context_length(model.config) + 1)
    found = losses(model, tokens[:most], several, options.residual_length)
    if options.json:
        print(json.dumps([as_json(loss) for loss in found]))
        return
    print(markdown([HEAD, *map(row_of, found)]))
    counted = len(tokens[:most]) - 1 - options.residual_length
    print(
        f"\n{counted} tokens after the first {options.residual_length}; over a plain "
        f"cache their perplexity is {found[0].quality.before:.3f}"
    )


def several_of(options: argparse.Namespace) -> list[Rules]:
    """All rules that are compared."""
    try:
        bits = [int(word) for word in options.bits.split(",")]
    except ValueError:
        raise UsageError(f"--bits {options.bits!r:.40}: numbers with commas") from None
    group, residual = options.q_group_size, options.residual_length
    several = []
    for b in bits:
        for keys, values in WAYS:
            rules = Rules(Rule(b, keys, group), Rule(b, values, group), residual)
            several.append(checked(rules))
    return [*several, q8_0()._replace(residual=residual)]


HEAD = (
    "bits",
    "keys per",
    "values per",
    "bits in all",
    "MB",
    "KL, nats",
    "same token",
    "perplexity",
)


def row_of(loss: Loss) -> tuple[str, ...]:
    """One line of the table."""
    keys, values, quality = loss.rules.keys, loss.rules.values, loss.quality
    return (
        f"{keys.bits}{', q8_0' if keys.symmetric else ''}",
        keys.per,
        values.per,
        f"{loss.bits:.2f}",
        f"{loss.bytes / 1e6:.3f}",
        f"{quality.divergence:.2g}",
        f"{quality.agreement:.1%}",
        f"{quality.perplexity:.3f}",
    )


def as_json(loss: Loss) -> dict:
    """The same as a dict."""
    rules = {
        "keys": loss.rules.keys._asdict(),
        "values": loss.rules.values._asdict(),
        "residual": loss.rules.residual,
    }
    sizes = {"bytes": loss.bytes, "bits": loss.bits}
    return rules | sizes | loss.quality._asdict()


RUN = {"kv-bits": run_kv_bits}
