"""The page of a generation: its numbers are those of `generate`, read back from it."""

import base64
import json
import math
import re
import shlex
from functools import cache

import html5lib
import numpy as np
import pytest
from needs import needs
from test_book import plain as without_tags

from npllama.book.figures import weights_of
from npllama.cli.main import main
from npllama.cost import FlopCounter
from npllama.decoding.guided import guide_for
from npllama.decoding.json_schema import schema_machine
from npllama.explain.choices import Drawn, choice_of, line_of
from npllama.explain.collect import explained
from npllama.explain.layers import packed
from npllama.explain.page import page, tree
from npllama.explain.search import Level, way
from npllama.explain.told import (
    Asked,
    ids_in,
    options_back,
    options_of,
    shown_token,
    told,
)
from npllama.explain.watch import put_together
from npllama.files.checkpoint import load
from npllama.generation.generate import generate
from npllama.generation.options import GenerationConfig
from npllama.generation.task import Helpers
from npllama.ops import rowwise
from npllama.sampling import draw, log_softmax, softmax
from npllama.serving.fields import Refused
from npllama.serving.offered import offered

PROMPT = "Once upon a time"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}},
    "required": ["name"],
}
SIX = {
    "do_sample": True,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.02,
}
CASES = {
    "greedy": {},
    "six processors": SIX,
    "beams": {"num_beams": 3, "length_penalty": 0.5},
    "drawn beams": {"num_beams": 3, "do_sample": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "forced words": {"num_beams": 3, "force_words_ids": ((300, 301),)},
    "early exit": {"assistant_early_exit": 2, "num_assistant_tokens": 4},
    "drawn drafts": {"assistant_early_exit": 2, "num_assistant_tokens": 3, "do_sample": True},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "a schema": {"json_schema": SCHEMA, "do_sample": True, "max_new_tokens": 24},
    "guidance": {"guidance_scale": 1.5},
    "layers": {"dola_layers": "high"},
}  # fmt: skip
TOKENS = 8


@cache
def stories():
    return load("stories")


def config_of(name):
    return GenerationConfig(**{"max_new_tokens": TOKENS} | CASES[name])


CARRIED = re.compile('<script type="application/json" id="data">(.*?)</script>')


def read_back(text):
    """The data of a page, as a browser finds it."""
    return json.loads(CARRIED.search(text)[1])


def parsed(text):
    """A page, through a parser that stands no error."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


@cache
def page_of(name):
    """The page of a case."""
    found = explained(stories(), PROMPT, config_of(name), np.random.default_rng(3))
    return page(told(found, Asked(PROMPT, 3)))


@cache
def data_of(name):
    """What the page of a case says."""
    return read_back(page_of(name))


def generated(name, **more):
    """The same without a page."""
    return once(name, tuple(more.items()))


@cache
def once(name, more):
    chance = np.random.default_rng(3)
    return generate(stories(), PROMPT, config_of(name), chance, **dict(more))


def at(step, token=None):
    """Where a token stands among those that are shown."""
    return step["tokens"].index(step["token"] if token is None else token)


# ---- the same as generate ------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_page_shows_the_text_of_generate(name):
    data, text = data_of(name), generated(name)
    assert [step["token"] for step in data["steps"]] == text.tokens
    assert data["tokens"] == text.prompt_tokens + text.tokens
    told_ = data["text"], data["reason"], data["score"]
    assert told_ == (text.text, text.finish_reason, text.score)


@pytest.mark.parametrize("name", ["greedy", "six processors", "a schema"])
def test_probabilities_are_those_of_generate(name):
    steps, entries = data_of(name)["steps"], generated(name, logprobs=3).logprobs
    for step, entry in zip(steps, entries, strict=True):
        i, stages = at(step), step["stages"]
        assert math.isclose(
            stages[0]["probs"][i], math.exp(entry.logprob), rel_tol=1e-12
        )
        last = stages[-1]["probs"][i]
        assert math.isclose(last, math.exp(entry.processed), rel_tol=1e-12)
        for token, logprob in entry.top:
            p = stages[0]["probs"][at(step, token)]
            assert math.isclose(p, math.exp(logprob), rel_tol=1e-12)


@pytest.mark.parametrize("name", ["six processors", "a schema"])
def test_draws_are_the_numbers_of_the_seed_and_fall_on_their_token(name):
    chance = np.random.default_rng(3).spawn(1)[0]
    for step in data_of(name)["steps"]:
        assert step["u"] == [chance.random()]
        low, wide = (step["line"][key][at(step)] for key in ("low", "wide"))
        assert low <= step["u"][0] < low + wide
        assert math.isclose(wide, step["stages"][-1]["probs"][at(step)], rel_tol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_cost_is_what_a_counter_counts(name):
    with FlopCounter() as count:
        generate(stories(), PROMPT, config_of(name), np.random.default_rng(3))
    data = data_of(name)
    assert sum(run["flops"] for run in data["runs"]) == count.total.flops
    assert sum(run["bytes"] for run in data["runs"]) == sum(count.total.bytes.values())
    for run in data["runs"]:
        assert run["flops"] == sum(flops for flops, _ in run["parts"].values())


def test_attention_is_that_of_the_whole_text_at_once():
    data = data_of("greedy")
    tokens = data["tokens"][:-1]
    _, weights = weights_of(stories(), stories().tokenizer.decode(tokens[1:]))
    N, m = len(tokens), data["model"]
    assert weights.shape[-1] == N  # the text is cut into the same tokens again
    raw = base64.b64decode(data["seen"]["weights"])
    shown = np.frombuffer(raw, np.uint8).reshape(m["L"], m["H"], -1)
    low = np.tril_indices(N)
    error = np.abs(shown / data["seen"]["of"] - weights[:, :, low[0], low[1]])
    assert data["seen"]["first"] == 0 and error.max() <= 0.5 / 255 + 1e-5


@pytest.mark.parametrize("name", sorted(set(CASES) - {"layers"}))
def test_the_last_layer_says_what_the_model_says(name):
    for step in data_of(name)["steps"]:
        first, said = step["stages"][0]["probs"], step["said"][-1]
        assert len(step["said"]) == 1 + stories().config.num_hidden_layers
        if name != "guidance" and "groups" != name:
            for token, p in said["top"]:
                assert math.isclose(p, first[at(step, token)], rel_tol=1e-4)
        likelier = sum(p > said["prob"] * (1 + 1e-5) for p in first)
        assert said["rank"] >= likelier or name == "groups"


def test_steps_of_the_pipeline_are_those_that_are_on_in_its_order():
    on = ["", "repetition_penalty", "frequency_penalty", "temperature"]
    on += ["top_k", "top_p", "min_p"]
    for step in data_of("six processors")["steps"]:
        assert [stage["name"] for stage in step["stages"]] == on
        lefts = [stage["left"] for stage in step["stages"]]
        assert (
            lefts[:4] == [1024] * 4 and lefts[4] == 40 and lefts == sorted(lefts)[::-1]
        )
    last = data_of("six processors")["steps"][-1]
    heat, cut = last["stages"][3], last["stages"][5]
    flat = last["stages"][2]["probs"]
    ratio = (heat["probs"][0] / heat["probs"][1]) ** 0.8
    assert math.isclose(ratio, flat[0] / flat[1], rel_tol=1e-4)
    assert cut["kept"] >= 0.9


def test_a_format_forbids_what_its_guide_forbids():
    model = stories()
    guide = guide_for(
        model.tokenizer, schema_machine(SCHEMA), model.config.eos_token_id
    )
    data, new = data_of("a schema"), []
    for step in data["steps"]:
        stage = next(s for s in step["stages"] if s["name"] == "json_schema")
        look = guide.look(new)
        assert stage["left"] == look.allowed.sum()
        for token, p in zip(step["tokens"], stage["probs"]):
            assert (p > 0) == look.allowed[token]
        new.append(step["token"])
    assert json.loads(data["text"])["name"] is not None


# ---- searches and drafts --------------------------------------------------------


@pytest.mark.parametrize("name", ["beams", "drawn beams", "groups", "forced words"])
def test_way_through_the_tree_leads_to_the_text_and_its_score(name):
    data = data_of(name)
    score = None
    for i, step in enumerate(data["steps"]):
        level, row = data["levels"][i], data["way"][i]
        found = [
            s
            for lists in level.values()
            for p, t, s in lists
            if (p, t) == (row, step["token"])
        ]
        assert found and len(set(found)) == 1
        score = found[0]
        if i + 1 < len(data["steps"]):
            parent, token, _ = level["going"][data["way"][i + 1]]
            assert (parent, token) == (row, step["token"])
    length = len(data["steps"]) ** config_of(name).length_penalty
    assert math.isclose(score / length, data["score"], rel_tol=1e-6)


def test_scores_of_beams_are_sums_of_the_odds_on_the_page():
    total = 0.0
    data = data_of("beams")
    for step, level, row in zip(data["steps"], data["levels"], data["way"]):
        total += math.log(step["stages"][0]["probs"][at(step)])
        listed = {(p, t): s for p, t, s in level["candidates"]}
        assert math.isclose(total, listed[row, step["token"]], abs_tol=1e-4)


@pytest.mark.parametrize("name", ["early exit", "drawn drafts", "lookup"])
def test_rounds_are_those_that_generate_counts(name):
    data, counted = data_of(name), generated(name).speculation
    rounds = data["rounds"]
    assert sum(one["tokens"] for one in rounds) == len(data["steps"])
    kept = 0
    for one in rounds:
        came = [s["token"] for s in data["steps"][one["first"] :][: one["tokens"]]]
        kept += sum(a == b for a, b in zip(came, one["guesses"]))
    if counted is not None:
        assert counted["drafted"] == sum(len(one["guesses"]) for one in rounds)
        assert (counted["rounds"], counted["accepted"]) == (len(rounds), kept)
    own = [run for run in data["runs"] if run["kind"] == "text"]
    assert len(own) == 1 + len(rounds)


def test_a_guess_is_kept_by_the_numbers_on_the_page():
    fates, chance = set(), np.random.default_rng(3).spawn(1)[0]
    for step in data_of("drawn drafts")["steps"]:
        assert step["u"] == [chance.random() for _ in step["u"]]
        if step["q"] is None:
            continue
        kept = step["u"][0] * step["q"] < step["p"]
        fates.add(kept)
        assert kept == (step["token"] == step["guess"]) and len(step["u"]) == 2 - kept
        if not kept:
            low, wide = (step["line"][key][at(step)] for key in ("low", "wide"))
            assert step["line"]["rest"] and low <= step["u"][1] < low + wide
    assert fates == {True, False}


def test_forced_token_is_shown_when_it_ends_the_text():
    options = {"num_beams": 2, "force_words_ids": ((300, 301),), "max_new_tokens": 2}
    config = GenerationConfig(**options)
    found = explained(stories(), PROMPT, config, np.random.default_rng(3))
    assert found.found.tokens == [300, 301]
    for step in found.steps:
        assert step.token in step.choice.tokens
    assert (found.way[1], 301) in {beam[:2] for beam in found.levels[1].ended}


def test_second_opinion_is_told_apart():
    kinds = [run["kind"] for run in data_of("guidance")["runs"]]
    assert kinds == ["text", "second"] * TOKENS
    assert {run["kind"] for run in data_of("beams")["runs"]} == {"text"}


def test_draft_of_another_model_is_told_apart():
    model, draft = stories(), load("stories-draft")
    helpers, config = Helpers(draft), config_of("greedy")
    found = explained(model, PROMPT, config, np.random.default_rng(3), helpers)
    assert found.found.tokens == generated("greedy").tokens
    L = model.config.num_hidden_layers
    assert {len(run.of.attention) for run in found.runs if run.kind == "text"} == {L}
    drafts = {len(run.of.attention) for run in found.runs if run.kind == "draft"}
    assert drafts == {draft.config.num_hidden_layers}


# ---- going on from another token ----------------------------------------------------


@pytest.mark.parametrize("name", ["six processors", "beams", "a schema"])
def test_text_that_is_given_its_own_beginning_goes_on_as_it_did(name):
    steps = data_of(name)["steps"]
    first = [step["token"] for step in steps[:4]]
    chance, config = np.random.default_rng(3), config_of(name)
    found = explained(stories(), PROMPT, config, chance, first=first)
    assert found.found.tokens == [step["token"] for step in steps]
    asked = Asked(PROMPT, 3, first=first)
    again = json.loads(json.dumps(told(found, asked)))
    assert again["first"] == first and again["options"] == data_of(name)["options"]
    assert [step["u"] for step in again["steps"]] == [step["u"] for step in steps]


def test_text_goes_on_from_a_token_that_is_put_in():
    steps = data_of("six processors")["steps"]
    other = next(t for t in steps[2]["tokens"] if t != steps[2]["token"])
    first = [steps[0]["token"], steps[1]["token"], other]
    chance, config = np.random.default_rng(3), config_of("six processors")
    found = explained(stories(), PROMPT, config, chance, first=first)
    assert found.found.tokens[:3] == first and len(found.steps) == TOKENS
    for step in found.steps[:3]:
        stages = {stage.name: stage for stage in step.choice.stages}
        assert stages["prefix_allowed_tokens_fn"].left == 1
    free = {stage.name: stage for stage in found.steps[3].choice.stages}
    assert free["prefix_allowed_tokens_fn"].same


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {5: -math.inf, 6: 1.5}, "sequence_bias": {(5, 6): -2.0}},
        {"bad_words_ids": ((5,), (6, 7)), "stop_strings": ("a", "b"), "top_p": 0.5},
        {"json_schema": SCHEMA, "do_sample": True, "temperature": 0.3},
        {"watermarking_config": {"greenlist_ratio": 0.4}, "exponential_decay_length_penalty": (5, 1.2)},
    ],
)  # fmt: skip
def test_options_survive_the_page(options):
    config = GenerationConfig(**options)
    sent = json.loads(json.dumps(options_of(config), allow_nan=False))
    assert GenerationConfig(**options_back(sent)) == config


def test_options_that_are_none_are_refused():
    with pytest.raises(TypeError, match="did you mean top_p"):
        options_back({"top_q": 1})
    with pytest.raises(ValueError, match="a function cannot be sent"):
        options_back({"prefix_allowed_tokens_fn": "print"})


# ---- pieces -----------------------------------------------------------------------


def test_line_is_that_of_draw():
    p = np.array([0.1, 0.0, 0.4, 0.2, 0.3])
    line = line_of(p, [2, 4, 1])
    assert np.allclose(line.low, [0.1, 0.7, 0.1]) and np.allclose(
        line.wide, [0.4, 0.3, 0]
    )
    for u in (0.1, 0.49, 0.7, 0.99):
        token = int(draw(p, u))
        i = [2, 4, 1].index(token)
        assert line.low[i] <= u < line.low[i] + line.wide[i]


def test_choice_shows_the_chosen_token_however_unlikely():
    logits = np.linspace(5, 0, 100)[None]
    cut = np.where(logits < 1, -np.inf, logits)
    choice = choice_of([("", logits), ("min_p", cut)], 0, 70, Drawn([0.99]))
    assert choice.tokens[:10] == list(range(10)) and choice.tokens[-1] == 70
    stage = choice.stages[1]
    assert stage.left == (cut > -np.inf).sum() and not stage.same
    assert math.isclose(stage.kept, softmax(logits[0])[: stage.left].sum())
    assert math.isclose(
        choice.stages[0].like, np.exp(-(softmax(logits) * log_softmax(logits)).sum())
    )


@pytest.mark.parametrize("form", ["whole", "blocks", "rows"])
def test_weights_of_blocks_are_put_together(form):
    B, T, H, D, S = 2, 5, 4, 3, 7
    whole = np.random.default_rng(1).random((B, H, T, S)) * np.tri(T, S, S - T)
    parts = []
    rows = (
        [slice(0, B)]
        if form in ("whole", "blocks")
        else [slice(b, b + 1) for b in range(B)]
    )
    for b in rows:
        for h in (0, 2):
            for t in (
                (slice(0, 2), slice(2, 4), slice(4, 5))
                if form != "whole"
                else [slice(0, 5)]
            ):
                seen = S - T + t.stop
                part = whole[b, h : h + 2, t, :seen]
                parts.append(part.reshape(part.shape[0], 1, 2, -1, seen))
    assert (put_together(parts, (B, T, H, D)) == whole).all()
    assert put_together([*parts, parts[0]], (B, T, H, D)) is None  # blocks of keys
    assert put_together([], (B, T, H, D)) is None


def test_attention_is_the_same_row_by_row():
    with rowwise():
        found = explained(
            stories(), PROMPT, config_of("beams"), np.random.default_rng(3)
        )
    weights = base64.b64decode(data_of("beams")["seen"]["weights"])
    assert found.found.tokens == generated("beams").tokens
    shown = np.frombuffer(weights, np.uint8).astype(int)
    assert np.abs(found.seen.weights.astype(int).ravel() - shown).max() <= 1


def test_a_guess_that_is_thrown_away_is_drawn_again_from_what_the_draft_lacked():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.8, 0.1])
    choice = choice_of([("", np.log(p)[None])], 0, 0, Drawn([0.9, 0.3], 1, q))
    assert (choice.q, choice.guess) == (0.8, 1) and math.isclose(choice.p, 0.3)
    assert choice.line.rest and choice.tokens == [0, 1, 2]
    assert np.allclose(choice.line.low, [0, 0.8, 0.8])
    assert np.allclose(choice.line.wide, [0.8, 0, 0.2])
    kept = choice_of([("", np.log(p)[None])], 0, 1, Drawn([0.2], 1, q))
    assert kept.line is None and math.isclose(kept.p, 0.3)


def test_way_is_told_from_that_of_another_text_with_the_same_word():
    first = Level([], [], [(0, 5, -1.0), (0, 6, -2.0)], [], [])
    second = Level([], [], [(1, 7, -3.0), (0, 7, -4.0)], [], [])
    last = Level([(0, 8, -5.0), (1, 8, -6.0)], [], [], [], [])
    levels = [first, second, last]
    assert way(levels, [5, 7, 8]) == [0, 0, 1] and way(levels, [6, 7, 8]) == [0, 1, 0]
    assert way(levels, [6, 7, 9]) == [0, 1, 0]  # forced, and so no candidate
    with pytest.raises(LookupError, match="did not list"):
        way(levels, [7, 7, 8])


def test_attention_that_is_too_large_keeps_the_last_positions(monkeypatch):
    rows = [np.full((2, 3, i + 1), 1 / (i + 1)) for i in range(9)]
    assert packed(rows).first == 0 and packed(rows).weights.shape == (2, 3, 45)
    monkeypatch.setattr("npllama.explain.layers.MOST", 6 * (8 + 9))
    assert packed(rows).first == 7 and packed(rows).weights.shape == (2, 3, 17)
    assert packed([None, *rows[1:3]]).first == 1
    assert packed([None]) is None


def test_tokens_are_shown_as_they_are_written():
    tokenizer = stories().tokenizer
    told_ = {shown_token(tokenizer, i) for i in range(1024)}
    assert {"␣the", "⏎", "<s>"} <= told_
    assert all(text and text.isprintable() for text in told_)
    assert shown_token(None, 7) == "#7"


# ---- the server's page --------------------------------------------------------------


def test_server_answers_with_the_same_page():
    needs("starlette", "serve")
    from npllama.explain import served

    offer = offered(stories(), "stories", "npllama-float32", 512)
    options = {"max_new_tokens": str(TOKENS), "do_sample": "false"}
    text = served.answered(offer, {"prompt": PROMPT, "seed": "3"} | options, 60)
    data = read_back(text)
    assert data["steps"] == data_of("greedy")["steps"] and data["server"] == ""
    asked = {"prompt": PROMPT, "seed": 3, "first": [300], "options": {"top_k": 5}}
    wanted = served.wanted_of(offer, {"asked": json.dumps(asked)}, 9)
    assert wanted.first == [300] and wanted.config.top_k == 5
    assert wanted.config.max_new_tokens == 60 and wanted.config.max_time == 9
    asked["options"] = {"max_new_tokens": 10**6}
    wanted = served.wanted_of(offer, {"asked": json.dumps(asked)}, 9)
    assert wanted.config.max_new_tokens == served.MOST
    parsed(served.form(offer))


@pytest.mark.parametrize(
    ("options", "new", "whole"),
    [
        ({"max_length": 6}, None, 6),
        ({"max_length": 9999}, None, 4 + 256),
        ({"max_length": 6, "max_new_tokens": 9}, 9, 6),
        ({"max_new_tokens": 9999}, 256, None),
    ],
)
def test_a_length_that_was_asked_for_holds_up_to_a_limit(options, new, whole):
    needs("starlette", "serve")
    from npllama.explain import served

    offer = offered(stories(), "stories", "npllama-float32", 512)
    asked = json.dumps({"prompt": [1, 300, 301, 302], "options": options})
    config = served.wanted_of(offer, {"asked": asked}, 9).config
    assert (config.max_new_tokens, config.max_length) == (new, whole)


def test_a_search_whose_lists_do_not_lead_to_its_text_is_refused(monkeypatch):
    needs("starlette", "serve")
    from npllama.explain import served

    def lost(*_, **__):
        return way([Level([], [], [(0, 7, -1.0)], [], [])], [8, 9])

    monkeypatch.setattr(served, "explained", lost)
    offer = offered(stories(), "stories", "npllama-float32", 512)
    with pytest.raises(Refused, match="the search did not list this text"):
        served.answered(offer, {"prompt": PROMPT}, 60)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": PROMPT, "top_q": "1"}, "did you mean top_p"),
        ({"prompt": PROMPT, "top_p": "2"}, "top_p is 2"),
        ({"prompt": PROMPT, "seed": "x"}, "invalid literal"),
        ({"prompt": PROMPT, "lookahead_window": "3"}, "lookahead_window"),
        ({"asked": "{"}, "Expecting"),
        ({"asked": "[]"}, "an object with prompt"),
        ({"asked": '{"prompt": 5}'}, "prompt"),
        ({"asked": '{"prompt": "a", "seed": true, "first": [9999]}'}, "outside"),
        ({"asked": '{"prompt": "a", "seed": -1}'}, "seed is -1"),
        ({"asked": '{"prompt": [[1]]}'}, "token ids"),
        ({"asked": '{"options": {"max_length": 9}}'}, "prompts: NoneType found"),
        ({"asked": '{"prompt": [[1]], "options": {"max_length": 9}}'}, "one prompt"),
    ],
)
def test_what_the_server_cannot_show_is_refused_in_words(given, says):
    needs("starlette", "serve")
    from npllama.explain import served

    offer = offered(stories(), "stories", "npllama-float32", 512)
    with pytest.raises(Refused, match=says):
        served.answered(offer, given, 60)


# ---- the page ---------------------------------------------------------------------


@pytest.mark.slow
def test_page_of_a_hundred_tokens_is_small_and_fetches_nothing():
    config = GenerationConfig(max_new_tokens=100, min_new_tokens=100, num_beams=1)
    found = explained(stories(), PROMPT, config, np.random.default_rng(5))
    text = page(told(found, Asked(PROMPT, 5)))
    assert len(found.steps) == 100 and len(text.encode()) < 1e6
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text and "default-src 'none'" in text


def test_a_tree_is_high_enough_for_beams_that_were_forced():
    going = [(0, 5, -2.0), (0, 6, -3.0), (0, 7, -4.0)]
    level = {"candidates": [(0, 4, -1.0)], "going": going, "ended": []}
    names = dict.fromkeys(range(4, 8), "x")
    drawn = tree(
        {"levels": [level], "way": [0], "steps": [{"token": 5}], "names": names}
    )
    places = [float(y) for y in re.findall(r'cy="([0-9.]+)"', drawn)]
    assert len(places) == 5
    assert max(places) < float(re.search(r'height="([0-9.]+)"', drawn)[1])


def test_tokens_are_named_only_if_they_occur():
    step = {"tokens": [5, 6], "guess": None, "said": []}
    data = {"tokens": [5], "steps": [step], "levels": [], "rounds": []}
    assert ids_in(data) == {5, 6}
    for step in data_of("early exit")["steps"]:
        assert step["guess"] is None or step["guess"] in step["tokens"]


def test_a_text_cannot_break_out_of_the_page():
    prompt = "</script><script>alert(1)</script><!-- \u2028 &amp; \" '"
    found = explained(stories(), prompt, config_of("beams"), np.random.default_rng(1))
    text = page(told(found, Asked(prompt, 1)))
    assert read_back(text)["prompt"] == prompt
    assert parsed(text).find(".//script[@id='data']").text in text
    assert text.count("<script") == 2


def test_without_a_program_the_page_still_has_the_text():
    text = without_tags(page_of("greedy"))
    for step in data_of("greedy")["steps"]:
        assert data_of("greedy")["names"][str(step["token"])] in text


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_page_is_html_without_an_error(name):
    tree = parsed(page_of(name))
    assert json.loads(tree.find(".//script[@id='data']").text) == data_of(name)


def test_the_command_on_the_page_writes_the_same_text(capsys):
    words = shlex.split(data_of("six processors")["command"])
    assert words[:2] == ["npllama", "generate"]
    assert main([*words[1:], "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    tokens = [step["token"] for step in data_of("six processors")["steps"]]
    assert answer["texts"][0]["tokens"] == tokens


def test_command_line_writes_the_page(tmp_path, capsys):
    out = tmp_path / "page.html"
    asked = ["explain", PROMPT, "-o", str(out), "--seed", "3", "--temperature", "0"]
    assert main([*asked, "--max-new-tokens", str(TOKENS)]) == 0
    shown = capsys.readouterr().err
    assert f"wrote {out} ({TOKENS} tokens" in shown
    assert f"[cut at --max-new-tokens {TOKENS}]" in shown
    data = read_back(out.read_text(encoding="utf-8"))
    assert data["text"] == data_of("greedy")["text"] and data["server"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-o", "page.txt"], "must end in .html"),
        (["-o", "nowhere/page.html"], "there is no folder nowhere"),
        (["-o", "p.html", "--penalty-alpha", "0.6", "--top-k", "4"], "penalty_alpha"),
        (["-o", "p.html", "--lookahead-window", "4"], "lookahead_window"),
        (["-o", "p.html", "--num-return-sequences", "2"], "explain shows one text"),
        (["-o", "p.html", "--server", "localhost:8000"], "begins with http://"),
        (["-o", "p.html", "--tokens", "1,x"], "whole numbers"),
        (["-o", "p.html", "--seed", "-1"], "seed is -1"),
    ],
)
def test_misuse_is_one_line(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = [] if "--tokens" in words else [PROMPT]
    assert main(["explain", *prompt, *words]) == 2
    told_ = capsys.readouterr().err
    assert says in told_ and told_.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
