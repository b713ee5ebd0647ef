"""Many requests at once: the engine beside one text after the other, and its peers.

Every program writes the same traffic greedily: requests that are all there at the
beginning, with prompts and answers of unequal lengths, or all alike.  A figure is the
tokens of all answers, divided by the seconds until the last is whole.

npllama runs 16 texts at a time, or one after the other on the same engine.
transformers' ``generate`` pads prompts to one batch, and writes until the longest
answer is whole.  llama.cpp gets what its server does, without the socket: 16 slots,
each pass one token of every text that is not whole, prompts in pieces of 512.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from npllama.bench import batches, programs
from npllama.bench.worker import interleaved

SLOTS = 16
PROMPTS, ANSWERS = (16, 128), (16, 96)  # tokens, from and up to
ALIKE = 64  # tokens of each prompt and answer, where all are alike


class Ask(NamedTuple):
    """A prompt, and how many tokens are to follow."""

    prompt: np.ndarray  # (T,) int64
    new: int


def traffic(requests: int, alike: bool = False) -> list[Ask]:
    """The same requests for every program."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(*PROMPTS, requests), rng.integers(*ANSWERS, requests)
    if alike:
        lengths = (np.full(requests, ALIKE),) * 2
    return [Ask(rng.integers(3, 1000, T), int(new)) for T, new in zip(*lengths)]


class Timed:
    """What can be asked of a program; a subclass says how it serves."""

    def hello(self) -> dict[str, Any]:
        """Say who is there."""
        return {"name": self.name, "variants": self.variants}  # type: ignore

    def time(self, requests: int, alike: bool, repeats: int) -> dict[str, list[float]]:
        """Seconds until all are answered, for each variant, after a few that warm up."""
        asks = traffic(requests, alike)
        self.serve(self.variants[0], asks[:2])  # type: ignore
        calls = {v: lambda v=v: self.serve(v, asks) for v in self.variants}  # type: ignore
        return interleaved(calls, repeats)

    def serve(self, variant: str, asks: list[Ask]) -> list[list[int]]:
        """Answer all; the tokens of every answer."""
        raise NotImplementedError


class NpLlama(Timed):
    """The engine: `SLOTS` texts at a time, or one."""

    name, variants = "npllama", ("together", "one by one")

    def __init__(self, threads: int, path: str):
        from npllama.files.checkpoint import load

        self.model = load(path)

    def serve(self, variant: str, asks: list[Ask]) -> list[list[int]]:
        from npllama.generation.options import GenerationConfig
        from npllama.serving.collect import answers
        from npllama.serving.engine import Engine
        from npllama.serving.requests import Request
        from npllama.serving.scheduler import Limits

        slots = SLOTS if variant == "together" else 1
        pages = SLOTS * -(-(PROMPTS[1] + ANSWERS[1]) // 16)
        # Nothing is shared: a second round must not find the pages of the first.
        engine = Engine(self.model, pages, 16, Limits(requests=slots), reuse=False)
        requests = [
            Request(
                ask.prompt.tolist(),
                GenerationConfig(max_new_tokens=ask.new, eos_token_id=[]),
            )
            for ask in asks
        ]
        found = sorted(answers(engine, requests, len(asks)))
        return [answer.texts[0].tokens for answer in found]


class Torch(programs.Torch, Timed):
    """A padded batch through transformers' `generate`."""

    variants = ("sdpa",)

    def serve(self, variant: str, asks: list[Ask]) -> list[list[int]]:
        torch, most = self.torch, max(len(ask.prompt) for ask in asks)
        ids = np.zeros((len(asks), most), np.int64)
        seen = np.zeros_like(ids)
        for row, ask in enumerate(asks):
            ids[row, most - len(ask.prompt) :] = ask.prompt
            seen[row, most - len(ask.prompt) :] = 1
        out = self.models[variant].generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(seen),
            max_new_tokens=max(ask.new for ask in asks),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return [row[most : most + a.new].tolist() for row, a in zip(out, asks)]


class LlamaCpp(batches.LlamaCpp, Timed):
    """Sequences of one context, as llama.cpp's server keeps them."""

    variants = ("plain",)

    def serve(self, variant: str, asks: list[Ask]) -> list[list[int]]:
        self._empty(variant)
        for rows in pieces_of([len(ask.prompt) - 1 for ask in asks]):
            self._decode(variant, {row: asks[row].prompt[:-1] for row in rows})
        last = {row: ask.prompt[-1:] for row, ask in enumerate(asks)}
        written: list[list[int]] = [[] for _ in asks]
        while last:
            self._decode(variant, last)
            for place, row in enumerate(list(last)):
                logits = self.api.llama_get_logits_ith(self.contexts[variant], place)
                numbers = np.ctypeslib.as_array(logits, (self.vocabulary,))
                written[row].append(int(numbers.argmax()))
                last[row] = np.array(written[row][-1:])
                if len(written[row]) == asks[row].new:
                    del last[row]
        return written

    def _empty(self, variant: str) -> None:
        """Make the context, or forget what it holds."""
        if self.contexts[variant] is None:
            self.fill(variant, SLOTS, 0)
        context = self.contexts[variant]
        self.api.llama_memory_clear(self.api.llama_get_memory(context), False)
        self.at = dict.fromkeys(range(SLOTS), 0)


def pieces_of(lengths: list[int], most: int = 512) -> list[list[int]]:
    """Rows that go into one pass: as many as fit.

    >>> pieces_of([300, 200, 100], 512)
    [[0, 1], [2]]
    """
    found, left = [], 0
    for row, length in enumerate(lengths):
        if length > left:
            found.append([])
            left = most
        found[-1].append(row)
        left -= length
    return found


PROGRAMS = {"npllama": NpLlama, "torch": Torch, "llama.cpp": LlamaCpp}
