"""Checks of truncation by the shape of the whole distribution.

Every sampler is called as ``sampler(logits, option)``, as in `truncation`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.laws import FLAG, Law, Violation, check_of, from_one, one_of, shown
from npllama.testing.masks import (
    Options,
    applied,
    expect,
    expect_between,
    expect_first,
    ids,
    kept,
    mask_laws,
)
from npllama.testing.strategies import (
    HALVING,
    WIDE,
    array,
    cases,
    equal_logits,
    logits,
    row,
    shares,
)
from npllama.testing.truth import (
    GONE,
    alive,
    entropy,
    log_softmax,
    ranked,
    slack,
    softmax,
)

LEAST = {"least": st.integers(1, 5)}
UNIFORM = row(0, 0, 0, 0)
# The best token is so predictable that the second is more typical.
PEAKED = row(2, 1, 1, 1, 1, 1, 0, 0)


def _nearest(
    sampler: Callable, logits: NDArray, mass: float, least: int = 0, *, cuts: bool
) -> None:
    """What stays is nearest to the mean, and just as much as holds the mass."""
    found = kept(sampler, logits, mass, *([least] if least else []))
    left, probs = sorted(alive(logits)), softmax(logits)
    odd = abs(-log_softmax(logits) - entropy(logits))
    odd[logits == GONE] = 0  # none of these is asked about
    near = odd - 1e-5 * (1 + odd)
    out = [i for i in left if i not in found]
    right = all(near[i] <= odd[j] for i in found for j in out)
    expect(logits, found, right, "those whose surprise is nearest to the mean")
    off, held = max(10 * slack(logits), 1e-9), probs[list(found)].sum()
    enough = held >= mass - off or not out
    expect(logits, found, enough, f"enough to hold {mass}, this is {held:.7g}")
    edge = max(near[i] for i in found)
    last = [i for i in found if odd[i] >= edge]
    # Of equally near ones, cut through, all but one come before the last.
    before = held - probs[last].sum() / (len(last) if cuts else 1)
    fewest = before < mass + off or len(found) <= least
    expect(logits, found, fewest, f"no more than needed for {mass}")


def _together(sampler: Callable, logits: NDArray, mass: float) -> None:
    out = applied(sampler, logits, mass)
    for value in set(logits.tolist()):
        same = {float(x) for x in out[logits == value]}
        if len(same) != 1:
            raise Violation(f"of equals some stay and some go: {shown(out)}")


def _cut(sampler: Callable, logits: NDArray, mass: float) -> None:
    found = kept(sampler, logits, mass)
    equals = int((logits == logits.max()).sum())
    count = min(int(mass * equals) + 1, len(alive(logits)))
    expect_first(logits, found, count, count, "any")


@check_of(
    "typical",
    "logits, mass",
    convention=one_of("transformers", "llama.cpp"),
    takes_least=FLAG,
    batched=FLAG,
)
def check_typical(convention: str, takes_least: bool, batched: bool) -> Iterator[Law]:
    r"""Check ``typical(logits, mass)``: the tokens that surprise as much as expected.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    convention : {"transformers", "llama.cpp"}
        Tokens are taken by $|-\ln p - H|$ until the sum is >= mass, and with the last
        all that are equally near; or until it is > mass, cutting through equals.
    takes_least : bool
        A third argument is the fewest tokens to keep.
    batched : bool
        The sampler takes (B, V), too.
    """

    least: Options = LEAST if takes_least else {}
    options = {"mass": shares()} | least
    yield from mask_laws(options, keeps_the_best=False, batched=batched)
    nearest = functools.partial(_nearest, cuts=convention == "llama.cpp")
    says = "the tokens nearest to the expected surprise stay, until they hold the mass"
    tried = [(PEAKED, 0.3), (PEAKED, 0.6), (HALVING, 0.749), (HALVING, 0.751)]
    tried += [(WIDE, 0.95), (row(3, 1, 0), 0.2)]  # in the last one token is enough
    known = tuple({"logits": logits, "mass": mass} for logits, mass in tried)
    yield Law(says, cases(logits=logits(), **options), nearest, known)
    if convention == "transformers":
        says = "tokens of equal probability stay or go together"
        rows = cases(logits=logits(), mass=shares())
        yield Law(says, rows, _together, ({"logits": UNIFORM, "mass": 0.5},))
    else:
        says = "of equals no more stay than needed for a sum above the mass"
        equal = equal_logits().filter(lambda row: len(alive(row)) > 4)
        rows = cases(logits=equal, mass=st.integers(1, 7).map(lambda n: n / 8))
        yield Law(says, rows, _cut, ({"logits": UNIFORM, "mass": 0.5},))


@check_of(
    "top_h",
    "logits, alpha",
    entropy=one_of("original", "renormalised"),
    ties=one_of("any", "lowest", "highest"),
    most=from_one(100),
    batched=FLAG,
)
def check_top_h(entropy: str, ties: str, most: int, batched: bool) -> Iterator[Law]:
    """Check ``top_h(logits, alpha)``: the best that hold that share of the entropy.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    entropy : {"original", "renormalised"}
        What must not exceed alpha times the entropy: the sum of -p ln p over those
        that stay, p as it was (transformers), or their own entropy (the paper).
    ties : {"any", "lowest", "highest"}
        Which of equals stay first.
    most : int
        Only so many of the most probable are looked at.
    batched : bool
        The sampler takes (B, V), too.
    """

    def holds(sampler: Callable, logits: NDArray, alpha: float) -> None:
        found = kept(sampler, logits, alpha)
        order = ranked(logits, "lowest")[:most]
        probs = softmax(logits[order])
        real = probs[probs > 0]
        held = np.cumsum(-real * np.log(real))
        allowed = alpha * held[-1]
        if entropy == "renormalised":
            mass = np.cumsum(real)
            held = held / mass + np.log(mass)
        off = 1e-5 * (1 + held[-1])
        # A float32 need not see the least of them.
        few = int(((held <= allowed - off) & (real > 1e-30)).sum())
        many = int((held <= allowed + off).sum())
        expect_first(logits, found, max(few, 1), max(many, 1), ties)

    options = {"alpha": shares()}
    yield from mask_laws(options, batched=batched)
    says = "the most probable tokens stay that hold the share alpha of the entropy"
    known = (
        {"logits": row(2, 1, 0, 0, -1), "alpha": 0.5},
        {"logits": array(np.arange(300) % 50) / 50, "alpha": 0.999},
        {"logits": row(0, 0, 500), "alpha": 0.5},
    )
    yield Law(says, cases(logits=logits(large=True), **options), holds, known)
    certain = {"logits": row(0, -1000, -1000), "alpha": 0.5}
    says = "of a row that is certain one token stays"
    sure = st.sampled_from([row(0, -1000), certain["logits"], row(-900, 0)])
    yield Law(says, cases(logits=sure, **options), holds, (certain,))


def _ignores_temperature(
    sampler: Callable, logits: NDArray, n: float, t: float
) -> None:
    found, other = (
        kept(sampler, logits, n),
        kept(sampler, logits / np.float32(t), n),
    )
    expect(logits, other, found == other, f"{ids(found)} as at temperature 1")


def _within_deviations(sampler: Callable, logits: NDArray, n: float) -> None:
    found = kept(sampler, logits, n)
    # In float64: a float32 threshold would be rounded to the next logit.
    exact = logits.astype(np.float64)
    left = exact[exact > GONE]
    sigma, best = float(left.std()), float(left.max())
    # Two logits deviate by half their distance: exact, so that 2 sigma is met.
    met = len(left) == 2 or sigma == 0
    off = 0.0 if met else 1e-4 * (n * sigma + 1e-3 * abs(left).max())
    must, may = (
        set(np.flatnonzero(exact >= best - n * sigma + d).tolist()) for d in (off, -off)
    )
    expect_between(logits, found, must, may)


@check_of("top_n_sigma", "logits, n", batched=FLAG)
def check_top_n_sigma(batched: bool) -> Iterator[Law]:
    """Check ``top_n_sigma(logits, n)``: within n standard deviations of the best.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
        The deviation is that of the tokens that are left, divided by their number.
    batched : bool
        The sampler takes (B, V), too.
    """

    options = {"n": st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.0, 3.0])}
    yield from mask_laws(options, batched=batched)
    says = "what is within n deviations of the best stays; removed tokens do not count"
    known = (
        {"logits": row(1, 0, 0, 0, -2), "n": 1.0},
        {"logits": row(2, 0), "n": 2.0},
        {"logits": row(2, 1, -math.inf, -math.inf), "n": 1.0},
        {"logits": row(3, 1, 0), "n": 1.7},
        {"logits": WIDE, "n": 3.0},
        # One float32 step apart: half of it is no float32.
        {"logits": row(1, np.nextafter(np.float32(1), np.float32(2))), "n": 1.0},
    )
    yield Law(
        says, cases(logits=logits(large=True), **options), _within_deviations, known
    )
    exact = st.lists(st.integers(-8, 8), min_size=1, max_size=6).map(array)
    says = "temperature does not change what stays"
    half = cases(logits=exact, **options, t=st.sampled_from([0.5, 2.0, 4.0]))
    yield Law(says, half, _ignores_temperature)


@check_of(
    "tail_free",
    "logits, z",
    convention=one_of("llama.cpp", "webui"),
    ties=one_of("any", "lowest", "highest"),
    batched=FLAG,
)
def check_tail_free(convention: str, ties: str, batched: bool) -> Iterator[Law]:
    """Check ``tail_free(logits, z)``: cut where sorted probabilities stop bending.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    convention : {"llama.cpp", "webui"}
        The second differences, made positive and adding up to 1, are summed until
        the sum exceeds z. llama.cpp cuts at the first of the three tokens that a
        second difference spans, but keeps one; text-generation-webui keeps one more.
    ties : {"any", "lowest", "highest"}
        Which of equals stay first.
    batched : bool
        The sampler takes (B, V), too.
    """
    one_more = convention == "webui"

    def holds(sampler: Callable, logits: NDArray, z: float) -> None:
        found = kept(sampler, logits, z)
        probs = softmax(logits)[ranked(logits, "lowest")]
        if len(probs) <= 2:
            expect(logits, found, found == alive(logits), ids(alive(logits)))
            return
        bend = abs(np.diff(probs, 2))
        total = float(bend.sum())
        if 0 < total < 1e-3:  # the shares would be made of rounding
            return
        share = bend / total if total else np.full(len(bend), 1 / len(bend))
        sums = np.cumsum(share)
        few, many = (
            next((i for i, s in enumerate(sums) if s > z + d and i >= 1), len(probs))
            for d in (-1e-4, 1e-4)
        )
        most = len(probs)
        fewest, largest = min(few + one_more, most), min(many + one_more, most)
        expect_first(logits, found, fewest, largest, ties)

    options = {"z": shares(0.05, 0.95)}
    yield from mask_laws(options, batched=batched)
    says = "tokens stay until the sum of the bends exceeds z"
    known = (
        {"logits": row(3, 2, 1, 0, -1), "z": 0.5},
        {"logits": row(0, 0, 0, 0, 0, 0), "z": 0.6},
        {"logits": row(1, 0), "z": 0.1},
    )
    yield Law(says, cases(logits=logits(), **options), holds, known)
