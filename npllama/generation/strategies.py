"""Which strategy a config asks for, and how it is called.

Two kinds: `write` grows one text per task, a `Step` at a time, and can be watched
doing so; `search` compares several texts of one task and knows the best at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Plan, Task, jobs_of
from npllama.sampling import NothingLeft

Rng = np.random.Generator
Growth = Callable[[Task, Rng, "KVCache | None"], Iterator[Step]]


def searches(config: GenerationConfig) -> bool:
    """Whether the config asks for texts that are known only at the end."""
    return config.num_beams > 1


#  ---- one text, growing ------------------------------------------------------


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
    grow = growing(tasks[0].plan)
    if grow is None:
        return sample(jobs_of(tasks, rngs, cache))
    return one_by_one(grow, tasks, rngs, cache)


def one_by_one(
    grow: Growth, tasks: Sequence[Task], rngs: Sequence[Rng], cache: KVCache | None
) -> Iterator[Step]:
    """Grow the texts one after the other; each step has the number of its text."""
    for task, rng in zip(tasks, rngs):
        with numbering(task):
            for step in grow(task, rng, cache):
                yield step._replace(row=task.row)


@contextmanager
def numbering(task: Task) -> Iterator[None]:
    """Say of which text no token was left."""
    try:
        yield
    except NothingLeft as error:
        error.row = task.row
        raise


def growing(plan: Plan) -> Growth | None:
    """The strategy that grows one text in its own way; None for plain decoding."""
    c = plan.config
    drafts = [c.prompt_lookup_num_tokens, c.assistant_early_exit, c.assistant_window]
    if plan.helpers.assistant is not None or any(drafts):
        return guess_and_check
    if c.lookahead_window or c.penalty_alpha or c.dola_layers is not None:
        return in_another_way
    return None


def in_another_way(task: Task, rng: Rng, cache: KVCache | None) -> Iterator[Step]:
    """Lookahead decoding, contrastive search or DoLa."""
    c, (job,) = task.plan.config, jobs_of([task], [rng], cache)
    if c.lookahead_window:
        return lookahead(job, c.lookahead_window, c.lookahead_ngram_size)
    if c.penalty_alpha:
        return contrastive_search(job, c.penalty_alpha, c.top_k)
    return dola(job, c.dola_layers)


def guess_and_check(task: Task, rng: Rng, cache: KVCache | None) -> Iterator[Step]:
    """Speculative decoding, with whatever makes the guesses."""
    c, (job,) = task.plan.config, jobs_of([task], [rng], cache)
    guesses = c.prompt_lookup_num_tokens or c.num_assistant_tokens
    return speculate(job, draft(task, rng), guesses)


def draft(task: Task, rng: Rng) -> Propose:
    """What makes the guesses, with a process and a source of chance of its own."""
    plan, c = task.plan, task.plan.config
    if c.prompt_lookup_num_tokens:
        return prompt_lookup(c.max_matching_ngram_size, plan.eos)
    (job,) = jobs_of([task], rng.spawn(1))
    room = task.capacity - len(task.prompt)
    job = job._replace(stop=plan.whole, max_new_tokens=room)
    if plan.helpers.assistant is not None:
        return assisted(job._replace(model=plan.helpers.assistant))
    if c.assistant_early_exit:
        return early_exit(job, c.assistant_early_exit)
    return short_context(job, c.assistant_window)


#  ---- several texts, compared ------------------------------------------------
def search(task: Task, rng: Rng) -> list[Hypothesis]:
    """Texts of one prompt, the best first."""
    with numbering(task):
        return compared(task, rng)


def compared(task: Task, rng: Rng) -> list[Hypothesis]:
    """The same, by the kind of search that the config asks for."""
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
