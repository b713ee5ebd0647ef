"""Every sampler once more, as its definition reads: plain loops, one row.

A row is a list of Python floats (float64), a removed token is -inf. Nothing
here is fast, broadcast or clever, and nothing is imported from npllama.
"""

import math

GONE = -math.inf


def left(row):
    return [i for i in range(len(row)) if row[i] > GONE]


def keep(row, ids):
    return [row[i] if i in set(ids) else GONE for i in range(len(row))]


def softmax(row):
    """Probabilities; 0 for removed tokens."""
    peak = max(row)
    total = math.fsum(math.exp(value - peak) for value in row)
    return [math.exp(value - peak) / total for value in row]


def entropy(row):
    probs = softmax(row)
    return -math.fsum(p * math.log(p) for p in probs if p > 0)


def ranked(row, ties="lowest"):
    """Ids that are left, most probable first."""
    sign = 1 if ties == "lowest" else -1
    return sorted(left(row), key=lambda i: (-row[i], sign * i))


def draw(probs, u):
    """Walk along the probabilities until u is used up."""
    total = math.fsum(probs)
    walked, last = 0.0, None
    for i, p in enumerate(probs):
        if p > 0:
            walked, last = walked + p, i
            if walked > u * total:
                return i
    return last


def temperature(row, t):
    return [value / t for value in row]


def dynamic_temperature(row, t, spread, exponent):
    n = len(left(row))
    if n < 2:
        return list(row)
    low, high = max(0.0, t - spread), t + spread
    t = low + (high - low) * (entropy(row) / math.log(n)) ** exponent
    return temperature(row, t) if t > 0 else keep(row, ranked(row)[:1])


def top_k(row, k, ties="all"):
    order = ranked(row)
    if len(order) <= k:
        return list(row)
    if ties == "lowest":
        return keep(row, order[:k])
    return keep(row, [i for i in order if row[i] >= row[order[k - 1]]])


def top_p(row, p, ties="highest", crossing="exclusive", least=1):
    if p == 1:
        return list(row)
    probs, before, kept = softmax(row), 0.0, []
    for i in ranked(row, ties):
        inside = before < p if crossing == "exclusive" else before <= p
        if inside or len(kept) < least:
            kept.append(i)
        before += probs[i]
    return keep(row, kept)


def epsilon_cutoff(row, epsilon, least=1):
    probs, edge = softmax(row), row[ranked(row)[:least][-1]]
    return keep(row, [i for i in left(row) if probs[i] >= epsilon or row[i] >= edge])


def eta_cutoff(row, epsilon, least=1):
    eta = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy(row)))
    return epsilon_cutoff(row, eta, least)


def min_p(row, p, least=1):
    probs = softmax(row)
    saved = ranked(row)[:least]
    most = max(probs)
    return keep(row, [i for i in left(row) if probs[i] >= p * most or i in saved])


def top_a(row, a):
    probs = softmax(row)
    return keep(row, [i for i in left(row) if probs[i] >= a * max(probs) ** 2])


def xtc(row, u, probability, threshold, least=1):
    probs = softmax(row)
    good = [i for i in ranked(row) if probs[i] >= threshold]
    if u >= probability or len(good) < 2:
        return list(row)
    kept = [i for i in left(row) if i not in good[:-1]]
    return keep(row, kept) if len(kept) >= least else list(row)


def typical_p(row, mass, convention="transformers", least=1):
    probs, h = softmax(row), entropy(row)
    log_total = math.log(math.fsum(math.exp(value - max(row)) for value in row))
    odd = {i: abs(max(row) + log_total - row[i] - h) for i in left(row)}
    held, kept = 0.0, []
    for i in sorted(odd, key=lambda i: (odd[i], i)):
        kept.append(i)
        held += probs[i]
        full = held >= mass if convention == "transformers" else held > mass
        if full and (convention == "transformers" or len(kept) >= least):
            break
    if convention == "transformers":
        edge = odd[kept[-1]]
        saved = sorted(odd, key=lambda i: (odd[i], i))[:least]
        kept = [i for i in odd if odd[i] <= edge or i in saved]
    return keep(row, kept)


def top_h(row, alpha, entropy_of="original", most=100):
    order = ranked(row)[:most]
    probs = softmax([row[i] for i in order])
    full = entropy([row[i] for i in order])
    kept, held = [order[0]], 0.0
    for n in range(1, len(order) + 1):
        part = probs[:n]
        if entropy_of == "original":
            held = -math.fsum(p * math.log(p) for p in part if p > 0)
        else:
            mass = math.fsum(part)
            held = -math.fsum(p / mass * math.log(p / mass) for p in part if p > 0)
        if held > alpha * full or probs[n - 1] == 0:
            break
        kept = order[:n]
    return keep(row, kept)


def top_n_sigma(row, n):
    values = [row[i] for i in left(row)]
    mean = math.fsum(values) / len(values)
    sigma = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return keep(row, [i for i in left(row) if row[i] >= max(values) - n * sigma])


def tail_free(row, z, convention="llama.cpp", least=1):
    order = ranked(row)
    if len(order) <= 2 or z == 1:
        return list(row)
    p = sorted(softmax([row[i] for i in order]), reverse=True)
    falls = [p[i] - p[i + 1] for i in range(len(p) - 1)]
    bends = [abs(falls[i] - falls[i + 1]) for i in range(len(falls) - 1)]
    total, count, held = math.fsum(bends), len(order), 0.0
    for i, bend in enumerate(bends):
        held += bend / total if total > 1e-6 else 1 / len(bends)
        if held > z and i >= least:
            count = i
            break
    return keep(row, order[: count + (convention == "webui")])


def mirostat_1(row, mu, m, convention="llama.cpp"):
    order, size = ranked(row), len(row)
    if len(order) == 1:
        return list(row)
    top = [row[i] for i in order[:m]]
    t = [math.log((i + 2) / (i + 1)) for i in range(len(top) - 1)]
    b = [top[i] - top[i + 1] for i in range(len(top) - 1)]
    s = math.fsum(x * y for x, y in zip(t, b)) / math.fsum(x * x for x in t)
    epsilon = s - 1
    k = (epsilon * 2**mu / (1 - size**-epsilon)) ** (1 / s)
    k = max(int(k), 1) if convention == "llama.cpp" else round(k) + 1
    return keep(row, order[:k])


def mirostat_2(row, mu):
    probs = softmax(row)
    small = [i for i in left(row) if probs[i] > 0 and -math.log2(probs[i]) <= mu]
    return keep(row, small or ranked(row)[:1])


def mirostat_update(row, token, mu, tau, eta):
    return mu - eta * (-math.log2(softmax(row)[token]) - tau)


def repetition_penalty(row, tokens, penalty):
    out = list(row)
    for token in set(tokens):
        out[token] = row[token] * penalty if row[token] < 0 else row[token] / penalty
    return out


def presence_penalty(row, tokens, penalty):
    return [v - penalty * (i in tokens) for i, v in enumerate(row)]


def frequency_penalty(row, tokens, penalty):
    return [v - penalty * list(tokens).count(i) for i, v in enumerate(row)]


def banned_by_ngram(tokens, source, n):
    """Tokens v such that the last n-1 tokens and v stand together in `source`."""
    if len(tokens) < n - 1:
        return set()
    begun = list(tokens[len(tokens) - (n - 1) :])
    places = range(len(source) - n + 1)
    return {source[i + n - 1] for i in places if list(source[i : i + n - 1]) == begun}


def longest_repeat(tokens, v, limit):
    """The longest n <= limit such that the last n tokens stood before a v."""
    best = 0
    for n in range(1, min(limit, len(tokens)) + 1):
        for j in range(n, len(tokens)):
            if tokens[j] == v and tokens[j - n : j] == tokens[len(tokens) - n :]:
                best = n
    return best


def dry(row, tokens, multiplier, base, allowed, breakers=()):
    tokens, out = list(tokens), list(row)
    limit = len(tokens)
    for start in range(len(tokens)):  # the last place wins, the longest there
        ends = [len(b) for b in breakers if tokens[start : start + len(b)] == list(b)]
        if ends:
            limit = len(tokens) - start - max(ends)
    for v in range(len(row)):
        n = longest_repeat(tokens, v, limit)
        if n >= allowed and [v] not in [list(b) for b in breakers]:
            out[v] = row[v] - multiplier * base ** (n - allowed)
    return out


def exponential_decay(row, new, start, factor, eos):
    out = list(row)
    for i in set(eos):
        if new > start and row[i] > GONE:
            out[i] = row[i] + abs(row[i]) * (factor ** (new - start) - 1)
    return out


def sequence_bias(row, tokens, bias):
    out, tokens = list(row), list(tokens)
    for sequence, amount in bias.items():
        begin = list(sequence[:-1])
        if tokens[len(tokens) - len(begin) :] == begin and len(begin) <= len(tokens):
            out[sequence[-1]] += amount
    return out


def guidance(row, other, scale):
    c, u = softmax(row), softmax(other)
    return [
        math.log(b) + scale * (math.log(a) - math.log(b)) if a and b else GONE
        for a, b in zip(c, u)
    ]


def wrap(number):
    """Reduce a whole number to 64 bits with a sign, as int64 arithmetic does."""
    return (number + 2**63) % 2**64 - 2**63


def synthid_g(ngram, key, bits):
    """The g-value of an n-gram under a key."""
    hashed = 1
    for token in [*ngram, key]:
        hashed = wrap(wrap(hashed + token) * 6364136223846793005 + 1)
    return int(bits[hashed % len(bits)])


def tournament(probs, g):
    mass = math.fsum(p * x for p, x in zip(probs, g))
    return [p * (1 + x - mass) for p, x in zip(probs, g)]
