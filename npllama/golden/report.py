"""The verdict on a candidate, in words and as JSON.

A report begins with what its reader needs next: the first tensor that is wrong, its
inputs (which are right), and the likely fault.  The measures of the tensors follow.
The text shows the tensors around the first fault or, if there is none, those closest
to their limit; the JSON has all of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from npllama.config import config_from_hf
from npllama.golden.compare import FACTOR, Comparison, Row, compare, seen_dtype
from npllama.golden.diagnose import Diagnosis, explain, too_large
from npllama.golden.floor import floor, split_name
from npllama.golden.precision import check_dtype
from npllama.golden.scene import Scene, kind_of, made_from
from npllama.golden.signs import Finding
from npllama.golden.trace import Trace
from npllama.weights import Model

# Rows of the table in the text.
SHOWN = 12


class Report(NamedTuple):
    """The verdict on one candidate, and its reasons."""

    comparison: Comparison
    sources: tuple[Row, ...]  # what the first tensor outside was made from
    finding: Finding | None
    remarks: tuple[str, ...]

    @property
    def within(self) -> bool:
        """Whether rounding explains every difference."""
        return self.comparison.first is None


#  ---- from two files to a report ---------------------------------------------


def examine(
    golden: Trace,
    candidate: Trace,
    model: Model | None = None,
    dtype: str | None = None,
    factor: float = FACTOR,
) -> Report:
    """Compare a candidate with a golden trace, and say what is wrong with it.

    Parameters
    ----------
    golden, candidate : Trace
    model : Model
        The weights, in float64.  With them, floors that the trace lacks can be
        measured, and more faults can be distinguished.
    dtype : one of `precision.FORMATS`
        In which the candidate computed; by default the one that it names, or else the
        one that its numbers show.
    factor : float
        How many noise floors are allowed.

    Raises
    ------
    ValueError
        If they cannot be compared: no tensor in common, other tokens, no floor.
    """
    dtype = dtype_of(candidate) if dtype is None else check_dtype(dtype)
    floors = floors_for(golden, model, dtype)
    comparison = compare(golden, candidate, floors, dtype, factor)
    if not any(row.verdict in ("within", "outside") for row in comparison.rows):
        raise ValueError(
            f"the golden trace has a noise floor of {dtype} for none of the candidate's "
            "tensors; give --weights to measure them"
        )
    first = comparison.first
    if first is None:
        return Report(comparison, (), None, tuple(remarks(comparison)))
    config = config_from_hf(golden.meta["config"])
    scene = Scene(
        golden, candidate, first, dtype, factor, config, model, comparison.rows
    )
    names = made_from(first.name, config.num_hidden_layers)
    sources = tuple(row for row in comparison.rows if row.name in names)
    diagnosis = explain(scene)
    said = remarks(comparison) + limits(scene, sources, diagnosis)
    return Report(comparison, sources, diagnosis.finding, tuple(said))


def floors_for(golden: Trace, model: Model | None, dtype: str):
    """The floors that a trace brings along, or those measured with the model.

    Returns
    -------
    mapping of name to {"rms": float}
    """
    floors = golden.meta.get("floor", {}).get(dtype)
    names = [name for name in golden if "/" in name]
    if model is not None and not (floors and all(name in floors for name in names)):
        return floor(golden, model, dtype)
    if floors is None:
        known = ", ".join(golden.meta.get("floor", {})) or "no dtype"
        raise ValueError(
            f"the golden trace has noise floors for {known}, not for {dtype}; give "
            "--weights to measure them"
        )
    return floors


def dtype_of(candidate: Trace) -> str:
    """The dtype of a candidate: the one it names, or else the one its numbers show."""
    said = candidate.meta.get("dtype")
    if said is None:
        return seen_dtype(candidate)
    # No candidate has to be closer than float32.
    return "float32" if said == "float64" else check_dtype(said)


def remarks(comparison: Comparison) -> list[str]:
    """The limits of the verdict."""
    said = []
    found = [row for row in comparison.rows if row.verdict != "missing"]
    modules = {kind_of(split_name(row.name)[1]) for row in found}
    if modules == {"lm_head"}:
        said.append("only logits were compared: where an error begins cannot be said")
    if not modules & {"self_attn.q_rope", "self_attn.k_rope", "cache.k"}:
        said.append(
            "without q_rope, k_rope or cache.k a shift of all positions is unseen"
        )
    notes = dict.fromkeys(row.note for row in found if row.verdict == "unknown")
    for note in notes:
        names = [row.name for row in found if row.note == note]
        said.append(f"{note}, so no verdict, for {listed(names)}")
    if comparison.extra:
        said.append(f"not in the golden trace: {listed(comparison.extra)}")
    return said


def limits(scene: Scene, sources: tuple[Row, ...], diagnosis: Diagnosis) -> list[str]:
    """The limits of the diagnosis, and what was ruled out."""
    said = [f"ruled out by other tensors: {text}" for text in diagnosis.refuted[:3]]
    said += [f"would explain it as well: {text}" for text in diagnosis.tied[:4]]
    finding = diagnosis.finding
    missing = [row.name for row in sources if row.verdict == "missing"]
    if missing:
        said.append(
            f"not in the candidate: {', '.join(missing)}; the fault may lie there or "
            "before"
        )
    if finding is None and scene.model is None:
        said.append("with --weights more faults can be tested")
    elif finding is None and too_large(scene):
        said.append(
            "the model is too large to run it once per fault: only faults of the "
            "operation itself were tested"
        )
    return said


def listed(names) -> str:
    """A few names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(list(names)[:3]) + more


#  ---- JSON -------------------------------------------------------------------


def finite(x: Any) -> Any:
    """Numbers that JSON has; null for infinities and NaN."""
    return None if isinstance(x, float) and not math.isfinite(x) else x


def ratio(row: Row) -> float | None:
    """The error in floors; None where there is no floor."""
    if row.measures is None or row.floor is None:
        return None
    if row.floor == 0:
        return 0.0 if row.measures.error == 0 else math.inf
    return row.measures.error / row.floor


def row_to_json(row: Row) -> dict[str, Any]:
    """One tensor."""
    data: dict[str, Any] = {"name": row.name, "verdict": row.verdict, "note": row.note}
    data |= {"floor": row.floor, "floors": finite(ratio(row))}
    for part in (row.measures, row.logits, row.evenness):
        if part is not None:
            data |= {key: finite(x) for key, x in part._asdict().items()}
    return data


def to_json(report: Report) -> dict[str, Any]:
    """The whole report, as an object that ``json.dumps`` takes.

    Returns
    -------
    dict
        ``verdict`` is "within" or "outside"; ``first`` the name of the first tensor
        outside, or None; ``tensors`` has all measures, in the order of execution.
    """
    comparison, finding = report.comparison, report.finding
    first = comparison.first
    return {
        "verdict": "within" if report.within else "outside",
        "dtype": comparison.dtype,
        "factor": comparison.factor,
        "first": first.name if first else None,
        "made_from": [row_to_json(row) for row in report.sources],
        "diagnosis": finding._asdict() | {"left": finite(finding.left)}
        if finding
        else None,
        "remarks": list(report.remarks),
        "missing": [r.name for r in comparison.rows if r.verdict == "missing"],
        "extra": list(comparison.extra),
        "tensors": [row_to_json(r) for r in comparison.rows if r.verdict != "missing"],
    }


#  ---- text -------------------------------------------------------------------


def summary(report: Report) -> str:
    """One sentence: how many tensors are within the floor."""
    rows = report.comparison.rows
    found = [row for row in rows if row.verdict in ("within", "outside")]
    outside = sum(row.verdict == "outside" for row in found)
    missing = sum(row.verdict == "missing" for row in rows)
    c = report.comparison
    verdict = (
        f"{outside} of {len(found)} tensors leave the noise floor"
        if outside
        else f"all {len(found)} tensors are within the noise floor"
    )
    absent = f"; {missing} more are not in the candidate" if missing else ""
    unknown = sum(row.verdict == "unknown" for row in rows)
    open_ = f"; on {unknown} there is no verdict" if unknown else ""
    return f"{verdict} of {c.dtype} (up to {c.factor:g} times it){open_}{absent}"


def state(row: Row) -> str:
    """A row's verdict in words."""
    if row.verdict == "missing":
        return "not in the candidate"
    far = ratio(row)
    size = "" if far is None or not math.isfinite(far) else f", {far:.3g} floors"
    return f"{row.verdict}{size}"


def certainty(finding: Finding) -> str:
    """How sure a diagnosis is."""
    return "proved: nothing but rounding is left" if finding.proved else "likely"


def to_text(report: Report) -> str:
    """The report for a terminal."""
    lines = [summary(report)]
    first = report.comparison.first
    if first is not None:
        lines += ["", f"first outside   {first.name}", f"                {first.note}"]
        for i, row in enumerate(report.sources):
            label = "made from" if i == 0 else ""
            lines.append(f"{label:<16}{row.name}: {state(row)}")
        if report.finding:
            lines.append(f"{'diagnosis':<16}{report.finding.text}")
            lines.append(f"{'':<16}({certainty(report.finding)})")
        else:
            lines.append(
                f"{'diagnosis':<16}outside, cause unknown: no known fault explains it alone"
            )
    lines += [f"note            {remark}" for remark in report.remarks]
    return "\n".join([*lines, "", *table(report.comparison)]) + "\n"


def chosen_rows(comparison: Comparison) -> list[Row]:
    """Rows around the first fault, or those that came closest to their limit."""
    rows = [row for row in comparison.rows if row.verdict != "missing"]
    if comparison.first is not None:
        at = max(rows.index(comparison.first) - SHOWN // 2, 0)
        return rows[at : at + SHOWN]
    closest = sorted(rows, key=lambda row: -(ratio(row) or 0))[:SHOWN]
    return [row for row in rows if row in closest]


HEADER = ("error", "floor", "floors", "max abs", "max rel", "cosine", "ulp max", "med")


def table(comparison: Comparison) -> list[str]:
    """Measures of a few tensors, aligned."""
    rows = chosen_rows(comparison)
    width = max(len(row.name) for row in rows)
    lines = [f"{'tensor':<{width}} " + "".join(f"{name:>10}" for name in HEADER)]
    for row in rows:
        mark = "  <- outside" if row.verdict == "outside" else ""
        cells = "".join(f"{cell:>10}" for cell in cells_of(row))
        lines.append(f"{row.name:<{width}} {cells or '  ' + row.note}{mark}")
    for row in (row for row in rows if row.logits):
        m = row.logits
        lines.append(
            f"{row.name}: KL {m.kl:.3g} nats at most; the likeliest token agrees at "
            f"{m.top_1:.1%} of positions, the five likeliest by {m.top_5:.1%}; their "
            f"log-probabilities differ by {m.logprob_gap:.3g} at most"
        )
    return lines


def cells_of(row: Row) -> list[str]:
    """The cells of one tensor, under the names of `HEADER`."""
    m = row.measures
    if m is None:
        return []
    far = ratio(row)
    numbers = (m.error, row.floor, far, m.max_abs, m.max_relative)
    cells = ["-" if x is None else f"{x:.3g}" for x in numbers]
    return [*cells, f"{m.cosine:.6f}", f"{m.ulp_max:.3g}", f"{m.ulp_median:.3g}"]
