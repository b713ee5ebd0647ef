"""The forward pass beside transformers, both running: new weights and texts."""

from contextlib import nullcontext

import numpy as np
import pytest
from needs import needs

torch = needs("torch")
transformers = needs("transformers")
if not transformers.__version__.startswith("5.23"):
    pytest.skip("the oracle is transformers 5.23", allow_module_level=True)

from goldens import model as oracle  # noqa: E402
from goldens.model_cases import (  # noqa: E402
    CASES,
    GREEDY_CASES,
    GREEDY_TOKENS,
    LENGTHS,
    PROMPT,
    config_of,
    model_of,
    pieces,
    runs_of,
    tokens_of,
)

import npllama  # noqa: E402
from npllama.attention import blocked, naive  # noqa: E402
from npllama.convert.convert import convert  # noqa: E402

DTYPES = {"float32": 2e-5, "float64": 1e-10}  # of the range of the logits
SHORT = [case for case in CASES if not case.long]
DYNAMIC = [case for case in SHORT if config_of(case).rope.rope_type == "dynamic"]
STATIC = [case for case in SHORT if case not in DYNAMIC]


def name_of(case):
    return case.name


def anew(case):
    """The same configuration with other weights than the recorded ones."""
    return case._replace(name=case.name + " anew")


def lift(dtype):
    return oracle.lifted() if dtype == "float64" else nullcontext()


def assert_close(found, golden, dtype):
    assert found.dtype == golden.dtype == dtype
    assert np.abs(found - golden).max() < DTYPES[dtype] * np.ptp(golden)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SHORT, ids=name_of)
def test_logits_equal_those_of_transformers_at_every_position(case, dtype):
    """Dynamic RoPE included: keys keep the turn that they were given."""
    case = anew(case)
    model, tokens = model_of(case, dtype), tokens_of(case)[:1]
    for run in runs_of(case):
        with lift(dtype):
            golden = oracle.logits(case, dtype, tokens[0], run)
        for attend in (blocked, naive) if run == "chunks" else (blocked,):
            cache = npllama.new_cache(model.config, 1, tokens.shape[1], dtype)
            parts = [
                npllama.forward(model, tokens[:, piece], cache, attend=attend)[0]
                for piece in pieces(run, tokens.shape[1])
            ]
            assert_close(np.concatenate(parts), golden, dtype)


@torch.no_grad()
def padded(case, dtype, tokens, lengths):
    """Logits of a batch that is padded on the right and masked, as people do."""
    position = np.arange(tokens.shape[1])
    mask = position < lengths[:, None]
    out = oracle.build(case, dtype)(
        torch.from_numpy(np.where(mask, tokens, 0)),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        position_ids=torch.from_numpy(np.broadcast_to(position, mask.shape).copy()),
    )
    return out.logits.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", STATIC, ids=name_of)
def test_a_ragged_batch_equals_a_padded_and_masked_one(case, dtype):
    case, lengths = anew(case), np.array(LENGTHS)
    tokens = tokens_of(case)
    with lift(dtype):
        golden = padded(case, dtype, tokens, lengths)
    model = model_of(case, dtype)
    cache = npllama.new_cache(model.config, *tokens.shape, dtype)
    found = npllama.forward(model, tokens, cache, lengths)
    for b, length in enumerate(lengths):
        assert_close(found[b, :length], golden[b, :length], dtype)


@pytest.mark.parametrize("case", DYNAMIC, ids=name_of)
def test_with_dynamic_rope_a_row_of_a_batch_is_what_it_is_alone(case):
    """In transformers it is not: the longest row decides how fast all turn."""
    lengths, tokens = np.array(LENGTHS), tokens_of(case)
    short = tokens[1, : lengths[1]]
    alone = oracle.logits(case, "float32", short, "whole")
    model = model_of(case)
    cache = npllama.new_cache(model.config, *tokens.shape)
    found = npllama.forward(model, tokens, cache, lengths)[1, : lengths[1]]
    assert_close(found, alone, "float32")
    in_a_batch = padded(case, "float32", tokens, lengths)[1, : lengths[1]]
    assert np.abs(in_a_batch - alone).max() > 1e-3 * np.ptp(alone)


def test_the_lift_changes_only_rounding():
    for case in (SHORT[0], DYNAMIC[0]):
        text = tokens_of(case)[0]
        plain = oracle.logits(case, "float32", text, "whole")
        with oracle.lifted():
            exact = oracle.logits(case, "float64", text, "whole")
        islands = oracle.logits(case, "float64", text, "whole")
        assert exact.dtype == islands.dtype == np.float64
        for rounded in (plain, islands):
            gap = np.abs(rounded - exact).max() / np.ptp(exact)
            assert 1e-9 < gap < 2e-6


@pytest.mark.parametrize("case", GREEDY_CASES, ids=name_of)
def test_greedy_texts_of_a_converted_checkpoint_equal_generate(case, tmp_path):
    """save_pretrained, npllama convert, load, generate: 200 tokens."""
    # npllama stops where the context ends, so it is made long enough.
    roomy = {"max_position_embeddings": 512, "eos_token_id": None}
    case = case._replace(config=case.config | roomy)
    text, margin = oracle.greedy(case)
    assert margin > 2e-5  # else rounding would decide
    oracle.build(case, "float32").save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out.npz", "float32")
    model = npllama.load(tmp_path / "out.npz")
    prompt = tokens_of(case)[0, :PROMPT].tolist()
    config = npllama.GenerationConfig(max_new_tokens=GREEDY_TOKENS)
    assert npllama.generate(model, prompt, config).tokens == text.tolist()
