"""``--cache-bits`` of ``generate`` and ``perplexity``: keys and values in few bits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from npllama.cache import KVCache
from npllama.cli.options import CACHE, UsageError, titled
from npllama.compression.kv_rounding import Rules, check_rules, kivi
from npllama.compression.kv_texts import bits_per_number, cache_for
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Helpers, plan_of, prepare
from npllama.weights import Model

GROUP, RESIDUAL = 32, 128  # KIVI's


def add_kv_options(command: argparse.ArgumentParser) -> None:
    """How keys and values are rounded."""
    option = titled(command, CACHE).add_argument
    # fmt: off
    option("--cache-bits", type=int, metavar="B",
           help="keep keys (per channel) and values (per token) in 1 to 8 bits, as KIVI "
           "does (in transformers: cache_implementation=\"quantized\", nbits)")
    option("--q-group-size", type=int, metavar="G",
           help=f"with --cache-bits: numbers that share a scale (default: {GROUP})")
    option("--residual-length", type=int, metavar="R",
           help="with --cache-bits: last positions that stay floats, a multiple of G "
           f"(default: {RESIDUAL}, or G if that is more)")
    # fmt: on


def rules_of(options: argparse.Namespace) -> Rules | None:
    """How the cache is rounded, or None.

    Raises
    ------
    UsageError
        If it cannot be rounded so, or an option has nothing to say.
    """
    bits, group = options.cache_bits, options.q_group_size
    if bits is None:
        for name in ("q_group_size", "residual_length"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for --cache-bits")
        return None
    group = GROUP if group is None else group
    residual = options.residual_length
    residual = (
        max(group, RESIDUAL // max(group, 1) * group) if residual is None else residual
    )
    return checked(kivi(bits, group, residual))


def checked(rules: Rules) -> Rules:
    """The same rules; UsageError if they cannot be."""
    try:
        check_rules(rules)
    except ValueError as error:
        raise UsageError(f"--cache-bits: {error}") from None
    return rules


def cache_of(
    options: argparse.Namespace,
    model: Model,
    prompt: Sequence[int],
    config: GenerationConfig,
    helpers: Helpers,
) -> KVCache | None:
    """The cache in fewer bits in which a text grows, if that was asked for.

    Raises
    ------
    UsageError
        If that cannot be done as it was asked for.
    """
    rules = rules_of(options)
    if rules is None:
        return None
    if any(helper is not None for helper in helpers):
        raise UsageError("--cache-bits: a text without helping models")
    for name in "json save_cache load_cache stream_window".split():
        if getattr(options, name):
            raise UsageError(f"--cache-bits: no --{name.replace('_', '-')}")
    task = prepare(plan_of(model, config, helpers), prompt)
    return cache_for(model, task.capacity, rules)


def tell_cache(cache: KVCache | None) -> None:
    """Say on stderr how large a cache in fewer bits is."""
    if cache is None:
        return
    size = cache.k.nbytes + cache.v.nbytes
    plain = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in (cache.k, cache.v))
    print(
        f"[cache: {size / 1e6:.2f} MB, {bits_per_number(cache):.2f} bits per number; "
        f"as {cache.k.dtype} {plain / 1e6:.2f} MB]",
        file=sys.stderr,
    )
