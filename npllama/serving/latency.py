"""How long clients wait: a server's latencies, as vLLM's benchmark defines them.

A request arrives, waits, gets its first token, and then one after the other:

    arrival          first          second    third   last
       |---- TTFT ----|----- gap -----|-- gap --|- gap -|
       |-------------------- E2EL ----------------------|

- TTFT, time to first token: all that comes before it, waiting in the queue included.
- TPOT, time per output token: (E2EL - TTFT) / (n - 1), one number per request.  A
  request of one token has none, and is left out of the mean.
- ITL, inter-token latency: every gap of every request, in one pool.  So a long text
  counts more often than a short one, and the mean differs from that of TPOT.
- E2EL, end-to-end latency.
- Goodput: requests per second that meet all given targets.  Here the TPOT of a
  request of one token counts as 0.
- Normalised latency: the mean of E2EL / n, the measure in the papers of Orca and
  vLLM.

A preemption lengthens a gap if the text had begun, and TTFT otherwise.

References
----------
vLLM, ``vllm/benchmarks/serve.py``, ``calculate_metrics``; Yu et al. 2022, "Orca", OSDI,
section 6.2; Kwon et al. 2023, arXiv:2309.06180, section 6.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Served(NamedTuple):
    """When one request arrived, and when each of its tokens came."""

    arrival: float  # seconds
    times: Sequence[float]  # rising, at least one


class Targets(NamedTuple):
    """Seconds that a request may take in order to count for goodput."""

    ttft: float = math.inf
    tpot: float = math.inf
    e2el: float = math.inf


class Latencies(NamedTuple):
    """The measures of some requests, in seconds."""

    ttft: np.ndarray  # (n,)
    tpot: np.ndarray  # (n,), NaN for requests of one token
    itl: np.ndarray  # every gap
    e2el: np.ndarray  # (n,)
    tokens: np.ndarray  # (n,) int64
    duration: float  # from the beginning, 0, to the last token

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return float(self.tokens.sum() / self.duration)

    @property
    def normalised(self) -> float:
        """Mean of each request's end-to-end latency per token."""
        return float((self.e2el / self.tokens).mean())

    @property
    def mean_tpot(self) -> float:
        """Mean over the requests of several tokens; 0 if there are none."""
        some = self.tpot[~np.isnan(self.tpot)]
        return float(some.mean()) if some.size else 0.0


def latencies(served: Sequence[Served]) -> Latencies:
    """Measure requests that have all ended.

    Parameters
    ----------
    served : n records, at least one
        Their clock begins at 0.
    """
    if not served or not all(len(one.times) for one in served):
        raise ValueError("served: give requests, each with at least one token")
    arrival = np.array([one.arrival for one in served])
    first = np.array([one.times[0] for one in served])
    last = np.array([one.times[-1] for one in served])
    tokens = np.array([len(one.times) for one in served])
    several = np.where(tokens > 1, tokens - 1, np.nan)
    return Latencies(
        ttft=first - arrival,
        tpot=(last - first) / several,
        itl=np.concatenate([np.diff(one.times) for one in served]),
        e2el=last - arrival,
        tokens=tokens,
        duration=float(last.max()),
    )


def goodput(found: Latencies, targets: Targets) -> float:
    """Requests per second that meet all targets."""
    good = found.ttft <= targets.ttft
    good &= np.nan_to_num(found.tpot) <= targets.tpot
    good &= found.e2el <= targets.e2el
    return float(good.sum() / found.duration)
