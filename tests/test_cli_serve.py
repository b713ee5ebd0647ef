"""``npllama serve`` before it serves; the rest is in tests/oracle, since it needs an extra."""

import argparse
import asyncio
import socket
import sys
from types import SimpleNamespace

import pytest
from needs import needs
from test_cli import called

from npllama import load
from npllama.cli.options import UsageError
from npllama.cli.serve import (
    GIB,
    add_commands,
    check,
    listening,
    pages_of,
    read_key,
    run_serve,
)
from npllama.cost import cache_bytes
from npllama.serving.fields import Refused


def options(*words):
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


def test_what_is_missing_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, out, err = called(capsys, "serve")
    assert code == 1 and out == ""
    assert err == (
        "npllama serve: starlette and uvicorn are needed: pip install npllama[serve]\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "65536"],
        ["--port", "-1"],
        ["--pages", "0"],
        ["--page-size", "0"],
        ["--memory", "nan"],
        ["--memory", "0"],
        ["--drain", "-1"],
        ["--max-seconds", "inf"],
        ["--max-queue", "0"],
        ["--max-num-seqs", "0"],
        ["--max-num-seqs", "9", "--max-num-batched-tokens", "8"],
        ["--pages", "5", "--memory", "1"],
    ],
)
def test_sizes_out_of_range_are_misuse(words):
    with pytest.raises(UsageError, match="--"):
        check(options(*words))


def test_a_taken_port_is_one_line_and_small_answers_leave_at_once():
    with listening("127.0.0.1", 0) as place:
        assert place.proto == socket.IPPROTO_TCP  # asyncio asks this for TCP_NODELAY
        port = place.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1 port {port}: .*in use; --port"):
            listening("127.0.0.1", port)


def test_a_key_may_lie_in_a_file(tmp_path):
    (tmp_path / "key").write_text("secret\n")
    assert read_key(f"@{tmp_path / 'key'}") == read_key("secret") == "secret"
    assert read_key(None) is None
    for key in ("", "@"):
        with pytest.raises((UsageError, OSError)):
            read_key(key)


def test_pages_are_those_of_so_many_contexts_or_of_so_much_memory():
    model = load("stories")
    context = model.config.max_position_embeddings
    page = cache_bytes(model.config, 16, 4)
    assert pages_of(options(), model) == min(16 * context // 16, GIB // page)
    assert pages_of(options("--max-num-seqs", "2"), model) == 2 * context // 16
    assert pages_of(options("--pages", "7"), model) == 7
    assert pages_of(options("--memory", str(10.5 * page / GIB)), model) == 10
    with pytest.raises(ValueError, match="one page takes"):
        pages_of(options("--memory", str(0.5 * page / GIB)), model)


class Message:
    """A request whose body comes in pieces, after pauses."""

    def __init__(self, *pieces, pause=0.0, **headers):
        self.pieces, self.pause = pieces, pause
        self.headers = {name.replace("_", "-"): x for name, x in headers.items()}

    async def stream(self):
        for piece in self.pieces:
            await asyncio.sleep(self.pause)
            yield piece


@pytest.mark.parametrize(
    ("message", "status", "says"),
    [
        (Message(b"{}", content_length="10000000000", pause=9), 413, "than 20 bytes"),
        (Message(b"x" * 21), 413, "than 20 bytes"),
        (Message(b"x" * 15, b"x" * 15), 413, "than 20 bytes"),
        (Message(b"{", b"}", pause=9), 408, "did not arrive within 0.01 seconds"),
        (Message(b"\x1f\x8b", content_encoding="gzip"), 415, r"compressed \(gzip\)"),
        (Message(b"{"), 400, "not JSON"),
        (Message(b"\xff\xff"), 400, "not JSON"),
        (Message(b"[" * 20), 400, "not JSON"),
        (Message(), 400, "not JSON"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_and_not_waited_for(
    message, status, says, monkeypatch
):
    needs("starlette", "serve")
    from npllama.serving import clients

    monkeypatch.setattr(clients, "PATIENCE", 0.01)
    with pytest.raises(Refused, match=says) as refusal:
        asyncio.run(clients.body_of(message, 20))
    assert refusal.value.status == status


def test_a_body_may_come_in_pieces():
    needs("starlette", "serve")
    from npllama.serving.clients import body_of

    message = Message(b"[1,", b" 2]", content_length="7", content_encoding="Identity")
    assert asyncio.run(body_of(message, 7)) == [1, 2]


def test_what_fails_to_import_is_not_called_missing(monkeypatch):
    needs("uvicorn", "serve")
    monkeypatch.setitem(sys.modules, "npllama.serving.http", SimpleNamespace())
    with pytest.raises(ImportError, match="app_of"):
        run_serve(options())


def test_a_missing_model_is_told_before_an_address(capsys):
    needs("starlette", "serve")
    needs("uvicorn", "serve")
    with pytest.raises(FileNotFoundError, match="no weights file nowhere.npz"):
        run_serve(options("nowhere.npz", "--port", "0"))
    assert capsys.readouterr().err == ""


async def echo(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"yes"})


async def spoken(*pieces, pause):
    """What a server says to a client that dawdles, until it closes the connection."""
    import uvicorn
    from uvicorn.server import ServerState

    from npllama.serving.dawdlers import Patient

    config = uvicorn.Config(echo, http=Patient, ws="none", lifespan="off")
    loop, state = asyncio.get_running_loop(), ServerState()
    server = await loop.create_server(
        lambda: Patient(config, state, {}), "127.0.0.1", 0
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        said = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    return said


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
LAST = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        ((), 0),
        ((HEAD,), 0),
        ((b"G", b"E"), 0),
        ((HEAD + b"\r\n", HEAD), 1),
        ((HEAD + LAST,), 1),
        ((HEAD + b"\r\n", HEAD + LAST), 2),
    ],
)
def test_a_client_that_never_says_what_it_wants_is_left(pieces, answers, monkeypatch):
    needs("uvicorn", "serve")
    from npllama.serving import dawdlers

    monkeypatch.setattr(dawdlers, "PATIENCE", 0.2)
    said = asyncio.run(spoken(*pieces, pause=0.1))
    assert said.count(b"HTTP/1.1 200") == answers
