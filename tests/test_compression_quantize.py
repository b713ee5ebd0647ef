"""A whole model in few bits: fitted block by block, kept, and judged."""

import json
from dataclasses import replace

import numpy as np
import pytest
from strategies import DISTINCT, random_model, token_ids
from test_compression_packed import tensors_of as named
from test_weight import logits_of
from tolerances import assert_close, assert_same, depth

from npllama.cli.info import of_file
from npllama.cli.main import main
from npllama.cli.quantize import held_back
from npllama.compression import quantize
from npllama.compression.calibrate import (
    HALVES,
    MATRICES,
    Gram,
    attention_half,
    inputs_of,
    rows_of,
    through,
)
from npllama.compression.folds import matrix
from npllama.compression.gptq import Recipe
from npllama.compression.quality import Judge, divergence
from npllama.compression.quantize import (
    METHODS,
    FinishedBlocks,
    Method,
    Plan,
    in_few_bits,
    mark_of,
    quantised,
)
from npllama.compression.table import plan_of
from npllama.files.checkpoint import load, lost_on_the_way, save
from npllama.files.packed import Packed
from npllama.golden.streamed import StreamedModel
from npllama.norm import rms_norm
from npllama.ops import Observer, observing

CONFIG = replace(DISTINCT, hidden_size=8, intermediate_size=12)
TINY = Recipe(3, "asymmetric", 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantize") / "model.npz"
    save(path, CONFIG, named(random_model(CONFIG, 0)))
    return path


def texts(n, seed=1, T=9):
    return [token_ids(CONFIG, seed + i, 1, T + i) for i in range(n)]


@pytest.fixture
def model(path):
    return StreamedModel(path, "float32")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    lines = [json.dumps({"tokens": row[0].tolist()}) for row in texts(6)]
    path.write_text("\n".join(lines) + "\n")
    return path


def command(path, out, *words):
    return main(["quantize", str(path), str(out), *words])


# ---- calibration -----------------------------------------------------------------


def test_halves_of_all_blocks_are_the_forward_pass(path, model):
    whole, row = load(path), token_ids(CONFIG, 3, 1, 9)
    xs = [model.embed[row]]
    for layer in whole.layers:
        xs = through(xs, layer, CONFIG)
    assert_close(
        quantize.logits_of(model, xs[0]), logits_of(whole, row), depth(CONFIG, 9)
    )


class Seen(Observer):
    def __init__(self):
        self.inputs = {}

    def product(self, kind, a, b, y):
        self.inputs.setdefault(kind.name, []).append(a)


def test_sums_are_those_of_what_goes_into_each_product(path):
    layer = load(path).layers[0]
    xs = [np.float32(np.random.default_rng(i).normal(size=(1, 5, 8))) for i in (0, 1)]
    with observing(Seen()) as seen:
        through(xs, layer, CONFIG)
    found = quantize._all_inputs(layer, xs, CONFIG)
    names = dict(wq="q_proj", wk="k_proj", wv="v_proj", wo="o_proj", w_gate="gate_proj",
                 w_up="up_proj", w_down="down_proj")  # fmt: skip
    assert set(found) == set(names)
    for word, name in names.items():
        x = np.concatenate([a.reshape(5, -1) for a in seen.inputs[name]])  # (n, S)
        x = x.astype(np.float64)
        assert found[word].gram.dtype == np.float64 and found[word].tokens == 10
        np.testing.assert_allclose(found[word].gram, x.T.dot(x), rtol=1e-12)
        np.testing.assert_allclose(found[word].mean, np.abs(x).mean(0), rtol=1e-12)
        assert_same(found[word].most, np.abs(x).max(0))
    assert found["wo"].gram.shape == (24, 24) and found["w_down"].gram.shape == (12, 12)


def test_inputs_of_the_first_stage_are_the_normalised_stream(path):
    layer = load(path).layers[0]
    x = np.float32(np.random.default_rng(0).normal(size=(1, 5, 8)))
    normed = rms_norm(x, layer.attn_norm, CONFIG.rms_norm_eps)[0].astype(np.float64)
    found = inputs_of(("wk",), HALVES[0], [x], layer, CONFIG)
    np.testing.assert_allclose(found["wk"].gram, normed.T.dot(normed), rtol=1e-12)
    assert found["wq"] is found["wk"] and "wo" not in found


def test_products_with_other_names_are_not_summed(path):
    x = np.ones((1, 2, 8), dtype=np.float32)
    with observing(Gram(["w_up"])) as gram:
        attention_half(x, load(path).layers[0], CONFIG)
    assert gram.found == {}


def test_rows_begin_as_texts_do():
    rows = rows_of([[5, 6, 7, 8], [9], []], [1, 2], 4)
    assert [r.tolist() for r in rows] == [[[1, 2, 5, 6]], [[1, 2, 7, 8]], [[1, 2, 9]]]
    assert rows_of([[4, 5, 6]], [], 2)[-1].tolist() == [[4, 5]]  # one token is no text
    with pytest.raises(ValueError, match="no room"):
        rows_of([[1]], [1, 2], 2)


def test_the_last_rows_are_held_back_but_half_at_most():
    rows = [np.zeros((1, 10), np.int64)] * 9
    assert [len(part) for part in held_back(rows, 25)] == [6, 3]
    assert [len(part) for part in held_back(rows, 1000)] == [5, 4]
    assert [len(part) for part in held_back(rows[:1], 25)] == [1, 0]


# ---- quality ---------------------------------------------------------------------


def test_divergence_by_hand():
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(divergence(p, q), [by_hand])
    assert divergence(p, p + 3).tolist() == pytest.approx([0])
    # A token that neither model can have, and one that only the first can.
    never = np.array([[0.0, -np.inf]])
    assert divergence(never, never).tolist() == [0]
    assert divergence(p, never).tolist() == [np.inf]


def test_a_verdict_on_no_text_is_refused():
    with pytest.raises(ValueError, match="no text was judged"):
        Judge().verdict()


def test_a_verdict_by_hand():
    exact = np.log([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]])
    rounded = np.log([[[0.25, 0.75], [0.9, 0.1], [0.2, 0.8]]])
    judge = Judge()
    judge.add(exact, rounded, np.array([[0, 0, 1]]))
    found = judge.verdict()
    assert found.divergence == pytest.approx(divergence(exact, rounded).sum() / 3)
    assert found.agreement == pytest.approx(2 / 3)
    # of tokens 0 and 1, predicted at positions 0 and 1
    assert found.before == pytest.approx((0.5 * 0.1) ** -0.5)
    assert found.perplexity == pytest.approx((0.25 * 0.1) ** -0.5)


# ---- a block ---------------------------------------------------------------------


def watched(monkeypatch):
    """A method that rounds as `rtn`, and keeps the inputs that it was shown."""
    shown = {}

    def round_(w, inputs, recipe):
        shown[w.shape, len(shown)] = inputs
        return METHODS["rtn"].round(w, inputs, recipe)

    monkeypatch.setitem(METHODS, "watched", Method("", round_))
    return shown


@pytest.mark.parametrize("sequential", [True, False])
def test_a_stage_sees_what_the_stages_before_it_lost(path, monkeypatch, sequential):
    shown = watched(monkeypatch)
    layer = load(path).layers[0]
    xs = [np.float32(np.random.default_rng(i).normal(size=(1, 5, 8))) for i in (0, 1)]
    done = in_few_bits(layer, xs, Plan("watched", TINY, sequential), CONFIG)
    exact = quantize._all_inputs(layer, xs, CONFIG)
    lossy = quantize._all_inputs(done.layer, xs, CONFIG)
    words = ["wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"]
    for word, inputs in zip(words, shown.values()):
        same = lossy if sequential else exact
        np.testing.assert_allclose(inputs.gram, same[word].gram, rtol=1e-12)
    assert not np.allclose(lossy["w_down"].gram, exact["w_down"].gram, rtol=1e-3)


def test_losses_are_told_relative_to_the_outputs(path):
    layer = load(path).layers[0]
    xs = [np.float32(np.random.default_rng(0).normal(size=(1, 7, 8)))]
    done = in_few_bits(layer, xs, Plan("rtn", TINY, False), CONFIG)
    x = rms_norm(xs[0], layer.attn_norm, CONFIG.rms_norm_eps)[0]
    w, q = layer.wk.reshape(12, 8), np.asarray(done.layer.wk).reshape(12, 8)
    by_hand = (x.dot((w - q).T) ** 2).sum() / (x.dot(w.T) ** 2).sum()
    assert done.losses["wk"] == pytest.approx(by_hand, rel=1e-4)
    assert list(done.losses) == ["wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"]
    blind = in_few_bits(layer, [], Plan("rtn", TINY), CONFIG).losses["wk"]
    assert blind == pytest.approx(((w - q) ** 2).sum() / (w**2).sum(), rel=1e-4)


def test_a_method_may_prepare_a_block_first(path, monkeypatch):
    def double(layer, inputs, recipe):
        assert inputs["wo"].tokens == 7
        halves = {n: getattr(layer, n) / 2 for n in ("wq", "wk", "wv")}
        return layer._replace(attn_norm=layer.attn_norm * 2, **halves)

    method = METHODS["rtn"]._replace(prepare=double)
    monkeypatch.setitem(METHODS, "doubled", method)
    layer = load(path).layers[0]
    xs = [np.float32(np.random.default_rng(0).normal(size=(1, 7, 8)))]
    plain = in_few_bits(layer, xs, Plan("rtn", TINY), CONFIG).layer
    found = in_few_bits(layer, xs, Plan("doubled", TINY), CONFIG).layer
    assert_same(np.asarray(found.wq) * 2, np.asarray(plain.wq))
    assert_same(found.attn_norm, layer.attn_norm * 2)
    assert_same(through(xs, found, CONFIG)[0], through(xs, plain, CONFIG)[0])


def test_a_prepared_norm_reaches_the_file(path, tmp_path, monkeypatch):
    def double(layer, inputs, recipe):
        return layer._replace(mlp_norm=layer.mlp_norm * 2)

    method = METHODS["rtn"]._replace(prepare=double)
    monkeypatch.setitem(METHODS, "rtn", method)
    assert command(path, tmp_path / "out.npz", "--method", "rtn") == 0
    one, two = load(path).layers[1], load(tmp_path / "out.npz").layers[1]
    assert_same(two.mlp_norm, one.mlp_norm * 2)
    assert_same(two.attn_norm, one.attn_norm)


# ---- a model ---------------------------------------------------------------------


def run(model, kept, plan=None, rows=None):
    plan = Plan("gptq", TINY) if plan is None else plan
    return list(
        quantised(model, texts(4) if rows is None else rows, texts(2, 9), plan, kept)
    )


def test_a_block_is_fitted_to_what_the_rounded_blocks_before_it_write(
    model, path, tmp_path, monkeypatch
):
    shown = watched(monkeypatch)
    kept = FinishedBlocks(tmp_path / "blocks", "m")
    run(model, kept, Plan("watched", TINY))
    first = kept.get(0, CONFIG).layer
    xs = through([model.embed[row] for row in texts(4)], first, CONFIG)
    layer = load(path).layers[1]
    exact = inputs_of(("wq",), HALVES[0], xs, layer, CONFIG)
    np.testing.assert_allclose(
        list(shown.values())[7].gram, exact["wq"].gram, rtol=1e-9
    )
    # or to what the blocks in floats write
    shown.clear()
    kept = FinishedBlocks(tmp_path / "others", "m")
    run(model, kept, Plan("watched", TINY, float_inputs=True))
    xs = through([model.embed[row] for row in texts(4)], load(path).layers[0], CONFIG)
    exact = inputs_of(("wq",), HALVES[0], xs, layer, CONFIG)
    np.testing.assert_allclose(
        list(shown.values())[7].gram, exact["wq"].gram, rtol=1e-9
    )


def test_the_divergence_is_that_of_the_model_rounded_so_far(model, path, tmp_path):
    kept, whole = FinishedBlocks(tmp_path / "blocks", "m"), load(path)
    reports = run(model, kept)
    layers = list(whole.layers)
    for i, report in enumerate(reports):
        layers[i] = kept.get(i, CONFIG).layer
        part = whole._replace(layers=tuple(layers))
        apart = [
            divergence(logits_of(whole, row), logits_of(part, row)).ravel()
            for row in texts(2, 9)
        ]
        assert report.number == i
        assert report.divergence == pytest.approx(
            np.concatenate(apart).mean(), rel=1e-3
        )


def test_a_stopped_run_goes_on_and_gives_the_same_bits(model, tmp_path, monkeypatch):
    once = FinishedBlocks(tmp_path / "once", "m")
    reports = run(model, once)
    again = FinishedBlocks(tmp_path / "again", "m")
    growing = quantised(model, texts(4), texts(2, 9), Plan("gptq", TINY), again)
    assert next(growing) == reports[0]
    growing.close()
    assert not (tmp_path / "again" / "1.npz").exists()
    fitted = []
    monkeypatch.setattr(
        quantize, "in_few_bits", lambda *a: (fitted.append(a), in_few_bits(*a))[1]
    )
    assert run(model, again) == reports
    assert len(fitted) == 1  # block 0 was there
    for i in range(2):
        one, two = ((tmp_path / d / f"{i}.npz").read_bytes() for d in ("once", "again"))
        assert one == two


def test_blocks_of_another_run_do_not_count(path, tmp_path):
    done = in_few_bits(load(path).layers[0], [], Plan("rtn", TINY), CONFIG)
    FinishedBlocks(tmp_path / "b", "one").put(0, done)
    assert FinishedBlocks(tmp_path / "b", "one").get(0, CONFIG) is not None
    assert FinishedBlocks(tmp_path / "b", "two").get(0, CONFIG) is None
    plans = [Plan(), Plan("rtn"), Plan(recipe=TINY), Plan(sequential=False)]
    marks = {mark_of(path, plan, texts(2)) for plan in plans}
    marks |= {mark_of(path, Plan(), texts(3)), mark_of(path, Plan(), texts(2, 5))}
    assert len(marks) == 6
    # The same tokens in rows of another length.
    (row,) = texts(1, T=8)
    marks = {mark_of(path, Plan(), some) for some in ([row], [row[:, :4], row[:, 4:]])}
    assert len(marks) == 2
    (tmp_path / "b" / "0.npz").write_bytes(b"half of it")
    assert FinishedBlocks(tmp_path / "b", "one").get(0, CONFIG) is None


def test_what_is_kept_comes_back_as_it_was(path, tmp_path):
    layer = load(path).layers[1]
    done = in_few_bits(layer, [], Plan("rtn", TINY), CONFIG)
    kept = FinishedBlocks(tmp_path / "b", "one")
    kept.put(1, done)
    found = kept.get(1, CONFIG)
    assert found.losses == done.losses
    for word, w in done.layer._asdict().items():
        assert_same(np.asarray(getattr(found.layer, word)), np.asarray(w))
    (tmp_path / "b" / "mine.npz").write_text("not a block")
    kept.clear()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["mine.npz"]


def test_gptq_without_a_text_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="gptq needs texts"):
        run(model, FinishedBlocks(tmp_path / "b", "m"), rows=[])


# ---- the command -----------------------------------------------------------------


def test_the_command_writes_a_model_in_few_bits(path, corpus, tmp_path, capsys):
    out = tmp_path / "out.npz"
    words = ["--calibrate", str(corpus), "--group-size", "4", "--desc-act"]
    assert command(path, out, *words) == 0
    table = capsys.readouterr().out.splitlines()[:3]
    assert table[0].split() == [
        *"block q_proj k_proj v_proj o_proj gate_proj up_proj down_proj KL".split()
    ]
    assert [len(line.split()) for line in table[1:]] == [9, 9]
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]
    facts = of_file(str(out), check=True)
    assert facts["packed"]["int4"].startswith("14 matrices")
    assert list(facts["converted"].values()) == [
        "quantised by gptq, 4 bits, groups of 4, symmetric, act-order: 14 tensors"
    ]
    model, whole = load(out), load(path)
    assert isinstance(model.layers[1].w_up, Packed)
    assert_same(model.layers[1].mlp_norm, whole.layers[1].mlp_norm)
    assert_same(model.layers[1].bq, whole.layers[1].bq)
    assert_same(model.embed, whole.embed)
    assert command(out, tmp_path / "twice.npz", "--method", "rtn") == 2
    assert "few bits already" in capsys.readouterr().err


def test_the_command_goes_on_after_it_was_stopped(
    path, corpus, tmp_path, monkeypatch, capsys
):
    words = ["--calibrate", str(corpus), "--group-size", "4"]
    assert command(path, tmp_path / "once.npz", *words) == 0

    def stopped(layer, *rest):
        monkeypatch.setattr(quantize, "in_few_bits", interrupted)
        return in_few_bits(layer, *rest)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "in_few_bits", stopped)
    assert command(path, tmp_path / "out.npz", *words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
    assert (tmp_path / "out.npz.blocks" / "0.npz").exists()
    monkeypatch.setattr(quantize, "in_few_bits", in_few_bits)
    assert command(path, tmp_path / "out.npz", *words) == 0
    assert not (tmp_path / "out.npz.blocks").exists()
    once, again = ((tmp_path / n).read_bytes() for n in ("once.npz", "out.npz"))
    assert once == again


def test_json_has_an_object_for_each_block(path, corpus, tmp_path, capsys):
    words = ["--method", "rtn", "--calibrate", str(corpus), "--json"]
    assert command(path, tmp_path / "out.npz", *words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["number"] for line in lines] == [0, 1]
    assert all(line["divergence"] > 0 and len(line["losses"]) == 7 for line in lines)


def test_rounding_to_the_nearest_needs_no_text(path, tmp_path, capsys):
    words = ["--method", "rtn", "--nf4", "--group-size", "-1"]
    assert command(path, tmp_path / "out.npz", *words) == 0
    assert load(tmp_path / "out.npz").layers[0].wq.format == "nf4"


WRONG = {
    "no text": ([], "--calibrate FILE"),
    "no group": (["--method", "rtn", "--group-size", "0"], "--group-size 0"),
    "nf4 of 3 bits": (["--method", "rtn", "--nf4", "--bits", "3"], "--nf4 has 4 bits"),
    "9 bits": (["--method", "rtn", "--bits", "9"], "--bits"),
    "no rows": (["--method", "rtn", "--nsamples", "0"], "--nsamples 0"),
    "damping": (["--method", "rtn", "--damp-percent", "2"], "--damp-percent 2"),
    "exponent": (["--method", "rtn", "--mse", "0"], "--mse 0"),
    "olive of 8 bits": (
        ["--method", "olive", "--bits", "8"],
        "olive has 4 bits, not 8",
    ),
    "ant of 2 bits": (["--method", "ant", "--bits", "2"], "ant has 3, 4, 5, 6, 7, 8"),
    "nf4 of olive": (["--method", "olive", "--nf4"], "olive has values of its own"),
    "clipped ant": (["--method", "ant", "--mse", "2"], "ant has values of its own"),
    "no sym": (["--method", "ant", "--no-sym"], "ant has values of its own"),
    "awq without text": (["--method", "awq"], "--method awq needs a text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_misuse_is_one_line_and_exit_code_2(path, tmp_path, capsys, case):
    words, told = WRONG[case]
    try:
        assert command(path, tmp_path / "out.npz", *words) == 2
    except SystemExit as error:  # argparse
        assert error.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_wrong_file_or_place_is_one_line(path, corpus, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"tokens": [1, 2]}\n{"prompt": 3}\n')
    for out, words, told in (
        (tmp_path / "out.bin", ["--calibrate", str(corpus)], "an .npz, or a folder"),
        (path, ["--calibrate", str(corpus)], "is the model"),
        (tmp_path / "no" / "out.npz", ["--calibrate", str(corpus)], "no folder"),
        (tmp_path / "out.npz", ["--calibrate", str(corpus), "--model-seqlen", "1"],
         "--model-seqlen 1"),
        (tmp_path / "out.npz", ["--calibrate", str(bad)], "line 2"),
    ):  # fmt: skip
        assert command(path, out, *words) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


@pytest.mark.parametrize(
    "method", ["ant", pytest.param("olive", marks=pytest.mark.slow)]
)
def test_values_of_their_own_need_no_text(method, path, tmp_path, capsys):
    words = ["--method", method, "--group-size", "4"]
    assert command(path, tmp_path / "out.npz", *words) == 0
    found, model = load(tmp_path / "out.npz"), load(path)
    for word in MATRICES:
        packed = getattr(found.layers[1], word)
        assert packed.format.startswith(f"{method}_") and packed.group == 4
        w = matrix(model.layers[1], word)
        own = METHODS[method].round(w, None, Recipe(4, group=4))
        assert_same(packed.dense(), own.dense().reshape(packed.shape))
    said = "".join(lost_on_the_way(tmp_path / "out.npz"))
    assert f"quantised by {method}, 4 bits, groups of 4: 14 tensors" in said
    assert command(path, tmp_path / "folder", *words) == 2
    assert f"no {method} grid" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"'{method}4-nf4': {method} has values"):
        plan_of(f"{method}4-nf4")


SYMMETRIC = Recipe(3, "symmetric", 4)


def test_awq_folds_before_it_rounds(path, corpus, tmp_path):
    words = ["--method", "awq", "--group-size", "4", "--bits", "3"]
    assert command(path, tmp_path / "a.npz", *words, "--calibrate", str(corpus)) == 0
    found, model = load(tmp_path / "a.npz"), load(path)
    for one, whole in zip(found.layers, model.layers):
        s = whole.attn_norm / one.attn_norm  # what the search chose
        assert np.ptp(np.log(s)) > 0.1
        own = METHODS["rtn"].round(matrix(whole, "wq") * s, None, SYMMETRIC)
        # a weight half-way between two values may go either way, since s is rounded
        assert (
            np.abs(own.dense() - one.wq.dense().reshape(own.shape)) < 1e-3
        ).mean() > 0.9


def test_a_codebook_is_packed_under_the_name_of_its_kind():
    w = np.float32(np.random.default_rng(0).normal(size=(3, 8)))
    found = METHODS["rtn"].round(w, None, Recipe(4, "nf4", 4))
    assert found.format == "nf4" and found.shape == (3, 8)
