"""``npllama serve`` before it serves; the rest is in tests/oracle, since it needs an extra."""

import argparse
import socket
import sys

import pytest
from test_cli import called

from npllama import load
from npllama.cli.options import UsageError
from npllama.cli.serve import GIB, add_commands, check, listening, pages_of, read_key
from npllama.cost import cache_bytes


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
