"""``npllama serve``: the model over HTTP, as OpenAI's clients speak it.

Ctrl-C or SIGTERM drains the server: nothing new is begun (503), what runs is
finished.  The exit code is 0 then; it is 130 if something was cut off, after the time
that ``--drain`` allows or at a second signal.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import logging
import math
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from npllama import __version__
from npllama.cli.options import UsageError, add_context_option, in_context
from npllama.cost import cache_bytes
from npllama.decoding.common import context_length
from npllama.files.checkpoint import load, locate
from npllama.files.ending import INTERRUPTED
from npllama.serving.desk import Desk
from npllama.serving.engine import Engine
from npllama.serving.offered import offered
from npllama.serving.scheduler import Limits
from npllama.weights import Model

EXAMPLES = """\
examples:
  npllama serve
  npllama serve weights.npz --port 8080 --api-key @key.txt
  npllama serve weights.npz --golden
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}'

In a browser, /explain shows how a text comes about (not with --api-key, which a link
cannot send).
"""
NEEDS = "starlette and uvicorn are needed: pip install npllama[serve]"
LOOK = 0.1  # seconds between two looks at whether all is finished
LAST_WORDS = 5  # seconds for answers that are on their way
GIB = 2**30


def add_commands(commands) -> None:
    """Add ``serve``."""
    command = commands.add_parser(
        "serve",
        help="answer over HTTP, as OpenAI's clients speak",
        description="Answer over HTTP, as OpenAI's clients speak.  Options of "
        "generation are fields of a request, under their names here.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    option = command.add_argument
    # fmt: off
    option("model", nargs="?", default="stories", metavar="MODEL",
           help="an .npz, or the name of a shipped model (default: stories)")
    option("--name", help="what clients call the model (default: its file's name)")
    option("--host", default="127.0.0.1",
           help="address to listen at (default: 127.0.0.1, this machine alone)")
    option("--port", type=int, default=8000, metavar="N",
           help="0 takes a free one (default: 8000)")
    option("--api-key", metavar="KEY",
           help="serve only who sends this key; @FILE reads it from there")
    option("--golden", action="store_true",
           help="float64, and every text's bits the same in any company")
    add_context_option(command)
    add_sizes(option)
    option("--max-body-bytes", type=int, default=2**22, metavar="N",
           help="of a request (default: 4194304)")
    option("--max-queue", type=int, default=256, metavar="N",
           help="texts that run or wait; more are refused with 429 (default: 256)")
    option("--max-seconds", type=float, default=600.0, metavar="X",
           help="for a request; its text ends then (default: 600)")
    option("--drain", type=float, default=30.0, metavar="X",
           help="seconds to finish what runs when the server is to end (default: 30)")
    # fmt: on


def add_sizes(option: Any) -> None:
    """How much is run at once."""
    # fmt: off
    option("--max-num-seqs", type=int, default=16, metavar="N",
           help="texts that run at once (default: 16)")
    option("--max-num-batched-tokens", type=int, default=512, metavar="N",
           help="tokens of one pass; longer prompts run in pieces (default: 512)")
    option("--page-size", type=int, default=16, metavar="P",
           help="positions of a page (default: 16)")
    option("--pages", type=int, metavar="Q", help="pages of the pool")
    option("--memory", type=float, metavar="GB",
           help="the same, in GiB (default: what --max-num-seqs full contexts need, "
           "but at most 1 GiB)")
    option("--no-prefix-cache", action="store_true",
           help="do not share pages between requests that begin alike")
    # fmt: on


def run_serve(options: argparse.Namespace) -> int:
    """Serve until a signal comes; return the exit code."""
    try:
        import uvicorn

        from npllama.explain.served import route_of
        from npllama.serving.clients import Bounds, State
        from npllama.serving.dawdlers import Patient
        from npllama.serving.http import app_of
    except ModuleNotFoundError:
        raise ValueError(NEEDS) from None
    limits, key = check(options), read_key(options.api_key)
    locate(options.model)  # a missing file is told before the address
    bounds = Bounds(options.max_body_bytes, options.max_queue, options.max_seconds, key)
    state, place = State(bounds), listening(options.host, options.port)
    settings = uvicorn.Config(
        app_of(state, [route_of(options.max_seconds)]),
        http=Patient,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        limit_concurrency=2 * options.max_queue + 64,
        timeout_graceful_shutdown=LAST_WORDS,
    )
    failed: list[Exception] = []
    engine = threading.Thread(
        target=load_and_run, args=(options, limits, state, failed), daemon=True
    )
    # It warns of every client that leaves while it is written to.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with place:
        say_where(options, place, key)
        engine.start()
        server = uvicorn.Server(settings)
        code = asyncio.run(until_ended(server, place, state, engine, options.drain))
    if failed:
        raise failed[0]
    return code


#  ---- what was asked -----------------------------------------------------------


def check(options: argparse.Namespace) -> Limits:
    """Limits of a step; UsageError if an option is out of range."""
    least = {
        "page_size": 1,
        "pages": 1,
        "max_body_bytes": 1,
        "max_queue": 1,
        "max_seconds": 1e-3,
        "memory": 1e-6,
        "drain": 0,
        "port": 0,
    }
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and not low <= value < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; {low:g} or more")
    if options.port > 65535:
        raise UsageError(f"--port is {options.port}; from 0 to 65535")
    if options.pages is not None and options.memory is not None:
        raise UsageError("--pages and --memory say the same: give one")
    try:
        return Limits(options.max_num_batched_tokens, options.max_num_seqs)
    except ValueError as error:
        raise UsageError(f"--max-num-seqs, --max-num-batched-tokens: {error}") from None


def read_key(key: str | None) -> str | None:
    """The API key, which may lie in a file."""
    if key is not None and key.startswith("@"):
        key = Path(key[1:]).read_text(encoding="utf-8").strip()
    if key == "":
        raise UsageError("--api-key is empty")
    return key


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address; OSError, in one line, if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        place = socket.create_server((host, port), family=family)
        # asyncio sends small answers at once only on sockets that name their protocol.
        kind = family, socket.SOCK_STREAM, socket.IPPROTO_TCP
        return socket.socket(*kind, fileno=place.detach())
    except OSError as error:
        # Python itself adds the address to the message in some cases.
        why = os.strerror(error.errno) if error.errno in errno.errorcode else error
        hint = "; --port chooses another" if error.errno == errno.EADDRINUSE else ""
        raise OSError(f"{host} port {port}: {why}{hint}") from None


def say_where(
    options: argparse.Namespace, place: socket.socket, key: str | None
) -> None:
    """Tell the address, and who may use it."""
    host, port = place.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"npllama serve: http://{shown}:{port}", file=sys.stderr, flush=True)
    if key is None and not ipaddress.ip_address(host).is_loopback:
        print(
            "npllama serve: whoever reaches this address may use the model; "
            "--api-key asks for a key",
            file=sys.stderr,
            flush=True,
        )


#  ---- the engine's thread --------------------------------------------------------


def load_and_run(
    options: argparse.Namespace, limits: Limits, state: Any, failed: list[Exception]
) -> None:
    """Load the model, then write texts until the desk is closed.

    Writes
    ------
    Into `state`; into `failed` if the model cannot be served.
    """
    try:
        model = load(options.model, "float64" if options.golden else "float32")
        model = in_context(model, options.context)
        pages = pages_of(options, model)
        engine = Engine(
            model, pages, options.page_size, limits, not options.no_prefix_cache
        )
        arithmetic = "float64-rowwise" if options.golden else model.embed.dtype.name
        state.served = offered(
            model,
            options.name or Path(options.model).stem,
            f"npllama-{__version__}-{arithmetic}",
            pages * options.page_size,
            int(time.time()),
        )
        state.desk = desk = Desk(engine)
    except (Exception, MemoryError) as error:
        failed.append(error)
        return
    print(f"npllama serve: {options.model} is ready", file=sys.stderr, flush=True)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        desk.run(bitwise=options.golden)


def pages_of(options: argparse.Namespace, model: Model) -> int:
    """Pages of the pool."""
    if options.pages is not None:
        return options.pages
    one = cache_bytes(model.config, 1, model.embed.dtype.itemsize)  # of a position
    positions = context_length(model.config) * options.max_num_seqs
    if options.memory is not None:
        positions = options.memory * GIB / one
    else:
        positions = min(positions, max(GIB / one, options.page_size))
    pages = int(positions // options.page_size)
    if pages < 1:
        need = one * options.page_size
        raise ValueError(
            f"--memory {options.memory:g}: one page takes {need:,.0f} bytes"
        )
    return pages


#  ---- the end ------------------------------------------------------------------


async def until_ended(
    server: Any,
    place: socket.socket,
    state: Any,
    engine: threading.Thread,
    patience: float,
) -> int:
    """Serve; after a signal, finish what runs; return the exit code."""
    heard: list[int] = []
    server.handle_exit = lambda number, frame: heard.append(number)
    serving = asyncio.create_task(server.serve(sockets=[place]))
    began = cut_off = None
    while not serving.done():
        await asyncio.sleep(LOOK)
        if not engine.is_alive():
            server.should_exit = True
        if not heard:
            continue
        state.draining, now = True, time.monotonic()
        began = now if began is None else began
        late = now - began > patience or len(heard) > 1
        if late or not state.open:
            cut_off = state.open > 0 if cut_off is None else cut_off
            server.should_exit, server.force_exit = True, late
    await serving
    if state.desk is not None:
        state.desk.close()
        await asyncio.to_thread(engine.join, LAST_WORDS)
    return INTERRUPTED if cut_off else 0
