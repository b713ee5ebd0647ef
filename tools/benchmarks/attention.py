"""Attention alone: 32 heads of 64, causal, as a function of q, k and v.

Each program gets the layout of axes that it prefers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.worker import forget_peak, interleaved, memory

H, D = 32, 64


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


def timed(call, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one that warms up."""
    return interleaved({"": call}, repeats + 1)[""][1:]


PROGRAMS = {"npllama": NpLlama, "torch": Torch, "jax": Jax}
