"""Checks of strategies that write whole texts without chance.

They are called with a function from a text to the logits of the next token, (V,)
float32, and a prompt; how long a text may be and where it ends are keywords.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from hypothesis import strategies as st

from npllama.testing.laws import Law, check, shown
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


@check
def check_greedy_search() -> Iterator[Law]:
    """Check ``greedy_search(next_logits, prompt, max_new_tokens=, eos=)``.

    Parameters
    ----------
    sampler : function
        Returns the new tokens, `eos` included if it ended the text; eos is None
        where a text ends only by its length.
    """

    def holds(
        sampler: Callable,
        model: LanguageModel,
        prompt: list[int],
        max_new_tokens: int,
        eos: int | None,
    ) -> None:
        found = sampler(model, prompt, max_new_tokens=max_new_tokens, eos=eos)
        expected = greedy_text(model, prompt, max_new_tokens, eos)
        assert list(found) == expected, f"found {shown(list(found))}, not {expected}"

    rows = cases(
        model=models(), prompt=PROMPTS, max_new_tokens=st.integers(1, 5), eos=EOS
    )
    says = "every token is the most probable behind the text so far"
    yield Law(says, rows, holds)


# ---- beam search ------------------------------------------------------------


def _ranked(found: list[Scored]) -> list[Scored]:
    return sorted(found, key=lambda scored: -scored[1])


def beam_texts(
    model: Callable,
    prompt: Sequence[int],
    score: Callable[[Text, float], float],
    *,
    num_beams: int,
    max_new_tokens: int,
    eos: int | None,
    early_stopping: bool | str,
    any_rank: bool,
    best_score: Callable[[Text, float, int], float],
) -> list[Scored]:
    """Beam search in plain steps: the best `num_beams` texts and their scores."""
    running: list[Scored] = [((), 0.0)]
    finished: list[Scored] = []
    while running:
        grown = [
            ((*text, v), total + float(gain))
            for text, total in running
            for v, gain in enumerate(log_probs(model, [*prompt, *text]))
        ]
        best = _ranked(grown)[: 2 * num_beams]
        ended = [t[-1] == eos or len(t) == max_new_tokens for t, _ in best]
        may_end = len(best) if any_rank else num_beams
        new = [one for one, end in zip(best[:may_end], ended) if end]
        finished += [(text, score(text, total)) for text, total in new]
        finished = _ranked(finished)[:num_beams]
        running = [one for one, end in zip(best, ended) if not end][:num_beams]
        if running and len(finished) == num_beams and not any_rank:
            text, total = running[0]
            longest = max_new_tokens if early_stopping == "never" else len(text)
            if early_stopping is True or (
                best_score(text, total, longest) <= finished[-1][1]
            ):
                break
    return finished


@check
def check_beam_search(
    *,
    length: Literal["new", "new without eos", "prompt and new"] = "new",
    ends: Literal["within beams", "any rank"] = "within beams",
    early_stopping: tuple = (False, True, "never"),
) -> Iterator[Law]:
    r"""Check ``beam_search(next_logits, prompt, num_beams=, ...)``.

    Texts are ranked by their log-probability over $length^{length\_penalty}$.

    Parameters
    ----------
    sampler : function
        The other keywords are length_penalty, early_stopping, max_new_tokens and eos
        (None: a text ends only by its length). Returns (new tokens, score) pairs,
        best first, at most num_beams.
    length : {"new", "new without eos", "prompt and new"}
        What is counted: new tokens (transformers), without the one that ends the
        text, or the prompt and what follows it without the end (vLLM).
    ends : {"within beams", "any rank"}
        A text may end where it is among the best `num_beams` candidates
        (transformers), or wherever it is among twice as many, and the search goes on
        to the last place (vLLM).
    early_stopping : tuple
        The values that may be tried, of False, True and "never".
    """

    def size(text: Text, prompt: list[int], eos: int | None) -> int:
        n = len(text) - (length != "new" and text[-1] == eos)
        return max(n + (len(prompt) if length == "prompt and new" else 0), 1)

    def right(options: dict[str, Any]) -> tuple[Callable, Callable]:
        prompt, eos = options["prompt"], options["eos"]
        power = options["length_penalty"]
        before = len(prompt) if length == "prompt and new" else 0

        def score(text: Text, total: float) -> float:
            return total / size(text, prompt, eos) ** power

        def still(text: Text, total: float, longest: int) -> float:
            most = longest if power > 0 else len(text)
            return total / (most + before) ** power

        return score, still

    def search(sampler: Callable, model: LanguageModel, **options: Any) -> list[Scored]:
        found = sampler(model, options.pop("prompt"), **options)
        return [(tuple(map(int, tokens)), float(score)) for tokens, score in found]

    def compare(found: list[Scored], expected: list[Scored]) -> None:
        few = [list(text) for text, _ in found]
        right = [list(text) for text, _ in expected]
        assert few == right, f"found {few}\nexpected {right}"

    def scores(sampler: Callable, model: LanguageModel, **options: Any) -> None:
        score, _ = right(options)
        for text, found in search(sampler, model, **options):
            value = score(text, log_prob(model, options["prompt"], text))
            near = abs(found - value) <= 1e-4 * (1 + abs(value))
            what = f"{list(text)} is given {found:.6g}, its score is {value:.6g}"
            assert near, what

    def shape(sampler: Callable, model: LanguageModel, **options: Any) -> None:
        found = search(sampler, model, **options)
        values = [score for _, score in found]
        assert values == sorted(values, reverse=True), f"scores {values} are not sorted"
        every = [list(text) for text, _ in found]
        assert len({text for text, _ in found}) == len(found), f"twice in {every}"
        assert 0 < len(found) <= options["num_beams"], f"{len(found)} texts"
        allowed = set(texts(model.size, options["max_new_tokens"], options["eos"]))
        for text, _ in found:
            whole = text in allowed
            assert whole, f"{list(text)} does not end at eos or at the last place"

    def widest(sampler: Callable, model: LanguageModel, **options: Any) -> None:
        every = texts(model.size, options["max_new_tokens"], options["eos"])
        score, _ = right(options)
        best = _ranked(
            [
                (text, score(text, log_prob(model, options["prompt"], text)))
                for text in every
            ]
        )
        found = search(sampler, model, num_beams=len(best), **options)
        compare(found, best)

    def narrow(sampler: Callable, model: LanguageModel, **options: Any) -> None:
        score, still = right(options)
        steps = {key: x for key, x in options.items() if key != "length_penalty"}
        any_rank = ends == "any rank"
        prompt = steps.pop("prompt")
        expected = beam_texts(
            model, prompt, score, any_rank=any_rank, best_score=still, **steps
        )
        compare(search(sampler, model, **options), expected)

    def one_beam(sampler: Callable, model: LanguageModel, **options: Any) -> None:
        prompt, most, eos = (options[k] for k in ("prompt", "max_new_tokens", "eos"))
        expected = greedy_text(model, prompt, most, eos)
        compare(search(sampler, model, **options), [(tuple(expected), 0.0)])

    few = {
        "model": models(),
        "prompt": PROMPTS,
        "length_penalty": PENALTIES,
        "early_stopping": st.sampled_from(list(early_stopping)),
        "max_new_tokens": st.integers(1, 3),
        "eos": EOS,
    }
    # No more beams than words: else some would have to follow texts that are none.
    long = few | {"max_new_tokens": st.integers(1, 6), "num_beams": st.integers(1, 3)}
    lengths = {"model": LanguageModel(3, 1), "prompt": [2, 0, 1, 1], "eos": 2}
    usual = {"early_stopping": early_stopping[0], "max_new_tokens": 3}
    known = tuple(lengths | usual | {"length_penalty": x} for x in (1.0, 0.0, -1.0))
    says = "with a beam for every text, the best text of all is found, and the order"
    yield Law(says, cases(**few), widest, known)
    says = "a score is the text's log-probability over its length to the penalty"
    yield Law(says, cases(**long), scores)
    yield Law("texts differ, are whole, and the best come first", cases(**long), shape)
    says = "a few beams find what the definition finds, step by step"
    yield Law(says, cases(**long), narrow)
    if ends == "within beams":
        alone = long | {"num_beams": st.just(1), "length_penalty": st.just(0.0)}
        yield Law("one beam is greedy search", cases(**alone), one_beam)


@check
def check_group_beam_search() -> Iterator[Law]:
    """Check ``group_beam_search(next_logits, prompt, num_beams=, ...)``.

    Parameters
    ----------
    sampler : function
        The other keywords are num_beam_groups, diversity_penalty, length_penalty and
        max_new_tokens; no token ends a text. Returns (new tokens, score) pairs of all
        groups, best first; the scores include the penalties paid.
    """

    def groups(
        model: LanguageModel,
        prompt: list[int],
        num_beams: int,
        num_beam_groups: int,
        diversity_penalty: float,
        length_penalty: float,
        max_new_tokens: int,
    ) -> list[Scored]:
        size = num_beams // num_beam_groups
        running: list[list[Scored]] = [[((), 0.0)] for _ in range(num_beam_groups)]
        for _ in range(max_new_tokens):
            taken: Counter = Counter()
            for g, beams in enumerate(running):
                grown = [
                    ((*text, v), total + float(gain) - diversity_penalty * taken[v])
                    for text, total in beams
                    for v, gain in enumerate(log_probs(model, [*prompt, *text]))
                ]
                running[g] = _ranked(grown)[:size]
                taken.update(text[-1] for text, _ in running[g])
        power = max_new_tokens**length_penalty
        return _ranked([(text, s / power) for beams in running for text, s in beams])

    def holds(sampler: Callable, model: LanguageModel, **options: Any) -> None:
        found = sampler(model, options["prompt"], **_without_prompt(options))
        expected = groups(model, **options)
        few = [(list(map(int, text)), round(float(s), 3)) for text, s in found]
        right = [(list(text), round(s, 3)) for text, s in expected]
        same = [t for t, _ in few] == [t for t, _ in right] and all(
            abs(a - b) < 2e-3 for (_, a), (_, b) in zip(few, right)
        )
        assert same, f"found {few}\nexpected {right}"

    split = st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 2), (2, 1)])
    drawn = cases(
        model=models(4),
        prompt=PROMPTS,
        split=split,
        diversity_penalty=st.sampled_from([0.3, 1.1, 50.0]),
        length_penalty=st.sampled_from([0.0, 1.0]),
        max_new_tokens=st.integers(1, 4),
    ).map(lambda case: _split(case))
    says = "each token costs a group the penalty for every earlier beam that took it"
    yield Law(says, drawn, holds)


def _without_prompt(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "prompt"}


def _split(case: dict[str, Any]) -> dict[str, Any]:
    beams, groups = case.pop("split")
    return case | {"num_beams": beams, "num_beam_groups": groups}
