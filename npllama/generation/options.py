"""What a user may ask of generation, in one record.

Names and defaults are those of transformers' `GenerationConfig`, so that a
checkpoint's ``generation_config.json`` can be read as it is; what transformers
lacks is spelled as llama.cpp or vLLM spell it.  Every value is checked when the
record is made: a value out of range is refused with the range.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from npllama.generation.limits import RANGES, check_together, plain
from npllama.weights import Model

Ids = tuple[int, ...]


@dataclass(frozen=True)
class GenerationConfig:
    """How to generate.

    Parameters are grouped as the chapters that explain them.  Lists and NumPy's
    arrays and numbers may be given wherever tuples and numbers are named.

    Prompt
        allowed_special : tuple of str, or "all"
            Special tokens that a prompt of text may hold by their names; without
            it, such a name is text like any other.
    Length and stopping
        max_new_tokens : int, default 20
            New tokens at most.
        max_length, min_length : int
            The same, prompt included; `max_new_tokens` has precedence.
        min_new_tokens : int
            No end before so many new tokens; has precedence over `min_length`.
        max_time : float
            Seconds after which no further token is begun.
        stop_strings : tuple of str
            End as soon as one of them has come.
        include_stop_str_in_output : bool, default True
            Whether the text keeps it.
        eos_token_id : tuple of int
            Tokens that end the text; those of the model by default.
    Strategy
        do_sample : bool
            Draw tokens instead of taking the likeliest.
        num_return_sequences, best_of : int
            Texts to return; the number to draw of which the likeliest are kept.
        num_beams, num_beam_groups : int; diversity_penalty, length_penalty : float
        early_stopping : True, False or "never"
        force_words_ids : list of phrases, or of lists of phrases
        force_words_rule : "kept" or "transformers 4"
            Whether texts that hold every phrase are kept, or lost as there.
        stochastic_beams : bool
            Draw `num_beams` different texts without replacement.
        penalty_alpha : float
            Above 0, with top_k above 1: contrastive search.
        dola_layers : "low", "high" or list of int
        prompt_lookup_num_tokens, max_matching_ngram_size : int
        num_assistant_tokens : int
            Tokens that a draft proposes per round.
        assistant_early_exit : int
            Draft with the model's own first layers.
        assistant_window : int
            Draft with the model itself, looking back only so many positions.
        lookahead_window, lookahead_ngram_size : int
        contrastive_alpha, contrastive_beta : float
            Of contrastive decoding: plausibility, and weight of the amateur.
    Shape of the distribution (only with `do_sample`)
        temperature, dynatemp_range, dynatemp_exponent : float
        top_k : int; top_p, min_p, top_a, typical_p, top_h : float
        epsilon_cutoff, eta_cutoff, top_n_sigma, tfs_z : float
        xtc_probability, xtc_threshold : float
        mirostat : 0, 1 or 2; mirostat_tau, mirostat_eta : float
        sampler_order : "transformers" or "llama.cpp"
            Temperature before or after truncation.
    Penalties
        repetition_penalty, encoder_repetition_penalty : float
        presence_penalty, frequency_penalty : float
        repeat_last_n : int
            How far back the three first look; all of the text by default.
        no_repeat_ngram_size, encoder_no_repeat_ngram_size : int
        dry_multiplier, dry_base : float; dry_allowed_length, dry_penalty_last_n : int
        dry_sequence_breakers : tuple of tuples of int
        exponential_decay_length_penalty : (int, float)
    Constraints
        bad_words_ids : tuple of tuples of int
        sequence_bias : mapping of tuples of int to float, or pairs of these
        logit_bias : mapping of int to float
        allowed_token_ids, suppress_tokens, begin_suppress_tokens : tuple of int
        forced_bos_token_id : int; forced_eos_token_id : tuple of int
        prefix_allowed_tokens_fn : function of (row, tokens) to allowed ids
        regex : str; json_schema : mapping or str
            Hold the new text to a format.
        token_healing : bool
        remove_invalid_values, renormalize_logits : bool
    Guidance and watermark
        guidance_scale : float; negative_prompt_ids : tuple of int
        watermarking_config : GreenList or SynthID of `npllama.sampling`, or a
            mapping of their fields
    Output
        logprobs : int
            Report the log-probability of every token, and of so many alternatives.
        prompt_logprobs, echo : bool
            Also for the prompt; the prompt's text in front of the new one.

    Raises
    ------
    ValueError
        If a value is out of range, or two of them contradict each other.
    """

    allowed_special: tuple[str, ...] | str = ()
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: tuple[str, ...] = ()
    include_stop_str_in_output: bool = True
    eos_token_id: Ids | None = None
    do_sample: bool = False
    num_return_sequences: int = 1
    best_of: int | None = None
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    force_words_ids: tuple | None = None
    force_words_rule: str = "kept"
    stochastic_beams: bool = False
    penalty_alpha: float | None = None
    dola_layers: str | Ids | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int = 2
    num_assistant_tokens: int = 20
    assistant_early_exit: int | None = None
    assistant_window: int | None = None
    lookahead_window: int | None = None
    lookahead_ngram_size: int = 3
    contrastive_alpha: float = 0.1
    contrastive_beta: float = 0.5
    temperature: float = 1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    top_a: float = 0.0
    typical_p: float = 1.0
    top_h: float | None = None
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_n_sigma: float = 0.0
    tfs_z: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    sampler_order: str = "transformers"
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int | None = None
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: tuple[Ids, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    bad_words_ids: tuple[Ids, ...] | None = None
    sequence_bias: Mapping[Ids, float] | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Ids | None = None
    suppress_tokens: Ids | None = None
    begin_suppress_tokens: Ids | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: Ids | None = None
    prefix_allowed_tokens_fn: Callable | None = None
    regex: str | None = None
    json_schema: Mapping | str | None = None
    token_healing: bool = False
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    guidance_scale: float | None = None
    negative_prompt_ids: Ids | None = None
    watermarking_config: Any = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    echo: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = plain(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            fits, legal = RANGES[field.name]
            if not fits(value) and (value is not None or field.default is not None):
                raise ValueError(f"{field.name} is {value!r}; it must be {legal}")
        check_together(self)


#  ---- a checkpoint's own wishes ----------------------------------------------


def options_from_hf(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``generation_config.json`` says, as `GenerationConfig` takes it.

    Entries that npllama does not know (cache and torch settings, versions) are
    passed over; those it knows are checked.

    Raises
    ------
    ValueError
        If a value is out of range.
    """
    known = {field.name for field in fields(GenerationConfig)}
    given = {k: v for k, v in data.items() if k in known and v is not None}
    try:
        GenerationConfig(**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"generation_config.json: {error}") from None
    return given


def options_of(model: Model) -> dict[str, Any]:
    """What a checkpoint's makers wish, as `GenerationConfig` takes it."""
    return options_from_hf(model.generation_config or {})


def load_options(path: str | os.PathLike) -> dict[str, Any]:
    """Read a ``generation_config.json``, or the folder that holds one."""
    path = Path(path)
    path = path / "generation_config.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return options_from_hf(data)
