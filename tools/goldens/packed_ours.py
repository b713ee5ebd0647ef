"""Folders that ``npllama quantize`` wrote, and the weights that gptqmodel reads there.

Each case is committed as it was written; a few of the weights that gptqmodel makes of
it stand in ``expected.npz``.  As in `packed_gptq`, scales are given to gptqmodel in
float32, or it would round the products.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from goldens.packed_gptq import read_by_gptqmodel, tiny_llama

CASES = {
    "gptq_4_ours": "--bits 4 --group-size 32 --sym",
    "gptq_4_ours_act_order": "--bits 4 --group-size 32 --no-sym --desc-act",
    "gptq_8_ours": "--bits 8 --group-size -1 --sym",
}
KEPT = ("config.json", "quantize_config.json", "model.safetensors")


def make(folder: Path) -> None:
    """Write tests/goldens/packed/gptq_*_ours*/."""
    from npllama.cli.main import main

    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # with more it does not start on 2 cores
    chance = np.random.default_rng(1)
    rows = [chance.integers(0, 24, 32).tolist() for _ in range(8)]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tiny_llama(work / "tiny")
        (work / "rows.jsonl").write_text(
            "\n".join(json.dumps({"tokens": row}) for row in rows)
        )
        npz = str(work / "tiny.npz")
        assert main(["convert", str(work / "tiny"), npz, "--no-tokenizer"]) == 0
        for case, words in CASES.items():
            more = [*words.split(), "--calibrate", str(work / "rows.jsonl")]
            assert main(["quantize", npz, str(work / case), *more]) == 0
            target = folder / "packed" / case
            target.mkdir(parents=True, exist_ok=True)
            for file in KEPT:
                shutil.copy(work / case / file, target / file)
            for path in (work / "tiny").glob("*token*"):  # gptqmodel wants one
                shutil.copy(path, work / case)
            weights = read_by_gptqmodel(work / case)
            np.savez(target / "expected.npz", **weights)
