"""Checks of contrasts: with hidden states, an amateur, an early layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from npllama.testing.chance import close
from npllama.testing.laws import Law, Violation, check_of
from npllama.testing.masks import not_written
from npllama.testing.strategies import GONE, array, cases, row, seeds
from npllama.testing.truth import log_softmax

THREE = st.lists(
    st.sampled_from([0.0, 1.0, -2.0, 3.0, GONE]), min_size=4, max_size=4
).filter(lambda row: max(row) > GONE)
FINITE = st.lists(st.sampled_from([0.0, 1.0, -2.0, 3.0]), min_size=4, max_size=4)


def _chooses_the_best(sampler: Callable, seed: int, penalty_alpha: float) -> None:
    rng = np.random.default_rng(seed)
    n, size = rng.integers(1, 5), rng.integers(1, 6)
    probs = np.sort(rng.dirichlet(np.ones(n)))[::-1]
    candidates = array(rng.standard_normal((n, 3)) * rng.uniform(0.2, 5))
    seen = array(rng.standard_normal((size, 3)) * rng.uniform(0.2, 5))
    scores = _degeneration_score(
        probs, candidates.astype(float), seen.astype(float), penalty_alpha
    )
    found = int(sampler(probs, candidates, seen, penalty_alpha))
    best = scores[found] >= scores.max() - 1e-5
    if not best:
        raise Violation(f"chose {found} of scores {scores.round(4).tolist()}")


def _degeneration_score(
    probs: NDArray, candidates: NDArray, seen: NDArray, a: float
) -> NDArray:
    likeness = [
        max(
            float((h * s).sum() / math.sqrt((h * h).sum() * (s * s).sum()))
            for s in seen
        )
        for h in candidates
    ]
    return (1 - a) * probs - a * np.array(likeness)


@check_of("contrastive_search", "probs, candidates, seen, penalty_alpha")
def check_contrastive_search() -> Iterator[Law]:
    r"""Check ``choose(probs, candidates, seen, penalty_alpha)``, one step's choice.

    $$(1 - \alpha) p(v) - \alpha \max_s \cos(h_v, h_s)$$

    Parameters
    ----------
    sampler : function of (n,) float64, (n, E) and (S, E) float32, and float
        Probabilities of the candidates, largest first; the hidden state of each;
        those of the text so far. Returns the number of the best candidate.
    """

    alphas = st.sampled_from([0.0, 0.3, 0.6, 1.0])
    says = "the chosen candidate is probable, and unlike all that was seen"
    # A product without lengths and an angle without a sign choose another here.
    known = {"seed": 3, "penalty_alpha": 0.6}
    rows = cases(seed=seeds, penalty_alpha=alphas)
    yield Law(says, rows, _chooses_the_best, (known,))


def _contrasts_models(
    sampler: Callable, logits: NDArray, amateur: NDArray, alpha: float, beta: float
) -> None:
    out = np.asarray(sampler(logits.copy(), amateur.copy(), alpha, beta))
    expert, other = logits.astype(np.float64), amateur.astype(np.float64)
    plausible = expert >= expert.max() + math.log(alpha)
    right = np.where(plausible, (1 + beta) * expert - beta * other, GONE)
    close(log_softmax(out.astype(np.float64)), log_softmax(right), 1e-4)


@check_of("contrastive_decoding", "expert, amateur, alpha, beta")
def check_contrastive_decoding() -> Iterator[Law]:
    r"""Check ``contrast(expert, amateur, alpha, beta)``.

    $$(1 + \beta) e - \beta a \quad \text{where } p_e \ge \alpha \max p_e$$

    Parameters
    ----------
    sampler : function of two (V,) float32 and two floats
        Returns logits; constants added to them do not matter.
    """

    rows = cases(
        logits=THREE.map(array),
        amateur=FINITE.map(array),
        alpha=st.sampled_from([0.1, 0.3, 1.0]),
        beta=st.sampled_from([0.5, 0.0, 2.0]),
    )
    usual = {"amateur": row(1, 0, 0, 0), "alpha": 0.1, "beta": 0.5}
    known = (
        usual | {"logits": row(2, 1, 0, -5)},
        usual | {"logits": row(2, GONE, 1, 0)},
        # Just above alpha times the best, and just below.
        usual | {"logits": row(0, math.log(0.1) + 2e-4, math.log(0.1) - 2e-4, -9)},
    )
    says = "plausible tokens gain where the expert likes them better than the amateur"
    yield Law(says, rows, _contrasts_models, known)
    yield Law("the array passed in is not written into", rows, not_written)


def _contrasts_layers(sampler: Callable, logits: NDArray, premature: NDArray) -> None:
    out = np.asarray(sampler(logits.copy(), premature.copy()))
    p, q = log_softmax(logits), log_softmax(premature)
    right = np.where(p >= p.max() + math.log(0.1), p - q, GONE)
    close(log_softmax(out.astype(np.float64)), log_softmax(right), 1e-4)


@check_of("dola", "final, premature")
def check_dola() -> Iterator[Law]:
    r"""Check ``dola(final, premature)``, the contrast of two layers.

    $$\log p_L - \log p_j \quad \text{where } p_L \ge 0.1 \max p_L$$

    Parameters
    ----------
    sampler : function of two (V,) float32
        Returns logits; constants added to them do not matter.
    """

    rows = cases(logits=FINITE.map(array), premature=FINITE.map(array))
    known = ({"logits": row(2, 1, 0, -5), "premature": row(0, 0, 1, 0)},)
    says = "plausible tokens gain where the last layer makes them more likely"
    yield Law(says, rows, _contrasts_layers, known)
