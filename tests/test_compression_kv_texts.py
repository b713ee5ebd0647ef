"""Texts over a cache in fewer bits: the commands, and what they say is lost."""

import json
from dataclasses import replace

import numpy as np
import pytest
from strategies import DISTINCT, random_model, token_ids

from npllama.cache import new_cache
from npllama.cli.main import main
from npllama.compression.kv_cache import forward_rounded
from npllama.compression.kv_rounding import Rule, Rules, kivi
from npllama.compression.kv_texts import (
    bits_per_number,
    cache_for,
    losses,
    rounded_pieces,
    sample_rounded,
    surprise_rounded,
)
from npllama.decoding.common import Job
from npllama.decoding.sample import sample
from npllama.generation.options import GenerationConfig
from npllama.model import forward
from npllama.sampling import log_softmax


def tokens_of(seed, n):
    return token_ids(DISTINCT, seed, n).tolist()


@pytest.mark.parametrize("drawn", (False, True))
def test_a_text_that_fits_the_residual_is_plain_decoding(drawn):
    model = random_model(DISTINCT, 1)
    rng = [np.random.default_rng(5) if drawn else None for _ in range(2)]
    jobs = [Job(model, tokens_of(1, 5), 9, rng=r) for r in rng]
    plain = list(sample(jobs[:1]))
    found = list(sample_rounded(jobs[1], cache_for(model, 14, kivi(2, 1, 15))))
    assert [step.tokens for step in found] == [step.tokens for step in plain]
    assert [step.reason for step in found] == [None] * 8 + ["length"]
    for ours, theirs in zip(found, plain):
        assert ours.logits.tobytes() == theirs.logits.tobytes()


def test_a_text_ends_where_its_cache_does():
    job = Job(random_model(DISTINCT, 1), tokens_of(1, 5), 100)
    found = list(sample_rounded(job, cache_for(job.model, 8, kivi(2, 2, 2))))
    assert [step.reason for step in found] == [None, None, "context"]


def test_surprise_is_read_off_decoding_token_by_token():
    model, tokens, rules = random_model(DISTINCT, 2), tokens_of(2, 12), kivi(2, 2, 2)
    cache, expected = cache_for(model, 11, rules), []
    for token, after in zip(tokens, tokens[1:]):
        logits = forward_rounded(model, np.array([[token]]), cache)[0, 0]
        expected.append(-log_softmax(logits)[after])
    assert surprise_rounded(model, tokens, rules).tolist() == expected
    assert len(surprise_rounded(model, tokens[:1], rules)) == 0
    # Keys in whole pieces are those of decoding; values are not, unless all are floats.
    pieces = Rules(rules.keys, Rule(2, "token", 2), 4)
    rules = pieces._replace(keys=Rule(2, "channel", 2))
    cache = cache_for(model, 11, rules)
    assert not np.array_equal(surprise_rounded(model, tokens, rules, 4), expected)


def test_losses_are_those_of_the_distributions():
    model, tokens = random_model(DISTINCT, 3, "float64"), tokens_of(3, 13)
    rules = kivi(1, 2, 2)
    (found,) = losses(model, tokens, [rules], 2)
    plain, few = new_cache(DISTINCT, 1, 12, "float64"), cache_for(model, 12, rules)
    apart, same, nats, usual = [], [], [], []
    for t in range(0, 12, 2):
        part = np.array([tokens[t : t + 2]])
        p, q = forward(model, part, plain)[0], forward_rounded(model, part, few)[0]
        p, q = (log_softmax(x) for x in (p, q))
        if t >= 2:
            apart += [(np.exp(a) * (a - b)).sum() for a, b in zip(p, q)]
            same += [a.argmax() == b.argmax() for a, b in zip(p, q)]
            usual += [-a[i] for a, i in zip(p, tokens[t + 1 :])]
            nats += [-b[i] for b, i in zip(q, tokens[t + 1 :])]
    expected = np.mean(apart), np.mean(same), np.exp(np.mean(nats))
    np.testing.assert_allclose(found.quality[:3], expected, rtol=1e-9)
    np.testing.assert_allclose(found.quality.before, np.exp(np.mean(usual)), rtol=1e-9)
    assert len(apart) == 10 and found.quality.divergence > 0
    assert found.bytes == few.k.nbytes + few.v.nbytes
    assert found.bits == bits_per_number(few) == 8 * found.bytes / (2 * 2 * 3 * 12 * 4)


def test_keys_with_a_large_channel_want_scales_per_channel():
    """The point of KIVI, on keys that have such a channel."""
    config = replace(DISTINCT, head_dim=8)
    model = random_model(config, 4)
    large = np.zeros((3, 8), np.float32)
    large[:, 3] = 20  # the pair that turns most slowly
    layers = [layer._replace(bk=layer.bk + large) for layer in model.layers]
    model, values = model._replace(layers=tuple(layers)), Rule(2, "token", 8)
    rules = [Rules(Rule(2, per, 8), values, 8) for per in ("channel", "token")]
    one, other = losses(model, tokens_of(4, 60), rules, 8)
    assert one.quality.divergence < other.quality.divergence / 2
    (same,) = losses(model, tokens_of(4, 60), [kivi(2, 1, 60)], 8)
    assert same.quality[:2] == (0, 1) and same.quality.perplexity == same.quality.before


def test_too_short_a_text_has_no_loss():
    with pytest.raises(ValueError, match="3 tokens; 4 or more"):
        losses(random_model(DISTINCT, 0), [1, 2, 3], [kivi(2, 2, 2)], 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_beams": 2}, "num_beams is not"), ({"num_return_sequences": 2, "do_sample": True}, "several texts"), ({"penalty_alpha": 0.5, "top_k": 2}, "is not"),
     ({"logprobs": 1}, "use generate")],
)  # fmt: skip
def test_other_ways_of_writing_are_refused(options, words):
    model = random_model(DISTINCT, 0)
    config, rng = GenerationConfig(**options), np.random.default_rng(0)
    cache = cache_for(model, 30, kivi())
    with pytest.raises(ValueError, match=words):
        list(rounded_pieces(model, [1, 2], config, rng, cache))


# ---- the commands -----------------------------------------------------------------

WRITE = ["generate", "Once upon a time", "--seed", "3", "--max-new-tokens", "60"]


def test_generate_writes_over_a_cache_in_fewer_bits(capsys):
    assert main(WRITE) == 0
    plain = capsys.readouterr().out
    assert main([*WRITE, "--cache-bits", "8"]) == 0
    found = capsys.readouterr()
    assert found.out == plain
    assert "[cache: 0." in found.err and "bits per number; as float32" in found.err
    few = ["--cache-bits", "1", "--q-group-size", "16", "--residual-length", "16"]
    assert main([*WRITE, *few]) == 0
    assert "11.88 bits per number; as float32 0.17 MB" in capsys.readouterr().err


def test_perplexity_over_a_cache_in_fewer_bits(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once there was a little dog. He ran to the park and saw a cat.")
    found = []
    for more in ([], ["--cache-bits", "2"], ["--cache-bits", "2", "--q-group-size", "4",
                 "--residual-length", "4"]):  # fmt: skip
        assert main(["perplexity", str(text), *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, float_, few = (x["perplexity"] for x in found)
    assert abs(plain / float_ - 1) < 1e-4 < abs(few / plain - 1) < 1
    assert [len(x["counted"]) for x in found] == [found[0]["tokens"] - 1] * 3
    halves = ["--convention", "llama.cpp", "--length", "8", "--cache-bits", "8"]
    assert main(["perplexity", str(text), *halves]) == 0


def test_kv_bits_prints_a_table(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once there was a little dog. He ran to the park and saw a cat.")
    few = ["--bits", "4,2", "--q-group-size", "4", "--residual-length", "4"]
    assert main(["kv-bits", str(text), *few, "--length", "16"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n|") == 10 and "11 tokens after the first 4" in out
    assert main(["kv-bits", str(text), *few, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["keys"]["bits"] for row in rows] == [4] * 4 + [2] * 4 + [8]
    assert rows[0]["keys"]["per"] == "channel" and rows[0]["values"]["per"] == "token"
    assert rows[0]["divergence"] < rows[4]["divergence"]
    assert rows[0]["bits"] > rows[4]["bits"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*WRITE, "--q-group-size", "4"], "--q-group-size is for --cache-bits"),
        ([*WRITE, "--residual-length", "4"], "--residual-length is for --cache-bits"),
        ([*WRITE, "--cache-bits", "9"], "1 to 8 bits"),
        ([*WRITE, "--cache-bits", "2", "--q-group-size", "0"], "groups of 1 or more"),
        ([*WRITE, "--cache-bits", "2", "--residual-length", "40"], "found 40"),
        ([*WRITE, "--cache-bits", "2", "--json"], "no --json"),
        ([*WRITE, "--cache-bits", "2", "--stream-window", "9"], "no --stream-window"),
        ([*WRITE, "--cache-bits", "2", "--assistant", "stories"], "helping models"),
        (["perplexity", "-", "--cache-bits", "2", "--workers", "2"], "no --workers"),
        (["kv-bits", "-", "--bits", "two"], "numbers with commas"),
        (["kv-bits", "-", "--bits", "0"], "1 to 8 bits"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_a_line(capsys, words, says):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (lambda m: surprise_rounded(m, [], kivi(2, 2, 2)), "the text has 0 tokens"),
        (lambda m: surprise_rounded(m, [1, 2], kivi(2, 2, 2), 0), "pieces of 0 tokens"),
        (lambda m: losses(m, [1, 2, 3], [kivi(2, 2, 2)], 0), "pieces of 0 tokens"),
    ],
)
def test_a_text_or_a_piece_without_a_token_is_refused(read, line):
    with pytest.raises(ValueError, match=line):
        read(random_model(DISTINCT, 0))
