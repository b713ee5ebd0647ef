"""A server that runs while tests speak to it."""

import json
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import NamedTuple

import children

ROOT = Path(__file__).parent.parent.parent


class Server(NamedTuple):
    """Where a server listens, and its process."""

    url: str
    process: object
    said: list  # lines of its standard error

    def get(self, path):
        """The text of a page."""
        with urllib.request.urlopen(self.url + path, timeout=60) as page:
            return page.read().decode()

    def post(self, path, body, raw=False):
        """(status, object) of an answer."""
        data = body if raw else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        try:
            with urllib.request.urlopen(request, timeout=120) as page:
                return page.status, json.loads(page.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def metrics(self):
        """{name without prefix and labels: value}, of all but histograms' buckets."""
        lines = re.findall(
            r"^npllama:(\w+)\{[^}]*\} (\S+)$", self.get("/metrics"), re.M
        )
        return {name: float(value) for name, value in lines}

    def end(self, number=signal.SIGTERM):
        """Ask the server to end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


def wait_for(condition, seconds=60):
    """Wait until this is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


@contextmanager
def serving(*words, limit=600):
    """Run ``npllama serve`` on a free port."""
    command = [sys.executable, "-m", "npllama", "serve", *words, "--port", "0"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    with children.started(
        command, limit=limit, stderr=PIPE, text=True, env=environment
    ) as process:
        said = []
        reading = threading.Thread(
            target=lambda: said.extend(process.stderr), daemon=True
        )
        first = process.stderr.readline()
        said.append(first)
        reading.start()
        match = re.search(r"http://\S+", first)
        assert match, first + process.stderr.read()
        wait_for(lambda: any("is ready" in line for line in list(said)))
        yield Server(match[0], process, said)
