"""Many texts at once, and long ones: decode and prefill after positions in a cache.

What lies in the caches is random: only its size matters.  llama.cpp cannot be handed
keys, so it reads that many random tokens first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from npllama.bench import programs
from npllama.bench.worker import interleaved

ROOM = 1100  # positions that a measurement may add: four pieces of a prompt


class NpLlama(programs.NpLlama):
    """Rows of one batch, and the same bit-exact in any company."""

    variants = ("forward", "rowwise")

    def fill(self, variant: str, rows: int, cached: int) -> None:
        """Let every row hold so many positions."""
        from npllama.cache import new_cache

        self.cache = new_cache(self.m.config, rows, cached + ROOM)
        rng = np.random.default_rng(0)
        for array in self.cache[:2]:
            for layer in array:
                layer[...] = rng.standard_normal(layer.shape, dtype=np.float32)
        self.cache.length[:] = cached

    def run(self, variant: str, tokens: np.ndarray) -> None:
        """Add (rows, T) tokens."""
        with self.ops.rowwise(variant == "rowwise"):
            self.forward(self.m, tokens, self.cache, last=True)


class Torch(programs.Torch):
    """A padded batch of transformers, all rows of one length."""

    def fill(self, variant: str, rows: int, cached: int) -> None:
        """Let every row hold so many positions."""
        from transformers import DynamicCache

        config = self.models[variant].config
        heads, D = config.num_key_value_heads, config.head_dim
        self.caches[variant] = DynamicCache(config=config)
        for layer in range(config.num_hidden_layers):
            k, v = self.torch.randn(2, rows, heads, cached, D)
            self.caches[variant].update(k, v, layer)

    def run(self, variant: str, tokens: np.ndarray) -> None:
        """Add (rows, T) tokens."""
        self._run(variant, self.torch.from_numpy(tokens))


class LlamaCpp(programs.LlamaCpp):
    """Sequences of one context."""

    def _context(self, variant: str, threads: int):
        self.threads = threads  # contexts are made when their size is known
        return None

    def fill(self, variant: str, rows: int, cached: int) -> None:
        """Let every sequence hold so many positions."""
        options = self.api.llama_context_default_params()
        options.n_ctx = rows * (cached + ROOM)
        options.n_seq_max, options.n_batch, options.n_ubatch = rows, 512, 512
        options.n_threads = options.n_threads_batch = self.threads
        options.flash_attn_type = int(variant == "flash")
        options.type_k = options.type_v = self.api.GGML_TYPE_F32
        if self.contexts[variant] is not None:
            self.api.llama_free(self.contexts[variant])
        self.contexts[variant] = self.api.llama_init_from_model(self.m, options)
        self.at = dict.fromkeys(range(rows), 0)
        for row in range(rows if cached else 0):
            ids = np.random.default_rng(row).integers(0, self.vocabulary, cached)
            for piece in np.split(ids, range(512, cached, 512)):
                self._decode(variant, {row: piece})

    def run(self, variant: str, tokens: np.ndarray) -> None:
        """Add (rows, T) tokens."""
        self._decode(variant, dict(enumerate(tokens)))

    def _decode(self, variant: str, texts: dict[int, np.ndarray]) -> None:
        """Add tokens to sequences; logits after the last of each."""
        batch = self.api.llama_batch_init(sum(map(len, texts.values())), 0, 1)
        for row, ids in texts.items():
            for i, token in enumerate(ids.tolist()):
                n = batch.n_tokens
                batch.token[n], batch.pos[n] = token, self.at[row]
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, row
                batch.logits[n] = i == len(ids) - 1
                batch.n_tokens, self.at[row] = n + 1, self.at[row] + 1
        context = self.contexts[variant]
        failed = self.api.llama_decode(context, batch)
        self.api.llama_synchronize(context)
        self.api.llama_batch_free(batch)
        if failed:
            raise RuntimeError("llama_decode failed")


def timed(program: Any, rows: int, cached: int, new: int, repeats: int) -> dict:
    """Seconds of passes that bring each of the rows so many new positions.

    Variants are measured one after the other, since each fills its own cache; the
    first pass warms up and is left out.
    """
    tokens = np.random.default_rng(1).integers(0, 60, (rows, new))
    times = {}
    for variant in program.variants:
        program.fill(variant, rows, cached)
        call: Callable[[], None] = lambda v=variant: program.run(v, tokens)  # noqa: E731
        times |= interleaved({variant: call}, repeats + 1)
    return {variant: seconds[1:] for variant, seconds in times.items()}


class Timed:
    """A program that answers the one request of this benchmark."""

    def __init__(self, program: Any):
        self.program = program

    def hello(self) -> dict[str, Any]:
        """Say who is there."""
        return {"name": self.program.name, "variants": self.program.variants}

    def time(self, rows: int, cached: int, new: int, repeats: int) -> dict:
        """See `timed`."""
        return timed(self.program, rows, cached, new, repeats)


PROGRAMS = {
    "npllama": lambda threads, path: Timed(NpLlama(threads, path)),
    "torch": lambda threads, path: Timed(Torch(threads, path)),
    "llama.cpp": lambda threads, path: Timed(LlamaCpp(threads, path)),
}
