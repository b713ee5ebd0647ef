"""Part III: what it costs.

Every product of the book passes through one function, so its cost can be counted
while it runs, and predicted before it does.

    `product`   what one product costs
    `report`    what was counted, as a tree
    `counter`   counting while a model runs
    `meetings`  how queries meet keys: where counts disagree
    `formulas`  the same numbers in closed form, for models that fit nowhere
    `textbook`  the short forms that are quoted, and where they come from
    `memory`    what has to be held at once
"""

from npllama.cost.counter import FlopCounter, carried
from npllama.cost.formulas import (
    Operator,
    cache_bytes,
    cache_elements,
    decode,
    generation,
    operators,
    parameters,
    prefill,
    total,
)
from npllama.cost.memory import activation_peak

__all__ = [
    "FlopCounter",
    "Operator",
    "activation_peak",
    "cache_bytes",
    "cache_elements",
    "carried",
    "decode",
    "generation",
    "operators",
    "parameters",
    "prefill",
    "total",
]
