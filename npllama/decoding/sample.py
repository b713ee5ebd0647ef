"""Greedy search and sampling: one token at a time, never looking back.

Each step gives every row a distribution over the vocabulary, and `process` shapes it
(temperature, top-p ...).  Greedy search takes the likeliest token; sampling draws a
token by its probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from npllama.decoding.common import Job, Step, ending, extend, prefill
from npllama.ops import note
from npllama.sampling import NothingLeft, draw, greedy, softmax


def sample(jobs: Sequence[Job]) -> Iterator[Step]:
    """Continue every prompt, all side by side in one batch.

    Parameters
    ----------
    jobs : B jobs
        They share the model, the process, which is called on all rows at once, and
        the cache of B rows, if there is one.  Each row has its own prompt, limit,
        stopping rule and generator, so its text does not depend on its neighbours.
        A row that fills the cache ends with "context".

    Yields
    ------
    Step
        Of one token, for one row after the other, until every row has ended.
    """
    model, process, cache = jobs[0].model, jobs[0].process, jobs[0].cache
    B, prompts = len(jobs), [job.prompt for job in jobs]
    capacity = max(job.capacity for job in jobs)
    cache, logits = prefill(model, prompts, capacity, cache)
    ends = [ending(job, cache) for job in jobs]
    history = [list(prompt) for prompt in prompts]
    going = np.ones(B, dtype=bool)
    while going.any():
        processed = process(history, logits)
        # The logits of rows that have ended have no meaning.
        rows = np.flatnonzero(going).tolist()
        chosen = np.zeros(B, dtype=np.int64)  # (B,)
        try:
            chosen[rows] = choose(processed[rows], [jobs[b].rng for b in rows])
        except NothingLeft as error:
            error.row = next(b for b in rows if not (processed[b] > -np.inf).any())
            raise
        steps = []
        for b in rows:
            history[b].append(int(chosen[b]))
            reason = ends[b](history[b][len(prompts[b]) :])
            going[b] = reason is None
            new = history[b][-1:]
            steps.append(Step(new, reason, b, 0, 0, logits[b], processed[b]))
        yield from steps
        if going.any():
            logits = extend(model, chosen, cache, going)


def choose(
    logits: np.ndarray, rngs: Sequence[np.random.Generator | None]
) -> np.ndarray:
    """Choose a token for each row: drawn by its generator, or the likeliest.

    Observers see the numbers `u` of the draw, and what was chosen.

    Parameters
    ----------
    logits : (B, V) float
    rngs : B generators, or as many None

    Returns
    -------
    (B,) int64
    """
    if rngs[0] is None:
        chosen = greedy(logits)  # (B,)
    else:
        u = np.array([rng.random() for rng in rngs])  # (B,)
        note("u", u)
        chosen = np.asarray(draw(softmax(logits), u))  # (B,)
    note("chosen", chosen)
    return chosen
