"""All options of generation, one row for each.

A row holds everything about an option: its type and default, its range, a
sentence of help, and its step in the pipeline, if it has one.  The order of
the rows is the order of the pipeline, which is that of transformers: guidance,
biases, penalties, constraints, then (if tokens are drawn) temperature and
truncation, and last the watermark.  The function that makes a row is named
after its chapter.  The command line's help
and the docstring of `GenerationConfig` are made from these rows.

Names and defaults are those of transformers' ``GenerationConfig``, so a checkpoint's
``generation_config.json`` needs no translation.  Other options have their names from
llama.cpp or vLLM.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any, NamedTuple

from npllama import sampling
from npllama.generation import limits as must_be
from npllama.generation import steps
from npllama.generation.steps import Apply, leaving, on_logits, on_text, switch

Ids = tuple[int, ...]
AT_DEFAULT = object()
SHAPE = "Shape of the distribution (only when tokens are drawn)"
LLAMACPP_FIRST = ["top_n_sigma", "top_k", "typical_p", "top_p", "min_p"]


class Option(NamedTuple):
    """A row of the table."""

    chapter: str
    range: must_be.Range
    says: str  # for the help
    step: Apply | None  # what it does to a distribution, if anything
    off: Any  # the value at which it does nothing
    selects: bool  # a strategy other than greedy search and sampling


def row(
    chapter: str,
    default: Any,
    range: must_be.Range,
    says: str,
    step: Apply | None = None,
    off: Any = AT_DEFAULT,
    selects: bool = False,
) -> Any:
    """A field of `GenerationConfig`; it is off at its default unless `off` is given."""
    off = default if off is AT_DEFAULT else off
    option = Option(chapter, range, says, step, off, selects)
    return field(default=default, metadata={"option": option})


prompting = partial(row, "Prompt")
length = partial(row, "Length and stopping")
strategy = partial(row, "Strategy")
another = partial(strategy, selects=True)  # they exclude each other
guidance = partial(row, "Guidance and bias")
penalty = partial(row, "Penalties")
constraint = partial(row, "Constraints")
shape = partial(row, SHAPE)
mark = partial(row, "Watermark")
output = partial(row, "Output")


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate.

    Lists may be given for tuples, and NumPy's arrays and numbers for Python's.  Every
    value is checked when the record is made: ValueError if one is out of range, or if
    two of them contradict each other.
    """

    # fmt: off
    allowed_special: tuple[str, ...] | str = prompting((), must_be.SPECIAL,
        "special tokens that a prompt of text may hold by their names")

    max_new_tokens: int | None = length(None, must_be.SIZE,
        "new tokens at most; 20 if no length is given")
    max_length: int | None = length(None, must_be.SIZE,
        "the same with the prompt; max_new_tokens has precedence")
    max_time: float | None = length(None, must_be.POSITIVE,
        "seconds after which no further token is begun")
    stop_strings: tuple[str, ...] = length((), must_be.STRINGS,
        "end as soon as the new text holds one of these")
    include_stop_str_in_output: bool = length(True, must_be.FLAG,
        "whether the text keeps the stop string")
    eos_token_id: Ids | None = length(None, must_be.IDS,
        "tokens that end the text, in place of the model's")

    do_sample: bool = strategy(False, must_be.FLAG,
        "draw tokens instead of taking the likeliest")
    num_return_sequences: int = strategy(1, must_be.MANY,
        "texts to return for each prompt")
    best_of: int | None = strategy(None, must_be.MANY,
        "texts to draw, of which the likeliest are returned")
    num_beams: int = another(1, must_be.MANY,
        "beam search: how many texts to follow at once")
    length_penalty: float = strategy(1.0, must_be.EXPONENT,
        "beams: above 0 favours long texts, below 0 short ones")
    early_stopping: bool | str = strategy(False, must_be.among(True, False, "never"),
        'beams: stop once num_beams texts are finished; "never": only when no text can win')
    num_beam_groups: int = strategy(1, must_be.MANY,
        "diverse beams: groups that keep out of each other's way")
    diversity_penalty: float = strategy(0.0, must_be.NOT_NEGATIVE,
        "the penalty for a token that another group chose")
    force_words_ids: tuple | None = strategy(None, must_be.DEMANDS,
        "beams: phrases that the text must hold, or lists of phrases, one of each")
    force_words_rule: str = strategy("kept", must_be.among("kept", "transformers 4"),
        "whether texts that hold every phrase are kept, or lost as in transformers 4")
    stochastic_beams: bool = strategy(False, must_be.FLAG,
        "draw num_beams different texts without replacement")
    penalty_alpha: float | None = another(None, must_be.PROBABILITY,
        "above 0, with top_k: contrastive search, the larger the less repetition")
    dola_layers: str | Ids | None = another(None, must_be.LAYERS,
        "DoLa: contrast the last layer with these early ones")
    prompt_lookup_num_tokens: int | None = another(None, must_be.MANY,
        "how many tokens to guess from earlier in the text")
    max_matching_ngram_size: int = strategy(2, must_be.SIZE,
        "last tokens that prompt lookup looks for")
    num_assistant_tokens: int = strategy(20, must_be.MANY,
        "tokens that a draft guesses per round")
    assistant_early_exit: int | None = another(None, must_be.SIZE,
        "draft with this many of the model's own first layers")
    assistant_window: int | None = another(None, must_be.SIZE,
        "draft with the model itself, looking back only this many positions")
    lookahead_window: int | None = another(None, must_be.MANY,
        "lookahead decoding: how far ahead to guess")
    lookahead_ngram_size: int = strategy(3, must_be.PAIR_OR_MORE,
        "tokens of an n-gram that lookahead decoding collects")

    guidance_scale: float | None = guidance(None, must_be.MODERATE,
        "classifier-free guidance: above 1 follows the prompt more", steps.guidance)
    negative_prompt_ids: Ids | None = guidance(None, must_be.IDS,
        "the prompt that guidance leads away from; by default none")
    sequence_bias: Mapping[Ids, float] | None = guidance(None, must_be.SEQUENCE_BIAS,
        "numbers added to the logits of token sequences",
        partial(on_text, sampling.sequence_bias))
    logit_bias: Mapping[int, float] | None = guidance(None, must_be.LOGIT_BIAS,
        "numbers added to the logits of tokens; -inf forbids",
        partial(on_logits, sampling.logit_bias))

    encoder_repetition_penalty: float = penalty(1.0, must_be.FACTOR,
        "above 1 favours the prompt's words", steps.likeness_to_prompt)
    repetition_penalty: float = penalty(1.0, must_be.FACTOR,
        "above 1 makes tokens of prompt and text less likely", steps.repetition)
    frequency_penalty: float = penalty(0.0, must_be.MODERATE,
        "subtracted for each time that the new text holds a token",
        partial(steps.counting, sampling.frequency_penalty))
    presence_penalty: float = penalty(0.0, must_be.MODERATE,
        "subtracted once if the new text holds a token",
        partial(steps.counting, sampling.presence_penalty))
    repeat_last_n: int | None = penalty(None, must_be.SIZE,
        "how many tokens these penalties look back; by default all")
    dry_multiplier: float = penalty(0.0, must_be.NOT_NEGATIVE,
        "DRY: how strongly to penalise a token that prolongs a repeated passage",
        steps.dry)
    dry_base: float = penalty(1.75, must_be.real("1 or more", 1),
        "DRY: growth of the penalty per token of the passage")
    dry_allowed_length: int = penalty(2, must_be.SIZE, "DRY: shorter passages are free")
    dry_penalty_last_n: int | None = penalty(None, must_be.COUNT,
        "DRY: how many tokens to look back; by default all")
    dry_sequence_breakers: tuple[Ids, ...] = penalty((), must_be.PHRASES,
        "DRY: a passage does not reach across these")
    no_repeat_ngram_size: int = penalty(0, must_be.COUNT,
        "no sequence of N tokens comes twice; 0: off",
        partial(on_text, sampling.no_repeat_ngram))
    encoder_no_repeat_ngram_size: int = penalty(0, must_be.COUNT,
        "no sequence of N tokens of the prompt comes again; 0: off", steps.ngrams_of_prompt)

    bad_words_ids: tuple[Ids, ...] | None = constraint(None, must_be.PHRASES,
        "token sequences that must not occur", steps.bad_words)
    min_length: int = constraint(0, must_be.COUNT,
        "no end before prompt and text together have N tokens",
        steps.least_length)
    min_new_tokens: int | None = constraint(None, must_be.COUNT,
        "no end before N new tokens", steps.least_new_tokens)
    allowed_token_ids: Ids | None = constraint(None, must_be.IDS,
        "allow only these tokens", partial(on_logits, sampling.allowed_tokens))
    prefix_allowed_tokens_fn: Callable | None = constraint(None, must_be.ROW_FUNCTION,
        "from (row, tokens) to the ids that may follow", steps.row_function)
    forced_bos_token_id: int | None = constraint(None, must_be.ID,
        "the second token, after a prompt of one", steps.forced_first)
    forced_eos_token_id: Ids | None = constraint(None, must_be.IDS,
        "the token in the last place", steps.forced_last)
    remove_invalid_values: bool = constraint(False, must_be.FLAG,
        "replace NaN and infinity in the logits",
        partial(switch, sampling.remove_invalid_values))
    exponential_decay_length_penalty: tuple[int, float] | None = constraint(None, must_be.DECAY,
        "after START tokens, make the end likelier by FACTOR per token",
        steps.longing_for_the_end)
    suppress_tokens: Ids | None = constraint(None, must_be.IDS,
        "tokens that must not occur", partial(on_logits, sampling.suppress))
    begin_suppress_tokens: Ids | None = constraint(None, must_be.IDS,
        "tokens that must not come first", steps.begin_suppress)
    regex: str | None = constraint(None, must_be.REGEX,
        "hold the new text to a regular expression", steps.formats)
    json_schema: Mapping | str | None = constraint(None, must_be.SCHEMA,
        "hold the new text to a JSON schema", steps.formats)
    grammar: str | None = constraint(None, must_be.GRAMMAR,
        "hold the new text to a grammar in Lark's notation; needs npllama[guide]",
        steps.formats)
    token_healing: bool = constraint(False, must_be.FLAG,
        "take back the prompt's last token, and let a longer one come", steps.formats)
    contrastive_alpha: float = constraint(0.1, must_be.PROBABILITY,
        "the amateur judges only tokens at least this likely, relative to the best",
        steps.amateur, off=None)
    contrastive_beta: float = constraint(0.5, must_be.NOT_NEGATIVE,
        "the weight of the amateur")

    temperature: float = shape(1.0, must_be.TEMPERATURE,
        "below 1 sharpens the distribution, above 1 flattens it",
        steps.temperature, off=None)
    dynatemp_range: float = shape(0.0, must_be.NOT_NEGATIVE,
        "vary the temperature by up to this, following the entropy")
    dynatemp_exponent: float = shape(1.0, must_be.POSITIVE,
        "how the entropy is mapped to that range")
    mirostat: int = shape(0, must_be.among(0, 1, 2),
        "steer to a surprise, by version 1 or 2; 0: off", steps.mirostat)
    mirostat_tau: float = shape(5.0, must_be.POSITIVE, "the surprise aimed at, in bits")
    mirostat_eta: float = shape(0.1, must_be.POSITIVE, "the step of the feedback")
    top_n_sigma: float = shape(0.0, must_be.NOT_NEGATIVE,
        "logits within N standard deviations of the best; 0: off",
        partial(on_logits, sampling.top_n_sigma))
    top_h: float | None = shape(None, must_be.SHARE,
        "the likeliest tokens that hold this share of the entropy",
        partial(on_logits, sampling.top_h))
    top_k: int = shape(50, must_be.COUNT,
        "the N likeliest tokens; 0: all", partial(leaving, sampling.top_k), off=0)
    top_p: float = shape(1.0, must_be.SHARE,
        "the fewest tokens that hold this probability together",
        partial(leaving, sampling.top_p))
    min_p: float | None = shape(None, must_be.PROBABILITY,
        "tokens at least this likely, relative to the best", partial(leaving, sampling.min_p))
    top_a: float = shape(0.0, must_be.NOT_NEGATIVE,
        "tokens at least this likely, times the square of the best; 0: off",
        partial(on_logits, sampling.top_a))
    tfs_z: float = shape(1.0, must_be.SHARE,
        "tail-free: cut where the curve flattens; 1: off",
        partial(on_logits, sampling.tail_free))
    typical_p: float = shape(1.0, must_be.SHARE,
        "tokens of typical surprise that hold this probability together",
        partial(leaving, sampling.typical_p))
    epsilon_cutoff: float = shape(0.0, must_be.CUTOFF,
        "tokens of at least this probability", partial(leaving, sampling.epsilon_cutoff))
    eta_cutoff: float = shape(0.0, must_be.CUTOFF,
        "the same, with a bound that falls with the entropy",
        partial(leaving, sampling.eta_cutoff))
    xtc_probability: float = shape(0.0, must_be.PROBABILITY,
        "how often XTC removes all good tokens except the least likely", steps.xtc)
    xtc_threshold: float = shape(0.1, must_be.PROBABILITY,
        "XTC: the probability above which a token counts as good")
    sampler_order: str = shape("transformers", must_be.among("transformers", "llama.cpp"),
        "temperature before truncation, or after it")

    watermarking_config: Any = mark(None, must_be.MARK,
        "mark the choice of tokens so that a detector can find it", steps.watermark)
    renormalize_logits: bool = mark(False, must_be.FLAG,
        "turn the logits that are left into log-probabilities", partial(switch, sampling.renormalize))

    logprobs: int | None = output(None, must_be.COUNT,
        "report log-probabilities, also of the N likeliest tokens")
    prompt_logprobs: bool = output(False, must_be.FLAG,
        "report log-probabilities of the prompt's tokens, too")
    echo: bool = output(False, must_be.FLAG, "begin the text with the prompt")
    # fmt: on

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            default = DEFAULTS[name]
            value = option.range.checked(name, getattr(self, name), default)
            object.__setattr__(self, name, value)
        must_be.check_together(self)

    @cached_property
    def selected(self) -> list[str]:
        """Options that select another strategy than greedy search or sampling."""
        rows = [(name, o.off) for name, o in OPTIONS.items() if o.selects]
        return [name for name, off in rows if getattr(self, name) not in (off, 0)]

    @cached_property
    def order(self) -> list[str]:
        """Options that are on and have a step, in the order of the pipeline.

        Mirostat takes the place of all truncation; llama.cpp truncates in an order
        of its own, and divides by the temperature last.
        """
        steps = [(name, o) for name, o in OPTIONS.items() if o.step is not None]
        names = [name for name, o in steps if getattr(self, name) != o.off]
        shape = [name for name in names if OPTIONS[name].chapter == SHAPE]
        first = names.index(shape[0])  # of them, the temperature is always on
        before, after = names[:first], names[first + len(shape) :]
        if not self.do_sample:
            return before + after
        if self.mirostat:
            shape = [name for name in shape if name in ("temperature", "mirostat")]
        elif self.sampler_order == "llama.cpp":
            places = [*LLAMACPP_FIRST, *(n for n in shape if n != "temperature")]
            shape.sort(key=[*places, "temperature"].index)
        return before + shape + after


OPTIONS: dict[str, Option] = {
    f.name: f.metadata["option"] for f in fields(GenerationConfig)
}
DEFAULTS = {f.name: f.default for f in fields(GenerationConfig)}


def described() -> str:
    """All options, as the docstring of the config lists them."""
    lines, chapter = [], None
    for name, option in OPTIONS.items():
        if option.chapter != chapter:
            chapter = option.chapter
            lines += ["", f"    {chapter}"]
        lines += [f"        {name}: {option.range.legal} (default {DEFAULTS[name]!r})"]
        lines += [f"            {option.says}"]
    return "\n".join(lines)


GenerationConfig.__doc__ += described()


#  ---- configs from others ----------------------------------------------------


def check_names(names: Iterable[str]) -> None:
    """Raise TypeError for a name that no option has, and say which is nearest."""
    for name in names:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"{name!r} is not an option of generation{hint}")


def with_options(
    config: GenerationConfig, options: Mapping[str, Any]
) -> GenerationConfig:
    """The config with some options changed; TypeError for an unknown option.

    `max_length` alone undoes `max_new_tokens`.
    """
    check_names(options)
    if "max_length" in options and "max_new_tokens" not in options:
        options = {**options, "max_new_tokens": None}
    return dataclasses.replace(config, **options)
