"""One distribution after every step of the pipeline, and the draw.

Of the whole vocabulary a page can show a few tokens.  Kept are the likeliest ones of
the model, the likeliest ones that are left at the end, and the one that was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.decoding.common import top
from npllama.decoding.rejection import residual
from npllama.sampling import softmax

SHOWN = 10  # of the model, and as many of what is left


class Stage(NamedTuple):
    """A distribution after a step."""

    name: str  # of the option; empty for the model's own
    probs: list[float]  # of the shown tokens; 0 if removed
    left: int  # tokens that are not removed
    like: float  # equally likely tokens with the same entropy
    same: bool  # the step has changed nothing
    kept: float  # probability, before the step, of the tokens that it left


class Line(NamedTuple):
    """Probabilities laid end to end on [0, 1), on which the drawn number falls."""

    low: list[float]  # where the piece of each shown token begins
    wide: list[float]  # and how long it is
    # True if the line holds max(p - q, 0), from which a rejected guess is replaced;
    # False if it holds all of p.
    rest: bool


class Drawn(NamedTuple):
    """What chance, and a draft, had to do with a choice."""

    u: list[float]  # numbers in [0, 1): none, one, or a second after a rejection
    guess: int | None = None  # the draft's, if one was checked
    q: np.ndarray | None = None  # (V,), that it was drawn from


class Choice(NamedTuple):
    """How one token was chosen."""

    tokens: list[int]  # those that are shown, the likeliest at the end first
    stages: list[Stage]
    token: int | None  # the one that was chosen; None for one of many beams
    u: list[float]
    line: Line | None  # on which the last u fell, if a token was drawn there
    guess: int | None = None
    q: float | None = None  # how likely the draft found its guess
    p: float | None = None  # and the model


Stages = Sequence[tuple[str, np.ndarray]]


def shares(logits: np.ndarray) -> np.ndarray:
    """Probabilities, (V,) float64; all 0 where the logits have none, as for NaN."""
    try:
        return softmax(logits)
    except ValueError:
        return np.zeros(logits.shape, dtype=np.float64)


def likeness(p: np.ndarray) -> float:
    """The number of equally likely tokens with the same entropy."""
    some = p[p > 0]
    return float(np.exp(-(some * np.log(some)).sum()))


def shown(first: np.ndarray, last: np.ndarray, more: Sequence[int]) -> list[int]:
    """Tokens to show of a distribution, the likeliest at the end first.

    Parameters
    ----------
    first, last : (V,) float64
        Probabilities before the first step and after the last.
    more : token ids
        To be shown in any case.
    """
    left = [i for i in top(last, SHOWN) if last[i] > 0]
    some = {*map(int, top(first, SHOWN)), *map(int, left), *more}
    return sorted(some, key=lambda i: (-last[i], -first[i], i))


def stages_of(stages: Stages, row: int, tokens: Sequence[int]) -> list[Stage]:
    """What each step has left of some tokens."""
    found, before = [], stages[0][1][row]
    for name, logits in stages:
        now = logits[row]
        p, same = shares(now), np.array_equal(before, now)
        probs, left = p[list(tokens)].tolist(), int((now > -np.inf).sum())
        kept = float(shares(before)[now > -np.inf].sum())
        found.append(Stage(name, probs, left, likeness(p), same, kept))
        before = now
    return found


def line_of(p: np.ndarray, tokens: Sequence[int], rest: bool = False) -> Line:
    """Where tokens lie on the line that `sampling.draw` lays out, by rising ids."""
    ends = np.cumsum(p)  # (V,)
    low, wide = (ends - p) / ends[-1], p / ends[-1]
    return Line(low[list(tokens)].tolist(), wide[list(tokens)].tolist(), rest)


def choice_of(stages: Stages, row: int, token: int, drawn: Drawn) -> Choice:
    """How a token was chosen from the distribution of a row.

    Parameters
    ----------
    stages : list of name and (B, V) float
    row : int
    token : int
    drawn : Drawn
    """
    u, guess, q = drawn
    first, p = shares(stages[0][1][row]), shares(stages[-1][1][row])
    tokens = shown(first, p, [token] if guess is None else [token, guess])
    found = Choice(tokens, stages_of(stages, row, tokens), token, u, None, guess)
    if q is not None:
        found = found._replace(q=float(q[guess]), p=float(p[guess]))
        p = residual(p, q)
    if not u or (q is not None and len(u) == 1):
        return found  # the likeliest, or a guess that was kept
    return found._replace(line=line_of(p, tokens, rest=q is not None))


def choices_of_beams(stages: Stages, listed: Sequence[tuple[int, int]]) -> list[Choice]:
    """What every beam could go on with; a search chooses among all of them.

    Parameters
    ----------
    listed : list of (row, token)
        To be shown in any case.
    """
    found = []
    for row in range(len(stages[0][1])):
        more = [token for parent, token in listed if parent == row]
        first, last = (shares(stages[i][1][row]) for i in (0, -1))
        tokens = shown(first, last, more)
        found.append(Choice(tokens, stages_of(stages, row, tokens), None, [], None))
    return found
