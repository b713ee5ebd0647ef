"""Code as HTML: coloured, and every name of the package a link to its definition."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, String, Token

from npllama.book.names import Target, uses

# The kinds of tokens that have a colour.
COLOURS = [
    (Comment, "c"),
    (Keyword, "k"),
    (String, "s"),
    (Number, "n"),
    (Name.Function, "d"),
    (Name.Class, "d"),
    (Name.Decorator, "d"),
]

Href = Callable[[Target], "str | None"]


def colour(kind) -> str:
    """The class of a kind of tokens; "" for plain text."""
    return next((name for group, name in COLOURS if kind in group), "")


def links_of(module: str, href: Href) -> dict[tuple[int, int], str]:
    """Where a link begins, as (line, column), and where it leads."""
    found = {}
    for line, begin, _, target in uses(module):
        if address := href(target):
            found[line, begin] = address
    return found


def code(
    lines: Sequence[tuple[int, str]],
    links: dict[tuple[int, int], str],
    notes: dict[int, str],
) -> str:
    """Some lines of a file as HTML.

    Parameters
    ----------
    lines : list of (int, str)
        Numbers and texts.
    links : dict
        As `links_of` makes it.
    notes : dict
        What is added, in smaller letters, at the end of a line.
    """
    text = "\n".join(line for _, line in lines)
    starts, at = [], 0
    for number, line in lines:
        starts.append((at, number, len(line)))
        at += len(line) + 1
    out, row = [], 0
    for index, kind, value in PythonLexer(stripnl=False).get_tokens_unprocessed(text):
        while row + 1 < len(starts) and starts[row + 1][0] <= index:
            row += 1
        first, number, _ = starts[row]
        shown = html.escape(value, quote=False)
        if kind is Token.Text.Whitespace and value.startswith("\n"):
            shown = _note(notes.get(number)) + shown
        if name := colour(kind):
            shown = f'<span class="{name}">{shown}</span>'
        if address := links.get((number, index - first)):
            shown = f'<a href="{html.escape(address)}">{shown}</a>'
        out.append(shown)
    last = _note(notes.get(lines[-1][0])) if lines else ""
    return f'<pre class="code" tabindex="0"><code>{"".join(out)}{last}</code></pre>'


def _note(text: str | None) -> str:
    return f' <span class="was">{html.escape(text)}</span>' if text else ""
