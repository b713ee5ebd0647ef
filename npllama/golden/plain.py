"""Plain implementations in low precision: how wrong a right kernel is.

A backend that computes in half precision rounds the result of every operation, with
three exceptions.  All backends keep these in float32, since a model would break
otherwise: the mean square of a norm, a softmax, and the angles of positions.
Sums run in float32 whatever the dtype, as in matrix units; their order is free, and
that is where two right kernels differ in float32 itself.  Three orders stand for all:

    "library"   as BLAS and NumPy add
    "reversed"  the same, from the other end
    "one by one"  a single running sum; and exponentials as powers of two and
                divisions as products with a reciprocal, as on GPUs

A fourth, "shuffled", draws the order by chance: each seed is one more right kernel.

Each function takes a case's inputs and an `Arithmetic`, and returns float32 numbers
that the dtype can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npllama.golden.precision import rounded
from npllama.ops import einsum

ORDERS = ("library", "reversed", "one by one")


class Arithmetic(NamedTuple):
    """A dtype to round to, and one of the `ORDERS` (or "shuffled") to add in."""

    dtype: str
    order: str
    seed: int = 0  # of the order, where it is drawn
    times: int = 1  # how much larger every rounding error is made

    def drawn(self, n: int) -> np.ndarray:
        """The order in which n numbers are added: (n,) int64."""
        return np.random.default_rng([self.seed, n]).permutation(n)

    def round(self, x: np.ndarray) -> np.ndarray:
        """The nearest numbers that the dtype has, as float32."""
        near = rounded(x, self.dtype)
        return near if self.times == 1 else near + (self.times - 1) * (near - x)

    def exp(self, x: np.ndarray) -> np.ndarray:
        """Exponentials; infinite where float32 ends."""
        with np.errstate(over="ignore"):
            if self.order == "one by one":
                return np.exp2(x * np.float32(math.log2(math.e)))
            return np.exp(x)

    def divide(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Quotients, or products with a reciprocal."""
        return x * (1 / y) if self.order == "one by one" else x / y

    def total(self, x: np.ndarray) -> np.ndarray:
        """Sum of the last axis, which stays as an axis of one."""
        if self.order == "one by one":
            return np.add.accumulate(x, axis=-1)[..., -1:]
        x = x[..., ::-1] if self.order == "reversed" else x
        x = x[..., self.drawn(x.shape[-1])] if self.order == "shuffled" else x
        return np.ascontiguousarray(x).sum(axis=-1, keepdims=True)

    def product(self, multiply: Callable, a, b, axis_a=-1, axis_b=-1) -> np.ndarray:
        """`multiply`, the sum over `axis_a` of `a` and `axis_b` of `b` in order."""
        if self.order == "reversed":
            a, b = np.flip(a, axis_a), np.flip(b, axis_b)
        if self.order == "shuffled":
            order = self.drawn(a.shape[axis_a])
            a, b = np.take(a, order, axis_a), np.take(b, order, axis_b)
        parts = a.shape[axis_a] if self.order == "one by one" else 1
        pieces = zip(np.array_split(a, parts, axis_a), np.array_split(b, parts, axis_b))
        y = np.float32(0)
        for left, right in pieces:
            y = y + multiply(left, right)
        return self.round(y)


def rms_norm(at: Arithmetic, x, gain, eps) -> np.ndarray:
    """Normalised in float32, rounded, times the gain: transformers and Meta alike."""
    mean_square = at.total(np.square(x)) / np.float32(x.shape[-1])  # (T, 1)
    normed = at.divide(x, np.sqrt(mean_square + np.float32(eps)))  # (T, E)
    return at.round(at.round(normed) * gain)


def angles(at: Arithmetic, positions, theta, D: int) -> np.ndarray:
    """Position times speed, in float32.

    Returns
    -------
    (B, T, 1, D // 2) float32
    """
    exponent = np.arange(0, D, 2, dtype=np.float32) / np.float32(D)  # (D // 2,)
    if at.order == "one by one":
        speed = at.exp(-exponent * np.float32(math.log(theta)))  # (D // 2,)
    else:
        speed = 1 / np.power(np.float32(theta), exponent)  # (D // 2,)
    return positions[:, :, None, None].astype(np.float32) * speed


def turn(at: Arithmetic, a, b, angle) -> tuple[np.ndarray, np.ndarray]:
    """Both coordinates of every pair, turned; the table rounded to the dtype."""
    cos, sin = at.round(np.cos(angle)), at.round(np.sin(angle))
    products = (
        at.round(a * cos),
        at.round(b * sin),
        at.round(b * cos),
        at.round(a * sin),
    )
    return at.round(products[0] - products[1]), at.round(products[2] + products[3])


def rope(at: Arithmetic, x, positions, theta) -> np.ndarray:
    """Pairs (i, i + D/2)."""
    half = x.shape[-1] // 2
    angle = angles(at, positions, theta, x.shape[-1])  # (B, T, 1, D // 2)
    return np.concatenate(turn(at, x[..., :half], x[..., half:], angle), axis=-1)


def rope_interleaved(at: Arithmetic, x, positions, theta) -> np.ndarray:
    """Pairs (2i, 2i + 1)."""
    y = np.empty_like(x)  # (B, T, H, D)
    angle = angles(at, positions, theta, x.shape[-1])  # (B, T, 1, D // 2)
    y[..., 0::2], y[..., 1::2] = turn(at, x[..., 0::2], x[..., 1::2], angle)
    return y


def softmax(at: Arithmetic, scores) -> np.ndarray:
    """In float32, then rounded."""
    e = at.exp(scores - scores.max(axis=-1, keepdims=True))  # (*B, S)
    return at.round(at.divide(e, at.total(e)))


def attention(at: Arithmetic, q, k, v, start) -> np.ndarray:
    """The whole matrix of scores at once, everything after the query hidden."""
    B, T, H, D = q.shape
    K, N = k.shape[1], k.shape[2]
    grouped = q.reshape(B, T, K, H // K, D)  # (B, T, K, G, D)

    def scores_of(q, k):
        return einsum("BTKGD,BKND->BKGTN", q, k, "scores")

    def mix(p, v):
        return einsum("BKGTN,BKND->BTKGD", p, v, "values")

    scores = at.product(scores_of, grouped, k)  # (B, K, G, T, N)
    scores = at.round(scores * np.float32(1 / math.sqrt(D)))  # (B, K, G, T, N)
    last = start[:, None] + np.arange(T)  # (B, T)
    hidden = np.arange(N) > last[:, None, None, :, None]  # (B, 1, 1, T, N)
    p = softmax(at, np.where(hidden, np.float32(-np.inf), scores))  # (B, K, G, T, N)
    return at.product(mix, p, v, -1, -2).reshape(B, T, H, D)


def silu_and_mul(at: Arithmetic, gate, up) -> np.ndarray:
    """Rounded between the two."""
    bent = at.divide(gate, 1 + at.exp(-gate))  # (*B, F)
    return at.round(at.round(bent) * up)


def swiglu(at: Arithmetic, x, w_gate, w_up, w_down) -> np.ndarray:
    """Three products and the bend."""

    def widen(x, w):
        return einsum("BTE,FE->BTF", x, w, "gate_proj")

    def narrow(x, w):
        return einsum("BTF,EF->BTE", x, w, "down_proj")

    gate, up = at.product(widen, x, w_gate), at.product(widen, x, w_up)
    return at.product(narrow, silu_and_mul(at, gate, up), w_down)


PLAIN: dict[str, Callable] = {
    "rms_norm": rms_norm,
    "rope": rope,
    "rope_interleaved": rope_interleaved,
    "attention": attention,
    "swiglu": swiglu,
    "silu_and_mul": silu_and_mul,
    "softmax": softmax,
}
