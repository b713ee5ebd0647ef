"""Making a candidate: what needs no other framework."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from strategies import DISTINCT, random_model

from npllama.cache import new_cache
from npllama.candidates import candidate, onnx_graph
from npllama.candidates.gguf_file import gguf_name, neighbours, slowdown, write_gguf
from npllama.candidates.text import named_weights, text_of
from npllama.cli.main import main
from npllama.config import Rope
from npllama.files.checkpoint import load, save
from npllama.golden.compare import compare
from npllama.golden.record import Recorder, Wanted, record
from npllama.golden.trace import read_golden, read_trace
from npllama.model import forward
from npllama.ops import observing
from npllama.rope import frequencies, llama3_frequencies, rotate, rotate_neighbours
from npllama.weights import tensor_shapes

PROMPT, NEW = 7, 3


@pytest.fixture
def model(tmp_path):
    """A small model in a file, and the path of that."""
    path = tmp_path / "model.npz"
    save(path, DISTINCT, named_weights(random_model(DISTINCT, 0, "float32")).items())
    return path


@pytest.fixture
def golden(model, tmp_path):
    """The path of its golden trace."""
    path = tmp_path / "golden.npz"
    prompt = np.random.default_rng(0).integers(0, DISTINCT.vocab_size, (2, PROMPT))
    record(load(model, "float64"), prompt, path, Wanted(NEW, floors=("float32",)))
    return path


def run(options):
    """The command with these options; its exit code."""
    return main(["golden", "candidate", *options])


def book(model, text, dtype="float32"):
    """The book itself as a backend, with one tensor that no trace has."""
    seen, B = [], len(text.tokens)
    recorder = Recorder(model, lambda name, x: seen.append((name, x.copy())))
    cache = new_cache(model.config, B, text.tokens.shape[1], dtype)
    for step, tokens in text.pieces():
        recorder.step = step.name
        with observing(recorder):
            forward(model, tokens, cache)
    yield from [*seen, ("prefill/model.rotary", np.ones(3, np.float32))]


@pytest.fixture
def backend(monkeypatch):
    """A backend named book."""
    module = types.ModuleType("npllama.candidates.book")
    module.run = book
    monkeypatch.setitem(sys.modules, "npllama.candidates.book", module)
    monkeypatch.setitem(candidate.BACKENDS, "book", ("book", "numpy", "numpy"))


def test_candidate_of_the_golden_tokens_passes(model, golden, tmp_path, backend):
    out = tmp_path / "candidate.npz"
    options = ["book", str(model), "--golden", str(golden), "-o", str(out)]
    assert run(options) == 0
    trace, found = read_golden(golden), read_trace(out)
    result = compare(trace, found, trace.meta["floor"]["float32"], "float32")
    assert result.first is None and not result.extra
    assert {row.verdict for row in result.rows if "/" in row.name} == {"within"}
    assert found.meta["dtype"] == "float32" and found.meta["producer"].startswith(
        "numpy"
    )


def test_candidate_takes_the_place_of_nothing_that_it_is_made_from(
    model, golden, backend, capsys
):
    for out in (model, golden):
        before = out.read_bytes()
        options = ["book", str(model), "--golden", str(golden), "-o", str(out)]
        assert run(options) == 2
        assert "choose another place" in capsys.readouterr().err
        assert out.read_bytes() == before


def test_text_is_the_prompt_and_then_token_by_token(golden):
    text = text_of(read_golden(golden))
    pieces = [(step.name, step.first, tokens) for step, tokens in text.pieces()]
    assert [name for name, _, _ in pieces] == [
        "prefill",
        *(f"decode.{i}" for i in range(3)),
    ]
    assert [tokens.shape for _, _, tokens in pieces] == [(2, PROMPT), *[(2, 1)] * NEW]
    np.testing.assert_array_equal(np.hstack([t for _, _, t in pieces]), text.tokens)


def test_weights_have_the_names_and_shapes_of_the_file(model):
    found = named_weights(load(model))
    assert {name: w.shape for name, w in found.items()} == tensor_shapes(DISTINCT)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda a: a | {"--golden": a["MODEL"]}, "not a golden trace"),
        (lambda a: a | {"--golden": "nowhere.npz"}, "nowhere.npz"),
        (lambda a: a | {"MODEL": "nowhere"}, "no weights file nowhere"),
        (
            lambda a: a | {"BACKEND": "absent"},
            "absent is not installed: pip install no-such",
        ),
    ],
)
def test_what_cannot_run_is_one_line(
    model, golden, tmp_path, backend, monkeypatch, capsys, spoil, message
):
    monkeypatch.setitem(
        candidate.BACKENDS, "absent", ("no_such_module", "no-such", "no-such")
    )
    given = {"BACKEND": "book", "MODEL": str(model), "--golden": str(golden)}
    given = spoil(given)
    out = tmp_path / "out.npz"
    options = [given["BACKEND"], given["MODEL"], "--golden", given["--golden"]]
    assert run([*options, "-o", str(out)]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not out.exists()


# ---- GGUF --------------------------------------------------------------------------


def test_names_of_llamacpp():
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("model.layers.12.mlp.up_proj.bias") == "blk.12.ffn_up.bias"
    names = [gguf_name(name) for name in tensor_shapes(DISTINCT)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_act": "relu"}, "computes SiLU here, not relu"),
        ({"rope": Rope(rope_type="dynamic", factor=2.0)}, "no dynamic"),
        ({"rope": Rope(rope_type="longrope", factor=2.0)}, "no longrope"),
    ],
)
def test_llamacpp_is_given_nothing_that_it_would_compute_otherwise(
    changed, message, tmp_path, monkeypatch
):
    writer = types.SimpleNamespace(GGUFWriter=lambda *_: Anything())
    monkeypatch.setitem(sys.modules, "gguf", writer)
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "model.gguf", replace(DISTINCT, **changed), {})


class Anything:
    """A GGUF writer whose every method does nothing."""

    def __getattr__(self, name):
        return lambda *_: None


def test_reordered_rows_turned_as_neighbours_give_the_same_scores():
    rng = np.random.default_rng(0)
    B, T, H, D, E = 1, 9, 3, 8, 7
    x, wq, wk = (rng.standard_normal(s) for s in ((B, T, E), (H * D, E), (H * D, E)))
    angle = np.arange(T)[None, :, None] * frequencies(1e4, D, "float64")
    turn = np.cos(angle), np.sin(angle)

    def scores(rotation, wq, wk):
        q, k = (rotation((x @ w.T).reshape(B, T, H, D), *turn) for w in (wq, wk))
        return np.einsum("bthd,bshd->bhts", q, k)

    halves = scores(rotate, wq, wk)
    reordered = scores(rotate_neighbours, neighbours(wq, D), neighbours(wk, D))
    np.testing.assert_allclose(reordered, halves, atol=1e-12)


def test_slowdown_of_llama3_divides_the_speeds():
    rope = Rope("llama3", 5e5, 8.0, 256, 1.0, 4.0)
    config = replace(DISTINCT, rope=rope, head_dim=16)
    slow = slowdown(config)
    assert slow.min() == 1 and slow.max() == pytest.approx(8)
    found = frequencies(5e5, 16, "float32") / slow
    np.testing.assert_allclose(
        found, llama3_frequencies(rope, 16, "float32"), rtol=1e-6
    )


# ---- ONNX Runtime --------------------------------------------------------------------


class Node(types.SimpleNamespace):
    """An input or output of a graph."""


class Graph:
    """A graph that counts: each logit is how often its token has been seen."""

    V = DISTINCT.vocab_size

    def __init__(self, cached, extra=()):
        self.cached, self.extra, self.given = cached, extra, []

    def get_inputs(self):
        names = ["input_ids", "attention_mask", "position_ids", *self.extra]
        nodes = [Node(name=n, type="tensor(int64)", shape=["B", "S"]) for n in names]
        past = Node(
            name="past_key_values.0.key", type="tensor(float)", shape=[1, 2, "P", 4]
        )
        return [*nodes, past] if self.cached else nodes

    def get_outputs(self):
        names = ["logits", "present.0.key"] if self.cached else ["logits"]
        return [Node(name=n) for n in names]

    def run(self, names, given):
        self.given.append(given)
        B, T = given["input_ids"].shape
        ones = np.eye(self.V, dtype=np.float32)[given["input_ids"]]
        logits = np.cumsum(ones, axis=1)
        if not self.cached:
            return [logits]
        past = given["past_key_values.0.key"]
        return [
            logits,
            np.concatenate([past, np.ones((B, 2, T, 4), past.dtype)], axis=2),
        ]


def run_graph(monkeypatch, graph, golden):
    runtime = types.ModuleType("onnxruntime")
    runtime.InferenceSession = lambda path, providers: graph
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return dict(onnx_graph.run("model.onnx", text_of(read_golden(golden))))


@pytest.mark.parametrize("cached", [False, True])
def test_graph_is_given_what_it_has_not_seen(monkeypatch, golden, cached):
    graph = Graph(cached)
    found = run_graph(monkeypatch, graph, golden)
    shapes = [x.shape for x in found.values()]
    assert shapes == [(2, PROMPT, Graph.V), *[(2, 1, Graph.V)] * NEW]
    for i, given in enumerate(graph.given):
        seen = PROMPT + i
        first = seen - 1 if cached and i else 0
        assert given["attention_mask"].shape == (2, seen)
        np.testing.assert_array_equal(given["position_ids"][1], np.arange(first, seen))
        assert given["input_ids"].shape == (2, seen - first)
        if cached:
            assert given["past_key_values.0.key"].shape == (2, 2, first, 4)


def test_graph_that_asks_for_more_is_refused(monkeypatch, golden):
    with pytest.raises(ValueError, match="asks for pixel_values"):
        run_graph(monkeypatch, Graph(False, ["pixel_values"]), golden)
