"""What an adapter costs beside its weight.

An adapter of rank R beside a matrix of C x S gives each position two thin products:

    S to R    2 R S FLOPs, R S weights read, S + R elements in and out
    R to C    2 R C FLOPs, R C weights read, R + C elements in and out

so n positions take 2 n R (S + C) FLOPs more.  The scale and the final sum are no
products, and are left out like all that is no product.
"""

from __future__ import annotations

from collections.abc import Mapping

from npllama.config import Config
from npllama.cost.formulas import Operator, Work
from npllama.weights import tensor_shapes


def adapter_operators(
    config: Config, work: Work, ranks: Mapping[str, int]
) -> tuple[Operator, ...]:
    """What an adapter costs more, each factor of a component summed over the layers.

    Parameters
    ----------
    config : Config
    work : Work
        Of the texts that use the adapter: ``positions``, ``logits`` and ``passes``.
    ranks : mapping of module to R
        Such as ``"model.layers.0.self_attn.q_proj"``; they may differ.
    """
    V, E = config.vocab_size, config.hidden_size
    shapes = {"lm_head.weight": (V, E), **tensor_shapes(config)}
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for module, R in ranks.items():
        C, S = shapes[f"{module}.weight"]
        name = module.rpartition(".")[2]
        n = work.logits if name == "lm_head" else work.positions
        for factor, equation, wide in (
            ("lora_A", "TE,RE->TR", S),
            ("lora_B", "TR,FR->TF", C),
        ):
            kept, moved = work.passes * R * wide, n * (R + wide)
            numbers = (work.passes, 2 * n * R * wide, kept, 0, moved)
            label = f"{name}.{factor}", equation
            sums = zip(found.get(label, (0,) * 5), numbers)
            found[label] = tuple(a + b for a, b in sums)
    return tuple(Operator(*label, *numbers) for label, numbers in found.items())
