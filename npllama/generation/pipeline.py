"""From a config to the one function that shapes every distribution.

Each option that is switched on acts on the distribution by its step; run one after
the other, the steps are the `process` that strategies call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npllama.generation.options import OPTIONS, GenerationConfig
from npllama.generation.steps import History, Setting
from npllama.ops import note

# Chapters whose options can remove a token.
REMOVING = ["Guidance and bias", "Penalties", "Constraints"]


def removers(config: GenerationConfig) -> str:
    """Names of the options that are on and may have removed every token."""
    on = [name for name in config.order if OPTIONS[name].chapter in REMOVING]
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
        See `GenerationConfig.order`.
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
