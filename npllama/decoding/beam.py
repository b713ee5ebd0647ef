r"""Beam search: keep the B best beginnings, extend all of them, keep the best again.

Greedy search takes the likeliest token and may so miss the likeliest text.  Beam
search follows `num_beams` texts at once: it scores every extension of every beam
by its summed log-probability and goes on with the best.  Texts that end drop out
into a list of finished ones, ranked by

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
from npllama.decoding.common import Hypothesis, Job, Stop, extend, prefill, top
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
    n_eos: int = 0  # number of end tokens, of which each may take a candidate's place

    @property
    def keep(self) -> int:
        """Candidates to keep at each step, so that `num_beams` of them can go on."""
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
        `process` is given log-probabilities in place of logits, as in transformers;
        what it returns is added up without normalising again.  With `rng`, the
        candidates are drawn instead of taken from the top.
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
    transformers 5 `GenerationMixin._beam_search`, which in that case returns texts
    with a score of -1e9.  Canonical beam search is "never" with a length penalty of
    0.  vLLM counts the prompt in the length and the token that ends the text not.
    """
    beams, cache, logits, longest = start_beams(job)
    finished: list[Hypothesis] = []

    def ends(tokens: Sequence[int]) -> str | None:
        return job.stop(tokens) or ("length" if len(tokens) >= longest else None)

    while True:
        log_probs = job.process(histories(job, beams), log_softmax(logits))
        candidates = successors(beams, log_probs, rules.keep, job.rng)
        ended, beams = part_ended(candidates, ends, rules)
        finished = ranked(finished + ended)[: rules.num_beams]
        if not beams or found_enough(finished, beams[0], rules, longest):
            return require_texts(finished)
        cache, logits = advance(job.model, cache, beams)


def start_beams(job: Job) -> tuple[list[Beam], KVCache, np.ndarray, int]:
    """Run the prompt; a search begins with one beam, the empty text.

    Returns
    -------
    beams : list of one Beam
    cache : KVCache
        Of one row.
    logits : (1, V) float
    longest : int
        New tokens that a text may have: `max_new_tokens`, or what the context holds.
    """
    cache, logits = prefill(job.model, [job.prompt], job.capacity)
    return [Beam([], 0.0, 0)], cache, logits, job.capacity - len(job.prompt)


def histories(job: Job, beams: Sequence[Beam]) -> list[list[int]]:
    """What `process` is told of every beam: all tokens so far."""
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
        Of every next token of every beam.

    Returns
    -------
    list of Beam
        Best first; drawn ones in the order of the draw.  Fewer if not as many are
        left: what `process` has removed is no successor.
    """
    V = log_probs.shape[1]
    scores = np.array([beam.score for beam in beams], dtype=log_probs.dtype)  # (B,)
    total = (log_probs + scores[:, None]).reshape(-1)  # (B * V,)
    chosen = (
        top(total, keep) if rng is None else draw_without_replacement(total, keep, rng)
    )
    return [
        Beam([*beams[i // V].tokens, int(i % V)], float(total[i]), int(i // V))
        for i in chosen
        if total[i] > -np.inf
    ]


def draw_without_replacement(
    scores: np.ndarray, keep: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw distinct indices from softmax(scores), one after the other.

    Sorting scores to which independent Gumbel noise was added does exactly that
    (the Gumbel-top-k trick).

    Parameters
    ----------
    scores : (M,) float

    Returns
    -------
    (C,) int64
        In the order of the draw; indices of probability 0 are never among them.

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
    """Part the candidates into texts that end here and beams that go on.

    A text may only end among the first `num_beams`; the other candidates are
    understudies, so that as many beams can go on.
    """
    reasons = [ends(beam.tokens) for beam in candidates]
    ended = [
        rules.finished(beam, reason)
        for beam, reason in zip(candidates[: rules.num_beams], reasons)
        if reason
    ]
    going = [beam for beam, reason in zip(candidates, reasons) if not reason]
    return ended, sorted(going, key=lambda beam: -beam.score)[: rules.num_beams]


def ranked(finished: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Best first; of equals the one that was finished earlier."""
    return sorted(finished, key=lambda hypothesis: -hypothesis.score)


def require_texts(finished: list[Hypothesis]) -> list[Hypothesis]:
    """The texts found; NothingLeft if there are none."""
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
    finished: Sequence[Hypothesis], best: Beam, rules: BeamRules, longest: int
) -> bool:
    """Whether enough texts are finished, and the growing ones may be given up."""
    if len(finished) < rules.num_beams:
        return False
    if rules.early_stopping is True:
        return True
    # A positive penalty forgives length, so a text may still rise until the end.
    may_rise = rules.early_stopping == "never" and rules.length_penalty > 0
    length = longest if may_rise else len(best.tokens)
    return best.score / length**rules.length_penalty <= finished[-1].score


def advance(
    model: Model, cache: KVCache, beams: Sequence[Beam]
) -> tuple[KVCache, np.ndarray]:
    """One more token for every beam, after what its parent's row holds.

    Writes into the cache.

    Returns
    -------
    cache : KVCache
    logits : (B, V) float
    """
    cache = reorder(cache, [beam.parent for beam in beams])
    return cache, extend(model, np.array([beam.tokens[-1] for beam in beams]), cache)


def reorder(cache: KVCache, parents: Sequence[int]) -> KVCache:
    """Let row i of the cache go on from what row ``parents[i]`` holds.

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
