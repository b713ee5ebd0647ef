"""What is shown of a record is short, and a table in a notebook."""

import re
from html.parser import HTMLParser

import numpy as np
from strategies import DISTINCT, random_model, token_ids

import npllama
from npllama.cache import new_cache
from npllama.cost import FlopCounter
from npllama.model import forward

MODEL = random_model(DISTINCT, 0)


def counted():
    cache = new_cache(DISTINCT, 2, 7)
    with FlopCounter() as count:
        forward(MODEL, token_ids(DISTINCT, 0, 2, 4), cache)
    return cache, count


def cells(html):
    """The texts of a table's cells, row by row."""

    class Table(HTMLParser):
        rows: list = []

        def handle_starttag(self, tag, attrs):
            if tag == "tr":
                self.rows.append([])
            elif tag in ("td", "th"):
                self.rows[-1].append("")

        def handle_data(self, data):
            if self.rows and self.rows[-1]:
                self.rows[-1][-1] += data

    table = Table()
    table.rows = []
    table.feed(html)
    return table.rows


def test_records_show_their_sizes_and_not_their_numbers():
    cache, count = counted()
    text = npllama.Generation([1], [2] * 90, "x" * 90, "length")
    for record in (MODEL, MODEL.layers[0], cache, count, text):
        assert len(repr(record)) < 400 and "\n" not in repr(record)
    assert "L=2 V=13 E=7 F=11 H=6 K=3 D=4" in repr(MODEL)
    assert repr(cache) == "KVCache(length=[4, 4] of N=7; k, v: L=2 B=2 K=3 D=4 float32)"
    assert "wq (6, 4, 7)" in repr(MODEL.layers[0])
    assert f"{count.total.flops:,} FLOPs" in repr(count)
    assert repr(text).startswith("Generation('xxx") and "90 tokens" in repr(text)


def test_the_parameters_shown_are_those_that_there_are():
    arrays = [MODEL.embed, MODEL.norm, MODEL.lm_head]
    arrays += [w for layer in MODEL.layers for w in layer if w is not None]
    shown = int(re.search(r"\(([\d,]+) parameters", repr(MODEL))[1].replace(",", ""))
    assert shown == sum(array.size for array in arrays)


def test_a_notebook_shows_tables():
    _, count = counted()
    rows = cells(count._repr_html_())
    assert all(len(row) == 6 for row in rows)
    total = next(row for row in rows if row[0].strip() == "total")
    assert total[2] == f"{count.total.flops:,}"
    rows = dict(cells(MODEL._repr_html_())[1:])
    assert rows["model.layers.0 ... 1.mlp.up_proj.weight"] == "(11, 7)"
    assert np.prod(numbers(rows["lm_head.weight"])) == MODEL.lm_head.size


def numbers(text):
    return tuple(int(n) for n in re.findall(r"\d+", text))
