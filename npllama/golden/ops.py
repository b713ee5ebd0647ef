"""One operator at a time: for those who write a kernel, not a whole model.

    from npllama.golden.ops import cases, check

    for case in cases("attention", dtype="bfloat16"):
        check(my_kernel(**case.inputs), case)

A case has inputs rounded to the dtype, and the exact answer for these rounded inputs:
the functions of the book, in float64.  How far a right kernel may be from it is not
guessed but measured, as in the tests of FlashAttention: plain implementations are run
in the dtype itself, every intermediate result rounded, sums in float32 in several
orders, on fresh numbers of the same kind, and the worst error among them is the noise
floor.  A kernel passes while its error stays below `FACTOR` floors.

An error is divided by the size of what was summed: the size of the element itself if
the operator works on each element alone, else the largest size on the last axis.  In
half precision rounding must not lean to one side either: a kernel that cuts digits
off instead of rounding stays within the floor, but all its errors point towards zero.

The operators, and the arguments that a kernel is called with; arrays have the dtype of
the case unless another is said:

    rms_norm          x (T, E), gain (E,), eps                 -> (T, E)
    rope              x (B, T, H, D), positions (B, T), theta  -> (B, T, H, D)
                      turns the pairs (i, i + D/2), as Hugging Face does
    rope_interleaved  the same, of the pairs (2i, 2i + 1), as Meta does
    attention         q (B, T, H, D), k and v (B, K, N, D), start (B,) int64
                      query t of row b sees keys 0 ... start[b] + t -> (B, T, H, D)
    swiglu            x (B, T, E), w_gate and w_up (F, E), w_down (E, F) -> (B, T, E)
    silu_and_mul      gate and up (T, F)                       -> (T, F)
    softmax           scores (T, S)                            -> (T, S)
    draw              probs (B, V), u (B,) float32             -> (B,) integers

bfloat16 arrays are those of ml_dtypes where it can be imported; else float32 arrays
whose numbers bfloat16 can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from npllama.attention import naive
from npllama.attention import softmax as book_softmax
from npllama.feedforward import feed_forward, silu
from npllama.golden.cases import KINDS, Inputs
from npllama.golden.plain import ORDERS, PLAIN, Arithmetic
from npllama.golden.precision import FORMATS, rounded
from npllama.norm import rms_norm
from npllama.rope import frequencies, rotate, rotate_neighbours
from npllama.sampling.draw import draw
from npllama.weights import Layer

FACTOR = 2.0
DTYPES = ("float32", "bfloat16", "float16")
# Half of the distance from 1 to the next number: what one rounding may cost.
UNIT = {dtype: 2.0 ** -FORMATS[dtype].digits for dtype in DTYPES}
# A smaller number may become zero.  This is a little above the least normal number,
# since the exponential in a denominator overflows before that is reached.
LEAST = {"float32": 2.0**-100, "bfloat16": 2.0**-100, "float16": 2.0**-14}
# Each element of the result is right by itself: no sum carries errors between them.
ELEMENTWISE = ("rms_norm", "silu_and_mul", "softmax")
# A mean error of this many roundings is harmless; cutting digits makes one of 0.7.
LEAN = 0.1
# How often a floor is measured anew, on other numbers of the same kind.
REDRAWS = 8
# Numbers that are not rounded to the dtype, by operator.
KEPT = {"draw": ("u",)}


class Mismatch(AssertionError):
    """A kernel's result is not what rounding alone would make of the right one."""


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """One call of a kernel, and what it has to return."""

    op: str
    name: str
    dtype: str
    inputs: dict[str, Any]
    expected: np.ndarray  # float64, or int64 for `draw`
    floor: np.ndarray  # float64, of the shape of `expected`: the noise floor
    bias: float  # the floor of the mean error, in units of one rounding; inf: any

    def __repr__(self) -> str:
        return f"{self.op} in {self.dtype}, {self.name}"

    @property
    def tolerance(self) -> np.ndarray:
        """How far each element may be off."""
        return FACTOR * self.floor


#  ---- the exact answer -------------------------------------------------------


def turned(rotation: Callable, x, positions, theta) -> np.ndarray:
    """Heads turned by one of the two layouts of the book."""
    w = frequencies(theta, x.shape[-1], "float64")  # (D // 2,)
    angle = positions[:, :, None] * w  # (B, T, D // 2)
    return rotation(x, np.cos(angle), np.sin(angle))


def fed_forward(x, w_gate, w_up, w_down) -> np.ndarray:
    """The book's feed-forward takes a whole layer, and uses three of its weights."""
    none = np.empty(0, dtype=np.float64)  # (0,)
    layer = Layer(none, none, none, none, none, none, w_gate, w_up, w_down)
    return feed_forward(x, layer)


BOOK: dict[str, Callable] = {
    "rms_norm": rms_norm,
    "rope": lambda **inputs: turned(rotate, **inputs),
    "rope_interleaved": lambda **inputs: turned(rotate_neighbours, **inputs),
    "attention": naive,
    "swiglu": fed_forward,
    "silu_and_mul": lambda gate, up: silu(gate) * up,
    "softmax": lambda scores: book_softmax(scores),
    "draw": draw,
}
OPS = tuple(BOOK)


def is_data(x: Any) -> bool:
    """Whether an input is an array of floats, neither a number nor positions."""
    return isinstance(x, np.ndarray) and x.dtype == np.float64


#  ---- noise ------------------------------------------------------------------


def scale_of(op: str, dtype: str, expected: np.ndarray) -> np.ndarray:
    """The size that errors are measured against, element by element."""
    size = np.abs(expected)
    if op not in ELEMENTWISE:
        size = np.broadcast_to(size.max(axis=-1, keepdims=True), size.shape)
    return np.maximum(size, LEAST[dtype])


def relative_errors(op: str, dtype: str, got, expected) -> np.ndarray:
    """Errors in units of one rounding; above zero where `got` is too large."""
    error = (got - expected) * np.where(expected < 0, -1, 1)
    return error / scale_of(op, dtype, expected) / UNIT[dtype]


def plain_errors(op: str, dtype: str, inputs: Inputs) -> list[np.ndarray]:
    """The errors of plain implementations in this dtype, one array per order."""
    expected = BOOK[op](**inputs)
    narrow = {
        name: x.astype(np.float32) if is_data(x) else x for name, x in inputs.items()
    }
    runs = (PLAIN[op](Arithmetic(dtype, order), **narrow) for order in ORDERS)
    return [relative_errors(op, dtype, y.astype(np.float64), expected) for y in runs]


# Testing several kernels asks for the same cases again.
@lru_cache(maxsize=1024)
def noise(op: str, dtype: str, make: Callable, seed: int) -> tuple[float, float]:
    """The floors of the largest and of the mean error, in units of one rounding.

    Never below one rounding: every kernel has to round its result.
    """
    errors = []
    for redraw in range(REDRAWS):
        rng = np.random.default_rng([seed, redraw])
        errors += plain_errors(op, dtype, representable(op, dtype, make(rng)))
    largest = max(np.abs(error).max() for error in errors)
    # The mean of independent errors shrinks like this; five times as much never occurs.
    chance = 5 * max(error.std() for error in errors) / math.sqrt(errors[0].size)
    mean = max(LEAN, chance / FACTOR, *(abs(error.mean()) for error in errors))
    return max(1.0, float(largest)), float(mean)


#  ---- cases ------------------------------------------------------------------


def representable(op: str, dtype: str, inputs: Inputs) -> Inputs:
    """The inputs as float64 numbers that the dtype can hold."""

    def held(name: str, x):
        if not is_data(x) or name in KEPT.get(op, ()):
            return x
        return rounded(x, dtype).astype(np.float64)

    return {name: held(name, x) for name, x in inputs.items()}


def array_in(dtype: str, x: np.ndarray) -> np.ndarray:
    """Numbers that the dtype can hold, in an array of that dtype."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return x.astype(np.float32)
    return x.astype(bfloat16)


def case_of(op: str, name: str, dtype: str, seed: int) -> Case:
    """Draw one case, work out its answer, and measure how exact a kernel can be."""
    make = KINDS[op][name]
    exact = representable(op, dtype, make(np.random.default_rng([seed, REDRAWS])))
    expected = np.asarray(BOOK[op](**exact))
    inputs = {
        key: array_in("float32" if key in KEPT.get(op, ()) else dtype, x)
        if is_data(x)
        else x
        for key, x in exact.items()
    }
    if op == "draw":
        return Case(op, name, dtype, inputs, expected, np.zeros(expected.shape), 0.0)
    largest, mean = noise(op, dtype, make, seed)
    floor = largest * UNIT[dtype] * scale_of(op, dtype, expected)
    # In float32 cut digits do not matter, and the errors of one row are correlated.
    bias = mean if dtype != "float32" and expected.size >= 64 else math.inf
    return Case(op, name, dtype, inputs, expected, floor, bias)


def cases(op: str, dtype: str = "float32", seed: int = 0) -> list[Case]:
    """Calls of one operator, each with inputs that catch some mistake.

    Parameters
    ----------
    op : str
        One of `OPS`.
    dtype : "float32", "bfloat16" or "float16"
    seed : int
        Other numbers of the same kinds.

    Returns
    -------
    list of Case
        New arrays every time: a kernel may write into its inputs.

    Raises
    ------
    ValueError
        If there is no such operator or dtype.
    """
    if op not in OPS:
        raise ValueError(f"no operator {op!r}; there are {', '.join(OPS)}")
    if dtype not in DTYPES:
        raise ValueError(f"no cases in {dtype!r}; there are {', '.join(DTYPES)}")
    return [case_of(op, name, dtype, seed) for name in KINDS[op]]


#  ---- the verdict ------------------------------------------------------------


def check(got: Any, case: Case) -> None:
    """Raise unless a kernel's result is right up to rounding.

    Parameters
    ----------
    got : (*B, N) number
        What the kernel returned: anything that ``np.asarray`` takes.
    case : Case

    Raises
    ------
    Mismatch
        An AssertionError of one line that names the worst element.
    """
    got = np.asarray(got)
    if got.shape != case.expected.shape:
        raise Mismatch(
            f"{case}: shape {got.shape}, where {case.expected.shape} is right"
        )
    if case.op == "draw":
        _check_tokens(got, case)
    else:
        _check_numbers(got.astype(np.float64), case)


def _check_tokens(got: np.ndarray, case: Case) -> None:
    """Tokens are right or wrong: every u is where rounding cannot move it."""
    wrong = np.argwhere(got != case.expected)
    if wrong.size:
        at = tuple(wrong[0].tolist())
        raise Mismatch(
            f"{case}: token {got[at]} at {at} for u = {case.inputs['u'][at]}, where "
            f"{case.expected[at]} is right ({len(wrong)} of {got.size} are wrong)"
        )


def _check_numbers(got: np.ndarray, case: Case) -> None:
    """First the largest error, then whether all of them lean to one side."""
    with np.errstate(invalid="ignore"):
        error = np.abs(got - case.expected) / case.floor
    error[~np.isfinite(got)] = np.inf
    at = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    if error[at] > FACTOR:
        raise Mismatch(
            f"{case}: {got[at]:.9g} at {at}, where {case.expected[at]:.9g} is right: "
            f"{error[at]:.3g} noise floors off, {FACTOR:g} are allowed "
            f"({(error > FACTOR).mean():.0%} of the elements are further off)"
        )
    lean = relative_errors(case.op, case.dtype, got, case.expected).mean()
    if abs(lean) > FACTOR * case.bias:
        raise Mismatch(
            f"{case}: results lie {abs(lean):.2g} of a rounding too "
            f"{'far from' if lean > 0 else 'near to'} zero on average, "
            f"{FACTOR * case.bias:.2g} are allowed: digits cut off, not rounded?"
        )
