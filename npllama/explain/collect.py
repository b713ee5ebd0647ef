"""One generation from inside, put together by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from npllama.explain.choices import Choice
from npllama.explain.layers import Said, Seen, lens, packed
from npllama.explain.search import Level, levels_of, way
from npllama.explain.watch import Decision, Drafted, Event, Listed, Pass, Watch
from npllama.generation.generate import NO_HELPERS, Generation, generate, most_texts
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Helpers, Prompt, encode_prompt, is_prompt
from npllama.ops import observing
from npllama.weights import Model


class Run(NamedTuple):
    """A pass, and what it was for."""

    kind: str  # "text", "draft" or "second"
    of: Pass


class Round(NamedTuple):
    """Guesses of a draft, and what became of them."""

    guesses: list[int]
    first: int  # number of the new token that the first guess stands for
    tokens: int  # how many the round brought


class Step(NamedTuple):
    """How one new token came."""

    token: int
    choice: Choice
    runs: list[int]  # numbers of the passes since the token before
    said: list[Said]  # by the embedding, then by each layer


class Explanation(NamedTuple):
    """All that a page shows of one text."""

    model: Model
    config: GenerationConfig
    tokens: list[int]  # prompt and text
    begin: int  # tokens of the prompt
    found: Generation
    steps: list[Step]
    runs: list[Run]
    seen: Seen | None
    levels: list[Level]  # of a search
    way: list[int]  # the row that held the text, before each token
    rounds: list[Round]  # of a draft


def check_shown(config: GenerationConfig) -> None:
    """Raise ValueError for what has no page."""
    absent = {
        "penalty_alpha": config.penalty_alpha,
        "lookahead_window": config.lookahead_window,
        "stochastic_beams": config.stochastic_beams,
    }
    for name, value in absent.items():
        if value:
            raise ValueError(f"{name}: explain shows sampling, beams and drafts only")
    if config.num_beams == 1 and most_texts(config) > 1:
        raise ValueError("explain shows one text: no num_return_sequences, no best_of")


def explained(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig,
    rng: np.random.Generator,
    helpers: Helpers = NO_HELPERS,
    first: Sequence[int] = (),
) -> Explanation:
    """Write a text with `generate`, and keep what happened on the way.

    With `first`, the new text begins with these tokens.  As many numbers are drawn as
    without, so the rest is what the same seed gives after them.

    Raises
    ------
    ValueError, TypeError
        As `generate`; also for a strategy or an option that has no page.
    """
    check_shown(config)
    if not is_prompt(prompt):
        raise TypeError("a page is of one prompt: text, or a list of token ids")
    plain = replace(config, logprobs=None, prompt_logprobs=False, echo=False)
    plain = replace(plain, num_return_sequences=1)
    if first:
        plain = replace(plain, prefix_allowed_tokens_fn=beginning(model, prompt, first))
    # Without an amateur, contrastive_alpha is no step.
    names = [n for n in plain.order if n != "contrastive_alpha" or helpers.amateur]
    watch = Watch(len(names))
    with observing(watch):
        found = generate(model, prompt, plain, rng, helpers)
    watch.settle()
    assert isinstance(found, Generation)  # one prompt, one text
    return put_together(model, config, found, watch.events)


def beginning(
    model: Model, prompt: Prompt, first: Sequence[int]
) -> Callable[[int, Sequence[int]], np.ndarray]:
    """A `prefix_allowed_tokens_fn` that lets a text begin with these tokens only."""
    begin, every = len(encode_prompt(model, prompt)), np.arange(model.config.vocab_size)

    def allowed(row: int, tokens: Sequence[int]) -> np.ndarray:
        new = len(tokens) - begin
        return every[[first[new]]] if new < len(first) else every

    return allowed


def put_together(
    model: Model, config: GenerationConfig, found: Generation, events: Sequence[Event]
) -> Explanation:
    """Sort the events of a generation by its tokens."""
    begin = length_of_prompt(events)
    tokens = [*found.prompt_tokens[:begin], *found.tokens]
    runs, levels, rows = runs_of(events, begin), list[Level](), list[int]()
    if any(isinstance(event, Listed) for event in events):
        levels = levels_of(events)
        rows = way(levels, found.tokens)
        choices = [level.choices[row] for level, row in zip(levels, rows)]
        needed = [
            [i for i, run in enumerate(runs) if run.of in level.passes]
            for level in levels
        ]
    else:
        choices = [d.rows[0] for d in events if isinstance(d, Decision) and d.rows]
        needed = runs_by_token(events)
    places = by_position([run.of for run in runs if run.kind == "text"], begin, rows)
    rounds, steps = rounds_of(events), []
    for i, token in enumerate(found.tokens):
        said = lens(model, places[begin + i - 1].stream, token)
        choice = choices[i]._replace(token=token)
        steps.append(Step(token, choice, needed[i], said))
    seen = packed([places[p].attention for p in range(len(tokens) - 1)])
    return Explanation(
        model, config, tokens, begin, found, steps, runs, seen, levels, rows, rounds
    )


def length_of_prompt(events: Sequence[Event]) -> int:
    """Tokens in the leading passes, up to the first event of another kind.

    Each begins where the last one ended.  A draft begins again, at the start or with the prompt's last token.
    """
    end = 0
    for event in events:
        if not isinstance(event, Pass) or event.start != end:
            break
        end += event.new
    return end


def runs_of(events: Sequence[Event], begin: int) -> list[Run]:
    """What each pass was for.

    With a draft, the model itself runs the prompt, and then once for every `Drafted`;
    all other passes are the draft's.
    """
    drafts = any(isinstance(event, Drafted) for event in events)
    runs, read, checking = list[Run](), 0, False
    for event in events:
        if isinstance(event, Drafted):
            checking = True
        elif isinstance(event, Pass) and event.beside:
            runs.append(Run("second", event))
        elif isinstance(event, Pass):
            own = not drafts or read < begin or checking
            runs.append(Run("text" if own else "draft", event))
            read, checking = read + event.new, False
    return runs


def runs_by_token(events: Sequence[Event]) -> list[list[int]]:
    """For each new token, the numbers of the passes that it took.

    All tokens of a round took the same ones.
    """
    found, latest, number = list[list[int]](), list[int](), 0
    since: list[int] = []
    for event in events:
        if isinstance(event, Pass):
            since.append(number)
            number += 1
        elif isinstance(event, Decision) and event.rows:
            latest, since = since or latest, []
            found.append(latest)
    return found


class Place(NamedTuple):
    """What the model computed at one position of the text."""

    stream: np.ndarray  # (L + 1, E)
    attention: np.ndarray | None  # (L, H, S), S positions up to this one


def by_position(
    passes: Sequence[Pass], begin: int, rows: Sequence[int]
) -> dict[int, Place]:
    """What was computed at each position; of guesses, what came last.

    Parameters
    ----------
    passes : list of Pass
        Those of the text.
    begin : int
        Tokens of the prompt.
    rows : list of int
        In a search, the row that held the text before each new token; else empty.
    """
    places = {}
    for one in passes:
        new = one.start - begin + 1  # of a beam: the token that follows the pass
        if rows and new >= len(rows):
            continue  # the search went on after the text had ended
        row = rows[new] if new > 0 and rows else 0
        known = all(layer is not None for layer in one.attention)
        for t in range(one.new):
            S = one.start + t + 1
            seen = [layer[row, :, t, :S] for layer in one.attention if known]
            stream = np.stack([x[row, t] for x in one.stream])
            places[S - 1] = Place(stream, np.stack(seen) if known else None)
    return places


def rounds_of(events: Sequence[Event]) -> list[Round]:
    """The rounds of a draft: what was guessed, and how many tokens each brought."""
    rounds, count = list[Round](), 0
    for event in events:
        if isinstance(event, Drafted):
            rounds.append(Round(event.tokens, count, 0))
        elif isinstance(event, Decision) and event.rows and rounds:
            count += 1
            rounds[-1] = rounds[-1]._replace(tokens=rounds[-1].tokens + 1)
    return rounds
