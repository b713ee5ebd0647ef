r"""Constrained beam search: the text must contain given phrases, anywhere.

The best beams rarely contain a required phrase.  So at every step the search looks at
three kinds of candidates: the best extensions of all beams together, as in beam
search; for each beam, the tokens that begin or continue a phrase it lacks; and for
each beam, its best extension.  Candidates are then sorted into *banks*, by the number
of phrase tokens that they hold, and the new beams are taken from the banks in turn.
So a text competes only with texts that have made as much progress.

The third kind is needed because the first two can lose a text.  A text that holds
every phrase wants no further token, and if it is unlikely, none of its extensions is
among the best of all beams.

    beam        score   best extensions of all   phrase tokens   best of each
    A           -1.0    A x, A y                 A rope          A x
    A rope      -9.0    none                     none            A rope z

Without the last column, the bank of "rope" would hold only one text after this
step: ``A rope``, extended once more from A, which pays for the phrase again.

A text may end only when it holds all phrases: at an end token, at a stop string, or
at the longest length, whichever kind of candidate it is.

A constraint is a list of phrases of which one suffices (a *disjunctive*
constraint, such as the forms of a verb); a list of one phrase requires that phrase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from npllama.decoding.beam import (
    Beam,
    BeamRules,
    advance,
    found_enough,
    histories,
    require_texts,
    start_beams,
    successors,
    tell,
)
from npllama.decoding.common import Hypothesis, Job, ranked, top
from npllama.sampling import log_softmax

Phrase = tuple[int, ...]
Constraint = tuple[Phrase, ...]


class Progress(NamedTuple):
    """How far a text has got with the constraints."""

    bank: int  # how many tokens of phrases it holds
    complete: bool
    wanted: list[int]  # tokens that begin or continue a phrase it lacks


class Candidate(NamedTuple):
    """An extension of a beam, and what decides its fate."""

    beam: Beam
    progress: Progress
    reason: str | None  # why it ends here, if it does


Judge = Callable[[Beam], Candidate]


def constraints_of(force_words_ids: Sequence[Any]) -> list[Constraint]:
    """Read `force_words_ids`, written as in transformers.

    Parameters
    ----------
    force_words_ids : list
        Its entries are phrases (lists of ids), each of them required, or lists of
        phrases, of which one is required.

    Raises
    ------
    ValueError
        If a list is empty, or if a phrase is the beginning of another in its list,
        so that it is unclear which of the two is meant.
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
    """Raise ValueError if a phrase holds an id that is not a token."""
    for phrase in (phrase for constraint in constraints for phrase in constraint):
        if not all(0 <= token < V for token in phrase):
            raise ValueError(
                f"force_words_ids: {phrase} is not all within the vocabulary, "
                f"0 to {V - 1}"
            )


def progress(tokens: Sequence[int], constraints: Sequence[Constraint]) -> Progress:
    """Count the phrase tokens that a text holds.

    All tokens of a phrase count if it occurs anywhere in the text; phrases may
    overlap.  A constraint that is given twice needs two occurrences.  If the text
    ends with the beginning of phrases, the longest such beginning counts too.

    While a phrase is begun, only the tokens that continue one are wanted; otherwise
    those that begin one.  With the phrases "a b" and "c":

    >>> progress([0, 1], [((0, 1),), ((2,),)])
    Progress(bank=2, complete=False, wanted=[2])
    >>> progress([1, 0], [((0, 1),), ((2,),)])
    Progress(bank=1, complete=False, wanted=[1])
    """
    text = tuple(tokens)
    bank = 0
    begun = []  # (tokens of a phrase at the end of the text, token wanted next)
    for constraint, demanded in Counter(constraints).items():
        longest = max(map(len, constraint))
        found = min(demanded, sum(occurrences(text, phrase) for phrase in constraint))
        bank += found * longest
        if found < demanded:
            for phrase in constraint:
                n = overlap(text, phrase)
                # Of phrases of several lengths, what is still missing counts.
                begun.append((longest - len(phrase) + n if n else 0, phrase[n]))
    most = max((matched for matched, _ in begun), default=0)
    wanted = [token for matched, token in begun if (matched > 0) == (most > 0)]
    return Progress(bank + most, not begun, list(dict.fromkeys(wanted)))


def occurrences(text: Phrase, phrase: Phrase) -> int:
    """How often a phrase occurs in a text."""
    n, first = len(phrase), phrase[0]
    return sum(
        token == first and text[i : i + n] == phrase for i, token in enumerate(text)
    )


def overlap(text: Phrase, phrase: Phrase) -> int:
    """Length of the longest proper beginning of a phrase that ends a text.

    >>> overlap((5, 7, 8, 7), (7, 8, 7, 9))
    3
    """
    longest = min(len(phrase) - 1, len(text))
    return next(
        (n for n in range(longest, 0, -1) if text[len(text) - n :] == phrase[:n]), 0
    )


def constrained_beam_search(
    job: Job,
    rules: BeamRules,
    constraints: Sequence[Constraint],
    prompt_counts: bool = True,
) -> list[Hypothesis]:
    """Search for likely continuations that contain the phrases.

    Parameters
    ----------
    job, rules
        As in `beam_search`, but nothing is drawn.
    constraints : from `constraints_of`
    prompt_counts : bool
        Whether a phrase in the prompt satisfies its constraint, as in transformers.

    Returns
    -------
    list of Hypothesis
        At most `num_beams`.  Texts that hold every phrase come first, whatever
        their score; within each of the two kinds, the best comes first.

    Raises
    ------
    ValueError
        If a phrase holds a token that the model lacks, or no text can be found.

    References
    ----------
    Post and Vilar 2018, arXiv:1804.06609 (candidates); Hu et al. 2019, NAACL,
    "Improved lexically constrained decoding" (banks); fairseq
    ``LexicallyConstrainedBeamSearch``.  `constrained_beam_4` shows how transformers
    4 differs.
    """
    check_tokens(constraints, job.model.config.vocab_size)
    beams, cache, logits = start_beams(job)
    before = job.prompt if prompt_counts else ()
    judge = partial(judged, job, before, constraints)
    finished: list[Hypothesis] = []
    while True:
        log_probs = job.process(histories(job, beams), log_softmax(logits))
        found = [*successors(beams, log_probs, rules.keep)]
        if constraints:
            found += forced(beams, log_probs, judge)
            tries = rules.keep // rules.num_beams
            found += best_of_each(beams, log_probs, tries, judge)
        candidates = [judge(beam) for beam in distinct(found)]
        tell("ended", [c.beam for c in candidates if c.reason is not None])
        ended, cut = endings(candidates, rules)
        finished = ranked(finished + ended)[: rules.num_beams]
        going = [c for c in candidates if c.reason is None]
        beams = take_in_turn(going, rules.num_beams)
        if not beams:
            return require_texts(finished + ranked(cut))[: rules.num_beams]
        if found_enough(finished, ranked(beams)[0], rules, job.room):
            return finished
        cache, logits = advance(job.model, cache, beams)


def judged(
    job: Job, before: Sequence[int], constraints: Sequence[Constraint], beam: Beam
) -> Candidate:
    """What decides the fate of a beam; `before` is the prompt, if it counts."""
    read = progress([*before, *beam.tokens], constraints)
    return Candidate(beam, read, job.ends(beam.tokens))


def forced(beams: Sequence[Beam], log_probs: np.ndarray, judge: Judge) -> list[Beam]:
    """Extend the beams by the tokens that bring a phrase further.

    Parameters
    ----------
    log_probs : (B, V) float
    """
    return [
        extended(beams, b, token, log_probs)
        for b, beam in enumerate(beams)
        for token in judge(beam).progress.wanted
    ]


def best_of_each(
    beams: Sequence[Beam], log_probs: np.ndarray, tries: int, judge: Judge
) -> Iterator[Beam]:
    """Extend each beam by the likeliest token that does not end it too early.

    Parameters
    ----------
    log_probs : (B, V) float
    tries : int
        Tokens to try per beam; more than the number of end tokens.
    """
    for b in range(len(beams)):
        tokens = top(log_probs[b], tries)
        likeliest = (extended(beams, b, int(token), log_probs) for token in tokens)
        yield from islice((x for x in likeliest if not too_early(judge(x))), 1)


def extended(beams: Sequence[Beam], b: int, token: int, log_probs: np.ndarray) -> Beam:
    """Beam b with one more token.

    Parameters
    ----------
    log_probs : (B, V) float
    """
    score = beams[b].score + float(log_probs[b, token])
    return Beam([*beams[b].tokens, token], score, b)


def too_early(candidate: Candidate) -> bool:
    """Whether a text ends here without all phrases."""
    return candidate.reason is not None and not candidate.progress.complete


def distinct(found: Sequence[Beam]) -> list[Beam]:
    """Sort candidates, best first; drop duplicates and impossible texts."""
    possible = {
        tuple(beam.tokens): beam for beam in reversed(found) if beam.score > -np.inf
    }
    return ranked(reversed(possible.values()))


def endings(
    candidates: Sequence[Candidate], rules: BeamRules
) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """Find the texts that end here: those with all phrases, and the others.

    As in `beam_search`, a text may only end among the first `num_beams`: here, among
    the first of those that hold all phrases.
    """
    whole = [c for c in candidates if c.progress.complete][: rules.num_beams]
    short = [c for c in candidates if too_early(c)]
    ended, cut = (
        [rules.finished(c.beam, c.reason) for c in group if c.reason]
        for group in (whole, short)
    )
    return ended, cut


def take_in_turn(candidates: Sequence[Candidate], num_beams: int) -> list[Beam]:
    """Take the best of every bank, then the second best of every bank, and so on.

    In every round the fullest bank comes first.

    Parameters
    ----------
    candidates : list of Candidate
        Best first.
    """
    taken: Counter[int] = Counter()  # per bank
    order = []
    for candidate in candidates:
        bank = candidate.progress.bank
        order.append((taken[bank], -bank, candidate.beam))
        taken[bank] += 1
    order.sort(key=itemgetter(0, 1))
    return [beam for _, _, beam in order[:num_beams]]
