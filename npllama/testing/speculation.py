"""Checks of speculation: the rule that makes it exact, whole texts, and lookup.

The rule is checked without chance.  Probabilities are multiples of 1 / 16, and every
uniform number is the middle of a piece of [0, 1) on which the decision is the same, so
counting gives the distribution of the output exactly.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.chance import BELOW_ONE, too_far
from npllama.testing.laws import Law, Violation, check_of, from_one, one_of, shown
from npllama.testing.models import (
    NO_REPEAT,
    PLAIN,
    SURE,
    TWO_BEST,
    LanguageModel,
    Named,
    Processed,
    greedy_text,
    log_prob,
    models,
    texts,
)
from npllama.testing.search import EOS, PROMPTS
from npllama.testing.strategies import cases, probabilities

PARTS = 16


@st.composite
def pairs(draw: Any) -> dict[str, NDArray]:
    """Two distributions over the same tokens, in multiples of 1 / 16."""
    p = draw(probabilities(PARTS, 5))
    cuts = st.lists(st.integers(0, PARTS), min_size=len(p) - 1, max_size=len(p) - 1)
    q = np.diff([0, *sorted(draw(cuts)), PARTS]) / PARTS
    return {"p": p, "q": q}


def _middles(parts: int) -> list[float]:
    return [(i + 0.5) / parts for i in range(parts)]


def _outcome(sampler: Callable, p: NDArray, q: NDArray) -> dict[int, Fraction]:
    """How probable each token is to come out, guesses being drawn from q."""
    shares: dict[int, Fraction] = defaultdict(Fraction)
    left = int(round(PARTS * float(np.maximum(p - q, 0).sum()))) or 1
    for x in np.flatnonzero(q):
        parts = int(round(PARTS * q[x]))
        for u in _middles(parts):
            drawn = Counter(
                int(sampler(p.copy(), q.copy(), int(x), u, v)) for v in _middles(left)
            )
            for token, n in drawn.items():
                shares[token] += Fraction(n, PARTS * left)
    return shares


def _exact(sampler: Callable, p: NDArray, q: NDArray) -> None:
    found = _outcome(sampler, p, q)
    for i, wanted in enumerate(p):
        share = float(found.get(i, 0))
        if share != wanted:
            raise Violation(f"token {i} comes out with {share:g}, not {wanted:g}")


def _possible(sampler: Callable, p: NDArray, q: NDArray, u: float, v: float) -> None:
    for x in np.flatnonzero(q):
        token = int(sampler(p.copy(), q.copy(), int(x), u, v))
        problem = f"guess {x} became {token}, which has probability 0"
        if not (p[token] > 0):
            raise Violation(problem)


def _same(sampler: Callable, p: NDArray, q: NDArray, u: float, v: float) -> None:
    for x in np.flatnonzero(q):
        token = int(sampler(q.copy(), q.copy(), int(x), u, v))
        if token != x:
            raise Violation(f"guess {x} became {token}, though p and q are equal")


def _shared(sampler: Callable, p: NDArray, q: NDArray) -> None:
    kept = Fraction(0)
    for x in np.flatnonzero(q):
        parts = int(round(PARTS * q[x]))
        tokens = [
            int(sampler(p.copy(), q.copy(), int(x), u, 0.5)) for u in _middles(parts)
        ]
        kept += Fraction(sum(token == x for token in tokens), PARTS)
    most = float(np.minimum(p, q).sum())
    if not (float(kept) >= most):
        raise Violation(f"kept with {float(kept):g}, possible is {most:g}")


@check_of("rejection", "p, q, guess, u, v")
def check_rejection() -> Iterator[Law]:
    """Check ``verify(p, q, guess, u, v)``, the rule of speculative sampling.

    Parameters
    ----------
    sampler : function of two (V,) float64, int and two floats
        p is the distribution wanted, q the one that the guess was drawn from. u in
        [0, 1) decides whether the guess is kept; v in [0, 1) draws another where it
        is not. Returns the token.
    """

    half, other = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    apart = {"p": np.array([0.0, 1.0]), "q": np.array([1.0, 0.0])}
    known = ({"p": half, "q": other}, {"p": other, "q": half}, apart)
    ends = {
        "u": st.sampled_from([0.0, 0.5, BELOW_ONE]),
        "v": st.sampled_from([0.0, BELOW_ONE]),
    }
    both = st.tuples(pairs(), cases(**ends)).map(lambda two: two[0] | two[1])
    says = "what comes out is distributed as p, whatever q was"
    yield Law(says, pairs(), _exact, known)
    says = "a token of probability 0 never comes out, even at u = 0"
    yield Law(says, both, _possible, (apart | {"u": 0.0, "v": 0.0},))
    says = "a guess from the right distribution is always kept"
    inside = cases(u=st.sampled_from([0.0, 0.5, 0.999]), v=st.just(0.5))
    one = st.tuples(pairs(), inside).map(lambda two: two[0] | two[1])
    yield Law(says, one, _same)
    says = "guesses are kept as often as min(p, q) allows"
    yield Law(says, pairs(), _shared, known)


# ---- the whole --------------------------------------------------------------


def _greedy(
    sampler: Callable,
    target: LanguageModel,
    draft: LanguageModel,
    prompt: list[int],
    process: Named,
    **options: Any,
) -> None:
    found = sampler(target, draft, prompt, process=process, seed=None, **options)
    most, eos = options["max_new_tokens"], options["eos"]
    right = greedy_text(Processed(target, process), prompt, most, eos)
    if list(found) != right:
        raise Violation(f"found {shown(list(found))}, alone it is {right}")


def _odds(
    sampler: Callable,
    target: LanguageModel,
    draft: LanguageModel,
    prompt: list[int],
    process: Named,
    runs: int,
    **options: Any,
) -> None:
    every = list(texts(target.size, options["max_new_tokens"], options["eos"]))
    alone = Processed(target, process)
    probs = np.exp([log_prob(alone, prompt, text) for text in every])
    number = {text: i for i, text in enumerate(every)}
    drawn: Counter = Counter()
    for seed in range(runs):
        found = sampler(target, draft, prompt, process=process, seed=seed, **options)
        text = tuple(map(int, found))
        if text not in number:
            raise Violation(f"{list(text)} is no whole text")
        drawn[number[text]] += 1
    problem = too_far(drawn, probs)
    i = max(range(len(every)), key=lambda i: abs(drawn[i] / runs - probs[i]))
    worst = f"{list(every[i])} has {probs[i]:.3f}, was drawn {drawn[i] / runs:.3f}"
    if problem:
        raise Violation(f"{problem}\n{worst} of the time")


def _whole(sampler: Callable, target: LanguageModel, **options: Any) -> None:
    draft, prompt = options.pop("draft"), options.pop("prompt")
    found = sampler(target, draft, prompt, process=PLAIN, **options)
    most, eos = options["max_new_tokens"], options["eos"]
    right = tuple(map(int, found)) in set(texts(target.size, most, eos))
    if not right:
        raise Violation(
            f"{shown(list(found))} ends neither at eos nor at the last place"
        )


@check_of(
    "speculative", "target, draft, prompt, num_guesses=, ...", runs=from_one(1000)
)
def check_speculative(runs: int) -> Iterator[Law]:
    """Check ``speculative(target, draft, prompt, num_guesses=, ...)``, the whole.

    Parameters
    ----------
    sampler : function
        target and draft are functions from a text to logits (V,) float32. The other
        keywords are max_new_tokens, eos (or None), process, which is given (text,
        logits) of target and draft alike before anything is decided, and seed: None
        decides greedily, a number makes a new generator. Returns the new tokens.
    runs : int
        How many texts are drawn to look at their distribution.
    """

    two = {"target": models(), "draft": models()}
    size = {"num_guesses": st.integers(1, 4), "max_new_tokens": st.integers(1, 6)}
    rest = {"prompt": PROMPTS, "eos": EOS} | size
    shaping = st.sampled_from([PLAIN, NO_REPEAT])
    # Models that agree at times: else no guess is ever kept.
    a, b = LanguageModel(3, 5, 0.8), LanguageModel(3, 77, 0.8)
    usual = {"target": a, "draft": b, "prompt": [1, 0], "num_guesses": 2}
    usual |= {"max_new_tokens": 3, "eos": 2}
    same = usual | {"draft": a, "process": PLAIN}
    greedily = tuple(
        same | {"target": LanguageModel(3, seed), "draft": LanguageModel(3, seed + n)}
        for seed in range(4)
        for n in (0, 1)
    )
    says = "greedily, the text is that of the target alone, whatever the draft"
    yield Law(says, cases(**two, **rest, process=shaping), _greedy, greedily)
    says = "a text ends at the first eos or at the last place, not after it"
    seeds = st.integers(0, 99)
    yield Law(says, cases(**two, **rest, seed=seeds), _whole)
    odds = functools.partial(_odds, runs=runs)
    says = "texts are as likely as from the target alone"
    tried = tuple(usual | {"process": p} for p in (PLAIN, SURE, TWO_BEST, NO_REPEAT))
    # Of six words several may take the place of a guess.
    a, b = LanguageModel(6, 5, 0.8), LanguageModel(6, 77, 0.8)
    tried += (tried[0] | {"target": a, "draft": b, "max_new_tokens": 2},)
    yield Law(says, st.just(tried[0]), odds, tried)


# ---- prompt lookup ----------------------------------------------------------


@check_of(
    "prompt_lookup",
    "text, most, max_matching_ngram_size",
    match=one_of("first", "last"),
)
def check_prompt_lookup(match: str) -> Iterator[Law]:
    """Check ``lookup(text, most, max_matching_ngram_size)``.

    Parameters
    ----------
    sampler : function of list of int and two int
        Returns at most `most` tokens: those that followed an earlier place with the
        same last tokens, as many of these as possible.
    match : {"first", "last"}
        Which of several such places counts.
    """

    def expected(text: list[int], most: int, longest: int) -> list[int]:
        for n in range(min(longest, len(text) - 1), 0, -1):
            end = text[len(text) - n :]
            places = [i for i in range(len(text) - n) if text[i : i + n] == end]
            if places:
                start = places[0 if match == "first" else -1] + n
                return text[start : start + most]
        return []

    def holds(sampler: Callable, text: list[int], most: int, longest: int) -> None:
        found = [int(token) for token in sampler(list(text), most, longest)]
        right = expected(text, most, longest)
        if found != right:
            raise Violation(f"found {found}, expected {right}")

    tokens = st.lists(st.integers(0, 2), min_size=1, max_size=20)
    sizes = {"most": st.integers(1, 12), "longest": st.integers(1, 5)}
    few: Sequence[list[int]] = (
        [0, 1, 2, 0, 1],
        [0, 1, 0, 2, 0],
        [0, 1, 2, 1, 0, 2, 1],
        [0],
        [1, 1],
    )
    known = tuple({"text": t, "most": 2, "longest": 2} for t in few)
    # What follows the last two tokens is not what follows the last three.
    known += ({"text": [1, 2, 3, 0, 1, 2, 4, 0, 1, 2], "most": 2, "longest": 3},)
    known += ({"text": [0, 1, 2, 4, 1, 2, 3, 0, 1, 2], "most": 2, "longest": 3},)
    # As many as asked for, and a repeat as long as allowed.
    known += ({"text": [0, *range(1, 15), 0], "most": 14, "longest": 2},)
    long, short = [2, 3, 4, 5, 6, 8], [4, 5, 6, 7]
    known += tuple(
        {"text": [*a, *b, 2, 3, 4, 5, 6], "most": 2, "longest": 5}
        for a, b in ((long, short), (short, long))
    )
    says = "the guess is what followed the longest repeat of the text's end"
    yield Law(says, cases(text=tokens, **sizes), holds, known)
