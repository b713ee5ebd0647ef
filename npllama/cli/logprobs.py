"""Log-probabilities in a terminal: a table of tokens, and the text in colours.

The table says what the model thought of each token (p, before temperature, penalties
and filters), with which probability it was drawn after them, how it stood among all
tokens, and which were likeliest.
"""

from __future__ import annotations

import math
import os
import sys

from npllama.cli.show import harmless
from npllama.cost.printed import aligned
from npllama.decoding.logprobs import TokenLogprob
from npllama.generation.generate import Generation
from npllama.text.tokenizer import StreamDecoder
from npllama.weights import Model

HEADS = ("token", "p", "log p", "drawn with", "rank", "the likeliest")
# Least probability and what it is shown as: plain, then yellow, magenta, white on red.
COLOURS = ((0.5, ""), (0.2, "\x1b[33m"), (0.05, "\x1b[35m"), (0.0, "\x1b[97;41m"))
PLAIN = "\x1b[0m"


def in_colours() -> bool:
    """Whether standard output is a terminal that wants colours (see no-color.org)."""
    dull = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not dull


def quoted(model: Model, token: int) -> str:
    """A token's text in quotes; its name if it has none, its id if it has neither."""
    if model.tokenizer is None:
        return str(token)
    text = model.tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")
    if not text:
        return model.tokenizer.piece(token) or str(token)
    return '"' + harmless(text.replace("\n", "\\n").replace("\t", "\\t")) + '"'


def row(model: Model, entry: TokenLogprob) -> tuple[str, ...]:
    """What the table says of one token."""
    others = (f"{quoted(model, token)} {math.exp(its):.3f}" for token, its in entry.top)
    p, log = f"{math.exp(entry.logprob):.4f}", f"{entry.logprob:.3f}"
    drawn = "" if entry.processed is None else f"{math.exp(entry.processed):.4f}"
    rank = str(entry.rank + 1)  # people count from 1
    return quoted(model, entry.token), p, log, drawn, rank, "  ".join(others)


def logprob_table(model: Model, text: Generation) -> str:
    """One line for each token of a text that has log-probabilities.

    Parameters
    ----------
    text : Generation
        Made with `logprobs` or `prompt_logprobs`.

    Returns
    -------
    str
        Lines under `HEADS`: those of the prompt, if they were asked for, then the new.
    """
    rows: list[tuple[str, ...]] = [HEADS]
    for token, entry in zip(text.prompt_tokens, text.prompt_logprobs or ()):
        # Nothing comes before the first token.
        rows.append(row(model, entry) if entry else (quoted(model, token), *5 * ("",)))
    rows += [row(model, entry) for entry in text.logprobs or ()]
    figures = aligned([cells[:-1] for cells in rows]).splitlines()
    lines = (f"{line}  {cells[-1]}" for line, cells in zip(figures, rows))
    return "\n".join(line.rstrip() for line in lines)


def coloured(model: Model, text: Generation) -> str:
    """The text of the new tokens, each in the colour of its probability."""
    if model.tokenizer is None or not text.logprobs:
        return harmless(text.text)
    decoder = StreamDecoder(model.tokenizer, continuing=True)
    left, shown = text.text, ""
    for entry in text.logprobs:
        # What a stop string cut off is not shown.
        part = decoder.push(entry.token)[: len(left)]
        left = left[len(part) :]
        code = next(c for least, c in COLOURS if math.exp(entry.logprob) >= least)
        shown += f"{code}{harmless(part)}{PLAIN}" if code and part else harmless(part)
    return shown + harmless(left)
