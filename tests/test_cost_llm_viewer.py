"""Every operator costs what LLM-Viewer says, but where LLM-Viewer is wrong.

Its figures are recorded; tools/goldens/llm_viewer.py says how.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from goldens.llm_viewer_cases import BITS, CARD, FILE, MODELS, SIZES

from npllama.config import preset
from npllama.cost import traffic
from npllama.cost.formulas import cache_bytes, operators, parameters
from npllama.cost.probe import hardware
from npllama.cost.product import cost
from npllama.cost.roofline import dtypes, stored, timed
from npllama.ops import Kind

GOLDEN = json.loads(
    Path(__file__).parent.joinpath("goldens", FILE).read_text(encoding="utf-8")
)
CASES = GOLDEN["cases"]
STAGES = ("prefill", "decode")
OURS = {"out_proj": "o_proj", "qk_matmul": "scores", "sv_matmul": "values"}
# What it counts that is no product; `formulas` says why it is left out here.
NO_PRODUCTS = {"softmax", "attn_norm", "mlp_norm", "attn_add", "mlp_add", "mlp_act"}
NAMES = {16: "fp16", 8: "int8", 4: "int4"}
LETTERS = dict(zip("VEFHKD", ("vocab_size", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim")))  # fmt: skip


def label(case):
    return f"{case['model']}-{case['batch']}x{case['length']}-{case['bits'][0]}"


def told(case, stage):
    """{operator of ours: {field: figure}}, for one layer, of LLM-Viewer's products."""
    fields = GOLDEN["meta"]["fields"]
    return {
        OURS.get(name, name): dict(zip(fields, figures))
        for name, figures in case[stage].items()
        if name not in NO_PRODUCTS
    }


def counted(case, stage):
    """{name: operator} of ours, over all layers.

    A step of its decode sees `length` positions, its own among them.
    """
    new, cached = (case["length"], 0) if stage == "prefill" else (1, case["length"] - 1)
    config = preset(case["model"])
    ops = operators(config, case["batch"], new, cached, last=True)
    return {op.name: op for op in ops if op.name != "embed_tokens"}


def moved_apart(case, stage, op):
    """Elements that one layer's product reads of activations and of what is kept, and
    writes: from its equation alone."""
    config = preset(case["model"])
    sizes = {letter: getattr(config, field) for letter, field in LETTERS.items()}
    sizes |= {"B": case["batch"], "S": case["length"]}
    sizes |= {"G": sizes["H"] // sizes["K"]}
    sizes |= {"T": case["length"] if stage == "prefill" else 1}
    if op.name == "lm_head":
        sizes["T"] = 1  # of the last position
    a, b = op.equation.split("->")[0].split(",")
    shapes = (tuple(sizes[letter] for letter in operand) for operand in (a, b))
    found = cost(Kind(op.name, op.equation, *shapes, np.dtype(np.float16)))
    return found.read - found.kept, found.kept, found.written


def is_wrong_there(case, stage, name):
    """{field: its figure / ours} where the two differ, by what LLM-Viewer leaves out."""
    config, rows = preset(case["model"]), case["batch"]
    if name == "lm_head":
        # A product of a multiplication and no addition, and one row's activations
        # whatever the batch.
        return {"OPs": 1 / 2, "load_act": 1 / rows, "store_act": 1 / rows}
    if name == "scores" and stage == "prefill":
        # Queries have H heads; it reads as many as keys have.
        shared = config.num_attention_heads // config.num_key_value_heads
        return {"load_act": 1 / shared}
    return {}


# ---- what was recorded ------------------------------------------------------


def test_golden_has_every_model_size_and_dtype_and_says_whose_it_is():
    found = {(c["model"], (c["batch"], c["length"]), tuple(c["bits"])) for c in CASES}
    assert found == {(m, s, b) for m in MODELS for s in SIZES for b in BITS}
    assert len(found) == len(CASES) == 36 and len(GOLDEN["meta"]["commit"]) == 40


def test_every_product_of_ours_is_one_of_its_operators():
    for case in CASES:
        for stage in STAGES:
            assert told(case, stage).keys() == counted(case, stage).keys()


# ---- operators --------------------------------------------------------------


def figures(case, stage, op):
    """{field: figure} of one layer's operator, in LLM-Viewer's words."""
    weight, activation, cache = (bits / 8 for bits in case["bits"])
    read, kept, written = moved_apart(case, stage, op)
    fresh = op.name in ("k_proj", "v_proj")  # keys and values of the cache
    met = op.name in ("scores", "values")
    config = preset(case["model"])
    times = 1 if op.name == "lm_head" else config.num_hidden_layers
    # The elements of the equation are those of the closed form.
    assert op.weights + op.cache == kept * times
    assert op.activations == (read + written) * times
    return {
        "OPs": op.flops / times,
        "load_weight": 0 if met else kept * weight,
        "load_act": read * activation,
        "store_act": 0 if fresh else written * activation,
        "load_kv_cache": kept * cache if met else 0,
        "store_kv_cache": written * cache if fresh else 0,
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", CASES, ids=label)
def test_operator_costs_what_llm_viewer_says_but_where_it_is_wrong(case, stage):
    for name, op in counted(case, stage).items():
        wrong = is_wrong_there(case, stage, name)
        theirs = told(case, stage)[name]
        for field, figure in figures(case, stage, op).items():
            expected = figure * wrong.get(field, 1)
            assert theirs[field] == pytest.approx(expected, rel=1e-15), (name, field)


def test_it_differs_in_its_head_and_in_queries_of_shared_heads_and_nowhere_else():
    found, same = set(), 0
    for case in CASES:
        for stage in STAGES:
            for name, op in counted(case, stage).items():
                for field, figure in figures(case, stage, op).items():
                    if told(case, stage)[name][field] == figure:
                        same += 1
                    else:
                        found.add((stage, name, field))
    head = {(s, "lm_head", f) for s in STAGES for f in ("OPs", "load_act", "store_act")}
    assert found == {("prefill", "scores", "load_act"), *head}
    assert same > 4000


@pytest.mark.parametrize("case", CASES, ids=label)
def test_operator_takes_as_long_under_the_same_roof_and_is_bound_alike(case):
    config, machine = preset(case["model"]), hardware(CARD[1])
    bits = case["bits"]
    # It takes the rate of int8 if nothing is wider.
    kinds = dtypes(NAMES[bits[0]], NAMES[bits[2]], NAMES[bits[1]])
    for stage in STAGES:
        for name, op in counted(case, stage).items():
            wrong = is_wrong_there(case, stage, name)
            if any(ratio != 1 for ratio in wrong.values()):
                continue
            on_it, theirs = timed(stored(config, op), machine, kinds), told(case, stage)
            seconds = theirs[name]["inference_time"] * config.num_hidden_layers
            assert on_it.seconds == pytest.approx(seconds, rel=1e-12), name
            assert on_it.bound == theirs[name]["bound"]


# ---- memory, and one program for attention ----------------------------------


@pytest.mark.parametrize("case", CASES, ids=label)
def test_cache_is_as_large_and_weights_lack_the_two_tables(case):
    config = preset(case["model"])
    weights, cache = case["memory"]
    bits, _, cache_bits = case["bits"]
    assert cache == cache_bytes(config, case["batch"] * case["length"], cache_bits / 8)
    found = parameters(config)
    outside = ("embed_tokens", "lm_head", "norms")
    assert weights == (sum(found.values()) - sum(map(found.get, outside))) * bits / 8


@pytest.mark.parametrize("case", CASES, ids=label)
def test_flash_attention_reads_its_tiles_but_writes_a_square(case):
    """Its tiles have D queries, and every query head reads keys of its own.

    What it stores, twice, has S columns where the result has D: a mistake.
    """
    config = preset(case["model"])
    B, S, H, D = (
        case["batch"],
        case["length"],
        config.num_attention_heads,
        config.head_dim,
    )
    fields = GOLDEN["meta"]["fields"]
    told_fused = dict(zip(fields, case["fused"]))
    _, activation, cache = (bits / 8 for bits in case["bits"])
    vectors = traffic.swapped_forward_sum(S, S, D).vectors - 2 * S  # without q and o
    assert told_fused["load_kv_cache"] == B * H * D * vectors * cache
    assert told_fused["load_act"] == B * H * D * S * activation
    assert told_fused["store_act"] == 2 * B * H * S * S * activation
    softmax = case["prefill"]["softmax"][0]
    products = sum(counted(case, "prefill")[n].flops for n in ("scores", "values"))
    assert told_fused["OPs"] - softmax == products / config.num_hidden_layers
