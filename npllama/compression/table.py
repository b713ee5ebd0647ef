r"""Bits against quality, bytes and speed: one model under many settings.

A *setting* is written as a word: the method, the bits, the group after a ``g`` (without
it, a scale per row), and what else is asked for after hyphens:

    rtn8               to the nearest, 8 bits, a scale per row
    gptq4g64-act       GPTQ, 4 bits, groups of 64, act-order
    rtn4g64-nf4        the points of NF4
    rtn4-asym-mse      an asymmetric grid, clipped by GPTQ's exponent
    awq4g64            AWQ, and then to the nearest
    gptq4g64-static    GPTQ, all scales found before any weight moves
    gptq4-float        GPTQ, fitted to inputs from the model in floats alone
    ant4g64, olive4    values of their own

Every row of the table tells bits per weight (scales, zero points and the order of
act-order included; codes of 3 bits lie in half a byte, and so take 4), the bytes of all
matrices, the three measures of `quality` on texts that no setting was fitted to, and
tokens per second: decoding one text, and reading a prompt.

The shipped model, fitted to 32 stories of its grammar, and judged on others:

    setting         bits    MB       KL  perplexity  agreement
    float32        32.00   7.9        0       1.295    100.00%
    rtn8            8.07   2.0  1.4e-06       1.295     99.73%
    rtn4            4.07   1.0  3.9e-04       1.295     95.31%
    gptq4           4.07   1.0  1.4e-04       1.293     97.20%
    gptq4-act       4.07   1.0  1.1e-04       1.295     98.01%
    rtn4g64         4.25   1.0  2.5e-04       1.296     95.22%
    rtn4g64-nf4     4.25   1.0  1.3e-04       1.295     97.47%
    gptq4g64        4.25   1.0  1.2e-04       1.294     97.47%
    gptq4g64-act    4.39   1.1  7.8e-05       1.296     98.56%
    rtn3g64         4.25   1.0  2.9e-03       1.297     95.94%
    gptq3g64        4.25   1.0  8.5e-04       1.299     95.76%

(``npllama bits`` also tries gptq3g64-act, which was not part of this run.)

SmolLM2-135M-Instruct, fitted to 8 rows of 256 tokens of Python's language reference and
judged on 4 others:

    setting         bits     MB       KL  perplexity  agreement
    float32        32.00  424.7        0       15.56    100.00%
    rtn8            8.02  106.5  3.5e-03       15.59     96.92%
    rtn4            4.02   53.4  8.1e-01       30.12     58.95%
    rtn4g64         4.25   56.4  4.6e-01       22.27     66.24%
    rtn4g64-nf4     4.25   56.4  2.7e-01       20.81     75.15%
    gptq4g64        4.25   56.4  2.5e-01       19.68     74.98%
    gptq4g64-act    4.30   57.0  1.7e-01       17.61     80.89%

On both models, divergence gives the expected order: GPTQ beats rounding to the nearest,
small groups beat large ones, act-order beats none.  One exception: on the shipped
model, with an asymmetric grid and a scale per row, other stories reversed act-order and
none.  On the shipped model perplexity says nothing: it is nearly the same for all
settings, and for some lower than in floats.  There 4 bits cost little; SmolLM2 shows
that this need not be so.  But its weights come from a file that had rounded them to 4
bits before, on other grids; a model that was never rounded may lose less.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllama.cache import new_cache
from npllama.compression.calibrate import MATRICES
from npllama.compression.gptq import Recipe
from npllama.compression.grid import GPTQ_EXPONENT
from npllama.compression.quality import Judge, Quality
from npllama.compression.quantize import METHODS, FinishedBlocks, Plan, check, quantised
from npllama.cost.plot import ending_of
from npllama.files.checkpoint import load
from npllama.files.whole import new_file
from npllama.golden.streamed import StreamedModel
from npllama.model import forward
from npllama.weights import Model

SETTINGS = (
    "rtn8 rtn4 gptq4 gptq4-act rtn4g64 rtn4g64-nf4 gptq4g64 gptq4g64-act "
    "rtn3g64 gptq3g64 gptq3g64-act"
).split()
FLOATS = "float32"
MORE = ("act", "asym", "nf4", "mse", "static", "float")
PROMPT, STEPS = 64, 16  # tokens of the prompt that is timed, and of the decoding


class Row(NamedTuple):
    """What a setting came to."""

    setting: str
    bits: float  # per weight of the matrices
    bytes: int  # of the matrices
    quality: Quality
    decode: float  # tokens per second
    prompt: float  # tokens per second


def plan_of(setting: str) -> Plan:
    """A setting as a plan.

    Raises
    ------
    ValueError
        If it is none, or of a method that does not exist or drops a part of it.

    >>> plan_of("gptq4g64-act").recipe
    Recipe(bits=4, kind='symmetric', group=64, exponent=None, act_order=True, static_groups=False, damping=0.01)
    """
    found = re.fullmatch(r"([a-z]+)([2-8])(?:g([1-9]\d*))?((?:-[a-z0-9]+)*)", setting)
    more = set(found[4].split("-")[1:]) if found else set()
    if not found or found[1] not in METHODS or not more <= set(MORE):
        raise ValueError(
            f"{setting!r} is no setting: one of {', '.join(METHODS)}, the bits, "
            f"perhaps g and a group, and perhaps -{', -'.join(MORE)}; as gptq4g64-act"
        )
    if "nf4" in more and found[2] != "4":
        raise ValueError(f"{setting!r}: nf4 has 4 bits")
    refuse_dropped(setting, found[1], more)
    kind = "nf4" if "nf4" in more else "asymmetric" if "asym" in more else "symmetric"
    recipe = Recipe(
        int(found[2]),
        kind,
        int(found[3]) if found[3] else "channel",
        GPTQ_EXPONENT if "mse" in more else None,
        "act" in more,
        "static" in more,
    )
    plan = Plan(found[1], recipe, float_inputs="float" in more)
    try:
        check(plan)
    except ValueError as error:
        raise ValueError(f"{setting!r}: {error}") from None
    return plan


def refuse_dropped(setting: str, method: str, more: Set[str]) -> None:
    """Raise ValueError if the method would take no notice of a part of the setting."""
    if {"nf4", "asym"} <= more:
        raise ValueError(f"{setting!r}: nf4 is a grid of its own, and not asymmetric")
    for word in ("act", "static"):
        if word in more and method != "gptq":
            raise ValueError(f"{setting!r}: {word} is for gptq")
    fitted = [name for name, one in METHODS.items() if one.needs_inputs]
    if "float" in more and method not in fitted:
        known = ", ".join(fitted)
        raise ValueError(f"{setting!r}: float is for methods that need texts: {known}")


#  ---- measuring ---------------------------------------------------------------


def kept_in(model: Model) -> tuple[int, int]:
    """Bytes and weights of all matrices of the blocks."""
    weights = [getattr(layer, word) for layer in model.layers for word in MATRICES]
    kept = [w.nbytes if isinstance(w, np.ndarray) else w.kept[1] for w in weights]
    return sum(kept), sum(math.prod(w.shape) for w in weights)


def logits_of(model: Model, row: np.ndarray) -> np.ndarray:
    """Logits of a text, (1, T) to (1, T, V)."""
    cache = new_cache(model.config, 1, row.shape[1], model.embed.dtype.name)
    return forward(model, row, cache)


def speeds(model: Model) -> tuple[float, float]:
    """Tokens per second of decoding a text, and of reading a prompt.

    The median of the steps, and the best of three prompts.
    """
    V = model.config.vocab_size
    tokens = np.random.default_rng(0).integers(0, V, (1, PROMPT))  # (1, T)
    prompts, steps = [], []
    for _ in range(3):
        cache = new_cache(model.config, 1, PROMPT + STEPS, model.embed.dtype.name)
        begin = time.perf_counter()
        forward(model, tokens, cache, last=True)
        prompts.append(time.perf_counter() - begin)
    for _ in range(STEPS):
        begin = time.perf_counter()
        forward(model, tokens[:, :1], cache, last=True)
        steps.append(time.perf_counter() - begin)
    return 1 / float(np.median(steps)), PROMPT / min(prompts)


def row_of(
    setting: str,
    model: Model,
    exact: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
) -> Row:
    """Judge and time a model."""
    judge = Judge()
    for row, logits in zip(held_out, exact):
        judge.add(logits, logits_of(model, row), row)
    bytes_, weights = kept_in(model)
    return Row(setting, 8 * bytes_ / weights, bytes_, judge.verdict(), *speeds(model))


def rows(
    path: Path,
    settings: Sequence[str],
    texts: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
) -> Iterator[Row]:
    """Round a model by each setting, judge it and time it; in floats first.

    Parameters
    ----------
    path : path
        Of an ``.npz`` in floats.
    settings : sequence of str
    texts, held_out : sequences of (1, T) int64
        To fit to, and to judge by.
    """
    plans = {setting: plan_of(setting) for setting in settings}
    whole, streamed = load(path), StreamedModel(path, FLOATS)
    exact = [logits_of(whole, row) for row in held_out]
    yield row_of(FLOATS, whole, exact, held_out)
    for setting, plan in plans.items():
        with tempfile.TemporaryDirectory() as folder:
            kept = FinishedBlocks(Path(folder), setting)
            fit = texts if METHODS[plan.method].needs_inputs else []
            for _ in quantised(streamed, fit, [], plan, kept):
                pass
            layers = tuple(
                kept.get(i, whole.config).layer for i in range(len(whole.layers))
            )
            yield row_of(setting, whole._replace(layers=layers), exact, held_out)


#  ---- showing -----------------------------------------------------------------

HEAD = ("setting", "bits", "MB", "KL", "perplexity", "agreement", "decode", "prompt")


def cells(row: Row) -> tuple[str, ...]:
    """A row in words; tokens per second last."""
    q = row.quality
    return (
        row.setting,
        f"{row.bits:.2f}",
        f"{row.bytes / 1e6:.1f}",
        f"{q.divergence:.1e}" if q.divergence > 1e-9 else "0",
        f"{q.perplexity:.3f}",
        f"{q.agreement:.2%}",
        f"{row.decode:.1f}",
        f"{row.prompt:.0f}",
    )


def draw(path: Path, found: Sequence[Row], title: str) -> None:
    """A picture of divergence against bits, a line for each method.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the name ends in no format that can be drawn, or its folder is missing.
    """
    ending = ending_of(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.subplots()
    lines: dict[str, list[Row]] = {}
    for row in found:
        if row.setting != FLOATS:
            method = re.sub(r"\d+(g\d+)?", "", row.setting, count=1)
            lines.setdefault(method, []).append(row)
    for method, those in lines.items():
        those.sort(key=lambda row: row.bits)
        xs, ys = [r.bits for r in those], [r.quality.divergence for r in those]
        axes.plot(xs, ys, marker="o", label=method)
        for row, x, y in zip(those, xs, ys):
            axes.annotate(row.setting, (x, y), fontsize=6, rotation=30)
    axes.set(yscale="log", xlabel="bits per weight", ylabel="KL in nats", title=title)
    axes.legend()
    with new_file(path) as file:
        figure.savefig(file, format=ending)
