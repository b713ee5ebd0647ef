"""The speed that a machine allows: the roofline.

A product needs FLOPs from the processor and bytes from the memory.  Both work at the
same time, so the product takes as long as the slower:

    time = max(FLOPs / (FLOP/s), bytes / (bytes/s))

Its arithmetic intensity, FLOPs per byte, decides which.  Below the machine's *ridge*,
(FLOP/s) / (bytes/s), it is bound by memory and the processor waits; above, it is bound
by computing.  Decode uses each weight for one position, and lies far below.  Prefill
uses it for hundreds, and lies above.  A batch moves decode up, until most of the bytes
read are its cached keys and values, which rows do not share.

A roofline is a bound, which no program quite reaches.  For a machine measured by
`probe`, the time between the products is added, and the bound becomes a prediction.

References
----------
Williams et al. 2009, doi:10.1145/1498765.1498785.  Speculation: Leviathan et al. 2022,
arXiv:2211.17192, theorem 3.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from npllama.config import Config
from npllama.cost.cards import sent_elements
from npllama.cost.formulas import (
    Operator,
    cache_elements,
    decode,
    generation,
    operators,
    parameters,
)
from npllama.cost.hardware import Hardware

BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
BYTES["fp8"] = 1.0
# The dtype of products: 4 bits are widened, a bfloat16 is as fast as a float16.
ARITHMETIC = {"bf16": "fp16", "int4": "fp16"}


class Dtypes(NamedTuple):
    """Dtypes of stored numbers, by kind; products run in that of the activations."""

    weights: str = "fp16"
    cache: str = "fp16"
    activations: str = "fp16"
    group: int | None = None  # weights that share a scale and a zero; None counts none

    @property
    def arithmetic(self) -> str:
        """What products run in."""
        return ARITHMETIC.get(self.activations, self.activations)

    def sizes(self) -> tuple[float, float, float]:
        """Bytes of an element of each kind: weights, cache, activations."""
        weight = BYTES[self.weights]
        if self.group is not None:
            # A scale of 16 bits, and a zero in as many bits as a weight.
            weight += (2 + weight) / self.group
        return weight, BYTES[self.cache], BYTES[self.activations]


def dtypes(
    weights: str,
    cache: str | None = None,
    activations: str | None = None,
    group: int | None = None,
) -> Dtypes:
    """Dtypes by name; cache and activations are fp16 by default, fp32 if weights are.

    Raises
    ------
    ValueError
        If a name is unknown; the message lists the known ones.
    """
    usual = "fp32" if weights == "fp32" else "fp16"
    chosen = Dtypes(weights, cache or usual, activations or usual, group)
    for dtype in chosen[:3]:
        if dtype not in BYTES:
            raise ValueError(f"no dtype {dtype!r}; there are {', '.join(BYTES)}")
    return chosen


#  ---- one operator -----------------------------------------------------------


class Timed(NamedTuple):
    """What one operator takes."""

    name: str
    flops: int
    bytes: float
    math: float  # seconds
    memory: float  # seconds
    link: float = 0.0  # seconds between cards

    @property
    def seconds(self) -> float:
        """The longest of them."""
        return max(self.math, self.memory, self.link)

    @property
    def bound(self) -> str:
        """Which of them that is."""
        if self.link > max(self.math, self.memory):
            return "link"
        return "compute" if self.math > self.memory else "memory"

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes


def timed(op: Operator, machine: Hardware, kinds: Dtypes) -> Timed:
    """Put one operator under the roof of a machine."""
    moved = op.bytes(*kinds.sizes())
    math_time = op.flops / machine.rate(kinds.arithmetic)
    return Timed(op.name, op.flops, moved, math_time, moved / machine.bandwidth)


def stored(config: Config, op: Operator) -> Operator:
    """Keys and values are written in the dtype of the cache, not of activations."""
    if op.name not in ("k_proj", "v_proj"):
        return op
    written = op.flops // (2 * config.hidden_size)
    left = op.activations - written
    return op._replace(cache=op.cache + written, activations=left)


def exchanged(
    config: Config, ops: Iterable[Operator], machine: Hardware, kinds: Dtypes
) -> Timed:
    """What the cards tell each other in these passes."""
    flops = {op.name: op.flops for op in ops}
    E, H, D = config.hidden_size, config.num_attention_heads, config.head_dim
    positions = flops["q_proj"] // (2 * E * H * D * config.num_hidden_layers)
    rows = flops["lm_head"] // (2 * E * config.vocab_size)
    sent = sent_elements(config, machine.cards, positions, rows)
    moved = sent * BYTES[kinds.activations]
    return Timed("between cards", 0, moved, 0.0, 0.0, moved / (machine.link or 1e-9))


# How often NumPy walks through the numbers, by the text of the chapters.
NORM, ROTATION, SILU, SOFTMAX = 4, 6, 4, 5


def elementwise(config: Config, ops: Iterable[Operator]) -> int:
    """Elements that NumPy's functions walk through between the products.

    RMSNorm takes 4 walks (square, sum, quotient, gain), the residual sum one; a
    rotation of queries and keys 6, half of an array each, but in strides; scaling
    queries, dividing by the sum, putting the result's axes back in order and storing
    it one each; writing keys and values into the cache one; softmax 5 for every pair
    of a query and a key (maximum, difference, exponential, sum, and less than one
    for the mask); SiLU 4 (sign, exponential, sum, quotient), its product with
    `up_proj` one.
    """
    found = {op.name: op.flops for op in ops}
    E, F = config.hidden_size, config.intermediate_size
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    positions = found["q_proj"] // (2 * E * H * D)  # of all layers
    each = 2 * (NORM + 1) * E + ROTATION * (H + K) * D + (4 * H + 2 * K) * D
    each += (SILU + 1) * F
    return positions * each + SOFTMAX * found["scores"] // (2 * D)


class Phase(NamedTuple):
    """All operators of a prefill, or of one step of decode."""

    operators: tuple[Timed, ...]
    tokens: int  # read by a prefill, or made by the step
    between: float = 0.0  # seconds outside of products

    @property
    def seconds(self) -> float:
        """The sum over the operators, which run one after the other."""
        return sum(op.seconds for op in self.operators) + self.between

    @property
    def rate(self) -> float:
        """Tokens per second, all rows together."""
        return self.tokens / self.seconds

    @property
    def bound(self) -> str:
        """What takes most of the time; "overhead" lies between the products."""
        shares = {"memory": 0.0, "compute": 0.0, "overhead": self.between, "link": 0.0}
        for op in self.operators:
            shares[op.bound] += op.seconds
        return max(shares, key=shares.__getitem__)


def phase(
    config: Config,
    ops: tuple[Operator, ...],
    tokens: int,
    machine: Hardware,
    kinds: Dtypes,
    passes: int = 1,
) -> Phase:
    """Put the operators of one or more passes through the model under the roof."""
    between = 0.0
    if machine.elementwise is not None:
        between += elementwise(config, ops) / machine.elementwise
    if machine.overhead is not None:
        between += passes * config.num_hidden_layers * machine.overhead
    under = [timed(stored(config, op), machine, kinds) for op in ops]
    if machine.cards > 1:
        under.append(exchanged(config, ops, machine, kinds))
    return Phase(tuple(under), tokens, between)


#  ---- a whole text -----------------------------------------------------------


FUSED = "fused"


def fused(
    config: Config, square: Iterable[Operator], triangle: Iterable[Operator]
) -> tuple[Operator, ...]:
    """Operators of an attention that is one program on a GPU, as FlashAttention is.

    As in the triangle it multiplies no masked pair, as in the square it reads every key
    and value once, and it moves no scores.

    Parameters
    ----------
    square, triangle : operators of the same passes, counted either way
    """
    ops = []
    for whole, half in zip(square, triangle):
        if whole.name in ("scores", "values"):
            moved = whole.activations - whole.flops // (2 * config.head_dim)
            whole = whole._replace(flops=half.flops, activations=moved)
        ops.append(whole)
    return tuple(ops)


def counted(
    config: Config, count: Callable[..., tuple[Operator, ...]], causal: str
) -> tuple[Operator, ...]:
    """The operators that ``count(causal=...)`` gives; for `fused`, it is asked twice."""
    if causal == FUSED:
        return fused(config, count(causal="square"), count(causal="triangle"))
    return count(causal=causal)


class Prediction(NamedTuple):
    """The time that continuing a prompt takes."""

    prefill: Phase
    decode: Phase  # one step, in the middle of the text
    seconds: float  # the whole text

    @property
    def per_token(self) -> float:
        """Seconds between two tokens of a row."""
        return self.decode.seconds


def predict(
    config: Config,
    machine: Hardware,
    batch: int,
    prompt: int,
    new_tokens: int,
    kinds: Dtypes,
    causal: str = "square",
) -> Prediction:
    """Time to first token, time per token and the whole, for rows of one length.

    Parameters
    ----------
    prompt, new_tokens : int
        Per row.
    causal : "square", "triangle", "blocks", "rowwise" or "fused"
        How queries meet keys; "blocks" is the way of this package, "fused" the least
        possible.
    """

    def of(part: int) -> tuple[Operator, ...]:
        return counted(
            config,
            lambda causal: generation(config, batch, prompt, new_tokens, causal=causal)[
                part
            ],
            causal,
        )

    before, after = of(0), of(1)
    middle = prompt + max(new_tokens - 2, 0) // 2
    first = phase(config, before, batch * prompt, machine, kinds)
    one = counted(config, partial(decode, config, batch, middle), causal)
    step = phase(config, one, batch, machine, kinds)
    steps = new_tokens - 1
    rest = phase(config, after, batch * steps, machine, kinds, passes=steps)
    return Prediction(first, step, first.seconds + rest.seconds)


def compute_bound_batch(
    config: Config,
    machine: Hardware,
    cached: int,
    kinds: Dtypes,
    causal: str = "square",
) -> int | None:
    """The smallest batch whose decode computes longer than it moves.

    Weights are read once for all rows, everything else once for each.  With W bytes
    of weights and m other bytes and f FLOPs per row, B rows compute for B f / P and
    move for (W + B m) / M.  None if m alone takes longer: the cache of a long context
    keeps decode bound by memory at any batch.
    """

    def step(batch: int) -> Phase:
        ops = counted(config, partial(operators, config, batch, 1, cached), causal)
        return phase(config, ops, batch, machine, kinds)

    one, two = step(1), step(2)
    math_row = sum(op.math for op in one.operators)
    # The embedding's rows are weights that each row reads for itself.
    memory_one, memory_two = (sum(op.memory for op in p.operators) for p in (one, two))
    memory_row = memory_two - memory_one
    if math_row <= memory_row:
        return None
    return max(1, math.ceil((memory_one - memory_row) / (math_row - memory_row)))


#  ---- what fits --------------------------------------------------------------


def weight_bytes(config: Config, kinds: Dtypes) -> float:
    """Bytes of all weights."""
    return sum(parameters(config).values()) * kinds.sizes()[0]


def token_bytes(config: Config, kinds: Dtypes) -> float:
    """Bytes of the cache, per position of a row."""
    return cache_elements(config) * BYTES[kinds.cache]


def most_tokens(
    config: Config, machine: Hardware, kinds: Dtypes, reserve: float = 0.0
) -> int | None:
    """Batch x context that fits beside the weights: positions of all rows.

    None if the memory is unknown; 0 if the weights alone do not fit.

    Parameters
    ----------
    reserve : float
        Bytes that are kept for other things: activations, a runtime.
    """
    if machine.memory is None:
        return None
    left = machine.memory - reserve - weight_bytes(config, kinds)
    return max(0, int(left // token_bytes(config, kinds)))


def offload_seconds(held: float, memory: float, storage: float) -> float:
    """Seconds per token for weights and cache that the memory cannot hold.

    The part that does not fit has to be read from storage for every token.

    Parameters
    ----------
    held : float
        Bytes of weights and cache.
    memory : float
        Bytes.
    storage : float
        Bytes per second.
    """
    return max(0.0, held - memory) / storage


def speculative_speedup(acceptance: float, guesses: int, draft_cost: float) -> float:
    r"""How much faster a draft makes decoding, on average.

    $$\frac{1 - a^{g + 1}}{(1 - a)(g c + 1)}$$

    Each round costs g passes of the draft and one of the target.  It gives the guesses
    before the first that is not kept, and one token more.

    Parameters
    ----------
    acceptance : float
        Probability a that a guess is kept, each as likely, 0 to 1.
    guesses : int
        g per round.
    draft_cost : float
        c, time of a pass of the draft as a part of one of the target.

    References
    ----------
    Leviathan et al. 2022, theorem 3.8.
    """
    if not (0 <= acceptance <= 1 and 0 <= guesses and 0 <= draft_cost < math.inf):
        raise ValueError(
            "acceptance lies in [0, 1], guesses and draft_cost are 0 or more; found "
            f"{acceptance}, {guesses} and {draft_cost}"
        )
    tokens = sum(acceptance**i for i in range(guesses + 1))
    return tokens / (guesses * draft_cost + 1)
