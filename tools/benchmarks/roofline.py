"""What the roofline predicts for this machine, beside what npllama does on it.

The probe runs in a process of its own, with the threads of the others, before and
after every size, for machines have moods; the median of each rate counts.  The
prediction is for the very pass that is measured: a prompt at once, and the step in
the middle of those that are timed.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from npllama.config import preset
from npllama.cost.hardware import Hardware
from npllama.cost.probe import this_machine
from npllama.cost.roofline import dtypes, predict


class Probe:
    """Runs in the timed process."""

    def __init__(self, threads: int):
        # BLAS wakes its threads once.
        np.ones((64, 64)) @ np.ones((64, 64))

    def measure(self) -> dict[str, float]:
        """The rates of this machine."""
        machine = this_machine()
        return {
            "flops": machine.flops["fp32"],
            "bandwidth": machine.bandwidth,
            "elementwise": machine.elementwise,
            "overhead": machine.overhead,
        }


PROGRAMS = {"probe": Probe}


def machine_of(probes: list[dict[str, float]]) -> Hardware:
    """The median of several probes."""
    rates = {name: median(p[name] for p in probes) for name in probes[0]}
    return Hardware(
        "this-machine",
        {"fp32": rates["flops"]},
        rates["bandwidth"],
        elementwise=rates["elementwise"],
        overhead=rates["overhead"],
    )


def compare(
    sizes: dict[str, dict[str, Any]],
    probes: list[dict[str, float]],
    context: int,
) -> dict[str, Any]:
    """Prediction and measurement of every size.

    Parameters
    ----------
    sizes : mapping of preset to its part of the results
        As `bench.py` measures it.
    probes : list of rates
    context : int
        Positions behind which decode was timed.
    """
    machine, found = machine_of(probes), {}
    for name, size in sizes.items():
        prompt, steps = size["prefill"]["tokens"], size["decode"]["tokens"]
        config, types = preset(name), dtypes("fp32")
        first = predict(config, machine, 1, prompt, 1, types, "blocks").prefill
        step = predict(config, machine, 1, context, steps, types, "blocks").decode
        found[name] = {}
        for measure, tokens, predicted in (
            ("prefill", prompt, first.rate),
            ("decode", steps, step.rate),
        ):
            measured = size[measure]["programs"]["npllama"]["median"]
            found[name][measure] = {
                "tokens": tokens,
                "predicted": predicted,
                "measured": measured,
                "predicted_is_times": predicted / measured,
            }
    return {"probes": probes, "sizes": found}
