"""The forward pass gives transformers' logits, recorded by tools/goldens/model.py."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from goldens.model_cases import (
    CASES,
    GREEDY_CASES,
    GREEDY_TOKENS,
    LENGTHS,
    PROMPT,
    config_of,
    lengths_of,
    model_of,
    pieces,
    runs_of,
    stored,
    tensors_of,
    tokens_of,
)

import npllama
from npllama.attention import blocked, naive
from npllama.config import config_from_hf
from npllama.ops import Observer, observing

FOLDER = Path(__file__).parent / "goldens"
GOLDEN = np.load(FOLDER / "model.npz")
CONFIGS = json.loads((FOLDER / "model_configs.json").read_text())
# Both of the range of the logits.  float64 stands against the run in which the
# oracle lifted transformers' three float32 islands.
TOLERANCE = {"float32": 2e-5, "float64": 1e-10}
SHORT = [case for case in CASES if not case.long]


def name_of(case):
    return case.name


def logits(model, tokens, lengths, run, attend=blocked):
    """Logits of a ragged batch that is fed in pieces, as (B, T, V)."""
    B, T = tokens.shape
    cache = npllama.new_cache(model.config, B, T, model.embed.dtype.name)
    parts = []
    for piece in pieces(run, T):
        count = np.clip(lengths - piece.start, 0, piece.stop - piece.start)
        new = tokens[:, piece]
        parts.append(npllama.forward(model, new, cache, count, attend=attend))
    return np.concatenate(parts, axis=1)


def assert_transformers_says(found, case, row, run):
    dtype = found.dtype.name
    golden = GOLDEN[f"{case.name}/{dtype}/{row}/{run}"]
    assert golden.dtype == dtype
    error = np.abs(found - golden).max() / np.ptp(golden)
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_logits_of_a_ragged_batch_equal_those_of_transformers(case, dtype):
    """At once, in chunks, and token by token through the cache."""
    model, lengths = model_of(case, dtype), np.array(lengths_of(case))
    for run in runs_of(case):
        found = logits(model, tokens_of(case), lengths, run)
        for b, length in enumerate(lengths):
            at = stored(case, length)
            assert_transformers_says(found[b, at], case, b, run)


@pytest.mark.parametrize("case", SHORT, ids=name_of)
def test_logits_of_a_single_row_equal_those_of_transformers(case):
    model = model_of(case, "float32")
    for b, length in enumerate(lengths_of(case)):
        tokens = tokens_of(case)[b : b + 1, :length]
        for run in runs_of(case):
            found = logits(model, tokens, np.array([length]), run)
            at = stored(case, length)
            assert_transformers_says(found[0, at], case, b, run)


@pytest.mark.parametrize("case", SHORT[::3], ids=name_of)
def test_the_loops_of_attention_give_the_same_logits(case):
    model, lengths = model_of(case, "float64"), np.array(lengths_of(case))
    found = logits(model, tokens_of(case), lengths, "chunks", naive)
    for b, length in enumerate(lengths):
        assert_transformers_says(found[b, stored(case, length)], case, b, "chunks")


@pytest.mark.parametrize("case", GREEDY_CASES, ids=name_of)
def test_greedy_texts_of_200_tokens_equal_those_of_transformers(case):
    model = model_of(case)
    cache = npllama.new_cache(model.config, 1, PROMPT + GREEDY_TOKENS)
    new, text = tokens_of(case)[:1, :PROMPT], []
    for _ in range(GREEDY_TOKENS):
        new = npllama.forward(model, new, cache, last=True).argmax(-1)
        text.append(int(new[0, 0]))
    assert text == GOLDEN[f"{case.name}/tokens"].tolist()


def test_greedy_texts_are_no_accident():
    """Every choice was clear, and none has run into repeating itself."""
    assert len(GREEDY_CASES) >= 6
    for case in GREEDY_CASES:
        assert GOLDEN[f"{case.name}/margin"] > 10 * TOLERANCE["float32"]
        text = GOLDEN[f"{case.name}/tokens"]
        assert len(text) == GREEDY_TOKENS and len(set(text[-50:].tolist())) >= 8


@pytest.mark.parametrize("case", CASES + GREEDY_CASES, ids=name_of)
def test_the_weights_are_those_that_were_recorded(case):
    content = b"".join(t.tobytes() for t in tensors_of(case, "float32").values())
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    np.testing.assert_array_equal(digest, GOLDEN[f"{case.name}/weights"])


class Sharpness(Observer):
    """Collects the scores of attention, divided by sqrt(D) already."""

    def __init__(self):
        self.spreads = []

    def product(self, kind, a, b, y):
        if kind.name == "scores":
            self.spreads.append(float(y[..., :7].std(axis=-1).mean()))


@pytest.mark.parametrize("case", SHORT, ids=name_of)
def test_attention_in_the_cases_is_far_from_uniform(case):
    """Where all scores are alike, a wrong position or key would go unseen."""
    with observing(Sharpness()) as seen:
        logits(model_of(case), tokens_of(case)[:1], np.array(LENGTHS[:1]), "whole")
    assert min(seen.spreads) > 0.5


def test_the_cases_cover_every_option_in_both_spellings():
    assert len(CASES) >= 24 and min(LENGTHS) < max(LENGTHS)
    configs = [config_of(case) for case in CASES]
    kinds = {"default", "linear", "dynamic", "yarn", "llama3"}
    assert {c.rope.rope_type for c in configs} == kinds
    groups = {c.num_attention_heads // c.num_key_value_heads for c in configs}
    assert {1, 2, 6} <= groups
    for option in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        assert {getattr(c, option) for c in configs} == {True, False}
    assert {1e-6, 1e-5, 1e-2} <= {c.rms_norm_eps for c in configs}
    assert {1e4, 5e5, 1e6} <= {c.rope.rope_theta for c in configs}
    assert any(c.num_attention_heads * c.head_dim != c.hidden_size for c in configs)
    for option in ("attention_factor", "beta_fast", "beta_slow", "mscale_all_dim"):
        assert any(getattr(c.rope, option) for c in configs)
    assert any(not c.rope.truncate for c in configs)
    for key in ("rope_scaling", "rope_parameters"):
        scalings = [case.config[key] for case in CASES if key in case.config]
        told = {s.get("rope_type", s.get("type")) for s in scalings}
        assert kinds - {"default"} <= told
    spelled = [case.config.get("rope_scaling", {}) for case in CASES]
    assert any("type" in s for s in spelled) and any("rope_type" in s for s in spelled)


@pytest.mark.parametrize("version", ["4.49", "5.23"])
def test_config_json_is_understood_as_either_transformers_writes_it(version):
    texts = CONFIGS[version]
    assert set(texts) == {case.name for case in CASES}
    for case in CASES:
        assert config_from_hf(json.loads(texts[case.name])) == config_of(case)
    key = "rope_scaling" if version == "4.49" else "rope_parameters"
    assert sum(bool(json.loads(text).get(key)) for text in texts.values()) >= 15
