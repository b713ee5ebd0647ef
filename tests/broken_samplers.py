"""Samplers that are wrong as somebody's was, or could have been.

Each is a strategy, a sampler that does not keep its laws, and the conventions that
it claims.  Those of `conformance_mutants` are the package's own, broken by a word;
these are written anew: hidden caps and clamps, narrow types, sums in float32, the
wrong logarithm, the row next door.
"""

import numpy as np
from samplers import own

from npllama import sampling as s

GONE = -np.inf


def softmax32(row):
    mass = np.exp(row - row.max())
    return mass / mass.sum(dtype=np.float32)


# ---- truncation -------------------------------------------------------------


def top_p_in_float32(row, p):
    """A running sum in float32, at p = 1 too."""
    order = np.argsort(row, kind="stable")[::-1]
    probs = softmax32(row)[order]
    before = np.cumsum(probs, dtype=np.float32) - probs
    out = row.copy()
    out[order[before > p]] = GONE
    return out


def top_p_of_the_first_1024(row, p):
    first = s.top_k(row, 1024)
    return s.top_p(first, p)


def top_p_of_the_first_row(rows, p):
    """The number of tokens that stay is that of the first row."""
    if rows.ndim == 1:
        return s.top_p(rows, p)
    few = max(int((s.top_p(rows[0], p) > GONE).sum()), 1)
    return np.stack([s.top_k(row, few, ties="lowest") for row in rows])


def min_p_by_the_wrong_logarithm(row, p):
    return np.where(row >= row.max() + np.log2(p), row, np.float32(GONE))


def top_k_in_bfloat16(row, k):
    def rounded(x):
        return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    coarse = rounded(row)
    edge = np.sort(coarse)[-min(k, row.size)]
    return np.where(coarse >= edge, row, np.float32(GONE))


def typical_in_bits(row, mass):
    """The entropy in bits, the surprise in nats."""
    probs = s.softmax(row)
    real = probs > 0
    entropy = -(probs[real] * np.log2(probs[real])).sum()
    with np.errstate(divide="ignore"):
        odd = np.abs(-np.log(probs) - entropy)
    order = np.argsort(odd, kind="stable")
    count = int((np.cumsum(probs[order]) < mass).sum()) + 1
    out = np.full_like(row, GONE)
    stay = odd <= odd[order[min(count, row.size) - 1]]
    out[stay & real] = row[stay & real]
    return out


def sigma_of_probabilities(row, n):
    probs = s.softmax(row)
    return np.where(probs >= probs.max() - n * probs.std(), row, np.float32(GONE))


def sigma_with_the_removed(row, n):
    """Removed tokens count as if they were very unlikely."""
    filled = np.where(row > GONE, row, row[row > GONE].min() - 10)
    kept = row >= row.max() - n * filled.std()
    return np.where(kept & (row > GONE), row, np.float32(GONE))


def tail_free_without_absolute_values(row, z):
    order = np.argsort(-row, kind="stable")
    probs = s.softmax(row)[order]
    if (row > GONE).sum() <= 2:
        return row
    bend = np.maximum(np.diff(probs, 2), 0)
    share = np.cumsum(bend) / max(bend.sum(), 1e-9)
    out = row.copy()
    out[order[max(int((share <= z).sum()), 1) :]] = GONE
    return out


def epsilon_of_the_best(row, epsilon):
    """min-p, under the name of epsilon."""
    return s.min_p(row, epsilon)


def xtc_removes_one(row, probability, threshold, u):
    good = np.flatnonzero(s.softmax(row) >= threshold)
    out = row.copy()
    if probability == 1 and len(good) > 1:
        out[good[row[good].argmax()]] = GONE
    return out


# ---- chance -----------------------------------------------------------------


def draw_in_float32(probs, u):
    ends = np.cumsum(probs, dtype=np.float32)
    return int(np.searchsorted(ends, np.float32(u) * ends[-1], side="right"))


def sample_of_fifty(row, seed):
    """A default that nobody asked for."""
    return s.sample(s.top_k(row, 50, ties="lowest"), np.random.default_rng(seed))


def sample_sharpened(row, seed):
    return s.sample(row * np.float32(1.3), np.random.default_rng(seed))


class Dice:
    """One generator for all seeds."""

    rng = np.random.default_rng(0)

    def __call__(self, row, seed):
        return s.sample(row, self.rng)


def coldest(row, t):
    if t == 0:
        raise ValueError
    return row / np.float32(max(t, 0.05))


def warmest(row, t):
    return s.temperature(row, min(t, 5.0))


def half_precision(row, t):
    return (row / np.float32(t)).astype(np.float16).astype(np.float32)


def mirostat_without_a_loop(rows, tau, eta, seed):
    """mu stays as it began."""
    return own.mirostat(2, rows, tau, 1e-9, seed)


# ---- penalties, constraints -------------------------------------------------


def recent(function, most):
    """A window that nobody asked for."""
    return lambda row, history, *options: function(row, history[-most:], *options)


def frequency_in_a_byte(row, history, penalty):
    counts = np.bincount(history, minlength=row.size).astype(np.uint8)
    return row - np.float32(penalty) * counts


def repetition_for_each_time(row, history, penalty):
    for token in history:
        row = s.repetition_penalty(row, [token], penalty)
    return row.copy()


def dry_up_to_fifty(row, history, multiplier, base, allowed):
    capped = history[-60:]
    return s.dry(row, capped, multiplier, base=base, allowed_length=allowed)


def bias_in_place_of_logits(row, bias):
    out = row.copy()
    for token, amount in bias.items():
        out[token] = amount
    return out


def bad_words_by_their_last_two(row, history, words, eos):
    return s.bad_words(row, history, [word[-2:] for word in words], eos)


def min_new_tokens_with_the_prompt(row, length, prompt, least, eos):
    return s.min_length(row, length, least, eos)


def forced_almost(row, length, most, eos):
    out = row.copy()
    if length == most - 1:
        out[:] = -1e9
        out[eos] = 0
    return out


def allowed_by_a_bonus(row, ids):
    out = row.copy()
    out[ids] += 100
    return out


def suppress_in_place(row, ids):
    row[ids] = GONE
    return row


def begin_and_later(row, length, ids, begin):
    return s.suppress(row, ids) if length >= begin else row.copy()


def decay_from_the_start(row, new_tokens, start, factor, eos):
    return s.exponential_decay_length_penalty(row, new_tokens + 1, start, factor, eos)


def guidance_of_probabilities(row, other, scale):
    mixed = s.softmax(other) + scale * (s.softmax(row) - s.softmax(other))
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(mixed, 0)).astype(np.float32)


def chain_min_p_first(row, t, k, p, least):
    return own.chain(s.min_p(row, least), t, k, p, 0.0)


# ---- whole texts ------------------------------------------------------------


def contrast_by_length(probs, candidates, seen, alpha):
    likeness = (candidates[:, None] * seen).sum(axis=-1).max(axis=-1)
    return int(np.argmax((1 - alpha) * probs - alpha * likeness))


def dola_of_all(final, premature):
    return s.log_softmax(final) - s.log_softmax(premature)


def beams_that_stop_early(*arguments, early_stopping, **options):
    return own.beams(*arguments, early_stopping=True, **options)


def beams_by_another_length(*arguments, length_penalty, **options):
    found = own.beams(*arguments, length_penalty=length_penalty, **options)
    return [
        (text, x * len(text) ** length_penalty / (len(text) + 1) ** length_penalty)
        for text, x in found
    ]


def groups_that_pay_double(*arguments, diversity_penalty, **options):
    return own.group_beams(
        *arguments, diversity_penalty=2 * diversity_penalty, **options
    )


def rejection_without_a_residual(p, q, guess, u, v):
    return guess if u < p[guess] / q[guess] else int(s.draw(p, v))


def speculation_past_the_end(*arguments, eos, **options):
    return own.speculative(*arguments, eos=None, **options)


def lookup_of_the_last(text, most, longest):
    for n in range(min(longest, len(text) - 1), 0, -1):
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == text[-n:]:
                return text[start + n : start + n + most]
    return []


def stop_in_two_tokens(pieces, strings):
    for n in range(len(pieces)):
        if any(string in "".join(pieces[max(n - 1, 0) : n + 1]) for string in strings):
            return n + 1
    return len(pieces)


def show_all_but_one(pieces, strings):
    """Holds back one character, whatever the strings are."""
    shown, held = [], ""
    for piece in pieces[: own.stop_strings(pieces, strings)]:
        held += piece
        for string in strings:
            if string in held:
                return [*shown, held[: held.index(string)]]
        shown.append(held[:-1])
        held = held[-1:]
    return [*shown, held]


BROKEN = {
    "top_k": [
        lambda row, k: s.top_k(row, min(k, 64)),
        lambda row, k: s.top_k(row, min(k, 1024)),
        top_k_in_bfloat16,
    ],
    "top_p": [
        top_p_in_float32,
        top_p_of_the_first_1024,
        (top_p_of_the_first_row, {"batched": True}),
        lambda row, p: s.top_p(row, max(p, 0.01)),
        lambda row, p: s.top_p(row, p) if p < 0.999 else row.copy(),
    ],
    "min_p": [min_p_by_the_wrong_logarithm, lambda row, p: s.min_p(row, min(p, 0.9))],
    "epsilon": [epsilon_of_the_best],
    "eta": [lambda row, x: s.epsilon_cutoff(row, x)],
    "typical": [typical_in_bits, lambda row, mass: s.top_p(row, mass)],
    "top_h": [lambda row, alpha: s.top_h(row, alpha, max_tokens=50)],
    "top_n_sigma": [
        sigma_of_probabilities,
        sigma_with_the_removed,
        lambda row, n: s.top_n_sigma(s.top_k(row, 1000, ties="lowest"), n),
    ],
    "tail_free": [tail_free_without_absolute_values],
    "xtc": [xtc_removes_one],
    "greedy": [
        lambda row: np.uint16(row.argmax()),
        lambda row: row.astype("e").argmax(),
    ],
    "draw": [draw_in_float32, lambda probs, u: s.draw(probs, u) % 32768],
    "sample": [sample_of_fifty, sample_sharpened, Dice()],
    "temperature": [coldest, warmest, half_precision],
    "mirostat_2": [mirostat_without_a_loop],
    "repetition_penalty": [
        repetition_for_each_time,
        recent(s.repetition_penalty, 1024),
        lambda row, history, x: s.repetition_penalty(row, history, max(x, 1.0)),
    ],
    "presence_penalty": [recent(s.presence_penalty, 1024)],
    "frequency_penalty": [frequency_in_a_byte],
    "no_repeat_ngram": [recent(s.no_repeat_ngram, 100)],
    "dry": [dry_up_to_fifty],
    "logit_bias": [bias_in_place_of_logits],
    "bad_words": [bad_words_by_their_last_two],
    "min_new_tokens": [min_new_tokens_with_the_prompt],
    "forced_eos": [forced_almost],
    "allowed": [allowed_by_a_bonus],
    "suppress": [suppress_in_place],
    "begin_suppress": [begin_and_later],
    "exponential_decay": [decay_from_the_start],
    "guidance": [guidance_of_probabilities],
    "chain": [chain_min_p_first],
    "contrastive_search": [contrast_by_length],
    "dola": [dola_of_all],
    "beam_search": [beams_that_stop_early, beams_by_another_length],
    "group_beam_search": [groups_that_pay_double],
    "rejection": [rejection_without_a_residual],
    "speculative": [speculation_past_the_end],
    "prompt_lookup": [lookup_of_the_last],
    "stop_strings": [stop_in_two_tokens],
    "stop_output": [show_all_but_one],
}
