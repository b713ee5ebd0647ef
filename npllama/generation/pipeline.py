"""From a config to the one function that shapes every distribution.

Each option that is switched on becomes a step, a function from histories and logits
to logits; run one after the other they are the `process` that strategies call.
Their order is that of the rows in `options`, which is the order of transformers:
guidance, biases, penalties, constraints, then (if tokens are drawn) temperature and
truncation, and last the watermark.  Two options change the order: mirostat takes the
place of all truncation, and llama.cpp truncates in an order of its own and divides
by the temperature last.
"""

from __future__ import annotations

import numpy as np

from npllama.decoding.common import Process
from npllama.generation.options import OPTIONS, SHAPE, GenerationConfig
from npllama.generation.steps import History, Setting

LLAMACPP_FIRST = ["top_n_sigma", "top_k", "typical_p", "top_p", "min_p"]


def order(config: GenerationConfig) -> list[str]:
    """Names of the options that are switched on and have a step, first to last."""
    names = [
        name
        for name, option in OPTIONS.items()
        if option.make is not None and getattr(config, name) != option.off
    ]
    shape = [name for name in names if OPTIONS[name].chapter == SHAPE]
    if not shape:
        return names
    first = names.index(shape[0])
    before, after = names[:first], names[first + len(shape) :]
    if not config.do_sample:
        return before + after
    if config.mirostat:
        shape = [name for name in shape if name in ("temperature", "mirostat")]
    elif config.sampler_order == "llama.cpp":
        places = [*LLAMACPP_FIRST, *(name for name in shape if name != "temperature")]
        shape.sort(key=[*places, "temperature"].index)
    return before + shape + after


# What can remove a token.
REMOVING = ["Guidance and bias", "Penalties", "Constraints"]


def removers(config: GenerationConfig) -> str:
    """Names of the options that are on and may have removed every token."""
    on = [name for name in order(config) if OPTIONS[name].chapter in REMOVING]
    return " and ".join(name for name in on if name != "contrastive_alpha")


def pipeline(config: GenerationConfig, setting: Setting) -> Process:
    """All steps that `config` switches on, as one function.

    Returns
    -------
    function of (histories, logits) to logits
    """
    made = [
        OPTIONS[name].make(getattr(config, name), config, setting)
        for name in order(config)
    ]
    steps = [step for step in made if step is not None]

    def process(history: History, logits: np.ndarray) -> np.ndarray:
        for step in steps:
            logits = step(history, logits)
        return logits

    return process
