"""The whole book: its pages, the contents, and the index."""

from __future__ import annotations

import ast
import html
import re
from itertools import groupby
from pathlib import Path

from npllama.book import page, prose, shapes
from npllama.book.contents import Page, docstring, pages
from npllama.book.page import Book, anchor_of, framed
from npllama.book.words import LOOKED_UP, STRESSED
from npllama.files.whole import check_place, write_file


def contents(book: Book) -> str:
    """The table of contents."""
    out = ["<h2>Contents</h2>"]
    listed = [p for p in pages() if p.name]
    for part, inside in groupby(listed, lambda p: p.part):
        rows = []
        for _, group in groupby(inside, lambda p: p.name.partition(".")[0]):
            first, *rest = group
            inner = "".join(f"<li>{_line(p, book)}</li>" for p in rest)
            inner = f"<ol>{inner}</ol>" if inner else ""
            if inner:
                inner = (
                    f"<details><summary>{len(rest)} sections</summary>{inner}</details>"
                )
            rows.append(f"<li>{_line(first, book)}{inner}</li>")
        out.append(
            f"<h3>{html.escape(part)}</h3><ol class='contents'>{''.join(rows)}</ol>"
        )
    return "".join(out)


def _line(one: Page, book: Book) -> str:
    name = one.name.rpartition(".")[2]
    return (
        f'{one.number}&ensp;<a href="{book.address(one)}"><code>{name}</code></a>'
        f"&ensp;{html.escape(one.about)}"
    )


def index(book: Book) -> str:
    """Terms, and all public names, in the order of the alphabet."""
    terms: dict[str, Page] = {}
    defined: dict[str, list[tuple[Page, str]]] = {}
    for one in pages():
        tree = ast.parse(one.path.read_text(encoding="utf-8"))
        nodes = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        docs = [docstring(one.path), *(ast.get_docstring(n) or "" for n in nodes)]
        found = (" ".join(t.split()) for doc in docs for t in prose.terms(doc))
        for term in (t.lower() for t in found):
            if term not in STRESSED:
                terms.setdefault(term, one)
        for node in nodes:
            if not node.name.startswith("_") and one.name:
                said = (ast.get_docstring(node) or "").partition("\n\n")[0]
                defined.setdefault(node.name, []).append((one, " ".join(said.split())))
    looked_up = {p.name: p for p in pages()}
    # The title page only names what a chapter explains.
    known = {word for words in LOOKED_UP for word in re.split(r", ", words)}
    terms = {term: p for term, p in terms.items() if term not in known or p.name}
    terms |= {word: looked_up[name] for word, name in LOOKED_UP.items()}
    words = "".join(
        f'<li><a href="{book.address(p)}">{html.escape(term)}</a>'
        f" <small>{p.number or 'title page'}</small></li>"
        for term, p in sorted(terms.items(), key=lambda row: row[0].lower())
    )
    rows = "".join(
        f'<tr><td><a href="{book.address(p, f"{p.name}.{name}")}"><code>{name}</code></a>'
        f"</td><td>{p.number}</td><td>{html.escape(said)}</td></tr>"
        for name, places in sorted(defined.items(), key=lambda row: row[0].lower())
        for p, said in places
    )
    return (
        f'<h1 id="page-index">Index</h1><h2>Terms</h2><ul class="index">{words}</ul>'
        '<h2>Names</h2><div class="wide"><table><thead><tr><th>name</th><th>section</th>'
        f"<th>what it is</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def make_book(single: bool, figures: dict[str, list[str]]) -> Book:
    """What all pages share; the tests run the shape comments, where they are there."""
    return Book(single, shapes.seen(), figures)


def one_file(book: Book) -> str:
    """The book as one document."""
    articles = [f"<article>{page.body(p, book)}</article>" for p in pages()]
    articles.insert(1, f'<article id="contents">{contents(book)}</article>')
    articles.append(f'<article id="index">{index(book)}</article>')
    top = f"#{anchor_of('')}"
    links = [("npllama", top), ("contents", "#contents"), ("index", "#index")]
    return framed("npllama", "\n".join(articles), links, inline=True)


def files(book: Book) -> dict[str, str]:
    """The book as files: name and content of each."""
    found = {"style.css": page.STYLE.lstrip()}
    all_ = pages()
    for n, one in enumerate(all_):
        around = [("contents", "index.html#contents"), ("index", "names.html")]
        if n:
            around.insert(
                0, (f"← {all_[n - 1].name or 'title page'}", all_[n - 1].file)
            )
        if n + 1 < len(all_):
            around.append((f"{all_[n + 1].name} →", all_[n + 1].file))
        body = page.body(one, book)
        if not one.name:
            body += f'<section id="contents">{contents(book)}</section>'
        title = f"{one.number} {one.name}".strip() or "npllama"
        found[one.file] = framed(title, body, around, inline=False)
    around = [("contents", "index.html#contents")]
    found["names.html"] = framed("Index", index(book), around, inline=False)
    return found


def write_book(out: Path, figures: dict[str, list[str]]) -> int:
    """Write the book into a folder, or into one file if `out` ends in .html.

    Returns
    -------
    int
        How many files were written.

    Raises
    ------
    ValueError, OSError
        If `out` cannot be written.
    """
    if out.suffix == ".html":
        check_place(out)
        write_file(out, one_file(make_book(True, figures)))
        return 1
    if out.exists() and not out.is_dir():
        raise ValueError(
            f"{out}: is a file; name a folder, or a file that ends in .html"
        )
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}; make it first")
    out.mkdir(exist_ok=True)
    made = files(make_book(False, figures))
    for name, text in made.items():
        write_file(out / name, text)
    return len(made)
