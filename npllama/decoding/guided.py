"""Text held to a format: mask the tokens that would leave it, then choose.

Before each choice, every token that would make a match impossible gets a logit of
-inf.  What is left is the model's distribution under the condition that the next
token fits; a regular expression or a JSON schema is so obeyed with certainty, by
greedy search, sampling and beams alike.

Which tokens fit depends only on the state of the `automaton`.  Tokens are bytes, so
all of them are tried together by walking a tree of the vocabulary: a byte that
leads nowhere cuts off every token that goes on from it.

*Token healing* is the same idea with the simplest format.  A prompt that ends in
the middle of a word was cut into other tokens than the word would have been, which
leads the model astray; so its last token is taken back, and the new text is held to
begin with that token's bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from npllama.decoding.automaton import (
    ACCEPT,
    START,
    Machine,
    enter,
    step,
)
from npllama.decoding.common import Process
from npllama.text.tokenizer import Tokenizer

States = frozenset[int]
END = -1  # key under which a node of the vocabulary tree lists whole tokens


class Guide:
    """A format, and the tokens of one vocabulary that keep to it.

    Parameters
    ----------
    machine : Machine
    vocabulary : sequence of bytes
        What each token adds to a text; empty where it adds nothing.
    eos : token ids
        Allowed only where the text matches as it stands; those that the vocabulary
        lacks never come.
    """

    def __init__(
        self, machine: Machine, vocabulary: Sequence[bytes], eos: Collection[int] = ()
    ):
        self.machine, self.vocabulary = machine, vocabulary
        self.eos = [token for token in eos if token < len(vocabulary)]
        self.tree = vocabulary_tree(vocabulary)
        self.start = enter(machine, frozenset([START]))
        # A machine has few reachable states, so what was worked out is kept.
        self.steps: dict[tuple[States, int], States] = {}
        self.masks: dict[States, np.ndarray] = {}

    def step(self, states: States, byte: int) -> States:
        """Where one more byte leads."""
        key = (states, byte)
        if key not in self.steps:
            self.steps[key] = step(self.machine, states, byte)
        return self.steps[key]

    def after(self, tokens: Sequence[int]) -> States:
        """Where a text leads; empty if it does not fit the format."""
        states = self.start
        for token in tokens:
            for byte in self.vocabulary[token]:
                states = self.step(states, byte)
        return states

    def allowed(self, states: States) -> np.ndarray:
        """Which tokens may come next.

        Returns
        -------
        (V,) bool
        """
        if states not in self.masks:
            mask = np.zeros(len(self.vocabulary), dtype=bool)  # (V,)
            self._walk(self.tree, states, mask)
            mask[self.eos] = ACCEPT in states
            self.masks[states] = mask
        return self.masks[states]

    def _walk(self, node: dict, states: States, mask: np.ndarray) -> None:
        for byte, child in node.items():
            if byte == END:
                mask[child] = True
            elif ahead := self.step(states, byte):
                self._walk(child, ahead, mask)

    def finished(self, tokens: Sequence[int]) -> bool:
        """Whether a text matches and nothing can be added."""
        states = self.after(tokens)
        more = self.allowed(states).copy()
        more[self.eos] = False
        return ACCEPT in states and not more.any()


def vocabulary_tree(vocabulary: Sequence[bytes]) -> dict:
    """Tokens by their bytes: a dict per prefix; under `END`, the tokens that end."""
    tree: dict = {}
    for token, content in enumerate(vocabulary):
        node = tree
        for byte in content:
            node = node.setdefault(byte, {})
        if content:
            node.setdefault(END, []).append(token)
    return tree


def guide_for(
    tokenizer: Tokenizer, machine: Machine, eos: Collection[int] = ()
) -> Guide:
    """A guide that holds text to what a machine accepts."""
    vocabulary = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    return Guide(machine, vocabulary, eos)


def guided(guide: Guide, start: Sequence[int]) -> Process:
    """The `process` that masks what does not fit.

    Parameters
    ----------
    guide : Guide
    start : sequence of int
        Per row, the length of its prompt: the format binds what comes behind it.
        One number serves for all rows, such as the beams of one prompt.

    Returns
    -------
    function of (histories, logits) to logits
        A row whose text is whole, with no end token to say so, keeps its logits: it
        waits for its neighbours, and what would come next is not asked.

    Raises
    ------
    ValueError
        When a text is not whole and no token of the vocabulary can go on.
    """

    def process(history: Sequence[Sequence[int]], logits: np.ndarray) -> np.ndarray:
        masked = np.full_like(logits, -np.inf)
        for row, tokens in enumerate(history):
            states = guide.after(tokens[start[row % len(start)] :])
            # Tokenizer and model may know different numbers of tokens.
            allowed = guide.allowed(states)[: logits.shape[1]]
            if not allowed.any() and ACCEPT in states:
                masked[row] = logits[row]
            elif not allowed.any():
                raise ValueError("format: no token of the vocabulary can go on")
            V = len(allowed)
            masked[row, :V][allowed] = logits[row, :V][allowed]
        return masked

    return process


def heal(tokenizer: Tokenizer, prompt: Sequence[int]) -> tuple[list[int], Guide | None]:
    """Take back the last token of a prompt, and a guide that restores its bytes.

    Returns
    -------
    prompt : list of int
        Without its last token; unchanged if that one adds no text, or is the only
        one.
    guide : Guide or None
        Lets any token come that begins with the bytes taken back, or that is a
        beginning of them; once they are restored, everything.

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
    machine = Machine([[], []], [[], []])
    at = START
    for i, byte in enumerate(prefix):
        last = i == len(prefix) - 1
        if not last:
            machine.silent.append([])
            machine.steps.append([])
        target = ACCEPT if last else len(machine.steps) - 1
        machine.steps[at].append((byte, byte, target))
        at = target
    machine.steps[ACCEPT].append((0, 255, ACCEPT))
    return machine
