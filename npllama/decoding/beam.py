r"""Beam search: keep the B best beginnings, extend all of them, keep the best again.

Greedy search takes the likeliest token each time, and may miss the likeliest text.
Beam search follows `num_beams` texts at once: it scores every extension of every
beam by its summed log-probability and continues with the best.  Texts that end move
to a list of finished texts, ranked by

$$\text{score} = \sum_t \log p(x_t \mid x_{<t}) \, / \, n^{\,\text{length\_penalty}}$$

with n the number of new tokens, the one that ends the text included.  (A sum of
logarithms falls with every token; dividing by a power of the length makes up for
it, so despite its name a larger `length_penalty` favours longer texts.)

With `rng`, the extensions are drawn without replacement instead of taken from the
top: *beam sampling*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.common import (
    Hypothesis,
    Job,
    Stop,
    extend,
    prefill,
    ranked,
    top,
)
from npllama.ops import note
from npllama.sampling import NothingLeft, log_softmax, softmax
from npllama.weights import Model


class Beam(NamedTuple):
    """A text that is still growing."""

    tokens: list[int]  # the new ones
    score: float  # sum of their log-probabilities
    parent: int  # row of the cache that holds all but its last token


class BeamRules(NamedTuple):
    """How a search compares texts of several lengths, and when it has seen enough."""

    num_beams: int
    # Exponent of the length; 0 compares plain sums.
    length_penalty: float = 1.0
    # Stop once `num_beams` texts are finished (True); once the best beam, at its
    # present length, scores no better than the worst of them (False, a good guess);
    # once no beam can beat the worst of them ("never").
    early_stopping: bool | str = False
    n_eos: int = 0  # number of end tokens: each may take the place of a candidate

    @property
    def keep(self) -> int:
        """Candidates to keep per step, so that `num_beams` of them can continue."""
        return max(2, 1 + self.n_eos) * self.num_beams

    def finished(self, beam: Beam, reason: str) -> Hypothesis:
        """A text that ends here, scored for comparison with texts of other lengths."""
        score = beam.score / len(beam.tokens) ** self.length_penalty
        return Hypothesis(beam.tokens, score, reason)


def beam_search(job: Job, rules: BeamRules) -> list[Hypothesis]:
    """Search for the likeliest continuations of one prompt.

    Parameters
    ----------
    job : Job
        `process` takes log-probabilities in place of logits, as in transformers; its
        result is added up without normalising again.  With `rng`, candidates are
        drawn instead of taken from the top.
    rules : BeamRules

    Returns
    -------
    list of Hypothesis
        At most `num_beams`, best first.

    Raises
    ------
    NothingLeft
        If `process` leaves no beam any token before a text is finished.

    References
    ----------
    transformers 5 `GenerationMixin._beam_search`, which returns texts with a score
    of -1e9 where this raises NothingLeft.  Canonical beam search is "never" with a
    length penalty of 0.  In vLLM the length includes the prompt, but not the token
    that ends the text.
    """
    beams, cache, logits = start_beams(job)
    finished: list[Hypothesis] = []
    while True:
        log_probs = job.process(histories(job, beams), log_softmax(logits))
        candidates = successors(beams, log_probs, rules.keep, job.rng)
        ended, beams = part_ended(candidates, job.ends, rules)
        finished = ranked(finished + ended)[: rules.num_beams]
        if not beams or found_enough(finished, beams[0], rules, job.room):
            return require_texts(finished)
        cache, logits = advance(job.model, cache, beams)


def start_beams(job: Job) -> tuple[list[Beam], KVCache, np.ndarray]:
    """Run the prompt; a search begins with one beam, the empty text.

    Returns
    -------
    beams : list of one Beam
    cache : KVCache
        Of one row.
    logits : (1, V) float
    """
    cache, logits = prefill(job.model, [job.prompt], job.capacity)
    return [Beam([], 0.0, 0)], cache, logits


def histories(job: Job, beams: Sequence[Beam]) -> list[list[int]]:
    """All tokens of every beam so far, the prompt included, for `process`."""
    return [[*job.prompt, *beam.tokens] for beam in beams]


def successors(
    beams: Sequence[Beam],
    log_probs: np.ndarray,
    keep: int,
    rng: np.random.Generator | None = None,
) -> list[Beam]:
    """The best `keep` extensions of all beams together, or that many drawn.

    Parameters
    ----------
    log_probs : (B, V) float
        For every next token of every beam.

    Returns
    -------
    list of Beam
        Best first; drawn ones in the order of the draw.  There may be fewer, since a
        token that `process` has removed is not a successor.
    """
    V = log_probs.shape[1]
    scores = np.array([beam.score for beam in beams], dtype=log_probs.dtype)  # (B,)
    total = (log_probs + scores[:, None]).reshape(-1)  # (B * V,)
    chosen = (
        top(total, keep) if rng is None else draw_without_replacement(total, keep, rng)
    )
    found = [
        Beam([*beams[i // V].tokens, int(i % V)], float(total[i]), int(i // V))
        for i in chosen
        if total[i] > -np.inf
    ]
    tell("candidates", found)
    return found


def tell(name: str, beams: Sequence[Beam]) -> None:
    """Show observers a list of beams: of each its parent, last token and score."""
    rows = [(beam.parent, beam.tokens[-1], beam.score) for beam in beams]
    note(name, np.array(rows, dtype=np.float64).reshape(-1, 3))  # (C, 3)


def draw_without_replacement(
    scores: np.ndarray, keep: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw distinct indices from softmax(scores), one after the other.

    Add independent Gumbel noise to the scores and sort: that is exactly such a draw
    (the Gumbel-top-k trick).

    Parameters
    ----------
    scores : (M,) float

    Returns
    -------
    (C,) int64
        In the order of the draw, without indices of probability 0.

    References
    ----------
    Kool et al. 2019, arXiv:1903.06059, section 3.
    """
    possible = np.flatnonzero(softmax(scores) > 0)
    noisy = scores[possible] + rng.gumbel(size=len(possible))  # (M,)
    return possible[top(noisy, keep)]


def part_ended(
    candidates: Sequence[Beam], ends: Stop, rules: BeamRules
) -> tuple[list[Hypothesis], list[Beam]]:
    """Split the candidates into texts that end here and beams that continue.

    A text may end only if it is among the first `num_beams`; the other candidates
    are substitutes, so that `num_beams` beams can continue.
    """
    reasons = [ends(beam.tokens) for beam in candidates]
    tell("ended", [beam for beam, reason in zip(candidates, reasons) if reason])
    ended = [
        rules.finished(beam, reason)
        for beam, reason in zip(candidates[: rules.num_beams], reasons)
        if reason
    ]
    going = [beam for beam, reason in zip(candidates, reasons) if not reason]
    return ended, ranked(going)[: rules.num_beams]


def require_texts(finished: list[Hypothesis]) -> list[Hypothesis]:
    """Return the texts; raise NothingLeft if there are none."""
    if not finished:
        raise NothingLeft("every token of every beam is removed: no text can be found")
    return finished


def finish_open(
    beams: Sequence[Beam], finished: list[Hypothesis], rules: BeamRules
) -> list[Hypothesis]:
    """Finish the beams that are still open as they stand, and rank all texts."""
    ended = [rules.finished(beam, "length") for beam in beams]
    return ranked(finished + ended)[: rules.num_beams]


def found_enough(
    finished: Sequence[Hypothesis], best: Beam, rules: BeamRules, room: int
) -> bool:
    """Whether enough texts are finished; a text may have `room` new tokens."""
    if len(finished) < rules.num_beams:
        return False
    if rules.early_stopping is True:
        return True
    # A positive penalty favours length, so a score may still rise until the end.
    may_rise = rules.early_stopping == "never" and rules.length_penalty > 0
    length = room if may_rise else len(best.tokens)
    return best.score / length**rules.length_penalty <= finished[-1].score


def advance(
    model: Model, cache: KVCache, beams: Sequence[Beam]
) -> tuple[KVCache, np.ndarray]:
    """Run the last token of every beam, each after its parent's row of the cache.

    Writes into the cache.

    Returns
    -------
    cache : KVCache
    logits : (B, V) float
    """
    tell("beams", beams)
    cache = reorder(cache, [beam.parent for beam in beams])
    return cache, extend(model, np.array([beam.tokens[-1] for beam in beams]), cache)


def reorder(cache: KVCache, parents: Sequence[int]) -> KVCache:
    """Let row i of the cache continue row ``parents[i]``.

    Writes into the cache, if it has as many rows.

    Returns
    -------
    KVCache
        Of ``len(parents)`` rows.
    """
    rows = np.asarray(parents)
    length = cache.length[rows]
    if len(rows) > len(cache.length):
        return KVCache(cache.k[:, rows], cache.v[:, rows], length)
    n, S = len(rows), int(cache.length.max())
    for array in (cache.k, cache.v):
        array[:, :n, :, :S] = array[:, rows, :, :S]
    return KVCache(cache.k[:, :n], cache.v[:, :n], length)
