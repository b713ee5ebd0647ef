"""Checks of strategies that write whole texts without chance.

They are called with a prompt and a function from a text to the logits of the next
token, (V,) float32.  The length limit and the end token are passed by keyword.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from hypothesis import strategies as st

from npllama.testing.laws import Law, Violation, check_of, one_of, shown, some_of
from npllama.testing.models import (
    LanguageModel,
    Text,
    greedy_text,
    log_prob,
    log_probs,
    models,
    texts,
)
from npllama.testing.strategies import cases

Scored = tuple[Text, float]
PROMPTS = st.sampled_from([[0], [1, 0], [2, 0, 1, 1]])
EOS = st.sampled_from([None, 2])
PENALTIES = st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5])


def _writes_the_greedy_text(
    sampler: Callable,
    model: LanguageModel,
    prompt: list[int],
    max_new_tokens: int,
    eos: int | None,
) -> None:
    found = sampler(model, prompt, max_new_tokens=max_new_tokens, eos=eos)
    expected = greedy_text(model, prompt, max_new_tokens, eos)
    if list(found) != expected:
        raise Violation(f"found {shown(list(found))}, not {expected}")


@check_of("greedy_search", "next_logits, prompt, max_new_tokens=, eos=")
def check_greedy_search() -> Iterator[Law]:
    """Check ``greedy_search(next_logits, prompt, max_new_tokens=, eos=)``.

    Parameters
    ----------
    sampler : function
        Returns the new tokens, `eos` included if it ended the text; eos is None
        where a text ends only by its length.
    """

    rows = cases(
        model=models(), prompt=PROMPTS, max_new_tokens=st.integers(1, 5), eos=EOS
    )
    says = "every token is the most probable after the text so far"
    usual = {"prompt": [0], "max_new_tokens": 5, "eos": 2}
    known = tuple({"model": LanguageModel(3, seed)} | usual for seed in range(8))
    yield Law(says, rows, _writes_the_greedy_text, known)


# ---- beam search ------------------------------------------------------------


def _ranked(found: list[Scored]) -> list[Scored]:
    return sorted(found, key=lambda scored: -scored[1])


@dataclass(frozen=True)
class Rules:
    """In what beam searches differ; see `check_beam_search`."""

    length: str
    any_rank: bool

    def score(self, text: Text, total: float, **options: Any) -> float:
        """What a whole text is ranked by, from its log-probability."""
        n = len(text)
        if self.length.endswith("without eos"):
            n -= text[-1] == options["eos"]
        if self.length.startswith("prompt"):
            n += len(options["prompt"])
        return total / max(n, 1) ** options["length_penalty"]

    def hope(self, text: Text, total: float, **options: Any) -> float:
        """The best score that a growing text is given credit for."""
        power, n = options["length_penalty"], len(text)
        if options["early_stopping"] == "never" and power > 0:
            n = options["max_new_tokens"]
        if self.length.startswith("prompt"):
            n += len(options["prompt"])
        return total / n**power


def extended(model: Callable, prompt: list[int], beams: list[Scored]) -> list[Scored]:
    """Every text one token longer, best first."""
    return _ranked(
        [
            ((*text, v), total + float(gain))
            for text, total in beams
            for v, gain in enumerate(log_probs(model, [*prompt, *text]))
        ]
    )


def beam_texts(
    model: Callable, *, rules: Rules, num_beams: int, **options: Any
) -> list[Scored]:
    """Beam search in plain steps: the best `num_beams` texts and their scores."""
    running: list[Scored] = [((), 0.0)]
    finished: list[Scored] = []
    while running:
        best = extended(model, options["prompt"], running)[: 2 * num_beams]
        running = []
        for rank, (text, total) in enumerate(best):
            if not _ends(text, **options):
                running.append((text, total))
            elif rules.any_rank or rank < num_beams:
                finished.append((text, rules.score(text, total, **options)))
        running, finished = running[:num_beams], _ranked(finished)[:num_beams]
        if running and len(finished) == num_beams and not rules.any_rank:
            hope = rules.hope(*running[0], **options)
            if options["early_stopping"] is True or hope <= finished[-1][1]:
                break
    return finished


def _ends(text: Text, **options: Any) -> bool:
    return text[-1] == options["eos"] or len(text) == options["max_new_tokens"]


def _search(sampler: Callable, model: LanguageModel, **options: Any) -> list[Scored]:
    found = sampler(model, options.pop("prompt"), **options)
    return [(tuple(map(int, tokens)), float(score)) for tokens, score in found]


def _compare(found: list[Scored], expected: list[Scored]) -> None:
    few, right = ([list(text) for text, _ in texts] for texts in (found, expected))
    if few != right:
        raise Violation(f"found {few}\nexpected {right}")


def _scores(
    sampler: Callable, model: LanguageModel, *, rules: Rules, **options: Any
) -> None:
    for text, found in _search(sampler, model, **options):
        total = log_prob(model, options["prompt"], text)
        value = rules.score(text, total, **options)
        near = abs(found - value) <= 1e-4 * (1 + abs(value))
        what = f"{list(text)} is given {found:.6g}, its score is {value:.6g}"
        if not near:
            raise Violation(what)


def _shape(sampler: Callable, model: LanguageModel, **options: Any) -> None:
    found = _search(sampler, model, **options)
    values = [score for _, score in found]
    if values != sorted(values, reverse=True):
        raise Violation(f"scores {values} are not sorted")
    every = [list(text) for text, _ in found]
    if len({text for text, _ in found}) != len(found):
        raise Violation(f"twice in {every}")
    if not (0 < len(found) <= options["num_beams"]):
        raise Violation(f"{len(found)} texts")
    allowed = set(texts(model.size, options["max_new_tokens"], options["eos"]))
    for text, _ in found:
        whole = text in allowed
        if not whole:
            raise Violation(f"{list(text)} does not end at eos or at the last place")


def _widest(
    sampler: Callable, model: LanguageModel, *, rules: Rules, **options: Any
) -> None:
    every = texts(model.size, options["max_new_tokens"], options["eos"])
    totals = [(text, log_prob(model, options["prompt"], text)) for text in every]
    best = _ranked([(text, rules.score(text, x, **options)) for text, x in totals])
    _compare(_search(sampler, model, num_beams=len(best), **options), best)


def _narrow(
    sampler: Callable, model: LanguageModel, *, rules: Rules, **options: Any
) -> None:
    expected = beam_texts(model, rules=rules, **options)
    _compare(_search(sampler, model, **options), expected)


def _one_beam(sampler: Callable, model: LanguageModel, **options: Any) -> None:
    prompt, most, eos = (options[k] for k in ("prompt", "max_new_tokens", "eos"))
    expected = greedy_text(model, prompt, most, eos)
    _compare(_search(sampler, model, **options), [(tuple(expected), 0.0)])


@check_of(
    "beam_search",
    "next_logits, prompt, num_beams=, ...",
    length=one_of(
        "new", "new without eos", "prompt and new", "prompt and new without eos"
    ),
    ends=one_of("within beams", "any rank"),
    early_stopping=some_of(False, True, "never"),
)
def check_beam_search(length: str, ends: str, early_stopping: tuple) -> Iterator[Law]:
    r"""Check ``beam_search(next_logits, prompt, num_beams=, ...)``.

    Texts are ranked by their log-probability over $length^{length\_penalty}$.

    Parameters
    ----------
    sampler : function
        The other keywords are length_penalty, early_stopping, max_new_tokens and eos
        (None: a text ends only by its length). Returns (new tokens, score) pairs,
        best first, at most num_beams.
    length : {"new", "new without eos", "prompt and new", "prompt and new without eos"}
        What is counted: new tokens (transformers), perhaps without the one that ends
        the text, perhaps with the prompt (vLLM: the last of the four).
    ends : {"within beams", "any rank"}
        A text may end where it is among the best `num_beams` candidates
        (transformers), or wherever it is among twice as many, and the search goes on
        to the last place (vLLM).
    early_stopping : tuple
        The values that may be tried, of False, True and "never".
    """
    rules = Rules(length, ends == "any rank")
    few = {
        "model": models(),
        "prompt": PROMPTS,
        "length_penalty": PENALTIES,
        "early_stopping": st.sampled_from(list(early_stopping)),
        "max_new_tokens": st.integers(1, 3),
        "eos": EOS,
    }
    # No more beams than words: otherwise some beams would have no text to follow.
    long = few | {"max_new_tokens": st.integers(1, 6), "num_beams": st.integers(1, 3)}
    lengths = {"model": LanguageModel(3, 1), "prompt": [2, 0, 1, 1], "eos": 2}
    usual = {"early_stopping": early_stopping[0], "max_new_tokens": 3}
    known = tuple(lengths | usual | {"length_penalty": x} for x in (1.0, 0.0, -1.0))
    # At first there are fewer texts than beams: placeholders must not be returned.
    if True in early_stopping:
        first = {"prompt": [0], "early_stopping": True, "length_penalty": 0.0}
        known += (lengths | usual | {"model": LanguageModel(3, 0)} | first,)
    says = "with a beam for every text, the best text of all is found, and the order"
    yield Law(says, cases(**few), partial(_widest, rules=rules), known)
    says = "a score is the text's log-probability over its length to the penalty"
    few_beams = tuple(case | {"num_beams": 2} for case in known)
    yield Law(says, cases(**long), partial(_scores, rules=rules), few_beams)
    yield Law("texts differ, are whole, and the best come first", cases(**long), _shape)
    says = "a few beams find what the definition finds, step by step"
    # Here the three ways to stop find different texts.
    first = {"model": LanguageModel(3, 0), "prompt": [0], "length_penalty": 1.0}
    stops = tuple(
        first | {"early_stopping": x, "max_new_tokens": 4, "eos": 2, "num_beams": n}
        for x, n in ((False, 2), ("never", 2), (False, 3), (True, 3))
        if x in early_stopping
    )
    if "never" in early_stopping:  # a negative penalty forgives no length
        stops += (
            stops[0]
            | {"model": LanguageModel(3, 16), "early_stopping": "never"}
            | {"length_penalty": -1.0, "num_beams": 2},
        )
    yield Law(says, cases(**long), partial(_narrow, rules=rules), stops)
    if ends == "within beams":
        alone = long | {"num_beams": st.just(1), "length_penalty": st.just(0.0)}
        yield Law("one beam is greedy search", cases(**alone), _one_beam)


# ---- in groups --------------------------------------------------------------


def group_texts(
    model: Callable,
    prompt: list[int],
    num_beams: int,
    num_beam_groups: int,
    diversity_penalty: float,
    length_penalty: float,
    max_new_tokens: int,
) -> list[Scored]:
    """Group beam search in plain steps, where no token ends a text."""
    size = num_beams // num_beam_groups
    running: list[list[Scored]] = [[((), 0.0)] for _ in range(num_beam_groups)]
    for _ in range(max_new_tokens):
        taken: Counter = Counter()
        for g, beams in enumerate(running):
            grown = extended(model, prompt, beams)
            paid = [(t, x - diversity_penalty * taken[t[-1]]) for t, x in grown]
            running[g] = _ranked(paid)[:size]
            taken.update(text[-1] for text, _ in running[g])
    power = max_new_tokens**length_penalty
    return _ranked([(text, x / power) for beams in running for text, x in beams])


def _groups(sampler: Callable, model: LanguageModel, **options: Any) -> None:
    found = _search(sampler, model, **options)
    expected = group_texts(model, **options)
    few, right = (
        [(list(text), round(x, 3)) for text, x in texts] for texts in (found, expected)
    )
    same = [text for text, _ in few] == [text for text, _ in right]
    near = all(abs(a - b) < 2e-3 for (_, a), (_, b) in zip(few, right))
    if not (same and near):
        raise Violation(f"found {few}\nexpected {right}")


def _split(case: dict[str, Any]) -> dict[str, Any]:
    beams, groups = case["split"]
    rest = {key: value for key, value in case.items() if key != "split"}
    return rest | {"num_beams": beams, "num_beam_groups": groups}


@check_of("group_beam_search", "next_logits, prompt, num_beams=, ...")
def check_group_beam_search() -> Iterator[Law]:
    """Check ``group_beam_search(next_logits, prompt, num_beams=, ...)``.

    Parameters
    ----------
    sampler : function
        The other keywords are num_beam_groups, diversity_penalty, length_penalty and
        max_new_tokens; no token ends a text. Returns (new tokens, score) pairs of all
        groups, best first; the scores include the penalties paid.
    """
    drawn = cases(
        model=models(4),
        prompt=PROMPTS,
        split=st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 2), (2, 1)]),
        diversity_penalty=st.sampled_from([0.3, 1.1, 50.0]),
        length_penalty=st.sampled_from([0.0, 1.0]),
        max_new_tokens=st.integers(1, 4),
    ).map(_split)
    # The third group pays twice.
    twice: dict[str, Any] = {
        "diversity_penalty": 0.3,
        "length_penalty": 0.0,
        "max_new_tokens": 1,
    }
    twice |= {"model": LanguageModel(4, 0), "prompt": [0]}
    twice |= {"num_beams": 3, "num_beam_groups": 3}
    says = "each token costs a group the penalty for every earlier beam that took it"
    yield Law(says, drawn, _groups, (twice,))
