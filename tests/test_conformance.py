"""One command checks a package of samplers; what it found elsewhere is recorded."""

import json
import os
import sys
from pathlib import Path

import children
import pytest

from npllama import sampling as s
from npllama.conformance import BadSampler, examine, load, offers_of
from npllama.conformance.report import not_offered

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "goldens"

# ---- what a package says it has ---------------------------------------------

MODULE = """
import numpy as np

def top_k(logits, k):
    order = np.argsort(-logits, kind="stable")
    out = np.full_like(logits, -np.inf)
    out[order[:k]] = logits[order[:k]]
    return out

def factory():
    return {"top_k": top_k}

def right():
    return {"top_k": (top_k, {"ties": "lowest"})}

def unknown():
    return {"topk": top_k}

def strange():
    return {"top_k": (top_k, {"tie": "lowest"})}

def other():
    return {"top_k": (top_k, {"ties": "random"})}

def nothing():
    return {}

def number():
    return {"top_k": 3}

def broken():
    raise RuntimeError("no weights")

def stops():
    raise SystemExit("no weights")

def empty():
    return {"top_k": []}

def alone():
    return {"top_k": (top_k,)}

def perhaps():
    return {"top_k": (top_k, {"takes_least": "perhaps"})}

def many():
    return {"speculative": (top_k, {"runs": "many"})}

def none_back():
    return {"repetition_penalty": (top_k, {"last_n": 0})}

def never():
    return {"beam_search": (top_k, {"early_stopping": ()})}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "their_samplers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_samplers", raising=False)
    yield tmp_path
    sys.modules.pop("their_samplers", None)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("their_samplers", "is not of the form MODULE:FACTORY"),
        ("no_such_module:factory", "cannot import 'no_such_module'"),
        ("their_samplers:no_such_name", "'their_samplers' has no 'no_such_name'"),
        ("their_samplers:unknown", "perhaps 'top_k' is meant"),
        ("their_samplers:strange", "no convention 'tie'; it has ties"),
        ("their_samplers:other", "ties is 'random'; it is one of 'all', 'lowest'"),
        ("their_samplers:nothing", "returns a dictionary of strategies, found {}"),
        ("their_samplers:number", "top_k is offered as 3: expected a function"),
        ("their_samplers:broken", "broken() raised RuntimeError: no weights"),
        ("their_samplers:stops", "stops() raised SystemExit: no weights"),
        ("their_samplers:empty", "top_k is offered as []: expected a function"),
        ("their_samplers:alone", "expected a function, or a function and"),
        ("their_samplers:perhaps", "takes_least is 'perhaps'; it is True or False"),
        ("their_samplers:many", "runs is 'many'; a number from 1 on is needed"),
        ("their_samplers:none_back", "last_n is 0; a number from 1 on is needed"),
        ("their_samplers:never", "early_stopping is (); a tuple of values is needed"),
    ],
)
def test_a_sampler_that_cannot_be_checked_is_refused_in_one_line(folder, spec, line):
    with pytest.raises(BadSampler) as refused:
        load(spec)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_a_strategy_can_be_offered_in_several_ways():
    offers = offers_of({"top_k": [s.top_k, (s.top_k, {"ties": "any"})]})
    assert [str(offer) for offer in offers] == ["top_k", "top_k (ties='any')"]


def test_a_report_names_the_conventions_that_would_fit():
    report = examine(offers_of({"top_k": lambda x, k: s.top_k(x, k, ties="lowest")}))
    (broken,) = report.broken
    assert broken.hint == "with ties='lowest' all laws hold"
    assert "  HINT    with ties='lowest' all laws hold" in report.text().splitlines()
    assert "top_p" in report.not_offered


def test_a_dictionary_is_examined_as_a_factory_returns_it():
    report = examine({"greedy": s.greedy})
    assert not report.broken and report.results
    with pytest.raises(BadSampler, match="no strategy 'topk'"):
        examine({"topk": s.top_k})


@pytest.mark.slow
def test_an_exception_is_shown_once_and_named_where_it_comes_again():
    def breaks(logits, p):
        raise KeyError("temperature")

    report = examine({"min_p": breaks})
    lines = report.text().splitlines()
    assert len(report.broken) > 6
    assert sum("it raised KeyError" in line for line in lines) == 1
    same = [line for line in lines if line.endswith("(the same exception)")]
    assert len(same) == len(report.broken) - 1
    # The record for machines has it all.
    assert all("it raised KeyError" in result.example for result in report.broken)


def test_strategies_that_were_not_offered_are_named_only_if_few():
    text = examine({"greedy": s.greedy}).text()
    assert "not offered: 48 strategies, listed by help(npllama.testing)" in text
    assert not_offered(["eta", "top_a"]) == "not offered: eta, top_a"


def test_a_sampler_that_does_two_things_wrong_is_told_both():
    def temperature(logits, t):
        logits *= t
        return logits

    broken = examine(offers_of({"temperature": temperature})).broken
    says = {result.law: result.example for result in broken}
    wrong = says["every logit is divided by the temperature, removed ones stay removed"]
    assert "found [0.5, -1], expected [2, -4]" in wrong
    assert "the array passed in is not written into" in says


# ---- the command ------------------------------------------------------------


def run(folder, *arguments):
    """pytest as a user starts it, in a folder of their own."""
    command = [sys.executable, "-m", "pytest", "-p", "npllama_pytest", *arguments]
    return children.run(
        [*command, "--pyargs", "npllama.conformance"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_the_command_reports_every_law_and_writes_it_down(folder):
    record = folder / "report.json"
    sampler = ("--sampler", "their_samplers:factory")
    few = ("--sampler-examples", "5")
    done = run(folder, *sampler, *few, "--sampler-report", str(record))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "  holds   at least one token stays" in lines
    at = next(i for i, line in enumerate(lines) if line.startswith("  BROKEN"))
    assert [line.strip() for line in lines[at + 1 : at + 5]] == [
        "logits = [0, 0, 0, 0]",
        "k = 2",
        "probabilities [0.25, 0.25, 0.25, 0.25]",
        "kept {0, 1}, expected the 4 most probable",
    ]
    assert "6 laws hold, 1 is broken; 1 strategy offered, 48 not" in lines
    written = json.loads(record.read_text())
    assert [bool(r["example"]) for r in written["results"]].count(True) == 1
    assert run(folder, *few, "--sampler", "their_samplers:right").returncode == 0


@pytest.mark.slow
def test_the_command_without_a_sampler_that_can_be_had_is_a_usage_error(folder):
    right = ("--sampler", "their_samplers:right")
    for arguments in (
        ("--sampler", "nowhere:factory"),
        (*right, "--sampler-report", "nowhere/report.json"),
        (*right, "--sampler-report", "."),
        (*right, "--sampler-examples", "0"),
        (),
    ):
        done = run(folder, *arguments)
        assert done.returncode == 4
        (line,) = filter(None, done.stderr.splitlines())
        assert line.startswith("ERROR: ") and "--sampler" in line
    assert not list(folder.glob("*.part"))


def test_the_plugin_that_every_run_of_pytest_loads_imports_nothing():
    code = "import sys, npllama_pytest; print('numpy' in sys.modules)"
    done = children.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "False"


def test_the_package_is_there_without_hypothesis_and_the_kit_says_what_it_needs():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import npllama\n"
        "try:\n    import npllama.testing\n"
        "except ImportError as problem:\n    print(problem)"
    )
    done = children.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    needs = "npllama.testing needs Hypothesis: pip install 'npllama[test]'"
    assert done.stdout.strip() == needs


# ---- what it found elsewhere ------------------------------------------------


def recorded(library):
    return json.loads((GOLDENS / f"conformance_{library}.json").read_text())


def broken(report):
    return {(r["offer"], r["law"]) for r in report["results"] if r["example"]}


RANK = "the k most probable tokens stay, with all that equal the last of them"
NUCLEUS = "the fewest most probable tokens whose mass reaches p stay"
MEETS = "where the running sum meets p exactly, the convention decides"
TINY = "a p next to 0 keeps the most probable token alone"
REACH = "the whole text counts"
ZERO = "temperature 0 is refused"

MU = "mu follows the surprise of every token drawn, and"
ZIPF = f"{MU} the k that Zipf's law says stay"
START = "at the start, mu = 2 tau, the k that Zipf's law says stay"
TOP_P = "top_p (takes_least=True, batched=True)"
MIN_P = "min_p (takes_least=True, batched=True)"

# Known disagreements that the kit does not see, and why:
# - vLLM's order of the chain, clipped biases, the prompt in its length penalty: there
#   are conventions for them, but nothing here that speaks to vLLM
# - what a penalty is given, the output alone or the prompt, too, with padding or
#   without: the caller decides
# - half precision, in which a running sum can lose a whole nucleus: all is float32
# - a row with nothing left, over which eta stumbles in transformers
# - llama.cpp's min-p on a graphics card, its XTC's dice, its grammars
# - state that a binding forgets between two tokens: the adapters hold it
# - what transformers 5 has no more: group and constrained beams, contrastive search,
#   DoLa; and the draft of version 4.44 that was not the target's distribution
# - watermarks, token healing, reported log-probabilities

# Where a library differs from transformers on purpose, or from its paper: the law is
# broken by the kit's own conventions, and holds by those of the library.
DISAGREEMENTS = {
    "llamacpp": {
        "top-k keeps exactly k": ("top_k", RANK),
        "top-p chooses among equals by another sort": ("top_p", NUCLEUS),
        "so it does where a sum meets p": ("top_p", MEETS),
        "and where one token stays": ("top_p", TINY),
        "temperature 0 is the greedy choice": ("temperature", ZERO),
        "temperature comes last, after min-p": (
            "chain",
            "temperature and truncation come in the order of transformers",
        ),
        "a repetition is forgotten after 64 tokens": ("repetition_penalty", REACH),
        "so is a presence": ("presence_penalty", REACH),
        "and a frequency": ("frequency_penalty", REACH),
        "mirostat measures surprise after the truncation, not before it": (
            "mirostat_2 (surprise='original')",
            f"{MU} the tokens that surprise by mu bits or less stay",
        ),
    },
    "meta": {
        "top-p keeps the lowest ids of equals": ("top_p", NUCLEUS),
        "top-p keeps one more where a sum meets p": ("top_p", MEETS),
        "a small p keeps the lowest id": ("top_p", TINY),
        "temperature 0 is decided elsewhere": ("temperature", ZERO),
    },
    "transformers": {
        "equals among more than 16 tokens come in the order of torch's sort": (
            TOP_P,
            TINY,
        ),
        "so they do where a sum meets p": (TOP_P, MEETS),
        "and in large vocabularies": (TOP_P, NUCLEUS),
        "guidance makes removed tokens NaN": (
            "guidance",
            "a token that either answer has removed stays removed",
        ),
        "top-H sums up the entropy as it was, not as it is among what stays": (
            "top_h (entropy='renormalised')",
            "the most probable tokens stay that hold the share alpha of the entropy",
        ),
    },
}
# What is broken by a library's own conventions, too.
BUGS = {
    "llamacpp": {
        "typical: 0 times ln 0 makes the entropy NaN": (
            "typical",
            "the tokens nearest to the expected surprise stay, until they hold the mass",
        ),
        "typical also cuts through equals, as it should by its own": (
            "typical",
            "tokens of equal probability stay or go together",
        ),
        "mirostat's k is too large for an int where a row is flat": (
            "mirostat_1",
            START,
        ),
        "so it is later on": ("mirostat_1", ZIPF),
        "and by the authors' rounding": (
            "mirostat_1 (convention='original', surprise='original')",
            START,
        ),
        "who measure surprise before the truncation": (
            "mirostat_1 (convention='original', surprise='original')",
            ZIPF,
        ),
    },
    "meta": {
        "a sum in float32 passes 1 before the last token": (
            "top_p",
            "p = 1 keeps every token",
        ),
    },
    "transformers": {
        "min-p may keep a removed token in place of one next to nothing": (
            MIN_P,
            "what is at least p times as probable as the best stays, and nothing else",
        ),
        "the length penalty outgrows all numbers": (
            "exponential_decay",
            "far past the start all logits are still numbers",
        ),
        "speculation keeps a token of probability 0 where u is 0": (
            "rejection",
            "a token of probability 0 never comes out, even at u = 0",
        ),
    },
}


def by_its_own(found):
    """The laws that a library breaks by its own conventions, and their strategies."""
    return {
        (offer.partition(" ")[0], law) for offer, law in broken(found["by its own"])
    }


def bugs(library):
    """The laws that it breaks whatever the convention."""
    return {(offer.partition(" ")[0], law) for offer, law in BUGS[library].values()}


@pytest.mark.parametrize(
    ("library", "what"),
    [(library, what) for library, few in DISAGREEMENTS.items() for what in few],
)
def test_a_known_disagreement_comes_out_and_is_gone_by_their_own_convention(
    library, what
):
    found, (offer, law) = recorded(library), DISAGREEMENTS[library][what]
    assert (offer, law) in broken(found["by the kit's"])
    strategy = offer.partition(" ")[0]
    assert (strategy, law) not in by_its_own(found) - bugs(library)


@pytest.mark.parametrize("library", DISAGREEMENTS)
def test_by_its_own_conventions_only_what_has_a_bug_breaks_laws(library):
    own = {strategy for strategy, _ in by_its_own(recorded(library))}
    assert own <= {strategy for strategy, _ in bugs(library)}


@pytest.mark.parametrize(
    ("library", "what"), [(library, what) for library in BUGS for what in BUGS[library]]
)
def test_a_bug_comes_out_whatever_the_convention(library, what):
    found, (offer, law) = recorded(library), BUGS[library][what]
    assert (offer, law) in broken(found["by the kit's"])
    name = offer.partition(" ")[0]
    assert name in {r.partition(" ")[0] for r, _ in broken(found["by its own"])}


@pytest.mark.parametrize("library", DISAGREEMENTS)
def test_nothing_else_is_broken(library):
    known = {*DISAGREEMENTS[library].values(), *BUGS[library].values()}
    assert broken(recorded(library)["by the kit's"]) == known


@pytest.mark.slow
def test_metas_report_is_what_the_kit_finds_today(as_recorded):
    from samplers import meta

    for whose, offered in (
        ("by the kit's", meta.factory()),
        ("by its own", meta.by_its_conventions()),
    ):
        today = examine(offers_of(offered)).record()
        assert broken(today) == broken(recorded("meta")[whose])
