"""The benchmark runs and reports; what it measures is not judged here."""

import json
import sys
from pathlib import Path

import children
import numpy as np
import pytest
from needs import needs

from npllama import config
from npllama.bench import attention, cells, measure, serving
from npllama.bench.programs import Products
from npllama.bench.random_model import write_model
from npllama.bench.report import machine, table
from npllama.cli.main import main
from npllama.ops import einsum, observing

TOOL = Path(__file__).parents[1] / "tools" / "bench.py"


@pytest.fixture
def tiny(monkeypatch):
    """A preset small enough for a smoke test, with G > 1 and E other than H * D."""
    shape = config.Config(64, 24, 40, 2, 4, 2, 8, max_position_embeddings=512)
    monkeypatch.setitem(config.PRESETS, "tiny", shape)


@pytest.fixture
def report(tiny, tmp_path, capsys):
    """Results and printed table of a quick run without peers."""
    file = tmp_path / "out.json"
    asked = ["--sizes", "tiny", "--quick", "--peers", "--threads", "1"]
    assert main(["bench", *asked, "--json", str(file)]) == 0
    return json.loads(file.read_text()), capsys.readouterr().out.splitlines()


def test_the_json_names_the_machine_and_holds_every_section(report):
    results, _ = report
    assert {"cpu", "threads", "numpy", "blas", "python"} <= set(results["machine"])
    size = results["sizes"]["tiny"]
    assert size["parameters"] == 2 * 64 * 24 + 24 + 2 * 24 * (
        2 + 32 + 16 + 16 + 32 + 3 * 40
    )
    assert size["load"]["seconds"] > 0 and size["load"]["first_token"] > 0
    for part in ("prefill", "decode"):
        programs = size[part]["programs"]
        assert set(programs) == {"npllama", "BLAS floor"}
        assert programs["npllama"]["npllama_is_times"] == 1
        for row in programs.values():
            assert 0 < row["min"] <= row["median"] <= row["max"]
            assert all(seconds > 0 for seconds in row["rounds_seconds"][0])
    assert len(programs["npllama"]["rounds_seconds"][0]) == measure.QUICK.steps


def test_the_table_is_aligned_and_says_its_units(report):
    _, lines = report
    title, head = lines[0], lines[2]
    assert "NumPy" in title and head.split()[:3] == ["model", "measure", "program"]
    body = lines[2:-2]
    assert len({len(line) for line in body}) == 1
    at = head.index("unit")
    units = {line[at:].split()[0] for line in body[1:]}
    assert units <= {"ms", "MB", "token/s"} and "token/s" in units
    assert lines[-1].startswith("ratio:")


def test_the_floor_does_the_products_of_the_forward_pass_with_the_weights():
    rng = np.random.default_rng(0)
    x, w = rng.random((1, 5, 4)), rng.random((3, 2, 4))
    q, k = rng.random((1, 5, 4)), rng.random((1, 7, 4))
    products = Products()
    with observing(products):
        einsum("BTE,HDE->BTHD", x, w, "q_proj")
        einsum("BTD,BSD->BTS", q, k, "scores")
    ((a, b),) = products.operands
    assert a.shape == (5, 4) and b.shape == (4, 6)
    assert np.shares_memory(b, w)


def test_attention_alone_is_measured_in_time_and_memory():
    found = cells.measure_attention(1, 1, {}, 64, 128, lambda text: None)
    assert set(found["programs"]) == {"npllama"}
    assert found["programs"]["npllama"]["median"] > 0
    assert found["memory"]["positions"] == 128


@pytest.mark.slow
def test_llamacpps_attention_is_measured_by_difference():
    needs("llama_cpp")
    found = attention.LlamaCpp(1).time(1024, 1)
    assert found["name"].endswith("by difference") and len(found["seconds"]) == 1
    with pytest.raises(ValueError, match="a multiple of 256, from 512"):
        attention.LlamaCpp(1).time(300, 1)


@pytest.mark.slow
def test_batches_long_contexts_beams_and_start_are_measured(tiny, tmp_path):
    path = tmp_path / "tiny.npz"
    write_model(config.preset("tiny"), path, 1)
    some = [cells.Cell(3, 5, 1), cells.Cell(1, 70, 4)]
    found = cells.measure(path, 1, 1, {}, lambda text: None, some)
    assert list(found["passes"]) == ["decode of 3 after 5", "prefill 4 after 70"]
    for rows in found["passes"].values():
        assert set(rows) == {"npllama", "npllama rowwise"}
    for rows in (*found["passes"].values(), found["4 beams"], found["start"]):
        assert rows["npllama"]["median"] > 0
    results = {"machine": machine(1), "sizes": {}, "cells": {"size": "tiny"} | found}
    assert "decode of 3 after 5" in table(results) and "4 beams" in table(results)


def test_serving_is_measured_on_the_same_answers(tiny, tmp_path):
    path = tmp_path / "tiny.npz"
    write_model(config.preset("tiny"), path, 0)
    program = serving.NpLlama(1, str(path))
    asks = [ask._replace(prompt=ask.prompt % 64) for ask in serving.traffic(5)]
    together, alone = (program.serve(v, asks) for v in program.variants)
    assert together == alone and list(map(len, alone)) == [ask.new for ask in asks]
    assert serving.pieces_of([300, 200, 100, 512, 1]) == [[0, 1], [2], [3], [4]]


@pytest.mark.slow
def test_decoding_is_measured_and_guesses_are_counted(tiny, monkeypatch, tmp_path):
    for name in ("LOOKUP_SIZE", "CHANCE_SIZE"):
        monkeypatch.setattr(cells, name, "tiny")
    monkeypatch.setattr(cells, "TEXT", 30)
    found = cells.measure_decoding(tmp_path, 1, 1, lambda text: None)
    # Forty-eight tokens are known, and every repetition has one word that is new.
    assert found["lookup"]["passes"] < 20
    assert set(found["sampling"]["seconds"]) == {"greedy", "sampling"}
    assert all(0 < kept <= 4 for kept in found["pair"]["kept"].values())
    lines = table({"machine": machine(1), "sizes": {}, "decoding": found})
    assert "kept of 4 guesses" in lines


@pytest.mark.parametrize(
    "wrong",
    [
        ["--sizes", "13x"],
        ["--peers", "nobody"],
        ["--threads", "0"],
        ["--python", "torch"],
        ["--colour"],
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_two(wrong, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", *wrong])
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert len(message.splitlines()) == 1 and wrong[-1] in message


def test_a_peer_asked_for_by_name_that_cannot_run_is_one_line(capsys):
    absent = ["--sizes", "--peers", "torch", "--python", "torch=no/such/python"]
    assert main(["bench", *absent]) == 1
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and "no/such/python" in message


def test_a_peer_that_computes_something_else_is_refused(tmp_path):
    class Fake:
        def __init__(self, wrong):
            self.wrong = wrong

        def ask(self, do, tokens, path):
            np.save(f"{path}.a.npy", np.arange(9.0) * (2 if self.wrong else 1))

    labels = [{"a": "npllama"}, {"a": "peer (a)"}]
    same = measure.compare_logits([Fake(0), Fake(0)], labels, 9, tmp_path)
    assert same == {"peer (a)": 0}
    with pytest.raises(measure.Failure, match="other logits"):
        measure.compare_logits([Fake(0), Fake(1)], labels, 9, tmp_path)


def test_the_benchmark_explains_itself_from_the_command_line():
    told = children.run(
        [sys.executable, str(TOOL), "--help"], capture_output=True, text=True
    )
    assert told.returncode == 0 and "what its BLAS allows" in " ".join(
        told.stdout.split()
    )
