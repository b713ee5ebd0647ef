r"""Diverse beam search: groups of beams that keep out of each other's way.

The beams of one search tend to be near copies: they share all but a word.  Here
the beams are split into groups that choose one after the other at every step, and
a token that earlier groups chose at this step costs `diversity_penalty` for each
time it was chosen:

$$\log p(v) - \lambda \cdot \mathrm{count}(v \text{ among earlier groups' tokens})$$

Each group is a beam search of its own, with its own list of finished texts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from npllama.decoding.beam import (
    Beam,
    Rules,
    advance,
    begin,
    close,
    done,
    first_beams,
    histories,
    ranked,
    some,
    split,
    successors,
)
from npllama.decoding.common import Hypothesis, Process, Stop, unprocessed
from npllama.sampling import log_softmax
from npllama.weights import Model


@dataclass
class Group:
    """A few beams that compete with each other only."""

    beams: list[Beam]
    finished: list[Hypothesis] = field(default_factory=list)
    done: bool = False

    def choose(
        self, candidates: Sequence[Beam], stop: Stop, rules: Rules, first: int
    ) -> None:
        """Go on with the best of the candidates, if the group is to go on.

        Parameters
        ----------
        first : int
            Row of the cache that holds the group's first beam.
        """
        size = rules.num_beams
        ended, beams = split(candidates, stop, size, rules.length_penalty)
        self.beams = [b._replace(parent=first + b.parent) for b in beams]
        self.finished = ranked(self.finished + ended)[:size]
        self.done = not beams or done(self.finished, candidates[0], rules)


def group_size(num_beams: int, num_beam_groups: int) -> int:
    """Beams of every group; ValueError if they cannot be split evenly."""
    if num_beam_groups < 1 or num_beams % num_beam_groups:
        raise ValueError(
            f"num_beams {num_beams} is not a multiple of num_beam_groups "
            f"{num_beam_groups}: every group has equally many"
        )
    return num_beams // num_beam_groups


def distanced(
    rows: np.ndarray, taken: Sequence[int], diversity_penalty: float
) -> np.ndarray:
    """Log-probabilities, lower for each time that an earlier group took the token.

    Parameters
    ----------
    rows : (B, V) float
        Logits of the beams of one group.
    taken : token ids
        What earlier groups chose at this step.

    Returns
    -------
    (B, V) float
    """
    cost = diversity_penalty * np.bincount(taken, minlength=rows.shape[1])
    return log_softmax(rows) - cost.astype(rows.dtype)


def group_beam_search(
    model: Model,
    prompt: Sequence[int],
    stop: Stop,
    max_new_tokens: int,
    num_beams: int,
    num_beam_groups: int,
    diversity_penalty: float,
    process: Process = unprocessed,
    *,
    eos: Collection[int] = (),
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
) -> list[Hypothesis]:
    """Search with `num_beam_groups` groups of ``num_beams / num_beam_groups`` beams.

    Parameters
    ----------
    diversity_penalty : float
        Cost, in log-probability, of a token for each beam of an earlier group that
        chose it at the same step.  Above 0, else all groups find the same.
    model, prompt, stop, max_new_tokens, num_beams, process, eos, length_penalty,
    early_stopping
        As in `beam_search`.

    Returns
    -------
    list of Hypothesis
        Of all groups together, at most `num_beams`, best first; their scores
        include the penalties paid.

    Raises
    ------
    ValueError
        If the beams cannot be split evenly, or no token is left to any of them.

    References
    ----------
    Vijayakumar et al. 2016, arXiv:1610.02424; transformers 4.49
    `_group_beam_search`.  As there, and other than in `beam_search`, a group is
    judged by the best candidate of the step even if that one has just ended, and
    beams still open at the end are scored as they stand.  transformers lets a
    group that is done choose the padding token, which then costs later groups.
    """
    size = group_size(num_beams, num_beam_groups)
    longest, cache, logits = begin(model, prompt, max_new_tokens, num_beams)
    rules = Rules(size, longest, length_penalty, early_stopping)
    keep = max(2, 1 + len(eos)) * size
    groups = [Group(first_beams(size)) for _ in range(num_beam_groups)]
    going = groups
    for step in range(longest):
        if step > 0:
            beams = [beam for group in going for beam in group.beams]
            cache, logits = advance(model, cache, beams)
        taken: list[int] = []
        first = 0
        for group in going:
            rows = logits[first : first + len(group.beams)]  # (B, V)
            log_probs = distanced(rows, taken, diversity_penalty)
            log_probs = process(histories(prompt, group.beams), log_probs)
            group.choose(successors(group.beams, log_probs, keep), stop, rules, first)
            first += len(rows)
            taken += [beam.tokens[-1] for beam in group.beams]
        going = [group for group in going if not group.done]
        if not going:
            break
    for group in going:
        group.finished = close(group.beams, group.finished, rules)
    return some(ranked([text for g in groups for text in g.finished]))[:num_beams]
