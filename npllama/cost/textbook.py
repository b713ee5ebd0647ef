"""The short forms that are quoted, derived.

The literature writes b rows, a sequence of s positions, width h, and a feed-forward
of ff; here that is b = B, s = T = S, h = E = H D, ff = F.  Everything follows from
one product: (m, n) by (n, p) costs 2 m n p.
"""

from __future__ import annotations

from npllama.config import Config
from npllama.cost.formulas import parameters


def product_flops(m: int, n: int, p: int) -> int:
    """A product of (m, n) by (n, p): m p sums of n products, 2 m n p FLOPs."""
    return 2 * m * n * p


def attention_flops(b: int, s: int, h: int) -> int:
    """Multi-head attention of one layer: 8 b s h^2 + 4 b s^2 h.

    Four projections (query, key, value, output) of b s positions from h to h: 2 b s
    h^2 each.  Two products of s by s pairs, scores and weighted values, with h / nh
    numbers in each of nh heads: 2 b s^2 h each.
    """
    return 4 * product_flops(b * s, h, h) + 2 * b * product_flops(s, h, s)


def mlp_flops(b: int, s: int, h: int) -> int:
    """A plain feed-forward: h to 4 h and back, 16 b s h^2."""
    return 2 * product_flops(b * s, h, 4 * h)


def swiglu_flops(b: int, s: int, h: int, ff: int) -> int:
    """LLaMA's feed-forward: gate, up and down, 6 b s h ff.

    With ff = 8 h / 3, as LLaMA 1 chose, three matrices cost what two of 4 h do.
    """
    return 3 * product_flops(b * s, h, ff)


def layer_flops(b: int, s: int, h: int) -> int:
    """A layer with the plain feed-forward: 24 b s h^2 + 4 b s^2 h."""
    return attention_flops(b, s, h) + mlp_flops(b, s, h)


def per_token_flops(config: Config) -> int:
    """About 2 x parameters: every weight is multiplied with every token once.

    The embedding is a lookup and counts only where `lm_head` shares it; attention's
    own 4 s h per layer comes on top, and is left out of the rule of thumb.
    """
    parts = parameters(config)
    head = parts["lm_head"] or parts["embed_tokens"]
    return 2 * (sum(parts.values()) - parts["embed_tokens"] - parts["lm_head"] + head)
