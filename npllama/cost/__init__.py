"""Chapter 16: what it costs.

Every product of the book passes through one function, so its cost can be counted
while it runs, and predicted before.

    `product`   what one product costs
    `report`    what was counted, as a tree
    `counter`   counting while a model runs
    `meetings`  how queries meet keys: where counts disagree
    `formulas`  the same numbers in closed form, for models of any size
    `adapters`  what a LoRA beside the weights costs more
    `textbook`  the short forms that are quoted, and where they come from
    `rounded`   numbers in a few bits, and the scales that they need
    `memory`    the memory that activations need
    `hardware`  the speed of machines, by their data sheets
    `cards`     several cards that share one model
    `roofline`  the speed that a machine allows a model
    `probe`     the speed of this machine, measured
    `traffic`   what FlashAttention saves, tile by tile
    `ways`      how queries meet keys in the ways to attend of long texts
    `speeds`    what programs reached on real cards, beside the bound
    `tables`    the tables of README.md, worked out
    `facts`     conclusions from the figures; first, whether a text fits
    `curves`    the same over batch and context
    `plot`      the roofline, drawn
    `printed`   predictions as tables of text, and as JSON
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
from npllama.cost.hardware import HARDWARE, Hardware
from npllama.cost.memory import activation_peak
from npllama.cost.probe import this_machine
from npllama.cost.roofline import Dtypes, Prediction, dtypes, predict

__all__ = [
    "HARDWARE",
    "Dtypes",
    "FlopCounter",
    "Hardware",
    "Operator",
    "Prediction",
    "activation_peak",
    "cache_bytes",
    "cache_elements",
    "carried",
    "decode",
    "dtypes",
    "generation",
    "operators",
    "parameters",
    "predict",
    "prefill",
    "this_machine",
    "total",
]
