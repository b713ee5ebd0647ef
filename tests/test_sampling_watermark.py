"""Watermarks: the green list and the tournament, and who can see them."""

import itertools
import math

import numpy as np
import pytest
import sampling_spec as spec
from hypothesis import given
from hypothesis import strategies as st
from sampling_strategies import distinct_rows, kept, rows_with_histories, seeds

from npllama import sampling as s
from npllama.sampling.synthid import tournament_layer
from npllama.sampling.synthid_detector import chance_of_two
from npllama.sampling.watermark import green_tokens, torch_randperm

# torch.Generator().manual_seed(seed); torch.randperm(10), torch 2.13 on a CPU.
TORCH = {
    0: [4, 1, 7, 5, 3, 9, 0, 8, 6, 2],
    15485863: [8, 5, 7, 0, 2, 6, 9, 1, 4, 3],
    2**40 + 7: [5, 0, 3, 4, 1, 7, 9, 6, 8, 2],
}
KEYS = (654, 400, 836, 123, 340)


def _choose(seed, size, count):
    """A green list of another library: any function will do."""
    return np.random.default_rng(seed % 2**63).permutation(size)[:count]


TABLE = np.random.default_rng(97).permutation(1_000_003)
GREEN = s.GreenList(pick=_choose, hashing_key=97)
SELF = GREEN._replace(
    seeding_scheme="selfhash",
    context_width=2,
    table=lambda key: TABLE,
)

# Prior, mask and posterior.
TRANSFORMERS = [
    (0.5, [1, 1, 1, 1, 1], 0.7349030424840339),
    (0.1, [1, 0, 1, 1, 0], 0.15952339075607025),
    (0.9, [0, 0, 0, 1, 0], 0.8854295479322963),
    (0.0, [1, 1, 1, 1, 1], 2.7721556128535365e-05),
    (1.0, [0, 1, 0, 0, 1], 0.9999938380578713),
]


# --- the green list -----------------------------------------------------------


@pytest.mark.parametrize("seed", TORCH)
def test_the_permutation_is_that_of_torch(seed):
    assert torch_randperm(seed, 10, 10).tolist() == TORCH[seed]
    assert torch_randperm(seed, 10, 4).tolist() == TORCH[seed][:4]


@given(rows_with_histories())
def test_just_the_green_share_is_raised_by_the_bias(case):
    row, tokens = case
    row.flags.writeable = False
    out = s.watermark(row, tokens, GREEN)
    green = np.zeros(row.size, bool)
    if tokens.size:
        ids = green_tokens(tokens, row.size, GREEN)
        assert ids.size == math.floor(row.size * 0.25) == np.unique(ids).size
        green[ids] = True
    expected = np.where(green, row + np.float32(2.0), row)
    assert out.tobytes() == expected.astype(np.float32).tobytes()
    unbiased = s.watermark(row, tokens, GREEN._replace(bias=0.0))
    assert np.array_equal(unbiased, row)


@given(seeds, st.integers(0, 50), st.integers(0, 50))
def test_the_list_depends_on_the_last_token_and_the_key(seed, last, key):
    text = np.random.default_rng(seed).integers(0, 50, 6)
    one = GREEN._replace(hashing_key=key + 1)
    first = green_tokens(np.append(text, last), 50, one)
    assert (first == green_tokens(np.array([last]), 50, one)).all()
    assert (first == _choose((key + 1) * last, 50, 12)).all()


@given(distinct_rows(min_size=41, max_size=60), seeds)
def test_selfhash_asks_forty_candidates_for_their_own_list(row, seed):
    text = np.random.default_rng(seed).integers(0, row.size, 3)
    out = s.watermark(row, text, SELF)
    candidates = np.argsort(-row)[:40]
    for token in range(row.size):
        own = green_tokens(np.append(text, token), row.size, SELF)
        raised = token in candidates and token in own
        assert out[token] == row[token] + np.float32(2.0 * raised)


def test_selfhash_takes_the_least_hash_of_its_window():
    table = np.arange(1_000_003)
    config = SELF._replace(table=lambda key: table, hashing_key=3)
    picked = []
    config = config._replace(pick=lambda seed, size, count: picked.append(seed) or [])
    green_tokens(np.array([9, 5, 7]), 20, config)
    assert picked == [3 * min(5 + 1, 7 + 1) * (7 + 1)]
    # Products wrap around at 64 bits, and a negative seed is made positive.
    config = config._replace(hashing_key=2**61)
    green_tokens(np.array([1, 1]), 20, config)
    assert picked[1] == spec.wrap(2**61 * 2 * 2) % (2**64 - 1) == 2**63 - 1


def _write(config, seed, length=90, size=50):
    rng, text = np.random.default_rng(seed), [1, 2]
    for _ in range(length):
        row = s.watermark(rng.standard_normal(size), text, config)
        text.append(int(s.sample(row, rng)))
    return text


@pytest.mark.parametrize("config", [GREEN, SELF])
def test_the_detector_sees_the_mark_and_only_the_mark(config):
    text = _write(config, 1)
    marked = s.detect_watermark(text, 50, config)
    plain = s.detect_watermark(_write(config._replace(bias=0.0), 1), 50, config)
    assert marked.z_score > 4.5 and marked.p_value < 1e-6
    assert abs(plain.z_score) < 3
    other = config._replace(hashing_key=98)
    assert s.detect_watermark(text, 50, other).z_score < 3


def test_without_a_mark_the_score_is_standard_normal():
    rng = np.random.default_rng(8)
    texts = rng.integers(0, 200, (60, 120))
    scores = [s.detect_watermark(text, 200, GREEN).z_score for text in texts]
    assert abs(np.mean(scores)) < 4 / math.sqrt(60) and 0.7 < np.std(scores) < 1.3


def test_the_score_counts_green_tokens():
    text = np.array([3, 7, 3, 7, 3, 9])
    pairs = list(itertools.pairwise(text.tolist()))
    green = [b in green_tokens(np.array([a]), 20, GREEN) for a, b in pairs]
    found = s.detect_watermark(text, 20, GREEN)
    assert found.num_tokens_scored == 5 and found.num_green_tokens == sum(green)
    z = (sum(green) - 0.25 * 5) / math.sqrt(5 * 0.25 * 0.75)
    assert math.isclose(found.z_score, z)
    assert math.isclose(found.p_value, 0.5 * math.erfc(z / math.sqrt(2)))
    once = s.detect_watermark(text, 20, GREEN, ignore_repeated_ngrams=True)
    assert once.num_tokens_scored == len(set(pairs)) == 3


# --- SynthID ------------------------------------------------------------------

CONFIG = s.SynthID(KEYS, ngram_len=3, context_history_size=4)


@given(seeds)
def test_g_values_are_the_definition(seed):
    rng = np.random.default_rng(seed)
    config = s.SynthID(tuple(rng.integers(-(2**62), 2**62, 3).tolist()), ngram_len=3)
    text = rng.integers(0, 32000, 8).tolist()
    bits = np.random.RandomState(0).bytes(4 * 2**16)
    bits = np.frombuffer(bits, "<u4") % 2
    g = s.synthid_g_values(text, config)
    for i, j in itertools.product(range(6), range(3)):
        assert g[i, j] == spec.synthid_g(text[i : i + 3], config.keys[j], bits)


@given(seeds, st.integers(1, 6))
def test_over_all_g_the_tournament_changes_nothing(seed, size):
    probs = np.random.default_rng(seed).dirichlet(np.ones(size))
    total = np.zeros(size)
    for bits in itertools.product((0, 1), repeat=size):
        moved = tournament_layer(probs, np.array(bits))
        expected = spec.tournament(probs.tolist(), bits)
        np.testing.assert_allclose(moved, expected, atol=1e-14)
        assert math.isclose(moved.sum(), 1.0, rel_tol=1e-12) and (moved >= 0).all()
        total += moved / 2**size
    np.testing.assert_allclose(total, probs, rtol=1e-12)


@given(rows_with_histories(max_length=6))
def test_synthid_plays_one_layer_for_each_key(case):
    row, tokens = case
    config, state = CONFIG, s.synthid_start(CONFIG)
    for token in tokens:
        state = s.synthid_next(state, token)
    out, _ = s.synthid(row, state, config)
    assert out.dtype == row.dtype and not (kept(out) & ~kept(row)).any()
    context = [0, 0, *tokens.tolist()][-2:]
    bits = np.frombuffer(np.random.RandomState(0).bytes(4 * 2**16), "<u4") % 2
    probs = spec.softmax(row.astype(np.float64).tolist())
    for key in KEYS:
        g = [spec.synthid_g([*context, v], key, bits) for v in range(row.size)]
        probs = spec.tournament(probs, g)
    np.testing.assert_allclose(np.exp(out.astype(float)), probs, atol=1e-6)


def test_a_context_seen_before_is_not_marked_again():
    row, state, marks = np.linspace(0, 1, 9), s.synthid_start(CONFIG), []
    for token in [5, 6, 5, 6, 1, 2, 3, 4, 5, 6, 7]:
        out, state = s.synthid(row, s.synthid_next(state, token), CONFIG)
        marks.append(not np.array_equal(out, row))
    # (5, 6) returns at once and is passed over, and after it left the memory
    # of four contexts it is marked again.
    assert marks == [True, True, True, False, True, True, True, True, True, True, True]


def test_the_first_tokens_can_be_left_alone():
    config = CONFIG._replace(skip_first_ngram_calls=True)
    row, state, marks = np.linspace(0, 1, 9), s.synthid_start(config), []
    for token in [5, 6, 7, 8]:
        out, state = s.synthid(row, state, config)
        marks.append(not np.array_equal(out, row))
        state = s.synthid_next(state, token)
    assert marks == [False, False, True, True]


def test_a_batch_is_marked_row_by_row():
    rng = np.random.default_rng(2)
    batch, tokens = rng.standard_normal((3, 7)), rng.integers(0, 7, (4, 3))
    state = s.synthid_start(CONFIG, (3,))
    alone = [s.synthid_start(CONFIG) for _ in range(3)]
    for step in tokens:
        out, state = s.synthid(batch, s.synthid_next(state, step), CONFIG)
        for i in range(3):
            one, alone[i] = s.synthid(
                batch[i], s.synthid_next(alone[i], step[i]), CONFIG
            )
            assert one.tobytes() == out[i].tobytes()


def test_the_mean_score_rises_with_the_mark_alone():
    config = s.SynthID(tuple(range(100, 130)), ngram_len=3)
    rng, state = np.random.default_rng(4), s.synthid_start(config)
    text = []
    for _ in range(150):
        out, state = s.synthid(rng.standard_normal(40), state, config)
        text.append(int(s.sample(out, rng)))
        state = s.synthid_next(state, text[-1])
    plain = rng.integers(0, 40, 150)
    scores = []
    for words in (text, plain):
        g, mask = s.synthid_g_values(words, config), s.synthid_mask(words, config)
        scores.append((s.mean_score(g, mask), s.weighted_mean_score(g, mask)))
    assert scores[0][0] > 0.53 and abs(scores[1][0] - 0.5) < 0.025
    assert scores[0][1] > scores[0][0]


def test_scores_are_means_over_what_counts():
    g = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    mask = np.array([True, True, False])
    assert s.mean_score(g, mask) == pytest.approx(4 / 6)
    weights = np.array([10, 5.5, 1]) / 16.5
    expected = (weights[[0, 2]].sum() + weights[[0, 1]].sum()) / 2
    assert s.weighted_mean_score(g, mask) == pytest.approx(expected)
    assert s.weighted_mean_score(g, mask, [0, 0, 4]) == pytest.approx(0.5)


@given(seeds, st.integers(1, 5))
def test_marked_g_values_have_a_probability_each_and_add_up_to_one(seed, keys):
    rng = np.random.default_rng(seed)
    delta = rng.standard_normal((keys, keys))
    detector = s.SynthIDDetector(rng.standard_normal(keys), delta)
    g = np.array(list(itertools.product((0, 1), repeat=keys)))
    one = np.ones(1, bool)
    scores = np.array([s.bayesian_score(row[None], one, detector) for row in g])
    # With even odds, score / (1 - score) is P(g | marked) / P(g | not marked).
    assert (scores / (1 - scores)).sum() / 2**keys == pytest.approx(1, rel=1e-12)


@given(seeds, st.integers(1, 5), st.integers(1, 9), st.floats(0.01, 0.99))
def test_bayesian_score_is_that_of_loops(seed, keys, n, prior):
    rng = np.random.default_rng(seed)
    beta, delta = rng.standard_normal(keys), rng.standard_normal((keys, keys))
    g, mask = rng.integers(0, 2, (n, keys)), rng.random(n) < 0.7
    marked, plain = prior, 1 - prior
    for t in np.flatnonzero(mask):
        for i in range(keys):
            logit = beta[i] + sum(delta[i, j] * g[t, j] for j in range(i))
            two = 1 / (1 + math.exp(-logit))
            # Two tokens: one has a 1 in three cases of four. One token: in two.
            one = two * 3 / 4 + (1 - two) / 2
            marked *= one if g[t, i] else 1 - one
            plain *= 1 / 2
    found = s.bayesian_score(g, mask, s.SynthIDDetector(beta, delta, prior))
    assert found == pytest.approx(marked / (marked + plain), rel=1e-9)


def test_bayesian_score_is_that_of_transformers():
    # BayesianDetectorModel of transformers 5.23 with these parameters, in float64.
    beta, delta = np.array([-1.0, 0.5, 2.0]), np.arange(9).reshape(3, 3) / 4 - 1
    g = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]])
    for prior, mask, expected in TRANSFORMERS:
        detector = s.SynthIDDetector(beta, delta, prior)
        found = s.bayesian_score(g, np.array(mask, bool), detector)
        assert found == pytest.approx(expected, rel=1e-12)


def test_no_text_is_seen_where_no_two_tokens_ever_meet():
    g, mask = np.ones((50, 3), int), np.ones(50, bool)
    never = s.SynthIDDetector(np.full(3, -1e3), np.zeros((3, 3)), 0.25)
    assert s.bayesian_score(g, mask, never) == pytest.approx(0.25)
    always = never._replace(beta=np.full(3, 1e3))
    assert s.bayesian_score(g, mask, always) == pytest.approx(1)
    assert s.bayesian_score(1 - g, mask, always) == pytest.approx(0)
    # However sure somebody was, a text can change it.
    assert s.bayesian_score(g, mask, always._replace(prior=0.0)) > 0.99


@pytest.mark.slow
def test_detector_is_learned_from_marked_texts_and_beats_the_mean():
    rng = np.random.default_rng(5)
    keys, n = 6, 4000
    beta, delta = np.linspace(2, -3, keys), np.zeros((keys, keys))
    delta[1:, 0] = -2.0
    truth = s.SynthIDDetector(beta, delta)

    def marked(n):
        g = np.zeros((n, keys), int)
        for i in range(keys):
            g[:, i] = rng.random(n) < 0.5 + chance_of_two(g, truth)[:, i] / 4
        return g

    learned = s.fit_detector(marked(n))
    # Of two texts, one marked, the marked one is the likelier: how often?
    texts = [(marked(20), rng.integers(0, 2, (20, keys))) for _ in range(300)]
    every = np.ones(20, bool)
    right = {
        name: np.mean([score(a) > score(b) for a, b in texts])
        for name, score in {
            "mean": lambda g: s.mean_score(g, every),
            "learned": lambda g: s.bayesian_score(g, every, learned),
            "truth": lambda g: s.bayesian_score(g, every, truth),
        }.items()
    }
    assert right["learned"] > right["mean"] + 0.05
    assert right["learned"] > right["truth"] - 0.02
    assert abs(learned.beta[0] - beta[0]) < 0.3
    assert learned.delta[1, 0] < -0.2 and (np.triu(learned.delta) == 0).all()


def test_repeated_contexts_and_what_follows_the_end_do_not_count():
    text = [5, 6, 5, 6, 9, 6, 5, 6, 1, 2, 5, 6]
    contexts = [tuple(text[i : i + 2]) for i in range(10)]
    fresh = [contexts[i] not in contexts[max(i - 4, 0) : i] for i in range(10)]
    assert s.synthid_mask(text, CONFIG).tolist() == fresh
    ended = s.synthid_mask(text, CONFIG, eos_token_id=9)
    assert ended.tolist() == [f and i + 2 < 4 for i, f in enumerate(fresh)]


# --- errors -------------------------------------------------------------------

ROW = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: s.watermark(ROW, [1], GREEN._replace(greenlist_ratio=1)), "ratio"),
        (lambda: s.watermark(ROW, [1], GREEN._replace(context_width=0)), "context_wid"),
        (lambda: s.watermark(ROW, [1], GREEN._replace(bias=math.inf)), "finite bias"),
        (
            lambda: s.watermark(ROW, [1], GREEN._replace(seeding_scheme="left")),
            "seeding_scheme must be one of",
        ),
        (lambda: s.detect_watermark([1], 4, GREEN), "too short"),
        (lambda: s.detect_watermark([1, 4], 4, GREEN), "tokens holds 4"),
        (lambda: s.synthid_start(s.SynthID(())), "at least one key"),
        (lambda: s.synthid_start(s.SynthID((1,), ngram_len=1)), "ngram_len >= 2"),
        (
            lambda: s.synthid_start(s.SynthID((1,), context_history_size=0)),
            "context_history_size >= 1",
        ),
        (
            lambda: s.synthid(ROW, s.synthid_start(CONFIG, (2,)), CONFIG),
            "the state's context has shape",
        ),
        (lambda: s.synthid_g_values([1, 2], CONFIG), "no n-gram of 3"),
        (
            lambda: s.mean_score(np.ones((1, 2), int), np.array([False])),
            "nothing to score",
        ),
    ],
)
def test_an_option_out_of_range_is_named(call, names):
    with pytest.raises(ValueError, match=names):
        call()


def test_a_text_shorter_than_the_window_is_not_marked():
    assert s.watermark(ROW, [1], SELF).tobytes() == ROW.tobytes()
