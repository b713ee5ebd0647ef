"""Speculation writes what transformers writes, recorded by tools/goldens."""

from pathlib import Path

import numpy as np
import pytest
from goldens.speculative import DRAFTS, FILE, GUESSES, MAX_NEW_TOKENS, SEEDS, case
from goldens.tiny_models import EOS, npllama_model

from npllama.decoding.common import Job
from npllama.decoding.prompt_lookup import prompt_lookup
from npllama.decoding.self_speculation import early_exit
from npllama.decoding.speculative import assisted, speculate
from npllama.decoding.stopping import at_tokens

with np.load(Path(__file__).parent / "goldens" / FILE) as file:
    TOKENS = file["tokens"]

PROPOSE = {
    "plain": lambda model, small: (
        lambda text, most, cache: prompt_lookup()([], 0, cache)
    ),
    "assisted": lambda model, small: assisted(Job(small, [], 64)),
    "prompt_lookup": lambda model, small: prompt_lookup(eos={EOS}),
    "early_exit": lambda model, small: early_exit(Job(model, [], 64), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTS)
def test_greedy_text_is_that_of_transformers_with_the_same_draft(name):
    kept = 0
    for seed in SEEDS:
        made, small = case(seed)
        model = npllama_model(made)
        propose = PROPOSE[name](model, npllama_model(small))
        job = Job(model, made.prompt, MAX_NEW_TOKENS, at_tokens([EOS]))
        rounds = list(speculate(job, propose, GUESSES))
        expected = TOKENS[seed, DRAFTS.index(name)]
        found = [token for r in rounds for token in r.tokens]
        assert found == expected[expected >= 0].tolist(), seed
        kept += sum(r.accepted for r in rounds)
    assert kept > 0 or name == "plain"


def test_the_recorded_texts_are_of_many_kinds():
    lengths = (TOKENS[:, 0] >= 0).sum(axis=1)
    assert len(SEEDS) >= 50 and (lengths < MAX_NEW_TOKENS).sum() >= 10
    assert (lengths > 20).sum() >= 10
