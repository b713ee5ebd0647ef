"""Writing a text while the cache holds only the keys that were looked at.

`eviction` says which keys stay; here a text goes on over them.  H2O makes room before
every token.  SnapKV reads the prompt, cuts it, and gives back the memory of what it
dropped; then the text's own keys are added to those that are left.

Keys keep the angles of their positions in the text, so it ends with the model's
context.  For a text without end see `streaming`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from npllama.contexts.eviction import (
    Kept,
    make_room,
    new_kept,
    read_on,
    read_prompt,
    snap,
)
from npllama.contexts.perplexity import text_of
from npllama.contexts.streaming import Run, Stream, endless, one_task, shown
from npllama.decoding.common import PREFILL_CHUNK, Job, Stop, context_length
from npllama.generation.generate import Piece
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Prompt
from npllama.weights import Model

H2O, SNAPKV = "h2o", "snapkv"
WATCHED = 32  # queries that SnapKV looks at, as in its code


def h2o_streamed(model: Model, tokens: Sequence[int], kept: Kept) -> np.ndarray:
    """Run more tokens over H2O's cache, half of which is for the latest keys.

    Writes
    ------
    Into `kept`.

    Parameters
    ----------
    model : Model
    tokens : sequence of int
        At least one.
    kept : Kept

    Returns
    -------
    (V,) float
        The logits after the last token.

    Raises
    ------
    ValueError
        If there is no token.
    """
    N, text, t = kept.weight.shape[-1], text_of(tokens), 0
    recent = N // 2
    while t < len(text):
        free = N - int(kept.cache.length[0])
        # As in a stream: what is free at once, then a quarter of the room at a time.
        n = min(len(text) - t, PREFILL_CHUNK, free or max(1, N // 4))
        make_room(kept, n, recent)
        logits = read_on(model, text[t : t + n], kept, last=True)[0]  # (V,)
        t += n
    return logits


class SnapKV:
    """Reads a prompt and cuts its keys; then runs token after token.

    Parameters
    ----------
    model : Model
    capacity : int
        Keys of the prompt that stay.
    new : int
        Tokens that may follow it.
    """

    def __init__(self, model: Model, capacity: int, new: int):
        self.model, self.capacity, self.new = model, capacity, new
        self.kept: Kept | None = None

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        if self.kept is not None:
            some = text_of(tokens)
            return read_on(self.model, some, self.kept, watch=False, last=True)[0]
        window = min(WATCHED, self.capacity // 2)
        whole, logits = read_prompt(self.model, tokens, window, len(tokens))
        snap(whole, self.capacity, window)
        self.kept = moved(self.model, whole, self.new)
        return logits


def moved(model: Model, kept: Kept, new: int) -> Kept:
    """What is kept, in arrays that have room for it and for so many more."""
    held = int(kept.cache.length[0])
    fresh = new_kept(model.config, held + new, kept.weight.dtype.name)
    for ours, theirs in zip(fresh.cache[:2], kept.cache[:2]):
        ours[..., :held, :] = theirs[..., :held, :]
    fresh.weight[..., :held] = kept.weight[..., :held]
    fresh.cache.length[:], fresh.read[:] = held, kept.read
    return fresh


def kept_pieces(
    model: Model,
    prompt: Prompt,
    config: GenerationConfig,
    rng: np.random.Generator,
    policy: str,
    room: int,
) -> Iterator[Piece]:
    """Continue one prompt as `generate.pieces` does, over a cache of chosen keys.

    Parameters
    ----------
    model : Model
    prompt : str, or token ids
    config : GenerationConfig
    rng : np.random.Generator
    policy : "h2o" or "snapkv"
    room : int
        Keys of a head, from 4: with H2O all of them, with SnapKV those of the prompt.

    Raises
    ------
    ValueError
        As `endless_pieces`; or if the prompt fills the context, or the policy or the
        room make no sense.
    """
    if policy not in (H2O, SNAPKV) or room < 4:
        raise ValueError(f"{policy} in room for {room}: h2o or snapkv, from 4 keys on")
    task, job = one_task(model, prompt, config, rng)
    new = job.capacity - len(job.prompt)
    if new < job.max_new_tokens:
        job = job._replace(stop=partial(ends_with_context, job.stop, new))
    run = run_of(job, policy, room, new)
    # A stream's window is only checked; what is kept is the policy's affair.
    stream = Stream(min(room, context_length(model.config)), 0)
    yield from shown(task, endless(job, stream, run=run))


def run_of(job: Job, policy: str, room: int, new: int) -> Run:
    """How tokens go through the cache."""
    model = job.model
    if policy == SNAPKV:
        return SnapKV(model, room, new)
    kept = new_kept(model.config, room, model.embed.dtype.name)
    return partial(h2o_streamed, model, kept=kept)


def ends_with_context(stop: Stop, new: int, tokens: Sequence[int]) -> str | None:
    """Why a text ends: by its own rule, or "context" after so many tokens."""
    return stop(tokens) or ("context" if len(tokens) >= new else None)
