"""The one face: prompts in, texts out, whatever the strategy."""

import inspect
import re
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from chapters import PACKAGE, PART_ONE
from goldens.tiny_models import EOS, npllama_model, tiny
from hypothesis import given
from hypothesis import strategies as st

import npllama
from npllama import GenerationConfig, Helpers, generate, pieces, stream
from npllama.decoding.follower import Follower
from npllama.decoding.logprobs import text_logprobs
from npllama.generation.options import (
    OPTIONS,
    SHAPE,
)
from npllama.generation.task import jobs_of, plan_of, prepare
from npllama.generation.wishes import load_options, options_from_hf, options_of
from npllama.sampling import GreenList, SynthID
from npllama.text.tokenizer import Token

SEEDS = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def stories():
    return npllama.load("stories")


def model_of(seed):
    made = tiny(seed)
    return npllama_model(made), made.prompt


def uncached_greedy(model, prompt, n):
    tokens = list(prompt)
    for _ in range(n):
        cache = npllama.new_cache(model.config, 1, len(tokens))
        logits = npllama.forward(model, np.array([tokens]), cache)
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] in model.config.eos_token_id:
            break
    return tokens[len(prompt) :]


@given(SEEDS)
def test_greedy_search_takes_the_peak_of_the_uncached_model(seed):
    model, prompt = model_of(seed)
    found = generate(model, prompt, GenerationConfig(max_new_tokens=8))
    assert found.tokens == uncached_greedy(model, prompt, 8)
    assert found.prompt_tokens == prompt


@given(SEEDS, st.integers(1, 4))
def test_a_text_does_not_depend_on_the_prompts_beside_it(seed, neighbours):
    model, prompt = model_of(seed)
    rng = np.random.default_rng(seed)
    V = model.config.vocab_size
    others = [
        rng.integers(6, V, rng.integers(1, 9)).tolist() for _ in range(neighbours)
    ]
    config = GenerationConfig(max_new_tokens=6, do_sample=True, temperature=1.5)
    alone = generate(model, [prompt], config, np.random.default_rng(1))
    together = generate(model, [prompt, *others], config, np.random.default_rng(1))
    assert together[0].tokens == alone[0].tokens


@given(SEEDS)
def test_one_seed_gives_one_text(seed):
    model, prompt = model_of(seed)
    config = GenerationConfig(max_new_tokens=8, do_sample=True, top_k=0)
    a, b = (
        generate(model, prompt, config, np.random.default_rng(seed)) for _ in range(2)
    )
    assert a == b


@given(SEEDS, st.integers(1, 30))
def test_a_text_ends_by_eos_or_has_the_length_asked_for(seed, n):
    model, prompt = model_of(seed)
    config = GenerationConfig(max_new_tokens=n, do_sample=True)
    found = generate(model, prompt, config, np.random.default_rng(seed))
    eos = model.config.eos_token_id
    assert not set(found.tokens[:-1]) & set(eos)
    if found.tokens[-1] in eos:
        assert found.finish_reason == "eos"
    else:
        assert (found.finish_reason, len(found.tokens)) == ("length", n)


def test_a_text_ends_where_the_context_ends():
    model, prompt = model_of(0)
    config = GenerationConfig(max_new_tokens=1000, eos_token_id=())
    found = generate(model, prompt, config)
    assert found.finish_reason == "context"
    assert len(prompt) + len(found.tokens) == model.config.max_position_embeddings
    with pytest.raises(ValueError, match="context is 128"):
        generate(model, [6] * 128, config)


def test_bad_prompts_get_one_line():
    model, _ = model_of(0)
    for prompt, message in (
        ([], "empty"),
        ([10_000], "10000 is outside the vocabulary"),
        ("text", "without a tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, [prompt])


def test_greedy_search_is_what_every_draft_gives(stories):
    amount = {"max_new_tokens": 30}
    plain = generate(stories, "Once upon a time", GenerationConfig(**amount))
    draft = Helpers(assistant=npllama.load("stories-draft"))
    for options, helpers in (
        ({"num_assistant_tokens": 4}, draft),
        ({"prompt_lookup_num_tokens": 5}, Helpers()),
        ({"assistant_early_exit": 2, "num_assistant_tokens": 3}, Helpers()),
        ({"assistant_window": 8, "num_assistant_tokens": 3}, Helpers()),
    ):
        config = GenerationConfig(**options, **amount)
        found = generate(stories, "Once upon a time", config, helpers=helpers)
        assert found.tokens == plain.tokens
        assert found.speculation["drafted"] >= found.speculation["accepted"]


def test_streamed_pieces_join_to_the_text(stories):
    for config in (
        GenerationConfig(max_new_tokens=30, do_sample=True),
        GenerationConfig(max_new_tokens=12, prompt_lookup_num_tokens=3),
        GenerationConfig(
            max_new_tokens=60, stop_strings="named", include_stop_str_in_output=False
        ),
    ):
        whole = generate(stories, "Once", config, np.random.default_rng(3))
        parts = list(stream(stories, "Once", config, np.random.default_rng(3)))
        assert "".join(parts) == whole.text


def test_searches_cannot_be_streamed(stories):
    with pytest.raises(ValueError, match="use generate"):
        list(pieces(stories, "Once", GenerationConfig(num_beams=2)))


def test_several_texts_come_back_per_prompt(stories):
    config = GenerationConfig(max_new_tokens=5, do_sample=True, num_return_sequences=3)
    found = generate(stories, ["Once", "Long ago"], config, np.random.default_rng(0))
    assert [f.prompt_tokens == found[0].prompt_tokens for f in found] == [True] * 3 + [
        False
    ] * 3


def test_best_of_keeps_the_likeliest(stories):
    few = GenerationConfig(
        max_new_tokens=8, do_sample=True, num_return_sequences=2, best_of=6, logprobs=0
    )
    many = GenerationConfig(
        max_new_tokens=8, do_sample=True, num_return_sequences=6, logprobs=0
    )
    best = generate(stories, ["Once"], few, np.random.default_rng(0))
    every = generate(stories, ["Once"], many, np.random.default_rng(0))
    scores = sorted((f.score for f in every), reverse=True)
    assert [f.score for f in best] == scores[:2]


def test_logprobs_are_those_of_teacher_forcing(stories):
    for options in ({"do_sample": True, "temperature": 2.0}, {"num_beams": 3}):
        config = GenerationConfig(
            max_new_tokens=6, logprobs=3, prompt_logprobs=True, **options
        )
        found = generate(stories, "Once upon", config, np.random.default_rng(0))
        whole = found.prompt_tokens + found.tokens
        forced = text_logprobs(stories, whole, 1, 3)
        assert found.prompt_logprobs[0] is None
        reported = found.prompt_logprobs[1:] + found.logprobs
        assert [e.token for e in reported] == whole[1:]
        for mine, true in zip(reported, forced):
            assert abs(mine.logprob - true.logprob) < 1e-3
            assert [t for t, _ in mine.top] == [t for t, _ in true.top]
            listed = dict(mine.top)
            assert (mine.rank < 3) == (mine.token in listed)


def test_processed_logprobs_are_of_what_was_drawn_from(stories):
    config = GenerationConfig(max_new_tokens=4, do_sample=True, top_k=1, logprobs=1)
    found = generate(stories, "Once", config, np.random.default_rng(0))
    assert all(entry.processed == 0 and entry.logprob < 0 for entry in found.logprobs)


def test_echo_puts_the_prompt_in_front(stories):
    config = GenerationConfig(max_new_tokens=3, echo=True)
    assert generate(stories, "Once upon", config).text.startswith("Once upon")


def test_healing_lets_a_cut_word_be_finished(stories):
    config = GenerationConfig(max_new_tokens=6, token_healing=True)
    found = generate(stories, "there lived a shy rab", config)
    assert found.text.startswith("bit named")


def byte_level(model):
    """The model with a vocabulary in which a character may take several tokens."""
    vocabulary = [Token(bytes([i]).hex(), bytes([i]), False) for i in range(256)]
    few = [*b"ab \xc3\xa9\xa8\xe2\x82\xac\xf0\x9f\x98\x80\xc0\xff"]
    vocabulary = [vocabulary[i] for i in [*few, *range(97, 256)]]
    vocabulary = vocabulary[: model.config.vocab_size]
    return model._replace(tokenizer=ByteTokens(vocabulary))


class ByteTokens:
    """As much of a tokenizer as decoding needs."""

    leading_space = False

    def __init__(self, vocabulary):
        self.vocabulary, self.vocab_size = vocabulary, len(vocabulary)

    def token(self, index):
        return self.vocabulary[index]

    def token_bytes(self, index):
        return self.vocabulary[index].content

    def decode(self, tokens):
        return b"".join(map(self.token_bytes, tokens)).decode(errors="replace")


@given(SEEDS, st.booleans(), st.booleans())
def test_stream_of_half_characters_joins_to_the_text(seed, echo, keep):
    model, _ = model_of(seed)
    model, rng = byte_level(model), np.random.default_rng(seed)
    prompt = rng.integers(0, model.config.vocab_size, 3).tolist()
    options = {"max_new_tokens": 12, "do_sample": True, "eos_token_id": (), "top_k": 0}
    config = GenerationConfig(echo=echo, temperature=50.0, **options)
    alone = generate(model, prompt, config, np.random.default_rng(seed), echo=False)
    if letters := alone.text.replace("\ufffd", ""):
        # Some stop string that comes, perhaps in the middle of a character.
        letter = str(rng.choice(list(letters)))
        strings = {"stop_strings": (letter,), "include_stop_str_in_output": keep}
        config = replace(config, **strings)
    found = generate(model, prompt, config, np.random.default_rng(seed))
    parts = list(stream(model, prompt, config, np.random.default_rng(seed)))
    assert "".join(parts) == found.text
    if echo and found.finish_reason == "length":
        assert found.text == model.tokenizer.decode(prompt + found.tokens)


@pytest.mark.parametrize(
    ("text", "cut"),
    [("é", 1), ("aè", 2), ("€", 1), ("€", 2), ("😀", 1), ("a😀", 3), ("😀", 3)],
)
def test_echo_of_a_prompt_that_ends_within_a_character_shows_the_character(text, cut):
    model, _ = model_of(0)
    model = byte_level(model)
    contents = [token.content for token in model.tokenizer.vocabulary]
    tokens = [contents.index(bytes([byte])) for byte in text.encode()]
    config = GenerationConfig(
        max_new_tokens=len(tokens) - cut,
        echo=True,
        eos_token_id=(),
        prefix_allowed_tokens_fn=lambda row, seen: [tokens[len(seen)]],
    )
    assert generate(model, tokens[:cut], config).text == text
    assert "".join(stream(model, tokens[:cut], config)) == text


@pytest.mark.parametrize(
    "draft",
    [
        {"assistant_early_exit": 1},
        {"assistant_window": 4},
        {"prompt_lookup_num_tokens": 3},
        {"lookahead_window": 3},
        {"assistant": True},
    ],
)
@pytest.mark.parametrize(
    "options", [{"regex": "[A-Za-z ]+"}, {"regex": ".{12}", "eos_token_id": ()}]
)
def test_draft_guesses_nothing_after_the_end_of_a_format(stories, draft, options):
    tokens = stories.tokenizer
    commas = [i for i in range(tokens.vocab_size) if tokens.token_bytes(i) == b","]
    options = {"eos_token_id": [2, *commas], "max_new_tokens": 20} | options
    draft = dict(draft)
    helpers = Helpers(
        npllama.load("stories-draft") if draft.pop("assistant", 0) else None
    )
    for prompt in ("Once upon a time", "One day", "Lily and Tom"):
        plain = generate(stories, prompt, GenerationConfig(**options))
        config = GenerationConfig(**options, **draft)
        found = generate(stories, prompt, config, helpers=helpers)
        assert found.tokens == plain.tokens and found.text == plain.text
        assert re.fullmatch(options["regex"], plain.text)


def test_options_may_be_given_by_name_as_in_transformers(stories):
    config = GenerationConfig(max_new_tokens=9, max_length=30)
    for given_options, expected in (
        ({"max_new_tokens": 3}, GenerationConfig(max_new_tokens=3)),
        ({"max_length": 8}, GenerationConfig(max_length=8)),
    ):
        found = generate(stories, "Once", config, **given_options)
        assert found == generate(stories, "Once", expected)
        parts = stream(stories, "Once", config, **given_options)
        assert "".join(parts) == found.text
    # What the makers wish holds for the options that are not named.
    wishing = stories._replace(generation_config={"top_k": 1, "do_sample": True})
    found = generate(wishing, "Once", max_new_tokens=4)
    assert found.tokens == generate(stories, "Once", max_new_tokens=4).tokens
    with pytest.raises(TypeError, match="'max_tokens' is not .* did you mean max_new_"):
        generate(stories, "Once", max_tokens=3)
    with pytest.raises(ValueError, match="top_p is 7"):
        generate(stories, "Once", top_p=7)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"dola_layers": "low"}],
)
def test_emptied_row_is_named_with_the_options_that_emptied_it(stories, options):
    letters = [t.content for t in stories.tokenizer.vocabulary]
    digits = [i for i, content in enumerate(letters) if content.isdigit()]
    config = GenerationConfig(regex="[0-9]+", eos_token_id=(), **options)
    both = replace(config, suppress_tokens=digits)
    message = "every token is removed by suppress_tokens and regex"
    with pytest.raises(ValueError, match=message):
        generate(stories, "Once", both)

    # Of several prompts, the one is named whose row has no token left.
    firsts = [stories.tokenizer.encode(text, bos=True) for text in ("Once", "Lily")]
    ban = [[*firsts[1], token] for token in range(stories.config.vocab_size)]
    alone = GenerationConfig(bad_words_ids=ban, eos_token_id=(), **options)
    with pytest.raises(ValueError, match="^prompt 1: every token is removed by bad_w"):
        generate(stories, firsts, alone)


def test_bias_that_would_overflow_is_refused_with_its_range(stories):
    for bias in (1e300, -1e31, float("nan")):
        with pytest.raises(ValueError, match="logit_bias is .* from -1e30 to 1e30"):
            GenerationConfig(logit_bias={300: bias})
        with pytest.raises(ValueError, match="sequence_bias is .* from -1e30 to 1e30"):
            GenerationConfig(sequence_bias={(300,): bias})
    config = GenerationConfig(logit_bias={300: 1e30, 301: -np.inf}, max_new_tokens=2)
    assert generate(stories, "Once", config).tokens == [300, 300]


#  ---- options ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0}, "temperature is 0; it must be above 0"),
        ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_beams": 4, "num_beam_groups": 3}, "not a multiple"),
        ({"num_beam_groups": 2, "num_beams": 2}, "diversity_penalty"),
        ({"num_return_sequences": 2}, "greedy finds the same"),
        ({"num_beams": 2, "num_return_sequences": 3}, "above num_beams"),
        ({"early_stopping": "soon"}, "one of True, False, 'never'"),
        ({"force_words_ids": [[5]]}, "needs num_beams"),
        ({"stop_strings": ("",)}, "none of them empty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"min_p": 1.5}, "from 0 to 1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"num_beams": None}, "num_beams is None; it must be a whole number"),
        ({"temperature": 10**400}, "it must be above 0"),
        ({"suppress_tokens": [2**63]}, "a list of token ids"),
        ({"watermarking_config": {"keys": [1], "ngram_len": 10**20}}, "from 2 to"),
        ({"num_beams": 10**30}, "a whole number from 1 to 16384"),
        ({"lookahead_ngram_size": 10**30}, "a whole number from 2 to 16384"),
        ({"presence_penalty": -1e31}, "a number from -1e30 to 1e30"),
        ({"repetition_penalty": 1e-300}, "above 0, from 1e-30 to 1e30"),
        ({"top_k": True}, "top_k is True"),
        ({"early_stopping": 1, "num_beams": 2}, "early_stopping is 1"),
        ({"mirostat": True}, "mirostat is True"),
        ({"length_penalty": 1e308}, "from -50 to 50"),
        ({"dry_base": 0.5}, "dry_base is 0.5"),
        ({"bad_words_ids": [5]}, "a list of lists of token ids"),
        ({"bad_words_ids": [[]]}, "none of them empty"),
        ({"force_words_ids": [["a"]], "num_beams": 2}, "a list of phrases"),
        ({"force_words_ids": 5, "num_beams": 2}, "a list of phrases"),
        ({"sequence_bias": {5: 1.0}}, "a mapping of tuples of token ids"),
        ({"sequence_bias": [[5, 1.0]]}, "a mapping of tuples of token ids"),
        ({"sequence_bias": {(5,): float("nan")}}, "a mapping of tuples"),
        ({"logit_bias": {"a": 1.0}}, "a mapping of token ids to numbers"),
        ({"logit_bias": {5: float("inf")}}, "a mapping of token ids to numbers"),
        ({"exponential_decay_length_penalty": (1,)}, "a start, 0 or more"),
        ({"exponential_decay_length_penalty": (1, 0)}, "a start, 0 or more"),
        ({"dola_layers": 5}, "'low', 'high' or a list of layers"),
        ({"dola_layers": []}, "'low', 'high' or a list of layers"),
        ({"stop_strings": 5}, "strings"),
        ({"prefix_allowed_tokens_fn": 5}, "a function"),
        ({"json_schema": 5}, "a mapping, or its JSON"),
        ({"watermarking_config": 5}, "a GreenList or a SynthID"),
        ({"watermarking_config": {"gamma": 0.5}}, "'gamma' is not one of"),
        ({"num_beams": 2, "dola_layers": "low"}, "num_beams and dola_layers exclude"),
        ({"lookahead_window": 2, "prompt_lookup_num_tokens": 2}, "exclude each other"),
        ({"penalty_alpha": 0.6, "do_sample": True}, "penalty_alpha"),
        ({"penalty_alpha": 0.6, "top_k": 1}, "penalty_alpha"),
        ({"best_of": 3, "do_sample": True, "num_beams": 2}, "best_of needs do_sample"),
        ({"regex": "", "json_schema": {}}, "exclude each other"),
        ({"token_healing": True, "regex": "a"}, "token_healing"),
        ({"suppress_tokens": [5], "forced_bos_token_id": 5}, "contradict"),
        ({"watermarking_config": {"keys": [1]}, "num_beams": 2}, "SynthID"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**options)


def test_a_generation_config_is_read_as_transformers_writes_it(tmp_path):
    file = tmp_path / "generation_config.json"
    file.write_text(
        '{"bos_token_id": 1, "eos_token_id": [2, 5], "temperature": 0.6, "top_p": 0.9,'
        ' "do_sample": true, "transformers_version": "4.49.0", "max_length": 4096}'
    )
    config = GenerationConfig(**load_options(tmp_path))
    assert config == GenerationConfig(
        eos_token_id=(2, 5), temperature=0.6, top_p=0.9, do_sample=True, max_length=4096
    )
    with pytest.raises(ValueError, match="top_p is 7"):
        options_from_hf({"top_p": 7, "do_sample": True})
    file.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_options(file)


def test_what_the_makers_wish_holds_unless_a_config_is_given(stories):
    # The shipped models wish for nothing but their own end.
    eos = stories.config.eos_token_id
    assert GenerationConfig(**options_of(stories)) == GenerationConfig(eos_token_id=eos)
    wishing = stories._replace(generation_config={"max_new_tokens": 3, "top_k": 1})
    assert len(generate(wishing, "Once").tokens) == 3
    assert len(list(pieces(wishing, "Once"))) == 3
    config = GenerationConfig(max_new_tokens=5)
    assert generate(wishing, "Once", config) == generate(stories, "Once", config)
    wrong = stories._replace(generation_config={"stop_strings": 7})
    with pytest.raises(ValueError, match="generation_config.json: "):
        generate(wrong, "Once")


def test_as_many_texts_as_asked_for_come_from_speculation_too(stories):
    config = GenerationConfig(
        max_new_tokens=5,
        do_sample=True,
        num_return_sequences=3,
        prompt_lookup_num_tokens=2,
    )
    assert len(generate(stories, ["Once", "Ruby"], config)) == 6


def test_an_empty_list_of_prompts_is_refused_in_words(stories):
    with pytest.raises(ValueError, match="the list is empty"):
        generate(stories, [])


def test_row_that_has_filled_its_format_leaves_the_others_alone(stories):
    # Without an end token nothing but the format ends a row, and rows end apart.
    config = GenerationConfig(regex=".{12}", eos_token_id=(), max_new_tokens=30)
    prompts = ["Once upon a time", "One day, a", "Lily"]
    together = generate(stories, prompts, config)
    assert together == [generate(stories, prompt, config) for prompt in prompts]
    assert all(len(found.text) == 12 for found in together)
    assert len({len(found.tokens) for found in together}) > 1


def test_numbers_and_lists_of_numpy_are_taken_as_python_s():
    config = GenerationConfig(
        max_new_tokens=np.int64(5),
        temperature=np.float32(0.5),
        do_sample=np.bool_(True),
        eos_token_id=np.array([2, 5]),
        bad_words_ids=[[np.int32(7)], [8, 9]],
        sequence_bias=[[[5], 1.0], [[6, 7], -1]],
    )
    assert config == GenerationConfig(
        max_new_tokens=5,
        temperature=0.5,
        do_sample=True,
        eos_token_id=(2, 5),
        bad_words_ids=((7,), (8, 9)),
        sequence_bias={(5,): 1.0, (6, 7): -1},
    )


def test_a_watermark_is_put_on_from_its_fields_too():
    model, prompt = model_of(0)
    for given_fields, config in (
        ({"greenlist_ratio": 0.5, "bias": 9.0}, GreenList(0.5, 9.0)),
        ({"keys": [1, 2], "ngram_len": 3, "debug_mode": False}, SynthID((1, 2), 3)),
    ):
        wished = model._replace(generation_config={"watermarking_config": given_fields})
        rule = GenerationConfig(watermarking_config=config, eos_token_id=(EOS,))
        assert generate(wished, prompt) == generate(model, prompt, rule)
        assert generate(wished, prompt) != generate(model, prompt)


@pytest.mark.parametrize("prompts", [None, 5, b"Once", [b"Once"], [1.0], [True], {6}])
def test_what_is_no_prompt_is_refused_in_words(prompts):
    model, _ = model_of(0)
    with pytest.raises(TypeError, match="text"):
        generate(model, prompts)


def test_an_assistant_helps_greedy_search_and_sampling_only(stories):
    helpers = Helpers(assistant=npllama.load("stories-draft"))
    for options in ({"num_beams": 2}, {"dola_layers": "low"}):
        with pytest.raises(ValueError, match="an assistant and"):
            generate(stories, "Once", GenerationConfig(**options), helpers=helpers)
    other = Helpers(amateur=model_of(0)[0])
    with pytest.raises(ValueError, match="the amateur knows"):
        generate(stories, "Once", helpers=other)


def test_a_stream_begins_with_its_prompt_if_that_is_to_be_echoed(stories):
    config = GenerationConfig(max_new_tokens=3, echo=True)
    whole = generate(stories, "Once upon", config).text
    assert "".join(stream(stories, "Once upon", config)) == whole
    with pytest.raises(ValueError, match="not streamed"):
        list(stream(stories, "Once", GenerationConfig(logprobs=1)))


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_goes_on_when_a_row_has_ended_or_a_guess_was_replaced(version):
    model, prompt = model_of(3)
    learner = {"mirostat": version, "mirostat_tau": 2.0, "mirostat_eta": 1.0}
    config = GenerationConfig(max_new_tokens=30, do_sample=True, **learner)
    prompts = [prompt, [9, 10], [11]]
    for seed in range(4):
        found = generate(model, prompts, config, np.random.default_rng(seed))
        alone = generate(model, prompts[:1], config, np.random.default_rng(seed))
        assert found[0].tokens == alone[0].tokens
        draft = replace(config, assistant_early_exit=1, num_assistant_tokens=3)
        assert generate(model, prompt, draft, np.random.default_rng(seed)).tokens


def test_a_row_that_has_ended_asks_for_no_more_tokens():
    model, prompt = model_of(0)
    V = model.config.vocab_size
    # The first row ends at once; the second goes on until few tokens are left.
    allowed = [[EOS], [*range(6, V)]]

    def allow(row, tokens):
        return allowed[row] if EOS not in tokens else [0]

    config = GenerationConfig(
        max_new_tokens=4, prefix_allowed_tokens_fn=allow, do_sample=True
    )
    config = replace(config, suppress_tokens=(0,), no_repeat_ngram_size=1)
    first, second = generate(model, [prompt, [6]], config)
    assert first.tokens == [EOS] and len(second.tokens) == 4


# The order of transformers 5.23, `_get_logits_processor`; what it lacks stands aside.
ORDER = """guidance_scale sequence_bias encoder_repetition_penalty repetition_penalty
no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids min_length
min_new_tokens prefix_allowed_tokens_fn forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty suppress_tokens
begin_suppress_tokens temperature top_h top_k top_p min_p typical_p epsilon_cutoff
eta_cutoff watermarking_config renormalize_logits""".split()


def test_steps_come_in_the_order_of_transformers():
    names = [name for name, option in OPTIONS.items() if option.step]
    assert [name for name in names if name in ORDER] == ORDER
    shape = [name for name in names if OPTIONS[name].chapter == SHAPE]
    first = names.index(shape[0])
    assert names[first : first + len(shape)] == shape  # one chapter, in one piece


def test_order_of_the_steps_follows_the_config():
    greedy = GenerationConfig(top_p=0.9, suppress_tokens=[7], renormalize_logits=True)
    others = ["suppress_tokens", "contrastive_alpha", "renormalize_logits"]
    assert greedy.order == others
    drawn = replace(greedy, do_sample=True, min_p=0.1, top_a=0.2, xtc_probability=0.5)
    cuts = ["top_k", "top_p", "min_p", "top_a", "xtc_probability"]
    assert drawn.order == [*others[:2], "temperature", *cuts, others[2]]
    last = replace(drawn, sampler_order="llama.cpp", typical_p=0.5)
    cuts.insert(1, "typical_p")
    assert last.order == [*others[:2], *cuts, "temperature", others[2]]
    steered = replace(drawn, mirostat=2)
    assert steered.order == [*others[:2], "temperature", "mirostat", others[2]]


def test_every_option_has_a_sentence_a_range_and_a_step_that_its_default_leaves_out():
    usual = GenerationConfig(do_sample=True)
    assert usual.order == ["contrastive_alpha", "temperature", "top_k"]
    for name, option in OPTIONS.items():
        assert option.says and option.range.legal and name in GenerationConfig.__doc__
        assert option.says in GenerationConfig.__doc__


@pytest.mark.parametrize("seed", range(3))
def test_second_opinion_on_texts_that_branch_is_that_of_each_text_alone(seed):
    model, prompt = model_of(seed)
    # One text, then three that go on from it, then three that go on from those.
    histories = [[prompt], [[*prompt, token] for token in (7, 8, 9)]]
    histories.append([[*text, 10] for text in histories[1]])
    follower = Follower(model, 40)
    for texts in histories:
        alone = [Follower(model, 40).logits([text]) for text in texts]
        found = follower.logits(texts)
        np.testing.assert_allclose(found, np.concatenate(alone), rtol=0, atol=1e-5)


#  ---- what transformers does in corners ---------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True},
        {"num_beams": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"num_beams": 2, "force_words_ids": [[7]]},
        {"prompt_lookup_num_tokens": 2},
        {"lookahead_window": 2},
        {"dola_layers": "high"},
    ],
)
def test_no_token_is_made_up_where_all_are_removed(options):
    model, prompt = model_of(0)
    config = GenerationConfig(allowed_token_ids=(7,), suppress_tokens=(7,), **options)
    with pytest.raises(ValueError, match="removed"):
        generate(model, prompt, config)


def test_beams_that_cannot_go_on_leave_the_others_alone():
    model, prompt = model_of(0)
    # After 7 nothing may follow.
    ways = {7: [[7, token] for token in range(model.config.vocab_size)]}
    config = GenerationConfig(
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=4,
        bad_words_ids=ways[7],
        eos_token_id=(),
    )
    found = generate(model, [prompt], config)
    assert len(found) == 4 and all(np.isfinite(text.score) for text in found)
    assert all(7 not in text.tokens[:-1] for text in found)


def test_min_new_tokens_has_precedence_over_min_length():
    model, prompt = model_of(0)
    bias = {(EOS,): 100.0}
    for least, total, expected in ((2, 50, 3), (None, 8, 4)):
        config = GenerationConfig(
            min_new_tokens=least, min_length=total, sequence_bias=bias
        )
        assert len(generate(model, prompt, config).tokens) == expected


def test_suppression_at_the_beginning_comes_after_a_forced_first_token():
    model, prompt = model_of(0)
    config = GenerationConfig(
        forced_bos_token_id=9, max_new_tokens=2, sequence_bias={(8,): 100.0}
    )
    assert generate(model, prompt[:1], config).tokens == [9, 8]
    both = replace(config, begin_suppress_tokens=(8, 9))
    assert generate(model, prompt[:1], both).tokens[0] == 9
    assert generate(model, prompt[:1], both).tokens[1] != 8
    # The first token of a longer prompt is over.
    assert generate(model, prompt, both).tokens[0] != 8


def test_beams_that_are_drawn_keep_more_tokens_than_can_end_the_text():
    model, prompt = model_of(0)
    model = model._replace(config=replace(model.config, eos_token_id=(3, 4, 5)))
    # All that ends the text is likelier than anything else.
    bias = {(token,): 50.0 for token in (3, 4, 5)}
    config = GenerationConfig(
        num_beams=2, do_sample=True, top_k=1, max_new_tokens=3, sequence_bias=bias
    )
    task = prepare(plan_of(model, config, Helpers()), prompt)
    (job,) = jobs_of([task], [np.random.default_rng(0)])
    V = model.config.vocab_size
    left = job.process([prompt], np.arange(V, dtype=np.float32)[None])
    assert np.isfinite(left).sum() == 4


@pytest.mark.parametrize(
    "options, rows",
    [
        ({}, [0, 1]),
        ({"num_beams": 2}, [0, 1]),
        ({"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0}, [0, 1]),
        ({"num_beams": 2, "stochastic_beams": True}, [0, 1]),
        ({"prompt_lookup_num_tokens": 2}, [0, 1]),
        ({"do_sample": True, "num_return_sequences": 2}, [0, 1, 2, 3]),
    ],
)
def test_what_is_allowed_may_depend_on_the_row(options, rows):
    model, prompt = model_of(0)
    config = GenerationConfig(
        max_new_tokens=3,
        prefix_allowed_tokens_fn=lambda row, tokens: [7 + row],
        **options,
    )
    found = generate(model, [prompt, prompt], config)
    if "num_beams" in options:
        found = found[:: len(found) // 2]
    assert [text.tokens for text in found] == [[7 + row] * 3 for row in rows]


def test_the_last_layer_decides_where_nothing_plausible_is_left():
    model, prompt = model_of(0)
    for kept in range(model.config.vocab_size):
        config = GenerationConfig(
            dola_layers="low", max_new_tokens=1, allowed_token_ids=(kept,)
        )
        assert generate(model, prompt, config).tokens == [kept]


def test_an_amateur_objects_to_nothing_but_what_is_left():
    model, prompt = model_of(0)
    helpers = Helpers(amateur=model_of(0)[0])
    for kept in range(model.config.vocab_size):
        config = GenerationConfig(max_new_tokens=1, allowed_token_ids=(kept,))
        found = generate(model, prompt, config, helpers=helpers)
        assert found.tokens == [kept]


def test_beams_with_an_amateur_are_compared_by_log_probabilities():
    model, prompt = model_of(0)
    helpers = Helpers(amateur=model)
    config = GenerationConfig(
        num_beams=3, max_new_tokens=3, contrastive_alpha=1e-9, eos_token_id=()
    )
    plain = generate(model, prompt, config)
    found = generate(model, prompt, config, helpers=helpers)
    # Where both agree on everything, nothing is to be objected to.
    assert found.tokens == plain.tokens
    assert abs(found.score - plain.score) < 1e-4


@pytest.mark.parametrize(
    "options, name",
    [
        ({"bad_words_ids": [[7, 99999]]}, "bad_words_ids holds 99999"),
        ({"eos_token_id": 99999, "min_new_tokens": 2}, "eos_token_id holds 99999"),
        ({"force_words_ids": [[99999]], "num_beams": 2}, "force_words_ids"),
        ({"suppress_tokens": [99999]}, "suppress_tokens holds 99999"),
    ],
)
def test_a_token_outside_the_vocabulary_is_named_with_its_option(options, name):
    model, prompt = model_of(0)
    with pytest.raises(ValueError, match=name):
        generate(model, prompt, GenerationConfig(**options))


@pytest.mark.parametrize("field", fields(GenerationConfig), ids=lambda f: f.name)
@pytest.mark.parametrize("value", [10**30, -(10**30), 2**63])
def test_enormous_number_is_refused_or_means_no_limit(field, value):
    more = {"do_sample": True, "max_new_tokens": 2} | {field.name: value}
    model, prompt = model_of(0)
    try:
        config = GenerationConfig(**more)
    except ValueError as error:
        assert field.name in str(error)  # refused, and named
        return
    refused = (field.name, "vocabulary", "early exit")  # what the model lacks
    try:
        with np.errstate(over="raise", invalid="raise"):
            generate(model, prompt, config, np.random.default_rng(0))
    except ValueError as error:
        assert any(word in str(error) for word in refused)


@pytest.mark.parametrize(
    "name, wrong",
    [("model", "stories"), ("config", {"max_new_tokens": 2}), ("rng", 5)],
)
def test_argument_of_another_kind_is_named(name, wrong):
    model, prompt = model_of(0)
    given = {"model": model, "config": GenerationConfig(), "rng": None} | {name: wrong}
    for write in (generate, lambda *a: list(stream(*a)), lambda *a: list(pieces(*a))):
        with pytest.raises(TypeError, match=f"^{name}: "):
            write(given["model"], prompt, given["config"], given["rng"])


# ---- how much a reader has to follow ----------------------------------------------


def functions_run(call):
    """Functions of the package that a call runs, by file, and the deepest stack."""
    ran, deepest = set(), 0

    def watch(frame, event, argument):
        nonlocal deepest
        depth, code = 0, frame.f_code
        while frame is not None:
            depth += str(PACKAGE) in frame.f_code.co_filename
            frame = frame.f_back
        deepest = max(deepest, depth)
        # A function inside another belongs to it.
        if event == "call" and not code.co_flags & inspect.CO_NESTED:
            path = Path(code.co_filename)
            if path.is_relative_to(PACKAGE):
                ran.add((path.relative_to(PACKAGE).as_posix(), code.co_firstlineno))

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return ran, deepest


def test_a_greedy_token_is_a_short_way(stories):
    """What prepares, checks and chooses around the forward pass: 44 functions once."""
    config = GenerationConfig(max_new_tokens=1)
    once = partial(generate, stories, [1, 403, 407], config)
    once()  # fills the caches
    ran, deepest = functions_run(once)
    others = [file for file, _ in ran if file.removesuffix(".py") not in PART_ONE]
    assert len(others) <= 25 and len({file for file, _ in ran}) <= 16
    assert deepest <= 9
