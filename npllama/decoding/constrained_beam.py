r"""Constrained beam search: the text must contain given phrases, anywhere.

Left to themselves the best beams rarely contain a phrase that was asked for, so at
every step each beam also offers the tokens that would begin, or go on with, a
phrase it lacks.  The candidates are then sorted into *banks* by how far they have
got with the phrases, and beams are taken from the banks in turn, so that texts
which have made progress need not compete with likelier ones that have made none.
A text may end only when all phrases stand in it.

A constraint is a list of phrases of which one suffices (a *disjunctive*
constraint, such as the forms of a verb); a list of one phrase demands just that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

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

Phrase = tuple[int, ...]
Constraint = tuple[Phrase, ...]


class Progress(NamedTuple):
    """How far a text has got with the constraints."""

    bank: int  # tokens of phrases that stand in it
    complete: bool
    wanted: list[int]  # tokens that would bring it further


Read = Callable[[Sequence[int]], Progress]  # of the new tokens of a text


def constraints_of(
    force_words_ids: Sequence[Any],
) -> list[Constraint]:
    """Read `force_words_ids` as transformers spells it.

    Parameters
    ----------
    force_words_ids : list
        Of phrases (lists of ids), each demanded, and of lists of phrases, of each
        of which one is demanded.

    Raises
    ------
    ValueError
        If a list is empty, or a phrase begins another of its list: it would be
        unclear which of the two is meant.
    """
    found = []
    for entry in force_words_ids:
        phrases = (
            entry if entry and not isinstance(entry[0], (int, np.integer)) else [entry]
        )
        constraint = tuple(tuple(int(t) for t in phrase) for phrase in phrases)
        if not all(constraint):
            raise ValueError("force_words_ids: a phrase is empty")
        for a in constraint:
            for b in constraint:
                if a is not b and b[: len(a)] == a:
                    raise ValueError(f"force_words_ids: {a} is the beginning of {b}")
        found.append(constraint)
    if not found:
        raise ValueError("force_words_ids is empty; leave it out to search freely")
    return found


def check_tokens(constraints: Sequence[Constraint], V: int) -> None:
    """Raise ValueError if a phrase holds what is no token."""
    for phrase in (phrase for constraint in constraints for phrase in constraint):
        if not all(0 <= token < V for token in phrase):
            raise ValueError(
                f"force_words_ids: {phrase} is not all within the vocabulary, "
                f"0 to {V - 1}"
            )


def progress(tokens: Sequence[int], constraints: Sequence[Constraint]) -> Progress:
    """Read a text from its beginning, one phrase at a time.

    A phrase that breaks off has to begin anew, and the token that broke it is not
    looked at as the beginning of another (the convention of transformers).
    """
    height = max((len(p) for constraint in constraints for p in constraint), default=0)
    pending, fulfilled = list(constraints), 0
    current: Constraint | None = None
    matched: Phrase = ()
    for token in tokens:
        if current is None:
            current = next((c for c in pending if token in following(c, ())), None)
            if current is None:
                continue
            pending.remove(current)
        elif token not in following(current, matched):
            pending.append(current)
            current, matched = None, ()
            continue
        matched = (*matched, token)
        if matched in current:
            fulfilled += 1
            current, matched = None, ()
    bank = fulfilled * height
    if current is not None:
        longest = max(len(phrase) for phrase in current)
        bank += height - longest + len(matched)
        return Progress(bank, False, following(current, matched))
    wanted = [token for constraint in pending for token in following(constraint, ())]
    return Progress(bank, not pending, wanted)


def following(constraint: Constraint, matched: Phrase) -> list[int]:
    """Tokens that go on from the part of a phrase that is matched."""
    n = len(matched)
    tokens = [phrase[n] for phrase in constraint if phrase[:n] == matched]
    return list(dict.fromkeys(tokens))


def constrained_beam_search(
    model: Model,
    prompt: Sequence[int],
    stop: Stop,
    max_new_tokens: int,
    num_beams: int,
    constraints: Sequence[Constraint],
    process: Process = unprocessed,
    *,
    eos: Collection[int] = (),
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    prompt_counts: bool = True,
    num_return_sequences: int = 1,
) -> list[Hypothesis]:
    """Search for likely continuations that contain what is demanded.

    Parameters
    ----------
    constraints : from `constraints_of`
    prompt_counts : bool
        Whether a phrase in the prompt fulfils its constraint, as in transformers.
    num_return_sequences : int
        If fewer texts fulfil the constraints, the best of the others are added.
    model, prompt, stop, max_new_tokens, num_beams, process, eos, length_penalty,
    early_stopping
        As in `beam_search`.

    Returns
    -------
    list of Hypothesis
        At most `num_beams`, best first.

    Raises
    ------
    ValueError
        If a phrase holds a token that the model lacks, or no text can be found.

    References
    ----------
    Hu et al. 2019, NAACL, "Improved lexically constrained decoding" (banks);
    transformers 4.49 `_constrained_beam_search`, whose conventions are followed.
    """
    check_tokens(constraints, model.config.vocab_size)
    longest, cache, logits = begin(model, prompt, max_new_tokens, num_beams)
    rules = Rules(num_beams, longest, length_penalty, early_stopping)
    keep = max(2, 1 + len(eos)) * num_beams
    before = list(prompt) if prompt_counts else []
    beams = first_beams(num_beams)
    finished: list[Hypothesis] = []

    def read(tokens: Sequence[int]) -> Progress:
        return progress([*before, *tokens], constraints)

    for step in range(longest):
        if step > 0:
            cache, logits = advance(model, cache, beams)
        log_probs = process(histories(prompt, beams), log_softmax(logits))
        candidates = successors(beams, log_probs, keep)
        ended, going = split(candidates, stop, num_beams, length_penalty)
        ended = [text for text in ended if read(text.tokens[:-1]).complete]
        finished = ranked(finished + ended)[:num_beams]
        going += forced(beams, going, log_probs, read)
        beams = take_in_turn(going, num_beams, read)
        if not beams or done(finished, candidates[0], rules):
            return some(finished)
    whole = [beam for beam in beams if read(beam.tokens).complete]
    return close(
        whole if len(whole) >= num_return_sequences else beams, finished, rules
    )


def forced(
    beams: Sequence[Beam],
    going: Sequence[Beam],
    log_probs: np.ndarray,
    read: Read,
) -> list[Beam]:
    """Extensions of the beams that bring a phrase further and are not there yet.

    Parameters
    ----------
    log_probs : (B, V) float
    """
    known = [beam.tokens for beam in going]
    extra = []
    for b, beam in enumerate(beams):
        for token in read(beam.tokens).wanted:
            tokens = [*beam.tokens, token]
            score = beam.score + float(log_probs[b, token])
            if tokens not in known and score > -np.inf:
                known.append(tokens)
                extra.append(Beam(tokens, score, b))
    return extra


def take_in_turn(candidates: Sequence[Beam], num_beams: int, read: Read) -> list[Beam]:
    """The best of every bank, then the second best of every bank, and so on.

    The fullest bank comes first in every round.
    """
    banks: dict[int, list[Beam]] = {}
    for beam in sorted(candidates, key=lambda beam: -beam.score):
        banks.setdefault(read(beam.tokens).bank, []).append(beam)
    rounds = [
        (place, -bank, beam)
        for bank, members in banks.items()
        for place, beam in enumerate(members)
    ]
    rounds.sort(key=lambda entry: entry[:2])
    return [beam for _, _, beam in rounds[:num_beams]]
