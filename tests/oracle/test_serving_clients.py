"""The clients that people use, against the server: what they ask, what they are told."""

import json
import math
import os
import subprocess
import sys

import children
import numpy as np
import pytest
from needs import needs
from served import serving

from npllama import GenerationConfig, generate, load
from npllama.decoding.logprobs import text_logprobs

openai = needs("openai", "clients")
needs("uvicorn", "serve")

MODEL = load("stories")
PROMPT = "Once upon a time"
SAID = [{"role": "user", "content": "Once upon a time"}]


@pytest.fixture(scope="module")
def server():
    with serving("stories", "--max-num-seqs", "8") as server:
        yield server
        # Whatever the clients did, nothing is left of it.
        assert server.metrics()["kv_cache_usage_perc"] == 0
        assert server.end() == 0
        assert len(server.said) == 2, server.said


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def written(prompt=PROMPT, seed=0, **options):
    """What `generate` writes, with OpenAI's defaults."""
    usual = {"max_new_tokens": 16, "top_k": 0, "include_stop_str_in_output": False}
    config = GenerationConfig(**{**usual, "do_sample": True, **options})
    return generate(MODEL, prompt, config, np.random.default_rng(seed))


# ---- openai -----------------------------------------------------------------


def test_openai_lists_the_model(client):
    assert [model.id for model in client.models.list()] == ["stories"]
    assert client.models.retrieve("stories").id == "stories"


def test_openai_completes(client):
    answer = client.completions.create(model="stories", prompt=PROMPT, seed=3)
    alone = written(seed=3)
    assert answer.choices[0].text == alone.text
    assert answer.usage.completion_tokens == len(alone.tokens)
    assert answer.system_fingerprint.endswith("float32")


def test_openai_streams_what_it_completes(client):
    options = {"model": "stories", "prompt": [PROMPT, "One day"], "seed": 3, "n": 2}
    plain = client.completions.create(**options)
    texts, ends = [""] * 4, 0
    for chunk in client.completions.create(**options, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        ends += choice.finish_reason is not None
    assert ends == 4 and texts == [choice.text for choice in plain.choices]
    assert texts[:2] == [g.text for g in written(seed=3, num_return_sequences=2)]


def test_openai_chats_and_streams(client):
    options = {"model": "stories", "messages": SAID, "max_tokens": 12, "seed": 5}
    answer = client.chat.completions.create(**options)
    usage = {"stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**options, stream=True, **usage)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content != ""
    assert last.usage == answer.usage and last.choices == []
    assert chunks[0].choices[0].delta.role == "assistant"
    for chunk in [*chunks, last]:
        checked = chunk.model_dump()
        assert type(chunk).model_validate(checked) == chunk
    assert type(answer).model_validate(answer.model_dump()) == answer


def test_every_piece_of_a_stream_fits_the_models_of_openai(server):
    from openai.types import Completion
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    body = {"logprobs": 2, "echo": True, "prompt": PROMPT, "max_tokens": 4, "n": 2}
    for raw in (
        body,
        body | {"stream": True, "stream_options": {"include_usage": True}},
    ):
        for data in answers(server, "/v1/completions", raw):
            for choice in data["choices"]:
                fill_what_is_null(choice)
            Completion.model_validate(data, strict=True)
    body = {"logprobs": True, "top_logprobs": 2, "messages": SAID, "max_tokens": 4}
    for raw, kind in (
        (body, ChatCompletion),
        (body | {"stream": True}, ChatCompletionChunk),
    ):
        for data in answers(server, "/v1/chat/completions", raw):
            kind.model_validate(data, strict=True)


def fill_what_is_null(choice):
    """Check and fill what OpenAI's server leaves null, though its models know no null.

    A text that goes on has no reason for its end; the first token has no probability.
    """
    choice["finish_reason"] = choice["finish_reason"] or "stop"
    for key, value in ("token_logprobs", 0.0), ("top_logprobs", {}):
        values = (choice["logprobs"] or {key: [0]})[key]
        assert None not in values[1:]
        values[0] = value if values[0] is None else values[0]


def answers(server, path, body):
    """The objects of an answer, plain or streamed."""
    import httpx

    text = httpx.post(server.url + path, json=body, timeout=60).text
    if not body.get("stream"):
        return [json.loads(text)]
    events = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
    assert events.pop() == "[DONE]" and text.count("[DONE]") == 1
    return [json.loads(event) for event in events]


def test_openai_reads_logprobs(client):
    answer = client.completions.create(
        model="stories", prompt=PROMPT, echo=True, logprobs=3, max_tokens=0
    )
    ids = MODEL.tokenizer.encode(PROMPT)
    truth = [entry.logprob for entry in text_logprobs(MODEL, ids)]
    told = answer.choices[0].logprobs
    assert told.token_logprobs[0] is None
    np.testing.assert_allclose(told.token_logprobs[1:], truth, atol=1e-5)
    chat = client.chat.completions.create(
        model="stories", messages=SAID, logprobs=True, top_logprobs=2, max_tokens=3
    )
    assert [len(t.top_logprobs) for t in chat.choices[0].logprobs.content] == [2] * 3


def test_openai_gets_json(client):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"enum": [5, 6]},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    named = {"type": "json_schema", "json_schema": {"name": "child", "schema": schema}}
    for format in (named, {"type": "json_object"}):
        for seed in range(3):
            answer = client.chat.completions.create(
                model="stories", messages=SAID, response_format=format, seed=seed,
                max_tokens=100,
            )  # fmt: skip
            if answer.choices[0].finish_reason == "stop":
                found = json.loads(answer.choices[0].message.content)
                assert isinstance(found, dict)
                assert format is not named or found["age"] in (5, 6)
            else:
                assert format is not named


def test_openai_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
        client.completions.create(model="gpt-5", prompt=PROMPT)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="stories", prompt=PROMPT, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="stories",
            messages=SAID,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    with pytest.raises(openai.APIError, match="logit_bias holds 5000"):
        list(
            client.completions.create(
                model="stories", prompt=PROMPT, logit_bias={"5000": 1}, stream=True
            )
        )
    with pytest.raises(openai.BadRequestError, match="logit_bias holds 5000"):
        client.completions.create(
            model="stories", prompt=PROMPT, logit_bias={"5000": 1}
        )


def test_openai_passes_the_options_of_this_package_on(client):
    extra = {"top_k": 1}
    answer = client.completions.create(model="stories", prompt=PROMPT, extra_body=extra)
    assert answer.choices[0].text == written(do_sample=False).text


# ---- llm ----------------------------------------------------------------------


def test_the_llm_command_speaks_to_the_server(server, tmp_path):
    needs("llm", "clients")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- {{model_id: told, model_name: stories, api_base: '{server.url}/v1'}}\n"
        f"- {{model_id: continued, model_name: stories, api_base: '{server.url}/v1', "
        "completion: true}\n"
    )
    environment = os.environ | {
        "LLM_USER_PATH": str(tmp_path),
        "OPENAI_API_KEY": "none",
    }
    for name in ("told", "continued"):
        for stream in ([], ["--no-stream"]):
            words = [
                "-m",
                name,
                "-o",
                "temperature",
                "0",
                "-o",
                "max_tokens",
                "8",
                PROMPT,
            ]
            done = children.run(
                [sys.executable, "-m", "llm", *words, *stream],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            alone = written(do_sample=False, max_new_tokens=8).text
            assert done.stdout.strip() == alone.strip()


# ---- llama-index ----------------------------------------------------------------


def test_llama_index_speaks_to_the_server(server):
    like = needs("llama_index.llms.openai_like", "clients")
    options = {"api_base": f"{server.url}/v1", "api_key": "none", "model": "stories"}
    options |= {"temperature": 0, "max_tokens": 8}
    alone = written(do_sample=False, max_new_tokens=8).text
    llm = like.OpenAILike(**options)
    assert llm.complete(PROMPT).text == alone
    assert [part.text for part in llm.stream_complete(PROMPT)][-1] == alone
    chat = like.OpenAILike(**options, is_chat_model=True)
    assert chat.complete(PROMPT).text == alone
    assert [part.text for part in chat.stream_complete(PROMPT)][-1] == alone


# ---- lm-eval --------------------------------------------------------------------

CHOICES = """\
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc}]
"""
TEXTS = """\
task: text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "x"
generation_kwargs: {until: ["."], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match}]
"""
DOCS = [
    {
        "text": "Once upon a time, there was a",
        "choices": ["little", "stock"],
        "right": 0,
    },
    {"text": "She was very", "choices": ["happy", "carburettor", "sad"], "right": 0},
    {"text": "Tom and his mom went to the", "choices": ["purple", "park"], "right": 1},
]


@pytest.fixture(scope="module")
def evaluated(server, tmp_path_factory):
    """What lm-eval reports, and the answers that it got."""
    needs("lm_eval", "clients")
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "docs.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCS)))
    for name, text in ("choice", CHOICES), ("text", TEXTS):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    where = f"model=stories,base_url={server.url}/v1/completions,max_length=512"
    where += ",tokenizer_backend=remote"
    words = ["--model", "local-completions", "--model_args", where]
    words += [
        "--tasks",
        "choice,text",
        "--include_path",
        str(folder),
        "--batch_size",
        "2",
    ]
    words += ["--output_path", str(folder / "out"), "--log_samples"]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder),
    }
    done = children.run(
        [sys.executable, "-m", "lm_eval", *words],
        env=os.environ | offline,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        limit=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    samples = {}
    for name in ("choice", "text"):
        (file,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        samples[name] = [json.loads(line) for line in file.read_text().splitlines()]
    return samples


def test_lm_eval_scores_texts_as_the_model_does(evaluated):
    for sample in evaluated["choice"]:
        doc = sample["doc"]
        context = MODEL.tokenizer.encode(doc["text"], bos=False, eos=False)
        told = [float(pair[0][0]) for pair in sample["resps"]]
        greedy = [pair[0][1] for pair in sample["resps"]]
        for choice, logprob, is_greedy in zip(doc["choices"], told, greedy):
            ids = MODEL.tokenizer.encode(
                f"{doc['text']} {choice}", bos=False, eos=False
            )
            truth = text_logprobs(MODEL, ids, len(context), 1)
            assert math.isclose(logprob, sum(t.logprob for t in truth), abs_tol=1e-4)
            assert str(is_greedy) == str(all(t.rank == 0 for t in truth))
        assert sample["acc"] == (told.index(max(told)) == doc["right"])


def test_lm_eval_reads_texts_up_to_where_they_end(evaluated):
    for sample in evaluated["text"]:
        options = {"do_sample": False, "max_new_tokens": 12, "stop_strings": (".",)}
        # The harness sends ids, and these without a first token.
        ids = MODEL.tokenizer.encode(sample["doc"]["text"], bos=False, eos=False)
        assert sample["resps"] == [[written(ids, **options).text]]
