r"""DoLa, decoding by contrasting layers: what did the upper layers add?

The head can be applied after any layer, not only the last.  That gives the prediction
of a model that ends there.  Early layers already know grammar and habits; facts appear
in late layers.  So score tokens by how much more likely the last layer makes them,

$$\log p_L(x) - \log p_j(x)$$

among those that it finds plausible at all, p_L(x) >= 0.1 max p_L.  (A token that is
unlikely in both could have any ratio.)  The *premature* layer j is chosen for every
token among some candidates: it is the one whose distribution differs most from the
last layer's.

Chuang et al. 2023, arXiv:2309.03883.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from npllama.config import Config
from npllama.decoding.common import Job, Step, prefill_but_last
from npllama.decoding.layers import forward_with_layers
from npllama.decoding.sample import choose
from npllama.ops import einsum
from npllama.sampling import log_softmax

PLAUSIBLE = 0.1


def candidate_layers(config: Config, dola_layers: str | Sequence[int]) -> list[int]:
    """Numbers of the layers that may be the premature one; 0 is the embedding.

    Parameters
    ----------
    config : Config
    dola_layers : "low", "high" or layer numbers
        Every second layer of the lower or of the upper half (above 40 layers: of
        the first or last 20); or the layers themselves; the last layer, and
        numbers beyond it, are ignored.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If it is another word, or there is no such layer.

    References
    ----------
    transformers 4 `GenerationMixin._dola_decoding`.  With tied embeddings the head
    on the embedding only finds the token itself again, so "low" begins above it.
    """
    L = config.num_hidden_layers
    first = min(2, L - 1) if config.tie_word_embeddings else 0
    if dola_layers == "low":
        middle = L // 2 if L <= 40 else 20
        chosen = [first] if first == L // 2 else list(range(first, middle, 2))
    elif dola_layers == "high":
        chosen = list(range(L // 2 if L <= 40 else L - 20, L, 2))
    elif isinstance(dola_layers, str):
        raise ValueError(f'dola_layers is {dola_layers!r}, not "low", "high" or a list')
    else:
        chosen = [int(layer) for layer in dola_layers if layer < L]
    if not chosen or min(chosen) < 0:
        raise ValueError(
            f"dola_layers {dola_layers!r}: no layer from 0 to {L - 1} to contrast with"
        )
    return chosen


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    r"""Mean divergence from the average m: $(KL(p \| m) + KL(q \| m)) / 2$.

    Parameters
    ----------
    p, q : (*B, V) float64
        Log-probabilities.

    Returns
    -------
    (*B) float64
        In nats, from 0 (equal) to ln 2 (nothing in common).
    """
    m = np.logaddexp(p, q) - math.log(2)  # (*B, V)
    return (np.exp(p) * (p - m) + np.exp(q) * (q - m)).sum(axis=-1) / 2


def reversed_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    r"""The divergence that transformers and the authors' code compute instead.

    Its arguments are exchanged, $(KL(m \| p) + KL(m \| q)) / 2$, and it takes the mean
    over the vocabulary, not the sum.  It has no upper bound, and may prefer another
    layer.

    Parameters
    ----------
    p, q : (*B, V) float64
        Log-probabilities.

    Returns
    -------
    (*B) float64
    """
    m = np.logaddexp(p, q) - math.log(2)  # (*B, V)
    return (np.exp(m) * (2 * m - p - q)).mean(axis=-1) / 2


DIVERGENCES = {
    "transformers": reversed_divergence,
    "jensen-shannon": jensen_shannon,
}


def contrast(final: np.ndarray, premature: np.ndarray, divergence) -> np.ndarray:
    """Score all tokens by what the last layer adds to the premature one.

    Parameters
    ----------
    final : (V,) float
        Logits of the last layer.
    premature : (L, V) float
        Those of the candidate layers.
    divergence : function
        One of `DIVERGENCES`; the layer with the largest is used.

    Returns
    -------
    (V,) float64
        Minus infinity for tokens that are not plausible.
    """
    p, q = log_softmax(final), log_softmax(premature)
    chosen = int(divergence(p, q).argmax()) if len(q) > 1 else 0
    return np.where(p < p.max() + math.log(PLAUSIBLE), -np.inf, p - q[chosen])


def dola(
    job: Job, dola_layers: str | Sequence[int], divergence: str = "transformers"
) -> Iterator[Step]:
    """Continue one prompt with the tokens that the upper layers favour.

    Parameters
    ----------
    job : Job
        `process` takes the differences as logits.  The authors use a repetition
        penalty of 1.2.
    dola_layers : "low", "high" or layer numbers
        See `candidate_layers`.
    divergence : "transformers" or "jensen-shannon"
        How the premature layer is chosen.

    Yields
    ------
    Step
        Of one token each, until the text ends.

    Raises
    ------
    ValueError
        If there is no such layer, or no such divergence.

    References
    ----------
    Chuang et al. 2023, eq. 2 to 5.  As in their code and in transformers 4, the head
    is applied to premature layers without the final norm.  If `process` removes all
    plausible tokens, the last layer decides alone (transformers takes token 0).
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence {divergence!r}: {', '.join(DIVERGENCES)}")
    model, prompt = job.model, job.prompt
    layers = candidate_layers(model.config, dola_layers)
    cache, ends = prefill_but_last(job)
    text, reason = list(prompt), None
    while reason is None:
        token = np.array([text[-1:]])  # (1, 1)
        final, states = forward_with_layers(model, token, cache, layers)
        early = np.stack([states[layer][0, 0] for layer in layers])  # (L, E)
        premature = einsum("LE,VE->LV", early, model.lm_head, "premature_lm_head")
        scores = contrast(final[0], premature, DIVERGENCES[divergence])
        processed = job.process([text], scores[None])  # (1, V)
        if not (processed > -np.inf).any():
            processed = job.process([text], final)
        text.append(int(choose(processed, [job.rng])[0]))
        reason = ends(text[len(prompt) :])
        yield Step(text[-1:], reason)
