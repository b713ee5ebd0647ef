"""Which chapter has which picture.

A picture is computed from the package's own arrays when the book is made.  ``npllama
book --picture rope -o rope.svg`` draws one of them alone.
"""

from __future__ import annotations

import html
from collections.abc import Callable

from npllama.book import choices, costs, figures, tiling
from npllama.book.svg import Figure
from npllama.files.checkpoint import load
from npllama.weights import Model

# Name of a picture: its page, and what draws it.
PICTURES: dict[str, tuple[str, Callable[[Model], Figure]]] = {
    "rope": ("rope", figures.clocks),
    "cache": ("cache", figures.filling),
    "attention": ("attention", figures.head),
    "heads": ("attention", figures.sharing),
    "truncation": ("sampling.truncation", choices.cuts),
    "temperature": ("sampling.temperature", choices.heats),
    "beams": ("decoding.beam", choices.tree),
    "speculation": ("decoding.speculative", choices.rounds),
    "roofline": ("cost.roofline", costs.roofline),
    "error": ("golden.floor", costs.errors),
    "waste": ("serving.waste", costs.waste),
    "pages": ("serving.pages", costs.pages),
    "tiles": ("contexts.tiles", tiling.tiles),
}


def drawn(name: str, weights: str = "stories") -> Figure:
    """One picture.

    Raises
    ------
    ValueError
        If there is no such picture.
    """
    if name not in PICTURES:
        raise ValueError(f"no picture {name!r}; there are {', '.join(PICTURES)}")
    return PICTURES[name][1](load(weights))


def all_drawn(weights: str = "stories") -> dict[str, list[str]]:
    """All pictures as HTML, by page."""
    model = load(weights)
    found: dict[str, list[str]] = {}
    for name, (page, draw) in PICTURES.items():
        found.setdefault(page, []).append(shown(name, draw(model)))
    return found


def shown(name: str, figure: Figure) -> str:
    """A picture with its caption, and the command that draws it again."""
    again = f"npllama book --picture {name} -o {name}.svg"
    return (
        f'<figure id="picture-{name}">{figure.svg}<figcaption>'
        f"{html.escape(figure.caption)} <small>Draw it again: <code>{again}</code></small>"
        "</figcaption></figure>"
    )
