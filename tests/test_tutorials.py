"""The tutorials run as they stand, and print what they say."""

import re
import shlex
from pathlib import Path

import pytest

import npllama
from npllama.cli.main import main

PACKAGE = Path(npllama.__file__).parent
TUTORIALS = sorted(PACKAGE.glob("*/TUTORIAL.md"))
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.M | re.S)


def test_there_are_two():
    assert [path.parent.name for path in TUTORIALS] == ["golden", "testing"]


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.parent.name)
def test_tutorial_runs_and_prints_what_it_says(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope, shown, told = {}, "", 0
    for kind, text in BLOCK.findall(path.read_text(encoding="utf-8")):
        if kind == "text":
            for line in text.splitlines():
                assert line in shown
                told += 1
            continue
        if kind == "python":
            exec(compile(text, str(path), "exec"), scope)
        else:
            main(shlex.split(text)[1:])
        shown = capsys.readouterr().out
    assert told >= 1
