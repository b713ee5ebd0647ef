"""From logits to logits to token."""

from .chain import apply, distribution
from .draw import draw, greedy, log_softmax, sample, softmax
from .temperature import dynamic_temperature, temperature
from .truncation import top_k, top_p

__all__ = [
    "apply",
    "distribution",
    "draw",
    "dynamic_temperature",
    "greedy",
    "log_softmax",
    "sample",
    "softmax",
    "temperature",
    "top_k",
    "top_p",
]
