"""What an option of generation may be, and which of them exclude each other.

Every option has a range, and the words that say so: both stand in one table.  A
value is brought into one form first, in which configs can be compared: lists and
NumPy's arrays become tuples, NumPy's numbers Python's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npllama.sampling import GreenList, SynthID

_ID_LISTS = ["eos_token_id", "forced_eos_token_id", "suppress_tokens"]
_ID_LISTS += ["begin_suppress_tokens", "allowed_token_ids", "negative_prompt_ids"]


#  ---- one form for every value -------------------------------------------------


def plain(name: str, value: Any) -> Any:
    """A value as the rest of the package takes it, if it can be read so."""
    value = _tuples(value)
    if name in _ID_LISTS and isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if name == "stop_strings" and (value is None or isinstance(value, str)):
        return () if value is None else (value,)
    if name == "allowed_special" and (value is None or isinstance(value, str)):
        return () if value is None else value if value == "all" else (value,)
    if name == "sequence_bias" and isinstance(value, tuple):
        pairs = all(isinstance(p, tuple) and len(p) == 2 and _ids(p[0]) for p in value)
        value = dict(value) if pairs else value
    if name in ("sequence_bias", "logit_bias") and isinstance(value, Mapping):
        return {_tuples(key): _tuples(bias) for key, bias in value.items()}
    if name == "watermarking_config" and isinstance(value, (Mapping, *_MARKS)):
        return _watermark(value)
    return value


def _tuples(value: Any) -> Any:
    """Lists and arrays as tuples, NumPy's numbers as Python's."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    # A watermark's config is a tuple with names, which it must keep.
    return tuple(map(_tuples, value)) if type(value) in (list, tuple) else value


_MARKS = (GreenList, SynthID)


def _watermark(data: Mapping[str, Any] | GreenList | SynthID) -> GreenList | SynthID:
    """A watermark, which transformers writes as a dictionary, with sound fields."""
    given = dict(data) if isinstance(data, Mapping) else data._asdict()
    given.pop("debug_mode", None)  # of transformers' own tests
    kind = SynthID if "keys" in given else GreenList
    for name, value in given.items():
        if name not in kind._fields:
            known = ", ".join(kind._fields)
            raise ValueError(f"watermarking_config: {name!r} is not one of {known}")
        given[name] = _tuples(value)
        fits, legal = MARK_RANGES[name]
        if not fits(given[name]):
            raise ValueError(
                f"watermarking_config: {name} is {value!r:.60}; it must be {legal}"
            )
    return kind(**given)


#  ---- ranges -----------------------------------------------------------------

Check = tuple[Callable[[Any], bool], str]


INT64 = 2**63 - 1  # what an array of whole numbers can hold


def _whole(least: int, most: int = INT64) -> Check:
    def fits(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and least <= value <= most

    bounds = f", {least} or more" if most == INT64 else f" from {least} to {most}"
    return fits, f"a whole number{bounds}"


def _real(test: Callable[[float], bool], legal: str) -> Check:
    def fits(value: Any) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # A whole number may be too large to be asked whether it is finite.
        return number and abs(value) <= sys.float_info.max and test(value)

    return fits, legal


def _among(*choices: Any) -> Check:
    legal = f"one of {', '.join(map(repr, choices))}"
    # True equals 1, and is none of the numbers nevertheless.
    return lambda value: any(
        type(value) is type(c) and value == c for c in choices
    ), legal


_ID = _whole(0)[0]


def _ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_ID, value))


def _phrases(value: Any) -> bool:
    return isinstance(value, tuple) and all(p and _ids(p) for p in value)


def _demands(value: Any) -> bool:
    """Phrases, or lists of phrases."""
    entries = value if isinstance(value, tuple) else ((),)
    return all(e and (_ids(e) or _phrases(e)) for e in entries)


def _biases(key: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A mapping from keys of a kind to numbers; minus infinity forbids."""

    def fits(value: Any) -> bool:
        return isinstance(value, Mapping) and all(
            key(k) and (b == -math.inf or _ANY[0](b)) for k, b in value.items()
        )

    return fits


def _decay(value: Any) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2
    return pair and _ID(value[0]) and _POSITIVE[0](value[1])


_FLAG: Check = (lambda value: isinstance(value, bool), "True or False")
_IDS: Check = (_ids, "a list of token ids")
_PHRASES: Check = (_phrases, "a list of lists of token ids, none of them empty")
_POSITIVE = _real(lambda x: x > 0, "above 0")
_NOT_NEGATIVE = _real(lambda x: x >= 0, "0 or more")
_SHARE = _real(lambda x: 0 < x <= 1, "above 0 and at most 1")
_PROBABILITY = _real(lambda x: 0 <= x <= 1, "from 0 to 1")
_CUTOFF = _real(lambda x: 0 <= x < 1, "0 (off), or between 0 and 1")
_ANY = _real(lambda x: True, "a finite number")
# Added to a logit a million times, or multiplied with one, these are still numbers.
_MODERATE = _real(lambda x: abs(x) <= 1e30, "a number from -1e30 to 1e30")
_FACTOR = _real(lambda x: 1e-30 <= x <= 1e30, "above 0, from 1e-30 to 1e30")
# Rows of a batch and guesses of a round, which are all held at once.
_MANY = _whole(1, 2**14)

RANGES: dict[str, Check] = {
    "early_stopping": _among(True, False, "never"),
    "sampler_order": _among("transformers", "llama.cpp"),
    "force_words_rule": _among("kept", "transformers 4"),
    "mirostat": _among(0, 1, 2),
    "temperature": _real(lambda x: x > 0, "above 0; for greedy set do_sample=False"),
    "top_k": (_whole(0)[0], "a whole number; 0 keeps all"),
    "regex": (lambda v: isinstance(v, str), "a regular expression, as text"),
    "allowed_special": (
        lambda v: v == "all" or (type(v) is tuple and all(type(s) is str for s in v)),
        'names of special tokens, or "all"',
    ),
    "stop_strings": (
        lambda v: isinstance(v, tuple) and all(isinstance(s, str) and s for s in v),
        "strings, none of them empty",
    ),
    "json_schema": (lambda v: isinstance(v, (Mapping, str)), "a mapping, or its JSON"),
    "prefix_allowed_tokens_fn": (callable, "a function of (row, tokens)"),
    "bad_words_ids": _PHRASES,
    "dry_sequence_breakers": _PHRASES,
    "force_words_ids": (_demands, "a list of phrases (ids), or of lists of phrases"),
    "sequence_bias": (
        _biases(lambda k: k and _ids(k)),
        "a mapping of tuples of token ids to numbers",
    ),
    "logit_bias": (_biases(_ID), "a mapping of token ids to numbers"),
    "exponential_decay_length_penalty": (_decay, "a start, 0 or more, and a factor"),
    "dola_layers": (
        lambda v: v in ("low", "high") or (v and _ids(v)),
        "'low', 'high' or a list of layers",
    ),
    "watermarking_config": (
        lambda v: isinstance(v, _MARKS),
        "a GreenList or a SynthID",
    ),
    # The power of a length must be a number: a million to the 50th still is.
    "length_penalty": _real(lambda x: abs(x) <= 50, "a number from -50 to 50"),
    "dry_base": _real(lambda x: x >= 1, "1 or more"),
}
RANGES |= dict.fromkeys(
    ["max_new_tokens", "max_length", "max_matching_ngram_size", "assistant_window"]
    + ["assistant_early_exit", "dry_allowed_length", "repeat_last_n"],
    _whole(1),
)
RANGES |= dict.fromkeys(
    ["num_return_sequences", "best_of", "num_beams", "num_beam_groups"]
    + ["prompt_lookup_num_tokens", "num_assistant_tokens", "lookahead_window"],
    _MANY,
)
RANGES["lookahead_ngram_size"] = _whole(2, 2**14)
RANGES |= dict.fromkeys(
    ["min_length", "min_new_tokens", "no_repeat_ngram_size", "logprobs"]
    + ["encoder_no_repeat_ngram_size", "dry_penalty_last_n"],
    _whole(0),
)
RANGES["forced_bos_token_id"] = (_ID, "a token id")
RANGES |= dict.fromkeys(
    ["do_sample", "stochastic_beams", "include_stop_str_in_output", "token_healing"]
    + ["remove_invalid_values", "renormalize_logits", "prompt_logprobs", "echo"],
    _FLAG,
)
RANGES |= dict.fromkeys(_ID_LISTS, _IDS)
RANGES |= dict.fromkeys(["top_p", "typical_p", "top_h", "tfs_z"], _SHARE)
RANGES |= dict.fromkeys(
    ["min_p", "xtc_probability", "xtc_threshold", "penalty_alpha", "contrastive_alpha"],
    _PROBABILITY,
)
RANGES |= dict.fromkeys(["epsilon_cutoff", "eta_cutoff"], _CUTOFF)
RANGES |= dict.fromkeys(
    ["max_time", "dynatemp_exponent", "mirostat_tau", "mirostat_eta"], _POSITIVE
)
RANGES |= dict.fromkeys(["repetition_penalty", "encoder_repetition_penalty"], _FACTOR)
RANGES |= dict.fromkeys(
    ["dynatemp_range", "top_a", "dry_multiplier", "diversity_penalty"]
    + ["contrastive_beta", "top_n_sigma"],
    _NOT_NEGATIVE,
)
RANGES |= dict.fromkeys(
    ["presence_penalty", "frequency_penalty", "guidance_scale"], _MODERATE
)


MARK_RANGES: dict[str, Check] = {
    "greenlist_ratio": _real(lambda x: 0 < x < 1, "between 0 and 1"),
    "bias": _ANY,
    "hashing_key": _whole(0),
    "seeding_scheme": _among("lefthash", "selfhash"),
    "pick": (callable, "a function of (seed, V, number)"),
    "table": (callable, "a function of the key"),
    "keys": (
        lambda v: v and _ids(v),
        "a list of whole numbers, each below 2 to the 63rd",
    ),
    "ngram_len": _whole(2, 2**14),
    "skip_first_ngram_calls": _FLAG,
}
MARK_RANGES |= dict.fromkeys(
    ["context_width", "sampling_table_size", "context_history_size"], _whole(1, 2**24)
)
MARK_RANGES["sampling_table_seed"] = _whole(0)


#  ---- options together ---------------------------------------------------------

# One text is written in one way; each of these is a way of its own.
WAYS = ["prompt_lookup_num_tokens", "assistant_early_exit", "assistant_window"]
WAYS += ["lookahead_window", "penalty_alpha", "dola_layers"]


def ways(c: Any) -> list[str]:
    """Options that ask for more than greedy search or plain sampling."""
    beams = ["num_beams"] if c.num_beams > 1 else []
    return beams + [name for name in WAYS if getattr(c, name)]


def check_together(c: Any) -> None:
    """Refuse values that are legal alone but mean nothing together."""
    wrong = _contradictions(c) | _beam_contradictions(c)
    for message, applies in wrong.items():
        if applies:
            raise ValueError(message)


def _contradictions(c: Any) -> dict[str, Any]:
    """What would be wrong, and whether it is."""
    formats = c.regex is not None or c.json_schema is not None
    suppressed = set(c.suppress_tokens or ())
    forced = {
        "forced_bos_token_id": {c.forced_bos_token_id} - {None},
        "forced_eos_token_id": set(c.forced_eos_token_id or ()),
    }
    return {
        f"{' and '.join(ways(c))} exclude each other": len(ways(c)) > 1,
        "penalty_alpha (contrastive search) needs top_k above 1, without do_sample": (
            c.penalty_alpha and (c.do_sample or c.top_k < 2)
        ),
        "num_return_sequences above 1 needs do_sample or num_beams: greedy finds the "
        "same text every time": c.num_return_sequences > 1
        and not (c.num_beams > 1 or c.do_sample),
        f"best_of {c.best_of} is below num_return_sequences "
        f"{c.num_return_sequences}": c.best_of and c.best_of < c.num_return_sequences,
        f"best_of needs do_sample, without {' and '.join(ways(c)) or 'searches'}": (
            c.best_of and (ways(c) or not c.do_sample)
        ),
        "regex and json_schema exclude each other": c.regex is not None
        and c.json_schema is not None,
        "token_healing and a format (regex, json_schema) exclude each other": (
            c.token_healing and formats
        ),
        **{
            f"{name} and suppress_tokens contradict each other": ids <= suppressed
            for name, ids in forced.items()
            if ids
        },
    }


def _beam_contradictions(c: Any) -> dict[str, Any]:
    """The same for beams."""
    searches = c.num_beams > 1
    return {
        f"num_beams {c.num_beams} is not a multiple of num_beam_groups "
        f"{c.num_beam_groups}": c.num_beams % c.num_beam_groups,
        "num_beam_groups needs a diversity_penalty above 0": c.num_beam_groups > 1
        and c.diversity_penalty == 0,
        "diversity_penalty needs num_beam_groups above 1": c.diversity_penalty > 0
        and c.num_beam_groups == 1,
        "num_beam_groups and do_sample exclude each other": c.num_beam_groups > 1
        and c.do_sample,
        "force_words_ids needs num_beams above 1": c.force_words_ids and not searches,
        "force_words_ids and do_sample exclude each other": c.force_words_ids
        and c.do_sample,
        "stochastic_beams needs num_beams above 1": c.stochastic_beams and not searches,
        "force_words_ids, num_beam_groups and stochastic_beams exclude each other": (
            bool(c.force_words_ids) + (c.num_beam_groups > 1) + c.stochastic_beams > 1
        ),
        f"num_return_sequences {c.num_return_sequences} is above num_beams "
        f"{c.num_beams}": searches and c.num_return_sequences > c.num_beams,
        "mirostat needs do_sample without beams": c.mirostat
        and (searches or not c.do_sample),
        "a SynthID watermark and num_beams exclude each other: beams change places, "
        "its state does not": searches and isinstance(c.watermarking_config, SynthID),
    }
