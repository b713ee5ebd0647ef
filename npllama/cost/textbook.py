"""The short forms that are quoted, and where they come from.

Papers and blogs write b rows, a sequence of s positions, width h, nh heads of size hd
and a feed-forward of width ff.  Here b = B, s = T = S, h = E = H D, nh = H, hd = D,
ff = F.  Everything follows from one product: (m, n) by (n, p) has m p entries, each a
sum of n products, so 2 m n p FLOPs.

The forms are for multi-head attention over a whole text, where every position meets
every position.  `formulas` counts what a LLaMA does: shared keys, a cache, three
matrices.

References
----------
Korthikanti et al. 2022, arXiv:2205.05198, appendix A, and Narayanan et al. 2021,
arXiv:2104.04473, appendix: 24 b s h^2 + 4 b s^2 h for a layer's forward pass.  Kaplan
et al. 2020, arXiv:2001.08361, section 2.1: 2 x parameters per token.
"""

from __future__ import annotations

from npllama.config import Config
from npllama.cost.formulas import Operator, Work, check_pass, parameters, tabulate
from npllama.cost.meetings import Meetings


def product_flops(m: int, n: int, p: int) -> int:
    """(m, n) by (n, p): 2 m n p."""
    return 2 * m * n * p


def attention_flops(b: int, s: int, h: int) -> int:
    """Multi-head attention of one layer: 8 b s h^2 + 4 b s^2 h.

    Four projections (query, key, value, output) of b s positions from h to h, each
    2 b s h^2.  Then two products for every head of every row: scores, (s, hd) by
    (hd, s), and weighted values, (s, s) by (s, hd), each 2 s^2 hd; with nh heads of
    hd = h / nh in b rows, 2 b s^2 h each, however many heads there are.
    """
    projections = 4 * product_flops(b * s, h, h)
    return projections + 2 * b * product_flops(s, h, s)


def mlp_flops(b: int, s: int, h: int) -> int:
    """The feed-forward before SwiGLU, from h to 4 h and back: 16 b s h^2."""
    return product_flops(b * s, h, 4 * h) + product_flops(b * s, 4 * h, h)


def swiglu_flops(b: int, s: int, h: int, ff: int) -> int:
    """LLaMA's feed-forward, with gate, up and down: 6 b s h ff.

    With ff = 8 h / 3, as LLaMA 1 chose it, three matrices cost what two of 4 h do.
    """
    return 3 * product_flops(b * s, h, ff)


def layer_flops(b: int, s: int, h: int) -> int:
    """A layer with the feed-forward of 4 h: 24 b s h^2 + 4 b s^2 h.

    The second term, attention's own, is s / 6 h of the first: a sixth of it when
    the text is as long as the model is wide.
    """
    return attention_flops(b, s, h) + mlp_flops(b, s, h)


def token_flops(config: Config) -> int:
    """About 2 x parameters per token: every weight multiplies every token once.

    This counts only multiplied parameters.  The embedding is a lookup, and counts only
    if it is also the `lm_head`; gains and biases are not products.  Attention's own
    4 S H D per layer comes on top.
    """
    parts = parameters(config)
    projections = sum(n for name, n in parts.items() if name.endswith("_proj"))
    E, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    biases = config.attention_bias * L * (heads * config.head_dim + E)
    biases += config.mlp_bias * L * (2 * F + E)
    return 2 * (projections - biases + config.vocab_size * E)


# ---- what the cache saves ---------------------------------------------------


def cached_flops(b: int, n: int, h: int) -> int:
    """A layer, for n tokens one by one with a cache: 24 b n h^2 + 2 b n (n + 1) h.

    Token t costs one position, 24 b h^2, and meets t keys, 4 b t h.
    """
    return 24 * b * n * h**2 + 2 * b * n * (n + 1) * h


def uncached_flops(b: int, n: int, h: int) -> int:
    """The same without: a text of 1, then of 2, ..., then of n tokens.

    12 b n (n + 1) h^2 + 2 b n (n + 1) (2 n + 1) h / 3: the cache divides the first
    term by (n + 1) / 2 and the second by (2 n + 1) / 3.
    """
    squares = n * (n + 1) * (2 * n + 1) // 6
    return 12 * b * n * (n + 1) * h**2 + 4 * b * squares * h


def without_cache(
    config: Config, batch: int, prompt: int, new_tokens: int
) -> tuple[Operator, ...]:
    """What `formulas.generation` would cost if nothing were kept.

    Every new token runs the whole text again, prompt + i positions, each of which
    meets all of them.
    """
    check_pass(batch, prompt)
    check_pass(batch, new_tokens)
    H, K = config.num_attention_heads, config.num_key_value_heads
    n, end = new_tokens, prompt + new_tokens - 1
    positions = n * prompt + n * (n - 1) // 2
    pairs = _squares(end) - _squares(prompt - 1)
    met = Meetings(n, batch * H * pairs, batch * H * positions, batch * K * positions)
    work = Work(n, batch * positions, batch * n, met)
    return tabulate(config, work, "square")


def _squares(n: int) -> int:
    """1 + 4 + 9 + ... + n^2."""
    return n * (n + 1) * (2 * n + 1) // 6
