r"""Constrained beam search as transformers 4 did it, for comparison with its texts.

It differs from `constrained_beam` in five ways, and finds fewer texts that hold
every phrase:

- It does not keep the best extension of each beam, so a text that holds every
  phrase is lost as soon as none of its extensions is among the best of all beams.
- It reads a text one phrase at a time.  A phrase that breaks off has to begin again,
  and the token that broke it cannot begin another.  In "a a b" it does not find the
  phrase "a b".
- It does not let an end token complete the last phrase, and a forced token never
  ends a text.
- It adds all texts that are still open at the longest length.
- It returns the best texts by score.  Some of them may lack a phrase, if fewer than
  `num_return_sequences` open texts hold all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from npllama.decoding.beam import (
    Beam,
    BeamRules,
    advance,
    finish_open,
    found_enough,
    histories,
    part_ended,
    require_texts,
    start_beams,
    successors,
)
from npllama.decoding.common import Hypothesis, Job, ranked
from npllama.decoding.constrained_beam import (
    Candidate,
    Constraint,
    Phrase,
    Progress,
    check_tokens,
    take_in_turn,
)
from npllama.sampling import log_softmax

Read = Callable[[Sequence[int]], Progress]  # of the new tokens of a text


def one_at_a_time(tokens: Sequence[int], constraints: Sequence[Constraint]) -> Progress:
    """Read a text from its beginning, one phrase at a time.

    With the phrase "a b", the second "a" is only the end of the first attempt:

    >>> one_at_a_time([0, 0, 1], [((0, 1),)])
    Progress(bank=0, complete=False, wanted=[0])
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
    """List the tokens that continue the part of a phrase that is matched."""
    n = len(matched)
    tokens = [phrase[n] for phrase in constraint if phrase[:n] == matched]
    return list(dict.fromkeys(tokens))


def constrained_beam_search_4(
    job: Job,
    rules: BeamRules,
    constraints: Sequence[Constraint],
    num_return_sequences: int = 1,
) -> list[Hypothesis]:
    """Search for likely continuations that contain the phrases.

    Parameters
    ----------
    job, rules, constraints
        As in `constrained_beam_search`.
    num_return_sequences : int
        If fewer open texts satisfy the constraints, the best of the others are added.

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
    transformers 4.49 `GenerationMixin._constrained_beam_search`.
    """
    check_tokens(constraints, job.model.config.vocab_size)
    beams, cache, logits = start_beams(job)
    finished: list[Hypothesis] = []
    read = partial(read_with, job.prompt, constraints)
    for step in range(job.room):
        if step > 0:
            cache, logits = advance(job.model, cache, beams)
        log_probs = job.process(histories(job, beams), log_softmax(logits))
        candidates = successors(beams, log_probs, rules.keep)
        ended, going = part_ended(candidates, job.stop, rules)
        ended = [text for text in ended if read(text.tokens[:-1]).complete]
        finished = ranked(finished + ended)[: rules.num_beams]
        going = ranked(going + forced(beams, going, log_probs, read))
        judged = [Candidate(beam, read(beam.tokens), None) for beam in going]
        beams = take_in_turn(judged, rules.num_beams)
        if not beams or found_enough(finished, candidates[0], rules, job.room):
            return require_texts(finished)
    whole = [beam for beam in beams if read(beam.tokens).complete]
    enough = len(whole) >= num_return_sequences
    return finish_open(whole if enough else beams, finished, rules)


def read_with(
    prompt: Sequence[int], constraints: Sequence[Constraint], tokens: Sequence[int]
) -> Progress:
    """How far prompt and new tokens have got."""
    return one_at_a_time([*prompt, *tokens], constraints)


def forced(
    beams: Sequence[Beam], going: Sequence[Beam], log_probs: np.ndarray, read: Read
) -> list[Beam]:
    """Extend the beams by the tokens that bring a phrase further.

    Leaves out the extensions that continue already.

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
