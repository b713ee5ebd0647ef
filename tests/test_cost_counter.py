"""The counter: what one product costs, who is counted, and how it is shown."""

import csv
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from math import prod
from pathlib import Path

import numpy as np
import pytest
import spec
from goldens.flops_cases import BATCHES, CASES, COMPONENTS, KINDS, PASSES
from goldens.model_cases import config_of, model_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import DISTINCT, dtypes, products, random_model, token_ids

from npllama import GenerationConfig, forward, generate, new_cache
from npllama.attention import blocked, naive
from npllama.bench.counting import cost_of_counting
from npllama.cost import FlopCounter, carried, counter, operators
from npllama.cost.product import NOTHING
from npllama.ops import einsum

MODEL = random_model(DISTINCT, 0)
X = np.ones((2, 3), dtype=np.float32)


def run(*lengths, model=MODEL, attend=blocked, batch=2):
    """Passes over so many new positions."""
    cache = new_cache(model.config, batch, sum(lengths), model.embed.dtype.name)
    for new in lengths:
        tokens = token_ids(model.config, new, batch, new)
        forward(model, tokens, cache, attend=attend)


def counted(*lengths, **options):
    with FlopCounter() as count:
        run(*lengths, **options)
    return count


# ---- one product ------------------------------------------------------------


@given(products(), st.integers(1, 3))
def test_a_product_costs_what_its_loops_do(case, calls):
    with FlopCounter() as count:
        for _ in range(calls):
            y = einsum(case.equation, case.a, case.b, "y")
    (product,) = count.products()
    assert product[:5] == (
        *("outside", None, "y", case.equation),
        (case.a.shape, case.b.shape, y.shape),
    )
    out = case.equation.split("->")[1]
    summed = prod(n for letter, n in case.sizes.items() if letter not in out)
    multiplications = len(spec.contract(*case)) * summed
    cost = product.total
    assert (cost.calls, cost.flops) == (calls, calls * 2 * multiplications)
    assert cost.read == calls * (case.a.size + case.b.size)
    assert cost.written == calls * y.size and cost.kept == calls * case.b.size
    moved = calls * (case.a.nbytes + case.b.nbytes + y.nbytes)
    assert cost.bytes == {case.a.dtype.name: moved}
    assert cost.intensity == cost.flops / (cost.read + cost.written)
    assert cost.byte_intensity == cost.flops / moved


def test_bytes_are_told_by_dtype():
    with FlopCounter() as count:
        for dtype in ("float32", "float64", "float32"):
            einsum("TE,FE->TF", X.astype(dtype), X.astype(dtype), "y")
    assert count.total.bytes == {"float32": 2 * 16 * 4, "float64": 16 * 8}


def test_a_lookup_moves_rows_and_computes_nothing():
    cost = counted(5).by("name")["embed_tokens"]
    elements = 2 * 5 * DISTINCT.hidden_size
    assert cost.flops == 0 and cost.read == cost.written == cost.kept == elements


# ---- who is counted ---------------------------------------------------------


def test_nothing_is_counted_outside_the_block():
    with pytest.raises(RuntimeError), FlopCounter() as count:
        raise RuntimeError
    run(3)
    assert count.total == NOTHING and count.products() == []


def test_nested_counters_each_count_their_own_block():
    with FlopCounter() as outer:
        run(3)
        with FlopCounter() as inner:
            run(4)
        run(5)
    assert inner.products() == counted(4).products()
    assert outer.total == counted(3).total + counted(4).total + counted(5).total


def test_a_block_inside_a_block_of_the_same_counter_counts_once():
    with FlopCounter() as count:
        with count:
            run(3)
        run(4)
    run(5)
    assert count.total == counted(3).total + counted(4).total


def test_a_counter_may_be_used_again_and_adds_up():
    count = counted(3)
    with count:
        run(4)
    assert count.total == counted(3).total + counted(4).total


def test_counters_of_two_threads_do_not_disturb_one_another():
    counts, meet = {}, threading.Barrier(2, timeout=20)

    def work(length):
        with FlopCounter() as count:
            meet.wait()
            run(length, 1)
            meet.wait()
        counts[length] = count

    threads = [threading.Thread(target=work, args=(n,)) for n in (3, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for length, count in counts.items():
        assert count.products() == counted(length, 1).products()


def test_counter_of_two_threads_keeps_their_places_apart():
    """One thread goes on in the middle of a pass of the other."""
    count, meet = FlopCounter(), threading.Barrier(2, timeout=20)

    def attend(q, k, v, start):
        meet.wait()  # both are inside a layer here
        return blocked(q, k, v, start)

    def work(length):
        with count:
            run(length, attend=attend)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (3, 6)))
    expected = counted(3).total + counted(6).total
    assert count.total == expected
    layers, squares = count.by("layer"), count.attention()["prefill"]
    assert layers[0] == layers[1]
    assert squares == {
        way: sum(counted(n).attention()["prefill"][way] for n in (3, 6))
        for way in squares
    }


def test_work_carried_into_the_threads_of_a_pool_is_counted():
    lengths, meet = [2, 3, 5, 2, 3, 1], threading.Barrier(2, timeout=20)

    def work(length):
        meet.wait()  # two at a time
        run(length, 1)

    with FlopCounter() as count, ThreadPoolExecutor(2) as pool:
        list(pool.map(carried(work), lengths))
    expected = [counted(n, 1) for n in lengths]
    assert count.total == sum((c.total for c in expected), NOTHING)
    for phase, both in count.attention().items():
        parts = [c.attention().get(phase, {}) for c in expected]
        assert both == {way: sum(p.get(way, 0) for p in parts) for way in both}


def test_a_context_copied_by_hand_carries_the_counter_too():
    with FlopCounter() as count, ThreadPoolExecutor(1) as pool:
        pool.submit(copy_context().run, run, 3).result()
    assert count.total == counted(3).total


def test_a_thread_that_nothing_was_carried_into_is_not_counted():
    with FlopCounter() as count, ThreadPoolExecutor(1) as pool:
        pool.submit(run, 3).result()
    assert count.total == NOTHING


def test_carried_work_keeps_its_name_and_result():
    assert carried(prod).__name__ == "prod" and carried(prod)([2, 3], start=4) == 24


def test_threads_that_hold_one_counter_open_leave_nobody_watching():
    shared, meet = FlopCounter(), threading.Barrier(2, timeout=20)

    def work(length):
        with shared:
            meet.wait()
            run(length)
            meet.wait()
        run(length)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (3, 6)))
    assert shared.total == counted(3).total + counted(6).total


# ---- phases, layers, components ---------------------------------------------


def test_phases_are_told_apart_by_what_rows_hold_and_get():
    passes = counted(1, 1, 4, 1).by("phase", "name")
    assert passes["prefill", "lm_head"].calls == 2  # the first token, and the four
    assert passes["decode", "lm_head"].calls == 2


def test_components_bear_the_names_of_the_closed_form():
    assert set(counted(3).by("name")) == {op.name for op in operators(DISTINCT, 2, 3)}


def test_layers_cost_the_same_and_what_is_outside_has_none():
    layers = counted(3, 1).by("layer")
    assert set(layers) == {None, 0, 1} and layers[0] == layers[1]
    outside = {p.name for p in counted(3).products() if p.layer is None}
    assert outside == {"embed_tokens", "lm_head"}


def test_a_view_that_is_unknown_is_told_the_known_ones():
    for count in (counted(3), FlopCounter()):
        assert set(count.by("phase")) <= {"prefill"}
    with pytest.raises(ValueError, match="no field 'component'; .*phase, layer, name"):
        count.by("name", "component")


def test_a_product_of_a_strategy_is_counted_with_the_rest():
    options = GenerationConfig(max_new_tokens=4, penalty_alpha=0.5, top_k=3)
    with FlopCounter() as count:
        generate(MODEL, [[1, 5, 6]], options)
    assert count.by("name")["likeness"].flops > 0


@pytest.mark.parametrize("attend", [naive, blocked])
def test_the_sums_of_every_view_are_the_same(attend):
    count = counted(7, 1, 1, attend=attend)
    for view in (("name",), ("layer",), ("phase",), ("phase", "layer"), ("shapes",)):
        assert sum(count.by(*view).values(), NOTHING) == count.total


def test_a_future_that_is_not_a_number_is_counted_as_the_loops_that_avoid_it():
    """`blocked` falls back to `naive` there, and the count says what was done."""
    layers = [layer._replace(wv=layer.wv * np.nan) for layer in MODEL.layers]
    count = counted(5, model=MODEL._replace(layers=layers), batch=1)
    loops = {op.name: op for op in operators(DISTINCT, 1, 5, causal="triangle")}
    for name in ("scores", "values"):
        cost = count.by("name")[name]
        assert (cost.calls, cost.flops) == (loops[name].calls, loops[name].flops)


@pytest.mark.parametrize("most_lines, most_kinds", [(10, 10**6), (10, 50), (1, 1)])
def test_a_long_text_keeps_sums_and_not_every_line(monkeypatch, most_lines, most_kinds):
    expected = counted(2, *[1] * 30)
    kinds = len(expected.products())
    monkeypatch.setattr(counter, "MOST_LINES", most_lines)
    monkeypatch.setattr(counter, "MOST_KINDS", most_kinds)
    count = counted(2, *[1] * 30)
    assert len(count._mine.tally.lines) < 100
    assert (len(count.products()) == kinds) == (most_kinds > 50)
    for view in (("name",), ("layer",), ("phase", "name"), ("equation",)):
        assert count.by(*view) == expected.by(*view)
    assert count.attention() == expected.attention()


def test_a_count_can_be_read_while_another_thread_goes_on(monkeypatch):
    monkeypatch.setattr(counter, "MOST_LINES", 50)
    with FlopCounter() as count, ThreadPoolExecutor(1) as pool:
        work = pool.submit(carried(run), *[1] * 60)
        totals = [count.total.flops]
        while not work.done():
            totals.append(count.total.flops)
    assert totals == sorted(totals)
    assert count.total == counted(*[1] * 60).total


# ---- beside torch -----------------------------------------------------------

GOLDEN = dict(np.load(Path(__file__).parent / "goldens" / "flops.npz"))
PLACES = [(c, b) for c in range(len(CASES)) for b in range(len(BATCHES))]


def name_of(place):
    case, batch = place
    return f"{CASES[case].name}, {BATCHES[batch]}"


def golden(kind, case, batch):
    """{component: FLOPs} of each pass, as torch counted."""
    return [dict(zip(COMPONENTS, row.tolist())) for row in GOLDEN[kind][case, batch]]


@pytest.mark.parametrize("case, batch", PLACES, ids=map(name_of, PLACES))
def test_closed_form_equals_torchs_count_of_eager_attention(case, batch):
    cached = 0
    for new, expected in zip(PASSES, golden("eager", case, batch), strict=True):
        ops = operators(config_of(CASES[case]), BATCHES[batch], new, cached)
        found = {op.name: op.flops for op in ops}
        found["attention"] = found.pop("scores") + found.pop("values")
        assert expected.pop("all") == sum(found.values())
        del found["embed_tokens"]
        assert found == expected
        cached += new


@pytest.mark.parametrize("case, batch", PLACES, ids=map(name_of, PLACES))
def test_counter_equals_torchs_but_for_the_masked_half_of_attention(case, batch):
    model = model_of(CASES[case])
    cache = new_cache(model.config, BATCHES[batch], sum(PASSES))
    for new, expected in zip(PASSES, golden("eager", case, batch), strict=True):
        with FlopCounter() as count:
            forward(model, np.zeros((BATCHES[batch], new), dtype=np.int64), cache)
        found = {name: cost.flops for name, cost in count.by("name").items()}
        (attention,) = count.attention().values()
        assert attention["square"] == expected.pop("attention")
        assert attention["executed"] == found.pop("scores") + found.pop("values")
        assert found.pop("embed_tokens") == 0
        assert sum(found.values()) + attention["square"] == expected.pop("all")
        assert found == expected


def test_torchs_fused_attention_on_a_cpu_is_not_counted_and_nothing_else_differs():
    """Its kernel is not in torch's table of formulas, so it counts as nothing.

    The same function made of plain products ("math") counts as eager attention does:
    the difference is in the counter, not in the work.
    """
    eager, sdpa, plain = (GOLDEN[kind] for kind in KINDS)
    attention, everything = COMPONENTS.index("attention"), COMPONENTS.index("all")
    assert (sdpa[..., attention] == 0).all() and (eager[..., attention] > 0).all()
    assert (
        eager[..., everything] - sdpa[..., everything] == eager[..., attention]
    ).all()
    same = [COMPONENTS.index(name) for name in COMPONENTS[:-1] if name != "attention"]
    assert (eager[..., same] == sdpa[..., same]).all()
    assert (plain == eager).all()


def test_the_golden_covers_what_it_should():
    configs = [config_of(case) for case in CASES]
    heads = [(c.num_attention_heads, c.num_key_value_heads) for c in configs]
    assert len(configs) >= 12 and GOLDEN["eager"].shape[:2] == (len(CASES), 2)
    assert any(H == K for H, K in heads) and any(K == 1 < H for H, K in heads)
    assert any(1 < K < H for H, K in heads)
    assert any(c.head_dim * c.num_attention_heads != c.hidden_size for c in configs)
    assert any(c.attention_bias for c in configs) and any(c.mlp_bias for c in configs)
    assert any(c.tie_word_embeddings for c in configs)


# ---- how it is shown --------------------------------------------------------


def cells(line):
    """The numbers of a line of the table."""
    return line.replace(",", "").replace("%", "").split()


def test_text_is_a_tree_whose_parts_add_up():
    count = counted(7, 1, attend=naive)
    lines = str(count).splitlines()
    total = count.total
    assert lines[0].split() == "calls FLOPs share elements moved FLOPs/element".split()
    assert cells(lines[1])[:5] == [
        *("total", str(total.calls), str(total.flops), "100.0", str(total.mops)),
    ]
    by_depth = {}
    for line in lines[1:-3]:
        depth = len(line) - len(line.lstrip())
        name = line.strip().split("  ")[0]
        flops = int(cells(line.strip()[len(name) :])[1])
        by_depth[depth] = by_depth.get(depth, 0) + flops
    assert by_depth[0] == by_depth[2] == by_depth[4] == total.flops
    assert len({len(line) for line in lines[:-3]}) == 1  # columns are aligned
    square = count.attention()["prefill"]["square"]
    assert lines[-3] == (
        f"attention in prefill: {count.attention()['prefill']['executed']:,} FLOPs "
        f"executed; the full square, by the s x s formula, has {square:,}"
    )
    assert lines[-1] == f"bytes moved as float32: {4 * total.mops:,}"


def test_text_may_show_every_layer():
    together, apart = counted(3).text(), counted(3).text(each_layer=True)
    assert together.count("q_proj") == 1 and apart.count("q_proj") == 2
    assert "    2 layers " in together and "layer 0" not in together
    assert "    layer 0 " in apart and "    layer 1 " in apart


@given(dtypes, st.booleans())
def test_json_holds_the_same_numbers_at_every_node(dtype, each_layer):
    count = counted(5, 1, model=random_model(DISTINCT, 0, dtype))
    root = json.loads(json.dumps(count.json(each_layer)))
    assert root["attention"] == count.attention()

    def check(node):
        parts = node.get("parts", [])
        for part in parts:
            check(part)
        for field in ("calls", "flops", "read", "written", "kept", "mops"):
            assert not parts or node[field] == sum(part[field] for part in parts)
        assert node["mops"] == node["read"] + node["written"]
        assert node["bytes"] == {dtype: node["mops"] * np.dtype(dtype).itemsize}

    check(root)
    assert root["flops"] == count.total.flops
    assert [part["name"] for part in root["parts"]] == ["prefill", "decode"]


def test_csv_has_a_line_for_every_product():
    count = counted(5, 1)
    rows = list(csv.DictReader(io.StringIO(count.csv())))
    assert len(rows) == len(count.products())
    assert sum(int(row["flops"]) for row in rows) == count.total.flops
    first = next(row for row in rows if row["name"] == "gate_proj")
    assert first["shapes"] == "2x5x7 11x7 2x5x11" and first["equation"] == "BTE,FE->BTF"
    assert (first["phase"], first["layer"]) == ("prefill", "0")


def test_an_empty_count_can_be_shown():
    with FlopCounter() as count:
        pass
    assert str(count).splitlines()[1].split()[:3] == ["total", "0", "0"]
    assert count.json()["flops"] == 0 and len(count.csv().splitlines()) == 1
    assert count.attention() == {}


def test_counting_does_not_change_what_is_computed():
    tokens = token_ids(DISTINCT, 0, 2, 5)
    alone = forward(MODEL, tokens, new_cache(DISTINCT, 2, 5))
    with FlopCounter():
        watched = forward(MODEL, tokens, new_cache(DISTINCT, 2, 5))
    assert np.array_equal(alone, watched)


def test_the_cost_of_counting_can_be_measured():
    found = cost_of_counting(DISTINCT, rounds=1, steps=9, context=3)
    assert found["step"] > 0 and found["share"] == found["added"] / found["step"]
