"""The samplers against llama.cpp (llama-cpp-python 0.3.36), recorded.

As with transformers, a sampler that cuts through equal probabilities may keep
others of them (llama.cpp sorts without an order among equals), and where a sum
meets the parameter exactly the last bit decides. llama.cpp computes in
float32, so three kinds of rows are left out where that has no meaning left:

huge        Probabilities of 0: typical_p multiplies them by -inf, mirostat 1
            divides by them, and NaN follows.
last bits   typical_p and top_n_sigma on logits that differ by 2^-23.
overflow    mirostat 1 converts k beyond 2^31 to an integer, which gives 1
            token where all would be due.
"""

from pathlib import Path

import numpy as np
import pytest
import sampling_cases as cases

from npllama import sampling as s

GOLDENS = Path(__file__).parent / "goldens" / "sampling_llamacpp.npz"
HUGE, LAST_BITS = 4, 5  # kinds of rows, see sampling_cases
ALWAYS = np.zeros(cases.ROWS)


def _penalties(g):
    out = s.repetition_penalty(g.logits, g.tokens, 1.3, last_n=8)
    out = s.frequency_penalty(out, g.tokens, 0.4, last_n=8)
    return s.presence_penalty(out, g.tokens, 0.2, last_n=8)


def _xtc(g, threshold, keep):
    return s.xtc(
        g.logits,
        ALWAYS,
        probability=1.0,
        threshold=threshold,
        min_tokens_to_keep=keep,
    )


# The sampler, moved by a small number in its deciding parameter; the kinds of
# rows left out; at most so many rows where ties and edges differ.
CASES = {
    "top_k 3": (lambda g, by: s.top_k(g.logits, 3, ties="lowest"), (), 25, 0),
    "top_p 0.9": (
        lambda g, by: s.top_p(g.logits, 0.9 + by, ties="lowest"),
        (),
        183,
        49,
    ),
    "min_p 0.05": (lambda g, by: s.min_p(g.logits, 0.05), (), 0, 0),
    "typical_p 0.9": (
        lambda g, by: s.typical_p(g.logits, 0.9 + by, convention="llama.cpp"),
        (HUGE, LAST_BITS),
        144,
        24,
    ),
    "top_n_sigma 1": (lambda g, by: s.top_n_sigma(g.logits, 1.0), (LAST_BITS,), 0, 0),
    "top_n_sigma 0.3": (lambda g, by: s.top_n_sigma(g.logits, 0.3), (LAST_BITS,), 0, 0),
    "xtc 0.1": (lambda g, by: _xtc(g, 0.1 + by, 1), (), 91, 2),
    "xtc 0.03 keep 4": (lambda g, by: _xtc(g, 0.03, 4), (), 42, 0),
    "temperature 0.7": (lambda g, by: s.temperature(g.logits, 0.7), (), 0, 0),
    "dynamic 1 0.5": (lambda g, by: s.dynamic_temperature(g.logits, 1, 0.5), (), 0, 0),
    "dynamic 1.5 1.2": (
        lambda g, by: s.dynamic_temperature(g.logits, 1.5, 1.2, 0.7),
        (),
        0,
        0,
    ),
    "penalties": (lambda g, by: _penalties(g), (), 0, 0),
    "dry 0.8": (lambda g, by: s.dry(g.logits, g.tokens, 0.8, last_n=64), (), 0, 0),
    "dry 0.3 last 9": (
        lambda g, by: s.dry(
            g.logits, g.tokens, 0.3, base=2.5, allowed_length=1, last_n=9
        ),
        (),
        0,
        0,
    ),
}


@pytest.fixture(scope="module")
def parts():
    return cases.groups()


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDENS) as file:
        return dict(file)


def test_the_inputs_are_those_that_llamacpp_saw(parts, recorded):
    assert cases.checksum(parts) == str(recorded["checksum"])


@pytest.mark.parametrize("name", CASES)
def test_llamacpp_keeps_the_same_tokens(name, parts, recorded):
    sampler, without, most_ties, most_edges = CASES[name]
    bits, ties, edges = recorded[f"{name}/kept"], 0, 0
    for part in parts:
        theirs, bits = cases.unpack(bits, part.logits.shape)
        mine = sampler(part, 0.0) > -np.inf
        near = [sampler(part, by) > -np.inf for by in (-1e-6, 1e-6)]
        for row in np.flatnonzero((mine != theirs).any(axis=1)):
            if row % 8 in without:
                continue
            if cases.alike(part.logits[row], mine[row], theirs[row]):
                ties += 1
                continue
            edges += 1
            assert any(
                cases.alike(part.logits[row], other[row], theirs[row]) for other in near
            ), (row, mine[row], theirs[row])
    assert ties <= most_ties and edges <= most_edges, (ties, edges)


@pytest.mark.parametrize("name", CASES)
def test_llamacpp_gives_the_same_values(name, parts, recorded):
    sampler, without, _, _ = CASES[name]
    kept, changed, values = (
        recorded[f"{name}/{part}"] for part in ("kept", "changed", "values")
    )
    used = np.array([row % 8 not in without for row in range(cases.ROWS)])
    for part in parts:
        out, expected = sampler(part, 0.0), part.logits.copy()
        theirs, kept = cases.unpack(kept, part.logits.shape)
        new, changed = cases.unpack(changed, part.logits.shape)
        expected[new], values = values[: new.sum()], values[new.sum() :]
        left = theirs & (out > -np.inf) & used[:, None]
        # The dynamic temperature comes from an entropy summed in float32.
        rtol = 5e-5 if name.startswith("dynamic") else 1e-6
        np.testing.assert_allclose(out[left], expected[left], rtol=rtol, atol=1e-6)


def _replay(step, part, theirs, tokens):
    """Yield (mine, theirs) along a text, with llama.cpp's own tokens."""
    mu = s.mirostat_start(2.0)
    for row, kept, token in zip(part.logits, theirs, tokens):
        yield row, step(row, mu) > -np.inf, kept
        left = np.where(kept, row, np.float32(-np.inf))
        mu = s.mirostat_update(left, int(token), mu, tau=2.0, eta=0.3)


@pytest.mark.parametrize("name", ["mirostat_1", "mirostat_2"])
def test_llamacpp_steers_mirostat_through_the_same_tokens(name, parts, recorded):
    # The state is never recorded: if it went astray, the kept sets would.
    bits, tokens = recorded[f"{name}/kept"], recorded[f"{name}/tokens"]
    step = s.mirostat_1 if name == "mirostat_1" else s.mirostat_2
    equal = 0
    for part in parts[1:]:
        theirs, bits = cases.unpack(bits, part.logits.shape)
        drawn, tokens = tokens[: cases.ROWS], tokens[cases.ROWS :]
        for row, mine, kept in _replay(step, part, theirs, drawn):
            overflow = kept.sum() == 1 and mine.sum() == (row > -np.inf).sum()
            underflow = np.ptp(row[row > -np.inf]) > 100
            same = cases.alike(row, mine, kept)
            excused = name == "mirostat_1" and (overflow or underflow)
            assert same or excused, (row, mine, kept)
            equal += same
    assert equal >= (960 if name == "mirostat_2" else 400)
