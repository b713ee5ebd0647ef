"""One page: its frame, its text beside its code, its exercises."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from npllama.book import exercises, listing, names, prose, shapes
from npllama.book.contents import PACKAGE, Page, pages
from npllama.book.names import Target
from npllama.book.style import COLOURS

STYLE = (
    COLOURS
    + """
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper);
  font: 17px/1.6 Georgia, 'Times New Roman', serif; overflow-wrap: break-word; }
header, main, footer { max-width: 92rem; margin: 0 auto; padding: 0 1rem; }
header nav, footer nav { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem;
  padding: .7rem 0; font: 15px/1.4 system-ui, sans-serif; }
header { border-bottom: 1px solid var(--line); }
footer { border-top: 1px solid var(--line); margin-top: 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1.6rem 0 .4rem; }
h2 { font-size: 1.35rem; margin: 2.4rem 0 .6rem; } h3 { font-size: 1.15rem; }
h4 { font: 600 .85rem system-ui, sans-serif; color: var(--soft); margin: .8rem 0 .2rem; }
a { color: var(--link); text-underline-offset: .28em;
  text-decoration-thickness: 1px; }
:target { outline: 2px solid var(--hot); outline-offset: .4rem; }
.said { max-width: 44rem; } .part-of { color: var(--soft); margin: 0; }
.piece { border-top: 1px solid var(--line); padding: .8rem 0; min-width: 0; }
.piece > * { min-width: 0; }
pre { overflow-x: auto; background: var(--code); padding: .7rem .8rem; border-radius: 4px;
  font: 14px/1.5 ui-monospace, Menlo, Consolas, monospace; margin: .5rem 0; }
code { font: .88em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre code { font: inherit; overflow-wrap: normal; } pre a { text-decoration-style: dotted; }
.c { color: var(--soft); font-style: italic; } .k { color: var(--word); }
.s { color: var(--string); } .n { color: var(--number); }
.d { color: var(--name); font-weight: 600; }
.was { color: var(--was); font: 12px/1.4 system-ui, sans-serif; }
dl { margin: .2rem 0; } dd { margin: 0 0 .3rem 1.4rem; } dd p { margin: .1rem 0; }
.wide { overflow-x: auto; width: max-content; max-width: min(60rem, calc(100vw - 3.2rem)); }
[style*=right] { white-space: nowrap; } table { border-collapse: collapse; font-size: .92em; }
th, td { padding: .15rem .7rem .15rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid var(--line); }
figure { margin: 1.4rem 0; max-width: 60rem; overflow-x: auto; }
figure svg { width: 100%; min-width: 34rem; height: auto; }
figcaption { font-size: .92em; max-width: 44rem; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.math.block { overflow-x: auto; margin: .6rem 0; }
math { font-size: 1.05em; } summary { cursor: pointer; }
.piece > details > summary { color: var(--soft); font: 14px system-ui, sans-serif; }
.exercise { margin: .7rem 0; } .diff del { color: var(--hot); }
.diff ins { color: var(--string); text-decoration: none; }
ol.contents { list-style: none; padding-left: 0; } ol.contents ol { list-style: none; }
.index { columns: 18rem; padding-left: 0; list-style: none; }
@media (min-width: 75rem) { .piece { display: grid; gap: 0 2rem;
  grid-template-columns: minmax(20rem, 5fr) minmax(0, 7fr); }
  .piece > pre { align-self: start; } }
@media print { header, footer { display: none; } body { font-size: 11pt; }
  pre { white-space: pre-wrap; font-size: 8.5pt; } .piece { break-inside: avoid-page; }
  details > * { display: block; } }
"""
)

Href = Callable[[Target], "str | None"]


class Book(NamedTuple):
    """What all pages share."""

    single: bool  # one file, or one per page
    seen: list[shapes.Seen]  # the sizes that the tests saw
    figures: dict[str, list[str]]  # pictures of a page, as HTML

    def address(self, page: Page, anchor: str = "") -> str:
        """Where a page, or a place in it, is found."""
        if self.single:
            return f"#{anchor or anchor_of(page.name)}"
        return f"{page.file}#{anchor}" if anchor else page.file

    def href(self, target: Target) -> str | None:
        """Where a definition is found; None if it has no page."""
        page = next((p for p in pages() if p.name == target.module), None)
        if page is None:
            return None
        return self.address(page, f"{page.name}.{target.name}" if target.name else "")

    def find(self, module: str) -> prose.Find:
        """Where the names in the prose of a module are found."""

        def address(words: str) -> str | None:
            target = names.meant(words, module)
            return target and self.href(target)

        return address


def anchor_of(name: str) -> str:
    """The anchor at the top of a page."""
    return f"page-{name or 'title'}"


# ---- the frame --------------------------------------------------------------


def framed(
    title: str, body: str, links: Sequence[tuple[str, str]], inline: bool
) -> str:
    """A whole HTML document.

    Parameters
    ----------
    title, body : str
    links : list of (str, str)
        Words and addresses at the top and bottom.
    inline : bool
        Whether the style stands in the page itself.
    """
    style = (
        f"<style>{STYLE}</style>"
        if inline
        else ('<link rel="stylesheet" href="style.css">')
    )
    shown = "".join(f'<a href="{address}">{words}</a>' for words, address in links)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n{style}\n</head>\n<body>\n"
        f'<header><nav aria-label="top">{shown}</nav></header>\n<main>\n{body}</main>\n'
        f'<footer><nav aria-label="bottom">{shown}</nav></footer>\n</body>\n</html>\n'
    )


def heading(page: Page) -> str:
    """The title of a page."""
    name = page.name.rpartition(".")[2] or "npllama"
    number = f"{page.number}&ensp;" if page.number else ""
    part = f'<p class="part-of">{html.escape(page.part)}</p>' if page.part else ""
    return f'<h1 id="{anchor_of(page.name)}">{number}{name}</h1>{part}'


# ---- text beside code -------------------------------------------------------


def body(page: Page, book: Book) -> str:
    """A chapter: what it says, its pictures, text beside code, exercises."""
    source = page.path.read_text(encoding="utf-8")
    find = book.find(page.name)
    doc = ast.get_docstring(ast.parse(source)) or ""
    doc = re.sub(r"^Chapter \d+: (.)", lambda m: m[1].upper(), doc)
    if doc.partition("\n")[0].lower().rstrip(".") == page.name:
        doc = doc.partition("\n")[2]  # it repeats the heading
    if not page.name:  # the contents follow, with links
        doc = re.sub(r"^Part .*?(?=^Letters)", "", doc, flags=re.M | re.S)
    out = [heading(page), f'<div class="said">{prose.docstring(doc, find)}</div>']
    if page.path.name == "__init__.py" and page.name:
        papers = (page.path.parent / name for name in ("README.md", "TUTORIAL.md"))
        out += [paper(path, find) for path in papers if path.is_file()]
    out += book.figures.get(page.name, [])
    if page.path.name != "__init__.py":
        out += pieces(page, source, book)
        out.append(exercise_list(page))
    return "\n".join(out)


def paper(path: Path, find: prose.Find) -> str:
    """A Markdown file of a chapter as HTML."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?:)[^)#]*\)", "]()", text)  # to files
    text = re.sub(r"\[([^\]]*)\]\(\)", r"\1", text)
    shown = prose.markdown(text, find, links=True)
    shown = shown.replace("<table>", '<div class="wide" tabindex="0"><table>')
    shown = shown.replace("</table>", "</table></div>")
    return f'<div class="said">{shown}</div>'


def pieces(page: Page, source: str, book: Book) -> list[str]:
    """The definitions of a file, each with its docstring beside its code."""
    tree = ast.parse(source)
    lines = source.splitlines()
    links = listing.links_of(page.name, book.href)
    notes = shapes.by_line(page.name, book.seen, tree)
    body_ = tree.body[1:] if ast.get_docstring(tree) else tree.body
    last = tree.body[0].end_lineno or 0
    out, waiting = [], 0
    for node in body_:
        end = node.end_lineno or node.lineno
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            waiting = waiting or last + 1
            last = end
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        top = last + 1
        above = [(n, lines[n - 1]) for n in range(waiting or top, first)]
        out += _loose(above, links, notes, page, book)
        out.append(_piece(page, node, first, lines, links, notes, book))
        last, waiting = end, 0
    rest = [(n, lines[n - 1]) for n in range(waiting or last + 1, len(lines) + 1)]
    return out + _loose(rest, links, notes, page, book)


RULE = re.compile(r"#\s+-{3,} (.+?) -+\s*$")


def _loose(lines, links, notes, page: Page, book: Book) -> list[str]:
    """Lines between definitions: headings, constants, comments."""
    out, some = [], []
    for number, line in [*lines, (0, "#  ---- end ----")]:
        if not (rule := RULE.match(line)):
            some.append((number, line))
            continue
        while some and not some[0][1].strip():
            some.pop(0)
        while some and not some[-1][1].strip():
            some.pop()
        if some:
            anchors = _anchors(page, {n for n, _ in some})
            block = listing.code(some, links, notes)
            if all(re.match(r"from |import |    \w+,$|\)|$", line) for _, line in some):
                block = f"<details><summary>imports</summary>{block}</details>"
            out.append(f'<div class="piece"><div>{anchors}</div>{block}</div>')
        if number:
            out.append(f"<h2>{html.escape(rule[1])}</h2>")
        some = []
    return out


def _anchors(page: Page, numbers: set[int]) -> str:
    """Places of the names that some lines at the top of a module define."""
    found = [
        name
        for node in names.tree_of(page.name).body
        if node.lineno in numbers and not isinstance(node, (ast.Import, ast.ImportFrom))
        for name in names.defined(node)
    ]
    return "".join(
        f'<span id="{page.name}.{name}"></span>' for name in dict.fromkeys(found)
    )


def _piece(page: Page, node, first: int, lines, links, notes, book: Book) -> str:
    """One function or class: its docstring, and its code without it."""
    doc = ast.get_docstring(node) or ""
    said = node.body[0] if doc else None
    hidden = set(range(said.lineno, said.end_lineno + 1)) if said else set()
    end = node.end_lineno or node.lineno
    shown = [(n, lines[n - 1]) for n in range(first, end + 1) if n not in hidden]
    sizes = shapes.by_entry(page.name, book.seen, node)
    text = prose.docstring(doc, book.find(page.name), sizes)
    return (
        f'<section class="piece" id="{page.name}.{node.name}"><div>'
        f"<h3><code>{node.name}</code></h3>{text}</div>"
        f"{listing.code(shown, links, notes)}</section>"
    )


# ---- exercises --------------------------------------------------------------


def exercise_list(page: Page) -> str:
    """The laws that mutants of this file break, and the mutants."""
    laws = exercises.of_file(page.path.relative_to(PACKAGE).as_posix())
    if not laws:
        return ""
    out = [
        '<section class="exercises"><h2>Exercises</h2><p class="said">Each of these laws '
        "is a test.  Show that it holds; then open it, and say why each change of the "
        "code breaks it.</p>"
    ]
    for n, (law, mutants) in enumerate(laws.items(), 1):
        changes = "".join(
            f'<pre class="diff" tabindex="0"><del>{html.escape(m.old.strip(chr(10)))}</del>'
            f"\n<ins>{html.escape(m.new.strip(chr(10)) or '(nothing)')}</ins></pre>"
            for m in mutants
        )
        out.append(
            f'<details class="exercise"><summary>{page.number}.{n}&ensp;'
            f"{html.escape(law)}</summary>{changes}</details>"
        )
    return "".join(out) + "</section>"
