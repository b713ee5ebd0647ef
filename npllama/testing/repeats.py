"""Checks of samplers that look for repeated passages: n-grams and DRY.

They are called as ``sampler(logits, history, option, ...)``, as in `penalties`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.laws import FLAG, Law, Violation, check_of, from_one, shown
from npllama.testing.masks import Options, applied
from npllama.testing.penalties import penalty_laws, text, window
from npllama.testing.strategies import histories, integers, of_values, row
from npllama.testing.truth import GONE


def ngram_ends(history: list[int], source: list[int], n: int) -> set[int]:
    """Tokens that would complete an n-gram of `source` at the end of `history`."""
    if len(history) < n - 1:
        return set()
    begun = history[len(history) - (n - 1) :]
    places = range(len(source) - n + 1)
    return {source[i + n - 1] for i in places if source[i : i + n - 1] == begun}


def _without(logits: NDArray, banned: set[int]) -> NDArray:
    out = logits.copy()
    out[list(banned)] = GONE
    return out


def _without_repeats(logits: NDArray, history: NDArray, n: int) -> NDArray:
    return _without(logits, ngram_ends(history.tolist(), history.tolist(), n))


@check_of("no_repeat_ngram", "logits, history, n", batched=FLAG)
def check_no_repeat_ngram(batched: bool) -> Iterator[Law]:
    """Check ``no_repeat_ngram(logits, history, n)``.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64 and int
        The history is prompt and output. n = 1 bans every token that occurred.
    batched : bool
        The sampler takes (B, V) with a list of B histories, too.
    """

    known = (
        {"logits": row(1, 1, 1), "history": text(0, 1, 0), "n": 2},
        {"logits": row(1, 1, 1), "history": text(0, 1), "n": 1},
        {"logits": row(1, 1, 1), "history": text(0), "n": 2},
        {"logits": row(1, 1, 1), "history": text(2, 2), "n": 3},
        # two places that overlap, each before another token
        {"logits": row(1, 1, 1), "history": text(1, 1, 2, 1), "n": 2},
        {"logits": row(1, 1, 1), "history": text(0, 1, *[2] * 2000, 0), "n": 2},
    )
    yield from penalty_laws(
        "just the tokens that would complete an n-gram of the text are removed",
        _without_repeats,
        {"n": st.integers(1, 4)},
        known=known,
        batched=batched,
    )


def _without_repeats_of_prompt(
    logits: NDArray, history: NDArray, prompt: NDArray, n: int
) -> NDArray:
    return _without(logits, ngram_ends(history.tolist(), prompt.tolist(), n))


@check_of("encoder_no_repeat_ngram", "logits, history, prompt, n")
def check_encoder_no_repeat_ngram() -> Iterator[Law]:
    """Check ``encoder_no_repeat_ngram(logits, history, prompt, n)``.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64, (P,) int64 and int
        The n-grams are those of the prompt, wherever the history is now.
    """

    same = {"logits": row(1, 1, 1)}
    yield from penalty_laws(
        "just the tokens that would complete an n-gram of the prompt are removed",
        _without_repeats_of_prompt,
        {"prompt": histories(1), "n": st.integers(1, 3)},
        known=tuple(
            same | {"history": history, "prompt": p, "n": 2}
            for history, p in (
                (text(0, 1), text(1, 2, 0)),
                (text(0, 1), text(0, 1)),
                (text(0, 1), text()),
                (text(0, 1), text(1, 2, *[0] * 2000)),
                (text(0, 1, 0), text(2)),  # its own n-grams may come again
            )
        ),
    )


def longest_repeat(history: Sequence[int], v: int, reach: int) -> int:
    """The largest n <= reach such that the last n tokens stood before a v, too."""
    found = 0
    for n in range(1, min(reach, len(history)) + 1):
        end = history[len(history) - n :]
        places = range(n, len(history))
        if any(history[j] == v and history[j - n : j] == end for j in places):
            found = n
    return found


def since_breaker(history: list[int], breakers: Sequence[Sequence[int]]) -> int:
    """How many tokens follow the last breaker."""
    for start in range(len(history) - 1, -1, -1):
        here = [len(b) for b in breakers if history[start : start + len(b)] == list(b)]
        if here:
            return len(history) - start - max(here)
    return len(history)


def _lowered(
    logits: NDArray,
    history: NDArray,
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Sequence[Sequence[int]] = (),
    *,
    last_n: int | None,
) -> NDArray:
    seen, out = window(history, last_n), logits.copy()
    reach = since_breaker(seen, breakers)
    for v in range(len(out)):
        n = longest_repeat(seen, v, reach)
        if n >= allowed_length and [v] not in [list(b) for b in breakers]:
            out[v] -= multiplier * base ** (n - allowed_length)
    return out


def _stays_finite(sampler: Callable, logits: NDArray, **options: Any) -> None:
    out = applied(sampler, logits, *options.values())
    low = bool(np.isfinite(out).all()) and out[0] < -1e20
    if not low:
        raise Violation(f"expected a very low but finite logit 0, found {shown(out)}")


@check_of(
    "dry",
    "logits, history, multiplier, base, allowed_length",
    last_n=from_one(None),
    takes_breakers=FLAG,
    batched=FLAG,
)
def check_dry(last_n: int | None, takes_breakers: bool, batched: bool) -> Iterator[Law]:
    r"""Check ``dry(logits, history, multiplier, base, allowed_length)``.

    $$l_v \leftarrow l_v - m \cdot b^{n - a} \quad \text{if } n \ge a$$

    with n the longest end of the text that stood in it before, followed by v.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64, two floats and int
    last_n : int, optional
        Only so many of the last tokens count; llama.cpp 64. All by default.
    takes_breakers : bool
        A sixth argument is a list of sequences: a repeat is counted back to the last
        of them and no further, and those of one token are not penalised themselves.
    batched : bool
        The sampler takes (B, V) with a list of B histories, too.
    """

    expected = functools.partial(_lowered, last_n=last_n)
    usual = {"multiplier": 0.8, "base": 1.75, "allowed_length": 2}
    options: Options = {
        "multiplier": st.sampled_from([0.8, 0.3]),
        "base": st.sampled_from([1.75, 1.0, 3.0]),
        "allowed_length": st.integers(1, 3),
    }
    texts = (
        text(0, 1, 2, 0, 1),
        text(0, 1, 0),
        text(2, 2, 2, 2),
        text(0, 0, 1, 0, 0),
        text(2, 0, 0, 1, 1, 2, 0, 0),
        text(*[0] * 100),
    )
    known = tuple({"logits": row(1, 1, 1), "history": t} | usual for t in texts)
    if takes_breakers:
        marks = st.lists(st.sampled_from([(0,), (1, 2), (2,), (1, 2, 0)]), max_size=2)
        options |= {"breakers": marks}
        few: Any = ([(1,)], [(1, 2), (1,)], [(1, 2), (1, 2, 0)])
        known = tuple(case | {"breakers": b} for case in known for b in ([], *few))
    says = "a token is lowered by m b^(n-a), n the longest repeat that it prolongs"
    yield from penalty_laws(
        says,
        expected,
        options,
        nothing={"multiplier": 0.0},
        known=known,
        batched=batched,
        rows=of_values(integers()).filter(lambda row: len(row) >= 3),
    )
    verbatim = {"logits": row(1, 1), "history": text(*[0] * 400), "multiplier": 0.8}
    case = verbatim | {"base": 6.0, "allowed_length": 2}
    case |= {"breakers": []} if takes_breakers else {}
    says = "a very long repeat costs all but everything, and no NaN"
    if last_n is None:
        yield Law(says, st.just(case), _stays_finite, (case,))
