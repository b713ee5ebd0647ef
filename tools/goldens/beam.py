"""Record the texts that transformers' beam searches find on tiny random models.

Plain beams are those of transformers 5.23; diverse and constrained beams, which it
gave up, those of 4.49.  Run it once with each version: a run replaces only what its
version knows.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import torch
import transformers

from .tiny_models import tiny, transformers_model, until_eos

FILE = "beam.json"
MODELS = 50
MAX_NEW_TOKENS = 10


def settings() -> dict[str, list[dict]]:
    """What is asked of every model, by the version that is to answer."""
    stops, penalties = (True, False, "never"), (0.0, 1.0, -0.5)
    base = [
        {"early_stopping": stop, "length_penalty": penalty}
        for stop, penalty in product(stops, penalties)
    ]
    plain = [{**b, "num_beams": n} for b, n in product(base, (2, 4))]
    groups = [
        {**b, "num_beams": n, "num_beam_groups": g, "diversity_penalty": d}
        for b, (n, g, d) in product(base[::2], ((4, 2, 0.5), (6, 3, 2.0), (3, 3, 1.0)))
    ]
    words = ([[7, 8]], [[7, 9, 8], [[6, 7], [10]]], [[11], [8, 9]])
    forced = [
        {**b, "num_beams": 4, "force_words_ids": w}
        for b, w in product(base[::2], words)
    ]
    return {"5.23": plain, "4.49": groups + forced}


def answer(model, made, setting: dict) -> dict:
    """What transformers finds: texts and their scores."""
    forced = "force_words_ids" in setting
    wanted = 1 if forced else setting["num_beams"]
    with torch.no_grad():
        found = model.generate(
            torch.tensor([made.prompt]),
            attention_mask=torch.ones(1, len(made.prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            num_return_sequences=wanted,
            return_dict_in_generate=True,
            output_scores=True,
            **setting,
        )
    eos = made.config["eos_token_id"]
    eos = eos if isinstance(eos, list) else [eos]
    texts = [row[len(made.prompt) :] for row in found.sequences.tolist()]
    scores = [round(score, 6) for score in found.sequences_scores.tolist()]
    return {"texts": [until_eos(text, eos) for text in texts], "scores": scores}


def make(folder: Path) -> None:
    """Write beam.json into `folder`."""
    transformers.logging.set_verbosity_error()
    version = ".".join(transformers.__version__.split(".")[:2])
    if version not in settings():
        raise SystemExit(f"beam: needs transformers 5.23 or 4.49, found {version}")
    path = Path(folder) / FILE
    golden = json.loads(path.read_text()) if path.exists() else {}
    cases = []
    for seed in range(MODELS):
        made = tiny(seed, second_eos=seed % 3 == 0)
        model = transformers_model(made)
        # Every model meets its share of the settings; all together meet all.
        for i, setting in enumerate(settings()[version]):
            if i % 3 == seed % 3:
                found = answer(model, made, setting)
                cases.append({"seed": seed, "setting": setting, **found})
    golden[version] = cases
    path.write_text(json.dumps(golden, separators=(",", ":")))
    print(f"{path}: {len(cases)} searches of transformers {version}")
