"""What decoding costs and saves: chance beside greedy, guesses beside one by one.

Chance: temperature, top-k and top-p over a whole vocabulary at every step, against
greedy search, whole texts through `generate`.

Guesses: prompt lookup on repetitive text, against one token at a time.  What a model
of random weights says does not resemble a text, so it is made to say one: a phrase
over and over, with one word changed in every repetition (as a form letter or a
table row).  Both ways run the model in full and are forced alike, by a `process`
that leaves one token; only how often the lookup guesses right comes from the text.

The shipped pair: how many of four tokens that `stories-draft` proposes are kept by
`stories`, drawn at temperature 1 and greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from npllama.bench.worker import interleaved

# Seven guesses and the token before them: eight rows, which BLAS has a kernel for.
GUESSES, PERIOD = 7, 24
BEGINNING = 15  # tokens of a story that the pair goes on from, besides the first


def repetitive(V: int, tokens: int) -> list[int]:
    """A phrase of 24 tokens again and again, another of its tokens replaced each time.

    Returns
    -------
    list of int
        Token ids from 3 to V - 1.
    """
    rng = np.random.default_rng(0)
    phrase = rng.integers(3, V, PERIOD)
    text: list[int] = []
    while len(text) < tokens:
        again = phrase.copy()
        again[rng.integers(PERIOD)] = rng.integers(3, V)
        text += again.tolist()
    return text[:tokens]


def saying(text: Sequence[int]):
    """A `process` that leaves nothing but the text's next token."""

    def process(history: Sequence[Sequence[int]], logits: np.ndarray) -> np.ndarray:
        only = np.full_like(logits, -np.inf)
        for row, said in enumerate(history):
            only[row, text[len(said)]] = 0
        return only

    return process


class NpLlama:
    """`npllama` on one model of random weights."""

    def __init__(self, threads: int, path: str):
        from npllama.files.checkpoint import load

        self.m = load(path)

    def time_sampling(self, tokens: int, repeats: int) -> dict[str, Any]:
        """Seconds of a text decided greedily, and of one drawn."""
        from npllama import GenerationConfig, generate

        V = self.m.config.vocab_size
        prompt = np.random.default_rng(1).integers(3, V, 8).tolist()
        chance = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}

        def write(**options: Any) -> None:
            config = GenerationConfig(max_new_tokens=tokens, eos_token_id=(), **options)
            generate(self.m, [prompt], config, np.random.default_rng(0))

        calls = {"greedy": write, "sampling": lambda: write(**chance)}
        return {"seconds": interleaved(calls, repeats)}

    def time_beams(self, beams: int, tokens: int, repeats: int) -> list[float]:
        """Seconds of a beam search for a text."""
        from npllama import GenerationConfig, generate

        prompt = np.random.default_rng(1).integers(3, 60, 8).tolist()
        config = GenerationConfig(
            num_beams=beams, max_new_tokens=tokens, eos_token_id=()
        )
        call = {"": lambda: generate(self.m, [prompt], config)}
        return interleaved(call, repeats + 1)[""][1:]

    def time_lookup(self, tokens: int, repeats: int) -> dict[str, Any]:
        """Seconds of decoding a repetitive text, token by token and with prompt lookup."""
        from npllama.cache import new_cache
        from npllama.decoding.common import Job
        from npllama.decoding.prompt_lookup import prompt_lookup
        from npllama.decoding.sample import sample
        from npllama.decoding.speculative import speculate
        from npllama.model import forward

        text = repetitive(self.m.config.vocab_size, 2 * PERIOD + tokens + 1)
        prompt, process = text[: 2 * PERIOD], saying(text)
        steps: list = []
        # All but the prompt's last token has been run: what is timed is decode.
        cache = new_cache(self.m.config, 1, len(text))
        forward(self.m, np.array([prompt[:-1]]), cache, last=True)
        job = Job(self.m, prompt, tokens, process=process, cache=cache)

        def one_by_one() -> None:
            cache.length[:] = len(prompt) - 1
            for _ in sample([job]):
                pass

        def looked_up() -> None:
            cache.length[:] = len(prompt) - 1
            steps[:] = speculate(job, prompt_lookup(), GUESSES)

        calls = {"one by one": one_by_one, "prompt lookup": looked_up}
        seconds = interleaved(calls, repeats)
        return {"seconds": seconds, "passes": len(steps)}


class Torch:
    """`generate` of transformers on the same model."""

    def __init__(self, threads: int, path: str):
        from npllama.bench.programs import Torch

        self.program = Torch(threads, path)

    def time_beams(self, beams: int, tokens: int, repeats: int) -> list[float]:
        """Seconds of a beam search for a text."""
        prompt = np.random.default_rng(1).integers(3, 60, 8).tolist()
        ids = self.program.torch.tensor([prompt])
        options = {"num_beams": beams, "max_new_tokens": tokens, "do_sample": False}
        options |= {"eos_token_id": None, "pad_token_id": 0}
        model = self.program.models["sdpa"]
        call = {"": lambda: model.generate(ids, **options)}
        return interleaved(call, repeats + 1)[""][1:]


class Pair:
    """The two models that ship."""

    def __init__(self, threads: int, *ignored: str):
        from npllama.files.checkpoint import load

        self.m, self.draft = load("stories"), load("stories-draft")

    def kept(self, texts: int, guesses: int) -> dict[str, float]:
        """Mean number of guesses kept per round that was not cut short by an end."""
        return {
            "greedy": self._mean(texts, guesses, greedily=True),
            "temperature 1": self._mean(texts, guesses, greedily=False),
        }

    def _beginning(self, seed: int) -> list[int]:
        """The first tokens of a story that the larger model tells."""
        from npllama import GenerationConfig, generate

        config = GenerationConfig(max_new_tokens=BEGINNING, do_sample=True)
        first = [self.m.config.bos_token_id]
        told = generate(self.m, [first], config, np.random.default_rng(seed))
        return [*first, *told[0].tokens]

    def _mean(self, texts: int, guesses: int, greedily: bool) -> float:
        from npllama.decoding.common import Job
        from npllama.decoding.speculative import assisted, speculate
        from npllama.decoding.stopping import at_tokens

        kept = []
        for seed in range(texts):
            prompt = self._beginning(seed)
            rng = None if greedily else np.random.default_rng(seed)
            job = Job(self.m, prompt, 400, at_tokens([2]), rng=rng)
            small = assisted(job._replace(model=self.draft))
            found = speculate(job, small, guesses)
            kept += [r.accepted for r in found if r.drafted == guesses and not r.reason]
        return float(np.mean(kept))


PROGRAMS = {"npllama": NpLlama, "torch": Torch, "pair": Pair}
