"""The page of a generation in a browser: hovered, touched, driven by keys, clicked on."""

import json
import urllib.parse

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from needs import needs  # noqa: E402
from served import serving  # noqa: E402
from test_book_browser import CHROMIUM, browser, opened  # noqa: E402, F401

from npllama.cli.main import main  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]
SCHEMA = '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}'
CASES = {
    "greedy": ["--temperature", "0"],
    "drawn": "--temperature 0.9 --top-k 30 --top-p 0.9 --min-p 0.02 "
             "--repetition-penalty 1.2 --frequency-penalty 0.2".split(),
    "beams": ["--num-beams", "3"],
    "drafts": ["--assistant", "stories-draft", "--num-assistant-tokens", "4"],
    "schema": ["--json-schema", SCHEMA],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page for each case."""
    out = tmp_path_factory.mktemp("explain")
    for name, words in CASES.items():
        asked = ["explain", "Once upon a time", "-o", str(out / f"{name}.html")]
        assert main([*asked, "--seed", "2", "--max-new-tokens", "16", *words]) == 0
    return out


def data_on(page):
    """The numbers that a page carries."""
    return json.loads(page.text_content("#data"))


def percent(p):
    """A probability as the page writes it."""
    if p in (0, 1):
        return "100%" if p else "0"
    if p < 5e-7 or p >= 0.999995:
        return "<0.0001%" if p < 0.5 else ">99.999%"
    return f"{100 * p:.{3 if 0.9995 <= p < 1 else 1 if p >= 0.001 else 4}f}%"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_scrolls_sideways_complains_or_is_fetched(browser, folder, width, name):  # noqa: F811
    address = (folder / f"{name}.html").as_uri()
    page, said, asked = opened(browser, address, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == [] and [a for a in asked if not a.startswith("data:")] == [address]
    page.close()


@pytest.mark.parametrize("name", CASES)
def test_every_token_shows_its_numbers(browser, folder, name):  # noqa: F811
    page, said, _ = opened(browser, (folder / f"{name}.html").as_uri(), 1400)
    data = data_on(page)
    for number, step in enumerate(data["steps"]):
        page.click(f'#tokens button[data-step="{number}"]')
        row = page.locator("#stages tr.came td").all_inner_texts()
        shown = [s for i, s in enumerate(step["stages"]) if i == 0 or not s["same"]]
        i = step["tokens"].index(step["token"])
        assert row == [percent(stage["probs"][i]) for stage in shown]
        assert "▶" in page.inner_text("#stages tr.came th")
        left = page.locator("#stages tfoot tr").first.locator("td").all_inner_texts()
        assert left == [f"{stage['left']:,}" for stage in shown]
        if step["u"] and step["line"]:
            assert f"u = {step['u'][-1]:.6f}" in page.inner_text("#line")
        layers = page.locator("#layers tbody tr").count()
        assert layers == 1 + data["model"]["L"]
        flops = page.locator("#runs tbody td:nth-child(2)").all_inner_texts()
        total = sum(data["runs"][run]["flops"] for run in step["runs"])
        assert sum(int(f.replace(",", "")) for f in flops) == total
    assert said == []
    page.close()


def test_keys_go_from_token_to_token(browser, folder):  # noqa: F811
    page, _, _ = opened(browser, (folder / "drawn.html").as_uri(), 1400)
    data = data_on(page)
    for key, number in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1),
                        ("End", 15), ("ArrowRight", 15), ("Home", 0), ("ArrowLeft", 0)]:  # fmt: skip
        page.keyboard.press(key)
        assert page.inner_text("#where").startswith(f"{number + 1} of 16")
        assert page.url.endswith(f"#token-{number + 1}")
        here = page.locator('#tokens [aria-pressed="true"]')
        assert here.count() == 1 and here.get_attribute("data-step") == str(number)
    # One stop of the tab key for all tokens; then comes what is about the chosen one.
    page.locator('#tokens [aria-pressed="true"]').focus()
    page.keyboard.press("Tab")
    assert not page.evaluate("by('tokens').contains(document.activeElement)")
    page.locator("#on").focus()
    page.keyboard.press("Enter")
    assert (
        page.inner_text("#where")
        == f"2 of 16: “{data['names'][str(data['steps'][1]['token'])]}”"
    )
    page.close()


def weight_of(page, row, column):
    """The weight of a square, as the page has it."""
    return page.evaluate(f"weight(now.layer, now.head, {row}, {column}) / 255")


def test_attention_is_told_under_the_pointer_by_keys_and_by_touch(browser, folder):  # noqa: F811
    address = (folder / "drawn.html").as_uri()
    page, _, _ = opened(browser, address, 1400)
    N = len(data_on(page)["tokens"]) - 1
    page.click('#heads button[data-layer="2"][data-head="3"]')
    assert page.input_value("#layer") == "2" and page.input_value("#head") == "3"
    canvas = page.locator("#matrix")
    canvas.evaluate("e => e.scrollIntoView({block: 'center'})")
    box = canvas.bounding_box()
    for row, column in [(7, 2), (N - 1, N - 1), (3, 0)]:
        x, y = (box[a] + box[s] * (i + 0.5) / N
                for a, s, i in (("x", "width", column), ("y", "height", row)))  # fmt: skip
        page.mouse.move(x, y)
        told = page.inner_text("#weight")
        assert told.startswith("Layer 2, head 3") and f"({row}) looks at" in told
        assert f"({column}) with {weight_of(page, row, column):.3f}" in told
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert "(4) looks at" in page.inner_text("#weight")
    assert f"(1) with {weight_of(page, 4, 1):.3f}" in page.inner_text("#weight")
    page.locator('#heads [aria-pressed="true"]').focus()
    for key, here in [
        ("ArrowUp", (1, 3)),
        ("ArrowRight", (1, 4)),
        ("ArrowLeft", (1, 3)),
    ]:
        page.keyboard.press(key)
        told = page.inner_text("#weight")
        assert told.startswith("Layer {}, head {}:".format(*here))
    page.select_option("#layer", "0")
    assert page.inner_text("#weight").startswith("Layer 0, head 3")
    page.close()
    small = browser.new_page(viewport={"width": 360, "height": 740}, has_touch=True)
    small.goto(address)
    small.locator("#matrix").evaluate("e => e.scrollIntoView({block: 'center'})")
    box = small.locator("#matrix").bounding_box()
    small.touchscreen.tap(
        box["x"] + box["width"] * 2.5 / N, box["y"] + box["height"] * 5.5 / N
    )
    assert "(5) looks at" in small.inner_text("#weight")
    small.locator('#tokens button[data-step="4"]').tap()
    assert small.inner_text("#where").startswith("5 of 16")
    small.close()


CONTRASTS = """() => {
  const parts = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parts(c).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05); };
  const ground = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor;
    if (parts(c)[3] !== 0) return c; e = e.parentElement; } return 'rgb(255, 255, 255)'; };
  const probe = document.createElement('span'); document.body.append(probe);
  probe.style.color = 'var(--mark)'; const mark = getComputedStyle(probe).color; probe.remove();
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || ['SCRIPT', 'STYLE', 'OPTION'].includes(e.tagName)) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e), svg = e.ownerSVGElement;
    const color = svg ? style.fill : style.color;
    const grounds = e.matches('td.bar') ? [ground(e), mark] : [ground(e)];
    if (e.disabled) continue;
    for (const g of grounds) if (ratio(color, g) < 4.5) found.push([e.outerHTML.slice(0, 90), color, g]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", CASES)
def test_all_words_stand_out_from_their_ground(browser, folder, name, scheme):  # noqa: F811
    page, _, _ = opened(browser, (folder / f"{name}.html").as_uri(), 1400, scheme)
    assert page.evaluate(CONTRASTS) == []
    page.close()


def test_searches_and_drafts_and_formats_are_shown(browser, folder):  # noqa: F811
    page, _, _ = opened(browser, (folder / "beams.html").as_uri(), 1400)
    data = data_on(page)
    page.keyboard.press("ArrowRight")
    assert page.locator("#beams tbody tr").count() == len(
        data["levels"][1]["candidates"]
    )
    assert "goes on" in page.inner_text("#beams") and "dropped" in page.inner_text(
        "#beams"
    )
    assert page.locator("#branches circle").count() > 5 * len(data["levels"])
    page.close()
    page, _, _ = opened(browser, (folder / "drafts.html").as_uri(), 1400)
    rounds = data_on(page)["rounds"]
    assert page.locator("#guesses .guesses").count() == len(rounds)
    kept, lost, own = (
        page.locator(f"#guesses .{k}").count() for k in ("kept", "lost", "own")
    )
    assert kept + own == 16 and kept + lost == sum(len(r["guesses"]) for r in rounds)
    page.close()
    page, _, _ = opened(browser, (folder / "schema.html").as_uri(), 1400)
    assert "json_schema" in page.inner_text("#stages").replace("\u200b", "")
    assert "cut" in page.inner_text("#stages")
    page.close()


def test_a_click_on_another_candidate_goes_on_from_there(browser, folder):  # noqa: F811
    needs("starlette", "serve")
    with serving("stories") as server:
        out = folder / "linked.html"
        asked = ["explain", "Once upon a time", "-o", str(out), "--seed", "2",
                 "--max-new-tokens", "12", "--server", server.url]  # fmt: skip
        assert main(asked) == 0
        page, said, _ = opened(browser, out.as_uri(), 1400)
        before = data_on(page)
        for number in (3, 1):  # from the file, then from the server's own page
            page.click(f'#tokens button[data-step="{number}"]')
            link = page.locator("#stages tr:not(.came) th a").first
            word = link.inner_text()
            link.click()
            page.wait_for_url(f"{server.url}/explain?asked=*")
            data = data_on(page)
            came = [step["token"] for step in data["steps"]]
            assert data["names"][str(came[number])] == word
            same = [step["token"] for step in before["steps"][:number]]
            assert came[:number] == same and data["first"] == came[: number + 1]
            assert "chosen by a click" in page.inner_text("main")
            before = data
        assert said == []
        # The text that came by itself comes again if all of it is asked for.
        whole = {"prompt": before["prompt"], "seed": 2, "options": before["options"]}
        free = server.get("/explain?asked=" + urllib.parse.quote(json.dumps(whole)))
        page.set_content(free)
        first = [step["token"] for step in data_on(page)["steps"]]
        whole["first"] = first[:5]
        page.set_content(
            server.get("/explain?asked=" + urllib.parse.quote(json.dumps(whole)))
        )
        assert [step["token"] for step in data_on(page)["steps"]] == first
        page.goto(server.url + "/explain")
        page.click("text=explain")
        page.wait_for_url(f"{server.url}/explain?prompt=*")
        assert page.locator("#tokens button").count() > 10
        status, answer = refused(server, '/explain?asked={"prompt":"x","seed":-1}')
        assert status == 400 and "seed is -1" in answer["error"]["message"]
        status, answer = refused(server, "/explain?prompt=x&penalty_alpha=0.5&top_k=4")
        assert status == 400 and "penalty_alpha" in answer["error"]["message"]
        page.close()


def refused(server, path):
    """(status, object) of a page that cannot be had."""
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(
            server.url + urllib.parse.quote(path, "/?=&"), timeout=60
        )
    return caught.value.code, json.loads(caught.value.read())
