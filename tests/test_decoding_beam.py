"""Laws of the beam searches, most of them against exhaustive search."""

import doctest
import math
from collections import Counter

import numpy as np
import pytest
from beams import asked
from exhaustive import exhaustive_search
from goldens.tiny_models import npllama_model, tiny
from hypothesis import example, given
from hypothesis import strategies as st

import npllama
from npllama.config import Config
from npllama.decoding import constrained_beam, constrained_beam_4
from npllama.decoding.beam import beam_search, draw_without_replacement
from npllama.decoding.common import Job, top
from npllama.decoding.constrained_beam import (
    constrained_beam_search,
    constraints_of,
    progress,
)
from npllama.decoding.constrained_beam_4 import constrained_beam_search_4
from npllama.decoding.group_beam import group_beam_search
from npllama.decoding.logprobs import text_logprobs
from npllama.decoding.sample import sample
from npllama.decoding.stochastic_beam import noise_with_maximum, stochastic_beam_search
from npllama.decoding.stopping import at_tokens
from npllama.weights import assemble, tensor_shapes

SEEDS = st.integers(0, 10_000)


def small_model(seed, V=4):
    """A model of a handful of words, whose texts can all be listed."""
    rng = np.random.default_rng(seed)
    config = Config(V, 8, 12, 2, 2, 1, 4, 64, 1e-5, eos_token_id=(V - 1,))
    tensors = {
        name: (rng.normal(size=shape) * 0.6 + (len(shape) == 1)).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }
    return assemble(config, tensors)


def greedy(model, prompt, stop, n):
    return [step.tokens[0] for step in sample([Job(model, prompt, n, stop)])]


@given(SEEDS, st.integers(2, 4))
def test_a_beam_as_wide_as_the_tree_finds_the_likeliest_text(seed, T):
    model = small_model(seed)
    stop, width = at_tokens(model.config.eos_token_id), 4 ** (T - 1)
    best = exhaustive_search(model, [1, 2], stop, T)[0]
    found = beam_search(
        *asked(
            model,
            [1, 2],
            stop,
            T,
            width,
            eos=model.config.eos_token_id,
            length_penalty=0.0,
            early_stopping="never",
        )
    )
    assert found[0].tokens == best.tokens
    assert math.isclose(found[0].score, best.score, rel_tol=1e-4, abs_tol=1e-4)


@given(SEEDS)
def test_exhaustive_search_lists_every_text_once_and_their_chances_sum_to_one(seed):
    model = small_model(seed)
    found = exhaustive_search(model, [1], at_tokens([3]), 3)
    texts = [tuple(h.tokens) for h in found]
    assert len(set(texts)) == len(texts) == 3**2 * 4 + 3 + 1
    assert math.isclose(sum(math.exp(h.score) for h in found), 1, rel_tol=1e-4)


def test_exhaustive_search_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="tiny vocabularies"):
        exhaustive_search(small_model(0), [1], at_tokens([3]), 20)


@given(SEEDS)
def test_one_beam_is_greedy_search(seed):
    made = tiny(seed)
    model, stop = npllama_model(made), at_tokens([3])
    found = beam_search(*asked(model, made.prompt, stop, 8, 1, eos=[3]))
    assert found[0].tokens == greedy(model, made.prompt, stop, 8)


@given(SEEDS, st.sampled_from([0.0, 1.0, 2.0, -1.0]), st.integers(2, 5))
def test_scores_are_those_of_teacher_forcing(seed, length_penalty, num_beams):
    made = tiny(seed)
    model = npllama_model(made)
    found = beam_search(
        *asked(
            model,
            made.prompt,
            at_tokens([3]),
            6,
            num_beams,
            length_penalty=length_penalty,
        )
    )
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({tuple(h.tokens) for h in found}) == len(found)
    for h in found:
        assert h.tokens[-1] == 3 or len(h.tokens) == 6
        forced = text_logprobs(model, made.prompt + h.tokens, len(made.prompt))
        total = sum(entry.logprob for entry in forced)
        expected = total / len(h.tokens) ** length_penalty
        assert math.isclose(h.score, expected, rel_tol=1e-4, abs_tol=1e-4)


@given(SEEDS)
def test_renaming_the_words_renames_the_texts(seed):
    made = tiny(seed)
    V = made.config["vocab_size"]
    fixed = np.arange(6)
    rename = np.concatenate([fixed, 6 + np.random.default_rng(seed).permutation(V - 6)])
    renamed = dict(made.tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        renamed[name] = np.empty_like(made.tensors[name])
        renamed[name][rename] = made.tensors[name]
    other = made._replace(tensors=renamed, prompt=rename[made.prompt].tolist())
    a = beam_search(*asked(npllama_model(made), made.prompt, at_tokens([3]), 5, 3))
    b = beam_search(*asked(npllama_model(other), other.prompt, at_tokens([3]), 5, 3))
    assert [rename[h.tokens].tolist() for h in a] == [h.tokens for h in b]


#  ---- diverse beams ----------------------------------------------------------


@given(SEEDS)
def test_groups_that_do_not_mind_each_other_find_the_same(seed):
    made = tiny(seed)
    model, stop = npllama_model(made), at_tokens([])
    alone = beam_search(*asked(model, made.prompt, stop, 5, 2, early_stopping="never"))
    groups = group_beam_search(*asked(model, made.prompt, stop, 5, 4), 2, 1e-9)
    assert [h.tokens for h in groups[::2]] == [h.tokens for h in alone]
    assert [h.tokens for h in groups[1::2]] == [h.tokens for h in alone]


@given(SEEDS)
def test_groups_that_mind_each_other_never_choose_the_same_token(seed):
    made = tiny(seed)
    model = npllama_model(made)
    found = group_beam_search(*asked(model, made.prompt, at_tokens([]), 5, 3), 3, 1e4)
    for step in range(5):
        chosen = [h.tokens[step] for h in found]
        assert len(set(chosen)) == 3


@given(SEEDS)
def test_group_that_loses_beams_to_endings_leaves_the_others_their_rows(seed):
    model = small_model(seed, V=6)

    def stop(tokens):
        return None if tokens[-1] == 0 else "stop"

    def compared(history, log_probs):
        # What the search counts must be what the model says of these very texts.
        for tokens, row in zip(history, log_probs):
            told = text_logprobs(model, [*tokens, 5], len(tokens), 0)[0].logprob
            assert math.isclose(row[5], told, abs_tol=1e-3)
        return log_probs

    group_beam_search(*asked(model, [1, 2], stop, 5, 6, process=compared), 2, 1e-9)


#  ---- constrained beams ------------------------------------------------------


@given(SEEDS, st.data())
def test_constrained_beams_hold_every_phrase(seed, data):
    made = tiny(seed)
    model, V = npllama_model(made), made.config["vocab_size"]
    word = st.integers(6, V - 1)
    phrase = st.lists(word, min_size=1, max_size=2)
    phrases = data.draw(st.lists(phrase, min_size=1, max_size=2))
    found = constrained_beam_search(
        *asked(model, made.prompt, at_tokens([3]), 12, 5, eos=[3]),
        constraints_of(phrases),
        prompt_counts=False,
    )[0]
    text = found.tokens
    for wanted in phrases:
        spans = [text[i : i + len(wanted)] for i in range(len(text))]
        assert wanted in spans


def holds(text, phrase):
    """Whether a phrase stands in a text, looked up in another way than the package."""
    return f",{','.join(map(str, phrase))}," in f",{','.join(map(str, text))},"


@given(SEEDS)
@example(7)  # without the best extension of each beam these are lost
@example(41)
@example(51)
def test_no_text_that_holds_every_phrase_is_lost(seed):
    made, rng = tiny(seed), np.random.default_rng(seed)
    model, V = npllama_model(made), made.config["vocab_size"]
    lengths = rng.integers(1, 4, rng.integers(1, 4))
    drawn = (rng.integers(6, V, n).tolist() for n in lengths)
    phrases = [list(phrase) for phrase in dict.fromkeys(map(tuple, drawn))]
    longest = int(lengths.sum() + rng.integers(0, 8))
    beams = int(rng.integers(2, 6))
    constraints = constraints_of(phrases)
    found = constrained_beam_search(
        *asked(model, made.prompt, at_tokens([3]), longest, beams, eos=[3]),
        constraints,
        prompt_counts=False,
    )
    whole = [all(holds(text.tokens, phrase) for phrase in phrases) for text in found]
    assert whole[0]
    # Those that fulfil come first, and the better ones among them and the others.
    assert whole == sorted(whole, reverse=True)
    for kind in (True, False):
        scores = [text.score for text, fits in zip(found, whole) if fits is kind]
        assert scores == sorted(scores, reverse=True)
    assert len({tuple(text.tokens) for text in found}) == len(found)


PHRASES_OF_ONE = st.lists(st.integers(0, 2), min_size=1, max_size=2)


@given(SEEDS, st.lists(PHRASES_OF_ONE, min_size=1, max_size=2, unique_by=tuple))
def test_beams_as_wide_as_the_tree_find_the_likeliest_text_with_the_phrases(
    seed, phrases
):
    model = small_model(seed)
    stop, T = at_tokens([3]), 4
    every = exhaustive_search(model, [1, 2], stop, T)
    whole = [h for h in every if all(holds(h.tokens, p) for p in phrases)]
    found = constrained_beam_search(
        *asked(
            model,
            [1, 2],
            stop,
            T,
            4 ** (T - 1),
            eos=[3],
            length_penalty=0.0,
            early_stopping="never",
        ),
        constraints_of(phrases),
        prompt_counts=False,
    )
    assert found[0].tokens == whole[0].tokens
    assert math.isclose(found[0].score, whole[0].score, rel_tol=1e-4, abs_tol=1e-4)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_forced_token_may_end_the_text(seed, length_penalty):
    made = tiny(seed)
    model = npllama_model(made)

    def search(stop, phrases, eos=()):
        return constrained_beam_search(
            *asked(
                model, made.prompt, stop, 9, 3, eos=eos, length_penalty=length_penalty
            ),
            constraints_of(phrases),
            prompt_counts=False,
        )

    def word(tokens):
        return "stop" if list(tokens[-2:]) == [7, 8] else None

    # An end token that is demanded, alone or at the end of a phrase.
    for phrases in ([[3]], [[7, 3]], [[7], [3]]):
        for text in search(at_tokens([3]), phrases, [3]):
            assert text.reason == "eos" and text.tokens.index(3) == len(text.tokens) - 1
    # A stop string that is demanded, and one that comes with another phrase.
    for phrases in ([[7, 8]], [[9], [7, 8]], [[9, 7, 8]], [[6, 7], [8]]):
        found = search(word, phrases)
        assert all(holds(found[0].tokens, phrase) for phrase in phrases)
        for text in found:
            ends = [i for i, _ in enumerate(text.tokens) if word(text.tokens[: i + 1])]
            assert ends in ([], [len(text.tokens) - 1])
            assert (text.reason == "stop") == bool(ends)


@pytest.mark.parametrize("num_beams", [2, 3])
@pytest.mark.parametrize(
    "pair",
    [
        ("the golden rope", "honey cake"),
        ("honey cake", "her mom"),
        ("a small dog", "red ball"),
        ("big smile", "the old tree"),
    ],
)
def test_a_trained_model_writes_what_it_would_not_have_written(pair, num_beams):
    model = npllama.load("stories")
    phrases = [model.tokenizer.merge(phrase, True) for phrase in pair]
    config = npllama.GenerationConfig(
        num_beams=num_beams,
        num_return_sequences=num_beams,
        force_words_ids=phrases,
        max_new_tokens=16,
    )
    found = npllama.generate(model, "Once upon a time", config)
    whole = [all(holds(text.tokens, phrase) for phrase in phrases) for text in found]
    assert whole[0] and whole == sorted(whole, reverse=True)


@pytest.mark.parametrize("word", ["rope", "cake", "dog", "ball", "tree", "</s>"])
def test_a_text_ends_with_the_forced_word_that_ends_it(word):
    model = npllama.load("stories")
    ends = word == "</s>"
    forced = [2] if ends else model.tokenizer.merge(word, True)
    config = npllama.GenerationConfig(
        num_beams=2,
        force_words_ids=[forced],
        stop_strings=() if ends else (word,),
        include_stop_str_in_output=True,
        max_new_tokens=16,
    )
    found = npllama.generate(model, "Once upon a time", config)
    assert found.finish_reason == ("eos" if ends else "stop")
    assert found.tokens[-len(forced) :] == list(forced)
    assert ends or found.text.endswith(word) and found.text.count(word) == 1


def test_the_old_way_can_be_asked_for():
    made = tiny(3)
    model, phrases = npllama_model(made), [[7, 9, 8], [[6, 7], [10]]]
    options = {"num_beams": 4, "force_words_ids": phrases, "max_new_tokens": 10}
    config = npllama.GenerationConfig(**options, force_words_rule="transformers 4")
    found = npllama.generate(model, [made.prompt], config)[0]
    search = asked(model, made.prompt, at_tokens([3]), 10, 4, eos=[3])
    old = constrained_beam_search_4(*search, constraints_of(phrases))
    assert found.tokens == old[0].tokens
    with pytest.raises(ValueError, match="force_words_rule"):
        npllama.GenerationConfig(force_words_rule="transformers")


def test_texts_that_time_cuts_short_are_returned_after_all():
    made = tiny(0)
    found = constrained_beam_search(
        *asked(
            npllama_model(made),
            made.prompt,
            lambda tokens: "time" if len(tokens) == 2 else None,
            9,
            3,
        ),
        constraints_of([[7, 8, 9]]),
    )
    assert len(found) == 3 and {text.reason for text in found} == {"time"}


TEXTS = st.lists(st.integers(0, 2), max_size=9)
PHRASES = st.lists(PHRASES_OF_ONE | st.just([0, 1, 0]), min_size=1, max_size=3)


@given(TEXTS, PHRASES)
@example([0, 0, 1], [[0, 1]])  # transformers 4 does not find it
@example([0, 0], [[0, 0, 1]])  # the longest beginning counts
@example([0, 1, 2], [[0, 1], [1, 2]])  # they overlap
@example([0, 1], [[0], [0]])  # demanded twice, found once
@example([0, 1], [[0, 1, 0], [1, 1]])  # 1 ends the second, and gives the first up
def test_progress_is_complete_when_every_phrase_occurs(text, phrases):
    read = progress(text, constraints_of(phrases))
    counts = Counter(map(tuple, phrases))
    starts = range(len(text))
    missing = {
        p: max(0, n - sum(tuple(text[i : i + len(p)]) == p for i in starts))
        for p, n in counts.items()
    }
    assert read.complete == (not any(missing.values()))
    assert bool(read.wanted) != read.complete
    # Each wanted token begins or continues a phrase that is missing, and the best of
    # them brings the text further, and nothing else as far.
    banks = [progress([*text, t], constraints_of(phrases)).bank for t in range(3)]
    heads = [p[: n + 1] for p, lack in missing.items() if lack for n in range(len(p))]
    for token in read.wanted:
        grown = (*text, token)
        assert any(grown[-len(head) :] == head for head in heads)
    if read.wanted:
        assert read.bank < max(banks) == max(banks[token] for token in read.wanted)


def test_of_several_phrases_one_suffices():
    constraints = constraints_of([[[4], [5, 6, 7]]])
    banks = [progress(text, constraints).bank for text in ([], [5], [5, 6], [5, 6, 7])]
    assert banks == [0, 1, 2, 3] and progress([4], constraints) == (3, True, [])
    assert progress([5, 6], constraints).wanted == [7]


@pytest.mark.parametrize("module", [constrained_beam, constrained_beam_4])
def test_numbers_in_the_docstrings_are_true(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_progress_reads_one_phrase_at_a_time():
    constraints = constraints_of([[7, 8], [[9], [10, 11]]])
    assert progress([], constraints).wanted == [7, 9, 10]
    assert progress([7], constraints) == (1, False, [8])
    assert progress([7, 8], constraints) == (2, False, [9, 10])
    assert progress([7, 5, 8], constraints).bank == 0
    assert progress([7, 8, 10, 11], constraints) == (4, True, [])


def test_a_phrase_that_begins_another_of_its_list_is_refused():
    with pytest.raises(ValueError, match="beginning"):
        constraints_of([[[5], [5, 6]]])


#  ---- chance -----------------------------------------------------------------


def test_drawing_without_replacement_draws_as_plackett_and_luce_say():
    scores = np.log(np.array([0.5, 0.3, 0.2]))
    rng = np.random.default_rng(0)
    N = 6000
    seen = Counter(
        tuple(draw_without_replacement(scores, 2, rng).tolist()) for _ in range(N)
    )
    p = np.exp(scores)
    chi = 0.0
    for i in range(3):
        for j in range(3):
            if i != j:
                expected = N * p[i] * p[j] / (1 - p[i])
                chi += (seen[(i, j)] - expected) ** 2 / expected
    assert chi < 5 + 6 * math.sqrt(10)  # df 5


def test_what_has_no_chance_is_never_drawn():
    scores = np.array([0.0, -np.inf, 0.0, -np.inf])
    for seed in range(50):
        drawn = draw_without_replacement(scores, 4, np.random.default_rng(seed))
        assert sorted(drawn) == [0, 2]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 40))
def test_top_is_a_stable_sort_cut_off(values, keep):
    scores = np.array(values, dtype=np.float32)
    expected = np.argsort(-scores, kind="stable")[:keep]
    np.testing.assert_array_equal(top(scores, keep), expected)


def test_conditioned_noise_has_the_given_maximum():
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.ones(7)))
    for maximum in (-30.0, 0.0, 2.5, 40.0):
        noisy = noise_with_maximum(log_probs, maximum, rng)
        assert math.isclose(noisy.max(), maximum, rel_tol=1e-12, abs_tol=1e-12)


def test_stochastic_beams_draw_the_first_text_as_the_model_does():
    model = small_model(1)
    stop = at_tokens([3])
    truth = {
        tuple(h.tokens): math.exp(h.score)
        for h in exhaustive_search(model, [1], stop, 2)
    }
    rng, N = np.random.default_rng(0), 1500
    seen: Counter = Counter()
    pairs = 0
    for _ in range(N):
        drawn = stochastic_beam_search(Job(model, [1], 2, stop, rng=rng), 3)
        texts = [tuple(d.tokens) for d in drawn]
        assert len(set(texts)) == 3
        seen[texts[0]] += 1
        pairs += 1
    rare = [t for t, p in truth.items() if N * p < 5]
    chi = sum(
        (seen[t] - N * p) ** 2 / (N * p) for t, p in truth.items() if t not in rare
    )
    df = len(truth) - len(rare) - 1
    assert chi < df + 6 * math.sqrt(2 * df)


@given(SEEDS)
def test_all_texts_are_drawn_when_as_many_are_asked_for(seed):
    model, stop = small_model(seed), at_tokens([3])
    truth = {tuple(h.tokens): h.score for h in exhaustive_search(model, [1], stop, 2)}
    job = Job(model, [1], 2, stop, rng=np.random.default_rng(seed))
    drawn = stochastic_beam_search(job, 20)
    assert {tuple(d.tokens) for d in drawn} == set(truth)
    for d in drawn:
        assert math.isclose(d.score, truth[tuple(d.tokens)], abs_tol=1e-4)


@given(SEEDS)
def test_beam_sampling_depends_on_its_seed_alone(seed):
    made = tiny(seed)
    model = npllama_model(made)
    runs = [
        beam_search(
            *asked(
                model,
                made.prompt,
                at_tokens([3]),
                5,
                3,
                rng=np.random.default_rng(seed),
            )
        )
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
