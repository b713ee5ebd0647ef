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
from npllama.decoding.constrained_beam_4 import constrained_beam_search_4
from npllama.decoding.contrastive_search import contrastive_search
from npllama.decoding.dola import dola
from npllama.decoding.group_beam import group_beam_search
from npllama.decoding.lookahead import lookahead
from npllama.decoding.prompt_lookup import prompt_lookup
from npllama.decoding.self_speculation import early_exit, short_context
from npllama.decoding.speculative import Propose, Round, assisted, speculate
from npllama.decoding.stochastic_beam import stochastic_beam_search
from npllama.generation.limits import ways
from npllama.generation.task import Task, check_vocabulary, process_of

Rng = np.random.Generator
Search = Callable[[Task, Rng], list[Hypothesis]]
Growth = Callable[[Task, Rng], Iterator[Round]]


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
    """The strategy that grows one text in a way of its own, if one is asked for.

    Raises
    ------
    ValueError
        If an assistant is to help with what needs no help.
    """
    if helpers.assistant is not None:
        others = ways(config) + ["best_of"] * (config.best_of is not None)
        if others:
            raise ValueError(f"an assistant and {others[0]} exclude each other")
        return with_assistant
    if config.prompt_lookup_num_tokens:
        return with_lookup
    if config.assistant_early_exit:
        return with_early_exit
    if config.assistant_window:
        return with_short_context
    if config.lookahead_window:
        return with_lookahead
    if config.penalty_alpha:
        return search_contrastively
    if config.dola_layers is not None:
        return contrast_layers
    return None


def with_lookahead(task: Task, rng: Rng) -> Iterator[Round]:
    """Guesses from iterations over a window of later positions."""
    return lookahead(
        task.model,
        task.prompt,
        task.stop,
        task.max_new_tokens,
        task.config.lookahead_window,
        task.config.lookahead_ngram_size,
        process_of([task], [rng]),
        rng if task.config.do_sample else None,
    )


def search_contrastively(task: Task, rng: Rng) -> Iterator[Round]:
    """Contrastive search."""
    return contrastive_search(
        task.model,
        task.prompt,
        task.stop,
        task.max_new_tokens,
        task.config.penalty_alpha,
        task.config.top_k,
        process_of([task], [rng]),
    )


def contrast_layers(task: Task, rng: Rng) -> Iterator[Round]:
    """DoLa."""
    return dola(
        task.model,
        task.prompt,
        task.stop,
        task.max_new_tokens,
        task.config.dola_layers,
        process_of([task], [rng]),
        rng if task.config.do_sample else None,
    )


#  ---- speculation ------------------------------------------------------------


def _speculate(task: Task, rng: Rng, propose: Propose, guesses: int) -> Iterator[Round]:
    """Check what `propose` guesses, greedily or by chance as the config says."""
    return speculate(
        task.model,
        task.prompt,
        propose,
        task.stop,
        task.max_new_tokens,
        guesses,
        process_of([task], [rng]),
        rng if task.config.do_sample else None,
    )


def _draft(task: Task, rng: Rng) -> tuple:
    """What a drafting model chooses by: a pipeline and chance of its own."""
    child = rng.spawn(1)[0]
    return process_of([task], [child]), child if task.config.do_sample else None


def with_assistant(task: Task, rng: Rng) -> Iterator[Round]:
    """Guesses of a smaller model."""
    assistant = task.helpers.assistant
    check_vocabulary("assistant", assistant, task.model)
    propose = assisted(assistant, task.capacity, *_draft(task, rng))
    return _speculate(task, rng, propose, task.config.num_assistant_tokens)


def with_lookup(task: Task, rng: Rng) -> Iterator[Round]:
    """What followed the same tokens earlier in the text."""
    propose = prompt_lookup(task.config.max_matching_ngram_size, task.eos)
    return _speculate(task, rng, propose, task.config.prompt_lookup_num_tokens)


def with_early_exit(task: Task, rng: Rng) -> Iterator[Round]:
    """Guesses of the model's own first layers."""
    layers = task.config.assistant_early_exit
    propose = early_exit(task.model, layers, *_draft(task, rng))
    return _speculate(task, rng, propose, task.config.num_assistant_tokens)


def with_short_context(task: Task, rng: Rng) -> Iterator[Round]:
    """Guesses of the model that looks back only a little."""
    window = task.config.assistant_window
    propose = short_context(task.model, window, *_draft(task, rng))
    return _speculate(task, rng, propose, task.config.num_assistant_tokens)


#  ---- beams ------------------------------------------------------------------


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
    process = process_of([task], [rng])
    constraints = constraints_of(task.config.force_words_ids)
    if task.config.force_words_rule == "transformers 4":
        wanted = task.config.num_return_sequences
        return constrained_beam_search_4(
            **_common(task),
            process=process,
            constraints=constraints,
            num_return_sequences=wanted,
        )
    return constrained_beam_search(
        **_common(task), process=process, constraints=constraints
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
