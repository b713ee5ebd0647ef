"""How the command ends: exit codes, one line, whoever stops it and wherever it writes."""

import configparser
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import run, started
from test_golden_record import called

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-m", "npllama"]


def command(*words, **streams):
    return started([*COMMAND, *words], env=ENVIRONMENT, **streams)


HELPS = [(), ("generate",), ("info",), ("golden",), ("golden", "record"), ("roofline",)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
@pytest.mark.parametrize("words", [*[(*w, "--help") for w in HELPS], ("info",)])
def test_what_cannot_be_printed_is_a_failure(words):
    with (
        open("/dev/full", "w") as full,
        command(
            *words, stdout=full, stderr=subprocess.PIPE, encoding="utf-8"
        ) as process,
    ):
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.count("\n") == 1
    assert "No space left on device" in err


def test_help_is_printed_where_it_can_be(capsys):
    for words in HELPS:
        code, out, err = called(capsys, *words, "--help")
        assert code == 0 and out.startswith("usage: npllama") and not err


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_with_one_line_and_code_130(number):
    words = ("generate", "Once upon a time", "--max-new-tokens", "500", "--seed", "1")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with command(*words, "--suppress-tokens", "[2]", **pipes) as process:
        assert process.stdout.read(1) == b"O"  # it has begun
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"npllama generate: interrupted\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_recording_that_is_ended_leaves_nothing(tmp_path, number):
    words = ("golden", "record", "stories", "--tokens", ",".join(["1"] * 500))
    with command(
        *words, "-o", str(tmp_path / "g.npz"), stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not os.listdir(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and os.listdir(tmp_path) == []
    assert err == b"npllama golden: interrupted\n"


# ---- while Python imports -------------------------------------------------------

# As installed, by the file outside of the package; says when imports begin.  (Python's
# own start, some 30 milliseconds before that, is out of reach.)
FIRST = """
import sys, npllama_command

class Tells:
    def find_spec(self, name, path, target=None):
        if name == "npllama":
            print("begun", flush=True)

sys.meta_path.insert(0, Tells())
sys.exit(npllama_command.main())
"""


def test_an_interrupt_in_the_first_second_is_one_line():
    rng = random.Random(0)
    # Eight beams that may not end: on a fast machine a story would be told in time.
    long = ["--num-beams", "8", "--min-new-tokens", "500", "--max-new-tokens", "500"]
    for i in range(8):
        arguments = [sys.executable, "-c", FIRST, "generate", "Once", *long]
        with started(
            arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"begun\n"
            time.sleep(0.01 if i == 0 else rng.uniform(0.01, 0.8))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err in (b"npllama: interrupted\n", b"npllama generate: interrupted\n")


def test_a_command_that_reads_no_text_imports_no_tokenizer():
    code = (
        "import sys; sys.modules['tiktoken'] = sys.modules['sentencepiece'] = None\n"
        "from npllama.cli.main import main\n"
        "assert main(['flops', '--config', 'llama-3-8b']) == 0\n"
        "assert main(['info', 'llama-3-8b']) == 0\n"
        "sys.exit(main(['generate', 'Once']))\n"
    )
    done = run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert b"pip install sentencepiece" in done.stderr


def test_the_installed_command_is_the_one_that_hears_from_the_first_moment():
    entries = configparser.ConfigParser()
    entries.read(ROOT / "setup.cfg", encoding="utf-8")
    scripts = entries["options.entry_points"]["console_scripts"]
    assert "npllama = npllama_command:main" in scripts
    assert "npllama_command" in entries["options"]["py_modules"].split()
