"""Attention alone: 32 heads of 64, causal, as a function of q, k and v.

Each program gets the layout of axes that it prefers.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from npllama.bench.worker import forget_peak, interleaved, memory

H, D = 32, 64
PIECE = 256  # tokens that llama.cpp reads at a time


def inputs(S: int, *order: int) -> list[np.ndarray]:
    """Random q, k and v of (1, S, H, D) float32, their axes reordered."""
    rng = np.random.default_rng(0)
    draw = (rng.standard_normal((1, S, H, D), dtype=np.float32) for _ in range(3))
    return [np.ascontiguousarray(x.transpose(order)) for x in draw]


class NpLlama:
    """`npllama.attention.blocked`."""

    def __init__(self, threads: int):
        from npllama.attention import blocked

        self.blocked = blocked

    def time(self, S: int, repeats: int) -> dict[str, Any]:
        """Seconds of each call; the first is a warm-up and left out."""
        (q,), (k, v) = inputs(S, 0, 1, 2, 3)[:1], inputs(S, 0, 2, 1, 3)[1:]
        call = lambda: self.blocked(q, k, v, np.zeros(1, np.int64))  # noqa: E731
        return {"name": "npllama blocked", "seconds": timed(call, repeats)}

    def memory(self, S: int) -> dict[str, int | None]:
        """Bytes that one call needs at its worst moment beyond inputs and output."""
        q, k, v = (np.zeros(shape, np.float32) for shape in _shapes(S))
        for x in (q, k, v):
            x += 1  # Zeros are only promised by the system until they are written.
        forget_peak()
        before = memory()
        y = self.blocked(q, k, v, np.zeros(1, np.int64))
        peak = memory().get("peak")
        return {"bytes": peak and peak - before["resident"] - y.nbytes}


def _shapes(S: int) -> tuple[tuple[int, ...], ...]:
    return (1, S, H, D), (1, H, S, D), (1, H, S, D)


class Torch:
    """torch's `scaled_dot_product_attention`."""

    def __init__(self, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    def time(self, S: int, repeats: int) -> dict[str, Any]:
        """Seconds of each call; the first is a warm-up and left out."""
        q, k, v = (self.torch.from_numpy(x) for x in inputs(S, 0, 2, 1, 3))
        attend = self.torch.nn.functional.scaled_dot_product_attention
        name = f"torch {self.torch.__version__} sdpa"
        times = timed(lambda: attend(q, k, v, is_causal=True), repeats)
        return {"name": name, "seconds": times}


class Jax:
    """`jax.nn.dot_product_attention`, compiled, on the processor."""

    def __init__(self, threads: int):
        import jax

        jax.config.update("jax_platforms", "cpu")
        self.jax = jax

    def time(self, S: int, repeats: int) -> dict[str, Any]:
        """Seconds of each call; the first is a warm-up and left out."""
        q, k, v = (self.jax.numpy.asarray(x) for x in inputs(S, 0, 1, 2, 3))
        attend = self.jax.jit(
            lambda q, k, v: self.jax.nn.dot_product_attention(q, k, v, is_causal=True)
        )
        times = timed(lambda: attend(q, k, v).block_until_ready(), repeats)
        return {"name": f"jax {self.jax.__version__} jitted", "seconds": times}


def nearly_attention_alone(path: Path) -> None:
    """Write a model of one layer with these heads, and all else as small as it may be.

    Its other products are 1 part in 60 of attention's at 16,384 positions.
    """
    from npllama.bench.random_model import random_tensors
    from npllama.candidates.gguf_file import write_gguf
    from npllama.config import Config

    config = Config(32, 64, 64, 1, H, H, D)
    write_gguf(path, config, dict(random_tensors(config)))


class LlamaCpp:
    """llama.cpp, by difference: it offers no attention alone.

    A model of one layer has these heads and next to nothing else.  It reads S positions
    as one text, and as texts of PIECE; the difference is attention between the pieces,
    which is a known part of all pairs.
    """

    def __init__(self, threads: int):
        import llama_cpp

        self.api, self.threads = llama_cpp, threads

    def time(self, S: int, repeats: int) -> dict[str, Any]:
        """Seconds of each call, by the faster of its two ways; a warm-up left out.

        Raises
        ------
        ValueError
            If S has no two pieces.
        """
        if S < 2 * PIECE or S % PIECE:
            raise ValueError(f"{S} positions: a multiple of {PIECE}, from {2 * PIECE}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "attention.gguf"
            nearly_attention_alone(path)
            ways = {way: self._seconds(path, way, S, repeats) for way in (0, 1)}
        best = min(ways, key=lambda way: min(ways[way]))
        name = f"llama-cpp-python {self.api.__version__} {('plain', 'flash')[best]}"
        return {"name": f"{name}, by difference", "seconds": ways[best]}

    def _seconds(self, path: Path, flash: int, S: int, repeats: int) -> list[float]:
        api = self.api
        model, context = self._opened(path, flash, S)
        ids = (api.llama_token * PIECE)(*(t % 32 for t in range(PIECE)))

        def read(forget: bool) -> None:
            memory = api.llama_get_memory(context)
            api.llama_memory_clear(memory, False)
            for _ in range(S // PIECE):
                if forget:
                    api.llama_memory_clear(memory, False)
                if api.llama_decode(context, api.llama_batch_get_one(ids, PIECE)):
                    raise RuntimeError("llama_decode failed")
            api.llama_synchronize(context)

        calls = {"long": lambda: read(False), "short": lambda: read(True)}
        times = interleaved(calls, repeats + 1)
        api.llama_free(context)
        api.llama_model_free(model)
        pairs = 1 - (PIECE + 1) / (S + 1)  # those of two pieces, as a part of all
        both = zip(times["long"][1:], times["short"][1:])
        return [(long - short) / pairs for long, short in both]

    def _opened(self, path: Path, flash: int, S: int):
        api = self.api
        self.quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        options = api.llama_model_default_params()
        options.n_gpu_layers = 0
        model = api.llama_model_load_from_file(os.fsencode(path), options)
        options = api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = S, PIECE, PIECE
        options.n_threads = options.n_threads_batch = self.threads
        options.flash_attn_type = flash
        options.type_k = options.type_v = api.GGML_TYPE_F32
        return model, api.llama_init_from_model(model, options)


def timed(call, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one that warms up."""
    return interleaved({"": call}, repeats + 1)[""][1:]


PROGRAMS = {"npllama": NpLlama, "torch": Torch, "jax": Jax, "llama.cpp": LlamaCpp}
