r"""Texts over a cache in fewer bits: written, read, and what they lose.

The loss is measured while a text is read in *pieces* of R tokens, R the residual.  So
all keys before a piece are rounded, the piece sees itself in floats, and that is, token
by token, what KIVI's keys would be if the text were decoded.  (Values are rounded up to
a piece later than in decoding.  With pieces of one token nothing differs, and it takes
longer.)  The first piece sees nothing rounded, and does not count.

On the first 512 tokens of the GPL, in groups of 32 with R = 32, SmolLM2 was this far
from itself over a plain cache (mean KL in nats; part of tokens whose likeliest
successor stayed the same).  Each row says along which axis keys and values share a
scale:

    keys       values     8 bits     4 bits           2 bits
    channel    token      6e-5       0.010    95%     0.33    69%
    token      token      3e-5       0.008    95%     0.63    60%
    channel    channel    1.5e-4     0.041    89%     1.0     54%
    token      channel    1.3e-4     0.039    91%     1.7     44%

Values per channel are worse at any number of bits.  Keys per channel halve the loss at
2 bits, which is what KIVI is about; at 4 and 8 bits they do not: with scales per
token, the last 32 keys before a piece are still floats; per channel they are already
rounded.  On a story by the small
model that ships, they did not even at 2 bits.  ``npllama kv-bits`` prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache, new_cache
from npllama.compression.kv_cache import forward_rounded, new_rounded
from npllama.compression.kv_rounding import Rules
from npllama.compression.quality import Quality, divergence
from npllama.contexts.perplexity import text_of
from npllama.decoding.common import PREFILL_CHUNK, Job, Step, ending
from npllama.decoding.sample import choose
from npllama.generation.generate import Piece, most_texts, naming_options
from npllama.generation.options import GenerationConfig
from npllama.generation.task import (
    Helpers,
    Prompt,
    Shower,
    jobs_of,
    plan_of,
    prepare,
)
from npllama.model import forward
from npllama.sampling import NothingLeft, log_softmax
from npllama.weights import Model


def cache_for(model: Model, capacity: int, rules: Rules) -> KVCache:
    """An empty cache of one row in fewer bits."""
    return new_rounded(model.config, 1, capacity, rules, model.embed.dtype.name)


def bits_per_number(cache: KVCache) -> float:
    """What a cache in fewer bits takes, the residual included."""
    numbers = sum(int(np.prod(store.shape)) for store in (cache.k, cache.v))
    return 8 * (cache.k.nbytes + cache.v.nbytes) / numbers


#  ---- writing ---------------------------------------------------------------------


def sample_rounded(job: Job, cache: KVCache) -> Iterator[Step]:
    """Continue a text one token at a time, as `sample` does.

    Parameters
    ----------
    job : Job
    cache : KVCache
        In fewer bits, of one row; empty.

    Yields
    ------
    Step
        Of one token.
    """
    ends, text = ending(job, cache), list(job.prompt)
    new, reason = list(job.prompt), None
    while reason is None:
        for t in range(0, len(new), PREFILL_CHUNK):
            part = np.array([new[t : t + PREFILL_CHUNK]])  # (1, T)
            logits = forward_rounded(job.model, part, cache, last=True)[0, 0]  # (V,)
        processed = job.process([text], logits[None])[0]  # (V,)
        new = choose(processed[None], [job.rng]).tolist()
        text += new
        reason = ends(text[len(job.prompt) :])
        yield Step(new, reason, logits=logits, processed=processed)


def rounded_pieces(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig,
    rng: np.random.Generator,
    cache: KVCache,
) -> Iterator[Piece]:
    """Continue one prompt as `generate.pieces` does.

    Parameters
    ----------
    model : Model
    prompt : str, or token ids
    config : GenerationConfig
        Of a way that chooses one token after the other from the model's logits.
    rng : np.random.Generator
    cache : KVCache
        In fewer bits, of one row; empty.

    Raises
    ------
    ValueError
        As `generate.pieces`; also for other ways of writing.
    """
    others = config.selected
    if others or most_texts(config) > 1:
        name = others[0] if others else "several texts"
        raise ValueError(
            f"a cache in fewer bits is for one text, token by token; {name} is not"
        )
    if config.logprobs is not None or config.prompt_logprobs:
        raise ValueError("log-probabilities are not streamed; use generate")
    task = prepare(plan_of(model, config, Helpers()), prompt)
    shower, (job,) = Shower(task), jobs_of([task], rng.spawn(1))
    try:
        for step in sample_rounded(job, cache):
            text = shower.push(step.tokens[0], step.reason)
            yield Piece(step.tokens[0], text, step.reason)
    except NothingLeft as error:
        raise naming_options(error, config) from None


#  ---- reading ---------------------------------------------------------------------


def surprise_rounded(
    model: Model, tokens: Sequence[int], rules: Rules, piece: int = 1
) -> np.ndarray:
    """The surprise at every token but the first; see `perplexity`.

    Parameters
    ----------
    model : Model
    tokens : S token ids
    rules : Rules
    piece : int
        Tokens that are read at a time.

    Returns
    -------
    (S - 1,) float64
        In nats.

    Raises
    ------
    ValueError
        If the text or a piece has no token.
    """
    text = text_of(tokens, piece)  # (S,)
    cache = cache_for(model, max(len(text) - 1, 1), rules)
    nats = [np.empty(0, dtype=np.float64)]
    for t in range(0, len(text) - 1, piece):
        part, after = _at(text, t, piece)
        logp = log_softmax(forward_rounded(model, part[None], cache)[0])  # (T, V)
        nats.append(-logp[np.arange(len(after)), after])
    return np.concatenate(nats)


def _at(text: np.ndarray, t: int, piece: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a piece that have one after them, and those."""
    some = text[t : t + piece + 1]
    return some[:-1], some[1:]


class Loss(NamedTuple):
    """What a cache in fewer bits takes, and what it costs."""

    rules: Rules
    bytes: int
    bits: float  # per number, the residual included
    quality: Quality


def losses(
    model: Model, tokens: Sequence[int], several: Sequence[Rules], piece: int
) -> list[Loss]:
    """Read a text over several caches side by side, and over a plain one.

    Parameters
    ----------
    model : Model
    tokens : S token ids
        More than a piece.
    several : sequence of Rules
    piece : int

    Raises
    ------
    ValueError
        If no token is left to count, or a piece has none.
    """
    text, S = text_of(tokens, piece), len(tokens)
    if S < piece + 2:
        raise ValueError(f"the text has {S} tokens; {piece + 2} or more are needed")
    plain = new_cache(model.config, 1, S - 1, model.embed.dtype.name)
    caches = [cache_for(model, S - 1, rules) for rules in several]
    before: list[np.ndarray] = []
    found: list[list[np.ndarray]] = [[] for _ in several]
    for t in range(0, S - 1, piece):
        part, after = _at(text, t, piece)
        exact = forward(model, part[None], plain)[0]  # (T, V)
        nats = -log_softmax(exact)[np.arange(len(after)), after]  # (T,)
        before.append(nats)
        for cache, rows in zip(caches, found):
            logits = forward_rounded(model, part[None], cache)[0]  # (T, V)
            nats = -log_softmax(logits)[np.arange(len(after)), after]  # (T,)
            same = exact.argmax(axis=-1) == logits.argmax(axis=-1)  # (T,)
            rows.append(np.stack([divergence(exact, logits), same, nats]))  # (3, T)
    usual = float(np.exp(np.concatenate(before[1:]).mean()))
    return [
        _loss(rules, cache, rows[1:], usual)
        for rules, cache, rows in zip(several, caches, found)
    ]


def _loss(
    rules: Rules, cache: KVCache, rows: Sequence[np.ndarray], usual: float
) -> Loss:
    apart, same, nats = np.concatenate(rows, axis=1).mean(axis=1)
    quality = Quality(float(apart), float(same), float(np.exp(nats)), usual)
    size = cache.k.nbytes + cache.v.nbytes
    return Loss(rules, size, bits_per_number(cache), quality)
