"""Beam searches find what transformers finds, recorded by tools/goldens/beam.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from beams import asked
from goldens.tiny_models import npllama_model, tiny

from npllama.decoding.beam import beam_search
from npllama.decoding.constrained_beam import constraints_of
from npllama.decoding.constrained_beam_4 import constrained_beam_search_4
from npllama.decoding.group_beam import group_beam_search
from npllama.decoding.stopping import at_tokens

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "beam.json").read_text())
NEW = 10


def search(seed, setting):
    made = tiny(seed, second_eos=seed % 3 == 0)
    model = npllama_model(made)
    eos = model.config.eos_token_id
    common = {
        "eos": eos,
        "length_penalty": setting["length_penalty"],
        "early_stopping": setting["early_stopping"],
    }
    stop, num_beams = at_tokens(eos), setting["num_beams"]
    args = asked(model, made.prompt, stop, NEW, num_beams, **common)
    if "force_words_ids" in setting:
        constraints = constraints_of(setting["force_words_ids"])
        return constrained_beam_search_4(*args, constraints)[:1], eos
    if "num_beam_groups" in setting:
        groups = setting["num_beam_groups"], setting["diversity_penalty"]
        return group_beam_search(*args, *groups), eos
    return beam_search(*args), eos


@pytest.mark.parametrize(
    "version, least",
    [("5.23", 300), pytest.param("4.49", 500, marks=pytest.mark.slow)],
)
def test_beam_searches_find_the_texts_that_transformers_finds(version, least):
    cases = GOLDEN[version]
    assert len(cases) >= least and len({case["seed"] for case in cases}) >= 50
    for case in cases:
        found, eos = search(case["seed"], case["setting"])
        texts = [list(h.tokens) for h in found]
        if version == "4.49":
            # Version 4 forgets which of several end tokens ended a text and
            # writes the first.
            texts = [[*t[:-1], eos[0]] if t[-1] in eos else t for t in texts]
        assert texts == case["texts"], case
        np.testing.assert_allclose(
            [h.score for h in found], case["scores"], rtol=1e-4, atol=1e-4
        )


def test_the_recorded_settings_cover_every_rule():
    settings = [case["setting"] for case in GOLDEN["5.23"]]
    assert {s["early_stopping"] for s in settings} == {True, False, "never"}
    assert {s["length_penalty"] for s in settings} == {0.0, 1.0, -0.5}
    later = [case["setting"] for case in GOLDEN["4.49"]]
    assert sum("num_beam_groups" in s for s in later) >= 200
    assert sum("force_words_ids" in s for s in later) >= 200
