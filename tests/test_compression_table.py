"""Fewer bits on the shipped model: what each setting costs, and in which order."""

import json

import numpy as np
import pytest
import stories

from npllama.cli.main import main
from npllama.compression import table
from npllama.compression.calibrate import rows_of
from npllama.compression.gptq import Recipe
from npllama.compression.quality import Quality
from npllama.compression.quantize import Plan
from npllama.compression.table import Row, cells, draw, kept_in, plan_of, rows
from npllama.files.checkpoint import load, locate


def texts(seed, n, length=192):
    """The beginnings of stories, one in a row."""
    chance, tokenizer = np.random.default_rng(seed), load("stories").tokenizer
    ids = [tokenizer.encode(stories.story(chance))[1:length] for _ in range(n)]
    return rows_of(ids, tokenizer.front, length)


@pytest.mark.slow
def test_divergence_falls_from_rtn_to_gptq_to_act_order():
    # 4 bits in groups of 64, as in the published order.  (With a scale per row, which of
    # the last two is better depends on the texts.)
    settings = [f"{m}-asym" for m in ("rtn4g64", "gptq4g64", "gptq4g64-act")]
    found = list(rows(locate("stories"), settings, texts(1, 32), texts(2, 24)))
    assert found[0].quality.divergence == 0 and found[0].quality.agreement == 1
    nearest, plain, ordered = (row.quality.divergence for row in found[1:])
    assert nearest > 1.5 * plain > 1.5 * 1.2 * ordered
    assert [round(row.bits, 1) for row in found[1:]] == [4.4, 4.4, 4.5]


def test_settings_say_what_is_done():
    assert plan_of("rtn8") == Plan("rtn", Recipe(8, "symmetric"))
    assert plan_of("gptq3g64-act-asym").recipe == Recipe(
        3, "asymmetric", 64, act_order=True
    )
    assert plan_of("rtn4-mse").recipe.exponent == 2.4
    assert plan_of("rtn4g64-nf4").recipe == Recipe(4, "nf4", 64)
    assert plan_of("gptq4-static-float") == Plan(
        "gptq", Recipe(4, "symmetric", static_groups=True), float_inputs=True
    )
    for wrong in ("rtn", "rtn9", "rtn4g0", "none4", "rtn4-fast", "rtn3-nf4", "RTN4"):
        with pytest.raises(ValueError, match=wrong):
            plan_of(wrong)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("rtn4-nf4-asym", "nf4 is a grid of its own"),
        ("rtn4-act", "act is for gptq"),
        ("awq4-static", "static is for gptq"),
        ("rtn4-float", "float is for methods that need texts: gptq, awq"),
    ],
)
def test_what_a_method_would_drop_is_refused(setting, told):
    with pytest.raises(ValueError, match=f"'{setting}': {told}"):
        plan_of(setting)
    assert plan_of("awq4-float").float_inputs


def corpus(folder):
    path = folder / "texts.jsonl"
    lines = [json.dumps({"tokens": row[0].tolist()}) for row in texts(3, 6, 24)]
    path.write_text("\n".join(lines))
    return str(path)


def test_a_row_for_each_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(table, "PROMPT", 3)
    monkeypatch.setattr(table, "STEPS", 2)
    words = ["--calibrate", corpus(tmp_path), "--settings", "rtn8 rtn3g64"]
    assert main(["bits", "stories-draft", *words]) == 0
    head, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[:4] == ["setting", "bits", "MB", "KL"]
    assert [line[:2] for line in lines[:2]] == [["float32", "32.00"], ["rtn8", "8.21"]]
    assert [line[0] for line in lines] == ["float32", "rtn8", "rtn3g64"]
    assert lines[0][3] == "0" and lines[0][5] == "100.00%"
    assert 0 < float(lines[1][3]) < float(lines[2][3]) / 50
    assert main(["bits", "stories-draft", *words[:3], "rtn8", "--json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert objects[1]["setting"] == "rtn8"
    assert f"{objects[1]['divergence']:.1e}" == lines[1][3]


def test_bytes_are_those_of_the_matrices_of_blocks():
    model = load("stories-draft")
    E, F, HD, KD = 64, 192, 64, 32
    weights = 3 * (2 * E * HD + 2 * E * KD + 3 * E * F)
    assert kept_in(model) == (4 * weights, weights)


@pytest.mark.slow
def test_a_picture_has_a_line_for_each_method(tmp_path):
    pytest.importorskip("matplotlib", reason="draws")
    found = [
        Row(name, bits, 1, Quality(kl, 1.0, 2.0, 2.0), 1.0, 1.0)
        for name, bits, kl in (
            ("float32", 32.0, 0.0), ("rtn4", 4.1, 1e-2), ("rtn3g64", 3.2, 1e-1),
            ("gptq4g64-act", 4.2, 1e-3),
        )
    ]  # fmt: skip
    draw(tmp_path / "bits.svg", found, "a model")
    text = (tmp_path / "bits.svg").read_text()
    for name in ("rtn", "gptq-act", "rtn3g64", "gptq4g64-act", "a model"):
        assert f"<!-- {name} -->" in text
    assert "<!-- float32 -->" not in text
    assert cells(found[0])[:4] == ("float32", "32.00", "0.0", "0")


@pytest.mark.parametrize(
    "words, told",
    [
        (["--settings", "rtn1"], "rtn1"),
        (["--plot", "bits.txt"], ".png, .svg or .pdf"),
        (["--nsamples", "0"], "--nsamples 0"),
    ],
)
def test_misuse_of_bits_is_one_line(tmp_path, capsys, words, told):
    assert main(["bits", "stories", "--calibrate", corpus(tmp_path), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
