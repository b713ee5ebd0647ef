"""From a config to the one function that shapes every distribution.

Each option that is switched on becomes a step, a function from histories and
logits to logits; run one after the other they are the `process` that strategies
call.  The order is that of transformers: guidance, biases, penalties, bans, then
(if tokens are drawn) temperature and truncation, and last the watermark; an amateur,
whom transformers does not know, objects to what the bans have left.  llama.cpp
divides by the temperature last; ``sampler_order="llama.cpp"`` does so too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from npllama import sampling
from npllama.decoding.common import Process
from npllama.decoding.follower import Follower
from npllama.generation.options import GenerationConfig
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
    first : int
        What `prefix_allowed_tokens_fn` is told to be the number of the first row.
    formats, objections : further steps
        Among the bans (a format that binds the text), and behind them (what another
        model objects to): so it is judged among the tokens that are left.
    """

    prompts: Sequence[Sequence[int]]
    eos: Sequence[int] = ()
    ends: Sequence[int] = ()
    model: Model | None = None
    rngs: Sequence[np.random.Generator] = ()
    first: int = 0
    formats: Sequence[Process] = ()
    objections: Sequence[Process] = ()

    def prompt(self, row: int) -> Sequence[int]:
        """The prompt that a row continues."""
        return self.prompts[row % len(self.prompts)]

    def prompts_of(self, history: History) -> list[Sequence[int]]:
        """The prompt of every row."""
        return [self.prompt(row) for row in range(len(history))]

    def new_text(self, history: History) -> list[Sequence[int]]:
        """What every row holds behind its prompt."""
        return [tokens[len(self.prompt(row)) :] for row, tokens in enumerate(history)]

    def new_lengths(self, history: History) -> np.ndarray:
        """How many tokens every row holds behind its prompt, (B,) int64."""
        return np.array([len(tokens) for tokens in self.new_text(history)])


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
    steps = [*guidance(config, setting), *biases(config)]
    steps += [*penalties(config, setting), *repeats(config, setting)]
    steps += [*bans(config, setting), *choices(config, setting)]
    steps += [*musts(config, setting), *final_bans(config, setting)]
    steps += [*setting.formats, *setting.objections]
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


def biases(c: GenerationConfig) -> list[Process]:
    """What the user likes or dislikes, whatever the text holds."""
    steps: list[Process] = []
    if c.sequence_bias:
        bias = {tuple(ids): b for ids, b in c.sequence_bias.items()}
        steps.append(lambda h, x: sampling.sequence_bias(x, h, bias))
    if c.logit_bias:
        steps.append(lambda h, x: sampling.logit_bias(x, c.logit_bias))
    return steps


def penalties(c: GenerationConfig, setting: Setting) -> list[Process]:
    """What makes a token dearer or cheaper, by how often the text holds it already."""
    last_n = c.repeat_last_n
    steps: list[Process] = []
    if (likeness := c.encoder_repetition_penalty) != 1:
        steps.append(
            lambda h, x: sampling.encoder_repetition_penalty(
                x, setting.prompts_of(h), likeness
            )
        )
    if (factor := c.repetition_penalty) != 1:
        steps.append(
            lambda h, x: sampling.repetition_penalty(x, h, factor, last_n=last_n)
        )
    # OpenAI and vLLM count these two over the new text only.
    per_count = {
        sampling.frequency_penalty: c.frequency_penalty,
        sampling.presence_penalty: c.presence_penalty,
    }
    for penalise, cost in per_count.items():
        if cost:
            steps.append(_on_new_text(setting, penalise, cost, last_n))
    return steps


def _on_new_text(setting: Setting, penalise, cost: float, last_n) -> Process:
    return lambda h, x: penalise(x, setting.new_text(h), cost, last_n=last_n)


def repeats(c: GenerationConfig, setting: Setting) -> list[Process]:
    """What would say a whole passage again."""
    steps: list[Process] = []
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
    if size := c.no_repeat_ngram_size:
        steps.append(lambda h, x: sampling.no_repeat_ngram(x, h, size))
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


def lengths(history: History) -> np.ndarray:
    """Tokens of every row, (B,) int64."""
    return np.array([len(tokens) for tokens in history])


def bans(c: GenerationConfig, setting: Setting) -> list[Process]:
    """What may not come, or not yet."""
    eos = list(setting.eos)
    steps: list[Process] = []
    if c.bad_words_ids:
        steps.append(lambda h, x: sampling.bad_words(x, h, c.bad_words_ids, eos))
    least = c.min_new_tokens
    # As with the longest, the number of new tokens has precedence over that of all.
    if c.min_length and eos and least is None:
        steps.append(lambda h, x: sampling.min_length(x, lengths(h), c.min_length, eos))
    if least and eos:
        steps.append(
            lambda h, x: sampling.min_new_tokens(
                x, setting.new_lengths(h), 0, least, eos
            )
        )
    return steps


def choices(c: GenerationConfig, setting: Setting) -> list[Process]:
    """What alone may come."""
    steps: list[Process] = []
    if c.allowed_token_ids is not None:
        steps.append(lambda h, x: sampling.allowed_tokens(x, c.allowed_token_ids))
    if (allow := c.prefix_allowed_tokens_fn) is not None:
        # All beams of a search continue one prompt, and have its number.
        steps.append(
            lambda h, x: sampling.prefix_allowed_tokens(
                x,
                h,
                lambda row, tokens: allow(setting.first + row, tokens),
                num_beams=min(c.num_beams, len(x)),
            )
        )
    return steps


def musts(c: GenerationConfig, setting: Setting) -> list[Process]:
    """What has to come, at the beginning and at the end."""
    steps: list[Process] = []
    if (bos := c.forced_bos_token_id) is not None:
        steps.append(lambda h, x: sampling.forced_bos(x, lengths(h), bos))
    if eos := c.forced_eos_token_id:
        last = max(setting.ends)

        def missing(history: History) -> np.ndarray:
            """Lengths as they would be if every row ended at `last`."""
            ends = [setting.ends[r % len(setting.ends)] for r in range(len(history))]
            return lengths(history) - np.array(ends) + last

        steps.append(lambda h, x: sampling.forced_eos(x, missing(h), last, eos))
    return steps


def final_bans(c: GenerationConfig, setting: Setting) -> list[Process]:
    """What transformers looks at behind all that has to come."""
    eos, new_lengths = list(setting.eos), setting.new_lengths
    steps: list[Process] = []

    def begins(history: History) -> np.ndarray:
        """Where the text begins: behind the prompt, and behind a forced first token."""
        starts = lengths(setting.prompts_of(history))
        return starts + (c.forced_bos_token_id is not None) * (starts == 1)

    if c.remove_invalid_values:
        steps.append(lambda h, x: sampling.remove_invalid_values(x))
    if c.exponential_decay_length_penalty and eos:
        start, factor = c.exponential_decay_length_penalty
        steps.append(
            lambda h, x: sampling.exponential_decay_length_penalty(
                x, new_lengths(h), start, factor, eos
            )
        )
    if c.suppress_tokens:
        steps.append(lambda h, x: sampling.suppress(x, c.suppress_tokens))
    if first := c.begin_suppress_tokens:
        steps.append(
            lambda h, x: sampling.begin_suppress(x, lengths(h), first, begins(h))
        )
    return steps


def shapes(c: GenerationConfig, setting: Setting) -> list[Process]:
    """Temperature and truncation, in the order that the config asks for."""
    if c.mirostat:
        return [*temperatures(c), Mirostat(c)]
    cuts = truncations(c, len(setting.eos))
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


# Option: its sampler, and the value that cuts nothing off; in transformers' order.
TRUNCATIONS: dict[str, tuple[Callable[..., np.ndarray], float | None]] = {
    "top_n_sigma": (sampling.top_n_sigma, 0),
    "top_h": (sampling.top_h, None),
    "top_k": (sampling.top_k, 0),
    "top_p": (sampling.top_p, 1),
    "min_p": (sampling.min_p, None),
    "top_a": (sampling.top_a, 0),
    "tfs_z": (sampling.tail_free, 1),
    "typical_p": (sampling.typical_p, 1),
    "epsilon_cutoff": (sampling.epsilon_cutoff, 0),
    "eta_cutoff": (sampling.eta_cutoff, 0),
}
# These can be told how many tokens to leave.
LEAVING = {"top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
LLAMACPP_FIRST = ["top_n_sigma", "top_k", "typical_p", "top_p", "min_p"]


def truncations(c: GenerationConfig, n_eos: int) -> list[Process]:
    """Everything that cuts unlikely tokens off, one after the other."""
    # Beams must be able to go on when every best token ends the text.
    keep = {"min_tokens_to_keep": max(n_eos, 1) + 1 if c.num_beams > 1 else 1}
    order = list(TRUNCATIONS)
    if c.sampler_order == "llama.cpp":
        order.sort(key=[*LLAMACPP_FIRST, *order].index)
    return [
        _cutting(
            TRUNCATIONS[name][0], getattr(c, name), keep if name in LEAVING else {}
        )
        for name in order
        if getattr(c, name) != TRUNCATIONS[name][1]
    ]


def _cutting(cut: Callable, value: float, options: dict[str, int]) -> Process:
    """A step that does not look at the history."""
    return lambda history, logits: cut(logits, value, **options)


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
    `sampling.mirostat`.  Only a token that came right behind what the row held at
    the last call, and could have been drawn then, has a surprise: rows that have
    ended get no more tokens, and of a draft's guesses the last may be replaced.
    """

    def __init__(self, config: GenerationConfig):
        self.config = config
        self.mu: list[float] = []
        self.kept: list[np.ndarray] = []
        self.held: list[int] = []

    def __call__(self, history: History, logits: np.ndarray) -> np.ndarray:
        c = self.config
        if not self.mu:
            self.mu = [sampling.mirostat_start(c.mirostat_tau)] * len(logits)
        for row, (kept, held) in enumerate(zip(self.kept, self.held)):
            token, new = history[row][-1], len(history[row]) - held
            if new == 1 and kept[token] > -np.inf:
                self.mu[row] = sampling.mirostat_update(
                    kept, token, self.mu[row], tau=c.mirostat_tau, eta=c.mirostat_eta
                )
        self.held = [len(tokens) for tokens in history]
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
