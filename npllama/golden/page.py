"""The verdict on a candidate as a page: one file, nothing fetched from elsewhere.

The plot shows the tensors of a step from left to right, in the order of computation,
and their errors upwards on a logarithmic scale.  The band reaches from the noise floor
up to the allowed multiple of it.  A point above the band is a fault; look for the
cause at the first of them, which is marked with its name.  An error of exactly 0 has no
logarithm: it is a hollow dot on the lower edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape

import numpy as np

from npllama.golden.compare import Row
from npllama.golden.floor import split_name
from npllama.golden.report import (
    HEADER,
    Report,
    cells_of,
    certainty,
    ratio,
    state,
    summary,
)
from npllama.golden.trace import Trace
from npllama.text.tokenizer import Tokenizer

STYLE = """
:root { color-scheme: light dark; --ink: #1d2230; --soft: #5b6478; --paper: #fbfaf7;
  --line: #d9d6cd; --band: #b9d3c3; --in: #2b6cb0; --out: #c2410c; --card: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #a3a9b8;
  --paper: #16181d; --line: #363a44; --band: #2c4a3d; --in: #7fb2ec; --out: #ff9a62;
  --card: #1e2128; } }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
code { overflow-wrap: anywhere; }
code, td, th, svg text { font-family: ui-monospace, Menlo, Consolas, monospace; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  border-left: 5px solid var(--in); padding: .8rem 1.1rem; }
.outside.card { border-left-color: var(--out); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
tr.outside td { color: var(--out); font-weight: 600; } .soft { color: var(--soft); }
svg { width: 100%; min-width: 40rem; height: auto; } svg text { fill: var(--soft);
  font-size: 11px; } .grid { stroke: var(--line); } .band { fill: var(--band); }
.within-mark { fill: var(--in); } .outside-mark { fill: var(--out); }
.exact-mark { fill: none; stroke: var(--in); } .first { stroke: var(--out); }
svg text.first { fill: var(--out); stroke: none; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem;
  font-size: .85rem; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; margin: .6rem 0; }
"""

WIDTH, HEIGHT = 960, 340
LEFT, RIGHT, TOP, BOTTOM = 84, 12, 14, 44
# Token ids that the page shows.
SHOWN_IDS = 32


class Scale:
    """Maps tensor number and error to a point of the plot.

    Parameters
    ----------
    rows : list of Row
        All with measures.
    factor : float
        Number of floors allowed.
    """

    def __init__(self, rows: list[Row], factor: float):
        errors = [row.measures.error for row in rows if row.measures]
        limits = [row.floor * factor for row in rows if row.floor]
        seen = [e for e in errors + limits if 0 < e < math.inf] or [1e-7, 1.0]
        self.low = math.floor(math.log10(min(seen)) - 0.5)
        self.high = max(math.ceil(math.log10(max(seen)) + 0.1), self.low + 1)
        self.count = len(rows)

    def x(self, i: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / self.count

    def y(self, error: float) -> float:
        """Height of an error; one of zero lies on the lower edge."""
        power = math.log10(error) if 0 < error < math.inf else self.low
        power = self.high if error == math.inf else max(power, self.low)
        share = (power - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def grid(scale: Scale) -> Iterator[str]:
    """A line and a label per power of ten."""
    step = max(1, (scale.high - scale.low) // 8)
    for power in range(scale.low, scale.high + 1, step):
        y = scale.y(10.0**power)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>'
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield (
        f'<text x="16" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle})">relative error</text>'
    )


def places(scale: Scale, rows: list[Row]) -> Iterator[str]:
    """Labels where blocks begin, as many as there is room for."""
    starts: dict[str, int] = {}
    for i, row in enumerate(rows):
        words = split_name(row.name)[1].split(".")
        starts.setdefault(words[2] if words[:2] == ["model", "layers"] else "", i)
    blocks = [(name, i) for name, i in starts.items() if name]
    for name, i in blocks[:: max(1, len(blocks) // 24)]:
        x, bottom = scale.x(i - 0.5), HEIGHT - BOTTOM
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<text x="{x + 3:.1f}" y="{bottom + 16}">{escape(name)}</text>'
    yield (
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">'
        "block, in the order of execution</text>"
    )


def band(scale: Scale, rows: list[Row], factor: float) -> str:
    """From the floor to its limit, as one area."""
    known = [(i, row.floor) for i, row in enumerate(rows) if row.floor is not None]
    above = [f"{scale.x(i):.1f},{scale.y(floor * factor):.1f}" for i, floor in known]
    below = [f"{scale.x(i):.1f},{scale.y(floor):.1f}" for i, floor in reversed(known)]
    return f'<polygon class="band" points="{" ".join(above + below)}"/>'


def marks(scale: Scale, rows: list[Row]) -> Iterator[str]:
    """A dot per tensor within, a triangle per tensor outside; names on hovering."""
    for i, row in enumerate(rows):
        if row.measures is None:
            continue
        x, y = scale.x(i), scale.y(row.measures.error)
        title = f"<title>{escape(row.name)}: {escape(state(row))}</title>"
        if row.verdict == "outside":
            points = (
                f"{x:.1f},{y - 6:.1f} {x - 5:.1f},{y + 4:.1f} {x + 5:.1f},{y + 4:.1f}"
            )
            yield f'<polygon class="outside-mark" points="{points}">{title}</polygon>'
        else:
            mark = "within-mark" if row.measures.error else "exact-mark"
            yield f'<circle class="{mark}" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>'


def flag(scale: Scale, rows: list[Row], first: Row | None) -> Iterator[str]:
    """A line through the first tensor that is wrong, and its name."""
    for i, row in enumerate(rows):
        if row is first:
            x, left = scale.x(i), i < len(rows) / 2
            yield f'<line class="first" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            yield (
                f'<text class="first" x="{x + (6 if left else -6):.1f}" y="{TOP + 10}" '
                f'text-anchor="{"start" if left else "end"}">first outside: '
                f"{escape(split_name(row.name)[1])}</text>"
            )


def plot(step: str, rows: list[Row], factor: float, first: Row | None = None) -> str:
    """Errors of one step, as an SVG."""
    rows = [row for row in rows if row.measures is not None]
    if not rows:
        return "<p>No tensor of this step has measures.</p>"
    scale = Scale(rows, factor)
    outside = sum(row.verdict == "outside" for row in rows)
    label = (
        f"Relative error of {len(rows)} tensors of {step or 'the cache'} on a "
        f"logarithmic scale, with the noise floor as a band; {outside} lie above it."
    )
    shapes = [
        band(scale, rows, factor),
        *grid(scale),
        *places(scale, rows),
        *marks(scale, rows),
        *flag(scale, rows, first),
    ]
    return (
        f'<div class="scroll" tabindex="0"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(shapes)}</svg></div>'
    )


def plots(report: Report) -> Iterator[str]:
    """A plot per step; that of the first fault is open."""
    steps: dict[str, list[Row]] = {}
    for row in report.comparison.rows:
        if row.verdict != "missing":
            steps.setdefault(split_name(row.name)[0], []).append(row)
    first = report.comparison.first
    shown = split_name(first.name)[0] if first else next(iter(steps))
    for step, rows in steps.items():
        state = " open" if step == shown else ""
        drawn = plot(step, rows, report.comparison.factor, first)
        yield f"<details{state}><summary>{escape(step or 'cache')}</summary>{drawn}</details>"


def outcome(report: Report) -> str:
    """The verdict in one word."""
    return "PASS" if report.within else "FAIL"


def verdict(report: Report) -> Iterator[str]:
    """What to do next."""
    first = report.comparison.first
    yield f'<div class="card {"within" if first is None else "outside"}">'
    yield f"<p><strong>{outcome(report)}: {escape(summary(report))}.</strong></p>"
    if first is not None:
        yield f"<p>First outside: <code>{escape(first.name)}</code>, {escape(first.note)}.</p>"
        if report.sources:
            items = "".join(
                f"<li><code>{escape(row.name)}</code>: {escape(state(row))}</li>"
                for row in report.sources
            )
            yield f"<p>Made from:</p><ul>{items}</ul>"
        finding = report.finding
        text = f"{finding.text} ({certainty(finding)})" if finding else None
        yield f"<p>Diagnosis: {escape(text or 'cause unknown: no known fault explains it alone')}.</p>"
    for remark in report.remarks:
        yield f'<p class="soft">Note: {escape(remark)}.</p>'
    yield "</div>"


def table(heads: Iterable[str], lines: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Lines of cells, each line with its class, under a line of heads."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(
        f'<tr class="{kind}">{"".join(f"<td>{escape(text)}</td>" for text in cells)}</tr>'
        for kind, cells in lines
    )
    # With a tabindex the arrow keys scroll it, too.
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def measures(report: Report) -> Iterator[str]:
    """The table of the tensors that both traces have, and that of the logits."""
    rows = report.comparison.rows
    present = [row for row in rows if row.verdict != "missing"]
    yield table(("tensor", *HEADER, ""), map(line_of, present))
    if len(present) < len(rows):
        yield (
            f'<p class="soft">The candidate lacks {len(rows) - len(present)} of the '
            f"golden trace's {len(rows)} tensors.</p>"
        )
    if logits := [row for row in rows if row.logits]:
        fields = logits[0].logits._asdict()
        yield "<h2>Logits</h2>" + table(
            ("tensor", *(name.replace("_", " ") for name in fields)),
            (("", [r.name, *(f"{x:.4g}" for x in r.logits)]) for r in logits),
        )


def line_of(row: Row) -> tuple[str, list[str]]:
    """Class and cells of a tensor's line."""
    cells = cells_of(row) or [""] * len(HEADER)
    plain = ratio(row) is not None and row.verdict == "within"
    note = row.verdict if plain or not row.note else row.note
    return row.verdict, [row.name, *cells, note]


def facts_of(
    golden: Trace, candidate: Trace, tokenizer: Tokenizer | None = None
) -> dict[str, str]:
    """What was compared, in words: model, text, programs and their versions.

    The text is told only if a tokenizer can read its tokens, and if it is one row.
    """
    config = golden.meta.get("config", {})
    sizes = ("num_hidden_layers", "hidden_size", "vocab_size")
    tokens = np.atleast_2d(golden["tokens"]) if "tokens" in golden else np.zeros((0, 0))
    ids, one_row = tokens.ravel().tolist(), len(tokens) == 1
    facts = {
        "model": ", ".join(f"{k} {config[k]}" for k in sizes if k in config),
        "weights, SHA-256": golden.meta.get("weights_sha256"),
        "text": tokenizer.decode(ids) if tokenizer and one_row else "",
        "tokens": " ".join(map(str, ids[:SHOWN_IDS])) + " ..." * (len(ids) > SHOWN_IDS),
        "golden": made_by(golden),
        "candidate": made_by(candidate),
    }
    return {name: f"{text:.200}" for name, text in facts.items() if text}


def made_by(trace: Trace) -> str:
    """Program, dtype and versions of a trace, as far as it says."""
    said = [str(trace.meta[key]) for key in ("producer", "dtype") if key in trace.meta]
    versions = trace.meta.get("versions")
    if isinstance(versions, dict):
        said += [f"{name} {number}" for name, number in versions.items()]
    return ", ".join(said)


def page(report: Report, title: str, facts: Mapping[str, str] | None = None) -> str:
    """The report as HTML.

    Parameters
    ----------
    report : Report
    title : str
        The names of the two traces.
    facts : mapping of str to str
        What was compared, as `facts_of` tells it.
    """
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in (facts or {}).items()
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        *verdict(report),
        f"<dl>{lines}</dl>" if lines else "",
        "<h2>Error along the model</h2>",
        '<p class="soft">The band reaches from the noise floor to the limit.  Dots are '
        "within, hollow dots exact, triangles outside.</p>",
        *plots(report),
        "<h2>All tensors</h2>",
        *measures(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{outcome(report)}: {escape(title)}</title><style>{STYLE}</style></head>\n"
        "<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
