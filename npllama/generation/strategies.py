"""From a config to a strategy, and its call.

There are two kinds of strategy.  `write` grows one text per task, and yields a `Step`
at a time; `search` compares several texts of one task, and returns the best at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.beam import BeamRules, beam_search
from npllama.decoding.common import Hypothesis, Step
from npllama.decoding.constrained_beam import constrained_beam_search, constraints_of
from npllama.decoding.constrained_beam_4 import constrained_beam_search_4
from npllama.decoding.contrastive_search import contrastive_search
from npllama.decoding.dola import dola
from npllama.decoding.group_beam import group_beam_search
from npllama.decoding.lookahead import lookahead
from npllama.decoding.prompt_lookup import prompt_lookup
from npllama.decoding.sample import sample
from npllama.decoding.self_speculation import early_exit, short_context
from npllama.decoding.speculative import Propose, assisted, speculate
from npllama.decoding.stochastic_beam import stochastic_beam_search
from npllama.generation.task import Task, jobs_of, reason_to_end
from npllama.sampling import NothingLeft

Rng = np.random.Generator


def write(
    tasks: Sequence[Task], rngs: Sequence[Rng], cache: KVCache | None = None
) -> Iterator[Step]:
    """Grow a text for every task: side by side, or one after the other.

    Parameters
    ----------
    tasks : B tasks of one plan
    rngs : B generators
    cache : KVCache
        Of B rows, which may hold beginnings of the prompts.
    """
    plan = tasks[0].plan
    if plan.helpers.assistant is None and not plan.config.selected:
        return sample(jobs_of(tasks, rngs, cache))
    return one_by_one(tasks, rngs, cache)


def one_by_one(
    tasks: Sequence[Task], rngs: Sequence[Rng], cache: KVCache | None
) -> Iterator[Step]:
    """Grow the texts one after the other; each step has the number of its text."""
    for task, rng in zip(tasks, rngs):
        try:
            for step in grow(task, rng, cache):
                yield step._replace(row=task.row)
        except NothingLeft as error:
            error.row = task.row
            raise


def grow(task: Task, rng: Rng, cache: KVCache | None) -> Iterator[Step]:
    """Grow one text by the strategy that its config selects."""
    c, (job,) = task.plan.config, jobs_of([task], [rng], cache)
    if c.lookahead_window:
        return lookahead(job, c.lookahead_window, c.lookahead_ngram_size)
    if c.penalty_alpha:
        return contrastive_search(job, c.penalty_alpha, c.top_k)
    if c.dola_layers is not None:
        return dola(job, c.dola_layers)
    guesses = c.prompt_lookup_num_tokens or c.num_assistant_tokens
    return speculate(job, draft(task, rng), guesses)


def draft(task: Task, rng: Rng) -> Propose:
    """Make the draft, with a process and a source of chance of its own."""
    plan, c = task.plan, task.plan.config
    if c.prompt_lookup_num_tokens:
        return prompt_lookup(c.max_matching_ngram_size, plan.eos)
    (job,) = jobs_of([task], rng.spawn(1))
    stop = partial(reason_to_end, plan._replace(rules=()))
    most = task.capacity - len(job.prompt)
    job = job._replace(stop=stop, max_new_tokens=most)
    if plan.helpers.assistant is not None:
        guess = plan.helpers.guess or assisted
        return guess(job._replace(model=plan.helpers.assistant))
    if c.assistant_early_exit:
        return early_exit(job, c.assistant_early_exit)
    return short_context(job, c.assistant_window)


def search(task: Task, rng: Rng) -> list[Hypothesis]:
    """Compare several texts of one prompt; the best come first."""
    c, (job,) = task.plan.config, jobs_of([task], [rng])
    n_eos = len(task.plan.eos)
    rules = BeamRules(c.num_beams, c.length_penalty, c.early_stopping, n_eos)
    if c.stochastic_beams:
        return stochastic_beam_search(job._replace(rng=rng), c.num_beams)
    if c.num_beam_groups > 1:
        return group_beam_search(job, rules, c.num_beam_groups, c.diversity_penalty)
    if not c.force_words_ids:
        return beam_search(job, rules)
    phrases = constraints_of(c.force_words_ids)
    if c.force_words_rule == "kept":
        return constrained_beam_search(job, rules, phrases)
    return constrained_beam_search_4(job, rules, phrases, c.num_return_sequences)
