"""Conclusions from the figures, printed after them by name.

The most important one is whether a text fits at all.  A machine whose memory cannot
hold weights and cache does not reach the speeds of a roofline, so this verdict comes
first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from npllama.config import Config
from npllama.cost.formulas import cache_bytes, parameters, total
from npllama.cost.hardware import Hardware
from npllama.cost.memory import activation_peak
from npllama.cost.roofline import (
    Dtypes,
    Prediction,
    compute_bound_batch,
    most_tokens,
    offload_seconds,
    token_bytes,
    weight_bytes,
)
from npllama.cost.textbook import without_cache


class Text(NamedTuple):
    """The text to be written: some rows, each after a prompt."""

    batch: int
    prompt: int  # positions of each prompt
    new: int  # tokens made of each

    @property
    def cached(self) -> int:
        """Positions that the cache holds at the end; the last token is not run."""
        return self.batch * (self.prompt + self.new - 1)


def flops_facts(config: Config, text: Text) -> dict[str, float]:
    """Of a text that is counted: sizes, and what it would cost without a cache."""
    plain = without_cache(config, *text)
    peak = activation_peak(config, text.batch, text.prompt, last=True)
    return {
        "parameters": sum(parameters(config).values()),
        "cache bytes per token, fp16": cache_bytes(config),
        "cache bytes of the text, fp16": cache_bytes(config, text.cached),
        "activations at most, elements": peak,
        "FLOPs without a cache": total(plain).flops,
    }


def speed_facts(
    config: Config,
    machine: Hardware,
    kinds: Dtypes,
    text: Text,
    found: Prediction,
    causal: str,
) -> dict[str, Any]:
    """Of a text under a roof: how fast it is, and where the ridge lies."""

    def batch(cached: int) -> int | None:
        return compute_bound_batch(config, machine, cached, kinds, causal)

    return {
        "ridge, FLOPs/byte": machine.ridge(kinds.arithmetic),
        "time to first token, s": found.prefill.seconds,
        "prefill, tokens/s": found.prefill.rate,
        "time per token, s": found.per_token,
        "decode, tokens/s": found.decode.rate,
        "the whole text, s": found.seconds,
        "batch at which decode is bound by computing": batch(text.prompt),
        "the same with an empty cache": batch(0),
    }


def held_bytes(config: Config, kinds: Dtypes, text: Text) -> float:
    """Bytes of the weights and of the text's cache."""
    return weight_bytes(config, kinds) + text.cached * token_bytes(config, kinds)


def activation_bytes(config: Config, kinds: Dtypes, text: Text) -> float:
    """Bytes of the activations of a prefill at their fullest, by this package's way."""
    peak = activation_peak(config, text.batch, text.prompt, last=True)
    return peak * kinds.sizes()[2]


def room_facts(
    config: Config,
    machine: Hardware,
    kinds: Dtypes,
    text: Text,
    reserve: float = 0.0,
) -> dict[str, Any]:
    """For a text in a memory: the bytes it needs, those that fit, those missing.

    Parameters
    ----------
    reserve : float
        Bytes that a driver and a runtime take.
    """
    held = held_bytes(config, kinds, text)
    fleeting = activation_bytes(config, kinds, text)
    facts: dict[str, Any] = {
        "weights, GB": weight_bytes(config, kinds) / 1e9,
        "cache of the text, GB": text.cached * token_bytes(config, kinds) / 1e9,
        "activations of the prompt, GB": fleeting / 1e9,
    }
    room = most_tokens(config, machine, kinds)
    if room is None:
        return facts
    facts["positions that fit beside the weights"] = room
    left = most_tokens(config, machine, kinds, fleeting + reserve)
    facts["and beside activations and reserve"] = left
    facts["rows of this text that fit"] = (left or 0) // (text.prompt + text.new - 1)
    if held > machine.memory:
        facts["does not fit, GB"] = (held - machine.memory) / 1e9
        if machine.storage is not None:
            seconds = offload_seconds(held, machine.memory, machine.storage)
            facts["time per token from storage, s"] = seconds
            facts["decode from storage, tokens/s"] = text.batch / seconds
    return facts


def verdict(
    config: Config, machine: Hardware, kinds: Dtypes, text: Text
) -> tuple[str, ...]:
    """Sentences that say a text does not fit; empty if it fits or nobody knows."""
    facts = room_facts(config, machine, kinds, text)
    if "does not fit, GB" not in facts:
        return ()
    held = held_bytes(config, kinds, text) / 1e9
    share = " of each card" if machine.cards > 1 else ""
    lines = [
        f"DOES NOT FIT: weights and cache{share} take {held:,.4g} GB, "
        f"the memory of {machine.name} holds {machine.memory / 1e9:,.4g} GB."
    ]
    if machine.storage is not None:
        rate, seconds = (
            facts["decode from storage, tokens/s"],
            facts["time per token from storage, s"],
        )
        lines.append(
            f"From storage it decodes {rate:,.4g} tokens/s at most, "
            f"{seconds:,.4g} s per token."
        )
    return (*lines, "All other times are those of a memory that holds it.")
