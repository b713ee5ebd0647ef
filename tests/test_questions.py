"""A learner's question leads from the index to the page that answers it."""

import re
from functools import cache
from html.parser import HTMLParser

import pytest
from needs import needs
from questions import QUESTIONS

needs("pygments", "book")
needs("markdown_it", "book")

from npllama.book import build  # noqa: E402
from npllama.book.contents import pages  # noqa: E402
from npllama.book.page import Book, body  # noqa: E402
from npllama.book.words import LOOKED_UP, STRESSED  # noqa: E402

pytestmark = pytest.mark.slow  # the whole index


class Entries(HTMLParser):
    """Words of the index, and the files that they lead to."""

    def __init__(self, text):
        super().__init__()
        self.found, self.link = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.link = dict(attrs)["href"].partition("#")[0]

    def handle_data(self, data):
        if self.link:
            self.found.setdefault(data, set()).add(self.link)

    def handle_endtag(self, tag):
        self.link = None if tag == "a" else self.link


@cache
def entries():
    return Entries(build.index(Book(False, [], {}))).found


def plain(text):
    """Letters of a page as a reader sees them."""
    return " ".join(re.sub(r"<[^>]+>", "", text).split())


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.asked)
def test_question_is_answered_two_clicks_from_the_index(question):
    (page,) = (p for p in pages() if p.name == question.page)
    assert page.file in entries()[question.word]
    shown = plain(body(page, Book(False, [], {})))
    assert re.sub(r"\W", "", question.answer) in re.sub(r"\W", "", shown)


def test_there_are_twenty_and_no_two_alike():
    assert len(QUESTIONS) >= 20
    assert len({q.asked for q in QUESTIONS}) == len(QUESTIONS)
    assert len({q.page for q in QUESTIONS}) >= 18


@pytest.mark.parametrize("words, name", LOOKED_UP.items())
def test_word_of_the_index_stands_on_its_page(words, name):
    page = {p.name: p for p in pages()}[name]
    assert page.file in entries()[words]
    text = page.path.read_text(encoding="utf-8").lower()
    shown = " ".join(text.replace("-", " ").split())
    apart = re.split(r"[ ,-]+", words.lower())
    assert any(word.rstrip("s") in shown for word in apart if len(word) > 2)


def test_no_word_is_stressed_in_vain():
    docs = (p.path.read_text(encoding="utf-8") for p in pages())
    every = " ".join(" ".join(docs).split()).lower()
    assert [word for word in STRESSED if f"*{word}*" not in every] == []
