"""Several cards that share one model: tensor parallelism.

Each of n cards holds an n-th of every matrix: H/n of the query heads with their K/n heads
of keys and values, F/n of the feed-forward's width, V/n of the vocabulary.  So one card
does what a narrower model does, whose residual stream is as wide as before, and all
that was counted for one machine holds for it.

What is new is talk.  `o_proj` and `down_proj` give each card a sum over its own share
of the inner width, and the cards add these up (an all-reduce), twice per layer.  In a
ring a card sends 2 (n - 1)/n of the T x E numbers: once around while the sums grow,
once more while they are handed out.  The rows of the embedding are added up likewise,
and each card fetches the logits that the other cards computed.  Each message also takes
some microseconds however short it is, 2 L times per token; that is not counted here.

References
----------
Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""

from __future__ import annotations

from dataclasses import replace

from npllama.config import Config


def one_card(config: Config, cards: int) -> Config:
    """The model as one of n cards sees it.

    With fewer heads of keys than cards, several cards hold copies of one head.

    Raises
    ------
    ValueError
        If heads or width cannot be shared evenly.
    """
    H, K, F = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
    )
    if H % cards or F % cards or (K % cards and cards % K):
        raise ValueError(
            f"{cards} cards cannot share {H} query heads, {K} key heads and a "
            f"feed-forward of {F} evenly"
        )
    return replace(
        config,
        num_attention_heads=H // cards,
        num_key_value_heads=max(1, K // cards),
        head_dim=config.head_dim,
        intermediate_size=F // cards,
        vocab_size=-(-config.vocab_size // cards),
    )


def sent_elements(config: Config, cards: int, positions: int, rows: int) -> float:
    """Elements that one card sends in one pass.

    Parameters
    ----------
    config : Config
        Of one card.
    positions, rows : int
        Positions that are run, and those of them whose logits are wanted.
    """
    sums = (2 * config.num_hidden_layers + 1) * positions * config.hidden_size
    logits = rows * config.vocab_size
    return (cards - 1) * (2 * sums / cards + logits)
