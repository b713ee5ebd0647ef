"""Docstrings and READMEs as HTML: Markdown, mathematics, parameters."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from functools import lru_cache

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

# From the words between backticks to an address, or None.
Find = Callable[[str], "str | None"]

# The parts of a docstring in the form of numpydoc; the first ones list entries.
ENTRIES = ("Parameters", "Returns", "Yields", "Raises", "Attributes")
PARTS = (*ENTRIES, "Writes", "Warns", "References", "Notes", "See Also", "Examples")


def mathematics(latex: str, options: dict) -> str:
    """A formula as MathML."""
    shown = convert(latex, display="block" if options["display_mode"] else "inline")
    return shown.replace(r"\_", "_")  # which it leaves as it is inside \mathrm


@lru_cache
def _markdown(links: bool) -> MarkdownIt:
    """A parser of CommonMark, tables, and mathematics between dollars."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    if not links:  # [a](b) is code in a docstring
        parser.disable(["link", "image"])
    return parser.use(dollarmath_plugin, renderer=mathematics, double_inline=True)


def markdown(text: str, find: Find, base: int = 1, links: bool = False) -> str:
    """Markdown as HTML; what stands in single backticks becomes a link if it is known.

    Parameters
    ----------
    text : str
    find : function
        The address of a name.
    base : int
        How far down headings are moved: 1 makes ``#`` an ``<h2>``.
    links : bool
        Whether ``[words](address)`` is a link.
    """
    parser = _markdown(links)
    tokens = parser.parse(with_tables(text))
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(6, int(token.tag[1]) + base)}"
        if token.type in ("code_block", "fence"):
            token.type, token.content = "html_block", verbatim(token.content, find)
        for child in token.children or []:
            if child.type == "code_inline" and child.markup == "`":
                child.type, child.content = "html_inline", named(child.content, find)
    return parser.renderer.render(tokens, parser.options, {})


def named(words: str, find: Find) -> str:
    """A name as code, and as a link if it is known."""
    address = find(words)
    shown = f"<code>{html.escape(words, quote=False)}</code>"
    return f'<a href="{html.escape(address)}">{shown}</a>' if address else shown


def verbatim(text: str, find: Find) -> str:
    """A block whose lines are kept; names in backticks are links, columns stay."""
    shown = html.escape(text.rstrip("\n"), quote=False)

    def link(match: re.Match) -> str:
        address = find(html.unescape(match[1]))
        if not address:
            return match[0]
        return f'<a href="{html.escape(address)}">{match[1]}</a>  '

    shown = re.sub(r"(?<!`)`([\w.]+)`(?!`)", link, shown)
    shown = re.sub(r"``([^`\n]+)``", r"\1    ", shown)
    return f'<pre tabindex="0">{shown}</pre>\n'


def with_tables(text: str) -> str:
    """Markdown in which paragraphs that are tables of columns keep their lines."""
    shown, fenced = [], False
    for block in re.split(r"(\n\s*\n)", text):
        plain = not fenced and "```" not in block
        shown.append(_kept(block) if plain and _is_table(block) else block)
        fenced ^= block.count("```") % 2 == 1
    return "".join(shown)


def _is_table(block: str) -> bool:
    lines = block.splitlines()
    columns = sum(bool(re.search(r"\S {3,}\S", line)) for line in lines)
    written = block.startswith(("    ", "|"))  # as code, or as a table of Markdown
    return len(lines) > 1 and not written and 2 * columns >= len(lines)


def _kept(block: str) -> str:
    heading = re.match(r"(.+\n[-=]{3,}\n)", block)
    head, rest = (heading[1], block[heading.end() :]) if heading else ("", block)
    return head + "\n" + "\n".join("    " + line for line in rest.splitlines())


def divided(doc: str) -> tuple[str, list[tuple[str, str]]]:
    """A docstring's text, and its parts as (title, content)."""
    titles = "|".join(map(re.escape, PARTS))
    pieces = re.split(rf"^({titles})\n-{{3,}}\n", doc, flags=re.M)
    return pieces[0], list(zip(pieces[1::2], pieces[2::2]))


def docstring(doc: str, find: Find, notes: dict[str, str] | None = None) -> str:
    """A docstring in the form of numpydoc as HTML.

    Parameters
    ----------
    doc : str
    find : function
        The address of a name.
    notes : dict or None
        What is added to an entry of Parameters or Returns, by its name.
    """
    text, parts = divided(doc)
    out = [markdown(text, find, 2)]
    for title, content in parts:
        inner = markdown(content, find, 2)
        if title in ENTRIES:
            inner = entries(content, find, notes or {})
        out.append(f'<div class="part"><h4>{title}</h4>{inner}</div>')
    return "".join(out)


def entries(content: str, find: Find, notes: dict[str, str]) -> str:
    """``name : type`` and what is said of it, as a list."""
    rows = []
    for entry in re.split(r"^(?=\S)", content.strip("\n"), flags=re.M):
        head, _, said = entry.partition("\n")
        if not head.strip():
            continue
        name, colon, kind = head.partition(" : ")
        note = notes.get(name if colon else "result", "")
        was = f' <span class="was">{html.escape(note)}</span>' if note else ""
        shown = f"<code>{html.escape(name, quote=False)}</code>"
        shown += f" : {html.escape(kind, quote=False)}" if colon else ""
        said = re.sub(r"^    ", "", said, flags=re.M)
        rows.append(f"<dt>{shown}{was}</dt><dd>{markdown(said, find, 3)}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def terms(doc: str) -> list[str]:
    """The terms that a text introduces, which stand in *italics*."""
    prose = re.sub(
        r"\$\$.*?\$\$|\$[^$\n]+\$|`+[^`]+`+", " ", divided(doc)[0], flags=re.S
    )
    return re.findall(r"(?<![\w*(])\*([A-Za-z][\w\s’'/-]{1,40})\*(?![\w*])", prose)
