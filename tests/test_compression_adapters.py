"""LoRA beside its base: as if merged, and every row its own text's."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from goldens import lora
from goldens.tiny_models import npllama_model, tiny
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, normal, random_model, seeds, token_ids
from test_convert_adapter import factors, write_adapter
from test_serving_packed import STEADY
from tolerances import assert_close, assert_same, depth

from npllama import FlopCounter, GenerationConfig, generate, load
from npllama.cache import KVCache, new_cache
from npllama.cli.main import main
from npllama.compression.adapters import (
    Adapted,
    Adapters,
    LowRank,
    Use,
    adapted,
    read_adapter,
)
from npllama.compression.grid import Grid
from npllama.compression.packed import packed
from npllama.convert.adapter import merge
from npllama.cost.adapters import adapter_operators
from npllama.cost.formulas import one_pass, tabulate
from npllama.golden.record import Recorder
from npllama.model import forward
from npllama.ops import einsum, observing, rowwise
from npllama.serving.engine import Engine
from npllama.serving.packed import forward_packed
from npllama.serving.requests import Request, salt_of
from npllama.weights import LAYER_NAMES, assemble, tensor_shapes

LINEAR = ("_proj", "lm_head")


def modules_of(config):
    """Name, C and S of every matrix that an adapter may change."""
    for name, shape in tensor_shapes(config).items():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and module.endswith(LINEAR):
            yield module, *shape


def random_adapter(config, seed, dtype="float32", rank=None, skip=0.0):
    """Ranks of 1 to 4 unless one is given, and alpha never equal to the rank."""
    rng = np.random.default_rng([seed, 77])
    found = {}
    for module, C, S in modules_of(config):
        R = rank or int(rng.integers(1, 5))
        a, b = rng.standard_normal((R, S)), rng.standard_normal((C, R))
        scale = (R + 1.5) / R
        if rng.random() >= skip:
            a = (a / np.sqrt(S)).astype(dtype)
            found[module] = LowRank(a, (b / np.sqrt(R)).astype(dtype), scale)
    return found


def tensors_of(config, seed, dtype):
    """The tensors that `random_model` is made of, by their names on disk."""
    model = random_model(config, seed, dtype)
    found = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm}
    shapes = tensor_shapes(config)
    for i, layer in enumerate(model.layers):
        for word, name in LAYER_NAMES.items():
            tensor, full = getattr(layer, word), f"model.layers.{i}.{name}"
            if tensor is not None:
                found[full] = tensor.reshape(shapes[full])
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = model.lm_head
    return found


def merged(config, seed, adapter, dtype):
    """The same model with an adapter merged into its weights, by `convert`'s sum."""
    tensors = tensors_of(config, seed, dtype)
    for module, (a, b, scale) in adapter.items():
        w = tensors[f"{module}.weight"]
        tensors[f"{module}.weight"] = merge(w, a, b, scale, None)
    return assemble(config, tensors)


def logits_of(model, tokens, **more):
    B, T = tokens.shape
    cache = new_cache(model.config, B, T, model.embed.dtype.name)
    return forward(model, tokens, cache, **more)


# ---- one adapter ----------------------------------------------------------------


def test_two_outputs_by_hand():
    # x W' = [1, 2]; x A' = 3; times alpha / R = 5 / 1, times B' = [2, -1]
    w = np.array([[1.0, 0, 0], [0, 1, 0]])
    added = LowRank(np.array([[0.0, 0, 1]]), np.array([[2.0], [-1]]), 5.0)
    weight = Adapted(w, "y", ((slice(None), added),))
    y = einsum("TE,FE->TF", np.array([[1.0, 2, 3]]), weight, "y")
    np.testing.assert_array_equal(y, [[1 + 30, 2 - 15]])


@given(configs(), st.integers(1, 3), st.integers(1, 5), seeds, st.booleans())
def test_unmerged_gives_the_logits_of_merged(config, B, T, seed, exact):
    adapter = random_adapter(config, seed, "float64", skip=0.3)
    tokens = token_ids(config, seed, B, T)
    base = random_model(config, seed, "float64")
    with rowwise(exact):
        one = logits_of(adapted(base, [Use(adapter)]), tokens)
        two = logits_of(merged(config, seed, adapter, "float64"), tokens)
    assert one.dtype == np.float64
    scale = (1 + np.abs(two).max()) * 10  # factors raise what is summed
    assert_close(one, two, depth(config, T) + 16, scale=scale)


def test_unmerged_is_merged_and_neither_is_the_base():
    adapter, tokens = random_adapter(DISTINCT, 3), token_ids(DISTINCT, 3, 2, 5)
    base = random_model(DISTINCT, 3)
    one = logits_of(adapted(base, [Use(adapter)]), tokens)
    two = logits_of(merged(DISTINCT, 3, adapter, "float32"), tokens)
    assert one.dtype == np.float32
    assert_close(one, two, depth(DISTINCT, 5) + 16)
    assert np.abs(one - logits_of(base, tokens)).max() > 0.1


@given(configs(), seeds, st.booleans())
def test_an_adapter_of_zeros_gives_the_bases_numbers(config, seed, exact):
    adapter = {
        m: added._replace(b=0 * added.b)
        for m, added in random_adapter(config, seed).items()
    }
    base, tokens = random_model(config, seed), token_ids(config, seed, 2, 4)
    with rowwise(exact):
        beside = logits_of(adapted(base, [Use(adapter)]), tokens)
        assert_same(beside, logits_of(base, tokens))


def test_a_packed_base_keeps_its_codes():
    C, S, R = 5, 6, 2
    codes = np.random.default_rng(0).integers(0, 16, (C, S)).astype(np.uint8)
    scale = np.full((C, 2), 0.25)
    base = packed(codes, Grid(4, 3, scale, np.full((C, 2), 8), None))
    added = LowRank(normal(1, R, S), normal(2, C, R), 1.7)
    added = LowRank(*(m.astype("float32") for m in added[:2]), 1.7)
    weight = Adapted(base, "w", ((slice(None), added),))
    x = normal(3, 4, S, dtype="float32")
    dense = merge(base.dense(), *added, None)
    y = einsum("TE,FE->TF", x, weight, "w")
    assert_close(y, einsum("TE,FE->TF", x, dense, "w"), 2 * (S + R))
    assert weight.kept == base.kept and weight.kept[0] == "int4"
    assert y.dtype == weight.dtype == np.float32
    assert repr(weight) == "Adapted(w (5, 6), ranks 2)"


# ---- what it costs --------------------------------------------------------------


@given(configs(STEADY), st.integers(1, 3), st.integers(1, 5), seeds, st.booleans())
def test_cost_is_the_closed_form(config, B, T, seed, last):
    adapter = random_adapter(config, seed, skip=0.3)
    base, tokens = random_model(config, seed), token_ids(config, seed, B, T)
    with FlopCounter() as plain:
        logits_of(base, tokens, last=last)
    with FlopCounter() as count:
        logits_of(adapted(base, [Use(adapter)]), tokens, last=last)
    work = one_pass(config, B, T, last=last)
    ranks = {module: len(added.a) for module, added in adapter.items()}
    told = adapter_operators(config, work, ranks)
    counted = count.by("name")
    for op in told:
        sums = counted.pop(op.name)
        assert (sums.calls, sums.flops, sums.mops, sums.kept) == (
            *(op.calls, op.flops, op.mops, op.weights),
        )
    assert counted == plain.by("name")
    n = {m: (work.logits if m == "lm_head" else B * T) for m in ranks}
    more = sum(2 * n[m] * ranks[m] * (C + S) for m, C, S in modules_of(config)
               if m in ranks)  # fmt: skip
    assert count.total.flops - plain.total.flops == more
    assert len(tabulate(config, work, "square")) == 11  # the base's own


def test_a_heads_cost_by_hand():
    # 2 passes, 6 positions, 4 logits; a head of 13 x 7 with R = 3, w_up of 11 x 7, R = 2
    work = one_pass(DISTINCT, 2, 3, last=True)._replace(passes=2, logits=4)
    ranks = {"lm_head": 3, "model.layers.1.mlp.up_proj": 2}
    found = {op.name: op for op in adapter_operators(DISTINCT, work, ranks)}
    assert list(found) == [
        *("lm_head.lora_A", "lm_head.lora_B", "up_proj.lora_A", "up_proj.lora_B")
    ]
    assert found["lm_head.lora_A"][2:] == (2, 2 * 4 * 3 * 7, 2 * 21, 0, 4 * (3 + 7))
    assert found["up_proj.lora_B"][2:] == (2, 2 * 6 * 2 * 11, 2 * 22, 0, 6 * (2 + 11))


def test_the_golden_reference_records_both_factors():
    seen = set()
    model = adapted(random_model(DISTINCT, 0), [Use(random_adapter(DISTINCT, 1))])
    with observing(Recorder(model, lambda name, x: seen.add(name))):
        logits_of(model, token_ids(DISTINCT, 0, 1, 3))
    assert {"/lm_head.lora_A", "/lm_head.lora_B", "/lm_head"} <= seen
    place = "/model.layers.1.self_attn.q_proj"
    assert {place, f"{place}.lora_A", f"{place}.lora_B"} <= seen


# ---- several at once ------------------------------------------------------------


def test_every_row_gets_its_own_adapter():
    one, two = (random_adapter(DISTINCT, s) for s in (1, 2))
    base, T = random_model(DISTINCT, 0), 3
    tokens = token_ids(DISTINCT, 0, 4, T)
    names = np.array(["two", "", "one", "two"])
    rows = np.repeat(names, T)
    both = Adapters({"one": one, "two": two})
    with rowwise():
        together = logits_of(both.beside(base, rows, rows), tokens)
        last = logits_of(both.beside(base, rows, names), tokens, last=True)
        alone = {"one": adapted(base, [Use(one)]), "": base}
        alone["two"] = adapted(base, [Use(two)])
        for b, name in enumerate(names):
            expected = logits_of(alone[name], tokens[b : b + 1])
            assert_same(together[b : b + 1], expected)
            assert_same(last[b : b + 1], expected[:, -1:])


def test_the_order_of_adapters_changes_no_row():
    adapters = {str(s): random_adapter(DISTINCT, s) for s in range(3)}
    base, rows = random_model(DISTINCT, 0), np.array(["2", "0", "1", "0"])
    tokens = token_ids(DISTINCT, 0, 4, 1)
    turned = Adapters(dict(reversed(adapters.items())))
    with rowwise():
        one = logits_of(Adapters(adapters).beside(base, rows, rows), tokens)
        two = logits_of(turned.beside(base, rows, rows), tokens)
        other = rows.copy()
        other[1:] = ["1", "2", ""]
        three = logits_of(turned.beside(base, other, other), tokens)
    assert_same(one, two)
    assert_same(one[:1], three[:1])


@given(
    configs(STEADY),
    st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from(["", "one", "two"])),
        min_size=1,
        max_size=4,
    ),
    seeds,
)
def test_pieces_of_a_packed_row_use_different_adapters(config, texts, seed):
    both = {n: random_adapter(config, seed + i) for i, n in enumerate(("one", "two"))}
    base = random_model(config, seed)
    lengths = [n for n, _ in texts]
    tokens = [token_ids(config, seed + i, 1, n)[0] for i, n in enumerate(lengths)]
    rows = np.repeat([name for _, name in texts], lengths)
    cache = new_cache(config, 1, sum(lengths))
    cache = KVCache(cache.k, cache.v, np.zeros(len(texts), dtype=np.int64))
    places = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    ends = np.cumsum(lengths) - 1
    with rowwise():
        model = Adapters(both).beside(base, rows, rows[ends])
        found = forward_packed(model, tokens, cache, places)[0]
        for r, (_, name) in enumerate(texts):
            own = adapted(base, [Use(both[name])] if name else [])
            assert_same(found[r : r + 1], logits_of(own, tokens[r][None])[0, -1:])


# ---- in the engine --------------------------------------------------------------


def served(engine, requests):
    """Logits of all texts, by request: (tokens, V) each."""
    ids = [engine.submit(request) for request in requests]
    found = {id: [] for id in ids}
    while engine.busy:
        for event in engine.step():
            assert event.error is None
            found[event.id].append(event.logits)
    return [np.stack(found[id]) for id in ids]


def test_requests_name_adapters_and_get_what_they_get_alone():
    adapters = Adapters({str(s): random_adapter(DISTINCT, s) for s in (1, 2)})
    base = random_model(DISTINCT, 0)
    prompt = [1, 5, 9, 2, 7, 3, 11, 4, 6]  # more than two pages, shared by nobody else
    config = GenerationConfig(max_new_tokens=4)
    requests = [
        Request(prompt, config, logits=True, adapter=name)
        for name in ("1", "", "2", "1", "2")
    ]
    with rowwise():
        together = served(Engine(base, 40, 4, adapters=adapters), requests)
        in_turn = Engine(base, 40, 4, adapters=adapters)
        for request, found in zip(requests, together):
            name = request.adapter
            model = adapted(base, [Use(adapters.named[name])] if name else [])
            (alone,) = served(Engine(model, 40, 4), [request._replace(adapter="")])
            assert_same(found, alone)
            # Pages of the same prompt under another adapter are not taken.
            assert_same(served(in_turn, [request])[0], alone)
    assert in_turn.statistics().prefix_hits == 16  # the second "1", the second "2"


def test_an_adapter_that_the_engine_has_not_is_refused():
    base = random_model(DISTINCT, 0)
    request = Request([1, 2], adapter="mine")
    for adapters in (None, Adapters({})):
        with pytest.raises(ValueError, match="adapter: 'mine' is not one"):
            Engine(base, 9, adapters=adapters).submit(request)
    with pytest.raises(TypeError, match="adapter: list found, not str"):
        Engine(base, 9).submit(request._replace(adapter=[]))


def test_no_two_pairs_of_adapter_and_salt_share_pages():
    plain = Request([1])
    asked = [
        plain,
        plain._replace(salt="a"),
        plain._replace(adapter="a"),
        plain._replace(adapter="a", salt="a"),
        plain._replace(salt='["a", ""]'),
        plain._replace(salt='["a", "a"]'),
    ]
    assert len(set(map(salt_of, asked))) == len(asked)
    assert salt_of(asked[1]) == "a"


# ---- a folder -------------------------------------------------------------------

UP = "model.layers.1.mlp.up_proj"
GOOD = factors(UP, 11, 7)


def test_a_folder_of_peft_is_read(tmp_path):
    q = "model.layers.0.self_attn.q_proj"
    more = factors(q, 24, 7, rank=4, seed=2)
    write_adapter(
        tmp_path,
        GOOD | more,
        use_rslora=True,
        rank_pattern={"q_proj": 4},
        alpha_pattern={"layers.0.self_attn.q_proj": 10},
    )
    found = read_adapter(tmp_path, DISTINCT, "float64")
    assert found.keys() == {UP, q}
    assert found[UP].scale == 3 / np.sqrt(2) and found[q].scale == 10 / np.sqrt(4)
    for name, module in ((GOOD, UP), (more, q)):
        a, b = name.values()
        np.testing.assert_array_equal(found[module].a, a)
        np.testing.assert_array_equal(found[module].b, b)
        assert found[module].a.dtype == np.float64


def test_the_factors_of_a_square_matrix_are_not_exchanged(tmp_path):
    square = replace(DISTINCT, intermediate_size=7)
    write_adapter(tmp_path, factors(UP, 7, 7))
    found = read_adapter(tmp_path, square)[UP]
    a, b = factors(UP, 7, 7).values()
    np.testing.assert_array_equal(found.a, a)
    np.testing.assert_array_equal(found.b, b)


EMBED = "base_model.model.model.embed_tokens"
FAULTS = {
    "DoRA": (
        GOOD | {f"base_model.model.{UP}.lora_magnitude_vector": np.ones(11, "float32")},
        {"use_dora": True},
        "use_dora: DoRA scales the rows of the sum; merge it first: npllama convert",
    ),
    "a whole tensor": (
        GOOD | {f"{EMBED}.weight": np.ones((13, 7), "float32")},
        {},
        "model.embed_tokens.weight is a whole tensor; merge it first",
    ),
    "an embedding": (
        {f"{EMBED}.lora_embedding_A": np.ones((2, 13), "float32"),
         f"{EMBED}.lora_embedding_B": np.ones((7, 2), "float32")},
        {},
        "model.embed_tokens: an embedding is not multiplied; merge it first",
    ),
    "another width": (
        factors(UP, 11, 6), {}, "factors (11, 2) and (2, 6) do not make (11, 7)",
    ),
    "swapped": (
        factors(UP, 7, 11), {}, "factors (7, 2) and (2, 11) do not make (11, 7)",
    ),
    "another layer": (
        GOOD | factors("model.layers.9.mlp.up_proj", 11, 7), {},
        "model.layers.9.mlp.up_proj.lora_A.weight: no part of a LoRA",
    ),
    "another kind": (GOOD, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "another rank": (GOOD, {"r": 4}, "rank 2; adapter_config.json says 4"),
    "nothing": ({}, {}, "no matrix of the model is changed"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_stand_beside_is_refused_by_name(tmp_path, fault):
    tensors, changes, words = FAULTS[fault]
    write_adapter(tmp_path, tensors, **changes)
    with pytest.raises(ValueError) as refused:
        read_adapter(tmp_path, DISTINCT)
    assert words in str(refused.value) and str(tmp_path) in str(refused.value)


def test_a_tied_head_may_have_an_adapter_of_its_own(tmp_path):
    tied = replace(DISTINCT, tie_word_embeddings=True)
    write_adapter(tmp_path, factors("lm_head", 13, 7))
    model = random_model(tied, 0)
    beside = adapted(model, [Use(read_adapter(tmp_path, tied))])
    assert isinstance(beside.lm_head, Adapted) and beside.embed is model.embed


# ---- on the command line --------------------------------------------------------


def stories_adapter(folder):
    """An adapter of the shipped model, strong enough to change its words."""
    config = load("stories").config
    E, F = config.hidden_size, config.intermediate_size
    write_adapter(folder, factors("model.layers.0.mlp.down_proj", E, F), r=2)


def test_generate_and_chat_take_an_adapter(tmp_path, capsys, monkeypatch):
    stories_adapter(tmp_path)
    ask = ["generate", "Once upon", "--temperature", "0", "--max-new-tokens", "8"]
    assert main(ask) == 0
    plain = capsys.readouterr().out
    assert main([*ask, "--adapter", str(tmp_path), "--flops"]) == 0
    beside, told = capsys.readouterr()
    assert beside != plain and "down_proj.lora_A" in told
    model = load("stories")
    model = adapted(model, [Use(read_adapter(tmp_path, model.config))])
    config = GenerationConfig(do_sample=False, max_new_tokens=8)
    assert beside == "Once upon" + generate(model, "Once upon", config).text + "\n"
    talk = ["chat", "--temperature", "0", "--max-new-tokens", "8"]
    answers = []
    for more in ([], ["--adapter", str(tmp_path)]):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
        assert main(talk + more) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    "more", [["--memory", "3GB"], ["--save-cache", "x.npz"], ["--load-cache", "x.npz"]]
)
def test_options_that_do_not_go_with_an_adapter_are_misuse(tmp_path, capsys, more):
    assert main(["generate", "Once", "--adapter", str(tmp_path), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--adapter: not with {more[0]}" in line and "npllama convert" in line


def test_many_prompts_and_an_adapter_exclude_each_other(tmp_path, capsys):
    words = ["--prompts", "x", "-o", "y", "--adapter", str(tmp_path)]
    assert main(["generate", *words]) == 2
    assert "--prompts and --adapter exclude each other" in capsys.readouterr().err


def test_a_folder_without_an_adapter_is_named(tmp_path, capsys):
    assert main(["generate", "Once", "--adapter", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "adapter_config.json" in line


# ---- as PEFT runs them ----------------------------------------------------------


@pytest.fixture(scope="module")
def peft(tmp_path_factory):
    """What PEFT saved, read; and what it answered."""
    with np.load(Path(__file__).parent / "goldens" / lora.FILE) as file:
        golden = dict(file)
    base, adapters = npllama_model(tiny(lora.SEED)), {}
    for name in lora.CASES:
        folder = tmp_path_factory.mktemp(name)
        tensors = {
            key.removeprefix(f"{name}:"): tensor
            for key, tensor in golden.items()
            if key.startswith(f"{name}:")
        }
        write_adapter(folder, tensors, **json.loads(str(golden[f"{name}.json"])))
        adapters[name] = read_adapter(folder, base.config)
    return base, Adapters(adapters), golden


@pytest.mark.parametrize("name", lora.CASES)
def test_an_adapter_runs_as_peft_runs_it(peft, name):
    base, adapters, golden = peft
    model = adapted(base, [Use(adapters.named[name])])
    found = logits_of(model, lora.tokens_of())
    assert_close(found, golden[f"{name}.logits"], depth(base.config, 7) + 8)


def test_a_batch_of_several_adapters_runs_as_peft_runs_it(peft):
    base, adapters, golden = peft
    rows = np.repeat(lora.MIXED, lora.TOKENS[1])
    found = logits_of(adapters.beside(base, rows, rows), lora.tokens_of())
    assert_close(found, golden["mixed.logits"], depth(base.config, 7) + 8)
