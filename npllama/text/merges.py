r"""Merging by rank.

A tokenizer is trained by counting: the most frequent pair of neighbours becomes a new
token, again and again.  To cut a word, the same merges are made in the same order:

    l o w e r  ->  l ow e r  ->  low e r  ->  low er  ->  lower

A ``tokenizer.json`` lists the pairs.  tiktoken and SentencePiece keep no pairs: they
merge two neighbours if together they are a token, the lowest rank first.  The
two ways agree if every token, merged only with the ranks below its own, ends
as exactly the pair that the list has for it.  What stands beside a token in a
text cannot change this, since a merge across its border would have removed the
border.  `check_merges` makes this test, so that no library gets a vocabulary
that it would cut in another way.

References
----------
Sennrich et al. 2016, arXiv:1508.07909, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

Pair = tuple[str, str]


def merge_pairs(written: Sequence[str | Sequence[str]]) -> list[Pair]:
    """The merges of a ``tokenizer.json``, in which a pair may be one string."""
    pairs = []
    for entry in written:
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if (
            not isinstance(pair, (list, tuple))
            or len(pair) != 2
            or not all(isinstance(part, str) for part in pair)
        ):
            raise ValueError(f"model.merges has {entry!r:.40}, which is not a pair")
        pairs.append((pair[0], pair[1]))
    return pairs


def ranks_of(pairs: Sequence[Pair]) -> dict[str, int]:
    """The rank of each token: how early it is made."""
    ranks: dict[str, int] = {}
    for rank, (first, second) in enumerate(pairs):
        ranks.setdefault(first + second, rank)
    return ranks


def cut(word: str, ranks: Mapping[str, int], below: int) -> list[str]:
    """Merge the characters of a word, using the merges of a rank below `below`."""
    parts = list(word)
    while True:
        costs = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        best = min(costs, default=below)
        if best >= below:
            return parts
        at = costs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def check_merges(pairs: Sequence[Pair], ranks: Mapping[str, int]) -> None:
    """Raise ValueError unless merging by rank and by these pairs is the same.

    If the list has, for one token after the other, every pair that can make
    it, then it is a list of ranks written as pairs, and its tokens need no
    test.
    """
    if _written_out(pairs, ranks):
        return
    for token, rank in ranks.items():
        if tuple(cut(token, ranks, rank)) != pairs[rank]:
            raise ValueError(
                "model.merges is not in the order in which its tokens are made "
                f"(see {token!r:.40})"
            )


def _written_out(pairs: Sequence[Pair], ranks: Mapping[str, int]) -> bool:
    """Whether the list has all pairs of each token, token by token."""
    made = [a + b for a, b in pairs]
    listed = set(pairs)
    together = all(
        a == b or ranks[b] == i for i, (a, b) in enumerate(pairwise(made), 1)
    )
    return together and all(
        (token[:i], token[i:]) in listed
        for token in ranks
        for i in range(1, len(token))
        if _known(token[:i], ranks) and _known(token[i:], ranks)
    )


def _known(token: str, ranks: Mapping[str, int]) -> bool:
    return len(token) == 1 or token in ranks
