"""Checks of biases and constraints: favoured, forbidden and forced tokens.

Samplers are called as ``sampler(logits, ...)`` with logits (V,) float32 and the
arguments that each check names, and return new logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.laws import FLAG, Law, Violation, check_of, number, one_of, shown
from npllama.testing.masks import applied, not_written
from npllama.testing.penalties import penalty_laws, text, unchanged, wanted
from npllama.testing.strategies import cases, integers, logits, of_values, row
from npllama.testing.truth import GONE, alive

ROWS = logits().filter(lambda row: len(row) >= 3)
FINITE = of_values(integers()).filter(lambda row: len(row) >= 3)
IDS = st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True)
BIAS = st.sampled_from([1.5, -2.0, 100.0, -150.0, GONE])
WORDS = st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple)


def _two(says: str, rows: st.SearchStrategy, holds: Callable, *known: dict) -> Iterator:
    yield Law(says, rows, holds, known)
    yield Law("the array passed in is not written into", rows, not_written, known[:1])


# ---- biases -----------------------------------------------------------------


@check_of("logit_bias", "logits, bias", limit=number(math.inf))
def check_logit_bias(limit: float) -> Iterator[Law]:
    """Check ``logit_bias(logits, bias)``, which adds.

    Parameters
    ----------
    sampler : function of (V,) float32 and dict of int to float
    limit : float
        Biases are clipped to this size: vLLM 100.
    """

    def expected(logits: NDArray, bias: dict[int, float]) -> NDArray:
        out = logits.copy()
        for i, amount in bias.items():
            out[i] += min(max(amount, -limit), limit)
        return out

    biases = st.dictionaries(st.integers(0, 2), BIAS, max_size=3)
    says = "each bias is added to its token's logit, removed ones stay removed"
    known = {"logits": row(0, GONE, 1), "bias": {1: 5.0, 2: -1.0}}
    large = known | {"bias": {0: 50.0, 2: -150.0}}
    rows = cases(logits=ROWS, bias=biases)
    yield from _two(says, rows, wanted(expected), known, large)


def _ends(history: NDArray, begin: tuple[int, ...]) -> bool:
    seen = history.tolist()
    return len(begin) <= len(seen) and seen[len(seen) - len(begin) :] == list(begin)


def _sequences_biased(logits: NDArray, history: NDArray, bias: dict) -> NDArray:
    out = logits.copy()
    for (*begin, last), amount in bias.items():
        out[last] += amount if _ends(history, tuple(begin)) else 0.0
    return out


@check_of("sequence_bias", "logits, history, bias", batched=FLAG)
def check_sequence_bias(batched: bool) -> Iterator[Law]:
    """Check ``sequence_bias(logits, history, bias)``.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64 and dict of tuple to float
        A sequence of one token is always about to be completed.
    batched : bool
        The sampler takes (B, V) with a list of B histories, too.
    """

    some = {(0, 1): 2.0, (1,): -1.0, (2, 0, 1): 4.0}
    known = tuple(
        {"logits": row(0, 0, 0), "history": text(*seen), "bias": some}
        for seen in ((0,), (2, 0), (1,), ())
    )
    yield from penalty_laws(
        "a bias is added to what would complete its sequence, and they add up",
        _sequences_biased,
        {"bias": st.dictionaries(WORDS, BIAS, min_size=1, max_size=3)},
        known=known,
        batched=batched,
        rows=ROWS,
    )


@check_of(
    "bad_words",
    "logits, history, words, eos",
    alone=one_of("kept", "banned"),
    batched=FLAG,
)
def check_bad_words(alone: str, batched: bool) -> Iterator[Law]:
    """Check ``bad_words(logits, history, words, eos)``.

    Parameters
    ----------
    sampler : function of (V,) float32, (T,) int64, list of lists and int
    alone : {"kept", "banned"}
        What happens to a word that is just the end token: "kept" passes over it,
        else a text could never end (transformers).
    batched : bool
        The sampler takes (B, V) with a list of B histories, too.
    """

    def expected(logits: NDArray, history: NDArray, words: list, eos: int) -> NDArray:
        out = logits.copy()
        for word in words:
            *begin, last = word
            passed_over = list(word) == [eos] and alone == "kept"
            if _ends(history, tuple(begin)) and not passed_over:
                out[last] = GONE
        return out

    some = [[0, 1], [2], [1, 0, 2]]
    known = tuple(
        {"logits": row(0, 1, 2), "history": text(*seen), "words": some, "eos": 2}
        for seen in ((0,), (2, 0), (1, 0), ())
    )
    words = st.lists(WORDS.map(list), min_size=1, max_size=3)
    yield from penalty_laws(
        "just the tokens that would complete a word are removed",
        expected,
        {"words": words, "eos": st.just(2)},
        known=known,
        batched=batched,
        rows=ROWS,
    )


# ---- what may and what must come --------------------------------------------


def _suppressed(logits: NDArray, ids: list[int]) -> NDArray:
    out = logits.copy()
    out[ids] = GONE
    return out


@check_of("suppress", "logits, ids")
def check_suppress() -> Iterator[Law]:
    """Check ``suppress(logits, ids)``, which removes the given tokens.

    Parameters
    ----------
    sampler : function of (V,) float32 and list of int
    """

    rows, says = cases(logits=ROWS, ids=IDS), "just the given tokens are removed"
    known = {"logits": row(0, 1, 2), "ids": [1]}
    yield from _two(says, rows, wanted(_suppressed, 0), known)


def _only(logits: NDArray, ids: list[int]) -> NDArray:
    out = np.full_like(logits, GONE)
    out[ids] = logits[ids]
    return out


@check_of("allowed", "logits, ids")
def check_allowed() -> Iterator[Law]:
    """Check ``allowed(logits, ids)``, which removes all but the given tokens.

    Parameters
    ----------
    sampler : function of (V,) float32 and list of int
    """

    rows, known = cases(logits=FINITE, ids=IDS), {"logits": row(0, 1, 2), "ids": [1]}
    yield from _two("just the given tokens stay", rows, wanted(_only, 0), known)


def _without_early_end(
    logits: NDArray, length: int, least: int, eos: list[int]
) -> NDArray:
    out = logits.copy()
    out[eos if length < least else []] = GONE
    return out


@check_of("min_length", "logits, length, min_length, eos")
def check_min_length() -> Iterator[Law]:
    """Check ``min_length(logits, length, min_length, eos)``.

    Parameters
    ----------
    sampler : function of (V,) float32, int, int and list of int
        `length` is that of the text so far, prompt included.
    """

    options = {"length": st.integers(0, 5), "least": st.integers(0, 5), "eos": IDS}
    known = {"logits": row(0, 1, 2), "length": 3, "least": 3, "eos": [2]}
    says = "the end is removed just while the text is shorter than that"
    rows = cases(logits=ROWS, **options)
    yield from _two(
        says, rows, wanted(_without_early_end, 0), known, known | {"length": 2}
    )


def _without_early_end_after(
    logits: NDArray, length: int, prompt_length: int, least: int, eos: list[int]
) -> NDArray:
    out = logits.copy()
    out[eos if length - prompt_length < least else []] = GONE
    return out


@check_of("min_new_tokens", "logits, length, prompt_length, least, eos")
def check_min_new_tokens() -> Iterator[Law]:
    """Check ``min_new_tokens(logits, length, prompt_length, least, eos)``.

    Parameters
    ----------
    sampler : function of (V,) float32, three int and list of int
    """

    options: dict[str, st.SearchStrategy] = {
        "length": st.integers(3, 6),
        "prompt_length": st.integers(0, 3),
        "least": st.integers(0, 5),
        "eos": IDS,
    }
    known = {"logits": row(0, 1, 2), "length": 5, "prompt_length": 2, "least": 3}
    says = "the end is removed just while fewer tokens than that have followed"
    rows = cases(logits=ROWS, **options)
    few = [known | {"eos": [2], "least": least} for least in (3, 4)]
    yield from _two(says, rows, wanted(_without_early_end_after, 0), *few)


def _suppressed_at(logits: NDArray, length: int, ids: list[int], begin: int) -> NDArray:
    out = logits.copy()
    out[ids if length == begin else []] = GONE
    return out


@check_of("begin_suppress", "logits, length, ids, begin")
def check_begin_suppress() -> Iterator[Law]:
    """Check ``begin_suppress(logits, length, ids, begin)``.

    Parameters
    ----------
    sampler : function of (V,) float32, int, list of int and int
        Removes the tokens where the length is `begin`, and nowhere else.
    """

    options = {"length": st.integers(0, 3), "ids": IDS, "begin": st.integers(0, 3)}
    known = {"logits": row(0, 1, 2), "length": 2, "ids": [1], "begin": 2}
    says = "the tokens are removed from the first new position only"
    rows = cases(logits=ROWS, **options)
    yield from _two(says, rows, wanted(_suppressed_at, 0), known, known | {"length": 3})


def _forces(when: Callable[[int, int], bool]) -> Callable[..., None]:
    """The law that one token has all the probability at one length."""

    def holds(
        sampler: Callable, logits: NDArray, length: int, max_length: int, token: int
    ) -> None:
        if not when(length, max_length):
            unchanged(
                sampler, logits, length=length, max_length=max_length, token=token
            )
            return
        out = applied(sampler, logits, length, max_length, token)
        if alive(out) != {token}:
            raise Violation(f"left {shown(out)}, expected token {token} alone")

    return holds


@check_of("forced_eos", "logits, length, max_length, eos")
def check_forced_eos() -> Iterator[Law]:
    """Check ``forced_eos(logits, length, max_length, eos)``.

    Parameters
    ----------
    sampler : function of (V,) float32 and three int
        At the length max_length - 1 the end is all that is left.
    """
    options = {"length": st.integers(0, 5), "max_length": st.integers(1, 5)}
    rows = cases(logits=ROWS, **options, token=st.integers(0, 2))
    known = {"logits": row(3, 1, 2), "length": 3, "max_length": 4, "token": 1}
    says = "at the last position the end has all the probability, else nothing changes"
    holds = _forces(lambda length, most: length == most - 1)
    gone = known | {"logits": row(3, GONE, 2)}
    yield from _two(says, rows, holds, known, known | {"length": 4}, gone)


def _forces_bos(sampler: Callable, logits: NDArray, length: int, bos: int) -> None:
    def three(logits: NDArray, length: int, max_length: int, token: int) -> NDArray:
        return sampler(logits, length, token)

    holds = _forces(lambda length, most: length == 1)
    holds(three, logits, length=length, max_length=0, token=bos)


@check_of("forced_bos", "logits, length, bos")
def check_forced_bos() -> Iterator[Law]:
    """Check ``forced_bos(logits, length, bos)``.

    Parameters
    ----------
    sampler : function of (V,) float32 and two int
        After the very first token only `bos` is left.
    """

    rows = cases(logits=ROWS, length=st.integers(0, 3), bos=st.integers(0, 2))
    says = "after the first token bos has all the probability, else nothing changes"
    known = {"logits": row(3, 1, 2), "length": 1, "bos": 1}
    yield from _two(says, rows, _forces_bos, known, known | {"length": 2})
