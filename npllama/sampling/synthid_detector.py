r"""Detecting SynthID: the owner of the keys counts ones.

Whoever has the keys recomputes the g-values of a text. Without the mark they
are fair coins. With it, two tokens met in every match of the tournament, and
one with g = 1 won, if there was one. If the two were different tokens, the
winner has a 1 in three cases of four; if they were the same token, in two of
four.

So the mean of the g-values shows the mark. A weighted mean shows it better,
since in the later layers a token mostly meets itself. Better still is to
estimate how probable it is that two different tokens met. Let $\psi$ be that
probability; then a g-value is

$$\frac{P(g \mid \text{marked})}{P(g \mid \text{not})} = 1 + (g - 1/2) \, \psi$$

times as probable in a marked text, and Bayes' rule turns these factors into
the probability that the text is marked. In layer l, $\psi$ follows from the
g-values of the layers before it, by a logistic regression,

$$\psi_l = \sigma(\beta_l + \sum_{j < l} \delta_{lj} \, g_j)$$

References: Dathathri et al. 2024, Nature 634, 818-823, with its supplement;
transformers, ``SynthIDTextWatermarkLogitsProcessor`` (g-values and masks) and
``BayesianDetectorModel``, whose posterior is reproduced.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npllama.sampling.rows import token_ids
from npllama.sampling.synthid import (
    Ints,
    SynthID,
    check_synthid,
    g_values,
    hash_context,
)

Floats = NDArray[np.float64]


def _ngrams(tokens: ArrayLike, config: SynthID) -> Ints:
    """Return the n-grams of a text, (T,) -> (T - ngram_len + 1, ngram_len)."""
    check_synthid(config)
    text = token_ids(tokens, np.iinfo(np.int64).max, "tokens")
    if text.size < config.ngram_len:
        raise ValueError(
            f"a text of {text.size} tokens has no n-gram of {config.ngram_len}"
        )
    return np.lib.stride_tricks.sliding_window_view(text, config.ngram_len)


def synthid_g_values(tokens: ArrayLike, config: SynthID) -> Ints:
    """Recompute the g-values of a text, for every n-gram and key.

    Parameters
    ----------
    tokens : (T,) int
    config : SynthID

    Returns
    -------
    (T - ngram_len + 1, keys) int64

    Raises
    ------
    ValueError
        If the text is shorter than one n-gram.
    """
    ngrams = _ngrams(tokens, config)
    hashed = hash_context(ngrams)[:, 0]
    return np.stack([g_values(hashed, key, config) for key in config.keys], axis=-1)


def synthid_mask(
    tokens: ArrayLike, config: SynthID, eos_token_id: int | None = None
) -> NDArray[np.bool_]:
    """Say which n-grams of a text count: context new, and no end before.

    Parameters
    ----------
    tokens : (T,) int
    config : SynthID
    eos_token_id : int, optional
        n-grams that end at or after the first of these do not count.

    Returns
    -------
    (T - ngram_len + 1,) bool

    Raises
    ------
    ValueError
        If the text is shorter than one n-gram.
    """
    ngrams = _ngrams(tokens, config)
    contexts = hash_context(ngrams[:, :-1])[:, 0].tolist()
    recent = [0] * config.context_history_size
    fresh = np.ones(len(contexts), np.bool_)
    for i, context in enumerate(contexts):
        fresh[i] = context not in recent
        recent = [context, *recent[:-1]]
    if eos_token_id is None:
        return fresh
    text = np.asarray(tokens)
    ended = np.logical_or.accumulate(text == eos_token_id)
    return fresh & ~ended[config.ngram_len - 1 :]


def weighted_mean_score(
    g: Ints, mask: NDArray[np.bool_], weights: ArrayLike | None = None
) -> float:
    """Average the g-values with more weight on the first layers.

    The first layers of the tournament act on the model's own distribution. The
    later ones act on what is left of its uncertainty, so their g-values tell
    less.

    Parameters
    ----------
    g : (n, keys) int64
    mask : (n,) bool
    weights : (keys,) float64, optional
        From 10 for the first layer down to 1 for the last.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If no n-gram counts.
    """
    if not mask.any():
        raise ValueError("no n-gram of this text counts: nothing to score")
    if weights is None:
        weights = np.linspace(10, 1, g.shape[-1])
    weights = np.asarray(weights, np.float64) / np.sum(weights)
    return float((g[mask] * weights).sum() / np.count_nonzero(mask))


def mean_score(g: Ints, mask: NDArray[np.bool_]) -> float:
    """Average the g-values of the n-grams that count; 1/2 means no watermark.

    Parameters
    ----------
    g : (n, keys) int64
    mask : (n,) bool

    Returns
    -------
    float
    """
    return weighted_mean_score(g, mask, np.ones(g.shape[-1]))


class SynthIDDetector(NamedTuple):
    """What the Bayesian score knows of the texts of one model.

    Attributes
    ----------
    beta : (keys,) float64
    delta : (keys, keys) float64
        Only the entries below the diagonal are used.
    prior : float
        Probability that a text is marked, before it is looked at.
    """

    beta: Floats
    delta: Floats
    prior: float = 0.5


def chance_of_two(g: Ints, detector: SynthIDDetector) -> Floats:
    """How probable it is that two different tokens met, in every match.

    Parameters
    ----------
    g : (n, keys) int64
    detector : SynthIDDetector

    Returns
    -------
    (n, keys) float64
    """
    before = np.tril(detector.delta, -1)  # (keys, keys)
    logits = detector.beta + (before * g[:, None, :]).sum(axis=-1)  # (n, keys)
    return 0.5 * (1 + np.tanh(logits / 2))  # the logistic function, without overflow


def bayesian_score(
    g: Ints, mask: NDArray[np.bool_], detector: SynthIDDetector
) -> float:
    """Probability that a text is marked.

    Parameters
    ----------
    g : (n, keys) int64
    mask : (n,) bool
    detector : SynthIDDetector
        From `fit_detector`, or with the parameters that transformers trained.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the detector is one of other keys, or its prior is not in [0, 1].
    """
    keys = g.shape[-1]
    if detector.beta.shape != (keys,) or detector.delta.shape != (keys, keys):
        raise ValueError(
            f"the detector has beta {detector.beta.shape} and delta "
            f"{detector.delta.shape}; the text has {keys} keys"
        )
    if not 0 <= detector.prior <= 1:
        raise ValueError(f"prior must be in [0, 1], got {detector.prior}")
    # As in transformers, stay off 0 and 1: no text could change such a prior.
    prior = min(max(detector.prior, 1e-5), 1 - 1e-5)
    evidence = np.log1p((g - 0.5) * chance_of_two(g, detector))[mask].sum()
    log_odds = math.log(prior) - math.log1p(-prior) + float(evidence)
    return 0.5 * (1 + math.tanh(log_odds / 2))


def fit_detector(
    g: Ints,
    prior: float = 0.5,
    steps: int = 500,
    rate: float = 1.0,
    decay: float = 0.01,
) -> SynthIDDetector:
    """Learn a detector from texts that are known to be marked.

    Gradient ascent on the likelihood of their g-values. (transformers descends on
    the error of the score, and needs texts of both kinds.)

    Parameters
    ----------
    g : (n, keys) int64
        Of all n-grams that count, of all texts.
    prior : float
    steps : int
    rate : float
        Step size.
    decay : float
        Pulls `delta` towards 0, since there are never enough n-grams.

    Returns
    -------
    SynthIDDetector

    Raises
    ------
    ValueError
        If there is no n-gram to learn from.
    """
    if not len(g):
        raise ValueError("no n-gram to learn from: give the g-values of marked texts")
    keys = g.shape[-1]
    # A chance of 1/13 that two tokens differ, where transformers begins, too.
    detector = SynthIDDetector(np.full(keys, -2.5), np.zeros((keys, keys)), prior)
    for _ in range(steps):
        two = chance_of_two(g, detector)  # (n, keys)
        slope = (g - 0.5) * two * (1 - two) / (1 + (g - 0.5) * two)  # (n, keys)
        beta = detector.beta + rate * slope.mean(axis=0)
        pull = np.stack([(slope * g[:, [j]]).mean(axis=0) for j in range(keys)], -1)
        delta = detector.delta + rate * (np.tril(pull, -1) - decay * detector.delta)
        detector = SynthIDDetector(beta, delta, prior)
    return detector
