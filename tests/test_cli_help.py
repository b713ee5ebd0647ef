"""What the command line says of itself, and how it shows log-probabilities."""

import io
import json
import math
import re

import pytest

import npllama
from npllama.cli import logprobs
from npllama.cli.main import COMMANDS, RUN, main


def called(capsys, *words):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_alone_it_says_what_there_is(capsys):
    code, out, err = called(capsys)
    assert code == 0 and err == ""
    named = re.findall(r"^  ([a-z-]+)  ", out, re.M)
    assert set(RUN) <= set(named)
    assert sorted(RUN) == sorted(name for part in COMMANDS.values() for name in part)
    assert max(map(len, out.splitlines())) <= 79


def test_version(capsys):
    assert called(capsys, "--version") == (0, f"npllama {npllama.__version__}\n", "")


@pytest.mark.parametrize(
    "words, hint",
    [
        ("flop", "do you mean flops?"),
        ("prplexity", "do you mean perplexity?"),
        ("zzz", "there is no command 'zzz' (try"),
        ("generate Once upon", "in quotes"),
        ("perplexity a b", "unrecognized arguments: b (try"),
        ("generate x --temprature 0", "do you mean --temperature?"),
        ("chat --sed=1", "do you mean --seed?"),
        (f"generate hi --json-schema {__file__}", f"for the file: @{__file__}"),
        ("endless --tokens 99999999 --plot x.doc", "must end in .png"),
        (f"ranks {__file__} --plot x.doc", "must end in .png"),
        ("roofline --config llama-2-7b --hardware this-machine --plot x.doc", ".png"),
    ],
)
def test_mistakes_get_a_hint(capsys, words, hint):
    code, out, err = called(capsys, *words.split())
    assert code == 2 and out == "" and err.count("\n") == 1
    assert hint in err and err.startswith("npllama")


@pytest.mark.parametrize("command", ["generate", "chat", "explain", "perplexity"])
def test_options_stand_in_groups_each_under_one_title(capsys, command):
    _, out, _ = called(capsys, command, "--help")
    titles = re.findall(r"^([A-Za-z].*):$", out, re.M)
    assert len(titles) == len(set(titles)) and "Model" in titles
    if command != "perplexity":  # which has few
        first = out.partition("\noptions:\n")[2].partition("\n\n")[0]
        assert len(re.findall(r"^  -", first, re.M)) <= 8 and len(titles) >= 10


@pytest.mark.parametrize(
    ("command", "tokens"), [("generate", 256), ("chat", 256), ("explain", 60)]
)
def test_help_tells_the_length_that_a_command_takes(capsys, command, tokens):
    _, out, _ = called(capsys, command, "--help")
    says = " ".join(out.partition("--max-new-tokens")[2].split("--")[0].split())
    assert f"default: {tokens})" in says


# ---- log-probabilities ----------------------------------------------------------

ASKED = ["generate", "Once upon", "--seed", "4", "--max-new-tokens", "6"]
ASKED += ["--logprobs", "2", "--prompt-logprobs"]


def test_the_table_has_the_numbers_of_json(capsys):
    code, out, _ = called(capsys, *ASKED, "--json")
    told = json.loads(out)["texts"][0]
    code, out, err = called(capsys, *ASKED)
    assert code == 0 and out == "Once upon" + told["text"] + "\n\n"
    rows = err.splitlines()
    entries = [None, *told["prompt_logprobs"][1:], *told["logprobs"]]
    assert rows[1].strip() == "<s>"
    for row, entry in list(zip(rows[1:], entries))[1:]:
        assert row.startswith(f'"{entry["text"]}"')
        numbers = [float(n) for n in re.findall(r"(?<= )-?\d+\.?\d*(?= |$)", row)]
        p = math.exp(entry["logprob"])
        assert numbers[0] == pytest.approx(p, abs=6e-5)
        assert numbers[1] == pytest.approx(entry["logprob"], abs=6e-4)
        if entry["processed"] is not None:
            drawn = math.exp(entry["processed"])
            assert numbers[2] == pytest.approx(drawn, abs=6e-5)
        for (_, log), text in zip(entry["top"], entry["top_text"]):
            assert f'"{text}" {math.exp(log):.3f}' in row


def test_what_ends_the_text_is_a_token_of_the_table(capsys):
    words = ["generate", "--tokens", "1", "--eos-token-id", "[544]", "--logprobs", "0"]
    _, out, err = called(capsys, *words, "--temperature", "0", "--max-new-tokens", "3")
    assert err.splitlines()[1].split()[:2] == ['"', 'Once"'] and out == "<s> Once\n\n"


@pytest.mark.parametrize("way", ["--stream-window=64", "--cache-bits=4"])
def test_a_text_that_only_streams_has_no_table(capsys, way):
    code, out, err = called(capsys, *ASKED, way)
    assert code == 2 and out == "" and "no log-probabilities" in err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("no_color", [False, True])
@pytest.mark.parametrize("stop", [None, "curious", "time"])
def test_colours_change_no_letter_of_the_text(capsys, monkeypatch, no_color, stop):
    words = ["generate", "Once upon", "--seed", "4", "--temperature", "1.5"]
    words += ["--max-new-tokens", "9", "--logprobs", "1"]
    if stop:
        words += ["--stop-strings", stop, "--no-include-stop-str-in-output"]
    _, plain, _ = called(capsys, *words)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", Terminal())
    main(words)
    shown = logprobs.sys.stdout.getvalue()
    assert re.sub(r"\x1b\[[\d;]*m", "", shown) == plain
    unlikely = stop != "time"  # " a cu..." is; " a" is not
    assert ("\x1b[" in shown) == (unlikely and not no_color)


def test_a_model_cannot_colour_the_terminal(monkeypatch):
    from npllama.decoding.logprobs import TokenLogprob
    from npllama.generation.generate import Generation

    model = npllama.load("stories")
    text = "\x1b[2J"
    tokens = [model.tokenizer.encode(letter)[-1] for letter in text]
    entries = [TokenLogprob(token, -5.0, 9, []) for token in tokens]
    found = Generation([1], tokens, text, "length", None, entries)
    shown = logprobs.coloured(model, found)
    assert "\x1b[2J" not in re.sub(r"\x1b\[(97;41|0)m", "", shown)
    assert "\x1b[" not in logprobs.logprob_table(model, found)
    assert logprobs.coloured(model._replace(tokenizer=None), found) == "\\x1b[2J"
