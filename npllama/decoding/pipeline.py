"""From a config to the one function that shapes every distribution.

Each option that is switched on becomes a step, a function from histories and
logits to logits; run one after the other they are the `process` that strategies
call.  The order is that of transformers: guidance, biases, penalties, bans, then
(if tokens are drawn) temperature and truncation, and last the watermark.  llama.cpp
divides by the temperature last; ``sampler_order="llama.cpp"`` does so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npllama import sampling
from npllama.decoding.common import Process
from npllama.decoding.follower import Follower
from npllama.options import GenerationConfig
from npllama.weights import Model

History = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Setting:
    """What the steps need to know besides the config.

    Parameters
    ----------
    prompts : list of token ids
        Row r of a batch continues prompt ``r % len(prompts)``: one for every row,
        or one for all the beams of a search.
    eos : token ids
    ends : list of int
        Tokens that the text of each prompt may have, the prompt included.
    model : Model
        For guidance only, which runs it a second time.
    rngs : generators, one per row
        For steps that are chance themselves (XTC).
    before, formats : further steps
        In front of all others (another model's objection), and among the bans (a
        format that binds the text).
    """

    prompts: Sequence[Sequence[int]]
    eos: Sequence[int] = ()
    ends: Sequence[int] = ()
    model: Model | None = None
    rngs: Sequence[np.random.Generator] = ()
    before: Sequence[Process] = ()
    formats: Sequence[Process] = ()

    def prompt(self, row: int) -> Sequence[int]:
        """The prompt that a row continues."""
        return self.prompts[row % len(self.prompts)]


def pipeline(config: GenerationConfig, setting: Setting) -> Process:
    """All steps that `config` switches on, as one function.

    Parameters
    ----------
    config : GenerationConfig
    setting : Setting

    Returns
    -------
    function of (histories, logits) to logits
    """
    steps = [*setting.before, *guidance(config, setting)]
    steps += penalties(config, setting)
    steps += [*bans(config, setting), *setting.formats]
    if config.do_sample:
        steps += shapes(config, setting)
    steps += last_words(config)

    def process(history: History, logits: np.ndarray) -> np.ndarray:
        for step in steps:
            logits = step(history, logits)
        return logits

    return process


def guidance(config: GenerationConfig, setting: Setting) -> list[Process]:
    """Classifier-free guidance: away from what another prompt would give."""
    scale = config.guidance_scale
    if scale is None or scale == 1 or setting.model is None:
        return []
    negative = config.negative_prompt_ids
    follower = Follower(setting.model, max(setting.ends) + len(negative or ()))

    def guide(history: History, logits: np.ndarray) -> np.ndarray:
        others = []
        for row, tokens in enumerate(history):
            prompt = setting.prompt(row)
            # Without a negative prompt, the last token of the prompt stands alone.
            others.append([*(negative or prompt[-1:]), *tokens[len(prompt) :]])
        other = follower.logits(others)
        return sampling.classifier_free_guidance(logits, other, scale)

    return [guide]


def penalties(c: GenerationConfig, setting: Setting) -> list[Process]:
    """What makes some tokens dearer or cheaper, by what the text holds already."""

    def prompts(history: History) -> list[Sequence[int]]:
        return [setting.prompt(row) for row in range(len(history))]

    def new(history: History) -> list[Sequence[int]]:
        return [tokens[len(p) :] for tokens, p in zip(history, prompts(history))]

    steps: list[Process] = []
    if c.sequence_bias:
        bias = {tuple(ids): b for ids, b in c.sequence_bias.items()}
        steps.append(lambda h, x: sampling.sequence_bias(x, h, bias))
    if c.logit_bias:
        steps.append(lambda h, x: sampling.logit_bias(x, c.logit_bias))
    if c.encoder_repetition_penalty != 1:
        theta = c.encoder_repetition_penalty
        steps.append(
            lambda h, x: sampling.encoder_repetition_penalty(x, prompts(h), theta)
        )
    if c.repetition_penalty != 1:
        steps.append(
            lambda h, x: sampling.repetition_penalty(
                x, h, c.repetition_penalty, last_n=c.repeat_last_n
            )
        )
    # OpenAI and vLLM count these two over the new text only.
    if c.frequency_penalty:
        steps.append(
            lambda h, x: sampling.frequency_penalty(
                x, new(h), c.frequency_penalty, last_n=c.repeat_last_n
            )
        )
    if c.presence_penalty:
        steps.append(
            lambda h, x: sampling.presence_penalty(
                x, new(h), c.presence_penalty, last_n=c.repeat_last_n
            )
        )
    if c.dry_multiplier:
        steps.append(
            lambda h, x: sampling.dry(
                x,
                h,
                c.dry_multiplier,
                base=c.dry_base,
                allowed_length=c.dry_allowed_length,
                last_n=c.dry_penalty_last_n,
                sequence_breakers=c.dry_sequence_breakers,
            )
        )
    if c.no_repeat_ngram_size:
        steps.append(
            lambda h, x: sampling.no_repeat_ngram(x, h, c.no_repeat_ngram_size)
        )
    if c.encoder_no_repeat_ngram_size:
        steps.append(lambda h, x: _encoder_ngrams(x, h, setting, c))
    return steps


def _encoder_ngrams(logits, history, setting, config) -> np.ndarray:
    """The ban looks at one prompt at a time, so rows take turns."""
    size = config.encoder_no_repeat_ngram_size
    rows = [
        sampling.encoder_no_repeat_ngram(logits[row], tokens, setting.prompt(row), size)
        for row, tokens in enumerate(history)
    ]
    return np.stack(rows)


def bans(c: GenerationConfig, setting: Setting) -> list[Process]:
    """What may not come, or must."""
    eos = list(setting.eos)

    def lengths(history: History) -> np.ndarray:
        return np.array([len(tokens) for tokens in history])

    def begins(history: History) -> np.ndarray:
        return np.array([len(setting.prompt(row)) for row in range(len(history))])

    steps: list[Process] = []
    if c.bad_words_ids:
        steps.append(lambda h, x: sampling.bad_words(x, h, c.bad_words_ids, eos))
    if c.min_length and eos:
        steps.append(lambda h, x: sampling.min_length(x, lengths(h), c.min_length, eos))
    if c.min_new_tokens and eos:
        steps.append(
            lambda h, x: sampling.min_new_tokens(
                x, lengths(h), begins(h), c.min_new_tokens, eos
            )
        )
    if c.allowed_token_ids is not None:
        steps.append(lambda h, x: sampling.allowed_tokens(x, c.allowed_token_ids))
    if c.prefix_allowed_tokens_fn is not None:
        beams = c.num_beams if c.num_beams > 1 else 1
        steps.append(
            lambda h, x: sampling.prefix_allowed_tokens(
                x, h, c.prefix_allowed_tokens_fn, num_beams=min(beams, len(x))
            )
        )
    if c.forced_bos_token_id is not None:
        steps.append(
            lambda h, x: sampling.forced_bos(x, lengths(h), c.forced_bos_token_id)
        )
    if c.forced_eos_token_id is not None:
        last = max(setting.ends)

        def missing(history: History) -> np.ndarray:
            """Lengths as they would be if every row ended at `last`."""
            ends = [setting.ends[r % len(setting.ends)] for r in range(len(history))]
            return lengths(history) - np.array(ends) + last

        steps.append(
            lambda h, x: sampling.forced_eos(x, missing(h), last, c.forced_eos_token_id)
        )
    if c.remove_invalid_values:
        steps.append(lambda h, x: sampling.remove_invalid_values(x))
    if c.exponential_decay_length_penalty and eos:
        start, factor = c.exponential_decay_length_penalty
        steps.append(
            lambda h, x: sampling.exponential_decay_length_penalty(
                x, lengths(h) - begins(h), start, factor, eos
            )
        )
    if c.suppress_tokens:
        steps.append(lambda h, x: sampling.suppress(x, c.suppress_tokens))
    if c.begin_suppress_tokens:
        steps.append(
            lambda h, x: sampling.begin_suppress(
                x, lengths(h) - begins(h), c.begin_suppress_tokens, 0
            )
        )
    return steps


def shapes(c: GenerationConfig, setting: Setting) -> list[Process]:
    """Temperature and truncation, in the order that the config asks for."""
    if c.mirostat:
        return [*temperatures(c), Mirostat(c)]
    cuts = truncations(c)
    if c.xtc_probability:
        cuts.append(_xtc(c, setting))
    first = c.sampler_order == "transformers"
    return temperatures(c) + cuts if first else cuts + temperatures(c)


def temperatures(c: GenerationConfig) -> list[Process]:
    """One temperature for all, or one that follows the entropy."""
    if c.dynatemp_range:
        return [
            lambda h, x: sampling.dynamic_temperature(
                x, c.temperature, c.dynatemp_range, c.dynatemp_exponent
            )
        ]
    if c.temperature != 1:
        return [lambda h, x: sampling.temperature(x, c.temperature)]
    return []


def truncations(c: GenerationConfig) -> list[Process]:
    """Everything that cuts unlikely tokens off, one after the other."""
    # Beams must be able to go on when every best token ends the text.
    n_eos = 1 if c.eos_token_id is None else len(c.eos_token_id)
    keep = n_eos + 1 if c.num_beams > 1 else 1
    steps = {
        "top_n_sigma": (
            c.top_n_sigma > 0,
            lambda x: sampling.top_n_sigma(x, c.top_n_sigma),
        ),
        "top_h": (c.top_h is not None, lambda x: sampling.top_h(x, c.top_h)),
        "top_k": (
            c.top_k > 0,
            lambda x: sampling.top_k(x, c.top_k, min_tokens_to_keep=keep),
        ),
        "top_p": (
            c.top_p < 1,
            lambda x: sampling.top_p(x, c.top_p, min_tokens_to_keep=keep),
        ),
        "min_p": (
            c.min_p is not None,
            lambda x: sampling.min_p(x, c.min_p, min_tokens_to_keep=keep),
        ),
        "top_a": (c.top_a > 0, lambda x: sampling.top_a(x, c.top_a)),
        "tfs_z": (c.tfs_z < 1, lambda x: sampling.tail_free(x, c.tfs_z)),
        "typical_p": (
            c.typical_p < 1,
            lambda x: sampling.typical_p(x, c.typical_p, min_tokens_to_keep=keep),
        ),
        "epsilon_cutoff": (
            c.epsilon_cutoff > 0,
            lambda x: sampling.epsilon_cutoff(
                x, c.epsilon_cutoff, min_tokens_to_keep=keep
            ),
        ),
        "eta_cutoff": (
            c.eta_cutoff > 0,
            lambda x: sampling.eta_cutoff(x, c.eta_cutoff, min_tokens_to_keep=keep),
        ),
    }
    order = list(steps)
    if c.sampler_order == "llama.cpp":
        order = ["top_n_sigma", "top_k", "typical_p", "top_p", "min_p"]
        order += [name for name in steps if name not in order]
    return [_of_logits(steps[name][1]) for name in order if steps[name][0]]


def _of_logits(function) -> Process:
    """A step that does not look at the history."""
    return lambda history, logits: function(logits)


def _xtc(c: GenerationConfig, setting: Setting) -> Process:
    def exclude_top_choices(history: History, logits: np.ndarray) -> np.ndarray:
        u = [
            setting.rngs[row % len(setting.rngs)].random() for row in range(len(logits))
        ]
        return sampling.xtc(
            logits, u, probability=c.xtc_probability, threshold=c.xtc_threshold
        )

    return exclude_top_choices


class Mirostat:
    """Mirostat as a step: it learns the surprise of a token from the next history.

    Its state, one number mu per row, is `mu`; everything else is in
    `sampling.mirostat`.
    """

    def __init__(self, config: GenerationConfig):
        self.config = config
        self.mu: list[float] = []
        self.kept: list[np.ndarray] = []

    def __call__(self, history: History, logits: np.ndarray) -> np.ndarray:
        c = self.config
        if not self.mu:
            self.mu = [sampling.mirostat_start(c.mirostat_tau)] * len(logits)
        for row, kept in enumerate(self.kept):
            self.mu[row] = sampling.mirostat_update(
                kept,
                history[row][-1],
                self.mu[row],
                tau=c.mirostat_tau,
                eta=c.mirostat_eta,
            )
        cut = sampling.mirostat_1 if c.mirostat == 1 else sampling.mirostat_2
        self.kept = [cut(row, mu) for row, mu in zip(logits, self.mu)]
        return np.stack(self.kept)


def last_words(c: GenerationConfig) -> list[Process]:
    """The watermark on what is left, and normalisation."""
    steps: list[Process] = []
    if isinstance(c.watermarking_config, sampling.GreenList):
        steps.append(lambda h, x: sampling.watermark(x, h, c.watermarking_config))
    elif isinstance(c.watermarking_config, sampling.SynthID):
        steps.append(Tournament(c.watermarking_config))
    if c.renormalize_logits:
        steps.append(lambda h, x: sampling.renormalize(x))
    return steps


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
