"""The server under traffic: clients that leave, dawdle, talk nonsense, or are many.

The profile `sweep` of Hypothesis keeps the traffic up for a minute, others for
seconds.
"""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import children
import numpy as np
import pytest
from needs import needs
from profiles import PROFILE
from served import ROOT, serving, wait_for

from npllama import GenerationConfig, generate, load, rowwise
from npllama.decoding.logprobs import text_logprobs

httpx = needs("httpx", "clients")
needs("uvicorn", "serve")

SECONDS = 60 if PROFILE == "sweep" else 6
CLIENTS = 64
MODEL = load("stories")
LONG = {"prompt": "Once upon a time", "max_tokens": 400, "logit_bias": {"2": -100}}


def bodies():
    """Bodies, and the texts that answer them."""
    usual = {"top_k": 0, "do_sample": True}
    for seed, prompt in enumerate(["Once", "One day", "Lily", "The dog was", "Tom"]):
        n, length = 1 + seed % 2, 6 + 5 * seed
        config = GenerationConfig(
            max_new_tokens=length, num_return_sequences=n, **usual
        )
        texts = generate(MODEL, [prompt], config, np.random.default_rng(seed))
        body = {"prompt": prompt, "seed": seed, "n": n, "max_tokens": length}
        yield body, [text.text for text in texts]


KNOWN = list(bodies())


# ---- one client ---------------------------------------------------------------


async def read_plain(client, body):
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


async def read_stream(client, body, pause=0.0, most=None):
    """The texts of a stream; after `most` lines the client leaves."""
    texts, lines, done = [""] * body["n"], 0, 0
    async with client.stream(
        "POST", "/v1/completions", json=body | {"stream": True}
    ) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            lines += 1
            if most is not None and lines > most:
                return None
            if line == "data: [DONE]":
                done += 1
            elif line.startswith("data: "):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["text"]
            await asyncio.sleep(pause)
    assert done == 1
    return texts


async def leave_early(client, body):
    """Ask for a whole text, and hang up before it comes."""
    try:
        await client.post(
            "/v1/completions", json=body | {"max_tokens": 300}, timeout=0.05
        )
    except httpx.TimeoutException:
        pass


async def one_client(client, number, end, counts):
    """Ask again and again; note what went wrong."""
    rng = np.random.default_rng(number)
    kinds = ["plain", "stream", "slow", "vanish", "leave"]
    while time.monotonic() < end:
        body, expected = KNOWN[rng.integers(len(KNOWN))]
        kind = kinds[rng.choice(5, p=[0.3, 0.3, 0.2, 0.1, 0.1])]
        if kind == "plain":
            found = await read_plain(client, body)
        elif kind == "leave":
            found = await leave_early(client, body)
        else:
            pause = 0.03 if kind == "slow" else 0.0
            most = int(rng.integers(1, 6)) if kind == "vanish" else None
            found = await read_stream(client, body, pause, most)
        counts[kind] += 1
        counts["wrong"] += found is not None and found != expected


async def traffic(url, seconds):
    """All clients at once; how often each kind of thing happened."""
    counts, end = Counter(), time.monotonic() + seconds
    many = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=many) as client:
        each = (one_client(client, i, end, counts) for i in range(CLIENTS))
        await asyncio.gather(*each)
    return counts


def memory(server):
    """Resident bytes of the server."""
    with open(f"/proc/{server.process.pid}/status") as file:
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", file.read())[1])


def idle(server):
    """Whether nothing runs and no page is held."""
    told = server.metrics()
    return not any(
        told[name]
        for name in (
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
        )
    )


def test_no_request_is_lost_or_mixed_up_and_no_page_leaks():
    words = ["--pages", "40", "--page-size", "4"]  # fewer than 16 texts may need
    with serving("stories", *words, limit=SECONDS + 300) as server:
        asyncio.run(traffic(server.url, SECONDS / 2))
        wait_for(lambda: idle(server))
        before = memory(server)
        counts = asyncio.run(traffic(server.url, SECONDS / 2))
        wait_for(lambda: idle(server))
        grown = memory(server) - before
        told = server.metrics()
        print(counts, f"{grown / 2**20:.1f} MiB", told)
        assert not counts["wrong"] and counts["plain"] > 5 and counts["vanish"] > 2
        assert grown < 24 * 2**20
        assert told["flops_total"] > 0 and told["num_preemptions_total"] > 0
        for body, expected in KNOWN:
            status, answer = server.post("/v1/completions", body)
            assert status == 200
            assert [choice["text"] for choice in answer["choices"]] == expected
        assert server.end() == 0
        assert len(server.said) == 2, server.said


# ---- nonsense -------------------------------------------------------------------


def nonsense(rng):
    """A body that was damaged on the way."""
    body = {"prompt": "Once", "max_tokens": 2, "seed": 1, "stop": ["a"], "n": 1}
    body |= {"logit_bias": {"5": 1.5}, "temperature": 0.5, "logprobs": 1, "echo": True}
    kind = rng.integers(4)
    if kind == 0:  # another value somewhere
        values = [
            None,
            -1,
            1e400,
            "x",
            [],
            {},
            [[]],
            True,
            2**70,
            "\ud800",
            [None],
            {"": 0},
        ]
        body[rng.choice(list(body))] = values[rng.integers(len(values))]
    data = bytearray(json.dumps(body).encode())
    if kind == 1:  # cut off
        del data[rng.integers(len(data)) :]
    elif kind == 2:  # other bytes
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(len(data))] = rng.integers(256)
    elif kind == 3:  # noise
        data = bytearray(rng.bytes(int(rng.integers(64))))
    return bytes(data)


def test_a_thousand_malformed_bodies_are_refused_one_by_one():
    rng = np.random.default_rng(0)
    with serving("stories") as server, httpx.Client(base_url=server.url) as client:
        statuses = {}
        for _ in range(1000):
            path = rng.choice(["/v1/completions", "/v1/chat/completions", "/tokenize"])
            answer = client.post(path, content=nonsense(rng))
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"}
                assert error["message"] and "\n" not in error["message"]
        print(statuses)
        assert statuses.keys() <= {200, 400, 404} and statuses[400] > 500
        deep = client.post("/v1/completions", content=b"[" * 100_000)
        assert deep.status_code == 400
        for path, status in ("/nowhere", 404), ("/v1/completions", 405):
            answer = client.get(path)
            assert answer.status_code == status and answer.json()["error"]["message"]
        assert server.post("/v1/completions", KNOWN[0][0])[0] == 200
        assert idle(server) and server.end() == 0
        assert len(server.said) == 2, server.said


def test_half_a_request_harms_nobody():
    with serving("stories") as server:
        host, port = server.url.removeprefix("http://").split(":")
        for data in (
            b"", b"GET", b"\x16\x03\x01\x00", b"POST /v1/completions HTTP/1.1\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{",
            b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"x" * 200_000,
        ):  # fmt: skip
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(data)
        assert server.post("/v1/completions", KNOWN[0][0])[0] == 200
        assert server.end() == 0 and len(server.said) == 2, server.said


# ---- limits ---------------------------------------------------------------------


def in_background(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def test_limits_of_body_queue_and_time_are_kept():
    words = ["--max-queue", "4", "--max-body-bytes", "2000", "--max-num-seqs", "2"]
    with serving("stories", *words, "--max-seconds", "20") as server:
        status, answer = server.post("/v1/completions", {"prompt": "x" * 3000})
        assert status == 413 and "2000 bytes" in answer["error"]["message"]
        assert server.post("/v1/completions", LONG | {"n": 3, "seed": 1})[0] == 400
        assert server.post("/v1/completions", LONG | {"prompt": ["x"] * 5})[0] == 400
        asking = [in_background(server.post, "/v1/completions", LONG) for _ in range(4)]
        wait_for(lambda: server.metrics()["num_requests_running"] == 2)
        wait_for(lambda: server.metrics()["num_requests_waiting"] == 2)
        status, answer = server.post("/v1/completions", KNOWN[0][0])
        assert status == 429 and answer["error"]["type"] == "rate_limit_error"
        for thread in asking:
            thread.join(60)
        assert server.post("/v1/completions", KNOWN[0][0])[0] == 200
        assert server.end() == 0
    with serving("stories", "--max-seconds", "0.2") as server:
        status, answer = server.post("/v1/completions", LONG)
        assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] < 400


@pytest.mark.parametrize("leaves", [True, False])
def test_a_watch_tells_who_has_left_and_what_takes_too_long(leaves):
    from npllama.serving.clients import Gone, watch

    class Message:
        async def is_disconnected(self):
            return leaves

    async def told():
        queue = asyncio.Queue()
        await asyncio.wait_for(watch(Message(), queue, 0.6), 30)
        return queue.get_nowait()

    happened = asyncio.run(told())
    if leaves:
        assert isinstance(happened, Gone)
    else:
        assert happened.status == 503 and "longer than 0.6 s" in str(happened)


def test_a_key_is_asked_for(tmp_path):
    (tmp_path / "key").write_text("secret\n")
    with serving("stories", "--api-key", f"@{tmp_path / 'key'}") as server:
        for headers, status in (
            ({}, 401),
            ({"authorization": "Bearer wrong"}, 401),
            ({"authorization": "secret"}, 401),
            ({"authorization": "Bearer secret"}, 200),
        ):
            for path in ("/v1/models", "/metrics"):
                answer = httpx.get(server.url + path, headers=headers)
                assert answer.status_code == status
        assert answer.text.startswith("# HELP")
        assert httpx.get(server.url + "/health").status_code == 200


def test_a_client_that_leaves_gives_its_pages_back():
    with serving("stories") as server:
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}
        ):
            wait_for(lambda: not idle(server))
        wait_for(lambda: idle(server), 10)
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=0.2)
        wait_for(lambda: idle(server), 10)
        page = server.get("/metrics")
        assert re.search(r'request_success_total\{[^}]*"abort"\} 2', page)


# ---- the end --------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_before_the_end(number):
    with serving("stories") as server, httpx.Client(base_url=server.url) as client:
        answers = []
        asking = in_background(
            lambda: answers.append(server.post("/v1/completions", LONG))
        )
        assert client.get("/health").status_code == 200
        wait_for(lambda: not idle(server))
        server.process.send_signal(number)
        wait_for(lambda: client.get("/health").status_code == 503)
        refused = client.post("/v1/completions", json=KNOWN[0][0])
        assert refused.status_code == 503 and "shutting down" in refused.text
        asking.join(60)
        assert answers[0][0] == 200
        assert answers[0][1]["usage"]["completion_tokens"] == 400
        assert server.process.wait(20) == 0
        assert len(server.said) == 2, server.said


@pytest.mark.parametrize("patience", ["0", "100"])
def test_what_is_cut_off_is_told_by_the_exit_code(patience):
    with serving("stories", "--drain", patience) as server:
        body = LONG | {"stream": True, "n": 16, "seed": 1}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body):
            wait_for(lambda: not idle(server))
            server.process.send_signal(signal.SIGTERM)
            if patience == "100":
                time.sleep(0.3)
                server.process.send_signal(signal.SIGINT)
            assert server.process.wait(20) == 130
        assert len(server.said) == 2, server.said


def run(*words):
    return children.run(
        [sys.executable, "-m", "npllama", "serve", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def test_what_cannot_be_served_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]))
        assert done.returncode == 1 and "already in use; --port" in done.stderr
    lines = {
        (): 0,
        ("--port", "70000"): 2,
        ("--page-size", "0"): 2,
        ("--max-num-seqs", "9", "--max-num-batched-tokens", "8"): 2,
        ("--pages", "5", "--memory", "1"): 2,
        ("--api-key", ""): 2,
        ("--api-key", f"@{tmp_path / 'none'}"): 1,
        ("--memory", "0.00001"): 1,
        ("nowhere.npz",): 1,
        ("--host", "no.such.host.invalid"): 1,
    }
    for words, code in lines.items():
        if words:
            done = run("--port", "0", *words) if "--port" not in words else run(*words)
            assert done.returncode == code, (words, done.stderr)
            last = [line for line in done.stderr.splitlines() if "http://" not in line]
            assert len(last) == 1 and last[0].startswith("npllama serve: "), done.stderr


# ---- the reference --------------------------------------------------------------


def test_golden_answers_are_the_reference_bit_for_bit():
    with serving("stories", "--golden") as server:
        model = load("stories", "float64")
        prompts = [model.tokenizer.encode(body["prompt"]) for body, _ in KNOWN]
        body = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 3}
        asking = in_background(server.post, "/v1/completions", LONG)
        _, answer = server.post("/v1/completions", body | {"temperature": 0})
        asking.join(60)
        assert answer["system_fingerprint"].endswith("float64-rowwise")
        for path in ("/health", "/v1/models", "/nowhere"):
            told = httpx.get(server.url + path).headers["x-npllama-arithmetic"]
            assert told == answer["system_fingerprint"]
        with rowwise():
            for prompt, choice in zip(prompts, answer["choices"]):
                whole = generate(model, prompt, max_new_tokens=3, logprobs=1)
                truth = [t.logprob for t in text_logprobs(model, prompt)]
                truth += [t.logprob for t in whole.logprobs]
                assert choice["logprobs"]["token_logprobs"][1:] == truth
