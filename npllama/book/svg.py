"""Shapes and axes of a picture, as SVG.

A picture takes its colours from the page, so that it is right in light and in dark; it
says nothing by colour alone.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

# What a picture needs when it stands alone.
ALONE = """svg { --ink: #1c2129; --soft: #555d6b; --line: #d8d4c9; --link: #0b5394;
  --mark: #b9d3c3; --hot: #b5430b; background: #fdfcf9; }
text { fill: var(--ink); font: 12px system-ui, sans-serif; }"""


class Figure(NamedTuple):
    """A picture, and how to read it."""

    svg: str
    caption: str


def drawing(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """A picture of a size; `title` is what is read aloud in its place."""
    said = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{said}">{"".join(parts)}</svg>'
    )


def alone(svg: str) -> str:
    """A picture as a file of its own."""
    begin = svg.index(">") + 1
    return f"{svg[:begin]}<style>{ALONE}</style>{svg[begin:]}\n"


def text(x: float, y: float, words: str, anchor: str = "start", **more: str) -> str:
    """Words; `anchor` is start, middle or end."""
    shown = html.escape(words, quote=False).replace(" ", "&#160;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{_more(more)}>{shown}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour="line", **more) -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="var(--{colour})"{_more(more)}/>'
    )


def box(x: float, y: float, w: float, h: float, fill="mark", tip="", **more) -> str:
    """A rectangle, with words that show when it is pointed at."""
    inner = f"<title>{html.escape(tip)}</title>" if tip else ""
    colour = fill if fill == "none" else f"var(--{fill})"
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
        f'fill="{colour}"{_more(more)}>{inner}</rect>'
    )


def disc(x: float, y: float, r: float, fill="link", tip="", **more) -> str:
    """A filled circle."""
    inner = f"<title>{html.escape(tip)}</title>" if tip else ""
    colour = fill if fill == "none" else f"var(--{fill})"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{colour}"'
        f"{_more(more)}>{inner}</circle>"
    )


def path(points: Sequence[tuple[float, float]], colour="link", **more) -> str:
    """A line through points."""
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{shown}" fill="none" stroke="var(--{colour})"{_more(more)}/>'


def _more(attributes: dict) -> str:
    """Attributes with ``_`` for ``-``."""
    return "".join(f' {k.replace("_", "-")}="{v}"' for k, v in attributes.items())
