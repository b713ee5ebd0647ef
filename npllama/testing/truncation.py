"""Checks of truncation by rank, by mass and by probability.

Every sampler is called as ``sampler(logits, option)`` with logits (V,) float32, some of
which may be minus infinity.  It returns the logits of the tokens that stay, and minus
infinity for the others.  With ``takes_least=True`` it is also called with a further
argument, the fewest tokens to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.laws import FLAG, Law, check_of, one_of
from npllama.testing.masks import (
    Options,
    expect,
    expect_between,
    expect_first,
    ids,
    kept,
    mask_laws,
    over,
)
from npllama.testing.strategies import (
    EIGHTHS,
    HALVES,
    RISING,
    WIDE,
    array,
    cases,
    equal_logits,
    logits,
    row,
    shares,
)
from npllama.testing.truth import GONE, alive, ranked, slack, softmax

LEAST = st.integers(1, 5)
UNIFORM = row(0, 0, 0, 0)


def _least(options: Options, takes_least: bool) -> Options:
    return options | {"least": LEAST} if takes_least else options


@check_of(
    "top_k",
    "logits, k",
    ties=one_of("all", "lowest", "highest", "any"),
    takes_least=FLAG,
    batched=FLAG,
)
def check_top_k(ties: str, takes_least: bool, batched: bool) -> Iterator[Law]:
    """Check ``top_k(logits, k)``, which keeps the k most probable tokens.

    Parameters
    ----------
    sampler : function of (V,) float32 and int
    ties : {"all", "lowest", "highest", "any"}
        Which of the tokens equal to the k-th stay: all of them, so that more than k
        may remain (transformers, vLLM); exactly k, those with the lowest or highest
        ids first; or exactly k, whichever (llama.cpp).
    takes_least : bool
        A third argument raises k to the fewest tokens to keep.
    batched : bool
        The sampler takes (B, V), too.
    """

    def holds(sampler: Callable, logits: NDArray, k: int, least: int = 1) -> None:
        found = kept(sampler, logits, k, *([least] if takes_least else []))
        left, k = len(alive(logits)), max(k, least)
        edge = logits[ranked(logits, "lowest")[min(k, left) - 1]]
        count = int((logits >= edge).sum()) if ties == "all" else min(k, left)
        count = left if k >= left else count
        expect_first(logits, found, count, count, ties)

    many = st.sampled_from([40, 65, 100, 257, 1000])
    options = _least({"k": st.integers(1, 6) | many}, takes_least)
    yield from mask_laws(options, batched=batched)
    yield Law(
        "the k most probable tokens stay"
        + (", with all that equal the last of them" if ties == "all" else ""),
        cases(logits=logits(large=True), **options),
        holds,
        (
            *({"logits": one, "k": 2} for one in (UNIFORM, row(-3, -1, -2), RISING)),
            *({"logits": RISING, "k": k} for k in (50, 65, 101, 1500)),
        ),
    )


def _nucleus_size(logits: NDArray, p: float, crossing: str) -> int:
    probs = softmax(logits)[ranked(logits, "lowest")]
    with_it = np.cumsum(probs)
    before = with_it - probs
    inside = {
        "exclusive": before < p,
        "inclusive": before <= p,
        "dropped": with_it <= p,
    }[crossing]
    return max(int(inside.sum()), 1)


def _all_stays(sampler: Callable, logits: NDArray) -> None:
    found, left = kept(sampler, logits, 1.0), alive(logits)
    why = f"{ids(left)}: rounding takes a running sum to 1 or above before its end"
    expect(logits, found, found == left, why)


@check_of(
    "top_p",
    "logits, p",
    ties=one_of("highest", "lowest", "any"),
    crossing=one_of("exclusive", "inclusive", "dropped"),
    takes_least=FLAG,
    batched=FLAG,
)
def check_top_p(
    ties: str, crossing: str, takes_least: bool, batched: bool
) -> Iterator[Law]:
    """Check ``top_p(logits, p)``, which keeps the fewest tokens that hold the mass p.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    ties : {"highest", "lowest", "any"}
        Which ids stay first among equals: highest (transformers and vLLM, who sort
        upwards), lowest (llama.cpp, Meta).
    crossing : {"exclusive", "inclusive", "dropped"}
        A token stays while the mass before it is < p ("exclusive": transformers,
        vLLM, llama.cpp) or <= p ("inclusive": Meta, llama2.c); or while the mass
        with it is <= p, so that the one that crosses is "dropped".
    takes_least : bool
        A third argument is the fewest tokens to keep.
    batched : bool
        The sampler takes (B, V), too.
    """

    def holds(sampler: Callable, logits: NDArray, p: float, least: int = 1) -> None:
        found = kept(sampler, logits, p, *([least] if takes_least else []))
        most, off = len(alive(logits)), slack(logits)
        few, many = (
            min(max(_nucleus_size(logits, p + d, crossing), least), most)
            for d in (-off, off)
        )
        expect_first(logits, found, few, many, ties)

    options = _least({"p": shares()}, takes_least)
    two = {"logits": array([[0, 0, 0, 0], [9, 0, 0, 0]]), "p": 0.9}
    two |= {"least": 1} if takes_least else {}
    yield from mask_laws(options, batched=batched, together=(two,))
    says = "the fewest most probable tokens whose mass reaches p stay"
    known = (
        {"logits": UNIFORM, "p": 0.3},
        {"logits": row(0, 3, 1, 2), "p": 0.9},
        {"logits": row(5, 0, 0, 0), "p": 0.5},
        {"logits": array(np.arange(600) % 7 / 7), "p": 0.9},
        {"logits": WIDE, "p": 0.95},
        {"logits": row(0, -8), "p": 0.9995},
    )
    yield Law(says, cases(logits=logits(large=True), **options), holds, known)
    meets = cases(logits=equal_logits(), p=st.integers(1, 15).map(lambda n: n / 16))
    says = "where the running sum meets p exactly, the convention decides"
    yield Law(says, meets, holds, ({"logits": UNIFORM, "p": 0.5},))
    tiny = cases(logits=logits(), p=st.sampled_from([1e-8, 1e-30, 1e-3]))
    says = "a p next to 0 keeps the most probable token alone"
    if crossing != "inclusive":
        many = {"logits": np.zeros(1024, np.float32), "p": 1e-8}
        yield Law(says, tiny, holds, (many,))
    # The first of these is all of the mass, as float64 adds it up; and ten whose sum in
    # float32 is above 1 before the last.
    tenth = row(0, 0, 0, 0, 0, 0, -1, -1, -1, -16)
    sure = ({"logits": row(0, -40, -41)}, {"logits": tenth})
    yield Law("p = 1 keeps every token", cases(logits=logits()), _all_stays, sure)


@check_of(
    "min_p",
    "logits, p",
    equality=one_of("kept", "removed"),
    takes_least=FLAG,
    batched=FLAG,
)
def check_min_p(equality: str, takes_least: bool, batched: bool) -> Iterator[Law]:
    """Check ``min_p(logits, p)``: keeps what is p times as probable as the best.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    equality : {"kept", "removed"}
        What happens to a token exactly at the threshold.
    takes_least : bool
        A third argument is the fewest tokens to keep, whichever of equals.
    batched : bool
        The sampler takes (B, V), too.
    """

    def holds(sampler: Callable, logits: NDArray, p: float, least: int = 1) -> None:
        found = kept(sampler, logits, p, *([least] if takes_least else []))
        probs = softmax(logits)
        off = 10 * slack(logits)
        must, may = over(probs / probs.max(), p, off, equality)
        may &= alive(logits)
        must &= may
        if len(must) >= least:
            expect_between(logits, found, must, may)
        else:
            most = max(least, len(may))
            expect_first(logits, found, min(least, len(alive(logits))), most, "any")

    options = _least({"p": shares(0, 1)}, takes_least)
    yield from mask_laws(options, batched=batched)
    says = "what is at least p times as probable as the best stays, and nothing else"
    rows = cases(logits=logits(large=True), **options)
    known = [{"logits": row(0, -1, -3), "p": 0.1}, {"logits": HALVES, "p": 0.5}]
    known += [{"logits": WIDE, "p": 0.5}, {"logits": row(0, -0.07), "p": 0.95}]
    # The best has more than 99%, and the other is just under p of it.
    known += [{"logits": row(0, -5.3023), "p": 0.005}]
    if takes_least:  # a token next to nothing is still more than a removed one
        known.append({"logits": row(0, GONE, -2000), "p": 0.5, "least": 2})
    yield Law(says, rows, holds, tuple(known))
    if equality == "kept":
        says = "p = 1 keeps the most probable token and its equals"
        equals = cases(logits=equal_logits(), p=st.just(1.0))
        yield Law(says, equals, holds, ({"logits": UNIFORM, "p": 1.0},))


def _by_probability(
    threshold: Callable[[NDArray, float], float],
    takes_least: bool,
    exact: bool = True,
) -> Callable[..., None]:
    """A law about a threshold on probabilities, with a rescue of the best tokens."""

    def holds(sampler: Callable, logits: NDArray, x: float, least: int = 1) -> None:
        found = kept(sampler, logits, x, *([least] if takes_least else []))
        off = 10 * slack(logits) if exact else 1e-5
        must, may = over(softmax(logits), threshold(logits, x), off)
        order = ranked(logits, "lowest")
        edge = logits[order[min(least, len(order)) - 1]]
        saved = set(np.flatnonzero(logits >= edge).tolist())
        expect_between(logits, found, must | saved, may | saved)

    return holds


@check_of("epsilon", "logits, epsilon", takes_least=FLAG, batched=FLAG)
def check_epsilon(takes_least: bool, batched: bool) -> Iterator[Law]:
    """Check ``epsilon(logits, epsilon)``: keeps what is as probable as that or more.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    takes_least : bool
        A third argument is the fewest tokens to keep, with all that equal the last.
    batched : bool
        The sampler takes (B, V), too.
    """
    holds = _by_probability(lambda logits, x: x, takes_least)
    options = _least({"x": shares()}, takes_least)
    yield from mask_laws(options, batched=batched)
    says = "what is as probable as epsilon or more stays, and the best in any case"
    huge = {"logits": row(1e4, 1e4 - 1, -1e4), "x": 0.2}
    wide = {"logits": WIDE, "x": 3e-4}
    yield Law(says, cases(logits=logits(large=True), **options), holds, (huge, wide))
    says = "a token of probability epsilon exactly stays"
    meets = cases(logits=equal_logits(), x=st.integers(1, 4).map(lambda n: 2.0**-n))
    yield Law(says, meets, holds, ({"logits": UNIFORM, "x": 0.25},))
    known = {"logits": row(5, 0, 0), "x": 0.999}
    yield Law("the best token stays under a threshold above it", meets, holds, (known,))


def _eta(logits: NDArray, epsilon: float) -> float:
    probs = softmax(logits)
    probs = probs[probs > 0]
    surprise = float((probs * -np.log(probs)).sum())
    return min(epsilon, epsilon**0.5 * float(np.exp(-surprise)))


@check_of("eta", "logits, epsilon", takes_least=FLAG, batched=FLAG)
def check_eta(takes_least: bool, batched: bool) -> Iterator[Law]:
    r"""Check ``eta(logits, epsilon)``: the threshold falls where the model is unsure.

    $$\eta = \min(\epsilon, \sqrt{\epsilon} \, e^{-H})$$

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    takes_least : bool
        A third argument is the fewest tokens to keep, with all that equal the last.
    batched : bool
        The sampler takes (B, V), too.
    """

    holds = _by_probability(_eta, takes_least, exact=False)
    options = _least({"x": shares()}, takes_least)
    yield from mask_laws(options, batched=batched)
    says = "what is as probable as min(epsilon, sqrt(epsilon) e^-H) or more stays"
    known = ({"logits": row(0, 0, 0, -2), "x": 0.05}, {"logits": WIDE, "x": 1e-3})
    yield Law(says, cases(logits=logits(large=True), **options), holds, known)


def _square_of_the_best(logits: NDArray, a: float) -> float:
    return a * float(softmax(logits).max()) ** 2


@check_of("top_a", "logits, a", batched=FLAG)
def check_top_a(batched: bool) -> Iterator[Law]:
    """Check ``top_a(logits, a)``: keeps what is a times the best's square or more.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    batched : bool
        The sampler takes (B, V), too.
    """

    holds = _by_probability(_square_of_the_best, takes_least=False)
    options = {"x": shares()}
    yield from mask_laws(options, batched=batched)
    says = "what is as probable as a times the square of the best stays, nothing else"
    tried = ((row(0, -1, -1), 0.5), (EIGHTHS, 0.5), (WIDE, 0.5))
    known = tuple({"logits": logits, "x": x} for logits, x in tried)
    yield Law(says, cases(logits=logits(large=True), **options), holds, known)


def _expect_exclusion(
    logits: NDArray,
    found: set[int],
    acts: bool,
    threshold: float,
    least: int,
    ties: str,
) -> None:
    """All good tokens but the least probable are gone, or nothing is."""
    left = alive(logits)
    must, may = over(softmax(logits), threshold, 10 * slack(logits))
    if not acts or len(may) < 2:
        expect(logits, found, found == left, ids(left))
    elif must != may:
        return  # rounding decides
    elif len(left) - len(must) + 1 < least:
        expect(logits, found, found == left, f"{ids(left)}, too few would remain")
    else:
        order = ranked(logits, "highest" if ties == "lowest" else "lowest")
        good, gone = order[: len(must)], left - found
        equals = {i for i in good if logits[i] >= logits[good[-2]]}
        right = len(gone) == len(good) - 1 and gone <= equals
        right &= ties == "any" or gone == set(good[:-1])
        what = f"all but the least probable of {ids(set(good))} to be removed"
        expect(logits, found, right, what)


@check_of(
    "xtc",
    "logits, probability, threshold, u",
    ties=one_of("any", "highest", "lowest"),
    throw=one_of("own", "u"),
    takes_least=FLAG,
)
def check_xtc(ties: str, throw: str, takes_least: bool) -> Iterator[Law]:
    """Check ``xtc(logits, probability, threshold, u)``, which removes the top choices.

    Parameters
    ----------
    sampler : function of (V,) float32, float, float and float
    ties : {"any", "highest", "lowest"}
        Which of the equally least probable good tokens stays.
    throw : {"own", "u"}
        "u": the sampler acts where u < probability; "own": it throws dice of its own
        and ignores u, so that only the probabilities 0 and 1 can be tried.
    takes_least : bool
        A fifth argument is the fewest tokens to keep.
    """

    def holds(sampler: Callable, logits: NDArray, **options: Any) -> None:
        found = kept(sampler, logits, *options.values())
        chance = options["probability"]
        acts = chance == 1 if throw == "own" else options["u"] < chance
        least = options.get("least", 1)
        _expect_exclusion(logits, found, acts, options["threshold"], least, ties)

    u = st.sampled_from([0.0, 0.25, 0.5, 0.999])
    chance = st.sampled_from([0.0, 1.0] if throw == "own" else [0.0, 0.25, 0.5, 1.0])
    options: dict[str, Any] = {"probability": chance, "threshold": shares(0, 0.6)}
    options = _least(options | {"u": u}, takes_least)
    yield from mask_laws(options, keeps_the_best=False)
    says = "of two good tokens or more all are removed but the least probable"
    rest = {"least": 1} if takes_least else {}
    known = tuple(
        {"logits": r, "probability": 1.0, "threshold": x, "u": 0.0} | rest
        for r, x in (
            *((row(2, 1, 0, -9), 0.05), (UNIFORM, 0.25), (HALVES, 0.25)),
            (WIDE, 3.5e-4),
        )
    )
    yield Law(says, cases(logits=logits(large=True), **options), holds, known)
    says = "probability 0 never acts"
    never = options | {"probability": st.just(0.0)}
    known = (known[0] | {"probability": 0.0},)
    yield Law(says, cases(logits=logits(), **never), holds, known)
