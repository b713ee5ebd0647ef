"""The values that an option may have, and values that exclude each other.

A `Range` describes the legal values of an option, as a test and in words.  It first
converts a value to one form, so that configs can be compared: lists and arrays become
tuples, and NumPy's numbers become Python's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npllama.sampling import GreenList, SynthID

INT64 = 2**63 - 1  # what an array of whole numbers can hold


#  ---- one form for every value -------------------------------------------------


def tuples(value: Any) -> Any:
    """Lists and arrays as tuples, NumPy's numbers as Python's."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    # A watermark's config is a tuple with names, which it must keep.
    return tuple(map(tuples, value)) if type(value) in (list, tuple) else value


def id_list(value: Any) -> Any:
    """A list of ids; a single id becomes a list of one."""
    value = tuples(value)
    alone = isinstance(value, int) and not isinstance(value, bool)
    return (value,) if alone else value


def strings(value: Any) -> Any:
    """A list of strings; a single string becomes a list of one."""
    value = () if value is None else tuples(value)
    return (value,) if isinstance(value, str) else value


def mapping(value: Any) -> Any:
    """A mapping whose keys and values have one form."""
    value = tuples(value)
    if isinstance(value, Mapping):
        return {tuples(key): tuples(entry) for key, entry in value.items()}
    return value


def mapping_or_pairs(value: Any) -> Any:
    """A mapping; transformers also writes it as a list of pairs."""
    pairs = value = mapping(value)
    if isinstance(pairs, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and are_ids(pair[0])
        for pair in pairs
    ):
        return dict(pairs)
    return value


#  ---- ranges -----------------------------------------------------------------


class Range(NamedTuple):
    """The values that an option may have."""

    fits: Callable[[Any], Any]
    legal: str  # the same in words
    read: Callable[[Any], Any] = tuples  # into the form that is tested and kept

    def checked(self, name: str, value: Any, default: Any) -> Any:
        """The value in its one form; ValueError if it is out of range.

        An option that is off by default may be None.
        """
        value = self.read(value)
        if (value is not None or default is not None) and not self.fits(value):
            raise ValueError(f"{name} is {value!r:.200}; it must be {self.legal}")
        return value


def whole(least: int, most: int = INT64) -> Range:
    """Whole numbers."""
    bounds = f", {least} or more" if most == INT64 else f" from {least} to {most}"
    return Range(partial(is_whole, least, most), f"a whole number{bounds}")


def is_whole(least: int, most: int, value: Any) -> bool:
    """Whether this is a whole number within bounds."""
    number = isinstance(value, int) and not isinstance(value, bool)
    return number and least <= value <= most


def real(legal: str, low: float = -math.inf, high: float = math.inf) -> Range:
    """Finite numbers from `low` to `high`; use `above` and `below` for open ends."""
    return Range(partial(is_real, low, high), legal)


def is_real(low: float, high: float, value: Any) -> bool:
    """Whether this is a finite number within bounds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # A whole number may be too large for math.isfinite.
    return number and abs(value) <= sys.float_info.max and low <= value <= high


def above(number: float) -> float:
    """The least number above this one: an open lower end."""
    return math.nextafter(number, math.inf)


def below(number: float) -> float:
    """The largest number below this one: an open upper end."""
    return math.nextafter(number, -math.inf)


def among(*choices: Any) -> Range:
    """One of a few values."""
    return Range(partial(is_among, choices), f"one of {', '.join(map(repr, choices))}")


def is_among(choices: Sequence[Any], value: Any) -> bool:
    """Whether this is one of a few values; True equals 1, but is not the number."""
    return any(type(value) is type(c) and value == c for c in choices)


def of_kind(kinds: Any, legal: str) -> Range:
    """Values of some types."""
    return Range(partial(is_kind, kinds), legal)


def is_kind(kinds: Any, value: Any) -> bool:
    """Whether this is of one of some types."""
    return isinstance(value, kinds)


def are_ids(value: Any) -> bool:
    """Whether this is a tuple of token ids."""
    return isinstance(value, tuple) and all(map(ID.fits, value))


def are_some_ids(value: Any) -> bool:
    """Whether this is a tuple of one token id or more."""
    return are_ids(value) and len(value) > 0


def are_phrases(value: Any) -> bool:
    """Whether this is a tuple of tuples of token ids, none of them empty."""
    return isinstance(value, tuple) and all(map(are_some_ids, value))


def are_demands(value: Any) -> bool:
    """Whether these are phrases, or lists of phrases."""
    entries = value if isinstance(value, tuple) else ((),)
    return all(e and (are_ids(e) or are_phrases(e)) for e in entries)


def are_biases(is_key: Callable[[Any], Any], value: Any) -> bool:
    """Whether this maps keys of a kind to numbers; minus infinity forbids."""
    return isinstance(value, Mapping) and all(
        is_key(k) and (b == -math.inf or MODERATE.fits(b)) for k, b in value.items()
    )


def is_decay(value: Any) -> bool:
    """Whether this is a start and a factor."""
    pair = isinstance(value, tuple) and len(value) == 2
    return pair and ID.fits(value[0]) and POSITIVE.fits(value[1])


def are_layers(value: Any) -> bool:
    """Whether this names layers, or some numbers of layers."""
    return value in ("low", "high") or are_some_ids(value)


def are_strings(value: Any) -> bool:
    """Whether this is a tuple of strings, none of them empty."""
    return isinstance(value, tuple) and all(isinstance(s, str) and s for s in value)


def are_names(value: Any) -> bool:
    """Whether this is a tuple of strings, or "all"."""
    return value == "all" or (
        isinstance(value, tuple) and set(map(type, value)) <= {str}
    )


def names(value: Any) -> Any:
    """A list of strings, as in `strings`; "all" stays as it is."""
    return value if isinstance(value, str) and value == "all" else strings(value)


FLAG = of_kind(bool, "True or False")
COUNT, SIZE = whole(0), whole(1)
# Rows of a batch and guesses of a round, which are all held at once.
MANY, PAIR_OR_MORE = whole(1, 2**14), whole(2, 2**14)
POSITIVE = real("above 0", above(0))
NOT_NEGATIVE = real("0 or more", 0)
SHARE = real("above 0 and at most 1", above(0), 1)
PROBABILITY = real("from 0 to 1", 0, 1)
CUTOFF = real("0 (off), or between 0 and 1", 0, below(1))
# Added to a logit a million times, or multiplied with one, these stay finite.
MODERATE = real("a number from -1e30 to 1e30", -1e30, 1e30)
FACTOR = real("above 0, from 1e-30 to 1e30", 1e-30, 1e30)
# A length to this power must be finite: a million to the 50th still is.
EXPONENT = real("a number from -50 to 50", -50, 50)
TEMPERATURE = real("above 0; for greedy search do not sample", above(0))
ID = COUNT._replace(legal="a token id")
IDS = Range(are_ids, "a list of token ids", id_list)
PHRASES = Range(are_phrases, "a list of lists of token ids, none of them empty")
DEMANDS = Range(are_demands, "a list of phrases (ids), or of lists of phrases")
LAYERS = Range(are_layers, "'low', 'high' or a list of layers")
DECAY = Range(is_decay, "a start, 0 or more, and a factor")
SEQUENCE_BIAS = Range(
    partial(are_biases, are_some_ids),
    "a mapping of tuples of token ids to numbers from -1e30 to 1e30, or -inf",
    mapping_or_pairs,
)
LOGIT_BIAS = Range(
    partial(are_biases, ID.fits),
    "a mapping of token ids to numbers from -1e30 to 1e30, or -inf",
    mapping,
)
STRINGS = Range(are_strings, "strings, none of them empty", strings)
SPECIAL = Range(are_names, 'names of special tokens, or "all"', names)
REGEX = of_kind(str, "a regular expression, as text")
GRAMMAR = of_kind(str, "a grammar, as text")
SCHEMA = of_kind((Mapping, str), "a mapping, or its JSON")
ROW_FUNCTION = Range(callable, "a function of (row, tokens)")


#  ---- watermarks -------------------------------------------------------------

MARKS = (GreenList, SynthID)
MARK_RANGES = {
    "greenlist_ratio": real("between 0 and 1", above(0), below(1)),
    "bias": real("a finite number"),
    "hashing_key": COUNT,
    "seeding_scheme": among("lefthash", "selfhash"),
    "context_width": whole(1, 2**24),
    "pick": Range(callable, "a function of (seed, V, number)"),
    "table": Range(callable, "a function of the key"),
    "keys": Range(are_some_ids, "a list of whole numbers, each below 2 to the 63rd"),
    "ngram_len": PAIR_OR_MORE,
    "sampling_table_size": whole(1, 2**24),
    "sampling_table_seed": COUNT,
    "context_history_size": whole(1, 2**24),
    "skip_first_ngram_calls": FLAG,
}


def watermark(data: Any) -> Any:
    """Read a watermark, which transformers writes as a dictionary; check its fields."""
    if not isinstance(data, (Mapping, *MARKS)):
        return data
    given = dict(data) if isinstance(data, Mapping) else data._asdict()
    given.pop("debug_mode", None)  # of transformers' own tests
    kind = SynthID if "keys" in given else GreenList
    for name, value in given.items():
        if name not in kind._fields:
            known = ", ".join(kind._fields)
            raise ValueError(f"watermarking_config: {name!r} is not one of {known}")
        where = f"watermarking_config: {name}"
        given[name] = MARK_RANGES[name].checked(where, value, True)
    return kind(**given)


MARK = of_kind(MARKS, "a GreenList or a SynthID")._replace(read=watermark)


#  ---- options together ---------------------------------------------------------


def refuse(applies: Any, message: str) -> None:
    """Raise ValueError if this applies."""
    if applies:
        raise ValueError(message)


# fmt: off
def check_together(c: Any) -> None:
    """Refuse values that are legal alone but mean nothing together."""
    others, several = " and ".join(c.selected), c.num_return_sequences
    refuse(len(c.selected) > 1, f"{others} exclude each other")
    refuse(c.penalty_alpha and (c.do_sample or c.top_k < 2),
        "penalty_alpha (contrastive search) needs top_k above 1, without do_sample")
    refuse(several > 1 and not (c.do_sample or c.num_beams > 1),
        "num_return_sequences above 1 needs do_sample or num_beams: greedy finds the "
        "same text every time")
    refuse(c.best_of and c.best_of < several,
        f"best_of {c.best_of} is below num_return_sequences {several}")
    refuse(c.best_of and (c.selected or not c.do_sample),
        f"best_of needs do_sample, without {others or 'searches'}")
    check_constraints(c)
    check_beams(c)


def check_constraints(c: Any) -> None:
    """Refuse contradictions among formats, bans and forced tokens."""
    formats = [c.regex, c.json_schema, c.grammar].count(None) < 3
    refuse(c.grammar is not None and (c.regex, c.json_schema) != (None, None),
        "a grammar and another format (regex, json_schema) exclude each other")
    suppressed = set(c.suppress_tokens or ())
    refuse(c.regex is not None and c.json_schema is not None,
        "regex and json_schema exclude each other")
    refuse(c.token_healing and formats,
        "token_healing and a format (regex, json_schema, grammar) exclude each other")
    refuse(c.forced_bos_token_id in suppressed,
        "forced_bos_token_id and suppress_tokens contradict each other")
    refuse(c.forced_eos_token_id and suppressed.issuperset(c.forced_eos_token_id),
        "forced_eos_token_id and suppress_tokens contradict each other")


def check_beams(c: Any) -> None:
    """Refuse contradictions among the options of beams."""
    beams, groups, several = c.num_beams, c.num_beam_groups, c.num_return_sequences
    forced, drawn = bool(c.force_words_ids), c.stochastic_beams
    refuse(beams % groups,
        f"num_beams {beams} is not a multiple of num_beam_groups {groups}")
    refuse(groups > 1 and c.diversity_penalty == 0,
        "num_beam_groups needs a diversity_penalty above 0")
    refuse(groups == 1 and c.diversity_penalty > 0,
        "diversity_penalty needs num_beam_groups above 1")
    refuse(groups > 1 and c.do_sample, "num_beam_groups and do_sample exclude each other")
    refuse(forced and beams == 1, "force_words_ids needs num_beams above 1")
    refuse(forced and c.do_sample, "force_words_ids and do_sample exclude each other")
    refuse(drawn and beams == 1, "stochastic_beams needs num_beams above 1")
    refuse(forced + (groups > 1) + drawn > 1,
        "force_words_ids, num_beam_groups and stochastic_beams exclude each other")
    refuse(1 < beams < several,
        f"num_return_sequences {several} is above num_beams {beams}")
    refuse(c.mirostat and (beams > 1 or not c.do_sample),
        "mirostat needs do_sample without beams")
    refuse(beams > 1 and isinstance(c.watermarking_config, SynthID),
        "a SynthID watermark and num_beams exclude each other: beams change places, "
        "its state does not")
# fmt: on
