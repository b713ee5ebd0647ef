"""The cases in which npllama's samplers are held to transformers'.

`groups()` makes the inputs, the same on every machine; `CASES` says how each
case is computed here, and `tools/goldens/sampling.py` how transformers computes
it. The recorded answers are in tests/goldens/sampling_transformers.npz.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from npllama import sampling as s

INF = np.float32(np.inf)
SEED = 20260
SIZES = (1, 2, 3, 5, 8, 17, 40, 64, 130)
ROWS = 120


class Group(NamedTuple):
    """Rows of one vocabulary size, and what the samplers need beside them."""

    logits: np.ndarray  # (B, V) float32
    unconditional: np.ndarray  # (B, V) float32, all finite
    tokens: np.ndarray  # (B, T) int64
    prompt: np.ndarray  # (P,) int64


def row_of(rng, size, kind):
    """Make one row of logits of one of eight kinds."""
    values = rng.standard_normal(size) * rng.choice([0.1, 1, 3, 10])
    if kind == 1:  # ties everywhere
        values = np.round(values)
    if kind == 2:  # few left
        values[rng.random(size) < 0.7] = -np.inf
    if kind == 3:  # all equal
        values = np.full(size, rng.choice([0.0, 1.5, -80.25]))
    if kind == 4:  # huge
        values = values * 1e3
    if kind == 5:  # neighbours in the last bits
        values = 1 + rng.integers(0, 4, size) * 2.0**-23
    if kind == 6:  # few left, and those equal
        values = np.where(rng.random(size) < 0.5, 2.0, -np.inf)
    if kind == 7:  # probabilities that are near multiples of 1/64
        values = np.log(rng.integers(1, 9, size) / 64)
    if not (values > -np.inf).any():
        values[rng.integers(size)] = 1.0
    return values.astype(np.float32)


def groups():
    """Return the nine groups of 120 rows: 1,080 sets of logits."""
    out = []
    for size in SIZES:
        rng = np.random.default_rng([SEED, size])
        logits = np.stack([row_of(rng, size, i % 8) for i in range(ROWS)])
        unconditional = rng.standard_normal((ROWS, size)).astype(np.float32)
        length = 1 if size == 3 else 14
        tokens = rng.integers(0, min(size, 4), (ROWS, length))
        prompt = rng.integers(0, min(size, 4), 9)
        out.append(Group(logits, unconditional, tokens, prompt))
    return out


def checksum(parts):
    """Return the SHA-256 of the inputs."""
    found = hashlib.sha256()
    for group in parts:
        for array in group:
            found.update(array.tobytes())
    return found.hexdigest()


def used(name, group):
    """Return the rows of a group that a case looks at, None for no row."""
    if name == "watermark selfhash":
        # transformers reads 40 candidates and fails on fewer; rows without ties.
        return group.logits[::16] if group.logits.shape[1] >= 40 else None
    return group.logits


def unpack(bits, shape):
    """Return a mask of the given shape, and the bits after it."""
    count = int(np.prod(shape))
    used = (count + 7) // 8
    return np.unpackbits(bits[:used])[:count].reshape(shape) > 0, bits[used:]


def alike(logits, kept, other):
    """Say whether two kept sets hold equal probabilities."""
    probs = s.softmax(logits)
    return kept.sum() == other.sum() and np.allclose(
        np.sort(probs[kept]), np.sort(probs[other]), rtol=0, atol=1e-12
    )


def eos(size):
    """Return two end tokens, or the only token there is."""
    return sorted({size - 1, size // 2})


def words(size):
    """Return sequences of one to three ids, each at most once."""
    ids = [(0,), (size // 2, 0), (0, 1 % size, 2 % size), (1 % size, 1 % size)]
    return list(dict.fromkeys(ids))


def biases(size):
    """Return a bias for each of the sequences."""
    return {word: 0.75 - 1.5 * i for i, word in enumerate(words(size))}


def allowed(batch, tokens):
    """Allow the ids of the text so far, and the batch number."""
    return sorted({int(t) for t in tokens[-3:]})


LEFT = s.GreenList()
SELF = s.GreenList(seeding_scheme="selfhash", context_width=3, bias=1.5)
SYNTHID = s.SynthID((654, 400, 836, 123, 340))


def synthid(g):
    """Mark two steps, the second after the first token of the history."""
    state = s.synthid_start(SYNTHID, g.logits.shape[:1])
    _, state = s.synthid(g.logits, state, SYNTHID)
    marked, _ = s.synthid(g.logits, s.synthid_next(state, g.tokens[:, 0]), SYNTHID)
    return marked


def _eos(g):
    return eos(g.logits.shape[1])


CASES = {
    "temperature 0.7": lambda g: s.temperature(g.logits, 0.7),
    "temperature 1.7": lambda g: s.temperature(g.logits, 1.7),
    "top_k 1": lambda g: s.top_k(g.logits, 1),
    "top_k 3": lambda g: s.top_k(g.logits, 3),
    "top_k 50": lambda g: s.top_k(g.logits, 50),
    "top_k 2 keep 4": lambda g: s.top_k(g.logits, 2, min_tokens_to_keep=4),
    "top_p 0": lambda g: s.top_p(g.logits, 0.0),
    "top_p 0.1": lambda g: s.top_p(g.logits, 0.1),
    "top_p 0.5": lambda g: s.top_p(g.logits, 0.5),
    "top_p 0.9": lambda g: s.top_p(g.logits, 0.9),
    "top_p 0.95 keep 3": lambda g: s.top_p(g.logits, 0.95, min_tokens_to_keep=3),
    "min_p 0.05": lambda g: s.min_p(g.logits, 0.05),
    "min_p 0.5": lambda g: s.min_p(g.logits, 0.5),
    "min_p 1": lambda g: s.min_p(g.logits, 1.0),
    "min_p 0.3 keep 2": lambda g: s.min_p(g.logits, 0.3, min_tokens_to_keep=2),
    "typical_p 0.2": lambda g: s.typical_p(g.logits, 0.2),
    "typical_p 0.9": lambda g: s.typical_p(g.logits, 0.9),
    "typical_p 0.5 keep 3": lambda g: s.typical_p(g.logits, 0.5, min_tokens_to_keep=3),
    "epsilon_cutoff 3e-4": lambda g: s.epsilon_cutoff(g.logits, 3e-4),
    "epsilon_cutoff 0.06": lambda g: s.epsilon_cutoff(g.logits, 0.06),
    "epsilon_cutoff 0.4 keep 2": lambda g: s.epsilon_cutoff(
        g.logits, 0.4, min_tokens_to_keep=2
    ),
    "eta_cutoff 3e-4": lambda g: s.eta_cutoff(g.logits, 3e-4),
    "eta_cutoff 0.06": lambda g: s.eta_cutoff(g.logits, 0.06),
    "eta_cutoff 0.4 keep 2": lambda g: s.eta_cutoff(
        g.logits, 0.4, min_tokens_to_keep=2
    ),
    "top_h 0.1": lambda g: s.top_h(g.logits, 0.1),
    "top_h 0.4": lambda g: s.top_h(g.logits, 0.4),
    "top_h 0.9": lambda g: s.top_h(g.logits, 0.9),
    "repetition_penalty 1.3": lambda g: s.repetition_penalty(g.logits, g.tokens, 1.3),
    "repetition_penalty 0.7": lambda g: s.repetition_penalty(g.logits, g.tokens, 0.7),
    "repetition_penalty 1.5 from 11": lambda g: s.repetition_penalty(
        g.logits, g.tokens[:, 11:], 1.5
    ),
    "encoder_repetition_penalty 1.3": lambda g: s.encoder_repetition_penalty(
        g.logits, [g.prompt] * ROWS, 1.3
    ),
    "no_repeat_ngram 1": lambda g: s.no_repeat_ngram(g.logits, g.tokens, 1),
    "no_repeat_ngram 2": lambda g: s.no_repeat_ngram(g.logits, g.tokens, 2),
    "no_repeat_ngram 3": lambda g: s.no_repeat_ngram(g.logits, g.tokens, 3),
    "encoder_no_repeat_ngram 1": lambda g: s.encoder_no_repeat_ngram(
        g.logits, g.tokens, g.prompt, 1
    ),
    "encoder_no_repeat_ngram 2": lambda g: s.encoder_no_repeat_ngram(
        g.logits, g.tokens, g.prompt, 2
    ),
    "encoder_no_repeat_ngram 4": lambda g: s.encoder_no_repeat_ngram(
        g.logits, g.tokens, g.prompt, 4
    ),
    "bad_words": lambda g: s.bad_words(
        g.logits, g.tokens, words(g.logits.shape[1]), _eos(g)
    ),
    "sequence_bias": lambda g: s.sequence_bias(
        g.logits, g.tokens, biases(g.logits.shape[1])
    ),
    "prefix_allowed_tokens": lambda g: s.prefix_allowed_tokens(
        g.logits, g.tokens, allowed
    ),
    "prefix_allowed_tokens 3 beams": lambda g: s.prefix_allowed_tokens(
        g.logits, g.tokens, allowed, num_beams=3
    ),
    "suppress": lambda g: s.suppress(g.logits, _eos(g)),
    "begin_suppress 14": lambda g: s.begin_suppress(
        g.logits, g.tokens.shape[1], _eos(g), 14
    ),
    "min_length 14": lambda g: s.min_length(g.logits, g.tokens.shape[1], 14, _eos(g)),
    "min_length 15": lambda g: s.min_length(g.logits, g.tokens.shape[1], 15, _eos(g)),
    "min_new_tokens 10": lambda g: s.min_new_tokens(
        g.logits, g.tokens.shape[1], 4, 10, _eos(g)
    ),
    "min_new_tokens 11": lambda g: s.min_new_tokens(
        g.logits, g.tokens.shape[1], 4, 11, _eos(g)
    ),
    "forced_bos": lambda g: s.forced_bos(g.logits, g.tokens.shape[1], 0),
    "forced_eos 15": lambda g: s.forced_eos(g.logits, g.tokens.shape[1], 15, _eos(g)),
    "remove_invalid_values": lambda g: s.remove_invalid_values(g.logits),
    "exponential_decay 1.1": lambda g: s.exponential_decay_length_penalty(
        g.logits, g.tokens.shape[1] - 4, 7, 1.1, _eos(g)
    ),
    "exponential_decay 0.9": lambda g: s.exponential_decay_length_penalty(
        g.logits, g.tokens.shape[1] - 4, 7, 0.9, _eos(g)
    ),
    "renormalize": lambda g: s.renormalize(g.logits),
    "guidance 0": lambda g: s.classifier_free_guidance(g.logits, g.unconditional, 0.0),
    "guidance 1": lambda g: s.classifier_free_guidance(g.logits, g.unconditional, 1.0),
    "guidance 1.5": lambda g: s.classifier_free_guidance(
        g.logits, g.unconditional, 1.5
    ),
    "watermark lefthash": lambda g: s.watermark(g.logits, g.tokens, LEFT),
    "watermark selfhash": lambda g: s.watermark(g.logits[::16], g.tokens[::16], SELF),
    "synthid": synthid,
}
