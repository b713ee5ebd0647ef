"""Record what the conformance kit finds in other libraries.

Each is held to the kit's own conventions, those of transformers 5, and then to those
that it follows: what differs on purpose is broken in the first report and holds in
the second.  This module records Meta's top-p, which needs nothing but NumPy; the ones
beside it record transformers and llama.cpp.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from npllama.conformance import examine, offers_of  # noqa: E402

# The same cases in every run, more than a plain run of the tests tries.
settings.register_profile(
    "record", max_examples=100, deadline=None, derandomize=True, database=None
)


def record(library: str, factory: Callable, by_its_conventions: Callable) -> dict:
    """Both reports about a library."""
    before = settings.get_current_profile_name()
    settings.load_profile("record")
    try:
        reports = [examine(offers_of(f())) for f in (factory, by_its_conventions)]
    finally:
        settings.load_profile(before)
    plain, own = (
        {"results": report.record()["results"], "text": report.text().splitlines()}
        for report in reports
    )
    return {"library": library, "by the kit's": plain, "by its own": own}


def write(folder: Path, name: str, found: dict) -> None:
    """Write a record beside its place and then into it."""
    path = Path(folder) / f"conformance_{name}.json"
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def make(folder: Path) -> None:
    """Write conformance_meta.json into `folder`."""
    from samplers.meta import by_its_conventions, factory

    found = record("Meta's sample_top_p", factory, by_its_conventions)
    write(folder, "meta", found)
