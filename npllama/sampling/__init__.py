r"""Chapter 13: from logits to logits to a token.

The model gives V logits for the next token. A *sampler* is a function from
logits to logits: it changes values, or removes tokens (logit minus infinity).
After a chain of samplers, one token is drawn.

    logits = temperature(logits, 0.8)
    logits = top_p(top_k(logits, 40), 0.95)
    token = sample(logits, np.random.default_rng(1))

Logits have shape (..., V). Rows of a batch do not see each other, inputs are not
changed, the type (float16, float32 or float64) stays, and kept tokens keep their
value. A sampler that needs the text so far takes `tokens`, one history of shape
(T,) or a list of B. One that needs chance takes u, a number in [0, 1), or a
`Generator`. State is passed in and returned. NaN is an error everywhere except in
`remove_invalid_values`.

    `rows`         what all samplers share
    `draw`         the greedy choice; chance
    `temperature`  how much chance
    `truncation`   cut off the tail: by rank, by mass, by probability
    `xtc`          cut off the top
    `entropy`      cut off the tail: by the shape of the distribution
    `mirostat`     truncation with feedback
    `penalties`    tokens that occurred already
    `repeats`      whole passages that occurred already
    `bias`         words to favour or forbid
    `constraints`  what must and must not come, and when
    `guidance`     the prompt against no prompt
    `watermark`    a mark in the draw
    `synthid`      a mark that does not change the odds
    `synthid_detector`  how it is detected
    `chain`        the everyday chain

Names, and who differs
----------------------
The default is what transformers 5 does (HF). If the last column names an
option or an argument, that selects the other behaviour. cpp is llama.cpp.

npllama                  elsewhere                        who differs
draw                     multinomial, cpp ``dist``        HF, vLLM: other road
                                                          to the same odds
temperature              temperature                      cpp: last in chain
dynamic_temperature      cpp `dynatemp_range`             cpp only
top_k                    top_k                            cpp: ties="lowest"
top_p                    top_p                            cpp: ties="lowest";
                                                          Meta: the same, and
                                                          crossing="inclusive"
min_p                    min_p                            cpp: before temperature
top_a                    webui `top_a`                    webui only
epsilon_cutoff           epsilon_cutoff                   HF only
eta_cutoff               eta_cutoff                       HF only
typical_p                typical_p                        cpp: convention=
top_h                    top_h                            paper: entropy=
                                                          "renormalised"
top_n_sigma              cpp `top_n_sigma`                cpp only
tail_free                cpp, webui ``tfs``               webui: convention=
xtc                      cpp `xtc_probability`            cpp, webui
mirostat_1, mirostat_2   cpp `mirostat`                   authors: convention=
repetition_penalty       cpp ``repeat_penalty``           cpp: last_n=64
presence_penalty         presence_penalty                 cpp: last_n=64;
frequency_penalty        frequency_penalty                vLLM: output only
encoder_repetition_...   encoder_repetition_penalty       HF only
no_repeat_ngram          no_repeat_ngram_size             HF only
dry                      cpp `dry_multiplier` ...         cpp: last_n=64
logit_bias               logit_bias                       vLLM: clips to 100
sequence_bias, bad_words sequence_bias, bad_words_ids     vLLM: output only
allowed_tokens           vLLM `allowed_token_ids`
prefix_allowed_tokens    prefix_allowed_tokens_fn         HF 4: no rescue
suppress, begin_...      suppress_tokens, begin_...       HF only
min_length               min_length                       vLLM: all stop ids
min_new_tokens           min_new_tokens, vLLM min_tokens
forced_bos, forced_eos   forced_bos_token_id ...          HF only
classifier_free_guidance guidance_scale                   HF only
watermark, synthid       watermarking_config              HF only
detect_watermark         HF ``WatermarkDetector``         HF only
bayesian_score,          HF ``BayesianDetectorModel``     HF: learned in
fit_detector                                              another way

Order
-----
Samplers do not commute. In transformers 5: guidance, sequence_bias,
encoder_repetition_penalty, repetition_penalty, no_repeat_ngram,
encoder_no_repeat_ngram, bad_words, min_length, min_new_tokens,
prefix_allowed_tokens, forced_bos, forced_eos, remove_invalid_values,
exponential_decay_length_penalty, suppress, begin_suppress; when sampling,
temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff;
always last, watermark and renormalize.

llama.cpp: logit_bias, penalties, dry, top_n_sigma, top_k, typical_p, top_p,
min_p, xtc, temperature, draw. vLLM: allowed_tokens, bad_words, min_length,
logit_bias, the repetition, frequency and presence penalties, temperature,
min_p, top_k, top_p, draw. Meta: temperature, top_p, draw.
"""

from npllama.sampling.bias import bad_words, logit_bias, sequence_bias
from npllama.sampling.chain import apply, distribution
from npllama.sampling.constraints import (
    allowed_tokens,
    begin_suppress,
    forced_bos,
    forced_eos,
    min_length,
    min_new_tokens,
    prefix_allowed_tokens,
    remove_invalid_values,
    renormalize,
    suppress,
)
from npllama.sampling.draw import (
    NothingLeft,
    draw,
    greedy,
    log_softmax,
    sample,
    softmax,
)
from npllama.sampling.entropy import (
    eta_cutoff,
    tail_free,
    top_h,
    top_n_sigma,
    typical_p,
)
from npllama.sampling.guidance import classifier_free_guidance
from npllama.sampling.mirostat import (
    MirostatStep,
    mirostat_1,
    mirostat_2,
    mirostat_start,
    mirostat_step,
    mirostat_update,
)
from npllama.sampling.penalties import (
    encoder_repetition_penalty,
    exponential_decay_length_penalty,
    frequency_penalty,
    presence_penalty,
    repetition_penalty,
)
from npllama.sampling.repeats import dry, encoder_no_repeat_ngram, no_repeat_ngram
from npllama.sampling.synthid import (
    SynthID,
    SynthIDState,
    synthid,
    synthid_next,
    synthid_start,
)
from npllama.sampling.synthid_detector import (
    SynthIDDetector,
    bayesian_score,
    fit_detector,
    mean_score,
    synthid_g_values,
    synthid_mask,
    weighted_mean_score,
)
from npllama.sampling.temperature import dynamic_temperature, temperature
from npllama.sampling.truncation import epsilon_cutoff, min_p, top_a, top_k, top_p
from npllama.sampling.watermark import Detection, GreenList, detect_watermark, watermark
from npllama.sampling.xtc import xtc

__all__ = [
    "Detection",
    "GreenList",
    "MirostatStep",
    "NothingLeft",
    "SynthID",
    "SynthIDDetector",
    "SynthIDState",
    "allowed_tokens",
    "apply",
    "bad_words",
    "bayesian_score",
    "begin_suppress",
    "classifier_free_guidance",
    "detect_watermark",
    "distribution",
    "draw",
    "dry",
    "dynamic_temperature",
    "encoder_no_repeat_ngram",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "fit_detector",
    "forced_bos",
    "forced_eos",
    "frequency_penalty",
    "greedy",
    "log_softmax",
    "logit_bias",
    "mean_score",
    "min_length",
    "min_new_tokens",
    "min_p",
    "mirostat_1",
    "mirostat_2",
    "mirostat_start",
    "mirostat_step",
    "mirostat_update",
    "no_repeat_ngram",
    "prefix_allowed_tokens",
    "presence_penalty",
    "remove_invalid_values",
    "renormalize",
    "repetition_penalty",
    "sample",
    "sequence_bias",
    "softmax",
    "suppress",
    "synthid",
    "synthid_g_values",
    "synthid_mask",
    "synthid_next",
    "synthid_start",
    "tail_free",
    "temperature",
    "top_a",
    "top_h",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical_p",
    "watermark",
    "weighted_mean_score",
    "xtc",
]
