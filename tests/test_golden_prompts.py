"""Many prompts: every one once, on any executor, and again after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import children
import numpy as np
import pytest
from strategies import DISTINCT
from test_golden_record import called, saved

from npllama.golden import prompts
from npllama.golden.prompts import Job, do, read_prompts, record_all
from npllama.golden.record import Wanted, sha256
from npllama.golden.trace import read_golden

ROOT = Path(__file__).parent.parent
SMALL = Wanted(2, floors=("bfloat16",))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(saved(tmp_path_factory.mktemp("w") / "m.npz", DISTINCT, "float32"))


def jobs_for(weights, folder, count=5):
    return [
        Job(weights, [1, i], f"{folder}/{i}.npz", SMALL, seed=(0, i))
        for i in range(count)
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_every_prompt_has_its_file_on_any_executor(weights, tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    told = []
    with ThreadPoolExecutor(1) as pool:
        paths = record_all(jobs_for(weights, one), pool, lambda *t: told.append(t))
    assert told == [(i, 5) for i in range(1, 6)]
    assert paths == [f"{one}/{i}.npz" for i in range(5)]
    with ThreadPoolExecutor(3) as pool:
        record_all(jobs_for(weights, several), pool)
    assert contents(one) == contents(several) and len(contents(one)) == 5
    for i, path in enumerate(paths):
        assert read_golden(path)["tokens"][0, :2].tolist() == [1, i]


def test_what_is_there_is_not_done_again(weights, tmp_path):
    job = jobs_for(weights, tmp_path)[0]
    do(job)
    before = os.stat(job.path).st_mtime_ns
    assert do(job) == job.path and os.stat(job.path).st_mtime_ns == before
    assert do(job._replace(stream=True)) == job.path  # it would write the same


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": [1, 2, 3]},
        {"seed": None},
        {"wanted": Wanted(3)},
        {"dtype": "float32"},
    ],
)
def test_the_file_of_another_run_is_not_taken_for_this_one(weights, tmp_path, change):
    job = jobs_for(weights, tmp_path)[0]
    do(job)
    with pytest.raises(ValueError, match="holds another run"):
        do(job._replace(**change))


def test_other_weights_are_another_run(weights, tmp_path):
    job = jobs_for(weights, tmp_path)[0]
    do(job)
    other = saved(tmp_path / "other.npz", DISTINCT, "float32", seed=1)
    with pytest.raises(ValueError, match="holds another run"):
        do(job._replace(weights=str(other)))


def test_a_model_that_was_replaced_is_read_anew(tmp_path):
    model, hashes = tmp_path / "m.npz", []
    jobs = [
        Job(str(model), [1, 5], f"{tmp_path}/{i}.npz", Wanted(floors=()))
        for i in (0, 1)
    ]
    for seed, job in enumerate(jobs):
        saved(model, DISTINCT, "float32", seed)
        hashes.append(sha256(model))
        do(job)
    traces = [read_golden(job.path) for job in jobs]
    assert [trace.meta["weights_sha256"] for trace in traces] == hashes
    first, second = (trace["prefill/lm_head"] for trace in traces)
    assert not np.allclose(first, second)
    with pytest.raises(ValueError, match="holds another run"):
        do(jobs[0])  # of the first model, which is no more


def test_a_model_that_is_replaced_while_it_is_read_is_told(tmp_path, monkeypatch):
    model = saved(tmp_path / "m.npz", DISTINCT, "float32")
    job = Job(str(model), [1, 5], f"{tmp_path}/g.npz", Wanted(floors=()))
    do(job._replace(path=f"{tmp_path}/first.npz", dtype="float32"))  # its hash is kept
    read = prompts.load

    def slowly(*arguments):
        found = read(*arguments)
        saved(model, DISTINCT, "float32", 1)
        return found

    monkeypatch.setattr(prompts, "load", slowly)
    with pytest.raises(ValueError, match="was replaced while it was read"):
        do(job)
    assert not os.path.exists(job.path)


def test_a_file_that_no_reader_finds_is_no_success(weights, tmp_path, monkeypatch):
    # As on a cluster whose workers have disks of their own.
    monkeypatch.setattr(prompts, "do", lambda job: job.path)
    monkeypatch.setattr(prompts, "PATIENCE", 0.2)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="0.npz: was recorded and is not here"):
            record_all(jobs_for(weights, tmp_path / "one", 1), pool)


def test_a_prompt_that_fails_stops_the_run_and_loses_nothing(weights, tmp_path):
    jobs = jobs_for(weights, tmp_path)
    jobs[3] = jobs[3]._replace(prompt=[99])
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ValueError, match="99 is outside"),
    ):
        record_all(jobs, pool)
    assert {"0.npz", "1.npz", "2.npz"} <= set(contents(tmp_path))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_files(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Number {i} of them all" for i in range(8)))
    words = ["golden", "record", "stories-draft", "--prompts", str(prompts)]
    words += ["--floor", "bfloat16", "--new-tokens", "3", "-o"]
    command = [sys.executable, "-m", "npllama", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with children.started(
        [*command, str(killed)],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 60
        while len(list(killed.glob("0000?.npz"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    survived = contents(killed)
    assert survived
    for folder in (killed, whole):
        children.run(
            [*command, str(folder)], env=environment, check=True, capture_output=True
        )
    assert contents(killed) == contents(whole) and len(contents(whole)) == 8


def test_a_worker_that_is_killed_is_one_line(tmp_path, capsys, monkeypatch):
    def killed(*_):
        raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr("npllama.cli.golden.record_all", killed)
    (tmp_path / "p").write_text("one\n")
    words = [
        "stories-draft",
        "--prompts",
        str(tmp_path / "p"),
        "-o",
        str(tmp_path / "f"),
    ]
    code, out, err = called(capsys, "golden", "record", *words)
    assert code == 2 and not out and "the same command goes on" in err.splitlines()[-1]


# ---- the file of prompts ----------------------------------------------------


def test_prompts_are_lines_or_json(tmp_path):
    file = tmp_path / "p"
    file.write_text("one\n\n  two words \nthree\n", encoding="utf-8")
    assert read_prompts(file) == ["one", "  two words ", "three"]
    file.write_text('{"prompt": "é"}\n{"tokens": [1, 2]}\n', encoding="utf-8")
    assert read_prompts(file) == ["é", [1, 2]]
    # As Windows writes it, and with an end of line that is none in JSON.
    file.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n'.encode())
    assert read_prompts(file) == ["a\u2028b"]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no prompts"),
        (b"\n \n", "no prompts"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"prompt": 3}', "prompt 1 is neither"),
        (b'{"prompt": "a"}\n{"tokens": []}', "prompt 2 is neither"),
        (b'{"tokens": [1, true]}', "prompt 1 is neither"),
        (b'{"tokens": [1, 2.5]}', "prompt 1 is neither"),
        (b'{"text": "a"}', "prompt 1 is neither"),
        (b'{"tokens": "a"}', "prompt 1 is neither"),
        (b'{"prompt": [5]}', "prompt 1 is neither"),
        (b'{"prompt": "a", "tokens": [5]}', "prompt 1 is neither"),
        (b'{"prompt": "a"}\nnot json', "prompt 2 is neither"),
        (b"{" * 100_000, "prompt 1 is neither"),
    ],
)
def test_a_file_that_holds_no_prompts_is_one_line(tmp_path, content, words, capsys):
    file = tmp_path / "p"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_prompts(file)
    code, _, err = called(
        capsys, "golden", "record", "stories-draft", "--prompts", str(file), "-o", "x"
    )
    assert code == 2 and len(err.splitlines()) == 1


def test_a_request_survives_the_trip_through_json(weights, tmp_path):
    job = jobs_for(weights, tmp_path)[0]
    assert json.loads(json.dumps(job.request())) == job.request()
