"""Checks of mirostat, which truncates and draws, and adapts to the tokens it drew.

The checks compute the sampler's state instead of reading it: mu starts at 2 tau and
follows from the tokens that were drawn, so a run can be checked from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.laws import Law, Violation, check_of, from_one, one_of
from npllama.testing.masks import expect_first
from npllama.testing.strategies import array, cases, seeds
from npllama.testing.truth import GONE, alive, log_softmax, ranked


def zipf_count(logits: NDArray, mu: float, m: int) -> tuple[float, float] | None:
    """The k of mirostat 1, from below and above; None near the formula's poles."""
    top = np.sort(logits[logits > GONE].astype(np.float64))[::-1][:m]
    rank = np.arange(1, len(top))
    t, b = np.log((rank + 1) / rank), top[:-1] - top[1:]
    s = float((t * b).sum() / (t * t).sum())
    e, size = s - 1, len(logits)
    if abs(e) < 1e-3 or s < 1e-2 or s > 50:
        return None
    power = 1 / s
    k = (e * 2.0**mu / (1 - float(size) ** -e)) ** power
    return k * (1 - 1e-3 * (1 + power)), k * (1 + 1e-3 * (1 + power))


def _trace(sampler: Callable, **case: Any) -> tuple[NDArray, list[int]]:
    """The rows that a run of mirostat left, and the tokens that it drew from them."""
    outs, tokens = sampler(
        case["logits"].copy(), case["tau"], case["eta"], case["seed"]
    )
    return np.asarray(outs), [int(token) for token in tokens]


@st.composite
def texts_of_rows(draw: Any, most: int = 6) -> NDArray[np.float32]:
    """Rows for a run, (T, V) float32; now and then tokens are removed from one."""
    rng = np.random.default_rng(draw(seeds))
    size, scale = draw(st.integers(3, 9)), draw(st.sampled_from([0.5, 2.0, 5.0]))
    rows = array(rng.standard_normal((draw(st.integers(1, most)), size)) * scale)
    if draw(st.booleans()):
        rows[:, rng.integers(size, size=size // 2)] = GONE
    return rows


def _follow(
    expect_kept: Callable[[NDArray, set[int], float], None], surprise: str
) -> Callable[..., None]:
    """A law about a run: from mu = 2 tau on, mu follows from the tokens drawn."""

    def holds(
        sampler: Callable, logits: NDArray, tau: float, eta: float, seed: int
    ) -> None:
        outs, tokens = _trace(sampler, logits=logits, tau=tau, eta=eta, seed=seed)
        mu = 2 * tau
        for step, (before, out, token) in enumerate(zip(logits, outs, tokens)):
            try:
                expect_kept(before, alive(out), mu)
                if token not in alive(out):
                    raise Violation(f"drew {token}, which was removed")
            except Violation as problem:
                raise Violation(f"step {step}, mu = {mu:.6g}\n{problem}") from None
            measured = out if surprise == "renormalised" else before
            bits = -log_softmax(measured)[token] / math.log(2)
            mu -= eta * (bits - tau)

    return holds


@check_of(
    "mirostat_1",
    "logits, tau, eta, seed",
    convention=one_of("llama.cpp", "original"),
    surprise=one_of("renormalised", "original"),
    m=from_one(100),
)
def check_mirostat_1(convention: str, surprise: str, m: int) -> Iterator[Law]:
    """Check ``mirostat_1(logits, tau, eta, seed)``, a whole run of it.

    Parameters
    ----------
    sampler : function of (T, V) float32, two floats and int
        Goes through the rows as through a text; returns what it left of each, (T, V),
        and the T tokens that it drew.
    convention : {"llama.cpp", "original"}
        k is rounded down, or rounded and increased by one.
    surprise : {"renormalised", "original"}
        The token's surprise is measured after truncation or before.
    m : int
        Tokens to which Zipf's law is fitted: llama.cpp 100, the authors 3000.
    """

    def expect_kept(logits: NDArray, found: set[int], mu: float) -> None:
        size = len(alive(logits))
        between = zipf_count(logits, mu, m) if size > 1 else (1.0, 1.0)
        if between is None:
            expect_first(logits, found, 1, size, "any")
            return
        few, many = (
            min(k, len(logits)) if convention == "llama.cpp" else min(k + 1.5, size)
            for k in between
        )
        fewest = min(max(int(few), 1), size)
        expect_first(logits, found, fewest, min(max(int(many), 1), size), "any")

    yield from _mirostat_laws(
        _follow(expect_kept, surprise), "the k that Zipf's law says"
    )


def _expect_unsurprising(logits: NDArray, found: set[int], mu: float) -> None:
    bits = -log_softmax(logits)[ranked(logits, "lowest")] / math.log(2)
    few, many = (int((bits <= mu + d).sum()) for d in (-1e-4, 1e-4))
    expect_first(logits, found, max(few, 1), max(many, 1), "any")


@check_of(
    "mirostat_2", "logits, tau, eta, seed", surprise=one_of("renormalised", "original")
)
def check_mirostat_2(surprise: str) -> Iterator[Law]:
    """Check ``mirostat_2(logits, tau, eta, seed)``, a whole run of it.

    Parameters
    ----------
    sampler : function of (T, V) float32, two floats and int
        As for `check_mirostat_1`.
    surprise : {"renormalised", "original"}
        The token's surprise is measured after truncation or before.
    """

    says = "the tokens that surprise by mu bits or less"
    yield from _mirostat_laws(_follow(_expect_unsurprising, surprise), says)


def _mirostat_laws(holds: Callable[..., None], says: str) -> Iterator[Law]:
    options = {
        "tau": st.sampled_from([0.5, 1.0, 2.0, 3.0]),
        "eta": st.sampled_from([0.1, 0.5, 1.0]),
        "seed": st.integers(0, 99),
    }
    slope = array([[2 * i / (j + 1) for i in range(8)] for j in range(5)])
    known = tuple(
        {"logits": slope, "tau": tau, "eta": 1.0, "seed": seed}
        for tau in (1.0, 2.0)
        for seed in (1, 2)
    )
    gone = slope.copy()
    gone[:, ::2] = GONE
    known += ({"logits": gone, "tau": 1.0, "eta": 0.5, "seed": 1},)
    first = cases(logits=texts_of_rows(1), **options)
    yield Law(f"at the start, mu = 2 tau, {says} stay", first, holds)
    says = f"mu follows the surprise of every token drawn, and {says} stay"
    yield Law(says, cases(logits=texts_of_rows(), **options), holds, known)
