"""Checks of stop strings, which begin in one token and end in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hypothesis import strategies as st

from npllama.testing.laws import Law, Violation, check_of, one_of
from npllama.testing.strategies import cases

# Tokens of several characters, or of one: then a string needs more than two of them.
PIECES = st.one_of(
    st.lists(st.text("abA. ", max_size=3), min_size=1, max_size=6),
    st.lists(st.sampled_from("ab"), min_size=1, max_size=9),
)
WORDS = st.one_of(
    st.text("ab", min_size=1, max_size=4), st.text("abA. ", min_size=1, max_size=2)
)
STRINGS = st.lists(WORDS, min_size=1, max_size=2)
# Strings are compared character by character: case, spaces and accents count, and
# nothing is a pattern.
LITERAL: tuple[dict, ...] = (
    {"pieces": ["A", "b", "ab", "a"], "strings": ["ab"]},
    {"pieces": ["ab", "a", "b ", "a"], "strings": ["b "]},
    {"pieces": ["ab", "a", " b", "a"], "strings": [" b"]},
    {"pieces": ["ab", "b.", "a"], "strings": ["."]},
    {"pieces": ["a ", "b ", "ab"], "strings": ["ab"]},
    {"pieces": ["ab", "\n", "a\n\n", "a"], "strings": ["\n\n"]},
    {"pieces": ["e", "\u0301", "\u00e9", "a"], "strings": ["\u00e9"]},
)


def first_end(text: str, strings: list[str]) -> tuple[int, int] | None:
    """End and start of the stop string that is complete first, the longest there."""
    found = [(text.find(s) + len(s), text.find(s)) for s in strings if s in text]
    return min(found) if found else None


def _stops_in_time(sampler: Callable, pieces: list[str], strings: list[str]) -> None:
    found = int(sampler(list(pieces), list(strings)))
    texts = ["".join(pieces[: n + 1]) for n in range(len(pieces))]
    ends = [n + 1 for n, text in enumerate(texts) if first_end(text, strings)]
    right = ends[0] if ends else len(pieces)
    if found != right:
        raise Violation(f"stopped after {found} tokens, expected {right}")


@check_of("stop_strings", "pieces, strings")
def check_stop_strings() -> Iterator[Law]:
    """Check ``stop(pieces, strings)``: when generation stops.

    Parameters
    ----------
    sampler : function of two lists of str
        The tokens' texts, and the strings to stop at. Returns how many of the tokens
        are generated: up to the first with which a string is complete, else all.
    """

    known = (
        {"pieces": ["a", "b", "a"], "strings": ["ab"]},
        {"pieces": ["ab a", "b"], "strings": ["b a"]},
        {"pieces": ["aab", "a"], "strings": ["ab"]},
        {"pieces": ["a"], "strings": ["a"]},
        {"pieces": ["a", "", "ba"], "strings": ["ab"]},
        {"pieces": ["aba", "b"], "strings": ["ab"]},
        {"pieces": ["a", "b", "b", "a"], "strings": ["abb"]},
        {"pieces": ["b", "a", "b", "b", "a", "a"], "strings": ["babba"]},
        *LITERAL,
    )
    says = "generation stops with the token that completes a string, however cut"
    yield Law(says, cases(pieces=PIECES, strings=STRINGS), _stops_in_time, known)


@check_of("stop_output", "pieces, strings", string=one_of("removed", "kept"))
def check_stop_output(string: str) -> Iterator[Law]:
    """Check ``show(pieces, strings)``: the text that a reader is shown meanwhile.

    Parameters
    ----------
    sampler : function of two lists of str
        Returns the pieces that are shown, in this order; what may be the beginning
        of a stop string is held back until that is known.
    string : {"removed", "kept"}
        Whether the string that stopped the text is shown.
    """

    def holds(sampler: Callable, pieces: list[str], strings: list[str]) -> None:
        found, text = "".join(sampler(list(pieces), list(strings))), "".join(pieces)
        end = first_end(text, strings)
        right = text[: end[string == "removed"]] if end else text
        if found != right:
            raise Violation(f"shown {found!r}, expected {right!r}")

    known = (
        {"pieces": ["a", "b", "b"], "strings": ["bb"]},
        {"pieces": ["a", "b", "b", "a"], "strings": ["abb"]},
        {"pieces": ["b", "ab", "b"], "strings": ["abb", "ba"]},
        {"pieces": ["ab", "a"], "strings": ["bab"]},
        {"pieces": ["aabab"], "strings": ["b", "ab"]},
        {"pieces": ["aabb"], "strings": ["aabb", "ab"]},
        *LITERAL,
    )
    says = "what is shown is the text up to the string that ends first, however cut"
    yield Law(says, cases(pieces=PIECES, strings=STRINGS), holds, known)
