"""Part II, second half: from distributions to texts, one strategy per file.

Reading order: `common` (what all share), `sample` (greedy and chance).
"""

from npllama.decoding.common import (
    Hypothesis,
    Process,
    Stop,
    context_length,
    extend,
    prefill,
    room,
    unprocessed,
)
from npllama.decoding.sample import Step, choose, sample

__all__ = [
    "Hypothesis",
    "Process",
    "Step",
    "Stop",
    "choose",
    "context_length",
    "extend",
    "prefill",
    "room",
    "sample",
    "unprocessed",
]
