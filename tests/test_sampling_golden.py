"""The samplers against transformers 5.23, on 1,080 recorded sets of logits.

A row passes if the same tokens stay, and their values agree to 1e-6. Three
things can make the kept sets differ, all of them are counted here, and no
case may have more of them than is listed:

ties      Where a sampler cuts through tokens of equal probability, transformers
          keeps those that torch.sort or torch.topk happens to put first, an
          order that torch does not define. As many tokens stay, with equal
          probabilities, but others.
rounding  transformers decides in float32 and contradicts itself in float64;
          npllama agrees with the float64 answer.
edges     A running sum meets the parameter exactly (4 of 40 equal tokens at
          top_p 0.1) and the last bit decides: a change of the parameter by a
          millionth gives transformers' answer.
"""

from pathlib import Path

import numpy as np
import pytest
import sampling_cases as cases

from npllama import sampling as s

GOLDENS = Path(__file__).parent / "goldens" / "sampling_transformers.npz"

# At most so many rows of 1,080: ties, rounding, edges.
KNOWN = {
    "top_p 0": (236, 0, 0),
    "top_p 0.1": (206, 20, 19),
    "top_p 0.5": (240, 2, 0),
    "top_p 0.9": (235, 2, 1),
    "top_p 0.95 keep 3": (198, 1, 0),
    "min_p 0.5": (0, 73, 0),
    "min_p 0.3 keep 2": (75, 0, 0),
    "typical_p 0.2": (0, 101, 0),
    "typical_p 0.5 keep 3": (5, 73, 0),
    "top_h 0.1": (289, 6, 5),
    "top_h 0.4": (299, 22, 5),
    "top_h 0.9": (325, 16, 11),
}
STORED = ("kept", "changed", "values", "rounded", "exact")
NUDGED = {
    "top_p 0.1": lambda g, by: s.top_p(g.logits, 0.1 + by),
    "top_p 0.9": lambda g, by: s.top_p(g.logits, 0.9 + by),
    "top_h 0.1": lambda g, by: s.top_h(g.logits, 0.1 + by),
    "top_h 0.4": lambda g, by: s.top_h(g.logits, 0.4 + by),
    "top_h 0.9": lambda g, by: s.top_h(g.logits, 0.9 + by),
}


@pytest.fixture(scope="module")
def parts():
    return cases.groups()


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDENS) as file:
        return dict(file)


def _answers(name, parts, recorded):
    """Yield for each group the number, logits, kept and changed tokens, values
    and, by row, the kept tokens of float64 where they differ."""
    stored = {part: recorded[f"{name}/{part}"] for part in STORED}
    for number, part in enumerate(parts):
        logits = cases.used(name, part)
        if logits is None:
            continue
        kept, stored["kept"] = cases.unpack(stored["kept"], logits.shape)
        changed, stored["changed"] = cases.unpack(stored["changed"], logits.shape)
        values = stored["values"][: changed.sum()]
        stored["values"] = stored["values"][changed.sum() :]
        exact = {}
        for row in stored["rounded"][stored["rounded"][:, 0] == number, 1]:
            exact[int(row)], stored["exact"] = cases.unpack(
                stored["exact"], logits.shape[1:]
            )
        yield number, logits, kept, changed, values, exact
    assert not stored["kept"].size and not stored["values"].size


def _cause(name, part, row, logits, mine, theirs, exact):
    if cases.alike(logits, mine, theirs):
        return 0
    if exact is not None and cases.alike(logits, mine, exact):
        return 1
    for by in (-1e-6, 1e-6):
        near = NUDGED[name](part, by)[row] if name in NUDGED else logits
        if cases.alike(logits, near > -np.inf, theirs):
            return 2
    raise AssertionError(f"{name}: row {row}, V={logits.size}: {mine} is not {theirs}")


def test_the_inputs_are_those_that_were_recorded(parts, recorded):
    assert cases.checksum(parts) == str(recorded["checksum"])


@pytest.mark.parametrize("name", [name for name in cases.CASES if name != "synthid"])
def test_transformers_keeps_the_same_tokens(name, parts, recorded):
    causes = [0, 0, 0]
    for number, logits, theirs, _, _, exact in _answers(name, parts, recorded):
        mine = cases.CASES[name](parts[number]) > -np.inf
        for row in np.flatnonzero((mine != theirs).any(axis=1)):
            row = int(row)
            arguments = logits[row], mine[row], theirs[row], exact.get(row)
            causes[_cause(name, parts[number], row, *arguments)] += 1
    assert all(n <= most for n, most in zip(causes, KNOWN.get(name, (0, 0, 0)))), causes


@pytest.mark.parametrize("name", [name for name in cases.CASES if name != "synthid"])
def test_transformers_gives_the_same_values(name, parts, recorded):
    for number, logits, theirs, changed, values, _ in _answers(name, parts, recorded):
        out = cases.CASES[name](parts[number])
        assert out.dtype == np.float32
        expected = logits.copy()
        expected[changed] = values
        left = theirs & (out > -np.inf)
        np.testing.assert_allclose(out[left], expected[left], rtol=1e-6, atol=1e-6)
        if not changed.any():
            assert out[left].tobytes() == logits[left].tobytes()


def test_synthid_probabilities_are_those_of_transformers(parts, recorded):
    # transformers subtracts in float32 what is added here, so probabilities
    # that ought to be as small as 1e-12 come out as 0 or as 1e-8 there.
    for answer in _answers("synthid", parts, recorded):
        number, logits, kept, changed, values, _ = answer
        expected = np.where(kept, logits, -np.inf).astype(np.float64)
        expected[changed] = values
        out = cases.CASES["synthid"](parts[number])
        np.testing.assert_allclose(s.softmax(out), s.softmax(expected), atol=2e-6)
