"""``npllama forget`` and ``npllama endless``: what is printed is what was measured."""

import json

import numpy as np
import pytest
from needs import needs

import npllama
from npllama.cli.main import main
from npllama.contexts.forgetting import cuts_compared, cuts_of, streams_compared
from npllama.contexts.perplexity import Window, surprise
from npllama.contexts.sparse import Pattern, attending
from npllama.contexts.steady import Tick, draw_steady, slope, ticks, written
from npllama.contexts.streaming import Stream, surprise_of_stream
from npllama.decoding.common import Step
from npllama.sampling import log_softmax

STORY = "Once upon a time there was a girl called Lily. She had a red ball. " * 2


@pytest.fixture(scope="module")
def model():
    return npllama.load("stories-draft")


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text(STORY)
    return str(file)


def printed(words, capsys):
    assert main([*words, "--weights", "stories-draft"]) == 0
    return capsys.readouterr().out


def test_both_tables_are_printed_and_their_numbers_are_those_of_json(story, capsys):
    words = ["forget", story, "--first", "40", "--window", "16", "--sinks", "0,2"]
    shown = printed(words, capsys)
    found = json.loads(printed([*words, "--json"], capsys))
    assert found["tokens"] == 40 and found["prompt"] == 26
    assert len(found["stream"]) == 1 + 2 + 2 + 1 and len(found["prompt cut once"]) == 6
    for outcome in found["stream"] + found["prompt cut once"]:
        assert f"{outcome['way']} | " in shown
        assert f" {outcome['perplexity']:.2f} " in shown
        mean = np.mean(outcome["nats"])
        assert outcome["perplexity"] == pytest.approx(np.exp(mean))
    assert "the last 24 of 40 tokens count" in shown
    assert "cut to 16 keys, once; the last 13 of 40 tokens count" in shown


def test_rows_of_streams_are_the_streams(model):
    tokens = model.tokenizer.encode(STORY)[:40]
    rows = {row.way: row.found for row in streams_compared(model, tokens, 16, [0, 2])}
    assert list(next(iter(rows.values())).places) == list(range(16, 40))
    for way, (sinks, discard) in {
        "0 sinks + last 16": (0, 1),
        "2 sinks + last 14": (2, 1),
        "context shift: 0 first + last 9 to 16": (0, 8),
        "context shift: 2 first + last 8 to 14": (2, 7),
    }.items():
        expected = surprise_of_stream(model, tokens, 16, sinks, discard)[15:]
        assert np.allclose(rows[way].nats, expected, atol=1e-3)


def test_a_prompt_from_which_nothing_is_cut_is_read_as_the_text(model):
    tokens = model.tokenizer.encode(STORY)[:40]
    rows = {r.way: r.found for r in cuts_compared(model, tokens, 26, 12, 2, 6)}
    expected = surprise(model, tokens, Window(0, 27, 40))
    assert np.allclose(rows["nothing"].nats, expected, atol=1e-3)
    others = [found.nats for way, found in rows.items() if way != "nothing"]
    assert all(not np.allclose(nats, expected, atol=1e-3) for nats in others)
    assert len({nats.tobytes() for nats in others}) == 5


def test_only_snapkv_looks_at_what_the_last_queries_saw():
    cuts = cuts_of(12, 1, 6)
    assert [cut.way for cut in cuts if cut.from_last] == [
        "SnapKV, 6 queries, mean",
        "SnapKV, 6 queries, max",
    ]
    assert cuts[2].way == "all but 1 sink and the last 11"


def test_a_prompt_that_is_cut_is_read_on_with_the_rest_hidden(model):
    tokens = np.array(model.tokenizer.encode(STORY)[:40])
    rows = {r.way: r.found for r in cuts_compared(model, tokens, 26, 12, 2, 6)}
    kept = Pattern(
        lambda i, j: (j < 2) | (j >= 16), lambda first, n: np.arange(first + n)
    )
    cache = npllama.new_cache(model.config, 1, 40)
    npllama.forward(model, tokens[None, :26], cache)
    logits = npllama.forward(model, tokens[None, 26:-1], cache, attend=attending(kept))
    nats = -log_softmax(logits[0])[np.arange(13), tokens[27:]]
    found = rows["all but 2 sinks and the last 10"].nats
    assert np.allclose(found, nats, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sinks", "1,x"], "numbers with commas"),
        (["--window", "16", "--sinks", "16"], "do not fit into a window of 16"),
        (["--window", "99"], "more than the window of 99"),
        (["--window", "16", "--prompt", "16"], "--prompt is 16: more than 16"),
        (["--window", "16", "--prompt", "39"], "at most 38"),
    ],
)
def test_wrong_sizes_are_one_line(words, line, story, capsys):
    command = ["forget", story, "--weights", "stories-draft", "--first", "40"]
    assert main([*command, "--sinks", "0", *words]) == 2
    message = capsys.readouterr().err
    assert line in message and len(message.splitlines()) == 1


#  ---- patterns ----------------------------------------------------------------


def test_patterns_print_their_pairs_and_what_two_layers_reach(capsys):
    assert main(["patterns"]) == 0
    shown = capsys.readouterr().out
    for name, pairs in {
        "window, as the paper": "33,264",
        "window, as its code": "32,272",
        "window and strided": "48,144",
        "own block and summaries": "143,872",
    }.items():
        (line,) = [x for x in shown.splitlines() if f" {name} |" in x]
        assert line.count(pairs) == 2  # counted, and in closed form
    rows = dict(
        line.split("|")[1:3] for line in shown.splitlines() if ", then " in line
    )
    reach = {name.strip(): share.strip() for name, share in rows.items()}
    assert reach["own block, then summaries"] == "98.2%"
    assert reach["summaries, then own block"].startswith("24.")
    assert reach["window, then strided"] == "100.0%"


@pytest.mark.parametrize(
    "words", ["--positions 100", "--positions 8192", "--block 0", "--cells 33"]
)
def test_patterns_that_make_no_sense_are_one_line(words, capsys):
    assert main(["patterns", *words.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


#  ---- endless ------------------------------------------------------------------


def test_a_text_is_measured_as_it_grows(capsys):
    words = ["endless", "--tokens", "40", "--stream-window", "16", "--json"]
    found = json.loads(printed(words, capsys))
    assert found["window"] == 16 and found["sinks"] == 4 and found["discard"] == 1
    for noted in found["ways"].values():
        assert [tick["tokens"] for tick in noted] == list(range(1, 41))
        assert all(tick["resident"] > 10**6 for tick in noted)


def test_every_way_of_a_stream_writes_the_same_text(model):
    """Up to rounding, which decided nothing here."""
    texts = []
    for way in ("moved up", "ring"):
        steps = written(model, Stream(24, 2, 1), 60, way)
        texts.append([step.tokens[0] for step in steps])
    assert len(texts[0]) == 60 and texts[0] == texts[1]
    plain = [step.tokens[0] for step in written(model, Stream(24, 2), 60, "all kept")]
    assert plain[:20] == texts[0][:20] and plain != texts[0]


def test_ticks_come_when_so_many_tokens_have():
    steps = [Step([1])] * 10
    assert [tick.tokens for tick in ticks(steps, 3)] == [3, 6, 9]


def test_a_slope_is_told_per_thousand_tokens_and_a_slow_tick_does_not_move_it():
    noted = [Tick(n, 0.01 + n * 1e-6, 0) for n in range(100, 2100, 100)]
    expected = 1000 * 1e-6 / (0.01 + 1050e-6)
    assert slope(noted) == pytest.approx(expected)
    noted[7] = noted[7]._replace(seconds=9.0)
    assert slope(noted) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda model: next(written(model, Stream(8, 1), 9, "rings")),
            "ways are all kept",
        ),
        (lambda _: slope([Tick(10, 0.1, 1)]), "a slope of 1 ticks; 2 or more"),
        (lambda _: draw_steady("x.svg", {"ring": []}, ""), "ring: no tick was noted"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, make, line):
    with pytest.raises(ValueError, match=line):
        make(model)


def test_a_text_too_short_to_measure_is_refused(capsys):
    assert main(["endless", "--tokens", "39"]) == 2
    assert main(["endless", "--stream-window", "4", "--sinks", "4"]) == 2
    assert "40 or more are needed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_picture_is_drawn(tmp_path):
    needs("matplotlib", "plot")
    noted = {"ring": [Tick(10, 0.1, 10**6), Tick(20, 0.1, 10**6)]}
    draw_steady(tmp_path / "steady.svg", noted, "a title")
    text = (tmp_path / "steady.svg").read_text()
    assert "<svg" in text and len(text) > 5000
    with pytest.raises(ValueError, match=r"must end in .png, .svg or .pdf"):
        draw_steady(tmp_path / "steady.gif", noted, "a title")
