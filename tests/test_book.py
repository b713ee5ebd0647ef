"""The book: what its pages say is what the source says."""

import ast
import html
import re
import xml.etree.ElementTree as xml

import html5lib
import numpy as np
import pytest
from chapters import PACKAGE, listed

from npllama.book import (
    build,
    exercises,
    listing,
    names,
    page,
    pictures,
    prose,
    svg,
    tiling,
)
from npllama.book.choices import PROMPT, next_logits, odds_of
from npllama.book.contents import pages
from npllama.book.figures import weights_of
from npllama.cli.main import main
from npllama.cost import traffic
from npllama.decoding.speculative import Draft
from npllama.files.checkpoint import load
from npllama.sampling import softmax, top_p

OUTSIDE = {"bench", "book", "candidates", "cli", "explain"}


@pytest.fixture(scope="module")
def stories():
    return load("stories")


def plain(shown):
    """HTML without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", shown))


def nowhere(words):
    return None


# ---- contents and names -----------------------------------------------------


def test_every_file_of_every_chapter_has_a_page_in_the_order_of_the_title_page():
    found = [p.name.partition(".")[0] for p in pages() if p.name]
    assert list(dict.fromkeys(found)) == list(listed())
    files = {p for p in PACKAGE.rglob("*.py") if p.parent.name not in OUTSIDE}
    files -= {PACKAGE / "__main__.py", *PACKAGE.rglob("test_laws.py")}
    assert {p.path for p in pages()} == files


def test_a_use_leads_to_its_definition_and_an_own_name_does_not():
    found = {(line, name.name) for line, _, _, name in names.uses("attention")}
    lines = (PACKAGE / "attention.py").read_text(encoding="utf-8").splitlines()
    assert {name for _, name in found} >= {"einsum", "softmax", "merged", "Part"}
    for line, name in found:
        assert name in lines[line - 1]
    # `attention` is a function here, and `write` a parameter
    assert "write" not in {name for _, name in found}


@pytest.mark.parametrize(
    ("words", "module", "expected"),
    [
        ("naive", "attention", ("attention", "naive")),
        ("ops.rowwise", "attention", ("ops", "rowwise")),
        ("top_k", "sampling", ("sampling.truncation", "top_k")),
        ("truncation", "sampling", ("sampling.truncation", "")),
        ("prefill", "decoding.beam", ("decoding.common", "prefill")),
        ("np.ndarray", "norm", None),
    ],
)
def test_a_name_in_prose_is_found_from_where_it_is_said(words, module, expected):
    assert names.meant(words, module) == expected


# ---- code -------------------------------------------------------------------


@pytest.mark.parametrize("module", ["attention", "model", "sampling.truncation"])
def test_code_is_the_source_letter_by_letter(module):
    source = names.path_of(module).read_text(encoding="utf-8").splitlines()
    lines = list(enumerate(source, 1))
    links = listing.links_of(module, lambda target: "#x")
    shown = listing.code(lines, links, {})
    assert plain(shown) == "\n".join(source)
    assert shown.count("<a ") == len(links) > 5


def test_a_page_shows_all_of_its_file():
    book = page.Book(False, [], {})
    one = next(p for p in pages() if p.name == "norm")
    shown = plain(page.body(one, book))
    tree = ast.parse(one.path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            last = ast.unparse(node).splitlines()[-1].strip()
            assert node.name in shown and last[:30] in shown


def test_sizes_stand_at_the_end_of_their_line():
    lines = [(7, "x = f(y)  # (B, T)"), (8, "z = x")]
    shown = plain(listing.code(lines, {}, {7: "2 × 5"}))
    assert shown == "x = f(y)  # (B, T) 2 × 5\nz = x"


# ---- prose ------------------------------------------------------------------


def test_a_docstring_becomes_text_mathematics_and_a_list_of_parameters():
    doc = (
        "What `f` does: $a_b$.\n\nParameters\n----------\nx : (B, T) float\n    Said.\n"
    )
    found = prose.docstring(doc, lambda w: "#f" if w == "f" else None, {"x": "2 × 5"})
    assert '<a href="#f"><code>f</code></a>' in found
    assert "<math" in found and "<msub>" in found
    assert re.search(r"<dt><code>x</code> : \(B, T\) float.*2 × 5.*<dd><p>Said", found)


def test_a_table_of_markdown_is_a_table_and_a_fence_keeps_its_lines():
    table = "| head |   n |\n|-----:|----:|\n|    a |   1 |\n|    b |  22 |\n"
    shown = prose.markdown(f"Words.\n\n{table}", nowhere)
    assert shown.count("<tr>") == 3 and "<pre" not in shown
    fence = "```\nname     error\none      0.5\n\na        1\nb        2\n```\n"
    shown = prose.markdown(f"Words.\n\n{fence}\nMore.", nowhere)
    assert shown.count("<pre") == 1 and "\na        1\nb        2</pre>" in shown


def test_tables_of_the_chapter_on_cost_are_tables():
    readme = (PACKAGE / "cost" / "README.md").read_text("utf-8")
    shown = prose.markdown(readme, nowhere)
    written = len(re.findall(r"^\|-+:", readme, re.M))
    assert shown.count("<table>") == written > 6


def test_a_table_of_columns_keeps_its_lines():
    doc = "Names:\n\nhere      there      who\na         b          c\n"
    found = prose.markdown(doc, nowhere)
    assert "<pre" in found and "here      there      who\na " in found


def test_code_in_a_docstring_is_no_link_and_no_markup():
    found = prose.markdown("Reads ``[a](b)`` and [x](y) <b>.", nowhere)
    assert "<a" not in found and "&lt;b&gt;" in found


def test_terms_are_what_stands_in_italics():
    assert prose.terms("A *block table* of ``*args`` and $a*b*c$.") == ["block table"]


# ---- exercises --------------------------------------------------------------


def test_a_law_of_a_chapter_is_an_exercise_and_its_mutants_are_changes():
    found = exercises.of_file("rope.py")
    source = (PACKAGE / "rope.py").read_text(encoding="utf-8")
    assert len(found) >= 3
    for law, mutants in found.items():
        assert law[0].isupper() and "_" not in law.partition(" (")[0]
        assert all(m.old in source and m.new != m.old for m in mutants)


# ---- pictures ---------------------------------------------------------------

# These take longer; the slow test draws them.
LONG = {"error", "waste"}


@pytest.mark.parametrize("name", sorted(set(pictures.PICTURES) - LONG))
def test_a_picture_is_well_formed_and_has_a_caption(name, stories):
    figure = pictures.PICTURES[name][1](stories)
    root = xml.fromstring(figure.svg)
    assert root.get("aria-label") and len(figure.caption) > 80
    width, height = map(float, root.get("viewBox").split()[2:])
    for node in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(node.get("x")) <= width
        assert 0 <= float(node.get("y")) + float(node.get("height")) <= height + 1


def test_attention_in_the_picture_is_that_of_the_model(stories):
    pieces, weights = weights_of(stories, "Once upon a time")
    T, H = len(pieces), stories.config.num_attention_heads
    assert weights.shape == (stories.config.num_hidden_layers, H, T, T)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert not weights[:, :, np.triu(np.ones((T, T), bool), 1)].any()


def test_counts_in_the_picture_of_truncation_are_those_of_the_samplers(stories):
    shown = pictures.PICTURES["truncation"][1](stories).svg
    logits = next_logits(stories, PROMPT)
    kept = int((top_p(logits, 0.8) > -np.inf).sum())
    assert f"{kept} of {len(logits)}" in shown.replace("&#160;", " ")
    assert len(re.findall("top_p 0.8 keeps", shown)) == kept


# ---- the command ------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_tiles_in_the_picture_meet_and_move_what_traffic_walks(order, stories):
    slow, T, size = tiling.run(order), tiling.T, tiling.TILE
    walk = (traffic.tiled_forward, traffic.swapped_forward)[order - 1]
    assert slow.traffic == traffic.total(walk(T, size, size, 0))
    n = T // size
    met = [(q.start // size, k.start // size) for q, k in slow.met]
    below = [(i, j) for i in range(n) for j in range(i + 1)]
    outer = (lambda pair: (pair[1], pair[0])) if order == 1 else None
    assert met == sorted(below, key=outer)
    shown = pictures.PICTURES["tiles"][1](stories).svg
    assert all(f">{count}<" in shown for count in slow.moved.values())


def test_odds_in_the_picture_of_speculation_say_what_may_happen(stories):
    shown = html.unescape(pictures.PICTURES["speculation"][1](stories).svg)
    words = re.findall(r">(keep\xa0[\d.]+|not\xa0asked|its\xa0own)</text>", shown)
    odds = [float(word[5:]) for word in words if word.startswith("keep")]
    assert len(odds) > 5 and all(0 <= odd <= 1 for odd in odds) and min(odds) < 1
    # A draft that is the target itself loses nothing.
    prompt = stories.tokenizer.encode(PROMPT)
    p = softmax(next_logits(stories, PROMPT).astype(np.float64))
    assert odds_of(stories, prompt, Draft([5], [p])) == pytest.approx([1])
    half = Draft([5], [2 * p])
    assert odds_of(stories, prompt, half) == pytest.approx([0.5])


def test_one_picture_is_drawn_alone(tmp_path):
    out = tmp_path / "rope.svg"
    assert main(["book", "--picture", "rope", "-o", str(out)]) == 0
    assert "--ink" in out.read_text(encoding="utf-8")
    xml.parse(out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--picture", "rose", "-o", "a.svg"], "no picture 'rose'; there are"),
        (["--picture", "rope", "-o", "a.png"], "must end in .svg"),
        (["--picture", "rope", "-o", "no/a.svg"], "there is no folder"),
        (["-o", "no/book"], "there is no folder"),
        (["-o", "file"], "is a file"),
    ],
)
def test_a_wrong_place_or_name_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "all_drawn", dict)
    (tmp_path / "file").write_text("x")
    assert main(["book", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# ---- colours ----------------------------------------------------------------


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    a, b = sorted((luminance(one), luminance(other)), reverse=True)
    return (a + 0.05) / (b + 0.05)


def themes():
    light, dark = page.STYLE.split("@media (prefers-color-scheme: dark)")[:2]
    return [dict(re.findall(r"--(\w+): (#\w{6})", t)) for t in (light, dark)]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_words_have_contrast_aa_in_both_themes(theme):
    # WCAG 2, 1.4.3: at least 4.5 to 1
    for name in "ink soft link word string number name was hot".split():
        for ground in ("paper", "code"):
            assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)


# ---- the whole --------------------------------------------------------------


def ids_of(text):
    return re.findall(r' id="([^"]+)"', text)


def addresses_of(text):
    return [html.unescape(a) for a in re.findall(r' (?:href|src)="([^"]+)"', text)]


@pytest.mark.slow
def test_every_link_resolves_every_page_is_valid_and_nothing_is_fetched(tmp_path):
    figures = pictures.all_drawn()
    assert set(figures) <= {p.name for p in pages()}
    build.write_book(tmp_path / "book", figures)
    texts = {
        p.name: p.read_text(encoding="utf-8") for p in (tmp_path / "book").iterdir()
    }
    assert len(texts) == len(pages()) + 2
    for name, text in texts.items():
        if not name.endswith(".html"):
            continue
        html5lib.HTMLParser(strict=True).parse(text)
        found = ids_of(text)
        assert len(found) == len(set(found)), name
        assert not re.search(r'<(script|img|iframe)|url\(|@import| src="', text), name
        for address in addresses_of(text):
            file, _, anchor = address.partition("#")
            if not address.startswith(("http", "data:,")):
                assert (file or name) in texts, (name, address)
                assert not anchor or anchor in ids_of(texts[file or name]), address


@pytest.mark.slow
def test_one_file_holds_the_same_and_needs_no_other(tmp_path):
    out = tmp_path / "book.html"
    build.write_book(out, {"rope": [svg.drawing(1, 1, [], "a picture")]})
    text = out.read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(text)
    found = ids_of(text)
    assert len(found) == len(set(found))
    inside = [a for a in addresses_of(text) if not a.startswith(("http", "data:,"))]
    assert {a[1:] for a in inside} <= set(found) and len(inside) > 5000
    assert text.count("<article") == len(pages()) + 2
