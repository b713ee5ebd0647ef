"""Recording: every number of a run, as the forward pass itself computes it."""

import json
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, random_model, seeds

from npllama.cache import new_cache
from npllama.cli.main import main
from npllama.files.checkpoint import load, locate, save
from npllama.golden.record import Wanted, record, run, sha256
from npllama.golden.streamed import StreamedModel
from npllama.golden.trace import META, Trace, read_golden
from npllama.model import forward
from npllama.norm import rms_norm
from npllama.ops import einsum, rowwise
from npllama.sampling import draw, softmax
from npllama.weights import tensor_shapes

BARE = Wanted(floors=())


def recorded(model, prompt, wanted=BARE, rng=None):
    """A trace in memory."""
    kept = {}
    run(model, np.array(prompt), wanted, lambda n, a: kept.update({n: a.copy()}), rng)
    return kept


@given(configs(), seeds, st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_what_is_recorded_is_what_the_model_computes(config, seed, T, new, scores):
    model = random_model(config, seed, "float64")
    prompt = np.random.default_rng(seed).integers(0, config.vocab_size, (2, T))
    trace = recorded(model, prompt, Wanted(new, scores=scores, floors=()))
    tokens, cache = trace["tokens"], new_cache(config, 2, T + new, "float64")
    steps = {"prefill": tokens[:, :T]}
    steps |= {f"decode.{i}": tokens[:, T + i][:, None] for i in range(new)}
    for step, block in steps.items():
        logits = forward(model, block, cache)
        np.testing.assert_allclose(trace[f"{step}/lm_head"], logits, atol=1e-12)
    np.testing.assert_allclose(trace["cache.k"], cache.k, atol=1e-12)
    np.testing.assert_allclose(trace["cache.v"], cache.v, atol=1e-12)
    for i in range(new):
        before = "prefill" if i == 0 else f"decode.{i - 1}"
        likeliest = trace[f"{before}/lm_head"][:, -1].argmax(axis=-1)
        np.testing.assert_array_equal(tokens[:, T + i], likeliest)


@given(configs(), seeds)
def test_every_tensor_follows_from_those_before_it(config, seed):
    model = random_model(config, seed, "float64")
    trace = recorded(model, [[1, 0, 1]], Wanted(scores=True, floors=()))

    last = config.num_hidden_layers - 1

    def at(name):
        return trace[f"prefill/model.layers.{last}.{name}"]

    layer, D = model.layers[-1], config.head_dim
    same = np.testing.assert_allclose
    x = at("input_layernorm")
    q = einsum("BTE,HDE->BTHD", x, layer.wq, "q")
    same(at("self_attn.q_proj"), q if layer.bq is None else q + layer.bq)
    G = config.num_attention_heads // config.num_key_value_heads
    k = np.repeat(at("self_attn.k_rope"), G, axis=2)
    v = np.repeat(at("self_attn.v_proj"), G, axis=2)
    scores = einsum("BTHD,BSHD->BHTS", at("self_attn.q_rope"), k, "s") / np.sqrt(D)
    scores[:, :, ~np.tri(3, dtype=bool)] = -np.inf
    same(at("self_attn.scores"), scores, atol=1e-12)
    p = softmax(scores)
    y = einsum("BHTS,BSHD->BTHD", p, v, "v")
    same(at("self_attn.attention"), y, atol=1e-12)
    out = einsum("BTHD,EHD->BTE", y, layer.wo, "o")
    same(
        at("self_attn.o_proj"), out if layer.bo is None else out + layer.bo, atol=1e-12
    )
    normed = rms_norm(at("post_attention"), layer.mlp_norm, config.rms_norm_eps)
    same(at("post_attention_layernorm"), normed)
    gate = at("mlp.gate_proj")
    same(at("mlp.act_fn"), gate / (1 + np.exp(-gate)))
    down = einsum(
        "BTF,EF->BTE", at("mlp.act_fn") * at("mlp.up_proj"), layer.w_down, "d"
    )
    down = down if layer.b_down is None else down + layer.b_down
    same(at("mlp.down_proj"), down, atol=1e-12)
    same(at("output"), at("post_attention") + down, atol=1e-12)


def test_a_drawn_text_can_be_drawn_again_from_its_u(tmp_path):
    model = random_model(DISTINCT, 3, "float64")
    path = tmp_path / "g.npz"
    record(model, [[1, 2]], path, Wanted(6, floors=()), rng=np.random.default_rng(4))
    trace = read_golden(path)
    assert trace["u"].shape == (1, 6)
    for i, u in enumerate(trace["u"][0]):
        step = "prefill" if i == 0 else f"decode.{i - 1}"
        p = softmax(trace[f"{step}/lm_head"][0, -1])
        assert draw(p, u) == trace["tokens"][0, 2 + i]
    likeliest = recorded(model, [[1, 2]], Wanted(6, floors=()))["tokens"]
    assert (likeliest != trace["tokens"]).any()


def test_only_what_is_asked_for_is_kept(tmp_path):
    model = random_model(DISTINCT, 0, "float64")
    wanted = Wanted(1, ("model.layers.1.mlp.*", "lm_head"), floors=("bfloat16",))
    record(model, [[1, 2]], tmp_path / "g.npz", wanted)
    trace = read_golden(tmp_path / "g.npz")
    modules = {name.rpartition("/")[2] for name in trace}
    mlp = {f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")}
    assert modules == mlp | {"model.layers.1.mlp.act_fn", "lm_head", "tokens"}
    assert set(trace.meta["floor"]["bfloat16"]) == set(trace.names) - {"tokens"}
    with pytest.raises(ValueError, match=r"a name like nothing\.\*"):
        record(model, [[1]], tmp_path / "h.npz", Wanted(0, ("nothing.*",)))
    assert [p.name for p in tmp_path.iterdir()] == ["g.npz"]


def test_the_file_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    model, path = random_model(DISTINCT, 0, "float64"), tmp_path / "g.npz"
    path.write_bytes(b"before")

    def broken(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("npllama.golden.record.floor", broken)
    with pytest.raises(KeyboardInterrupt):
        record(model, [[1, 2]], path)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["g.npz"]


@pytest.mark.parametrize(
    "prompt, new, words",
    [
        ([], 0, "rows of one length"),
        ([[]], 0, "rows of one length"),
        ([[1], [1, 2]], 0, r"found \[1, 2\]"),
        ([[1, 13]], 0, "13 is outside the vocabulary"),
        ([[1, -1]], 0, "-1 is outside the vocabulary"),
        ([[1]], -1, "new_tokens is -1"),
        ([[1] * 2000], 50, "2050 tokens do not fit in a context of 2048"),
        ([[0.5]], 0, "expected integers"),
    ],
)
def test_prompts_that_cannot_be_run_are_one_line(tmp_path, prompt, new, words):
    model = random_model(DISTINCT, 0, "float64")
    with pytest.raises(ValueError, match=words) as caught:
        record(model, prompt, tmp_path / "g.npz", Wanted(new))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ---- models larger than memory ----------------------------------------------


def saved(path, config, dtype, seed=0):
    """Write random weights in a dtype; bfloat16 as bits."""
    rng = np.random.default_rng(seed)

    def tensors():
        for name, shape in tensor_shapes(config).items():
            x = rng.standard_normal(shape).astype(np.float32) * 0.1 + (len(shape) == 1)
            bits = (x.view(np.uint32) >> 16).astype(np.uint16)
            yield name, bits if dtype == "bfloat16" else x.astype(dtype)

    save(path, config, tensors(), dtype=dtype)
    return path


@given(configs(), seeds, st.sampled_from(["bfloat16", "float16", "float32", "float64"]))
def test_layer_by_layer_gives_the_same_numbers(tmp_path_factory, config, seed, stored):
    path = saved(tmp_path_factory.mktemp("s") / "m.npz", config, stored, seed)
    for dtype in ("float32", "float64"):
        whole = recorded(load(path, dtype), [[1, 0]], Wanted(2, floors=()))
        streamed = recorded(StreamedModel(path, dtype), [[1, 0]], Wanted(2, floors=()))
        assert list(whole) == list(streamed)
        for name in whole:
            assert whole[name].dtype == streamed[name].dtype
            np.testing.assert_array_equal(whole[name], streamed[name])


def test_layer_by_layer_holds_no_more_than_a_layer(tmp_path):
    config = replace(DISTINCT, num_hidden_layers=24, hidden_size=96, head_dim=16)
    path = saved(tmp_path / "m.npz", config, "bfloat16")
    layer = sum(
        8 * int(np.prod(shape))
        for name, shape in tensor_shapes(config).items()
        if name.startswith("model.layers.0.")
    )
    model = StreamedModel(path)
    tracemalloc.start()
    run(model, np.array([[1, 2]]), Wanted(1, floors=()), lambda name, array: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * layer + 200_000 < 24 * layer


# ---- the command ------------------------------------------------------------


def called(capsys, *words):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_records_a_prompt(capsys, tmp_path):
    path = tmp_path / "g.npz"
    words = ("golden", "record", "stories-draft", "--prompt", "Once upon", "-o")
    more = ("--new-tokens", "2", "--floor", "bfloat16", "--do-sample", "--seed", "5")
    code, out, err = called(capsys, *words, str(path), *more)
    assert (code, out.strip(), err) == (0, str(path), "")
    trace = read_golden(path)
    assert list(trace.meta["floor"]) == ["bfloat16"] and trace["u"].shape == (1, 2)
    assert trace.meta["weights_sha256"] == sha256(locate("stories-draft"))
    assert trace["prefill/lm_head"].dtype == np.float64


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere", "--tokens", "1"], "no weights file nowhere"),
        (["stories-draft", "--tokens", "1,x"], "numbers with commas"),
        (["stories-draft", "--tokens", "5000"], "5000 is outside"),
        (["stories-draft", "--prompts", "nofile"], "nofile"),
        (["stories-draft", "--tokens", "1", "--floor", "int3"], "int3"),
        (["stories-draft", "--tokens", "1", "--workers", "2"], "many prompts"),
        (["stories-draft", "--tokens", "1", "--new-tokens", "-1"], "new_tokens is -1"),
        (["stories-draft"], "--prompt --tokens --prompts is required"),
    ],
)
def test_what_cannot_be_recorded_is_one_line_and_exit_code_two(
    capsys, tmp_path, words, said
):
    out = str(tmp_path / "g.npz")
    code, printed, err = called(capsys, "golden", "record", *words, "-o", out)
    assert code == 2 and said in err and len(err.splitlines()) == 1 and not printed
    assert not list(tmp_path.iterdir())


def test_what_stood_there_is_only_replaced_by_a_whole_trace(capsys, tmp_path):
    path = tmp_path / "g.npz"
    path.write_bytes(b"before")
    for words in (["--tokens", "99999"], ["--tokens", "1", "--only", "nothing"]):
        words = ["golden", "record", "stories-draft", *words, "-o", str(path)]
        assert called(capsys, *words)[0] == 2
        assert path.read_bytes() == b"before"
    words = ["golden", "record", "stories-draft", "--tokens", "1", "--no-floor", "-o"]
    assert called(capsys, *words, str(path))[0] == 0
    assert read_golden(path)["tokens"].tolist() == [[1]]


def test_a_trace_never_takes_the_place_of_its_model(capsys, tmp_path):
    model = saved(tmp_path / "m.npz", DISTINCT, "float32")
    before = model.read_bytes()
    words = ["golden", "record", str(model), "--tokens", "1", "-o", str(model)]
    code, _, err = called(capsys, *words)
    assert code == 2 and "is the model" in err and model.read_bytes() == before


RECORD = ("golden", "record", "stories-draft", "--tokens", "1", "--no-floor", "-o")


def test_what_only_looks_like_a_part_of_a_trace_stays(capsys, tmp_path):
    mine = [tmp_path / f"g.npz.{end}" for end in ("participants.csv", "part.npz")]
    left = tmp_path / f"g.npz.{'0' * 16}.part"
    for path in (*mine, left):
        path.write_text("1")
    assert called(capsys, *RECORD, str(tmp_path / "g.npz"))[0] == 0
    assert all(path.exists() for path in mine) and not left.exists()


def test_a_place_where_no_file_can_stand_is_one_line_and_exit_code_two(
    capsys, tmp_path
):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    places = (".", "pipe", "file/g.npz", "g" * 300)
    for place in places:
        code, out, err = called(capsys, *RECORD, str(tmp_path / place))
        assert code == 2 and not out and len(err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "pipe"}
    assert (tmp_path / "pipe").is_fifo()


def test_a_floor_that_cannot_be_measured_is_said_before_the_run(tmp_path):
    class Never:
        config = DISTINCT

    with pytest.raises(ValueError, match="int3"):
        record(Never(), [[1]], tmp_path / "g.npz", Wanted(floors=("int3",)))


@pytest.mark.parametrize("on", [False, True])
def test_a_trace_says_whether_it_was_bit_exact_in_any_company(tmp_path, on):
    with rowwise(on):
        record(random_model(DISTINCT, 0), [[1, 2]], tmp_path / "g.npz", BARE)
    assert read_golden(tmp_path / "g.npz").meta["rowwise"] is on


def test_equal_runs_write_equal_files(tmp_path):
    model = random_model(DISTINCT, 0, "float64")
    for name in ("a", "b"):
        record(model, [[1, 2]], tmp_path / f"{name}.npz", Wanted(1))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as file:
        assert set(json.loads(file[META])["floor"]) == {
            "float32",
            "bfloat16",
            "float16",
        }
    assert isinstance(read_golden(tmp_path / "a.npz"), Trace)
