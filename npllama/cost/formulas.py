"""What a LLaMA costs, in closed form.

Nothing runs and nothing is allocated here: sizes go in and integers come out, for any
model and context.  `operators` gives the number of operations and of elements moved
for every product of the model.  `counter` counts the same while a model runs, and the
two agree to the last digit.

`product` defines the cost of a product: a projection of B T positions from E to F
takes 2 B T E F FLOPs, a lookup none, and it moves B T E + E F + B T F elements.  There
are three kinds of elements, since their types may have different sizes: weights,
cached keys and values, and activations.

Counts differ in causal attention, so every count is labelled: "square", "triangle",
"blocks" or "rowwise"; see `meetings`, and `ways` for long texts.

Norms, rotations, softmax, SiLU and the residual sums are not products.  They cost a
few operations per element, well below a hundredth of the FLOPs of all but the smallest
models, and are left out, as in every published count.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from npllama.config import Config
from npllama.cost.meetings import (
    CAUSAL,
    USUAL,
    Blocks,
    Meetings,
    Way,
    in_decode,
    in_one_pass,
    in_packed_pass,
    rows_of_one_length,
)
from npllama.cost.product import LOOKUP


class Operator(NamedTuple):
    """One operator of the model, summed over all layers in which it occurs."""

    name: str
    equation: str
    calls: int  # products
    flops: int
    weights: int  # elements of weights read
    cache: int  # elements of cached keys or values read
    activations: int  # other elements read and written

    @property
    def mops(self) -> int:
        """Elements moved: read or written."""
        return self.weights + self.cache + self.activations

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: FLOPs per element moved."""
        return self.flops / max(self.mops, 1)

    def bytes(self, weight: float = 2, cache: float = 2, activation: float = 2):
        """Bytes moved, for elements of the given sizes in bytes (int4: 0.5)."""
        return (
            self.weights * weight + self.cache * cache + self.activations * activation
        )


def parameters(config: Config) -> dict[str, int]:
    """Number of weights per component, over all layers.

    Biases belong to the component that they are added to.  With tied embeddings
    `lm_head` is the same matrix as `embed_tokens` and counts 0.
    """
    V, E, F = config.vocab_size, config.hidden_size, config.intermediate_size
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    L = config.num_hidden_layers
    bias, mlp_bias = int(config.attention_bias), int(config.mlp_bias)
    return {
        "embed_tokens": V * E,
        "q_proj": L * H * D * (E + bias),
        "k_proj": L * K * D * (E + bias),
        "v_proj": L * K * D * (E + bias),
        "o_proj": L * E * (H * D + bias),
        "gate_proj": L * F * (E + mlp_bias),
        "up_proj": L * F * (E + mlp_bias),
        "down_proj": L * E * (F + mlp_bias),
        "norms": (2 * L + 1) * E,
        "lm_head": 0 if config.tie_word_embeddings else V * E,
    }


def cache_elements(config: Config, tokens: int = 1) -> int:
    """Elements of keys and values that the cache holds for `tokens` positions.

    A key and a value of D numbers for each of K heads in each of L layers.  Grouped
    heads (GQA) keep H / K times less than multi-head attention would, and a single
    key/value head (MQA) H times less.
    """
    per_layer = 2 * config.num_key_value_heads * config.head_dim
    return tokens * config.num_hidden_layers * per_layer


def cache_bytes(config: Config, tokens: int = 1, element_bytes: float = 2) -> float:
    """Bytes of `cache_elements`; `tokens` counts the positions of all rows."""
    return cache_elements(config, tokens) * element_bytes


# ---- work -------------------------------------------------------------------


class Work(NamedTuple):
    """The work of one or more passes through the model."""

    passes: int  # how often all weights are read
    positions: int  # that go through the layers, of all rows
    logits: int  # positions that go through lm_head
    met: Meetings  # in each layer

    def __add__(self, other):
        return Work(*(a + b for a, b in zip(self, other)))


def one_pass(
    config: Config,
    batch: int,
    new: int,
    cached: int | Iterable[int] = 0,
    *,
    causal: str | Way = "square",
    last: bool = False,
    blocks: Blocks = USUAL,
) -> Work:
    """The work of one `forward` over `new` positions per row.

    Parameters
    ----------
    cached : int, or one for each row
        Positions that a row holds before.
    causal : "square", "triangle", "blocks", "rowwise", or one of `ways`
    last : bool
        Logits of the last position only, as in `forward`.
    blocks : Blocks
        The sizes, for "blocks".

    Raises
    ------
    ValueError
        If a size is impossible, or `causal` unknown.
    """
    check_pass(batch, new, cached, causal)
    met = in_one_pass(config, batch, new, cached, causal, blocks)
    return Work(1, batch * new, batch * (1 if last else new), met)


def packed_pass(
    config: Config,
    pieces: Iterable[tuple[int, int]],
    *,
    causal: str | Way = "square",
    logits: int | None = None,
) -> Work:
    """The work of one pass over a packed row, as `serving.packed` runs it.

    Parameters
    ----------
    pieces : (cached, new) of each text
        Positions that it holds before, and that it gets.
    causal : "square", "triangle", "blocks", "rowwise", or one of `ways`
    logits : int, optional
        Places whose logits are wanted; one for each text by default.

    Raises
    ------
    ValueError
        If a size is impossible, or `causal` unknown.
    """
    pieces = list(pieces)
    for cached, new in pieces:
        check_pass(1, new, cached, causal)
    positions = sum(new for _, new in pieces)
    wanted = len(pieces) if logits is None else logits
    return Work(1, positions, wanted, in_packed_pass(config, pieces, causal))


def decode_steps(
    config: Config, batch: int, steps: int, cached: int, causal: str | Way = "square"
) -> Work:
    """The work of `steps` passes with one new position per row."""
    met = in_decode(config, batch, steps, cached, causal)
    return Work(steps, batch * steps, batch * steps, met)


def check_pass(
    batch: int, new: int, cached: int | Iterable[int] = 0, causal: str | Way = "square"
) -> None:
    """Raise ValueError if there cannot be such a pass."""
    for name, size in (("batch", batch), ("new positions", new)):
        if size < 1:
            raise ValueError(f"{name}: {size}; it must be 1 or more")
    groups = rows_of_one_length(batch, cached)
    if sum(rows for rows, _ in groups) != batch:
        raise ValueError(f"cached: {cached}, where the batch has {batch} rows")
    if min(start for _, start in groups) < 0:
        raise ValueError(f"cached: {cached}; it must be 0 or more")
    if not callable(causal) and causal not in CAUSAL:
        raise ValueError(f"causal: {causal!r} is not one of {', '.join(CAUSAL)}")


# ---- operators --------------------------------------------------------------


def tabulate(config: Config, work: Work, causal: str | Way) -> tuple[Operator, ...]:
    """The operators of some work, in the order in which they run."""
    V, E, F = config.vocab_size, config.hidden_size, config.intermediate_size
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    L = config.num_hidden_layers

    def linear(name, equation, inputs, outputs, layers=L, positions=work.positions):
        """A product of every position with one matrix of (outputs, inputs)."""
        calls, elements = layers * work.passes, layers * inputs * outputs
        moved = layers * positions * (inputs + outputs)
        flops = 2 * positions * elements
        return Operator(name, equation, calls, flops, work.passes * elements, 0, moved)

    def meeting(name, equation):
        """One of the two products of attention."""
        calls, pairs, queries, keys = work.met * L
        flops, moved = 2 * D * pairs, D * queries + pairs
        return Operator(name, equation, calls, flops, 0, D * keys, moved)

    scores, values = "BKGTD,BKSD->BKGTS", "BKGTS,BKSD->BKGTD"
    if causal == "triangle":
        scores, values = "D,SD->S", "S,SD->D"
    elif not isinstance(causal, str):
        scores, values = "KGTD,KSD->KGTS", "KGTS,KSD->KGTD"
    rows = work.positions * E  # of the table, one for every token
    return (
        Operator("embed_tokens", LOOKUP, work.passes, 0, rows, 0, rows),
        linear("q_proj", "BTE,HDE->BTHD", E, H * D),
        linear("k_proj", "BTE,KDE->BTKD", E, K * D),
        linear("v_proj", "BTE,KDE->BTKD", E, K * D),
        meeting("scores", scores),
        meeting("values", values),
        linear("o_proj", "BTHD,EHD->BTE", H * D, E),
        linear("gate_proj", "BTE,FE->BTF", E, F),
        linear("up_proj", "BTE,FE->BTF", E, F),
        linear("down_proj", "BTF,EF->BTE", F, E),
        linear("lm_head", "BTE,VE->BTV", E, V, layers=1, positions=work.logits),
    )


def operators(
    config: Config,
    batch: int,
    new: int,
    cached: int | Iterable[int] = 0,
    *,
    causal: str | Way = "square",
    last: bool = False,
    blocks: Blocks = USUAL,
) -> tuple[Operator, ...]:
    """What one `forward` costs, operator by operator; see `one_pass`."""
    work = one_pass(
        config,
        batch,
        new,
        cached,
        causal=causal,
        last=last,
        blocks=blocks,
    )
    return tabulate(config, work, causal)


def prefill(
    config: Config,
    batch: int,
    prompt: int,
    cached: int = 0,
    *,
    chunk: int | None = None,
    causal: str | Way = "square",
    last: bool = True,
) -> tuple[Operator, ...]:
    """The cost of running a prompt: at once, or in chunks of `chunk` positions.

    Every chunk reads all weights again.  Only the last position of each needs
    logits; `last` is False if all get them.
    """
    check_pass(batch, prompt, cached, causal)
    size = prompt if chunk is None else chunk
    if size < 1:
        raise ValueError(f"chunk: {size}; it must be 1 or more")
    work = [
        one_pass(
            config, batch, min(size, prompt - t), cached + t, causal=causal, last=last
        )
        for t in range(0, prompt, size)
    ]
    return tabulate(config, sum(work[1:], work[0]), causal)


def decode(
    config: Config,
    batch: int,
    cached: int,
    steps: int = 1,
    *,
    causal: str | Way = "square",
) -> tuple[Operator, ...]:
    """What `steps` tokens per row cost, one pass each, after `cached` positions."""
    check_pass(batch, steps, cached, causal)
    return tabulate(config, decode_steps(config, batch, steps, cached, causal), causal)


class Generation(NamedTuple):
    """What a text costs, by phase."""

    prefill: tuple[Operator, ...]
    decode: tuple[Operator, ...]


def generation(
    config: Config,
    batch: int,
    prompt: int,
    new_tokens: int,
    cached: int = 0,
    *,
    chunk: int | None = None,
    causal: str | Way = "square",
) -> Generation:
    """The cost of continuing a prompt by `new_tokens` tokens per row.

    The prompt's own pass gives the first of them, and the last is not run through
    the model, so there are ``new_tokens - 1`` steps of decode.
    """
    if new_tokens < 1:
        raise ValueError(f"new_tokens: {new_tokens}; it must be 1 or more")
    before = prefill(config, batch, prompt, cached, chunk=chunk, causal=causal)
    work = decode_steps(config, batch, new_tokens - 1, cached + prompt, causal)
    return Generation(before, tabulate(config, work, causal))


def total(operators: Iterable[Operator], name: str = "total") -> Operator:
    """The sum of some operators, as one."""
    numbers = [op[2:] for op in operators]
    return Operator(name, "", *map(sum, zip(*numbers)))
