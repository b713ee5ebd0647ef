"""The samplers' faults, seen by the conformance kit instead of their own tests.

The kit knows nothing of how a sampler is written, and gets most of the faults that
`sampling_mutants` plants all the same: those listed here, by strategy, file and new
text.  `UNSEEN` are the rest, with the reason; the faults of the searches stand in
`decoding_mutants`.
"""

import sampling_mutants

KIT = "tests/test_testing.py::test_own_samplers_pass"

SEEN = {
    "greedy": [("draw", "return logits.shape[-1] - 1 - logits[..., ::-1].argmax(axis=-1)")],
    "draw": [("draw", 'side="left")')],
    "top_k": [
        ("rows", "row[row] = kept(logits[index][row], *settings) | True"),
        ("rows", "np.where(left, logits, np.array([-np.inf]))"),
        ("truncation", "lambda values: values > kth_largest(values, k)"),
        ("truncation", "k = min(k, min_tokens_to_keep)"),
    ],
    "top_p-ties=highest-crossing=exclusive": [
        ("truncation", "np.searchsorted(mass, p, side=side))"),
        ("truncation", '"right" if crossing == "exclusive" else "left"'),
        ("truncation", "first = equal"),
        ("truncation", "if True:"),
        ("truncation", "total = np.exp(np.sort(below)[-256:]).sum()"),
        ("truncation", "count = _count_to(values, enough)"),
        ("truncation", "if p > 1:"),
    ],
    "epsilon": [
        ("draw", "values.astype(np.float64)"),
        ("truncation", "softmax(values) >= epsilon"),
    ],
    "min_p": [
        ("truncation", "np.exp(below_peak(values)) > p"),
        ("truncation", "softmax(values) >= p"),
    ],
    "top_a": [("truncation", "probs >= a * probs.max()")],
    "xtc-ties=highest-throw=u": [
        ("xtc", "~largest(values, good,"),
        ("xtc", "acts = (u <= probability)"),
    ],
    "eta": [
        ("draw", "below - np.exp(below).sum()"),
        ("entropy", "epsilon * math.exp(-_entropy(logp))"),
    ],
    "typical-convention=transformers": [
        ("entropy", "saved | (oddity < oddity[order[count - 1]])"),
        ("entropy", "-logp"),
    ],
    "typical-convention=llama.cpp": [("entropy", "mass * (1 - EQUAL)")],
    "top_h-entropy=original-ties=lowest": [
        ("entropy", "held <= allowed"),
        ("entropy", "size = values.size"),
    ],
    "top_h-entropy=renormalised-ties=lowest": [("entropy", "return held / mass")],
    "top_n_sigma": [("entropy", "exact.max() - n * exact.std(ddof=exact.size > 1)")],
    "tail_free-convention=llama.cpp-ties=lowest": [("entropy", "np.cumsum(share) >= z / 2")],
    "tail_free-convention=webui-ties=lowest": [("entropy", "more = 0")],
    "temperature": [("temperature", "return logits * logits.dtype.type(t)")],
    "dynamic_temperature": [
        ("temperature", "max(0.0, t - spread), t"),
        ("temperature", "math.log(row.size)"),
        ("temperature", "** 1"),
    ],
    "mirostat_1": [
        ("mirostat", "return mu + eta *"),
        ("mirostat", "return tau"),
        ("mirostat", "excess = s * math.log(size)"),
        ("mirostat", "k = min(_zipf_k(zipf_exponent(values, m), mu, values.size)"),
    ],
    "mirostat_2": [("mirostat", "surprise = -log_softmax(values)")],
    "repetition_penalty": [("penalties", "row[seen] / factor")],
    "repetition_penalty-last_n=64": [("penalties", "np.unique(history)")],
    "encoder_repetition_penalty": [
        ("penalties", "repetition_penalty(logits, prompt, penalty)")
    ],
    "presence_penalty": [("penalties", "_subtract, penalty, window_of(last_n), math.inf)")],
    "exponential_decay": [
        ("penalties", "np.asarray(new_tokens) - start + 1, 0"),
        ("penalties", "(np.float64(factor) ** late - 1)"),
    ],
    "no_repeat_ngram": [("repeats", "history[-(n - 1) :]")],
    "dry": [
        ("repeats", "place = place[place > n]"),
        ("repeats", "start - min(lengths)"),
        ("repeats", "if len(b) == 0]] = 0"),
        ("repeats", "longest > allowed_length"),
        ("repeats", "longest[too_long] - allowed_length"),
    ],
    "sequence_bias": [
        ("bias", "text[-len(begin) :]"),
        ("bias", "added[last] = amount"),
    ],
    "bad_words": [("bias", "for w in words")],
    "min_length": [("constraints", "short = np.asarray(length) <= min_length")],
    "forced_eos": [("constraints", "np.asarray(length) == max_length")],
    "guidance": [
        ("guidance", "with_prompt[both] + guidance_scale * change"),
        ("guidance", "without > -np.inf"),
    ],
    "chain": [("chain", "for process in list(processors)[::-1]:")],
}  # fmt: skip

UNSEEN = {
    # The kit asks what a sampler does with what it should be given.
    "input that is to be refused": [
        ("draw", "((u >= 0) & (u <= 1)).all()"),
        ("rows", "if logits.max() == np.inf:"),
        ("rows", "outside = (array < -size) | (array >= size)"),
    ],
    # Distributions add up to 1 and are not as small as rounding.
    "weights in place of probabilities": [
        ("draw", "np.arange(probs.size)"),
        ("draw", "u"),
        ("draw", "hit"),
    ],
    "what the kit does not ask for": [
        ("temperature", "cold = False"),
        ("penalties", "slice(-last_n, None)"),
        ("constraints", "next(batch)"),
        ("constraints", "out"),
        ("chain", "if top_k > 1:"),
    ],
    # Equality needs a probability that float32 holds exactly, below the best one.
    "a threshold that no example meets": [
        ("truncation", "(softmax(values) > epsilon) | saved"),
        ("mirostat", "/ -math.expm1(-excess)"),
    ],
}


def planted(strategy, file, new):
    """The mutant of `sampling_mutants` with this text, to be seen by the kit."""
    path = f"npllama/sampling/{file}.py"
    ((old, _),) = [
        (old, test)
        for where, old, text, test in sampling_mutants.MUTANTS
        if (where, text) == (path, new)
    ]
    return path, old, new, f"{KIT}[{strategy}]"


MUTANTS = [
    planted(strategy, *fault) for strategy, faults in SEEN.items() for fault in faults
]
