r"""Diverse beam search: groups of beams that keep out of each other's way.

The beams of one search tend to be near copies, which differ in a word.  Here the
beams are split into groups.  At every step the groups choose one after the other,
and a token pays `diversity_penalty` for each time that an earlier group chose it at
this step:

$$\log p(v) - \lambda \cdot \mathrm{count}(v \text{ among earlier groups' tokens})$$

Each group is a beam search of its own, with its own list of finished texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from npllama.decoding.beam import (
    Beam,
    BeamRules,
    advance,
    finish_open,
    found_enough,
    histories,
    part_ended,
    reorder,
    require_texts,
    start_beams,
    successors,
)
from npllama.decoding.common import Hypothesis, Job, ranked
from npllama.sampling import log_softmax


@dataclass
class Group:
    """A few beams that compete with each other only."""

    beams: list[Beam]
    finished: list[Hypothesis] = field(default_factory=list)


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
    """Lower the log-probability of tokens that earlier groups took, once per time.

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
    job: Job, rules: BeamRules, num_beam_groups: int, diversity_penalty: float
) -> list[Hypothesis]:
    """Search with `num_beam_groups` groups of ``num_beams / num_beam_groups`` beams.

    Parameters
    ----------
    job, rules
        As in `beam_search`, but nothing is drawn.
    num_beam_groups : int
    diversity_penalty : float
        The cost, in log-probability, for each beam of an earlier group that chose
        the same token at this step.  At 0 all groups would find the same texts.

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
    `_group_beam_search`.  As there, but unlike `beam_search`, a group is judged by
    the best candidate of the step even if that one has just ended, and beams that
    are still open at the end are scored as they are.  In transformers a group that
    is done chooses the padding token, for which later groups then pay.
    """
    own = rules._replace(num_beams=group_size(rules.num_beams, num_beam_groups))
    beams, cache, logits = start_beams(job)
    groups = [Group(beams) for _ in range(num_beam_groups)]
    cache = reorder(cache, [0] * num_beam_groups)
    logits = np.repeat(logits, num_beam_groups, axis=0)  # (B, V)
    going = groups
    for step in range(job.room):
        if step > 0:
            beams = [beam for group in going for beam in group.beams]
            cache, logits = advance(job.model, cache, beams)
        taken: list[int] = []
        first, still = 0, []
        for group in going:
            rows = logits[first : first + len(group.beams)]  # (B, V)
            log_probs = distanced(rows, taken, diversity_penalty)
            log_probs = job.process(histories(job, group.beams), log_probs)
            candidates = successors(group.beams, log_probs, own.keep)
            ended, beams = part_ended(candidates, job.stop, own)
            # The row of the cache that holds the group's first beam is `first`.
            group.beams = [b._replace(parent=first + b.parent) for b in beams]
            group.finished = ranked(group.finished + ended)[: own.num_beams]
            first += len(rows)
            taken += [beam.tokens[-1] for beam in group.beams]
            if beams and not found_enough(group.finished, candidates[0], own, job.room):
                still.append(group)
        going = still
        if not going:
            break
    for group in going:
        group.finished = finish_open(group.beams, group.finished, own)
    texts = ranked([text for group in groups for text in group.finished])
    return require_texts(texts)[: rules.num_beams]
