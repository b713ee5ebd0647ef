"""Pictures of sampling and decoding, on one real distribution and one real search."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from npllama.book.svg import Figure, box, disc, drawing, line, text
from npllama.cache import new_cache
from npllama.decoding.beam import (
    Beam,
    BeamRules,
    advance,
    part_ended,
    start_beams,
    successors,
)
from npllama.decoding.common import Job, Step, never
from npllama.decoding.follower import Follower
from npllama.decoding.speculative import Draft, guesses, speculate
from npllama.model import forward
from npllama.sampling import (
    log_softmax,
    min_p,
    softmax,
    temperature,
    top_k,
    top_p,
    typical_p,
)
from npllama.weights import Model

PROMPT = "She looked in the"
SHOWN = 18


def next_logits(model: Model, prompt: str) -> np.ndarray:
    """The logits after a text, (V,)."""
    tokens = model.tokenizer.encode(prompt)
    cache = new_cache(model.config, 1, len(tokens))
    return forward(model, np.array([tokens]), cache, last=True)[0, 0]


def word(model: Model, token: int) -> str:
    """A token as it looks in a text; a space is shown."""
    return model.tokenizer.piece(int(token)).replace("▁", "␣")


#  ---- sampling ---------------------------------------------------------------


def bars(
    model: Model, p: np.ndarray, order: np.ndarray, left: float, base: float
) -> list[str]:
    """The probabilities of some tokens as bars, (V,) in a given order."""
    step = 34
    parts = [line(left, base, left + len(order) * step, base, "soft")]
    for i, token in enumerate(order):
        x, height = left + i * step, 160 * p[token] / p[order[0]]
        tip = f"{word(model, token)}: {p[token]:.3f}"
        parts.append(box(x + 4, base - height, step - 8, height, "link", tip))
        shown = f"{p[token]:.2f}"[1:]
        parts.append(text(x + step / 2, base - height - 5, shown, "middle"))
        turned = f"rotate(50 {x + 10} {base + 16})"
        parts.append(text(x + 10, base + 16, word(model, token), transform=turned))
    return parts


def cuts(model: Model) -> Figure:
    """What top-k, top-p, min-p and typical leave of one distribution."""
    logits = next_logits(model, PROMPT)
    p = softmax(logits)
    order = np.argsort(-p, kind="stable")[:SHOWN]
    rules = [
        ("top_k 5", top_k(logits, 5)),
        ("top_p 0.8", top_p(logits, 0.8)),
        ("min_p 0.1", min_p(logits, 0.1)),
        ("typical_p 0.8", typical_p(logits, 0.8)),
    ]
    left, step, base = 90, 34, 190
    parts = bars(model, p, order, left, base)
    for row, (name, kept) in enumerate(rules):
        y = base + 90 + row * 24
        parts.append(text(0, y, name))
        for i, token in enumerate(order):
            x = left + i * step + step / 2
            if kept[token] > -np.inf:
                parts.append(
                    disc(x, y - 4, 6, tip=f"{name} keeps {word(model, token)}")
                )
            else:
                parts.append(line(x - 3, y - 4, x + 3, y - 4, "soft"))
        many = int((kept > -np.inf).sum())
        parts.append(text(left + SHOWN * step + 6, y, f"{many} of {len(p)}"))
    return Figure(
        drawing(left + SHOWN * step + 90, base + 180, parts, "What four rules keep"),
        f"The {SHOWN} likeliest tokens after “{PROMPT}” in the model that ships, and "
        "below each whether a rule keeps it. top_k counts; top_p fills a mass, and the "
        "token that crosses it is kept; min_p compares with the first; typical_p keeps "
        "what is about as surprising as the average, so it can drop the likeliest.",
    )


def heats(model: Model) -> Figure:
    """One distribution at four temperatures."""
    logits = next_logits(model, PROMPT)
    order = np.argsort(-logits, kind="stable")[:SHOWN]
    parts, most = [], softmax(temperature(logits, 0.5)).max()
    for row, t in enumerate((0.5, 1.0, 1.5, 3.0)):
        p = softmax(temperature(logits, t))
        base, left = 110 + row * 110, 130
        parts.append(text(0, base - 40, f"temperature {t}"))
        entropy = -(p * np.log(np.maximum(p, 1e-30))).sum()
        parts.append(text(0, base - 22, f"like {math.exp(entropy):,.1f} tokens"))
        parts.append(line(left, base, left + SHOWN * 32, base, "soft"))
        for i, token in enumerate(order):
            x, height = left + i * 32, 95 * p[token] / most
            tip = f"{word(model, token)}: {p[token]:.3f}"
            parts.append(box(x + 3, base - height, 26, height, "link", tip))
    return Figure(
        drawing(720, 450, parts, "One distribution at four temperatures"),
        f"The logits after “{PROMPT}”, divided by four temperatures. Below 1 the "
        "likeliest tokens take all, above 1 the tail fills. “like n tokens” is exp of "
        "the entropy: n equally likely tokens have as much chance in them.",
    )


#  ---- a search ---------------------------------------------------------------


# Where each beam is drawn, by its tokens.
Places = dict[tuple[int, ...], tuple[float, float]]


def tree(model: Model) -> Figure:
    """Three beams over four steps: which candidates go on."""
    prompt = model.tokenizer.encode("The cat")
    rules = BeamRules(num_beams=3)
    beams, cache, logits = start_beams(Job(model, prompt, 4))
    spots: Places = {(): (20.0, 130.0)}
    parts = [text(4, 118, "The cat"), disc(20, 130, 5)]
    for step in range(4):
        candidates = successors(beams, log_softmax(logits), rules.keep)
        _, beams = part_ended(candidates, never, rules)
        ordered = sorted(candidates, key=lambda beam: -beam.score)
        places = {
            tuple(beam.tokens): (20 + (step + 1) * 165.0, 24 + i * 44.0)
            for i, beam in enumerate(ordered)
        }
        going = {tuple(beam.tokens) for beam in beams}
        for beam in ordered:
            parts += branch(model, beam, spots, places, going)
        spots = places
        cache, logits = advance(model, cache, beams)
    return Figure(
        drawing(790, 265, parts, "The tree of a search with three beams"),
        "Three beams after “The cat”. Every step ranks the extensions of all beams "
        "together (the sum of log-probabilities stands beside each); the best three, "
        "filled, go on, and the others are dropped. A beam may have two children and "
        "another none.",
    )


def branch(
    model: Model, beam: Beam, before: Places, now: Places, going: set[tuple[int, ...]]
) -> list[str]:
    """One candidate: a line from its parent, a mark, its last token and its score."""
    key = tuple(beam.tokens)
    (x0, y0), (x, y) = before[key[:-1]], now[key]
    tip = f"{model.tokenizer.decode(beam.tokens)}: {beam.score:.2f}"
    name = text(x - 4, y - 8, f"{word(model, beam.tokens[-1])} {beam.score:.1f}")
    if key in going:
        edge = line(x0 + 5, y0, x - 5, y, "link")
        return [edge, disc(x, y, 5, "link", tip), name]
    edge = line(x0 + 5, y0, x - 5, y, "soft", stroke_dasharray="3 3")
    return [edge, disc(x, y, 5, "none", tip, stroke="var(--soft)"), name]


#  ---- guesses ----------------------------------------------------------------


def rounds(model: Model) -> Figure:
    """Guesses of a blurred model, and which the target keeps."""
    prompt = model.tokenizer.encode(PROMPT)
    follower = Follower(model, len(prompt) + 20)
    chance = np.random.default_rng(7)
    hot = Job(model, prompt, 14, never, blurred, chance)
    drafts: list[Draft] = []

    def propose(written, most, cache) -> Draft:
        drafts.append(guesses(hot, follower.logits, written, most))
        return drafts[-1]

    target = Job(model, prompt, 14, rng=np.random.default_rng(4))
    steps = list(speculate(target, propose, 4))
    drafts += [Draft([])] * (len(steps) - len(drafts))
    parts, text_so_far = [], list(prompt)
    for number, (step, draft) in enumerate(zip(steps, drafts)):
        y = 10 + number * 52
        parts.append(text(0, y + 18, f"round {number + 1}"))
        odds = odds_of(model, text_so_far, draft)
        parts += one_round(model, step, draft, odds, y)
        text_so_far += step.tokens
    return Figure(
        drawing(700, 14 + 52 * len(steps), parts, "Guesses of a draft, round by round"),
        "A draft (the same model at temperature 1.3) guesses up to four tokens, and one "
        "pass of the target checks them all. Filled: kept. Dashed: thrown away, from the "
        "first that the draw went against. Framed: the target's own token, which every "
        "round adds. Below a guess x stands the probability that it is kept, min(1, p(x) / "
        "q(x)), where p is the target's and q the draft's: the text then has exactly the "
        "target's distribution. Guesses after a lost one are not asked.",
    )


def odds_of(model: Model, written: list[int], draft: Draft) -> list[float]:
    """The probability that each guess is kept, if those before it are."""
    if not draft.tokens or draft.probs is None:
        return [1.0] * len(draft.tokens)
    tokens = np.array([[*written, *draft.tokens]])
    logits = forward(model, tokens, new_cache(model.config, 1, tokens.size))[0]
    p = softmax(logits[len(written) - 1 : -1].astype(np.float64))
    return [
        min(1.0, float(p[i, token] / draft.probs[i][token]))
        for i, token in enumerate(draft.tokens)
    ]


def blurred(history: Sequence[Sequence[int]], logits: np.ndarray) -> np.ndarray:
    """Logits at a high temperature, as those of a weaker model."""
    return temperature(logits, 1.3)


def one_round(
    model: Model, step: Step, draft: Draft, odds: list[float], y: float
) -> list[str]:
    """The guesses of one round and the odds that each had, then the target's own token."""
    dash = {"fill": "none", "stroke_dasharray": "3 3"}
    shown: list[tuple[int, dict[str, str], str]] = []
    for i, (token, odd) in enumerate(zip(draft.tokens, odds)):
        kept = i < step.accepted
        words = f"keep {odd:.2f}" if i <= step.accepted else "not asked"
        shown.append((token, {"fill": "mark"} if kept else dash, words))
    for token in step.tokens[step.accepted :]:
        shown.append((token, {"fill": "none", "stroke_width": "3"}, "its own"))
    parts, x = [], 80.0
    for token, look, words in shown:
        name = word(model, token)
        wide = max(66.0, 14 + 8.2 * len(name))
        parts.append(box(x, y, wide, 26, tip=words, stroke="var(--link)", **look))
        parts.append(text(x + wide / 2, y + 17, name, "middle"))
        parts.append(text(x + wide / 2, y + 39, words, "middle"))
        x += wide + 6
    return parts
