"""``npllama flops``, ``npllama roofline`` and ``npllama generate --flops``."""

import json
import re
import sys

import pytest
from needs import needs

from npllama.cli.main import main
from npllama.config import PRESETS, config_to_hf, preset
from npllama.cost import FlopCounter, generation, hardware, parameters, total

A100 = ["roofline", "--config", "llama-2-7b", "--hardware", "a100-80g"]
PHASES = ("prefill", "decode")


def run(capsys, *arguments):
    """What a command prints; it must succeed."""
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


# ---- flops ------------------------------------------------------------------


def test_flops_prints_the_closed_form(capsys):
    sizes = ["--batch", "2", "--prompt", "100", "--new-tokens", "10"]
    told = run(capsys, "flops", "--config", "llama-2-7b", *sizes)
    for ops in generation(preset("llama-2-7b"), 2, 100, 10):
        for op in (*ops, total(ops)):
            line = rf"^{op.name} +{op.flops:,} .* {op.mops:,} "
            assert re.search(line, told, re.M)


def test_flops_as_json_has_the_same_numbers(capsys):
    asked = ["--config", "llama-3-8b", "--prompt", "7", "--causal", "triangle"]
    told = json.loads(run(capsys, "flops", *asked, "--json"))
    config = preset("llama-3-8b")
    expected = generation(config, 1, 7, 128, causal="triangle")
    for phase, ops in expected._asdict().items():
        found = [(op["name"], op["flops"], op["mops"]) for op in told[phase]]
        assert found == [(op.name, op.flops, op.mops) for op in ops]
        whole, summed = told["totals"][phase], total(ops)
        assert (whole["flops"], whole["mops"]) == (summed.flops, summed.mops)
        assert whole["flops"] == sum(op["flops"] for op in told[phase])
    assert told["components"] == parameters(config)


def test_one_new_token_needs_no_decode(capsys):
    asked = ["--config", "llama-2-7b", "--prompt", "4096", "--new-tokens", "1"]
    told = run(capsys, "flops", *asked)
    assert "decode: none" in told and "61,847,791,206,400" in told


def test_a_model_of_405_billion_at_128k_is_no_work(capsys):
    asked = ["--config", "llama-3.1-405b", "--prompt", "131072"]
    with FlopCounter() as count:
        assert "405,853,388,800" in run(capsys, "flops", *asked)
    assert count.total.calls == 0


def test_config_may_be_a_file_or_a_model(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_to_hf(preset("tinyllama-1.1b"))))
    by_name = run(capsys, "flops", "--config", "tinyllama-1.1b")
    assert run(capsys, "flops", "--config", str(path)) == by_name
    shipped = run(capsys, "flops", "--config", "stories")
    assert shipped.startswith("prefill: 512 positions")


# ---- roofline ---------------------------------------------------------------


def test_roofline_tells_the_ridge_and_what_binds(capsys):
    told = run(capsys, *A100)
    assert "ridge, FLOPs/byte: 153" in told
    assert "prefill: bound by compute" in told
    assert "one step of decode: bound by memory" in told


def test_roofline_as_json_adds_up(capsys):
    told = json.loads(run(capsys, *A100, "--json"))
    for phase in PHASES:
        seconds = [op["seconds"] for op in told[phase]["operators"]]
        assert sum(seconds) == pytest.approx(told[phase]["seconds"])
        for op in told[phase]["operators"]:
            assert op["seconds"] == max(op["math"], op["memory"])
    assert told["ridge, FLOPs/byte"] == 312e12 / 2039e9


def test_numbers_may_stand_for_a_machine(capsys):
    numbers = ["--tflops", "312", "--bandwidth", "2039", "--memory", str(80 * 1.024**3)]
    by_name = json.loads(run(capsys, *A100, "--json"))
    asked = ["roofline", "--config", "llama-2-7b", *numbers, "--json"]
    by_number = json.loads(run(capsys, *asked))
    assert by_number.pop("hardware")["name"] == "these numbers"
    del by_name["hardware"]
    assert by_number == by_name


def test_smaller_weights_decode_faster_and_leave_room(capsys):
    asked = [*A100, "--json", "--weights-dtype"]
    found = [json.loads(run(capsys, *asked, t)) for t in ("fp16", "int8", "int4")]
    rates = [told["decode, tokens/s"] for told in found]
    room = [told["positions that fit beside the weights"] for told in found]
    assert rates == sorted(rates) and room == sorted(room)
    assert found[2]["weights, GB"] == found[0]["weights, GB"] / 4


def test_model_that_does_not_fit_is_fetched_from_storage(capsys):
    asked = ["roofline", "--config", "llama-2-70b", "--hardware", "rtx-4090"]
    told = json.loads(run(capsys, *asked, "--storage", "16", "--json"))
    missing = told["weights, GB"] + told["cache of the text, GB"] - 24 * 1.024**3
    assert told["does not fit, GB"] == pytest.approx(missing)
    assert told["time per token from storage, s"] == pytest.approx(missing / 16)
    assert told["positions that fit beside the weights"] == 0


def test_products_in_eight_bits_are_asked_for_by_name(capsys):
    asked = ["roofline", "--config", "llama-2-7b", "--hardware", "h100", "--json"]
    kinds = ["--weights-dtype", "fp8", "--cache-dtype", "fp8"]
    stored, computed = (
        json.loads(run(capsys, *asked, *kinds, *more))
        for more in ([], ["--activations-dtype", "fp8"])
    )
    assert computed["prefill, tokens/s"] > 1.5 * stored["prefill, tokens/s"]
    assert computed["decode, tokens/s"] >= stored["decode, tokens/s"]
    assert computed["weights, GB"] == stored["weights, GB"]


def test_that_a_model_does_not_fit_is_said_before_any_speed(capsys):
    asked = ["roofline", "--config", "llama-2-70b", "--hardware", "rtx-4090"]
    first, second, third, *_ = run(capsys, *asked, "--storage", "16").splitlines()
    assert first.startswith("DOES NOT FIT: weights and cache take 138")
    assert "the memory of rtx-4090 holds 25.77 GB" in first
    assert (
        second.startswith("From storage it decodes 0.1424 tokens/s")
        and "s per token" in second
    )
    assert "memory that holds it" in third
    assert "From storage" not in run(capsys, *asked)
    assert "NOT FIT" not in run(capsys, *A100)


def test_speculation_is_told_if_asked(capsys):
    draft = ["--acceptance", "0.8", "--guesses", "5", "--draft-cost", "0.05"]
    assert "speculation, times faster: 2.951" in run(capsys, *A100, *draft)
    assert "speculation" not in run(capsys, *A100)


def test_this_machine_is_measured_and_computes_in_fp32(capsys, monkeypatch):
    measured = hardware.Hardware("this-machine", {"fp32": 2e11}, 2e10, 8e9, None, 2e9)
    monkeypatch.setattr("npllama.cost.probe.this_machine", lambda: measured)
    asked = ["roofline", "--config", "stories110m"]
    told = run(capsys, *asked)
    assert told == run(capsys, *asked, "--hardware", "this-machine")
    assert "weights fp32, cache fp32" in told and "between the products" in told
    for phase in map(json.loads(run(capsys, *asked, "--json")).get, PHASES):
        products = sum(op["seconds"] for op in phase["operators"])
        assert phase["seconds"] == pytest.approx(products + phase["between"])
        assert phase["between"] > 0


# ---- the picture ------------------------------------------------------------


@pytest.mark.parametrize("ending, start", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_picture_is_drawn(ending, start, capsys, tmp_path):
    needs("matplotlib", "plot")
    path = tmp_path / f"roofline.{ending}"
    run(capsys, *A100, "--plot", str(path))
    assert path.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_matplotlib_a_picture_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*A100, "--plot", str(tmp_path / "x.png")]) == 2
    told = capsys.readouterr()
    assert "npllama[plot]" in told.err and told.out == ""
    assert len(told.err.splitlines()) == 1 and not list(tmp_path.iterdir())
    assert "ridge" in run(capsys, *A100)


# ---- misuse -----------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["flops"], "--config"),
        (["flops", "--config", "llama-9"], "llama-2-7b"),
        (["flops", "--config", "."], "directory"),
        (["flops", "--config", "llama-2-7b", "--batch", "0"], "--batch is 0"),
        (["flops", "--config", "llama-2-7b", "--prompt", "-3"], "--prompt is -3"),
        (["flops", "--config", "llama-2-7b", "--new-tokens", "1e3"], "--new-tokens"),
        (["flops", "--config", "llama-2-7b", "--prompt", "9" * 30], "10,000,000"),
        (["flops", "--table", "nothing"], "intensity"),
        ([*A100[:3], "--hardware", "abacus"], "a100-80g"),
        ([*A100, "--bandwidth", "nan"], "--bandwidth is nan"),
        ([*A100, "--bandwidth", "0"], "--bandwidth is 0"),
        ([*A100, "--tflops", "inf"], "--tflops is inf"),
        ([*A100, "--memory", "-1"], "--memory is -1"),
        ([*A100, "--storage", "1e300"], "--storage is 1e+300"),
        ([*A100, "--weights-dtype", "fp3"], "fp32, fp16, bf16, int8, int4"),
        ([*A100, "--cache-dtype", "fp3"], "fp32, fp16, bf16, int8, int4"),
        ([*A100, "--acceptance", "1.5"], "1.5"),
        ([*A100, "--acceptance", "nan"], "nan"),
        ([*A100, "--acceptance", "0.5", "--draft-cost", "nan"], "nan"),
        ([*A100, "--acceptance", "0.5", "--guesses", "9" * 9], "--guesses"),
        ([*A100, "--guesses", "3"], "are for --acceptance"),
        ([*A100, "--draft-cost", "0.2"], "are for --acceptance"),
        ([*A100, "--acceptance", "0.5", "--over", "batch"], "not for --over"),
        (["flops", "--table", "flash", "--config", "llama-2-7b"], "no --config"),
        ([*A100[:3], "--hardware", "this-machine", "--cards", "2"], "this-machine is"),
        ([*A100, "--plot", "picture.txt"], ".svg"),
        ([*A100, "--plot", "no/such/folder.svg"], "no folder"),
    ],
)
def test_misuse_is_one_line_and_exit_code_two(wrong, said, capsys):
    try:
        code = main(wrong)
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr()
    assert code == 2 and told.out == ""
    assert len(told.err.splitlines()) == 1 and said in told.err


@pytest.mark.parametrize("text", ["", "null", "[1]", "{}", '{"model_type": "bert"}'])
def test_file_that_is_no_config_is_one_line(text, capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert main(["flops", "--config", str(path)]) == 2
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1 and "config.json" in told.err
    assert ("not JSON" in told.err) == (not text)


def test_every_preset_and_every_machine_has_a_roofline(capsys):
    for machine in hardware.HARDWARE:
        asked = ["roofline", "--config", "llama-3.1-405b", "--hardware", machine]
        long = [*asked, "--prompt", "131072"]
        assert "never" in run(capsys, *long, "--causal", "square")
        # Where the cache is all that is read, the M1 Ultra computes too slowly.
        assert ("never" in run(capsys, *long)) == (machine != "m1-ultra")
    for name in PRESETS:
        run(capsys, "roofline", "--config", name, "--hardware", "h200")


# ---- generate --flops -------------------------------------------------------

STORY = ["generate", "Once", "--seed", "1", "--max-new-tokens", "4"]


@pytest.mark.parametrize("more", [[], ["--json"], ["--num-beams", "2"]])
def test_generating_tells_what_it_cost_and_the_same_text(more, capsys):
    assert main([*STORY, *more]) == 0
    plain = capsys.readouterr()
    assert main([*STORY, *more, "--flops"]) == 0
    counted = capsys.readouterr()
    if not more or more[0] != "--json":  # which tells how long it took
        assert counted.out == plain.out
    assert "down_proj" in counted.err and "down_proj" not in plain.err
    assert "decode" in counted.err.partition("FLOPs")[2]
