"""Any traffic: every text becomes what it becomes alone."""

import threading
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from goldens.tiny_models import npllama_model, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DISTINCT, random_model
from test_serving_pages import check as check_pages

import npllama
from npllama import FlopCounter, GenerationConfig, Helpers, generate, pieces, rowwise
from npllama.config import Rope
from npllama.cost.formulas import packed_pass, tabulate
from npllama.decoding.logprobs import text_logprobs
from npllama.model import forward
from npllama.sampling import GreenList, NothingLeft, SynthID
from npllama.serving import engine as engines
from npllama.serving.collect import answers, texts_of
from npllama.serving.engine import Engine
from npllama.serving.pages import places
from npllama.serving.requests import Request, copies
from npllama.serving.scheduler import Limits, schedule


def models_of(seed):
    """A model, and a smaller one that guesses for it."""
    return npllama_model(tiny(seed)), npllama_model(tiny(seed, layers=1))


@pytest.fixture(scope="module")
def model():
    return models_of(1)[0]


@pytest.fixture(scope="module")
def stories():
    return npllama.load("stories")


SAMPLED = dict(do_sample=True, top_k=0, temperature=1.5)
GREEDY = dict(max_new_tokens=9)
THREE = dict(max_new_tokens=6, num_return_sequences=3, **SAMPLED)
LOOKUP = dict(max_new_tokens=9, prompt_lookup_num_tokens=4)
WAYS = [
    GREEDY,
    dict(max_new_tokens=7, **SAMPLED),
    dict(max_new_tokens=1),
    THREE,
    dict(max_new_tokens=5, best_of=3, num_return_sequences=2, logprobs=1, **SAMPLED),
    LOOKUP,
    dict(max_new_tokens=8, prompt_lookup_num_tokens=3, **SAMPLED),
    dict(max_new_tokens=6, logprobs=2, prompt_logprobs=True),
    dict(max_new_tokens=6, mirostat=2, repetition_penalty=1.3, **SAMPLED),
    dict(max_new_tokens=8, logprobs=0, num_assistant_tokens=3),  # with a draft model
    dict(max_new_tokens=8, num_assistant_tokens=3, **SAMPLED),  # with one, too
    dict(
        max_new_tokens=6, num_return_sequences=2, prompt_lookup_num_tokens=3, **SAMPLED
    ),
    dict(max_new_tokens=7, num_return_sequences=3, num_assistant_tokens=3, **SAMPLED),
]
ASSISTED = (9, 10, 12)


class Ask(NamedTuple):
    """A request, and when it comes."""

    arrival: int  # step
    way: int
    prompt: int  # which of two long texts it begins with
    length: int
    abort: int | None = None  # steps after its arrival


class Traffic(NamedTuple):
    asks: list[Ask]
    limits: Limits
    pages: int
    page_size: int
    reuse: bool = True


@st.composite
def traffics(draw):
    requests = draw(st.integers(3, 6))
    asks = [
        Ask(
            draw(st.integers(0, 6)),
            draw(st.integers(0, len(WAYS) - 1)),
            draw(st.integers(0, 1)),
            draw(st.integers(1, 12)),
            draw(st.sampled_from([None, None, None, 1, 3])),
        )
        for _ in range(draw(st.integers(1, 5)))
    ]
    tokens, P = draw(st.integers(requests, 24)), draw(st.integers(1, 6))
    pages = -(-21 // P) + draw(st.sampled_from([0, 1, 4, 30]))
    limits = Limits(tokens, requests, draw(st.none() | st.integers(1, 6)))
    return Traffic(sorted(asks), limits, pages, P, draw(st.booleans()))


def request_of(ask, number, models, **options):
    target, draft = models
    V = target.config.vocab_size
    # A text that repeats itself, so that prompt lookup finds something.
    text = np.random.default_rng(ask.prompt).integers(6, V, 5).tolist() * 3
    helpers = Helpers(assistant=draft) if ask.way in ASSISTED else Helpers()
    config = GenerationConfig(**{**WAYS[ask.way], **options})
    rng = np.random.default_rng(number)
    return Request(text[: ask.length], config, rng, helpers, logits=True)


def poison(engine, plan):
    """Fill with NaN whatever nobody may read in the coming pass."""
    P, blocks = plan.state.blocks.page_size, plan.state.blocks
    sound = np.zeros(P * len(blocks.held), dtype=bool)
    sound[places(list(blocks.name_of), P * len(blocks.name_of), P)] = True
    starts = {segment.id: segment.start for segment in plan.segments}
    source = {target: page for page, target in plan.copies}
    for text in plan.state.texts[: plan.state.running]:
        # A page that will be copied is read where it lies now.
        table = [source.get(page, page) for page in text.table]
        sound[places(table, starts.get(text.id, text.computed), P)] = True
    for array in (engine.pool.k, engine.pool.v):
        array[:, :, :, ~sound] = np.nan


def step(engine):
    """A step with what may not be read poisoned, its cost counted and compared."""

    def poisoning(state, limits):
        plan = schedule(state, limits)
        poison(engine, plan)
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "schedule", poisoning)
        return engine.step()


def serve(models, traffic, one_step=step, **options):
    """Run the traffic; all events and the requests, by their numbers."""
    limits, sizes = traffic.limits, (traffic.pages, traffic.page_size)
    engine = Engine(models[0], *sizes, limits, traffic.reuse)
    coming, steps = list(enumerate(traffic.asks)), 0
    requests, events, aborts, numbers = {}, {}, {}, {}
    while coming or engine.busy:
        while coming and coming[0][1].arrival <= steps:
            number, ask = coming.pop(0)
            requests[number] = request_of(ask, number, models, **options)
            id = engine.submit(requests[number])
            numbers[id], events[number] = number, []
            aborts[id] = steps + ask.abort if ask.abort else -1
        for id in [id for id, at in aborts.items() if at == steps]:
            engine.abort(id)
        for event in one_step(engine):
            events[numbers[event.id]].append(event)
        check_pages(engine.state.blocks, [text.table for text in engine.state.texts])
        steps += 1
        assert steps < 500
    assert engine.statistics().pages_used == 0 and not engine.texts
    return engine, requests, events


def by_choice(events):
    return [
        [event for event in events if event.choice == choice]
        for choice in sorted({event.choice for event in events})
    ]


def assert_as_alone(models, requests, events):
    """Every text is that of `generate`; an aborted one is its beginning."""
    for number, request in requests.items():
        several = copies(request.config)
        config = replace(request.config, best_of=None, num_return_sequences=several)
        rng = np.random.default_rng(number)
        texts = generate(models[0], [request.prompt], config, rng, request.helpers)
        for text, told in zip(texts, by_choice(events[number]), strict=True):
            tokens = [event.token for event in told if event.token is not None]
            ends = [event.reason is not None for event in told]
            assert ends == [False] * (len(told) - 1) + [True]
            if told[-1].reason == "abort":
                assert tokens == text.tokens[: len(tokens)]
            else:
                assert (tokens, told[-1].reason) == (text.tokens, text.finish_reason)


def assert_logits_as_alone(model, requests, events):
    """Bit for bit, those of one pass over the whole text."""
    for number, request in requests.items():
        for told in by_choice(events[number]):
            rows = [event.logits for event in told if event.token is not None]
            tokens = [event.token for event in told if event.token is not None]
            whole = [*request.prompt, *tokens[:-1]]
            if rows:
                cache = npllama.new_cache(model.config, 1, len(whole))
                logits, n = forward(model, np.array([whole]), cache)[0], len(rows)
                np.testing.assert_array_equal(rows, logits[-n:])
                if request.config.prompt_logprobs:
                    first, S = told[0].prompt_logits, len(request.prompt)
                    np.testing.assert_array_equal(first, logits[:S])


def crowd(ways, limits, pages, page_size, **options):
    """Everybody at once."""
    asks = [Ask(0, way, way % 2, 5 + way % 7) for way in ways]
    return Traffic(asks, limits, pages, page_size, **options)


CROWD = crowd(range(len(WAYS)), Limits(16, 6), 30, 3)
TIGHT = crowd([0, 3, 6, 5, 10, 3], Limits(9, 5), 8, 3)
SHARED = crowd([0, 2, 4, 6, 8, 10], Limits(9, 5), 13, 2)
ONE_PAGE = crowd([3, 0, 7], Limits(24, 4), 1, 21)
LEAVING = Traffic(
    [Ask(0, 3, 0, 12, 1), Ask(0, 5, 0, 9, 3), Ask(1, 4, 0, 12, 3), Ask(9, 0, 0, 12)],
    Limits(6, 3),
    21,
    1,
)


SPLIT = crowd([9, 10, 5], Limits(4, 3), 30, 2)
CROWDS = [CROWD, TIGHT, SHARED, ONE_PAGE, SPLIT, LEAVING]


def assert_served_as_alone(traffic, seed):
    models = models_of(seed)
    with rowwise():
        _, requests, events = serve(models, traffic)
        assert_as_alone(models, requests, events)
        assert_logits_as_alone(models[0], requests, events)


@pytest.mark.parametrize("traffic", CROWDS)
def test_in_a_crowd_every_text_is_that_of_the_request_alone(traffic):
    assert_served_as_alone(traffic, 1)


# Each runs a whole engine: fewer do.
@settings(max_examples=settings().max_examples // 3)
@given(traffics(), st.integers(0, 3))
def test_in_any_traffic_every_text_is_that_of_the_request_alone(traffic, seed):
    assert_served_as_alone(traffic, seed)


@pytest.mark.parametrize(
    ("traffic", "happens"),
    [
        (CROWD, ["prefix_hits", "copied", "drafted", "accepted"]),
        (TIGHT, ["preemptions", "recomputed", "copied"]),
        (SHARED, ["prefix_hits", "preemptions"]),
        (ONE_PAGE, ["preemptions", "recomputed"]),
        (SPLIT, ["accepted"]),
    ],
)
def test_the_crowds_see_everything_happen(traffic, happens):
    engine, _, _ = serve(models_of(1), traffic)
    numbers = engine.statistics()._asdict()
    assert [name for name in happens if not numbers[name]] == []


@pytest.mark.parametrize("traffic", [CROWD, TIGHT, SHARED])
def test_texts_are_the_same_at_full_speed(traffic):
    # Not bit for bit, but these models' choices are clear.
    models = models_of(1)
    _, requests, events = serve(models, traffic)
    assert_as_alone(models, requests, events)


# ---- what it costs ----------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("traffic", [CROWD, TIGHT])
def test_every_step_costs_what_the_closed_form_says(traffic, exact):
    causal, seen = "rowwise" if exact else "blocks", []

    def counted(engine):
        with FlopCounter() as count:
            events = engine.step()
        if engine.passed is not None:
            pieces, logits, _ = engine.passed
            config = engine.model.config
            work = packed_pass(config, pieces, causal=causal, logits=logits)
            expected = {op.name: (op.calls, op.flops, op.mops)
                        for op in tabulate(config, work, causal)}  # fmt: skip
            found = {n: (t.calls, t.flops, t.mops) for n, t in count.by("name").items()}
            assert found == expected
            seen.append(logits)
        else:
            assert count.total.flops == 0
        return events

    # A draft model's own passes are no part of the packed one.
    asks = [ask for ask in traffic.asks if ask.way not in ASSISTED]
    with rowwise(exact):
        serve(models_of(1), traffic._replace(asks=asks), counted)
    assert len(seen) > 10


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("sizes", [(30, 3), (9, 3), (3, 8)])
def test_nothing_is_computed_twice_but_what_preemption_took(sizes, reuse):
    asks = [Ask(r, way, r % 2, 9) for r, way in enumerate([0, 3, 1, 0, 4])]
    traffic = Traffic(asks, Limits(12, 4), *sizes, reuse)
    engine, requests, events = serve(models_of(1), traffic)
    numbers = engine.statistics()
    texts = [told for number in events for told in by_choice(events[number])]
    # The last token of a text is never run; forks run their prompt once together.
    whole = sum(9 + len(told) - 1 for told in texts)
    shared = sum(9 * (copies(request.config) - 1) for request in requests.values())
    found = sum(told[0].cached for told in texts if told[0].choice == 0)
    if numbers.preemptions == 0:
        assert found == numbers.prefix_hits
    # What was found again after a preemption was neither computed nor new.
    assert numbers.positions == whole - shared - found + numbers.recomputed
    assert (numbers.preemptions > 0) == (sizes != (30, 3))
    assert (found > 0) == reuse


# ---- every option -----------------------------------------------------------

PROMPT = "Once upon a time, a cat"


def odd(row, tokens):
    return [t for t in range(40, 512) if (t + row) % 2]


OPTIONS = {
    "stop strings": dict(stop_strings=[" the", "."]),
    "a stop string cut off": dict(stop_strings=["e"], include_stop_str_in_output=False),
    "end tokens": dict(eos_token_id=[46, 103, 261, 262]),
    "echo": dict(echo=True, logprobs=3, prompt_logprobs=True),
    "a regular expression": dict(regex="[a-z]{3} [0-9]{2}", max_new_tokens=20),
    "a schema": dict(json_schema={"type": "integer", "minimum": 100}),
    "healing": dict(token_healing=True, prompt_logprobs=True, logprobs=1),
    "guidance": dict(guidance_scale=1.5),
    "biases": dict(logit_bias={50: 5.0}, sequence_bias={(60, 61): 4.0}),
    "penalties": dict(frequency_penalty=0.5, presence_penalty=0.4, **SAMPLED),
    "dry": dict(dry_multiplier=0.8, no_repeat_ngram_size=3),
    "bans": dict(
        bad_words_ids=[[46]], suppress_tokens=[44], begin_suppress_tokens=[259]
    ),
    "lengths": dict(min_new_tokens=4, exponential_decay_length_penalty=(2, 1.5)),
    "a forced end": dict(forced_eos_token_id=[2], max_new_tokens=4),
    "a function": dict(prefix_allowed_tokens_fn=odd, num_return_sequences=2, **SAMPLED),
    "mirostat 1": dict(mirostat=1, do_sample=True),
    "truncation": dict(do_sample=True, top_p=0.9, min_p=0.02, typical_p=0.9),
    "xtc": dict(do_sample=True, xtc_probability=0.5, num_return_sequences=2),
    "llama.cpp": dict(
        do_sample=True, sampler_order="llama.cpp", top_k=9, temperature=2.0
    ),
    "a green list": dict(watermarking_config=GreenList(0.5, 2.0), **SAMPLED),
    "synthid": dict(watermarking_config=SynthID([5, 6, 7], 3), **SAMPLED),
    "the best of four": dict(best_of=4, num_return_sequences=2, logprobs=0, **SAMPLED),
    "lookup in a format": dict(regex="(ab )+", prompt_lookup_num_tokens=4),
    "lookup and healing": dict(token_healing=True, prompt_lookup_num_tokens=4),
}


@pytest.fixture(scope="module")
def served(stories):
    """All of them side by side."""
    requests = [
        Request(PROMPT, config_of(name), np.random.default_rng(seed))
        for seed, name in enumerate(OPTIONS)
    ]
    with rowwise():
        engine = Engine(stories, 40, 8, Limits(48, 12))
        found = {a.number: a for a in answers(engine, requests, ahead=len(requests))}
    assert engine.statistics().pages_used == 0
    return dict(zip(OPTIONS, [found[number] for number in range(len(OPTIONS))]))


def config_of(name):
    return GenerationConfig(**{"max_new_tokens": 8, **OPTIONS[name]})


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_means_what_it_means_alone(stories, served, name):
    rng = np.random.default_rng(list(OPTIONS).index(name))
    with rowwise():
        alone = generate(stories, [PROMPT], config_of(name), rng)
    assert served[name].error is None
    for found, text in zip(served[name].texts, alone, strict=True):
        assert (found.tokens, found.text) == (text.tokens, text.text)
        assert found.finish_reason == text.finish_reason
        assert found.prompt_tokens == text.prompt_tokens
        assert found.logprobs == text.logprobs
        assert found.prompt_logprobs == text.prompt_logprobs
        if text.logprobs:
            assert found.score == text.score


def to_the_end(engine):
    """All events until nothing is left to do."""
    events = []
    for _ in range(200):
        events += engine.step()
        if not engine.busy:
            return events
    raise AssertionError("the engine does not come to an end")


def test_the_pieces_of_a_text_come_as_they_do_alone(stories):
    prompt = "Tim saw a bird. \N{SNOWMAN}"
    plain = GenerationConfig(max_new_tokens=12, echo=True)
    # The end of the text is held back, since this stop string might begin there.
    ending = generate(stories, prompt, plain).text[-1] + "~~~"
    cut = dict(include_stop_str_in_output=False)
    cases = [{}, dict(stop_strings=["."]), dict(stop_strings=[ending], **cut)]
    for config in [replace(plain, **case) for case in cases]:
        engine = Engine(stories, 40)
        engine.submit(Request(prompt, config))
        told = [(event.token, event.text, event.reason) for event in to_the_end(engine)]
        assert told == [tuple(piece) for piece in pieces(stories, prompt, config)]


# ---- prompts ----------------------------------------------------------------


def run_all(engine, *requests):
    """Events of each of some requests."""
    numbers = [engine.submit(request) for request in requests]
    events = to_the_end(engine)
    return [[event for event in events if event.id == number] for number in numbers]


def test_logprobs_of_a_prompt_are_those_of_its_text_though_others_computed_it(model):
    prompt = [6, 7, 8, 9, 10, 11, 6, 7]
    plain = Request(prompt, GenerationConfig(max_new_tokens=2))
    scored = plain._replace(
        config=GenerationConfig(max_new_tokens=2, logprobs=2, prompt_logprobs=True)
    )
    with rowwise():
        engine = Engine(model, 20, 2, Limits(3, 2))
        run_all(engine, plain)
        (first, _), (second, third) = run_all(engine, plain, scored)
        assert (first.cached, second.cached) == (6, 0)
        assert second.prompt_logprobs == [None, *text_logprobs(model, prompt, 1, 2)]
        assert first.prompt_logprobs is None and third.prompt_logprobs is None
        assert (second.prompt_tokens, third.prompt_tokens) == (prompt, None)


def test_only_requests_of_one_salt_share_pages(model):
    request = Request([6, 7, 8, 9, 10], GenerationConfig(max_new_tokens=1))
    engine = Engine(model, 20, 2)
    cached = [
        run_all(engine, request._replace(salt=salt))[0][0].cached
        for salt in ["", "", "me", "you", "me"]
    ]
    assert cached == [0, 4, 0, 0, 4]
    alone = Engine(model, 20, 2, reuse=False)
    assert [run_all(alone, request)[0][0].cached for _ in range(2)] == [0, 0]
    assert alone.statistics().prefix_queries == 0


def test_samples_of_one_prompt_compute_it_once_and_share_its_pages(model):
    config = GenerationConfig(max_new_tokens=3, num_return_sequences=4, **SAMPLED)
    engine = Engine(model, 20, 4, Limits(64, 4))
    engine.submit(Request(list(range(6, 12)), config, np.random.default_rng(0)))
    engine.step()
    assert engine.passed.pieces == [(0, 6)] and engine.passed.logits == 1
    assert engine.statistics().pages_used == 2
    engine.step()
    assert engine.passed.pieces == [(6, 1)] * 4
    assert engine.statistics().copied == 3 and engine.statistics().pages_used == 5


def test_guesses_are_those_made_alone_and_their_pages_are_given_back():
    models = models_of(4)
    for way, length in (9, 5), (5, 9):
        ask = Ask(0, way, 0, length)
        request = request_of(ask, 0, models)
        rng = np.random.default_rng(0)
        alone = generate(
            models[0], request.prompt, request.config, rng, request.helpers
        )
        engine = Engine(models[0], 40, 1)
        engine.submit(request)
        while engine.busy:
            engine.step()
            for text in engine.state.texts:
                assert len(text.table) == text.computed
        numbers = engine.statistics()
        assert numbers.drafted == alone.speculation["drafted"] > 0
        assert numbers.accepted == alone.speculation["accepted"]


def test_a_text_ends_where_all_pages_are_full(model):
    config = GenerationConfig(max_new_tokens=99, min_new_tokens=99)
    for more in {}, {"prompt_lookup_num_tokens": 5}:
        options = replace(config, **more)
        (events,) = run_all(Engine(model, 3, 4), Request([6, 7, 8], options))
        assert len(events) == 9 and events[-1].reason == "context"


# ---- what goes wrong --------------------------------------------------------

REFUSED = {
    "beams": (dict(num_beams=2), "num_beams has a loop of its own"),
    "lookahead": (dict(lookahead_window=2), "lookahead_window has a loop"),
    "contrast": (dict(penalty_alpha=0.5), "penalty_alpha has a loop of its own"),
    "dola": (dict(dola_layers="low"), "dola_layers has a loop of its own"),
    "an early exit": (dict(assistant_early_exit=1), "assistant_early_exit has a loop"),
    "a window": (dict(assistant_window=4), "assistant_window has a loop of its own"),
    "many samples": (
        dict(num_return_sequences=4, do_sample=True),
        "4 texts of one prompt, where at most 3 run",
    ),
    "no room": (dict(prompt=[6] * 12), "12 tokens; all pages together hold 12"),
    "no prompt": (dict(prompt=[]), "the prompt is empty"),
    "text": (dict(prompt="Hello"), "came without a tokenizer"),
    "two prompts": (dict(prompt=[[6], [7]]), "one prompt: submit several one by one"),
    "a strange token": (dict(prompt=[99]), "99 is outside the vocabulary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_in_one_line(model, case):
    options, message = REFUSED[case]
    prompt = options.get("prompt", [6, 7])
    config = {k: v for k, v in options.items() if k != "prompt"}
    engine = Engine(model, 3, 4, Limits(8, 3))
    with pytest.raises((ValueError, TypeError), match=message) as error:
        engine.submit(Request(prompt, GenerationConfig(**config)))
    assert "\n" not in str(error.value) and not engine.busy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(config={}), "config: dict found, not GenerationConfig"),
        (dict(config=None), "config: NoneType found"),
        (dict(rng=7), "rng: int found; see numpy.random.default_rng"),
        (dict(helpers=None), "helpers: NoneType found"),
        (dict(salt=b"x"), "salt: bytes found, not str"),
        (dict(prompt=7), "prompts: int found"),
    ],
)
def test_a_request_of_other_kinds_is_refused(model, change, message):
    with pytest.raises(TypeError, match=message):
        Engine(model, 3).submit(Request([6])._replace(**change))
    with pytest.raises(TypeError, match="request: str found, not a Request"):
        Engine(model, 3).submit("Hello")


def test_a_model_that_turns_by_length_is_refused():
    for rope in (
        Rope("dynamic", 1e4, 2.0),
        Rope("longrope", 1e4, 2.0, 64, short_factor=(1.0, 2.0), long_factor=(3.0, 4.0)),
    ):
        unsteady = random_model(replace(DISTINCT, rope=rope), 0)
        with pytest.raises(
            ValueError, match=f"{rope.rope_type} turns by a text's length"
        ):
            Engine(unsteady, 3)
    with pytest.raises(TypeError, match="model: NoneType found"):
        Engine(None, 3)


def faulty(row, tokens):
    if len(tokens) > 4:
        raise KeyError("a fault of the caller's own function")
    return range(6, 12)


def test_an_error_ends_one_text_and_no_other(model):
    wrong = GenerationConfig(max_new_tokens=6, prefix_allowed_tokens_fn=faulty)
    empty = GenerationConfig(max_new_tokens=6, suppress_tokens=list(range(25)))
    sound = GenerationConfig(max_new_tokens=6)
    with rowwise():
        alone = generate(model, [6, 7, 8], sound).tokens
        engine = Engine(model, 20, 2, Limits(20, 6))
        configs = [
            wrong,
            sound,
            empty,
            replace(wrong, num_return_sequences=2, **SAMPLED),
        ]
        found = run_all(engine, *[Request([6, 7, 8], config) for config in configs])
    first, second, third, fourth = found
    assert [event.token for event in second] == alone
    assert first[-1].reason == "error" and isinstance(first[-1].error, KeyError)
    assert len(first) == 3 and first[-1].token is None
    assert isinstance(third[0].error, NothingLeft)
    assert "every token is removed by suppress_tokens" in str(third[0].error)
    assert [e.choice for e in fourth if e.reason == "error"] == [0, 1]
    assert engine.statistics().finished == {"error": 4, "length": 1}
    assert engine.statistics().pages_used == 0


def test_an_error_of_the_model_loses_no_request(model, monkeypatch):
    config = GenerationConfig(max_new_tokens=6, **SAMPLED)
    requests = [
        Request([6, 7, 8 + r], config, np.random.default_rng(r)) for r in range(3)
    ]
    with rowwise():
        alone = [generate(model, r.prompt, config, np.random.default_rng(i)).tokens
                 for i, r in enumerate(requests)]  # fmt: skip
        engine, events = Engine(model, 20, 2), []
        numbers = [engine.submit(request) for request in requests]
        unwanted = engine.submit(requests[0])
        events += engine.step() + engine.step()

        def broken(*_):
            engine.pool.k[:] = np.nan
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(engines, "forward_packed", broken)
            engine.abort(unwanted)
            with pytest.raises(MemoryError):
                engine.step()
        engine.pool.k[:] = engine.pool.v[:] = 0
        engine.state.blocks.page_of.clear()
        engine.state.blocks.name_of.clear()
        events += to_the_end(engine)
    for number, tokens in zip(numbers, alone):
        assert [e.token for e in events if e.id == number] == tokens
    assert [e.reason for e in events if e.id == unwanted][-1] == "abort"
    assert engine.statistics().recomputed > 0


def test_an_aborted_request_gives_its_pages_back_wherever_it_is(model):
    two = dict(num_return_sequences=2, **SAMPLED)
    config = GenerationConfig(max_new_tokens=9, min_new_tokens=9, **two)
    engine = Engine(model, 20, 2, Limits(3, 2), reuse=False)
    numbers = [engine.submit(Request([6, 7, 8, 9], config)) for _ in range(3)]
    engine.abort(numbers[2])  # it has not even arrived
    events = engine.step()
    assert [(e.id, e.choice, e.reason) for e in events] == [
        (numbers[2], 0, "abort"),
        (numbers[2], 1, "abort"),
    ]
    assert engine.statistics().pages_used == 2
    engine.abort(numbers[0])  # in the middle of its prompt
    engine.abort(numbers[0])
    engine.abort(12345)
    assert len(engine.step()) == 2 and engine.statistics().running == 1
    for _ in range(3):
        engine.step()
    assert len(engine.texts) == 2
    engine.abort(numbers[1])  # while it is written
    assert [e.reason for e in engine.step()] == ["abort", "abort"]
    assert not engine.busy and engine.statistics().pages_used == 0
    assert engine.step() == [] and engine.passed is None
    assert engine.statistics().finished == {"abort": 6}


def test_requests_may_come_from_other_threads(model):
    config = GenerationConfig(max_new_tokens=4)
    engine, numbers = Engine(model, 50, 2), []

    def ask():
        for r in range(10):
            numbers.append(engine.submit(Request([6, 7, 8 + r % 3], config)))
            if r % 3 == 2:
                engine.abort(numbers[-1])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    ended = []
    while any(thread.is_alive() for thread in threads):
        ended += [event for event in engine.step() if event.reason]
    ended += [event for event in to_the_end(engine) if event.reason]
    assert sorted(e.id for e in ended) == sorted(numbers) and len(set(numbers)) == 30


# ---- whole answers ----------------------------------------------------------


def test_answers_come_for_every_request_and_the_list_is_read_as_needed(model):
    read = []

    def requests():
        for number in range(9):
            read.append(number)
            prompt = [] if number == 4 else [6, 7, 8]
            fault = dict(prefix_allowed_tokens_fn=faulty) if number == 5 else {}
            yield Request(
                prompt, GenerationConfig(max_new_tokens=1 + number % 4, **fault)
            )

    found = answers(Engine(model, 20, 2, Limits(9, 2)), requests(), ahead=3)
    first = next(found)
    assert first.number == 0 and len(read) <= 4
    rest = {answer.number: answer for answer in found}
    assert sorted(rest) == list(range(1, 9))
    assert "the prompt is empty" in str(rest[4].error) and rest[4].texts == []
    for number, answer in rest.items():
        assert number in (4, 5) or len(answer.texts[0].tokens) == 1 + number % 4
    assert rest[5].error is None  # its text was over before the fault


def test_no_requests_have_no_answers(model):
    assert list(answers(Engine(model, 3), [])) == []
    with pytest.raises(KeyError):
        (events,) = run_all(
            Engine(model, 9),
            Request([6, 7], GenerationConfig(prefix_allowed_tokens_fn=faulty)),
        )
        texts_of(events, GenerationConfig())
