"""Many prompts: each result is that of its prompt alone, and none is made twice."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from profiles import PROFILE

import npllama
from npllama.cli import prompts as command
from npllama.cli.main import main
from npllama.serving.prompts import read_lines
from npllama.serving.results import BEGINNING, results

DRAFT = ["generate", "--weights", "stories-draft", "--max-new-tokens", "6"]
LINES = [
    {"prompt": "Once upon a time"},
    {"prompt": "Lily", "seed": 7, "id": {"any": "thing"}, "max_new_tokens": 3},
    {"tokens": [1, 15, 7], "temperature": 0},
    {"prompt": "Tom", "num_beams": 2},
    {"prompt": "Once", "num_return_sequences": 2, "logprobs": 1},
    {"prompt": "The", "prompt_lookup_num_tokens": 2, "stop_strings": ["."]},
]


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return written(tmp_path / "in.jsonl", LINES), tmp_path / "out.jsonl"


def run(files, *more):
    return main([*DRAFT, "--prompts", files[0], "-o", str(files[1]), *more])


def found(out):
    """{index: result} of all whole lines."""
    lines = out.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert len({entry["index"] for entry in entries}) == len(entries)
    return {entry["index"]: entry for entry in entries}


def alone(capsys, line, seed):
    """What the command says of one prompt, by itself."""
    given = dict(line)
    words = (
        ["--tokens", ",".join(map(str, given.pop("tokens")))]
        if "tokens" in line
        else []
    )
    words = words or [given.pop("prompt")]
    given.pop("id", None)
    given.pop("seed", None)
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            words += ["--" + name.replace("_", "-"), str(one)]
    assert main([*DRAFT, *words, "--seed", str(seed), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["texts"]


def test_every_result_is_that_of_the_prompt_alone_with_its_seed(files, capsys):
    assert run(files, "--seed", "40", "--rowwise") == 0
    capsys.readouterr()
    assert set(found(files[1])) == set(range(len(LINES)))
    for index, result in found(files[1]).items():
        line = LINES[index]
        assert result["seed"] == line.get("seed", 40 + index)
        assert result.get("id") == line.get("id")
        assert result["prompt"] == line.get("prompt", line.get("tokens"))
        expected = alone(capsys, line, result["seed"])
        assert len(result["texts"]) == len(expected)
        for text, other in zip(result["texts"], expected):
            same = ("prompt_tokens", "tokens", "text", "finish_reason")
            assert [text[name] for name in same] == [other[name] for name in same]


@pytest.mark.parametrize("at_once", ["1", "3"])
def test_results_do_not_depend_on_how_many_run_side_by_side(at_once, files, tmp_path):
    assert run(files, "--rowwise") == 0
    other = files[0], tmp_path / "other.jsonl"
    assert run(other, "--rowwise", "--at-once", at_once) == 0
    assert found(other[1]) == found(files[1])


def test_what_is_there_is_not_done_again(files, monkeypatch, capsys):
    assert run(files) == 0
    whole = files[1].read_bytes()
    lines = whole.splitlines(keepends=True)
    files[1].write_bytes(b"".join(lines[:4]))
    asked, answered = [], command.answered

    def noting(model, jobs, *rest):
        asked.extend(jobs)
        return answered(model, jobs, *rest)

    monkeypatch.setattr(command, "answered", noting)
    assert run(files) == 0
    there = {json.loads(line)["index"] for line in lines[:4]}
    assert {job.number for job in asked} == set(range(len(LINES))) - there
    assert sorted(files[1].read_bytes().splitlines()) == sorted(whole.splitlines())
    asked.clear()
    assert run(files) == 0 and not asked
    assert "0 results" in capsys.readouterr().err


@pytest.mark.parametrize("left", [1, len(BEGINNING), 40, -2])
def test_a_torn_last_line_is_mended(left, files):
    assert run(files) == 0
    whole = files[1].read_bytes()
    *lines, last = whole.splitlines(keepends=True)
    files[1].write_bytes(b"".join(lines) + last[:left])
    assert run(files) == 0
    assert sorted(files[1].read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_run_that_stops_midway_keeps_what_it_has(files, monkeypatch):
    assert run(files) == 0
    expected = found(files[1])
    files[1].unlink()
    real = command.add

    def stopping(file, index, key, result):
        if index == 3:
            raise KeyboardInterrupt
        real(file, index, key, result)

    monkeypatch.setattr(command, "add", stopping)
    assert run(files) == 130
    assert set(found(files[1])) == set(range(len(LINES))) - {3}
    monkeypatch.setattr(command, "add", real)
    assert run(files) == 0
    assert found(files[1]) == expected


@pytest.mark.parametrize("more", [["--seed", "1"], ["--top-k", "3"], ["prompt"]])
def test_results_of_another_run_are_refused_and_kept(more, files, tmp_path, capsys):
    assert run(files) == 0
    before = files[1].read_bytes()
    other = files
    if more == ["prompt"]:
        changed = [{**LINES[0], "prompt": "Long ago"}, *LINES[1:]]
        other, more = (written(tmp_path / "b.jsonl", changed), files[1]), []
    capsys.readouterr()
    assert run(other, *more) == 1
    told = capsys.readouterr().err
    assert "result of another run" in told and len(told.splitlines()) == 1
    assert files[1].read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"my thesis", b"my thesis\n", b"[1]\n", b"\xff\n", b'{"index": "0"}\n']
)
def test_a_file_that_holds_something_else_is_refused_and_kept(content, files, capsys):
    files[1].write_bytes(content)
    assert run(files) == 1
    told = capsys.readouterr().err
    assert "choose another place" in told and len(told.splitlines()) == 1
    assert files[1].read_bytes() == content


def test_two_runs_do_not_write_one_file(tmp_path):
    pytest.importorskip("fcntl", reason="this system has no such locks")
    with results(tmp_path / "out", ["a"]):
        with pytest.raises(ValueError, match="another run is writing"):
            with results(tmp_path / "out", ["a"]):
                pass


def test_a_prompt_that_fails_is_told_and_the_others_are_answered(files, capsys):
    # Every token is forbidden, so that nothing can be chosen.
    every = list(range(npllama.load("stories-draft").config.vocab_size))
    written_to = files[0]
    lines = [LINES[0], {"prompt": "Lily", "suppress_tokens": every}, LINES[2]]
    with open(written_to, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert run(files) == 1
    assert "1 failed" in capsys.readouterr().err
    answers = found(files[1])
    assert set(answers) == {0, 1, 2}
    assert "every token is removed" in answers[1]["error"]
    assert "texts" in answers[0] and "texts" in answers[2]


@pytest.mark.parametrize(
    "line, said",
    [
        ("Once upon", "neither"),
        ('"Once"', "neither"),
        ("{}", "neither"),
        ('{"prompt": "a", "tokens": [1]}', "neither"),
        ('{"prompt": ""}', "prompt is ''"),
        ('{"prompt": 5}', "prompt is 5"),
        ('{"tokens": []}', "tokens is []"),
        ('{"tokens": [1.5]}', "tokens is [1.5]"),
        ('{"tokens": [true]}', "tokens is [True]"),
        ('{"tokens": [99999]}', "outside the vocabulary"),
        ('{"prompt": "a", "seed": -1}', "seed is -1"),
        ('{"prompt": "a", "seed": "x"}', "seed is 'x'"),
        ('{"prompt": "a", "temprature": 1}', "did you mean temperature"),
        ('{"prompt": "a", "top_p": 5}', "top_p"),
        ('{"prompt": "a", "max_new_tokens": "5"}', "max_new_tokens"),
        ('{"prompt": "a", "regex": "("}', "regex"),
        ('{"prompt": "a", "prefix_allowed_tokens_fn": 1}', "function"),
        (json.dumps({"prompt": "word " * 3000}), "context"),
        ("[" * 10**5, "neither"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number_before_work_begins(
    line, said, files, capsys
):
    with open(files[0], "w") as file:
        file.write('{"prompt": "Once"}\n\n' + line + "\n")
    assert run(files) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert "line 3" in told.err and said in told.err
    assert not files[1].exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["Once"], "PROMPT exclude"),
        (["--tokens", "1"], "--tokens exclude"),
        (["--json"], "--json exclude"),
        (["--save-cache", "x.npz"], "--save-cache exclude"),
        (["--flops"], "--flops exclude"),
        (["--at-once", "0"], "--at-once must be"),
        (["--workers", "9999"], "--workers must be"),
        (["--seed", "-4"], "seed is -4"),
        (["-o", "no/such/folder/out"], "no folder"),
        (["-o", "."], "name a file"),
    ],
)
def test_misuse_is_one_line_and_exit_code_two(more, said, files, capsys):
    assert run(files, *more) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1 and said in told.err


@pytest.mark.parametrize(
    "more", [["-o", "x"], ["--dask", "x"], ["--workers", "2"], ["--rowwise"]]
)
def test_options_of_many_prompts_alone_are_misuse(more, capsys):
    assert main([*DRAFT, "Once", *more]) == 2
    assert "--prompts FILE" in capsys.readouterr().err


def test_prompts_need_a_place_for_results_that_is_not_their_own(files, capsys):
    assert main([*DRAFT, "--prompts", files[0]]) == 2
    assert run((files[0], files[0])) == 2
    told = capsys.readouterr().err.splitlines()
    assert "-o OUT" in told[0] and "is the file of prompts" in told[1]


def test_files_that_are_no_prompts_are_refused(tmp_path):
    path = tmp_path / "in"
    for content, said in (
        (b"", "no prompts"),
        (b"\n \n", "no prompts"),
        (b"\xff", "UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_lines(path)
    path.write_text('\ufeff{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert [line.prompt for line in read_lines(path)] == ["a\u2028b"]


def test_other_workers_give_the_same_results(files, monkeypatch, tmp_path):
    @contextmanager
    def threads(options):
        assert options.dask == "somewhere"
        with ThreadPoolExecutor(1) as pool:
            yield pool

    assert run(files, "--rowwise") == 0
    other = files[0], tmp_path / "other.jsonl"
    monkeypatch.setattr(command, "executor", threads)
    assert run(other, "--rowwise", "--dask", "somewhere", "--at-once", "2") == 0
    assert found(other[1]) == found(files[1])


@pytest.mark.skipif(PROFILE != "ci", reason="starts processes; profile ci")
def test_processes_give_the_same_results(files, tmp_path):
    assert run(files, "--rowwise") == 0
    other = files[0], tmp_path / "other.jsonl"
    assert run(other, "--rowwise", "--workers", "2", "--at-once", "2") == 0
    assert found(other[1]) == found(files[1])


def test_without_dask_the_extra_is_named(files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run(files, "--dask", "tcp://127.0.0.1:9") == 2
    assert "npllama[dask]" in capsys.readouterr().err
