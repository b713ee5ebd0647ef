"""OpenAI's words, in and out: no socket, and no library but NumPy's."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from npllama import GenerationConfig, generate, load
from npllama.decoding.logprobs import text_logprobs
from npllama.serving.answers import (
    Telling,
    broken,
    chunks,
    ending,
    failure,
    finite,
    parts_of,
    sse,
    whole,
)
from npllama.serving.engine import Engine
from npllama.serving.fields import CALLED, Refused
from npllama.serving.offered import offered
from npllama.serving.protocol import (
    chat_of,
    completion_of,
    detokenized,
    tokenized,
    tokenizer_info,
)
from npllama.serving.requests import Request
from npllama.serving.scheduler import Limits

MODEL = load("stories")
SERVED = offered(MODEL, "stories", "test", 512)
PROMPT = "Once upon a time"
SAID = [{"role": "user", "content": PROMPT}]


def happened(ask, company=()):
    """(number of the prompt, event) of all events, as the server gets them."""
    engine = Engine(MODEL, 64, 16, Limits(tokens=64, requests=16))
    for prompt in company:
        engine.submit(Request(prompt, GenerationConfig(max_new_tokens=9)))
    numbers = {}
    for number, prompt in enumerate(ask.prompts):
        request = Request(prompt, ask.config, np.random.default_rng(ask.seed))
        numbers[engine.submit(request)] = number
    while engine.busy:
        for event in engine.step():
            if event.id in numbers:
                yield numbers[event.id], event


def asked(body, company=(), chat=False):
    ask = (chat_of if chat else completion_of)(body, SERVED)
    telling = Telling(SERVED, ask, "cmpl-1", 7)
    return telling, [parts_of(telling, *each) for each in happened(ask, company)]


def answered(body, company=(), chat=False):
    """The plain answer to a body."""
    telling, parts = asked(body, company, chat)
    return whole(telling, [part for some in parts for part in some])


def streamed(body, chat=False):
    """The lines of a stream."""
    telling, parts = asked(body, (), chat)
    flat = [part for some in parts for part in some]
    return [
        *(sse(piece) for part in flat for piece in chunks(telling, part)),
        *ending(telling),
    ]


def read(lines):
    """The objects of a stream, as a client reads them; [DONE] must be its end."""
    text = "".join(lines)
    assert text.endswith("\n\n")
    events = text.split("\n\n")[:-1]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events.count("data: [DONE]") == 1 and events[-1] == "data: [DONE]"
    return [json.loads(event[6:]) for event in events[:-1]]


def refusal(body, read=completion_of, served=SERVED):
    with pytest.raises(Refused) as caught:
        read(body, served)
    assert str(caught.value) and "\n" not in str(caught.value)
    return caught.value


# ---- texts ------------------------------------------------------------------

BODIES = [
    {"prompt": PROMPT, "max_tokens": 12, "temperature": 0},
    {"prompt": PROMPT, "seed": 3},
    {"prompt": PROMPT, "seed": -1, "n": 2, "max_tokens": 8},
    {"prompt": [1, 403], "temperature": 0.8, "seed": 5, "top_k": 20, "min_p": 0.1},
    {"prompt": PROMPT, "seed": 4, "stop": ["little", " ."], "max_tokens": 30},
    {"prompt": PROMPT, "temperature": 0, "echo": True, "max_tokens": 3},
    {"prompt": PROMPT, "seed": 8, "logit_bias": {"300": 30, "301": -100}},
    {"prompt": PROMPT, "seed": 9, "frequency_penalty": 1, "presence_penalty": 0.5},
    {"prompt": PROMPT, "seed": 9, "repetition_penalty": 1.3, "top_p": 0.9},
    {"prompt": "My name:", "regex": "[A-Z][a-z]{2,5}", "seed": 2},
]


@pytest.mark.parametrize("body", BODIES)
def test_plain_and_streamed_and_generate_are_one_text(body):
    plain = answered(body)
    ask = completion_of(body, SERVED)
    alone = generate(MODEL, ask.prompts, ask.config, np.random.default_rng(ask.seed))
    assert [choice["text"] for choice in plain["choices"]] == [g.text for g in alone]
    told = Counter()
    for piece in read(streamed(body)):
        for choice in piece["choices"]:
            told[choice["index"]] = told.get(choice["index"], "") + choice["text"]
    assert told == {c["index"]: c["text"] for c in plain["choices"]}
    assert plain["usage"]["completion_tokens"] == sum(len(g.tokens) for g in alone)
    assert plain["usage"]["prompt_tokens"] == len(ask.prompts[0])


def test_a_text_does_not_depend_on_its_company():
    body = {"prompt": PROMPT, "seed": 3, "n": 2, "max_tokens": 10}
    alone, beside = answered(body), answered(body, company=["One day", "Lily and"])
    both = answered(body | {"prompt": ["One day", PROMPT]})
    texts = [choice["text"] for choice in alone["choices"]]
    assert texts[0] != texts[1]
    assert [choice["text"] for choice in beside["choices"]] == texts
    assert [choice["text"] for choice in both["choices"]][2:] == texts
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert alone["usage"] == beside["usage"]


def test_every_whole_number_is_a_seed_of_its_own():
    seeds = [-(2**63), -2, -1, 0, 1, 2, 2**63 - 1]
    found = [
        completion_of({"prompt": "x", "seed": seed}, SERVED).seed for seed in seeds
    ]
    assert len(set(found)) == len(seeds) and min(found) >= 0
    assert completion_of({"prompt": "x"}, SERVED).seed is None


def test_texts_of_several_prompts_are_numbered_one_after_the_other():
    body = {"prompt": [PROMPT, "One"], "temperature": 0, "n": 2, "max_tokens": 3}
    choices = answered(body)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    best = {"temperature": 1, "seed": 1, "best_of": 3}
    assert [c["index"] for c in answered(body | best)["choices"]] == [0, 1, 2, 3]


def test_an_answer_ends_where_the_turn_does():
    ends = SERVED._replace(ends=(2, 300))
    assert chat_of({"messages": SAID}, ends).config.eos_token_id == (2, 300)
    assert completion_of({"prompt": PROMPT}, ends).config.eos_token_id == (2,)
    given = {"messages": SAID, "eos_token_id": [5]}
    assert chat_of(given, ends).config.eos_token_id == (5,)


def test_a_text_without_chance_is_told_as_often_as_asked():
    body = {"prompt": PROMPT, "temperature": 0, "n": 3, "best_of": 5, "max_tokens": 4}
    texts = [choice["text"] for choice in answered(body)["choices"]]
    assert len(texts) == 3 and len(set(texts)) == 1


def test_the_best_of_several_texts_are_those_of_generate():
    body = {"prompt": PROMPT, "seed": 3, "n": 2, "best_of": 5, "max_tokens": 8}
    answer, ask = answered(body), completion_of(body, SERVED)
    best = generate(MODEL, PROMPT, ask.config, np.random.default_rng(3))
    assert [choice["text"] for choice in answer["choices"]] == [g.text for g in best]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
    assert answer["usage"]["completion_tokens"] >= 5
    assert "best_of" in str(refusal(body | {"stream": True}))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"max_tokens": 3}, "length"),
        ({"stop": "time", "prompt": "Once upon a"}, "stop"),
        ({"regex": "a|b", "max_tokens": 9}, "stop"),
        ({"logit_bias": {"2": 1000}}, "stop"),
        ({"max_time": 1e-9}, "length"),
    ],
)
def test_the_reason_for_an_end_is_one_of_openais(options, reason):
    body = {"prompt": PROMPT, "temperature": 0} | options
    assert answered(body)["choices"][0]["finish_reason"] == reason
    pieces = read(streamed(body))
    reasons = [choice["finish_reason"] for p in pieces for choice in p["choices"]]
    assert reasons[:-1] == [None] * (len(reasons) - 1) and reasons[-1] == reason


def test_a_stop_string_is_never_shown():
    body = {"prompt": "Once upon a", "temperature": 0, "stop": [" time", "x"]}
    assert answered(body)["choices"][0]["text"] == ""
    assert all(not c["text"] for p in read(streamed(body)) for c in p["choices"])
    shown = answered(body | {"include_stop_str_in_output": True})
    assert shown["choices"][0]["text"] == " time"


def test_a_conversation_is_a_chat_completion():
    body = {"messages": SAID, "seed": 2, "max_tokens": 6}
    answer = answered(body, chat=True)
    choice = answer["choices"][0]
    assert answer["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant" and choice["logprobs"] is None
    pieces = read(streamed(body, chat=True))
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert sum("role" in delta for delta in deltas) == 1
    assert {p["object"] for p in pieces} == {"chat.completion.chunk"}
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == choice["message"]["content"] != ""


def test_a_conversation_may_go_on_to_the_end_of_the_context():
    ask = chat_of({"messages": SAID}, SERVED)
    assert ask.config.max_new_tokens == SERVED.longest - len(ask.prompts[0])
    for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        assert chat_of({"messages": SAID} | limit, SERVED).config.max_new_tokens == 5
    refusal(
        {"messages": SAID, "max_tokens": 5, "max_completion_tokens": 6}, read=chat_of
    )
    assert completion_of({"prompt": PROMPT}, SERVED).config.max_new_tokens == 16


def test_messages_may_be_parts_and_the_developer_is_the_system():
    parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]
    plain = chat_of({"messages": SAID}, SERVED).prompts
    assert (
        chat_of({"messages": [{**SAID[0], "content": parts}]}, SERVED).prompts == plain
    )
    asks = [
        chat_of({"messages": [{"role": role, "content": "Be brief."}, *SAID]}, SERVED)
        for role in ("system", "developer")
    ]
    assert asks[0].prompts == asks[1].prompts != plain


# ---- the end of a stream ------------------------------------------------------


def test_a_stream_ends_with_what_it_took_if_asked():
    body = {"prompt": PROMPT, "seed": 1, "max_tokens": 5}
    wishes = {"stream_options": {"include_usage": True}}
    *pieces, last = read(streamed(body | wishes))
    assert last["choices"] == [] and last["usage"] == answered(body)["usage"]
    assert all(piece["usage"] is None and piece["choices"] for piece in pieces)
    assert all("usage" not in piece for piece in read(streamed(body)))


def test_a_stream_ends_once_after_an_error_too():
    ask = completion_of({"prompt": PROMPT, "stream": True}, SERVED)
    error = broken(ValueError("no token is left"))
    (told,) = read(ending(Telling(SERVED, ask, "cmpl-1", 7), error))
    assert told == failure(error) and told["error"]["message"] == "no token is left"
    assert broken(RuntimeError("inner matters")).status == 500
    assert "inner matters" not in str(broken(RuntimeError("inner matters")))


# ---- log-probabilities ----------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 4])
def test_echoed_logprobs_are_those_of_the_text(most):
    ids = MODEL.tokenizer.encode("One day a little cat sat", bos=False, eos=False)
    body = {"prompt": [ids, ids[:4]], "echo": True, "logprobs": 3, "temperature": 0}
    answer = answered(body | {"max_tokens": most})
    for choice, prompt in zip(answer["choices"], body["prompt"]):
        found, n = choice["logprobs"], len(prompt)
        assert found["token_logprobs"][0] is None is found["top_logprobs"][0]
        lengths = {len(values) for values in found.values()}
        assert lengths == {n + most}
        told = found["token_logprobs"][1:n]
        truth = text_logprobs(MODEL, prompt, 1, 3)
        np.testing.assert_allclose(told, [t.logprob for t in truth], atol=1e-5)
        names = [SERVED.names[token] for token in prompt]
        assert found["tokens"][:n] == names
        for name, logprob, top, entry in zip(
            found["tokens"][1:], told, found["top_logprobs"][1:], truth
        ):
            assert top[name] == logprob  # the very same number
            assert len(top) == 3 + (entry.rank >= 3)
            assert max(top.values()) == top[SERVED.names[entry.top[0][0]]]
        text = MODEL.tokenizer.decode(prompt)
        assert choice["text"].startswith(text) and (most or choice["text"] == text)
    assert answer["usage"]["completion_tokens"] == 2 * most


def test_a_prompt_alone_may_be_echoed():
    body = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "n": 2, "seed": 1}
    answer = answered(body)
    assert [choice["text"] for choice in answer["choices"]] == [PROMPT] * 2
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
    assert (
        "".join(c["text"] for p in read(streamed(body)) for c in p["choices"])
        == 2 * PROMPT
    )
    assert answered({"prompt": PROMPT, "max_tokens": 0})["choices"][0]["text"] == ""


def test_offsets_tell_where_tokens_begin_in_the_text():
    body = {"prompt": PROMPT, "echo": True, "logprobs": 0, "seed": 6, "max_tokens": 9}
    for options in ({}, {"echo": False}):
        choice = answered(body | options)["choices"][0]
        told = choice["logprobs"]
        for name, at, offset in zip(told["tokens"], told["text_offset"], range(99)):
            stripped = name.lstrip() if at == 0 and body["echo"] else name
            if name != "<s>":
                assert choice["text"][at:].startswith((name, stripped)), offset


def test_logprobs_of_a_stream_are_those_of_the_plain_answer():
    body = {"prompt": PROMPT, "echo": True, "logprobs": 2, "seed": 6, "max_tokens": 9}
    told = answered(body)["choices"][0]["logprobs"]
    joined = {key: [] for key in told}
    for piece in read(streamed(body)):
        for key, values in (piece["choices"][0]["logprobs"] or {}).items():
            joined[key] += values
    assert joined == told


def test_logprobs_of_a_chat_tell_bytes():
    body = {"messages": SAID, "logprobs": True, "top_logprobs": 2, "temperature": 0}
    answer = answered(body | {"max_tokens": 4}, chat=True)
    content = answer["choices"][0]["logprobs"]["content"]
    text = b"".join(bytes(entry["bytes"]) for entry in content).decode()
    assert text == answer["choices"][0]["message"]["content"]
    for entry in content:
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]
    pieces = read(streamed(body | {"max_tokens": 4}, chat=True))
    told = [p["choices"][0].get("logprobs") for p in pieces]
    assert [t["content"][0] for t in told if t] == content


def test_every_token_has_a_name_of_its_own():
    names, tokenizer = SERVED.names, MODEL.tokenizer
    assert len(names) == len(set(names)) == MODEL.config.vocab_size
    a, byte = tokenizer.encode("A", bos=False)[-1], 3 + ord("A")
    assert tokenizer.token_bytes(byte) == b"A" and names[byte] == r"bytes:\x41"
    assert names[3 + 0xE2] == r"bytes:\xe2" and names[1] == "<s>"
    assert names[a].strip() == "A"
    assert finite(-np.inf) == finite(np.nan) == -9999.0 and finite(-1.5) == -1.5


# ---- prompts --------------------------------------------------------------------


def test_text_begins_with_the_first_token_and_ids_do_not():
    ids = MODEL.tokenizer.encode(PROMPT, bos=False)
    assert completion_of({"prompt": PROMPT}, SERVED).prompts == [[1, *ids]]
    assert completion_of({"prompt": ids}, SERVED).prompts == [ids]
    both = completion_of({"prompt": [ids, [1, *ids]]}, SERVED)
    assert both.prompts == [ids, [1, *ids]]
    texts = completion_of({"prompt": [PROMPT, "One"]}, SERVED)
    assert texts.prompts[0] == [1, *ids] and len(texts.prompts) == 2


def test_tokens_are_told_and_read_back():
    told = tokenized({"prompt": "Once</s>", "add_special_tokens": False}, SERVED)
    assert told["tokens"][-1] == 2 and told["tokens"][0] != 1
    assert tokenized({"prompt": "Once"}, SERVED)["tokens"][0] == 1
    talk = chat_of({"messages": SAID}, SERVED).prompts[0]
    assert tokenized({"messages": SAID}, SERVED)["tokens"] == talk
    assert detokenized({"tokens": told["tokens"]}, SERVED) == {"prompt": "Once</s>"}
    info = tokenizer_info(SERVED)
    assert info["bos_token"] == "<s>" and info["eos_token"] == "</s>"
    for body in ({}, [], {"tokens": "x"}, {"tokens": [5000]}, {"tokens": [True]}):
        assert refusal(body, read=detokenized).status == 400
        assert refusal(body, read=tokenized).status == 400


def test_a_model_without_a_tokenizer_takes_and_tells_ids():
    bare = offered(MODEL._replace(tokenizer=None), "bare", "test", 512)
    assert bare.names[5] == "token:5"
    assert completion_of({"prompt": [1, 5]}, bare).prompts == [[1, 5]]
    assert "tokenizer" in str(refusal({"prompt": "Once"}, served=bare))
    assert "tokenizer" in str(refusal({"messages": SAID}, read=chat_of, served=bare))
    assert refusal({"prompt": "x"}, read=tokenized, served=bare).status == 400


# ---- what is refused ------------------------------------------------------------


def test_openais_defaults_are_kept():
    config = completion_of({"prompt": PROMPT}, SERVED).config
    assert config.do_sample and config.temperature == 1 and config.top_k == 0
    assert config.top_p == 1 and config.stop_strings == ()
    assert not config.include_stop_str_in_output
    given = completion_of({"prompt": PROMPT, "top_k": 7, "user": "me"}, SERVED)
    assert given.config.top_k == 7


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [PROMPT, 5]}, "prompt"),
        ({"prompt": [5, PROMPT]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1024]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": [5] * 512}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"top_p": 2}, "top_p"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 10**6}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"seed": "x"}, "seed"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"suffix": "and then"}, "suffix"),
        ({"tempratur": 0.1}, "tempratur"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"messages": SAID}, "messages"),
        ({"min_p": 2}, "min_p"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(body, param):
    error = refusal({"prompt": PROMPT, **body} if body else body)
    assert (error.status, error.param) == (400, param)
    told = failure(error)["error"]
    assert told.keys() == {"message", "type", "param", "code"}
    assert told["type"] == "invalid_request_error"


def test_a_near_name_is_named():
    assert "temperature?" in str(refusal({"prompt": "x", "temperatur": 1}))
    for name, called in CALLED.items():
        assert called in str(refusal({"prompt": "x", name: 1}))


def test_what_is_null_was_not_given():
    nulls = dict.fromkeys(["stop", "n", "tools", "seed", "top_k", "suffix", "bogus"])
    asked = completion_of({"prompt": PROMPT} | nulls, SERVED)
    assert asked == completion_of({"prompt": PROMPT}, SERVED)


@pytest.mark.parametrize("name", ["logit_bias", "suppress_tokens"])
def test_a_token_that_is_none_is_refused_by_name(name):
    value = {"5000": 1} if name == "logit_bias" else [5000]
    ask = completion_of({"prompt": PROMPT, name: value}, SERVED)
    ((_, event),) = happened(ask)
    error = broken(event.error)
    assert event.reason == "error" and error.status == 400
    assert str(error).startswith(name) and "5000" in str(error)


def test_another_model_does_not_exist():
    error = refusal({"prompt": PROMPT, "model": "gpt-5"})
    assert (error.status, error.code) == (404, "model_not_found")
    assert completion_of({"prompt": PROMPT, "model": "stories"}, SERVED)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [5]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": "x", "name": "Ann"}]},
        {"messages": [*SAID, {"role": "assistant", "content": "x"}]},
        {"messages": SAID, "top_logprobs": 2},
        {"messages": SAID, "tools": [{"type": "function"}]},
        {"messages": SAID, "echo": True},
        {"messages": SAID, "max_tokens": 0},
    ],
)
def test_a_conversation_that_cannot_be_answered_is_refused(body):
    assert refusal(body, read=chat_of).status == 400


@pytest.mark.parametrize("body", [None, 5, "x", [], [{}], {"prompt": {}}])
def test_a_body_of_another_shape_is_refused(body):
    assert refusal(body).status == refusal(body, read=chat_of).status == 400


NAMES = ["prompt", "messages", "n", "stop", "logit_bias", "echo", "logprobs", "seed"]
NAMES += [
    "response_format",
    "stream_options",
    "top_k",
    "regex",
    "dry_sequence_breakers",
]
NAMES += ["max_tokens", "watermarking_config", "eos_token_id", "temperature", "tools"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*NAMES, "type", "role", "content"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), st.booleans())
@example({"prompt": "x", "stream_options": {"include_usage": 5}}, False)
@example({"prompt": "x", "response_format": {"type": []}}, False)
@example({"messages": [{"role": [], "content": "x"}]}, True)
def test_any_json_is_read_or_refused(body, chat):
    base = {"messages": SAID} if chat else {"prompt": PROMPT}
    try:
        (chat_of if chat else completion_of)(base | body, SERVED)
    except Refused as error:
        assert error.status in (400, 404)
        json.dumps(failure(error))
