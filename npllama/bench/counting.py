"""What counting costs: steps of decode with a counter watching, beside steps alone.

    python -m npllama.bench.counting

Every step is run twice from the same cache, watched and alone, in turns.  The
median of the differences is what watching adds; summing what was written down, which
a counter does now and then, is timed for itself and shared out among the steps.
"""

from __future__ import annotations

from statistics import median

import numpy as np

from npllama.bench.random_model import random_tensors
from npllama.bench.worker import seconds
from npllama.cache import new_cache
from npllama.config import Config, preset
from npllama.cost import FlopCounter, carried
from npllama.model import forward
from npllama.weights import assemble


def cost_of_counting(
    config: Config, rounds: int = 10, steps: int = 100, context: int = 64
) -> dict[str, float]:
    """Seconds that counting adds to a step of decode, and what share of it that is.

    Parameters
    ----------
    config : Config
        Of a model with random weights.
    rounds, steps : int
        A new counter in every round; each step is run twice.
    context : int
        Positions that are cached before the first step.
    """
    model = assemble(config, dict(random_tensors(config)))
    cache, token = new_cache(config, 1, context + steps), np.zeros((1, 1), dtype=int)
    forward(model, np.zeros((1, context), dtype=int), cache, last=True)

    def step() -> None:
        forward(model, token, cache, last=True)

    alone, watching, summing = [], [], []
    for _ in range(rounds):
        with FlopCounter() as count:
            watched = carried(step)
        for i in range(steps):
            times = {}
            for way in (step, watched) if i % 2 else (watched, step):
                cache.length[:] = context + i
                times[way] = seconds(way)
            alone.append(times[step])
            watching.append(times[watched] - times[step])
        summing.append(seconds(count.settle) / steps)
    took, added = median(alone), median(watching) + median(summing)
    return {"step": took, "added": added, "share": added / took}


if __name__ == "__main__":
    found = cost_of_counting(preset("stories15m"))
    print(
        f"a step of decode at 15M takes {1e3 * found['step']:.3f} ms; counting adds "
        f"{1e6 * found['added']:.0f} us, {100 * found['share']:.1f}%"
    )
