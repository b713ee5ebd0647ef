"""Laws of all samplers that only remove tokens.

A truncation decides which of the remaining tokens stay, and changes nothing else, not
their values, their type, or removed tokens.  These laws hold for all truncations and
are part of their checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.laws import Case, Law, Violation, shown
from npllama.testing.strategies import batches, cases, logits, of_values
from npllama.testing.truth import GONE, alive, is_first, nearly, ranked, softmax

Options = dict[str, st.SearchStrategy]


def applied(sampler: Callable, logits: NDArray, *options: Any) -> NDArray:
    """The result of a sampler on a copy of the row.

    Returns
    -------
    (..., V) float32
        As large as the one passed in, and without NaN.
    """
    found = sampler(logits.copy(), *options)
    out = np.asarray(found)
    if out.dtype.kind in "OUSb":
        raise Violation(f"{found!r:.60} came back, which is no row of logits")
    if out.shape != logits.shape:
        raise Violation(f"{logits.shape} logits came back in shape {out.shape}")
    if np.isnan(out).any():
        raise Violation(f"NaN came back: {shown(out)}")
    return out


def kept(sampler: Callable, logits: NDArray, *options: Any) -> set[int]:
    """Ids of the tokens that a sampler does not remove."""
    return alive(applied(sampler, logits, *options))


def ids(found: set[int]) -> str:
    """A set of ids in words, a large one cut."""
    few = [str(i) for i in sorted(found)[:24]]
    rest = [f"... {len(found)} in all"] if len(found) > 24 else []
    return "{" + ", ".join(few + rest) + "}" if found else "none"


def expect(logits: NDArray, found: set[int], right: bool, instead: str) -> None:
    """Raise Violation, with the probabilities, unless `found` is right."""
    if not right:
        probs = shown(softmax(logits).round(6))
        raise Violation(f"probabilities {probs}\nkept {ids(found)}, expected {instead}")


def expect_between(
    logits: NDArray, found: set[int], must: set[int], may: set[int]
) -> None:
    """All of `must` stays, nothing outside `may`."""
    instead = ids(must) if must == may else f"{ids(must)} or up to {ids(may)}"
    expect(logits, found, must <= found <= may, instead)


def expect_first(
    logits: NDArray, found: set[int], fewest: int, most: int, ties: str
) -> None:
    """The most probable `fewest` to `most` tokens stay, equals chosen by `ties`."""
    count = str(fewest) if fewest == most else f"{fewest} to {most}"
    instead = f"the {count} most probable"
    if ties in ("lowest", "highest"):
        instead += f", of equals the {ties} ids first"
        if fewest == most:
            instead = f"{ids(set(ranked(logits, ties)[:most]))}: {instead}"
    right = fewest <= len(found) <= most and is_first(logits, found, ties)
    expect(logits, found, right, instead)


def over(
    measure: NDArray, threshold: float, slack: float, equality: str = "kept"
) -> tuple[set[int], set[int]]:
    """Ids that must pass a threshold, and those that may: `slack` is relative."""
    if slack == 0 and equality == "removed":
        must = may = measure > threshold
    elif slack == 0:
        must = may = measure >= threshold
    else:
        must, may = (measure > threshold * (1 + sign * slack) for sign in (1, -1))
    return set(np.flatnonzero(must).tolist()), set(np.flatnonzero(may).tolist())


# ---- the laws ---------------------------------------------------------------


def _changes_nothing_else(sampler: Callable, logits: NDArray, **options: Any) -> None:
    out = applied(sampler, logits, *options.values())
    if out.dtype != logits.dtype:
        raise Violation(f"{logits.dtype} came back as {out.dtype}")
    stays = out > GONE
    revived = stays & (logits == GONE)
    if revived.any():
        raise Violation(f"removed tokens came back: {shown(out)}")
    same = (out[stays] == logits[stays]).all()
    if not same:
        raise Violation(f"survivors have other values: {shown(out)}")


def _leaves_one(sampler: Callable, logits: NDArray, **options: Any) -> None:
    found = kept(sampler, logits, *options.values())
    expect(logits, found, bool(found), "one token or more")


def not_written(sampler: Callable, logits: NDArray, **options: Any) -> None:
    """Compare the array passed in with itself, before and after."""
    given = logits.copy()
    sampler(given, *options.values())
    if not (given == logits).all():
        raise Violation(f"the array passed in became {shown(given)}")


def _ignores_a_constant(
    sampler: Callable, logits: NDArray, constant: float, **options: Any
) -> None:
    found = kept(sampler, logits, *options.values())
    moved = kept(sampler, logits + np.float32(constant), *options.values())
    expect(logits, moved, moved == found, f"{ids(found)} as without the constant")


def _ignores_numbering(sampler: Callable, logits: NDArray, **options: Any) -> None:
    out = np.sort(applied(sampler, logits, *options.values()))
    turned = np.sort(applied(sampler, logits[::-1].copy(), *options.values()))
    same = (out == turned).all()
    if not same:
        raise Violation(f"left are {shown(out)}, with the ids reversed {shown(turned)}")


def _keeps_the_best(sampler: Callable, logits: NDArray, **options: Any) -> None:
    found = kept(sampler, logits, *options.values())
    best = set(np.flatnonzero(logits >= logits.max() - nearly(logits)).tolist())
    expect(logits, found, bool(found & best), f"one of {ids(best)}")


def _rows_alone(sampler: Callable, logits: NDArray, **options: Any) -> None:
    together = applied(sampler, logits, *options.values())
    alone = [applied(sampler, row, *options.values()) for row in logits]
    for b, (one, other) in enumerate(zip(together, alone)):
        same = (one == other).all()
        if not same:
            raise Violation(f"row {b} became {shown(one)}, alone {shown(other)}")


SIMPLE = of_values(st.sampled_from([0.0, 1.0, 2.0, -4.0, 8.0]))


def mask_laws(
    options: Options,
    *,
    keeps_the_best: bool = True,
    batched: bool = False,
    known: tuple[Case, ...] = (),
    together: tuple[Case, ...] = (),
) -> Iterator[Law]:
    """The laws of all samplers that only remove tokens.

    Parameters
    ----------
    options : dict of strategies
        What is passed after the logits, in this order.
    keeps_the_best : bool
        Whether the most probable token has to stay.
    batched : bool
        Whether the sampler takes logits of shape (B, V), too.
    known : cases
        Tried first by every law of one row.
    together : cases
        Tried first by the law of a batch.
    """
    rows, simple = cases(logits=logits(), **options), cases(logits=SIMPLE, **options)
    yield Law(
        "a token that stays keeps its logit to the last bit, nothing comes back",
        rows,
        _changes_nothing_else,
        known,
    )
    yield Law("at least one token stays", rows, _leaves_one, known)
    yield Law("the array passed in is not written into", rows, not_written)
    yield Law(
        "adding a constant to all logits does not change what stays",
        cases(logits=SIMPLE, constant=st.sampled_from([64.0, -8.0]), **options),
        _ignores_a_constant,
    )
    yield Law("the numbering of tokens does not matter", simple, _ignores_numbering)
    if keeps_the_best:
        says = "the most probable token stays, or one of its equals"
        yield Law(says, rows, _keeps_the_best, known)
    if batched:
        says = "a row of a batch is treated as if it were alone"
        yield Law(says, cases(logits=batches(), **options), _rows_alone, together)
