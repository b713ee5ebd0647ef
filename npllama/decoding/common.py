"""What every strategy shares: one record that goes in, one that comes out.

A strategy decides which tokens to try; it does not care where the probabilities
come from.  It takes a `Job`: the prompt, the limits of the text, and the way its
tokens are chosen.  Three fields connect strategies to the rest of the book:

- ``process(history, logits) -> logits`` applies penalties, temperature, truncation
  and the like to the raw logits.  `history` holds, for each row, every token so far,
  the prompt included.
- ``stop(tokens) -> reason or None`` looks at the new tokens of one text, and returns
  the reason if the text ends here.
- ``rng`` is the source of chance.

A strategy that grows one text yields a `Step` whenever it has decided tokens; one
that compares several texts returns each as a `Hypothesis` at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple, TypeVar

import numpy as np

from npllama.cache import KVCache, new_cache
from npllama.config import Config
from npllama.model import forward
from npllama.weights import Model

Process = Callable[[Sequence[Sequence[int]], np.ndarray], np.ndarray]
Stop = Callable[[Sequence[int]], "str | None"]

# Long prompts run in pieces, so that activations stay small: a piece of 512 keeps
# BLAS as busy as the whole prompt would.
PREFILL_CHUNK = 512


def unprocessed(history: Sequence[Sequence[int]], logits: np.ndarray) -> np.ndarray:
    """The `process` that changes nothing."""
    return logits


def never(tokens: Sequence[int]) -> str | None:
    """The `stop` that ends no text."""
    return None


def context_length(config: Config) -> int:
    """The number of positions that the model was made for.

    With dynamic RoPE, and only there, ``max_position_embeddings`` is the
    trained length, and the context is `factor` times as long.
    """
    dynamic = config.rope.rope_type == "dynamic"
    return int(config.max_position_embeddings * (config.rope.factor if dynamic else 1))


class Job(NamedTuple):
    """One text to write: its prompt, its limits, and how its tokens are chosen."""

    model: Model
    prompt: Sequence[int]  # token ids, at least one
    max_new_tokens: int
    stop: Stop = never
    process: Process = unprocessed
    rng: np.random.Generator | None = None  # None: choose greedily
    # May hold a beginning of the prompt already; see `prefill`.
    cache: KVCache | None = None

    @property
    def capacity(self) -> int:
        """Positions that prompt and new tokens may take together.

        Raises
        ------
        ValueError
            If the prompt alone fills the model's context.
        """
        context, length = context_length(self.model.config), len(self.prompt)
        if length >= context:
            raise ValueError(
                f"the prompt has {length} tokens; this model's context is {context}, "
                "and at least one must be left to generate"
            )
        return min(length + self.max_new_tokens, context)

    @property
    def room(self) -> int:
        """New tokens that the text may have: `max_new_tokens`, or what fits."""
        return self.capacity - len(self.prompt)

    def ends(self, tokens: Sequence[int]) -> str | None:
        """Why a text ends here, if it does: the job's own rule, or "length"."""
        return self.stop(tokens) or ("length" if len(tokens) >= self.room else None)

    def shaped(self, new: Sequence[int], logits: np.ndarray) -> np.ndarray:
        """The logits after some new tokens, processed: (V,) to (V,) float."""
        return self.process([[*self.prompt, *new]], logits[None])[0]


class Step(NamedTuple):
    """Tokens that a strategy has decided for one text."""

    tokens: list[int]  # several if some were guessed
    reason: str | None = None  # why the text ends with the last of them, if it does
    row: int = 0  # which text, where several are written side by side
    drafted: int = 0  # tokens that a draft guessed
    accepted: int = 0  # how many of them were kept
    logits: np.ndarray | None = None  # (V,), the model's, if a single token was decided
    processed: np.ndarray | None = None  # (V,), those the token was chosen from


class Hypothesis(NamedTuple):
    """One finished continuation."""

    tokens: list[int]  # new tokens, with the one that ended the text
    score: float | None  # what the strategy ranks texts by, if it does
    reason: str  # "eos", "length", "context", "stop" ...


Scored = TypeVar("Scored")  # anything that has a score


def ranked(texts: Iterable[Scored]) -> list[Scored]:
    """Sort by score, best first; equals keep their order."""
    return sorted(texts, key=attrgetter("score"), reverse=True)


def prefill(
    model: Model,
    prompts: Sequence[Sequence[int]],
    capacity: int,
    cache: KVCache | None = None,
) -> tuple[KVCache, np.ndarray]:
    """Run prompts of any lengths through the model.

    Writes into the cache, if one is given.

    Parameters
    ----------
    model : Model
    prompts : B sequences of token ids, none of them empty
    capacity : int
        N, the positions that each row of a new cache can hold.
    cache : KVCache
        May hold a beginning of each prompt already (a chat's earlier turns, a shared
        prefix); only the rest is computed.  By default a new one is made.

    Returns
    -------
    cache : KVCache
    logits : (B, V) float
        After the last token of each prompt.

    Raises
    ------
    ValueError
        If a prompt is empty, or the cache holds all of it.
    """
    B, V = len(prompts), model.config.vocab_size
    dtype = model.embed.dtype.name
    if cache is None and prompts:
        cache = new_cache(model.config, B, capacity, dtype)
    if cache is None or len(cache.length) != B:
        raise ValueError(f"prompts: found {B}, one for each row of the cache is needed")
    rest = [list(prompt[n:]) for prompt, n in zip(prompts, cache.length)]
    if not all(rest):
        raise ValueError("prompts: one is empty, or ends within what the cache holds")
    length = np.array([len(row) for row in rest])  # (B,)
    T = int(length.max())
    tokens = np.zeros((B, T), dtype=np.int64)  # (B, T)
    for b, row in enumerate(rest):
        tokens[b, : len(row)] = row
    logits = np.empty((B, V), dtype=dtype)  # (B, V)
    for t in range(0, T, PREFILL_CHUNK):
        chunk = tokens[:, t : t + PREFILL_CHUNK]
        count = np.clip(length - t, 0, chunk.shape[1])
        some = forward(model, chunk, cache, count, last=True)[:, 0]
        # A row's logits come from the last chunk that holds a token of it.
        here = count > 0
        logits[here] = some[here]
    return cache, logits


def extend(
    model: Model, tokens: np.ndarray, cache: KVCache, going: np.ndarray | None = None
) -> np.ndarray:
    """Decode: one more token for every row that is still going.

    Writes into the cache.

    Parameters
    ----------
    tokens : (B,) int64
    going : (B,) bool
        False where a row has ended: its cache does not change, and its logits have
        no meaning.

    Returns
    -------
    (B, V) float
    """
    count = None if going is None else going.astype(np.int64)
    return forward(model, tokens[:, None], cache, count, last=True)[:, 0]


def prefill_but_last(job: Job) -> tuple[KVCache, Stop]:
    """Run all tokens of a prompt except the last, and complete the stopping rule.

    This is for strategies that run guesses in the same pass as the text's last
    token.  Between two of their steps the cache holds everything but that
    token.

    Writes into the cache, if the job has one.

    Returns
    -------
    cache : KVCache
        Holds one position fewer than the prompt has tokens.
    ends : function
        See `ending`.
    """
    cache, _ = prefill(job.model, [job.prompt], job.capacity, job.cache)
    cache.length[0] = len(job.prompt) - 1
    return cache, ending(job, cache)


def longest(model: Model, cache: KVCache) -> int:
    """Tokens that a text can have: limited by the cache and by the model's context."""
    return min(cache.k.shape[3], context_length(model.config))


def ending(job: Job, cache: KVCache) -> Stop:
    """The job's own rule, then "length" at its limit, "context" if it is cut short."""
    room = min(job.capacity, cache.k.shape[3]) - len(job.prompt)

    def ends(tokens: Sequence[int]) -> str | None:
        reason = job.stop(tokens)
        if reason is None and len(tokens) >= room:
            return "length" if len(tokens) >= job.max_new_tokens else "context"
        return reason

    return ends


def top(scores: np.ndarray, keep: int) -> np.ndarray:
    """Indices of the largest scores, largest first; of equals the lower index.

    Parameters
    ----------
    scores : (M,) float

    Returns
    -------
    (C,) int64
        C is `keep`, or M if that is less.
    """
    keep = min(keep, len(scores))
    least = np.partition(scores, -keep)[-keep]
    able = np.flatnonzero(scores >= least)
    return able[np.argsort(-scores[able], kind="stable")][:keep]
