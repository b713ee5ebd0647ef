"""Checks of the draw and of temperature."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.laws import FLAG, Law, Violation, check_of, from_one, one_of, shown
from npllama.testing.masks import applied, expect_first, not_written
from npllama.testing.strategies import (
    LAST,
    RISING,
    array,
    cases,
    logits,
    of_values,
    probabilities,
    row,
)
from npllama.testing.truth import (
    GONE,
    alive,
    entropy,
    softmax,
)

BELOW_ONE = 1 - 2.0**-53


def close(out: NDArray, expected: NDArray, relative: float = 1e-5) -> None:
    """Raise Violation unless the logits agree and the same ones are removed."""
    same = (out > GONE) == (expected > GONE)
    scale = relative * (1 + abs(np.where(expected > GONE, expected, 0)))
    with np.errstate(invalid="ignore"):
        near = (out == expected) | (abs(out - expected) <= scale)
    right = bool((same & near).all())
    if not right:
        raise Violation(f"found {shown(out)}, expected {shown(array(expected))}")


# ---- one token --------------------------------------------------------------


@check_of("greedy", "logits", ties=one_of("lowest", "any"))
def check_greedy(ties: str) -> Iterator[Law]:
    """Check ``greedy(logits)``, which returns the id of the most probable token.

    Parameters
    ----------
    sampler : function of (V,) float32
    ties : {"lowest", "any"}
        Which of equals is taken.
    """

    def holds(sampler: Callable, logits: NDArray) -> None:
        found = int(sampler(logits.copy()))
        best = np.flatnonzero(logits == logits.max())
        right = found == best[0] if ties == "lowest" else found in best
        if not right:
            raise Violation(
                f"chose {found}, expected {shown(best[:1])} ({ties} of equals)"
            )

    says = "the most probable token is chosen"
    # In half precision the two of the third would be equal.
    rows = (row(0, 1, 1), row(-math.inf, -5), row(1, 1.0001), RISING, LAST)
    known = tuple({"logits": x} for x in rows)
    yield Law(says, cases(logits=logits()), holds, known)
    yield Law(
        "the array passed in is not written into", cases(logits=logits()), not_written
    )


def _shares_of_u(sampler: Callable, probs: NDArray) -> None:
    # Each piece of [0, 1) of this length belongs to one token as a whole.
    grid = (np.arange(64) + 0.5) / 64
    drawn = Counter(int(sampler(probs.copy(), float(u))) for u in grid)
    for i, p in enumerate(probs):
        if drawn[i] != round(64 * p):
            raise Violation(
                f"token {i} owns {drawn[i]}/64 of u, expected {p * 64:g}/64"
            )


def _possible(sampler: Callable, probs: NDArray, u: float) -> None:
    token = int(sampler(probs.copy(), u))
    right = 0 <= token < len(probs) and probs[token] > 0
    if not right:
        raise Violation(f"drew {token}, which has probability 0")


def _inverse(sampler: Callable, probs: NDArray, n: int) -> None:
    u = n / 64
    token = int(sampler(probs.copy(), u))
    expected = int(np.flatnonzero(np.cumsum(probs) > u)[0])
    if token != expected:
        raise Violation(f"u = {u:g} drew {token}, expected {expected}")


@check_of("draw", "probs, u", order=one_of("ids", "any"))
def check_draw(order: str) -> Iterator[Law]:
    """Check ``draw(probs, u)``, which makes a token of a number in [0, 1).

    Parameters
    ----------
    sampler : function of (V,) float64 and float
    order : {"ids", "any"}
        Tokens are laid end to end by their ids, so that the token is the first whose
        running sum exceeds u; or in another order (largest first), so that only how
        much of [0, 1) each token owns is looked at.
    """
    yield Law(
        "every token owns exactly its probability of all u",
        cases(probs=probabilities()),
        _shares_of_u,
        ({"probs": np.array([0.25, 0.5, 0.25])},),
    )
    some = probabilities()
    ends = st.sampled_from([0.0, 0.5, BELOW_ONE])
    yield Law(
        "a token of probability 0 is never drawn, whatever u",
        cases(probs=some, u=ends),
        _possible,
        (
            {"probs": np.array([0.0, 1.0, 0.0]), "u": 0.0},
            {"probs": np.array([0.0, 1.0, 0.0]), "u": BELOW_ONE},
            # Ten tenths add up to a little less than 1.
            {"probs": np.array([0.1] * 10 + [0.0]), "u": BELOW_ONE},
        ),
    )
    if order == "ids":
        half = {"probs": np.array([0.5, 0.5]), "n": 32}
        says = "the token is the first whose running sum exceeds u"
        large = {"probs": np.full(70_000, 1 / 70_000), "n": 63}
        yield Law(
            says, cases(probs=some, n=st.integers(0, 63)), _inverse, (half, large)
        )


def too_far(counts: Counter, probs: NDArray) -> str | None:
    """Whether counts are what `probs` can give; in words if they are not.

    Returns
    -------
    str or None
        Chi-squared, where it lies so far out that one in 10^9 fair tries would.
    """
    n = sum(counts.values())
    impossible = [i for i, p in enumerate(probs) if p == 0 and counts[i]]
    if impossible:
        return f"{impossible[0]} was drawn, which has probability 0"
    # Cells of few expected counts are taken together.
    large = [i for i, p in enumerate(probs) if n * p >= 5]
    cells = [(counts[i], n * probs[i]) for i in large]
    rest = n - sum(found for found, _ in cells)
    expected_rest = n - sum(expected for _, expected in cells)
    if expected_rest > 1e-9 * n:
        cells.append((rest, max(expected_rest, 1.0)))
    free = max(len(cells) - 1, 1)
    chi2 = sum((found - expected) ** 2 / expected for found, expected in cells)
    # The cube root of chi-squared is all but normal (Wilson and Hilferty 1931).
    z = ((chi2 / free) ** (1 / 3) - 1 + 2 / (9 * free)) / math.sqrt(2 / (9 * free))
    return f"chi-squared is {chi2:.0f} for {free} degrees of freedom" if z > 6 else None


def _repeats(sampler: Callable, logits: NDArray, seed: int) -> None:
    tokens = {int(sampler(logits.copy(), seed)) for _ in range(3)}
    if len(tokens) != 1:
        raise Violation(f"one seed drew {sorted(tokens)}")


@check_of("sample", "logits, seed", draws=from_one(1000))
def check_sample(draws: int) -> Iterator[Law]:
    """Check ``sample(logits, seed)``, which draws a token by chance.

    Parameters
    ----------
    sampler : function of (V,) float32 and int
    draws : int
        How often each row is drawn from.
    """

    def odds(sampler: Callable, logits: NDArray) -> None:
        drawn = Counter(int(sampler(logits.copy(), seed)) for seed in range(draws))
        problem = too_far(drawn, softmax(logits))
        shares = [round(drawn[i] / draws, 3) for i in range(len(logits))]
        wanted = shown(softmax(logits).round(3))
        if problem:
            raise Violation(
                f"shares {shares} of {draws} draws, expected {wanted}: {problem}"
            )

    few = [row(0, 1, 2), row(0, -math.inf, 0.5, 0), row(*[-2.0] * 12), row(*[0.0] * 99)]
    few.append(row(3, *[0] * 20))  # where a little sharpening shows
    says = "every token is drawn as often as its probability says"
    yield Law(
        says, cases(logits=st.just(few[0])), odds, tuple({"logits": r} for r in few)
    )
    says = "the same seed draws the same token"
    rows = cases(logits=logits(), seed=st.integers(0, 9999))
    yield Law(says, rows, _repeats, ({"logits": few[3], "seed": 0},))


# ---- temperature ------------------------------------------------------------


def _is_greedy_at_zero(sampler: Callable, logits: NDArray) -> None:
    found = alive(applied(sampler, logits, 0.0))
    expect_first(logits, found, 1, 1, "any")


def _refuses_zero(sampler: Callable, logits: NDArray) -> None:
    try:
        out = sampler(logits.copy(), 0.0)
    except Exception:
        return
    raise Violation(f"expected an exception, found {shown(np.asarray(out))}")


def _divides(sampler: Callable, logits: NDArray, t: float) -> None:
    close(applied(sampler, logits, t), logits / np.float64(t))


@check_of(
    "temperature", "logits, t", zero=one_of("refused", "greedy", "unsaid"), batched=FLAG
)
def check_temperature(zero: str, batched: bool) -> Iterator[Law]:
    """Check ``temperature(logits, t)``, which divides.

    Parameters
    ----------
    sampler : function of (V,) float32 and float
    zero : {"refused", "greedy", "unsaid"}
        Temperature 0 raises an exception (transformers), keeps the best token alone
        (llama.cpp, where it is the highest), or has no meaning that is checked.
    batched : bool
        The sampler takes (B, V), too.
    """

    # Nearly greedy and nearly uniform, too: some clamp the temperature.
    warmth = st.sampled_from([1.0, 0.5, 2.0, 0.7, 1.3, 10.0, 0.01, 1e-3, 100.0])
    rows = cases(logits=logits(), t=warmth)
    says = "every logit is divided by the temperature, removed ones stay removed"
    known = tuple({"logits": row(1, -2), "t": t} for t in (0.5, 0.01, 1e-3, 100.0))
    yield Law(says, rows, _divides, known)
    yield Law("the array passed in is not written into", rows, not_written)
    if zero == "refused":
        says = "temperature 0 is refused"
        yield Law(says, cases(logits=logits()), _refuses_zero, ({"logits": row(0, 1)},))
    if zero == "greedy":
        says = "temperature 0 keeps the most probable token alone"
        yield Law(
            says, cases(logits=logits()), _is_greedy_at_zero, ({"logits": row(0, 1)},)
        )
    if batched:
        table = array([[0, 1, 2], [-3, GONE, 4]])
        says = "a row of a batch is treated as if it were alone"
        yield Law(says, cases(logits=st.just(table), t=warmth), _divides)


def _follows_the_entropy(
    sampler: Callable, logits: NDArray, t: float, spread: float, exponent: float
) -> None:
    out = applied(sampler, logits, t, spread, exponent)
    n = len(alive(logits))
    if n < 2:
        close(out, logits.astype(np.float64))
        return
    low, high = max(0.0, t - spread), t + spread
    share = max(entropy(logits), 0.0) / math.log(n)
    warmth = low + (high - low) * share**exponent
    if warmth > 1e-3:
        close(out, logits / np.float64(warmth), 1e-4)
    elif warmth == 0:
        expect_first(logits, alive(out), 1, 1, "any")


@check_of("dynamic_temperature", "logits, t, spread, exponent")
def check_dynamic_temperature() -> Iterator[Law]:
    r"""Check ``dynamic(logits, t, spread, exponent)``: warmer where less sure.

    $$t' = t_{min} + (t_{max} - t_{min}) (H / \ln n)^{exponent}$$

    with n the tokens that are left and t_min, t_max = max(0, t - spread), t + spread.

    Parameters
    ----------
    sampler : function of (V,) float32 and three floats
        A row with fewer than two tokens is left alone.
    """

    few = of_values(st.sampled_from([0.0, 1.0, 2.0, -1.0, GONE]))
    numbers = cases(
        logits=few,
        t=st.sampled_from([1.0, 0.8, 1.5]),
        spread=st.sampled_from([0.0, 0.5, 2.0]),
        exponent=st.sampled_from([1.0, 0.7, 2.0]),
    )
    says = "the temperature goes from least to most as the entropy does"
    usual = {"t": 1.0, "spread": 0.5, "exponent": 1.0}
    known = (
        usual | {"logits": row(2, 1, 0)},
        usual | {"logits": row(2, 1, GONE, 0), "exponent": 2.0},
        usual | {"logits": row(1, 1, GONE, GONE)},
        usual | {"logits": row(0, -2000), "spread": 2.0},
    )
    yield Law(says, numbers, _follows_the_entropy, known)
    yield Law("the array passed in is not written into", numbers, not_written)
