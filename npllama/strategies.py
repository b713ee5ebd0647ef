"""Which strategy a config asks for, and how it is called.

Two kinds: those that grow one text token by token and can be watched doing so
(`growing`), and those that compare several and know the best at the end
(`searching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from npllama.decoding.beam import beam_search
from npllama.decoding.common import Hypothesis
from npllama.decoding.constrained_beam import constrained_beam_search, constraints_of
from npllama.decoding.group_beam import group_beam_search
from npllama.decoding.stochastic_beam import stochastic_beam_search
from npllama.task import Task, process_of

Rng = np.random.Generator
Search = Callable[[Task, Rng], list[Hypothesis]]
Growth = Callable[[Task, Rng], Iterator[tuple[int, "str | None"]]]


def searching(config) -> Search | None:
    """The strategy that compares several texts, if the config asks for one."""
    if config.force_words_ids:
        return search_constrained
    if config.num_beam_groups > 1:
        return search_groups
    if config.stochastic_beams:
        return search_stochastic
    return search_beams if config.num_beams > 1 else None


def growing(config, helpers) -> Growth | None:
    """The strategy that grows one text in a way of its own, if one is asked for."""
    return None


def _common(task: Task) -> dict:
    """What all kinds of beam search are told."""
    config = task.config
    return {
        "model": task.model,
        "prompt": task.prompt,
        "stop": task.stop,
        "max_new_tokens": task.max_new_tokens,
        "num_beams": config.num_beams,
        "eos": task.eos,
        "length_penalty": config.length_penalty,
        "early_stopping": config.early_stopping,
    }


def search_beams(task: Task, rng: Rng) -> list[Hypothesis]:
    """Beam search, or beam sampling."""
    process = process_of([task], [rng])
    chance = rng if task.config.do_sample else None
    return beam_search(**_common(task), process=process, rng=chance)


def search_groups(task: Task, rng: Rng) -> list[Hypothesis]:
    """Diverse beam search."""
    config = task.config
    return group_beam_search(
        **_common(task),
        process=process_of([task], [rng]),
        num_beam_groups=config.num_beam_groups,
        diversity_penalty=config.diversity_penalty,
    )


def search_constrained(task: Task, rng: Rng) -> list[Hypothesis]:
    """Beam search for texts that hold given phrases."""
    return constrained_beam_search(
        **_common(task),
        process=process_of([task], [rng]),
        constraints=constraints_of(task.config.force_words_ids),
        num_return_sequences=task.config.num_return_sequences,
    )


def search_stochastic(task: Task, rng: Rng) -> list[Hypothesis]:
    """Texts drawn without replacement; their score is their log-probability."""
    drawn = stochastic_beam_search(
        task.model,
        task.prompt,
        task.stop,
        task.max_new_tokens,
        task.config.num_beams,
        rng,
        process_of([task], [rng]),
    )
    return [Hypothesis(d.tokens, d.log_prob, d.reason) for d in drawn]
