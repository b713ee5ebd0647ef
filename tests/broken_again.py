"""Forty more samplers that are wrong, written down before any was tried.

As in `broken_samplers`: each keeps what is usual and breaks in a corner.
"""

import re
from unicodedata import normalize

import numpy as np
from samplers import own

from npllama import sampling as s
from npllama.decoding.prompt_lookup import continuation

GONE = np.float32(-np.inf)


def probabilities(row):
    mass = np.exp(row.astype(np.float64) - row.max())
    return mass / mass.sum()


# ---- truncation -------------------------------------------------------------


def approximate_top_k(row, k):
    """The best of each of 128 buckets, as accelerators do it."""
    if row.size <= 128:
        return s.top_k(row, k)
    bucket = np.arange(row.size) % 128
    best = np.full(128, GONE)
    np.maximum.at(best, bucket, row)
    few = np.where(row == best[bucket], row, GONE)
    return s.top_k(few, k)


def top_k_of_positive(row, k):
    """Pads with zeros to a multiple of 8 before it sorts."""
    padded = np.concatenate([row, np.zeros(-row.size % 8, row.dtype)])
    edge = np.sort(padded)[::-1][min(k, row.size) - 1]
    kept = np.where(row >= edge, row, GONE)
    return kept if (kept > GONE).any() else row.copy()


def top_p_with_a_margin(row, p):
    """Stops once the sum is within 1e-3 of p."""
    order = np.argsort(-row, kind="stable")
    probs = probabilities(row)[order]
    before = np.cumsum(probs) - probs
    out = row.copy()
    out[order[before >= max(p - 1e-3, 1e-9)]] = GONE
    return out


def top_p_normalised_twice(row, p):
    """Takes probabilities for logits."""
    return np.where(s.top_p(probabilities(row), p) > GONE, row, GONE)


def min_p_against_the_mean(row, p):
    probs = probabilities(row)
    return np.where(probs >= p * min(probs.max(), 0.99), row, GONE)


def typical_of_two(row, mass):
    return s.typical_p(row, mass, min_tokens_to_keep=2)


def eta_without_a_root(row, epsilon):
    probs = probabilities(row)
    some = probs[probs > 0]
    entropy = -(some * np.log(some)).sum()
    kept = probs >= min(epsilon, epsilon * np.exp(-entropy))
    kept[probs.argmax()] = True
    return np.where(kept, row, GONE)


def top_a_without_a_square(row, a):
    probs = probabilities(row)
    return np.where(probs >= a * probs.max(), row, GONE)


def xtc_without_a_rest(row, probability, threshold, u):
    """Removes the last one above the threshold, too."""
    if u >= probability:
        return row.copy()
    probs = probabilities(row)
    above = probs >= threshold
    if above.sum() < 2 or above.all():
        return row.copy()
    return np.where(above, GONE, row)


# ---- penalties --------------------------------------------------------------


def repetition_without_token_0(row, history, penalty):
    """0 is taken for padding."""
    history = np.asarray(history)
    return s.repetition_penalty(row, history[history != 0], penalty)


def presence_from_the_second_time(row, history, penalty):
    seen, times = np.unique(np.asarray(history), return_counts=True)
    return s.presence_penalty(row, seen[times > 1], penalty)


def frequency_of_neighbours(row, history, penalty):
    """A run of one token counts once."""
    history = np.asarray(history)
    if history.size:
        history = history[np.r_[True, history[1:] != history[:-1]]]
    return s.frequency_penalty(row, history, penalty)


def ngrams_that_do_not_overlap(row, history, n):
    history = [int(t) for t in history]
    tail = history[len(history) - n + 1 :]
    out, i = row.copy(), 0
    while i + n <= len(history):
        if history[i : i + n - 1] == tail:
            out[history[i + n - 1]] = GONE
            i += n
        else:
            i += 1
    return out


def ngrams_of_two_at_least(row, history, n):
    return s.no_repeat_ngram(row, history, n) if n > 1 else row.copy()


def dry_by_the_last_match(row, history, multiplier, base, allowed):
    """Of several matches before one token the last counts, not the longest."""
    out, history = row.astype(np.float64), [int(t) for t in history]
    lengths = {}
    for i in range(len(history) - 1):
        n = 0
        while n <= i and history[i - n] == history[len(history) - 1 - n]:
            n += 1
        if n:
            lengths[history[i + 1]] = n
    for token, n in lengths.items():
        if n >= allowed:
            out[token] -= multiplier * base ** (n - allowed)
    return out.astype(row.dtype)


# ---- biases and constraints -------------------------------------------------


def bias_up_to_ten(row, bias):
    return s.logit_bias(row, {t: float(np.clip(b, -10, 10)) for t, b in bias.items()})


def sequence_by_its_last(row, history, bias):
    """Looks at the last token before the end only."""
    out, history = row.copy(), [int(t) for t in history]
    for words, value in bias.items():
        if len(words) == 1 or history[-1:] == list(words[-2:-1]):
            out[words[-1]] += np.float32(value)
    return out


def suppress_by_a_large_number(row, ids):
    out = row.copy()
    out[list(ids)] = -1e9
    return out


def min_length_one_less(row, length, least, eos):
    return s.min_length(row, length + 1, least, eos)


def forced_bos_always(row, length, bos):
    return s.forced_bos(row, min(length, 1), bos)


def encoder_and_own_ngrams(row, history, prompt, n):
    row = s.encoder_no_repeat_ngram(row, history, prompt, n)
    return s.no_repeat_ngram(row, history, n)


# ---- chance and mixtures ----------------------------------------------------


def draw_from_the_first(probs, u):
    """u = 0 takes the first token, whether it can come or not."""
    return int(np.searchsorted(np.cumsum(probs), u * probs.sum(), side="left"))


def greedy_of_the_last(row):
    return row.size - 1 - int(row[::-1].argmax())


def guidance_of_logits(row, other, scale):
    return other + np.float32(scale) * (row - other)


def chain_mass_before_temperature(row, t, k, p, least):
    row = s.top_p(s.top_k(row, k) if k else row, p)
    return s.min_p(s.temperature(row, t), least)


def contrast_by_any_angle(probs, candidates, seen, alpha):
    def unit(x):
        return x / np.sqrt((x * x).sum(-1, keepdims=True))

    alike = np.abs(np.einsum("ne,se->ns", unit(candidates), unit(seen))).max(-1)
    return int(((1 - alpha) * probs - alpha * alike).argmax())


# ---- texts ------------------------------------------------------------------


def beams_one_longer(*arguments, length_penalty, **options):
    found = own.beams(*arguments, length_penalty=length_penalty, **options)
    return sorted(
        (
            (tokens, score * (len(tokens) / (len(tokens) + 1)) ** length_penalty)
            for tokens, score in found
        ),
        key=lambda text: -text[1],
    )


def speculation_without_the_free_token(target, draft, prompt, **options):
    """Stops one short when every guess was kept."""
    tokens = own.speculative(target, draft, prompt, **options)
    most = options["max_new_tokens"]
    return tokens[:-1] if len(tokens) == most > 1 else tokens


def lookup_of_short_ends(text, most, longest):
    return continuation(text, most, min(longest, 2))


def stop_after_a_false_start(pieces, strings):
    """A partial match that fails is thrown away whole."""
    done = {string: 0 for string in strings}
    for number, piece in enumerate(pieces, 1):
        for letter in piece:
            for string in strings:
                done[string] = done[string] + 1 if letter == string[done[string]] else 0
                if done[string] == len(string):
                    return number
    return len(pieces)


def cut_at_the_first_of_the_list(pieces, strings):
    text = "".join(pieces[: own.stop_strings(pieces, strings)])
    for string in strings:
        if string in text:
            return [text[: text.index(string)]]
    return [text]


def changed(stops, change):
    """Text and strings compared after a change that makes some of them equal."""

    def sampler(pieces, strings):
        return stops([change(x) for x in pieces], [change(x) or x for x in strings])

    return sampler


def stop_at_stripped_strings(pieces, strings):
    return own.stop_strings(pieces, [x.strip() or x for x in strings])


def stop_at_a_pattern(pieces, strings):
    found = [n for n in range(1, len(pieces) + 1) for x in strings
             if re.search(x, "".join(pieces[:n]))]  # fmt: skip
    return min(found, default=len(pieces))


def stop_in_normal_form(pieces, strings):
    texts = (normalize("NFC", "".join(pieces[:n])) for n in range(1, len(pieces) + 1))
    found = [n for n, t in enumerate(texts, 1) if any(x in t for x in strings)]
    return min(found, default=len(pieces))


def show_without_spaces(pieces, strings):
    return [x.rstrip() for x in own.stop_output(pieces, strings)]


def show_up_to_stripped_strings(pieces, strings):
    return own.stop_output(pieces, [x.strip() or x for x in strings])


def lookup_of_four(text, most, longest):
    return continuation(text, min(most, 4), longest)


def lookup_by_three(text, most, longest):
    return continuation(text, most, min(longest, 3))


BROKEN = {
    "top_k": [approximate_top_k, top_k_of_positive],
    "top_p": [top_p_with_a_margin, top_p_normalised_twice],
    "min_p": [min_p_against_the_mean],
    "typical": [typical_of_two],
    "eta": [eta_without_a_root],
    "top_a": [top_a_without_a_square],
    "xtc": [xtc_without_a_rest],
    "repetition_penalty": [repetition_without_token_0],
    "presence_penalty": [presence_from_the_second_time],
    "frequency_penalty": [frequency_of_neighbours],
    "no_repeat_ngram": [ngrams_that_do_not_overlap, ngrams_of_two_at_least],
    "dry": [dry_by_the_last_match],
    "logit_bias": [bias_up_to_ten],
    "sequence_bias": [sequence_by_its_last],
    "suppress": [suppress_by_a_large_number],
    "min_length": [min_length_one_less],
    "forced_bos": [forced_bos_always],
    "encoder_no_repeat_ngram": [encoder_and_own_ngrams],
    "draw": [draw_from_the_first],
    "greedy": [greedy_of_the_last],
    "guidance": [guidance_of_logits],
    "chain": [chain_mass_before_temperature],
    "contrastive_search": [contrast_by_any_angle],
    "beam_search": [beams_one_longer],
    "speculative": [speculation_without_the_free_token],
    "prompt_lookup": [lookup_of_short_ends, lookup_of_four, lookup_by_three],
    "stop_strings": [
        stop_after_a_false_start,
        changed(own.stop_strings, str.lower),
        stop_at_stripped_strings,
        stop_at_a_pattern,
        stop_in_normal_form,
    ],
    "stop_output": [
        cut_at_the_first_of_the_list,
        changed(own.stop_output, str.lower),
        show_without_spaces,
        show_up_to_stripped_strings,
    ],
}
