r"""Where a byte-level tokenizer cuts a text before it merges.

Merging stops at the borders of words, so that "dog" and "dog!" share a token.  A
regular expression defines what a word is, and every family of models has its own:

- GPT-2: contractions, words and numbers with the space before them, punctuation.
- StarCoder and SmolLM2: the same, but every digit stands alone.
- LLaMA 3: one mark before a word joins it, numbers have up to three digits, line
  ends follow the punctuation.
- Qwen2: LLaMA 3's, with single digits; Seed-Coder: also, line ends apart.
- DeepSeek: words and punctuation with the white space before them, Chinese and
  Korean in runs, every digit and every line end alone.

``tokenizer.json`` writes a split as a list of steps, of which a later one also cuts the
parts that an earlier one isolated.  A list becomes one pattern for tiktoken: it stands
in a table, or all its steps cut out runs of characters, as DeepSeek's do (`borders`).
Any other list is refused.  A pattern must match every character, since tiktoken drops
the others.

References
----------
OpenAI gpt-2, encoder.py; meta-llama/llama3, llama/tokenizer.py; Hugging Face
tokenizers, `pre_tokenizers`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_CONTRACTIONS = r"'(?:[sdmt]|ll|ve|re)"
_WHITE = r"\s+(?!\S)|\s+"
GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_WHITE}"
SINGLE_DIGITS = (
    rf"\p{{N}}|{_CONTRACTIONS}| ?\p{{L}}+| ?[^\s\p{{L}}\p{{N}}]+"
    r"|\s+(?![^\s\p{N}])|\s+"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SEED_CODER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Step = tuple[Any, ...]


def isolated(pattern: str) -> Step:
    """A step that cuts out the matches of a regular expression."""
    return ("Split", pattern, "Isolated", False)


BYTES = ("ByteLevel", False)
WORDS = ("ByteLevel", True)  # with GPT-2's pattern built in
DIGITS = ("Digits", True)

PATTERNS: dict[tuple[Step, ...], str] = {
    (WORDS,): GPT2,
    (isolated(GPT2), BYTES): GPT2,
    (DIGITS, WORDS): SINGLE_DIGITS,
    (isolated(LLAMA3), BYTES): LLAMA3,
    (isolated(QWEN2), BYTES): QWEN2,
    (isolated(SEED_CODER), BYTES): SEED_CODER,
}


#  ---- steps that cut out runs --------------------------------------------------

# Characters of a class, alone or in runs; a run may take white space before it along.
_ESCAPE = r"\\[rnts]|\\[^\w\s]|\\p\{\w+\}"
_RUN = re.compile(rf"(\\s\?| \?)?(\\p\{{\w+\}}|\[\^?(?:[^\\\[\]]|{_ESCAPE})+\])(\+?)")
_SETS = ("&&", "--", "~~")  # operators on classes for tiktoken, and only there
TRAILING = r"\s+$"


def borders(steps: Sequence[str]) -> str | None:
    r"""A pattern of no width that matches wherever one of the steps cuts.

    With the class C and the space before a run optional, ``\s?[C]+``, a step cuts after
    each run and before it; if white space stands there, and no earlier step cut
    between, it cuts before that.  ``\s+$`` means the end of a part, which is a border
    of an earlier step.

    Parameters
    ----------
    steps : sequence of str
        Regular expressions, in the order in which they cut.

    Returns
    -------
    str or None
        None if a step is of another kind.
    """
    found: list[str] = []
    for step in steps:
        if step == TRAILING:
            found.append(rf"(?<=\S)(?=\s+(?:{'|'.join([*found, chr(92) + 'z'])}))")
            continue
        match = _RUN.fullmatch(step)
        if not match or (match[1] and not match[3]) or any(o in step for o in _SETS):
            return None
        before, inside, many = match.groups()
        found += _cuts(before, inside, many, "|".join(found))
    return "|".join(found)


def _cuts(before: str | None, inside: str, many: str, earlier: str) -> list[str]:
    """Where one step cuts: patterns of no width."""
    if not many:
        return [f"(?<={inside})", f"(?={inside})"]
    ends, outside = f"(?<={inside})(?=[^{inside}])", f"[^{inside}]"
    if not before:
        return [ends, f"(?<={outside})(?={inside})"]
    space = before.removesuffix("?")
    taken = f"[{outside}&&[{space}]]"  # white space that may begin a run
    uncut = f"(?!{earlier})" if earlier else ""
    begins = f"(?<=[{outside}&&[^{space}]])(?={inside})"
    return [ends, begins, f"(?={taken}{uncut}{inside})"]


def runs(steps: Sequence[str]) -> str | None:
    """The pattern of what lies between borders, or None."""
    at = borders(steps)
    return None if at is None else rf"(?s:.(?:(?!{at}).)*)"


#  ---- reading ----------------------------------------------------------------------


class Split(NamedTuple):
    """How a text is cut."""

    pattern: str
    prefix_space: bool  # a space is put before a text that has none


def split_of(written: Any) -> Split:
    """The split that the pre-tokenizer of a ``tokenizer.json`` describes.

    Raises
    ------
    ValueError
        If it is not known; the message says what was found.
    """
    several = isinstance(written, dict) and written.get("type") == "Sequence"
    parts = written["pretokenizers"] if several else [written or {"type": "nothing"}]
    steps = tuple(map(step_of, parts))
    prefix = [part.get("add_prefix_space", True) for part in parts]
    pattern = PATTERNS.get(steps) or _runs_of(steps)
    if pattern is None or (prefix[-1] and len(steps) > 1):
        raise ValueError(
            "the text is split in a way that is not known here "
            f"({', '.join(map(_told, steps)):.120})"
        )
    return Split(pattern, prefix[-1])


def _runs_of(steps: tuple[Step, ...]) -> str | None:
    """The pattern of steps that cut out runs, before bytes become letters."""
    digits = {DIGITS: r"\p{N}", ("Digits", False): r"\p{N}+"}
    cutting = [digits.get(step) or _isolating(step) for step in steps[:-1]]
    if steps[-1:] != (BYTES,) or not cutting or None in cutting:
        return None
    return runs([step for step in cutting if step])


def _isolating(step: Step) -> str | None:
    return step[1] if step == isolated(step[1]) else None


def step_of(part: dict[str, Any]) -> Step:
    """One step, as `PATTERNS` writes it."""
    kind = part["type"]
    if kind == "Split":
        how = part["pattern"]
        if "Regex" not in how:
            return (kind, "String", part["behavior"])
        return (kind, how["Regex"], part["behavior"], bool(part.get("invert")))
    flags = {"ByteLevel": ("use_regex", True), "Digits": ("individual_digits", False)}
    if kind in flags:
        return (kind, bool(part.get(*flags[kind])))
    return (kind,)


def _told(step: Step) -> str:
    return " ".join(map(str, step[:2]))
