"""Every token counts once, at its own window, and the number is the definition's."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, random_model, seeds, token_ids
from tolerances import assert_close, depth

from npllama.cache import new_cache
from npllama.cli.main import main
from npllama.contexts.perplexity import Window, halves, perplexity, strided, surprise
from npllama.decoding.logprobs import text_logprobs
from npllama.model import forward


@given(st.integers(2, 60), st.integers(2, 30), st.integers(1, 29))
@example(10, 4, 2)
@example(9, 4, 3)
@example(4, 9, 4)
def test_every_token_but_the_first_counts_once_with_enough_before_it(n, length, stride):
    stride = min(stride, length - 1)
    windows = strided(n, length, stride)
    counted = [i for w in windows for i in range(w.first, w.end)]
    assert counted == list(range(1, n))
    for window in windows:
        assert 1 <= window.end - window.begin <= length
        assert window.begin < window.first < window.end
        assert window.begin == 0 or window.first - window.begin >= length - stride
    assert len(windows) == max(0, math.ceil((n - length) / stride)) + 1


def test_halves_are_those_of_llama_cpp():
    # n_ctx 512: positions 256 to 510 of each tell of tokens 257 to 511.
    first, second = halves(1500, 512)
    assert first == (0, 257, 512) and second == (512, 769, 1024)
    # An odd window: first = 7 // 2 = 3, and 7 - 3 - 1 tokens count.
    assert halves(7, 7) == [(0, 4, 7)]


@given(seeds, st.integers(2, 24), st.integers(3, 12))
@example(0, 20, 7)
@example(1, 24, 12)
def test_the_number_is_what_the_definition_says(seed, n, length):
    model = random_model(DISTINCT, seed, "float64")
    tokens = token_ids(DISTINCT, seed, n).tolist()
    found = perplexity(model, tokens, strided(n, length, 2))
    expected = {}
    for begin, first, end in strided(n, length, 2):
        cache = new_cache(DISTINCT, 1, end - begin, "float64")
        logits = forward(model, np.array([tokens[begin:end]]), cache)[0]
        for i in range(first, end):
            p = np.exp(logits[i - begin - 1])
            expected[i] = -math.log(p[tokens[i]] / p.sum())
    assert found.places.tolist() == sorted(expected)
    nats = np.array([expected[i] for i in sorted(expected)])
    assert_close(found.nats, nats, depth(DISTINCT, n), scale=1 + nats.max())
    assert found.perplexity == pytest.approx(math.exp(nats.mean()))
    error = math.exp(nats.mean()) * math.sqrt(
        (np.square(nats).mean() - nats.mean() ** 2) / max(len(nats) - 1, 1)
    )
    assert len(nats) == 1 or found.error == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_a_window_begins_with_bos_where_that_is_wanted():
    model = random_model(DISTINCT, 1)
    tokens = token_ids(DISTINCT, 1, 9).tolist()
    windows = halves(9, 4)
    found = perplexity(model, tokens, windows, bos=2)
    for window, nats in zip(windows, found.nats):
        text = [2, *tokens[window.begin + 1 : window.end]]
        (entry,) = text_logprobs(model, text, start=3)
        assert nats == pytest.approx(-entry.logprob)
    assert tokens == token_ids(DISTINCT, 1, 9).tolist()


def test_a_long_window_is_read_in_pieces(monkeypatch):
    model, tokens = random_model(DISTINCT, 3), token_ids(DISTINCT, 3, 20).tolist()
    whole = surprise(model, tokens, Window(0, 13, 20))
    monkeypatch.setattr("npllama.contexts.perplexity.PREFILL_CHUNK", 4)
    assert np.allclose(surprise(model, tokens, Window(0, 13, 20)), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: strided(9, 4, 4), "less than the window"),
        (lambda: strided(9, 4, 0), "less than the window"),
        (lambda: strided(1, 4, 2), "1 tokens; 2 or more"),
        (lambda: halves(9, 2), "3 or more are needed"),
        (lambda: halves(9, 10), "9 tokens; 10 or more"),
    ],
)
def test_windows_that_make_no_sense_are_refused(make, line):
    with pytest.raises(ValueError, match=line):
        make()


#  ---- the command --------------------------------------------------------------


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text(
        "Once upon a time there was a girl called Lily. She had a red kite. " * 4
    )
    return str(file)


def told(capsys, *words):
    assert main(["perplexity", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_prints_the_number_and_every_token(story, capsys):
    found = told(capsys, story, "--length", "32")
    nats = [entry["nats"] for entry in found["counted"]]
    assert [entry["place"] for entry in found["counted"]] == list(
        range(1, found["tokens"])
    )
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)))
    assert found["windows"][1] == {"begin": 16, "first": 32, "end": 48}
    assert main(["perplexity", story, "--length", "32"]) == 0
    assert f"perplexity {found['perplexity']:.4f} +/-" in capsys.readouterr().out
    # A window more is not the same number, and llama.cpp's is another one.
    theirs = told(capsys, story, "--length", "32", "--convention", "llama.cpp")
    assert len(theirs["counted"]) == 15 * (found["tokens"] // 32)


@pytest.mark.slow
def test_processes_find_the_same(story, capsys):
    alone = told(capsys, story, "--length", "32")
    assert told(capsys, story, "--length", "32", "--workers", "2") == alone


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--stride", "0"], "a stride is 1 or more"),
        (["--stride", "4", "--convention", "llama.cpp"], "windows stand side by side"),
        (["--length", "9999", "--convention", "llama.cpp"], "9999 or more are needed"),
        (["--workers", "0"], "--workers must be from 1 to 1024"),
    ],
)
def test_wrong_use_is_one_line(story, words, line, capsys):
    assert main(["perplexity", story, *words]) == 2
    message = capsys.readouterr().err
    assert line in message and len(message.splitlines()) == 1


def test_a_file_that_is_no_text_is_one_line(tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    assert main(["perplexity", str(tmp_path / "x")]) == 2
    assert "is not UTF-8" in capsys.readouterr().err
    assert main(["perplexity", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
