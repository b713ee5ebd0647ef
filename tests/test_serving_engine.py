"""Any traffic: every text becomes what it becomes alone."""

import numpy as np
from strategies import DISTINCT, random_model, token_ids

from npllama import GenerationConfig, generate, rowwise
from npllama.serving.engine import Engine
from npllama.serving.requests import Request
from npllama.serving.scheduler import Limits


def test_texts_written_together_are_those_written_alone():
    model, requests = random_model(DISTINCT, 0), []
    for r, options in enumerate(
        [
            dict(max_new_tokens=9),
            dict(max_new_tokens=7, do_sample=True, top_k=5),
            dict(max_new_tokens=5, do_sample=True, num_return_sequences=3),
            dict(max_new_tokens=8, prompt_lookup_num_tokens=3),
        ]
    ):
        prompt = token_ids(DISTINCT, r % 2, 5 + r).tolist()
        requests.append((prompt, GenerationConfig(**options)))
    with rowwise():
        engine = Engine(model, 12, 3, Limits(tokens=7, requests=4))
        numbers = [
            engine.submit(Request(prompt, config, np.random.default_rng(seed)))
            for seed, (prompt, config) in enumerate(requests)
        ]
        events = []
        while engine.busy:
            events += engine.step()
        for r, (prompt, config) in enumerate(requests):
            alone = generate(model, [prompt], config, np.random.default_rng(r))
            for choice, text in enumerate(alone):
                mine = [e for e in events if (e.id, e.choice) == (numbers[r], choice)]
                assert [e.token for e in mine] == text.tokens
    assert engine.statistics().pages_used == 0
