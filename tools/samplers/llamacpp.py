"""The samplers of llama.cpp, driven through llama-cpp-python without a model.

A sampler there works on an array of candidates; what is removed already is left out
of it, because llama.cpp shortens the array where others write minus infinity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llama_cpp as cpp
import numpy as np
from goldens.sampling_llamacpp import run

LAST_N = 64  # llama.cpp's default window of penalties


def applied(
    sampler: Any, logits: np.ndarray, history: Any = ()
) -> tuple[np.ndarray, int]:
    """The row that a sampler leaves after a text, and the token it selects."""
    for token in history:
        cpp.llama_sampler_accept(sampler, int(token))
    found = run(sampler, logits)
    cpp.llama_sampler_free(sampler)
    return found


def truncation(init: Callable) -> Callable:
    """A sampler with one option, and perhaps the fewest tokens to keep."""

    def sampler(logits: np.ndarray, *options: Any) -> np.ndarray:
        return applied(init(*options), logits)[0]

    return sampler


TOP_K = truncation(lambda k: cpp.llama_sampler_init_top_k(k))
TOP_P = truncation(lambda p, least=1: cpp.llama_sampler_init_top_p(p, least))
MIN_P = truncation(lambda p, least=1: cpp.llama_sampler_init_min_p(p, least))
TYPICAL = truncation(lambda p, least=1: cpp.llama_sampler_init_typical(p, least))
SIGMA = truncation(lambda n: cpp.llama_sampler_init_top_n_sigma(n))
TEMPERATURE = truncation(lambda t: cpp.llama_sampler_init_temp(t))
DYNAMIC = truncation(lambda *case: cpp.llama_sampler_init_temp_ext(*case))


def xtc(
    logits: np.ndarray, probability: float, threshold: float, u: float, least: int = 1
) -> np.ndarray:
    """Exclude top choices; the dice are its own."""
    sampler = cpp.llama_sampler_init_xtc(probability, threshold, least, 7)
    return applied(sampler, logits)[0]


def penalty(place: int, neutral: tuple[float, float, float] = (1.0, 0.0, 0.0)):
    """One of the three penalties, the other two at rest."""

    def sampler(logits: np.ndarray, history: Any, strength: float) -> np.ndarray:
        three = [*neutral[:place], strength, *neutral[place + 1 :]]
        made = cpp.llama_sampler_init_penalties(logits.size, LAST_N, *three)
        return applied(made, logits, history)[0]

    return sampler


def dry(
    logits: np.ndarray, history: Any, multiplier: float, base: float, allowed: int
) -> np.ndarray:
    """Don't repeat yourself, without sequence breakers: these need a vocabulary."""
    made = cpp.llama_sampler_init_dry(None, multiplier, base, allowed, LAST_N, None, 0)
    return applied(made, logits, history)[0]


def logit_bias(logits: np.ndarray, bias: dict[int, float]) -> np.ndarray:
    """Add to single logits."""
    few = (cpp.llama_logit_bias * max(len(bias), 1))()
    for slot, (token, amount) in zip(few, bias.items()):
        slot.token, slot.bias = token, amount
    made = cpp.llama_sampler_init_logit_bias(logits.size, len(bias), few)
    return applied(made, logits)[0]


def mirostat(init: Callable) -> Callable:
    """A run of mirostat, whose state lives in the sampler."""

    def sampler(rows: np.ndarray, tau: float, eta: float, seed: int):
        made = init(rows.shape[1], seed, tau, eta)
        steps = [run(made, row) for row in rows]
        cpp.llama_sampler_free(made)
        return np.stack([row for row, _ in steps]), [token for _, token in steps]

    return sampler


MIROSTAT_1 = mirostat(
    lambda size, seed, tau, eta: cpp.llama_sampler_init_mirostat(
        size, seed, tau, eta, 100
    )
)
MIROSTAT_2 = mirostat(
    lambda size, seed, tau, eta: cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)
)


def chain(logits: np.ndarray, t: float, k: int, p: float, least_p: float) -> np.ndarray:
    """The default order: top-k, top-p, min-p, and temperature last."""
    return TEMPERATURE(MIN_P(TOP_P(TOP_K(logits, k), p), least_p), t)


def factory() -> dict[str, Any]:
    """What llama.cpp offers, held to the kit's own conventions.

    And its mirostat to the authors', which it does not follow.
    """
    by_the_authors = {"convention": "original", "surprise": "original"}
    return {
        "greedy": lambda row: applied(cpp.llama_sampler_init_greedy(), row)[1],
        "sample": lambda row, seed: applied(cpp.llama_sampler_init_dist(seed), row)[1],
        "temperature": TEMPERATURE,
        "dynamic_temperature": DYNAMIC,
        "top_k": TOP_K,
        "top_p": TOP_P,
        "min_p": MIN_P,
        "typical": TYPICAL,
        "top_n_sigma": SIGMA,
        "xtc": xtc,
        "mirostat_1": [(MIROSTAT_1, {}), (MIROSTAT_1, by_the_authors)],
        "mirostat_2": [(MIROSTAT_2, {}), (MIROSTAT_2, {"surprise": "original"})],
        "repetition_penalty": penalty(0),
        "frequency_penalty": penalty(1),
        "presence_penalty": penalty(2),
        "dry": dry,
        "logit_bias": logit_bias,
        "chain": chain,
    }


def by_its_conventions() -> dict[str, Any]:
    """The same by the conventions that it follows."""
    said: dict[str, dict[str, Any]] = {
        "temperature": {"zero": "greedy"},
        "top_k": {"ties": "any"},
        "top_p": {"ties": "any", "takes_least": True},
        "min_p": {"takes_least": True},
        "typical": {"convention": "llama.cpp", "takes_least": True},
        "xtc": {"takes_least": True},
        "repetition_penalty": {"last_n": LAST_N},
        "frequency_penalty": {"last_n": LAST_N},
        "presence_penalty": {"last_n": LAST_N},
        "dry": {"last_n": LAST_N},
        "chain": {"order": "llama.cpp"},
    }
    offered = factory() | {"mirostat_1": MIROSTAT_1, "mirostat_2": MIROSTAT_2}
    return {name: (sampler, said.get(name, {})) for name, sampler in offered.items()}
