"""What the roofline predicts for this machine, beside what npllama does on it.

The probe runs in a process of its own, with the threads of the others, before every
round, since a machine's speed changes: a round is predicted by its own probe, and the
median of the ratios counts.  The prediction is for the very pass that is measured: a prompt
at once, and the step in the middle of those that are timed.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from npllama.config import preset
from npllama.cost.hardware import Hardware
from npllama.cost.probe import this_machine
from npllama.cost.roofline import dtypes, predict
from npllama.ops import einsum


class Probe:
    """Runs in the timed process."""

    def __init__(self, threads: int):
        # BLAS wakes its threads once.
        square = np.ones((64, 64))
        einsum("TE,FE->TF", square, square, "first")

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


def machine_of(probe: dict[str, float]) -> Hardware:
    """The machine that a probe found."""
    return Hardware(
        "this-machine",
        {"fp32": probe["flops"]},
        probe["bandwidth"],
        elementwise=probe["elementwise"],
        overhead=probe["overhead"],
    )


def compare(sizes: dict[str, dict[str, Any]], context: int) -> dict[str, Any]:
    """Prediction and measurement of every size.

    Parameters
    ----------
    sizes : mapping of preset to its part of the results
        As `measure` measures it, with a probe before every round.
    context : int
        Positions after which decode was timed.
    """
    found: dict[str, Any] = {}
    for name, size in sizes.items():
        prompt, steps = size["prefill"]["tokens"], size["decode"]["tokens"]
        predictions: dict[str, list[float]] = {"prefill": [], "decode": []}
        for probe in size["probes"]:
            config, machine, kinds = preset(name), machine_of(probe), dtypes("fp32")
            first = predict(config, machine, 1, prompt, 1, kinds, "blocks").prefill
            step = predict(config, machine, 1, context, steps, kinds, "blocks").decode
            predictions["prefill"].append(first.rate)
            predictions["decode"].append(step.rate)
        found[name] = {
            measure: beside(rates, size[measure], prompt if measure == "prefill" else 1)
            for measure, rates in predictions.items()
        }
    probes = [probe for size in sizes.values() for probe in size["probes"]]
    return {"probes": probes, "sizes": found}


def beside(
    predicted: list[float], part: dict[str, Any], per_call: int
) -> dict[str, Any]:
    """Medians over rounds: tokens per second predicted, measured, and their ratio."""
    rounds = part["programs"]["npllama"]["rounds_seconds"]
    measured = [per_call / median(seconds) for seconds in rounds]
    return {
        "tokens": part["tokens"],
        "predicted": median(predicted),
        "measured": median(measured),
        "predicted_is_times": median(p / m for p, m in zip(predicted, measured)),
    }
