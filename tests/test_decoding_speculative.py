"""Speculative decoding: the rule is exact, and no draft changes the text."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, random_model, seeds
from tolerances import assert_close, depth

from npllama import sampling
from npllama.cache import new_cache
from npllama.config import Rope
from npllama.decoding import rejection
from npllama.decoding.common import Job, Step, never, prefill, unprocessed
from npllama.decoding.lookahead import layout, lookahead, pool_of
from npllama.decoding.prompt_lookup import continuation, prompt_lookup
from npllama.decoding.rejection import accept, one_hot, residual, verified
from npllama.decoding.sample import sample
from npllama.decoding.self_speculation import early_exit, short_context
from npllama.decoding.speculative import Draft, assisted, speculate
from npllama.decoding.tree import keep, run_tree

EOS = 2


def stop_at_eos(tokens):
    return "eos" if tokens[-1] == EOS else None


# ---- the rule ---------------------------------------------------------------


@st.composite
def pairs(draw):
    """Two distributions: any, with zeros, equal, or with nothing in common."""
    V = draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(seeds))
    p, q = rng.dirichlet(np.full(V, 0.5), 2)
    kind = draw(st.sampled_from(["any", "zeros", "equal", "disjoint", "nearly equal"]))
    if kind == "zeros":
        p[rng.random(V) < 0.4], q[rng.random(V) < 0.4] = 0, 0
        p[0] += p.sum() == 0
        q[-1] += q.sum() == 0
    elif kind == "equal":
        q = p.copy()
    elif kind == "disjoint":
        first = np.arange(V) < draw(st.integers(1, V - 1))
        p, q = p * first + 1e-9 * first, q * ~first + 1e-9 * ~first
    elif kind == "nearly equal":
        q = p * (1 + 1e-15 * rng.standard_normal(V))
    return p / p.sum(), q / q.sum()


@given(pairs())
def test_a_guess_kept_or_replaced_is_distributed_as_the_target(pair):
    p, q = pair
    able = q > 0
    kept = np.zeros_like(p)
    kept[able] = q[able] * np.minimum(1, p[able] / q[able])
    out = kept + (1 - kept.sum()) * residual(p, q)
    np.testing.assert_allclose(out, p, rtol=0, atol=1e-12)
    # Guesses are lost only where the two differ.
    assert abs(kept.sum() - (1 - np.abs(p - q).sum() / 2)) < 1e-12


@given(pairs(), seeds)
def test_a_guess_is_kept_for_the_share_p_over_q_of_all_u(pair, seed):
    p, q = pair
    x = int(np.random.default_rng(seed).choice(np.flatnonzero(q)))
    share = min(1.0, p[x] / q[x])
    if share > 0:
        assert accept(p, q, x, share * (1 - 1e-12))
    if share < 1:
        assert not accept(p, q, x, share * (1 + 1e-12))
    assert accept(p, q, x, 0.0) == (p[x] > 0)
    assert accept(p, q, x, np.nextafter(1, 0)) or p[x] < q[x]


@given(pairs())
def test_a_replacement_is_never_a_token_that_the_target_excludes(pair):
    p, q = pair
    rest = residual(p, q)
    assert abs(rest.sum() - 1) < 1e-12
    assert (rest[p == 0] == 0).all()


def test_equal_distributions_leave_the_target_itself():
    p = np.array([0.25, 0.75, 0.0])
    np.testing.assert_array_equal(residual(p, p), p)


class Scripted:
    """A generator whose numbers are known beforehand."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def edge(test):
    """The u in [0, 1] up to which `test` holds, found by halving."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if test(middle) else (low, middle)
    return high


def measure(logits, q):
    """Exact distribution of `verified` if the guess is drawn from q."""
    out = np.zeros(len(q))
    for x in np.flatnonzero(q):
        out += q[x] * measure_of_one(logits, int(x), q)
    return out


def measure_of_one(logits, x, q):
    """The same for one guess: over all u of its check and of its replacement."""

    def token(u, second):
        return verified(logits, x, q, Scripted(u, second))

    # After a rejection nothing is x again, so x comes out only if it was kept.
    kept = edge(lambda u: token(u, 0.5) == x)
    out = kept * one_hot(x, len(q))
    if kept > 1 - 1e-9:
        return out
    rejecting = (1 + kept) / 2
    ends = [edge(lambda u, y=y: token(rejecting, u) <= y) for y in range(len(q) - 1)]
    return out + (1 - kept) * np.diff([0, *ends, 1])


@given(pairs())
def test_every_u_taken_together_gives_the_target(pair):
    p, q = pair
    with np.errstate(divide="ignore"):
        logits = np.log(p)
    np.testing.assert_allclose(measure(logits, q), p, rtol=0, atol=1e-8)


def test_a_guess_that_q_excludes_is_refused():
    with pytest.raises(ValueError, match="token 1 was guessed from q"):
        accept(np.array([0.5, 0.5]), np.array([1.0, 0.0]), 1, 0.5)
    with pytest.raises(ValueError, match="one vocabulary"):
        accept(np.array([0.5, 0.5]), np.array([1.0, 0.0, 0.0]), 1, 0.5)


# ---- whole texts, by enumeration --------------------------------------------

V, T = 5, 3
PROMPT = [1, 3, 1]


def bigrams(seed):
    """A model without layers: the next token depends on the last one only."""
    config = replace(
        DISTINCT, num_hidden_layers=0, vocab_size=V, hidden_size=6, eos_token_id=()
    )
    return random_model(config, seed)


def shaped(history, logits):
    """A temperature, a penalty that looks at the history, and a cut."""
    logits = logits / 1.5
    logits[:, history[0][-2]] -= 0.5
    logits[logits < np.sort(logits)[:, -3]] = -np.inf
    return logits


def joint(model, process):
    """Probability of every text of T tokens, by multiplying along it."""
    tree = {(): 1.0}
    for _ in range(T):
        grown = {}
        for tokens, mass in tree.items():
            history = [*PROMPT, *tokens]
            _, logits = prefill(model, [history], len(history))
            for x, p in enumerate(sampling.softmax(process([history], logits))[0]):
                grown[(*tokens, x)] = mass * p
        tree = grown
    return np.array([tree[t] for t in itertools.product(range(V), repeat=T)])


def surprise(expected, count):
    """How far counts are off, in standard deviations of chi-square."""
    n = count.sum() * expected
    if count[n == 0].any():
        return np.inf
    rare = n < 5
    n = np.append(n[~rare], n[rare].sum())
    count = np.append(count[~rare], count[rare].sum())
    n, count = n[n > 0], count[n > 0]
    df = len(n) - 1
    return (((count - n) ** 2 / n).sum() - df) / np.sqrt(2 * df)


def counts(propose_with, N):
    target, rng = bigrams(0), np.random.default_rng(1)
    propose = propose_with(rng) if propose_with else None
    count = np.zeros(V**T)
    for _ in range(N):
        job = Job(target, PROMPT, T, process=shaped, rng=rng)
        rounds = lookahead(job, 2, 3) if propose is None else speculate(job, propose, 2)
        a, b, c = itertools.chain.from_iterable(r.tokens for r in rounds)
        count[(a * V + b) * V + c] += 1
    return count


def guessing(model, process=unprocessed, rng=None, most=240):
    """A draft that knows nothing of the prompt."""
    return Job(model, [], most, process=process, rng=rng)


DRAFTS = {
    "another model": lambda rng: assisted(guessing(bigrams(7), shaped, rng)),
    "the same model unshaped": lambda rng: assisted(guessing(bigrams(0), rng=rng)),
    "a model without a choice": lambda rng: assisted(guessing(bigrams(7), shaped)),
    "lookup": lambda rng: prompt_lookup(),
    "lookahead": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTS)
def test_texts_are_distributed_as_the_target_alone_would_write_them(name):
    assert abs(surprise(joint(bigrams(0), shaped), counts(DRAFTS[name], 1500))) < 5


def unshaped_q(rng):
    """The bug of passing q before temperature and top-k."""
    drawn = assisted(guessing(bigrams(7), shaped, rng))
    raw = assisted(guessing(bigrams(7), rng=rng))

    def propose(text, most, cache):
        tokens, _ = drawn(text, most, cache)
        probs = []
        for i in range(len(tokens)):
            probs += raw([*text, *tokens[:i]], 1, cache).probs
        return Draft(tokens, probs)

    return propose


def test_the_enumeration_would_notice_a_q_that_was_not_drawn_from():
    assert surprise(joint(bigrams(0), shaped), counts(unshaped_q, 1500)) > 20


def test_the_enumeration_would_notice_replacements_drawn_from_the_target(monkeypatch):
    monkeypatch.setattr(rejection, "residual", lambda p, q: p)
    z = surprise(joint(bigrams(0), shaped), counts(DRAFTS["another model"], 1500))
    assert z > 20


# ---- decided greedily: the text of greedy search -----------------------------


def penalised(history, logits):
    return sampling.repetition_penalty(logits, history, 1.2)


def babble(seed, size):
    """A draft that knows nothing."""
    rng = np.random.default_rng(seed)

    def propose(text, most, cache):
        return Draft(rng.integers(0, size, rng.integers(0, most + 1)).tolist())

    return propose


def plain(model, prompt, stop, most, process=unprocessed):
    steps = list(sample([Job(model, prompt, most, stop, process)]))
    return [step.tokens[0] for step in steps], steps[-1].reason


@st.composite
def situations(draw):
    """A model, a prompt, and any draft for it."""
    config = draw(configs(trained=st.sampled_from([24, 200])))
    model = random_model(config, draw(seeds), "float64")
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, config.vocab_size, draw(st.integers(1, 12))).tolist()
    other = replace(config, hidden_size=5, num_hidden_layers=1)
    propose = draw(
        st.sampled_from(
            [
                assisted(guessing(model, penalised)),
                assisted(guessing(random_model(other, seed, "float64"))),
                prompt_lookup(draw(st.integers(1, 3))),
                early_exit(guessing(model), 1),
                short_context(guessing(model), draw(st.integers(1, 9))),
                babble(seed, config.vocab_size),
            ]
        )
    )
    return model, prompt, propose


@given(situations(), st.integers(1, 20), st.integers(1, 7))
def test_greedy_text_is_the_same_with_any_draft(situation, most, guesses):
    model, prompt, propose = situation
    expected, reason = plain(model, prompt, stop_at_eos, most, penalised)
    job = Job(model, prompt, most, stop_at_eos, penalised)
    rounds = list(speculate(job, propose, guesses))
    assert [x for r in rounds for x in r.tokens] == expected
    assert [r.reason for r in rounds[:-1]] == [None] * (len(rounds) - 1)
    assert rounds[-1].reason == reason
    for r in rounds:
        assert r.accepted <= r.drafted <= guesses
        # The target adds a token of its own, unless the text ended with a guess.
        assert len(r.tokens) - r.accepted in ((0, 1) if r.reason else (1,))


@given(situations(), st.integers(1, 12))
def test_processing_sees_every_text_once_as_in_plain_decoding(situation, most):
    model, prompt, propose = situation

    def recording(seen):
        def process(history, logits):
            seen.append([list(tokens) for tokens in history])
            return logits

        return process

    one_by_one, in_rounds = [], []
    plain(model, prompt, never, most, recording(one_by_one))
    job = Job(model, prompt, most, process=recording(in_rounds))
    list(speculate(job, propose, 4))
    assert in_rounds == one_by_one


@given(situations(), st.integers(1, 12))
def test_the_cache_is_left_as_if_nothing_had_been_guessed(situation, most):
    model, prompt, propose = situation
    # Dynamic scaling turns keys by the length at which they were computed.
    model = model._replace(config=replace(model.config, rope=Rope()))
    cache = new_cache(model.config, 1, 40, "float64")
    rounds = list(speculate(Job(model, prompt, most, cache=cache), propose, 4))
    text = [*prompt, *(x for r in rounds for x in r.tokens)][:-1]
    alone, _ = prefill(model, [text], len(text))
    assert cache.length[0] == len(text)
    for found, expected in zip(cache[:2], alone[:2]):
        found = found[:, :, :, : len(text)]
        assert_close(found, expected, depth(model.config, len(text)), scale=10)


def test_a_cache_that_holds_a_beginning_of_the_prompt_is_gone_on_from():
    model, prompt = random_model(DISTINCT, 0, "float64"), [1, 5, 7, 5, 3, 5]
    expected, _ = plain(model, prompt, never, 12)
    cache, _ = prefill(model, [prompt[:4]], 40)
    rounds = speculate(Job(model, prompt, 12, cache=cache), prompt_lookup(), 4)
    assert [x for r in rounds for x in r.tokens] == expected


def test_a_text_ends_in_the_middle_of_guesses_that_would_all_be_kept():
    model, prompt = random_model(DISTINCT, 4, "float64"), [1, 5, 7]
    expected, _ = plain(model, prompt, never, 9)
    third = expected[2]
    assert third not in expected[:2]
    job = Job(model, prompt, 9, lambda tokens: "stop" if tokens[-1] == third else None)
    (only,) = speculate(job, lambda text, most, cache: Draft(expected[:most]), 6)
    assert only == Step(expected[:3], "stop", drafted=6, accepted=3)


def test_the_context_bounds_the_text_and_the_guesses():
    config = replace(DISTINCT, max_position_embeddings=10)
    model = random_model(config, 1)
    draft = early_exit(guessing(model), 2)
    rounds = list(speculate(Job(model, [1, 4, 3], 50), draft, 4))
    assert sum(len(r.tokens) for r in rounds) == 7
    assert rounds[-1].reason == "context"
    cache = new_cache(config, 1, 6)
    draft = early_exit(guessing(model), 1)
    rounds = list(speculate(Job(model, [1, 4], 50, cache=cache), draft, 9))
    assert sum(len(r.tokens) for r in rounds) == 4


# ---- drafts -----------------------------------------------------------------

PERFECT = {
    "the target": lambda draft: assisted(draft),
    "all layers": lambda draft: early_exit(draft, 2),
    "all positions": lambda draft: short_context(draft, 99),
}


@pytest.mark.parametrize("chance", [False, True])
@pytest.mark.parametrize("name", PERFECT)
def test_guesses_of_the_target_itself_are_all_kept(name, chance):
    model = random_model(DISTINCT, 5, "float64")
    rng = np.random.default_rng(0) if chance else None
    propose = PERFECT[name](guessing(model, rng=rng))
    rounds = list(speculate(Job(model, [1, 4, 3], 25, rng=rng), propose, 4))
    assert [r.tokens for r in rounds] and len(rounds) == 5
    assert all(r.accepted == r.drafted == 4 for r in rounds)


def test_what_a_short_context_writes_is_written_over():
    model, prompt = random_model(DISTINCT, 6, "float64"), list(range(3, 12))
    cache, _ = prefill(model, [prompt], 30)
    cache.length[0] -= 1
    draft = short_context(guessing(model), 2)(prompt, 3, cache)
    assert len(draft.tokens) == 3 and cache.length[0] == len(prompt) - 1


def test_a_short_context_looks_back_no_further_than_its_window():
    one_layer = replace(DISTINCT, num_hidden_layers=1)
    model = random_model(one_layer, 8, "float64")
    rng = np.random.default_rng(0)
    propose = short_context(guessing(model, rng=rng), 4)
    probs = []
    for head in ([5, 6, 7, 8], [9, 3, 4, 10]):
        text = [*head, 3, 5, 4, 6]
        cache, _ = prefill(model, [text], 30)
        cache.length[0] -= 1
        probs.append(propose(text, 1, cache).probs[0])
        wider = short_context(guessing(model, rng=rng), 5)(text, 1, cache).probs[0]
        assert np.abs(wider - probs[-1]).max() > 1e-6
    assert_close(probs[0], probs[1], depth(one_layer, 8), scale=1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=14), st.integers(1, 4))
def test_lookup_finds_the_leftmost_of_the_longest_matches(text, longest):
    expected = []
    for n in range(min(longest, len(text) - 1), 0, -1):
        matches = [
            i for i in range(len(text) - n) if text[i : i + n] == text[len(text) - n :]
        ]
        if matches:
            expected = text[matches[0] + n :][:5]
            break
    assert continuation(text, 5, longest) == expected


def test_lookup_ends_its_guess_before_a_text_would_end():
    propose = prompt_lookup(2, eos={EOS})
    assert propose([7, 8, 9, EOS, 4, 7, 8], 5, None) == ([9], None)
    assert propose([7, 8, EOS, 4, 7, 8], 5, None) == ([], None)


def test_with_dynamic_rope_nothing_is_guessed_beyond_the_trained_length():
    rope = Rope("dynamic", 10000.0, 4.0)
    config = replace(DISTINCT, max_position_embeddings=16, rope=rope)
    model, prompt = random_model(config, 2, "float64"), [1, 4, 3, 5]
    rounds = list(speculate(Job(model, prompt, 30), assisted(guessing(model)), 4))
    assert [x for r in rounds for x in r.tokens] == plain(model, prompt, never, 30)[0]
    end = len(prompt)
    for r in rounds:
        assert end + r.drafted < 16 or r.drafted == 0
        end += len(r.tokens)
    assert sum(r.drafted for r in rounds) > 4


# ---- lookahead --------------------------------------------------------------


@given(situations(), st.integers(1, 20), st.integers(1, 4), st.integers(2, 4))
def test_lookahead_writes_the_greedy_text(situation, most, window, ngram):
    model, prompt, _ = situation
    one_by_one, in_rounds = [], []

    def recording(seen):
        def process(history, logits):
            seen.append([list(tokens) for tokens in history])
            return penalised(history, logits)

        return process

    plain_process, process = recording(one_by_one), recording(in_rounds)
    expected, reason = plain(model, prompt, stop_at_eos, most, plain_process)
    job = Job(model, prompt, most, stop_at_eos, process)
    rounds = list(lookahead(job, window, ngram))
    assert [x for r in rounds for x in r.tokens] == expected
    assert [r.reason for r in rounds] == [None] * (len(rounds) - 1) + [reason]
    assert in_rounds == one_by_one
    for r in rounds:
        assert r.accepted < ngram and r.drafted <= window * (ngram - 1)
        assert len(r.tokens) - r.accepted in ((0, 1) if r.reason else (1,))


def test_lookahead_takes_fewer_passes_than_tokens_once_a_text_repeats():
    model = random_model(DISTINCT, 6, "float64")
    rounds = list(lookahead(Job(model, [1, 5, 7], 40), 4, 3))
    assert sum(len(r.tokens) for r in rounds) == 40 and len(rounds) < 25


@given(situations(), seeds, st.integers(0, 3), st.integers(1, 4))
def test_every_token_of_a_tree_sees_its_own_branch_only(situation, seed, M, W):
    model, prompt, _ = situation
    model = model._replace(config=replace(model.config, rope=Rope()))
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, rng.integers(0, 4)).tolist()
    step, visible = layout(M, W, sizes)
    block = rng.integers(0, model.config.vocab_size, len(step))
    cache, _ = prefill(model, [prompt], len(prompt) + len(block))
    logits = run_tree(model, block.tolist(), step, visible, cache)
    for t, row in enumerate(visible):
        # In the order in which they stand, each a step after the one before.
        branch = np.flatnonzero(row)[np.argsort(step[row], kind="stable")]
        np.testing.assert_array_equal(step[branch], np.arange(len(branch)))
        assert branch[-1] == t
        text = [*prompt, *block[branch].tolist()]
        alone, expected = prefill(model, [text], len(text))
        assert_close(logits[t], expected[0], depth(model.config, len(text)), scale=10)
    S = len(prompt) + 1
    keep(cache, S, branch[1:].tolist())
    for found, expected in zip(cache[:2], alone[:2]):
        found = found[:, :, :, : cache.length[0]]
        assert_close(found, expected, depth(model.config, S), scale=10)


def test_a_window_of_two_generations_looks_like_this():
    step, visible = layout(2, 3, [2])
    # The last token; columns 0, 1, 2 of each generation; one candidate of two.
    assert step.tolist() == [0, 1, 2, 3, 2, 3, 4, 1, 2]
    assert visible.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_the_pool_keeps_the_latest_different_ngrams_of_a_first_token():
    pool = pool_of([1, 2, 3, 1, 2, 4, 1, 5, 6, 1, 2, 4], 3, 2)
    assert pool[1] == [(5, 6), (2, 4)]
    assert pool[2] == [(3, 1), (4, 1)]


def test_impossible_arguments_are_refused():
    model = random_model(DISTINCT, 0)
    with pytest.raises(ValueError, match="early exit after layer 3: the model has 2"):
        early_exit(guessing(model), 3)
    with pytest.raises(ValueError, match="window of 0"):
        short_context(guessing(model), 0)
    with pytest.raises(ValueError, match="max_matching_ngram_size is 0"):
        prompt_lookup(0)
    for window, ngram in ((0, 3), (2, 1)):
        with pytest.raises(ValueError, match="lookahead: window"):
            next(lookahead(Job(model, [1], 3), window, ngram))
    small = random_model(replace(DISTINCT, vocab_size=9), 0)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one vocabulary"):
        propose = assisted(guessing(small, rng=rng))
        list(speculate(Job(model, [1], 3, rng=rng), propose, 4))


def test_a_certain_guess_is_kept_as_often_as_the_target_would_draw_it():
    p = np.array([0.125, 0.5, 0.375])
    q = one_hot(1, 3)
    assert accept(p, q, 1, 0.499) and not accept(p, q, 1, 0.5)
    np.testing.assert_allclose(residual(p, q), [0.25, 0, 0.75])
