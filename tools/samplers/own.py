"""npllama's own samplers and searches, by every convention that they know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from npllama import sampling as s
from npllama.decoding import rejection
from npllama.decoding.beam import BeamRules, beam_search
from npllama.decoding.common import Job
from npllama.decoding.contrastive_decoding import contrast as contrast_models
from npllama.decoding.contrastive_search import most_contrastive
from npllama.decoding.dola import DIVERGENCES
from npllama.decoding.dola import contrast as contrast_layers
from npllama.decoding.group_beam import group_beam_search
from npllama.decoding.prompt_lookup import continuation
from npllama.decoding.sample import sample
from npllama.decoding.speculative import assisted, speculate
from npllama.decoding.stopping import Trimmer, at_strings, at_tokens
from npllama.sampling.mirostat import mirostat_start
from samplers.scripted import instead_of_the_model, scripted


def factory() -> dict[str, Any]:
    """What npllama offers."""
    return truncations() | penalties() | constraints() | chances() | searches()


def least(function: Callable, **conventions: Any) -> Callable:
    """A truncation with its fewest tokens to keep as a third argument."""

    def sampler(logits: np.ndarray, option: float, fewest: int = 1) -> np.ndarray:
        return function(logits, option, min_tokens_to_keep=fewest, **conventions)

    return sampler


# ---- logits to logits -------------------------------------------------------


def truncations() -> dict[str, Any]:
    """Every truncation, in each of its conventions."""
    both = {"takes_least": True, "batched": True}
    many = {"batched": True}
    top_p = [
        (least(s.top_p, **c), both | c)
        for ties in ("highest", "lowest")
        for crossing in ("exclusive", "inclusive")
        for c in [{"ties": ties, "crossing": crossing}]
    ]
    typical = [
        (least(s.typical_p, **c), both | c)
        for c in ({"convention": "transformers"}, {"convention": "llama.cpp"})
    ]
    top_h = [
        (lambda row, a, c=c: s.top_h(row, a, **c), many | c | {"ties": "lowest"})
        for c in ({"entropy": "original"}, {"entropy": "renormalised"})
    ]
    tail_free = [
        (lambda row, z, c=c: s.tail_free(row, z, **c), many | c | {"ties": "lowest"})
        for c in ({"convention": "llama.cpp"}, {"convention": "webui"})
    ]
    return {
        "top_k": [
            (least(s.top_k), both),
            (least(s.top_k, ties="lowest"), both | {"ties": "lowest"}),
        ],
        "top_p": top_p,
        "min_p": (least(s.min_p), both),
        "epsilon": (least(s.epsilon_cutoff), both),
        "eta": (least(s.eta_cutoff), both),
        "top_a": (s.top_a, many),
        "xtc": (xtc, {"ties": "highest", "throw": "u", "takes_least": True}),
        "typical": typical,
        "top_h": top_h,
        "top_n_sigma": (s.top_n_sigma, many),
        "tail_free": tail_free,
    }


def xtc(
    logits: np.ndarray, probability: float, threshold: float, u: float, fewest: int = 1
) -> np.ndarray:
    """Exclude top choices, with the options as the kit orders them."""
    return s.xtc(
        logits,
        np.full(logits.shape[:-1], u),
        probability=probability,
        threshold=threshold,
        min_tokens_to_keep=fewest,
    )


def penalties() -> dict[str, Any]:
    """What looks at the text so far."""
    many = {"batched": True}

    def dry(row, history, multiplier, base, allowed, breakers=()):
        return s.dry(
            row,
            history,
            multiplier,
            base=base,
            allowed_length=allowed,
            sequence_breakers=breakers,
        )

    def windowed(function: Callable) -> list:
        def last(row: np.ndarray, history: Any, penalty: float) -> np.ndarray:
            return function(row, history, penalty, last_n=64)

        return [(function, many), (last, {"last_n": 64})]

    return {
        "repetition_penalty": windowed(s.repetition_penalty),
        "presence_penalty": windowed(s.presence_penalty),
        "frequency_penalty": windowed(s.frequency_penalty),
        "encoder_repetition_penalty": (s.encoder_repetition_penalty, many),
        "no_repeat_ngram": (s.no_repeat_ngram, many),
        "encoder_no_repeat_ngram": s.encoder_no_repeat_ngram,
        "dry": (dry, many | {"takes_breakers": True}),
        "exponential_decay": s.exponential_decay_length_penalty,
    }


def constraints() -> dict[str, Any]:
    """Biases, what is forbidden or forced, guidance."""
    many = {"batched": True}
    return {
        "logit_bias": s.logit_bias,
        "sequence_bias": (s.sequence_bias, many),
        "bad_words": (s.bad_words, many),
        "suppress": s.suppress,
        "allowed": s.allowed_tokens,
        "min_length": s.min_length,
        "min_new_tokens": s.min_new_tokens,
        "begin_suppress": s.begin_suppress,
        "forced_eos": s.forced_eos,
        "forced_bos": s.forced_bos,
        "guidance": (s.classifier_free_guidance, many),
        "contrastive_decoding": contrastive_decoding_step,
        "dola": dola_step,
    }


def contrastive_decoding_step(
    expert: np.ndarray, amateur: np.ndarray, alpha: float, beta: float
) -> np.ndarray:
    """The contrast of two models, for one row."""
    return contrast_models(expert[None], amateur[None], alpha, beta)[0]


def dola_step(final: np.ndarray, premature: np.ndarray) -> np.ndarray:
    """The contrast of the last layer with one other."""
    return contrast_layers(final, premature[None], DIVERGENCES["transformers"])


# ---- chance -----------------------------------------------------------------


def chances() -> dict[str, Any]:
    """The draw, temperature, mirostat, and the everyday chain."""
    return {
        "greedy": s.greedy,
        "draw": s.draw,
        "sample": lambda row, seed: s.sample(row, np.random.default_rng(seed)),
        "temperature": (s.temperature, {"batched": True}),
        "dynamic_temperature": s.dynamic_temperature,
        "mirostat_1": lambda *case: mirostat(1, *case),
        "mirostat_2": lambda *case: mirostat(2, *case),
        "chain": chain,
    }


def mirostat(version: Any, rows: np.ndarray, tau: float, eta: float, seed: int):
    """Go through rows as through a text."""
    rng, mu = np.random.default_rng(seed), mirostat_start(tau)
    outs, tokens = [], []
    for row in rows:
        outs.append((s.mirostat_1 if version == 1 else s.mirostat_2)(row, mu))
        step = s.mirostat_step(row, mu, rng.random(), version=version, tau=tau, eta=eta)
        tokens.append(step.token)
        mu = step.mu
    return np.stack(outs), tokens


def chain(logits: np.ndarray, t: float, k: int, p: float, least_p: float):
    """The order of transformers: temperature, then by rank, by mass, by min-p."""
    steps = [lambda row: s.temperature(row, t)]
    if k:
        steps.append(lambda row: s.top_k(row, k))
    steps += [lambda row: s.top_p(row, p), lambda row: s.min_p(row, least_p)]
    return s.apply(logits, steps)


# ---- logits to texts --------------------------------------------------------


def searches() -> dict[str, Any]:
    """Whole texts, and what decides about them."""
    return {
        "greedy_search": greedy_search,
        "beam_search": beams,
        "group_beam_search": group_beams,
        "contrastive_search": contrastive_choice,
        "rejection": verify,
        "speculative": speculative,
        "prompt_lookup": continuation,
        "stop_strings": stop_strings,
        "stop_output": stop_output,
    }


def size_of(model: Callable) -> int:
    """Words of a model that is only a function."""
    return len(model([0]))


def ending(eos: int | None) -> list[int]:
    """The tokens that end a text."""
    return [] if eos is None else [eos]


def greedy_search(model: Callable, prompt: Sequence[int], *, max_new_tokens, eos):
    """The rows of `sample`, of which there is one."""
    with instead_of_the_model():
        writer = scripted(model, size_of(model))
        job = Job(writer, prompt, max_new_tokens, at_tokens(ending(eos)))
        return [step.tokens[0] for step in sample([job])]


def beams(model: Callable, prompt: Sequence[int], *, max_new_tokens, eos, **options):
    """Beam search over the texts of a function."""
    stop, rules = at_tokens(ending(eos)), BeamRules(n_eos=len(ending(eos)), **options)
    job = Job(scripted(model, size_of(model)), prompt, max_new_tokens, stop)
    with instead_of_the_model():
        return [(text.tokens, text.score) for text in beam_search(job, rules)]


def group_beams(model: Callable, prompt: Sequence[int], *, max_new_tokens, **options):
    """Group beam search over the texts of a function."""
    rules = BeamRules(options["num_beams"], options["length_penalty"])
    groups = options["num_beam_groups"], options["diversity_penalty"]
    job = Job(scripted(model, size_of(model)), prompt, max_new_tokens)
    with instead_of_the_model():
        found = group_beam_search(job, rules, *groups)
    return [(text.tokens, text.score) for text in found]


def contrastive_choice(
    probs: np.ndarray, candidates: np.ndarray, seen: np.ndarray, penalty_alpha: float
) -> int:
    """One choice of contrastive search, which works on directions."""
    h, before = (
        states / np.sqrt((states * states).sum(axis=-1, keepdims=True))
        for states in (candidates, seen)
    )
    return most_contrastive(probs, h, before, penalty_alpha)


class Uniforms:
    """A generator of given numbers."""

    def __init__(self, *numbers: float):
        self.numbers = list(numbers)

    def random(self) -> float:
        """The next of them."""
        return self.numbers.pop(0)


def verify(p: np.ndarray, q: np.ndarray, guess: int, u: float, v: float) -> int:
    """The rule, on logits: a token of probability 0 is removed."""
    with np.errstate(divide="ignore"):
        logits = np.log(p)
    rng: Any = Uniforms(u, v)
    return rejection.verified(logits, guess, q, rng)


def speculative(
    target: Callable,
    draft: Callable,
    prompt: Sequence[int],
    *,
    num_guesses: int,
    max_new_tokens: int,
    eos: int | None,
    process: Callable,
    seed: int | None,
) -> list[int]:
    """Speculative decoding with a small model, as npllama's `generate` sets it up."""
    size = size_of(target)
    rng = None if seed is None else np.random.default_rng(seed)

    def both(histories: Sequence[Sequence[int]], logits: np.ndarray) -> np.ndarray:
        return np.stack([process(text, row) for text, row in zip(histories, logits)])

    stop = at_tokens(ending(eos))
    job = Job(scripted(target, size), prompt, max_new_tokens, stop, both, rng)
    with instead_of_the_model():
        small = assisted(job._replace(model=scripted(draft, size)))
        steps = speculate(job, small, num_guesses)
        return [token for step in steps for token in step.tokens]


class Pieces:
    """A tokenizer whose token n is piece n."""

    def __init__(self, pieces: Sequence[str]):
        self.pieces = pieces

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self.pieces[token].encode()


def stop_strings(pieces: Sequence[str], strings: Sequence[str]) -> int:
    """Ask the rule after every token."""
    stop = at_strings(Pieces(pieces), strings)  # type: ignore[arg-type]
    ends = (n for n in range(1, len(pieces) + 1) if stop(list(range(n))))
    return next(ends, len(pieces))


def stop_output(pieces: Sequence[str], strings: Sequence[str]) -> list[str]:
    """Push every piece up to the one that ends the text."""
    trimmer = Trimmer(strings)
    shown = [trimmer.push(piece) for piece in pieces[: stop_strings(pieces, strings)]]
    return [*shown, trimmer.flush()]
