"""The book in a browser: Debian's Chromium, where it is installed."""

import shutil

import pytest

from npllama.book import build, pictures

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]
# Without these it speaks to its maker's hosts.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip
# One of each kind: prose, code and shapes, pictures, README tables, the index.
SOME = ["index", "attention", "sampling", "sampling.truncation", "decoding.beam",
        "cost", "cost.roofline", "serving.pages", "golden.distance", "names"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("book") / "book"
    build.write_book(out, pictures.all_drawn())
    return out


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as machine:
        found = machine.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


def opened(browser, address, width, scheme="light"):
    """A page, and what it said and asked for."""
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    return page, said, asked


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_no_page_scrolls_sideways_complains_or_fetches(browser, folder, width):
    for name in SOME:
        page, said, asked = opened(browser, (folder / f"{name}.html").as_uri(), width)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (name, wide)
        assert said == []
        assert {a.rpartition("/")[2] for a in asked} <= {
            f"{name}.html",
            "style.css",
            ",",
        }
        page.close()


def test_every_page_has_mathematics_code_and_figures_that_are_laid_out(browser, folder):
    page, _, _ = opened(browser, (folder / "attention.html").as_uri(), 1400, "dark")
    boxes = "[...document.querySelectorAll('math, figure svg, pre')]"
    sizes = page.evaluate(
        f"{boxes}.filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect().height)"
    )
    assert len(sizes) > 15 and min(sizes) > 10
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 23, 27)"
    )
    page.close()


def test_it_prints(browser, folder):
    page, _, _ = opened(browser, (folder / "rope.html").as_uri(), 1400)
    assert page.pdf().startswith(b"%PDF")
    page.close()


def test_the_index_leads_to_a_definition_in_one_click(browser, folder):
    page, _, _ = opened(browser, (folder / "names.html").as_uri(), 1400)
    page.click('a code:text-is("top_p")')
    assert page.url.endswith("sampling.truncation.html#sampling.truncation.top_p")
    page.close()
