"""The memory that activations need, besides the weights and the cache.

Activations come and go; the peak is the moment at which most of them are alive.  In a
block that is one of three moments: while queries and keys are rotated, while a block
of queries attends, or while the feed-forward is at its widest.  After the last block
the logits are alive.  Each moment is counted in arrays that have a name in the book,
or that NumPy makes for an intermediate result.
"""

from __future__ import annotations

from npllama.attention import LEAST_KEYS, QUERY_BLOCK, default_blocks
from npllama.config import Config
from npllama.cost.formulas import check_pass
from npllama.cost.meetings import sharing


def activation_moments(
    config: Config,
    batch: int,
    new: int,
    cached: int = 0,
    *,
    causal: str = "blocks",
    last: bool = False,
) -> dict[str, int]:
    """Elements alive in the fullest moments of one `forward`.

    The residual stream, its normalised copy and the rotary tables are always there.

    Parameters
    ----------
    causal : "blocks", "triangle", "square" or "rowwise"
        "square" holds all scores of a layer and their softmax, B H T S each.
    last : bool
        Logits after the last position only.
    """
    check_pass(batch, new, cached, causal)
    if causal not in ATTEND:
        raise ValueError(f"causal: memory is known of {', '.join(ATTEND)} alone")
    E, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attend = ATTEND[causal]
    positions = batch * new
    always = positions * (2 * E + D)
    return {
        # Plain and turned, two halves in between; of q first, then of k.
        "rotation": always + positions * D * max(3 * H + 2 * K, 2 * H + 4 * K),
        # Queries, keys, values and the result, besides the scores.
        "attention": always
        + positions * D * (2 * H + 2 * K)
        + attend(config, batch, new, cached),
        # Gate and up, and two more while SiLU divides by an exponential.
        "feed-forward": always + positions * 4 * F,
        "logits": positions * (E + D) + batch * (1 if last else new) * (E + V),
    }


def _square(config: Config, batch: int, new: int, cached: int) -> int:
    return 2 * batch * config.num_attention_heads * new * (cached + new)


def _triangle(config: Config, batch: int, new: int, cached: int) -> int:
    return 2 * (cached + new)


def _blocks(config: Config, batch: int, new: int, cached: int) -> int:
    """The most that a block of n queries needs: itself, its scores, and its result.

    (Or itself twice, as a copy in order for the product where heads share keys.)  After
    the first block of keys, the running result of the earlier ones is there, too.
    """
    K, D, G = config.num_key_value_heads, config.head_dim, sharing(config)
    n = min(new, QUERY_BLOCK)
    key_block, head_block = default_blocks(batch, n, G, cached + new)
    most = 0
    for t in range(0, new, QUERY_BLOCK):
        n = min(QUERY_BLOCK, new - t)
        seen = cached + t + n
        vectors = 2 + (seen >= 2 * key_block)
        most = max(most, n * (min(seen, key_block) + vectors * D))
    return batch * min(K, head_block) * G * most


def _rowwise(config: Config, batch: int, new: int, cached: int) -> int:
    """One query and the heads that share its keys."""
    return sharing(config) * (min(cached + new, LEAST_KEYS) + 3 * config.head_dim)


ATTEND = {"square": _square, "triangle": _triangle}
ATTEND |= {"blocks": _blocks, "rowwise": _rowwise}


def activation_peak(
    config: Config,
    batch: int,
    new: int,
    cached: int = 0,
    *,
    causal: str = "blocks",
    last: bool = False,
) -> int:
    """Elements alive in the fullest moment of all; see `activation_moments`."""
    moments = activation_moments(config, batch, new, cached, causal=causal, last=last)
    return max(moments.values())
