"""The page: one file, nothing fetched, that shows a generation from inside.

Its frame and the text stand in the HTML, so that they can be read without a program;
everything about a token is drawn by `page.js` from the data that the page carries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from npllama.book.style import COLOURS
from npllama.book.svg import disc, drawing, line, text

HERE = Path(__file__).parent
# What is inline runs; nothing is fetched, whatever a text may say.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:"
)


def page(data: Mapping[str, Any], server: str | None = None) -> str:
    """The page of a generation.

    Parameters
    ----------
    data : mapping
        As `told` makes it.
    server : str
        The address of an ``npllama serve``: a click on another candidate goes on there.
        Empty for the server that shows this page.
    """
    carried = json.dumps(dict(data) | {"server": server}, allow_nan=False)
    carried = carried.replace("<", "\\u003c")  # no end of the element within
    program = (HERE / "page.js").read_text(encoding="utf-8")
    scripts = (
        f'<script type="application/json" id="data">{carried}</script>\n'
        f"<script>{program}</script>\n"
    )
    title = f"npllama explains: {data['text'].strip():.40}"
    return framed(title, "".join(body(data)), scripts)


def framed(title: str, shown: str, scripts: str = "") -> str:
    """A whole document in the style of the page."""
    style = COLOURS + (HERE / "page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<main>\n{shown}</main>\n{scripts}</body>\n</html>\n"
    )


def body(data: Mapping[str, Any]) -> Sequence[str]:
    """What the page shows, from top to bottom."""
    parts = [
        "<h1>How a text came about</h1>\n",
        facts(data),
        section("text", "The text", TEXT, written(data)),
        '<div class="columns">\n<div>\n',
        section("choice", "What could come here", CHOICE, slot("stages"), slot("line")),
        section("said", "What each layer would have said", SAID, slot("layers")),
        "</div>\n<div>\n",
        section("seen", "What it looks at", SEEN if data["seen"] else UNSEEN,
                *([LOOKING] if data["seen"] else [])),
        section("cost", "What it cost", COST, slot("runs")),
        "</div>\n</div>\n",
    ]  # fmt: skip
    if data["levels"]:
        parts.append(section("tree", "The search", TREE, slot("beams"), tree(data)))
    if data["rounds"]:
        parts.append(section("rounds", "The draft's guesses", ROUNDS, slot("guesses")))
    return [*parts, GO]


TEXT = (
    "Each box is a token; ␣ is a space, ⏎ the end of a line. The bar below a new token is "
    "the probability that the model itself gave it. Choose a token, or go with the "
    "arrow keys; everything below is about the chosen one."
)
CHOICE = (
    "The model gives every token of its vocabulary a probability; then one step after "
    "the other changes the distribution. A row is a token, a column what a step has "
    "made of it; “cut” is where it was removed."
)
SEEN = (
    "Attention weights: a row is a position that looks, a column one that it sees; "
    "more ink is more, and each row adds up to 1. Weights are kept to 1/255. Choose a "
    "head (layers are rows, heads columns), then point at a square; the arrow keys go "
    "through both."
)
UNSEEN = "This way to compute attention has no weights of the whole text."
SAID = (
    "The logit lens: the residual stream after each layer, read as if it were the last "
    "one. The rank counts the tokens that this layer found likelier than the one that "
    "came. What early layers say is often noise."
)
COST = (
    "The products of the passes that this token took: a multiplication and an addition "
    "are two FLOPs; bytes are those of operands and results, moved once."
)
TREE = (
    "Every step ranks the extensions of all beams together, by their summed "
    "log-probability. Filled: goes on. Hollow and dashed: dropped. A ring: ended. "
    "The thick line leads to the text above."
)
ROUNDS = (
    "A draft guesses, and one pass of the model checks all guesses. ✓ kept, ✕ thrown "
    "away with all that follow, + the model’s own token, which every round adds."
)
LOOKING = """<div class="looking">
<div class="heads" id="heads" role="group" aria-label="heads"></div>
<p class="pick"><label>layer <select id="layer"></select></label>
<label>head <select id="head"></select></label></p>
<div class="matrix"><canvas id="matrix" tabindex="0" role="application"
aria-label="attention matrix; arrow keys move, the sentence below tells the weight"
aria-describedby="weight"></canvas><div id="spot" hidden></div></div>
<p id="weight" aria-live="polite"></p>
<div id="most"></div>
</div>
"""


def section(name: str, title: str, says: str, *parts: str) -> str:
    """A part of the page, with a line on how to read it."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{title}</h2>\n<p class="says">{says}</p>\n'
        f"{''.join(parts)}</section>\n"
    )


def slot(name: str) -> str:
    """A place that the program fills."""
    return f'<div id="{name}"></div>\n'


def facts(data: Mapping[str, Any]) -> str:
    """What was asked, and the command that repeats it."""
    m = data["model"]
    sizes = f"L {m['L']}, H {m['H']}, K {m['K']}, D {m['D']}, V {m['V']}, {m['dtype']}"
    new, score = len(data["steps"]), data["score"]
    ranked = "" if score is None else f" Score: {score:.4f}."
    again = f"Its first {len(data['first'])} tokens were chosen by a click."
    if not data["first"]:
        command = escape(data["command"])
        again = f"The same text again:</p>\n<pre><code>{command}</code></pre>\n<p>"
    return (
        f"<p>The model <b>{escape(m['name'])}</b> ({sizes}) wrote {new} tokens after "
        f"{data['begin']} of the prompt, and ended by “{data['reason']}”.{ranked} "
        f"{again}</p>\n"
    )


def written(data: Mapping[str, Any]) -> str:
    """The tokens: those of the prompt to read, the new ones to choose."""
    names, begin = data["names"], data["begin"]
    parts = [
        f'<span class="given">{escape(names[token])}</span>'
        for token in data["tokens"][:begin]
    ]
    for i, step in enumerate(data["steps"]):
        tokens, first = step["tokens"], step["stages"][0]["probs"]
        token = step["token"]
        p = first[tokens.index(token)] if token in tokens else 0
        parts.append(
            f'<button type="button" data-step="{i}" style="--p:{100 * p:.1f}%" '
            f'title="{p:.1%}">{escape(names[token])}</button>'
        )
    shown = "\n".join(parts)
    return f'<div class="tokens" id="tokens" role="group" aria-label="tokens">{shown}</div>\n'


GO = """<nav class="go" aria-label="from token to token"><button type="button" id="back">← before</button>
<b id="where" aria-live="polite"></b>
<button type="button" id="on">next →</button></nav>
"""


#  ---- the tree of a search -----------------------------------------------------

WIDE, HIGH, LEFT, TOP = 120, 34, 16, 30


def tree(data: Mapping[str, Any]) -> str:
    """All candidates of a search, a column for each step, and the way to the text."""
    levels, way = data["levels"], data["way"]
    most = max(len(ranked(level)) for level in levels)
    spots = {0: (LEFT, TOP + HIGH * (most - 1) / 2)}  # of each row that went on
    spots |= {row: spots[0] for row in range(len(levels[0]["candidates"]))}
    parts = [disc(*spots[0], 5)]
    for number, level in enumerate(levels):
        won = way[number : number + 2]  # the row before, and after if it went on
        token = data["steps"][number]["token"] if number < len(way) else None
        parts.append(text(LEFT + (number + 1) * WIDE, 14, str(number + 1), "middle"))
        before, spots = spots, {}
        for place, (parent, one, score) in enumerate(ranked(level)):
            at = LEFT + (number + 1) * WIDE, TOP + place * HIGH
            fate = fate_of(level, parent, one)
            best = bool(won) and parent == won[0] and one == token
            parts += branch(before.get(parent, at), at, fate, best,
                            data["names"][one], score)  # fmt: skip
            for row in rows_of(level, parent, one):
                spots[row] = at
    size = LEFT + (len(levels) + 1) * WIDE, TOP + most * HIGH
    drawn = drawing(*size, parts, f"The tree of a search of {len(levels)} steps")
    sized = drawn.replace("<svg ", f'<svg width="{size[0]}" height="{size[1]:g}" ', 1)
    return f'<div class="scroll" id="branches" tabindex="0">{sized}</div>\n'


def ranked(level: Mapping[str, Any]) -> list[list]:
    """The candidates of a step and what was forced beside them, best first."""
    found = {(p, t): score for p, t, score in level["candidates"]}
    found |= {(p, t): score for p, t, score in level["going"] + level["ended"]}
    beams = [[*key, score] for key, score in found.items()]
    return sorted(beams, key=lambda beam: -beam[2])


def rows_of(level: Mapping[str, Any], parent: int, token: int) -> list[int]:
    """The rows in which a candidate goes on."""
    going = enumerate(level["going"])
    return [row for row, (p, t, _) in going if (p, t) == (parent, token)]


def fate_of(level: Mapping[str, Any], parent: int, token: int) -> str:
    """What became of a candidate."""
    if rows_of(level, parent, token):
        return "goes on"
    ended = any((p, t) == (parent, token) for p, t, _ in level["ended"])
    return "ended" if ended else "dropped"


def branch(
    begin: tuple[float, float],
    end: tuple[float, float],
    fate: str,
    best: bool,
    name: str,
    score: float,
) -> list[str]:
    """One candidate: a line from its parent, a mark, its token and its score."""
    (x0, y0), (x, y) = begin, end
    tip = f"{name}: {score:.4f}, {fate}"
    words = text(x - 6, y - 7, f"{name} {score:.2f}", "end")
    if fate == "dropped" and not best:
        edge = line(x0 + 5, y0, x - 5, y, "soft", stroke_dasharray="3 3")
        return [edge, disc(x, y, 4, "none", tip, stroke="var(--soft)"), words]
    wide = {"stroke_width": "3"} if best else {}
    edge = line(x0 + 5, y0, x - 5, y, "link", **wide)
    fill = "none" if fate == "ended" else "link"
    ring = {"stroke": "var(--link)", "stroke_width": "2"}
    return [edge, disc(x, y, 5, fill, tip, **ring), words]
