"""Language models of a few words, for searches whose results are known.

Strategies that write whole texts are called with a function from a text to the logits
of the next token.  The models here give every text a different row, so a sampler that
confuses two texts, or forgets a token, sees other logits.  They have so few texts that
all of them can be listed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.strategies import array
from npllama.testing.truth import GONE, log_softmax

Process = Callable[[Sequence[int], NDArray], NDArray]
Text = tuple[int, ...]


@dataclass(frozen=True)
class LanguageModel:
    """Logits for every text: ``model(tokens)`` is (V,) float32, without ties."""

    size: int  # V
    seed: int
    scale: float = 1.5

    def __call__(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return _logits(self, tuple(map(int, tokens))).copy()


@functools.lru_cache(10_000)
def _logits(model: LanguageModel, tokens: Text) -> NDArray[np.float32]:
    rng = np.random.default_rng([model.seed, *tokens])
    return array(rng.standard_normal(model.size) * model.scale)


def models(size: int = 3) -> st.SearchStrategy[LanguageModel]:
    """Models of `size` words."""
    return st.integers(0, 999).map(lambda seed: LanguageModel(size, seed))


def log_probs(model: Callable, text: Sequence[int]) -> NDArray[np.float64]:
    """Log-probabilities of every next token, (V,) float64."""
    return log_softmax(np.asarray(model(text)))


def texts(size: int, most: int, eos: int | None) -> Iterator[Text]:
    """Every text of up to `most` tokens that ends with `eos` or is full."""
    for n in range(1, most + 1):
        for text in itertools.product(range(size), repeat=n):
            ends = text[-1] == eos or n == most
            if ends and eos not in text[:-1]:
                yield text


def log_prob(model: Callable, prompt: Sequence[int], text: Text) -> float:
    """Log-probability of a text after a prompt."""
    steps = range(len(text))
    return sum(float(log_probs(model, [*prompt, *text[:i]])[text[i]]) for i in steps)


def greedy_text(
    model: Callable, prompt: Sequence[int], most: int, eos: int | None
) -> list[int]:
    """The most probable token, again and again."""
    text: list[int] = []
    while len(text) < most and (not text or text[-1] != eos):
        text.append(int(np.argmax(model([*prompt, *text]))))
    return text


@dataclass(frozen=True)
class Processed:
    """A model as it is after a `process`."""

    model: Callable
    process: Process

    def __call__(self, tokens: Sequence[int]) -> NDArray:
        return self.process(tokens, self.model(tokens))


@dataclass(frozen=True, repr=False)
class Named:
    """A function that says what it does when it is shown."""

    what: str
    function: Callable

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __repr__(self) -> str:
        return self.what


def _twice_as_sure(text: Sequence[int], logits: NDArray) -> NDArray:
    return logits * np.float32(2)


def _without_the_last(text: Sequence[int], logits: NDArray) -> NDArray:
    out = logits.copy()
    out[text[-1]] = GONE
    return out


def _two_best(text: Sequence[int], logits: NDArray) -> NDArray:
    return np.where(logits >= np.sort(logits)[-2], logits, np.float32(GONE))


PLAIN = Named("none", lambda text, logits: logits)
SURE = Named("temperature 0.5", _twice_as_sure)
NO_REPEAT = Named("never the same token twice in a row", _without_the_last)
TWO_BEST = Named(
    "temperature 0.5, then the two most probable",
    lambda text, logits: _two_best(text, _twice_as_sure(text, logits)),
)
