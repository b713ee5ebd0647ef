r"""Vocabularies of bytes, merged by tiktoken.

They come in one of two files:

- a list of ranks (LLaMA 3, as Meta ships it): a line per token, its bytes in base64
  and the number that says how early it was merged;
- ``tokenizer.json`` (as Hugging Face ships LLaMA 3, SmolLM2, DeepSeek ...):
  the vocabulary in printable characters that stand for bytes, the merges as
  pairs, and the rule that splits a text into words.

Some vocabularies have no token for some bytes, because the training text never had
them: SmolLM2 lacks 21, such as 04 and FF.  Such a byte adds no token, as in Hugging
Face's tokenizers and llama.cpp.  (In the former, the bytes on both sides of it become
neighbours and may merge.  Here they do not, as in llama.cpp.)  If the file names an
unknown token, that takes the place of the byte.

An added word is decoded to its name.  Hugging Face's tokenizers read a name as bytes if
every character of it stands for one, so there an added "café" ends in U+FFFD.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from npllama.text.merges import check_merges, merge_pairs, ranks_of
from npllama.text.settings import Added, Json, Settings, assemble, special_names
from npllama.text.splits import LLAMA3, split_of
from npllama.text.tokenizer import Token, Tokenizer, unchanged

# tiktoken may fail on huge texts and huge runs, so Meta cuts them first.
LONGEST_TEXT = 400_000
LONGEST_RUN = 25_000


def cut_long_text(text: str) -> list[str]:
    """Cut a text so that no part, and no run of (non-)space in it, is too long.

    References
    ----------
    Meta llama-models, models/llama3/tokenizer.py, `encode` and
    `_split_whitespaces_or_nonwhitespaces`.
    """
    starts = []
    for begin in range(0, len(text), LONGEST_TEXT):
        starts.append(begin)
        for run in re.finditer(r"\s+|\S+", text[begin : begin + LONGEST_TEXT]):
            starts += range(begin + run.start(), begin + run.end(), LONGEST_RUN)[1:]
    return [text[i:j] for i, j in zip(starts, [*starts[1:], len(text)])]


def merger(
    ranked: Sequence[bytes], pattern: str, ids: Sequence[int | None]
) -> Callable[[str], list[int]]:
    """The tokens of a text: split by a pattern, then merged by rank.

    Parameters
    ----------
    ranked : sequence of bytes
        All tokens in the order of merging, beginning with the 256 single bytes.
    pattern : str
        Must match every character.
    ids : sequence of int or None
        The id of each of `ranked`; tokens with None are left out.
    """
    try:
        import tiktoken  # here, since much of the package has no text to split
    except ModuleNotFoundError:
        raise ValueError("its texts need a library: pip install tiktoken") from None
    ranks = {content: rank for rank, content in enumerate(ranked)}
    engine = tiktoken.Encoding(
        "text", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )

    def merge(text: str) -> list[int]:
        found = (r for cut in cut_long_text(text) for r in engine.encode_ordinary(cut))
        return [i for i in map(ids.__getitem__, found) if i is not None]

    return merge


#  ---- a list of ranks --------------------------------------------------------


def looks_like_ranks(content: bytes) -> bool:
    """Whether a file begins as tiktoken's ranks do: base64, a space, a number."""
    first = content[:1000].lstrip().split(b"\n", 1)[0]
    return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} +\d+\s*", first) is not None


def llama3_special_names() -> list[str]:
    """The 256 special tokens that follow the ranks, as Meta names them since 3.2.

    The tokens of conversations have the same ids in LLaMA 3.0 and in Hugging Face's
    files; some of the others are called reserved there.

    References
    ----------
    Meta llama-models, models/llama3/tokenizer.py.
    """
    names = """begin_of_text end_of_text reserved_special_token_0
        reserved_special_token_1 finetune_right_pad_id step_id start_header_id
        end_header_id eom_id eot_id python_tag image""".split()
    names += [f"reserved_special_token_{i + 2}" for i in range(256 - len(names))]
    return [f"<|{name}|>" for name in names]


LLAMA3_ENDS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}


def read_ranks(content: bytes) -> dict[bytes, int]:
    """The tokens of a list of ranks, and the rank of each."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError:
                raise ValueError(f"line {number} is not a token and its rank") from None
    if b"" in ranks or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError(
            "a token is empty, or a single byte has none: text would be lost"
        )
    if len(set(ranks.values())) < len(ranks):
        raise ValueError("two tokens have one rank")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"the ranks of {len(ranks)} tokens are not 0 to {len(ranks) - 1}"
        )
    return ranks


def from_ranks(content: bytes, settings: Settings) -> Tokenizer:
    """A tokenizer of LLaMA 3: one line per token, its bytes and its rank."""
    ranks = read_ranks(content)
    ranked = sorted(ranks, key=ranks.__getitem__)
    names = llama3_special_names()
    special = {i: Token(name, b"", True) for i, name in enumerate(names, len(ranks))}
    tokens = {i: Token(t.decode("utf-8", "replace"), t) for i, t in enumerate(ranked)}
    merge = merger(ranked, LLAMA3, range(len(ranked)))
    return assemble(
        tokens | special,
        LLAMA3_ENDS,
        settings,
        kind="tiktoken",
        merge=lambda text, begins: merge(text),
        leading_space=False,
    )


#  ---- tokenizer.json ---------------------------------------------------------


def byte_letters() -> dict[str, int]:
    """Which character stands for which byte in a byte-level vocabulary.

    Printable characters of Latin-1 stand for themselves, the other bytes, in
    order, for the characters from U+0100 on.

    References
    ----------
    OpenAI gpt-2, encoder.py, `bytes_to_unicode`.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + i): byte for i, byte in enumerate(hidden)}


NORMAL_FORMS = {None: unchanged} | {
    form: lambda text, form=form: unicodedata.normalize(form, text)
    for form in ("NFC", "NFD", "NFKC", "NFKD")
}


def normal_form(written: Json | None) -> Callable[[str], str]:
    """The function that a normalizer of ``tokenizer.json`` stands for.

    Python's own tables of Unicode are newer than those of Hugging Face's library, so
    marks that were added since, such as U+0C3C, may be put in another order there.

    Raises
    ------
    ValueError
        If it is not one of Unicode's normal forms.
    """
    steps = [written] if written else []
    if written and written["type"] == "Sequence":
        steps = written["normalizers"]
    kinds = [step["type"] for step in steps]
    if len(kinds) > 1 or not set(kinds) <= NORMAL_FORMS.keys():
        raise ValueError(
            f"the normalizer {', '.join(map(str, kinds)):.80} is not known"
        )
    return NORMAL_FORMS[kinds[0] if kinds else None]


def from_byte_level(data: Json, settings: Settings) -> Tokenizer:
    """A byte-level BPE in Hugging Face's JSON, for tiktoken.

    Raises
    ------
    ValueError
        If it splits, normalises or merges in a way that is not known.
    """
    check_bpe(data["model"])
    normalise, split = (
        normal_form(data.get("normalizer")),
        split_of(data["pre_tokenizer"]),
    )
    vocabulary = data["model"]["vocab"]
    apart = special_names(settings)
    pairs = merge_pairs(data["model"]["merges"])
    pairs = [pair for pair in pairs if "".join(pair) not in apart]
    merge = merger_of(data["model"], vocabulary, pairs, apart, split.pattern)

    def spaced(text: str, begins: bool) -> list[int]:
        lacks = split.prefix_space and text and not text.startswith(" ")
        return merge(f" {text}" if lacks else text)

    letters = byte_letters()
    return assemble(
        {i: byte_token(name, letters) for name, i in vocabulary.items()},
        LLAMA3_ENDS,
        settings,
        kind="tiktoken",
        merge=spaced,
        leading_space=False,
        normalise=normalise,
    )


def check_bpe(model: Json) -> None:
    """Raise ValueError for a model that merges in another way than byte pairs."""
    others = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    if found := [key for key in others if model.get(key)]:
        raise ValueError(f"a byte-level BPE has no {found[0]}")
    if model.get("dropout"):
        raise ValueError("model.dropout makes tokens by chance; set it to null")


def check_added(vocabulary: Mapping[str, int], added: Sequence[Added]) -> None:
    """Raise ValueError if an added token has the id of a token with another name."""
    names = {i: name for name, i in vocabulary.items()}
    for token in added:
        if names.get(token.id, token.name) != token.name:
            raise ValueError(
                f"the added token {token.name!r:.40} has the id {token.id} of "
                f"{names[token.id]!r:.40}"
            )


def byte_token(name: str, letters: Mapping[str, int]) -> Token:
    """A token of a byte-level vocabulary; a name in other letters is plain text."""
    try:
        content = bytes(letters[c] for c in name)
    except KeyError:
        content = name.encode()
    return Token(content.decode("utf-8", "replace"), content)


def merger_of(
    model: Json,
    vocabulary: Mapping[str, int],
    pairs: Sequence[tuple[str, str]],
    apart: set[str],
    pattern: str,
) -> Callable[[str], list[int]]:
    """The tokens of a text by tiktoken, given the model of a ``tokenizer.json``."""
    ranks = ranks_of(pairs)
    check_merges(pairs, ranks)
    letters = byte_letters()
    never = [t for t in vocabulary if len(t) > 1 and t not in ranks and t not in apart]
    if model.get("ignore_merges") and any(set(t) <= letters.keys() for t in never):
        raise ValueError(f"model.merges does not make the token {never[0]!r:.40}")
    if lost := [token for token in ranks if token not in vocabulary]:
        raise ValueError(f"model.merges makes {lost[0]!r:.40}, which has no id")
    order = [*letters, *sorted(ranks, key=ranks.__getitem__)]
    unknown = vocabulary.get(model.get("unk_token"))
    ids = [vocabulary.get(token, unknown) for token in order]
    return merger([bytes(letters[c] for c in t) for t in order], pattern, ids)
