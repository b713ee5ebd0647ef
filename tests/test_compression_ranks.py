"""Spectra are those of the matrices, and fewer numbers per key lose what they must."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from needs import needs
from strategies import DISTINCT, normal, random_model, seeds, token_ids
from tolerances import assert_close

from npllama.attention import naive
from npllama.cache import new_cache
from npllama.cli.main import main
from npllama.compression.factored_keys import (
    WAYS,
    Factored,
    factored_losses,
    from_keys,
    from_scores,
    grouped,
    numbers_per_key,
    score_error,
)
from npllama.compression.ranks import (
    MATRICES,
    _energy,
    attended,
    effective_rank,
    energy_rank,
    heads,
    product_spectrum,
    random_heads,
    ranks,
    read,
    spectrum,
    stable_rank,
    study,
)
from npllama.config import BY_LENGTH, Rope
from npllama.model import forward

WIDE = replace(DISTINCT, attention_bias=False)


def tokens_of(n, seed=1):
    return token_ids(DISTINCT, seed, n).tolist()


# ---- measures ------------------------------------------------------------------


def test_measures_of_a_spectrum_by_hand():
    values = np.array([3.0, 1.0, 1.0, 0.0])  # squares 9, 1, 1
    assert [energy_rank(values, x) for x in (0.5, 0.9, 0.91, 1)] == [1, 2, 3, 3]
    assert stable_rank(values) == pytest.approx(11 / 9)
    shares = np.array([3, 1, 1]) / 5
    assert effective_rank(values) == pytest.approx(np.prod(shares**-shares))
    assert ranks(np.ones(7)) == pytest.approx((7, 7, 7, 7))
    assert energy_rank(np.ones(100), 0.55) == 55  # 0.55 * 100 is 55.00000000000001
    assert ranks(np.zeros(3)) == (0, 0, 0, 0)


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_a_product_has_the_spectrum_of_the_product(seed, M, C, D):
    a, b = normal(seed, M, D), normal(seed + 1, C, D)
    full = spectrum(a.dot(b.T))
    found = product_spectrum(a, b)
    n = min(len(full), len(found))
    assert_close(found[:n], full[:n], 100)
    assert full[n:].max(initial=0) < 1e-12 * full[0]


def test_attention_has_rows_that_sum_to_one_and_no_future():
    q, k = normal(0, 2, 5, 4)
    p = attended(q, k)
    assert_close(p.sum(axis=1), np.ones(5), 5)
    assert (p[np.triu_indices(5, 1)] == 0).all() and (p[np.tril_indices(5)] > 0).all()
    assert p[1, 0] / p[1, 1] == pytest.approx(math.exp(q[1].dot(k[0] - k[1]) / 2))


@pytest.mark.parametrize("rope", [Rope(), Rope("yarn", 1e4, 4.0, 16)])
def test_keys_are_turned_back_to_what_they_were(rope):
    model = random_model(replace(WIDE, rope=rope), 2, "float64")
    tokens = tokens_of(9)
    found = read(model, tokens)
    # Layer 0: keys are made of the normed embedding alone.
    x = model.embed[tokens]
    eps = model.config.rms_norm_eps
    x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps)
    x = x * model.layers[0].attn_norm
    plain = np.einsum("te,kde->ktd", x, model.layers[0].wk)
    assert_close(found.before[0], plain, 100)
    assert found.q.shape == (2, 6, 9, 4) and found.v.shape == (2, 3, 9, 4)


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_keys_that_turn_by_the_texts_length_are_refused(kind):
    long = (2.0, 4.0) if kind == "longrope" else None
    rope = Rope(kind, 1e4, 4.0, 16, short_factor=long, long_factor=long)
    with pytest.raises(ValueError, match=f"rope_type {kind} turns by a text's length"):
        read(random_model(replace(WIDE, rope=rope), 2), tokens_of(9))


@pytest.mark.filterwarnings("error")
def test_matrices_of_zeros_have_no_energy():
    found = _energy(np.array([[3.0, 1.0], [0.0, 0.0]]))
    assert found == pytest.approx([0.45, 0.5])


def test_heads_are_those_of_the_model():
    model, tokens = random_model(WIDE, 3, "float64"), tokens_of(9)
    found = read(model, tokens)
    every = list(heads(model, found))
    assert len(every) == 12
    one = every[6 + 3]  # layer 1, query head 3, key head 1
    np.testing.assert_array_equal(one.k, found.k[1, 1])
    np.testing.assert_array_equal(one.wq, model.layers[1].wq[3].T)
    np.testing.assert_array_equal(one.wk, model.layers[1].wk[1].T)
    np.testing.assert_array_equal(one.q, found.q[1, 3])


def test_a_study_has_random_matrices_beside():
    model, tokens = random_model(WIDE, 3), tokens_of(20)
    rows = study(model, tokens)
    assert [row.name for row in rows] == list(MATRICES)
    noise = list(random_heads(20, 4, 7))
    own = list(heads(model, read(model, tokens)))
    for row in rows:
        for some, found in (own, row.heads), (noise, row.random):
            expected = np.mean([ranks(MATRICES[row.name](x)) for x in some], axis=0)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert row.energy[-1] == pytest.approx(1) == row.energy_random[-1]
        assert row.energy == sorted(row.energy) and len(row.energy) == row.size
    assert [row.size for row in rows] == [4, 4, 4, 4, 4, 20, 4]


# ---- factored keys --------------------------------------------------------------


@given(seeds, st.integers(4, 12), st.integers(1, 3))
def test_no_factors_give_better_scores_than_those_from_scores(seed, T, r):
    """Eckart and Young: it is the truncated SVD of Q K'."""
    q, k = normal(seed, 2 * T, 4), normal(seed + 1, T, 4)
    values = np.linalg.svd(q.dot(k.T), compute_uv=False)
    least = math.sqrt(np.square(values[r:]).sum() / np.square(values).sum())
    error = score_error(q, k, from_scores(q, k, r))
    assert error == pytest.approx(least, rel=1e-6)
    assert error <= score_error(q, k, from_keys(q, k, r)) * (1 + 1e-9)
    if r > 1:
        assert error <= score_error(q, k, from_scores(q, k, r - 1))


def test_keys_from_keys_are_the_best_of_their_rank():
    q, k = normal(0, 9, 4), normal(1, 7, 4)
    m, p = from_keys(q, k, 2)
    values = np.linalg.svd(k, compute_uv=False)
    assert np.linalg.norm(k.dot(p).dot(m.T) - k) == pytest.approx(
        math.sqrt(np.square(values[2:]).sum())
    )


@pytest.mark.parametrize("way", WAYS)
def test_with_all_directions_nothing_is_lost(way):
    model, tokens = random_model(DISTINCT, 4, "float64"), tokens_of(12)
    cache = new_cache(DISTINCT, 1, 13, "float64")
    found = read(model, tokens, cache)
    attend = Factored(found, way, 4)
    for token in 3, 5:
        cache.length[0] = 12
        exact = forward(model, np.array([[token]]), cache)
        cache.length[0] = 12
        near = forward(model, np.array([[token]]), cache, attend=attend)
        np.testing.assert_allclose(near, exact, rtol=1e-8, atol=1e-10)


def test_every_layer_and_head_has_its_own_factors():
    model, tokens = random_model(DISTINCT, 4, "float64"), tokens_of(12)
    found = read(model, tokens)
    attend = Factored(found, "scores", 2)
    assert attend.m.shape == attend.p.shape == (2, 3, 4, 2)
    for i in range(2):
        for h in range(3):
            q, k = grouped(found, i, h)
            np.testing.assert_array_equal(q[:12], found.q[i, 2 * h])
            np.testing.assert_array_equal(q[12:], found.q[i, 2 * h + 1])
            expected = from_scores(q, k, 2)
            np.testing.assert_array_equal(attend.m[i, h], expected.m)
            np.testing.assert_array_equal(attend.p[i, h], expected.p)


def test_layers_take_their_factors_in_turn():
    found = read(random_model(DISTINCT, 4, "float64"), tokens_of(12))
    attend = Factored(found, "keys", 2)
    q, k, v = normal(0, 1, 1, 6, 4), *normal(1, 2, 1, 3, 5, 4)
    start = np.array([4])
    for i in 0, 1, 0:
        both = [np.einsum("ksd,kdr,ker->kse", k[0], attend.p[i], attend.m[i])]
        expected = naive(q, np.array(both), v, start)
        assert_close(attend(q, k, v, start), expected, 50)


def test_a_direction_without_scores_gets_none():
    q, k = np.zeros((5, 4)), normal(1, 5, 4)
    for part in from_scores(q, k, 3):
        assert np.isfinite(part).all()


def test_losses_are_judged_on_tokens_that_were_not_fitted_to():
    model, tokens = random_model(DISTINCT, 5, "float64"), tokens_of(16)
    (found,) = factored_losses(model, tokens, [("scores", 2)])
    cache = new_cache(DISTINCT, 1, 16, "float64")
    first = read(model, tokens[:8], cache)
    attend = Factored(first, "scores", 2)
    part = np.array([tokens[8:-1]])
    exact = forward(model, part, cache)[0]
    cache.length[0] = 8
    near = forward(model, part, cache, attend=attend)[0]
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (exact, near))
    quality = found.quality
    assert quality.divergence == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean())
    after = np.arange(7), tokens[9:]
    assert quality.before == pytest.approx(math.exp(-p[after].mean()))
    assert quality.perplexity == pytest.approx(math.exp(-q[after].mean()))
    assert quality.agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    whole = read(model, tokens)
    for error, at in (found.fitted, slice(8)), (found.unseen, slice(8, None)):
        some = [
            score_error(
                *(x.reshape(-1, 4) for x in (whole.q[i, 2 * h : 2 * h + 2, at],
                                             whole.k[i, h, at])),
                type(from_keys(*np.ones((2, 1, 1)), 1))(attend.m[i, h], attend.p[i, h]),
            )
            for i in range(2)
            for h in range(3)
        ]  # fmt: skip
        assert error == pytest.approx(np.mean(some))
    assert found.fitted < found.unseen
    assert found.numbers == numbers_per_key(4, 2, 16) == 2 * (16 + 8) / 16


def test_impossible_ranks_and_texts_are_refused():
    model = random_model(DISTINCT, 0)
    with pytest.raises(ValueError, match="7 tokens; 8 or more"):
        factored_losses(model, tokens_of(7), [("keys", 1)])
    for r in 0, 5:
        with pytest.raises(ValueError, match="size of a head, 4"):
            factored_losses(model, tokens_of(9), [("keys", r)])
    wide = random_model(replace(DISTINCT, head_dim=6), 0)
    with pytest.raises(ValueError, match="has only 4 tokens"):
        factored_losses(wide, tokens_of(9), [("keys", 5)])


# ---- the command ------------------------------------------------------------------


def test_ranks_prints_both_tables(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once there was a little dog. He ran to the park and saw a cat.")
    words = ["ranks", str(text), "--length", "16", "--rank", "4", "--rank", "8"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count("\n| ") == 7 + 4 + 1 and "r90, random" in out
    assert "means over all heads, 16 tokens" in out
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["matrices"]] == list(MATRICES)
    keys = {(x["way"], x["r"]): x for x in found["factored keys"]}
    assert len(keys) == 4 and keys["keys", 8]["quality"]["divergence"] > 0
    assert keys["scores", 4]["fitted"] <= keys["keys", 4]["fitted"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--length", "7"], "--length is 7"),
        (["--rank", "33"], "--rank 33: from 1 to the size of a head, 32"),
        (["--rank", "1"], "the text has 2 tokens; 8 are needed"),
        ([], "the text has 2 tokens; 64 are needed"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_a_line(capsys, tmp_path, words, says):
    text = tmp_path / "text.txt"
    text.write_text("a")
    assert main(["ranks", str(text), *words]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


@pytest.mark.slow
def test_spectra_are_drawn(capsys, tmp_path):
    needs("matplotlib", "plot")
    text = tmp_path / "text.txt"
    text.write_text("Once there was a little dog. He ran to the park.")
    words = ["ranks", str(text), "--length", "9", "--rank", "4", "--plot"]
    assert main([*words, str(tmp_path / "spectra.svg")]) == 0
    assert (tmp_path / "spectra.svg").stat().st_size > 5000
    capsys.readouterr()
    assert main([*words, str(tmp_path / "spectra.txt")]) == 2
    assert "must end in .png, .svg or .pdf" in capsys.readouterr().err
