"""What the makers of a checkpoint wish: its ``generation_config.json``.

A file has options for every way of generating, also for ways that it does not ask for:
a temperature of 0 beside greedy search, a penalty between groups of beams without beams.
What has no effect is not checked, and what the user gives takes the place of the file's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npllama.generation.options import OPTIONS, GenerationConfig
from npllama.weights import Model

Options = Mapping[str, Any]
NONE: Options = {}
# These have no effect if nothing is drawn.
OF_CHANCE = "temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff".split()


def options_from_hf(data: Options, over: Options = NONE) -> dict[str, Any]:
    """The options in a ``generation_config.json``, for `GenerationConfig`.

    Entries that npllama does not know (cache and torch settings, versions) are
    ignored, and so are those without effect; the others are checked.

    Parameters
    ----------
    data : mapping
        What the file holds.
    over : mapping
        The user's options, by which the file's of the same names are replaced.

    Raises
    ------
    ValueError
        If a value is out of range, or values contradict each other.
    """
    known = OPTIONS.keys() - over.keys()
    given = {k: v for k, v in data.items() if k in known and v is not None}
    if not data.get("do_sample"):
        idle = [k for k in OF_CHANCE if k in given and _error_of({k: given[k]})]
        given = {k: v for k, v in given.items() if k not in idle}
    if "num_beams" not in over and data.get("num_beams", 1) in (None, 1):
        given.pop("num_beam_groups", None)
    if (given | dict(over)).get("num_beam_groups", 1) == 1:
        given.pop("diversity_penalty", None)
    error = _error_of(given)
    if error and _error_of(given | dict(over)):
        raise ValueError(f"generation_config.json: {error}")
    return given


def _error_of(options: Options) -> str:
    """Why these options are no config; empty if they are one."""
    try:
        GenerationConfig(**options)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def options_of(model: Model, over: Options = NONE) -> dict[str, Any]:
    """The options in a checkpoint, for `GenerationConfig`."""
    return options_from_hf(model.generation_config or {}, over)


def load_options(path: str | os.PathLike, over: Options = NONE) -> dict[str, Any]:
    """Read a ``generation_config.json``, or the folder that holds one."""
    path = Path(path)
    path = path / "generation_config.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return options_from_hf(data, over)
