"""Truncation: what all such samplers have in common, then one after the other."""

import math

import numpy as np
import pytest
import sampling_spec as spec
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sampling_strategies import (
    EQUAL,
    FEW_EQUAL,
    batches,
    count,
    distinct_rows,
    kept,
    rows,
    seeds,
    shares,
)

from npllama import sampling as s
from npllama.sampling.entropy import plain_typical_p
from npllama.sampling.truncation import plain_min_p, plain_top_k, plain_top_p

# Every truncation as a function of the logits and one number in (0, 1).
TRUNCATIONS = {
    "top_k": lambda row, x: s.top_k(row, 1 + int(x * 20)),
    "top_k lowest": lambda row, x: s.top_k(row, 1 + int(x * 20), ties="lowest"),
    "top_p": lambda row, x: s.top_p(row, x),
    "top_p Meta": lambda row, x: s.top_p(row, x, ties="lowest", crossing="inclusive"),
    "min_p": lambda row, x: s.min_p(row, x),
    "top_a": lambda row, x: s.top_a(row, x),
    "epsilon": lambda row, x: s.epsilon_cutoff(row, x),
    "eta": lambda row, x: s.eta_cutoff(row, x),
    "top_h": lambda row, x: s.top_h(row, x),
    "top_h paper": lambda row, x: s.top_h(row, x, entropy="renormalised"),
    "top_n_sigma": lambda row, x: s.top_n_sigma(row, 3 * x),
    "tail_free": lambda row, x: s.tail_free(row, x),
    "tail_free webui": lambda row, x: s.tail_free(row, x, convention="webui"),
    "typical": lambda row, x: s.typical_p(row, x),
    "typical llama.cpp": lambda row, x: s.typical_p(row, x, convention="llama.cpp"),
    "xtc": lambda row, x: s.xtc(
        row, np.zeros(row.shape[:-1]), probability=1, threshold=x / 2
    ),
}
NOT_AT_THE_TOP = ("typical", "typical llama.cpp", "xtc")
each = pytest.mark.parametrize("name", TRUNCATIONS)
strengths = shares(0.001, 0.999)


@given(row=rows(), k=st.integers(1, 12))
def test_top_k_is_its_plain_form(row, k):
    np.testing.assert_array_equal(s.top_k(row, k), plain_top_k(row, k))


@given(row=rows(), p=strengths)
@example(row=np.array([0, 0, 0, 0], np.float32), p=0.5)  # ties, met exactly
def test_top_p_is_its_plain_form(row, p):
    # Where a sum meets p to the last bits, rounding decides.
    reached = np.cumsum(np.sort(s.softmax(row))[::-1])
    assume((np.abs(reached - p) > 1e-12).all() or len(set(row.tolist())) == 1)
    np.testing.assert_array_equal(s.top_p(row, p), plain_top_p(row, p))


@given(row=rows(), p=strengths)
@example(row=np.array([1, 1, 0, -np.inf], np.float32), p=1.0)
@example(row=np.array([1, 1, 0, -np.inf], np.float32), p=0.0)
def test_min_p_is_its_plain_form(row, p):
    probs = s.softmax(row)
    near = np.abs(probs - p * probs.max()) < 1e-12  # where rounding decides
    assume(p in (0, 1) or not near[probs > 0].any())
    np.testing.assert_array_equal(s.min_p(row, p), plain_min_p(row, p))


@given(row=distinct_rows(), mass=strengths)
@example(row=np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05])), mass=0.6)
def test_typical_is_its_plain_form(row, mass):
    logp = s.log_softmax(row)
    mean = -(np.exp(logp) * np.where(logp > -np.inf, logp, 0)).sum()
    oddity = np.sort(np.abs(-logp - mean)[logp > -np.inf])
    order = np.argsort(np.abs(-logp - mean), kind="stable")
    reached = np.cumsum(s.softmax(row)[order])
    # Of two that are equally odd, or a sum that meets the mass, rounding decides.
    assume((np.diff(oddity) > 1e-9).all() and (np.abs(reached - mass) > 1e-9).all())
    np.testing.assert_array_equal(s.typical_p(row, mass), plain_typical_p(row, mass))


@each
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_truncation_gives_the_type_that_it_was_given(name, dtype):
    row = np.array([1.5, 1.0, 0.25, -3.0, -np.inf], dtype)
    assert TRUNCATIONS[name](row, 0.5).dtype == dtype


@each
@given(row=rows(), x=strengths)
def test_truncation_keeps_values_and_type_and_revives_nothing(name, row, x):
    row.flags.writeable = False
    before = row.tobytes()
    out = TRUNCATIONS[name](row, x)
    assert out.dtype == row.dtype and out.shape == row.shape
    assert out[kept(out)].tobytes() == row[kept(out)].tobytes()
    assert not (kept(out) & ~kept(row)).any()
    assert count(out) >= 1
    assert row.tobytes() == before and not np.shares_memory(out, row)


@each
@given(batch=batches(), x=strengths)
def test_truncation_treats_each_row_of_a_batch_alone(name, batch, x):
    whole = TRUNCATIONS[name](batch, x)
    for out, row in zip(whole, batch):
        assert out.tobytes() == TRUNCATIONS[name](row, x).tobytes()
    nested = TRUNCATIONS[name](batch[None], x)
    assert nested.tobytes() == whole.tobytes()


@each
@given(row=distinct_rows(), x=strengths, constant=st.sampled_from([-64.0, 0.5, 512.0]))
def test_truncation_does_not_mind_a_constant(name, row, x, constant):
    exact = row.astype(np.float64)
    shifted = TRUNCATIONS[name](exact + constant, x)
    assert (kept(shifted) == kept(TRUNCATIONS[name](exact, x))).all()


@each
@given(row=distinct_rows(), x=strengths, seed=seeds)
def test_truncation_does_not_mind_the_numbering_of_tokens(name, row, x, seed):
    order = np.random.default_rng(seed).permutation(row.size)
    out = TRUNCATIONS[name](row, x)
    assert (TRUNCATIONS[name](row[order], x) == out[order]).all()


@each
@given(row=rows(), x=strengths, seed=seeds)
def test_equals_are_kept_in_equal_number_however_numbered(name, row, x, seed):
    order = np.random.default_rng(seed).permutation(row.size)
    out = np.sort(TRUNCATIONS[name](row, x))
    assert (np.sort(TRUNCATIONS[name](row[order], x)) == out).all()


@each
@given(row=rows(), x=strengths)
def test_the_best_token_stays_where_it_should(name, row, x):
    best = TRUNCATIONS[name](row, x).max()
    assert best == row.max() or name in NOT_AT_THE_TOP


@each
@given(row=distinct_rows(), x=strengths)
def test_float32_and_float64_agree_on_what_stays(name, row, x):
    wide = TRUNCATIONS[name](row.astype(np.float64), x)
    assert wide.dtype == np.float64
    assert (kept(wide) == kept(TRUNCATIONS[name](row, x))).all()


@each
def test_a_row_without_tokens_passes_unchanged(name):
    gone = np.full((2, 5), -np.inf, np.float32)
    gone[1, 3] = 1.0
    assert TRUNCATIONS[name](gone, 0.5).tobytes() == gone.tobytes()


# --- each sampler against its definition -------------------------------------

KEEP = st.integers(1, 5)
SPEC = {
    "top_k": lambda s, r, x, n: s.top_k(r, 1 + int(x * 20)),
    "top_k lowest": lambda s, r, x, n: s.top_k(r, 1 + int(x * 20), ties="lowest"),
    "top_p": lambda s, r, x, n: s.top_p(r, x, **_least(s, n)),
    "top_p lowest": lambda s, r, x, n: s.top_p(r, x, ties="lowest"),
    "top_p inclusive": lambda s, r, x, n: s.top_p(r, x, crossing="inclusive"),
    "min_p": lambda s, r, x, n: s.min_p(r, x**3, **_least(s, n)),
    "top_a": lambda s, r, x, n: s.top_a(r, x),
    "epsilon": lambda s, r, x, n: s.epsilon_cutoff(r, x**3, **_least(s, n)),
    "eta": lambda s, r, x, n: s.eta_cutoff(r, x, **_least(s, n)),
    "xtc": lambda s, r, x, n: s.xtc(
        r, 0.3, probability=0.4, threshold=x / 3, **_least(s, n)
    ),
    "xtc at rest": lambda s, r, x, n: s.xtc(
        r, 0.4, probability=0.4, threshold=x / 3, **_least(s, n)
    ),
    "typical": lambda s, r, x, n: s.typical_p(r, x, **_least(s, n)),
    "typical llama.cpp": lambda s, r, x, n: s.typical_p(
        r, x, convention="llama.cpp", **_least(s, n)
    ),
    "top_n_sigma": lambda s, r, x, n: s.top_n_sigma(r, 3 * x),
    "tail_free": lambda s, r, x, n: s.tail_free(r, x, **_least(s, n)),
    "tail_free webui": lambda s, r, x, n: s.tail_free(r, x, convention="webui"),
}


def _least(module, n):
    """The same option has a shorter name in the loops."""
    return {"least": n} if module is spec else {"min_tokens_to_keep": n}


@pytest.mark.parametrize("name", SPEC)
@given(row=rows(), x=strengths, n=KEEP)
def test_truncation_is_the_definition(name, row, x, n):
    exact = row.astype(np.float64)
    expected = SPEC[name](spec, exact.tolist(), x, n)
    assert SPEC[name](s, exact, x, n).tolist() == expected


@given(rows(max_size=150), strengths, st.integers(1, 120))
def test_top_h_is_the_definition(row, alpha, most):
    exact = row.astype(np.float64)
    for kind in ("original", "renormalised"):
        expected = spec.top_h(exact.tolist(), alpha, kind, most)
        out = s.top_h(exact, alpha, entropy=kind, max_tokens=most)
        assert out.tolist() == expected


# --- top-k --------------------------------------------------------------------


@given(rows(), st.integers(1, 70))
def test_top_k_keeps_k_tokens_or_more_only_for_ties(row, k):
    some = min(k, count(row))
    assert count(s.top_k(row, k, ties="lowest")) == some
    out = s.top_k(row, k)
    assert count(out) >= some
    edge = np.sort(row)[-some]
    assert (kept(out) == (kept(row) & (row >= edge))).all()
    assert s.top_k(out, k).tobytes() == out.tobytes()


@given(rows(), st.integers(1, 40), st.integers(0, 20))
def test_top_k_is_nested_and_commutes_with_temperature(row, k, more):
    few, many = kept(s.top_k(row, k)), kept(s.top_k(row, k + more))
    assert not (few & ~many).any()
    # Powers of two divide exactly, so that no tie is made or undone.
    first = s.temperature(s.top_k(row, k), 0.5)
    assert first.tobytes() == s.top_k(s.temperature(row, 0.5), k).tobytes()


@given(distinct_rows())
def test_top_one_is_greedy(row):
    assert np.flatnonzero(kept(s.top_k(row, 1))).tolist() == [s.greedy(row)]


@given(rows(), st.integers(1, 20), st.integers(1, 20))
def test_min_tokens_to_keep_raises_k(row, k, least):
    out = s.top_k(row, k, min_tokens_to_keep=least)
    assert out.tobytes() == s.top_k(row, max(k, least)).tobytes()


# --- top-p --------------------------------------------------------------------


@given(rows(), strengths)
def test_the_nucleus_is_the_smallest_upper_set_that_holds_p(row, p):
    out, probs = s.top_p(row, p), s.softmax(row)
    inside = probs[kept(out)]
    assert inside.sum() >= p - 1e-12
    assert inside.sum() - inside.min() < p + 1e-12
    outside = row[kept(row) & ~kept(out)]
    assert not outside.size or outside.max() <= row[kept(out)].min()


@given(rows(), strengths, strengths)
def test_top_p_is_nested_and_never_grows_when_repeated(row, p, q):
    few, many = sorted((p, q))
    assert not (kept(s.top_p(row, few)) & ~kept(s.top_p(row, many))).any()
    again = s.top_p(s.top_p(row, p), p)
    assert not (kept(again) & ~kept(s.top_p(row, p))).any()


def test_top_p_is_not_idempotent():
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    once = s.top_p(row, 0.65)
    assert count(once) == 2 and count(s.top_p(once, 0.55)) == 1


@given(st.integers(0, 5), st.integers(0, 32))
def test_where_a_sum_meets_p_exactly_the_convention_decides(power, part):
    size = 2**power
    p = min(part, size) / size
    row, wanted = np.zeros(size, np.float32), round(p * size)
    exclusive = np.flatnonzero(kept(s.top_p(row, p)))
    few = max(wanted, 1)
    assert exclusive.tolist() == list(range(size - few, size))
    meta = s.top_p(row, p, ties="lowest", crossing="inclusive")
    assert np.flatnonzero(kept(meta)).tolist() == list(range(min(wanted + 1, size)))


@given(rows(), st.integers(1, 8))
@example(np.array([0.0, -60.0, -2000.0], np.float32), 1)
def test_top_p_of_zero_or_next_to_it_keeps_the_fewest_allowed(row, least):
    for p in (0.0, 1e-300, 1e-9):
        out = s.top_p(row, p, min_tokens_to_keep=least)
        assert count(out) == min(least, count(row))
    assert s.top_p(row, 1.0).tobytes() == row.tobytes()


@given(seeds, st.sampled_from([0.3, 3.0, 0.01]), strengths)
def test_a_large_vocabulary_is_searched_in_parts_with_the_same_result(seed, scale, p):
    row = np.random.default_rng(seed).standard_normal(3000) * scale
    row[::7] = row[3]  # ties, some of them across the edge of a part
    assert s.top_p(row, p).tolist() == spec.top_p(row.tolist(), p)


# --- min-p, top-a, epsilon, eta -----------------------------------------------


@given(rows(), shares(0.01, 1))
def test_min_p_compares_logits_with_the_largest(row, p):
    exact = row.astype(np.float64)
    out = kept(s.min_p(exact, p))
    assert (out == (exact >= exact.max() + math.log(p))).all()
    assert (kept(s.min_p(s.min_p(exact, p), p)) == out).all()


@given(distinct_rows(), shares(0.01, 0.99), shares(0.2, 3))
def test_min_p_at_a_temperature_is_a_power_of_min_p(row, p, t):
    exact = row.astype(np.float64)
    hot = kept(s.min_p(s.temperature(exact, t), p))
    assert (hot == kept(s.min_p(exact, p**t))).all()


@given(rows())
def test_min_p_of_one_keeps_the_maxima_and_of_zero_all(row):
    assert (kept(s.min_p(row, 1.0)) == (row == row.max())).all()
    assert s.min_p(row, 0.0).tobytes() == row.tobytes()
    assert s.top_a(row, 0.0).tobytes() == row.tobytes()


@pytest.mark.parametrize("size", [1, 2, 4, 16, 64])
def test_a_probability_at_the_threshold_stays(size):
    row = np.zeros(size, np.float32)
    assert count(s.top_a(np.append(row, 0.0), 1.0)) == size + 1
    if size > 1:
        split = np.append(row, [-np.inf])
        assert count(s.epsilon_cutoff(split, 1 / size)) == size
        assert count(s.epsilon_cutoff(split, np.nextafter(1 / size, 1))) == size


def test_a_probability_below_the_best_but_at_the_threshold_stays():
    row = np.log(np.array([2.0, 1.0, 1.0]))  # probabilities 1/2, 1/4, 1/4
    assert s.softmax(row).tolist() == [0.5, 0.25, 0.25]
    assert count(s.epsilon_cutoff(row, 0.25)) == count(s.min_p(row, 0.5)) == 3
    assert count(s.top_a(row, 1.0)) == 3
    assert count(s.epsilon_cutoff(row, np.nextafter(0.25, 1))) == 1


@given(rows(), strengths)
def test_epsilon_keeps_all_above_it_and_eta_no_less(row, epsilon):
    probs = s.softmax(row)
    few, many = s.epsilon_cutoff(row, epsilon), s.eta_cutoff(row, epsilon)
    assert (kept(few) | (probs < epsilon)).all()
    assert not (kept(few) & ~kept(many)).any()


@given(rows(), strengths, strengths)
def test_thresholds_are_nested(row, x, y):
    low, high = sorted((x, y))
    for sampler in (s.min_p, s.top_a, s.epsilon_cutoff):
        assert not (kept(sampler(row, high)) & ~kept(sampler(row, low))).any()


# --- typical, top-H, top-n-sigma, tail free -----------------------------------


@given(rows(), strengths)
def test_typical_keeps_the_nearest_surprises_and_enough_of_them(row, mass):
    out, probs = s.typical_p(row, mass), s.softmax(row)
    assert probs[kept(out)].sum() >= mass - 1e-12
    logp = s.log_softmax(row)
    h = spec.entropy(row.astype(np.float64).tolist())
    odd = np.where(kept(row), np.abs(-logp - h), np.inf)
    edge = odd[kept(out)].max()
    assert (odd[kept(row) & ~kept(out)] > edge).all()
    assert probs[odd < edge].sum() < mass + 1e-12


@given(rows(kinds=[EQUAL, FEW_EQUAL]), strengths)
def test_typical_keeps_all_of_a_row_of_equals(row, mass):
    assert s.typical_p(row, mass).tobytes() == row.tobytes()


@given(rows())
def test_a_mass_of_one_keeps_every_token(row):
    for convention in ("transformers", "llama.cpp"):
        out = s.typical_p(row, 1.0, convention=convention)
        assert out.tobytes() == row.tobytes()
        assert s.tail_free(row, 1.0).tobytes() == row.tobytes()


def test_the_most_probable_token_can_be_too_predictable_to_be_typical():
    row = np.log(np.array([0.4, *[0.06] * 10]))
    assert np.flatnonzero(kept(s.typical_p(row, 0.3))).tolist() == list(range(1, 11))
    # llama.cpp stops once the mass is exceeded, and cuts through equals.
    cut = s.typical_p(np.zeros(8), 0.5, convention="llama.cpp")
    assert np.flatnonzero(kept(cut)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shift", np.linspace(-9, 9, 19))
def test_what_is_equal_in_exact_arithmetic_is_not_decided_by_the_last_bit(shift):
    # ln(0.5) and ln(0.05) lie equally far from the entropy: so all are kept.
    halves = np.log(np.array([0.5, *[0.05] * 10])) + shift
    assert count(s.typical_p(halves, 0.3)) == 11
    # Of three equals and what is never drawn, one holds a third of the entropy.
    equals = np.array([0.0, 0.0, 0.0, -2000]) + shift
    assert [count(s.top_h(equals, n / 3)) for n in (1, 2, 3)] == [1, 2, 3]
    # -1, 0 and 1 have a variance of 2/3: at n^2 = 3/2 all but the last is in.
    rising = np.array([-1.0, 0.0, 1.0]) + shift
    assert count(s.top_n_sigma(rising, 1.5**0.5)) == 2
    # Of ten, five hold exactly half, though ten tenths do not add up to 1.
    tenths = np.full(10, shift)
    for convention, most in (("transformers", 10), ("llama.cpp", 6)):
        assert count(s.typical_p(tenths, 0.5, convention=convention)) == most


@given(rows(), strengths, strengths)
def test_entropy_samplers_are_nested(row, x, y):
    low, high = sorted((x, y))
    for sampler in (s.top_h, s.tail_free, s.top_n_sigma, s.typical_p):
        assert not (kept(sampler(row, low)) & ~kept(sampler(row, high))).any()


@given(distinct_rows(min_size=2, max_size=90), strengths)
def test_top_h_by_the_paper_bounds_the_entropy_of_what_stays(row, alpha):
    exact = row.astype(np.float64)
    few = count(s.top_h(exact, alpha, entropy="renormalised"))
    allowed = alpha * spec.entropy(exact.tolist())
    inside = spec.entropy(s.top_k(exact, few).tolist())
    assert few == 1 or inside <= allowed + 1e-12
    if few < row.size:
        assert spec.entropy(s.top_k(exact, few + 1).tolist()) > allowed - 1e-12


@given(distinct_rows())
def test_top_h_of_one_keeps_a_hundred_tokens(row):
    assert count(s.top_h(row, 1.0)) == row.size
    many = np.linspace(0, 1, 150)
    assert count(s.top_h(many, 1.0)) == 100
    assert count(s.top_h(many, 1.0, max_tokens=120)) == 120


def test_top_h_of_a_certain_row_keeps_one_token():
    assert count(s.top_h(np.array([0.0, 900.0, -5.0]), 1.0)) == 1


@given(distinct_rows(), shares(0.1, 3), shares(0.2, 4), st.floats(-20, 20))
def test_sigma_does_not_mind_scale_or_shift(row, n, scale, shift):
    exact = row.astype(np.float64)
    edge = exact.max() - n * exact.std()
    assume(np.abs(exact - edge).min() > 1e-9)
    same = kept(s.top_n_sigma(exact * scale + shift, n))
    assert (same == kept(s.top_n_sigma(exact, n))).all()


@given(rows(kinds=[0, 1, 2]), shares(0.1, 3))
def test_sigma_is_that_of_the_tokens_that_are_left(row, n):
    values = row[kept(row)].astype(np.float64)
    assume(np.abs(values - values.max() + n * values.std()).min() > 1e-9)
    out = s.top_n_sigma(row, n)
    assert out[kept(row)].tolist() == s.top_n_sigma(row[kept(row)], n).tolist()


@given(rows(kinds=[EQUAL, FEW_EQUAL]), shares(0.001, 3))
def test_without_any_spread_all_tokens_stay(row, n):
    assert s.top_n_sigma(row, n).tobytes() == row.tobytes()


@given(distinct_rows(min_size=3), strengths)
def test_the_webui_cuts_the_tail_one_token_later(row, z):
    llama = count(s.tail_free(row, z))
    webui = count(s.tail_free(row, z, convention="webui"))
    assert webui == min(llama + 1, row.size)


# --- XTC ----------------------------------------------------------------------


@given(rows(), shares(0.01, 0.5))
def test_xtc_leaves_one_of_the_good_tokens(row, threshold):
    out = s.xtc(row, 0.0, probability=1.0, threshold=threshold)
    good = s.softmax(row) >= threshold
    assert not (kept(row) & ~kept(out) & ~good).any()
    if good.sum() >= 2:
        assert (kept(out) & good).sum() == 1
        assert out[kept(out) & good].min() == row[good].min()
    else:
        assert out.tobytes() == row.tobytes()


@given(rows(), shares(0, 1 - 2**-53))
def test_xtc_acts_where_u_is_below_its_probability(row, u):
    always = s.xtc(row, 0.0, probability=1.0, threshold=0.02)
    assert s.xtc(row, u, probability=0.0, threshold=0.02).tobytes() == row.tobytes()
    acts = s.xtc(row, u, probability=1.0, threshold=0.02)
    assert acts.tobytes() == always.tobytes()


def test_xtc_acts_row_by_row():
    batch = np.zeros((3, 4), np.float32)
    out = s.xtc(batch, [0.1, 0.9, 0.4], probability=0.5, threshold=0.2)
    assert [count(row) for row in out] == [1, 4, 1]
    assert np.flatnonzero(kept(out[0])).tolist() == [3]


# --- errors -------------------------------------------------------------------

ROW = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: s.top_k(ROW, 0), "top_k must be 1 or more"),
        (lambda: s.top_p(ROW, -0.1), r"top_p must lie in \[0, 1\]"),
        (lambda: s.top_p(ROW, 1.1), r"top_p must lie in \[0, 1\]"),
        (lambda: s.top_p(ROW, math.nan), r"top_p must lie in \[0, 1\]"),
        (lambda: s.min_p(ROW, 1.5), "min_p must lie"),
        (lambda: s.top_a(ROW, -1), "top_a must lie"),
        (lambda: s.epsilon_cutoff(ROW, 0), "epsilon_cutoff must lie"),
        (lambda: s.epsilon_cutoff(ROW, 1), "epsilon_cutoff must lie"),
        (lambda: s.eta_cutoff(ROW, 1), "eta_cutoff must lie"),
        (lambda: s.typical_p(ROW, 0), "typical_p must lie"),
        (lambda: s.top_h(ROW, 0), "top_h must lie"),
        (lambda: s.top_h(ROW, 0.5, max_tokens=0), "max_tokens"),
        (lambda: s.top_n_sigma(ROW, 0), "top_n_sigma must be above 0"),
        (lambda: s.tail_free(ROW, 0), "tail_free must lie"),
        (lambda: s.xtc(ROW, 0.5, probability=2), "xtc needs"),
        (lambda: s.xtc(ROW, 1.0), "xtc needs one u"),
        (lambda: s.xtc(ROW, [0.5]), "xtc needs one u"),
        (lambda: s.top_k(ROW, 2, ties="first"), "ties must be one of"),
        (lambda: s.top_p(ROW, 0.5, ties="all"), "ties must be one of"),
        (lambda: s.top_p(ROW, 0.5, crossing="in"), "crossing must be one of"),
        (lambda: s.typical_p(ROW, 0.5, convention="HF"), "convention must be one of"),
        (lambda: s.tail_free(ROW, 0.5, convention="HF"), "convention must be one of"),
        (lambda: s.top_h(ROW, 0.5, entropy="paper"), "entropy must be one of"),
    ],
)
def test_an_option_out_of_range_is_named(call, names):
    with pytest.raises(ValueError, match=names):
        call()


@pytest.mark.parametrize(
    "sampler",
    [s.top_p, s.min_p, s.typical_p, s.epsilon_cutoff, s.eta_cutoff, s.tail_free],
)
def test_every_sampler_keeps_at_least_one_token(sampler):
    with pytest.raises(ValueError, match="min_tokens_to_keep must be 1"):
        sampler(ROW, 0.5, min_tokens_to_keep=0)
