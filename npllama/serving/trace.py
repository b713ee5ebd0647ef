r"""Traffic: who comes when, with how long a prompt, for how long a text.

Whether a server is good cannot be said of one request.  It depends on how many come,
how evenly, and above all on how different their lengths are: a page saves nothing
where all texts are equally long.  Traces of real traffic are seldom published; their
means are.  So traffic is drawn here:

- The gaps between arrivals are Gamma distributed with shape b and mean 1 / rate.
  With b = 1 that is a Poisson process: requests come independently; with a
  smaller b requests come in bursts, with a larger one evenly.  The whole is then
  stretched so that n requests take exactly n / rate, as vLLM's benchmark does: this
  removes a random error of a percent or two.
- Lengths are log-normal: positive, a few of them very long.  Two numbers fix them,
  the mean and the squared coefficient of variation, variance / mean², written cv2.

References
----------
Kwon et al. 2023, arXiv:2309.06180, section 6.1, for the means; vLLM,
``vllm/benchmarks/serve.py``, for the arrivals.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Rng = np.random.Generator


class Lengths(NamedTuple):
    """How long prompts and texts are, on average and how differently."""

    prompt: float  # mean tokens of a prompt
    prompt_cv2: float
    output: float  # mean new tokens
    output_cv2: float
    longest_prompt: int = 1024  # longer ones were left out of the published traces
    context: int = 2048  # prompt and new tokens together


# The means are published.  The spreads are not: these give the published waste.
SHAREGPT = Lengths(161.31, 3.0, 337.99, 0.7)
ALPACA = Lengths(19.31, 0.5, 58.45, 1.1)
LENGTHS = {"sharegpt": SHAREGPT, "alpaca": ALPACA}


class Traffic(NamedTuple):
    """A trace of n requests, in order of arrival."""

    arrival: np.ndarray  # (n,) float64, seconds; all 0 if everybody waits already
    prompt: np.ndarray  # (n,) int64, tokens
    output: np.ndarray  # (n,) int64, tokens


def arrivals(rng: Rng, n: int, rate: float, burstiness: float = 1.0) -> np.ndarray:
    """Draw when n requests arrive.

    Parameters
    ----------
    rate : float
        Requests per second; infinity if all are there at the beginning.
    burstiness : float
        Shape b of the gaps' Gamma distribution: 1 is a Poisson process, infinity a
        steady beat.

    Returns
    -------
    (n,) float64
        Rising seconds; the last is n / rate.
    """
    if not (n >= 1 and rate > 0 and burstiness > 0):
        raise ValueError(
            f"n {n}, rate {rate}, burstiness {burstiness}: all must be above 0"
        )
    if rate == math.inf:
        return np.zeros(n)
    if burstiness == math.inf:
        return np.arange(1, n + 1) / rate
    times = np.cumsum(rng.gamma(burstiness, 1 / (rate * burstiness), n))
    return times * (n / rate / times[-1])


def lognormal(
    rng: Rng, n: int, mean: float, cv2: float, most: int | np.ndarray
) -> np.ndarray:
    """Draw whole lengths from 1 to `most` whose mean and spread are those asked for.

    Rounding, and cutting what is too long, would change both; so the two parameters
    of the distribution are adjusted until the lengths themselves have them.

    Parameters
    ----------
    mean, cv2 : float
        Of the lengths that are returned, to within rounding.
    most : int, or (n,) int64

    Returns
    -------
    (n,) int64
    """
    if not (mean >= 1 and cv2 >= 0):
        raise ValueError(f"mean {mean}, cv2 {cv2}: 1 or more, and 0 or more")
    shape, location, spread = rng.standard_normal(n), math.log(mean), math.log1p(cv2)
    lengths = np.full(n, round(mean))
    for _ in range(60 if cv2 else 0):
        drawn = np.exp(np.minimum(location + math.sqrt(spread) * shape, 50.0))
        lengths = np.clip(np.rint(drawn), 1, most)
        found = lengths.var() / lengths.mean() ** 2
        location += math.log(mean / lengths.mean())
        spread *= math.log1p(cv2) / math.log1p(found) if found else 1.0
    return np.minimum(lengths, most).astype(np.int64)


def traffic(
    rng: Rng,
    n: int,
    lengths: Lengths,
    rate: float = math.inf,
    burstiness: float = 1.0,
) -> Traffic:
    """Draw a trace of n requests."""
    prompt = lognormal(
        rng, n, lengths.prompt, lengths.prompt_cv2, lengths.longest_prompt
    )
    room = lengths.context - prompt
    output = lognormal(rng, n, lengths.output, lengths.output_cv2, room)
    return Traffic(arrivals(rng, n, rate, burstiness), prompt, output)
