"""From a config to the one function that shapes every distribution.

Each option that is switched on acts on the distribution by its step; run one after
the other, the steps are the `process` that strategies call.  Their order is that of
the rows in `options`, which is the order of transformers: guidance, biases,
penalties, constraints, then (if tokens are drawn) temperature and truncation, and
last the watermark.  Two options change the order: mirostat takes the place of all
truncation, and llama.cpp truncates in an order of its own and divides by the
temperature last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npllama.generation.options import OPTIONS, SHAPE, GenerationConfig
from npllama.generation.steps import History, Setting
from npllama.ops import note

LLAMACPP_FIRST = ["top_n_sigma", "top_k", "typical_p", "top_p", "min_p"]


def order(config: GenerationConfig) -> list[str]:
    """Names of the options that are switched on and have a step, first to last."""
    names = [
        name
        for name, option in OPTIONS.items()
        if option.step is not None and getattr(config, name) != option.off
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


# Chapters whose options can remove a token.
REMOVING = ["Guidance and bias", "Penalties", "Constraints"]


def removers(config: GenerationConfig) -> str:
    """Names of the options that are on and may have removed every token."""
    on = [name for name in order(config) if OPTIONS[name].chapter in REMOVING]
    return " and ".join(name for name in on if name != "contrastive_alpha")


def pipeline(
    setting: Setting, names: Sequence[str], history: History, logits: np.ndarray
) -> np.ndarray:
    """Run the steps of the named options, one after the other.

    Observers see the distribution before the first step, as ``process``, and after
    each, such as ``process.top_p``.

    Parameters
    ----------
    setting : Setting
    names : names of options
        See `order`.
    history : B sequences of token ids
        Every token of each row so far, the prompt included.
    logits : (B, V) float

    Returns
    -------
    (B, V) float
    """
    note("process", logits)
    for name in names:
        value = getattr(setting.config, name)
        logits = OPTIONS[name].step(value, setting, history, logits)
        note(f"process.{name}", logits)
    return logits
