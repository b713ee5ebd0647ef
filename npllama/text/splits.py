r"""Where a byte-level tokenizer cuts a text before it merges.

Merging stops at the borders of words, so that "dog" and "dog!" share a token.  A
regular expression defines what a word is, and every family of models has its own:

- GPT-2: contractions, words and numbers with the space before them, punctuation.
- StarCoder and SmolLM2: the same, but every digit stands alone.
- LLaMA 3: one mark before a word joins it, numbers have up to three digits, line
  ends follow the punctuation.
- Qwen2: LLaMA 3's, with single digits.
- DeepSeek-Coder: words and punctuation with the white space before them, Chinese
  and Korean in runs, every digit and every line end alone.

``tokenizer.json`` writes a split as a list of steps.  Each list below becomes one
pattern for tiktoken; any other list (such as DeepSeek-LLM's) is refused.  A pattern
must match every character, since tiktoken drops the others.

References
----------
OpenAI gpt-2, encoder.py; meta-llama/llama3, llama/tokenizer.py; Hugging Face
tokenizers, `pre_tokenizers`.
"""

from __future__ import annotations

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

# A later step also cuts the parts that an earlier one isolated: "a\u4e2d" is one word
# of letters, and then the Chinese is cut out of it.  So the pattern says of every
# character what all the steps together do with it.
_CJK = "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"
DEEPSEEK_CODER = (
    r"[\r\n]|\s(?=[{cjk}&&[\p{L}\p{P}]])|[\s&&[{cjk}]](?=[\p{L}\p{P}])"
    r"|[\s&&[^\r\n{cjk}]]?[\p{L}&&[^{cjk}]]+|[\p{L}&&[{cjk}]]+"
    r"|[\s&&[^\r\n{cjk}]]?[\p{P}&&[^{cjk}]]+|[\p{P}&&[{cjk}]]+|\p{N}"
    r"|(?:(?!\s[\p{L}\p{P}])[{cjk}&&[^\p{L}\p{P}\p{N}]])+"
    r"|(?:(?!\s[\p{L}\p{P}])[^\r\n\p{L}\p{P}\p{N}{cjk}])+"
).replace("{cjk}", _CJK)

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
    (
        *map(isolated, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_CJK}]+")),
        DIGITS,
        BYTES,
    ): DEEPSEEK_CODER,
}


class Split(NamedTuple):
    """How a text is cut."""

    pattern: str
    prefix_space: bool  # a space is put before a text that has none


def split_of(written: Any) -> Split:
    """The split that the pre-tokenizer of a ``tokenizer.json`` describes.

    Raises
    ------
    ValueError
        If it is not one of `PATTERNS`; the message says what was found.
    """
    several = isinstance(written, dict) and written.get("type") == "Sequence"
    parts = written["pretokenizers"] if several else [written or {"type": "nothing"}]
    steps = tuple(map(step_of, parts))
    prefix = [part.get("add_prefix_space", True) for part in parts]
    if steps not in PATTERNS or (prefix[-1] and len(steps) > 1):
        raise ValueError(
            "the text is split in a way that is not known here "
            f"({', '.join(map(_told, steps)):.120})"
        )
    return Split(PATTERNS[steps], prefix[-1])


def step_of(part: dict[str, Any]) -> Step:
    """One step, as `PATTERNS` writes it."""
    kind = part["type"]
    if kind == "Split":
        how = part["pattern"]
        found = how.get("Regex", how.get("String"))
        return (kind, found, part["behavior"], bool(part.get("invert")))
    flags = {"ByteLevel": ("use_regex", True), "Digits": ("individual_digits", False)}
    if kind in flags:
        return (kind, bool(part.get(*flags[kind])))
    return (kind,)


def _told(step: Step) -> str:
    return " ".join(map(str, step[:2]))
