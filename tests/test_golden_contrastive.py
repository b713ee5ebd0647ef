"""Contrastive search and DoLa write what transformers 4.49 writes."""

from pathlib import Path

import numpy as np
import pytest
from goldens.contrastive import FILE, MAX_NEW_TOKENS, SEEDS, SETTINGS, case
from goldens.tiny_models import EOS, npllama_model

from npllama.decoding.common import Job, unprocessed
from npllama.decoding.contrastive_search import contrastive_search
from npllama.decoding.dola import dola
from npllama.decoding.stopping import at_tokens
from npllama.sampling import repetition_penalty

with np.load(Path(__file__).parent / "goldens" / FILE) as file:
    TOKENS = file["tokens"]


def written(model, prompt, setting):
    """New tokens under a setting of transformers."""
    setting = dict(setting)
    process = unprocessed
    if theta := setting.pop("repetition_penalty", None):

        def process(history, logits):
            return repetition_penalty(logits, history, theta)

    strategy = dola if "dola_layers" in setting else contrastive_search
    job = Job(model, prompt, MAX_NEW_TOKENS, at_tokens([EOS]), process)
    return [token for step in strategy(job, **setting) for token in step.tokens]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_texts_are_those_of_transformers(name):
    for seed in SEEDS:
        made = case(seed)
        found = written(npllama_model(made), made.prompt, SETTINGS[name])
        expected = TOKENS[seed, list(SETTINGS).index(name)]
        assert found == expected[expected >= 0].tolist(), seed


def test_the_recorded_texts_differ_from_setting_to_setting():
    assert len(SEEDS) >= 50
    for i in range(len(SETTINGS)):
        for j in range(i):
            different = (TOKENS[:, i] != TOKENS[:, j]).any(axis=1)
            assert different.sum() > len(SEEDS) / 4
