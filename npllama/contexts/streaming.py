r"""StreamingLLM: a text without end in a cache that does not grow.

A model reads at most as many positions as it was trained on, and a cache has an end.
To go on, old positions must be forgotten.  If simply the oldest go, trained models
break down: their heads have learned to look at the very first positions when there is
nothing to find, for a softmax must put its weight somewhere.  These *sinks* say little,
but a softmax divides every weight by a sum that includes theirs.  So the first few
positions stay, and the positions after them are forgotten:

    sinks    forgotten      kept                     new
    0 1 2 3  4 5 6 7 ... e+3  e+4 e+5 ...            n

Positions are those *in the cache*: once e positions are gone, the key that stood at
p stands at p - e.  A key has been turned by its position's angles; since rotations add
up, turning it by those of -e makes it what it would have been, to rounding.  Values
carry no position and are only moved.  Then the cache is an ordinary one, and `forward`
goes on.

Every turn costs a rounding: after 1,024 turns by one position the keys of a float32
cache are off by 3.5e-5, no more than one rotation at position 2,000.  In half
precision it would be 26 percent; forget more at a time there, and keep the keys in
float32.  To forget d positions at once also costs less: each time all keys are moved.

The model does not see what was forgotten; this is no way to a longer context.  What
deeper layers hold still remembers it a little, since they were computed when it was
there, so a stream is not the same as reading the last W tokens alone (but with one
layer it is).

References
----------
Xiao et al. 2023, arXiv:2309.17453, section 3 (positions in the cache, figure 4;
4 sinks).  llama.cpp's context shift is alike: half of the positions after the first
`n_keep` (its option; none by default) are forgotten at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from npllama.cache import KVCache, new_cache
from npllama.config import BY_LENGTH, Config
from npllama.contexts.perplexity import text_of
from npllama.decoding.common import PREFILL_CHUNK, Job, Step, context_length
from npllama.decoding.sample import choose
from npllama.generation.generate import Piece, most_texts, naming_options
from npllama.generation.options import GenerationConfig
from npllama.generation.task import (
    Helpers,
    Prompt,
    Shower,
    Task,
    encode_prompt,
    jobs_of,
    limit_of,
    plan_of,
    reason_to_end,
)
from npllama.model import forward
from npllama.rope import rope_tables, rotate
from npllama.sampling import NothingLeft, log_softmax
from npllama.weights import Model


class Stream(NamedTuple):
    """How a text without end is kept."""

    window: int  # W, positions of the cache
    sinks: int = 4  # first positions that stay
    discard: int = 1  # positions that are forgotten at a time


def check_stream(config: Config, stream: Stream) -> None:
    """Raise ValueError unless a text can be streamed so."""
    window, sinks, discard = stream
    if config.rope.rope_type in BY_LENGTH:
        raise ValueError(
            f"rope_type {config.rope.rope_type} turns by a text's length, so keys "
            "cannot be moved"
        )
    if not 2 <= window <= context_length(config):
        raise ValueError(
            f"a window of {window}: from 2 to the model's context, "
            f"{context_length(config)}"
        )
    if not (0 <= sinks and 1 <= discard < window - sinks):
        raise ValueError(
            f"{sinks} sinks and {discard} positions at a time do not fit into a window "
            f"of {window}: at least one other position must stay"
        )


def forget(cache: KVCache, config: Config, drop: int, sinks: int) -> None:
    """Forget some positions after the sinks, and move up those that follow.

    Parameters
    ----------
    cache : KVCache
        Of one row.
    config : Config
    drop, sinks : int

    Writes
    ------
    Keys, values and the length of the cache.

    References
    ----------
    Xiao et al. 2023, section 3.2; `rope.rotate`.
    """
    old, length = sinks + drop, int(cache.length[0])
    kept = slice(sinks, length - drop)
    cos, sin = turned_back(config, drop, cache.k.dtype.name)  # (1, 1, D // 2)
    for k, v in zip(cache.k, cache.v):  # (1, K, N, D)
        keys = k[:, :, old:length].swapaxes(1, 2)  # (1, T, K, D)
        k[:, :, kept] = rotate(keys, cos, sin).swapaxes(1, 2)
        v[:, :, kept] = v[:, :, old:length].copy()
    cache.length[0] -= drop


def turned_back(config: Config, drop: int | np.ndarray, dtype: str):
    """Tables that turn a vector back by `drop` positions, wherever it stands.

    Parameters
    ----------
    config : Config
    drop : int, or (T,) int64
        One number for each of T vectors, or for all of them.
    dtype : "float32" or "float64"

    Returns
    -------
    cos, sin : (1, T, D // 2) float
        T is 1 for an int.
    """
    cos, sin = rope_tables(config, -np.atleast_1d(drop)[None], dtype)
    # YaRN's tables hold a factor, which the keys have already (llama.cpp's shift
    # multiplies all keys by it once more, every time).
    size = np.sqrt(np.square(cos) + np.square(sin))
    return cos / size, sin / size


def streamed(
    model: Model, tokens: Sequence[int], cache: KVCache, sinks: int, discard: int = 1
) -> np.ndarray:
    """Run more tokens of a stream; room is made before it is needed.

    Writes
    ------
    Into the cache.

    Parameters
    ----------
    model : Model
    tokens : sequence of int
        At least one.
    cache : KVCache
        Of one row; its capacity is the window, W.
    sinks, discard : int
        As in `Stream`.  A prompt that is longer than the window is read in
        pieces of half of it, and as much is forgotten at a time.

    Returns
    -------
    (V,) float
        The logits after the last token.

    Raises
    ------
    ValueError
        If there is no token.
    """
    text, W, t = text_of(tokens), cache.k.shape[3], 0
    # Half of a window at a time: the first of them sees the other half.
    half = max(1, (W - sinks) // 2)
    while t < len(text):
        left, room = len(text) - t, W - int(cache.length[0])
        n = min(left, PREFILL_CHUNK, room or half)
        if not room:
            forget(cache, model.config, max(n, discard), sinks)
        part = text[None, t : t + n]  # (1, n)
        logits = forward(model, part, cache, last=True)[0, 0]  # (V,)
        t += n
    return logits


# Runs more tokens of a text; the logits after the last of them.
Run = Callable[[Sequence[int]], np.ndarray]


def endless(
    job: Job, stream: Stream, read: int = 0, run: Run | None = None
) -> Iterator[Step]:
    """Continue a text past any length, in constant memory and time per token.

    Parameters
    ----------
    job : Job
        Its prompt may be longer than the window.  Its process and its stopping rule see
        the whole text, which is kept as numbers.
    stream : Stream
    read : int
        Tokens of the prompt that have gone through the job's cache, as earlier turns of
        a conversation have; fewer than all.
    run : function
        From tokens to the logits (V,) after them.  By default they go through the job's
        cache, or a new one, as `streamed`; `ring` has another.

    Yields
    ------
    Step
        Of one token.

    Raises
    ------
    ValueError
        As `check_stream`.
    """
    model, history = job.model, list(job.prompt)
    check_stream(model.config, stream)
    if run is None:
        cache = job.cache or new_stream_cache(model, stream)
        run = partial(
            streamed, model, cache=cache, sinks=stream.sinks, discard=stream.discard
        )
    new, made = history[read:], []
    for i in range(1, job.max_new_tokens + 1):
        logits = run(new)  # (V,)
        processed = job.process([history], logits[None])[0]  # (V,)
        new = choose(processed[None], [job.rng]).tolist()
        history.extend(new)
        made.extend(new)  # a part of the history, copied anew, would take ever longer
        reason = job.stop(made)
        if reason is None and i == job.max_new_tokens:
            reason = "length"
        yield Step(new, reason, logits=logits, processed=processed)
        if reason is not None:
            return


def new_stream_cache(model: Model, stream: Stream) -> KVCache:
    """An empty cache of one row, as large as the window."""
    return new_cache(model.config, 1, stream.window, model.embed.dtype.name)


def endless_pieces(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig,
    rng: np.random.Generator,
    stream: Stream,
    cache: KVCache | None = None,
    read: int = 0,
) -> Iterator[Piece]:
    """Continue one prompt as `generate.pieces` does, past any length.

    Parameters
    ----------
    model : Model
    prompt : str, or token ids
    config : GenerationConfig
        Of a way that chooses one token after the other from the model's logits.
    rng : np.random.Generator
    stream : Stream
    cache : KVCache
        Of one row of `window` positions; a new one, if None.
    read : int
        Tokens of the prompt that have gone through the cache.

    Raises
    ------
    ValueError
        As `endless` and `generate.pieces`; also for other ways of writing.
    """
    task, job = one_task(model, prompt, config, rng, cache)
    yield from shown(task, endless(job, stream, read))


def one_task(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig,
    rng: np.random.Generator,
    cache: KVCache | None = None,
) -> tuple[Task, Job]:
    """What is to be written, token by token from one distribution after the other.

    Raises
    ------
    ValueError
        As `endless_pieces`.
    """
    others = config.selected
    if others or most_texts(config) > 1 or config.token_healing:
        name = (others or ["several texts" if most_texts(config) > 1 else "healing"])[0]
        raise ValueError(f"a stream is of one text, token by token; {name} is not")
    if config.logprobs is not None or config.prompt_logprobs:
        raise ValueError("log-probabilities are not streamed; use generate")
    plan = plan_of(model, config, Helpers())
    given = list(encode_prompt(model, prompt, config.allowed_special))
    if not given:
        raise ValueError("the prompt is empty: give text, or at least one token")
    limit = config.max_new_tokens
    limit = limit_of(config, len(given)) if limit is None else limit
    job = Job(model, given, limit, partial(reason_to_end, plan))
    task = Task(plan, given, job, len(given) + limit, None, "")
    return task, jobs_of([task], rng.spawn(1), cache)[0]


def shown(task: Task, steps: Iterable[Step]) -> Iterator[Piece]:
    """The text of a task, as its tokens come."""
    shower = Shower(task)
    try:
        for step in steps:
            text = shower.push(step.tokens[0], step.reason)
            yield Piece(step.tokens[0], text, step.reason)
    except NothingLeft as error:
        raise naming_options(error, task.plan.config) from None


def surprise_of_stream(
    model: Model, tokens: Sequence[int], window: int, sinks: int, discard: int = 1
) -> np.ndarray:
    """The surprise at every token but the first, read as a stream, one by one.

    Returns
    -------
    (S - 1,) float64
        In nats; see `perplexity`.

    Raises
    ------
    ValueError
        As `check_stream`, or if there is no token.
    """
    stream, text = Stream(window, sinks, discard), text_of(tokens)
    check_stream(model.config, stream)
    cache = new_stream_cache(model, stream)
    nats = np.empty(len(text) - 1, dtype=np.float64)  # (S - 1,)
    for i in range(len(nats)):
        logits = streamed(model, tokens[i : i + 1], cache, sinks, discard)  # (V,)
        nats[i] = -log_softmax(logits)[text[i + 1]]
    return nats
