"""Checks of combinations: guidance, and the order of a chain of samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.laws import FLAG, Law, Violation, check_of, one_of, shown
from npllama.testing.masks import applied, expect_first, not_written
from npllama.testing.strategies import array, cases, row
from npllama.testing.truth import GONE, alive, log_softmax, softmax


def _stretched(logits: NDArray, unconditional: NDArray, scale: float) -> NDArray:
    with_it, without = log_softmax(logits), log_softmax(unconditional)
    both = (logits > GONE) & (unconditional > GONE)
    out = np.full(logits.shape, GONE)
    out[both] = without[both] + scale * (with_it[both] - without[both])
    return out


def _normalised(out: NDArray) -> NDArray:
    return log_softmax(out) if len(alive(out)) else out


def _stretches(sampler: Callable, logits: NDArray, **options: Any) -> None:
    out = applied(sampler, logits, *options.values())
    right = _stretched(logits, **options)
    same = alive(out) == alive(right)
    near = np.allclose(_normalised(out), _normalised(right), rtol=1e-4, atol=1e-4)
    if not (same and near):
        raise Violation(f"found {shown(out)}, expected {shown(array(right))}")


def _rows_alone(
    sampler: Callable, logits: NDArray, unconditional: NDArray, scale: float
) -> None:
    together = applied(sampler, logits, unconditional, scale)
    for one, a, b in zip(together, logits, unconditional):
        alone = applied(sampler, a, b, scale)
        if not (one == alone).all():
            raise Violation(f"{shown(one)}, alone {shown(alone)}")


@check_of(
    "guidance",
    "logits, unconditional, scale",
    removed=one_of("stays", "unsaid"),
    batched=FLAG,
)
def check_guidance(removed: str, batched: bool) -> Iterator[Law]:
    r"""Check ``guidance(logits, unconditional, scale)``, classifier-free guidance.

    $$\log p_u + \gamma (\log p_c - \log p_u)$$

    Parameters
    ----------
    sampler : function of two (V,) float32 and float
        What it returns need not be normalised.
    removed : {"stays", "unsaid"}
        A token that either row has removed stays removed; or no such row is tried,
        since they become NaN (transformers).
    batched : bool
        The sampler takes two (B, V), too.
    """

    values = st.sampled_from([0.0, 1.0, -2.0, 3.5])
    three = st.lists(values, min_size=3, max_size=3).map(array)
    options = {"scale": st.sampled_from([1.5, 3.0, 0.0, 1.0, -1.0])}
    rows = cases(logits=three, unconditional=three, **options)
    known = {"logits": row(2, 0, 1), "unconditional": row(0, 0, 2), "scale": 3.0}
    says = "the difference that the prompt makes is stretched by the scale"
    yield Law(says, rows, _stretches, (known,))
    yield Law("the array passed in is not written into", rows, not_written)
    if removed == "stays":
        values = st.sampled_from([0.0, 1.0, GONE])
        rest = st.lists(values, min_size=2, max_size=2).map(lambda r: row(1, *r))
        # At scale 1 the other answer need not be asked at all.
        scale = st.sampled_from([1.5, 3.0, 0.0])
        rows = cases(logits=rest, unconditional=rest, scale=scale)
        says = "a token that either answer has removed stays removed"
        gone = known | {"logits": row(1, GONE, 0)}
        also = known | {"unconditional": row(1, GONE, 0)}
        yield Law(says, rows, _stretches, (gone, also))
    if batched:
        table = st.just(array([[0, 1, 2], [3, -1, 0]]))
        other = st.just(array([[1, 1, 0], [0, 0, 5]]))

        says = "a row of a batch is treated as if it were alone"
        yield Law(
            says, cases(logits=table, unconditional=other, **options), _rows_alone
        )


@check_of(
    "chain",
    "logits, temperature, top_k, top_p, min_p",
    order=one_of("transformers", "llama.cpp", "vllm"),
)
def check_chain(order: str) -> Iterator[Law]:
    """Check ``chain(logits, temperature, top_k, top_p, min_p)``: what comes first.

    Parameters
    ----------
    sampler : function of (V,) float32, float, int and two floats
        Returns logits; each step sees what the ones before it left, renormalised.
        top_k 0, top_p 1 and min_p 0 are off.
    order : {"transformers", "llama.cpp", "vllm"}
        Temperature, top-k, top-p, min-p; or temperature last; or min-p right after
        temperature.
    """
    orders = {
        "transformers": ("temperature", "top_k", "top_p", "min_p"),
        "llama.cpp": ("top_k", "top_p", "min_p", "temperature"),
        "vllm": ("temperature", "min_p", "top_k", "top_p"),
    }

    def expected(logits: NDArray, **options: float) -> NDArray:
        for stage in orders[order]:
            logits = STEPS[stage](logits, options[stage])
        return logits

    def holds(sampler: Callable, logits: NDArray, **options: Any) -> None:
        out = applied(sampler, logits, *options.values())
        right = expected(logits.astype(np.float64), **options)
        found = alive(out)
        if found != alive(right):
            expect_first(logits, found, *2 * (len(alive(right)),), "any")
        probs, wanted = softmax(out), softmax(right)
        if not np.allclose(probs, wanted, atol=1e-4):
            raise Violation(f"probabilities {shown(probs)}, not {shown(wanted)}")

    options = {
        "temperature": st.sampled_from([1.0, 2.0, 0.5]),
        "top_k": st.sampled_from([0, 2, 3]),
        "top_p": st.sampled_from([1.0, 0.73, 0.41]),
        "min_p": st.sampled_from([0.0, 0.11, 0.34]),
    }
    off: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    often = np.log(array([0.8, 0.1, 0.06, 0.04]))
    slope = row(2, 1.5, 1, 0.5, 0)
    known = (
        {"logits": often, "temperature": 2.0} | off | {"min_p": 0.11},
        {"logits": slope, "temperature": 2.0} | off | {"top_p": 0.73},
        {"logits": slope, "temperature": 2.0} | off | {"top_p": 0.41},
        {"logits": slope, "temperature": 1.0} | off | {"top_k": 3, "top_p": 0.7},
        {"logits": slope, "temperature": 1.0, "top_k": 0, "top_p": 0.73, "min_p": 0.34},
    )
    apart = st.sampled_from([slope, often, row(0, 2, 1, 3), row(-1, 0, 1.5)])
    says = f"temperature and truncation come in the order of {order}"
    yield Law(says, cases(logits=apart, **options), holds, known)


def _top_p(logits: NDArray, p: float) -> NDArray:
    order = np.argsort(-logits, kind="stable")
    probs = softmax(logits)[order]
    out = logits.copy()
    out[order[np.cumsum(probs) - probs >= p]] = GONE
    return out


# Steps of the chain on rows without ties, in float64.
STEPS: dict[str, Callable[[NDArray, float], NDArray]] = {
    "temperature": lambda logits, t: logits / t,
    "top_k": lambda logits, k: (
        np.where(logits >= np.sort(logits)[-int(k)], logits, GONE) if k else logits
    ),
    "top_p": lambda logits, p: _top_p(logits, p) if p < 1 else logits,
    "min_p": lambda logits, p: np.where(
        softmax(logits) >= p * softmax(logits).max(), logits, GONE
    ),
}
