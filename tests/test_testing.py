"""The conformance kit passes what is right and says clearly what is wrong."""

import pydoc
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from broken_again import BROKEN as BROKEN_AGAIN
from broken_samplers import BROKEN
from chapters import PACKAGE
from hypothesis import given
from samplers import own
from samplers.own import factory

from npllama import sampling as s
from npllama import testing
from npllama.conformance.hints import alternatives, fitting
from npllama.testing import (
    CHECKS,
    LanguageModel,
    Violation,
    check_greedy,
    check_top_k,
    check_top_p,
    strategies,
    truth,
)
from npllama.testing.chance import too_far
from npllama.testing.laws import shown
from npllama.testing.models import texts

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


# Mistakes that show on few rows only.
SMALL = {
    "the k-th of the first 512": (
        "top_k",
        lambda row, k: (
            s.top_k(row, max(k, int((row > np.sort(row[:512])[-k]).sum())))
            if len(row) > 512
            else s.top_k(row, k)
        ),
    ),
    "the best of the first thousand": ("greedy", lambda row: s.greedy(row[:1000])),
    "almost a": ("top_a", lambda row, a: s.top_a(row, 0.999 * a)),
    "almost the threshold": (
        "xtc",
        lambda row, p, x, u: own.xtc(row, p, x * 0.999, 0.0),
    ),
    "almost alpha": (
        "contrastive_decoding",
        lambda row, other, a, b: own.contrastive_decoding_step(
            row, other, a * 0.999, b
        ),
    ),
    "a thousandth less": ("min_p", lambda row, p: s.min_p(row, 0.999 * p)),
    "a hundredth less": ("typical", lambda row, mass: s.typical_p(row, 0.99 * mass)),
    "a hundredth more": (
        "typical",
        lambda row, mass: s.typical_p(row, min(1.01 * mass, 1.0)),
    ),
}


@pytest.mark.parametrize("mistake", SMALL)
def test_a_small_mistake_is_seen(mistake):
    name, sampler = SMALL[mistake]
    with pytest.raises(Violation):
        CHECKS[name](sampler)


@pytest.mark.slow
def test_one_number_for_a_guess_and_for_what_takes_its_place_is_seen(monkeypatch):
    def twice(logits, guess, q, rng, *weight):
        if rng is not None:
            u = rng.random()
            rng = own.Uniforms(u, u)
        return verified(logits, guess, q, rng, *weight)

    verified = own.rejection.verified
    monkeypatch.setattr("npllama.decoding.speculative.verified", twice)
    with pytest.raises(Violation, match="as likely as from the target alone"):
        CHECKS["speculative"](own.speculative)


def test_an_exception_of_a_sampler_is_part_of_the_violation():
    def breaks(logits, p):
        raise KeyError("temperature")

    with pytest.raises(Violation, match="it raised KeyError: 'temperature'"):
        check_top_p(breaks)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (lambda row, k: None, "None came back, which is no row of logits"),
        (lambda row, k: row > 0, "came back, which is no row of logits"),
        (lambda row, k: sys.exit(3), "it raised SystemExit: 3"),
    ],
)
def test_a_sampler_that_returns_no_logits_is_told_so(sampler, words):
    with pytest.raises(Violation, match=words):
        check_top_k(sampler)


def test_a_sampler_that_changes_its_mind_is_said_to():
    calls = []

    def moody(logits):
        calls.append(0)
        # Wrong once, at the first case after the five that are known.
        return int(logits.argmax()) if len(calls) != 6 else -1

    with pytest.raises(Violation, match="the same case gave one result, then another"):
        check_greedy(moody)


def test_every_check_says_how_the_sampler_is_called_and_what_its_conventions_are():
    for name, check in CHECKS.items():
        assert repr(check).startswith(f"check_{name}(sampler")
        (arguments,) = re.findall(r"Check ``\w+\((.*?)\)``", check.__doc__)
        assert check.signature == f"{name}({arguments})"
        assert "sampler : function" in check.__doc__, name
        for key, convention in check.conventions.items():
            (line,) = re.findall(rf"^    {key} : (.*)", check.__doc__, re.M)
            assert all(repr(c) in line.replace('"', "'") for c in convention.choices)
            assert convention.allows(convention.default), (name, key)


def test_help_of_the_kit_lists_every_strategy_and_how_it_is_called():
    lines = [line.strip() for line in testing.__doc__.splitlines()]
    for check in CHECKS.values():
        assert lines.count(check.signature) == 1
    text = pydoc.plain(pydoc.render_doc(testing.check_top_k))
    assert "Check ``top_k(logits, k)``" in text and "ties : " in text
    assert "check_top_k(sampler, *, ties='all'" in text
    assert len(text.splitlines()) < 30


def test_a_traceback_ends_at_the_callers_line_and_names_the_samplers():
    def breaks(logits, p):
        return logits[len(logits)]

    with pytest.raises(Violation) as broken:
        check_top_p(breaks)
    here = Path(__file__).name
    line = breaks.__code__.co_firstlineno + 1
    assert "it raised IndexError: index 1 is out of bounds" in str(broken.value)
    assert f"({here}, line {line})" in str(broken.value)
    hidden = [frame.frame.f_locals for frame in broken.traceback[1:]]
    assert all(frame.get("__tracebackhide__") for frame in hidden)
    assert broken.value.__cause__ is None and broken.value.__context__ is None


def test_the_kit_takes_nothing_from_what_it_checks():
    for file in sorted((PACKAGE / "testing").glob("*.py")):
        source = file.read_text(encoding="utf-8")
        used = set(re.findall(r"(?:from|import) npllama\.(\w+)", source))
        assert used <= {"testing"}, file.name


# ---- what samplers are tried on ---------------------------------------------


@given(strategies.logits(large=True))
def test_a_row_is_float32_and_has_something_left(row):
    assert row.dtype == np.float32 and row.ndim == 1 and len(truth.alive(row))
    assert not np.isnan(row).any() and row.max() < np.inf


@given(strategies.equal_logits())
def test_rows_of_equals_have_sums_that_leave_no_room(row):
    assert truth.slack(row) == 0
    probs = truth.softmax(row)
    assert (np.float32(probs) == probs).all() and probs.sum() == 1


@given(strategies.probabilities())
def test_probabilities_are_multiples_of_a_sixty_fourth(probs):
    assert probs.sum() == 1 and (probs >= 0).all()
    assert (probs * 64 == (probs * 64).round()).all()


def test_a_model_of_words_gives_every_text_logits_of_its_own():
    model = LanguageModel(3, 7)
    rows = [tuple(model(text)) for text in texts(3, 3, None)]
    assert len(set(rows)) == len(rows) == 27
    assert (model([1, 2]) == LanguageModel(3, 7)(np.array([1, 2]))).all()


def test_texts_are_all_there_are():
    every = list(texts(3, 2, 2))
    assert every == [(2,), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_counts_are_far_off_only_where_a_fair_draw_would_not_go():
    from collections import Counter

    probs = np.array([0.5, 0.3, 0.2, 0.0])
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = Counter(rng.choice(4, 1000, p=probs).tolist())
        assert too_far(drawn, probs) is None
    wrong = Counter(rng.choice(4, 1000, p=[0.4, 0.3, 0.3, 0.0]).tolist())
    assert "chi-squared" in too_far(wrong, probs)
    assert too_far(Counter({0: 999, 3: 1}), probs).startswith("3 was drawn")


# ---- words ------------------------------------------------------------------


def test_values_are_shown_as_one_would_write_them():
    assert shown(np.float32([0.1, 2, -np.inf])) == "[0.1, 2, -inf]"
    assert shown(np.zeros(99)).endswith("0, ... 99 in all]")
    assert shown({(0, 1): 2.0}) == "{(0, 1): 2}"
    assert shown([(np.int64(3), None)]) == "[(3, None)]"


def test_other_conventions_are_tried_from_the_least_change_on():
    found = list(alternatives(CHECKS["top_p"], {"ties": "lowest"}))
    assert len(found) == 3 * 3 - 1
    sizes = [sum((c["ties"] != "lowest", len(c) > 1)) for c in found]
    assert sizes == sorted(sizes)
    lowest = fitting(CHECKS["top_k"], lambda row, k: s.top_k(row, k, ties="lowest"), {})
    assert lowest == ({"ties": "lowest"}, 0)
    assert fitting(CHECKS["greedy"], lambda row: int(row.argmin()), {}) is None


def test_what_is_no_convention_or_no_sampler_is_the_callers_mistake():
    with pytest.raises(ValueError, match="ties is 'bogus'; it is one of"):
        check_top_p(s.top_p, ties="bogus")
    with pytest.raises(ValueError, match="no convention 'tie'"):
        check_top_p(s.top_p, tie="all")
    with pytest.raises(TypeError, match="not a function"):
        check_top_p(None)


# ---- what it does not let through -------------------------------------------

SURVIVORS = [
    (name, *(one if isinstance(one, tuple) else (one, {})))
    for broken in (BROKEN, BROKEN_AGAIN)
    for name, samplers in broken.items()
    for one in samplers
]


@pytest.mark.parametrize(("name", "sampler", "conventions"), SURVIVORS)
def test_a_broken_sampler_breaks_a_law_in_a_known_case(name, sampler, conventions):
    laws = CHECKS[name].under(conventions)
    assert any(fails(law, sampler, case) for law in laws for case in law.known)


def fails(law, sampler, case):
    try:
        with np.errstate(all="ignore"):
            law.holds(sampler, **case)
    except Exception:
        return True
    return False
