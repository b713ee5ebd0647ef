"""The verdict, what it is measured by, and how it is said."""

import argparse
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from backend import backend, random_model
from hypothesis import given
from hypothesis import strategies as st
from test_golden_floor import golden

from npllama.cli.golden_compare import add_compare, run_compare
from npllama.config import config_to_hf
from npllama.files.checkpoint import load, save
from npllama.golden.compare import (
    LEANS_DOWN,
    LEANS_UP,
    aligned,
    compare,
    judge,
    seen_dtype,
)
from npllama.golden.distance import by_position, relative_error, units
from npllama.golden.floor import floor
from npllama.golden.measures import measure, measure_logits
from npllama.golden.page import facts_of, page
from npllama.golden.report import examine, to_json, to_text
from npllama.golden.trace import FORMAT, Trace
from npllama.weights import LAYER_NAMES, tensor_shapes

NAME = "prefill/model.layers.1.mlp.up_proj"


# ---- measures ---------------------------------------------------------------


def test_measures_of_a_small_tensor_by_hand():
    found = measure(np.array([1.0, 2.25, 0.5]), np.array([1.0, 2.0, 0.0]), "bfloat16")
    assert found.max_abs == 0.5
    assert found.max_relative == 0.125
    assert found.nmse == pytest.approx((0.25**2 + 0.5**2) / 5)
    assert found.error == pytest.approx(np.sqrt(found.nmse))
    assert found.rms == pytest.approx(np.sqrt((0.25**2 + 0.5**2) / 3))
    assert found.cosine == pytest.approx(5.5 / np.sqrt(5 * (1 + 2.25**2 + 0.25)))
    # Near 2 the numbers of bfloat16 are 1/64 apart.
    assert found.ulp_median == 16
    assert found.lean == pytest.approx(-0.1)


def test_equal_tensors_differ_by_nothing():
    x = np.random.default_rng(0).standard_normal((2, 3))
    found = measure(x, x, "float32")
    assert found.cosine == pytest.approx(1)
    assert found._replace(cosine=0.0) == found.__class__(*[0.0] * len(found))
    assert measure(np.zeros(3), np.zeros(3), "float32").error == 0


@given(seed=st.integers(0, 2**32), power=st.integers(-20, 20))
def test_error_is_the_same_in_every_unit(seed, power):
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal(7)
    y = exact + 0.1 * rng.standard_normal(7)
    assert relative_error(y * 2.0**power, exact * 2.0**power) == relative_error(
        y, exact
    )


def test_divergence_of_two_distributions_by_hand():
    p, q = np.array([0.5, 0.25, 0.125, 0.125]), np.array([0.25, 0.5, 0.125, 0.125])
    found = measure_logits(np.log(q)[None] + 3, np.log(p)[None])
    assert found.kl == pytest.approx(0.25 * np.log(2))
    assert found.top_1 == 0 and found.top_5 == 1
    assert found.logprob_gap == pytest.approx(np.log(2))


def test_agreement_is_counted_by_position():
    exact = np.eye(8)[None, :4] * 9 + np.arange(8) / 10
    y = exact.copy()
    y[0, 0, 7] += 20
    found = measure_logits(y, exact)
    assert found.top_1 == 0.75
    assert measure_logits(exact, exact).kl == 0


# ---- bringing together ------------------------------------------------------


@pytest.mark.parametrize("T", [5, 3])  # 3: as many positions as heads
@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x,
        lambda x: x.reshape(1, len(x[0]), -1),
        lambda x: x[0],
        lambda x: x.reshape(len(x[0]), -1),
        lambda x: x.swapaxes(1, 2),
        lambda x: x[0].swapaxes(0, 1),
    ],
)
def test_heads_may_be_folded_or_stand_elsewhere(arrange, T):
    exact = np.arange(12.0 * T).reshape(1, T, 3, 4)
    np.testing.assert_array_equal(aligned(NAME, arrange(exact), exact), exact)


def test_cache_may_have_room_left():
    exact = np.arange(48.0).reshape(2, 1, 2, 3, 4)
    roomy = np.concatenate([exact, np.full((2, 1, 2, 5, 4), 9.0)], axis=3)
    np.testing.assert_array_equal(aligned("cache.k", roomy, exact), exact)


@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 5, 6), (1, 6, 5), (30,), (1, 5, 7)])
def test_other_shape_is_outside_and_says_both(shape):
    exact = np.ones((1, 5, 6))
    row = judge(NAME, np.ones(shape), exact, 1.0, "float32")
    assert row.verdict == "outside"
    assert str(shape) in row.note and str(exact.shape) in row.note


def test_numbers_show_what_they_were_computed_in():
    model = random_model(1)
    tokens = np.arange(9)[None]
    for dtype in ("float32", "bfloat16", "float16"):
        assert seen_dtype(backend(model, tokens, 9, dtype)) == dtype


# ---- verdicts ---------------------------------------------------------------


@pytest.mark.parametrize("floors, verdict", [(1.9, "within"), (2.1, "outside")])
def test_limit_is_two_floors(floors, verdict):
    rng = np.random.default_rng(3)
    exact, noise = rng.standard_normal((2, 1, 6, 50))
    noise *= np.sqrt(np.square(exact).sum() / np.square(noise).sum())
    row = judge(NAME, exact + floors * 1e-3 * noise, exact, 1e-3, "float32")
    assert row.verdict == verdict
    assert judge(NAME, exact, exact, 0.0, "float32").verdict == "within"
    wide = judge(NAME, exact + floors * 1e-3 * noise, exact, 1e-3, "float32", 3.0)
    assert wide.verdict == "within"


def test_where_nothing_is_computed_nothing_may_differ():
    exact = np.ones((1, 4, 4))
    row = judge(NAME, exact * (1 + 1e-7), exact, 0.0, "float32")
    assert row.verdict == "outside" and "exact" in row.note


@pytest.mark.parametrize("sign, note", [(1, LEANS_UP), (-1, LEANS_DOWN)])
def test_error_to_one_side_is_outside_in_half_precision(sign, note):
    exact = np.random.default_rng(4).standard_normal((1, 16, 64))
    y = exact * (1 + sign * 1.5e-3)
    assert judge(NAME, y, exact, 1e-3, "bfloat16").note == note
    assert judge(NAME, y, exact, 1e-3, "float32").verdict == "within"
    assert judge(NAME, y[:, :7], exact[:, :7], 1e-3, "bfloat16").verdict == "within"


def test_eight_positions_lean_and_seven_do_not():
    exact = np.random.default_rng(4).choice([-1.0, 1.0], (1, 8, 64))
    y = exact * (1 - 1.5e-3)
    assert judge(NAME, y, exact, 1e-3, "bfloat16").note == LEANS_DOWN
    assert judge(NAME, y[:, :7], exact[:, :7], 1e-3, "bfloat16").note == ""


def test_one_number_leans_by_chance_and_hides_no_lean():
    exact = np.random.default_rng(5).standard_normal((1, 16, 64))
    exact[0, 0, 3] = 1e5
    floors = {"rms": 1e-3, "even": 1e-3}
    y = exact.copy()
    y[0, 0, 3] *= 1 - 1.5e-3
    assert judge(NAME, y, exact, floors, "bfloat16").verdict == "within"
    y = np.where(exact > 1e4, exact, exact * (1 - 2.3e-3))
    assert judge(NAME, y, exact, {"rms": 1e-3}, "bfloat16").verdict == "within"
    assert judge(NAME, y, exact, floors, "bfloat16").note == LEANS_DOWN


def test_error_behind_an_enormous_number_is_seen():
    rng = np.random.default_rng(6)
    exact = rng.standard_normal((1, 5, 64))
    exact[0, 0, 3] = 1e5
    y = exact * np.where(np.arange(5) > 0, 1.1, 1)[:, None]
    floors = {"rms": 1e-3, "even": 1e-3, "positions": [1e-3] * 5}
    assert judge(NAME, y, exact, 1e-3, "float32").verdict == "within"
    assert "even error" in judge(NAME, y, exact, floors, "float32").note
    # In the very position of the number, too.
    y = np.where(
        exact < 1e4, exact * np.where(np.arange(5) == 0, 1.1, 1)[:, None], exact
    )
    row = judge(NAME, y, exact, floors | {"even": 1.0}, "float32")
    assert row.verdict == "outside" and "position 0" in row.note
    assert row.evenness.spot == (0, 0)


def test_limit_of_a_head_is_the_lower_of_its_two_floors():
    exact = np.random.default_rng(7).standard_normal((1, 3, 2, 32))
    unit = units(by_position("q_rope", exact)).reshape(exact.shape)
    floors = {"rms": 1.0, "even": 1.0, "positions": [1e-3] * 3, "heads": [1e-2, 1e-4]}
    for head, size, verdict in (
        (0, 1.9e-3, "within"),
        (0, 2.1e-3, "outside"),
        (1, 1.9e-4, "within"),
        (1, 2.1e-4, "outside"),
    ):
        y = exact.copy()
        y[0, 1, head] += size * unit[0, 1, head]
        row = judge("prefill/self_attn.q_rope", y, exact, floors, "float32")
        assert row.verdict == verdict, (head, size)
        assert row.evenness.spot == (1, head)


def test_numbers_that_are_not_finite_are_counted():
    exact = np.ones((1, 2, 3))
    y = exact.copy()
    y[0, 1, 2], y[0, 1, 0] = np.nan, np.inf
    row = judge(NAME, y, exact, 1.0, "float32")
    assert row.verdict == "outside"
    assert row.note == "2 of 6 numbers are not finite, the first at (0, 1, 0)"


def test_hidden_scores_may_be_any_large_negative_number():
    exact = np.array([[[[1.0, -np.inf], [2.0, 3.0]]]])
    y = np.where(np.isfinite(exact), exact, np.finfo(np.float32).min)
    name = "prefill/model.layers.0.self_attn.scores"
    assert judge(name, y, exact, 1e-6, "float32").verdict == "within"


def test_first_tensor_outside_is_the_first_that_is_computed():
    model = random_model(5)
    exact = golden(model)
    floors = floor(exact, model, "float32")
    candidate = dict(reversed(backend(model, exact["tokens"], 20).items()))
    for name in ("prefill/lm_head", NAME, "decode.0/model.norm"):
        candidate[name] = candidate[name] + 1
    assert compare(exact, candidate, floors, "float32").first.name == NAME


def test_candidate_of_nothing_in_common_is_refused():
    exact = {"prefill/lm_head": np.ones((1, 1, 2)), "tokens": np.zeros((1, 1), int)}
    with pytest.raises(ValueError, match="no tensor in common.*lm_head.*logits"):
        compare(exact, {"logits": np.ones(2)}, {}, "float32")


@pytest.mark.parametrize(
    "tokens, message",
    [([[1, 2, 9]], "number 2 is 9, 3 in"), ([[1, 2]], "ran 2 tokens")],
)
def test_candidate_of_other_tokens_is_refused(tokens, message):
    logits = {"prefill/lm_head": np.ones((1, 3, 2))}
    exact, y = (logits | {"tokens": np.array(t)} for t in ([[1, 2, 3]], tokens))
    with pytest.raises(ValueError, match=message):
        compare(exact, y, {}, "float32")


def test_integers_are_no_tensor():
    exact = np.ones((1, 2, 3))
    row = judge(NAME, exact.astype(np.uint16), exact, 1.0, "float32")
    assert row.verdict == "outside" and "uint16" in row.note


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [None, "interleaved", "tile", "mask", "scale"])
def test_several_rows_are_judged_as_one(fault, dtype):
    model = random_model(9)
    exact = golden(model, rows=3)
    floors = floor(exact, model, dtype)
    candidate = backend(model, exact["tokens"], 20, dtype, fault)
    candidate = {name: np.array(x) for name, x in candidate.items()}
    meta = {"config": config_to_hf(model.config), "floor": {dtype: floors}}
    report = examine(Trace(exact, meta), Trace(candidate, {}), dtype=dtype)
    assert (report.finding and report.finding.fault) == fault


# ---- reports ----------------------------------------------------------------


@pytest.fixture(scope="module")
def traced():
    """A model, its golden trace with floors, and a right candidate."""
    model = random_model(6)
    exact = golden(model)
    kinds = ("float32", "bfloat16")
    meta = {"config": config_to_hf(model.config), "format": FORMAT}
    meta |= {"prompt_tokens": 20, "dtype": "float64"}
    meta |= {"floor": {dtype: floor(exact, model, dtype) for dtype in kinds}}
    meta["shapes"] = {name: list(x.shape) for name, x in exact.items()}
    return model, Trace(exact, meta), backend(model, exact["tokens"], 20)


def strict(text):
    """JSON without what only Python reads."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_report_of_a_right_candidate_is_short(traced):
    _, exact, candidate = traced
    report = examine(exact, Trace(candidate, {}))
    text = to_text(report)
    assert report.within and "within the noise floor of float32" in text
    assert "diagnosis" not in text
    assert to_json(report)["verdict"] == "within"


def test_floor_of_other_tensors_is_no_verdict(traced):
    model, exact, candidate = traced
    known = {"prefill/model.norm": exact.meta["floor"]["float32"]["prefill/model.norm"]}
    poor = Trace(exact.tensors, exact.meta | {"floor": {"float32": known}})
    logits = {
        n: x for n, x in candidate.items() if n.endswith(("lm_head", "model.norm"))
    }
    text = to_text(examine(poor, Trace(logits, {})))
    assert (
        "all 1 tensors are within" in text and "no verdict, for prefill/lm_head" in text
    )
    del logits["prefill/model.norm"]
    with pytest.raises(ValueError, match="none of the candidate's tensors.*--weights"):
        examine(poor, Trace(logits, {}))
    assert "all 5 tensors" in to_text(examine(poor, Trace(logits, {}), model))


def test_report_names_tensor_inputs_and_fault(traced):
    model, exact, _ = traced
    wrong = backend(model, exact["tokens"], 20, "float32", "scale")
    report = examine(exact, Trace(wrong, {}))
    text = to_text(report)
    assert "first outside   prefill/model.layers.0.self_attn.attention" in text
    for source in ("q_rope", "k_rope", "v_proj"):
        assert f"model.layers.0.self_attn.{source}: within" in text
    assert "not divided by the square root" in text and "proved" in text
    data = strict(json.dumps(to_json(report), allow_nan=False))
    assert data["first"] == report.comparison.first.name
    assert data["diagnosis"]["fault"] == "scale" and data["diagnosis"]["proved"]
    assert {row["verdict"] for row in data["made_from"]} == {"within"}
    found = {row["name"]: row for row in data["tensors"]}
    assert set(found) | set(data["missing"]) == set(exact) - {"tokens"}
    assert {"ulp_max", "cosine", "nmse"} <= set(found[NAME])
    assert {"kl", "top_1", "top_5", "logprob_gap"} <= set(found["prefill/lm_head"])


def test_report_says_how_far_it_reaches(traced):
    model, exact, _ = traced
    wrong = backend(model, exact["tokens"], 20, "float32", "tile")
    logits = {name: x for name, x in wrong.items() if name.endswith("lm_head")}
    text = to_text(
        examine(exact, Trace(logits | {"mine": logits["prefill/lm_head"]}, {}))
    )
    assert "not in the candidate: prefill/model.norm" in text
    assert "only logits were compared" in text and "--weights" in text
    assert "not in the golden trace: mine" in text
    assert "cause unknown" in text
    known = to_text(examine(exact, Trace(logits, {}), model))
    assert "tiled" in known


def test_infinite_numbers_are_null_in_json(traced):
    _, exact, candidate = traced
    wrong = candidate | {NAME: np.full_like(candidate[NAME], np.nan)}
    wrong["prefill/model.embed_tokens"] = wrong["prefill/model.embed_tokens"] * 1.001
    data = strict(
        json.dumps(to_json(examine(exact, Trace(wrong, {}))), allow_nan=False)
    )
    assert data["first"] == "prefill/model.embed_tokens"
    assert data["tensors"][0]["floors"] is None


class Elements(HTMLParser):
    """What a page consists of; fails on tags that are not closed in order."""

    VOID = {"meta", "line"}

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("fault", [None, "scale"])
def test_page_is_whole_and_fetches_nothing(traced, fault):
    model, exact, _ = traced
    wrong = backend(model, exact["tokens"], 20, "bfloat16", fault)
    report = examine(exact, Trace(wrong, {}))
    text = page(report, "a <b> & 'c'")
    elements = Elements()
    elements.feed(text)
    assert elements.open == []
    assert elements.seen.count("svg") == 3
    present = sum(row.verdict != "missing" for row in report.comparison.rows)
    logits = sum(name.endswith("lm_head") for name in wrong)
    assert present == sum(name in wrong for name in exact) - ("tokens" in wrong)
    assert elements.seen.count("tr") == 1 + present + 1 + logits
    fetching = ("src", "href", "xlink:href", "srcset", "action")
    assert not [a for a in elements.attributes if a[0] in fetching]
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "<b>" not in text and "a &lt;b&gt; &amp;" in text
    assert "prefers-color-scheme: dark" in text
    assert all(label for name, label in elements.attributes if name == "aria-label")
    assert ('class="outside-mark"' in text) == (fault is not None)


def test_names_of_a_candidate_are_escaped(traced):
    _, exact, candidate = traced
    wrong = candidate | {"<script>alert(1)</script>": candidate[NAME]}
    assert "<script" not in page(examine(exact, Trace(wrong, {})), "t")


def test_page_of_a_wrong_candidate_marks_the_first_and_says_fail(traced):
    model, exact, _ = traced
    wrong = backend(model, exact["tokens"], 20, "bfloat16", "scale")
    report = examine(exact, Trace(wrong, {}))
    text = page(report, "t")
    module = report.comparison.first.name.partition("/")[2]
    assert text.count(f">first outside: {module}</text>") == 1
    assert "<title>FAIL: t<" in text and "<strong>FAIL: " in text
    assert ">relative error</text>" in text


def test_page_of_logits_alone_has_their_rows_only(traced):
    _, exact, candidate = traced
    shown = {n: x for n, x in candidate.items() if n.endswith("lm_head")}
    text = page(examine(exact, Trace(shown, {})), "t")
    elements = Elements()
    elements.feed(text)
    assert elements.seen.count("tr") == 2 * (1 + len(shown))  # and those of the logits
    assert elements.open == [] and "<title>PASS: t<" in text
    assert f"lacks {len(exact) - 1 - len(shown)} of the golden" in text
    scrolled = elements.attributes.count(("class", "scroll"))
    assert scrolled == elements.attributes.count(("tabindex", "0"))


def test_an_error_of_zero_is_a_hollow_dot(traced):
    _, exact, candidate = traced
    equal = candidate | {NAME: exact[NAME]}
    assert page(examine(exact, Trace(equal, {})), "t").count('class="exact-mark"') >= 1


def test_page_says_what_was_compared(traced):
    _, exact, candidate = traced
    said = {"producer": "<mine>", "dtype": "float32", "versions": {"cuda": "12.4"}}
    meta = exact.meta | {"producer": "npllama", "versions": {"numpy": "2.1"}}
    facts = facts_of(Trace(exact, meta), Trace(candidate, said))
    assert facts["golden"] == "npllama, float64, numpy 2.1"
    assert facts["candidate"] == "<mine>, float32, cuda 12.4"
    assert facts["tokens"].split()[:3] == [str(i) for i in exact["tokens"].flat[:3]]
    text = page(examine(exact, Trace(candidate, said)), "t", facts)
    assert "<dd>&lt;mine&gt;, float32, cuda 12.4</dd>" in text
    strange = {"producer": [1], "versions": ["\x00"], "dtype": "float32"}
    assert facts_of(exact, Trace(candidate, strange))["candidate"] == "[1], float32"


def test_page_says_the_text_where_a_tokenizer_can_read_it():
    tokenizer = load("stories").tokenizer
    ids = tokenizer.encode("Once upon a time")
    one, two = (Trace({"tokens": np.array(n * [ids])}, {}) for n in (1, 2))
    assert facts_of(one, one, tokenizer)["text"] == "Once upon a time"
    assert "text" not in facts_of(one, one) and "text" not in facts_of(two, two)
    assert "text" not in facts_of(two, two, tokenizer)


# ---- the command ------------------------------------------------------------


@pytest.fixture
def files(traced, tmp_path):
    """The golden trace, a candidate and the weights, as files."""
    model, exact, candidate = traced
    golden_path, mine = tmp_path / "golden.npz", tmp_path / "mine.npz"
    write(golden_path, exact.tensors, exact.meta)
    np.savez(mine, **candidate)
    tensors = {
        "model.embed_tokens.weight": model.embed,
        "lm_head.weight": model.lm_head,
    }
    tensors["model.norm.weight"] = model.norm
    for i, layer in enumerate(model.layers):
        for word, name in LAYER_NAMES.items():
            tensors[f"model.layers.{i}.{name}"] = getattr(layer, word)
    shapes = tensor_shapes(model.config)
    named = ((n, tensors[n].reshape(s).astype(np.float32)) for n, s in shapes.items())
    save(tmp_path / "model.npz", model.config, named)
    return tmp_path


def write(path, tensors, meta):
    """A trace, as `golden record` leaves it."""
    import zipfile

    np.savez(path, **tensors)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("meta.json", json.dumps(meta))


def command(*words):
    """The exit code of ``golden compare``."""
    parser = argparse.ArgumentParser()
    add_compare(parser.add_subparsers())
    return run_compare(parser.parse_args(["compare", *map(str, words)]))


def test_exit_code_is_the_verdict(traced, files, capsys):
    model, exact, _ = traced
    assert command(files / "golden.npz", files / "mine.npz") == 0
    wrong = backend(model, exact["tokens"], 20, "float32", "transposed o_proj")
    np.savez(files / "wrong.npz", **wrong)
    given_weights = ("--weights", files / "model.npz", "--json")
    capsys.readouterr()
    assert command(files / "golden.npz", files / "wrong.npz", *given_weights) == 1
    assert strict(capsys.readouterr().out)["diagnosis"]["fault"] == "transposed"


def test_missing_floor_is_measured_if_the_weights_are_there(files, capsys):
    words = (files / "golden.npz", files / "mine.npz", "--dtype", "float16")
    with pytest.raises(
        ValueError, match="float32, bfloat16, not for float16.*--weights"
    ):
        command(*words)
    assert command(*words, "--weights", files / "model.npz") == 0


def test_page_is_written_beside_and_renamed(files, capsys):
    assert (
        command(
            *(files / f"{n}.npz" for n in ("golden", "mine")),
            "--html",
            files / "r.html",
        )
        == 0
    )
    assert (files / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not list(files.glob("*.part"))


def test_larger_factor_lets_more_pass(traced, files, capsys):
    model, exact, candidate = traced
    size = exact.meta["floor"]["float32"][NAME]["rms"]
    noise = np.random.default_rng(7).standard_normal(exact[NAME].shape)
    noise *= 3 * size * np.sqrt(np.square(exact[NAME]).sum() / np.square(noise).sum())
    np.savez(files / "noisy.npz", **(candidate | {NAME: exact[NAME] + noise}))
    both = (files / "golden.npz", files / "noisy.npz")
    assert command(*both) == 1
    assert command(*both, "--factor", 8) == 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x04."])
def test_file_that_is_no_trace_is_unusable(files, content):
    (files / "bad.npz").write_bytes(content)
    for words in (("golden.npz", "bad.npz"), ("bad.npz", "mine.npz")):
        with pytest.raises(ValueError, match="bad.npz"):
            command(*(files / word for word in words))
    with pytest.raises(ValueError, match="missing.npz"):
        command(files / "golden.npz", files / "missing.npz")


def test_unknown_dtype_of_a_candidate_is_unusable(traced, files):
    _, _, candidate = traced
    write(files / "odd.npz", candidate, {"dtype": "int4"})
    with pytest.raises(ValueError, match="int4.*bfloat16"):
        command(files / "golden.npz", files / "odd.npz")


def test_words_of_the_report_fit_a_terminal(traced):
    _, exact, candidate = traced
    lines = to_text(examine(exact, Trace(candidate, {}))).splitlines()
    table = [line for line in lines if re.match(r"(prefill|decode)\S+ +\d", line)]
    assert len(table) == 12 and len({len(line) for line in table}) == 1
