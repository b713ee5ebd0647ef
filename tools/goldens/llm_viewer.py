"""Record what LLM-Viewer says of every operator of four models.

    git clone https://github.com/hahnyuan/LLM-Viewer CHECKOUT
    python tools/goldens/llm_viewer.py CHECKOUT

LLM-Viewer is no package, so it runs from a checkout; the golden says which commit that
was.  It reads a model's sizes with transformers, from config.json files made here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from goldens.llm_viewer_cases import (  # noqa: E402
    BITS,
    CARD,
    FIELDS,
    FILE,
    MODELS,
    SIZES,
)
from npllama.config import preset  # noqa: E402
from npllama.files.whole import new_file  # noqa: E402

MEMORY = ("memory_consumption_weight", "memory_consumption_kv_cache")


def config_file(name: str, folder: Path) -> Path:
    """A folder with the config.json of a preset, as transformers reads it."""
    config, place = preset(name), folder / name
    place.mkdir()
    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    found = {size: getattr(config, size) for size in sizes}
    found["model_type"] = "llama"
    place.joinpath("config.json").write_text(json.dumps(found), encoding="utf-8")
    return place


def whole(number: float) -> float | int:
    """A count without its point; seconds stay as they are."""
    return int(number) if number == int(number) else number


def table(stage: dict) -> dict[str, list]:
    """{operator: its figures and what binds it} of one stage."""
    return {
        name: [*(whole(found[field]) for field in FIELDS), found["bound"]]
        for name, found in stage.items()
    }


def analyzed(analyzer, model: str) -> list[dict]:
    """One entry for every size and dtype, plain and as FlashAttention."""
    entries = []
    for batch, length in SIZES:
        for bits in BITS:
            entry = {"model": model, "batch": batch, "length": length, "bits": bits}
            found = analyzer.analyze(length, batch, *bits)
            entry |= {stage: table(found[stage]) for stage in ("prefill", "decode")}
            totals = found["total_results"]["decode"]
            entry["memory"] = [whole(totals[name]) for name in MEMORY]
            found = analyzer.analyze(length, batch, *bits, use_flashattention=True)
            fused = found["prefill"]["fused_attention"]
            entry["fused"] = table({"prefill": fused})["prefill"]
            entries.append(entry)
    return entries


def record(checkout: Path, folder: Path) -> None:
    """Write the golden into `folder`."""
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    sys.path.insert(0, str(checkout))
    os.environ["HF_HUB_OFFLINE"] = "1"
    from model_analyzer import ModelAnalyzer

    cases = []
    with tempfile.TemporaryDirectory() as place, redirect_stdout(sys.stderr):
        for name in MODELS:
            source = str(config_file(name, Path(place)))
            cases += analyzed(ModelAnalyzer(source, CARD[0], "configs/Llama.py"), name)
    meta = {
        "source": "https://github.com/hahnyuan/LLM-Viewer",
        "commit": commit,
        "fields": [*FIELDS, "bound"],
        "memory": MEMORY,
    }
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    text = f'{{"meta": {json.dumps(meta)},\n"cases": [\n{lines}\n]}}\n'
    with new_file(folder / FILE) as file:
        file.write(text.encode())
    print(f"{folder / FILE}: {len(cases)} cases, LLM-Viewer {commit[:8]}")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="folder of LLM-Viewer")
    parser.add_argument("--folder", type=Path, default=ROOT / "tests" / "goldens")
    args = parser.parse_args(argv)
    record(args.checkout, args.folder)


if __name__ == "__main__":
    main()
