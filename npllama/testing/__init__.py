"""Chapter 18: laws that any sampler must obey, and checks of yours.

The errors of a sampler do not show in its text: one token too many where a sum meets
top-p exactly, a penalty that rewards, a guess that is checked against another
distribution than the one it was drawn from.  Here every strategy has a check, made of
laws that Hypothesis tries to break:

    from npllama.testing import check_top_p

    def test_top_p():
        check_top_p(my_top_p, ties="lowest")

A check takes a plain function of NumPy arrays, mostly ``sampler(logits, option)`` with
logits (V,) float32, and returns nothing; or it raises `Violation`, an AssertionError
that states the law and the smallest case found that breaks it.  Where implementations
differ on purpose, the check has a *convention*, whose default is that of transformers
5.  ``help(check_top_p)`` explains how the function is called and what its conventions
are.  The profile of Hypothesis sets the number of cases.

A sampler of another form needs a wrapper: one that shortens a list of candidates has to
write minus infinity for the others, one that returns probabilities has to return their
logarithms.

Nothing here uses the samplers of the package.  The right results are computed again, in
plain steps and float64, with as much tolerance as rounding in float32 needs, and none
where sums are exact.  `npllama.conformance` runs all checks on a package and reports.

The strategies, and how a sampler of each is called (a word with ``=`` is passed by
that name; ``help(npllama.testing.check_top_k)`` says more):

Truncation
    typical(logits, mass)
    top_h(logits, alpha)
    top_n_sigma(logits, n)
    tail_free(logits, z)
    top_k(logits, k)
    top_p(logits, p)
    min_p(logits, p)
    epsilon(logits, epsilon)
    eta(logits, epsilon)
    top_a(logits, a)
    xtc(logits, probability, threshold, u)
Chance
    greedy(logits)
    draw(probs, u)
    sample(logits, seed)
    temperature(logits, t)
    dynamic_temperature(logits, t, spread, exponent)
    mirostat_1(logits, tau, eta, seed)
    mirostat_2(logits, tau, eta, seed)
Penalties and repeats
    repetition_penalty(logits, history, penalty)
    presence_penalty(logits, history, penalty)
    frequency_penalty(logits, history, penalty)
    encoder_repetition_penalty(logits, prompt, penalty)
    exponential_decay(logits, new_tokens, start, factor, eos)
    no_repeat_ngram(logits, history, n)
    encoder_no_repeat_ngram(logits, history, prompt, n)
    dry(logits, history, multiplier, base, allowed_length)
Biases and constraints
    logit_bias(logits, bias)
    sequence_bias(logits, history, bias)
    bad_words(logits, history, words, eos)
    suppress(logits, ids)
    allowed(logits, ids)
    min_length(logits, length, min_length, eos)
    min_new_tokens(logits, length, prompt_length, least, eos)
    begin_suppress(logits, length, ids, begin)
    forced_eos(logits, length, max_length, eos)
    forced_bos(logits, length, bos)
Two rows of logits
    guidance(logits, unconditional, scale)
    chain(logits, temperature, top_k, top_p, min_p)
    contrastive_search(probs, candidates, seen, penalty_alpha)
    contrastive_decoding(expert, amateur, alpha, beta)
    dola(final, premature)
Whole texts
    greedy_search(next_logits, prompt, max_new_tokens=, eos=)
    beam_search(next_logits, prompt, num_beams=, ...)
    group_beam_search(next_logits, prompt, num_beams=, ...)
    rejection(p, q, guess, u, v)
    speculative(target, draft, prompt, num_guesses=, ...)
    prompt_lookup(text, most, max_matching_ngram_size)
    stop_strings(pieces, strings)
    stop_output(pieces, strings)

What all laws share
    `laws`, `strategies`, `truth`, `masks`, `models`
Logits to logits
    `truncation`, `entropy`, `mirostat`, `chance`, `penalties`, `repeats`,
    `constraints`, `chain`, `contrast`
Logits to texts
    `search`, `speculation`, `stopping`

It needs Hypothesis, which ``pip install "npllama[test]"`` brings.
"""

try:
    import hypothesis  # noqa: F401
except ImportError:
    raise ImportError(
        "npllama.testing needs Hypothesis: pip install 'npllama[test]'"
    ) from None

from npllama.testing import strategies
from npllama.testing.chain import check_chain, check_guidance
from npllama.testing.chance import (
    check_draw,
    check_dynamic_temperature,
    check_greedy,
    check_sample,
    check_temperature,
)
from npllama.testing.constraints import (
    check_allowed,
    check_bad_words,
    check_begin_suppress,
    check_forced_bos,
    check_forced_eos,
    check_logit_bias,
    check_min_length,
    check_min_new_tokens,
    check_sequence_bias,
    check_suppress,
)
from npllama.testing.contrast import (
    check_contrastive_decoding,
    check_contrastive_search,
    check_dola,
)
from npllama.testing.entropy import (
    check_tail_free,
    check_top_h,
    check_top_n_sigma,
    check_typical,
)
from npllama.testing.laws import CHECKS, Law, Violation
from npllama.testing.mirostat import check_mirostat_1, check_mirostat_2
from npllama.testing.models import LanguageModel
from npllama.testing.penalties import (
    check_encoder_repetition_penalty,
    check_exponential_decay,
    check_frequency_penalty,
    check_presence_penalty,
    check_repetition_penalty,
)
from npllama.testing.repeats import (
    check_dry,
    check_encoder_no_repeat_ngram,
    check_no_repeat_ngram,
)
from npllama.testing.search import (
    check_beam_search,
    check_greedy_search,
    check_group_beam_search,
)
from npllama.testing.speculation import (
    check_prompt_lookup,
    check_rejection,
    check_speculative,
)
from npllama.testing.stopping import check_stop_output, check_stop_strings
from npllama.testing.truncation import (
    check_epsilon,
    check_eta,
    check_min_p,
    check_top_a,
    check_top_k,
    check_top_p,
    check_xtc,
)

__all__ = [
    "CHECKS",
    "LanguageModel",
    "Law",
    "Violation",
    "check_allowed",
    "check_bad_words",
    "check_beam_search",
    "check_begin_suppress",
    "check_chain",
    "check_contrastive_decoding",
    "check_contrastive_search",
    "check_dola",
    "check_draw",
    "check_dry",
    "check_dynamic_temperature",
    "check_encoder_no_repeat_ngram",
    "check_encoder_repetition_penalty",
    "check_epsilon",
    "check_eta",
    "check_exponential_decay",
    "check_forced_bos",
    "check_forced_eos",
    "check_frequency_penalty",
    "check_greedy",
    "check_greedy_search",
    "check_group_beam_search",
    "check_guidance",
    "check_logit_bias",
    "check_min_length",
    "check_min_new_tokens",
    "check_min_p",
    "check_mirostat_1",
    "check_mirostat_2",
    "check_no_repeat_ngram",
    "check_presence_penalty",
    "check_prompt_lookup",
    "check_rejection",
    "check_repetition_penalty",
    "check_sample",
    "check_sequence_bias",
    "check_speculative",
    "check_stop_output",
    "check_stop_strings",
    "check_suppress",
    "check_tail_free",
    "check_temperature",
    "check_top_a",
    "check_top_h",
    "check_top_k",
    "check_top_n_sigma",
    "check_top_p",
    "check_typical",
    "check_xtc",
    "strategies",
]
