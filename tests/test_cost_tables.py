"""The cost chapter's tables: equal to what is printed, and to what was published."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import npllama
from npllama.cli.main import main
from npllama.config import PRESETS, preset
from npllama.cost import formulas, traffic
from npllama.cost.probe import hardware
from npllama.cost.roofline import offload_seconds, speculative_speedup
from npllama.cost.speeds import SPEEDS, bound, reached
from npllama.cost.tables import TABLES, markdown, met
from npllama.cost.textbook import product_flops

README_OF_COST = (
    Path(npllama.__file__)
    .parent.joinpath("cost", "README.md")
    .read_text(encoding="utf-8")
)


def column(name, head):
    """A table's column, by its head, under the first one."""
    top, *rows = TABLES[name]()
    i = top.index(head)
    return {row[0]: row[i] for row in rows}


# ---- the README -------------------------------------------------------------


def tables_in_the_readme():
    """{name: table} of every table with the command that prints it above."""
    found = re.findall(r"flops --table (\w+)\n```\n\n((?:\|.*\n)+)", README_OF_COST)
    return dict(found)


def test_readme_has_every_table_once_under_its_command():
    assert set(tables_in_the_readme()) == set(TABLES)
    assert README_OF_COST.count("--table ") == len(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_table_of_the_readme_is_what_its_command_prints(name, capsys):
    assert main(["flops", "--table", name]) == 0
    assert capsys.readouterr().out == tables_in_the_readme()[name]


@pytest.mark.parametrize("name", TABLES)
def test_table_is_as_well_json(name, capsys):
    assert main(["flops", "--table", name, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert markdown(rows) + "\n" == tables_in_the_readme()[name]


# ---- what was published -----------------------------------------------------

PUBLISHED_INTENSITY = {
    "projection": {
        1: "1.999024",
        8: "15.93774",
        128: "240.9412",
        512: "819.2",
        4096: "2730.667",
    },
    "act-to-act, l = 128": {1: "1.969231"},
    "act-to-act, l = 4096": {4096: "240.9412"},
    "act-to-act, l = 32000": {4096: "247.2833"},
    "FFN": {1: "1.999330", 128: "245.4746", 4096: "3453.490"},
}


@pytest.mark.parametrize("head", PUBLISHED_INTENSITY)
def test_intensity_is_as_published(head):
    found = column("intensity", head)
    for n, text in PUBLISHED_INTENSITY[head].items():
        assert found[str(n)].rstrip("0") == text.rstrip("0")


@pytest.mark.parametrize("n", [1, 2, 4, 8, 128, 512, 4096])
@pytest.mark.parametrize("seen", [128, 512, 4096, 32000])
def test_intensities_are_the_fractions_of_the_text(n, seen):
    d, h, ff = 4096, 32, 11008
    ops = met(n, seen)
    assert ops["q_proj"].intensity == 2 * n * d * d / ((2 * n + d) * d)
    moved = (n + seen) * d // h + n * seen
    assert ops["scores"].intensity == 2 * n * d * seen / h / moved
    assert ops["values"].intensity == ops["scores"].intensity
    assert ops["gate_proj"].intensity == 2 * n * d * ff / (d * (n + ff) + n * ff)


def test_where_no_query_is_ahead_of_its_keys_the_table_is_the_models_own():
    config = preset("llama-2-7b")
    each = {op.name: op for op in formulas.operators(config, 1, 8, 120)}
    for name, op in met(8, 128).items():
        if name != "lm_head":
            assert op == each[name]


PUBLISHED_TOKEN = {
    "projections, FLOPs": "4096 4096 4096 4096",
    "projections, MOPs": "2048 2048 2048 2048",
    "act-to-act, FLOPs": "64 256 2048 16384",
    "FFN, two matrices, FLOPs": "5504 5504 5504 5504",
    "FFN, three matrices, FLOPs": "8256 8256 8256 8256",
    "total with two, FLOPs": "9664 9856 11648 25984",
}


def test_decoded_token_is_as_published_and_with_three_matrices_beside():
    rows = {row[0]: row[1:] for row in TABLES["decode"]()}
    assert rows["context"] == ("128", "512", "4096", "32768")
    for title, numbers in PUBLISHED_TOKEN.items():
        assert " ".join(rows[title]) == numbers


def test_totals_of_a_decoded_token_are_sums_of_its_lines():
    rows = {row[0]: [*map(int, row[1:])] for row in TABLES["decode"]()}
    for unit in ("FLOPs", "MOPs"):
        for ffn in ("two", "three"):
            parts = ("projections", "act-to-act", f"FFN, {ffn} matrices")
            sums = [sum(n) for n in zip(*(rows[f"{part}, {unit}"] for part in parts))]
            assert rows[f"total with {ffn}, {unit}"] == sums


def test_linear_layer_does_315_flops_per_byte_for_512_rows_and_1_for_one():
    found = column("linear", "FLOPs/byte")
    assert (found["512"], found["1"]) == ("315", "1")


def test_cache_and_weights_are_as_published():
    assert column("cache", "cache/token")["llama-2-7b"] == "512 KiB"
    assert column("cache", "1,024 tokens")["llama-2-7b"] == "512 MiB"
    assert column("cache", "weights")["llama-2-13b"] == "26.0 GB"
    assert column("cache", "GQA saves")["llama-2-70b"] == "8x"
    assert PRESETS["llama-2-70b"].num_key_value_heads == 8


def test_model_larger_than_memory_takes_as_long_as_published():
    _, row = TABLES["offload"]()
    assert row == ("7.7 GB", "3.5 GB", "4 GB/s", "1.05", "0.95")
    assert offload_seconds(3e9, 3.5e9, 4e9) == 0


def test_ridge_of_an_a100_is_153_flops_per_byte():
    assert column("ridge", "FLOPs/byte")["a100-80g"] == "153"
    assert hardware("a100-80g").ridge("fp16") == 312e12 / 2039e9


def test_speedup_that_the_readme_names_is_that_of_the_formula():
    assert "--acceptance 0.8 --guesses 5 --draft-cost 0.05" in README_OF_COST
    assert f"{speculative_speedup(0.8, 5, 0.05):.3f}" == "2.951"
    assert "prints 2.951" in README_OF_COST


# ---- published speeds ------------------------------------------------------


def parts_reached(cards, *dtypes, first=False):
    """The least and the most of the bound that was reached."""
    found = [
        reached(s)
        for s in SPEEDS
        if s.kinds.weights in dtypes and s.cards in cards and s.first == first
    ]
    return min(found), max(found)


def test_no_published_speed_beats_its_bound():
    assert len(SPEEDS) >= 20
    assert all(0.25 < reached(speed) < 1 for speed in SPEEDS)


def test_text_about_real_programs_says_what_the_table_shows():
    for dtype in ("fp16", "int8", "int4"):
        least, most = parts_reached([1], dtype)
        assert f"{least:.2f} to {most:.2f}" in README_OF_COST
    assert parts_reached([8], "fp16")[1] < parts_reached([1], "fp16")[0]
    least, most = parts_reached([1, 4], "fp16", "fp8", first=True)
    words = " ".join(README_OF_COST.split())
    assert f"{1 / most:.1f} to {1 / least:.1f} times as long as its bound" in words


def test_bound_of_a_speed_is_what_roofline_prints(capsys):
    speed = SPEEDS[0]
    args = "roofline --config llama-2-7b --hardware a100-80g --prompt 5 --json"
    assert main([*args.split(), "--new-tokens", "200"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert bound(speed) == pytest.approx(200 / told["the whole text, s"])


# ---- attention's traffic ----------------------------------------------------


def by_definition(new, columns, rows, cached):
    """Rows of D elements, and numbers, that the first algorithm's loops move."""
    S = new + (cached or 0)
    vectors, scalars = new + 2 * S, 2 * new
    for j in range(-(-S // columns)):
        for i in range(-(-new // rows)):
            last = min((i + 1) * rows, new) - 1
            if cached is None or j * columns <= cached + last:
                vectors += 3 * (last + 1 - i * rows)
                scalars += 4 * (last + 1 - i * rows)
    return vectors, 0, scalars


def swapped_by_definition(new, columns, rows, cached):
    """The same of the second algorithm: queries outside, keys inside."""
    S = new + (cached or 0)
    vectors = 2 * new
    for i in range(-(-new // rows)):
        last = min((i + 1) * rows, new) - 1
        for j in range(-(-S // columns)):
            if cached is None or j * columns <= cached + last:
                vectors += 2 * (min((j + 1) * columns, S) - j * columns)
    return vectors, 0, new


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 50),
       st.none() | st.integers(0, 40))  # fmt: skip
@example(1024, 384, 64, None)
@example(10, 3, 4, None)
@example(10, 3, 4, 0)
@example(9, 4, 2, 5)
@example(1, 3, 4, 7)
def test_tiles_move_what_their_closed_forms_say(new, columns, rows, cached):
    sizes = new, columns, rows, cached
    for walk, formula, definition in (
        (traffic.tiled_forward, traffic.tiled_forward_sum, by_definition),
        (traffic.swapped_forward, traffic.swapped_forward_sum, swapped_by_definition),
    ):
        found = traffic.total(walk(*sizes))
        assert found == formula(*sizes) == definition(*sizes)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 70))
@example(1024, 384, 64)
@example(10, 3, 4)
def test_gradients_move_what_their_closed_form_says(N, columns, rows):
    found = traffic.total(traffic.tiled_backward(N, columns, rows))
    assert found == traffic.tiled_backward_sum(N, columns)
    blocks = -(-N // columns)
    assert found == (4 * N + 5 * N * blocks + N, 0, 2 * N * blocks)


@given(st.integers(1, 300), st.integers(1, 40), st.data())
@example(1024, 64, None)
def test_traffic_is_the_square_of_the_text_by_the_memory_of_the_chip(N, D, data):
    """Theorem 2 with its constants: 6 to 18 times N^2 D^2 / M for 4 D <= M <= N D."""
    N = max(N, 4)
    asked = [4 * D, 5 * D, N * D // 2, N * D] if data is None else []
    for on_chip in asked or [data.draw(st.integers(4 * D, N * D))]:
        tiles = traffic.tile_sizes(on_chip, D)
        vectors = traffic.tiled_forward_sum(N, *tiles).vectors
        assert 6 * N**2 * D**2 <= vectors * D * on_chip <= 18 * N**2 * D**2
        # It moves less than the standard one exactly where theory says so.
        standard = traffic.total(traffic.standard_forward(N))
        less = vectors * D < standard.vectors * D + standard.scores
        assert less == (3 * D * -(-N // tiles[0]) < 4 * N + D)


def test_tiles_of_a_chip_are_those_of_the_paper_and_need_four_vectors():
    assert traffic.tile_sizes(192 * 1024 // 2, 64) == (384, 64)
    assert traffic.tile_sizes(257, 64) == (2, 2)
    # Queries are as few as D, not as the text is long.
    assert traffic.tile_sizes(10**6, 64) == (3907, 64)
    with pytest.raises(ValueError, match="255 elements; four vectors of 64 need 256"):
        traffic.tile_sizes(255, 64)


@pytest.mark.parametrize("N, D", [(1024, 64), (5, 3)])
def test_standard_attention_moves_its_squares_eleven_times(N, D):
    forward = traffic.total(traffic.standard_forward(N)).bytes(D)
    backward = traffic.total(traffic.standard_backward(N)).bytes(D)
    assert forward == 2 * (4 * N * N + 4 * N * D)
    assert backward == 2 * (7 * N * N + 8 * N * D)


def test_traffic_of_the_papers_setting_is_what_it_published():
    both = {row[0]: row for row in TABLES["flash"]()}
    assert both["tiled, 192 KiB on chip"][1:4] == ("1.669", "2.710", "4.379")
    assert both["published, FlashAttention"][3] == "4.4" == f"{4.379:.1f}"
    assert both["FlashAttention 2, 128 x 128"][1] == "2.420"
    # Eighteen trips of all scores, and everything thin, are the published 40.3 GB.
    heads, N, D = 64 * 16, 1024, 64
    trips, thin = 2 * heads * N * N, 12 * 2 * heads * N * D
    assert both["published, standard"][3] == f"{(18 * trips + thin) / 1e9:.1f}"
    assert both["standard"][3] == f"{(11 * trips + thin) / 1e9:.3f}"


def test_flops_of_attention_are_two_products_forward_and_one_more_if_recomputed():
    rows = {row[0]: row[4:] for row in TABLES["flash"]()}
    one = 64 * 16 * product_flops(1024, 64, 1024) / 1e9
    standard, tiled = rows["standard"], rows["tiled, 192 KiB on chip"]
    assert standard == (f"{2 * one:.1f}", f"{4 * one:.1f}", f"{6 * one:.1f}")
    assert tiled == (f"{2 * one:.1f}", f"{5 * one:.1f}", f"{7 * one:.1f}")
    assert rows["published, standard"][2] == "66.6"
    assert rows["published, FlashAttention"][2] == "75.2"


def test_more_memory_on_the_chip_means_less_traffic():
    rows = TABLES["flash"]()
    tiled = [float(row[3]) for row in rows if row[0].startswith("tiled")]
    assert tiled == sorted(tiled) and len(tiled) == 3
