"""The steps of the pipeline: from an option to a function on distributions.

Samplers know nothing of prompts, rows or configs.  A *step* is a function from
histories and logits to logits that calls one; a `Make` makes it from the value of
its option, the whole config, and the `Setting` that it will work in.  Most samplers
need only their option's value, and `on_logits` or `on_text` makes their step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from npllama import sampling
from npllama.decoding.common import Process
from npllama.decoding.contrastive_decoding import contrastive_decoding
from npllama.decoding.follower import Follower
from npllama.weights import Model

History = Sequence[Sequence[int]]


class Setting(NamedTuple):
    """What the steps need to know besides the config."""

    # Row r of a batch continues prompt r % len(prompts): one prompt for every row, or
    # one for all the beams of a search.
    prompts: Sequence[Sequence[int]]
    eos: Sequence[int] = ()
    ends: Sequence[int] = ()  # tokens that prompt and text of each may have together
    model: Model | None = None  # guidance runs it a second time
    amateur: Model | None = None  # for contrastive decoding
    rngs: Sequence[np.random.Generator] = ()  # one per row, for steps that are chance
    first: int = 0  # the number of the first row, for `prefix_allowed_tokens_fn`
    formats: Sequence[Process] = ()  # what holds the new text to a format

    def prompt(self, row: int) -> Sequence[int]:
        """The prompt that a row continues."""
        return self.prompts[row % len(self.prompts)]

    def prompts_of(self, history: History) -> list[Sequence[int]]:
        """The prompt of every row."""
        return [self.prompt(row) for row in range(len(history))]

    def new_text(self, history: History) -> list[Sequence[int]]:
        """What every row holds after its prompt."""
        return [tokens[len(self.prompt(row)) :] for row, tokens in enumerate(history)]


# (value, config, setting) to a step; None if the option has nothing to do there.
Make = Callable[[Any, Any, Setting], "Process | None"]


def lengths(history: History) -> np.ndarray:
    """Tokens of every row, (B,) int64."""
    return np.array([len(tokens) for tokens in history])


#  ---- samplers that need their option's value alone --------------------------


def on_logits(sampler: Callable) -> Make:
    """``sampler(logits, value)``."""
    return lambda value, c, s: lambda h, x: sampler(x, value)


def on_text(sampler: Callable) -> Make:
    """``sampler(logits, histories, value)``."""
    return lambda value, c, s: lambda h, x: sampler(x, h, value)


def switch(sampler: Callable) -> Make:
    """``sampler(logits)``, for an option that is on or off."""
    return lambda value, c, s: lambda h, x: sampler(x)


def leaving(sampler: Callable) -> Make:
    """``sampler(logits, value, min_tokens_to_keep=)``.

    Beams must be able to go on when every best token ends the text.
    """

    def make(value: Any, c: Any, s: Setting) -> Process:
        least = max(len(s.eos), 1) + 1 if c.num_beams > 1 else 1
        return lambda h, x: sampler(x, value, min_tokens_to_keep=least)

    return make


#  ---- guidance and penalties -------------------------------------------------


def guidance(scale: float, c: Any, s: Setting) -> Process | None:
    """Classifier-free guidance: away from what another prompt would give."""
    if scale == 1 or s.model is None:
        return None
    negative = c.negative_prompt_ids
    follower = Follower(s.model, max(s.ends) + len(negative or ()))

    def guide(history: History, logits: np.ndarray) -> np.ndarray:
        others = []
        for prompt, new in zip(s.prompts_of(history), s.new_text(history)):
            # Without a negative prompt, the last token of the prompt stands alone.
            others.append([*(negative or prompt[-1:]), *new])
        other = follower.logits(others)
        return sampling.classifier_free_guidance(logits, other, scale)

    return guide


def likeness_to_prompt(penalty: float, c: Any, s: Setting) -> Process:
    """Draw the text towards the words of its prompt."""
    penalise = sampling.encoder_repetition_penalty
    return lambda h, x: penalise(x, s.prompts_of(h), penalty)


def repetition(penalty: float, c: Any, s: Setting) -> Process:
    """Prompt and text are looked at, as far back as `repeat_last_n` says."""
    penalise, last_n = sampling.repetition_penalty, c.repeat_last_n
    return lambda h, x: penalise(x, h, penalty, last_n=last_n)


def counting(sampler: Callable) -> Make:
    """A penalty that OpenAI and vLLM count over the new text only."""

    def make(penalty: float, c: Any, s: Setting) -> Process:
        last_n = c.repeat_last_n
        return lambda h, x: sampler(x, s.new_text(h), penalty, last_n=last_n)

    return make


def dry(multiplier: float, c: Any, s: Setting) -> Process:
    """Whole passages that were said already."""
    return lambda h, x: sampling.dry(
        x,
        h,
        multiplier,
        base=c.dry_base,
        allowed_length=c.dry_allowed_length,
        last_n=c.dry_penalty_last_n,
        sequence_breakers=c.dry_sequence_breakers,
    )


def ngrams_of_prompt(size: int, c: Any, s: Setting) -> Process:
    """The ban looks at one prompt at a time, so rows take turns."""
    ban = sampling.encoder_no_repeat_ngram

    def process(history: History, logits: np.ndarray) -> np.ndarray:
        rows = zip(logits, history, s.prompts_of(history))
        return np.stack([ban(row, text, prompt, size) for row, text, prompt in rows])

    return process


#  ---- constraints ------------------------------------------------------------


def bad_words(words: Sequence, c: Any, s: Setting) -> Process:
    """An end token is never banned alone."""
    return lambda h, x: sampling.bad_words(x, h, words, list(s.eos))


def least_length(least: int, c: Any, s: Setting) -> Process | None:
    """The number of new tokens has precedence, as with the longest length."""
    if not s.eos or c.min_new_tokens is not None:
        return None
    return lambda h, x: sampling.min_length(x, lengths(h), least, s.eos)


def least_new_tokens(least: int, c: Any, s: Setting) -> Process | None:
    """No end before so many new tokens."""
    if not s.eos:
        return None
    shortest = sampling.min_new_tokens
    return lambda h, x: shortest(x, lengths(s.new_text(h)), 0, least, s.eos)


def row_function(allow: Callable, c: Any, s: Setting) -> Process:
    """All beams of a search continue one prompt, and have its number."""
    return lambda h, x: sampling.prefix_allowed_tokens(
        x,
        h,
        lambda row, tokens: allow(s.first + row, tokens),
        num_beams=min(c.num_beams, len(x)),
    )


def forced_first(token: int, c: Any, s: Setting) -> Process:
    """The token that comes second in the whole text."""
    return lambda h, x: sampling.forced_bos(x, lengths(h), token)


def forced_last(eos: Sequence[int], c: Any, s: Setting) -> Process | None:
    """The token in the last place that a text may take."""
    if not eos:
        return None
    last = max(s.ends)

    def forced(history: History, logits: np.ndarray) -> np.ndarray:
        ends = np.array([s.ends[r % len(s.ends)] for r in range(len(history))])
        # Lengths as they would be if every row ended at `last`.
        return sampling.forced_eos(logits, lengths(history) - ends + last, last, eos)

    return forced


def longing_for_the_end(decay: tuple[int, float], c: Any, s: Setting) -> Process | None:
    """The end becomes more probable with every token."""
    if not s.eos:
        return None
    (start, factor), press = decay, sampling.exponential_decay_length_penalty
    return lambda h, x: press(x, lengths(s.new_text(h)), start, factor, s.eos)


def begin_suppress(tokens: Sequence[int], c: Any, s: Setting) -> Process:
    """Not as the first new token; a forced first token is not counted."""

    def process(history: History, logits: np.ndarray) -> np.ndarray:
        starts = lengths(s.prompts_of(history))
        starts = starts + (c.forced_bos_token_id is not None) * (starts == 1)
        return sampling.begin_suppress(logits, lengths(history), tokens, starts)

    return process


def formats(kind: Any, c: Any, s: Setting) -> Process:
    """The format itself is made once for the config, and comes with the setting."""

    def process(history: History, logits: np.ndarray) -> np.ndarray:
        for step in s.formats:
            logits = step(history, logits)
        return logits

    return process


def amateur(alpha: float, c: Any, s: Setting) -> Process | None:
    """A second model objects to some of the tokens that the bans have left."""
    if s.amateur is None:
        return None
    return contrastive_decoding(s.amateur, max(s.ends), alpha, c.contrastive_beta)


#  ---- the shape of the distribution ------------------------------------------


def temperature(t: float, c: Any, s: Setting) -> Process | None:
    """One temperature for all, or one that follows the entropy."""
    if c.dynatemp_range:
        spread, exponent = c.dynatemp_range, c.dynatemp_exponent
        return lambda h, x: sampling.dynamic_temperature(x, t, spread, exponent)
    return None if t == 1 else lambda h, x: sampling.temperature(x, t)


def xtc(probability: float, c: Any, s: Setting) -> Process:
    """Each row throws its own dice."""

    def process(history: History, logits: np.ndarray) -> np.ndarray:
        u = [s.rngs[row % len(s.rngs)].random() for row in range(len(logits))]
        return sampling.xtc(
            logits, u, probability=probability, threshold=c.xtc_threshold
        )

    return process


class Mirostat:
    """Mirostat as a step: it learns the surprise of a token from the next history.

    Its state, one number mu per row, is `mu`; everything else is in
    `sampling.mirostat`.  A token has a surprise only if it directly follows what the
    row held at the last call, and could have been drawn then: rows that have ended
    get no more tokens, and the last of a draft's guesses may be replaced.
    """

    def __init__(self, version: int, config: Any, setting: Setting):
        self.cut = sampling.mirostat_1 if version == 1 else sampling.mirostat_2
        self.tau, self.eta = config.mirostat_tau, config.mirostat_eta
        self.mu: list[float] = []
        self.kept: list[np.ndarray] = []
        self.held: list[int] = []

    def __call__(self, history: History, logits: np.ndarray) -> np.ndarray:
        if not self.mu:
            self.mu = [sampling.mirostat_start(self.tau)] * len(logits)
        for row, (kept, held) in enumerate(zip(self.kept, self.held)):
            token, new = history[row][-1], len(history[row]) - held
            if new == 1 and kept[token] > -np.inf:
                self.mu[row] = sampling.mirostat_update(
                    kept, token, self.mu[row], tau=self.tau, eta=self.eta
                )
        self.held = [len(tokens) for tokens in history]
        self.kept = [self.cut(row, mu) for row, mu in zip(logits, self.mu)]
        return np.stack(self.kept)


#  ---- the watermark ----------------------------------------------------------


def watermark(mark: Any, c: Any, s: Setting) -> Process:
    """A green list needs the text alone, SynthID has a state."""
    if isinstance(mark, sampling.SynthID):
        return Tournament(mark)
    return lambda h, x: sampling.watermark(x, h, mark)


class Tournament:
    """SynthID as a step: its state goes on by the token that each history ends in."""

    def __init__(self, config: sampling.SynthID):
        self.config = config
        self.state: sampling.SynthIDState | None = None

    def __call__(self, history: History, logits: np.ndarray) -> np.ndarray:
        if self.state is None:
            self.state = sampling.synthid_start(self.config, (len(logits),))
        else:
            last = np.array([tokens[-1] for tokens in history])
            self.state = sampling.synthid_next(self.state, last)
        logits, self.state = sampling.synthid(logits, self.state, self.config)
        return logits
