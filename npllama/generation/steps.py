"""The steps of the pipeline: how an option acts on a distribution.

Samplers know nothing of prompts, rows or configs.  A step knows them, and
calls a sampler.  It is a function of the option's value, the `Setting`, the
history of every row, and the logits; it returns new logits.  Most samplers
need little; `on_logits` and its neighbours call them.  A step that remembers
something keeps it in the memory of its setting, under the option's name.
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
    """What the steps of one pipeline know."""

    config: Any  # the GenerationConfig
    # Row r of a batch continues prompt r % len(prompts): one prompt for every row, or
    # one for all the beams of a search.
    prompts: Sequence[Sequence[int]]
    eos: Sequence[int]
    ends: Sequence[int]  # tokens that prompt and text of each may have together
    model: Model  # guidance runs it a second time
    amateur: Model | None  # for contrastive decoding
    rngs: Sequence[np.random.Generator]  # one per row
    first: int  # the number of the first row, for `prefix_allowed_tokens_fn`
    formats: Sequence[Process]  # what holds the new text to a format
    memory: dict[str, Any]  # what steps remember, by option

    def prompt(self, row: int) -> Sequence[int]:
        """The prompt that a row continues."""
        return self.prompts[row % len(self.prompts)]

    def prompts_of(self, history: History) -> list[Sequence[int]]:
        """The prompt of every row."""
        return [self.prompt(row) for row in range(len(history))]

    def new_text(self, history: History) -> list[Sequence[int]]:
        """What every row holds after its prompt."""
        return [tokens[len(self.prompt(row)) :] for row, tokens in enumerate(history)]


# From (value, setting, history, logits) to logits.
Apply = Callable[[Any, Setting, History, np.ndarray], np.ndarray]


def lengths(history: History) -> np.ndarray:
    """Tokens of every row, (B,) int64."""
    return np.array([len(tokens) for tokens in history])


#  ---- samplers that need little ----------------------------------------------


def on_logits(sampler, value, s, history, logits):
    """Call a sampler of logits and the option's value."""
    return sampler(logits, value)


def on_text(sampler, value, s, history, logits):
    """Call a sampler that also looks at prompt and text."""
    return sampler(logits, history, value)


def switch(sampler, value, s, history, logits):
    """Call a sampler that is on or off."""
    return sampler(logits)


def leaving(sampler, value, s, history, logits):
    """Call a sampler with the least number of tokens to keep.

    Beams need several, to go on even if the best tokens all end the text.
    """
    least = max(len(s.eos), 1) + 1 if s.config.num_beams > 1 else 1
    return sampler(logits, value, min_tokens_to_keep=least)


def counting(sampler, value, s, history, logits):
    """Call a penalty that looks at the new text only, as OpenAI and vLLM do."""
    last_n = s.config.repeat_last_n
    return sampler(logits, s.new_text(history), value, last_n=last_n)


#  ---- guidance and penalties -------------------------------------------------


def guidance(scale, s, history, logits):
    """Classifier-free guidance: away from what another prompt would give."""
    if scale == 1:
        return logits
    negative = s.config.negative_prompt_ids or ()
    if "guidance_scale" not in s.memory:
        s.memory["guidance_scale"] = Follower(s.model, max(s.ends) + len(negative))
    others = [
        # Without a negative prompt, the last token of the prompt is the whole prompt.
        [*(negative or prompt[-1:]), *new]
        for prompt, new in zip(s.prompts_of(history), s.new_text(history))
    ]
    other = s.memory["guidance_scale"].logits(others)
    return sampling.classifier_free_guidance(logits, other, scale)


def likeness_to_prompt(penalty, s, history, logits):
    """Draw the text towards the words of its prompt."""
    prompts = s.prompts_of(history)
    return sampling.encoder_repetition_penalty(logits, prompts, penalty)


def repetition(penalty, s, history, logits):
    """Look at prompt and text, as far back as `repeat_last_n` says."""
    last_n = s.config.repeat_last_n
    return sampling.repetition_penalty(logits, history, penalty, last_n=last_n)


def dry(multiplier, s, history, logits):
    """Penalise a token that would repeat an earlier passage."""
    return sampling.dry(
        logits,
        history,
        multiplier,
        base=s.config.dry_base,
        allowed_length=s.config.dry_allowed_length,
        last_n=s.config.dry_penalty_last_n,
        sequence_breakers=s.config.dry_sequence_breakers,
    )


def ngrams_of_prompt(size, s, history, logits):
    """Ban n-grams of the prompt; the sampler takes one prompt at a time."""
    ban = sampling.encoder_no_repeat_ngram
    rows = zip(logits, history, s.prompts_of(history))
    return np.stack([ban(row, text, prompt, size) for row, text, prompt in rows])


#  ---- constraints ------------------------------------------------------------


def bad_words(words, s, history, logits):
    """Ban sequences; an end token is never banned alone."""
    return sampling.bad_words(logits, history, words, list(s.eos))


def least_length(least, s, history, logits):
    """Prevent an early end; `min_new_tokens` has precedence over `min_length`."""
    if not s.eos or s.config.min_new_tokens is not None:
        return logits
    return sampling.min_length(logits, lengths(history), least, s.eos)


def least_new_tokens(least, s, history, logits):
    """Prevent an end before `min_new_tokens`."""
    if not s.eos:
        return logits
    new = lengths(s.new_text(history))
    return sampling.min_new_tokens(logits, new, 0, least, s.eos)


def row_function(allow, s, history, logits):
    """Ask the caller's function; all beams of a search have their prompt's number."""
    return sampling.prefix_allowed_tokens(
        logits,
        history,
        lambda row, tokens: allow(s.first + row, tokens),
        num_beams=min(s.config.num_beams, len(logits)),
    )


def forced_first(token, s, history, logits):
    """Force the token that comes second in the whole text."""
    return sampling.forced_bos(logits, lengths(history), token)


def forced_last(eos, s, history, logits):
    """Force the token in the last place that a text may take."""
    if not eos:
        return logits
    last = max(s.ends)
    ends = np.array([s.ends[row % len(s.ends)] for row in range(len(history))])
    # Lengths as they would be if every row ended at `last`.
    return sampling.forced_eos(logits, lengths(history) - ends + last, last, eos)


def longing_for_the_end(decay, s, history, logits):
    """Make the end more probable with every token."""
    if not s.eos:
        return logits
    new, press = lengths(s.new_text(history)), sampling.exponential_decay_length_penalty
    return press(logits, new, *decay, s.eos)


def begin_suppress(tokens, s, history, logits):
    """Ban first new tokens; a forced first token does not count as one."""
    starts = lengths(s.prompts_of(history))
    starts = starts + (s.config.forced_bos_token_id is not None) * (starts == 1)
    return sampling.begin_suppress(logits, lengths(history), tokens, starts)


def formats(kind, s, history, logits):
    """Hold the text to a format, which was made once for the config."""
    for process in s.formats:
        logits = process(history, logits)
    return logits


def amateur(alpha, s, history, logits):
    """Let a second model object to some of the tokens that the bans have left."""
    if "contrastive_alpha" not in s.memory:
        s.memory["contrastive_alpha"] = contrastive_decoding(
            s.amateur, max(s.ends), alpha, s.config.contrastive_beta
        )
    return s.memory["contrastive_alpha"](history, logits)


#  ---- the shape of the distribution ------------------------------------------


def temperature(t, s, history, logits):
    """Divide by one temperature, or by one that follows the entropy."""
    if s.config.dynatemp_range:
        spread, exponent = s.config.dynatemp_range, s.config.dynatemp_exponent
        return sampling.dynamic_temperature(logits, t, spread, exponent)
    return logits if t == 1 else sampling.temperature(logits, t)


def xtc(probability, s, history, logits):
    """Remove good tokens by chance; each row draws a number of its own."""
    u = [s.rngs[row % len(s.rngs)].random() for row in range(len(logits))]
    threshold = s.config.xtc_threshold
    return sampling.xtc(logits, u, probability=probability, threshold=threshold)


class Steered(NamedTuple):
    """What mirostat remembers of a row: its state, and what it drew from."""

    mu: float
    kept: np.ndarray | None = None  # (V,), the logits at the last call
    length: int = 0  # tokens of the row at the last call


def mirostat(version, s, history, logits):
    """Steer the surprise; a row's state follows from the token that came last."""
    cut = sampling.mirostat_1 if version == 1 else sampling.mirostat_2
    tau, eta = s.config.mirostat_tau, s.config.mirostat_eta
    start = Steered(sampling.mirostat_start(tau))
    rows = s.memory.get("mirostat", [start] * len(logits))
    mus = [updated(row, tokens, tau, eta) for row, tokens in zip(rows, history)]
    kept = [cut(row, mu) for row, mu in zip(logits, mus)]
    held = [len(tokens) for tokens in history]
    s.memory["mirostat"] = [Steered(*row) for row in zip(mus, kept, held)]
    return np.stack(kept)


def updated(row: Steered, tokens: Sequence[int], tau: float, eta: float) -> float:
    """The state after the last token of a row.

    A token counts only if it directly follows what the row held at the last call,
    and could have been drawn then: a row that has ended gets no more tokens, and the
    last of a draft's guesses may have been replaced.
    """
    new = len(tokens) - row.length
    if row.kept is None or new != 1 or not row.kept[tokens[-1]] > -np.inf:
        return row.mu
    return sampling.mirostat_update(row.kept, tokens[-1], row.mu, tau=tau, eta=eta)


#  ---- the watermark ----------------------------------------------------------


def watermark(mark, s, history, logits):
    """Mark the choice: a green list needs the text alone, SynthID has a state."""
    if not isinstance(mark, sampling.SynthID):
        return sampling.watermark(logits, history, mark)
    state = s.memory.get("watermarking_config")
    if state is None:
        state = sampling.synthid_start(mark, (len(logits),))
    else:
        last = np.array([tokens[-1] for tokens in history])
        state = sampling.synthid_next(state, last)
    logits, s.memory["watermarking_config"] = sampling.synthid(logits, state, mark)
    return logits
