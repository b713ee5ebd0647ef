"""The conformance kit passes what is right and says clearly what is wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest
from samplers.own import factory

from npllama import sampling as s
from npllama.testing import CHECKS, Violation, check_top_k, check_top_p
from npllama.testing.laws import counterexample, laws_of, shown

OFFERS = [
    (name, function, conventions)
    for name, offered in factory().items()
    for one in (offered if isinstance(offered, list) else [offered])
    for function, conventions in [one if isinstance(one, tuple) else (one, {})]
]


def label(offer):
    name, _, conventions = offer
    said = [f"{key}={value}" for key, value in conventions.items()]
    return "-".join([name, *(x for x in said if not x.endswith("True"))])


@pytest.mark.parametrize("offer", OFFERS, ids=label)
def test_own_samplers_pass(offer):
    name, function, conventions = offer
    CHECKS[name](function, **conventions)


def test_npllama_offers_every_strategy():
    assert {name for name, _, _ in OFFERS} == set(CHECKS)


def test_a_violation_is_a_law_a_least_case_and_what_was_found():
    with pytest.raises(Violation) as broken:
        check_top_k(lambda logits, k: s.top_k(logits, k, ties="lowest"))
    assert str(broken.value).splitlines() == [
        "top_k: the k most probable tokens stay, with all that equal the last of them",
        "  logits = [0, 0, 0, 0]",
        "  k = 2",
        "  probabilities [0.25, 0.25, 0.25, 0.25]",
        "  kept {0, 1}, expected the 4 most probable",
    ]


def test_an_exception_of_a_sampler_is_part_of_the_violation():
    def breaks(logits, p):
        raise KeyError("temperature")

    with pytest.raises(Violation, match="it raised KeyError: 'temperature'"):
        check_top_p(breaks)
