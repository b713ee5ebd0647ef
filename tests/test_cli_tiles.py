"""``npllama tiles``: every exact way to attend agrees, and moves what is recorded."""

import json

import pytest

from npllama.cli.main import main

STORY = (
    "Once upon a time there was a little girl named Lily. She loved to play in the "
    "park with her friends. One day she saw a big red ball. "
)
# On the shipped model, 247 tokens.
RECORDED = """\
|   step |        attention | products | MFLOPs | keys read | MB moved |
| prompt |          blocked |       20 |  175.8 |   240,000 |          |
| prompt |         standard |       10 |  234.3 |   158,080 |    16.54 |
| prompt | FlashAttention 1 |      200 |  146.5 |   807,680 |     5.25 |
| prompt | FlashAttention 2 |      360 |  131.9 |   731,520 |     5.37 |
| prompt |     splits of 32 |       80 |  234.3 |   158,080 |          |
|   step |          blocked |       10 |    7.6 | 1,269,760 |          |
|   step |     splits of 32 |      640 |    7.6 | 1,269,760 |          |
|   step |          cascade |       90 |    7.6 |   163,200 |          |
"""


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text((STORY * 6).strip())
    return str(file)


@pytest.mark.slow
def test_a_story_by_every_way_is_what_was_recorded(story, capsys):
    assert main(["tiles", story, "--on-chip", "16", "--tile", "32"]) == 0
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first == "247 tokens, then one of each of 8 texts after them"
    cells = [line.split("|")[1:-1] for line in lines]
    shown = ["|" + "|".join(row[:-1]) + "|" for row in cells]
    assert [shown[0], *shown[2:]] == RECORDED.splitlines()
    assert all(float(row[-1]) < 1e-3 for row in cells[2:])


def test_it_is_as_well_json(tmp_path, capsys):
    file = tmp_path / "short.txt"
    file.write_text("Once upon a time")
    assert main(["tiles", str(file), "--rows", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    steps = {way["way"]: way for way in told["ways"] if way["step"] == "step"}
    n = told["tokens"]
    assert told["rows"] == 3 and all(way["difference"] < 1e-3 for way in told["ways"])
    # The prefix once, and a key of each text, where each would read all of its own.
    assert steps["cascade"]["keys"] * 3 * (n + 1) == steps["blocked"]["keys"] * (n + 3)
    assert steps["cascade"]["flops"] == steps["blocked"]["flops"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--rows", "0"], "--rows is 0; it must be 1 to 1024"),
        (["--tile", "0"], "--tile is 0; it must be 1 or more"),
        (["--on-chip", "0.1"], "--on-chip is 0.1;"),
        (["--on-chip", "nan"], "--on-chip is nan;"),
        (["--on-chip", "inf"], None),
    ],
)
def test_impossible_sizes_are_one_line_and_exit_code_two(
    wrong, message, tmp_path, capsys
):
    file = tmp_path / "short.txt"
    file.write_text("Once")
    code = main(["tiles", str(file), *wrong])
    told = capsys.readouterr().err
    assert code == (2 if message else 0)
    if message:
        assert len(told.splitlines()) == 1 and message in told


def test_a_text_that_is_too_long_is_refused(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("word " * 3000)
    assert main(["tiles", str(tmp_path / "text.txt")]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "it must be 1 to" in told
