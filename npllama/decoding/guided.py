"""Text held to a format: mask the tokens that would leave it, then choose.

Before each choice, every token that would make a match impossible gets a logit of
-inf.  The rest is the model's distribution under the condition that the next token
fits.  So greedy search, sampling and beams all obey a regular expression or a JSON
schema with certainty.

Which tokens fit depends only on the places at which the `automaton` is.  Tokens are
bytes, and many begin with the same ones, so all tokens are tried together, as a
tree: all first bytes, then all second bytes after the first bytes that fit, and so
on.  The tree of a vocabulary is a few arrays.  For the tokens a, ab, b they are

    first bytes    a b       parents 0 0 (the beginning)
    second bytes   b         parents 0   (the first node of the row above)

and a row of the tree is one look-up in the table of the machine's moves.  The tree
depends on the tokenizer alone: `vocabulary_of` makes it once for each.

*Token healing* is the same idea with the simplest format.  A prompt that ends in the
middle of a word is cut into other tokens than the whole word would be, which misleads
the model.  So the last token is taken back, and the new text must begin with its
bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple, Protocol
from weakref import finalize

import numpy as np

from npllama.decoding.automaton import (
    ACCEPT,
    START,
    Machine,
    Places,
    empty_machine,
    enter,
    step,
)
from npllama.decoding.common import Process
from npllama.sampling import NothingLeft
from npllama.text.tokenizer import Tokenizer

MOST_MASKS = 200  # kept at a time, of V bytes each
MOST_TEXTS = 256  # whose places are kept at a time
DEAD, UNKNOWN = 0, -1  # rows and entries of the table of moves


class Vocabulary(NamedTuple):
    """What each token adds to a text, and the tree of these bytes.

    Attributes
    ----------
    contents : list of bytes
        Per token; empty where it adds nothing.
    rows : list of (parents, bytes)
        Per row of the tree, two arrays with an entry per node: its parent in
        the row before, and its byte.
    nodes : (V,) int64
        Per token, the node at which it ends, counted through all rows; -1 for tokens
        that add nothing.
    """

    contents: list[bytes]
    rows: list[tuple[np.ndarray, np.ndarray]]
    nodes: np.ndarray


def vocabulary_tree(contents: Sequence[bytes]) -> Vocabulary:
    """Arrange tokens in a tree, row by row.

    >>> tree = vocabulary_tree([b"a", b"ab", b"", b"b"])
    >>> [(parents.tolist(), bytes(b)) for parents, b in tree.rows], tree.nodes.tolist()
    ([([0, 0], b'ab'), ([0], b'b')], [0, 2, -1, 1])
    """
    lengths = np.array([len(content) for content in contents])  # (V,)
    first = np.cumsum(lengths) - lengths  # (V,)
    flat = np.frombuffer(b"".join(contents), dtype=np.uint8)
    at = np.zeros(len(contents), dtype=np.int64)  # (V,), nodes of the row before
    nodes = np.full(len(contents), -1)  # (V,)
    rows, passed = [], 0
    for depth in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > depth)
        keys = at[longer] * 256 + flat[first[longer] + depth]
        new, place = np.unique(keys, return_inverse=True)
        rows.append((new // 256, (new % 256).astype(np.uint8)))
        at[longer] = place
        ends = lengths[longer] == depth + 1
        nodes[longer[ends]] = passed + place[ends]
        passed += len(new)
    return Vocabulary(list(contents), rows, nodes)


_VOCABULARIES: dict[int, Vocabulary] = {}


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The tree of a tokenizer's tokens, made once and kept as long as the tokenizer."""
    key = id(tokenizer)
    if key not in _VOCABULARIES:
        contents = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        _VOCABULARIES[key] = vocabulary_tree(contents)
        finalize(tokenizer, _VOCABULARIES.pop, key)
    return _VOCABULARIES[key]


class Look(NamedTuple):
    """What may follow a text."""

    allowed: np.ndarray  # (V,) bool, end tokens included
    whole: bool  # whether the text so far already matches


class Format(Protocol):
    """Anything that knows what may follow a text: `Guide`, or the one of `engine`."""

    eos: list[int]

    def look(self, tokens: Sequence[int]) -> Look:
        """What may follow these tokens, even if they do not fit the format."""

    def finished(self, tokens: Sequence[int]) -> bool:
        """Whether a text matches and nothing can be added."""


class Guide:
    """A machine, and the tokens of one vocabulary that keep to it.

    Parameters
    ----------
    machine : Machine
    vocabulary : Vocabulary
    eos : token ids
        Allowed only where the text matches already; ids outside the vocabulary are
        ignored.
    """

    def __init__(
        self, machine: Machine, vocabulary: Vocabulary, eos: Collection[int] = ()
    ):
        self.machine, self.vocabulary = machine, vocabulary
        self.eos = [token for token in eos if token < len(vocabulary.contents)]
        self.start = enter(machine, frozenset([START]))
        # Sets of places get numbers as they occur, so that a move is a table entry.
        self.met: list[Places] = [frozenset()]
        self.numbers: dict[Places, int] = {frozenset(): DEAD}
        self.moves = np.full((64, 256), UNKNOWN, dtype=np.int32)
        self.moves[DEAD] = DEAD
        self.masks: dict[Places, np.ndarray] = {}
        self.texts: dict[tuple[int, ...], int] = {(): self._number(self.start)}

    def after(self, tokens: Sequence[int]) -> Places:
        """The places after a text; empty if it does not fit the format."""
        text = tuple(tokens)
        if len(self.texts) >= MOST_TEXTS:
            self.texts = {(): self.texts[()]}
        # Most texts are one token longer than one that was read before.
        before = text if text in self.texts else text[:-1]
        before = before if before in self.texts else ()
        number = self.texts[before]
        for token in text[len(before) :]:
            for byte in self.vocabulary.contents[token]:
                number = self._one_move(number, byte)
        self.texts[text] = number
        return self.met[number]

    def allowed(self, places: Places) -> np.ndarray:
        """Which tokens may come next.

        Returns
        -------
        (V,) bool
        """
        if places not in self.masks:
            if len(self.masks) >= MOST_MASKS:
                self.masks.clear()
            mask = self._tried(places)
            mask[self.eos] = ACCEPT in places
            self.masks[places] = mask
        return self.masks[places]

    def look(self, tokens: Sequence[int]) -> Look:
        """What may follow these tokens."""
        places = self.after(tokens)
        return Look(self.allowed(places), ACCEPT in places)

    def finished(self, tokens: Sequence[int]) -> bool:
        """Whether a text matches and nothing can be added."""
        allowed, whole = self.look(tokens)
        more = allowed.copy()
        more[self.eos] = False
        return whole and not more.any()

    def _tried(self, places: Places) -> np.ndarray:
        """Try all tokens, row after row of their tree, (V,) bool."""
        at = np.array([self._number(places)])
        reached = [np.zeros(0, dtype=bool)]
        for parents, content in self.vocabulary.rows:
            at = self._move(at[parents], content)
            reached.append(at != DEAD)
        alive = np.append(np.concatenate(reached), False)  # -1 adds no text
        return alive[self.vocabulary.nodes]

    def _move(self, at: np.ndarray, content: np.ndarray) -> np.ndarray:
        """Where each byte leads from the set of places with the number beside it.

        Parameters
        ----------
        at : (M,) int
        content : (M,) int

        Returns
        -------
        (M,) int
        """
        ahead = self.moves[at, content]
        new = ahead == UNKNOWN
        if new.any():
            for key in np.unique(at[new].astype(np.int64) * 256 + content[new]):
                self._one_move(*divmod(int(key), 256))
            ahead = self.moves[at, content]
        return ahead

    def _one_move(self, number: int, byte: int) -> int:
        if self.moves[number, byte] == UNKNOWN:
            places = step(self.machine, self.met[number], byte)
            self.moves[number, byte] = self._number(places)
        return int(self.moves[number, byte])

    def _number(self, places: Places) -> int:
        if places not in self.numbers:
            self.numbers[places] = len(self.met)
            self.met.append(places)
            if len(self.met) > len(self.moves):
                more = np.full_like(self.moves, UNKNOWN)
                self.moves = np.concatenate([self.moves, more])
        return self.numbers[places]


def guide_for(
    tokenizer: Tokenizer, machine: Machine, eos: Collection[int] = ()
) -> Guide:
    """A guide that holds text to what a machine accepts."""
    return Guide(machine, vocabulary_of(tokenizer), eos)


def guided(guide: Format, start: Sequence[int]) -> Process:
    """The `process` that masks what does not fit.

    Parameters
    ----------
    guide : Guide, or another `Format`
    start : sequence of int
        The length of each row's prompt: the format binds the text after it.  One
        number is enough if all rows continue one prompt, as beams do.

    Returns
    -------
    function of (histories, logits) to logits
        A row whose text is complete, where no end token is allowed, keeps its
        logits: it has ended and only waits for its neighbours.

    Raises
    ------
    NothingLeft
        When a text is not whole and no token of the vocabulary can go on.
    """
    return partial(masked, guide, start)


def masked(
    guide: Format,
    start: Sequence[int],
    history: Sequence[Sequence[int]],
    logits: np.ndarray,
) -> np.ndarray:
    """The process of `guided`: (B, V) to (B, V) float."""
    left = np.full_like(logits, -np.inf)
    for row, tokens in enumerate(history):
        allowed, whole = guide.look(tokens[start[row % len(start)] :])
        # Tokenizer and model may know different numbers of tokens.
        allowed = allowed[: logits.shape[1]]
        if not allowed.any() and whole:
            left[row] = logits[row]
        elif not allowed.any():
            error = NothingLeft("format: no token of the vocabulary can go on")
            error.row = row
            raise error
        V = len(allowed)
        left[row, :V][allowed] = logits[row, :V][allowed]
    return left


def heal(tokenizer: Tokenizer, prompt: Sequence[int]) -> tuple[list[int], Guide | None]:
    """Take back the last token of a prompt, and make a guide that restores its bytes.

    Returns
    -------
    prompt : list of int
        Without its last token; unchanged if that token adds no text, or is the only
        one.
    guide : Guide or None
        Allows tokens that begin with the bytes taken back, or are a beginning of
        them; once the bytes are restored, it allows every token.

    References
    ----------
    Lundberg 2023 (guidance, "token healing").  transformers adds a bias of 10 to
    such tokens instead of ruling the others out.
    """
    taken = tokenizer.token_bytes(prompt[-1]) if len(prompt) > 1 else b""
    if not taken:
        return list(prompt), None
    return list(prompt[:-1]), guide_for(tokenizer, beginning_with(taken))


def beginning_with(prefix: bytes) -> Machine:
    """The machine of all texts that begin with given bytes."""
    machine = empty_machine()
    at = START[0]
    for i, byte in enumerate(prefix):
        last = i == len(prefix) - 1
        if not last:
            for arrows in (machine.silent, machine.steps, machine.calls):
                arrows.append([])
        target = ACCEPT[0] if last else len(machine.steps) - 1
        machine.steps[at].append((byte, byte, target))
        at = target
    machine.steps[ACCEPT[0]].append((0, 255, ACCEPT[0]))
    return machine
