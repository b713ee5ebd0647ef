"""Checks of penalties: samplers that look at the text so far.

They are called as ``sampler(logits, history, option, ...)`` with logits (V,) float32
and the history (T,) int64, empty at times, and return new logits.  The caller decides
what belongs to the history: the prompt and the output, or the output alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.chance import close
from npllama.testing.laws import (
    FLAG,
    Case,
    Law,
    Violation,
    check_of,
    from_one,
    one_of,
    shown,
)
from npllama.testing.masks import applied, not_written
from npllama.testing.strategies import (
    array,
    cases,
    joined,
    logits,
    row,
    with_history,
)
from npllama.testing.truth import GONE

Options = dict[str, st.SearchStrategy]


def text(*tokens: int) -> NDArray[np.int64]:
    """Write down a history, (T,) int64."""
    return np.array(tokens, np.int64)


def wanted(
    expected: Callable[..., NDArray], relative: float = 1e-5
) -> Callable[..., None]:
    """The law that a sampler returns what `expected` says, options by name."""

    def holds(sampler: Callable, logits: NDArray, **options: Any) -> None:
        out = applied(sampler, logits, *options.values())
        exact = logits.astype(np.float64)
        close(out, expected(exact, **options), relative)

    return holds


def unchanged(sampler: Callable, logits: NDArray, **options: Any) -> None:
    """The law of a penalty that has no strength."""
    out = applied(sampler, logits, *options.values())
    if not (out == logits).all():
        raise Violation(f"found {shown(out)}, expected the same")


def _rows_alone(
    sampler: Callable, logits: NDArray, history: list, **options: Any
) -> None:
    together = applied(sampler, logits, history, *options.values())
    for b, row_ in enumerate(logits):
        alone = applied(sampler, row_, text(*history[b]), *options.values())
        same = (together[b] == alone).all()
        if not same:
            raise Violation(
                f"row {b} became {shown(together[b])}, alone {shown(alone)}"
            )


def window(history: NDArray, last_n: int | None) -> list[int]:
    return history.tolist() if last_n is None else history.tolist()[-last_n:]


def penalty_laws(
    says: str,
    expected: Callable[..., NDArray],
    options: Options,
    *,
    nothing: dict[str, float] | None = None,
    known: tuple[Case, ...] = (),
    batched: bool = False,
    rows: st.SearchStrategy | None = None,
) -> Iterator[Law]:
    """The laws of all samplers that see a history.

    Parameters
    ----------
    says : str
        What `expected` computes.
    expected : function
        Logits (V,) float64, the history and the options to the right logits.
    options : dict of strategies
        What is passed after the history, in this order.
    nothing : dict
        Options that make the sampler do nothing, if there are such.
    known : cases
        Tried first.
    batched : bool
        Whether logits (B, V) may come with a list of B histories.
    """
    drawn = joined(with_history(rows), **options)
    yield Law(says, drawn, wanted(expected), known)
    yield Law("the array passed in is not written into", drawn, not_written, known[:1])
    if nothing is not None:
        at_rest = {key: st.just(value) for key, value in nothing.items()}
        what = ", ".join(f"{key} {value:g}" for key, value in nothing.items())
        usual = joined(with_history(rows), **(options | at_rest))
        yield Law(f"{what} changes nothing", usual, unchanged)
    if batched:
        table = array([[1, 0, -1, 2], [3, -2, 0, GONE]])
        texts = st.lists(st.integers(0, 3), max_size=6)
        both = st.tuples(texts, texts).map(list)
        two = cases(logits=st.just(table), history=both, **options)
        yield Law("a row of a batch sees its own history alone", two, _rows_alone)


LONG = text(*[1] + [0] * 5000)  # token 1 stands far back


# ---- for tokens -------------------------------------------------------------


@check_of(
    "repetition_penalty",
    "logits, history, penalty",
    negative=one_of("multiplied", "divided"),
    last_n=from_one(None),
    batched=FLAG,
)
def check_repetition_penalty(
    negative: str, last_n: int | None, batched: bool
) -> Iterator[Law]:
    """Check ``repetition_penalty(logits, history, penalty)``.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64 and float
    negative : {"multiplied", "divided"}
        What happens to a logit below 0: every library multiplies, the paper divides,
        which makes repetition *more* likely.
    last_n : int, optional
        Only so many of the last tokens count; llama.cpp 64. All by default.
    batched : bool
        The sampler takes (B, V) with a list of B histories, too.
    """

    def expected(logits: NDArray, history: NDArray, penalty: float) -> NDArray:
        out = logits.copy()
        for i in set(window(history, last_n)):
            grows = logits[i] < 0 and negative == "multiplied"
            out[i] = logits[i] * penalty if grows else logits[i] / penalty
        return out

    says = "tokens of the text have logits above 0 divided, below 0 multiplied, once"
    if negative == "divided":
        says = "tokens of the text have their logits divided, once"
    strength = {"penalty": st.sampled_from([1.3, 2.0, 0.8])}
    known: tuple[Case, ...] = (
        {"logits": row(2, 2), "history": text(0, 0), "penalty": 2.0},
        {"logits": row(-2, -2), "history": text(0), "penalty": 2.0},
        {"logits": row(2, -2), "history": text(0, 1), "penalty": 0.8},
        {"logits": row(GONE, 1, 0), "history": text(0, 2), "penalty": 2.0},
    )
    none = {"penalty": 1.0}
    yield from penalty_laws(
        says, expected, strength, nothing=none, known=known, batched=batched
    )
    yield _reach(expected, last_n, {"penalty": 2.0})


def _reach(expected: Callable[..., NDArray], last_n: int | None, options: Case) -> Law:
    what = "the whole text counts" if last_n is None else f"the last {last_n} count"
    far = {"logits": row(2, 2, -1), "history": LONG} | options
    edges = (LONG, text(*[2] * 20, *[0] * 63), text(*[2] * 20, *[0] * 64), text())
    drawn = st.sampled_from([far | {"history": edge} for edge in edges])
    return Law(what, drawn, wanted(expected), (far,))


@check_of(
    "presence_penalty", "logits, history, penalty", last_n=from_one(None), batched=FLAG
)
def check_presence_penalty(last_n: int | None, batched: bool) -> Iterator[Law]:
    """Check ``presence_penalty(logits, history, penalty)``.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64 and float
    last_n : int, optional
        Only so many of the last tokens count; llama.cpp 64. All by default.
    batched : bool
        The sampler takes (B, V) with a list of B histories, too.
    """

    def expected(logits: NDArray, history: NDArray, penalty: float) -> NDArray:
        seen = set(window(history, last_n))
        return logits - penalty * np.array([i in seen for i in range(len(logits))])

    yield from _subtracting("once for having been there", expected, last_n, batched)


@check_of(
    "frequency_penalty", "logits, history, penalty", last_n=from_one(None), batched=FLAG
)
def check_frequency_penalty(last_n: int | None, batched: bool) -> Iterator[Law]:
    """Check ``frequency_penalty(logits, history, penalty)``.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64 and float
    last_n : int, optional
        Only so many of the last tokens count; llama.cpp 64. All by default.
    batched : bool
        The sampler takes (B, V) with a list of B histories, too.
    """

    def expected(logits: NDArray, history: NDArray, penalty: float) -> NDArray:
        count = Counter(window(history, last_n))
        return logits - penalty * np.array([count[i] for i in range(len(logits))])

    yield from _subtracting("for each time that it occurred", expected, last_n, batched)


def _subtracting(
    when: str, expected: Callable[..., NDArray], last_n: int | None, batched: bool
) -> Iterator[Law]:
    strength = {"penalty": st.sampled_from([0.5, 1.5, -1.0])}
    known = ({"logits": row(2, 2, 2), "history": text(0, 0, 1), "penalty": 0.5},)
    yield from penalty_laws(
        f"a token's logit is lowered {when}",
        expected,
        strength,
        nothing={"penalty": 0.0},
        known=known,
        batched=batched,
    )
    yield _reach(expected, last_n, {"penalty": 0.5})


def _prompt_rewarded(logits: NDArray, history: NDArray, penalty: float) -> NDArray:
    out = logits.copy()
    for i in set(history.tolist()):
        out[i] = logits[i] / penalty if logits[i] < 0 else logits[i] * penalty
    return out


@check_of("encoder_repetition_penalty", "logits, prompt, penalty", batched=FLAG)
def check_encoder_repetition_penalty(batched: bool) -> Iterator[Law]:
    """Check ``encoder_repetition_penalty(logits, prompt, penalty)``, the inverse.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64 and float
        A penalty above 1 makes the prompt's tokens *more* likely.
    batched : bool
        The sampler takes (B, V) with a list of B prompts, too.
    """

    known = ({"logits": row(2, -2), "history": text(0, 1), "penalty": 2.0},)
    yield from penalty_laws(
        "tokens of the prompt gain by the factor by which a penalty would take",
        _prompt_rewarded,
        {"penalty": st.sampled_from([1.3, 2.0, 0.8])},
        nothing={"penalty": 1.0},
        known=known,
        batched=batched,
    )


# ---- for the end ------------------------------------------------------------


def _stays_finite(sampler: Callable, logits: NDArray, **options: Any) -> None:
    out = applied(sampler, logits, *options.values())
    finite = bool(np.isfinite(out).all()) and out[0] >= logits[0]
    if not finite:
        raise Violation(
            f"expected finite logits, that of the end no lower: {shown(out)}"
        )


def _end_raised(
    logits: NDArray, new_tokens: int, start: int, factor: float, eos: int
) -> NDArray:
    out, late = logits.copy(), new_tokens - start
    if late > 0 and out[eos] > GONE:
        out[eos] += abs(out[eos]) * (factor**late - 1)
    return out


@check_of("exponential_decay", "logits, new_tokens, start, factor, eos")
def check_exponential_decay() -> Iterator[Law]:
    r"""Check ``exponential_decay(logits, new_tokens, start, factor, eos)``.

    $$l_{eos} \leftarrow l_{eos} + |l_{eos}| (f^{n - start} - 1)$$

    once n, the number of new tokens, exceeds `start`.

    Parameters
    ----------
    sampler : function of (V,) float32, int, int, float and int
    """

    options: Options = {
        "new_tokens": st.integers(0, 8),
        "start": st.integers(0, 5),
        "factor": st.sampled_from([1.1, 1.5, 0.9]),
        "eos": st.just(0),
    }
    usual = {"new_tokens": 3, "start": 2, "factor": 1.5, "eos": 0}
    known = tuple(
        {"logits": first} | usual | {"new_tokens": n}
        for first in (row(2, 1), row(-2, 1), row(GONE, 1))
        for n in (3, 2, 1)
    )
    says = "past the start the end gains |l| (f^n - 1), and never comes back"
    rows = cases(logits=logits(), **options)
    yield Law(says, rows, wanted(_end_raised), known)
    yield Law("the array passed in is not written into", rows, not_written, known[:1])
    far = tuple(
        {"logits": first, "new_tokens": 3000, "start": 2, "factor": 1.5, "eos": 0}
        for first in (row(2, 1), row(0, 1))
    )
    says = "far past the start all logits are still numbers"
    yield Law(says, st.sampled_from(far), _stays_finite, far)
